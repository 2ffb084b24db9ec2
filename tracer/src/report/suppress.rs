//! Sites that are known and not to be reported, by patterns in the syntax of LeakSanitizer's suppression files.
//!
//! A line is `leak:PATTERN`; empty lines and lines that begin with `#` are passed over. A pattern fits a site if it is found
//! in the name of a function, of a source file or of a module of its stack. In a pattern `*` stands for any text, `^` at its
//! beginning and `$` at its end for the beginning and the end of the name
//! (<https://clang.llvm.org/docs/LeakSanitizer.html>; `TemplateMatch` of compiler-rt's `sanitizer_common.cpp`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::model::{Frame, ReportParts, Site, SiteKind, Suppressed};

/// Why there is nothing to show of a process whose every site was taken away.
pub const ALL_SUPPRESSED: &str = "all of its sites are suppressed";

/// A file that is no suppression file.
#[derive(Debug, Error)]
pub enum SuppressError {
    /// It cannot be read.
    #[error("cannot read the suppressions in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not understood.
    #[error(
        "{}:{line}: {text:?} is no suppression; a line is leak:PATTERN, or a comment that begins with #",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
}

/// Patterns of sites that are not to be reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    patterns: Vec<String>,
}

impl Suppressions {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or a line is not understood.
    pub fn read(path: &Path) -> Result<Self, SuppressError> {
        let text = std::fs::read_to_string(path).map_err(|source| SuppressError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Parses a file's text; `path` is for the error.
    ///
    /// # Errors
    /// A line is not understood.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SuppressError> {
        let mut patterns = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            match text
                .strip_prefix("leak:")
                .filter(|pattern| !pattern.is_empty())
            {
                Some(pattern) => patterns.push(pattern.to_owned()),
                None => {
                    return Err(SuppressError::Line {
                        path: path.to_owned(),
                        line,
                        text: text.chars().take(80).collect(),
                    });
                }
            }
        }
        Ok(Self { patterns })
    }

    /// Whether nothing is suppressed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The first pattern that fits a site.
    fn of(&self, site: &Site) -> Option<&str> {
        self.patterns
            .iter()
            .find(|pattern| site.frames.iter().any(|frame| fits_frame(pattern, frame)))
            .map(String::as_str)
    }

    /// Takes the sites that a pattern fits out of a report, whose frames must be named, and counts them there by pattern. Gives how many
    /// bytes in use were taken, by incarnation.
    pub fn apply(&self, parts: &mut ReportParts) -> BTreeMap<u32, u64> {
        let mut taken_bytes: BTreeMap<u32, u64> = BTreeMap::new();
        if self.is_empty() {
            return taken_bytes;
        }
        let mut counted: Vec<Suppressed> = self
            .patterns
            .iter()
            .map(|pattern| Suppressed {
                pattern: pattern.clone(),
                ..Suppressed::default()
            })
            .collect();
        let mut taken_from = BTreeSet::new();
        parts.sites.retain(|site| {
            let Some(pattern) = self.of(site) else {
                return true;
            };
            taken_from.insert(site.incarnation);
            if let Some(count) = counted.iter_mut().find(|one| one.pattern == pattern) {
                count.sites += 1;
                if site.kind == SiteKind::Pages {
                    return false;
                }
                let taken = taken_bytes.entry(site.incarnation).or_default();
                *taken = taken.saturating_add(site.inuse_bytes);
                count.inuse_bytes = count.inuse_bytes.saturating_add(site.inuse_bytes);
                count.inuse_objects = count.inuse_objects.saturating_add(site.inuse_objects);
            }
            false
        });
        parts.suppressed = counted;
        for site in &parts.sites {
            taken_from.remove(&site.incarnation);
        }
        for process in &mut parts.processes {
            if taken_from.contains(&process.incarnation) {
                process.empty_reason = Some(ALL_SUPPRESSED.to_owned());
            }
        }
        taken_bytes
    }
}

fn fits_frame(pattern: &str, frame: &Frame) -> bool {
    [&frame.function, &frame.file, &frame.module]
        .into_iter()
        .flatten()
        .any(|name| fits(pattern, name))
}

/// Whether a pattern is found in a name.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, at_start) = match pattern.strip_prefix('^') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let (pattern, at_end) = match pattern.strip_suffix('$') {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let mut parts: Vec<&str> = parts.collect();
    let last = parts.pop();
    let Some(last) = last else {
        // No star.
        return match (at_start, at_end) {
            (true, true) => name == first,
            (true, false) => name.starts_with(first),
            (false, true) => name.ends_with(first),
            (false, false) => name.contains(first),
        };
    };
    let mut rest = name;
    if at_start {
        match rest.strip_prefix(first) {
            Some(after) => rest = after,
            None => return false,
        }
    } else {
        match rest.split_once(first) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    if at_end {
        rest.ends_with(last)
    } else {
        rest.contains(last)
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a failing test may panic"
    )]

    use std::path::Path;

    use super::{ALL_SUPPRESSED, Suppressions, fits};
    use crate::report::fixtures::exact_report;
    use proptest::prelude::*;

    #[test]
    fn patterns_fit_as_the_sanitizer_has_it() {
        for (pattern, name, expected) in [
            ("foo", "my_foobar", true),
            ("^foo", "my_foobar", false),
            ("^my_", "my_foobar", true),
            ("bar$", "my_foobar", true),
            ("foo$", "my_foobar", false),
            ("^my_foobar$", "my_foobar", true),
            ("my*bar", "my_foobar", true),
            ("my*bar*x", "my_foobar", false),
            ("^m*o*r$", "my_foobar", true),
            ("^a*a$", "a", false),
            ("*", "", true),
            ("libssl.so*", "/usr/lib/libssl.so.3", true),
            (
                "std::*::push_back",
                "std::vector<int>::push_back(int&&)",
                true,
            ),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn files_are_read_and_bad_lines_are_named() {
        let path = Path::new("known.supp");
        let text = "# known\n\nleak:Index::add\n  leak:libssl.so*  \r\n";
        let read = Suppressions::parse(path, text).unwrap();
        assert_eq!(read.patterns, ["Index::add", "libssl.so*"]);
        for bad in ["leak:", "race:foo", "Index::add", "leak :x"] {
            let error = Suppressions::parse(path, &format!("leak:x\n{bad}\n")).unwrap_err();
            assert!(error.to_string().starts_with("known.supp:2: "), "{error}");
        }
        assert!(Suppressions::read(Path::new("/does/not/exist")).is_err());
    }

    #[test]
    fn suppressed_sites_are_gone_and_counted() {
        let all = exact_report();
        for pattern in ["Index::add", "src/index.cpp", "indexer$"] {
            let mut parts = all.clone().into_parts();
            let before = parts.sites.len() as u64;
            let text = format!("leak:never_there\nleak:{pattern}");
            Suppressions::parse(Path::new("x"), &text)
                .unwrap()
                .apply(&mut parts);
            let counts: Vec<u64> = parts.suppressed.iter().map(|one| one.sites).collect();
            assert_eq!(counts[0], 0);
            assert!(counts[1] > 0, "{pattern}");
            assert_eq!(parts.sites.len() as u64 + counts[1], before);
            parts.add_up();
            assert!(
                crate::report::Report::new(parts)
                    .contradictions()
                    .is_empty()
            );
        }
    }

    #[test]
    fn a_process_whose_sites_are_all_suppressed_says_so() {
        let of = |pattern: &str| {
            let mut parts = exact_report().into_parts();
            parts.sites.retain(|site| !site.frames.is_empty());
            Suppressions::parse(Path::new("x"), &format!("leak:{pattern}"))
                .unwrap()
                .apply(&mut parts);
            let left = !parts.sites.is_empty();
            let says = parts
                .processes
                .iter()
                .any(|process| process.empty_reason.as_deref() == Some(ALL_SUPPRESSED));
            (left, says)
        };
        assert_eq!(of("*"), (false, true));
        assert_eq!(of("Index::add"), (true, false));
    }

    proptest! {
        #[test]
        fn a_part_always_fits_and_nothing_panics(name in "[a-z*^$:]{0,12}", pattern in "[a-z*^$]{0,8}", from in 0_usize..12, to in 0_usize..12) {
            fits(&pattern, &name);
            let plain = name.replace(['*', '^', '$'], "");
            let (from, to) = (from.min(to).min(plain.len()), from.max(to).min(plain.len()));
            prop_assert!(fits(&plain[from..to], &plain));
            let split = format!("^{}*{}$", &plain[..from], &plain[from..]);
            prop_assert!(fits(&split, &plain));
        }
    }
}
