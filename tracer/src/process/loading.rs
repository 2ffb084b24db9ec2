//! What a process maps, with the code that its dynamic loader is about to map.
//!
//! A loader maps a library's whole length first, from its beginning and as its first segment, at an address that the kernel chooses;
//! then the other segments into that, at addresses that follow from the file (glibc `_dl_map_segments`, musl `map_library`). Where only the
//! first call is seen, the code is known by it.

use std::{collections::HashSet, path::Path};

use crate::apart;

use super::{
    elf::ElfFile,
    procfs::{MemoryMap, ProcessError, open_mapped, read_maps},
};

/// A page, bytes (x86_64).
const PAGE: u64 = 4096;

/// Reads what a process maps, and appends the code that is about to be mapped: executable, and not readable yet.
///
/// # Errors
/// As for [`read_maps`].
pub fn read_maps_with_coming_code(
    proc_root: &Path,
    pid: u32,
) -> Result<Vec<MemoryMap>, ProcessError> {
    let mut maps = read_maps(proc_root, pid)?;
    let has_code: HashSet<_> = maps
        .iter()
        .filter(|map| map.executable)
        .map(|map| (map.device, map.inode))
        .collect();
    let coming: Vec<MemoryMap> = maps
        .iter()
        .filter(|map| is_beginning(map) && !has_code.contains(&(map.device, map.inode)))
        .flat_map(|map| {
            // What cannot be opened or is no ELF file has no code to come.
            let file = open_mapped(proc_root, pid, map).ok();
            let elf = file.and_then(|file| apart::headers(&file).ok());
            elf.map(|elf| coming_code(map, &elf)).unwrap_or_default()
        })
        .collect();
    maps.extend(coming);
    Ok(maps)
}

/// Whether it may be a library of which nothing else is mapped yet.
fn is_beginning(map: &MemoryMap) -> bool {
    map.is_file()
        && map.offset == 0
        && map.readable
        && !(map.writable || map.executable || map.shared)
}

/// Where a file's code will be that is mapped from its beginning, in the whole length that its segments have in memory. One that is mapped to be
/// read has another length: the file's.
fn coming_code(map: &MemoryMap, elf: &ElfFile) -> Vec<MemoryMap> {
    let down = |address: u64| address & !(PAGE - 1);
    let up = |address: u64| down(address.saturating_add(PAGE - 1));
    let ends = elf.segments.iter();
    let highest = ends
        .map(|segment| up(segment.vaddr.saturating_add(segment.memory_size)))
        .max();
    let Some(lowest) = elf.segments.iter().map(|segment| down(segment.vaddr)).min() else {
        return Vec::new();
    };
    let length = map.end.saturating_sub(map.start);
    if highest.and_then(|highest| highest.checked_sub(lowest)) != Some(length) {
        return Vec::new();
    }
    elf.segments
        .iter()
        .filter(|segment| segment.executable)
        .filter_map(|segment| {
            let at = |vaddr: u64| map.start.checked_add(vaddr.checked_sub(lowest)?);
            let end = segment.vaddr.checked_add(segment.file_size)?;
            Some(MemoryMap {
                start: at(down(segment.vaddr))?,
                end: at(up(end))?,
                offset: down(segment.file_offset),
                readable: false,
                executable: true,
                ..map.clone()
            })
        })
        .filter(|code| code.end <= map.end)
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "tests")]

    use super::{coming_code, is_beginning};
    use crate::process::{
        elf::ElfFile,
        procfs::{MemoryMap, read_maps},
    };
    use std::{fs::File, path::Path};

    /// Our own C library, as it is mapped, and as its loader mapped it first: with what lies behind its file.
    fn own_library() -> (Vec<MemoryMap>, MemoryMap) {
        let maps = read_maps(Path::new("/proc"), std::process::id()).expect("our own");
        let is_library = |map: &&MemoryMap| map.path.to_string_lossy().contains("libc.so");
        let of_library: Vec<MemoryMap> = maps.iter().filter(is_library).cloned().collect();
        let first = of_library.first().cloned().expect("a C library");
        let mut end = of_library.last().expect("a C library").end;
        for map in maps.iter().filter(|map| map.path.as_os_str().is_empty()) {
            if map.start == end {
                end = map.end;
            }
        }
        (of_library, MemoryMap { end, ..first })
    }

    #[test]
    fn a_library_of_which_only_the_beginning_is_mapped_has_its_code_where_it_will_be() {
        let (maps, whole) = own_library();
        let elf = ElfFile::parse(&File::open(&whole.path).expect("opened")).expect("an ELF file");
        let code: Vec<_> = coming_code(&whole, &elf)
            .iter()
            .map(|map| (map.start, map.end, map.offset))
            .collect();
        let there: Vec<_> = maps
            .iter()
            .filter(|map| map.executable)
            .map(|map| (map.start, map.end, map.offset))
            .collect();
        assert_eq!(code, there);
        assert!(is_beginning(&whole));
        // A file that is mapped to be read is no library that is being loaded.
        let size = std::fs::metadata(&whole.path).expect("its size").len();
        for length in [4096, size.next_multiple_of(4096)] {
            let part = MemoryMap {
                end: whole.start + length,
                ..whole.clone()
            };
            assert_eq!(coming_code(&part, &elf), []);
        }
    }
}
