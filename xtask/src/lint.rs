//! `lint`: rustfmt, clippy with warnings denied, and the rules of the house that no lint knows.

use crate::shell::{self, cargo, root};
use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    complaints
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, complain};
    use std::path::Path;

    #[test]
    fn long_files_and_files_without_a_heading_are_named() {
        let long = format!("//! A room.\n{}", "\n".repeat(LONGEST));
        assert_eq!(complain(Path::new("a.rs"), &long).len(), 1);
        assert!(complain(Path::new("a.rs"), "//! A room.\nfn f() {}\n").is_empty());
        assert_eq!(complain(Path::new("a.rs"), "fn f() {}\n").len(), 1);
    }
}
