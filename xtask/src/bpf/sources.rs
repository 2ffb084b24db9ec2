//! The probe's sources as one number, so that a committed object that was not rebuilt is noticed without a BPF toolchain.

use crate::shell;
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// What the sources are.
pub(super) struct Sources {
    /// Lowercase hexadecimal SHA-256 over every file's path, length and content.
    pub(super) digest: String,
    /// How many files.
    pub(super) files: usize,
}

/// Hashes all files below `dir`, in the order of their paths, except directories named `target` and what editors leave.
///
/// # Errors
/// When a file or directory cannot be read.
pub(super) fn hash(dir: &Path) -> Result<Sources> {
    let mut files = Vec::new();
    collect(dir, &mut files)?;
    files.sort();
    let mut hasher = Sha256::new();
    for path in &files {
        let name = path.strip_prefix(dir).unwrap_or(path).to_string_lossy();
        let content = shell::read(path)?;
        // The lengths keep the end of one file from passing for the beginning of the next.
        hasher.update(format!("{} {} {name}\n", name.len(), content.len()));
        hasher.update(&content);
    }
    Ok(Sources {
        digest: hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        files: files.len(),
    })
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = || format!("cannot read the directory {}", dir.display());
    for entry in fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if path.is_dir() {
            if name != "target" {
                collect(&path, files)?;
            }
        } else if !name.ends_with('~') && !name.ends_with(".swp") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use super::hash;
    use std::fs;
    use std::path::PathBuf;

    fn fresh(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("xtask-sources-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("src")).unwrap();
        fs::write(dir.join("src/a.rs"), "one").unwrap();
        fs::write(dir.join("b.toml"), "two").unwrap();
        dir
    }

    #[test]
    fn the_hash_follows_content_and_names_and_not_what_was_built() {
        let dir = fresh("follows");
        let before = hash(&dir).unwrap();
        assert_eq!(before.files, 2);
        fs::create_dir_all(dir.join("target")).unwrap();
        fs::write(dir.join("target/junk"), "junk").unwrap();
        assert_eq!(hash(&dir).unwrap().digest, before.digest);

        fs::write(dir.join("src/a.rs"), "onE").unwrap();
        assert_ne!(hash(&dir).unwrap().digest, before.digest);
        fs::write(dir.join("src/a.rs"), "one").unwrap();
        assert_eq!(hash(&dir).unwrap().digest, before.digest);

        fs::rename(dir.join("src/a.rs"), dir.join("src/c.rs")).unwrap();
        assert_ne!(hash(&dir).unwrap().digest, before.digest);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn moving_bytes_between_files_changes_the_hash() {
        let dir = fresh("moved");
        let before = hash(&dir).unwrap();
        fs::write(dir.join("src/a.rs"), "onetwo").unwrap();
        fs::write(dir.join("b.toml"), "").unwrap();
        assert_ne!(hash(&dir).unwrap().digest, before.digest);
        fs::remove_dir_all(&dir).unwrap();
    }
}
