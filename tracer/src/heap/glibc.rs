//! glibc's heap: where its arenas are, and a walk along their chunks. 64-bit, the forms of [`GLIBC_VERSIONS`]; a heap of another form
//! is refused by what it contains, never guessed at.
//!
//! Layouts: `struct malloc_chunk` of glibc's `malloc/malloc.c`, `struct heap_info` of `malloc/arena.c`; what differs between versions
//! is told by [`Form`].

mod form;
mod free;
mod own;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::{
    blocks::Segment,
    memory::{Memory, PAGE, Region, RegionKind, WORD, Window, each_word, region_of},
};
pub use form::GLIBC_VERSIONS;
use form::{BIN_COUNT, FORMS, Form};
use free::{may_be_cache, release_cache, release_fastbins};
use own::own_mappings;

/// The header of a chunk: `mchunk_prev_size` and `mchunk_size`.
const HEADER: u64 = 16;
/// `MINSIZE`.
const LEAST: u64 = 32;
/// Flags of `mchunk_size`: `PREV_INUSE`, `IS_MMAPPED`, `NON_MAIN_ARENA`.
const PREV_INUSE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const FLAGS: u64 = 7;

/// Of the bins of a real arena some are empty, and an empty one points to itself: a heap with free blocks of a thousand sizes has few of them.
const EMPTY_BINS: u64 = 8;

/// `HEAP_MAX_SIZE`: heaps of arenas that are not the main one begin at multiples of it (without the `hugetlb` tunable).
const HEAP_BYTES: u64 = 64 << 20;
/// `struct heap_info`: offsets of `prev` and `size`.
const HEAP_PREV: u64 = 8;
const HEAP_SIZE: u64 = 16;
/// More arenas than `arena_max` allows on any machine (eight for each processor).
const MOST_ARENAS: usize = 1 << 16;
/// More heaps than an address space has room for.
const MOST_HEAPS: usize = 1 << 21;

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
    let (form, main) = find_main_arena(memory, regions)?;
    let mut heap = Heap::default();
    let mut caches = Vec::new();
    let mut arenas = vec![main_heaps(memory, regions, form, main)];
    arenas.extend(thread_arenas(memory, form, main));
    heap.arenas = arenas.len();
    for arena in &arenas {
        heap.books
            .push(arena.state..arena.state + form.state_bytes());
        for part in &arena.heaps {
            if let Some(segment) = walk_heap(memory, part, &mut heap, &mut caches) {
                heap.segments.push(segment);
            }
        }
    }
    heap.segments.sort_by_key(|segment| segment.range().start);
    // Blocks with a mapping of their own may be in a cache, too.
    let mut own = Vec::new();
    for region in regions {
        if region.kind == RegionKind::Anonymous {
            own.extend(own_mappings(memory, form, region, &heap.segments));
        }
    }
    heap.segments.extend(own);
    heap.segments.sort_by_key(|segment| segment.range().start);
    for at in arenas.iter().filter_map(|arena| form.fastbins(arena.state)) {
        let (bytes, pieces) = release_fastbins(memory, at, &mut heap.segments);
        heap.free_bytes += bytes;
        heap.free_pieces += pieces;
    }
    for (cache, chunk) in caches {
        if let Some((bytes, pieces)) = release_cache(memory, cache, chunk, &mut heap.segments) {
            heap.knows_caches = true;
            heap.free_bytes += bytes;
            heap.free_pieces += pieces;
        }
    }
    // Where nothing is free, nothing was ever freed.
    heap.knows_caches |= form.caches_with_first_free() && heap.free_pieces == 0;
    Some(heap)
}

/// Looks in the data of all mapped files for the main arena: 127 bins of which some point to themselves, and fields that fit.
fn find_main_arena(memory: &dyn Memory, regions: &[Region]) -> Option<(&'static Form, u64)> {
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
            let main = FORMS
                .iter()
                .flat_map(|form| (0..BIN_COUNT).map(move |bin| (form, bin)))
                .filter_map(|(form, bin)| Some((form, first.checked_sub(form.bin(bin))?)))
                .find(|(form, state)| is_main_arena(memory, regions, form, *state));
            if main.is_some() {
                return main;
            }
        }
    }
    None
}

/// Whether the fields of a `struct malloc_state` of a form fit each other and the process. The forms' fields are at the same distances from
/// the bins: it is the ring of all arenas, which leads back to where the state begins, that tells them apart.
fn is_main_arena(memory: &dyn Memory, regions: &[Region], form: &Form, state: u64) -> bool {
    let field = |offset: u64| memory.word(state.checked_add(offset)?);
    let (Some(top), Some(system), Some(most)) = (
        field(form.top()),
        field(form.system_mem()),
        field(form.system_mem() + WORD),
    ) else {
        return false;
    };
    let kind_at = |address: u64| region_of(regions, address).map(|region| region.kind);
    let is_data_segment = |address: u64| {
        kind_at(address) == Some(RegionKind::Brk) || is_grown_data_segment(regions, address)
    };
    let is_heap =
        |address: u64| kind_at(address) == Some(RegionKind::Anonymous) || is_data_segment(address);
    // Bins other than the empty ones point into heaps.
    let bins_fit = (0..BIN_COUNT).all(|bin| {
        let at = state + form.bin(bin);
        memory
            .word(at)
            .is_some_and(|word| word == at - HEADER || is_heap(word))
    });
    let leads_back = || {
        let mut at = state;
        (0..MOST_ARENAS)
            .map_while(|_| {
                at = memory.word(at.checked_add(form.next())?)?;
                (at == state || at % HEAP_BYTES < PAGE && is_heap(at)).then_some(at)
            })
            .any(|at| at == state)
    };
    // With the tunable `hugetlb` it ends in a mapping, and where the others are is not known.
    bins_fit && is_data_segment(top) && system > 0 && most >= system && leads_back()
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

/// The main arena's heap: the data segment.
fn main_heaps(memory: &dyn Memory, regions: &[Region], form: &Form, state: u64) -> Arena {
    let top = memory.word(state.saturating_add(form.top())).unwrap_or(0);
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
fn thread_arenas(memory: &dyn Memory, form: &Form, main: u64) -> Vec<Arena> {
    let mut arenas = Vec::new();
    let mut state = main;
    for _ in 0..MOST_ARENAS {
        match memory.word(state.saturating_add(form.next())) {
            Some(next) if next != main && next != 0 => state = next,
            _ => break,
        }
        // The state stands behind the first heap's `heap_info`.
        let header = state % HEAP_BYTES;
        let Some(top) = memory.word(state.saturating_add(form.top())) else {
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
                state + form.state_bytes()
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
    caches: &mut Vec<(u64, u64)>,
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
            if may_be_cache(size) {
                caches.push((start + HEADER, size));
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
