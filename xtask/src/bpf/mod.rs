//! `bpf build` and `bpf check`: the committed BPF object, made from `probe-ebpf`.
//!
//! Owns the layout of `tracer/bpf`: per architecture `<arch>.o`, `<arch>.o.sha256` (as sha256sum(1) writes it),
//! `<arch>.toolchain` (one `key: value` a line) and `<arch>.verified` (see `verified`). `tracer/build.rs` reads the first two and shows the third.

mod compile;
mod object_file;
mod sources;
mod toolchain;
pub(crate) mod verified;

use crate::shell::{self, relative, root};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Subcommand;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use toolchain::Toolchain;
pub(crate) use toolchain::parse_record;

/// What to do with the object.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Compile probe-ebpf and write the object, its sha256 and its toolchain to tracer/bpf
    Build,
    /// Rebuild and compare with the committed object; as root, also what the verifier walked with the committed table
    Check,
    /// How many instructions the verifier of each kernel walked, beside the committed table
    Verified(verified::Arguments),
}

/// The architecture whose object is built. The instructions are the same everywhere, but the probe reads `pt_regs`,
/// which differ: so one object per architecture, named as `CARGO_CFG_TARGET_ARCH` names it.
const ARCH: &str = "x86_64";

/// What a person runs after the probe's sources changed.
const REBUILD: &str = "run `cargo xtask bpf build` and commit tracer/bpf";

/// The three files of one architecture.
struct Committed {
    object: PathBuf,
    sha256: PathBuf,
    toolchain: PathBuf,
}

impl Committed {
    fn of(arch: &str) -> Self {
        let dir = root().join("tracer/bpf");
        Self {
            object: dir.join(format!("{arch}.o")),
            sha256: dir.join(format!("{arch}.o.sha256")),
            toolchain: dir.join(format!("{arch}.toolchain")),
        }
    }
}

/// Performs the action.
///
/// # Errors
/// No toolchain, a compile error, a committed object that is altered, stale or not what the sources give.
pub(crate) fn perform(action: &Action) -> Result<ExitCode> {
    match action {
        Action::Build => build()?,
        Action::Check => {
            check()?;
            if shell::is_root() {
                verified::compare_here()?;
            } else {
                println!(
                    "NOT LOADED: that takes root, so nothing is known of what the verifier walks"
                );
            }
        }
        Action::Verified(arguments) => verified::perform(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The lowercase hexadecimal SHA-256 of the bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn build() -> Result<()> {
    let toolchain = Toolchain::find(ARCH)?;
    println!("{}", toolchain.summary());
    let sources = sources::hash(&root().join("probe-ebpf"))?;
    let object = compile::compile(&toolchain)?;
    let summary = object_file::inspect(&object)?;
    let digest = sha256(&object);
    let files = Committed::of(ARCH);
    shell::make_dir(&root().join("tracer/bpf"))?;
    shell::write(&files.object, &object)?;
    shell::write(&files.sha256, format!("{digest}  {ARCH}.o\n").as_bytes())?;
    shell::write(
        &files.toolchain,
        toolchain.record(&sources.digest).as_bytes(),
    )?;
    println!(
        "{}: {} bytes, sha256 {digest}\n{summary}\nmade from {} files, sha256 {}",
        relative(&files.object),
        object.len(),
        sources.files,
        sources.digest
    );
    Ok(())
}

fn check() -> Result<()> {
    let files = Committed::of(ARCH);
    let committed = content(&files.object)?;
    let digest = sha256(&committed);
    let stated = text(&files.sha256)?;
    if stated.split_whitespace().next() != Some(digest.as_str()) {
        bail!(
            "{} does not have the sha256 that {} states: it was altered, or only one of the two was committed; {REBUILD}",
            relative(&files.object),
            relative(&files.sha256)
        );
    }
    object_file::inspect(&committed)
        .map_err(|error| anyhow!("{}: {error:#}; {REBUILD}", relative(&files.object)))?;
    let record = parse_record(&text(&files.toolchain)?);
    let sources = sources::hash(&root().join("probe-ebpf"))?;
    if record.get("sources") != Some(&sources.digest) {
        bail!(
            "the committed object is stale: it was made from other sources (sha256 {}) than probe-ebpf holds now ({}); {REBUILD}",
            record.get("sources").map_or("not recorded", String::as_str),
            sources.digest
        );
    }
    println!("the committed object was made from these sources; rebuilding it");
    let toolchain = Toolchain::find(ARCH)?;
    println!("{}", toolchain.summary());
    let rebuilt = compile::compile(&toolchain)?;
    let differences = toolchain.differences(&record);
    if rebuilt == committed {
        println!("identical, byte for byte: sha256 {digest}");
        for difference in &differences {
            println!("(although the toolchain differs: {difference})");
        }
        return Ok(());
    }
    let kept = shell::target_dir().join("bpf").join(format!("{ARCH}.o"));
    shell::write(&kept, &rebuilt)?;
    if differences.is_empty() {
        bail!(
            "the same toolchain gives another object from the same sources: committed sha256 {digest}, rebuilt {} (kept as {}); \
             either the committed one was not made from these sources ({REBUILD}), or the build depends on something that is not recorded \
             in {}",
            sha256(&rebuilt),
            relative(&kept),
            relative(&files.toolchain)
        );
    }
    println!(
        "NOT COMPARED: this machine's toolchain is not the one that made the committed object:"
    );
    for difference in &differences {
        println!("  {difference}");
    }
    println!("{}", object_file::inspect(&rebuilt)?);
    load(&kept)
}

/// Builds leakscope around the object and lets `leakscope doctor` load it.
fn load(object: &Path) -> Result<()> {
    let mut command = shell::cargo();
    command
        .args(["build", "--package", "leakscope", "--bin", "leakscope"])
        .env("LEAKSCOPE_BPF_OBJECT", object);
    let binary = shell::build(&mut command)?
        .into_iter()
        .find(|executable| executable.name == "leakscope")
        .context("cargo built no binary named leakscope")?;
    if !shell::is_root() {
        println!("NOT LOADED: that takes root; run `sudo -E cargo xtask bpf check`");
        return Ok(());
    }
    shell::run(shell::command(&binary.path).arg("doctor"))
        .context("the kernel does not take the rebuilt object (or something else is missing here, see above)")?;
    println!("the rebuilt object loads on this kernel; it was compared with nothing");
    Ok(())
}

/// Reads a committed file.
fn content(path: &Path) -> Result<Vec<u8>> {
    shell::read(path).map_err(|error| anyhow!("{error:#}; {REBUILD}"))
}

/// Reads a committed text.
fn text(path: &Path) -> Result<String> {
    String::from_utf8(content(path)?)
        .map_err(|_| anyhow!("{} is not text; {REBUILD}", relative(path)))
}
