//! `lint`: rustfmt, clippy with warnings denied, and the rules of the house that no lint knows.

use crate::shell::{self, cargo, root};
use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where unsafe code may stand: a file, or a directory with what is below it. Seen from the root.
const UNSAFE_ROOMS: [&str; 2] = ["probe-ebpf", "tracer/src/kernel"];

/// The longest file, in lines.
const LONGEST: usize = 700;

/// Lints everything; all complaints are shown before it fails.
///
/// # Errors
/// When there is a complaint.
pub(crate) fn perform() -> Result<ExitCode> {
    let mut failed = Vec::new();
    let mut check = |name: &'static str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("{error:#}");
            failed.push(name);
        }
    };
    println!("=== rustfmt");
    check(
        "rustfmt",
        shell::run(cargo().args(["fmt", "--all", "--check"])),
    );
    let probe = root().join("probe-ebpf/Cargo.toml");
    if probe.exists() {
        check(
            "rustfmt of the probe",
            shell::run(
                cargo()
                    .args(["fmt", "--all", "--check", "--manifest-path"])
                    .arg(&probe),
            ),
        );
    }
    check(
        "rustfmt of the fuzz targets",
        shell::run(
            cargo()
                .args(["fmt", "--all", "--check", "--manifest-path"])
                .arg(root().join("tests/fuzz/Cargo.toml")),
        ),
    );
    println!("=== clippy");
    check(
        "clippy",
        shell::run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])),
    );
    println!("=== house");
    check("house", house());
    if !failed.is_empty() {
        bail!("lint: {}", failed.join(", "));
    }
    println!("=== no complaints");
    Ok(ExitCode::SUCCESS)
}

fn house() -> Result<()> {
    let mut files = Vec::new();
    collect(root(), &mut files)?;
    files.sort();
    let mut complaints = Vec::new();
    for file in &files {
        let name = file.strip_prefix(root()).unwrap_or(file);
        let source = String::from_utf8_lossy(&shell::read(file)?).into_owned();
        complaints.extend(complain(name, &source));
    }
    if files.is_empty() {
        bail!("found no Rust files below {}", root().display());
    }
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    println!("{} files", files.len());
    Ok(())
}

/// Rust files below the directory, without what is built, and hidden directories.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// What the house has against one file.
fn complain(name: &Path, source: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = source.lines().count();
    if lines > LONGEST {
        complaints.push(format!(
            "{}: {lines} lines, more than {LONGEST}: split it",
            name.display()
        ));
    }
    if !source.trim_start().starts_with("//!") {
        complaints.push(format!(
            "{}:1: must begin with `//!`: what it owns and what it must not know",
            name.display()
        ));
    }
    if !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)) {
        for line in lines_with_word(source, "unsafe") {
            complaints.push(format!(
                "{}:{line}: unsafe code, which stands only in {}",
                name.display(),
                UNSAFE_ROOMS.join(" and ")
            ));
        }
    }
    complaints
}

/// The numbers of the lines in which the word stands as code: not in a comment, a string or a longer word.
fn lines_with_word(source: &str, word: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest);
        let (token, after) = rest.split_at(length.max(first.len_utf8()));
        if token == word {
            found.push(line);
        }
        line += token.matches('\n').count();
        rest = after;
    }
    found
}

/// The length in bytes of the token at the start of the text: a comment, a string, a character, a word, or one character.
fn token_length(text: &str) -> usize {
    let until = |end: &str, from: usize| {
        text.get(from..)
            .and_then(|tail| tail.find(end))
            .map_or(text.len(), |at| from + at + end.len())
    };
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment_length(text);
    }
    // Raw strings: r"…", r#"…"#, and with the prefixes b and c.
    let unprefixed = text.trim_start_matches(['b', 'c']);
    if text.len() - unprefixed.len() <= 1
        && let Some(raw) = unprefixed.strip_prefix('r')
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw.trim_start_matches('#').starts_with('"') {
            let opening = text.len() - raw.len() + hashes + 1;
            return until(&format!("\"{}", "#".repeat(hashes)), opening);
        }
    }
    if text.starts_with('"') {
        return quoted_length(text, '"');
    }
    if let Some(after) = text.strip_prefix('\'') {
        // A character, or a lifetime: only the former has a second quote right after one character.
        let mut characters = after.chars();
        let escaped = characters.next() == Some('\\');
        if escaped || characters.next() == Some('\'') {
            return quoted_length(text, '\'');
        }
        return 1;
    }
    text.find(|character: char| !character.is_alphanumeric() && character != '_')
        .unwrap_or(text.len())
}

/// The length of a text in quotes, with backslash escapes.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        if !escaped && character == quote {
            return at + quote.len_utf8();
        }
        escaped = !escaped && character == '\\';
    }
    text.len()
}

/// The length of a block comment; they nest.
fn block_comment_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = text.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth = depth.saturating_sub(1);
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, complain, lines_with_word};
    use std::path::Path;

    #[test]
    fn the_word_is_found_in_code_only() {
        let source = "// unsafe\n/* unsafe /* unsafe */ unsafe */ unsafe {\n\"unsafe \\\" unsafe\"\n'\\''; unsafe fn\n\
                      unsafe_op; 'a: b\nr#\"unsafe \" unsafe\"# unsafe\nbr\"unsafe\"; '\"'; unsafe";
        assert_eq!(lines_with_word(source, "unsafe"), [2, 4, 6, 7]);
    }

    #[test]
    fn unsafe_code_is_allowed_in_its_rooms_only() {
        let source = "//! A room.\nunsafe { f() }\n";
        assert!(complain(Path::new("tracer/src/kernel/attach.rs"), source).is_empty());
        assert!(complain(Path::new("probe-ebpf/src/main.rs"), source).is_empty());
        let complaints = complain(Path::new("tracer/src/kernels.rs"), source);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(
            complaints
                .concat()
                .starts_with("tracer/src/kernels.rs:2: unsafe")
        );
    }

    #[test]
    fn long_files_and_files_without_a_heading_are_named() {
        let long = format!("//! A room.\n{}", "\n".repeat(LONGEST));
        assert_eq!(complain(Path::new("a.rs"), &long).len(), 1);
        assert!(complain(Path::new("a.rs"), "//! A room.\nfn f() {}\n").is_empty());
        assert_eq!(complain(Path::new("a.rs"), "fn f() {}\n").len(), 1);
    }
}
