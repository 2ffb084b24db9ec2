//! The headers, notes and sections of an ELF file as they stand in it: every size is checked against the file's before anything is
//! allocated. Knows nothing of what a file is for.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use object::elf;
use object::endian::LittleEndian as LE;
use object::pod::{self, Pod};

use super::{DebugLink, ElfError, ReadAt, Section};

/// Longest note segment, interpreter and string that is read, bytes. Real ones are shorter than a hundredth of it.
pub(super) const SMALL: u64 = 64 * 1024;
/// Most program headers that are believed. Real files have some dozens.
const MOST_PROGRAMS: u64 = 1024;
/// Most section headers that are read. The largest real files have some thousands.
const MOST_SECTIONS: u64 = 262_144;

/// Reads `size` bytes, after a check that the file holds them.
pub(super) fn read_bytes(
    source: &(impl ReadAt + ?Sized),
    offset: u64,
    size: u64,
    otherwise: &'static str,
) -> Result<Vec<u8>, ElfError> {
    let end = offset
        .checked_add(size)
        .ok_or(ElfError::Damaged(otherwise))?;
    if end > source.size()? {
        return Err(ElfError::Damaged(otherwise));
    }
    let size = usize::try_from(size).map_err(|_| ElfError::Damaged(otherwise))?;
    let mut bytes = vec![0; size];
    source.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

pub(super) fn read_pod<T: Pod + Copy>(
    source: &(impl ReadAt + ?Sized),
    offset: u64,
    otherwise: &'static str,
) -> Result<T, ElfError> {
    let bytes = read_bytes(source, offset, size_of::<T>() as u64, otherwise)?;
    let (value, _) = pod::from_bytes::<T>(&bytes).map_err(|()| ElfError::Damaged(otherwise))?;
    Ok(*value)
}

pub(super) fn read_pods<T: Pod + Copy>(
    source: &(impl ReadAt + ?Sized),
    offset: u64,
    count: u64,
    otherwise: &'static str,
) -> Result<Vec<T>, ElfError> {
    let size = count
        .checked_mul(size_of::<T>() as u64)
        .ok_or(ElfError::Damaged(otherwise))?;
    let bytes = read_bytes(source, offset, size, otherwise)?;
    let values =
        pod::slice_from_all_bytes::<T>(&bytes).map_err(|()| ElfError::Damaged(otherwise))?;
    Ok(values.to_vec())
}

pub(super) fn program_headers(
    source: &(impl ReadAt + ?Sized),
    header: &elf::FileHeader64<LE>,
) -> Result<Vec<elf::ProgramHeader64<LE>>, ElfError> {
    let count = u64::from(header.e_phnum.get(LE));
    if count > MOST_PROGRAMS {
        return Err(ElfError::Damaged(
            "it claims an absurd number of program headers",
        ));
    }
    if count > 0 && usize::from(header.e_phentsize.get(LE)) != size_of::<elf::ProgramHeader64<LE>>()
    {
        return Err(ElfError::Damaged(
            "its program headers have an unknown size",
        ));
    }
    read_pods(
        source,
        header.e_phoff.get(LE),
        count,
        "its program headers lie outside of it",
    )
}

pub(super) fn section_headers(
    source: &(impl ReadAt + ?Sized),
    header: &elf::FileHeader64<LE>,
) -> Result<Vec<elf::SectionHeader64<LE>>, ElfError> {
    let offset = header.e_shoff.get(LE);
    if offset == 0
        || usize::from(header.e_shentsize.get(LE)) != size_of::<elf::SectionHeader64<LE>>()
    {
        return Ok(Vec::new());
    }
    let outside = "its section headers lie outside of it";
    let count = match header.e_shnum.get(LE) {
        // 65,280 sections and more: the number stands in the first header.
        0 => read_pod::<elf::SectionHeader64<LE>>(source, offset, outside)?
            .sh_size
            .get(LE),
        count => count.into(),
    };
    if count > MOST_SECTIONS {
        return Err(ElfError::Damaged("it claims an absurd number of sections"));
    }
    read_pods(source, offset, count, outside)
}

pub(super) fn name_sections(
    source: &(impl ReadAt + ?Sized),
    header: &elf::FileHeader64<LE>,
    headers: &[elf::SectionHeader64<LE>],
) -> Vec<Section> {
    let index = match header.e_shstrndx.get(LE).0 {
        // SHN_XINDEX: the index stands in the first header.
        0xffff => headers.first().map_or(0, |first| first.sh_link.get(LE)),
        index => index.into(),
    };
    let names = headers
        .get(index as usize)
        .and_then(|section| {
            let size = section.sh_size.get(LE).min(MOST_SECTIONS * 16);
            read_bytes(source, section.sh_offset.get(LE), size, "").ok()
        })
        .unwrap_or_default();
    headers
        .iter()
        .map(|section| {
            let name = names
                .get(section.sh_name.get(LE) as usize..)
                .unwrap_or_default();
            // A hostile file could point a hundred thousand sections at one long string.
            let name = name.get(..name.len().min(64)).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            Section {
                name: String::from_utf8_lossy(name).into_owned(),
                vaddr: section.sh_addr.get(LE),
                file_offset: section.sh_offset.get(LE),
                size: section.sh_size.get(LE),
                kind: section.sh_type.get(LE).0,
                flags: section.sh_flags.get(LE).0,
            }
        })
        .collect()
}

pub(super) fn read_program(
    source: &(impl ReadAt + ?Sized),
    program: &elf::ProgramHeader64<LE>,
    otherwise: &'static str,
) -> Result<Vec<u8>, ElfError> {
    read_bytes(
        source,
        program.p_offset.get(LE),
        program.p_filesz.get(LE).min(SMALL),
        otherwise,
    )
}

/// Finds `NT_GNU_BUILD_ID` among notes: three words (name size, descriptor size, type), name, descriptor, each padded.
pub(super) fn find_build_id(mut notes: &[u8], align: u64) -> Option<Vec<u8>> {
    let align = if align == 8 { 8 } else { 4 };
    loop {
        let (header, _) = pod::from_bytes::<elf::NoteHeader64<LE>>(notes).ok()?;
        let name_size = header.n_namesz.get(LE) as usize;
        let size = header.n_descsz.get(LE) as usize;
        let name_end = size_of::<elf::NoteHeader64<LE>>().checked_add(name_size)?;
        let name = notes.get(size_of::<elf::NoteHeader64<LE>>()..name_end)?;
        let start = name_end.checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        if header.n_type.get(LE) == elf::NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(notes.get(start..end)?.to_vec()).filter(|id| !id.is_empty());
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
}

/// The file's name, padding to four bytes, and its CRC.
pub(super) fn read_debug_link(
    source: &(impl ReadAt + ?Sized),
    section: &Section,
) -> Option<DebugLink> {
    let bytes = read_bytes(source, section.file_offset, section.size.min(SMALL), "").ok()?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let crc = (end + 1).next_multiple_of(4);
    let crc: [u8; 4] = bytes.get(crc..crc + 4)?.try_into().ok()?;
    let name = bytes.get(..end)?;
    if name.is_empty() || name.contains(&b'/') {
        return None;
    }
    Some(DebugLink {
        name: PathBuf::from(OsString::from_vec(name.to_vec())),
        crc: u32::from_le_bytes(crc),
    })
}
