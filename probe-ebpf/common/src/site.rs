//! Sites (distinct stacks) and the live table (surviving blocks): layouts, and the hashing that both sides share.
//!
//! Both tables are plain arrays that user space maps into its memory, with slots claimed by compare-and-exchange:
//! an insertion and a removal cost a cache line each, and a report reads them without a system call.

use crate::layout::layout;

/// Frames recorded of a stack; the kernel's own limit (`sysctl kernel.perf_event_max_stack`) is the same by default.
pub const MAX_FRAMES: usize = 127;

/// Room for frames in a record: a power of two, so that a masked index is always inside it.
pub const FRAME_SLOTS: usize = 128;

/// The site of blocks whose stack could not be stored. Slot 0 of the stack table is reserved for it.
pub const UNKNOWN_SITE: u32 = 0;

/// How many neighbouring slots of the stack table are tried for a stack.
pub const INTERN_PROBES: u32 = 16;

/// Copies of the totals, chosen by CPU, so that CPUs seldom write to the same cache line. The additions are atomic
/// all the same: a uprobe program may be preempted in the middle.
pub const TOTALS_STRIPES: u32 = 4;

/// The walk reached a true end.
pub const STACK_COMPLETE: u16 = 1;
/// The walk ended at [`MAX_FRAMES`].
pub const STACK_LIMIT: u16 = 2;
/// The walk ended at unreadable stack memory.
pub const STACK_FAULT: u16 = 4;
/// The walk ended at an address in no known mapping.
pub const STACK_UNKNOWN_MAPPING: u16 = 8;
/// The walk ended for want of a usable rule, or at a broken frame-pointer chain.
pub const STACK_NO_RULE: u16 = 16;

/// A stack as it crosses to user space, once: the header and `depth` frames, leaf first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// [`crate::EventKind::Stack`].
    pub kind: u32,
    /// Thread group id.
    pub tgid: u32,
    /// The process incarnation.
    pub incarnation: u32,
    /// The slot of the stack table.
    pub site: u32,
    /// Number of frames.
    pub depth: u16,
    /// `STACK_*` flags.
    pub flags: u16,
    /// The attach cookie's function and hit slot (see [`crate::ProbeCookie`]): which probe saw the stack first.
    pub cookie: u32,
    /// The probed function's address, then return addresses.
    pub frames: [u64; FRAME_SLOTS],
}

/// Bytes of a [`StackRecord`] before its frames.
pub const STACK_HEADER_BYTES: usize = 24;

/// A slot of the stack table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SiteKey {
    /// First hash of (incarnation, frames); 0: empty.
    pub tag: u64,
    /// Second, independent hash; 0 while the slot is being filled.
    pub check: u64,
    /// 1 once the frames were handed to user space.
    pub sent: u32,
    /// The process incarnation.
    pub incarnation: u32,
}

/// What was allocated and freed at a site, counted by the probe. One stripe of [`TOTALS_STRIPES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SiteTotals {
    /// Blocks allocated.
    pub alloc_objects: u64,
    /// Bytes allocated.
    pub alloc_bytes: u64,
    /// Blocks freed.
    pub free_objects: u64,
    /// Bytes freed.
    pub free_bytes: u64,
}

/// What is known of a live block, beside its key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Block {
    /// Bytes asked for.
    pub size: u64,
    /// When it was allocated, CLOCK_MONOTONIC nanoseconds. 0: in an earlier window; user space put it here to learn whether it is freed or its
    /// address given out again.
    pub born_ns: u64,
    /// The site.
    pub site: u32,
    /// The process incarnation.
    pub incarnation: u32,
}

/// Slots of a bucket: one cache line of keys.
pub const BUCKET_SLOTS: usize = 8;

/// Buckets that hold the blocks of incarnations that are seen in windows: all are looked through at each window's end, which is to take
/// less than a millisecond. 16,384: 4 MiB, room for some 65,000 blocks, while a window of the default budget sees some ten thousand calls.
pub const WINDOW_BUCKETS: u32 = 16_384;

/// A key that marks a slot as claimed and not yet filled.
pub const LIVE_CLAIMED: u64 = 1;

/// A bucket of the live table. A block may stand in either of two buckets (see [`live_bucket_pair`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Bucket {
    /// [`live_key`] of each slot; 0: empty; [`LIVE_CLAIMED`]: being filled.
    pub keys: [u64; BUCKET_SLOTS],
    /// The blocks.
    pub blocks: [Block; BUCKET_SLOTS],
}

/// The key of a block: its address with the incarnation's low 16 bits over the upper 16 (user addresses use 47 bits,
/// or 56 where a program asks for them; the block's own `incarnation` field completes the identity). Never 0 or
/// [`LIVE_CLAIMED`], for no allocator returns an address below 4,096.
#[inline(always)]
#[must_use]
pub const fn live_key(incarnation: u32, address: u64) -> u64 {
    address ^ ((incarnation as u64) << 48)
}

/// A 64-bit mixer (the finalizer of SplitMix64, Steele et al. 2014).
#[inline(always)]
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The two buckets in which a block with this key may stand. `mask` is the number of buckets less one.
#[inline(always)]
#[must_use]
pub const fn live_bucket_pair(key: u64, mask: u32) -> (u32, u32) {
    let hash = mix(key);
    ((hash as u32) & mask, ((hash >> 32) as u32) & mask)
}

/// Whether a block with this key is kept when one of `2^shift` (shift at most 10) is. Uses the hash's upper bits, which do not choose
/// the bucket; a key kept at some shift is kept at every smaller one.
#[inline(always)]
#[must_use]
pub const fn thin_keeps(key: u64, shift: u32) -> bool {
    mix(key) >> 54 < 1024 >> (shift & 15)
}

layout! {
    StackRecord = STACK_HEADER_BYTES + 8 * FRAME_SLOTS;
    SiteKey = 8 * 2 + 4 * 2;
    SiteTotals = 8 * 4;
    Block = 8 * 2 + 4 * 2;
    Bucket = BUCKET_SLOTS * (8 + core::mem::size_of::<Block>());
}

#[cfg(test)]
mod tests {
    use super::{live_bucket_pair, live_key, thin_keeps};

    #[test]
    fn thinning_keeps_the_stated_share_and_nests() {
        let total = 1_u64 << 18;
        for shift in 0..8 {
            let mut kept = 0_u64;
            for block in 0..total {
                let key = live_key(7, 0x5555_0000_0000 + block * 32);
                let keeps = thin_keeps(key, shift);
                kept += u64::from(keeps);
                assert!(!keeps || shift == 0 || thin_keeps(key, shift - 1));
            }
            let expected = total >> shift;
            assert!(kept.abs_diff(expected) * 10 < expected, "{kept} {expected}");
        }
    }

    #[test]
    fn buckets_spread_evenly() {
        let mut load = [0_u32; 1024];
        for block in 0..65_536_u64 {
            let (first, second) =
                live_bucket_pair(live_key(1, 0x7f00_0000_0000 + block * 16), 1023);
            load[first as usize] += 1;
            load[second as usize] += 1;
        }
        assert!(load.iter().all(|count| (64..192).contains(count)));
    }
}
