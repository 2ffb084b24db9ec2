//! A package of Debian's format, deb(5): an ar archive of a version, a tar archive that says what it is, and one of its files.

use super::Release;
use super::content::{Entry, Kind};
use super::tarball::{tar, xz};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What the package is.
pub(super) struct Package<'of> {
    pub(super) name: &'of str,
    pub(super) section: &'of str,
    pub(super) summary: &'of str,
    /// Lines of the long description.
    pub(super) description: &'of [&'of str],
    /// Further fields, each a line.
    pub(super) fields: &'of [String],
    /// What runs when it is installed or removed: names as dpkg knows them, and scripts.
    pub(super) scripts: BTreeMap<&'of str, Vec<u8>>,
}

/// The package's bytes.
///
/// # Errors
/// When xz fails, or a path is too long.
pub(super) fn package(
    package: &Package<'_>,
    entries: &[Entry],
    release: &Release,
) -> Result<Vec<u8>> {
    // dpkg makes the list of checksums itself where there is none.
    let mut control = vec![Entry::plain("control", control(package, entries, release)?)];
    let configuration: String = entries
        .iter()
        .filter(|entry| entry.kind == Kind::Configuration)
        .map(|entry| format!("/{}\n", entry.path))
        .collect();
    if !configuration.is_empty() {
        control.push(Entry::plain("conffiles", configuration));
    }
    control.extend(package.scripts.iter().map(|(name, script)| Entry {
        mode: 0o755,
        ..Entry::plain(*name, script.clone())
    }));
    let mut bytes = b"!<arch>\n".to_vec();
    member(&mut bytes, "debian-binary", b"2.0\n", release.time)?;
    let archive = xz(tar(&control, "./", release.time)?, release.level)?;
    member(&mut bytes, "control.tar.xz", &archive, release.time)?;
    let archive = xz(tar(entries, "./", release.time)?, release.level)?;
    member(&mut bytes, "data.tar.xz", &archive, release.time)?;
    Ok(bytes)
}

fn control(package: &Package<'_>, entries: &[Entry], release: &Release) -> Result<String> {
    let size: usize = entries
        .iter()
        .map(|entry| entry.bytes.len().div_ceil(1024))
        .sum();
    let mut text = format!(
        "Package: {}\nVersion: {}\nArchitecture: amd64\nMaintainer: The leakscope developers\nInstalled-Size: {size}\n\
         Section: {}\nPriority: optional\n",
        package.name, release.version, package.section
    );
    for field in package.fields {
        writeln!(text, "{field}")?;
    }
    writeln!(text, "Description: {}", package.summary)?;
    for line in package.description {
        writeln!(text, " {line}")?;
    }
    Ok(text)
}

/// Adds a member to an ar archive: a header of 60 bytes, and content that ends on an even one.
fn member(archive: &mut Vec<u8>, name: &str, content: &[u8], time: u64) -> Result<()> {
    let header = format!(
        "{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n",
        0,
        0,
        "100644",
        content.len()
    );
    if header.len() != 60 {
        bail!(
            "{name} with {} bytes does not fit an ar archive",
            content.len()
        );
    }
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    if !content.len().is_multiple_of(2) {
        archive.push(b'\n');
    }
    Ok(())
}
