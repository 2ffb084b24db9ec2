//! What the tests of this room share: the libraries that Debian ships, and programs built on the spot.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says loudly that a test was skipped; fails where everything must be there.
pub(super) fn skip(missing: &str, package: &str) {
    let required = std::env::var_os("LEAKSCOPE_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    assert!(!required, "{missing} is missing; install {package}");
    eprintln!("SKIPPED: {missing} is missing; install {package} to run this test");
}

/// The allocators that Debian ships: where, and in which package.
pub(super) const GLIBC: (&str, &str) = ("/usr/lib/x86_64-linux-gnu/libc.so.6", "libc6");
pub(super) const MUSL: (&str, &str) = ("/lib/ld-musl-x86_64.so.1", "musl");
pub(super) const JEMALLOC: (&str, &str) =
    ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "libjemalloc2");
pub(super) const TCMALLOC: (&str, &str) = (
    "/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4",
    "libgoogle-perftools4",
);
pub(super) const MIMALLOC: (&str, &str) = (
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
    "libmimalloc2.0",
);

/// A file's bytes, or none where it is missing.
pub(super) fn library((path, package): (&str, &str)) -> Option<Vec<u8>> {
    if !Path::new(path).exists() {
        skip(path, package);
        return None;
    }
    Some(fs::read(path).unwrap())
}

/// Builds a program in a folder; none where there is no such compiler.
pub(super) fn build(
    folder: &Path,
    compiler: &str,
    package: &str,
    arguments: &[&str],
    source: &str,
) -> Option<PathBuf> {
    let extension = if compiler.ends_with("++") { "cc" } else { "c" };
    let text = folder.join(format!("program.{extension}"));
    fs::write(&text, source).unwrap();
    let program = folder.join("program");
    let output = Command::new(compiler)
        .arg("-O2")
        .arg(&text)
        .arg("-o")
        .arg(&program)
        .args(arguments)
        .output();
    match output {
        Err(_) => {
            skip(compiler, package);
            None
        }
        Ok(output) if !output.status.success() => {
            panic!(
                "{compiler} failed: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        }
        Ok(_) => Some(program),
    }
}
