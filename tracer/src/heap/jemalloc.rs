//! How many blocks jemalloc has handed out of each size class, by what describes its runs of blocks. Knows nothing of who asks; what it reads, a process
//! may have written: every field is held against the others, and nothing is followed.
//!
//! jemalloc keeps its descriptors in memory of its own: base blocks at multiples of 2 MiB (`base_block_t`), in which descriptors of 128 bytes lie. A
//! descriptor (5.3: `edata_t`, include/jemalloc/internal/edata.h; 5.2: `extent_t`, extent_structs.h) names a run's address, length and size class, how
//! many of its blocks are free, and which, in a bitmap (`slab_data_t`): that both agree shows that it is one.

use std::{collections::BTreeMap, ops::Range};

use super::{
    Counts,
    counts::within,
    memory::{Memory, Region, RegionKind, region_of},
};

/// Base blocks begin at multiples of this, and are as long as a multiple (`HUGEPAGE`, src/base.c).
const BASE_BYTES: u64 = 2 << 20;

/// Bytes of a descriptor, and what its place is a multiple of (5.2: `CACHELINE`).
const DESCRIPTOR: usize = 128;
const PLACE: usize = 64;
/// In it: `e_bits`, `e_addr`, `e_size_esn`, `slab_data.bitmap`.
const ADDRESS: usize = 8;
const LENGTH: usize = 16;
const BITMAP: usize = 64;

const PAGE: u64 = 4096;

/// Size classes of runs that hold many blocks (`SC_NBINS`), and all (`SC_NSIZES`, 64 bits, pages of 4 KiB).
const SMALL_CLASSES: u64 = 36;
const CLASSES: u64 = 232;
/// Blocks of a run at most (`SC_SLAB_MAXREGS`).
const MOST_BLOCKS: u64 = 512;
/// A large block's run may be longer by a page, and by one for its offset (`sz_large_pad`).
const SLACK: u64 = 2 * PAGE;

/// Runs that are counted at most: 4 million small ones are 64 GiB.
const MOST_RUNS: usize = 1 << 22;

/// Where the fields of `e_bits` are.
struct Layout {
    /// Whether the run holds many blocks.
    slab: u32,
    /// `extent_state_t`; 0 is in use.
    state: u32,
    state_bits: u32,
    /// The size class.
    class: u32,
    /// How many blocks are free.
    free: u32,
}

/// 5.3, and 5.0 to 5.2.
const LAYOUTS: [Layout; 2] = [
    Layout {
        slab: 12,
        state: 17,
        state_bits: 3,
        class: 20,
        free: 28,
    },
    Layout {
        slab: 12,
        state: 16,
        state_bits: 2,
        class: 18,
        free: 26,
    },
];

/// A run of blocks of one size.
struct Run {
    range: Range<u64>,
    block_bytes: u64,
    /// A bit for each block, set where it is free; `None` of a large one, which is all in use.
    free: Option<[u64; 8]>,
}

/// What a descriptor says.
enum Found {
    Run(Run),
    /// It was written while it was read: bytes of its run.
    Torn(u64),
}

/// Counts, and looks which of some `blocks`, by address in order, are in use. `None` where no memory of jemalloc's is found.
#[must_use]
pub(super) fn jemalloc_counts(
    memory: &dyn Memory,
    regions: &[Region],
    blocks: &[u64],
) -> Option<Counts> {
    let bases: Vec<Range<u64>> = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Anonymous)
        .flat_map(|region| bases(memory, region))
        .collect();
    // Of two that tell as much, the newer.
    LAYOUTS
        .iter()
        .rev()
        .map(|layout| count(memory, regions, blocks, &bases, layout))
        .max_by_key(|counts| counts.bytes)
        .filter(|counts| counts.bytes > 0)
}

/// Base blocks of a region, as far as they are in memory.
fn bases(memory: &dyn Memory, region: &Region) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut address = region.range.start.next_multiple_of(BASE_BYTES);
    while address < region.range.end {
        let length = base_length(memory, region, address);
        if let Some(length) = length {
            let within = |present: &Range<u64>| {
                let start = present.start.max(address);
                let end = present.end.min(address.saturating_add(length));
                (start < end).then_some(start..end)
            };
            found.extend(region.present.iter().filter_map(within));
        }
        address = address.saturating_add(length.unwrap_or(BASE_BYTES));
    }
    found
}

/// The length of a base block: its own word for it, with a descriptor of what is left of it behind.
fn base_length(memory: &dyn Memory, region: &Region, address: u64) -> Option<u64> {
    let is_present = region
        .present
        .iter()
        .any(|present| present.contains(&address));
    if !is_present {
        return None;
    }
    let length = memory.word(address)?;
    let next = memory.word(address.checked_add(8)?)?;
    let left = memory.word(address.checked_add(16 + ADDRESS as u64)?)?;
    let end = address.checked_add(length)?;
    let fits = length > 0
        && length.is_multiple_of(BASE_BYTES)
        && next.is_multiple_of(BASE_BYTES)
        && end <= region.range.end
        && (address..=end).contains(&left);
    fits.then_some(length)
}

fn count(
    memory: &dyn Memory,
    regions: &[Region],
    blocks: &[u64],
    bases: &[Range<u64>],
    layout: &Layout,
) -> Counts {
    let mut counts = Counts::default();
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for base in bases {
        let mut page = base.start;
        while page < base.end && runs.len() < MOST_RUNS {
            for found in descriptors(memory, regions, page, layout) {
                match found {
                    Found::Torn(bytes) => {
                        counts.torn_bytes = counts.torn_bytes.saturating_add(bytes);
                    }
                    Found::Run(run) => {
                        *sizes.entry(run.block_bytes).or_default() += run.used();
                        counts.gone.extend(run.gone(blocks));
                        counts.taken.extend(run.taken(blocks));
                        runs.push(run.range);
                    }
                }
            }
            page = page.saturating_add(PAGE);
        }
    }
    // Memory is of one run at a time: what two claim was handed on meanwhile.
    runs.sort_unstable_by_key(|run| run.start);
    for (run, next) in runs.iter().zip(runs.iter().skip(1)) {
        counts.torn_bytes = counts
            .torn_bytes
            .saturating_add(run.end.saturating_sub(next.start));
    }
    counts.gone.sort_unstable();
    counts.taken.sort_unstable();
    counts.bytes = sizes
        .iter()
        .map(|(size, count)| size.saturating_mul(*count))
        .fold(0, u64::saturating_add);
    counts.sizes = sizes.into_iter().filter(|(_, count)| *count > 0).collect();
    counts
}

/// What the descriptors that begin in a page say.
fn descriptors(memory: &dyn Memory, regions: &[Region], page: u64, layout: &Layout) -> Vec<Found> {
    let mut bytes = vec![0; PAGE as usize + DESCRIPTOR - PLACE];
    let length = memory.read(page, &mut bytes);
    bytes.truncate(length);
    (0_usize..)
        .step_by(PLACE)
        .map_while(|at| bytes.get(at..at.checked_add(DESCRIPTOR)?))
        .zip((page..).step_by(PLACE))
        .filter_map(|(bytes, place)| match descriptor(bytes, regions, layout)? {
            // It may be whole by now.
            Found::Torn(_) => {
                let mut again = [0; DESCRIPTOR];
                memory.read(place, &mut again);
                descriptor(&again, regions, layout)
            }
            run @ Found::Run(_) => Some(run),
        })
        .collect()
}

/// What a descriptor says; `None` where it is none of a run in use.
fn descriptor(bytes: &[u8], regions: &[Region], layout: &Layout) -> Option<Found> {
    let word = |at: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let bits = word(0)?;
    let field = |shift: u32, width: u32| (bits >> shift) & ((1 << width) - 1);
    let start = word(ADDRESS)? & !(PAGE - 1);
    let length = word(LENGTH)? & !(PAGE - 1);
    let end = start.checked_add(length)?;
    if start == 0 || length == 0 || field(layout.state, layout.state_bits) != 0 {
        return None;
    }
    let region = region_of(regions, start)?;
    if region.kind != RegionKind::Anonymous || end > region.range.end {
        return None;
    }
    let class = field(layout.class, 8);
    let block_bytes = class_bytes(class);
    if field(layout.slab, 1) == 0 {
        let is_large = (SMALL_CLASSES..CLASSES).contains(&class)
            && (block_bytes..=block_bytes.saturating_add(SLACK)).contains(&length);
        return is_large.then_some(Found::Run(Run {
            range: start..end,
            block_bytes,
            free: None,
        }));
    }
    let blocks = length.checked_div(block_bytes)?;
    if class >= SMALL_CLASSES || !length.is_multiple_of(block_bytes) || blocks > MOST_BLOCKS {
        return None;
    }
    let mut free = [0; 8];
    for (place, group) in free.iter_mut().enumerate() {
        *group = word(BITMAP.checked_add(8 * place)?)?;
    }
    let run = Run {
        range: start..end,
        block_bytes,
        free: Some(free),
    };
    Some(if run.free_blocks() == field(layout.free, 10) {
        Found::Run(run)
    } else {
        Found::Torn(length)
    })
}

/// Bytes of a size class: 8, multiples of 16 up to 128, then four to each power of two (include/jemalloc/internal/sc.h).
fn class_bytes(class: u64) -> u64 {
    match class {
        0 => 8,
        1..=8 => 16 * class,
        _ => {
            let (power, quarter) = ((class - 9) / 4, (class - 9) % 4);
            1_u64
                .checked_shl(u32::try_from(power + 5).unwrap_or(u32::MAX))
                .and_then(|quarter_bytes| quarter_bytes.checked_mul(quarter + 5))
                .unwrap_or(u64::MAX)
        }
    }
}

impl Run {
    fn blocks(&self) -> u64 {
        match self.free {
            Some(_) => (self.range.end - self.range.start) / self.block_bytes,
            None => 1,
        }
    }

    fn is_free(&self, block: u64) -> bool {
        let group = self
            .free
            .as_ref()
            .and_then(|free| free.get(usize::try_from(block / 64).ok()?));
        group.is_some_and(|group| group >> (block % 64) & 1 == 1)
    }

    fn free_blocks(&self) -> u64 {
        let mut left = self.blocks();
        let mut free = 0;
        for group in self.free.iter().flatten() {
            let here = left.min(64);
            let mask = u64::MAX.checked_shr(64 - here as u32).unwrap_or(0);
            free += u64::from((group & mask).count_ones());
            left -= here;
        }
        free
    }

    fn used(&self) -> u64 {
        self.blocks().saturating_sub(self.free_blocks())
    }

    /// Of some blocks, in order, those that are free here.
    fn gone(&self, blocks: &[u64]) -> impl Iterator<Item = u64> {
        within(&self.range, blocks)
            .filter(|block| self.is_free((block - self.range.start) / self.block_bytes))
    }

    /// Of some blocks, in order, those that are here, with the bytes that each takes.
    fn taken(&self, blocks: &[u64]) -> impl Iterator<Item = (u64, u64)> {
        within(&self.range, blocks).map(|block| (block, self.block_bytes))
    }
}

#[cfg(test)]
mod tests;
