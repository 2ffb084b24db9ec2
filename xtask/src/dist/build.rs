//! The binary that is shipped: linked statically with glibc, so that it runs on any Linux; its debug information apart.

use crate::shell::{self, cargo, command};
use anyhow::{Context as _, Result, bail};
use object::{File, Object as _};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What it is built for. Named even where it is the machine's own: else what runs while building would be linked statically too.
pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What keeps its name in the stripped binary. By it leakscope finds its own allocator, on which it measures at the start what a probe costs:
/// the binary knew no cost, and kept no budget.
const ALLOCATOR: [&str; 4] = ["malloc", "free", "calloc", "realloc"];

/// The binary and its debug information.
pub(super) struct Binary {
    pub(super) stripped: PathBuf,
    pub(super) debug: Vec<u8>,
    /// What debuggers find the debug information by, in hexadecimal digits.
    pub(super) build_id: String,
}

/// Builds it from a checkout into a target directory.
///
/// # Errors
/// When cargo fails.
pub(super) fn build(checkout: &Path, target_dir: &Path) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    // Where it was built is nobody's business, and would make it another binary each time.
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Clink-arg=-Wl,--icf=all".to_owned(),
        format!("--remap-path-prefix={}=leakscope", checkout.display()),
        format!("--remap-path-prefix={}=cargo", home.display()),
    ];
    let mut command = cargo();
    command
        .args(["build", "--locked", "--profile", "dist", "--target", TARGET])
        .args([
            "--package",
            "leakscope",
            "--bin",
            "leakscope",
            "--target-dir",
        ])
        .arg(target_dir)
        .current_dir(checkout)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env(
            "CFLAGS",
            format!("-ffile-prefix-map={}=cargo", home.display()),
        );
    shell::build(&mut command)?
        .into_iter()
        .find(|executable| executable.name == "leakscope")
        .map(|executable| executable.path)
        .context("cargo built no binary named leakscope")
}

/// Another checkout of the same commit, in a folder that is made anew.
///
/// # Errors
/// When git fails, or there are changes that are in no commit.
pub(super) fn check_out(folder: &Path) -> Result<PathBuf> {
    if !shell::capture(command("git").args(["status", "--porcelain"]))?.is_empty() {
        bail!("another checkout would lack what is in no commit: commit it first");
    }
    let checkout = folder.join("another checkout");
    if checkout.exists() {
        fs::remove_dir_all(&checkout)?;
    }
    shell::run(
        command("git")
            .args(["clone", "--quiet", "--shared", "."])
            .arg(&checkout),
    )?;
    Ok(checkout)
}

/// Takes a binary and its debug information apart, into a folder.
///
/// # Errors
/// When objcopy fails, or the binary has no build id.
pub(super) fn split(whole: &Path, folder: &Path) -> Result<Binary> {
    let stripped = folder.join("leakscope");
    let debug = folder.join("leakscope.debug");
    objcopy(
        &["--only-keep-debug", "--compress-debug-sections=zlib"],
        whole,
        &debug,
    )?;
    let kept = ALLOCATOR.map(|name| format!("--keep-symbol={name}"));
    let arguments: Vec<&str> = ["--strip-all"]
        .into_iter()
        .chain(kept.iter().map(String::as_str))
        .collect();
    objcopy(&arguments, whole, &stripped)?;
    let mut bytes = shell::read(&stripped)?;
    if !knows_its_allocator(&bytes)? {
        bail!("the stripped binary has lost the names of its allocator's functions");
    }
    let mut debug = shell::read(&debug)?;
    let build_id = identify(&mut bytes, &mut debug)?;
    // Not created anew: it stays executable.
    fs::write(&stripped, &bytes)
        .with_context(|| format!("cannot write {}", shell::relative(&stripped)))?;
    Ok(Binary {
        stripped,
        debug,
        build_id,
    })
}

/// Whether a binary has its allocator's names, or another file's allocator: a program interpreter (`.interp`) finds that.
fn knows_its_allocator(binary: &[u8]) -> Result<bool> {
    let file = File::parse(binary)?;
    Ok(file.section_by_name(".interp").is_some()
        || ALLOCATOR
            .iter()
            .all(|name| file.symbol_by_name(name).is_some()))
}

/// Gives a stripped binary, and its debug information, a build id that is a hash of the stripped binary alone. The linker's is one of
/// the debug information too, which has its strings in another order in each checkout.
///
/// # Errors
/// When the binary has no build id.
fn identify(stripped: &mut [u8], debug: &mut [u8]) -> Result<String> {
    let old = File::parse(&*stripped)?
        .build_id()?
        .context("the binary has no build id")?
        .to_vec();
    place(stripped, &old)?.fill(0);
    let hash = Sha256::digest(&*stripped);
    let new = hash
        .get(..old.len())
        .context("a build id longer than a hash")?;
    // Where it is zero now.
    let zeros = vec![0; old.len()];
    let note = [NOTE.as_slice(), &zeros].concat();
    let written = [NOTE.as_slice(), new].concat();
    place(stripped, &note)?.copy_from_slice(&written);
    place(debug, &old)?.copy_from_slice(new);
    let mut build_id = String::new();
    for byte in new {
        write!(build_id, "{byte:02x}")?;
    }
    Ok(build_id)
}

/// What stands before a build id in its note: type and owner (`NT_GNU_BUILD_ID`, elf.h).
const NOTE: [u8; 8] = *b"\x03\0\0\0GNU\0";

/// The one place where these bytes stand.
fn place<'a>(file: &'a mut [u8], bytes: &[u8]) -> Result<&'a mut [u8]> {
    let mut places = file
        .windows(bytes.len())
        .enumerate()
        .filter(|(_, window)| *window == bytes)
        .map(|(at, _)| at);
    let (Some(at), None) = (places.next(), places.next()) else {
        bail!("the build id does not stand in just one place");
    };
    drop(places);
    file.get_mut(at..at + bytes.len())
        .context("a place in the file")
}

fn objcopy(arguments: &[&str], from: &Path, to: &Path) -> Result<()> {
    shell::run(command("objcopy").args(arguments).arg(from).arg(to))
        .context("objcopy is of binutils")
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_place_is_the_only_one() {
        let mut file = *b"..abc..ab..";
        assert!(place(&mut file, b"ab").is_err());
        assert!(place(&mut file, b"abd").is_err());
        place(&mut file, b"abc").unwrap_or_default().fill(b'x');
        assert_eq!(&file, b"..xxx..ab..");
    }
}
