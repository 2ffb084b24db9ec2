//! The allocators of a process: what it maps, what is in those files, where the probes go.
//!
//! Owns the way from a process id to a list of sites with their cookies, and the words for what stands in the way. Files are
//! read once, however many processes map them. Must not know how a probe is attached.

mod code;
mod files;
mod memory;

pub use files::Files;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leakscope_common::{Function, HIT_SLOTS, ProbeCookie};
use thiserror::Error;

use super::allocator::AllocatorKind;
use super::loading::read_maps_with_coming_code;
use super::process::{Device, MemoryMap, Process, ProcessError, open_mapped_through, read_process};
use super::site::ProbeSite;
use files::Facts;
use memory::{CodeInMemory, Comparison};

/// Why a process has no allocators to look for.
#[derive(Debug, Error)]
pub enum DiscoverError {
    /// It cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It is part of the kernel.
    #[error("{pid} ({comm}) is a kernel thread: it has no memory of its own to trace")]
    KernelThread {
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// It has ended, or is about to.
    #[error(
        "process {pid} ({comm}) has ended and waits for its parent to notice: nothing is left of it to trace"
    )]
    Ended {
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
    },
}

/// How an allocator came into the process. In the order in which the dynamic loader looks a symbol up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placement {
    /// Linked into the program.
    Executable,
    /// Named in `LD_PRELOAD`.
    Preloaded,
    /// A library.
    Library,
    /// The C library: what is called where nobody else defines the function.
    CLibrary,
}

impl fmt::Display for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Executable => "in the program",
            Self::Preloaded => "preloaded",
            Self::Library => "library",
            Self::CLibrary => "C library",
        })
    }
}

/// A mapped file, open.
#[derive(Clone, Debug)]
pub struct MappedFile {
    /// Its name in the process's mount namespace.
    pub path: PathBuf,
    /// Its device as stat(2) gives it. With the inode it tells two containers' files of one name apart.
    pub device: Device,
    /// Its inode.
    pub inode: u64,
    file: Arc<File>,
}

impl MappedFile {
    /// A path that leads to this very file from any mount namespace, for as long as this value or a clone of it lives.
    #[must_use]
    pub fn attach_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A function to put a probe on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFunction {
    /// What it is.
    pub function: Function,
    /// Its name.
    pub name: String,
    /// Its other names at the same address.
    pub aliases: Vec<String>,
    /// Offset of its first byte in the file.
    pub file_offset: u64,
    /// Address of its first byte in the file's own terms, before relocation.
    pub vaddr: u64,
    /// Where the probe goes.
    pub site: ProbeSite,
    /// The cookie of the probe at the site. The hit slots are handed out for this process alone.
    pub cookie: ProbeCookie,
    /// A breakpoint stands in its code in memory, this many bytes from its first: see [`Discovery::foreign_breakpoints`].
    pub breakpoint: Option<u64>,
}

impl FoundFunction {
    /// Offset of the site in the file: what a uprobe wants.
    #[must_use]
    pub fn probe_offset(&self) -> u64 {
        self.file_offset.saturating_add(self.site.offset_from_entry)
    }

    /// Whether the probe is to see the function's return as well.
    #[must_use]
    pub fn wants_return(&self) -> bool {
        files::wants_return(self.function)
    }

    /// The cookie of the probe at the return, where the stack pointer is back where it was.
    #[must_use]
    pub fn return_cookie(&self) -> ProbeCookie {
        ProbeCookie {
            stack_moved: 0,
            ..self.cookie
        }
    }
}

/// An allocator that a process has mapped.
#[derive(Clone, Debug)]
pub struct FoundAllocator {
    /// Whose it is.
    pub kind: AllocatorKind,
    /// How it came there.
    pub placement: Placement,
    /// The file that holds it.
    pub file: MappedFile,
    /// The functions to put probes on, most called first.
    pub functions: Vec<FoundFunction>,
    /// The functions that are seen without a probe, as they go through others.
    pub covered: Vec<String>,
    /// Where its code lies in the file, offsets, sorted: its functions and what they jump to.
    pub code: Arc<[Range<u64>]>,
}

impl FoundAllocator {
    /// Whether the whole file is the allocator's: a library that is named after it. Others have one built in (CPython's has mimalloc).
    #[must_use]
    pub fn fills_its_file(&self) -> bool {
        let name = match self.kind {
            AllocatorKind::Jemalloc => "jemalloc",
            AllocatorKind::Tcmalloc => "tcmalloc",
            AllocatorKind::Mimalloc => "mimalloc",
            _ => return false,
        };
        let file = self.file.path.file_name().unwrap_or_default();
        self.placement != Placement::Executable && file.to_string_lossy().contains(name)
    }
}

/// Something that a report has to say about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// The file, as the process names it.
    pub path: PathBuf,
    /// What is the matter.
    pub what: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.what)
    }
}

/// What was found in a process.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// The process, as it was when the search began.
    pub process: Process,
    /// Its allocators, in the order in which the dynamic loader looks symbols up.
    pub allocators: Vec<FoundAllocator>,
    /// What stood in the way, and what was passed over.
    pub problems: Vec<FileProblem>,
    /// Those of the problems for which an allocator would not be found even if there is one.
    pub blind: Vec<FileProblem>,
    /// The files with code that it maps.
    pub files: usize,
    /// Those among them that this user may not open.
    pub denied: usize,
}

impl Discovery {
    /// Why there is nothing to trace, where there is nothing.
    #[must_use]
    pub fn why_empty(&self) -> Option<String> {
        if !self.allocators.is_empty() {
            return None;
        }
        let comm = &self.process.comm;
        if self.denied > 0 {
            let which = if self.denied == self.files {
                "the files".to_owned()
            } else {
                format!("{} of the {} files", self.denied, self.files)
            };
            return Some(format!(
                "cannot read {which} that {comm} maps: permission denied"
            ));
        }
        // The program itself is mapped first.
        if let Some(first) = self.blind.first() {
            return Some(first.to_string());
        }
        Some(format!(
            "none of the {} files with code that it maps holds an allocator that is known",
            self.files
        ))
    }

    /// What was not attached to although there may be something, where something else was.
    #[must_use]
    pub fn partly_blind(&self) -> Option<String> {
        let first = self.blind.first().filter(|_| !self.allocators.is_empty())?;
        let more = match self.blind.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        Some(format!("{first}{more}"))
    }
}

impl Discovery {
    /// The breakpoints that others have put into the functions found. To be asked before one's own probes are attached: afterwards
    /// they are among them.
    #[must_use]
    pub fn foreign_breakpoints(&self) -> Vec<FileProblem> {
        let functions = self.allocators.iter().flat_map(|allocator| {
            allocator
                .functions
                .iter()
                .map(move |function| (allocator, function))
        });
        functions
            .filter_map(|(allocator, function)| {
                let at = function.breakpoint?;
                Some(FileProblem {
                    path: allocator.file.path.clone(),
                    what: format!(
                        "another tracer's or debugger's breakpoint stands at {}+{at}; what it costs is not leakscope's",
                        function.name
                    ),
                })
            })
            .collect()
    }
}

/// Finds the allocators of a process. What is known of a file stays in `files`.
///
/// # Errors
/// The process cannot be read, or has nothing to trace. What is wrong with single files stands in [`Discovery::problems`].
pub fn discover(files: &Files, proc_root: &Path, pid: u32) -> Result<Discovery, DiscoverError> {
    let process = read_process(proc_root, pid)?;
    if process.is_kernel_thread {
        return Err(DiscoverError::KernelThread {
            pid,
            comm: process.comm,
        });
    }
    let maps = read_maps_with_coming_code(proc_root, pid)?;
    if process.is_zombie || maps.is_empty() {
        return Err(DiscoverError::Ended {
            pid,
            comm: process.comm,
        });
    }
    let folder = proc_root.join(pid.to_string());
    let surroundings = Surroundings {
        executable: fs::metadata(folder.join("exe"))
            .ok()
            .map(|exe| (exe.dev(), exe.ino())),
        preloaded: preloaded(&folder),
        memory: CodeInMemory::open(&folder),
    };

    let mut discovery = Discovery {
        process,
        allocators: Vec::new(),
        problems: Vec::new(),
        blind: Vec::new(),
        files: 0,
        denied: 0,
    };
    for maps in code_files(&maps) {
        discovery.files += 1;
        let Some(first) = maps.first() else { continue };
        match open_mapped_through(proc_root, pid, first) {
            Ok(opened) => look_into(
                files,
                Arc::new(opened.file),
                &maps,
                &surroundings,
                &mut discovery,
            ),
            Err(error) => {
                discovery.denied += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
                discovery.blind(&first.path, format!("cannot be opened: {error}"));
            }
        }
    }
    discovery.allocators.sort_by(|a, b| {
        (a.placement, a.kind, &a.file.path).cmp(&(b.placement, b.kind, &b.file.path))
    });
    hand_out_slots(&mut discovery.allocators);
    Ok(discovery)
}

/// What belongs to the process rather than to one of its files.
struct Surroundings {
    executable: Option<(u64, u64)>,
    /// The names of the files in `LD_PRELOAD`, without folders.
    preloaded: Vec<Vec<u8>>,
    memory: CodeInMemory,
}

impl Discovery {
    fn problem(&mut self, path: &Path, what: String) {
        let problem = FileProblem {
            path: path.to_owned(),
            what,
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// A problem for which an allocator in the file would not be found.
    fn blind(&mut self, path: &Path, what: String) {
        let problem = FileProblem {
            path: path.to_owned(),
            what: what.clone(),
        };
        if !self.blind.contains(&problem) {
            self.blind.push(problem);
        }
        self.problem(path, what);
    }
}

/// The executable mappings of each file.
fn code_files(maps: &[MemoryMap]) -> Vec<Vec<&MemoryMap>> {
    let mut order = Vec::new();
    let mut by_file: HashMap<(Device, u64), Vec<&MemoryMap>> = HashMap::new();
    for map in maps.iter().filter(|map| map.is_file() && map.executable) {
        let key = (map.device, map.inode);
        by_file.entry(key).or_insert_with(|| {
            order.push(key);
            Vec::new()
        });
        by_file.entry(key).or_default().push(map);
    }
    order.iter().filter_map(|key| by_file.remove(key)).collect()
}

fn look_into(
    files: &Files,
    file: Arc<File>,
    maps: &[&MemoryMap],
    surroundings: &Surroundings,
    discovery: &mut Discovery,
) {
    let Some(first) = maps.first() else { return };
    let path = &first.path;
    let (facts, file) = match files.facts(file, path) {
        Ok(known) => known,
        Err(error) => return discovery.blind(path, format!("cannot be read: {error}")),
    };
    let is_executable = surroundings.executable == Some((facts.key.device, facts.key.inode));
    for note in facts
        .notes
        .iter()
        .chain(facts.program_notes.iter().filter(|_| is_executable))
    {
        discovery.problem(path, note.clone());
    }
    if let Some(why) = facts
        .blind
        .as_ref()
        .or(facts.blind_program.as_ref().filter(|_| is_executable))
    {
        discovery.blind(path, why.clone());
    }
    if facts.allocators.is_empty() {
        return;
    }
    // A file that only ever was in memory (memfd_create(2)) is marked alike.
    if first.deleted && !path.as_os_str().as_bytes().starts_with(b"/memfd:") {
        let what = "has been removed or replaced on disk since it was mapped; the mapped file itself is traced";
        discovery.problem(path, what.to_owned());
    }
    let file = MappedFile {
        path: path.clone(),
        device: Device::from_stat(facts.key.device),
        inode: facts.key.inode,
        file,
    };
    for allocator in &facts.allocators {
        let functions = usable_functions(allocator, maps, surroundings, path, discovery);
        if functions.is_empty() {
            continue;
        }
        discovery.allocators.push(FoundAllocator {
            kind: allocator.kind,
            placement: placement(allocator.kind, &facts, is_executable, path, surroundings),
            file: file.clone(),
            functions,
            covered: allocator.covered.clone(),
            code: Arc::clone(&allocator.code),
        });
    }
}

/// The functions whose code the process maps, unchanged.
fn usable_functions(
    allocator: &files::KnownAllocator,
    maps: &[&MemoryMap],
    surroundings: &Surroundings,
    path: &Path,
    discovery: &mut Discovery,
) -> Vec<FoundFunction> {
    let mut usable = Vec::new();
    for known in &allocator.functions {
        let function = &known.found;
        let Some((map, address)) = maps
            .iter()
            .find_map(|map| Some((map, map.address_of(function.file_offset)?)))
        else {
            discovery.problem(path, format!("{} is not mapped as code", function.name));
            continue;
        };
        // What is still to be mapped is not there to be compared.
        let compared = if map.readable {
            surroundings.memory.compare(address, &known.head)
        } else {
            Comparison::Unknown
        };
        let breakpoint = match compared {
            Comparison::Same | Comparison::Unknown => None,
            Comparison::Breakpoint(at) => Some(at as u64),
            Comparison::Changed(at) => {
                let what = format!(
                    "{} gets no probe: its code was changed in memory at +{at}, and the kernel would run the file's instruction there",
                    function.name
                );
                discovery.problem(path, what);
                continue;
            }
        };
        usable.push(FoundFunction {
            breakpoint,
            ..function.clone()
        });
    }
    usable
}

fn placement(
    kind: AllocatorKind,
    facts: &Facts,
    is_executable: bool,
    path: &Path,
    surroundings: &Surroundings,
) -> Placement {
    let name = path.file_name().unwrap_or_default().as_bytes();
    if is_executable {
        Placement::Executable
    } else if surroundings
        .preloaded
        .iter()
        .any(|preloaded| preloaded == name || facts.is_named(preloaded))
    {
        Placement::Preloaded
    } else if matches!(kind, AllocatorKind::Glibc | AllocatorKind::Musl) {
        Placement::CLibrary
    } else {
        Placement::Library
    }
}

/// `LD_PRELOAD` of the environment that the program was started with: names parted by colons or spaces.
fn preloaded(folder: &Path) -> Vec<Vec<u8>> {
    let environment = fs::read(folder.join("environ")).unwrap_or_default();
    environment
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(b"LD_PRELOAD="))
        .unwrap_or_default()
        .split(|&byte| byte == b':' || byte == b' ')
        .filter_map(|path| path.rsplit(|&byte| byte == b'/').next())
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// The first function of each allocator gets a counter of its own, then the second of each, and so on until only the last counter is
/// left, which the others share.
fn hand_out_slots(allocators: &mut [FoundAllocator]) {
    let longest = allocators
        .iter()
        .map(|allocator| allocator.functions.len())
        .max()
        .unwrap_or(0);
    let mut next = 0_u8;
    for index in 0..longest {
        for function in allocators
            .iter_mut()
            .filter_map(|allocator| allocator.functions.get_mut(index))
        {
            function.cookie.hit_slot = next;
            if usize::from(next) + 1 < HIT_SLOTS {
                next += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
