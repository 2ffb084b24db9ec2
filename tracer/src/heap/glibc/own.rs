//! Blocks of glibc's that have a mapping of their own.

use std::ops::Range;

use super::{FLAGS, HEADER, IS_MMAPPED, form::Form};
use crate::heap::{
    blocks::Segment,
    memory::{Memory, PAGE, Region},
};

/// `DEFAULT_MMAP_THRESHOLD_MIN`: smaller blocks have a mapping of their own only where a program asks for it.
const LEAST_OWN: u64 = 128 << 10;

/// So many pages of a region may be looked at for the beginning of one: a second of work, for memory of 4 GiB.
const MOST_PAGES: u64 = 1 << 20;

/// Blocks above the threshold have a mapping of their own, behind a header that says so. Mappings that follow each other are one
/// region, and others (an arena of CPython's) may stand before them, so each page may be the first of one. `known` are in order.
pub(super) fn own_mappings(
    memory: &dyn Memory,
    form: &Form,
    region: &Region,
    known: &[Segment],
) -> Vec<Segment> {
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
            let Some(size) = own_mapping(memory, form, start, end).filter(|size| *size >= least)
            else {
                looked_at += 1;
                start += PAGE;
                least = LEAST_OWN;
                if looked_at >= MOST_PAGES {
                    break;
                }
                continue;
            };
            let range: Range<u64> = start..start + size;
            let mut segment = Segment::new(range.clone(), form.mapped_tail());
            segment.begin(start + HEADER, true);
            found.push(segment);
            start = range.end;
            least = PAGE;
        }
    }
    found
}

/// The bytes of a mapping that is one chunk.
fn own_mapping(memory: &dyn Memory, form: &Form, start: u64, end: u64) -> Option<u64> {
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
    let size = (word & !FLAGS).checked_add(form.behind_mapped())?;
    let fits = start.checked_add(size).is_some_and(|next| next <= end);
    (form.begins_mapping(previous)
        && word & FLAGS == IS_MMAPPED
        && size.is_multiple_of(PAGE)
        && size > form.behind_mapped()
        && fits)
        .then_some(size)
}
