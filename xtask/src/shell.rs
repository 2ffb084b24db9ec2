//! Starting other programs, with errors that say which and why.
//!
//! Owns the checkout's location, a clean environment for nested cargo calls, and what cargo reports about what it built.

use crate::test::BINARY;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The checkout's root.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The target directory of the workspace (`CARGO_TARGET_DIR` is respected, relative to the root).
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// Variables that `cargo run` and rustup put into our environment and that would lead a program we start astray:
/// another toolchain's cargo must not see ours, and nobody needs the toolchain's libraries.
const INHERITED: [&str; 5] = [
    "CARGO",
    "LD_LIBRARY_PATH",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
    "CARGO_MANIFEST_DIR",
];

/// A command in the checkout's root, without what `cargo run` added to the environment.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for name in INHERITED {
        command.env_remove(name);
    }
    command
}

/// The cargo that runs us, in the checkout's root.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    command.env_remove("LD_LIBRARY_PATH");
    command.env_remove("CARGO_MANIFEST_DIR");
    command
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Runs the command with our own terminal.
///
/// # Errors
/// When it cannot be started, or ends otherwise than with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

/// Runs the command and gives what it wrote to stdout; stderr is ours.
///
/// # Errors
/// When it cannot be started, ends otherwise than with 0, or wrote something that is not UTF-8.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", describe(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not text", describe(command)))
}

/// As [`capture`], for questions where a failure is an answer: `None` then, and nothing on the terminal.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

/// One executable that cargo built.
pub(crate) struct Executable {
    /// The target's name, such as the test's file name.
    pub(crate) name: String,
    /// The source file of its root module.
    pub(crate) source: PathBuf,
    /// The directory of its package, where cargo runs tests.
    pub(crate) package: PathBuf,
    /// Whether it is a test harness.
    pub(crate) is_test: bool,
    /// The file.
    pub(crate) path: PathBuf,
}

/// Runs a building cargo command and gives the executables that it made, in cargo's order.
///
/// # Errors
/// As [`capture`].
pub(crate) fn build(command: &mut Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics");
    let messages = capture(command)?;
    let mut executables = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let text = |pointer: &str| message.pointer(pointer).and_then(|value| value.as_str());
        if let (Some("compiler-artifact"), Some(path), Some(name), Some(source), Some(manifest)) = (
            text("/reason"),
            text("/executable"),
            text("/target/name"),
            text("/target/src_path"),
            text("/manifest_path"),
        ) {
            executables.push(Executable {
                name: name.into(),
                source: source.into(),
                package: Path::new(manifest).parent().unwrap_or(root()).into(),
                is_test: message
                    .pointer("/profile/test")
                    .and_then(|value| value.as_bool())
                    == Some(true),
                path: path.into(),
            });
        }
    }
    Ok(executables)
}

/// Builds the release binary `leakscope` and gives its path.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build_leakscope() -> Result<PathBuf> {
    built_leakscope(cargo_build().arg("--release"))
}

fn cargo_build() -> Command {
    let mut command = cargo();
    command.args(["build", "--package", "leakscope", "--bin", "leakscope"]);
    command
}

fn built_leakscope(command: &mut Command) -> Result<PathBuf> {
    build(command)?
        .into_iter()
        .find(|executable| executable.name == "leakscope")
        .map(|executable| executable.path)
        .context("cargo built no binary named leakscope")
}

/// The binary that `LEAKSCOPE_BIN` names; where it names none, one that is built as tests are.
///
/// # Errors
/// When cargo fails.
pub(crate) fn leakscope_under_test() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(BINARY) {
        return Ok(root().join(named));
    }
    built_leakscope(&mut cargo_build())
}

/// Whether we are root: the effective user id of `/proc/self/status` (proc(5), field `Uid`, second number).
pub(crate) fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("Uid:"))?;
            line.split_whitespace().nth(2).map(|uid| uid == "0")
        })
        .unwrap_or(false)
}

/// A file on `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A directory, made if it is not there.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file.
///
/// # Errors
/// When it cannot be written; the error names it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// A path as it reads from the checkout's root.
pub(crate) fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}
