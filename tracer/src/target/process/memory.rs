//! How much memory a process holds.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{ProcessError, malformed, read, read_error, status_value};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Bytes of a page's entry in `pagemap`; its bits for pages in RAM and in swap (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Entries that are read at once: those of 2 MiB.
const ENTRIES_AT_ONCE: u64 = 512;

/// A process's memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Memory {
    /// Resident: anonymous, file and shared pages in RAM. `VmRSS`.
    pub resident_bytes: u64,
    /// Resident anonymous pages: heaps, stacks and private copies. `RssAnon`. Kernels from 6.2 on keep this count per CPU
    /// and may be off by some hundred KiB; [`exact_anonymous_bytes`] is exact and dearer.
    pub anonymous_bytes: u64,
    /// Anonymous pages that were swapped out. `VmSwap`.
    pub swapped_bytes: u64,
}

/// Reads a process's memory from `status`. A process without memory of its own (a kernel thread, a zombie) has none.
///
/// # Errors
/// The process is gone or unreadable, or the file's form is unexpected.
pub fn read_memory(proc_root: &Path, pid: u32) -> Result<Memory, ProcessError> {
    let path = proc_root.join(pid.to_string()).join("status");
    let status = read(pid, &path)?;
    let bytes = |key: &str| match status_value(&status, key) {
        None => Ok(0),
        Some(value) => kib(value).ok_or_else(|| malformed(pid, path.clone(), value.as_bytes())),
    };
    Ok(Memory {
        resident_bytes: bytes("VmRSS")?,
        anonymous_bytes: bytes("RssAnon")?,
        swapped_bytes: bytes("VmSwap")?,
    })
}

/// Resident anonymous bytes, counted page by page by the kernel (`smaps_rollup`): exact, but the kernel walks the whole
/// page table for it.
///
/// # Errors
/// The process is gone or unreadable, or the file's form is unexpected.
pub fn exact_anonymous_bytes(proc_root: &Path, pid: u32) -> Result<u64, ProcessError> {
    let path = proc_root.join(pid.to_string()).join("smaps_rollup");
    let text = read(pid, &path)?;
    status_value(&text, "Anonymous")
        .and_then(kib)
        .ok_or_else(|| malformed(pid, path, &text))
}

/// How many bytes of an address range are in RAM or swapped out, by `pagemap`: whole pages.
///
/// # Errors
/// The process is gone or unreadable.
pub fn bytes_in_memory(
    proc_root: &Path,
    pid: u32,
    range: &Range<u64>,
) -> Result<u64, ProcessError> {
    let path = proc_root.join(pid.to_string()).join("pagemap");
    let failed = |source| read_error(pid, path.clone(), source);
    let file = File::open(&path).map_err(failed)?;
    let mut entries = [0; ENTRY * ENTRIES_AT_ONCE as usize];
    let mut pages = 0;
    let last = range.end.div_ceil(PAGE);
    let mut page = range.start / PAGE;
    while page < last {
        let count = (last - page).min(ENTRIES_AT_ONCE) as usize;
        let some = entries.get_mut(..count * ENTRY).unwrap_or_default();
        let read = file
            .read_at(some, page.saturating_mul(ENTRY as u64))
            .map_err(failed)?;
        if read < ENTRY {
            // Behind the last address that there can be.
            break;
        }
        pages += some
            .get(..read)
            .unwrap_or_default()
            .as_chunks::<ENTRY>()
            .0
            .iter()
            .filter(|entry| u64::from_le_bytes(**entry) & (PRESENT | SWAPPED) != 0)
            .count() as u64;
        page += (read / ENTRY) as u64;
    }
    Ok(pages.saturating_mul(PAGE))
}

/// `1234 kB` in bytes.
fn kib(value: &str) -> Option<u64> {
    let number = value.strip_suffix("kB")?.trim_end();
    number.parse::<u64>().ok()?.checked_mul(1024)
}
