//! What a process gives up for good before it reads what somebody else prepared: descriptors, capabilities, memory, and nearly all of
//! what the kernel would do for it. Knows nothing of what is read.

mod filter;

use std::{io, os::fd::BorrowedFd, time::Duration};

use super::sys;

/// Where the kernel is told whom to end first where memory runs out, and the most that can be said there (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
const FIRST_TO_GO: &str = "1000";

/// The first descriptor behind the standard ones.
const FIRST_OTHER: libc::c_uint = 3;

/// `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Gives up everything but the standard descriptors, so much memory, bytes, and the system calls that reading takes. From then on no file can be opened
/// by its name: a path below `/proc/self/fd` gives another descriptor of the same file.
///
/// # Errors
/// The kernel refused the filter or a limit: nothing may be read then.
pub fn confine(memory: u64) -> io::Result<()> {
    // SAFETY: plain numbers. Nobody here uses the descriptors that are closed.
    if unsafe { libc::close_range(FIRST_OTHER, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Away from the terminal and its Ctrl-C; whoever leads a group already stays.
    // SAFETY: plain numbers and a name that lives for ever.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"leakscope-reader".as_ptr());
        // Whoever started it reads the answers. One that is stopped does not notice that it is gone.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    // A machine without /proc is one without this as well.
    let _ = std::fs::write(OOM_SCORE, FIRST_TO_GO);
    limit(libc::RLIMIT_DATA, memory)?;
    limit(libc::RLIMIT_CORE, 0)?;
    drop_capabilities()?;
    filter::install()
}

fn limit(what: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let both = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: the limits live through the call.
    if unsafe { libc::setrlimit(what, &raw const both) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Root without capabilities is a user like others, but for the files that it owns.
fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    // Effective, permitted and inheritable, the lower 32 and the upper.
    let none = [0_u32; 6];
    // SAFETY: a header and the two sets that its version says follow; both live through the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends this process after so many seconds, whatever it does then; 0: not any more.
pub fn end_after(seconds: u32) {
    // SAFETY: alarm(2) takes a number. Nobody handles the signal.
    unsafe {
        libc::alarm(seconds);
    }
}

/// Waits until there is something to read, or the time is over; whether there is.
pub(crate) fn is_readable(source: BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    Ok(sys::poll_readable(&[source], milliseconds)?.contains(&true))
}

/// The processor time of a child, while it has not been waited for.
pub(crate) fn spent_by(pid: u32) -> Duration {
    sys::process_cpu_time(pid).unwrap_or_default()
}

/// The memory of a child that no file is behind, bytes (proc_pid_statm(5)); 0 where that cannot be told.
pub(crate) fn own_memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    match (pages.next(), pages.next()) {
        (Some(Ok(all)), Some(Ok(shared))) => all
            .saturating_sub(shared)
            .saturating_mul(sys::page_size() as u64),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::own_memory;

    #[test]
    fn what_is_written_to_counts() {
        let before = own_memory(std::process::id());
        let kept = vec![1_u8; 64 << 20];
        let after = own_memory(std::process::id());
        assert!(after > before + (32 << 20), "{before} {after}");
        assert_eq!(kept.last(), Some(&1));
        assert_eq!(own_memory(u32::MAX), 0);
    }
}
