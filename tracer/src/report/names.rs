//! Names as views show them: strings that others chose (command names, symbols, paths), and frames without a symbol.
//!
//! Owns the rule which characters are never passed on: a traced process must not be able to move the cursor of whoever
//! reads the report, nor break a file format.

use std::borrow::Cow;

use super::model::{
    Frame, FrameKind, GoSize, GoUse, HeapUse, Process, ReportParts, Site, SiteKind, Tier,
};
use crate::{ledger::NO_POINTER, units};

/// Whether a character is kept: no control characters, none that reorder the line (Unicode's bidirectional
/// formatting characters, U+202A-U+202E and U+2066-U+2069), none that XML 1.0 excludes.
fn fit(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// The text with every unfit character replaced by U+FFFD.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().all(fit) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|character| {
            if fit(character) {
                character
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect::<String>()
        .into()
}

/// The file's name, without its directory.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/')
        .find(|part| !part.is_empty())
        .unwrap_or(path)
}

/// The function's name, if there is one; symbol tables also hold empty ones.
pub(crate) fn function(frame: &Frame) -> Option<&str> {
    frame.function.as_deref().filter(|name| !name.is_empty())
}

/// Files of the C and C++ libraries and of what the kernel maps, as their names begin: their functions say nothing of a program.
const RUNTIME_FILES: [&str; 11] = [
    "libc.so",
    "libc-",
    "ld-linux",
    "ld-musl",
    "libpthread",
    "libstdc++",
    "libc++.so",
    "libc++abi",
    "libgcc_s",
    "libm.so",
    "[vdso]",
];

/// Whether a frame is of the libraries that every program of its language has, or of Go's runtime.
pub(super) fn is_of_runtime(frame: &Frame) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    RUNTIME_FILES.iter().any(|name| module.starts_with(name))
        || frame.kind == FrameKind::Go
            && function(frame).is_some_and(|name| name.starts_with("runtime."))
}

/// What stands for a frame's function where that is not known: `[module+0x1234]`, or less.
pub(crate) fn unnamed(frame: &Frame) -> String {
    if frame.kind == FrameKind::Python {
        return "[python code that is gone]".to_owned();
    }
    let module = frame
        .module
        .as_ref()
        .map(|module| clean(base_name(module)).into_owned());
    match (module, frame.offset, frame.address) {
        (Some(module), Some(offset), _) => format!("[{module}+{offset:#x}]"),
        (Some(module), None, Some(address)) => format!("[{module} {address:#x}]"),
        (Some(module), None, None) => format!("[{module}]"),
        (None, _, Some(address)) => format!("[{address:#x}]"),
        (None, Some(offset), None) => format!("[+{offset:#x}]"),
        (None, None, None) => "[unknown]".to_owned(),
    }
}

/// The pseudo frame at the root of a stack that does not reach its true end; `None` when it does.
pub(super) fn incomplete(site: &Site) -> Option<String> {
    (!site.stack_complete && !site.frames.is_empty()).then(|| match &site.stack_incomplete_reason {
        Some(reason) => format!("[{INCOMPLETE}: {}]", clean(reason)),
        None => format!("[{INCOMPLETE}]"),
    })
}

/// How the pseudo frame of [`incomplete`] begins.
pub(super) const INCOMPLETE: &str = "stack incomplete";

/// How the pseudo frame of [`omitted`] begins.
pub(super) const OMITTED: &str = "sites not shown";

/// The pseudo frame of a site without a stack.
pub(super) const UNKNOWN_STACK: &str = "[unknown stack]";

/// The pseudo frame below the root of a stack that touched pages, which mappings hold too.
pub(super) const TOUCHED_PAGES: &str = "[touched pages]";

/// The pseudo frame that stands for all sites that a report leaves out.
pub(super) fn omitted(sites: u64) -> String {
    format!("[{OMITTED}: {sites}]")
}

/// The reason for the tier of a profile that does not say how it was made.
pub(super) const FROM_PROFILE: &str = "read from a pprof profile";

/// How what a report shows was seen, in a word or two, for its first line.
pub(super) fn seen_by(report: &ReportParts) -> String {
    if report.tier_reason == FROM_PROFILE {
        "a pprof profile".to_owned()
    } else if is_by_go(report) {
        "Go's heap profile".to_owned()
    } else {
        format!("{} tier", report.tier.name())
    }
}

/// The tier, where it is one.
pub(super) fn tier_name(report: &ReportParts) -> &'static str {
    if report.tier_reason == FROM_PROFILE {
        "not known"
    } else if is_by_go(report) {
        "none"
    } else {
        report.tier.name()
    }
}

/// Whether all figures are those of Go's runtime, which no tier is about.
fn is_by_go(report: &ReportParts) -> bool {
    let is_go = |process: &Process| {
        let has_profile = process
            .go
            .as_ref()
            .is_some_and(|go| go.profile_rate_bytes > 0);
        has_profile && process.probes.is_empty()
    };
    report.tier != Tier::Growth
        && !report.processes.is_empty()
        && report.processes.iter().all(is_go)
}

/// Why a process has no surviving block: as it says itself, else as far as its figures tell.
pub(crate) fn why_empty(process: &Process) -> Cow<'_, str> {
    match &process.empty_reason {
        Some(reason) => clean(reason),
        None if process.unseen.is_some() => {
            "of the blocks that were seen to be made none is left; its heap grows by others".into()
        }
        None if process.alloc_objects > 0 => {
            "everything that was allocated while tracing was freed again".into()
        }
        None if process.allocators.is_empty() => "no allocator was found".into(),
        None if process.probes.iter().all(|probe| probe.hits == 0) => {
            "the allocator was not called while tracing".into()
        }
        None => "nothing that was traced allocated memory".into(),
    }
}

/// Why a report shows no surviving block, a line for each process.
pub(super) fn why_all_empty(processes: &[Process]) -> Vec<String> {
    if processes.is_empty() {
        return vec!["no process was traced".to_owned()];
    }
    processes
        .iter()
        .map(|process| format!("{}: {}", process_name(process), why_empty(process)))
        .collect()
}

/// Of so many processes it is said why they could not be judged; of the others the number is given.
const UNJUDGED_SHOWN: usize = 4;

impl ReportParts {
    /// Why nothing could be judged, for people; `None` where some process could.
    #[must_use]
    pub fn unjudged(&self) -> Option<String> {
        if self.processes.is_empty() {
            return Some("no process matched".to_owned());
        }
        let mut said = Vec::new();
        for process in &self.processes {
            let why = process.unjudged.as_deref()?;
            said.push(format!("{}: {why}", process_name(process)));
        }
        let more = said.len().saturating_sub(UNJUDGED_SHOWN);
        said.truncate(UNJUDGED_SHOWN);
        if more > 0 {
            said.push(format!("and {more} more"));
        }
        Some(said.join("; "))
    }
}

/// How a verdict begins that rests on the blocks which a process had lost where it ended.
pub const LOST_AT_EXIT: &str = "lost at exit";

/// How full a heap is, in words.
pub(super) fn heap_use(heap: &HeapUse) -> String {
    format!(
        "free inside the heap: {} in {} piece{}, beside {} in use in {}",
        units::bytes(heap.free_bytes),
        units::count(heap.free_pieces),
        units::plural(heap.free_pieces),
        units::bytes(heap.bytes),
        units::blocks(heap.blocks)
    )
}

/// The most that a process had, where that was more than it has.
pub(crate) fn peak(process: &Process) -> Option<String> {
    let parts: Vec<String> = [
        (process.peak_inuse_bytes, process.inuse_bytes, "in use"),
        (process.peak_rss_bytes, process.rss_bytes, "resident"),
    ]
    .into_iter()
    .filter(|(peak, now, _)| peak > now)
    .map(|(peak, _, what)| format!("{} {what}", units::bytes(peak)))
    .collect();
    (!parts.is_empty()).then(|| format!("at most {}", parts.join(", ")))
}

/// What is seen of a Go runtime, in words.
pub(super) fn go_use(go: &GoUse) -> String {
    let version = go.version.as_deref().map_or("Go".into(), clean);
    let goroutines = format!(
        "{} goroutine{}",
        units::count(go.goroutines),
        units::plural(go.goroutines)
    );
    if go.profile_rate_bytes == 0 && go.heap.is_none() {
        return format!("{version}, {goroutines}, without a heap profile");
    }
    let collected = match go.last_collection_s {
        Some(age) => format!(
            "as of a collection {} ago, the {} since tracing began",
            units::duration(age),
            nth(go.collections_seen)
        ),
        None => "as of a collection before tracing began".to_owned(),
    };
    if let Some(heap) = &go.heap {
        let sizes: Vec<String> = heap.sizes.iter().take(SIZES).map(go_size).collect();
        if sizes.is_empty() {
            return format!(
                "{version}, {goroutines}; without a heap profile, and no collection has told what is in use"
            );
        }
        return format!(
            "{version}, {goroutines}; without a heap profile: {} in use, counted {collected} ({})",
            units::bytes(heap.inuse_bytes),
            sizes.join(", ")
        );
    }
    let sample = units::bytes(go.profile_rate_bytes);
    let cut = if go.is_cut {
        "; not all of it was read, for it has very many entries"
    } else {
        ""
    };
    format!(
        "{version}, {goroutines}; by its heap profile, one sample for {sample}, {collected}{cut}"
    )
}

/// So many sizes of blocks are shown on the line of a process.
const SIZES: usize = 3;

/// `1,200 blocks of 72.0 KiB`.
fn go_size(size: &GoSize) -> String {
    format!(
        "{} block{} of {}",
        units::count(size.objects),
        units::plural(size.objects),
        units::bytes(size.block_bytes)
    )
}

/// `1st`, `2nd`, `11th`.
fn nth(number: u64) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{}{ending}", units::count(number))
}

/// What a look at the heap says of a site's blocks, a line each.
pub(super) fn looked_at(site: &Site) -> Vec<String> {
    let mut lines = Vec::new();
    if !site.types.is_empty() {
        let types: Vec<String> = site
            .types
            .iter()
            .map(|of| format!("{} {}", units::count(of.objects), clean(&of.name)))
            .collect();
        let what = if site.kind == SiteKind::Goroutines {
            "they are in"
        } else {
            "types"
        };
        lines.push(format!("{what}: {}", types.join(", ")));
    }
    // The verdict may say it already.
    let is_said = [LOST_AT_EXIT, NO_POINTER]
        .iter()
        .any(|said| site.verdict_reason.starts_with(said));
    if let Some(found) = site
        .reachability
        .filter(|found| found.unreachable > 0 && !is_said)
    {
        lines.push(format!(
            "unreachable: {} of {} looked at; no pointer in the process leads to them",
            units::count(found.unreachable),
            units::blocks(found.checked)
        ));
    }
    lines.extend(site.holders.iter().take(HOLDERS_SHOWN).map(|holder| {
        let path: Vec<_> = holder.path.iter().map(|step| clean(step)).collect();
        format!(
            "held: {} <- {}",
            units::count(holder.objects),
            path.join(" <- ")
        )
    }));
    lines
}

/// So many ways by which blocks of a site are held are shown to people.
const HOLDERS_SHOWN: usize = 2;

/// `comm (pid 1)`.
pub(crate) fn process_name(process: &Process) -> String {
    format!("{} (pid {})", clean(&process.comm), process.pid)
}

#[cfg(test)]
mod tests {
    use super::{base_name, clean, seen_by, tier_name};
    use crate::report::model::{GoUse, Probe, Process, ReportParts};

    #[test]
    fn terminal_commands_do_not_pass() {
        assert_eq!(clean("plain näme"), "plain näme");
        assert_eq!(
            clean("a\x1b[2Jb\nc\u{202e}d"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d"
        );
    }

    #[test]
    fn figures_of_gos_own_profile_were_called_exact() {
        let go = |probes| Process {
            go: Some(GoUse {
                profile_rate_bytes: 512 << 10,
                ..GoUse::default()
            }),
            probes,
            ..Process::default()
        };
        let mut parts = ReportParts {
            processes: vec![go(Vec::new())],
            ..ReportParts::default()
        };
        assert_eq!(seen_by(&parts), "Go's heap profile");
        assert_eq!(tier_name(&parts), "none");
        parts.processes.push(go(vec![Probe::default()]));
        assert_eq!(seen_by(&parts), "exact tier");
    }

    #[test]
    fn base_names() {
        assert_eq!(base_name("/usr/lib/libc.so.6"), "libc.so.6");
        assert_eq!(base_name("[vdso]"), "[vdso]");
        assert_eq!(base_name("/"), "/");
    }
}
