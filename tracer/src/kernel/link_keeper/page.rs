//! The memory that leakscope and the keeper of its links share: the links that are kept, and the one request under way. Knows neither what a
//! link is for nor who reads.

use std::{
    cell::UnsafeCell,
    io,
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

/// So many links are kept at most: of perf events one for each function, process and direction.
pub(super) const MOST_LINKS: usize = 1 << 14;

/// So many probes can be asked for in one link.
pub(super) const MOST_PROBES: usize = 1 << 12;

/// `PATH_MAX` (include/uapi/linux/limits.h).
pub(super) const MOST_PATH: usize = 4096;

/// A time that never comes.
pub(super) const NEVER: u64 = u64::MAX;

/// What is the matter with a place for a link.
pub(super) mod place {
    /// Nothing is kept here. Whoever is done with a link says so; the keeper takes the place for another.
    pub(crate) const FREE: u32 = 0;
    /// A link is kept.
    pub(crate) const KEPT: u32 = 1;
    /// It is being closed.
    pub(crate) const CLOSING: u32 = 2;
    /// It is closed, and whoever asked for it does not know that yet.
    pub(crate) const CLOSED: u32 = 3;
}

/// How far the request is.
pub(super) mod request {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const ASKED: u32 = 1;
    pub(crate) const ANSWERED: u32 = 2;
    /// A process has been made that does it.
    pub(crate) const UNDER_WAY: u32 = 3;
}

/// A place for a link.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Place {
    pub(super) state: AtomicU32,
    /// The link's descriptor, and that of its perf event, or -1.
    pub(super) link: AtomicI32,
    pub(super) event: AtomicI32,
    /// 1: nobody waits for its closing.
    pub(super) forgotten: AtomicU32,
    /// Which of the processes that close links is to close it.
    pub(super) share: AtomicU32,
    /// 1: it was closed because its time had come, and nobody had asked for that.
    pub(super) overdue: AtomicU32,
    /// When it is to be closed, CLOCK_MONOTONIC nanoseconds; 0: at once.
    pub(super) deadline_ns: AtomicU64,
}

/// A probe that is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// A perf event's (`true`), or a multi link.
    pub(super) is_perf: bool,
    /// A raw tracepoint's, neither of them.
    pub(super) is_tracepoint: bool,
    pub(super) program: i32,
    /// The attach type of a multi link, or the number of the PMU.
    pub(super) kind: u32,
    /// 0: all processes.
    pub(super) pid: u32,
    pub(super) flags: u32,
    pub(super) returns: bool,
    pub(super) probes: usize,
    pub(super) has_cookies: bool,
    pub(super) deadline_ns: u64,
    pub(super) path: [u8; MOST_PATH],
    pub(super) offsets: [u64; MOST_PROBES],
    pub(super) cookies: [u64; MOST_PROBES],
}

/// What is shared.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Page {
    /// Leakscope needs the keeper no more.
    pub(super) is_over: AtomicU32,
    /// Counts what was closed: whoever waits for that waits here (futex(2)).
    pub(super) closings: AtomicU32,
    /// Processor time that the keeper has taken, nanoseconds.
    pub(super) spent_ns: AtomicU64,
    /// How far the request is: whoever waits for the answer waits here.
    pub(super) request: AtomicU32,
    /// Who does it.
    pub(super) maker: AtomicI32,
    /// The answer: an error number, or 0 and a place.
    pub(super) error: AtomicI32,
    pub(super) answer: AtomicU32,
    /// Places at and behind this one were never used.
    pub(super) used: AtomicU32,
    /// Counts the processes that close links: each has a number of its own.
    pub(super) shares: AtomicU32,
    asked: UnsafeCell<Asked>,
    pub(super) places: [Place; MOST_LINKS],
}

impl Page {
    /// The request, for whose turn it is.
    ///
    /// # Safety
    /// Of the two processes and their threads only one may do so at a time: leakscope under its lock while `request` is `NONE` or
    /// `ANSWERED`, whoever makes the link while it is not.
    #[allow(clippy::mut_from_ref, reason = "the request says whose it is")]
    pub(super) unsafe fn asked(&self) -> &mut Asked {
        // SAFETY: the caller is the only one.
        unsafe { &mut *self.asked.get() }
    }

    /// The place of this number.
    pub(super) fn place(&self, number: u32) -> Option<&Place> {
        self.places.get(number as usize)
    }

    /// The places that are or were used.
    pub(super) fn used_places(&self) -> impl Iterator<Item = &Place> {
        self.places
            .iter()
            .take(self.used.load(Ordering::SeqCst) as usize)
    }
}

/// The page, mapped.
#[derive(Debug)]
pub(super) struct SharedPage(NonNull<Page>);

// SAFETY: all fields are atomic but the request, which [`Page::asked`] hands out under its conditions.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Maps an empty one, which children share.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a new mapping; nothing is there yet.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // All zeroes are a page without links and without a request.
        NonNull::new(mapped.cast::<Page>())
            .map(Self)
            .ok_or_else(io::Error::last_os_error)
    }
}

impl Deref for SharedPage {
    type Target = Page;

    fn deref(&self) -> &Page {
        // SAFETY: it is mapped for as long as this lives, at least as large, aligned to a page, and zeroes are valid in every field.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nobody refers to it any more.
        unsafe {
            libc::munmap(self.0.as_ptr().cast(), size_of::<Page>());
        }
    }
}

/// A time as the kernel takes it.
pub(super) fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(1),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// Waits until somebody calls [`wake`], or a word is not this any more, or so long.
pub(super) fn wait(word: &AtomicU32, value: u32, most: Duration) {
    let time = timespec(most);
    // SAFETY: futex(2) reads the word and the time, which outlive the call; the word is shared between processes, so not private.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            std::ptr::from_ref(&time),
        );
    }
}

/// Wakes whoever waits for a word.
pub(super) fn wake(word: &AtomicU32) {
    // SAFETY: futex(2) only takes the word's address.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}
