//! The allocators of a process: what it maps, what is in those files, where the probes go.
//!
//! Owns the way from a process id to a list of sites with their cookies, and the words for what stands in the way. Files are
//! read once, however many processes map them. Must not know how a probe is attached.

mod code;
mod files;
mod found;
mod memory;

pub use files::Files;
pub use found::{Discovery, FileProblem, FoundAllocator, FoundFunction, MappedFile, Placement};

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use leakscope_common::HIT_SLOTS;
use thiserror::Error;

use super::allocator::AllocatorKind;
use super::loading::read_maps_with_coming_code;
use super::procfs::{
    Device, MemoryMap, ProcessError, open_mapped_through, read_environment, read_process,
};
pub(crate) use files::Facts;
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
        preloaded: preloaded(proc_root, pid),
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
    for note in &facts.notes {
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
            ends: facts.ends,
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
fn preloaded(proc_root: &Path, pid: u32) -> Vec<Vec<u8>> {
    let environment = read_environment(proc_root, pid).unwrap_or_default();
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
