//! How a process ended that is not a child of ours: what its pidfd says once it was reaped.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rustix::process::{WaitId, WaitIdOptions, waitid};

/// `struct pidfd_info` in its first form (`PIDFD_INFO_SIZE_VER0`, include/uapi/linux/pidfd.h, Linux 6.13).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// Process ids, then user and group ids.
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// `PIDFD_GET_INFO`: `_IOWR(0xff, 11, struct pidfd_info)` (include/uapi/linux/pidfd.h).
const GET_INFO: libc::c_ulong = 0xc040_ff0b;
/// `PIDFD_INFO_EXIT` (the same, Linux 6.15).
const INFO_EXIT: u64 = 8;

/// A core was dumped (`WCOREFLAG` of wait(2)).
const CORE: u32 = 0x80;

/// How a child of ours ended that we have not reaped, as wait(2) gives it; it stays to be reaped. `None` of one that runs, and of a process
/// that is no child.
#[must_use]
pub fn child_exit_code(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::PidFd(pidfd), how).ok()??;
    if let Some(code) = status.exit_status() {
        return Some(u32::try_from(code).ok()? << 8);
    }
    let signal = u32::try_from(status.terminating_signal()?).ok()?;
    Some(if status.dumped() {
        signal | CORE
    } else {
        signal
    })
}

/// How a process ended, as wait(2) gives it; `None` before somebody reaped it.
///
/// # Errors
/// The kernel does not say (before Linux 6.15).
pub fn exit_code(pidfd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the structure is ours, and of the size that the request's number names.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & INFO_EXIT != 0).then_some(info.exit_code.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::child_exit_code;
    use crate::kernel::open_pidfd;
    use std::{os::fd::AsFd as _, process::Command};

    #[test]
    fn of_a_command_that_ended_well_it_was_not_known_how() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7 << 8), ("kill -TERM $$", 15)] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pidfd = open_pidfd(child.id()).unwrap();
            let found = loop {
                if let Some(found) = child_exit_code(pidfd.as_fd()) {
                    break found;
                }
                std::thread::yield_now();
            };
            assert_eq!(found, code, "{script}");
            // It can still be reaped.
            assert!(child.wait().is_ok());
            assert_eq!(child_exit_code(pidfd.as_fd()), None);
        }
    }
}
