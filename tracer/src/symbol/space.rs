//! Address spaces that outlive their processes: what was mapped where, with every mapped file held open, so that a
//! process that has exited, or a file that was replaced, still gets its names.

use std::{
    collections::HashMap,
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use leakscope_common::PYTHON_FRAME;

use super::called;
use super::perf_map::{Generated, PerfMap};
use super::python::PythonFrames;
use crate::{
    apart,
    process::{
        elf::ElfFile,
        loading::read_maps_with_coming_code,
        open::most_held,
        procfs::{MemoryMap, ProcessError, open_mapped},
    },
};

/// So many addresses are looked up at once.
const MOST_ADDRESSES: usize = 1024;

/// A file that a process has mapped, held open.
#[derive(Debug)]
pub struct Module {
    /// Tells modules apart for as long as the tracer runs.
    pub number: u64,
    /// The number of the first module with the same build-id, this one's where there is none: the same code.
    pub code: u64,
    /// The path as the process sees it.
    pub path: PathBuf,
    /// The root of the process that mapped it first, for debug files inside a container.
    pub root: PathBuf,
    /// The file.
    pub file: File,
    /// What its headers say; `None` where they cannot be read.
    pub elf: Option<ElfFile>,
    /// Its build-id in hexadecimal.
    pub build_id: Option<String>,
    /// `st_dev`, `st_ino`, size in bytes and modification time in nanoseconds: the identity of the contents.
    pub identity: (u64, u64, u64, i64),
}

impl Module {
    /// A path that opens this very file for as long as it is held open.
    #[must_use]
    pub fn open_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The ELF virtual address of a file offset; the offset itself where the headers do not say.
    #[must_use]
    pub fn virtual_address(&self, file_offset: u64) -> u64 {
        self.elf
            .as_ref()
            .and_then(|elf| elf.vaddr_of(file_offset))
            .unwrap_or(file_offset)
    }

    /// The ELF virtual address at which one of the file's mappings begins; the file offset itself where the headers do
    /// not say.
    #[must_use]
    pub fn mapped_at(&self, range: &Range) -> u64 {
        self.elf
            .as_ref()
            .and_then(|elf| elf.vaddr_of_mapping(range.offset, range.executable))
            .unwrap_or(range.offset)
    }
}

/// A mapped range of addresses.
#[derive(Clone, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// Whether code in it can be executed.
    pub executable: bool,
    /// The file; `None` for memory without one.
    pub module: Option<Arc<Module>>,
    /// The kernel's name for memory without a file, such as `[vdso]`, or the path of a file that could not be opened.
    pub label: Option<String>,
}

impl Range {
    /// Where an address of it lies in the file, bytes.
    #[must_use]
    pub fn file_offset(&self, address: u64) -> u64 {
        address.wrapping_sub(self.start).wrapping_add(self.offset)
    }
}

/// Mapped files by identity, shared between processes.
#[derive(Debug, Default)]
pub struct Modules {
    known: HashMap<(u64, u64, u64, i64), Arc<Module>>,
    /// [`Module::code`] by build-id.
    codes: HashMap<String, u64>,
    next: u64,
    /// Files that were not opened, for too many are open.
    refused: u64,
}

impl Modules {
    /// Opens the file behind a mapping, or finds it among those that are open.
    pub(crate) fn open(
        &mut self,
        proc_root: &Path,
        pid: u32,
        map: &MemoryMap,
    ) -> Option<Arc<Module>> {
        let file = open_mapped(proc_root, pid, map).ok()?;
        let metadata = file.metadata().ok()?;
        let identity = (
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        );
        if let Some(module) = self.known.get(&identity) {
            return Some(Arc::clone(module));
        }
        if self.known.len() >= most_held() {
            // Those that nobody maps any more.
            self.known.retain(|_, module| Arc::strong_count(module) > 1);
        }
        if self.known.len() >= most_held() {
            self.refused = self.refused.saturating_add(1);
            return None;
        }
        let elf = apart::headers(&file).ok();
        let build_id = elf
            .as_ref()
            .and_then(|elf| elf.build_id.as_deref())
            .map(hex);
        self.next += 1;
        let number = self.next;
        let code = build_id.as_ref().map_or(number, |build_id| {
            *self.codes.entry(build_id.clone()).or_insert(number)
        });
        let module = Arc::new(Module {
            number,
            code,
            path: map.path.clone(),
            root: proc_root.join(pid.to_string()).join("root"),
            file,
            elf,
            build_id,
            identity,
        });
        self.known.insert(identity, Arc::clone(&module));
        Some(module)
    }
}

impl Modules {
    /// How many files of targets were not opened because too many are open.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// A time of `stat(2)`, nanoseconds since the epoch.
pub(crate) fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where a frame is, as far as it tells one stack from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a file, wherever that is mapped: [`Module::code`], and the offset in it.
    Code(u64, u64),
    /// In generated code without names.
    Generated,
    /// At an address of which nothing else is known.
    Address(u64),
    /// In a function and line of Python: the number of its frame.
    Python(u64),
}

/// What a process has had mapped. Later mappings replace earlier ones where they overlap; what was unmapped stays
/// known, for stacks that were taken before.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// Sorted by start, disjoint.
    ranges: Vec<Range>,
    /// The perf map that the process writes, held open.
    perf_map: Option<Arc<File>>,
    /// What is known of it: the functions at addresses that were asked for.
    generated: PerfMap,
    /// The frames of Python that were seen.
    python: PythonFrames,
}

impl AddressSpace {
    /// Reads the process's mappings now. Returns whether anything executable is new.
    ///
    /// # Errors
    /// The process is gone or may not be read; what was known stays known.
    pub fn refresh(
        &mut self,
        proc_root: &Path,
        pid: u32,
        modules: &mut Modules,
    ) -> Result<bool, ProcessError> {
        self.find_perf_map(proc_root, pid);
        let new: Vec<Range> = read_maps_with_coming_code(proc_root, pid)?
            .iter()
            .filter_map(|map| self.new_range(proc_root, pid, map, modules))
            .collect();
        let new_code = !new.is_empty();
        self.insert_all(new);
        Ok(new_code)
    }

    /// Takes note of what the process maps, or did. Returns whether it is executable, and new.
    pub fn note_mapped(
        &mut self,
        proc_root: &Path,
        pid: u32,
        map: &MemoryMap,
        modules: &mut Modules,
    ) -> bool {
        let new = self.new_range(proc_root, pid, map, modules);
        let is_new = new.is_some();
        if let Some(range) = new {
            self.insert(range);
        }
        is_new
    }

    /// What is mapped, if it is executable and was not known.
    fn new_range(
        &self,
        proc_root: &Path,
        pid: u32,
        map: &MemoryMap,
        modules: &mut Modules,
    ) -> Option<Range> {
        // Data is never a frame.
        if !map.executable {
            return None;
        }
        let same = self.find(map.start).is_some_and(|range| {
            range.start == map.start
                && range.end == map.end
                && range.offset == map.offset
                && match &range.module {
                    Some(module) => module.path == map.path && module.identity.1 == map.inode,
                    None => !map.is_file(),
                }
        });
        if same {
            return None;
        }
        let module = map
            .is_file()
            .then(|| modules.open(proc_root, pid, map))
            .flatten()
            // By then another may lie there.
            .filter(|module| module.identity.1 == map.inode);
        let label = (module.is_none() && !map.path.as_os_str().is_empty())
            .then(|| map.path.to_string_lossy().into_owned());
        Some(Range {
            start: map.start,
            end: map.end,
            offset: map.offset,
            executable: map.executable,
            module,
            label,
        })
    }

    /// Whether the process names the code that it generates in a perf map; such code keeps frame pointers, or profilers could
    /// not use the names.
    #[must_use]
    pub fn has_perf_map(&self) -> bool {
        self.perf_map.is_some()
    }

    /// The file of that name may be a new one each time.
    fn find_perf_map(&mut self, proc_root: &Path, pid: u32) {
        if let Some(map) = PerfMap::open(proc_root, pid) {
            self.perf_map = Some(Arc::new(map));
        }
    }

    /// What tells one stack from another: where in which file its frames are, for a module that is mapped again lies elsewhere; of code
    /// without a file its addresses, but of a row of them in generated code that has no names only that it is there. A compiler at run time
    /// moves a function whenever it compiles it better, and inlines more; its callers see one place all the time. Of Python, functions and lines
    /// tell; by which of its own functions the interpreter gets from one to the next does not.
    #[must_use]
    pub fn identity(&self, frames: &[u64]) -> Vec<Place> {
        let is_python = PythonFrames::are_in(frames);
        let mut identity: Vec<Place> = frames
            .iter()
            .filter(|address| !(is_python && self.python.is_folded(**address)))
            .map(|address| match self.find(*address) {
                _ if address & PYTHON_FRAME != 0 => Place::Python(*address),
                Some(Range {
                    module: Some(module),
                    start,
                    offset,
                    ..
                }) => Place::Code(module.code, (address - start).saturating_add(*offset)),
                Some(Range { label: None, .. }) if self.perf_map.is_none() => Place::Generated,
                _ => Place::Address(*address),
            })
            .collect();
        identity.dedup_by(|one, two| *one == Place::Generated && *two == Place::Generated);
        identity
    }

    /// Its frames of Python.
    #[must_use]
    pub fn python(&self) -> &PythonFrames {
        &self.python
    }

    /// The same, to be added to.
    pub fn python_mut(&mut self) -> &mut PythonFrames {
        &mut self.python
    }

    /// Looks the generated code of some stacks up in the perf map, if there is one. What was known stays known where it cannot be read.
    ///
    /// # Errors
    /// Why the map could not be read.
    pub fn read_perf_map<'stack>(
        &mut self,
        proc_root: &Path,
        pid: u32,
        stacks: impl Iterator<Item = &'stack [u64]>,
    ) -> Result<(), apart::Unread> {
        if self.perf_map.is_none() {
            return Ok(());
        }
        let mut addresses: Vec<u64> = stacks
            .flat_map(|stack| {
                (0..)
                    .zip(stack)
                    .map(|(depth, address)| called(*address, depth))
            })
            .filter(|address| {
                self.find(*address)
                    .is_some_and(|range| range.module.is_none() && range.label.is_none())
            })
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Ok(());
        }
        self.find_perf_map(proc_root, pid);
        let Some(map) = &self.perf_map else {
            return Ok(());
        };
        let mut all: Vec<Generated> = Vec::new();
        for some in addresses.chunks(MOST_ADDRESSES) {
            all.extend(apart::generated(map, some)?);
        }
        self.generated.learn(all);
        Ok(())
    }

    /// The generated function at an address: its name and start.
    #[must_use]
    pub fn generated(&self, address: u64) -> Option<(&str, u64)> {
        self.generated.find(address)
    }

    /// Adds a range and cuts those that it covers.
    pub fn insert(&mut self, new: Range) {
        let from = self.ranges.partition_point(|range| range.end <= new.start);
        let to = self.ranges.partition_point(|range| range.start < new.end);
        let covered = self.ranges.get(from..to.max(from)).unwrap_or_default();
        let before = covered
            .first()
            .and_then(|first| part(first, first.start, new.start));
        let behind = covered
            .last()
            .and_then(|last| part(last, new.end, last.end));
        let placed = before.into_iter().chain([new]).chain(behind);
        self.ranges.splice(from..to.max(from), placed);
    }

    /// Adds many at once, in time that grows with their number and not with its square.
    fn insert_all(&mut self, mut new: Vec<Range>) {
        new.sort_by_key(|range| range.start);
        // Those that overlap others of them: what was said later holds.
        let mut behind = 0;
        let (apart, overlapping): (Vec<Range>, Vec<Range>) = new.into_iter().partition(|range| {
            let is_apart = range.start >= behind && range.end > range.start;
            if is_apart {
                behind = range.end;
            }
            is_apart
        });
        let mut all = Vec::with_capacity(self.ranges.len().saturating_add(apart.len()));
        let mut next = 0;
        for old in self.ranges.drain(..) {
            while apart.get(next).is_some_and(|new| new.end <= old.start) {
                next += 1;
            }
            let mut from = old.start;
            for new in apart.get(next..).unwrap_or_default() {
                if new.start >= old.end {
                    break;
                }
                all.extend(part(&old, from, new.start));
                from = new.end;
            }
            all.extend(part(&old, from, old.end));
        }
        all.extend(apart);
        all.sort_by_key(|range| range.start);
        self.ranges = all;
        for range in overlapping {
            self.insert(range);
        }
    }

    /// The range that holds an address.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Range> {
        let behind = self.ranges.partition_point(|range| range.start <= address);
        self.ranges
            .get(behind.checked_sub(1)?)
            .filter(|range| address < range.end)
    }

    /// All ranges in order.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }
}

/// The part of a range between two addresses, if there is one.
fn part(range: &Range, from: u64, to: u64) -> Option<Range> {
    let (start, end) = (from.max(range.start), to.min(range.end));
    (start < end).then(|| Range {
        start,
        end,
        offset: range.offset.saturating_add(start - range.start),
        ..range.clone()
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{AddressSpace, Module, Place, Range};
    use std::{fs::File, path::PathBuf, sync::Arc};

    fn range(start: u64, end: u64, offset: u64) -> Range {
        Range {
            start,
            end,
            offset,
            executable: true,
            module: None,
            label: Some(format!("{start:x}")),
        }
    }

    fn shape(space: &AddressSpace) -> Vec<(u64, u64, u64)> {
        space
            .ranges()
            .iter()
            .map(|range| (range.start, range.end, range.offset))
            .collect()
    }

    #[test]
    fn a_later_mapping_cuts_what_it_covers() {
        let mut space = AddressSpace::default();
        space.insert(range(0x1000, 0x9000, 0));
        space.insert(range(0x3000, 0x5000, 0x700));
        assert_eq!(
            shape(&space),
            [
                (0x1000, 0x3000, 0),
                (0x3000, 0x5000, 0x700),
                (0x5000, 0x9000, 0x4000)
            ]
        );
        space.insert(range(0x0, 0x4000, 0));
        assert_eq!(
            shape(&space),
            [
                (0, 0x4000, 0),
                (0x4000, 0x5000, 0x1700),
                (0x5000, 0x9000, 0x4000)
            ]
        );
    }

    #[test]
    fn many_at_once_are_as_one_after_the_other() {
        let old = [(0x1000, 0x9000), (0xa000, 0xb000), (0xc000, 0xf000)];
        let new = [
            (0x0, 0x800),
            (0x2000, 0x3000),
            (0x4000, 0x5000),
            (0x8000, 0xa800),
            (0xc000, 0xd000),
            (0xe000, 0x1_0000),
            // Overlaps what was said before.
            (0x4800, 0x6000),
        ];
        let mut one = AddressSpace::default();
        for (start, end) in old {
            one.insert(range(start, end, start));
        }
        let mut all = one.clone();
        for (start, end) in new {
            one.insert(range(start, end, 0));
        }
        all.insert_all(new.map(|(start, end)| range(start, end, 0)).into());
        assert_eq!(shape(&one), shape(&all));
        assert_eq!(one.ranges().len(), 12);
    }

    #[test]
    fn generated_code_without_names_is_one_place() {
        let mut space = AddressSpace::default();
        space.insert(range(0x1000, 0x2000, 0));
        space.insert(Range {
            label: None,
            ..range(0x7000, 0x9000, 0)
        });
        let identity = |frames: &[u64]| space.identity(frames);
        assert_eq!(
            identity(&[0x1010, 0x7100, 0x7200, 0x1020, 0x7300]),
            identity(&[0x1010, 0x8800, 0x1020, 0x7310, 0x7300])
        );
        assert_ne!(identity(&[0x1010, 0x7100]), identity(&[0x1011, 0x7100]));
        assert_ne!(identity(&[0x1010, 0x7100]), identity(&[0x1010]));
        // What is not known to be mapped may be anything.
        assert_eq!(
            identity(&[0x1010, 0xa000]),
            [Place::Address(0x1010), Place::Address(0xa000)]
        );
        let named = AddressSpace {
            perf_map: Some(Arc::new(File::open("/dev/null").unwrap())),
            ..space.clone()
        };
        assert_eq!(
            named.identity(&[0x7100, 0x7200]),
            [Place::Address(0x7100), Place::Address(0x7200)]
        );
    }

    #[test]
    fn a_module_that_is_mapped_again_elsewhere_has_the_same_places() {
        let module = |number, code| {
            Some(Arc::new(Module {
                number,
                code,
                path: PathBuf::from("/lib/plugin.so"),
                root: PathBuf::from("/"),
                file: File::open("/dev/null").unwrap(),
                elf: None,
                build_id: None,
                identity: (0, number, 0, 0),
            }))
        };
        let mut space = AddressSpace::default();
        for (start, number, code) in [
            (0x1000, 1, 1),
            (0x7000, 1, 1),
            (0x9000, 2, 1),
            (0xb000, 3, 3),
        ] {
            space.insert(Range {
                module: module(number, code),
                label: None,
                ..range(start, start + 0x1000, 0x400)
            });
        }
        let identity = |address| space.identity(&[address]);
        assert_eq!(identity(0x1129), [Place::Code(1, 0x529)]);
        assert_eq!(identity(0x1129), identity(0x7129));
        // A copy of the file.
        assert_eq!(identity(0x1129), identity(0x9129));
        assert_ne!(identity(0x1129), identity(0xb129));
    }

    #[test]
    fn addresses_between_ranges_belong_to_none() {
        let mut space = AddressSpace::default();
        space.insert(range(0x1000, 0x2000, 0));
        space.insert(range(0x3000, 0x4000, 0));
        assert!(space.find(0xfff).is_none());
        assert_eq!(space.find(0x1fff).map(|range| range.start), Some(0x1000));
        assert!(space.find(0x2000).is_none());
        assert!(space.find(0x4000).is_none());
    }
}
