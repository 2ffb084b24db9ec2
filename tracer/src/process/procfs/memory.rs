//! How much memory a process holds.

use std::path::Path;

use super::{ProcessError, malformed, read, status_value};

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

/// Anonymous bytes, resident and swapped out, counted page by page by the kernel (`smaps_rollup`): exact, but the kernel walks the whole
/// page table for it.
///
/// # Errors
/// The process is gone or unreadable, or the file's form is unexpected.
pub fn exact_anonymous_bytes(proc_root: &Path, pid: u32) -> Result<(u64, u64), ProcessError> {
    let path = proc_root.join(pid.to_string()).join("smaps_rollup");
    let text = read(pid, &path)?;
    let bytes = |key| status_value(&text, key).and_then(kib);
    bytes("Anonymous")
        .zip(bytes("Swap"))
        .ok_or_else(|| malformed(pid, path, &text))
}

/// `1234 kB` in bytes.
fn kib(value: &str) -> Option<u64> {
    let number = value.strip_suffix("kB")?.trim_end();
    number.parse::<u64>().ok()?.checked_mul(1024)
}
