//! The functions that call frame information describes: finds the entries of `.eh_frame` and `.debug_frame`, and gives
//! the rows of each. Knows nothing of tables and pruning.
//!
//! An entry that makes no sense costs itself. Where even its length makes no sense the next one is found through
//! `.eh_frame_hdr`, which lists the entries by offset.

use std::collections::HashMap;

use gimli::{BaseAddresses, CommonInformationEntry, LittleEndian, UnwindSection};
use leakscope_common::{CfaRule, UnwindRow};

use super::elf::{Elf, Section, Text};
use super::rules::{Columns, Corrupt, Machine, Slice, plain};

/// The largest section that is indexed, bytes: to go over one of zeros takes a step for every four. The largest seen are some 30 MiB.
const MAX_SECTION: usize = 256 << 20;

/// Which section an entry is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    EhFrame,
    DebugFrame,
}

/// The address range of one function (or of a part of it) and the entry that describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    /// First address; may lie behind the entry's own where an earlier one overlaps.
    pub(super) start: u64,
    /// First address behind.
    pub(super) end: u64,
    pub(super) entry: Entry,
}

/// What describes a function.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// An FDE at this offset of its section, and the number of its CIE.
    Fde {
        origin: Origin,
        offset: u32,
        cie: u32,
    },
    /// The code at the file's entry point, which no FDE describes, or a function above which there is no caller: outermost.
    Outermost,
}

/// What was found while indexing, as counts of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) used: u32,
    pub(super) corrupt: u32,
    pub(super) outside: u32,
}

/// A CIE, and what its instructions leave.
struct Cie<'a> {
    entry: CommonInformationEntry<Slice<'a>>,
    initial: Columns,
}

/// One section and the CIEs that its FDEs use.
struct Source<'a, S> {
    section: S,
    bytes: &'a [u8],
    bases: BaseAddresses,
    cies: Vec<Option<Cie<'a>>>,
}

/// The call frame information of a file.
pub(super) struct FrameInfo<'a> {
    eh_frame: Option<Source<'a, gimli::EhFrame<Slice<'a>>>>,
    debug_frame: Option<Source<'a, gimli::DebugFrame<Slice<'a>>>>,
}

/// The address of `.eh_frame` as `.eh_frame_hdr` records it.
pub(super) fn eh_frame_address(header: &Section<'_>) -> Option<u64> {
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.address);
    let parsed = gimli::EhFrameHdr::new(&header.bytes, LittleEndian)
        .parse(&bases, 8)
        .ok()?;
    parsed.eh_frame_ptr().direct().ok()
}

impl<'a> FrameInfo<'a> {
    /// Indexes a file. The functions are sorted by address and do not overlap: of two entries that claim an address
    /// the earlier one wins, and `.eh_frame` (which the program itself unwinds by) wins over `.debug_frame`.
    pub(super) fn index(elf: &'a Elf<'_>) -> (Self, Vec<Function>, Found) {
        let mut found = Found::default();
        let mut functions = Vec::new();
        let bases = BaseAddresses::default()
            .set_text(elf.text.segments().first().map_or(0, |first| first.start))
            .set_got(elf.got);

        let is_honest = |section: &&Section<'_>| section.bytes.len() <= MAX_SECTION;
        let eh_frame = elf.eh_frame.as_ref().filter(is_honest).map(|section| {
            let mut bases = bases.clone().set_eh_frame(section.address);
            if let Some(header) = &elf.eh_frame_hdr {
                bases = bases.set_eh_frame_hdr(header.address);
            }
            let mut parsed = gimli::EhFrame::new(&section.bytes, LittleEndian);
            parsed.set_address_size(8);
            let mut source = Source::new(parsed, &section.bytes, bases);
            let resume = || listed_offsets(elf.eh_frame_hdr.as_ref(), section);
            source.index(
                Origin::EhFrame,
                &elf.text,
                &resume,
                &mut functions,
                &mut found,
            );
            source
        });
        clip(&mut functions);

        let debug_frame = elf.debug_frame.as_ref().filter(is_honest).map(|section| {
            let mut parsed = gimli::DebugFrame::new(&section.bytes, LittleEndian);
            parsed.set_address_size(8);
            let mut source = Source::new(parsed, &section.bytes, bases.clone());
            let mut more = Vec::new();
            source.index(
                Origin::DebugFrame,
                &elf.text,
                &Vec::new,
                &mut more,
                &mut found,
            );
            more.retain(|function| is_free(&functions, function.start, function.end));
            functions.append(&mut more);
            source
        });
        clip(&mut functions);

        found.used = u32::try_from(functions.len()).unwrap_or(u32::MAX);
        (
            Self {
                eh_frame,
                debug_frame,
            },
            functions,
            found,
        )
    }

    /// Calls `emit(from, row)` for each row of a function, with ascending addresses that begin at its start; rows
    /// have `address_low` 0. A function whose instructions are corrupt has one row, which says unsupported.
    pub(super) fn rows(
        &self,
        function: &Function,
        emit: impl FnMut(u64, UnwindRow),
    ) -> Result<(), Corrupt> {
        match function.entry {
            Entry::Outermost => {
                let mut emit = emit;
                emit(function.start, plain(CfaRule::End));
                Ok(())
            }
            Entry::Fde {
                origin: Origin::EhFrame,
                offset,
                cie,
            } => {
                let source = self.eh_frame.as_ref().ok_or(Corrupt)?;
                source.rows((offset as usize).into(), cie, function, emit)
            }
            Entry::Fde {
                origin: Origin::DebugFrame,
                offset,
                cie,
            } => {
                let source = self.debug_frame.as_ref().ok_or(Corrupt)?;
                source.rows((offset as usize).into(), cie, function, emit)
            }
        }
    }
}

/// Whether no function overlaps `[start, end)`; `functions` are sorted and do not overlap each other.
pub(super) fn is_free(functions: &[Function], start: u64, end: u64) -> bool {
    let next = functions.partition_point(|function| function.end <= start);
    functions
        .get(next)
        .is_none_or(|function| function.start >= end)
}

/// Sorts by address and cuts what an earlier function already covers.
pub(super) fn clip(functions: &mut Vec<Function>) {
    functions.sort_by_key(|function| (function.start, function.end));
    let mut covered = 0;
    functions.retain_mut(|function| {
        function.start = function.start.max(covered);
        let keep = function.start < function.end;
        if keep {
            covered = function.end;
        }
        keep
    });
}

/// The offsets of entries that the search table of `.eh_frame_hdr` lists, sorted.
fn listed_offsets(header: Option<&Section<'_>>, section: &Section<'_>) -> Vec<usize> {
    let mut offsets = Vec::new();
    if let Some(header) = header {
        let bases = BaseAddresses::default()
            .set_eh_frame_hdr(header.address)
            .set_eh_frame(section.address);
        let parsed = gimli::EhFrameHdr::new(&header.bytes, LittleEndian).parse(&bases, 8);
        if let Ok(parsed) = &parsed
            && let Some(table) = parsed.table()
        {
            let mut entries = table.iter(&bases);
            while let Ok(Some((_, pointer))) = entries.next() {
                let offset = pointer
                    .direct()
                    .ok()
                    .and_then(|address| address.checked_sub(section.address))
                    .and_then(|offset| usize::try_from(offset).ok());
                offsets.extend(offset.filter(|offset| *offset < section.bytes.len()));
            }
        }
    }
    offsets.sort_unstable();
    offsets
}

/// An entry's header.
enum Header {
    /// A zero length: the terminator, or padding.
    Zero,
    Cie,
    Fde,
}

/// Reads the header of the entry at `offset` (DWARF 5, 6.4.1 and 7.4; LSB Core 5.0, 10.6.1) and gives the next entry's offset.
/// `None` where the entry does not fit into the section.
fn header(origin: Origin, bytes: &[u8], offset: usize) -> Option<(Header, usize)> {
    let rest = bytes.get(offset..)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    if length == 0 {
        return Some((Header::Zero, offset.checked_add(4)?));
    }
    let wide = length == u32::MAX;
    let (body, rest, begin) = if wide {
        let (length, rest) = rest.split_first_chunk::<8>()?;
        (u64::from_le_bytes(*length), rest, 12)
    } else {
        (u64::from(length), rest, 4)
    };
    let body = usize::try_from(body).ok()?;
    let rest = rest.get(..body)?;
    // In `.eh_frame` the id has always 4 bytes, and 0 is a CIE; in `.debug_frame` it is as wide as the format.
    let id = match (origin, wide) {
        (Origin::DebugFrame, true) => rest.first_chunk::<8>() == Some(&[0xFF; 8]),
        (Origin::DebugFrame, false) => rest.first_chunk::<4>() == Some(&[0xFF; 4]),
        (Origin::EhFrame, _) => rest.first_chunk::<4>() == Some(&[0; 4]),
    };
    let next = offset.checked_add(begin)?.checked_add(body)?;
    Some((if id { Header::Cie } else { Header::Fde }, next))
}

impl<'a, S> Source<'a, S>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: Copy + From<usize> + Into<Offset>,
{
    fn new(section: S, bytes: &'a [u8], bases: BaseAddresses) -> Self {
        Self {
            section,
            bytes,
            bases,
            cies: Vec::new(),
        }
    }

    /// Appends every function of the section. `listed` gives offsets at which to go on behind an entry whose
    /// length is corrupt.
    fn index(
        &mut self,
        origin: Origin,
        text: &Text<'_>,
        listed: &dyn Fn() -> Vec<usize>,
        functions: &mut Vec<Function>,
        found: &mut Found,
    ) {
        let mut numbers: HashMap<usize, u32> = HashMap::new();
        let mut resume: Option<Vec<usize>> = None;
        let mut offset = 0;
        while offset < self.bytes.len() {
            let Some((header, next)) = header(origin, self.bytes, offset) else {
                found.corrupt = found.corrupt.saturating_add(1);
                let listed = resume.get_or_insert_with(listed);
                let next = listed.partition_point(|entry| *entry <= offset);
                match listed.get(next) {
                    Some(next) => offset = *next,
                    None => break,
                }
                continue;
            };
            if matches!(header, Header::Fde) {
                match self.function(offset, origin, &mut numbers) {
                    Ok(function) if is_inside(text, &function) => functions.push(function),
                    Ok(_) => found.outside = found.outside.saturating_add(1),
                    Err(Corrupt) => found.corrupt = found.corrupt.saturating_add(1),
                }
            }
            offset = next;
        }
    }

    /// Reads the FDE at `offset`, and its CIE where it is the first to use it.
    fn function(
        &mut self,
        offset: usize,
        origin: Origin,
        numbers: &mut HashMap<usize, u32>,
    ) -> Result<Function, Corrupt> {
        let partial = self
            .section
            .partial_fde_from_offset(&self.bases, offset.into())
            .map_err(|_| Corrupt)?;
        let cie_offset = partial.cie_offset();
        let number = *numbers
            .entry(Into::<Offset>::into(cie_offset).0)
            .or_insert_with(|| {
                self.cies
                    .push(read_cie(&self.section, self.bytes, &self.bases, cie_offset));
                (self.cies.len() - 1) as u32
            });
        let cie = self.cie(number)?;
        let fde = partial
            .parse(|_, _, _| Ok(cie.entry.clone()))
            .map_err(|_| Corrupt)?;
        Ok(Function {
            start: fde.initial_address(),
            end: fde.initial_address().saturating_add(fde.len()),
            entry: Entry::Fde {
                origin,
                offset: u32::try_from(offset).map_err(|_| Corrupt)?,
                cie: number,
            },
        })
    }

    fn cie(&self, number: u32) -> Result<&Cie<'a>, Corrupt> {
        self.cies
            .get(number as usize)
            .and_then(Option::as_ref)
            .ok_or(Corrupt)
    }

    fn rows(
        &self,
        offset: S::Offset,
        cie: u32,
        function: &Function,
        mut emit: impl FnMut(u64, UnwindRow),
    ) -> Result<(), Corrupt> {
        let cie = self.cie(cie)?;
        let fde = self
            .section
            .partial_fde_from_offset(&self.bases, offset)
            .and_then(|partial| partial.parse(|_, _, _| Ok(cie.entry.clone())))
            .map_err(|_| Corrupt)?;
        if fde.is_signal_trampoline() {
            emit(function.start, plain(CfaRule::Signal));
            return Ok(());
        }
        let machine = Machine {
            section: self.bytes,
            code_alignment: cie.entry.code_alignment_factor(),
            data_alignment: cie.entry.data_alignment_factor(),
            initial: Some(cie.initial),
        };
        machine.run(
            &mut fde.instructions(&self.section, &self.bases),
            fde.initial_address(),
            function.end,
            |address, columns| emit(address.max(function.start), columns.row()),
        )?;
        Ok(())
    }
}

/// Reads a CIE; `None` if it is corrupt, which costs the FDEs that use it.
fn read_cie<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bytes: &[u8],
    bases: &BaseAddresses,
    offset: S::Offset,
) -> Option<Cie<'a>> {
    let entry = section.cie_from_offset(bases, offset).ok()?;
    let machine = Machine {
        section: bytes,
        code_alignment: entry.code_alignment_factor(),
        data_alignment: entry.data_alignment_factor(),
        initial: None,
    };
    let initial = machine
        .run(
            &mut entry.instructions(section, bases),
            0,
            u64::MAX,
            |_, _| {},
        )
        .ok()?;
    Some(Cie { entry, initial })
}

/// Whether the range is not empty and lies in one executable segment. What does not is a function that the linker
/// discarded (its address is 0 or 1), or corrupt.
fn is_inside(text: &Text<'_>, function: &Function) -> bool {
    function.start < function.end
        && text
            .segment(function.start)
            .is_some_and(|segment| function.end <= segment.end())
}

/// An offset into either section.
#[derive(Clone, Copy)]
struct Offset(usize);

impl From<gimli::EhFrameOffset> for Offset {
    fn from(offset: gimli::EhFrameOffset) -> Self {
        Self(offset.0)
    }
}

impl From<gimli::DebugFrameOffset> for Offset {
    fn from(offset: gimli::DebugFrameOffset) -> Self {
        Self(offset.0)
    }
}
