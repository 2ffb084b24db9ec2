//! The binary that is shipped: linked statically with glibc, so that it runs on any Linux; its debug information apart.

use crate::shell::{self, cargo, command, root};
use anyhow::{Context as _, Result};
use object::{File, Object as _};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What it is built for. Named even where it is the machine's own: else what runs while building would be linked statically too.
pub(super) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The binary and its debug information.
pub(super) struct Binary {
    pub(super) stripped: PathBuf,
    pub(super) debug: Vec<u8>,
    /// What debuggers find the debug information by, in hexadecimal digits.
    pub(super) build_id: String,
}

/// Builds it into a target directory.
///
/// # Errors
/// When cargo fails.
pub(super) fn build(target_dir: &Path) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    // Where it was built is nobody's business, and would make it another binary each time.
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=leakscope", root().display()),
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
    objcopy(&["--strip-all"], whole, &stripped)?;
    let bytes = shell::read(&stripped)?;
    let mut build_id = String::new();
    let file = File::parse(bytes.as_slice())?;
    for byte in file.build_id()?.context("the binary has no build id")? {
        write!(build_id, "{byte:02x}")?;
    }
    Ok(Binary {
        stripped,
        debug: shell::read(&debug)?,
        build_id,
    })
}

fn objcopy(arguments: &[&str], from: &Path, to: &Path) -> Result<()> {
    shell::run(command("objcopy").args(arguments).arg(from).arg(to))
        .context("objcopy is of binutils")
}
