//! The registers of the threads of a command of ours that is stopped: what is held there and nowhere else is held.
//!
//! By ptrace(2), which is used for nothing else: on a process that leakscope itself started, while it is stopped for us, for as long as
//! it takes to read. When we die meanwhile the kernel lets go of it.

use std::{
    io, ptr,
    time::{Duration, Instant},
};

/// Sets of registers (include/uapi/linux/elf.h): `NT_PRSTATUS`, the general ones, and `NT_PRFPREG`, those of floating point, in which
/// pointers are moved two at a time.
const SETS: [libc::c_int; 2] = [1, 2];

/// How many of the first words of `NT_PRSTATUS` are of registers that a function keeps for its caller (`struct user_regs_struct`,
/// arch/x86/include/asm/user_64.h: r15 to r12, rbp, rbx; System V ABI for x86-64, 3.2.1). In a function that makes a system call no other holds
/// anything of its callers'.
const KEPT_FOR_CALLERS: usize = 6;

/// More words than any of these sets has: 64 registers of 16 bytes.
const MOST_WORDS: usize = 128;

/// A thread that waits in the kernel for what does not come cannot be stopped: it is not waited for any longer.
const PATIENCE: Duration = Duration::from_millis(200);

/// A thread whose registers may be read. Dropping it lets go of the thread, which stays stopped as it was.
struct Seized(libc::pid_t);

impl Seized {
    fn new(thread: u32) -> io::Result<Self> {
        let thread =
            libc::pid_t::try_from(thread).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        ask(libc::PTRACE_SEIZE, thread, 0, 0)?;
        let seized = Self(thread);
        // Of a thread that is stopped already this makes nothing else.
        ask(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
        Ok(seized)
    }

    /// Waits until the thread says that it is stopped.
    fn wait(&self, until: Instant) -> io::Result<()> {
        loop {
            let mut status = 0;
            // SAFETY: the pointer is to a number of ours.
            let found =
                unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL | libc::WNOHANG) };
            if found < 0 {
                return Err(io::Error::last_os_error());
            }
            if found == self.0 {
                return if libc::WIFSTOPPED(status) {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(libc::ESRCH))
                };
            }
            if Instant::now() >= until {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The words of a set.
    fn words(&self, set: libc::c_int) -> io::Result<Vec<u64>> {
        let mut words = [0_u64; MOST_WORDS];
        let mut room = libc::iovec {
            iov_base: words.as_mut_ptr().cast(),
            iov_len: size_of_val(&words),
        };
        ask(
            libc::PTRACE_GETREGSET,
            self.0,
            set as usize,
            ptr::from_mut(&mut room) as usize,
        )?;
        let count = room.iov_len / size_of::<u64>();
        Ok(words.into_iter().take(count).collect())
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // It may be gone.
        let _ = ask(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

/// ptrace(2) with a request that takes numbers, or the address of an `iovec` of ours.
fn ask(request: libc::c_uint, thread: libc::pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: of the requests used here only PTRACE_GETREGSET writes through a pointer: to the `iovec` at `data` and to the words that
    // it names, both of which outlive the call.
    if unsafe { libc::ptrace(request, thread, address, data) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The registers of some threads of one stopped process, a list of words for each; `None` for those that cannot be read. Of the one that is in a system
/// call of its own making, `calling`, only those that may hold something of its callers'.
#[must_use]
pub fn read_registers(threads: &[u32], calling: u32) -> Vec<Option<Vec<u64>>> {
    let seized: Vec<_> = threads.iter().map(|thread| Seized::new(*thread)).collect();
    let until = Instant::now() + PATIENCE;
    seized
        .into_iter()
        .zip(threads)
        .map(|(seized, thread)| {
            let seized = seized.ok()?;
            seized.wait(until).ok()?;
            let sets = SETS.iter().map(|set| seized.words(*set));
            let mut words = sets.collect::<io::Result<Vec<_>>>().ok()?.concat();
            if *thread == calling {
                words.truncate(KEPT_FOR_CALLERS);
            }
            Some(words)
        })
        .collect()
}
