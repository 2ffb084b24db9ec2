//! A command of ours, held before its first instruction.
//!
//! The child is made and waits, before it calls exec, for a byte from us; meanwhile its process id is known and the
//! probe can be told of it. No ptrace is involved.

use std::{
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd, unix::process::CommandExt as _},
    process::{Child, Command},
    thread::{self, JoinHandle},
};

/// A child that has not called exec yet. Dropping it without [`HeldCommand::release`] ends the child.
#[derive(Debug)]
pub struct HeldCommand {
    pid: u32,
    go: io::PipeWriter,
    spawner: JoinHandle<io::Result<Child>>,
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
        // SAFETY: between fork and exec the closure only writes to and reads from pipes that exist, and closes a descriptor:
        // all async-signal-safe calls, no allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                // The child's copy of our end, so that our death ends its wait.
                libc::close(go_in_child);
                pid_writer.write_all(&std::process::id().to_ne_bytes())?;
                let mut byte = [0_u8; 1];
                go_reader.read_exact(&mut byte)
            });
        }
        // `spawn` returns only when the child has called exec.
        let spawner = thread::Builder::new()
            .name("spawn".to_owned())
            .spawn(move || command.spawn())?;
        let mut pid = [0_u8; 4];
        if let Err(error) = pid_reader.read_exact(&mut pid) {
            // The child never came to the point: say why.
            return Err(match spawner.join() {
                Ok(Err(cause)) => cause,
                _ => error,
            });
        }
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            go,
            spawner,
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
    pub fn release(self) -> io::Result<Child> {
        let Self { mut go, spawner, .. } = self;
        let told = go.write_all(&[1]);
        drop(go);
        match spawner.join() {
            Ok(child) => {
                if child.is_err() {
                    return child;
                }
                told.and(child)
            }
            Err(_) => Err(io::Error::other("the thread that starts the command failed")),
        }
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
