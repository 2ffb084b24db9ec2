//! The spans of Go's heap (src/runtime/mheap.go, mcentral.go, mgcsweep.go): runs of pages that hold blocks of one size. What the last
//! collection found in use of each size is counted, and whether a single block was, by the bits that its sweep left. Read while the
//! program runs; what is torn is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    bytes::{half, word},
    pieces::Pieces,
    program::Places,
    version::SpanLayout,
};
use crate::heap::Memory;

/// `pageShift`, `heapArenaBytes` and `arenaBaseOffset` of linux/amd64 (src/runtime/malloc.go).
const PAGE: u64 = 8192;
const ARENA: u64 = 64 << 20;
const ARENA_BASE: u64 = 0xffff_8000_0000_0000;
/// `arenaL2Bits` there.
const ARENAS: u64 = 1 << 22;

/// Places in `mspan`: `startAddr`, `npages`.
const START: usize = 24;
const PAGES: usize = 32;
/// From `mspan.sweepgen` on: `allocCount`, `spanclass`, `state`, `elemsize`.
const ALLOCATED: usize = 8;
const CLASS: usize = 10;
const STATE: usize = 11;
const BLOCK_BYTES: usize = 16;
/// Bytes of it that are read.
const SPAN: usize = 120;
/// `mSpanInUse`.
const IN_USE: u8 = 1;

/// Spans that are looked at: at 8 KiB each, 8 GiB of the smallest.
const MOST_SPANS: u64 = 1 << 20;
/// No span holds more blocks.
const MOST_BLOCKS: u64 = PAGE;

/// What is counted together: blocks of one size, with pointers or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockKind {
    /// Bytes that the runtime takes for one.
    pub bytes: u64,
    /// It holds no pointers.
    pub is_plain: bool,
}

/// The blocks of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCount {
    /// In use, as of the last collection.
    pub live: u64,
    /// Allocated since.
    pub born: u64,
}

/// The heap as of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanCounts {
    /// `mheap.sweepgen`: two more with each collection.
    pub generation: u32,
    /// What there is.
    pub kinds: BTreeMap<BlockKind, BlockCount>,
    /// Bytes of the pages of all spans in use.
    pub span_bytes: u64,
    /// There were more spans than are looked at.
    pub is_cut: bool,
}

/// A block by the span that it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockPlace {
    /// Where it begins.
    pub start: u64,
    /// What it is.
    pub kind: BlockKind,
    /// It has a span of its own.
    pub is_large: bool,
    /// Where its span's `mspan` lies, and the span.
    span: u64,
    span_start: u64,
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockFate {
    /// The last collection found it in use.
    Marked,
    /// The last collection did not: it was freed, or was allocated since.
    Unmarked,
    /// Its span is no more.
    Gone,
    /// Its span was not swept since the last collection.
    Unswept,
}

/// A span as read.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    pages: u64,
    blocks: u64,
    allocated: u64,
    bits: u64,
    generation: u32,
    is_in_use: bool,
    is_large: bool,
    kind: BlockKind,
}

impl Span {
    /// What stands at an address; `None` where that cannot be a span's.
    fn read(pieces: &Pieces<'_>, address: u64, layout: &SpanLayout) -> Option<Self> {
        let bytes = pieces.read(address, SPAN)?;
        let at = layout.generation;
        let blocks = if layout.wide_blocks {
            word(&bytes, layout.blocks)?
        } else {
            u64::from(half(&bytes, layout.blocks)? & 0xffff)
        };
        let of_class = *bytes.get(at.checked_add(CLASS)?)?;
        let span = Self {
            start: word(&bytes, START)?,
            pages: word(&bytes, PAGES)?,
            blocks,
            allocated: u64::from(half(&bytes, at.checked_add(ALLOCATED)?)? & 0xffff),
            bits: word(&bytes, layout.bits)?,
            generation: half(&bytes, at)?,
            is_in_use: *bytes.get(at.checked_add(STATE)?)? == IN_USE,
            // Of size class 0.
            is_large: of_class < 2,
            kind: BlockKind {
                bytes: word(&bytes, at.checked_add(BLOCK_BYTES)?)?,
                is_plain: of_class & 1 != 0,
            },
        };
        if !span.is_in_use {
            return Some(span);
        }
        let is_sane = span.start != 0
            && span.start.is_multiple_of(PAGE)
            && span.pages > 0
            && (1..=MOST_BLOCKS).contains(&span.blocks)
            && span.kind.bytes > 0
            && span.allocated <= span.blocks
            && span.kind.bytes.checked_mul(span.blocks)? <= span.pages.checked_mul(PAGE)?;
        is_sane.then_some(span)
    }

    /// Whether it was swept since a collection: also where a processor has it in its cache, which is so after that.
    fn is_swept(&self, generation: u32) -> bool {
        self.generation == generation || self.generation == generation.wrapping_add(3)
    }

    /// The bits of its blocks.
    fn bits(&self, pieces: &Pieces<'_>) -> Option<Vec<u8>> {
        pieces.read(self.bits, usize::try_from(self.blocks.div_ceil(8)).ok()?)
    }

    /// Blocks whose bits are set.
    fn marked(&self, bits: &[u8]) -> u64 {
        let last = u32::try_from(self.blocks % 8).unwrap_or(0);
        let count = bits.len();
        bits.iter()
            .zip(1..)
            .map(|(byte, place)| {
                let within = if place == count && last != 0 {
                    byte & !(u8::MAX << last)
                } else {
                    *byte
                };
                u64::from(within.count_ones())
            })
            .sum()
    }
}

impl Places {
    /// Counts the blocks of the heap as of the last collection; `None` where they are being swept, or what is there is no heap.
    #[must_use]
    pub fn span_counts(&self, memory: &dyn Memory, bias: u64) -> Option<SpanCounts> {
        let (heap, generation) = self.heap(memory, bias)?;
        let list = heap.checked_add(self.layout.spans.all as u64)?;
        let (first, count) = (memory.word(list)?, memory.word(list.checked_add(8)?)?);
        let read = count.min(MOST_SPANS);
        let pieces = Pieces::new(memory);
        let mut counts = SpanCounts {
            generation,
            is_cut: count > read,
            ..SpanCounts::default()
        };
        let places = pieces.read(first, usize::try_from(read.checked_mul(8)?).ok()?)?;
        let (places, _) = places.as_chunks::<8>();
        for place in places {
            let Some(span) = Span::read(&pieces, u64::from_le_bytes(*place), &self.layout.spans)
            else {
                continue;
            };
            if !span.is_in_use {
                continue;
            }
            if !span.is_swept(generation) {
                return None;
            }
            let live = span.marked(&span.bits(&pieces)?);
            let of = counts.kinds.entry(span.kind).or_default();
            of.live = of.live.saturating_add(live);
            of.born = of.born.saturating_add(span.allocated.saturating_sub(live));
            let bytes = span.pages.saturating_mul(PAGE);
            counts.span_bytes = counts.span_bytes.saturating_add(bytes);
        }
        (self.generation_of(memory, heap)? == generation).then_some(counts)
    }

    /// How often the heap was collected: two more for each.
    #[must_use]
    pub fn generation(&self, memory: &dyn Memory, bias: u64) -> Option<u32> {
        self.heap(memory, bias).map(|(_, generation)| generation)
    }

    /// The blocks at some addresses, or of the spans that lie there (`is_span`); `None` for those that are none.
    #[must_use]
    pub fn blocks_at(
        &self,
        memory: &dyn Memory,
        bias: u64,
        addresses: impl Iterator<Item = (u64, bool)>,
    ) -> Vec<Option<BlockPlace>> {
        let heap = self.heap(memory, bias);
        let pieces = Pieces::new(memory);
        addresses
            .map(|(address, is_span)| {
                let (heap, _) = heap?;
                let (span, address) = if is_span {
                    (address, None)
                } else {
                    (self.span_of(&pieces, heap, address)?, Some(address))
                };
                self.block_in(&pieces, span, address)
            })
            .collect()
    }

    /// Where the `mspan` lies of the span that holds an address.
    fn span_of(&self, pieces: &Pieces<'_>, heap: u64, address: u64) -> Option<u64> {
        let layout = &self.layout.spans;
        let at = |address: u64, index: u64| {
            let place = address.checked_add(index.checked_mul(8)?)?;
            word(&pieces.read(place, 8)?, 0).filter(|it| *it != 0)
        };
        let index = address.wrapping_sub(ARENA_BASE) / ARENA;
        if index >= ARENAS {
            return None;
        }
        // The first level has one entry there.
        let arenas = at(heap.checked_add(layout.arenas as u64)?, 0)?;
        let arena = at(arenas, index)?;
        at(
            arena.checked_add(layout.of_arena)?,
            address / PAGE % (ARENA / PAGE),
        )
    }

    /// The block of a span at an address, or its first.
    fn block_in(
        &self,
        pieces: &Pieces<'_>,
        place: u64,
        address: Option<u64>,
    ) -> Option<BlockPlace> {
        let span = Span::read(pieces, place, &self.layout.spans).filter(|span| span.is_in_use)?;
        let number = address.map_or(Some(0), |address| {
            Some(address.checked_sub(span.start)? / span.kind.bytes)
        })?;
        (number < span.blocks).then_some(BlockPlace {
            start: span
                .start
                .checked_add(number.checked_mul(span.kind.bytes)?)?,
            kind: span.kind,
            is_large: span.is_large,
            span: place,
            span_start: span.start,
        })
    }

    /// What became of some blocks.
    #[must_use]
    pub fn fates(&self, memory: &dyn Memory, bias: u64, blocks: &[BlockPlace]) -> Vec<BlockFate> {
        let Some((_, generation)) = self.heap(memory, bias) else {
            return vec![BlockFate::Gone; blocks.len()];
        };
        let pieces = Pieces::new(memory);
        blocks
            .iter()
            .map(|block| self.fate(&pieces, generation, block))
            .collect()
    }

    fn fate(&self, pieces: &Pieces<'_>, generation: u32, block: &BlockPlace) -> BlockFate {
        let span = Span::read(pieces, block.span, &self.layout.spans).filter(|span| {
            span.is_in_use && span.start == block.span_start && span.kind == block.kind
        });
        let Some(span) = span else {
            return BlockFate::Gone;
        };
        if !span.is_swept(generation) {
            return BlockFate::Unswept;
        }
        let number = block.start.saturating_sub(span.start) / span.kind.bytes;
        let byte = span.bits(pieces).and_then(|bits| {
            let place = usize::try_from(number / 8).ok()?;
            bits.get(place).copied()
        });
        match byte {
            Some(byte) if (byte >> (number % 8)) & 1 != 0 => BlockFate::Marked,
            Some(_) => BlockFate::Unmarked,
            None => BlockFate::Gone,
        }
    }

    /// Where the heap's `mheap` lies, and how often it was collected.
    fn heap(&self, memory: &dyn Memory, bias: u64) -> Option<(u64, u32)> {
        self.heaps.iter().find_map(|heap| {
            let heap = heap.wrapping_add(bias);
            self.is_heap(memory, heap)
                .then(|| self.generation_of(memory, heap))?
                .map(|generation| (heap, generation))
        })
    }

    fn generation_of(&self, memory: &dyn Memory, heap: u64) -> Option<u32> {
        let at = heap.checked_add(self.layout.spans.heap_generation as u64)?;
        let mut bytes = [0; 4];
        (memory.read(at, &mut bytes) == bytes.len()).then(|| u32::from_le_bytes(bytes))
    }

    /// Whether there is a list of spans behind it, the first of which is one.
    fn is_heap(&self, memory: &dyn Memory, heap: u64) -> bool {
        let layout = &self.layout.spans;
        let found = heap.checked_add(layout.all as u64).and_then(|list| {
            let (first, count) = (memory.word(list)?, memory.word(list.checked_add(8)?)?);
            let capacity = memory.word(list.checked_add(16)?)?;
            let pieces = Pieces::new(memory);
            let span = Span::read(&pieces, memory.word(first)?, layout)?;
            Some(count > 0 && count <= capacity && capacity < MOST_SPANS * 8 && span.pages > 0)
        });
        found == Some(true)
    }
}
