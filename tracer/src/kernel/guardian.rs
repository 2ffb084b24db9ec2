//! What outlives us for a moment: a process that lets those run on which the probe had stopped for us when we died.
//!
//! Whoever ends us with SIGKILL while a command's child is held would leave it stopped. The guardian is this same program,
//! started anew with two descriptors and nothing else: the map of the processes that may be held, and a pidfd of ours. It
//! sleeps until we have ended, and by then the kernel has taken the probe away: nobody is held any more.

use std::{
    io::{self, Error},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command},
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData};

use super::{
    command::{self, open_pidfd},
    error::KernelError,
    nowhere::nowhere,
    sys,
};

/// This program, even when its file has been replaced.
const OURSELVES: &str = "/proc/self/exe";

/// The subcommand that [`Guardian::start`] runs, which calls [`Watched::inherited`].
const SUBCOMMAND: &str = "guard";

/// The first descriptor behind the standard ones.
const FIRST_OTHER: libc::c_uint = 3;

/// A running guardian. Dropping it ends it, so that must come last.
#[derive(Debug)]
pub(super) struct Guardian(Child);

impl Guardian {
    /// Starts it.
    ///
    /// # Errors
    /// No process, or no descriptor.
    pub(super) fn start(holds: BorrowedFd<'_>) -> io::Result<Self> {
        let mut command = Command::new(OURSELVES);
        command
            .arg0("leakscope")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(holds.try_clone_to_owned()?)
            .stdout(open_pidfd(std::process::id())?)
            .stderr(nowhere()?);
        // SAFETY: between fork and exec the closure only calls setsid(2) and close_range(2): async-signal-safe, no allocation, no
        // lock. Descriptors are only marked, for the standard library still uses some of its own.
        unsafe {
            command.pre_exec(|| {
                // Away from the terminal and its Ctrl-C.
                if libc::setsid() < 0 {
                    return Err(Error::last_os_error());
                }
                let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
                if libc::close_range(FIRST_OTHER, libc::c_uint::MAX, flags) < 0 {
                    return Err(Error::last_os_error());
                }
                Ok(())
            });
        }
        command.spawn().map(Self)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It may have been ended by somebody else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the guardian: who is watched over, and until when.
#[derive(Debug)]
pub struct Watched {
    holds: BpfHashMap<MapData, u32, u32>,
}

impl Watched {
    /// Takes over the descriptors that [`Guardian::start`] passed on.
    ///
    /// # Errors
    /// The standard input is not that map: somebody else started this.
    pub fn inherited() -> Result<Self, KernelError> {
        let failed = |source| {
            KernelError::call(
                "no map of held processes was passed on: leakscope starts this itself, with a command",
                source,
            )
        };
        let fd = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        MapData::from_fd(fd)
            .and_then(|data| BpfHashMap::try_from(Map::HashMap(data)))
            .map(|holds| Self { holds })
            .map_err(|error| failed(super::load::io_error(&error)))
    }

    /// Returns when leakscope has ended, with all of its threads and descriptors.
    ///
    /// # Errors
    /// The standard output is no pidfd.
    pub fn wait_for_end(&self) -> Result<(), KernelError> {
        let stdout = io::stdout();
        // A signal ends a wait early.
        while !sys::poll_readable(&[stdout.as_fd()], -1)
            .map_err(|source| KernelError::call("cannot wait for leakscope's end", source))?
            .contains(&true)
        {}
        Ok(())
    }

    /// The processes that may be held.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        self.holds.keys().filter_map(Result::ok).collect()
    }

    /// Lets a process run on. One that is gone is what is wanted.
    pub fn resume(&self, pid: u32) {
        let _ = command::send_continue(pid);
    }
}
