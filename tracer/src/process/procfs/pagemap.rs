//! `/proc/PID/pagemap` and the files of its kind: an entry of eight bytes for each page (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use leakscope_common::PAGE_BYTES;

/// The page is in RAM.
pub const PRESENT: u64 = 1 << 63;
/// The page is swapped out.
pub const SWAPPED: u64 = 1 << 62;
/// The page is a file's, or anonymous and shared.
pub const FILE_OR_SHARED: u64 = 1 << 61;
/// The number of the frame that holds a page that is present; 0 for who may not know.
pub const FRAME: u64 = (1 << 55) - 1;

/// Bytes of an entry.
const ENTRY_BYTES: u64 = 8;
/// Entries that are read at once for a range: those of 2 MiB.
const ENTRIES_AT_ONCE: u64 = 512;

/// Reads the entries of some pages, or frames, from one on; fewer where there are no more, as of a process that is gone.
#[must_use]
pub fn read_entries(file: &File, first: u64, count: u64) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(count * ENTRY_BYTES).unwrap_or(0)];
    let length = file
        .read_at(&mut bytes, first.saturating_mul(ENTRY_BYTES))
        .unwrap_or(0);
    bytes
        .get(..length)
        .unwrap_or_default()
        .chunks_exact(8)
        .filter_map(|entry| entry.try_into().ok().map(u64::from_ne_bytes))
        .collect()
}

/// How many bytes of an address range are in RAM or swapped out, by a process's open `pagemap`: whole pages.
#[must_use]
pub fn bytes_in_memory(pagemap: &File, range: &Range<u64>) -> u64 {
    let last = range.end.div_ceil(PAGE_BYTES);
    let mut page = range.start / PAGE_BYTES;
    let mut pages = 0;
    while page < last {
        let entries = read_entries(pagemap, page, (last - page).min(ENTRIES_AT_ONCE));
        if entries.is_empty() {
            // The process is gone, or these are addresses that there cannot be.
            break;
        }
        pages += entries
            .iter()
            .filter(|entry| **entry & (PRESENT | SWAPPED) != 0)
            .count() as u64;
        page += entries.len() as u64;
    }
    pages.saturating_mul(PAGE_BYTES)
}
