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
    maps::{LIVE, lose},
};

/// What a look at a bucket found.
struct Seen {
    /// Slot of the key, or `BUCKET_SLOTS`.
    found: usize,
    /// A free slot, or `BUCKET_SLOTS`.
    free: usize,
    /// Number of slots in use.
    used: usize,
}

/// Looks at all slots of a bucket; they share a cache line.
#[inline(always)]
fn look(bucket: *mut Bucket, key: u64, incarnation: u32) -> Seen {
    let mut seen = Seen {
        found: BUCKET_SLOTS,
        free: BUCKET_SLOTS,
        used: 0,
    };
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        // SAFETY: `bucket` points to a map value and `slot` is inside its arrays.
        let there = unsafe { core::ptr::read_volatile(&raw const (*bucket).keys[slot]) };
        if there == 0 {
            seen.free = slot;
        } else {
            seen.used += 1;
            // SAFETY: as above.
            if there == key && unsafe { (*bucket).blocks[slot].incarnation } == incarnation {
                seen.found = slot;
            }
        }
        slot += 1;
    }
    seen
}

/// Claims a free slot of a bucket and fills it.
#[inline(always)]
fn put(bucket: *mut Bucket, slot: usize, key: u64, block: &Block) -> bool {
    let slot = slot & (BUCKET_SLOTS - 1);
    // SAFETY: `bucket` points to a map value and the masked `slot` is inside its arrays. The slot is ours from the claim
    // until the key is written, which happens after the block was.
    unsafe {
        if !atomic::replace(&raw mut (*bucket).keys[slot], 0, LIVE_CLAIMED) {
            return false;
        }
        (*bucket).blocks[slot] = *block;
        atomic::swap(&raw mut (*bucket).keys[slot], key);
    }
    true
}

/// Takes the block out of a slot.
#[inline(always)]
fn take(bucket: *mut Bucket, slot: usize) -> Block {
    let slot = slot & (BUCKET_SLOTS - 1);
    // SAFETY: `bucket` points to a map value and the masked `slot` is inside its arrays; the block is copied before
    // the slot is given back.
    unsafe {
        let block = (*bucket).blocks[slot];
        atomic::swap(&raw mut (*bucket).keys[slot], 0);
        block
    }
}

/// Stores a block. Returns the stale block that stood at the same address, if there was one.
#[inline(always)]
pub(crate) fn insert(settings: &Settings, address: u64, block: &Block) -> Option<Block> {
    let key = live_key(block.incarnation, address);
    let (first, second) = live_bucket_pair(key, settings.live_mask);
    let (Some(first), Some(second)) = (LIVE.get_ptr_mut(first), LIVE.get_ptr_mut(second)) else {
        lose(Loss::LiveTableFull);
        return None;
    };
    let in_first = look(first, key, block.incarnation);
    let in_second = look(second, key, block.incarnation);
    let stale = if in_first.found < BUCKET_SLOTS {
        Some(take(first, in_first.found))
    } else if in_second.found < BUCKET_SLOTS {
        Some(take(second, in_second.found))
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
    if near_seen.free < BUCKET_SLOTS && put(near, near_seen.free, key, block) {
        return stale;
    }
    if far_seen.free < BUCKET_SLOTS && put(far, far_seen.free, key, block) {
        return stale;
    }
    // Another CPU took the slot between the look and the claim: look once more.
    let again = look(near, key, block.incarnation);
    if again.free < BUCKET_SLOTS && put(near, again.free, key, block) {
        return stale;
    }
    let again = look(far, key, block.incarnation);
    if again.free < BUCKET_SLOTS && put(far, again.free, key, block) {
        return stale;
    }
    lose(Loss::LiveTableFull);
    stale
}

/// Takes a block out of the table.
#[inline(always)]
pub(crate) fn remove(settings: &Settings, incarnation: u32, address: u64) -> Option<Block> {
    let key = live_key(incarnation, address);
    let (first, second) = live_bucket_pair(key, settings.live_mask);
    let first = LIVE.get_ptr_mut(first)?;
    let seen = look(first, key, incarnation);
    if seen.found < BUCKET_SLOTS {
        return Some(take(first, seen.found));
    }
    let second = LIVE.get_ptr_mut(second)?;
    let seen = look(second, key, incarnation);
    if seen.found < BUCKET_SLOTS {
        return Some(take(second, seen.found));
    }
    None
}
