//! Chooses the BPF object that goes into the binary: one named by `LEAKSCOPE_BPF_OBJECT`, else the committed one of the
//! target's architecture if its sha256 matches. There is no stub: without an object the build fails and says what to run.
//!
//! Gives the crate four strings (`env!`): `LEAKSCOPE_BPF_OBJECT_PATH` (a copy in `OUT_DIR`), `_SHA256`, `_TOOLCHAIN` (one line)
//! and `_SOURCE` (`committed` or `environment`).
//!
//! Compresses the files of the daemon's page, and lists them in `OUT_DIR/page.rs`: `FILES`.

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

/// The variable that names another object.
const VARIABLE: &str = "LEAKSCOPE_BPF_OBJECT";

/// `EM_BPF` of elf.h, the `e_machine` of a BPF object.
const EM_BPF: u16 = 247;

/// An object and where it came from.
struct Chosen {
    bytes: Vec<u8>,
    sha256: String,
    toolchain: String,
    source: &'static str,
}

fn main() -> ExitCode {
    match choose()
        .and_then(|chosen| publish(&chosen))
        .and_then(|()| pack_page())
        .and_then(|()| pack_schema())
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // `cargo::error` shows the message by itself, without the script's backtrace or exit status around it.
            for line in message.lines() {
                say(&format!("cargo::error={line}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// A line to cargo.
fn say(line: &str) {
    println!("{line}");
}

fn choose() -> Result<Chosen, String> {
    say(&format!("cargo::rerun-if-env-changed={VARIABLE}"));
    say("cargo::rerun-if-changed=build.rs");
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    match env::var_os(VARIABLE) {
        Some(path) if !path.is_empty() => from_environment(Path::new(&path)),
        _ => committed(&Path::new(&manifest_dir).join("bpf"), &arch),
    }
}

fn from_environment(path: &Path) -> Result<Chosen, String> {
    watch(path);
    if path.is_relative() {
        return Err(format!(
            "{VARIABLE}={} must be an absolute path",
            path.display()
        ));
    }
    let bytes = read(path).map_err(|error| {
        format!("{error}; {VARIABLE} names it: correct the variable, or unset it to use the committed object")
    })?;
    verify_elf(&bytes, path).map_err(|error| {
        format!("{error}; correct {VARIABLE}, or unset it to use the committed object")
    })?;
    Ok(Chosen {
        sha256: sha256(&bytes),
        bytes,
        toolchain: "not recorded".to_owned(),
        source: "environment",
    })
}

fn committed(dir: &Path, arch: &str) -> Result<Chosen, String> {
    let object = dir.join(format!("{arch}.o"));
    let stated = dir.join(format!("{arch}.o.sha256"));
    let record = dir.join(format!("{arch}.toolchain"));
    for file in [&object, &stated, &record] {
        watch(file);
    }
    let remedy = format!(
        "restore tracer/bpf from version control, or run `cargo xtask bpf build`, or name an object with {VARIABLE}"
    );
    if !object.exists() {
        return Err(format!(
            "there is no BPF object for the architecture {arch} ({} is missing): {remedy}",
            object.display()
        ));
    }
    let bytes = read(&object)?;
    let digest = sha256(&bytes);
    let text = read(&stated).map_err(|error| format!("{error}: {remedy}"))?;
    let text = String::from_utf8_lossy(&text);
    if text.split_whitespace().next() != Some(digest.as_str()) {
        return Err(format!(
            "{} was altered: its sha256 is {digest}, {} states {}: {remedy}",
            object.display(),
            stated.display(),
            text.split_whitespace().next().unwrap_or("nothing"),
        ));
    }
    verify_elf(&bytes, &object).map_err(|error| format!("{error}: {remedy}"))?;
    let toolchain = read(&record).map_err(|error| format!("{error}: {remedy}"))?;
    Ok(Chosen {
        sha256: digest,
        bytes,
        toolchain: one_line(&String::from_utf8_lossy(&toolchain)),
        source: "committed",
    })
}

fn publish(chosen: &Chosen) -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?).join("probe.o");
    fs::write(&out, &chosen.bytes)
        .map_err(|error| format!("cannot write {}: {error}", out.display()))?;
    for (name, value) in [
        ("PATH", out.to_string_lossy().as_ref()),
        ("SHA256", &chosen.sha256),
        ("TOOLCHAIN", &chosen.toolchain),
        ("SOURCE", chosen.source),
    ] {
        say(&format!(
            "cargo::rustc-env=LEAKSCOPE_BPF_OBJECT_{name}={value}"
        ));
    }
    Ok(())
}

/// Where the page's files are, below the manifest.
const PAGE: &str = "src/daemon/page/web";

/// Writes the compressed files of the page, and the list of them.
fn pack_page() -> Result<(), String> {
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join(PAGE);
    let out = PathBuf::from(variable("OUT_DIR")?);
    watch(&folder);
    let entries = fs::read_dir(&folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("cannot list {}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    let mut list = String::from("pub(super) static FILES: &[File] = &[\n");
    for path in paths {
        watch(&path);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Says to Node what its tests load, and to a browser nothing.
        if name == "package.json" {
            continue;
        }
        let text = read(&path)?;
        let to = out.join(format!("{name}.gz"));
        pack(&path, &text, &to)?;
        let etag: String = sha256(&text).chars().take(16).collect();
        writeln!(
            list,
            "File {{ name: {name:?}, gzip: include_bytes!({to:?}), length: {}, etag: \"\\\"{etag}\\\"\" }},",
            text.len()
        )
        .map_err(|error| error.to_string())?;
    }
    list.push_str("];\n");
    fs::write(out.join("page.rs"), list).map_err(|error| format!("cannot write page.rs: {error}"))
}

/// Writes a file's text, compressed, to another.
fn pack(path: &Path, text: &[u8], to: &Path) -> Result<(), String> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let packed = encoder
        .write_all(text)
        .and_then(|()| encoder.finish())
        .map_err(|error| format!("cannot compress {}: {error}", path.display()))?;
    fs::write(to, packed).map_err(|error| format!("cannot write {}: {error}", to.display()))
}

/// Writes the schema of reports, compressed: few ask for it.
fn pack_schema() -> Result<(), String> {
    let path = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("src/report/schema.json");
    watch(&path);
    let to = PathBuf::from(variable("OUT_DIR")?).join("schema.json.gz");
    pack(&path, &read(&path)?, &to)
}

/// The lines of the record as one, for `--version`.
fn one_line(record: &str) -> String {
    record
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// That the file is a 64-bit little-endian relocatable BPF object, by the first 20 bytes of its ELF header (elf(5)).
fn verify_elf(bytes: &[u8], path: &Path) -> Result<(), String> {
    let machine = bytes
        .get(18..20)
        .and_then(|field| field.try_into().ok())
        .map(u16::from_le_bytes);
    if bytes.starts_with(b"\x7fELF\x02\x01") && machine == Some(EM_BPF) {
        Ok(())
    } else {
        Err(format!(
            "{} is not a BPF object (64-bit little-endian ELF for machine {EM_BPF})",
            path.display()
        ))
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("cargo did not set {name}: {error}"))
}

fn watch(path: &Path) {
    say(&format!("cargo::rerun-if-changed={}", path.display()));
}
