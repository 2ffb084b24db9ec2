//! What is installed: files with their places below a prefix, whatever package they go into.
//!
//! Owns the list. Must not know the formats of packages.

use crate::shell::{self, root};
use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// One file.
#[derive(Clone)]
pub(super) struct Entry {
    /// Its path without a slash at the start.
    pub(super) path: String,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) kind: Kind,
}

/// How a package treats a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Administrators change it: it is not overwritten.
    Configuration,
    Documentation,
    Licence,
}

impl Entry {
    pub(super) fn plain(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            bytes: bytes.into(),
            kind: Kind::Plain,
        }
    }

    fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self {
            mode: 0o755,
            ..Self::plain(path, bytes)
        }
    }

    pub(super) fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The same below a folder.
    pub(super) fn below(self, folder: &str) -> Self {
        Self {
            path: format!("{folder}/{}", self.path),
            ..self
        }
    }
}

/// Where documentation is.
const DOC: &str = "share/doc/leakscope";

/// Licences, with the names of their files.
pub(super) const LICENCES: [&str; 3] = ["LICENSE-MIT", "LICENSE-APACHE", "LICENSE-GPL-2.0"];

/// What every package has, below its prefix. The binary itself says its manual pages and completions.
///
/// # Errors
/// When a file cannot be read, or the binary does not run.
pub(super) fn common(binary: &Path) -> Result<Vec<Entry>> {
    let mut entries = vec![Entry::program("bin/leakscope", shell::read(binary)?)];
    entries.extend(manual_pages(binary)?);
    for (shell_name, path) in [
        ("bash", "share/bash-completion/completions/leakscope"),
        ("fish", "share/fish/vendor_completions.d/leakscope.fish"),
    ] {
        entries.push(Entry::plain(path, completions(binary, shell_name)?));
    }
    for licence in LICENCES {
        entries.push(
            Entry::plain(format!("{DOC}/{licence}"), of_root(licence)?).of_kind(Kind::Licence),
        );
    }
    entries.extend(texts()?);
    Ok(entries)
}

/// Sections of the README for those who have its source.
const FOR_DEVELOPERS: [&str; 3] = ["## Install", "## Two commands", "## Map of the code"];

/// The README without what takes a checkout.
fn for_users(readme: &str) -> String {
    let mut left_out = false;
    readme
        .split_inclusive('\n')
        .filter(|line| {
            if line.starts_with("## ") {
                left_out = FOR_DEVELOPERS.contains(&line.trim_end());
            }
            !left_out
        })
        .collect()
}

/// What is there to be read. Links of the README hold there too.
fn texts() -> Result<Vec<Entry>> {
    let readme = for_users(&String::from_utf8(of_root("README.md")?)?)
        .replace("](tracer/src/report/", "](")
        .replace("](tracer/", "](");
    let mut texts = vec![documentation("README.md", readme.into_bytes())];
    for text in [
        "CHANGELOG.md",
        "SECURITY.md",
        "tracer/src/report/schema.json",
    ] {
        let (_, name) = text.rsplit_once('/').unwrap_or(("", text));
        texts.push(documentation(name, of_root(text)?));
    }
    for folder in ["docs", "deploy"] {
        for (path, bytes) in files(&root().join("tracer").join(folder))? {
            texts.push(documentation(&format!("{folder}/{path}"), bytes));
        }
    }
    Ok(texts)
}

/// What makes it a service of the machine, below `/`.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn service() -> Result<Vec<Entry>> {
    Ok(vec![
        Entry::plain(
            "usr/lib/systemd/system/leakscope.service",
            of_root("tracer/deploy/leakscope.service")?,
        ),
        Entry::plain(
            "etc/leakscope/config.toml",
            of_root("tracer/deploy/config.toml")?,
        )
        .of_kind(Kind::Configuration),
        Entry::plain(
            "etc/default/leakscope",
            of_root("tracer/deploy/leakscope.default")?,
        )
        .of_kind(Kind::Configuration),
    ])
}

/// The completions of zsh, whose place depends on the system.
///
/// # Errors
/// When the binary does not run.
pub(super) fn zsh(binary: &Path, folder: &str) -> Result<Entry> {
    Ok(Entry::plain(
        format!("share/zsh/{folder}/_leakscope"),
        completions(binary, "zsh")?,
    ))
}

/// A file of the checkout.
///
/// # Errors
/// When it cannot be read.
pub(super) fn of_root(path: &str) -> Result<Vec<u8>> {
    shell::read(&root().join(path))
}

/// Compressed without a name and a time, so that the same text gives the same bytes.
///
/// # Errors
/// None that memory does not give.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn documentation(name: &str, bytes: Vec<u8>) -> Entry {
    Entry::plain(format!("{DOC}/{name}"), bytes).of_kind(Kind::Documentation)
}

fn completions(binary: &Path, name: &str) -> Result<String> {
    shell::capture(Command::new(binary).args(["completions", name]))
}

fn manual_pages(binary: &Path) -> Result<Vec<Entry>> {
    let folder = shell::target_dir().join("dist/manual");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    shell::make_dir(&folder)?;
    shell::run(Command::new(binary).arg("manual").arg(&folder))?;
    files(&folder)?
        .into_iter()
        .map(|(name, page)| {
            Ok(Entry::plain(
                format!("share/man/man1/{name}.gz"),
                gzip(&page)?,
            ))
        })
        .collect()
}

/// The files below a folder with their paths from there, in the order of their names.
fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let listed =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in listed {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            found.extend(
                files(&path)?
                    .into_iter()
                    .map(|(below, bytes)| (format!("{name}/{below}"), bytes)),
            );
        } else {
            found.push((name, shell::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path, PathBuf};

    use std::fs;

    use super::{DOC, FOR_DEVELOPERS, texts};
    use crate::shell::root;

    #[test]
    fn the_installed_readme_is_without_what_takes_a_checkout() {
        let texts = texts().unwrap_or_default();
        let readme = texts
            .iter()
            .find(|text| text.path.ends_with("/README.md") && !text.path.contains("/docs/"))
            .map(|text| String::from_utf8_lossy(&text.bytes).into_owned())
            .unwrap_or_default();
        let whole = fs::read_to_string(root().join("README.md")).unwrap_or_default();
        for section in FOR_DEVELOPERS {
            let heading = format!("\n{section}\n");
            assert!(whole.contains(&heading), "{section} is no section");
            assert!(!readme.contains(&heading), "{section} is installed");
        }
        assert!(readme.contains("\n## Limits\n"));
    }

    #[test]
    fn every_link_of_an_installed_text_leads_to_an_installed_file() {
        let texts = texts().unwrap_or_default();
        let places: Vec<&Path> = texts.iter().map(|text| Path::new(&text.path)).collect();
        let mut links = 0;
        for text in texts.iter().filter(|text| text.path.ends_with(".md")) {
            let words = String::from_utf8_lossy(&text.bytes);
            for link in words
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next())
            {
                let (file, _) = link.split_once('#').unwrap_or((link, ""));
                if file.is_empty() || file.contains("://") {
                    continue;
                }
                let folder = Path::new(&text.path).parent().unwrap_or(Path::new(DOC));
                let place = without_dots(&folder.join(file));
                assert!(
                    places.iter().any(|known| known.starts_with(&place)),
                    "{} links to {link}, which is not installed",
                    text.path
                );
                links += 1;
            }
        }
        assert!(links > 10, "{links} links");
    }

    fn without_dots(path: &Path) -> PathBuf {
        let mut whole = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => {
                    whole.pop();
                }
                part => whole.push(part),
            }
        }
        whole
    }
}
