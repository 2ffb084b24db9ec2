//! Atomic operations on memory shared between CPUs and with user space.
//!
//! `core::sync::atomic` has no read-modify-write operations for the BPF targets, although the instruction set does
//! (BPF ISA, "Atomic operations"); the compiler's intrinsics do. All take pointers into map values.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

/// Adds to a counter.
///
/// # Safety
/// `target` must be a valid, 8-byte aligned pointer into a map value.
#[inline(always)]
pub(crate) unsafe fn add(target: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(target, value) };
}

/// Adds to a counter and returns what it was.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(target: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(target, value) }
}

/// Replaces `old` by `new`; tells whether it did.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn replace(target: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            target, old, new,
        )
        .1
    }
}

/// Stores a value after everything that was written before it, and returns what was there.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn swap(target: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(target, value) }
}
