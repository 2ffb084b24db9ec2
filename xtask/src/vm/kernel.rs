//! Which kernel image: Debian's cloud kernels by their line, or what a person names.

use super::apt::{Apt, DOWNLOAD};
use crate::shell::{self, command};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// A kernel that can be booted.
pub(super) struct Kernel {
    /// For people, such as `linux-image-6.1.0-56-cloud-amd64`.
    pub(super) name: String,
    /// In short, such as `6.1`: as it was asked for where that was a line.
    pub(super) label: String,
    /// The bzImage.
    pub(super) image: PathBuf,
}

impl Kernel {
    /// Finds the kernel that was asked for: an existing path, else a line such as `6.1`.
    ///
    /// # Errors
    /// When there is no such file, no such package, or it cannot be downloaded or unpacked.
    pub(super) fn find(wish: &str) -> Result<Self> {
        let path = Path::new(wish);
        if path.exists() {
            return Self::from_path(path);
        }
        let is_line = wish.contains('.')
            && wish
                .chars()
                .all(|character| character.is_ascii_digit() || character == '.');
        if is_line {
            return Self::from_line(wish);
        }
        bail!("there is no kernel {wish}: neither a file nor a line such as 6.1 or 6.12");
    }

    fn from_path(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            return Self::from_unpacked(name, path);
        }
        if name.ends_with(".deb") {
            let dir = cache()?.join(name.trim_end_matches(".deb"));
            unpack(path, &dir)?;
            return Self::from_unpacked(name, &dir);
        }
        Ok(Self {
            label: short(&name),
            name,
            image: path.to_owned(),
        })
    }

    /// The newest package of the line that apt knows, for this machine's release or a later one; where apt knows none, the newest
    /// that was unpacked before.
    fn from_line(line: &str) -> Result<Self> {
        let cache = cache()?;
        let own = Apt::own();
        if let Some(name) = newest(own.names(&pattern(line))) {
            return Self::fetch(name, &own, &cache);
        }
        let mut tried = vec![offer(&own)];
        match Apt::later() {
            Ok(later) => {
                if let Some(name) = newest(later.names(&pattern(line))) {
                    return Self::fetch(name, &later, &cache);
                }
                tried.push(offer(&later));
            }
            Err(error) => tried.push(format!("{error:#}")),
        }
        let name = newest(unpacked(&cache, line)).with_context(|| {
            format!(
                "no cloud kernel of the line {line} can be had ({}); name another line, or an image with --kernel PATH",
                tried.join("; ")
            )
        })?;
        Self::from_unpacked(name.clone(), &cache.join(name))
    }

    /// Downloads and unpacks a package where that was not done before.
    fn fetch(name: String, apt: &Apt, cache: &Path) -> Result<Self> {
        let dir = cache.join(&name);
        if !dir.is_dir() {
            println!("fetching {name}");
            let package = apt.download(&name, cache)?;
            unpack(&package, &dir)?;
            if let Some(done) = package.parent() {
                fs::remove_dir_all(done)
                    .with_context(|| format!("cannot remove {}", done.display()))?;
            }
        }
        Self::from_unpacked(name, &dir)
    }

    fn from_unpacked(name: String, dir: &Path) -> Result<Self> {
        let in_boot = entries(&dir.join("boot")).into_iter().filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        });
        let beside_modules = entries(&dir.join("usr/lib/modules"))
            .into_iter()
            .map(|version| version.join("vmlinuz"))
            .filter(|path| path.is_file());
        let image = in_boot.chain(beside_modules).next().with_context(|| {
            format!(
                "neither boot/vmlinuz-* nor usr/lib/modules/*/vmlinuz in {}",
                dir.display()
            )
        })?;
        Ok(Self {
            label: short(&name),
            name,
            image,
        })
    }
}

/// The packages that have an image, best first. Since 6.19 Debian keeps images and modules apart: linux-image only leads to the
/// two then, and has no file of its own.
const PACKAGES: [&str; 2] = ["linux-binary", "linux-image"];

/// What apt calls the cloud kernels of a line; of any where the line is empty.
fn pattern(line: &str) -> String {
    let line = match line {
        "" => "[0-9]+\\.[0-9]+".to_owned(),
        line => line.replace('.', "\\."),
    };
    format!("^({})-{line}\\.[0-9].*-cloud-amd64$", PACKAGES.join("|"))
}

/// The newest of these packages that has an image.
fn newest(mut names: Vec<String>) -> Option<String> {
    let kind = PACKAGES
        .into_iter()
        .find(|kind| names.iter().any(|name| name.starts_with(kind)))?;
    names.retain(|name| name.starts_with(kind));
    names.into_iter().max_by_key(|name| natural(name))
}

/// The lines that there are, for people.
fn offer(apt: &Apt) -> String {
    let mut lines: Vec<String> = apt
        .names(&pattern(""))
        .iter()
        .map(|name| short(name))
        .collect();
    lines.sort_by_key(|line| natural(line));
    lines.dedup();
    if lines.is_empty() {
        return format!("{} has none: run `apt-get update` (on Debian)", apt.name);
    }
    format!("{} has {}", apt.name, lines.join(", "))
}

/// What is in a directory; nothing where there is none.
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Where unpacked packages are kept.
fn cache() -> Result<PathBuf> {
    let dir = shell::target_dir().join("vm/kernels");
    shell::make_dir(&dir)?;
    Ok(dir)
}

/// The packages of the line that were unpacked before.
fn unpacked(cache: &Path, line: &str) -> Vec<String> {
    let prefixes = PACKAGES.map(|package| format!("{package}-{line}."));
    entries(cache)
        .iter()
        .filter(|path| path.is_dir())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .filter(|name| !name.ends_with(PARTIAL) && !name.ends_with(DOWNLOAD))
        .collect()
}

/// The ending of a directory into which a package is being unpacked.
const PARTIAL: &str = ".partial";

/// Unpacks a package; the directory appears only when it is complete.
fn unpack(package: &Path, dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let mut partial = dir.as_os_str().to_owned();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    shell::run(command("dpkg").arg("-x").arg(package).arg(&partial))?;
    fs::rename(&partial, dir).with_context(|| format!("cannot move {}", partial.display()))
}

/// The first two numbers of a name, or the name where it has none: `linux-image-6.1.0-56-cloud-amd64` is `6.1`.
fn short(name: &str) -> String {
    let Some(at) = name.find(|character: char| character.is_ascii_digit()) else {
        return name.to_owned();
    };
    let version = name.get(at..).unwrap_or_default();
    let numbers: Vec<&str> = version
        .split(|character: char| !character.is_ascii_digit())
        .take(2)
        .collect();
    numbers.join(".")
}

/// A name's numbers and the texts between them, so that 6.1.0-9 sorts before 6.1.0-10.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits_at = rest
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(digits_at);
        let digits_end = tail
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits_end);
        parts.push((text.to_owned(), digits.parse().unwrap_or(0)));
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{natural, newest, pattern, short};

    #[test]
    fn names_are_shortened_to_their_line() {
        assert_eq!(short("linux-image-6.1.0-56-cloud-amd64"), "6.1");
        assert_eq!(short("vmlinuz-6.12.117+deb12-cloud-amd64"), "6.12");
        assert_eq!(short("bzImage"), "bzImage");
    }

    #[test]
    fn the_package_with_the_image_is_chosen_of_each_line() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(
            newest(names(&[
                "linux-binary-6.19.6+deb13-cloud-amd64",
                "linux-image-6.19.14+deb13-cloud-amd64",
                "linux-binary-6.19.14+deb13-cloud-amd64",
            ])),
            Some("linux-binary-6.19.14+deb13-cloud-amd64".to_owned())
        );
        assert_eq!(
            newest(names(&["linux-image-6.18.15+deb13-cloud-amd64"])),
            Some("linux-image-6.18.15+deb13-cloud-amd64".to_owned())
        );
        assert_eq!(newest(Vec::new()), None);
    }

    #[test]
    fn a_line_is_no_other_that_begins_as_it_does() {
        assert_eq!(
            pattern("6.1"),
            "^(linux-binary|linux-image)-6\\.1\\.[0-9].*-cloud-amd64$"
        );
    }

    #[test]
    fn versions_sort_by_their_numbers() {
        let mut names = [
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.12.94+deb12-cloud-amd64",
        ];
        names.sort_by_key(|name| natural(name));
        assert_eq!(
            names,
            [
                "linux-image-6.1.0-9-cloud-amd64",
                "linux-image-6.1.0-56-cloud-amd64",
                "linux-image-6.12.94+deb12-cloud-amd64",
                "linux-image-6.12.117+deb12-cloud-amd64",
            ]
        );
    }
}
