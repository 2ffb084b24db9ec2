//! The blocks of a heap: two bits for every 16 bytes of it, whether a block begins there and whether it is in use. That is all
//! that is kept of each, so that with the counts beside them a heap of a gibibyte costs 24 MiB here. Knows no allocator.

use std::ops::Range;

use super::{cells::Cells, memory::Region};

/// The number of a block in use, counted from low to high addresses.
pub type BlockId = u32;

/// Blocks begin at multiples of so many bytes: `MALLOC_ALIGNMENT` of glibc's `malloc/malloc-alignment.h`, `ALIGNMENT` of CPython's
/// `Objects/obmalloc.c` (from 3.7 on).
pub(super) const GRAIN: u64 = 16;

/// A run of addresses that an allocator divides into blocks.
#[derive(Clone, Debug)]
pub struct Segment {
    range: Range<u64>,
    cells: Cells,
    /// Bytes at the end of each block that are not the program's.
    tail: u64,
    first: BlockId,
    count: u32,
}

impl Segment {
    /// A run of addresses without any block. `tail` bytes at the end of each block belong to the allocator.
    #[must_use]
    pub fn new(range: Range<u64>, tail: u64) -> Self {
        Self {
            range,
            cells: Cells::default(),
            tail,
            first: 0,
            count: 0,
        }
    }

    fn grain(&self, address: u64) -> Option<usize> {
        let distance = address.checked_sub(self.range.start)?;
        (address <= self.range.end && distance.is_multiple_of(GRAIN))
            .then(|| usize::try_from(distance / GRAIN).ok())
            .flatten()
    }

    /// A block begins here, which ends where the next begins.
    pub fn begin(&mut self, address: u64, is_used: bool) {
        if let Some(grain) = self.grain(address) {
            self.cells.start(grain);
            if is_used {
                self.cells.use_it(grain, true);
            }
        }
    }

    /// A block that was taken for one in use is free. Gives whether there is one of `length` bytes that was in use.
    pub fn release(&mut self, address: u64, length: u64) -> bool {
        let Some(grain) = self
            .grain(address)
            .filter(|grain| self.cells.is_used(*grain))
        else {
            return false;
        };
        let is_it = self.length_at(grain) == length;
        if is_it {
            self.cells.use_it(grain, false);
        }
        is_it
    }

    /// Whether a block in use begins there.
    pub(super) fn is_used(&self, address: u64) -> bool {
        self.grain(address)
            .is_some_and(|grain| self.cells.is_start(grain) && self.cells.is_used(grain))
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// Grains of it.
    fn grains(&self) -> usize {
        usize::try_from((self.range.end - self.range.start) / GRAIN).unwrap_or(0)
    }

    /// From a start to the next.
    fn length_at(&self, grain: usize) -> u64 {
        let end = self.grains();
        let next = self
            .cells
            .next_start(grain)
            .map_or(end, |next| next.min(end));
        (next - grain) as u64 * GRAIN
    }

    fn settle(&mut self, first: BlockId) -> u32 {
        self.first = first;
        self.count = self.cells.count();
        self.count
    }

    /// The blocks in use: number, first address, bytes that the program may use.
    pub(super) fn used_blocks(&self) -> impl Iterator<Item = (BlockId, u64, u64)> + '_ {
        let end = self.grains();
        let mut starts = self.cells.iter().peekable();
        let mut number = self.first;
        std::iter::from_fn(move || {
            loop {
                let (start, is_used) = starts.next()?;
                if start >= end {
                    return None;
                }
                if !is_used {
                    continue;
                }
                let next = starts.peek().map_or(end, |(next, _)| *next);
                let id = number;
                number += 1;
                let length = ((next - start) as u64 * GRAIN).saturating_sub(self.tail);
                return Some((id, self.range.start + start as u64 * GRAIN, length));
            }
        })
    }

    /// The block in use that an address of the segment lies in, and how far in it.
    #[inline]
    fn find(&self, address: u64) -> Option<(BlockId, u64)> {
        let distance = address - self.range.start;
        let grain = usize::try_from(distance / GRAIN).ok()?;
        let (start, number) = self.cells.find(grain)?;
        // The last bytes are the header of the next block.
        if self.tail > 0
            && distance % GRAIN >= GRAIN - self.tail
            && (self.cells.is_start(grain + 1) || grain + 1 >= self.grains())
        {
            return None;
        }
        Some((self.first + number, distance - start as u64 * GRAIN))
    }
}

/// The blocks of all segments, numbered.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    segments: Vec<Segment>,
    count: u32,
    low: u64,
    high: u64,
}

impl Blocks {
    /// Numbers the blocks in use of some segments. Of segments that overlap the first stays.
    #[must_use]
    pub fn new(mut segments: Vec<Segment>) -> Self {
        segments.sort_by_key(|segment| segment.range.start);
        let mut kept: Vec<Segment> = Vec::with_capacity(segments.len());
        for segment in segments {
            let is_behind = kept
                .last()
                .is_none_or(|last| last.range.end <= segment.range.start);
            if is_behind && segment.range.start < segment.range.end {
                kept.push(segment);
            }
        }
        let mut blocks = Self {
            low: kept.first().map_or(u64::MAX, |first| first.range.start),
            high: kept.last().map_or(0, |last| last.range.end),
            segments: kept,
            count: 0,
        };
        blocks.settle();
        blocks
    }

    /// Takes out those of some blocks that are in use and have still these lengths: first address and bytes that the program may use,
    /// by address. The blocks that stay and those that are taken out have numbers of their own.
    #[must_use]
    pub(super) fn take(&mut self, wanted: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut taken = self.clone();
        for segment in &mut taken.segments {
            segment.cells.use_none();
        }
        let mut place = 0;
        for (address, length) in wanted {
            while self
                .segments
                .get(place)
                .is_some_and(|segment| segment.range.end <= address)
            {
                place += 1;
            }
            let (Some(from), Some(to)) =
                (self.segments.get_mut(place), taken.segments.get_mut(place))
            else {
                break;
            };
            if from.release(address, length.saturating_add(from.tail))
                && let Some(grain) = to.grain(address)
            {
                to.cells.use_it(grain, true);
            }
        }
        self.settle();
        taken.settle();
        taken
    }

    fn settle(&mut self) {
        self.count = 0;
        for segment in &mut self.segments {
            self.count = self.count.saturating_add(segment.settle(self.count));
        }
    }

    /// How many blocks are in use.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The runs of addresses that blocks lie in, in order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of the segments that are in memory or swapped out.
    #[must_use]
    pub fn present_bytes(&self, regions: &[Region]) -> u64 {
        let mut sum = 0_u64;
        for present in regions.iter().flat_map(|region| &region.present) {
            let first = self
                .segments
                .partition_point(|segment| segment.range.end <= present.start);
            for segment in self.segments.get(first..).unwrap_or_default() {
                let (start, end) = (segment.range.start, segment.range.end);
                if start >= present.end {
                    break;
                }
                sum = sum.saturating_add(end.min(present.end) - start.max(present.start));
            }
        }
        sum
    }

    /// The block in use that an address lies in, and how far in it, bytes.
    #[inline]
    #[must_use]
    pub fn find(&self, address: u64) -> Option<(BlockId, u64)> {
        if address < self.low || address >= self.high {
            return None;
        }
        let behind = self
            .segments
            .partition_point(|segment| segment.range.start <= address);
        let segment = self.segments.get(behind.checked_sub(1)?)?;
        (address < segment.range.end)
            .then(|| segment.find(address))
            .flatten()
    }

    /// A block's first address.
    #[must_use]
    pub fn address(&self, block: BlockId) -> Option<u64> {
        let behind = self
            .segments
            .partition_point(|segment| segment.first <= block);
        // Segments without blocks share the number of their successor.
        let segment = self
            .segments
            .get(..behind)?
            .iter()
            .rev()
            .find(|segment| segment.count > 0)?;
        let grain = segment.cells.select(block.checked_sub(segment.first)?)?;
        Some(segment.range.start + grain as u64 * GRAIN)
    }

    /// Every block in use: number, first address, bytes that the program may use.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, u64, u64)> + '_ {
        self.segments.iter().flat_map(Segment::used_blocks)
    }
}
