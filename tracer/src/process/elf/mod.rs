//! ELF files: what the tracer needs of them, read piece by piece.
//!
//! Owns the ELF-64 format as the System V gABI and the x86-64 psABI lay it down: headers, notes, the dynamic section, symbol tables,
//! relocations. Every offset and size in a file is checked against the file's length before anything is allocated, and
//! large tables are streamed, so that a hostile or a huge file costs an error or some time, never memory. Must not know
//! what an allocator is.

mod as_bytes;
mod dynamic;
mod headers;
mod source;
mod symbols;

pub use source::ReadAt;
pub use symbols::{Symbol, SymbolKind};

use std::io;
use std::path::PathBuf;

use object::elf;
use object::endian::LittleEndian as LE;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use dynamic::Dynamic;
use headers::{
    find_build_id, name_sections, program_headers, read_bytes, read_debug_link, read_pod,
    read_program, section_headers,
};
use symbols::SymbolTable;

/// `EM_X86_64` of the psABI: the machine whose code this build can read.
pub const MACHINE_X86_64: u16 = 62;

/// Most note segments that are looked into for the build-id. Real files have two or three.
const MOST_NOTES: usize = 64;

/// The sections by which files are told apart.
const KEPT_SECTIONS: [&str; 5] = [
    ".debug_info",
    ".eh_frame",
    ".go.buildinfo",
    ".gopclntab",
    ".note.go.buildid",
];

/// Bytes of a page of x86_64, the unit of mappings.
const PAGE: u64 = 4096;

/// Why an ELF file could not be used.
#[derive(Debug, Error)]
pub enum ElfError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It does not begin like an ELF file.
    #[error("is not an ELF file")]
    NotElf,
    /// It is an ELF file of a kind that this build does not read.
    #[error("is {0}, which leakscope does not read; it reads 64-bit little-endian files")]
    Unsupported(&'static str),
    /// A header points outside of the file, or contradicts another.
    #[error("is damaged: {0}")]
    Damaged(&'static str),
}

/// The file's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElfKind {
    /// ET_EXEC: a program at fixed addresses.
    Executable,
    /// ET_DYN with DF_1_PIE or an interpreter: a program at any address.
    PositionIndependentExecutable,
    /// Any other ET_DYN.
    SharedObject,
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Address before relocation.
    pub vaddr: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// PF_X.
    pub executable: bool,
    /// PF_W.
    pub writable: bool,
}

/// Where a section lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Address before relocation; 0 where it is not loaded.
    pub vaddr: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes.
    pub size: u64,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
}

impl Section {
    /// Its bytes.
    ///
    /// # Errors
    /// It lies outside of the file, or cannot be read.
    pub fn read(&self, source: &(impl ReadAt + ?Sized)) -> Result<Vec<u8>, ElfError> {
        read_bytes(
            source,
            self.file_offset,
            self.size,
            "a section lies outside of it",
        )
    }
}

/// `.gnu_debuglink`: the file that holds the debug information.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugLink {
    /// The file's name, without a folder.
    #[serde(with = "as_bytes")]
    pub name: PathBuf,
    /// CRC-32 of the whole file.
    pub crc: u32,
}

/// Whether a file holds Go code, by the sections that Go's linker makes; the last stays where a C linker has merged the others.
#[must_use]
pub fn is_go(elf: &ElfFile) -> bool {
    [".gopclntab", ".note.go.buildid", ".go.buildinfo"]
        .iter()
        .any(|name| elf.section(name).is_some())
}

/// Whether V8's builtins are linked into a file: assembler without call frame information that keeps frame pointers, as all
/// code that V8 generates. A builtin's own name tells, or, where the file was stripped, the function that gives the builtins'
/// address, which shared builds of node export.
pub(crate) fn holds_v8(elf: &ElfFile, source: &(impl ReadAt + ?Sized)) -> bool {
    const NAMES: [&[u8]; 2] = [
        b"Builtins_CallApiCallback",
        // v8::internal::DefaultEmbeddedBlobCode()
        b"_ZN2v88internal23DefaultEmbeddedBlobCodeEv",
    ];
    elf.symbols(source, |name| NAMES.contains(&name))
        .is_ok_and(|found| {
            found
                .iter()
                .any(|symbol| symbol.kind != SymbolKind::Undefined)
        })
}

/// What the headers of an ELF file say. The bytes stay where they are: methods that need more take the source again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ElfFile {
    /// `e_machine`.
    pub machine: u16,
    /// Its type.
    pub kind: ElfKind,
    /// Address of the first instruction of a program.
    pub entry: u64,
    /// Whether it is a program that asks for a dynamic loader.
    pub has_interpreter: bool,
    /// The GNU build-id.
    pub build_id: Option<Vec<u8>>,
    /// `DT_SONAME`.
    pub soname: Option<String>,
    /// `DT_NEEDED`: the libraries that it asks for.
    pub needed: Vec<String>,
    /// The separate debug file.
    pub debug_link: Option<DebugLink>,
    /// PT_LOAD segments, as in the file.
    pub segments: Vec<Segment>,
    /// The sections; empty where their headers were stripped.
    pub sections: Vec<Section>,
    dynamic: Option<Dynamic>,
    dynamic_symbols: Option<SymbolTable>,
    static_symbols: Option<SymbolTable>,
}

impl ElfFile {
    /// Reads the headers, the notes and the dynamic section.
    ///
    /// # Errors
    /// See [`ElfError`].
    pub fn parse(source: &(impl ReadAt + ?Sized)) -> Result<Self, ElfError> {
        let mut magic = [0_u8; 6];
        match source.read_at(0, &mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ElfError::NotElf);
            }
            read => read?,
        }
        let [0x7f, b'E', b'L', b'F', class, data] = magic else {
            return Err(ElfError::NotElf);
        };
        if class != 2 {
            return Err(ElfError::Unsupported("a 32-bit ELF file"));
        }
        if data != 1 {
            return Err(ElfError::Unsupported("a big-endian ELF file"));
        }
        let header: elf::FileHeader64<LE> = read_pod(source, 0, "the file ends in its header")?;
        let kind = header.e_type.get(LE).0;
        if kind != elf::ET_EXEC.0 && kind != elf::ET_DYN.0 {
            return Err(ElfError::Unsupported("neither a program nor a library"));
        }

        let programs = program_headers(source, &header)?;
        let segments: Vec<Segment> = programs
            .iter()
            .filter(|program| program.p_type.get(LE) == elf::PT_LOAD)
            .map(|program| Segment {
                vaddr: program.p_vaddr.get(LE),
                memory_size: program.p_memsz.get(LE),
                file_offset: program.p_offset.get(LE),
                file_size: program.p_filesz.get(LE),
                executable: program.p_flags.get(LE).0 & elf::PF_X.0 != 0,
                writable: program.p_flags.get(LE).0 & elf::PF_W.0 != 0,
            })
            .collect();
        let of_type = |kind| {
            programs
                .iter()
                .filter(move |program| program.p_type.get(LE) == kind)
        };

        let has_interpreter = match of_type(elf::PT_INTERP).next() {
            None => false,
            Some(program) => {
                read_program(source, program, "its interpreter lies outside of it")?;
                true
            }
        };
        let mut build_id = None;
        for program in of_type(elf::PT_NOTE).take(MOST_NOTES) {
            if build_id.is_some() {
                break;
            }
            // A damaged note is no reason to give up the file.
            if let Ok(notes) = read_program(source, program, "a note lies outside of it") {
                build_id = find_build_id(&notes, program.p_align.get(LE));
            }
        }
        let dynamic = match of_type(elf::PT_DYNAMIC).next() {
            None => None,
            Some(program) => Some(Dynamic::parse(source, &segments, program)?),
        };

        // Sections are not needed to run a file, so damaged ones are like stripped ones.
        let headers = section_headers(source, &header).unwrap_or_default();
        let sections = name_sections(source, &header, &headers);
        let static_symbols = SymbolTable::of_section(&headers, elf::SHT_SYMTAB);
        let dynamic_symbols = SymbolTable::of_section(&headers, elf::SHT_DYNSYM).or_else(|| {
            SymbolTable::of_dynamic(source, dynamic.as_ref()?)
                .ok()
                .flatten()
        });
        let debug_link = sections
            .iter()
            .find(|section| section.name == ".gnu_debuglink")
            .and_then(|section| read_debug_link(source, section));

        let is_program =
            has_interpreter || dynamic.as_ref().is_some_and(|dynamic| dynamic.is_program);
        Ok(Self {
            machine: header.e_machine.get(LE).0,
            kind: if kind == elf::ET_EXEC.0 {
                ElfKind::Executable
            } else if is_program {
                ElfKind::PositionIndependentExecutable
            } else {
                ElfKind::SharedObject
            },
            entry: header.e_entry.get(LE),
            has_interpreter,
            build_id,
            soname: dynamic.as_ref().and_then(|dynamic| dynamic.soname.clone()),
            needed: dynamic
                .as_ref()
                .map(|dynamic| dynamic.needed.clone())
                .unwrap_or_default(),
            debug_link,
            segments,
            sections,
            dynamic,
            dynamic_symbols,
            static_symbols,
        })
    }

    /// Whether it is a program that needs no dynamic loader.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.kind != ElfKind::SharedObject && !self.has_interpreter
    }

    /// What is kept of it for as long as a process is traced: a file may have as many sections and needed libraries as it likes.
    #[must_use]
    pub fn abridged(mut self) -> Self {
        self.sections
            .retain(|section| KEPT_SECTIONS.contains(&section.name.as_str()));
        self.sections.truncate(KEPT_SECTIONS.len());
        self.needed.truncate(1);
        self.soname = None;
        self.dynamic = None;
        self
    }

    /// Whether the full symbol table (`.symtab`) is there, with local functions in it.
    #[must_use]
    pub fn has_static_symbols(&self) -> bool {
        self.static_symbols.is_some()
    }

    /// Whether it has dynamic symbols.
    #[must_use]
    pub fn has_dynamic_symbols(&self) -> bool {
        self.dynamic_symbols.is_some()
    }

    /// Where the byte at an address lies in the file; none for addresses that no segment maps from it (`.bss`).
    #[must_use]
    pub fn file_offset_of(&self, vaddr: u64) -> Option<u64> {
        file_offset_of(&self.segments, vaddr)
    }

    /// The address at which a byte of the file is loaded, before relocation.
    #[must_use]
    pub fn vaddr_of(&self, file_offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let distance = file_offset.checked_sub(segment.file_offset)?;
            (distance < segment.file_size).then(|| segment.vaddr.checked_add(distance))?
        })
    }

    /// The address, before relocation, at which a mapping of the file begins that starts at `file_offset`.
    ///
    /// The kernel and the dynamic linker map whole pages, so a mapping begins before its segment where the segment does
    /// not begin with a page (lld lays files out so). The end of another segment may lie in that same page, at another
    /// distance from its addresses: the permission tells which of them the mapping is of.
    #[must_use]
    pub fn vaddr_of_mapping(&self, file_offset: u64, executable: bool) -> Option<u64> {
        self.segments
            .iter()
            .filter(|segment| segment.executable == executable)
            .find_map(|segment| {
                let from = segment.file_offset & !(PAGE - 1);
                let behind = segment.file_offset.checked_add(segment.file_size)?;
                (from..behind).contains(&file_offset).then(|| {
                    segment
                        .vaddr
                        .wrapping_sub(segment.file_offset)
                        .wrapping_add(file_offset)
                })
            })
            .or_else(|| self.vaddr_of(file_offset))
    }

    /// Whether an address lies in an executable segment.
    #[must_use]
    pub fn is_code(&self, vaddr: u64) -> bool {
        self.segments.iter().any(|segment| {
            segment.executable
                && vaddr
                    .checked_sub(segment.vaddr)
                    .is_some_and(|distance| distance < segment.file_size)
        })
    }

    /// A section by its name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The bytes of the executable segment from `vaddr` on: `size` of them, fewer where the segment ends.
    ///
    /// # Errors
    /// No executable segment holds the address, or the file cannot be read.
    pub fn code_at(
        &self,
        source: &(impl ReadAt + ?Sized),
        vaddr: u64,
        size: u64,
    ) -> Result<Vec<u8>, ElfError> {
        let outside = ElfError::Damaged("an address of code lies in no executable segment");
        let Some((segment, distance)) = self
            .segments
            .iter()
            .filter(|segment| segment.executable)
            .find_map(|segment| {
                let distance = vaddr.checked_sub(segment.vaddr)?;
                (distance < segment.file_size).then_some((segment, distance))
            })
        else {
            return Err(outside);
        };
        let size = size.min(segment.file_size - distance);
        let offset = segment.file_offset.checked_add(distance).ok_or(outside)?;
        read_bytes(source, offset, size, "a segment lies outside of it")
    }
}

fn file_offset_of(segments: &[Segment], vaddr: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let distance = vaddr.checked_sub(segment.vaddr)?;
        (distance < segment.file_size).then(|| segment.file_offset.checked_add(distance))?
    })
}

#[cfg(test)]
mod tests;
