//! glibc's heap: where its arenas are, and a walk along their chunks. 64-bit, glibc 2.30 to 2.41; a heap of another form is
//! refused by what it contains, never guessed at.
//!
//! Layouts: `struct malloc_state` and `struct malloc_chunk` of glibc's `malloc/malloc.c`, `struct heap_info` of `malloc/arena.c`,
//! `struct tcache_perthread_struct` of `malloc/malloc.c`; none of the offsets used here has changed from 2.30 to 2.41.

mod free;

use std::ops::Range;

use super::{
    blocks::Segment,
    memory::{Memory, PAGE, Region, RegionKind, WORD, Window, each_word, region_of},
};
use free::{release_cache, release_fastbins};

/// The header of a chunk: `mchunk_prev_size` and `mchunk_size`.
const HEADER: u64 = 16;
/// `MINSIZE`.
const LEAST: u64 = 32;
/// Flags of `mchunk_size`: `PREV_INUSE`, `IS_MMAPPED`, `NON_MAIN_ARENA`.
const PREV_INUSE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const FLAGS: u64 = 7;

/// `struct malloc_state`: offsets of `top`, `bins`, `next`, `system_mem`, and its size.
const TOP: u64 = 96;
const BINS: u64 = 112;
/// `NBINS - 1`: bin 0 is not used.
const BIN_COUNT: u64 = 127;
const NEXT: u64 = 2160;
const SYSTEM_MEM: u64 = 2184;
const STATE_BYTES: u64 = 2200;
/// Of the bins of a real arena most are empty, and an empty one points to itself.
const EMPTY_BINS: u64 = 64;

/// `HEAP_MAX_SIZE`: heaps of arenas that are not the main one begin at multiples of it (without the `hugetlb` tunable).
const HEAP_BYTES: u64 = 64 << 20;
/// `struct heap_info`: offsets of `prev` and `size`.
const HEAP_PREV: u64 = 8;
const HEAP_SIZE: u64 = 16;
/// More arenas than `arena_max` allows on any machine (eight for each processor).
const MOST_ARENAS: usize = 1 << 16;
/// More heaps than an address space has room for.
const MOST_HEAPS: usize = 1 << 21;

/// `sizeof(tcache_perthread_struct)` as a chunk: 64 counts of two bytes and 64 heads (from 2.30 on).
const TCACHE_CHUNK: u64 = 0x290;

/// `DEFAULT_MMAP_THRESHOLD_MIN`: smaller blocks have a mapping of their own only where a program asks for it.
const LEAST_OWN: u64 = 128 << 10;

/// So many pages of a region may be looked at for the beginning of one: a second of work, for memory of 4 GiB.
const MOST_PAGES: u64 = 1 << 20;

/// A walk that meets something that is no chunk looks so far for the next one, bytes.
const SEARCH: u64 = 16 << 20;
/// So many chunks in a row are believed to be chunks.
const BELIEVED: usize = 24;
/// A header that changes under the reader is read again so often.
const TRIES: usize = 3;

/// What the walks of a process's glibc found.
#[derive(Debug, Default)]
pub(super) struct Heap {
    /// The blocks, by arena heap.
    pub(super) segments: Vec<Segment>,
    /// Bytes of free chunks: in bins, in fastbins and in threads' caches.
    pub(super) free_bytes: u64,
    /// In how many pieces.
    pub(super) free_pieces: u64,
    /// Bytes at the ends of the heaps (`top`), which could be given back.
    pub(super) top_bytes: u64,
    /// Bytes that were passed over, for no chunk was found in them: memory that changed while it was read.
    pub(super) torn_bytes: u64,
    /// Where they lie. There may be blocks among them, so that what they point to is held.
    pub(super) torn: Vec<Range<u64>>,
    /// How many arenas there are.
    pub(super) arenas: usize,
    /// The allocator's own books outside the blocks: what they point to is free, or the block beside it.
    pub(super) books: Vec<Range<u64>>,
    /// Whether the main thread's cache was recognised: else blocks in caches count as in use.
    pub(super) knows_caches: bool,
}

/// An arena: where its `struct malloc_state` is, and its heaps.
struct Arena {
    state: u64,
    heaps: Vec<ArenaHeap>,
}

/// A run of chunks.
struct ArenaHeap {
    /// The first chunk.
    first: u64,
    /// The first address behind the last chunk.
    end: u64,
    /// The chunk that is what is left at the end, where it lies in this heap.
    top: Option<u64>,
}

/// Finds and walks glibc's heaps. `None` where there is none: the process uses another allocator, or a version that is not known.
#[must_use]
pub(super) fn walk(memory: &dyn Memory, regions: &[Region]) -> Option<Heap> {
    let main = find_main_arena(memory, regions)?;
    let mut heap = Heap::default();
    let mut caches = Vec::new();
    let mut arenas = vec![main_heaps(memory, regions, main)];
    arenas.extend(thread_arenas(memory, main));
    heap.arenas = arenas.len();
    for arena in &arenas {
        heap.books.push(arena.state..arena.state + STATE_BYTES);
        for part in &arena.heaps {
            if let Some(segment) = walk_heap(memory, part, &mut heap, &mut caches) {
                heap.segments.push(segment);
            }
        }
    }
    heap.segments.sort_by_key(|segment| segment.range().start);
    for arena in &arenas {
        let (bytes, pieces) = release_fastbins(memory, arena.state, &mut heap.segments);
        heap.free_bytes += bytes;
        heap.free_pieces += pieces;
    }
    for cache in caches {
        if let Some((bytes, pieces)) = release_cache(memory, cache, &mut heap.segments) {
            heap.knows_caches = true;
            heap.free_bytes += bytes;
            heap.free_pieces += pieces;
        }
    }
    let mut own = Vec::new();
    for region in regions {
        if region.kind == RegionKind::Anonymous {
            own.extend(own_mappings(memory, region, &heap.segments));
        }
    }
    heap.segments.extend(own);
    Some(heap)
}

/// Looks in the data of all mapped files for the main arena: 127 bins of which most point to themselves, and fields that fit.
fn find_main_arena(memory: &dyn Memory, regions: &[Region]) -> Option<u64> {
    let candidates = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Data)
        .flat_map(|region| &region.present);
    for range in candidates {
        let mut found = None;
        let mut last = (0, 0);
        // The state whose bins the last pairs seen belong to: many of one row have one origin.
        let mut row = (0_u64, 0_u64);
        each_word(memory, range.clone(), |address, word| {
            let is_self = |word: u64, at: u64| word == at.wrapping_sub(HEADER);
            if found.is_none()
                && last.0 == address.wrapping_sub(WORD)
                && last.1 == word
                && is_self(word, last.0)
            {
                // Empty bins follow each other at distances of two words, with others between.
                if last.0.wrapping_sub(row.0) <= 2 * WORD * BIN_COUNT {
                    row.1 += 1;
                } else {
                    row = (last.0, 1);
                }
                if row.1 >= EMPTY_BINS {
                    found = Some(row.0);
                }
            }
            last = (address, word);
        });
        // The first empty bin may be any of the first ones.
        if let Some(first) = found {
            let state = (0..BIN_COUNT)
                .filter_map(|bin| first.checked_sub(BINS + bin * 2 * WORD))
                .find(|state| is_main_arena(memory, regions, *state));
            if state.is_some() {
                return state;
            }
        }
    }
    None
}

/// Whether the fields of a `struct malloc_state` fit each other and the process.
fn is_main_arena(memory: &dyn Memory, regions: &[Region], state: u64) -> bool {
    let field = |offset: u64| memory.word(state.checked_add(offset)?);
    let (Some(top), Some(next), Some(system), Some(most)) = (
        field(TOP),
        field(NEXT),
        field(SYSTEM_MEM),
        field(SYSTEM_MEM + WORD),
    ) else {
        return false;
    };
    let is_heap = |address: u64| {
        region_of(regions, address)
            .is_some_and(|region| matches!(region.kind, RegionKind::Brk | RegionKind::Anonymous))
            || is_grown_data_segment(regions, address)
    };
    let is_arena = next == state || next % HEAP_BYTES < PAGE && is_heap(next);
    // Bins other than the empty ones point into heaps.
    let bins_fit = (0..BIN_COUNT).all(|bin| {
        let at = state + BINS + bin * 2 * WORD;
        memory
            .word(at)
            .is_some_and(|word| word == at - HEADER || is_heap(word))
    });
    is_arena && bins_fit && is_heap(top) && system > 0 && most >= system
}

/// Whether an address lies where the data segment has grown to since the regions were listed. A process that allocates without end has always
/// done so.
fn is_grown_data_segment(regions: &[Region], address: u64) -> bool {
    let behind = regions.partition_point(|region| region.range.start <= address);
    behind
        .checked_sub(1)
        .and_then(|before| regions.get(before))
        .is_some_and(|region| region.kind == RegionKind::Brk)
}

/// The main arena's heaps: the data segment, and where that could not grow, mappings that end in `top`.
fn main_heaps(memory: &dyn Memory, regions: &[Region], state: u64) -> Arena {
    let top = memory.word(state.saturating_add(TOP)).unwrap_or(0);
    let heaps = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Brk)
        .map(|region| ArenaHeap {
            first: region.range.start.next_multiple_of(HEADER),
            end: region.range.end,
            top: region.range.contains(&top).then_some(top),
        })
        .collect();
    Arena { state, heaps }
}

/// The arenas behind the main one, which are linked in a ring, each with its heaps from the newest to the oldest.
fn thread_arenas(memory: &dyn Memory, main: u64) -> Vec<Arena> {
    let mut arenas = Vec::new();
    let mut state = main;
    for _ in 0..MOST_ARENAS {
        match memory.word(state.saturating_add(NEXT)) {
            Some(next) if next != main && next != 0 => state = next,
            _ => break,
        }
        // The state stands behind the first heap's `heap_info`.
        let header = state % HEAP_BYTES;
        let Some(top) = memory.word(state.saturating_add(TOP)) else {
            break;
        };
        if header >= PAGE {
            break;
        }
        let mut heaps = Vec::new();
        let mut heap = top - top % HEAP_BYTES;
        for _ in 0..MOST_HEAPS {
            let (Some(owner), Some(prev), Some(size)) = (
                memory.word(heap),
                memory.word(heap.saturating_add(HEAP_PREV)),
                memory.word(heap.saturating_add(HEAP_SIZE)),
            ) else {
                break;
            };
            if owner != state || size > HEAP_BYTES || size <= header {
                break;
            }
            let is_first = heap == state - header;
            let first = if is_first {
                state + STATE_BYTES
            } else {
                heap + header
            };
            heaps.push(ArenaHeap {
                first: first.next_multiple_of(HEADER),
                end: heap + size,
                top: (heap..heap + size).contains(&top).then_some(top),
            });
            if is_first || prev == 0 || prev % HEAP_BYTES != 0 {
                break;
            }
            heap = prev;
        }
        arenas.push(Arena { state, heaps });
    }
    arenas
}

/// The size in a chunk's header, if it can be one that ends by `end`.
fn size_of(word: u64, chunk: u64, end: u64) -> Option<u64> {
    let size = word & !FLAGS;
    let fits = chunk.checked_add(size).is_some_and(|next| next <= end);
    (size >= LEAST && size.is_multiple_of(HEADER) && word & IS_MMAPPED == 0 && fits).then_some(size)
}

/// Walks from chunk to chunk. A chunk is in use if its successor says so.
fn walk_heap(
    memory: &dyn Memory,
    part: &ArenaHeap,
    heap: &mut Heap,
    caches: &mut Vec<u64>,
) -> Option<Segment> {
    if part.first >= part.end {
        return None;
    }
    let mut segment = Segment::new(part.first..part.end, WORD);
    let mut window = Window::new(memory, part.first, part.end);
    let mut chunk = part.first;
    // The chunk before, of which is not known yet whether it is in use.
    let mut before: Option<(u64, u64)> = None;
    let mut settle = |before: Option<(u64, u64)>, is_used: bool, heap: &mut Heap| {
        let Some((start, size)) = before else { return };
        segment.begin(start + HEADER, is_used);
        if is_used {
            if size == TCACHE_CHUNK {
                caches.push(start + HEADER);
            }
        } else {
            heap.free_bytes += size;
            heap.free_pieces += 1;
        }
    };
    loop {
        if Some(chunk) == part.top || chunk + HEADER > part.end {
            let is_used = window
                .pair(chunk)
                .is_none_or(|(_, size)| size & PREV_INUSE != 0);
            settle(before, is_used, heap);
            settle(Some((chunk, part.end - chunk)), false, &mut Heap::default());
            heap.top_bytes += part.end - chunk;
            break;
        }
        let mut header = window.pair(chunk);
        for _ in 0..TRIES {
            if header.is_some_and(|(_, word)| size_of(word, chunk, part.end).is_some()) {
                break;
            }
            window.refresh(chunk);
            header = window.pair(chunk);
        }
        let word = header.map_or(0, |(_, word)| word);
        match size_of(word, chunk, part.end) {
            Some(size) => {
                settle(before, word & PREV_INUSE != 0, heap);
                before = Some((chunk, size));
                chunk += size;
            }
            // Two chunks of less than the least size end a heap that was left behind (`fencepost`).
            None if word & !FLAGS <= HEADER && part.top.is_none() => {
                settle(before, word & PREV_INUSE != 0, heap);
                settle(Some((chunk, part.end - chunk)), false, &mut Heap::default());
                break;
            }
            None => {
                // What stands before it is not known to be right either, but it was a chunk when it was read.
                settle(before, true, heap);
                before = None;
                // What follows belongs to no block.
                settle(Some((chunk, 0)), false, &mut Heap::default());
                let next = find_chunk(&mut window, chunk + HEADER, part.end);
                let torn = chunk..next.unwrap_or(part.end);
                heap.torn_bytes += torn.end - torn.start;
                heap.torn.push(torn);
                let Some(next) = next else { break };
                chunk = next;
            }
        }
    }
    Some(segment)
}

/// The next address from which [`BELIEVED`] chunks follow each other.
fn find_chunk(window: &mut Window<'_>, from: u64, end: u64) -> Option<u64> {
    let last = end.min(from.saturating_add(SEARCH));
    let mut start = from;
    while start + HEADER < last {
        let mut chunk = start;
        let mut seen = 0;
        while seen < BELIEVED {
            let Some(size) = window
                .pair(chunk)
                .and_then(|(_, word)| size_of(word, chunk, end))
            else {
                break;
            };
            // A free chunk's size stands at its end too.
            chunk += size;
            if let Some((previous, word)) = window.pair(chunk)
                && word & PREV_INUSE == 0
                && previous != size
            {
                break;
            }
            seen += 1;
        }
        if seen == BELIEVED {
            return Some(start);
        }
        start += HEADER;
    }
    None
}

/// Blocks above the threshold have a mapping of their own, behind a header that says so. Mappings that follow each other are one
/// region, and others (an arena of CPython's) may stand before them, so each page may be the first of one. `known` are in order.
fn own_mappings(memory: &dyn Memory, region: &Region, known: &[Segment]) -> Vec<Segment> {
    let mut found = Vec::new();
    // Where a mapping is known to begin, a header that fits is one; elsewhere it must be of a usual size as well.
    let mut least = PAGE;
    let mut start = 0;
    let mut looked_at = 0;
    for present in &region.present {
        if present.start > start {
            start = present.start;
            least = PAGE;
        }
        while start < present.end {
            let behind = known.partition_point(|segment| segment.range().end <= start);
            let next = known.get(behind).map(Segment::range);
            if let Some(next) = next.filter(|next| next.start <= start) {
                start = next.end.next_multiple_of(PAGE);
                least = PAGE;
                continue;
            }
            let end = region
                .range
                .end
                .min(next.map_or(u64::MAX, |next| next.start));
            let Some(size) = own_mapping(memory, start, end).filter(|size| *size >= least) else {
                looked_at += 1;
                start += PAGE;
                least = LEAST_OWN;
                if looked_at >= MOST_PAGES {
                    break;
                }
                continue;
            };
            let range: Range<u64> = start..start + size;
            let mut segment = Segment::new(range.clone(), 0);
            segment.begin(start + HEADER, true);
            found.push(segment);
            start = range.end;
            least = PAGE;
        }
    }
    found
}

/// The size of a chunk that has its own mapping, with its header.
fn own_mapping(memory: &dyn Memory, start: u64, end: u64) -> Option<u64> {
    if start >= end {
        return None;
    }
    let mut header = [0; HEADER as usize];
    if memory.read(start, &mut header) != header.len() {
        return None;
    }
    let (previous, word) = header.split_first_chunk::<8>()?;
    let previous = u64::from_le_bytes(*previous);
    let word = u64::from_le_bytes(*word.first_chunk()?);
    let size = word & !FLAGS;
    let fits = start.checked_add(size).is_some_and(|next| next <= end);
    (previous == 0 && word & FLAGS == IS_MMAPPED && size.is_multiple_of(PAGE) && size > 0 && fits)
        .then_some(size)
}
