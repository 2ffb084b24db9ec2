//! How a process ended that is not a child of ours: what its pidfd says once it was reaped.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

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
