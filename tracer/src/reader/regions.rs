//! The regions of a live process: what is data, stack, heap or constant, and which pages of it were ever written to.

mod shared;

use std::{
    collections::HashSet, fs, fs::File, ops::Range, os::unix::fs::MetadataExt as _, path::Path,
};

use leakscope_common::PAGE_BYTES;

use super::{ReadError, names::data_vaddr, stacks};
use crate::{
    heap::{Region, RegionKind},
    kernel::scan_pages,
    process::procfs::{
        Device, MemoryMap,
        pagemap::{FILE_OR_SHARED, PRESENT, SWAPPED, read_entries},
        read_maps,
    },
    symbol::Modules,
};
use shared::SharedMemory;

/// Where the kernel does not tell of pages by itself each is looked at, of so many at most: those of 256 GiB. More are no memory, but room that
/// is kept free.
const MOST_PAGES: u64 = 1 << 26;

/// So many pages are asked for at once: those of 128 MiB.
const PAGES_AT_ONCE: u64 = 1 << 15;

/// Below the stack pointer a function may use so many bytes (the red zone of the System V ABI for x86-64, 3.2.2).
const RED_ZONE: u64 = 128;

/// The address space of a process at one moment.
#[derive(Clone, Debug, Default)]
pub struct AddressSpaceImage {
    /// Its regions, by address.
    pub regions: Vec<Region>,
    /// For each region the mapping of the file that it belongs to, `.bss` to the data before it.
    pub(super) files: Vec<Option<MemoryMap>>,
    /// Whether it runs CPython.
    pub is_python: bool,
    /// Bytes of anonymous memory that is in memory or swapped out.
    pub anonymous_bytes: u64,
    /// What threads that wait in system calls have in the registers that the kernel tells of.
    pub registers: Vec<u64>,
    /// Mappings of files on file systems that may not answer: they are not read.
    pub unread_mappings: usize,
}

impl AddressSpaceImage {
    /// The mapping of a file that an address lies in.
    pub(super) fn file_of(&self, address: u64) -> Option<&MemoryMap> {
        let behind = self
            .regions
            .partition_point(|region| region.range.start <= address);
        let place = behind.checked_sub(1)?;
        let region = self.regions.get(place)?;
        let map = self.files.get(place)?.as_ref()?;
        region.range.contains(&address).then_some(map)
    }
}

/// Reads which regions a process has.
///
/// # Errors
/// The process is gone, or we may not read it.
pub fn read_address_space(proc_root: &Path, pid: u32) -> Result<AddressSpaceImage, ReadError> {
    let maps = read_maps(proc_root, pid)?;
    let folder = proc_root.join(pid.to_string());
    let path = folder.join("pagemap");
    let pagemap = File::open(&path).map_err(|source| ReadError::Memory { pid, path, source })?;
    let threads = stacks::threads(proc_root, pid);
    let answering = answering_devices(&folder);
    let mut image = AddressSpaceImage {
        registers: threads
            .iter()
            .flat_map(|thread| thread.arguments.iter().copied())
            .collect(),
        ..AddressSpaceImage::default()
    };
    let mut left = MOST_PAGES;
    let mut shared = SharedMemory::default();
    for (map, file) in with_files(proc_root, pid, maps, &answering) {
        if !is_readable(&map) {
            continue;
        }
        let name = map.path.to_string_lossy().into_owned();
        image.is_python |= map.executable && is_python(&map.path);
        let Some(pages) = Pages::of(&pagemap, &map, &mut left) else {
            image.unread_mappings += 1;
            continue;
        };
        let Some((kind, present)) = kind_of(&map, file.is_some(), pages) else {
            continue;
        };
        let present = if kind == RegionKind::Shared {
            shared.only_new(&map, present)
        } else {
            image.anonymous_bytes += bytes(&present);
            present
        };
        if map.is_file() && kind != RegionKind::Shared && !answering.contains(&map.device) {
            image.unread_mappings += 1;
            continue;
        }
        let is_plain = kind == RegionKind::Anonymous;
        let thread = threads.iter().find(|thread| {
            thread
                .stack_pointer
                .is_some_and(|pointer| (map.start..map.end).contains(&pointer))
        });
        let region = match thread {
            Some(thread) if is_plain || kind == RegionKind::Stack => Region {
                range: map.start..map.end,
                // What lies below the stack pointer is left from calls that have returned.
                present: from(
                    present,
                    thread.stack_pointer.unwrap_or(0).saturating_sub(RED_ZONE),
                ),
                kind: RegionKind::Stack,
                name: format!("thread {} ({}) stack", thread.name, thread.id),
            },
            _ => Region {
                range: map.start..map.end,
                present,
                kind,
                name: file
                    .as_ref()
                    .map_or(name, |file| file.path.to_string_lossy().into_owned()),
            },
        };
        // The data segment that `brk` moves may be split by permissions.
        if let Some(last) = image.regions.last_mut()
            && last.kind == RegionKind::Brk
            && region.kind == RegionKind::Brk
            && last.range.end == region.range.start
        {
            last.range.end = region.range.end;
            last.present.extend(region.present);
            continue;
        }
        image.regions.push(region);
        image.files.push(file);
    }
    Ok(image)
}

/// Each mapping with the mapping of the file that it belongs to: behind the data of a file stands its `.bss`, which has no file, and
/// which the kernel makes one mapping with others that happen to follow.
fn with_files(
    proc_root: &Path,
    pid: u32,
    maps: Vec<MemoryMap>,
    answering: &HashSet<Device>,
) -> Vec<(MemoryMap, Option<MemoryMap>)> {
    let mut modules = Modules::default();
    let mut all: Vec<(MemoryMap, Option<MemoryMap>)> = Vec::with_capacity(maps.len());
    for map in maps {
        if map.is_file() {
            all.push((map.clone(), Some(map)));
            continue;
        }
        let data = all.last().and_then(|(last, file)| {
            let follows = last.is_file()
                && last.writable
                && !last.shared
                && last.end == map.start
                && map.path.as_os_str().is_empty();
            file.clone()
                .filter(|file| follows && answering.contains(&file.device))
        });
        let end = data
            .as_ref()
            .and_then(|data| end_of_data(proc_root, pid, data, &mut modules))
            .unwrap_or(map.start)
            .clamp(map.start, map.end);
        if end > map.start {
            let bss = MemoryMap { end, ..map.clone() };
            all.push((bss, data));
        }
        if end < map.end {
            all.push((MemoryMap { start: end, ..map }, None));
        }
    }
    all
}

/// Where the memory of a file's data ends: its program headers say so.
fn end_of_data(proc_root: &Path, pid: u32, data: &MemoryMap, modules: &mut Modules) -> Option<u64> {
    let module = modules.open(proc_root, pid, data)?;
    let elf = module.elf.as_ref()?;
    let start = data_vaddr(elf, data.offset)?;
    let end = elf
        .segments
        .iter()
        .filter_map(|segment| {
            let end = segment.vaddr.checked_add(segment.memory_size)?;
            (segment.vaddr <= start.saturating_add(PAGE_BYTES) && end > start).then_some(end)
        })
        .max()?;
    let length = end
        .checked_sub(start)?
        .checked_next_multiple_of(PAGE_BYTES)?;
    data.start.checked_add(length)
}

/// Which pages of a mapping there are.
#[derive(Default)]
struct Pages {
    /// Anonymous ones.
    anonymous: Vec<Range<u64>>,
    /// Those of a file, or shared.
    others: Vec<Range<u64>>,
}

impl Pages {
    /// `None` where there are too many to look at.
    fn of(pagemap: &File, map: &MemoryMap, left: &mut u64) -> Option<Self> {
        let mut pages = Self::default();
        if let Ok(found) = scan_pages(pagemap, map.start..map.end) {
            for part in found {
                pages.of_kind(part.is_of_file).push(part.range);
            }
            return Some(pages);
        }
        *left = left.checked_sub(map.end.saturating_sub(map.start) / PAGE_BYTES)?;
        let last = map.end / PAGE_BYTES;
        let mut page = map.start / PAGE_BYTES;
        while page < last {
            let entries = read_entries(pagemap, page, (last - page).min(PAGES_AT_ONCE));
            if entries.is_empty() {
                // The process is gone, or these are addresses of the kernel.
                break;
            }
            for entry in entries {
                if entry & (PRESENT | SWAPPED) != 0 {
                    let kind = pages.of_kind(entry & FILE_OR_SHARED != 0);
                    add(kind, page * PAGE_BYTES);
                }
                page += 1;
            }
        }
        Some(pages)
    }

    fn of_kind(&mut self, is_of_file: bool) -> &mut Vec<Range<u64>> {
        if is_of_file {
            &mut self.others
        } else {
            &mut self.anonymous
        }
    }
}

/// Adds a page to ranges.
fn add(ranges: &mut Vec<Range<u64>>, start: u64) {
    let end = start.saturating_add(PAGE_BYTES);
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end = end,
        _ => ranges.push(start..end),
    }
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// What of some ranges lies at an address or above it.
fn from(ranges: Vec<Range<u64>>, address: u64) -> Vec<Range<u64>> {
    let address = address - address % 8;
    ranges
        .into_iter()
        .filter(|range| range.end > address)
        .map(|range| range.start.max(address)..range.end)
        .collect()
}

/// Whether there is memory of the process behind a mapping, which may be read.
fn is_readable(map: &MemoryMap) -> bool {
    let name = map.path.as_os_str().as_encoded_bytes();
    let is_kernels = matches!(
        name,
        b"[vvar]" | b"[vsyscall]" | b"[vvar_vclock]" | b"[vdso]"
    );
    map.readable && !is_kernels
}

/// What a mapping is, and which pages of it can hold what the process has written; `None` for what cannot be read.
fn kind_of(
    map: &MemoryMap,
    is_of_file: bool,
    pages: Pages,
) -> Option<(RegionKind, Vec<Range<u64>>)> {
    let name = map.path.as_os_str().as_encoded_bytes();
    if map.shared {
        // A file's pages are the file system's to give; memory that has no file, or one in memory only, is ours to read.
        const IN_MEMORY: [&[u8]; 5] = [
            b"/memfd:",
            b"/SYSV",
            b"/dev/shm/",
            b"/dev/zero",
            b"[anon_shmem",
        ];
        let is_in_memory = name.is_empty() || IN_MEMORY.iter().any(|start| name.starts_with(start));
        return is_in_memory.then_some((RegionKind::Shared, pages.others));
    }
    if name.starts_with(b"/dev/") && !name.starts_with(b"/dev/zero") {
        return None;
    }
    let kind = match name {
        b"[heap]" => RegionKind::Brk,
        b"[stack]" => RegionKind::Stack,
        _ if is_of_file && pages.anonymous.is_empty() => RegionKind::Constant,
        _ if is_of_file => RegionKind::Data,
        _ => RegionKind::Anonymous,
    };
    Some((kind, pages.anonymous))
}

/// The first minor version of CPython 3 whose objects are known.
const FIRST_PYTHON: u32 = 8;

/// Whether a file is CPython, of a version whose objects are known as far as its name says one.
fn is_python(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(version) = name
        .strip_prefix("lib")
        .unwrap_or(&name)
        .strip_prefix("python")
    else {
        return false;
    };
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit());
    match numbers.next().map(str::parse::<u32>) {
        Some(Ok(3)) => numbers
            .next()
            .and_then(|minor| minor.parse().ok())
            .is_none_or(|minor: u32| minor >= FIRST_PYTHON),
        Some(Ok(_)) => false,
        _ => true,
    }
}

/// Devices of the process's mounts whose file systems are served by the kernel: a page of another one may never come, and who reads
/// it sleeps until it does.
fn answering_devices(folder: &Path) -> HashSet<Device> {
    let mut devices: HashSet<Device> = HashSet::new();
    let mut refused = Vec::new();
    let text = fs::read(folder.join("mountinfo")).unwrap_or_default();
    for line in String::from_utf8_lossy(&text).lines() {
        // `id parent major:minor root place options… - type source options` (proc_pid_mountinfo(5)).
        let Some((head, tail)) = line.split_once(" - ") else {
            continue;
        };
        let device = head
            .split(' ')
            .nth(2)
            .and_then(|device| device.split_once(':'))
            .and_then(|(major, minor)| {
                Some(Device {
                    major: major.parse().ok()?,
                    minor: minor.parse().ok()?,
                })
            });
        let Some(device) = device else { continue };
        if tail.starts_with("fuse") {
            refused.push(device);
        } else {
            devices.insert(device);
        }
    }
    // File systems of which parts have devices of their own (btrfs) name another one here.
    for place in ["/", "/usr", "/bin", "/lib", "/opt", "/var", "/home"] {
        if let Ok(metadata) = fs::metadata(place) {
            devices.insert(Device::from_stat(metadata.dev()));
        }
    }
    for device in refused {
        devices.remove(&device);
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::{add, from, is_python};
    use std::path::Path;

    #[test]
    fn objects_of_python_3_6_were_read_as_those_of_later_ones() {
        for known in [
            "python3.8",
            "python",
            "python3",
            "libpython3.11.so.1.0",
            "libpython3.13t.so",
        ] {
            assert!(
                is_python(Path::new("/usr/bin").join(known).as_path()),
                "{known}"
            );
        }
        for other in [
            "python3.6",
            "libpython3.7m.so.1.0",
            "python2.7",
            "perl",
            "libpython2.7.so.1",
        ] {
            assert!(
                !is_python(Path::new("/usr/bin").join(other).as_path()),
                "{other}"
            );
        }
    }

    #[test]
    fn pages_that_follow_each_other_are_one_range() {
        let mut ranges = Vec::new();
        for page in [1, 2, 3, 7, 8] {
            add(&mut ranges, page * 4096);
        }
        assert_eq!(ranges, [4096..16_384, 28_672..36_864]);
        let rest: Vec<_> = std::iter::once(30_000..36_864).collect();
        assert_eq!(from(ranges, 30_003), rest);
    }
}
