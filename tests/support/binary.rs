//! Where the leakscope binary is.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::victims::profile_folder;

/// The leakscope binary: the one that `LEAKSCOPE_BIN` names, else the workspace's own, brought up to date with cargo
/// where the tests were started by cargo.
///
/// # Errors
/// When there is no such file, or the build fails.
pub fn leakscope() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn find() -> Result<PathBuf> {
    if let Some(named) = env::var_os("LEAKSCOPE_BIN") {
        let path = PathBuf::from(named);
        if !path.is_file() {
            bail!("LEAKSCOPE_BIN names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    let folder = profile_folder()?;
    let path = folder.join("leakscope");
    if let Some(cargo) = env::var_os("CARGO") {
        build(&cargo, &["--bin", "leakscope"])?;
    }
    if !path.is_file() {
        bail!(
            "there is no {}: build leakscope first, or name it in LEAKSCOPE_BIN",
            path.display()
        );
    }
    Ok(path)
}

/// One of the tracer's examples, brought up to date where the tests were started by cargo.
///
/// # Errors
/// There is none, or the build fails.
pub fn example(name: &str) -> Result<PathBuf> {
    if let Some(cargo) = env::var_os("CARGO") {
        build(&cargo, &["--example", name])?;
    }
    let path = profile_folder()?.join("examples").join(name);
    if !path.is_file() {
        bail!(
            "there is no {}: `cargo build --examples` makes it",
            path.display()
        );
    }
    Ok(path)
}

/// Has cargo build a part of the tracer, into the folder and with the profile of these tests.
fn build(cargo: &OsStr, what: &[&str]) -> Result<()> {
    let folder = profile_folder()?;
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--package", "leakscope"])
        .args(what)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if let Some(target) = folder.parent() {
        build.env("CARGO_TARGET_DIR", target);
    }
    if folder.file_name().is_some_and(|name| name == "release") {
        build.arg("--release");
    }
    let status = build.status().context("cargo build of leakscope")?;
    if !status.success() {
        bail!(
            "cargo build of leakscope {} ended with {status}",
            what.join(" ")
        );
    }
    Ok(())
}
