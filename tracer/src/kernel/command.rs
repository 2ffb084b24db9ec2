//! A command of ours, held before its first instruction.
//!
//! The child is made and waits, before it calls exec, for a byte from us; meanwhile its process id is known and the
//! probe can be told of it. No ptrace is involved.

use std::{
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

/// A child that has not called exec yet. Dropping it without [`HeldCommand::release`] ends the child, and waits for that: the child says
/// why it ends to the thread that is its parent, and would abort, in words of its own, if that were gone.
#[derive(Debug)]
pub struct HeldCommand {
    pid: u32,
    /// Until the child is told to go on.
    go: Option<io::PipeWriter>,
    spawned: Receiver<io::Result<Child>>,
    parent: Option<ParentThread>,
}

/// The thread that is the child's parent. The kernel sends the child SIGCONT when it ends (`PR_SET_PDEATHSIG`), so that a
/// command which is held at the very moment of our death, whatever its cause, runs on.
#[derive(Debug)]
struct ParentThread {
    _until_dropped: Sender<()>,
}

/// A command that runs.
#[derive(Debug)]
pub struct RunningCommand {
    child: Child,
    _parent: ParentThread,
}

impl HeldCommand {
    /// Makes the child.
    ///
    /// # Errors
    /// No pipe, no process. That the program does not exist is said by [`HeldCommand::release`].
    pub fn start(mut command: Command) -> io::Result<Self> {
        let (mut pid_reader, mut pid_writer) = io::pipe()?;
        let (mut go_reader, go) = io::pipe()?;
        let go_in_child = go.as_raw_fd();
        // SAFETY: between fork and exec the closure only calls prctl(2), writes to and reads from pipes that exist, and closes a
        // descriptor: all async-signal-safe, no allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT);
                // The child's copy of our end, so that our death ends its wait.
                libc::close(go_in_child);
                pid_writer.write_all(&std::process::id().to_ne_bytes())?;
                let mut byte = [0_u8; 1];
                go_reader.read_exact(&mut byte)
            });
        }
        let (until_dropped, dropped) = mpsc::channel::<()>();
        let (tell, spawned) = mpsc::channel();
        thread::Builder::new()
            .name("command".to_owned())
            .spawn(move || {
                // Returns only when the child has called exec.
                let result = command.spawn();
                drop(command);
                // Nobody waits for it when the command was given up; then there is nothing to keep.
                if tell.send(result).is_ok() {
                    // Ends with an error when the other end is dropped: nothing is ever sent.
                    let _ = dropped.recv();
                }
            })?;
        let mut pid = [0_u8; 4];
        if let Err(error) = pid_reader.read_exact(&mut pid) {
            // The child never came to the point: say why.
            return Err(match spawned.recv() {
                Ok(Err(cause)) => cause,
                _ => error,
            });
        }
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            go: Some(go),
            spawned,
            parent: Some(ParentThread {
                _until_dropped: until_dropped,
            }),
        })
    }

    /// The child's process id, which it keeps through exec.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the child call exec.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub fn release(mut self) -> io::Result<RunningCommand> {
        let failed = || io::Error::other("the thread that starts the command failed");
        let told = match self.go.take() {
            Some(mut go) => go.write_all(&[1]),
            None => Ok(()),
        };
        let child = self.spawned.recv().map_err(|_| failed())??;
        told?;
        Ok(RunningCommand {
            child,
            _parent: self.parent.take().ok_or_else(failed)?,
        })
    }
}

impl Drop for HeldCommand {
    fn drop(&mut self) {
        // Where it was not released: the end of its wait is an error that it reports, and ends by.
        if self.go.take().is_some() {
            let _ = self.spawned.recv();
        }
    }
}

impl RunningCommand {
    /// Reaps the command if it has ended; tells how it did.
    ///
    /// # Errors
    /// waitpid(2) failed.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

/// Lets a stopped process run on (SIGCONT).
pub(crate) fn send_continue(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: kill(2) takes no pointers.
    if unsafe { libc::kill(pid, libc::SIGCONT) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether two processes have one memory (kcmp(2)): a child of vfork(2) and its parent. Where the kernel does not say, they have not.
#[must_use]
pub fn shares_memory(pid: u32, other: u32) -> bool {
    /// `KCMP_VM` (include/uapi/linux/kcmp.h).
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: for this comparison kcmp(2) takes no pointers.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, other, KCMP_VM, 0, 0) == 0 }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2), Linux 5.3).
pub(crate) fn open_pidfd(pid: u32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: pidfd_open(2) takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// CLOCK_MONOTONIC, nanoseconds: the clock of the probe's times.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    (now.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::HeldCommand;
    use std::path::Path;
    use std::process::Command;

    /// It aborted, in words of the standard library, beside the message that said why it was given up.
    #[test]
    fn a_command_that_is_given_up_is_over_before_its_parent() {
        let held = HeldCommand::start(Command::new("true")).unwrap();
        let process = format!("/proc/{}", held.pid());
        assert!(Path::new(&process).exists());
        drop(held);
        assert!(!Path::new(&process).exists());
    }
}
