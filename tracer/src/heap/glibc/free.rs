//! glibc's lists of free blocks that their chunks take for blocks in use: fastbins, and threads' caches. What is on them is free.

use super::{HEADER, LEAST};
use crate::heap::{
    blocks::Segment,
    memory::{Memory, WORD},
};

/// `fastbinsY` in `struct malloc_state`: its offset, and how many there are.
const FASTBINS: u64 = 16;
const FASTBIN_COUNT: u64 = 10;

/// `struct tcache_perthread_struct`: 64 counts of two bytes and 64 heads (from 2.30 on).
const TCACHE_BINS: usize = 64;
const TCACHE_COUNTS: usize = 2 * TCACHE_BINS;
/// `MAX_TCACHE_COUNT`.
const MOST_IN_TCACHE_BIN: u16 = u16::MAX;

/// The segment that an address lies in; they are in order.
fn segment_of(segments: &mut [Segment], address: u64) -> Option<&mut Segment> {
    let behind = segments.partition_point(|segment| segment.range().end <= address);
    segments
        .get_mut(behind)
        .filter(|segment| segment.range().contains(&address))
}

/// Follows a list of free blocks, each of `size` bytes with its header, and takes them for free. Links are written as they are, or,
/// since 2.32, combined with the address where they stand (`PROTECT_PTR`).
fn release_list(
    memory: &dyn Memory,
    head: u64,
    size: u64,
    most: u64,
    link_to: impl Fn(u64) -> u64,
    segments: &mut [Segment],
) -> u64 {
    let mut block = head;
    let mut count = 0;
    while count < most
        && block != 0
        && segment_of(segments, block).is_some_and(|segment| segment.release(block, size))
    {
        count += 1;
        let Some(word) = memory.word(block) else {
            break;
        };
        let plain = link_to(word);
        let hidden = link_to(word ^ (block >> 12));
        let is_block = |address: u64, segments: &mut [Segment]| {
            address.is_multiple_of(HEADER) && segment_of(segments, address).is_some()
        };
        block = if word == 0 || is_block(plain, segments) {
            plain
        } else if is_block(hidden, segments) {
            hidden
        } else {
            0
        };
    }
    count
}

/// Takes the blocks in an arena's fastbins for free. Gives their bytes and number.
pub(super) fn release_fastbins(
    memory: &dyn Memory,
    state: u64,
    segments: &mut [Segment],
) -> (u64, u64) {
    let (mut bytes, mut pieces) = (0, 0);
    for bin in 0..FASTBIN_COUNT {
        let size = LEAST + bin * HEADER;
        let Some(head) = memory.word(state + FASTBINS + bin * WORD) else {
            continue;
        };
        if head == 0 {
            continue;
        }
        // Fastbins link chunks, not blocks.
        let to_block = |link: u64| {
            if link == 0 {
                0
            } else {
                link.wrapping_add(HEADER)
            }
        };
        let count = release_list(memory, to_block(head), size, u64::MAX, to_block, segments);
        bytes += count * size;
        pieces += count;
    }
    (bytes, pieces)
}

/// Takes the blocks in a thread's cache for free, if this block is one: each count has a list, and each list leads to blocks of its
/// size. Gives their bytes and number.
pub(super) fn release_cache(
    memory: &dyn Memory,
    block: u64,
    segments: &mut [Segment],
) -> Option<(u64, u64)> {
    let mut bytes = [0; TCACHE_COUNTS + TCACHE_BINS * WORD as usize];
    if memory.read(block, &mut bytes) != bytes.len() {
        return None;
    }
    let (counts, heads) = bytes.split_at_checked(TCACHE_COUNTS)?;
    let bins: Vec<(u16, u64)> = counts
        .chunks_exact(2)
        .zip(heads.chunks_exact(WORD as usize))
        .filter_map(|(count, head)| {
            Some((
                u16::from_le_bytes(count.try_into().ok()?),
                u64::from_le_bytes(head.try_into().ok()?),
            ))
        })
        .collect();
    let fits = bins.iter().all(|(count, head)| {
        (*count == 0) == (*head == 0) && *count < MOST_IN_TCACHE_BIN && head.is_multiple_of(HEADER)
    });
    if !fits {
        return None;
    }
    let (mut bytes, mut pieces) = (0, 0);
    for (size, (count, head)) in (0..)
        .map(|bin: u64| LEAST + bin * HEADER)
        .zip(bins)
        .filter(|(_, (count, _))| *count > 0)
    {
        let released = release_list(memory, head, size, u64::from(count), |link| link, segments);
        bytes += released * size;
        pieces += released;
    }
    Some((bytes, pieces))
}
