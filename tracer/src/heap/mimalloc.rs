//! How many blocks mimalloc has handed out of each size class, by the headers of its segments. Knows nothing of who asks; what it reads, a process may have
//! written: every field is held against the others, and nothing is followed.
//!
//! Of version 2.0 (include/mimalloc-types.h): a segment begins at a multiple of 32 MiB, and is divided into slices of 64 KiB, each with a record of 80 bytes
//! in the segment's header (`mi_slice_t`, which is `mi_page_t`). Records that stand for runs of slices follow each other to the segment's end: that they do
//! shows that it is one. Blocks that other threads have freed count as in use until their own thread takes them back.

use std::{collections::BTreeMap, ops::Range};

use super::{
    Counts,
    counts::within,
    memory::{Memory, Region, RegionKind},
};

/// `MI_SEGMENT_SIZE`, `MI_SEGMENT_SLICE_SIZE` and `MI_SLICES_PER_SEGMENT` on 64 bits.
const SEGMENT: u64 = 32 << 20;
const SLICE: u64 = 64 << 10;
const SLICES: usize = 512;

/// Bytes of a record, and where the first may begin in a header: builds differ in what stands before.
const RECORD: usize = 80;
const FIRST_FROM: usize = 0x80;
const FIRST_UNTIL: usize = 0x400;
/// In it: `slice_count`, `slice_offset`, `capacity`, `reserved`, `used`, `xblock_size`.
const COUNT: usize = 0;
const OFFSET: usize = 4;
const CAPACITY: usize = 10;
const RESERVED: usize = 12;
const USED: usize = 24;
const BLOCK_SIZE: usize = 28;

/// A header that is written while it is read is read so often.
const TRIES: usize = 3;

/// A run of slices that holds blocks of one size.
struct Page {
    slices: Range<u64>,
    used: u64,
    block_bytes: u64,
}

/// Counts, and says how much each of some `blocks`, by address in order, takes. `None` where no segment of mimalloc's is found.
#[must_use]
pub(super) fn mimalloc_counts(
    memory: &dyn Memory,
    regions: &[Region],
    blocks: &[u64],
) -> Option<Counts> {
    let mut counts = Counts::default();
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    let mut is_found = false;
    let anonymous = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Anonymous);
    for region in anonymous {
        let mut segment = region.range.start.next_multiple_of(SEGMENT);
        while segment.saturating_add(SEGMENT) <= region.range.end {
            let is_present = region
                .present
                .iter()
                .any(|present| present.contains(&segment));
            if let Some(pages) = is_present.then(|| pages(memory, segment)).flatten() {
                is_found = true;
                for page in pages {
                    *sizes.entry(page.block_bytes).or_default() += page.used;
                    let here = within(&page.slices, blocks);
                    counts
                        .taken
                        .extend(here.map(|block| (block, page.block_bytes)));
                }
            }
            segment = segment.saturating_add(SEGMENT);
        }
    }
    counts.bytes = sizes
        .iter()
        .map(|(size, count)| size.saturating_mul(*count))
        .fold(0, u64::saturating_add);
    counts.sizes = sizes.into_iter().filter(|(_, count)| *count > 0).collect();
    is_found.then_some(counts)
}

/// The runs of a segment that hold blocks; `None` where this is no segment.
fn pages(memory: &dyn Memory, segment: u64) -> Option<Vec<Page>> {
    let mut header = vec![0; FIRST_UNTIL + SLICES * RECORD];
    (0..TRIES).find_map(|_| {
        let length = memory.read(segment, &mut header);
        let bytes = header.get(..length)?;
        (FIRST_FROM..FIRST_UNTIL)
            .step_by(8)
            .find_map(|first| chain(bytes, first, segment))
    })
}

/// The runs, if records that begin here follow each other to the segment's end.
fn chain(bytes: &[u8], first: usize, segment: u64) -> Option<Vec<Page>> {
    let mut pages = Vec::new();
    let mut slice = 0;
    while slice < SLICES {
        let at = first.checked_add(slice.checked_mul(RECORD)?)?;
        let record = bytes.get(at..at.checked_add(RECORD)?)?;
        let count = usize::try_from(u32_at(record, COUNT)?).ok()?;
        // The first stands for the header itself, which does not fill a segment.
        let most = if slice == 0 {
            SLICES - 1
        } else {
            SLICES - slice
        };
        if count == 0 || count > most || u32_at(record, OFFSET)? != 0 {
            return None;
        }
        if slice > 0 {
            pages.extend(page(record, slice, count, segment)?);
        }
        slice = slice.checked_add(count)?;
    }
    Some(pages)
}

/// What a record says: a page, or nothing where its slices are free. `None` where its fields do not fit each other.
fn page(record: &[u8], slice: usize, count: usize, segment: u64) -> Option<Option<Page>> {
    let block_bytes = u64::from(u32_at(record, BLOCK_SIZE)?);
    // 0: free; 1: of an abandoned segment, or being freed.
    if block_bytes < 8 {
        return Some(None);
    }
    let (capacity, reserved) = (u16_at(record, CAPACITY)?, u16_at(record, RESERVED)?);
    let used = u32_at(record, USED)?;
    let length = count as u64 * SLICE;
    let fits = capacity <= reserved
        && used <= u32::from(capacity)
        && block_bytes.saturating_mul(u64::from(reserved)) <= length;
    let start = segment.checked_add(slice as u64 * SLICE)?;
    fits.then(|| {
        Some(Page {
            slices: start..start.saturating_add(length),
            used: u64::from(used),
            block_bytes,
        })
    })
}

fn u32_at(record: &[u8], at: usize) -> Option<u32> {
    let bytes = record.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u16_at(record: &[u8], at: usize) -> Option<u16> {
    let bytes = record.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::Image, BLOCK_SIZE, RECORD, SEGMENT, SLICE, SLICES, USED, mimalloc_counts,
    };
    use crate::heap::{Region, RegionKind};

    const START: u64 = 0x7f00_0000_0000;
    const FIRST: u64 = 0x108;

    fn regions() -> Vec<Region> {
        let range = START..START + SEGMENT;
        vec![Region {
            present: std::iter::once(range.clone()).collect(),
            range,
            kind: RegionKind::Anonymous,
            name: String::new(),
        }]
    }

    /// Puts the record of a run of slices: how many blocks there are room for, how many are in use, of how many bytes.
    fn put(image: &mut Image, slice: u64, count: u64, room: u64, used: u64, bytes: u64) {
        let at = START + FIRST + slice * RECORD as u64;
        image.put(at, count);
        image.put(at + 8, room << 16 | room << 32);
        image.put(at + USED as u64, used | bytes << (8 * (BLOCK_SIZE - USED)));
    }

    fn segment() -> Image {
        let mut image = Image::default();
        image.0.insert(START, vec![0; (4 * SLICE) as usize]);
        put(&mut image, 0, 1, 0, 0, 0);
        put(&mut image, 1, 8, 6, 2, 80 << 10);
        put(&mut image, 9, 1, 500, 171, 128);
        put(&mut image, 10, SLICES as u64 - 10, 0, 0, 0);
        image
    }

    #[test]
    fn blocks_in_use_are_those_of_the_pages() {
        let block = START + 9 * SLICE + 256;
        let found = mimalloc_counts(&segment(), &regions(), &[START, block]).unwrap_or_default();
        assert_eq!(found.sizes, [(128, 171), (80 << 10, 2)]);
        assert_eq!(found.taken, [(block, 128)]);
    }

    #[test]
    fn the_number_of_slices_before_the_records_was_taken_for_the_first_record() {
        let mut image = segment();
        image.put(START + 0xe0, SLICES as u64);
        let found = mimalloc_counts(&image, &regions(), &[]).unwrap_or_default();
        assert_eq!(found.sizes, [(128, 171), (80 << 10, 2)]);
    }

    #[test]
    fn memory_that_only_looks_like_a_segment_is_none() {
        let mut more_used_than_there_is_room = segment();
        put(&mut more_used_than_there_is_room, 9, 1, 500, 501, 128);
        let mut too_long = segment();
        put(&mut too_long, 10, SLICES as u64, 0, 0, 0);
        let mut too_large = segment();
        put(&mut too_large, 9, 1, 513, 0, 128);
        for image in [
            more_used_than_there_is_room,
            too_long,
            too_large,
            Image::default(),
        ] {
            assert_eq!(mimalloc_counts(&image, &regions(), &[]), None);
        }
    }
}
