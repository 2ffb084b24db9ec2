//! A C library that is newer than this machine's, and programs that run with it. Must not know what is traced in them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of Debian 14, as `debootstrap --foreign` unpacks them.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/forky");

/// What the folder with the loader and the libraries is called, from the root on.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// glibc 2.43 or newer.
#[derive(Debug)]
pub struct NewerLibc(PathBuf);

impl NewerLibc {
    /// Where it is, or why there is none.
    ///
    /// # Errors
    /// It was not unpacked.
    pub fn find() -> Result<Self, &'static str> {
        let root = Path::new(ROOT);
        let libraries = root.join(LIBRARIES);
        // The last that is done when it is made is to remove this folder.
        (libraries.join("libc.so.6").exists() && !root.join("debootstrap").exists())
            .then_some(Self(libraries))
            .ok_or("no Debian 14 in target/forky: .ci/run makes it")
    }

    /// Runs a program with it.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(self.0.join("ld-linux-x86-64.so.2"));
        // What is not unpacked there is this machine's.
        let mut path = OsString::from(&self.0);
        path.push(":/");
        path.push(LIBRARIES);
        command.arg("--library-path").arg(path).arg(program);
        command
    }
}
