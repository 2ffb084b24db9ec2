//! Which BPF toolchain there is, what identifies it, and what to install where there is none.
//!
//! Two kinds work: a compiler that ships a ready `core` for the BPF target (Debian's `rustc-web`), and a nightly with
//! `rust-src`, which compiles `core` itself.

use super::sha256;
use crate::shell::{self, ask, command};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The little-endian BPF target of rustc.
pub(super) const TARGET: &str = "bpfel-unknown-none";

/// The probe uses 32-bit and atomic fetch instructions: BPF instruction set version 3, in kernels since 5.12.
pub(super) const CPU: &str = "v3";

/// Where `core` comes from.
enum Core {
    /// A compiler with a `core` for [`TARGET`].
    Installed { rustc: PathBuf },
    /// A rustup toolchain with `rust-src`.
    Source { toolchain: String, sysroot: PathBuf },
}

/// A toolchain that can build the probe.
pub(super) struct Toolchain {
    core: Core,
    arch: String,
    /// What [`Toolchain::record`] writes, without the sources.
    identity: Vec<(&'static str, String)>,
}

impl Toolchain {
    /// Finds one.
    ///
    /// # Errors
    /// When there is none: the error says exactly what to install.
    pub(super) fn find(arch: &str) -> Result<Self> {
        let Some(core) = installed_core().or_else(source_core) else {
            bail!("{}", advice("a Rust compiler with `core` for BPF"));
        };
        let Some(linker) = shell::find_program("bpf-linker") else {
            bail!("{}", advice("bpf-linker (not on PATH)"));
        };
        let linker_version = ask(command(&linker).arg("--version")).with_context(|| {
            format!(
                "{} does not run; {}",
                linker.display(),
                advice("a bpf-linker that runs")
            )
        })?;
        let (mut rustc, mut cargo) = match &core {
            Core::Installed { rustc } => {
                let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                (command(rustc), command(cargo))
            }
            Core::Source { toolchain, .. } => {
                let via_rustup = |tool: &str| {
                    let mut command = command("rustup");
                    command.args(["run", toolchain, tool]);
                    command
                };
                (via_rustup("rustc"), via_rustup("cargo"))
            }
        };
        let verbose = shell::capture(rustc.arg("-vV"))?;
        let cargo_version = shell::capture(cargo.arg("--version"))?;
        let first = |text: &str| text.lines().next().unwrap_or_default().trim().to_owned();
        let llvm = verbose
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .unwrap_or("unknown")
            .to_owned();
        let mut toolchain = Self {
            core,
            arch: arch.to_owned(),
            identity: Vec::new(),
        };
        toolchain.identity = vec![
            ("arch", arch.to_owned()),
            ("target", TARGET.to_owned()),
            ("rustc", first(&verbose)),
            ("llvm", llvm),
            ("core", toolchain.core_text().to_owned()),
            ("cargo", first(&cargo_version)),
            ("bpf-linker", first(&linker_version)),
            ("bpf-linker-llvm", linker_llvm(&linker)?),
            ("flags", toolchain.plain_flags().join(" ")),
        ];
        Ok(toolchain)
    }

    fn core_text(&self) -> &'static str {
        match self.core {
            Core::Installed { .. } => "installed",
            Core::Source { .. } => "-Z build-std=core",
        }
    }

    /// The compiler flags that do not depend on where the checkout lies.
    pub(super) fn plain_flags(&self) -> Vec<String> {
        vec![
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            format!("-Ctarget-cpu={CPU}"),
            // aya-ebpf chooses the layout of pt_regs by it; without it, the building machine's.
            format!("--cfg=bpf_target_arch=\"{}\"", self.arch),
        ]
    }

    /// The cargo of this toolchain, set to use its compiler; the caller adds the subcommand.
    pub(super) fn cargo(&self) -> Command {
        match &self.core {
            Core::Installed { rustc } => {
                let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                let mut command = command(cargo);
                // The BPF target is tier 3 and the probe's crates use unstable features: this compiler is a release.
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Core::Source { toolchain, .. } => {
                let mut command = command("rustup");
                command.args(["run", toolchain, "cargo"]);
                command
            }
        }
    }

    /// Arguments for `cargo build` that depend on the toolchain.
    pub(super) fn build_arguments(&self) -> &'static [&'static str] {
        match self.core {
            Core::Installed { .. } => &[],
            Core::Source { .. } => &["-Zbuild-std=core"],
        }
    }

    /// Where the sources of `core` lie, if this toolchain compiles it: a path that must not get into the object.
    pub(super) fn core_sources(&self) -> Option<PathBuf> {
        match &self.core {
            Core::Installed { .. } => None,
            Core::Source { sysroot, .. } => Some(sysroot.join("lib/rustlib/src/rust")),
        }
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        let value = |key: &str| {
            self.identity
                .iter()
                .find(|(name, _)| *name == key)
                .map_or("", |(_, value)| value.as_str())
        };
        format!(
            "BPF toolchain: {}, core {}, {}",
            value("rustc"),
            value("core"),
            value("bpf-linker")
        )
    }

    /// The text of `<arch>.toolchain`.
    pub(super) fn record(&self, sources: &str) -> String {
        let mut text = String::new();
        for (key, value) in &self.identity {
            text.push_str(&format!("{key}: {value}\n"));
        }
        text.push_str(&format!("sources: {sources}\n"));
        text
    }

    /// Where this toolchain differs from a recorded one, for people; empty when it is the same.
    pub(super) fn differences(&self, record: &BTreeMap<String, String>) -> Vec<String> {
        self.identity
            .iter()
            .filter(|(key, value)| record.get(*key) != Some(value))
            .map(|(key, value)| {
                let recorded = record.get(*key).map_or("nothing", String::as_str);
                format!("{key}: recorded {recorded}, here {value}")
            })
            .collect()
    }
}

/// Reads the text of `<arch>.toolchain`.
pub(crate) fn parse_record(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The compilers of the machine, the distribution's first, that have a `core` for the target.
fn installed_core() -> Option<Core> {
    [
        Some(PathBuf::from("/usr/bin/rustc")),
        shell::find_program("rustc"),
    ]
    .into_iter()
    .flatten()
    .find(|rustc| {
        sysroot(command(rustc)).is_some_and(|sysroot| {
            let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
            names(&libraries)
                .iter()
                .any(|name| name.starts_with("libcore-") && name.ends_with(".rlib"))
        })
    })
    .map(|rustc| Core::Installed { rustc })
}

/// The newest rustup nightly with `rust-src`. `rustup toolchain list` gives names such as
/// `nightly-x86_64-unknown-linux-gnu` and `nightly-2026-05-15-x86_64-unknown-linux-gnu (active)`.
fn source_core() -> Option<Core> {
    let list = ask(command("rustup").args(["toolchain", "list"]))?;
    let mut nightlies: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    nightlies.sort_unstable();
    nightlies.into_iter().rev().find_map(|name| {
        let mut rustc = command("rustup");
        rustc.args(["run", name, "rustc"]);
        let sysroot = sysroot(rustc)?;
        sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
            .then(|| Core::Source {
                toolchain: name.to_owned(),
                sysroot,
            })
    })
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let text = ask(rustc.args(["--print", "sysroot"]))?;
    Some(PathBuf::from(text.trim()))
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What generates the code: the LLVM library that bpf-linker loads, or bpf-linker itself where LLVM is linked into it.
/// Its version alone would not tell one distribution's build from another's.
fn linker_llvm(linker: &Path) -> Result<String> {
    let libraries = ask(command("ldd").arg(linker)).unwrap_or_default();
    let library = libraries
        .lines()
        .filter_map(|line| line.split_once("=>"))
        .find(|(name, _)| name.trim().starts_with("libLLVM"))
        .and_then(|(name, target)| Some((name.trim(), target.split_whitespace().next()?)));
    let (name, file) = match library {
        Some((name, path)) => (name, Path::new(path)),
        None => ("linked into bpf-linker", linker),
    };
    let digest = sha256(&shell::read(file)?);
    let short = digest.get(..16).unwrap_or(&digest);
    Ok(format!("{name} {short}"))
}

/// What to install.
fn advice(missing: &str) -> String {
    format!(
        "cannot build the BPF object: no {missing}. One of the two is needed:\n\
         on Debian 12 (as root):\n  \
           apt-get update\n  \
           apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libxml2-dev\n  \
           LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22\n\
         elsewhere, with rustup:\n  \
           rustup toolchain install nightly --component rust-src\n  \
           cargo install bpf-linker --version 0.13.0 --locked\n\
         Only changes of probe-ebpf need it: the object of this checkout is committed under tracer/bpf."
    )
}

#[cfg(test)]
mod tests {
    use super::{Core, Toolchain, parse_record};
    use std::path::PathBuf;

    fn toolchain(rustc: &str) -> Toolchain {
        Toolchain {
            core: Core::Installed {
                rustc: PathBuf::from("/usr/bin/rustc"),
            },
            arch: "x86_64".into(),
            identity: vec![("rustc", rustc.into()), ("flags", "-Cx=1 -Cy".into())],
        }
    }

    #[test]
    fn a_record_is_read_back_and_names_what_differs() {
        let text = toolchain("rustc 1.96.0").record("abcd");
        let record = parse_record(&text);
        assert_eq!(record.get("sources").map(String::as_str), Some("abcd"));
        assert!(toolchain("rustc 1.96.0").differences(&record).is_empty());
        assert_eq!(
            toolchain("rustc 1.97.0").differences(&record),
            ["rustc: recorded rustc 1.96.0, here rustc 1.97.0"]
        );
    }

    #[test]
    fn an_empty_record_differs_in_everything() {
        assert_eq!(
            toolchain("rustc 1.96.0")
                .differences(&parse_record(""))
                .len(),
            2
        );
    }
}
