//! Compiles `probe-ebpf` so that the object depends on its sources and the toolchain only, not on where they lie.

use super::object_file;
use super::toolchain::{TARGET, Toolchain};
use crate::shell::{self, root};
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The name of the probe's binary target.
const BINARY: &str = "leakscope-probe";

/// Variables that would change what cargo compiles.
const FORBIDDEN: [&str; 8] = [
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_INCREMENTAL",
    "CARGO_BUILD_RUSTFLAGS",
];

/// Compiles, links and strips; gives the object's bytes.
///
/// # Errors
/// When cargo fails or the object cannot be read.
pub(super) fn compile(toolchain: &Toolchain) -> Result<Vec<u8>> {
    let probe = root().join("probe-ebpf");
    let target_dir = shell::target_dir().join("bpf");
    let mut flags = toolchain.plain_flags();
    for (from, to) in remaps(toolchain, &probe, &target_dir)? {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let mut command = toolchain.cargo();
    command
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args(["--bin", BINARY, "--target-dir"])
        .arg(&target_dir)
        .args(toolchain.build_arguments())
        .current_dir(&probe);
    let profile = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("CARGO_PROFILE_"));
    for name in profile {
        command.env_remove(name);
    }
    for name in FORBIDDEN {
        command.env_remove(name);
    }
    // 0x1f separates the flags (cargo's documentation, "Environment Variables").
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    shell::run(&mut command)?;
    let linked = target_dir.join(TARGET).join("release").join(BINARY);
    object_file::strip(&shell::read(&linked)?).with_context(|| format!("in {}", linked.display()))
}

/// Every directory whose path would get into the object, and what stands there instead. rustc takes the last prefix that
/// fits, so that the more specific come last.
fn remaps(
    toolchain: &Toolchain,
    probe: &Path,
    target_dir: &Path,
) -> Result<Vec<(PathBuf, String)>> {
    let mut remaps = vec![(root().to_owned(), "leakscope".to_owned())];
    remaps.push((probe.to_owned(), "leakscope/probe-ebpf".to_owned()));
    remaps.push((target_dir.to_owned(), "leakscope/target".to_owned()));
    // A registry's directory is named after its address, which differs where a mirror is configured.
    for registry in dependency_dirs(toolchain, probe)? {
        remaps.push((registry, "registry".to_owned()));
    }
    if let Some(core) = toolchain.core_sources() {
        remaps.push((core, "rust".to_owned()));
    }
    Ok(remaps)
}

/// The directories that hold the dependencies' own directories.
fn dependency_dirs(toolchain: &Toolchain, probe: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut command = toolchain.cargo();
    command
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(probe);
    let metadata: serde_json::Value = serde_json::from_str(&shell::capture(&mut command)?)
        .context("cargo metadata wrote no JSON")?;
    let packages = metadata
        .get("packages")
        .and_then(|packages| packages.as_array())
        .context("cargo metadata lists no packages")?;
    Ok(packages
        .iter()
        .filter(|package| {
            package
                .get("source")
                .is_some_and(|source| !source.is_null())
        })
        .filter_map(|package| package.get("manifest_path")?.as_str())
        .filter_map(|manifest| Path::new(manifest).ancestors().nth(2))
        .map(Path::to_owned)
        .collect())
}
