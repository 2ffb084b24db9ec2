//! What is known of the files that processes map: each is read once.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use leakscope_common::{Function, ProbeCookie};
use serde::{Deserialize, Serialize};

use super::FoundFunction;
use super::code::code_of;
use crate::apart;
use crate::process::allocator::{Allocator, AllocatorFunction, AllocatorKind, find_allocators};
use crate::process::elf::{ElfError, ElfFile, MACHINE_X86_64, SymbolKind, is_go};
use crate::process::site::select_with;

/// Most files that are remembered. A machine with a thousand containers maps some tens of thousands; they are a few hundred bytes each.
const MOST_FILES: usize = 65_536;
/// Most bytes of one function that are looked at; code behind them counts as elsewhere.
const LARGEST_FUNCTION: u64 = 64 * 1024;
/// Bytes of a function whose size the file does not give.
const SIZELESS_FUNCTION: u64 = 4096;
/// Bytes of code outside of a function that are looked at for jumps back.
const ELSEWHERE: u64 = 4096;
/// Bytes at a function's start that a hook may overwrite: the longest jump that hooks are made of has 14.
const HOOKED: u64 = 16;
/// Longest instruction, bytes.
const LONGEST_INSTRUCTION: u64 = 15;

/// A file at one time: what changes when its content does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    /// `st_dev`.
    pub(super) device: u64,
    pub(super) inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What a file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Facts {
    #[serde(skip)]
    pub(super) key: FileKey,
    pub(super) allocators: Vec<KnownAllocator>,
    /// What a report should say of the file.
    pub(super) notes: Vec<String>,
    /// Why an allocator in it would not be found.
    pub(super) blind: Option<String>,
    /// The same, if the file is the program itself.
    pub(super) blind_program: Option<String>,
    /// Where `_exit` begins, through which the C library ends a process: an offset of the file.
    pub(super) ends: Option<u64>,
    soname: Option<String>,
}

impl Facts {
    /// Whether the file calls itself so.
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        self.soname
            .as_ref()
            .is_some_and(|soname| soname.as_bytes() == name)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KnownAllocator {
    pub(super) kind: AllocatorKind,
    pub(super) functions: Vec<KnownFunction>,
    pub(super) covered: Vec<String>,
    pub(super) code: Arc<[Range<u64>]>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KnownFunction {
    pub(super) found: FoundFunction,
    /// Its bytes in the file, from the first to behind the instruction at the site.
    pub(super) head: Vec<u8>,
}

type Known = HashMap<FileKey, (Arc<Facts>, Weak<File>)>;

/// What is known of files, for all processes. Files with allocators stay open for as long as somebody uses what was found in them.
#[derive(Default)]
pub struct Files {
    known: Mutex<Known>,
    read: AtomicU64,
}

impl Files {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many files were read and parsed.
    #[must_use]
    pub fn files_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// What is known of a file, and the file: the one given, or one that is open already.
    pub(super) fn facts(
        &self,
        file: Arc<File>,
        path: &Path,
    ) -> io::Result<(Arc<Facts>, Arc<File>)> {
        let metadata = file.metadata()?;
        let key = FileKey {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        if let Some((facts, open)) = self.lock().get_mut(&key) {
            let file = open.upgrade().unwrap_or_else(|| {
                *open = Arc::downgrade(&file);
                file
            });
            return Ok((Arc::clone(facts), file));
        }
        // Two threads may read the same file at the same time: that is harmless, and waiting for each other is not.
        self.read.fetch_add(1, Ordering::Relaxed);
        let (mut facts, is_for_now) = read(&file, path);
        facts.key = key;
        let facts = Arc::new(facts);
        if is_for_now {
            return Ok((facts, file));
        }
        let mut known = self.lock();
        if known.len() >= MOST_FILES {
            known.clear();
        }
        known.insert(key, (Arc::clone(&facts), Arc::downgrade(&file)));
        Ok((facts, file))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half-done under the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn wants_return(function: Function) -> bool {
    function != Function::Free
}

/// Has a file read; also whether that is to be tried again.
fn read(file: &File, path: &Path) -> (Facts, bool) {
    if !apart::is_elf(file) {
        // Code that was written by a just-in-time compiler, or the like.
        return (Facts::default(), false);
    }
    match apart::allocators(file, path) {
        Ok(facts) => (facts, false),
        Err(why) => {
            let facts = Facts {
                blind: Some(why.to_string()),
                ..Facts::default()
            };
            (facts, why.is_for_now())
        }
    }
}

impl Facts {
    /// Reads a file, which the process names so.
    pub(crate) fn read(file: &File, path: &Path) -> Self {
        let mut facts = Self::default();
        let elf = match ElfFile::parse(file) {
            Ok(elf) => elf,
            // Code that was written by a just-in-time compiler, or the like.
            Err(ElfError::NotElf) => return facts,
            Err(ElfError::Unsupported(kind)) => {
                facts.blind = Some(format!(
                    "is {kind}; probes can be attached to 64-bit x86-64 code only"
                ));
                return facts;
            }
            Err(error) => {
                facts.blind = Some(error.to_string());
                return facts;
            }
        };
        facts.soname.clone_from(&elf.soname);
        if elf.machine != MACHINE_X86_64 {
            facts.blind = Some(format!(
                "holds code for another processor (ELF machine {}); leakscope reads x86-64",
                elf.machine
            ));
            return facts;
        }
        match find_allocators(&elf, file, path) {
            Ok(found) => {
                facts.notes.extend(found.notes);
                for allocator in &found.allocators {
                    let known = place(&elf, file, allocator, &mut facts.notes);
                    if !known.functions.is_empty() {
                        facts.allocators.push(known);
                    }
                }
            }
            Err(error) => facts.blind = Some(format!("its symbols: {error}")),
        }
        if !facts.allocators.is_empty() {
            facts.ends = end_of_processes(&elf, file);
        }
        // A Go program has another heap, which is read otherwise.
        if !is_go(&elf)
            && facts.allocators.is_empty()
            && elf.is_static()
            && !elf.has_static_symbols()
        {
            let what = "is linked statically and stripped: an allocator in it has no name to find it by; keep its symbol table (.symtab)";
            facts.blind_program = Some(what.to_owned());
        }
        facts
    }
}

/// Where `_exit` is defined in a file.
fn end_of_processes(elf: &ElfFile, file: &File) -> Option<u64> {
    let symbols = elf.symbols(file, |name| name == b"_exit").ok()?;
    let defined = symbols
        .iter()
        .find(|symbol| symbol.kind == SymbolKind::Function)?;
    elf.file_offset_of(defined.vaddr)
}

/// Chooses the sites of an allocator's functions.
fn place(
    elf: &ElfFile,
    file: &File,
    allocator: &Allocator,
    notes: &mut Vec<String>,
) -> KnownAllocator {
    let mut functions = Vec::new();
    for function in &allocator.functions {
        match place_function(elf, file, function) {
            Ok(known) => functions.push(known),
            Err(error) => notes.push(format!("{} gets no probe: {error}", function.name)),
        }
    }
    KnownAllocator {
        kind: allocator.kind,
        functions,
        covered: allocator.covered.clone(),
        code: code_of(elf, file, allocator).into(),
    }
}

fn place_function(
    elf: &ElfFile,
    file: &File,
    function: &AllocatorFunction,
) -> Result<KnownFunction, ElfError> {
    let size = if function.size == 0 {
        SIZELESS_FUNCTION
    } else {
        function.size.min(LARGEST_FUNCTION)
    };
    let code = elf.code_at(file, function.vaddr, size)?;
    let file_offset = elf
        .file_offset_of(function.vaddr)
        .ok_or(ElfError::Damaged("a function's address lies in no segment"))?;
    let mut elsewhere = |at: u64| elf.code_at(file, at, ELSEWHERE).ok();
    let site = select_with(
        &code,
        function.vaddr,
        function.function,
        wants_return(function.function),
        &mut elsewhere,
    );
    let head = site
        .offset_from_entry
        .saturating_add(LONGEST_INSTRUCTION)
        .max(HOOKED);
    let head = code
        .get(..code.len().min(usize::try_from(head).unwrap_or(usize::MAX)))
        .unwrap_or_default()
        .to_vec();
    let cookie = ProbeCookie {
        function: site.function as u8,
        hit_slot: 0,
        stack_moved: site.stack_moved,
        for_children: 0,
    };
    Ok(KnownFunction {
        found: FoundFunction {
            function: function.function,
            name: function.name.clone(),
            aliases: function.aliases.clone(),
            file_offset,
            vaddr: function.vaddr,
            site,
            cookie,
            breakpoint: None,
        },
        head,
    })
}
