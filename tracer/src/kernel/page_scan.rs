//! Which pages of a range there are, by the kernel's own walk through its tables: it passes over holes, however large, which to read entry
//! by entry takes as long as what is there. Since Linux 6.7.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd as _, RawFd},
};

/// `struct page_region` (include/uapi/linux/fs.h): pages that are alike.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<Scan>() as u64) << 16 | (b'f' as u64) << 8 | 16;
/// `PAGE_IS_FILE`, `PAGE_IS_PRESENT`, `PAGE_IS_SWAPPED` and `PAGE_IS_PFNZERO`.
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO: u64 = 1 << 5;

/// So many regions are asked for at once.
const AT_ONCE: usize = 1024;

/// Pages that are alike, by their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedPages {
    /// From the first to behind the last.
    pub range: Range<u64>,
    /// They are a file's, or shared.
    pub is_of_file: bool,
}

/// The pages of a range that are in memory or swapped out, in order, by a process's open `pagemap`; without those that were read and never
/// written to, which are one page of zeros.
///
/// # Errors
/// The kernel knows no such call.
pub fn scan_pages(pagemap: &File, range: Range<u64>) -> io::Result<Vec<ScannedPages>> {
    let mut found = Vec::new();
    let mut regions = vec![PageRegion::default(); AT_ONCE];
    let mut start = range.start;
    while start < range.end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start,
            end: range.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: AT_ONCE as u64,
            category_inverted: ZERO,
            category_mask: ZERO,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: FILE,
            ..Scan::default()
        };
        let count = ask(pagemap.as_raw_fd(), &mut scan)?;
        found.extend(regions.iter().take(count).map(|region| ScannedPages {
            range: region.start..region.end,
            is_of_file: region.categories & FILE != 0,
        }));
        if scan.walk_end <= start {
            break;
        }
        start = scan.walk_end;
    }
    Ok(found)
}

fn ask(pagemap: RawFd, scan: &mut Scan) -> io::Result<usize> {
    // SAFETY: the argument is of the size that it says, and its vector has room for as many regions as it says; both live through the call.
    let count = unsafe { libc::ioctl(pagemap, PAGEMAP_SCAN, std::ptr::from_mut(scan)) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::{fs::File, hint::black_box};

    use super::scan_pages;

    #[test]
    fn what_was_written_to_is_there_and_holes_are_passed_over() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut large = Vec::<u8>::with_capacity(1 << 30);
        large.extend_from_slice(&[1; 10_000]);
        let start = black_box(large.as_ptr()) as u64;
        let range = start - start % 4096..start + (1 << 30);
        let Ok(found) = scan_pages(&pagemap, range) else {
            // An older kernel.
            return;
        };
        let first = found.first().unwrap();
        assert!(!first.is_of_file && first.range.end >= start + 10_000);
        let bytes: u64 = found
            .iter()
            .map(|part| part.range.end - part.range.start)
            .sum();
        assert!(bytes <= 8 << 20, "{bytes}");
    }
}
