//! What the unwind tables need to know of an ELF file: its executable bytes, its entry, and where its call frame
//! information lies. Knows no DWARF.

use std::borrow::Cow;
use std::io::Read;

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{CompressionHeader, Dyn, FileHeader, ProgramHeader, SectionHeader};

use super::build::UnwindError;

type Header = FileHeader64<LittleEndian>;

/// The widest executable address range of one file: 4 GiB, twice what the small code model of the x86_64 psABI
/// (3.5.1) can span. It bounds the page index to 65,536 entries.
const MAX_SPAN: u64 = 1 << 32;

/// A compressed `.debug_frame` may not become larger than this. The largest seen are a few MiB.
const MAX_INFLATED: u64 = 256 << 20;

/// A piece of the file with the virtual address at which it is mapped.
pub(super) struct Section<'a> {
    pub(super) address: u64,
    pub(super) bytes: Cow<'a, [u8]>,
}

/// The executable bytes of a file by virtual address.
pub(super) struct Text<'a> {
    /// Sorted by address, not overlapping.
    segments: Vec<Segment<'a>>,
    /// False where the file relocates its own text, so that the operands of its calls are not final.
    pub(super) final_operands: bool,
}

/// One executable segment.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) start: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    /// First address behind the segment.
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// The segment's bytes from `from` to `to`, cut to what there is.
    pub(super) fn slice(&self, from: u64, to: u64) -> &'a [u8] {
        let from = from.clamp(self.start, self.end()) - self.start;
        let to = to.clamp(self.start, self.end()) - self.start;
        self.bytes
            .get(from as usize..to as usize)
            .unwrap_or_default()
    }
}

impl<'a> Text<'a> {
    /// Sorts the segments and drops those that overlap an earlier one or hold nothing.
    pub(super) fn new(mut segments: Vec<Segment<'a>>, final_operands: bool) -> Self {
        segments.sort_by_key(|segment| segment.start);
        let mut behind = 0;
        segments.retain(|segment| {
            let keep = !segment.bytes.is_empty()
                && segment.start >= behind
                && segment
                    .start
                    .checked_add(segment.bytes.len() as u64)
                    .is_some();
            if keep {
                behind = segment.end();
            }
            keep
        });
        Self {
            segments,
            final_operands,
        }
    }

    /// The segment that holds `address`.
    pub(super) fn segment(&self, address: u64) -> Option<Segment<'a>> {
        let index = self
            .segments
            .partition_point(|segment| segment.start <= address);
        let segment = self.segments.get(index.checked_sub(1)?)?;
        (address < segment.end()).then_some(*segment)
    }

    pub(super) fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// Executable bytes.
    pub(super) fn len(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.bytes.len() as u64)
            .sum()
    }
}

/// An x86_64 executable or shared object.
pub(super) struct Elf<'a> {
    pub(super) entry: u64,
    pub(super) text: Text<'a>,
    /// `.eh_frame` (LSB Core 5.0, 10.6.1).
    pub(super) eh_frame: Option<Section<'a>>,
    /// `.eh_frame_hdr` (LSB Core 5.0, 10.6.2).
    pub(super) eh_frame_hdr: Option<Section<'a>>,
    /// `.debug_frame` (DWARF 5, 6.4.1), inflated where it was compressed.
    pub(super) debug_frame: Option<Section<'a>>,
    /// Functions above whose frames there is no caller: see [`super::go`].
    pub(super) ends: Vec<(u64, u64)>,
    /// Address of `.got`, the base of `DW_EH_PE_datarel` pointers in `.eh_frame`.
    pub(super) got: u64,
}

impl<'a> Elf<'a> {
    /// Reads headers only; every offset is checked against the file.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, UnwindError> {
        let (header, endian) = header(file)?;
        match header.e_type(endian) {
            elf::ET_EXEC | elf::ET_DYN => {}
            other => return Err(UnwindError::WrongType(other.0)),
        }
        let programs = header
            .program_headers(endian, file)
            .map_err(|error| UnwindError::Malformed(error.to_string()))?;

        let mut executable = Vec::new();
        let mut eh_frame_hdr = None;
        let mut final_operands = true;
        for program in programs {
            let address = program.p_vaddr(endian);
            match program.p_type(endian) {
                elf::PT_LOAD if program.p_flags(endian).contains(elf::PF_X) => {
                    executable.push(Segment {
                        start: address,
                        bytes: present(file, program.p_offset(endian), program.p_filesz(endian)),
                    });
                }
                elf::PT_GNU_EH_FRAME => {
                    eh_frame_hdr = Some(Section {
                        address,
                        bytes: Cow::Borrowed(present(
                            file,
                            program.p_offset(endian),
                            program.p_filesz(endian),
                        )),
                    });
                }
                elf::PT_DYNAMIC => {
                    let entries = program.dynamic(endian, file).ok().flatten();
                    final_operands &= !entries.unwrap_or_default().iter().any(|entry| {
                        let value = entry.d_val(endian);
                        entry.d_tag(endian) == elf::DT_TEXTREL
                            || entry.d_tag(endian) == elf::DT_FLAGS
                                && value & elf::DF_TEXTREL.0 != 0
                    });
                }
                _ => {}
            }
        }
        let text = Text::new(executable, final_operands);
        let (Some(first), Some(last)) = (text.segments.first(), text.segments.last()) else {
            return Err(UnwindError::NoText);
        };
        if last.end() - first.start > MAX_SPAN {
            return Err(UnwindError::TooLarge {
                what: "bytes between its first and its last executable address",
                value: last.end() - first.start,
                limit: MAX_SPAN,
            });
        }

        let mut this = Self {
            entry: header.e_entry(endian),
            text,
            eh_frame: None,
            eh_frame_hdr,
            debug_frame: None,
            ends: super::go::ends_of_c_stacks(header, file),
            got: 0,
        };
        this.read_sections(header, file);
        if this.eh_frame.is_none() {
            this.eh_frame = this.eh_frame_by_program_header(programs, file);
        }
        Ok(this)
    }

    /// Finds sections by name. Without a section table (it is not needed to run a program) nothing is found.
    fn read_sections(&mut self, header: &'a Header, file: &'a [u8]) {
        let endian = LittleEndian;
        let Ok(sections) = header.sections(endian, file) else {
            return;
        };
        for section in sections.iter() {
            let kind = section.sh_type(endian);
            if kind == elf::SHT_NOBITS || kind == elf::SHT_NULL {
                continue;
            }
            let address = section.sh_addr(endian);
            let found = || {
                let bytes = present(file, section.sh_offset(endian), section.sh_size(endian));
                (!bytes.is_empty()).then_some(Section {
                    address,
                    bytes: Cow::Borrowed(bytes),
                })
            };
            match sections.section_name(endian, section) {
                Ok(b".eh_frame") => self.eh_frame = found(),
                Ok(b".eh_frame_hdr") if self.eh_frame_hdr.is_none() => self.eh_frame_hdr = found(),
                Ok(b".debug_frame") => {
                    self.debug_frame = match section.compression(endian, file) {
                        Ok(None) => found(),
                        Ok(Some((compression, offset, size))) => inflate(
                            compression.ch_type(endian),
                            compression.ch_size(endian),
                            present(file, offset, size),
                        )
                        .map(|bytes| Section {
                            address,
                            bytes: Cow::Owned(bytes),
                        }),
                        Err(_) => None,
                    };
                }
                Ok(b".got") => self.got = address,
                _ => {}
            }
        }
    }

    /// Follows `PT_GNU_EH_FRAME` to `.eh_frame`. Its length is not recorded: it ends with a zero terminator, at the
    /// latest with its segment.
    fn eh_frame_by_program_header(
        &self,
        programs: &'a [<Header as FileHeader>::ProgramHeader],
        file: &'a [u8],
    ) -> Option<Section<'a>> {
        let endian = LittleEndian;
        let header = self.eh_frame_hdr.as_ref()?;
        let address = super::frame_info::eh_frame_address(header)?;
        programs
            .iter()
            .filter(|program| program.p_type(endian) == elf::PT_LOAD)
            .find_map(|program| {
                let bytes = present(file, program.p_offset(endian), program.p_filesz(endian));
                let skip = address.checked_sub(program.p_vaddr(endian))?;
                let bytes = bytes.get(usize::try_from(skip).ok()?..)?;
                (!bytes.is_empty()).then_some(Section {
                    address,
                    bytes: Cow::Borrowed(bytes),
                })
            })
    }
}

/// The file header of a 64-bit little-endian x86_64 ELF file.
pub(super) fn header(file: &[u8]) -> Result<(&Header, LittleEndian), UnwindError> {
    let ident = file.get(..20).ok_or(UnwindError::NotElf)?;
    let byte = |index: usize| ident.get(index).copied().unwrap_or_default();
    if !ident.starts_with(&elf::ELFMAG) {
        return Err(UnwindError::NotElf);
    }
    // e_ident[EI_DATA], then e_machine at offset 18 (gABI 4, "ELF Header"); both are at the same place in 32-bit files.
    let machine = match byte(5) {
        2 => u16::from_be_bytes([byte(18), byte(19)]),
        _ => u16::from_le_bytes([byte(18), byte(19)]),
    };
    // e_ident[EI_CLASS]: ELFCLASS64 is 2. A 32-bit file for this machine is of the x32 ABI.
    if machine != elf::EM_X86_64.0 || byte(4) != 2 {
        return Err(UnwindError::WrongMachine {
            machine,
            bits: if byte(4) == 2 { 64 } else { 32 },
        });
    }
    let header = Header::parse(file).map_err(|error| UnwindError::Malformed(error.to_string()))?;
    Ok((header, LittleEndian))
}

/// The part of `[offset, offset + size)` that the file has.
pub(super) fn present(file: &[u8], offset: u64, size: u64) -> &[u8] {
    let from = usize::try_from(offset).map_or(file.len(), |from| from.min(file.len()));
    let to =
        usize::try_from(offset.saturating_add(size)).map_or(file.len(), |to| to.min(file.len()));
    file.get(from..to).unwrap_or_default()
}

/// Inflates a section. Only zlib: toolchains use zstd only where they are told to, and then `.eh_frame` is there.
fn inflate(kind: elf::CompressionType, size: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    if kind != elf::ELFCOMPRESS_ZLIB || size > MAX_INFLATED {
        return None;
    }
    let mut inflated = Vec::new();
    flate2::read::ZlibDecoder::new(bytes)
        .take(size)
        .read_to_end(&mut inflated)
        .ok()?;
    Some(inflated)
}
