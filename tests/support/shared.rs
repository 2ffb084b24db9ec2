//! Copies of programs where every user can reach them: the build folder may lie in somebody's home.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The user id of `nobody` on Debian, Fedora and their like: owner of nothing.
pub const NOBODY: u32 = 65_534;

/// A copy of a program that every user may run. Gone when dropped.
pub struct Shared {
    _folder: TempDir,
    path: PathBuf,
}

impl Shared {
    /// Copies a program.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(program: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let name = program.file_name().context("a program's name")?;
        let path = folder.path().join(name);
        fs::copy(program, &path).with_context(|| format!("copying {}", program.display()))?;
        for reachable in [folder.path(), &path] {
            fs::set_permissions(reachable, Permissions::from_mode(0o755))?;
        }
        Ok(Self {
            _folder: folder,
            path,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
