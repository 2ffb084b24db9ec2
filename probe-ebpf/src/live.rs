//! The live table: surviving blocks in buckets of eight, claimed and given back by compare-and-exchange.
//!
//! Operations on one key never race with each other: an address is allocated once until it is freed, and a free is
//! seen before the allocator can hand the address out again. Operations on different keys meet only in the claim of
//! a slot.

use leakscope_common::{
    BUCKET_SLOTS, Block, Bucket, LIVE_CLAIMED, Loss, Settings, live_bucket_pair, live_key,
    thin_keeps,
};

use crate::{
    atomic,
    bounds::hide,
    maps::{LIVE, lose},
};

/// "No such slot."
const NONE: u64 = BUCKET_SLOTS as u64;

/// What a look at a bucket found.
struct Seen {
    /// Slot of the key, or [`NONE`].
    found: u64,
    /// A free slot, or [`NONE`].
    free: u64,
    /// Number of slots in use.
    used: u64,
}

/// 1 for anything but 0, without a branch.
#[inline(always)]
fn nonzero(value: u64) -> u64 {
    hide((value | hide(value.wrapping_neg())) >> 63)
}

/// The slot that a key takes where it can: most frees then find their block at the first look.
#[inline(always)]
fn preferred(key: u64) -> u64 {
    // Blocks are aligned to 16 bytes, so that neighbours differ from bit 4 on.
    (key >> 4) & (BUCKET_SLOTS as u64 - 1)
}

/// The key in a slot.
#[inline(always)]
fn key_in(bucket: *mut Bucket, slot: u64) -> u64 {
    // Hidden, or the compiler drops the mask where it knows the range, and the verifier does not.
    let slot = hide(slot) as usize & (BUCKET_SLOTS - 1);
    // SAFETY: `bucket` points to a map value and the masked `slot` is inside its arrays.
    unsafe { core::ptr::read_volatile(&raw const (*bucket).keys[slot]) }
}

/// Looks at all slots of a bucket; they share a cache line. Without branches: with them the verifier would follow
/// 3^8 paths. But for one: in a table that is far from full most buckets are empty. And with a bit for each slot, not masks of all ones or
/// none: where such a mask meets an AND, newer kernels follow both ways (kernel/bpf/verifier.c, `maybe_fork_scalars`).
#[inline(always)]
fn look(bucket: *mut Bucket, key: u64) -> Seen {
    let mut any = 0;
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        // SAFETY: `bucket` points to a map value and `slot` is inside its arrays.
        any |= unsafe { core::ptr::read_volatile(&raw const (*bucket).keys[slot]) };
        slot += 1;
    }
    if any == 0 {
        return Seen {
            found: NONE,
            free: preferred(key),
            used: 0,
        };
    }
    look_closely(bucket, key)
}

/// Looks at each slot of a bucket.
#[inline(always)]
fn look_closely(bucket: *mut Bucket, key: u64) -> Seen {
    let (mut in_use, mut others) = (0, 0);
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        // SAFETY: `bucket` points to a map value and `slot` is inside its arrays.
        let there = unsafe { core::ptr::read_volatile(&raw const (*bucket).keys[slot]) };
        in_use |= nonzero(there) << slot;
        others |= nonzero(there ^ key) << slot;
        slot += 1;
    }
    Seen {
        found: first_of(!others & ALL_SLOTS),
        free: first_of(!in_use & ALL_SLOTS),
        used: count(in_use),
    }
}

/// A bit for each slot.
const ALL_SLOTS: u64 = (1 << BUCKET_SLOTS) - 1;

/// Places of a bit in a byte, a byte for each, in the order that [`SPREAD`] gives them.
const PLACES: u64 = 0x0506_0307_0402_0100;
/// Its products with the eight powers of two of a byte differ in bits 5 to 7.
const SPREAD: u64 = 0x17;

/// The lowest of eight bits, or [`NONE`].
#[inline(always)]
fn first_of(bits: u64) -> u64 {
    let lowest = bits & hide(bits.wrapping_neg());
    let place = (PLACES >> ((((lowest * SPREAD) >> 5) & 7) * 8)) & 7;
    place | ((nonzero(bits) ^ 1) * NONE)
}

/// Of eight bits, how many are set: neighbours added, then pairs, then the halves.
#[inline(always)]
fn count(bits: u64) -> u64 {
    let pairs = bits - ((bits >> 1) & 0x55);
    let halves = (pairs & 0x33) + ((pairs >> 2) & 0x33);
    (halves + (halves >> 4)) & 0xf
}

/// Claims a free slot of a bucket and fills it.
#[inline(always)]
fn put(bucket: *mut Bucket, slot: u64, key: u64, block: &Block) -> bool {
    // Hidden, or the compiler drops the mask where it knows the range, and the verifier does not.
    let slot = hide(slot) as usize & (BUCKET_SLOTS - 1);
    // SAFETY: `bucket` points to a map value and the masked `slot` is inside its arrays. The slot is ours from the claim
    // until the key is written, which happens after the block was.
    unsafe {
        if !atomic::replace(&raw mut (*bucket).keys[slot], 0, LIVE_CLAIMED) {
            return false;
        }
        (*bucket).blocks[slot] = *block;
        // A plain store: x86 keeps stores in order, so that who sees the key sees the block.
        core::ptr::write_volatile(&raw mut (*bucket).keys[slot], key);
    }
    true
}

/// Takes the block out of a slot; nothing, if it belongs to an incarnation whose number differs only in the bits that the key
/// leaves out. The slot remembers the key until it is used again: see [`is_first_free`].
#[inline(always)]
fn take(bucket: *mut Bucket, slot: u64, key: u64, incarnation: u32) -> Option<Block> {
    // Hidden, or the compiler drops the mask where it knows the range, and the verifier does not.
    let slot = hide(slot) as usize & (BUCKET_SLOTS - 1);
    // SAFETY: `bucket` points to a map value and the masked `slot` is inside its arrays; the block is copied before
    // the slot is given back, and written to in between only while nobody takes it for a block.
    unsafe {
        let block = (*bucket).blocks[slot];
        if block.incarnation != incarnation {
            return None;
        }
        // Plain stores: x86 keeps them in order, and does not move them before the loads above.
        core::ptr::write_volatile(&raw mut (*bucket).keys[slot], LIVE_CLAIMED);
        core::ptr::write_volatile(&raw mut (*bucket).blocks[slot].size, key);
        core::ptr::write_volatile(&raw mut (*bucket).keys[slot], 0);
        Some(block)
    }
}

/// Stores a block in the buckets of a mask, the same as for every thread of its process. Returns the stale block that stood at the same address, if there was one.
#[inline(always)]
pub(crate) fn insert(
    settings: &Settings,
    live_mask: u32,
    address: u64,
    block: &Block,
) -> Option<Block> {
    let key = live_key(block.incarnation, address);
    let (first, second) = live_bucket_pair(key, live_mask);
    let (Some(first), Some(second)) = (LIVE.get_ptr_mut(first), LIVE.get_ptr_mut(second)) else {
        lose(Loss::LiveTableFull);
        return None;
    };
    let in_first = look(first, key);
    let in_second = look(second, key);
    let stale = if in_first.found < NONE {
        take(first, in_first.found, key, block.incarnation)
    } else if in_second.found < NONE {
        take(second, in_second.found, key, block.incarnation)
    } else {
        None
    };
    if !thin_keeps(key, settings.thin_shift) {
        return stale;
    }
    // The emptier bucket first: two choices keep the fullest bucket near the average (Azar et al. 1994).
    let (near, near_seen, far, far_seen) = if in_first.used <= in_second.used {
        (first, &in_first, second, &in_second)
    } else {
        (second, &in_second, first, &in_first)
    };
    if near_seen.free < NONE && put(near, near_seen.free, key, block) {
        return stale;
    }
    if far_seen.free < NONE && put(far, far_seen.free, key, block) {
        return stale;
    }
    // Another CPU took the slot between the look and the claim: look once more.
    let again = look(near, key);
    if again.free < NONE && put(near, again.free, key, block) {
        return stale;
    }
    let again = look(far, key);
    if again.free < NONE && put(far, again.free, key, block) {
        return stale;
    }
    lose(Loss::LiveTableFull);
    stale
}

/// Takes a block out of the table.
#[inline(always)]
pub(crate) fn remove(live_mask: u32, incarnation: u32, address: u64) -> Option<Block> {
    let key = live_key(incarnation, address);
    let (first, second) = live_bucket_pair(key, live_mask);
    let first = LIVE.get_ptr_mut(first)?;
    let slot = preferred(key);
    if key_in(first, slot) == key {
        return take(first, slot, key, incarnation);
    }
    let seen = look(first, key);
    if seen.found < NONE {
        return take(first, seen.found, key, incarnation);
    }
    let second = LIVE.get_ptr_mut(second)?;
    let seen = look(second, key);
    if seen.found < NONE {
        return take(second, seen.found, key, incarnation);
    }
    None
}

/// Of a bucket's free slots: whether one remembers the key, and one of them, or [`NONE`]. Without branches, as [`look`].
#[inline(always)]
fn remembers(bucket: *mut Bucket, key: u64, incarnation: u32) -> (u64, u64) {
    let (mut is_known, mut in_use) = (0, 0);
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        // SAFETY: `bucket` points to a map value and `slot` is inside its arrays.
        let (there, size, of) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*bucket).keys[slot]),
                core::ptr::read_volatile(&raw const (*bucket).blocks[slot].size),
                core::ptr::read_volatile(&raw const (*bucket).blocks[slot].incarnation),
            )
        };
        is_known |= 1 ^ nonzero(there | (size ^ key) | u64::from(of ^ incarnation));
        in_use |= nonzero(there) << slot;
        slot += 1;
    }
    (is_known, first_of(!in_use & ALL_SLOTS))
}

/// Notes that a block was freed that the table does not hold. Whether it can be one from before the trace: at most once for each
/// address, and not where a block of the trace lay. An allocator frees blocks that it took without a call, such as what it keeps for each
/// thread (glibc's `tcache_thread_shutdown`, malloc/malloc.c), again and again at the same addresses, and together with it blocks that
/// the program has freed before.
///
/// Free slots remember: the key of the block that was taken out of them, or one that is put here. What was forgotten, since other blocks
/// took the slot, is not known better than before.
#[inline(always)]
pub(crate) fn is_first_free(live_mask: u32, incarnation: u32, address: u64) -> bool {
    let key = live_key(incarnation, address);
    let (first, second) = live_bucket_pair(key, live_mask);
    let (Some(first), Some(second)) = (LIVE.get_ptr_mut(first), LIVE.get_ptr_mut(second)) else {
        return true;
    };
    let (in_first, free_first) = remembers(first, key, incarnation);
    let (in_second, free_second) = remembers(second, key, incarnation);
    if in_first | in_second != 0 {
        return false;
    }
    let (bucket, free) = if free_first < NONE {
        (first, free_first)
    } else {
        (second, free_second)
    };
    if free < NONE {
        let slot = hide(free) as usize & (BUCKET_SLOTS - 1);
        // SAFETY: `bucket` points to a map value and the masked `slot` is inside its arrays. The slot is ours from the claim until
        // the key is written.
        unsafe {
            if atomic::replace(&raw mut (*bucket).keys[slot], 0, LIVE_CLAIMED) {
                (*bucket).blocks[slot] = Block {
                    size: key,
                    born_ns: 0,
                    site: 0,
                    incarnation,
                };
                // A plain store: x86 keeps stores in order.
                core::ptr::write_volatile(&raw mut (*bucket).keys[slot], 0);
            }
        }
    }
    true
}
