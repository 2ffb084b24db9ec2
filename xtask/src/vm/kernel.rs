//! Which kernel image: Debian's cloud kernels by their line, or what a person names.

use crate::shell::{self, ask, command};
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

    /// The newest package of the line that apt knows; where apt knows none, the newest that was unpacked before.
    fn from_line(line: &str) -> Result<Self> {
        let cache = cache()?;
        let pattern = format!(
            "^linux-image-{}\\.[0-9].*-cloud-amd64$",
            line.replace('.', "\\.")
        );
        let known = ask(command("apt-cache").args(["search", "--names-only", &pattern]));
        let mut names: Vec<String> = known
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            names = unpacked(&cache, line);
        }
        names.sort_by_key(|name| natural(name));
        let name = names.pop().with_context(|| {
            format!(
                "apt knows no linux-image-{line}.*-cloud-amd64: run `apt-get update` (on Debian), or name an image with --kernel PATH"
            )
        })?;
        let dir = cache.join(&name);
        if !dir.join("boot").is_dir() {
            println!("fetching {name}");
            let package = download(&name, &cache)?;
            unpack(&package, &dir)?;
            fs::remove_file(&package)
                .with_context(|| format!("cannot remove {}", package.display()))?;
        }
        Self::from_unpacked(name, &dir)
    }

    fn from_unpacked(name: String, dir: &Path) -> Result<Self> {
        let boot = dir.join("boot");
        let image = fs::read_dir(&boot)
            .with_context(|| format!("cannot read {}", boot.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
            })
            .with_context(|| format!("no vmlinuz-* in {}", boot.display()))?;
        Ok(Self {
            label: short(&name),
            name,
            image,
        })
    }
}

/// Where unpacked packages are kept.
fn cache() -> Result<PathBuf> {
    let dir = shell::target_dir().join("vm/kernels");
    shell::make_dir(&dir)?;
    Ok(dir)
}

/// The packages of the line that were unpacked before.
fn unpacked(cache: &Path, line: &str) -> Vec<String> {
    let prefix = format!("linux-image-{line}.");
    fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix) && !name.ends_with(PARTIAL))
        .collect()
}

/// Downloads a package to a directory of its own below the cache and gives the file.
fn download(name: &str, cache: &Path) -> Result<PathBuf> {
    let dir = cache.join(format!("{name}.download"));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    shell::make_dir(&dir)?;
    shell::run(
        command("apt-get")
            .args(["download", "-q", name])
            .current_dir(&dir),
    )
    .context("the package lists may be old: run `apt-get update`")?;
    let package = fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get left no .deb in {}", dir.display()))?;
    let kept = cache.join(format!("{name}.deb"));
    fs::rename(&package, &kept).with_context(|| format!("cannot move {}", package.display()))?;
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(kept)
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
    use super::{natural, short};

    #[test]
    fn names_are_shortened_to_their_line() {
        assert_eq!(short("linux-image-6.1.0-56-cloud-amd64"), "6.1");
        assert_eq!(short("vmlinuz-6.12.117+deb12-cloud-amd64"), "6.12");
        assert_eq!(short("bzImage"), "bzImage");
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
