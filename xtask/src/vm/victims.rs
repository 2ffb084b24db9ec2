//! The programs that the kernel tests trace, built on this machine: the guest has no compiler.

use crate::shell::{self, cargo};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;

/// The variable that names the directory of built programs.
pub(super) const VARIABLE: &str = "LEAKSCOPE_VICTIMS";

/// Builds them all, by the tests' own table of programs, and gives the files.
///
/// # Errors
/// When cargo or a compiler fails.
pub(super) fn build() -> Result<Vec<PathBuf>> {
    let dir = shell::target_dir().join("vm/victims");
    // Made anew: what was built from older sources would be kept.
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    shell::make_dir(&dir)?;
    shell::run(
        cargo()
            .args(["run", "--quiet", "--package", "leakscope-tests"])
            .args(["--bin", "victims", "--"])
            .arg(&dir),
    )?;
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}
