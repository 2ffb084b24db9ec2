//! Where an allocator's own code lies in its file, so that what runs below it can be told from what runs below its callers.
//!
//! Owns the ranges of its functions and of what they jump to: a function's cold part, or one that it ends with instead of calling it.
//! Must not know what the ranges are used for.

use std::ops::Range;

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, UnwindSection as _};
use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};

use crate::process::{
    allocator::Allocator,
    elf::{ElfFile, ReadAt},
};

/// Most ranges of one allocator. Those known have some dozens.
const MOST_RANGES: usize = 256;

/// Most bytes of one function that are looked through for jumps.
const LARGEST_FUNCTION: u64 = 64 * 1024;

/// Most bytes of `.eh_frame` and `.eh_frame_hdr`.
const LARGEST_SECTION: u64 = 64 << 20;

/// The call frame information of a file, searched by its table.
struct Functions<'a> {
    header: gimli::ParsedEhFrameHdr<EndianSlice<'a, LittleEndian>>,
    entries: EhFrame<EndianSlice<'a, LittleEndian>>,
    bases: BaseAddresses,
}

impl Functions<'_> {
    /// The addresses of the function, or of the part of one, that an address lies in.
    fn range_of(&self, vaddr: u64) -> Option<Range<u64>> {
        let entry = self
            .header
            .table()?
            .fde_for_address(
                &self.entries,
                &self.bases,
                vaddr,
                |section, bases, offset| section.cie_from_offset(bases, offset),
            )
            .ok()?;
        let start = entry.initial_address();
        Some(start..start.checked_add(entry.len())?)
    }
}

/// The offsets in the file of an allocator's functions and of the code that they jump to, sorted and apart from each other. Of a file
/// without call frame information, of its functions alone.
pub(super) fn code_of(
    elf: &ElfFile,
    source: &(impl ReadAt + ?Sized),
    allocator: &Allocator,
) -> Vec<Range<u64>> {
    let sections = [".eh_frame_hdr", ".eh_frame"].map(|name| {
        let section = elf
            .section(name)
            .filter(|section| section.size <= LARGEST_SECTION)?;
        Some((section.vaddr, section.read(source).ok()?))
    });
    let functions = match &sections {
        [Some((header_at, header)), Some((entries_at, entries))] => {
            let bases = BaseAddresses::default()
                .set_eh_frame_hdr(*header_at)
                .set_eh_frame(*entries_at);
            EhFrameHdr::new(header, LittleEndian)
                .parse(&bases, 8)
                .ok()
                .map(|header| Functions {
                    header,
                    entries: EhFrame::new(entries, LittleEndian),
                    bases,
                })
        }
        _ => None,
    };
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut waiting: Vec<Range<u64>> = allocator
        .functions
        .iter()
        .filter_map(|function| {
            let known = functions
                .as_ref()
                .and_then(|functions| functions.range_of(function.vaddr));
            known.or_else(|| Some(function.vaddr..function.vaddr.checked_add(function.size)?))
        })
        .collect();
    while let Some(range) = waiting.pop() {
        if range.is_empty() || ranges.contains(&range) || ranges.len() >= MOST_RANGES {
            continue;
        }
        ranges.push(range.clone());
        let Some(functions) = &functions else {
            continue;
        };
        let size = (range.end - range.start).min(LARGEST_FUNCTION);
        let code = elf.code_at(source, range.start, size).unwrap_or_default();
        waiting.extend(
            jumps(&code, range.start)
                .filter(|target| !range.contains(target))
                .filter_map(|target| functions.range_of(target)),
        );
    }
    let mut offsets: Vec<Range<u64>> = ranges
        .into_iter()
        .filter_map(|range| {
            let start = elf.file_offset_of(range.start)?;
            Some(start..start.checked_add(range.end - range.start)?)
        })
        .collect();
    offsets.sort_unstable_by_key(|range| (range.start, range.end));
    offsets.dedup_by(|later, earlier| {
        let joins = later.start <= earlier.end;
        if joins {
            earlier.end = earlier.end.max(later.end);
        }
        joins
    });
    offsets
}

/// Where the jumps of some code lead to, as far as they say so themselves.
fn jumps(code: &[u8], vaddr: u64) -> impl Iterator<Item = u64> {
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut targets = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let jumps = matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        if jumps && instruction.op0_kind() == OpKind::NearBranch64 {
            targets.push(instruction.near_branch64());
        }
    }
    targets.into_iter()
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        reason = "tests"
    )]

    use super::code_of;
    use crate::process::{
        allocator::find_allocators,
        elf::ElfFile,
        testing::{GLIBC, JEMALLOC, MIMALLOC, MUSL, TCMALLOC, library},
    };
    use std::path::Path;

    #[test]
    fn an_allocators_functions_are_its_code_and_their_neighbours_are_not() {
        for (which, inside, outside) in [
            (GLIBC, "calloc", Some("mmap")),
            (GLIBC, "memalign", Some("pthread_create")),
            (GLIBC, "free", Some("sbrk")),
            (MUSL, "malloc", Some("mmap")),
            (JEMALLOC, "posix_memalign", None),
            (TCMALLOC, "realloc", None),
            (MIMALLOC, "free", None),
        ] {
            let Some(bytes) = library(which) else {
                continue;
            };
            let elf = ElfFile::parse(&bytes[..]).unwrap();
            let found = find_allocators(&elf, &bytes[..], Path::new(which.0)).unwrap();
            let code = code_of(&elf, &bytes[..], found.allocators.first().unwrap());
            let bounds = |name: &str| {
                let symbols = elf.symbols(&bytes[..], |other| other == name.as_bytes());
                let symbols = symbols.unwrap();
                let symbol = symbols.iter().find(|symbol| symbol.size > 0);
                let symbol = symbol.unwrap_or_else(|| panic!("{}: no {name}", which.0));
                let start = elf.file_offset_of(symbol.vaddr).unwrap();
                (start, start + symbol.size - 1)
            };
            let is_code = |offset| code.iter().any(|range| range.contains(&offset));
            let (first, last) = bounds(inside);
            assert!(is_code(first) && is_code(last), "{}: {inside}", which.0);
            if let Some(outside) = outside {
                let (first, last) = bounds(outside);
                assert!(!is_code(first) && !is_code(last), "{}: {outside}", which.0);
            }
            for pair in code.windows(2) {
                assert!(pair[0].end < pair[1].start, "{code:x?}");
            }
        }
    }

    #[test]
    fn a_function_that_ends_with_another_brings_it_in() {
        let Some(bytes) = library(GLIBC) else {
            return;
        };
        let elf = ElfFile::parse(&bytes[..]).unwrap();
        let mut found = find_allocators(&elf, &bytes[..], Path::new(GLIBC.0)).unwrap();
        let allocator = found.allocators.first_mut().unwrap();
        // glibc's memalign is a jump to a function without a public name (malloc/malloc.c, __libc_memalign).
        allocator
            .functions
            .retain(|function| function.name == "aligned_alloc");
        let own = allocator.functions.first().unwrap().size;
        let code = code_of(&elf, &bytes[..], allocator);
        let all: u64 = code.iter().map(|range| range.end - range.start).sum();
        assert!(all > own + 64, "{own} bytes of {all}");
    }

    #[test]
    fn a_damaged_table_of_functions_leaves_what_the_symbols_say() {
        let Some(mut bytes) = library(GLIBC) else {
            return;
        };
        let elf = ElfFile::parse(&bytes[..]).unwrap();
        let header = elf.section(".eh_frame_hdr").unwrap();
        let start = usize::try_from(header.file_offset).unwrap();
        bytes[start..start + 64].fill(0xff);
        let found = find_allocators(&elf, &bytes[..], Path::new(GLIBC.0)).unwrap();
        let allocator = found.allocators.first().unwrap();
        let code = code_of(&elf, &bytes[..], allocator);
        for function in &allocator.functions {
            let offset = elf.file_offset_of(function.vaddr).unwrap();
            assert!(code.iter().any(|range| range.contains(&offset)));
        }
    }
}
