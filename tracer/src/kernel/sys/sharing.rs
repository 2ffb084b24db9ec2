//! A process that shares our descriptors, and what it is woken by.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// eventfd(2): a counter that can be waited for.
pub(crate) fn event_counter() -> io::Result<OwnedFd> {
    // SAFETY: eventfd(2) takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to such a counter.
pub(crate) fn count_event(counter: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1_u64;
    // SAFETY: eight bytes of ours are written to an eventfd.
    let written = unsafe {
        libc::write(
            counter.as_raw_fd(),
            (&raw const one).cast(),
            size_of::<u64>(),
        )
    };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a process that shares our descriptors, has a copy of our memory, and ends when `run` returns; gives its number. It gets no signal but
/// those that nobody can block, and belongs to a session of its own.
///
/// Other threads of ours may hold locks, of the allocator's too, that nobody gives back there: `run` allocates nothing and takes none.
pub(crate) fn share_descriptors(run: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: signal sets of ours are filled and read; what was blocked before is restored below in us, and in the child never.
    let before = unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    // SAFETY: without `CLONE_VM` the child goes on here on a copy of this stack, as after fork(2). No signal tells of its end.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: plain numbers and a name that lives for ever.
        unsafe {
            libc::setsid();
            libc::prctl(libc::PR_SET_NAME, c"link-keeper".as_ptr());
        }
        run();
        // SAFETY: ends the child at once: nothing of ours is run in it.
        unsafe { libc::_exit(0) };
    }
    let error = io::Error::last_os_error();
    // SAFETY: as above.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
    if child < 0 {
        return Err(error);
    }
    i32::try_from(child).map_err(|_| io::Error::from_raw_os_error(libc::ERANGE))
}

/// Whether a child of ours that tells nobody of its end has ended; it is buried then.
pub(crate) fn has_child_ended(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: waitpid(2) writes the status, which is ours.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::__WALL) };
    ended != 0
}

/// Waits until such a child has ended.
pub(crate) fn wait_for_child(pid: i32) {
    let mut status = 0;
    // SAFETY: waitpid(2) writes the status, which is ours.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}
