//! glibc's lists of free blocks that their chunks take for blocks in use: fastbins, and threads' caches. What is on them is free.

use std::ops::RangeInclusive;

use super::{FLAGS, HEADER, LEAST};
use crate::heap::{
    blocks::Segment,
    memory::{Memory, WORD},
};

/// `NFASTBINS`.
const FASTBIN_COUNT: u64 = 10;

/// Bins of `struct tcache_perthread_struct` for one size each (`TCACHE_MAX_BINS` until 2.41, then `TCACHE_SMALL_BINS`).
const SMALL_BINS: usize = 64;
/// Since 2.42, behind them, bins for a range of sizes, each twice as large as the one before (`TCACHE_LARGE_BINS`); and the least size of the
/// first range (`large_csize2tidx`): 1 KiB, of which the part up to 1,039 bytes has bins of its own.
const LARGE_BINS: usize = 12;
const LARGE_FROM: u64 = 1 << 10;

/// A cache's chunk may be larger than it by what is too small to be a chunk.
const REMAINDER: u64 = 16;
/// No number in a cache is larger (`MAX_TCACHE_COUNT`).
const MOST_IN_BIN: u16 = u16::MAX;

/// How some versions lay out a thread's cache: numbers of two bytes, and as many heads of lists.
#[derive(Clone, Copy, Debug)]
struct CacheForm {
    bins: usize,
    /// The numbers say how many blocks there still is room for, not how many there are.
    is_room: bool,
}

/// 2.30 to 2.41, and from 2.42 on.
const CACHE_FORMS: [CacheForm; 2] = [
    CacheForm {
        bins: SMALL_BINS,
        is_room: false,
    },
    CacheForm {
        bins: SMALL_BINS + LARGE_BINS,
        is_room: true,
    },
];

impl CacheForm {
    /// `sizeof (struct tcache_perthread_struct)`.
    fn bytes(self) -> usize {
        self.bins * (2 + WORD as usize)
    }

    /// The one whose cache a chunk of this size may be.
    fn of_chunk(size: u64) -> Option<Self> {
        CACHE_FORMS.into_iter().find(|form| {
            let least = (form.bytes() as u64 + WORD).next_multiple_of(HEADER);
            (least..=least + REMAINDER).contains(&size)
        })
    }

    /// Each bin's head and how many blocks it has; `None` where this is no cache.
    fn bins(self, bytes: &[u8]) -> Option<Vec<(u64, u16)>> {
        let (numbers, heads) = bytes.split_at_checked(self.bins * 2)?;
        let bins: Option<Vec<(u64, u16)>> = heads
            .chunks_exact(WORD as usize)
            .zip(numbers.chunks_exact(2))
            .map(|(head, number)| {
                let head = u64::from_le_bytes(head.try_into().ok()?);
                Some((head, u16::from_le_bytes(number.try_into().ok()?)))
            })
            .collect();
        let mut bins = bins?;
        if self.is_room {
            // All bins have the same room (`tcache_count`), and at least one is empty: the large ones are, if nobody asks for them.
            let room = bins.iter().map(|(_, number)| *number).max()?;
            if room == 0 {
                return None;
            }
            for (_, number) in &mut bins {
                *number = room - *number;
            }
        }
        bins.iter()
            .all(|(head, count)| {
                (*count == 0) == (*head == 0) && *count < MOST_IN_BIN && head.is_multiple_of(HEADER)
            })
            .then_some(bins)
    }
}

/// Whether a chunk of this size may be a thread's cache.
pub(super) fn may_be_cache(size: u64) -> bool {
    CacheForm::of_chunk(size).is_some()
}

/// The sizes of blocks of a bin, with their headers.
fn sizes_of(bin: usize) -> RangeInclusive<u64> {
    match bin.checked_sub(SMALL_BINS) {
        None => {
            let size = LEAST + bin as u64 * HEADER;
            size..=size
        }
        Some(large) => {
            let least = LARGE_FROM << large.min(LARGE_BINS);
            least..=2 * least - 1
        }
    }
}

/// The segment that an address lies in; they are in order.
fn segment_of(segments: &mut [Segment], address: u64) -> Option<&mut Segment> {
    let behind = segments.partition_point(|segment| segment.range().end <= address);
    segments
        .get_mut(behind)
        .filter(|segment| segment.range().contains(&address))
}

/// Follows a list of free blocks, each of one of these sizes with its header, and takes them for free. Gives their bytes and number. Links
/// are written as they are, or, since 2.32, combined with the address where they stand (`PROTECT_PTR`).
fn release_list(
    memory: &dyn Memory,
    head: u64,
    sizes: &RangeInclusive<u64>,
    most: u64,
    link_to: impl Fn(u64) -> u64,
    segments: &mut [Segment],
) -> (u64, u64) {
    let mut block = head;
    let (mut bytes, mut count) = (0, 0);
    while count < most && block != 0 {
        // Where there is one size, the header need not be read.
        let size = if sizes.start() == sizes.end() {
            Some(*sizes.start())
        } else {
            let header = block.checked_sub(WORD).and_then(|at| memory.word(at));
            header
                .map(|header| header & !FLAGS)
                .filter(|size| sizes.contains(size))
        };
        let is_released = |size: &u64| {
            segment_of(segments, block).is_some_and(|segment| segment.release(block, *size))
        };
        let Some(size) = size.filter(is_released) else {
            break;
        };
        bytes += size;
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
    (bytes, count)
}

/// Takes the blocks in an arena's fastbins for free. Gives their bytes and number.
pub(super) fn release_fastbins(
    memory: &dyn Memory,
    fastbins: u64,
    segments: &mut [Segment],
) -> (u64, u64) {
    let (mut bytes, mut pieces) = (0, 0);
    for bin in 0..FASTBIN_COUNT {
        let size = LEAST + bin * HEADER;
        let Some(head) = memory.word(fastbins.saturating_add(bin * WORD)) else {
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
        let sizes = size..=size;
        let (freed, count) =
            release_list(memory, to_block(head), &sizes, u64::MAX, to_block, segments);
        bytes += freed;
        pieces += count;
    }
    (bytes, pieces)
}

/// Takes the blocks in a thread's cache for free, if this block in a chunk of `chunk` bytes is one: each number has a list, and each list
/// leads to blocks of its sizes. Gives their bytes and number.
pub(super) fn release_cache(
    memory: &dyn Memory,
    block: u64,
    chunk: u64,
    segments: &mut [Segment],
) -> Option<(u64, u64)> {
    let form = CacheForm::of_chunk(chunk)?;
    let mut bytes = vec![0; form.bytes()];
    if memory.read(block, &mut bytes) != bytes.len() {
        return None;
    }
    let (mut freed, mut pieces) = (0, 0);
    for (bin, (head, count)) in form.bins(&bytes)?.into_iter().enumerate() {
        let (sizes, most) = (sizes_of(bin), u64::from(count));
        let (bytes, count) = release_list(memory, head, &sizes, most, |link| link, segments);
        freed += bytes;
        pieces += count;
    }
    Some((freed, pieces))
}
