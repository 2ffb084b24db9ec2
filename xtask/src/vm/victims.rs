//! The programs that the kernel tests trace, built on this machine: the guest has no compiler.

use super::tree::Tree;
use crate::shell::{self, command};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The variable that names the directory of built programs.
pub(super) const VARIABLE: &str = "LEAKSCOPE_VICTIMS";

/// The extension module among them: the guest needs the interpreter that it was built for.
pub(super) const EXTENSION: &str = "leakext.so";

/// The distribution's interpreter: it is one program and one directory, wherever `python3` on `PATH` may lead.
const PYTHON: &str = "/usr/bin/python3";

/// Builds them all, by the tests' own table of programs, and gives the files. `builder`: the program that has the table.
///
/// # Errors
/// When a compiler fails.
pub(super) fn build(builder: &Path) -> Result<Vec<PathBuf>> {
    let dir = shell::target_dir().join("vm/victims");
    // Made anew: what was built from older sources would be kept.
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    shell::make_dir(&dir)?;
    let mut build = command(builder);
    build.arg(&dir);
    if Path::new(PYTHON).exists() {
        build.env("LEAKSCOPE_PYTHON", PYTHON);
    }
    shell::run(&mut build)?;
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

/// Adds the interpreter and its standard library.
///
/// # Errors
/// When it does not say where its library is, or that cannot be read.
pub(super) fn add_python(tree: &mut Tree) -> Result<()> {
    tree.own(Path::new(PYTHON))?;
    let library = shell::capture(command(PYTHON).args([
        "-c",
        "import sysconfig; print(sysconfig.get_path('stdlib'))",
    ]))?;
    tree.own_directory(
        Path::new(library.trim()),
        &["__pycache__", "test", "dist-packages", "idlelib", "tkinter"],
    )
}
