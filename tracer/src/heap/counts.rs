//! How many blocks in use there are of each size, which is what growth is counted by: a walk along glibc's chunks, without types and pointers. Of a
//! running heap a walk can tear; then it is taken up where chunks follow each other again, and says how much it passed over.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::{
    blocks::Segment,
    glibc,
    jemalloc::jemalloc_counts,
    memory::{Memory, Region},
    mimalloc::mimalloc_counts,
};

/// Bytes of a chunk that are not the program's: its size (`struct malloc_chunk`); until 2.42, of one with its own mapping one word more.
const SIZE_WORD: u64 = 8;
/// `MALLOC_ALIGNMENT`.
const GRAIN: u64 = 16;

/// Blocks of chunks that are smaller than this are counted at once, in a table: nearly all are.
const SMALL: u64 = 64 << 10;

/// Allocators whose blocks can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocator {
    /// The C library's.
    Glibc,
    /// jemalloc 5.0 to 5.3.
    Jemalloc,
    /// mimalloc 2.0.
    Mimalloc,
}

/// Counts the blocks of an allocator, and looks which of some `blocks`, by address in order, are in use. `None` where nothing of it is found.
#[must_use]
pub fn counts_of(
    allocator: Allocator,
    memory: &dyn Memory,
    regions: &[Region],
    blocks: &[u64],
) -> Option<Counts> {
    match allocator {
        Allocator::Glibc => counts(memory, regions, blocks),
        Allocator::Jemalloc => jemalloc_counts(memory, regions, blocks),
        Allocator::Mimalloc => mimalloc_counts(memory, regions, blocks),
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Blocks in use by the bytes of their chunks, the smallest first.
    pub sizes: Vec<(u64, u64)>,
    /// Bytes of these chunks.
    pub bytes: u64,
    /// Bytes that were passed over, for they changed while they were read: what lies there is not counted.
    pub torn_bytes: u64,
    /// Of the blocks that were asked for, those that are not in use, in order: free, or no blocks any more. A block that was freed between free ones keeps
    /// its contents and all that stands around it.
    pub gone: Vec<u64>,
    /// Of these, where no header says so, the bytes that the allocator takes for each, in order of their addresses.
    pub taken: Vec<(u64, u64)>,
}

impl Counts {
    /// The share of the heap that was not counted.
    #[must_use]
    pub fn torn_share(&self) -> f64 {
        self.torn_bytes as f64 / self.bytes.saturating_add(self.torn_bytes).max(1) as f64
    }
}

/// Those of some blocks, by address in order, that lie in a range.
pub(super) fn within(range: &Range<u64>, blocks: &[u64]) -> impl Iterator<Item = u64> {
    let from = blocks.partition_point(|block| *block < range.start);
    let end = range.end;
    let behind = blocks.get(from..).unwrap_or_default();
    behind.iter().copied().take_while(move |block| *block < end)
}

/// Counts, and looks which of some `blocks`, by address, are in use. `None` where glibc's heap is not found.
#[must_use]
pub(super) fn counts(memory: &dyn Memory, regions: &[Region], blocks: &[u64]) -> Option<Counts> {
    let heap = glibc::walk(memory, regions)?;
    let mut small = vec![0_u64; (SMALL / GRAIN) as usize];
    let mut large: BTreeMap<u64, u64> = BTreeMap::new();
    for (.., length) in heap.segments.iter().flat_map(Segment::used_blocks) {
        let chunk = length.saturating_add(SIZE_WORD).next_multiple_of(GRAIN);
        match small.get_mut((chunk / GRAIN) as usize) {
            Some(count) => *count += 1,
            None => *large.entry(chunk).or_default() += 1,
        }
    }
    let small = (0..)
        .map(|place| place * GRAIN)
        .zip(small)
        .filter(|(_, count)| *count > 0);
    let sizes: Vec<(u64, u64)> = small.chain(large).collect();
    let is_torn = |block: u64| heap.torn.iter().any(|torn| torn.contains(&block));
    let gone = blocks
        .iter()
        .copied()
        .filter(|block| {
            let within = |segment: &&Segment| segment.range().contains(block);
            // What lies in no heap may be a mapping of its own, or be gone with one.
            let segment = heap.segments.iter().find(within);
            segment.is_some_and(|segment| !segment.is_used(*block)) && !is_torn(*block)
        })
        .collect();
    Some(Counts {
        bytes: sizes
            .iter()
            .map(|(size, count)| size.saturating_mul(*count))
            .fold(0, u64::saturating_add),
        sizes,
        torn_bytes: heap.torn_bytes,
        gone,
        taken: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Counts, counts};
    use crate::heap::testing::{HEAP, MadeUp};

    fn of(heap: &MadeUp, chunk: u64) -> u64 {
        counts(&heap.image, &heap.regions(), &[])
            .unwrap_or_default()
            .sizes
            .into_iter()
            .find(|(size, _)| *size == chunk)
            .map_or(0, |(_, count)| count)
    }

    #[test]
    fn blocks_are_counted_by_the_size_of_their_chunks_and_free_ones_are_not() {
        let mut heap = MadeUp::new();
        for _ in 0..5 {
            heap.used(0x40);
            heap.used(0x50);
        }
        heap.free(0x40);
        let cached = [heap.used(0x50), heap.used(0x50)];
        heap.used(0x20);
        heap.cache(0x50, &cached);
        assert_eq!(of(&heap, 0x40), 5);
        assert_eq!(of(&heap, 0x50), 5);
        assert_eq!(of(&heap, 0x20), 1);
    }

    #[test]
    fn a_walk_that_tore_is_taken_up_again_and_says_what_it_passed_over() {
        let mut heap = MadeUp::new();
        for _ in 0..20 {
            heap.used(0x40);
        }
        let torn = heap.used(0x40);
        for _ in 0..40 {
            heap.used(0x60);
        }
        heap.image.put(torn - 8, 0x1234_5678_9abc);
        let found = counts(&heap.image, &heap.regions(), &[]).unwrap_or_default();
        assert_eq!(of(&heap, 0x40), 20);
        assert!(of(&heap, 0x60) >= 38);
        assert!((0x40..=0x100).contains(&found.torn_bytes), "{found:?}");
        assert!(found.torn_share() > 0.0 && HEAP > 0);
        assert!(Counts::default().torn_share().abs() < f64::EPSILON);
    }

    #[test]
    fn a_block_freed_between_free_ones_looked_as_if_it_were_there() {
        let mut heap = MadeUp::new();
        let kept = heap.used(0x40);
        // Three blocks of before, as one free chunk: the second's header and contents stand where they stood.
        let first = heap.free(0xc0);
        let second = first + 0x40;
        heap.image.put(second - 8, 0x41);
        let cached = heap.used(0x50);
        heap.used(0x20);
        heap.cache(0x50, &[cached]);
        let asked = [kept, first, second, cached, 0x1000];
        let found = counts(&heap.image, &heap.regions(), &asked).unwrap_or_default();
        assert_eq!(found.gone, [first, second, cached]);
    }
}
