//! The blocks of a heap: two bits for every 16 bytes of it, whether a block begins there and whether it is in use. That is all
//! that is kept of each, so that a heap of a gibibyte costs 16 MiB here. Knows no allocator.

use std::ops::Range;

use super::{bits::Bits, memory::Region};

/// The number of a block in use, counted from low to high addresses.
pub type BlockId = u32;

/// Blocks begin at multiples of so many bytes: `MALLOC_ALIGNMENT` of glibc's `malloc/malloc-alignment.h`, `ALIGNMENT` of CPython's
/// `Objects/obmalloc.c` (from 3.7 on).
pub(super) const GRAIN: u64 = 16;

/// Between two remembered starts, grains.
const STRIDE: usize = 1024;

/// A run of addresses that an allocator divides into blocks.
#[derive(Clone, Debug)]
pub struct Segment {
    range: Range<u64>,
    starts: Bits,
    used: Bits,
    /// Bytes at the end of each block that are not the program's.
    tail: u64,
    /// The last start at or before every [`STRIDE`] grains, so that a large block is found from its middle.
    marks: Vec<u32>,
    first: BlockId,
    count: u32,
}

impl Segment {
    /// A run of addresses without any block. `tail` bytes at the end of each block belong to the allocator.
    #[must_use]
    pub fn new(range: Range<u64>, tail: u64) -> Self {
        let grains = usize::try_from(range.end.saturating_sub(range.start) / GRAIN).unwrap_or(0);
        Self {
            range,
            starts: Bits::new(grains + 1),
            used: Bits::new(grains + 1),
            tail,
            marks: Vec::new(),
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
            self.starts.set(grain);
            if is_used {
                self.used.set(grain);
            }
        }
    }

    /// A block that was taken for one in use is free. Gives whether there is one of `length` bytes that was in use.
    pub fn release(&mut self, address: u64, length: u64) -> bool {
        let Some(grain) = self.grain(address).filter(|grain| self.used.has(*grain)) else {
            return false;
        };
        let is_it = self.length_at(grain) == length;
        if is_it {
            self.used.clear(grain);
        }
        is_it
    }

    /// Whether a block in use begins there.
    pub(super) fn is_used(&self, address: u64) -> bool {
        self.grain(address)
            .is_some_and(|grain| self.starts.has(grain) && self.used.has(grain))
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// From a start to the next.
    fn length_at(&self, grain: usize) -> u64 {
        let last = usize::try_from((self.range.end - self.range.start) / GRAIN).unwrap_or(0);
        let mut next = grain + 1;
        while next < last && !self.starts.has(next) {
            next += 1;
        }
        (next - grain) as u64 * GRAIN
    }

    fn settle(&mut self, first: BlockId) -> u32 {
        self.first = first;
        self.count = self.used.count();
        let grains = usize::try_from((self.range.end - self.range.start) / GRAIN).unwrap_or(0);
        self.marks = vec![0; grains / STRIDE + 1];
        let mut last = 0_u32;
        let mut starts = self.starts.iter().peekable();
        for (number, mark) in self.marks.iter_mut().enumerate() {
            while let Some(start) = starts.next_if(|start| *start <= number * STRIDE) {
                last = u32::try_from(start).unwrap_or(u32::MAX);
            }
            *mark = last;
        }
        self.count
    }

    /// The blocks in use: number, first address, bytes that the program may use.
    pub(super) fn used_blocks(&self) -> impl Iterator<Item = (BlockId, u64, u64)> + '_ {
        let end = usize::try_from((self.range.end - self.range.start) / GRAIN).unwrap_or(0);
        let mut starts = self.starts.iter().peekable();
        let mut number = self.first;
        std::iter::from_fn(move || {
            loop {
                let start = starts.next()?;
                if start >= end {
                    return None;
                }
                if !self.used.has(start) {
                    continue;
                }
                let next = starts.peek().copied().unwrap_or(end);
                let id = number;
                number += 1;
                let length = ((next - start) as u64 * GRAIN).saturating_sub(self.tail);
                return Some((id, self.range.start + start as u64 * GRAIN, length));
            }
        })
    }

    /// The block in use that an address of the segment lies in, and how far in it.
    fn find(&self, address: u64) -> Option<(BlockId, u64)> {
        let grain = usize::try_from((address - self.range.start) / GRAIN).ok()?;
        let near = STRIDE / 64;
        let start = match self.starts.last_at_or_before(grain, near) {
            Some(start) => start,
            None => usize::try_from(*self.marks.get(grain / STRIDE)?).ok()?,
        };
        if !self.used.has(start) {
            return None;
        }
        // The last bytes are the header of the next block.
        let distance = address - self.range.start - start as u64 * GRAIN;
        if self.tail > 0 && distance % GRAIN >= GRAIN - self.tail {
            let next = grain + 1;
            if self.starts.has(next) || next as u64 * GRAIN >= self.range.end - self.range.start {
                return None;
            }
        }
        Some((self.first + self.used.rank(start), distance))
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
        let mut count = 0_u32;
        for segment in &mut kept {
            count = count.saturating_add(segment.settle(count));
        }
        Self {
            low: kept.first().map_or(u64::MAX, |first| first.range.start),
            high: kept.last().map_or(0, |last| last.range.end),
            segments: kept,
            count,
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
        let grain = segment.used.select(block.checked_sub(segment.first)?)?;
        Some(segment.range.start + grain as u64 * GRAIN)
    }

    /// Every block in use: number, first address, bytes that the program may use.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, u64, u64)> + '_ {
        self.segments.iter().flat_map(Segment::used_blocks)
    }
}
