//! Faults that the kernel really hands out: failed and interrupted system calls (by strace's injection), a cgroup without
//! memory, limits of a process, mounts that hide a file system.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binary::leakscope;

/// A command that runs leakscope under strace, which tampers with the calls of these names (comma-separated) as the
/// expression says (`error=ENOMEM:when=7`, `signal=SIGINT:when=3`; see strace(1)).
///
/// # Errors
/// When there is no leakscope.
pub fn tampered<A: AsRef<OsStr>>(calls: &str, how: &str, arguments: &[A]) -> Result<Command> {
    tampered_all(&[(calls, how)], arguments)
}

/// The same with several kinds of calls, each in its own way.
///
/// # Errors
/// When there is no leakscope.
pub fn tampered_all<A: AsRef<OsStr>>(all: &[(&str, &str)], arguments: &[A]) -> Result<Command> {
    let mut command = Command::new("strace");
    let calls: Vec<&str> = all.iter().map(|(calls, _)| *calls).collect();
    command
        // Stopped at these calls alone: at each of the thousands of others it would take minutes under emulation.
        .args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={}", calls.join(",")));
    for (calls, how) in all {
        command.arg("-e").arg(format!("inject={calls}:{how}"));
    }
    command.arg(leakscope()?).args(arguments);
    Ok(command)
}

/// A command that runs leakscope behind a shell script, which ends in `exec "$@"`.
///
/// # Errors
/// When there is no leakscope.
pub fn scripted<A: AsRef<OsStr>>(script: &str, arguments: &[A]) -> Result<Command> {
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(leakscope()?)
        .args(arguments);
    Ok(command)
}

/// A cgroup that may use so much memory and no more. Removed when dropped.
pub struct MemoryLimit {
    folder: PathBuf,
}

impl MemoryLimit {
    /// Makes it, in the first or second version of cgroups.
    ///
    /// # Errors
    /// When neither can be used here.
    pub fn new(bytes: u64) -> Result<Self> {
        let name = format!("leakscope-tests-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let second = Path::new("/sys/fs/cgroup");
        let (folder, file) = if first.join("memory.limit_in_bytes").exists() {
            (first.join(name), "memory.limit_in_bytes")
        } else {
            fs::write(second.join("cgroup.subtree_control"), "+memory")
                .context("cgroups with a memory controller")?;
            (second.join(name), "memory.max")
        };
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let limit = Self { folder };
        fs::write(limit.folder.join(file), bytes.to_string()).context("setting the limit")?;
        Ok(limit)
    }

    /// The file that takes the numbers of the processes in it.
    #[must_use]
    pub fn procs(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// A command that runs leakscope in it.
    ///
    /// # Errors
    /// When there is no leakscope.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Command> {
        let script = format!("echo $$ > '{}' && exec \"$@\"", self.procs().display());
        scripted(&script, arguments)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Its processes have ended, or the test has failed anyhow.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The child processes of a process, as its main thread has them.
///
/// # Errors
/// When it is gone.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task");
    let mut found = Vec::new();
    for thread in fs::read_dir(&path).with_context(|| format!("reading {path}"))? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        for word in text.split_whitespace() {
            found.push(word.parse().context("a process id")?);
        }
    }
    Ok(found)
}

/// The command that leakscope has started, from its fork on. A thread of its own is its parent, so that whoever else leakscope
/// starts is not mistaken for it.
#[must_use]
pub fn command_of(leakscope: u32) -> Option<u32> {
    fs::read_dir(format!("/proc/{leakscope}/task"))
        .ok()?
        .filter_map(Result::ok)
        .filter(|thread| {
            fs::read(thread.path().join("comm")).is_ok_and(|name| name == b"command\n")
        })
        .find_map(|thread| {
            let text = fs::read_to_string(thread.path().join("children")).ok()?;
            text.split_whitespace().find_map(|pid| pid.parse().ok())
        })
}

/// Sends a process a signal by its short name, as `KILL`. One that is gone is left alone.
///
/// # Errors
/// When kill(1) cannot be run or does not know the signal.
pub fn send(name: &str, pid: u32) -> Result<()> {
    let output = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .output()
        .context("running kill")?;
    let gone = !Path::new(&format!("/proc/{pid}/fd")).exists();
    ensure!(
        output.status.success() || gone,
        "kill -s {name} {pid}: {output:?}"
    );
    Ok(())
}
