//! Symbol tables, streamed: a browser's `.symtab` and its names are a quarter of a gigabyte.

use std::collections::HashMap;

use object::elf;
use object::endian::LittleEndian as LE;
use serde::{Deserialize, Serialize};

use super::dynamic::{Dynamic, Range};
use super::headers::{read_bytes, read_pod, read_pods};
use super::{ElfError, ElfFile, ReadAt};

/// Symbols are read in pieces of this many (96 KiB).
const SYMBOLS_AT_ONCE: u64 = 4096;
/// Names are read in windows of this many bytes; where there is more than one, the symbols are passed over once for each.
const NAMES_AT_ONCE: u64 = 16 * 1024 * 1024;
/// Longest name that is looked at. C++ has longer ones; no allocator has.
const LONGEST_NAME: u64 = 4096;
/// Most dynamic symbols that are believed of a table whose size only a hash table tells.
const MOST_HASHED: u32 = 16 * 1024 * 1024;

/// Most symbols that are read of one file, windows counted: some seconds of work. The largest real files need a sixth of it.
const MOST_READ: u64 = 256 * 1024 * 1024;
/// Most symbols that are given out: an honest file holds each name that is asked for once or twice.
const MOST_FOUND: usize = 65_536;

/// What a symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// A function defined here.
    Function,
    /// STT_GNU_IFUNC: a function defined here whose address is chosen at load time; the symbol's own address is that of the chooser.
    IndirectFunction,
    /// Anything else defined here.
    Other,
    /// Defined elsewhere.
    Undefined,
}

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, without a version.
    pub name: String,
    /// Address before relocation; 0 for an undefined one.
    pub vaddr: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
    /// What it stands for.
    pub kind: SymbolKind,
    /// It is in the dynamic table, so other files can be bound to it.
    pub is_dynamic: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SymbolTable {
    offset: u64,
    count: u64,
    strings: Range,
}

impl SymbolTable {
    pub(super) fn of_section(
        headers: &[elf::SectionHeader64<LE>],
        kind: elf::SectionType,
    ) -> Option<Self> {
        let section = headers
            .iter()
            .find(|section| section.sh_type.get(LE) == kind)?;
        let strings = headers.get(section.sh_link.get(LE) as usize)?;
        if strings.sh_type.get(LE) != elf::SHT_STRTAB {
            return None;
        }
        Some(Self {
            offset: section.sh_offset.get(LE),
            count: section.sh_size.get(LE) / size_of::<elf::Sym64<LE>>() as u64,
            strings: Range {
                offset: strings.sh_offset.get(LE),
                size: strings.sh_size.get(LE),
            },
        })
    }

    /// The dynamic symbols where there are no sections: their number is that of the chains of `DT_HASH`, or one more than the
    /// last that `DT_GNU_HASH` reaches.
    pub(super) fn of_dynamic(
        source: &(impl ReadAt + ?Sized),
        dynamic: &Dynamic,
    ) -> Result<Option<Self>, ElfError> {
        let (Some(offset), Some(strings)) = (dynamic.symbols, dynamic.strings) else {
            return Ok(None);
        };
        let count = if let Some(hash) = dynamic.hash {
            let header: elf::HashHeader<LE> =
                read_pod(source, hash, "its hash table lies outside of it")?;
            header.chain_count.get(LE)
        } else if let Some(hash) = dynamic.gnu_hash {
            count_by_gnu_hash(source, hash)?
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            offset,
            count: count.min(MOST_HASHED).into(),
            strings,
        }))
    }

    /// Calls `found` for each symbol whose name `wanted` picks, with its index.
    fn visit(
        &self,
        source: &(impl ReadAt + ?Sized),
        wanted: &mut dyn FnMut(&[u8]) -> bool,
        mut found: impl FnMut(u32, &[u8], &elf::Sym64<LE>),
    ) -> Result<(), ElfError> {
        let outside = "its symbol table lies outside of it";
        let size = size_of::<elf::Sym64<LE>>() as u64;
        let end = self
            .count
            .checked_mul(size)
            .and_then(|size| self.offset.checked_add(size));
        if end.is_none_or(|end| source.size().is_ok_and(|size| end > size)) {
            return Err(ElfError::Damaged(outside));
        }
        if self
            .count
            .saturating_mul(self.strings.size.div_ceil(NAMES_AT_ONCE))
            > MOST_READ
        {
            return Err(ElfError::Damaged("its symbol table is absurdly large"));
        }
        let mut matches = 0;
        let mut window = 0;
        while window < self.strings.size {
            // A name that begins in this window may end in the next.
            let length = (self.strings.size - window).min(NAMES_AT_ONCE + LONGEST_NAME);
            let start = self
                .strings
                .offset
                .checked_add(window)
                .ok_or(ElfError::Damaged(outside))?;
            let names = read_bytes(source, start, length, "its symbol names lie outside of it")?;
            let mut first = 0;
            while first < self.count {
                let now = (self.count - first).min(SYMBOLS_AT_ONCE);
                let symbols: Vec<elf::Sym64<LE>> =
                    read_pods(source, self.offset + first * size, now, outside)?;
                for (index, symbol) in (first..).zip(&symbols) {
                    let Some(at) = u64::from(symbol.st_name.get(LE)).checked_sub(window) else {
                        continue;
                    };
                    if at >= NAMES_AT_ONCE {
                        continue;
                    }
                    let rest = names.get(at as usize..).unwrap_or_default();
                    let rest = rest
                        .get(..rest.len().min(LONGEST_NAME as usize))
                        .unwrap_or_default();
                    let Some(end) = rest.iter().position(|&byte| byte == 0) else {
                        continue;
                    };
                    let name = rest.get(..end).unwrap_or_default();
                    if !name.is_empty() && wanted(name) {
                        matches += 1;
                        if matches > MOST_FOUND {
                            return Err(ElfError::Damaged(
                                "it names the same symbols over and over",
                            ));
                        }
                        found(index as u32, name, symbol);
                    }
                }
                first += now;
            }
            window += NAMES_AT_ONCE;
        }
        Ok(())
    }

    /// The wanted names by the index of their symbol.
    pub(super) fn indexed(
        &self,
        source: &(impl ReadAt + ?Sized),
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<HashMap<u32, String>, ElfError> {
        let mut names = HashMap::new();
        self.visit(source, wanted, |index, name, _| {
            names.insert(index, String::from_utf8_lossy(name).into_owned());
        })?;
        Ok(names)
    }
}

/// Buckets hold the index of the first symbol of a chain; chains begin behind them, with the symbol `symbol_base`, and the last
/// element of each has its lowest bit set (binutils, "GNU hash ELF sections").
fn count_by_gnu_hash(source: &(impl ReadAt + ?Sized), offset: u64) -> Result<u32, ElfError> {
    let outside = "its hash table lies outside of it";
    let damaged = || ElfError::Damaged(outside);
    let header: elf::GnuHashHeader<LE> = read_pod(source, offset, outside)?;
    let buckets = u64::from(header.bucket_count.get(LE));
    let base = header.symbol_base.get(LE);
    let start = u64::from(header.bloom_count.get(LE))
        .checked_mul(8)
        .and_then(|bloom| offset.checked_add(bloom + size_of::<elf::GnuHashHeader<LE>>() as u64))
        .ok_or_else(damaged)?;
    let firsts = read_bytes(source, start, buckets * 4, outside)?;
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    let Some(last) = firsts
        .chunks_exact(4)
        .map(word)
        .max()
        .filter(|&last| last >= base)
    else {
        return Ok(base);
    };
    let chains = start.checked_add(buckets * 4).ok_or_else(damaged)?;
    let mut index = last;
    while index < MOST_HASHED {
        let mut element = [0_u8; 4];
        source.read_at(chains + u64::from(index - base) * 4, &mut element)?;
        index += 1;
        if word(&element) & 1 == 1 {
            break;
        }
    }
    Ok(index)
}

/// The string at an offset of a string table, if it ends within a bound.
pub(super) fn read_string(
    source: &(impl ReadAt + ?Sized),
    strings: Range,
    at: u64,
) -> Option<Vec<u8>> {
    let size = strings.size.checked_sub(at)?.min(LONGEST_NAME);
    let mut bytes = read_bytes(source, strings.offset.checked_add(at)?, size, "").ok()?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    bytes.truncate(end);
    Some(bytes)
}

impl ElfFile {
    /// The symbols whose names `wanted` picks, from the dynamic and the full symbol table; what is in both comes once, as dynamic.
    ///
    /// # Errors
    /// A table lies outside of the file, or it cannot be read.
    pub fn symbols(
        &self,
        source: &(impl ReadAt + ?Sized),
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<Symbol>, ElfError> {
        let mut symbols: Vec<Symbol> = Vec::new();
        for (table, is_dynamic) in [(&self.dynamic_symbols, true), (&self.static_symbols, false)] {
            let Some(table) = table else { continue };
            table.visit(source, &mut wanted, |_, name, symbol| {
                symbols.push(Symbol {
                    name: String::from_utf8_lossy(name).into_owned(),
                    vaddr: symbol.st_value.get(LE),
                    size: symbol.st_size.get(LE),
                    kind: kind_of(symbol),
                    is_dynamic,
                });
            })?;
        }
        symbols.sort_by(|a, b| {
            (&a.name, a.vaddr, !a.is_dynamic).cmp(&(&b.name, b.vaddr, !b.is_dynamic))
        });
        symbols.dedup_by(|later, kept| later.name == kept.name && later.vaddr == kept.vaddr);
        Ok(symbols)
    }
}

fn kind_of(symbol: &elf::Sym64<LE>) -> SymbolKind {
    if symbol.st_shndx.get(LE) == elf::SHN_UNDEF {
        return SymbolKind::Undefined;
    }
    match symbol.st_info.st_type() {
        elf::STT_FUNC => SymbolKind::Function,
        elf::STT_GNU_IFUNC => SymbolKind::IndirectFunction,
        _ => SymbolKind::Other,
    }
}
