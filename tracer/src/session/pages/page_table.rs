//! A process's page table, read a piece at a time, and what its entries say. Knows nothing of faults.

use std::{fs::File, path::Path};

use leakscope_common::PAGE_BYTES;

use crate::{
    ledger::HUGE_PAGES,
    process::procfs::pagemap::{FILE_OR_SHARED, FRAME, PRESENT, SWAPPED, read_entries},
};

/// Whether the entries of a huge page's range are those of a huge page. `None`: the frames are hidden.
pub(super) fn is_huge(entries: &[u64]) -> Option<bool> {
    let first = *entries.first()?;
    let frame = first & FRAME;
    if first & PRESENT != 0 && frame == 0 {
        return None;
    }
    Some(
        entries.len() == HUGE_PAGES as usize
            && frame.is_multiple_of(u64::from(HUGE_PAGES))
            && (frame..).zip(entries).all(|(frame, entry)| {
                entry & (PRESENT | FILE_OR_SHARED) == PRESENT && entry & FRAME == frame
            }),
    )
}

/// Whether there is memory of the process's own.
pub(super) fn is_own(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0
}

/// Reads a process's page table.
pub(super) struct PageTable {
    file: File,
    /// Entries that were read, from this page on.
    first: u64,
    entries: Vec<u64>,
}

/// Entries that are read at a time. To read one takes some 10 ns, a system call some hundred.
const ENTRIES: u64 = 128;

impl PageTable {
    pub(super) fn open(proc_root: &Path, pid: u32) -> std::io::Result<Self> {
        Ok(Self {
            file: File::open(proc_root.join(pid.to_string()).join("pagemap"))?,
            first: 0,
            entries: Vec::new(),
        })
    }

    /// The entry of a page; `None` if the process is gone.
    pub(super) fn entry(&mut self, address: u64) -> Option<u64> {
        let page = address / PAGE_BYTES;
        let place = |first: u64| usize::try_from(page.checked_sub(first)?).ok();
        if place(self.first).is_none_or(|place| place >= self.entries.len()) {
            self.first = page;
            self.entries = read_entries(&self.file, page, ENTRIES);
        }
        self.entries.get(place(self.first)?).copied()
    }

    /// The entries of the huge page that an address would lie in.
    pub(super) fn range(&self, address: u64) -> Vec<u64> {
        let pages = u64::from(HUGE_PAGES);
        read_entries(&self.file, address / PAGE_BYTES / pages * pages, pages)
    }
}
