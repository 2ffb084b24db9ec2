//! How many blocks of each size a heap holds, look by look. Pure; it knows neither sites nor how a heap is read.

use std::collections::{BTreeMap, BTreeSet};

/// Looks that are kept, the first and the last among them.
const MOST: usize = 32;

/// Between two looks that are kept there is at least this time, at first, nanoseconds.
const SPACING_NS: u64 = 1_000_000_000;

/// Chunks up to so many bytes are counted by their own size. Of larger ones an eighth of a power of two is one size: programs ask for few of them, by
/// lengths that hardly recur.
const EXACT: u64 = 64 << 10;

/// `MALLOC_ALIGNMENT` and `MINSIZE` of glibc's malloc (64 bits), and what its chunks take beside a block.
pub(super) const GRAIN: u64 = 16;
const SMALLEST: u64 = 32;
const OVERHEAD: u64 = 8;

/// The size classes of jemalloc (include/jemalloc/internal/sc.h, 5.2 to 5.3: `SC_LG_TINY_MIN`, `LG_QUANTUM`, `SC_NGROUP`) and of mimalloc
/// (src/page-queue.c, `mi_bin`): four to each power of two from here on, multiples of 16 below.
const FOURTHS_FROM: u64 = 128;

/// How an allocator rounds what is asked for up, of those whose blocks can be counted from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// Not known: its blocks are not counted.
    #[default]
    Unknown,
    /// glibc's chunks, which have a header.
    Glibc,
    /// jemalloc's size classes.
    Jemalloc,
    /// mimalloc's, which are the same.
    Mimalloc,
}

impl Rounding {
    /// The bytes that it takes for so many.
    pub(crate) fn taken_for(self, request: u64) -> u64 {
        match self {
            Self::Unknown => request,
            Self::Glibc => chunk_for(request),
            Self::Jemalloc | Self::Mimalloc => class_for(request),
        }
    }
}

/// The size class for so many bytes.
fn class_for(request: u64) -> u64 {
    match request {
        0..=8 => 8,
        9..=FOURTHS_FROM => request.next_multiple_of(GRAIN),
        _ => {
            let power = 1_u64 << (u64::BITS - 1 - (request - 1).leading_zeros());
            request
                .checked_next_multiple_of(power / 4)
                .unwrap_or(u64::MAX)
        }
    }
}

/// A size of blocks, by the bytes that the allocator takes for one: of the largest in its class.
pub type BlockSize = u64;

/// The chunk that glibc takes for so many bytes (`request2size`); where a remainder of less than 32 bytes would be left, the next larger.
#[must_use]
pub(super) fn chunk_for(request: u64) -> u64 {
    (request.saturating_add(OVERHEAD + GRAIN - 1) & !(GRAIN - 1)).max(SMALLEST)
}

/// The smallest chunk of a class: itself where each size is one.
pub(super) fn smallest_of(size: BlockSize) -> u64 {
    if size <= EXACT {
        return size;
    }
    // An eighth of the power of two below it.
    let step = 1_u64 << (u64::BITS - size.saturating_sub(1).leading_zeros()).saturating_sub(4);
    size.saturating_sub(step).max(EXACT)
}

/// The class of a chunk.
#[must_use]
pub(super) fn size_of(chunk: u64) -> BlockSize {
    if chunk <= EXACT {
        return chunk;
    }
    let step = 1_u64 << (u64::BITS - chunk.leading_zeros()).saturating_sub(4);
    chunk.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

/// A look: blocks in use by size.
#[derive(Clone, Debug, Default, PartialEq)]
struct SizeLook {
    at_ns: u64,
    counts: BTreeMap<BlockSize, u64>,
    /// Of all blocks.
    bytes: u64,
}

/// What looks have counted.
#[derive(Clone, Debug)]
pub struct SizeCounts {
    looks: Vec<SizeLook>,
    spacing_ns: u64,
    taken: u64,
}

impl Default for SizeCounts {
    fn default() -> Self {
        Self {
            looks: Vec::new(),
            spacing_ns: SPACING_NS,
            taken: 0,
        }
    }
}

impl SizeCounts {
    /// Takes a look in: blocks in use by the bytes of their chunks, as of a time (CLOCK_MONOTONIC nanoseconds).
    pub fn note(&mut self, at_ns: u64, sizes: impl IntoIterator<Item = (u64, u64)>) {
        if self.last_ns().is_some_and(|last| at_ns <= last) {
            return;
        }
        let mut counts: BTreeMap<BlockSize, u64> = BTreeMap::new();
        let mut bytes: u64 = 0;
        for (chunk, blocks) in sizes {
            bytes = bytes.saturating_add(chunk.saturating_mul(blocks));
            let count = counts.entry(size_of(chunk)).or_default();
            *count = count.saturating_add(blocks);
        }
        self.taken = self.taken.saturating_add(1);
        // The last is always kept, until there is one that is far enough from the one before it.
        let place = self.looks.len().saturating_sub(2);
        if let (Some(before), true) = (self.looks.get(place), self.looks.len() > 2)
            && self
                .last_ns()
                .is_some_and(|last| last < before.at_ns.saturating_add(self.spacing_ns))
        {
            self.looks.pop();
        }
        self.looks.push(SizeLook {
            at_ns,
            counts,
            bytes,
        });
        if self.looks.len() > MOST {
            let last = self.looks.len() - 1;
            let mut place = 0_usize;
            self.looks.retain(|_| {
                place += 1;
                place % 2 == 1 || place > last
            });
            self.spacing_ns = self.spacing_ns.saturating_mul(2);
        }
    }

    /// Looks that were taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Looks that are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.looks.len()
    }

    /// The last look.
    #[must_use]
    pub fn last_ns(&self) -> Option<u64> {
        self.looks.last().map(|look| look.at_ns)
    }

    /// The first.
    #[must_use]
    pub fn first_ns(&self) -> Option<u64> {
        self.looks.first().map(|look| look.at_ns)
    }

    /// Blocks of a size at the last look.
    #[must_use]
    pub fn now(&self, size: BlockSize) -> u64 {
        self.looks
            .last()
            .map_or(0, |look| look.counts.get(&size).copied().unwrap_or(0))
    }

    /// Blocks of a size, look by look, with the times.
    pub fn levels(&self, size: BlockSize) -> impl Iterator<Item = (u64, f64)> + '_ {
        self.looks.iter().map(move |look| {
            (
                look.at_ns,
                look.counts.get(&size).copied().unwrap_or(0) as f64,
            )
        })
    }

    /// Bytes of all blocks, look by look, with the times.
    pub fn bytes(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        self.looks
            .iter()
            .map(|look| (look.at_ns, look.bytes as f64))
    }

    /// The sizes of which there are more at the last look than at the first, with by how many.
    pub fn grown(&self) -> impl Iterator<Item = (BlockSize, u64)> + '_ {
        let sizes: BTreeSet<BlockSize> = self
            .looks
            .last()
            .into_iter()
            .flat_map(|look| look.counts.keys().copied())
            .collect();
        sizes.into_iter().filter_map(|size| {
            let first = self.looks.first()?.counts.get(&size).copied().unwrap_or(0);
            let more = self.now(size).checked_sub(first)?;
            (more > 0).then_some((size, more))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Rounding, SizeCounts, chunk_for, size_of, smallest_of};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn chunks_are_those_of_glibc_and_large_ones_are_classes() {
        assert_eq!(chunk_for(0), 32);
        assert_eq!(chunk_for(24), 32);
        assert_eq!(chunk_for(25), 48);
        assert_eq!(chunk_for(96), 112);
        assert_eq!(size_of(112), 112);
        assert_eq!(size_of(64 << 10), 64 << 10);
        assert_eq!(size_of(65 << 10), 72 << 10);
        assert_eq!(size_of(129 << 10), 144 << 10);
        assert!(size_of(u64::MAX) == u64::MAX);
    }

    #[test]
    fn a_class_begins_after_the_one_before() {
        for chunk in [
            48,
            65_536,
            65_552,
            131_072,
            131_088,
            524_304,
            600_000,
            1 << 30,
        ] {
            let size = size_of(chunk);
            let smallest = smallest_of(size);
            assert!(smallest <= chunk && chunk <= size, "{chunk}");
            assert!(size == smallest || size_of(smallest) == smallest, "{chunk}");
            assert!(
                size == smallest || size_of(smallest + 16) == size,
                "{chunk}"
            );
        }
    }

    #[test]
    fn classes_are_those_of_jemalloc() {
        let classes = [
            0,
            8,
            9,
            16,
            120,
            128,
            129,
            160,
            161,
            256,
            257,
            300,
            4096,
            4097,
            14 << 10,
        ];
        let expected = [
            8,
            8,
            16,
            16,
            128,
            128,
            160,
            160,
            192,
            256,
            320,
            320,
            4096,
            5120,
            14 << 10,
        ];
        assert_eq!(
            classes.map(|request| Rounding::Jemalloc.taken_for(request)),
            expected
        );
        assert_eq!(Rounding::Jemalloc.taken_for(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_long_trace_keeps_few_looks_the_first_and_the_last_among_them() {
        let mut counts = SizeCounts::default();
        for look in 1..=1_000_u64 {
            counts.note(look * SECOND, [(64, 10 * look), (80, 5)]);
        }
        assert!(counts.kept() <= MOST && counts.kept() >= MOST / 2 - 1);
        assert_eq!(counts.taken(), 1_000);
        assert_eq!(counts.first_ns(), Some(SECOND));
        assert_eq!(counts.last_ns(), Some(1_000 * SECOND));
        assert_eq!(counts.now(64), 10_000);
        let times: Vec<u64> = counts.levels(64).map(|(at, _)| at).collect();
        assert!(times.is_sorted());
        assert_eq!(counts.grown().collect::<Vec<_>>(), [(64, 9_990)]);
    }

    #[test]
    fn a_look_out_of_order_changes_nothing() {
        let mut counts = SizeCounts::default();
        counts.note(2 * SECOND, [(64, 10)]);
        counts.note(SECOND, [(64, 99)]);
        assert_eq!((counts.kept(), counts.now(64)), (1, 10));
    }
}
