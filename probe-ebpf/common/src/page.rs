//! What the probe tells of page faults, and which pages it tells of.

use crate::layout::layout;
use crate::site::thin_keeps;

/// Bytes of a page (`PAGE_SIZE`, arch/x86/include/asm/page_types.h).
pub const PAGE_BYTES: u64 = 4096;

/// The largest shift of [`page_is_sampled`]: one page of 1,024.
pub const MAX_PAGE_SHIFT: u32 = 10;

/// Whether the faults on the page at an address are told of when those of one of `2^shift` pages are. The choice is the page's, not the
/// fault's: of a page that was told of once, every later fault is told of too, so that it is known when it was given back and touched
/// anew. A page chosen at some shift is chosen at every smaller one.
#[inline(always)]
#[must_use]
pub const fn page_is_sampled(address: u64, shift: u32) -> bool {
    thin_keeps(address & !(PAGE_BYTES - 1), shift)
}

/// The page was there when it was written to, and might not be: the kernel may make a copy of it.
pub const FAULT_ON_PRESENT: u32 = 1;

/// The address is that of the `mspan` of a block that has one of its own. The cookie of such probes.
pub const GO_SPAN: u32 = 2;

/// A write to a page that faulted, in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FaultRecord {
    /// [`crate::EventKind::PageFault`].
    pub kind: u32,
    /// Thread group id, in the kernel's initial PID namespace.
    pub tgid: u32,
    /// The process incarnation.
    pub incarnation: u32,
    /// The stack's site.
    pub site: u32,
    /// The faults of one of `2^shift` pages were told of.
    pub shift: u32,
    /// [`FAULT_ON_PRESENT`] or 0; of a block of Go [`GO_SPAN`] or 0.
    pub marks: u32,
    /// The address that was written to, or of the block.
    pub address: u64,
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
}

layout! {
    FaultRecord = 4 * 6 + 8 * 2;
}

#[cfg(test)]
mod tests {
    use super::{MAX_PAGE_SHIFT, PAGE_BYTES, page_is_sampled};

    #[test]
    fn pages_are_chosen_evenly_whole_and_nested() {
        let total = 1_u64 << 18;
        for shift in 0..=MAX_PAGE_SHIFT {
            let mut chosen = 0_u64;
            for page in 0..total {
                let address = 0x7f12_3400_0000 + page * PAGE_BYTES;
                let is_sampled = page_is_sampled(address, shift);
                chosen += u64::from(is_sampled);
                assert_eq!(is_sampled, page_is_sampled(address + 4095, shift));
                assert!(!is_sampled || shift == 0 || page_is_sampled(address, shift - 1));
            }
            let expected = total >> shift;
            // Five standard deviations.
            assert!(
                chosen.abs_diff(expected).pow(2) <= 25 * expected,
                "{shift}: {chosen} {expected}"
            );
        }
    }
}
