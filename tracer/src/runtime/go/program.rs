//! Finds Go's runtime in a process: its version, its table of functions, and where its variables lie. By what stays in stripped files:
//! the build information, the table, and the code. Each place is checked against another before it is believed.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    bytes::word,
    code::{LONGEST, Reference, references, returns},
    functions::FunctionTable,
    version::{Layout, Version, known},
};
use crate::{
    heap::Memory,
    process::elf::{ElfFile, MACHINE_X86_64, Segment},
};

/// `pcHeader.magic` since Go 1.18 and 1.20, with `pad1`, `pad2`, `minLC` (1 on x86) and `ptrSize`.
const MAGICS: [[u8; 8]; 2] = [
    [0xf0, 0xff, 0xff, 0xff, 0, 0, 1, 8],
    [0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8],
];
/// Bytes of `pcHeader`, and where it says where names begin.
const HEADER: usize = 72;
const NAMES: usize = 32;

/// Places in `moduledata`: `pclntable`, `minpc`, `maxpc`, `text`, `etext` (the same in all known versions).
const LAST_PART: usize = 104;
const FIRST_CODE: usize = 160;
const LAST_CODE: usize = 168;
const TEXT: usize = 176;
const TEXT_END: usize = 184;
/// Bytes of it that are read.
const MODULE: usize = 512;

/// The largest table that is read, bytes: the largest programs have some 100 MiB.
const LARGEST_TABLE: u64 = 128 << 20;
/// The most of a program's data that is searched for `moduledata`, bytes.
const MOST_SEARCHED: u64 = 256 << 20;
/// Bytes that are searched at once.
const PIECE: usize = 1 << 20;
/// Bytes in which the build information is looked for where it has no section, and how it is aligned (debug/buildinfo).
const BUILD_INFO_WITHIN: usize = 64 << 10;
const BUILD_INFO_ALIGN: usize = 16;

/// Why a Go program is not read.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum GoError {
    /// Code of another machine.
    #[error("its Go runtime is read on x86-64 only")]
    Machine,
    /// There is no build information.
    #[error("it does not say which Go built it (.go.buildinfo)")]
    NoVersion,
    /// A version of which nothing is known.
    #[error("it was built by {0}; leakscope reads {known}", known = known())]
    Version(String),
    /// Something is not as it is in this version.
    #[error("{version}: {what} was not found where this version has it")]
    Layout {
        /// The version.
        version: String,
        /// What is missing.
        what: String,
    },
    /// Who reads it for us has no answer.
    #[error("{0}")]
    Unread(String),
    /// The tables of others take all the room that there is.
    #[error(
        "the tables of functions of other Go programs take all the room that there is for them"
    )]
    Room,
}

/// Go's runtime in a program's file; addresses are those of the file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Program {
    /// Which Go built it.
    pub version: Version,
    /// Its functions.
    pub functions: FunctionTable,
    /// Where its variables lie.
    pub places: Places,
    /// The instructions at which the functions return that compiled code calls for a block, `mallocgc` and since Go 1.27 one for each small
    /// size: the block's address is in the first register for results.
    pub returns: Vec<u64>,
    /// The same of the function that makes a span for a block of its own: in the register is where its `mspan` lies.
    pub returns_of_large: Vec<u64>,
}

/// What must be known of a program to look at its heap and goroutines; addresses are those of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub(super) layout: Layout,
    /// Where descriptors of types begin.
    pub(super) types: u64,
    /// `runtime.mbuckets`: the first bucket of the heap profile.
    pub(super) buckets: u64,
    /// `runtime.mProfCycle`; its lowest bit says whether the cycle was flushed.
    pub(super) cycle: u64,
    /// Where `runtime.MemProfileRate` may be: the one that holds a rate.
    pub(super) rates: Vec<u64>,
    /// Where `runtime.allgs` may be.
    pub(super) all_goroutines: Vec<u64>,
    /// `runtime.waitReasonStrings`.
    pub(super) reasons: Option<u64>,
    /// Where `runtime.mheap_` may be.
    pub(super) heaps: Vec<u64>,
    /// Where `runtime.main` begins.
    pub(super) main: Option<u64>,
}

/// A program's file where a process has it.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// What its headers say.
    pub elf: &'a ElfFile,
    /// What its addresses are higher by in the process.
    pub bias: u64,
}

impl Image<'_> {
    /// Reads memory at an address of the file: all of it, or nothing.
    fn read(&self, memory: &dyn Memory, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        let read = memory.read(address.wrapping_add(self.bias), &mut buffer);
        (read == bytes).then_some(buffer)
    }

    /// Segments with data.
    fn data(&self) -> impl Iterator<Item = &Segment> {
        let segments = self.elf.segments.iter();
        segments.filter(|segment| !segment.executable && segment.file_size > 0)
    }

    /// Calls back with what the file has of each of its data segments, piece by piece, as it is in memory, until there is an answer.
    /// Pieces overlap by `overlap` bytes.
    fn search<T>(
        &self,
        memory: &dyn Memory,
        overlap: usize,
        mut look: impl FnMut(u64, &[u8]) -> Option<T>,
    ) -> Option<T> {
        let mut left = MOST_SEARCHED;
        for segment in self.data() {
            let mut done = 0_u64;
            while done < segment.file_size && left > 0 {
                let rest = segment.file_size - done;
                let bytes = usize::try_from(rest.min((PIECE + overlap) as u64)).ok()?;
                let address = segment.vaddr.wrapping_add(done);
                if let Some(piece) = self.read(memory, address, bytes)
                    && let Some(found) = look(address, &piece)
                {
                    return Some(found);
                }
                done = done.saturating_add(PIECE as u64);
                left = left.saturating_sub(PIECE as u64);
            }
        }
        None
    }
}

/// `moduledata`, as far as it is needed.
struct Module {
    /// Where `pcHeader` lies, an address of the file, and the table's bytes from there on.
    header: u64,
    table_bytes: usize,
    /// Where code begins.
    text: u64,
    /// `gofunc`.
    data: u64,
    /// `types`.
    types: u64,
}

impl Program {
    /// Whether its parts are of one version.
    pub(crate) fn is_consistent(&self) -> bool {
        let layout = self.version.layout();
        layout == Some(self.places.layout) && layout == Some(self.functions.layout())
    }

    /// Finds the runtime.
    ///
    /// # Errors
    /// See [`GoError`].
    pub fn find(memory: &dyn Memory, image: Image<'_>) -> Result<Self, GoError> {
        if image.elf.machine != MACHINE_X86_64 {
            return Err(GoError::Machine);
        }
        let version = version(memory, image).ok_or(GoError::NoVersion)?;
        let layout = version
            .layout()
            .ok_or_else(|| GoError::Version(version.name.clone()))?;
        let missing = |what: &str| GoError::Layout {
            version: version.name.clone(),
            what: what.to_owned(),
        };
        let module = module(memory, image, &layout).ok_or_else(|| missing("moduledata"))?;
        let functions = functions(memory, image, layout, &module)
            .ok_or_else(|| missing("the table of functions"))?;
        let code = Code {
            memory,
            image,
            functions: &functions,
        };
        let buckets = code.of("runtime.mProf_FlushLocked");
        let buckets = buckets.iter().find(|it| it.bytes == 8);
        let buckets = buckets.ok_or_else(|| missing("runtime.mbuckets"))?.address;
        // Blocks are sampled and freed by the same cycle.
        let freed = code.of("runtime.mProf_Free");
        let sampled = code.of("runtime.mProf_Malloc");
        let cycle = sampled
            .iter()
            .find(|it| it.bytes == 4 && freed.contains(it))
            .ok_or_else(|| missing("runtime.mProfCycle"))?
            .address;
        let rates: Vec<u64> = code
            .of("runtime.profilealloc")
            .iter()
            .filter(|it| it.bytes == 8)
            .map(|it| it.address)
            .collect();
        if rates.is_empty() {
            return Err(missing("runtime.MemProfileRate"));
        }
        let added = code.of("runtime.allgadd");
        let is_named = |address: u64| added.iter().any(|it| it.address == address);
        // A slice: its address, length and capacity.
        let mut all_goroutines: Vec<u64> = added
            .iter()
            .map(|it| it.address)
            .filter(|it| is_named(it.wrapping_add(8)) && is_named(it.wrapping_add(16)))
            .collect();
        all_goroutines.dedup();
        let reasons = code.of("runtime.waitReason.String");
        let reasons = reasons
            .iter()
            .map(|it| it.address)
            .find(|it| is_table_of_reasons(memory, image, *it));
        let heaps = code.addresses_in_both("runtime.sweepone", "runtime.(*mcentral).grow");
        let returns = code.returns_of(|name| {
            let of_size = name.strip_prefix(b"runtime.mallocgc");
            of_size.is_some_and(|it| it.last().is_none_or(u8::is_ascii_digit))
        });
        let returns_of_large = code.returns_of(|name| name == b"runtime.(*mcache).allocLarge");
        let main = functions.function("runtime.main").map(|main| main.start);
        let places = Places {
            layout,
            types: module.types,
            buckets,
            cycle,
            rates,
            all_goroutines,
            reasons,
            heaps,
            main,
        };
        Ok(Self {
            returns,
            returns_of_large,
            places,
            version,
            functions,
        })
    }
}

/// The code of the runtime's functions.
struct Code<'a> {
    memory: &'a dyn Memory,
    image: Image<'a>,
    functions: &'a FunctionTable,
}

impl Code<'_> {
    /// What a function refers to; nothing where it is not there.
    fn of(&self, name: &str) -> Vec<Reference> {
        let code = self.functions.function(name).and_then(|it| self.read(it));
        code.map_or_else(Vec::new, |(start, code)| references(&code, start))
    }

    /// The code of a function, and where it begins.
    fn read(&self, range: Range<u64>) -> Option<(u64, Vec<u8>)> {
        let bytes = range.end.checked_sub(range.start)?.min(LONGEST);
        let bytes = usize::try_from(bytes).ok()?;
        let code = self.image.read(self.memory, range.start, bytes)?;
        Some((range.start, code))
    }

    /// The addresses that two functions take.
    fn addresses_in_both(&self, one: &str, other: &str) -> Vec<u64> {
        let others = self.of(other);
        let is_taken = |it: &&Reference| it.bytes == 0 && others.contains(it);
        let one = self.of(one);
        let mut found: Vec<u64> = one.iter().filter(is_taken).map(|it| it.address).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Where functions with such names return.
    fn returns_of(&self, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
        let functions = self.functions.functions(is_wanted);
        functions
            .into_iter()
            .filter_map(|range| self.read(range))
            .flat_map(|(start, code)| returns(&code, start))
            .collect()
    }
}

/// Whether an array of strings is that of the reasons to wait: its third is the same in all known versions.
fn is_table_of_reasons(memory: &dyn Memory, image: Image<'_>, address: u64) -> bool {
    const THIRD: &[u8] = b"IO wait";
    let entry = image.read(memory, address.wrapping_add(32), 16);
    let Some((text, length)) = entry.and_then(|it| Some((word(&it, 0)?, word(&it, 8)?))) else {
        return false;
    };
    let mut bytes = [0; THIRD.len()];
    length == THIRD.len() as u64 && memory.read(text, &mut bytes) == bytes.len() && bytes == *THIRD
}

/// Which Go built it.
fn version(memory: &dyn Memory, image: Image<'_>) -> Option<Version> {
    if let Some(section) = image.elf.section(".go.buildinfo") {
        let bytes = usize::try_from(section.size).ok()?.min(BUILD_INFO_WITHIN);
        return Version::of_build_info(&image.read(memory, section.vaddr, bytes)?);
    }
    // It begins the data where there are no sections.
    image
        .data()
        .filter(|segment| segment.writable)
        .find_map(|segment| {
            let bytes = usize::try_from(segment.file_size)
                .ok()?
                .min(BUILD_INFO_WITHIN);
            let data = image.read(memory, segment.vaddr, bytes)?;
            (0..data.len())
                .step_by(BUILD_INFO_ALIGN)
                .find_map(|at| Version::of_build_info(data.get(at..)?))
        })
}

/// Finds `moduledata`: it points at the table's header, and at the names behind it.
fn module(memory: &dyn Memory, image: Image<'_>, layout: &Layout) -> Option<Module> {
    let sections = image.elf.sections.iter();
    let of_sections = sections
        .filter(|section| section.name.ends_with(".gopclntab") && section.vaddr != 0)
        .map(|section| section.vaddr);
    let mut headers: Vec<u64> = of_sections.collect();
    if headers.is_empty() {
        // A C linker merges it into another section, and sections may be gone.
        image.search::<()>(memory, 0, |address, piece| {
            let (words, _) = piece.as_chunks::<8>();
            let found = words
                .iter()
                .zip(0_u64..)
                .filter(|(it, _)| MAGICS.contains(it));
            headers.extend(found.map(|(_, at)| address.wrapping_add(8 * at)));
            None
        });
    }
    headers
        .into_iter()
        .take(MOST_HEADERS)
        .find_map(|header| module_of(memory, image, layout, header))
}

/// So many places that look like a header are tried.
const MOST_HEADERS: usize = 16;

fn module_of(
    memory: &dyn Memory,
    image: Image<'_>,
    layout: &Layout,
    header: u64,
) -> Option<Module> {
    let begin = image.read(memory, header, HEADER)?;
    if !MAGICS.contains(begin.first_chunk::<8>()?) {
        return None;
    }
    let there = header.wrapping_add(image.bias);
    let names = there.checked_add(word(&begin, NAMES)?)?;
    let place = |address: u64| address.wrapping_sub(image.bias);
    image.search(memory, MODULE, |_, piece| {
        let (words, _) = piece.as_chunks::<8>();
        let pointing = words
            .iter()
            .enumerate()
            .filter(|(_, it)| u64::from_le_bytes(**it) == there);
        pointing.map(|(at, _)| 8 * at).find_map(|at| {
            let module = piece.get(at..)?;
            if word(module, 8)? != names {
                return None;
            }
            let end = word(module, LAST_PART)?.checked_add(word(module, LAST_PART + 8)?)?;
            let table_bytes = end.checked_sub(there).filter(|it| *it <= LARGEST_TABLE)?;
            let (text, text_end) = (word(module, TEXT)?, word(module, TEXT_END)?);
            let (first, last) = (word(module, FIRST_CODE)?, word(module, LAST_CODE)?);
            let is_code = text <= first && first < last && last <= text_end;
            (is_code && image.elf.is_code(place(first))).then_some(Module {
                header,
                table_bytes: usize::try_from(table_bytes).ok()?,
                text: place(text),
                data: place(word(module, layout.functions_data)?),
                types: place(word(module, layout.types)?),
            })
        })
    })
}

/// Reads the table of functions and their data.
fn functions(
    memory: &dyn Memory,
    image: Image<'_>,
    layout: Layout,
    module: &Module,
) -> Option<FunctionTable> {
    let table = image.read(memory, module.header, module.table_bytes)?;
    let mut functions = FunctionTable::new(layout, table, module.text, Vec::new())?;
    // It ends in the middle of a segment: what is not there belongs to nothing.
    let bytes = functions.data_end().min(LARGEST_TABLE);
    let mut data = vec![0; usize::try_from(bytes).ok()?];
    let read = memory.read(module.data.wrapping_add(image.bias), &mut data);
    data.truncate(read);
    functions.set_data(data);
    Some(functions)
}
