//! Where C called from Go ends: `runtime.asmcgocall` runs C code on a stack of the thread's own, so that what lies above its frame is
//! the thread's start or another goroutine's remains, and no caller. The Go linker's own table of functions (`pcHeader` and
//! `moduledata.ftab` of Go's src/runtime/symtab.go; it survives strip) says where the function lies. Knows no call frame information.

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, SectionHeader};

use super::elf::present;

/// `pcHeader.magic` since Go 1.18 and 1.20, with `pad1`, `pad2`, `minLC` (1 on x86) and `ptrSize`.
const MAGICS: [[u8; 8]; 2] = [
    [0xf0, 0xff, 0xff, 0xff, 0, 0, 1, 8],
    [0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8],
];
/// Offsets in `pcHeader`: `nfunc`, `textStart`, `funcnameOffset`, `pclnOffset`.
const FUNCTIONS: usize = 8;
const TEXT_START: usize = 24;
const NAMES: usize = 32;
const TABLE: usize = 64;
/// `moduledata.text`.
const MODULE_TEXT: usize = 176;
/// Bytes of an entry of the table of functions (`functab`): where its code and its `_func` lie.
const ENTRY: usize = 8;
/// `_func.nameOff` (src/runtime/runtime2.go).
const NAME: usize = 4;
/// The function, and its wrapper for callers of Go's other calling convention, which has the same name.
const BOUNDARY: &[u8] = b"runtime.asmcgocall\0";

/// The table of functions of a file, and where it is mapped.
struct FunctionTable<'a> {
    bytes: &'a [u8],
    address: u64,
}

/// The address ranges of the functions at which stacks of C code that Go called end; sorted, none in a file without Go.
pub(super) fn ends_of_c_stacks(
    header: &FileHeader64<LittleEndian>,
    file: &[u8],
) -> Vec<(u64, u64)> {
    let Some(table) = function_table(header, file) else {
        return Vec::new();
    };
    let text = relocated(
        header,
        file,
        table.address.saturating_add(TEXT_START as u64),
    )
    .or_else(|| word(table.bytes, TEXT_START))
    .filter(|text| *text != 0)
    .or_else(|| text_by_module(header, file, &table));
    let mut ends = text
        .and_then(|text| named(table.bytes, text))
        .unwrap_or_default();
    ends.sort_unstable();
    ends
}

/// Finds the table by its section, or, where a C linker has merged that into another, by its first bytes.
fn function_table<'a>(
    header: &FileHeader64<LittleEndian>,
    file: &'a [u8],
) -> Option<FunctionTable<'a>> {
    let endian = LittleEndian;
    let sections = header.sections(endian, file).ok()?;
    let named = |section: &elf::SectionHeader64<LittleEndian>| {
        sections.section_name(endian, section).unwrap_or_default()
    };
    let is_go = sections.iter().any(|section| {
        let name = named(section);
        name.ends_with(b".gopclntab") || name == b".go.buildinfo" || name == b".note.go.buildid"
    });
    if !is_go {
        return None;
    }
    let holds = |name: &[u8]| name.ends_with(b".gopclntab") || name == b".data.rel.ro";
    sections
        .iter()
        .filter(|section| holds(named(section)))
        .find_map(|section| {
            let bytes = present(file, section.sh_offset(endian), section.sh_size(endian));
            let (words, _) = bytes.as_chunks::<8>();
            let at = 8 * words.iter().position(|word| MAGICS.contains(word))?;
            Some(FunctionTable {
                bytes: bytes.get(at..)?,
                address: section.sh_addr(endian).saturating_add(at as u64),
            })
        })
}

/// What the dynamic loader will write to an address, before it adds the file's place: the addend of its `R_X86_64_RELATIVE`.
fn relocated(header: &FileHeader64<LittleEndian>, file: &[u8], address: u64) -> Option<u64> {
    let endian = LittleEndian;
    let sections = header.sections(endian, file).ok()?;
    sections.iter().find_map(|section| {
        let (relocations, _) = section.rela(endian, file).ok()??;
        relocations
            .iter()
            .find(|relocation| {
                relocation.r_offset.get(endian) == address
                    && relocation.r_type(endian, false) == elf::R_X86_64_RELATIVE
            })
            .and_then(|relocation| u64::try_from(relocation.r_addend.get(endian)).ok())
    })
}

/// Where code begins, by what the runtime keeps of the file (`moduledata`), whose first words point to the table and to the names in it: the
/// table itself does not say so since Go 1.26.
fn text_by_module(
    header: &FileHeader64<LittleEndian>,
    file: &[u8],
    table: &FunctionTable<'_>,
) -> Option<u64> {
    let endian = LittleEndian;
    let sections = header.sections(endian, file).ok()?;
    let names = table.address.checked_add(word(table.bytes, NAMES)?)?;
    let by_content = sections
        .iter()
        .filter(|section| section.sh_type(endian) == elf::SHT_PROGBITS)
        .find_map(|section| {
            let bytes = present(file, section.sh_offset(endian), section.sh_size(endian));
            let (words, _) = bytes.as_chunks::<8>();
            let found = words.array_windows::<2>().enumerate().find(|(_, pair)| {
                let [first, second] = pair.map(u64::from_le_bytes);
                first == table.address && second == names
            });
            word(bytes, (8 * found?.0).checked_add(MODULE_TEXT)?)
        });
    by_content.or_else(|| {
        sections.iter().find_map(|section| {
            let (relocations, _) = section.rela(endian, file).ok()??;
            let pointing = relocations.iter().filter(|relocation| {
                relocation.r_type(endian, false) == elf::R_X86_64_RELATIVE
                    && u64::try_from(relocation.r_addend.get(endian)) == Ok(table.address)
            });
            pointing
                .map(|relocation| relocation.r_offset.get(endian))
                .find_map(|module| {
                    let at = |place| relocated(header, file, module.checked_add(place)?);
                    (at(8)? == names).then(|| at(MODULE_TEXT as u64))?
                })
        })
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

/// The functions of that name in a table whose code begins at `text`.
fn named(table: &[u8], text: u64) -> Option<Vec<(u64, u64)>> {
    let place = |at| usize::try_from(word(table, at)?).ok();
    let names = table.get(place(NAMES)?..)?;
    let table_of_functions = table.get(place(TABLE)?..)?;
    let (entries, _) = table_of_functions.as_chunks::<ENTRY>();
    // One entry more than there are functions: the end of the last.
    let entries = entries.get(..entries.len().min(place(FUNCTIONS)?.checked_add(1)?))?;
    let found = entries.array_windows::<2>().filter_map(|[entry, next]| {
        let (start, function) = (half(entry, 0)?, half(entry, 4)?);
        let end = half(next, 0)?;
        let at = usize::try_from(function).ok()?.checked_add(NAME)?;
        let name = usize::try_from(half(table_of_functions, at)?).ok()?;
        (names.get(name..)?.starts_with(BOUNDARY) && start < end).then_some((
            text.checked_add(u64::from(start))?,
            text.checked_add(u64::from(end))?,
        ))
    });
    Some(found.collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::{BOUNDARY, ENTRY, FUNCTIONS, MAGICS, NAMES, TABLE, TEXT_START, named};
    use proptest::prelude::{any, proptest};

    /// A table of three functions, the second of which is the one.
    fn made_up() -> Vec<u8> {
        let mut table = vec![0; 72];
        table[..8].copy_from_slice(&MAGICS[1]);
        let names = b"main.main\0";
        let mut place = |at: usize, value: usize| {
            table[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
        };
        place(FUNCTIONS, 3);
        place(TEXT_START, 0);
        place(NAMES, 72);
        let functions = 72 + names.len() + BOUNDARY.len();
        place(TABLE, functions);
        table.extend_from_slice(names);
        table.extend_from_slice(BOUNDARY);
        let behind = 4 * ENTRY;
        for start in [0_u32, 0x40, 0xa0, 0x100] {
            let function = behind as u32 + 8 * (start / 0x20);
            table.extend_from_slice(&start.to_le_bytes());
            table.extend_from_slice(&function.to_le_bytes());
        }
        let mut records = vec![0; 80];
        for (start, name) in [(0_usize, 0_u32), (0x40, 10), (0xa0, 0)] {
            let at = 8 * (start / 0x20);
            records[at + 4..at + 8].copy_from_slice(&name.to_le_bytes());
        }
        table.extend_from_slice(&records);
        table
    }

    #[test]
    fn the_function_is_found_by_its_name() {
        assert_eq!(
            named(&made_up(), 0x40_1000).unwrap(),
            [(0x40_1040, 0x40_10a0)]
        );
    }

    proptest! {
        #[test]
        fn no_table_is_believed(at in 0_usize..200, byte in any::<u8>(), cut in 0_usize..300) {
            let mut table = made_up();
            let length = table.len();
            table[at % length] = byte;
            table.truncate(cut);
            let _ = named(&table, u64::MAX - 0x80);
        }
    }
}
