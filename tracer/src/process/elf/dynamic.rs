//! The dynamic section: what the dynamic loader reads, there even where the section headers were stripped.

use std::collections::HashMap;

use object::elf;
use object::endian::LittleEndian as LE;
use serde::{Deserialize, Serialize};

use super::headers::read_pods;
use super::symbols::read_string;
use super::{ElfError, ElfFile, ReadAt, Segment, file_offset_of};

/// Most entries of a dynamic section that are read; real ones have some dozens, and one for each needed library.
const MOST_ENTRIES: u64 = 16_384;
/// Relocations are read in pieces of this many.
const RELOCATIONS_AT_ONCE: u64 = 4096;

/// `DF_1_PIE` of DT_FLAGS_1 (binutils, `include/elf/common.h`): it is a program.
const DF_1_PIE: u64 = 0x0800_0000;

/// `R_X86_64_64`, `R_X86_64_GLOB_DAT` and `R_X86_64_JUMP_SLOT` of the psABI: a slot that gets a symbol's address.
const SYMBOL_RELOCATIONS: [u32; 3] = [1, 6, 7];

/// A table in the file: offset and size, bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Dynamic {
    pub(super) is_program: bool,
    pub(super) soname: Option<String>,
    pub(super) needed: Vec<String>,
    pub(super) strings: Option<Range>,
    /// File offset of the dynamic symbols; their number stands in a hash table only.
    pub(super) symbols: Option<u64>,
    pub(super) hash: Option<u64>,
    pub(super) gnu_hash: Option<u64>,
    relocations: [Option<Range>; 2],
}

impl Dynamic {
    pub(super) fn parse(
        source: &(impl ReadAt + ?Sized),
        segments: &[Segment],
        program: &elf::ProgramHeader64<LE>,
    ) -> Result<Self, ElfError> {
        let outside = "its dynamic section lies outside of it";
        let count = program.p_filesz.get(LE) / size_of::<elf::Dyn64<LE>>() as u64;
        let entries: Vec<elf::Dyn64<LE>> = read_pods(
            source,
            program.p_offset.get(LE),
            count.min(MOST_ENTRIES),
            outside,
        )?;
        let end = entries
            .iter()
            .position(|entry| entry.d_tag.get(LE) == elf::DT_NULL)
            .unwrap_or(entries.len());
        let entries = entries.get(..end).unwrap_or_default();
        let values = |tag| {
            entries
                .iter()
                .filter(move |entry| entry.d_tag.get(LE) == tag)
                .map(|entry| entry.d_val.get(LE))
        };
        let value = |tag| values(tag).next();
        let offset = |tag| value(tag).and_then(|vaddr| file_offset_of(segments, vaddr));
        let range = |start, size| {
            Some(Range {
                offset: offset(start)?,
                size: value(size)?,
            })
        };

        let strings = range(elf::DT_STRTAB, elf::DT_STRSZ);
        let string = |at: u64| {
            let name = read_string(source, strings?, at)?;
            Some(String::from_utf8_lossy(&name).into_owned())
        };
        Ok(Self {
            is_program: value(elf::DT_FLAGS_1).is_some_and(|flags| flags & DF_1_PIE != 0),
            soname: value(elf::DT_SONAME).and_then(string),
            needed: values(elf::DT_NEEDED).filter_map(string).collect(),
            strings,
            symbols: offset(elf::DT_SYMTAB),
            hash: offset(elf::DT_HASH),
            gnu_hash: offset(elf::DT_GNU_HASH),
            relocations: [
                range(elf::DT_JMPREL, elf::DT_PLTRELSZ),
                range(elf::DT_RELA, elf::DT_RELASZ),
            ],
        })
    }
}

impl ElfFile {
    /// The slots of the global offset table that the dynamic loader fills with the address of a symbol, by their address, for the
    /// symbols that `wanted` picks. A call through the procedure linkage table reads such a slot.
    ///
    /// # Errors
    /// The tables lie outside of the file, or it cannot be read.
    pub fn symbol_slots(
        &self,
        source: &(impl ReadAt + ?Sized),
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<HashMap<u64, String>, ElfError> {
        let mut slots = HashMap::new();
        let (Some(dynamic), Some(symbols)) = (&self.dynamic, &self.dynamic_symbols) else {
            return Ok(slots);
        };
        let names = symbols.indexed(source, &mut wanted)?;
        if names.is_empty() {
            return Ok(slots);
        }
        let outside = "its relocations lie outside of it";
        let size = size_of::<elf::Rela64<LE>>() as u64;
        for table in dynamic.relocations.iter().flatten() {
            let count = table.size / size;
            let mut first = 0;
            while first < count {
                let now = (count - first).min(RELOCATIONS_AT_ONCE);
                let offset = table
                    .offset
                    .checked_add(first * size)
                    .ok_or(ElfError::Damaged(outside))?;
                for relocation in read_pods::<elf::Rela64<LE>>(source, offset, now, outside)? {
                    // ELF64_R_SYM and ELF64_R_TYPE.
                    let info = relocation.r_info.get(LE);
                    let (symbol, kind) = ((info >> 32) as u32, info as u32);
                    if SYMBOL_RELOCATIONS.contains(&kind)
                        && let Some(name) = names.get(&symbol)
                    {
                        slots.insert(relocation.r_offset.get(LE), name.clone());
                    }
                }
                first += now;
            }
        }
        Ok(slots)
    }
}
