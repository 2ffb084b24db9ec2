//! What this machine and user allow: root, BTF, compilers; and the lock between tests that trace.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

use crate::process::python;
use crate::victims::{Needs, find_program, prebuilt_folder};

/// Whether BPF programs can be loaded here at all.
///
/// # Errors
/// What is missing.
pub fn kernel_usable() -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1));
    if effective != Some("0") {
        return Err("needs root".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err("the kernel has no BTF (/sys/kernel/btf/vmlinux)".to_owned());
    }
    Ok(())
}

/// What is missing to build (or, where victims are prebuilt, to run) this victim; none when nothing is.
#[must_use]
pub fn missing(name: &str) -> Option<String> {
    let program = match find_program(name) {
        Ok(program) => program,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(folder) = prebuilt_folder() {
        let path = folder.join(name);
        if !path.exists() {
            return Some(format!("{} was not prebuilt", path.display()));
        }
        return match program.needs {
            Needs::Python => python().err().map(|error| format!("{error:#}")),
            _ => None,
        };
    }
    match program.needs {
        Needs::Nothing => None,
        Needs::Musl => (!answers("musl-gcc", "--version"))
            .then(|| "musl-gcc is not installed (Debian: musl-tools)".to_owned()),
        Needs::Rust => {
            (!answers("rustc", "--version")).then(|| "rustc is not installed".to_owned())
        }
        Needs::Go => (!answers("go", "version"))
            .then(|| "go is not installed (Debian: golang-go)".to_owned()),
        Needs::Python => match python() {
            Ok(python) if python.include.join("Python.h").exists() => None,
            Ok(python) => Some(format!(
                "there is no Python.h in {} (Debian: python3-dev)",
                python.include.display()
            )),
            Err(error) => Some(format!("{error:#}")),
        },
    }
}

/// Whether a program can be run at all: it is called with an argument that makes it say its version.
#[must_use]
pub fn answers(program: &str, argument: &str) -> bool {
    Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Says on stderr (past the test harness's capture) that the running test is skipped and why.
///
/// # Panics
/// When `LEAKSCOPE_REQUIRE_KERNEL=1`: nothing may be skipped then.
pub fn skip(reason: &str) {
    let current = thread::current();
    let name = current.name().unwrap_or("a test");
    assert!(
        env::var("LEAKSCOPE_REQUIRE_KERNEL").as_deref() != Ok("1"),
        "LEAKSCOPE_REQUIRE_KERNEL=1 forbids to skip {name}: {reason}"
    );
    // A test's result does not hang on whether anybody can read this.
    let _ = writeln!(io::stderr(), "SKIPPED: {name} — {reason}");
}

/// Says on stderr that the running test is left out, with no regard to `LEAKSCOPE_REQUIRE_KERNEL`: for what a machine
/// need not have even where everything is checked, such as an interpreter that no package list installs, or a compiler
/// where victims are prebuilt. It is shown, and is no skip.
pub fn leave_out(reason: &str) {
    let current = thread::current();
    let name = current.name().unwrap_or("a test");
    // A test's result does not hang on whether anybody can read this.
    let _ = writeln!(io::stderr(), "LEFT OUT: {name} — {reason}");
}

/// Whether victims are prebuilt, on a machine that has nothing but them.
#[must_use]
pub fn prebuilt() -> bool {
    prebuilt_folder().is_some()
}

/// Waits until the running test may trace: with others that share the machine, or by itself where `tests/alone.txt` says so.
/// Free again when dropped.
///
/// # Errors
/// When the lock file cannot be made, or it is not known which test this is.
pub fn turn() -> Result<File> {
    let path = env::temp_dir().join("leakscope-kernel-tests.lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let current = thread::current();
    let test = current.name().context("the running test's name")?;
    let own = env::current_exe().context("the path of the running test")?;
    let binary = own.file_name().unwrap_or_default().to_string_lossy();
    let locked = if is_alone(&binary, test) {
        file.lock()
    } else {
        file.lock_shared()
    };
    locked.with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Whether a test of a binary (as cargo names it, or without the hash) has the machine to itself.
fn is_alone(binary: &str, test: &str) -> bool {
    let name = match binary.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 => name,
        _ => binary,
    };
    include_str!("../alone.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap_or((line, test)))
        .any(|listed| listed == (name, test))
}

#[cfg(test)]
mod tests {
    use super::is_alone;

    #[test]
    fn those_that_are_listed_are_alone_wherever_they_run() {
        assert!(is_alone("kernel_select", "the_whole_machine"));
        assert!(is_alone(
            "kernel_select-0123456789abcdef",
            "the_whole_machine"
        ));
        assert!(is_alone("kernel_sampled", "any"));
        assert!(!is_alone("kernel_select", "any"));
        assert!(!is_alone("kernel_attached", "the_whole_machine"));
    }
}
