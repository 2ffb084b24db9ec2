//! Which allocators an ELF file defines, and with which functions.
//!
//! Owns the knowledge of allocators: their names, how they are told apart, which of their functions are only
//! doors to others. Must not know processes or probes.

mod names;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use leakscope_common::Function;
use serde::{Deserialize, Serialize};

use super::elf::{ElfError, ElfFile, MACHINE_X86_64, ReadAt, Symbol, SymbolKind};
use super::flow::{CodeView, Coverage, Role};
use names::{Family, MARKERS, Meaning, meaning};

/// Most allocator functions at different addresses in one file; mimalloc with its heaps has about 90.
const MOST_FUNCTIONS: usize = 512;

/// Whose allocator it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AllocatorKind {
    /// The GNU C library's.
    Glibc,
    /// The musl C library's, either generation.
    Musl,
    /// jemalloc, under any prefix.
    Jemalloc,
    /// TCMalloc, gperftools' or the later one.
    Tcmalloc,
    /// mimalloc.
    Mimalloc,
    /// `operator new` and `operator delete` of a program's own.
    CppOperators,
    /// A Rust `#[global_allocator]` that does not go through C's functions.
    Rust,
    /// It defines malloc and free; whose it is cannot be told: an interposer, or an allocator not known here.
    Other,
}

impl fmt::Display for AllocatorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Mimalloc => "mimalloc",
            Self::CppOperators => "C++ operator new",
            Self::Rust => "Rust global allocator",
            Self::Other => "unknown allocator",
        })
    }
}

/// A function of an allocator that wants a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatorFunction {
    /// What its arguments mean.
    pub function: Function,
    /// Its name, the best known of those that it has.
    pub name: String,
    /// Other names at the same address.
    pub aliases: Vec<String>,
    /// Address before relocation.
    pub vaddr: u64,
    /// Bytes of code; 0 where the file does not say.
    pub size: u64,
}

/// An allocator that a file defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Whose it is.
    pub kind: AllocatorKind,
    /// The file, as the process names it.
    pub path: PathBuf,
    /// The functions that want a probe, most called first.
    pub functions: Vec<AllocatorFunction>,
    /// Functions that do all they do through others, here or in another file, and so are seen without a probe.
    pub covered: Vec<String>,
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The allocators that it defines; none in most files.
    pub allocators: Vec<Allocator>,
    /// What was passed over, and why, in words for a report.
    pub notes: Vec<String>,
}

/// Finds the allocators that an ELF file defines. `path` is the file as the process names it.
///
/// # Errors
/// The file's tables are damaged, or it cannot be read.
pub fn find_allocators(
    elf: &ElfFile,
    source: &(impl ReadAt + ?Sized),
    path: &Path,
) -> Result<Found, ElfError> {
    let mut found = Found::default();
    let symbols = elf.symbols(source, |name| {
        meaning(name).is_some() || MARKERS.iter().any(|marker| marker.as_bytes() == name)
    })?;
    if !symbols
        .iter()
        .any(|symbol| is_defined(symbol) && meaning(symbol.name.as_bytes()).is_some())
    {
        return Ok(found);
    }
    if is_dynamic_loader(elf, path) {
        found.notes.push(
            "the dynamic loader's malloc is passed over: it serves the loader only".to_owned(),
        );
        return Ok(found);
    }
    let candidates = candidates(elf, &symbols, &mut found.notes);
    if candidates.len() > MOST_FUNCTIONS {
        found.notes.push(format!(
            "passed over: it defines {} allocator functions, and no honest file defines more than {MOST_FUNCTIONS}",
            candidates.len()
        ));
        return Ok(found);
    }
    let slots = elf.symbol_slots(source, |name| meaning(name).is_some())?;
    let view = FileView {
        elf,
        source,
        slots: slots
            .into_iter()
            .filter_map(|(slot, name)| Some((slot, role(meaning(name.as_bytes())?.function))))
            .collect(),
        functions: candidates
            .iter()
            .map(|(&vaddr, candidate)| (vaddr, role(candidate.meaning.function)))
            .collect(),
    };
    let mut coverage = Coverage::new(&view);
    let kinds = Kinds::of(elf, path, &symbols, &candidates);
    let mut groups: BTreeMap<AllocatorKind, Group<'_>> = BTreeMap::new();
    for candidate in candidates.values() {
        let group = groups.entry(kinds.of_candidate(candidate)).or_default();
        // Only x86-64 code can be followed; elsewhere every function gets its probe, and the outermost call wins.
        let covered = elf.machine == MACHINE_X86_64
            && coverage.is_covered(candidate.vaddr, role(candidate.meaning.function));
        if covered {
            &mut group.covered
        } else {
            &mut group.kept
        }
        .push(candidate);
    }
    let imports_realloc = symbols
        .iter()
        .any(|symbol| symbol.name == "realloc" && symbol.kind == SymbolKind::Undefined);
    for (kind, group) in groups {
        // Libraries that bring a `reallocarray` for systems without one: there are no blocks but those of `realloc`.
        let only_adds_to_realloc = imports_realloc
            && group
                .kept
                .iter()
                .all(|candidate| role(candidate.meaning.function) == Role::Reallocates);
        match group.into_allocator(kind, path) {
            Ok(allocator) => found.allocators.push(allocator),
            Err(Some(note)) if !only_adds_to_realloc => found.notes.push(note),
            Err(_) => {}
        }
    }
    Ok(found)
}

fn is_defined(symbol: &Symbol) -> bool {
    matches!(
        symbol.kind,
        SymbolKind::Function | SymbolKind::IndirectFunction
    )
}

fn role(function: Function) -> Role {
    match function {
        Function::Free => Role::Frees,
        Function::PosixMemalign => Role::AllocatesInto,
        Function::Realloc
        | Function::ReallocArray
        | Function::RustRealloc
        | Function::HeapRealloc => Role::Reallocates,
        Function::Malloc
        | Function::Calloc
        | Function::AlignedAlloc
        | Function::Valloc
        | Function::Pvalloc
        | Function::HeapCalloc => Role::Allocates,
    }
}

/// glibc's loader; musl's is its C library too, and is not passed over.
fn is_dynamic_loader(elf: &ElfFile, path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [elf.soname.as_deref().unwrap_or_default(), &name]
        .iter()
        .any(|name| {
            name.starts_with("ld-linux") || name.starts_with("ld64.so") || is_old_loader(name)
        })
}

/// Until glibc 2.33 the loader's file was named after the version (`ld-2.31.so`).
fn is_old_loader(name: &str) -> bool {
    name.strip_prefix("ld-2.")
        .is_some_and(|rest| rest.ends_with(".so"))
}

/// A defined function, with all its names.
struct Candidate {
    name: String,
    aliases: Vec<String>,
    families: Vec<Family>,
    meaning: Meaning,
    vaddr: u64,
    size: u64,
}

/// The functions that a file defines, by address. Of several names at one address the best known counts.
fn candidates(
    elf: &ElfFile,
    symbols: &[Symbol],
    notes: &mut Vec<String>,
) -> BTreeMap<u64, Candidate> {
    let mut at: BTreeMap<u64, Vec<(&Symbol, Meaning)>> = BTreeMap::new();
    for symbol in symbols {
        let Some(meaning) = meaning(symbol.name.as_bytes()) else {
            continue;
        };
        match symbol.kind {
            SymbolKind::Function if elf.is_code(symbol.vaddr) => {
                at.entry(symbol.vaddr).or_default().push((symbol, meaning));
            }
            SymbolKind::Function => {
                notes.push(format!("{} is passed over: its address lies outside of the code", symbol.name));
            }
            SymbolKind::IndirectFunction => notes.push(format!(
                "{} is passed over: it is chosen at load time (IFUNC), and its symbol names the chooser",
                symbol.name
            )),
            SymbolKind::Other | SymbolKind::Undefined => {}
        }
    }
    let mut candidates = BTreeMap::new();
    for (vaddr, mut named) in at {
        named.sort_by_key(|(symbol, meaning)| (meaning.family, meaning.rank, symbol.name.len()));
        let Some(((best, meaning), others)) = named.split_first() else {
            continue;
        };
        let mut aliases: Vec<String> = others
            .iter()
            .map(|(symbol, _)| symbol.name.clone())
            .collect();
        aliases.dedup();
        let candidate = Candidate {
            name: best.name.clone(),
            aliases,
            families: named.iter().map(|(_, meaning)| meaning.family).collect(),
            meaning: *meaning,
            vaddr,
            size: named
                .iter()
                .map(|(symbol, _)| symbol.size)
                .max()
                .unwrap_or(0),
        };
        candidates.insert(vaddr, candidate);
    }
    candidates
}

/// Whose the functions of a file are.
struct Kinds {
    /// Of C's own names.
    c: AllocatorKind,
    /// Of the C++ operators.
    cpp: AllocatorKind,
}

impl Kinds {
    fn of(
        elf: &ElfFile,
        path: &Path,
        symbols: &[Symbol],
        candidates: &BTreeMap<u64, Candidate>,
    ) -> Self {
        let defines = |name: &str| {
            symbols
                .iter()
                .any(|symbol| symbol.name == name && symbol.kind != SymbolKind::Undefined)
        };
        let has = |family| {
            candidates
                .values()
                .any(|candidate| candidate.families.contains(&family))
        };
        let malloc = candidates
            .values()
            .find(|candidate| candidate.name == "malloc");
        let malloc_is = |family| malloc.is_some_and(|malloc| malloc.families.contains(&family));
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let is_glibc = elf.soname.as_deref() == Some("libc.so.6")
            || defines("_int_malloc")
            // Linked statically; but a program may bring a malloc of its own beside the rest of glibc.
            || defines("gnu_get_libc_version")
                && malloc.is_some_and(|malloc| malloc.aliases.iter().any(|alias| alias == "__libc_malloc"));
        let is_musl = file.starts_with("ld-musl-")
            || file.starts_with("libc.musl-")
            || [
                "__dls2b",
                "__dls3",
                "__libc_malloc_impl",
                "__malloc_alloc_meta",
                "__malloc_context",
            ]
            .iter()
            .chain(&["__malloc_donate", "__expand_heap", "__init_libc"])
            .any(|marker| defines(marker));
        let c = if malloc_is(Family::Mimalloc) {
            AllocatorKind::Mimalloc
        } else if malloc_is(Family::Tcmalloc) {
            AllocatorKind::Tcmalloc
        } else if defines("mallctl") || defines("mallocx") {
            AllocatorKind::Jemalloc
        } else if is_glibc {
            AllocatorKind::Glibc
        } else if is_musl {
            AllocatorKind::Musl
        } else if has(Family::Mimalloc) {
            AllocatorKind::Mimalloc
        } else if has(Family::Tcmalloc) {
            AllocatorKind::Tcmalloc
        } else {
            AllocatorKind::Other
        };
        // Neither C library brings C++ operators, so beside another allocator they are that one's.
        let cpp = if has(Family::Mimalloc) {
            AllocatorKind::Mimalloc
        } else if has(Family::Tcmalloc) {
            AllocatorKind::Tcmalloc
        } else if has(Family::PrefixedJemalloc) {
            AllocatorKind::Jemalloc
        } else if malloc.is_some() && !matches!(c, AllocatorKind::Glibc | AllocatorKind::Musl) {
            c
        } else {
            AllocatorKind::CppOperators
        };
        Self { c, cpp }
    }

    fn of_candidate(&self, candidate: &Candidate) -> AllocatorKind {
        let has = |family| candidate.families.contains(&family);
        if has(Family::Mimalloc) {
            AllocatorKind::Mimalloc
        } else if has(Family::Tcmalloc) {
            AllocatorKind::Tcmalloc
        } else if has(Family::PrefixedJemalloc) {
            AllocatorKind::Jemalloc
        } else if has(Family::C) {
            self.c
        } else if has(Family::CppOperators) {
            self.cpp
        } else {
            AllocatorKind::Rust
        }
    }
}

/// The functions of one allocator in one file.
#[derive(Default)]
struct Group<'a> {
    kept: Vec<&'a Candidate>,
    covered: Vec<&'a Candidate>,
}

impl Group<'_> {
    /// The allocator; or that it is none, with a word on it where that could surprise.
    fn into_allocator(
        mut self,
        kind: AllocatorKind,
        path: &Path,
    ) -> Result<Allocator, Option<String>> {
        // Where a language's plain allocation function goes through malloc, the rarer forms do too, even if that is harder to
        // see: they check their arguments first. This is the usual case: libstdc++, and Rust's default allocator.
        for family in [Family::CppOperators, Family::Rust] {
            let is_plain = |candidate: &&Candidate| {
                candidate.families.contains(&family)
                    && candidate.meaning.rank == 0
                    && role(candidate.meaning.function) == Role::Allocates
            };
            if !self.kept.iter().any(is_plain) {
                self.kept
                    .retain(|candidate| candidate.meaning.family != family);
            }
        }
        let frees = |candidate: &&Candidate| role(candidate.meaning.function) == Role::Frees;
        let all = || self.kept.iter().chain(&self.covered).copied();
        let named = || {
            let mut names: Vec<&str> = self
                .kept
                .iter()
                .map(|candidate| candidate.name.as_str())
                .collect();
            names.sort_unstable();
            names.join(", ")
        };
        if self.kept.is_empty() {
            return Err(None);
        }
        let missing = if !all().any(|candidate| frees(&candidate)) {
            Some("free")
        } else if all().all(|candidate| frees(&candidate)) {
            Some("allocate")
        } else {
            None
        };
        if let Some(missing) = missing {
            return Err(Some(format!(
                "{} passed over: not an allocator, as there is no function to {missing} beside",
                named()
            )));
        }
        let mut functions: Vec<(usize, AllocatorFunction)> = self
            .kept
            .iter()
            .map(|candidate| {
                let function = AllocatorFunction {
                    function: candidate.meaning.function,
                    name: candidate.name.clone(),
                    aliases: candidate.aliases.clone(),
                    vaddr: candidate.vaddr,
                    size: candidate.size,
                };
                (candidate.meaning.rank, function)
            })
            .collect();
        functions.sort_by_key(|(rank, function)| (*rank, function.vaddr));
        Ok(Allocator {
            kind,
            path: path.to_owned(),
            functions: functions
                .into_iter()
                .map(|(_, function)| function)
                .collect(),
            covered: self
                .covered
                .iter()
                .flat_map(|candidate| std::iter::once(&candidate.name).chain(&candidate.aliases))
                .cloned()
                .collect(),
        })
    }
}

/// The code of a file, as the walk over it needs it.
struct FileView<'a, S: ?Sized> {
    elf: &'a ElfFile,
    source: &'a S,
    slots: HashMap<u64, Role>,
    functions: HashMap<u64, Role>,
}

impl<S: ReadAt + ?Sized> CodeView for FileView<'_, S> {
    fn code(&self, vaddr: u64, size: u64) -> Option<Vec<u8>> {
        self.elf.code_at(self.source, vaddr, size).ok()
    }

    fn slot(&self, vaddr: u64) -> Option<Role> {
        self.slots.get(&vaddr).copied()
    }

    fn function(&self, vaddr: u64) -> Option<Role> {
        self.functions.get(&vaddr).copied()
    }
}

#[cfg(test)]
mod tests;
