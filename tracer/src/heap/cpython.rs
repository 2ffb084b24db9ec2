//! CPython's pools for objects of up to 512 bytes, told by their headers alone. 3.8 to 3.14 with the GIL: `struct pool_header` of
//! `Objects/obmalloc.c` (3.8), `Include/internal/pycore_obmalloc.h` (3.12). Builds without the GIL have none.

use std::ops::Range;

use super::{
    blocks::Segment,
    memory::{Memory, PAGE, Region, RegionKind, WORD, Window},
};

/// `POOL_SIZE`: 16 KiB since 3.10, 4 KiB before.
pub(super) const POOL_SIZES: [u64; 2] = [4 * PAGE, PAGE];
/// `POOL_OVERHEAD`: `sizeof(struct pool_header)` to the next multiple of 16.
pub(super) const OVERHEAD: u64 = 48;
/// `ALIGNMENT` and `NB_SMALL_SIZE_CLASSES`.
const ALIGNMENT: u64 = 16;
const CLASSES: u32 = 32;

/// A pool that changes under the reader is read so often.
const TRIES: usize = 4;

/// What the pools of a process hold.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// The blocks, by run of pools that follow each other.
    pub(super) segments: Vec<Segment>,
    /// Bytes of free blocks in pools.
    pub(super) free_bytes: u64,
    /// How many free blocks there are.
    pub(super) free_pieces: u64,
    /// Pools whose list of free blocks changed whenever it was read. There may be objects in them, so that what they point to is held.
    pub(super) torn: Vec<Range<u64>>,
}

/// A pool's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `ref.count`: blocks in use.
    pub(super) count: u32,
    /// `freeblock`: the first free block.
    pub(super) free: u64,
    /// Bytes of a block.
    pub(super) block: u64,
    /// `nextoffset`: where the first block lies that was never handed out.
    pub(super) next: u64,
}

/// Finds the pools in anonymous memory.
#[must_use]
pub(super) fn find(memory: &dyn Memory, regions: &[Region], known: &[Segment]) -> Pools {
    let mut pools = Pools::default();
    for size in POOL_SIZES {
        for region in regions
            .iter()
            .filter(|region| region.kind == RegionKind::Anonymous)
        {
            find_in(memory, region, size, known, &mut pools);
        }
    }
    pools
}

fn overlaps(segments: &[Segment], range: &Range<u64>) -> bool {
    segments
        .iter()
        .any(|segment| segment.range().start < range.end && range.start < segment.range().end)
}

fn find_in(memory: &dyn Memory, region: &Region, size: u64, known: &[Segment], pools: &mut Pools) {
    let mut bytes = vec![0; size as usize];
    let mut run: Vec<u64> = Vec::new();
    for present in &region.present {
        // The end of a pool may never have been written to, its beginning was.
        let mut start = present.start.next_multiple_of(size);
        while start < present.end {
            let pool = start..start.saturating_add(size);
            let is_free = pool.end <= region.range.end
                && !overlaps(known, &pool)
                && !overlaps(&pools.segments, &pool);
            if is_free && header_at(memory, start, size).is_some() {
                if run.last().is_some_and(|last| last + size != start) {
                    add_run(memory, &mut run, size, &mut bytes, pools);
                }
                run.push(start);
            }
            start = pool.end;
        }
    }
    add_run(memory, &mut run, size, &mut bytes, pools);
}

/// The header of the pool that begins there, if one does.
pub(super) fn header_at(memory: &dyn Memory, start: u64, size: u64) -> Option<Header> {
    let mut bytes = [0; OVERHEAD as usize];
    (memory.read(start, &mut bytes) == bytes.len())
        .then(|| header_of(&bytes, start, size))
        .flatten()
}

/// The header with which these bytes begin.
fn header_of(bytes: &[u8], start: u64, size: u64) -> Option<Header> {
    let half = |at: usize| {
        let part = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(part.try_into().ok()?))
    };
    let word = |at: usize| {
        let part = bytes.get(at..at + 8)?;
        Some(u64::from_le_bytes(part.try_into().ok()?))
    };
    let class = half(36)?;
    let header = Header {
        count: half(0)?,
        free: word(8)?,
        block: u64::from(class.checked_add(1)?) * ALIGNMENT,
        next: u64::from(half(40)?),
    };
    let capacity = (size - OVERHEAD) / header.block;
    let is_pool = class < CLASSES
        && u64::from(half(44)?) == size - header.block
        && u64::from(header.count) <= capacity
        && header.next >= OVERHEAD
        && header.next <= size
        && (header.next - OVERHEAD).is_multiple_of(header.block)
        && (header.free == 0
            || header.free.is_multiple_of(ALIGNMENT)
                && (start + OVERHEAD..start + size).contains(&header.free))
        // Links to other pools, or to itself, or to the table of those in use.
        && word(16)?.is_multiple_of(WORD)
        && word(24)?.is_multiple_of(WORD);
    is_pool.then_some(header)
}

/// Adds the blocks of pools that follow each other.
fn add_run(
    memory: &dyn Memory,
    run: &mut Vec<u64>,
    size: u64,
    bytes: &mut [u8],
    pools: &mut Pools,
) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return;
    };
    let mut segment = Segment::new(*first..last + size, 0);
    let mut window = Window::new(memory, *first, last + size);
    for start in run.drain(..) {
        segment.begin(start, false);
        let found = (0..TRIES).find_map(|again| {
            let held = window.from(start).and_then(|all| all.get(..bytes.len()));
            if let Some(all) = held.filter(|_| again == 0) {
                bytes.copy_from_slice(all);
            } else if memory.read(start, bytes) != bytes.len() {
                return None;
            }
            // Header and list belong together only if they were read together.
            let header = header_of(bytes, start, size)?;
            let free = free_blocks(bytes, start, &header)?;
            Some((header, free))
        });
        let Some((header, free)) = found else {
            pools.torn.push(start..start + size);
            continue;
        };
        let mut offset = OVERHEAD;
        while offset + header.block <= header.next {
            let is_free = free.binary_search(&(start + offset)).is_ok();
            segment.begin(start + offset, !is_free && header.count > 0);
            offset += header.block;
        }
        // What was never handed out, and what is too small for a block.
        segment.begin(start + offset, false);
        pools.free_bytes += free.len() as u64 * header.block + (size - offset);
        pools.free_pieces += free.len() as u64 + u64::from(offset < size);
    }
    pools.segments.push(segment);
}

/// The blocks on a pool's list, in order; `None` where the list does not end as the count demands.
fn free_blocks(bytes: &[u8], start: u64, header: &Header) -> Option<Vec<u64>> {
    let handed_out = (header.next - OVERHEAD) / header.block;
    let expected = handed_out.checked_sub(u64::from(header.count))?;
    let mut free = Vec::new();
    let mut block = header.free;
    while block != 0 && (free.len() as u64) < expected {
        let offset = block.checked_sub(start)?;
        let is_block = offset >= OVERHEAD
            && (offset - OVERHEAD).is_multiple_of(header.block)
            && offset < header.next;
        if !is_block {
            return None;
        }
        free.push(block);
        let offset = usize::try_from(offset).ok()?;
        let link = bytes.get(offset..offset + WORD as usize)?;
        block = u64::from_le_bytes(link.try_into().ok()?);
    }
    free.sort_unstable();
    free.dedup();
    // A longer list is of a moment before or after the count.
    (block == 0 && free.len() as u64 == expected).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::{Header, OVERHEAD, free_blocks};

    #[test]
    fn a_list_longer_than_the_count_says_had_free_blocks_in_use() {
        const START: u64 = 0x7f00_0000_4000;
        const BLOCK: u64 = 64;
        let mut bytes = vec![0; 4096];
        let block = |number: u64| START + OVERHEAD + number * BLOCK;
        let mut link = |from: u64, to: u64| {
            let at = (block(from) - START) as usize;
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&to.to_le_bytes());
            }
        };
        link(1, block(3));
        link(3, block(4));
        let header = |count| Header {
            count,
            free: block(1),
            block: BLOCK,
            next: OVERHEAD + 6 * BLOCK,
        };
        let found = free_blocks(&bytes, START, &header(3));
        assert_eq!(found, Some(vec![block(1), block(3), block(4)]));
        assert_eq!(free_blocks(&bytes, START, &header(4)), None);
        assert_eq!(free_blocks(&bytes, START, &header(2)), None);
    }
}
