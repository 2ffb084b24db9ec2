//! ELF files of this machine and made-up ones, whole and damaged.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::process::procfs::read_maps;

/// The C library of the test process itself.
static LIBC: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let maps = read_maps(Path::new("/proc"), std::process::id()).unwrap();
    let is_libc = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("libc.so"))
    };
    let libc = maps
        .iter()
        .find(|map| map.is_file() && is_libc(&map.path))
        .unwrap();
    fs::read(&libc.path).unwrap()
});

fn names(elf: &ElfFile, bytes: &[u8]) -> Vec<Symbol> {
    elf.symbols(bytes, |name| {
        [&b"malloc"[..], b"free", b"memcpy", b"errno"].contains(&name)
    })
    .unwrap()
}

#[test]
fn the_c_library_is_read() {
    let elf = ElfFile::parse(&*LIBC).unwrap();
    assert_eq!(elf.machine, MACHINE_X86_64);
    assert_eq!(elf.soname.as_deref(), Some("libc.so.6"));
    assert_eq!(elf.build_id.as_ref().unwrap().len(), 20);
    assert!(elf.needed.iter().any(|name| name.starts_with("ld-linux")));
    assert!(elf.section(".text").unwrap().size > 0x10000);

    let symbols = names(&elf, &LIBC);
    let malloc = symbols
        .iter()
        .find(|symbol| symbol.name == "malloc")
        .unwrap();
    assert_eq!(
        (malloc.kind, malloc.is_dynamic),
        (SymbolKind::Function, true)
    );
    assert!(malloc.size > 50 && elf.is_code(malloc.vaddr));
    assert!(
        symbols
            .iter()
            .any(|symbol| symbol.name == "memcpy" && symbol.kind == SymbolKind::IndirectFunction)
    );
    assert!(
        symbols
            .iter()
            .all(|symbol| symbol.kind != SymbolKind::Undefined)
    );

    let offset = elf.file_offset_of(malloc.vaddr).unwrap();
    assert_eq!(elf.vaddr_of(offset), Some(malloc.vaddr));
    let code = elf.code_at(&*LIBC, malloc.vaddr, malloc.size).unwrap();
    assert_eq!(code, LIBC[offset as usize..][..malloc.size as usize]);
    assert!(elf.code_at(&*LIBC, u64::MAX - 3, 100).is_err());
    assert_eq!(elf.file_offset_of(0xffff_ffff_0000_0000), None);
}

#[test]
fn the_test_program_itself_is_read() {
    let file = fs::File::open("/proc/self/exe").unwrap();
    let elf = ElfFile::parse(&file).unwrap();
    assert_eq!(elf.kind, ElfKind::PositionIndependentExecutable);
    assert!(!elf.is_static() && elf.has_static_symbols());
    assert!(elf.has_interpreter);
    let imports = elf.symbols(&file, |name| name == b"malloc").unwrap();
    assert!(
        imports
            .iter()
            .all(|symbol| symbol.kind == SymbolKind::Undefined),
        "{imports:?}"
    );
    let slots = elf.symbol_slots(&file, |name| name == b"malloc").unwrap();
    assert!(!slots.is_empty());
    let got = slots.keys().min().unwrap();
    assert!(!elf.is_code(*got));
}

#[test]
fn stripped_section_headers_lose_nothing_of_the_dynamic_symbols() {
    let whole = ElfFile::parse(&*LIBC).unwrap();
    let mut bytes = LIBC.clone();
    bytes[40..48].fill(0); // e_shoff
    let stripped = ElfFile::parse(&bytes).unwrap();
    assert!(stripped.sections.is_empty() && stripped.has_dynamic_symbols());
    assert_eq!(names(&stripped, &bytes), names(&whole, &LIBC));

    let every = |elf: &ElfFile, bytes: &[u8]| elf.symbols(bytes, |_| true).unwrap();
    let dynamic: Vec<Symbol> = every(&whole, &LIBC)
        .into_iter()
        .filter(|symbol| symbol.is_dynamic)
        .collect();
    assert_eq!(every(&stripped, &bytes), dynamic);
}

#[test]
fn what_is_no_elf_file_is_said_to_be_none() {
    assert!(matches!(ElfFile::parse(&b""[..]), Err(ElfError::NotElf)));
    assert!(matches!(
        ElfFile::parse(&b"#!/bin/sh\n"[..]),
        Err(ElfError::NotElf)
    ));
    let mut bytes = LIBC[..4096].to_vec();
    bytes[4] = 1;
    assert!(matches!(
        ElfFile::parse(&bytes),
        Err(ElfError::Unsupported(_))
    ));
    bytes[4] = 2;
    bytes[5] = 2;
    assert!(matches!(
        ElfFile::parse(&bytes),
        Err(ElfError::Unsupported(_))
    ));
    assert!(matches!(
        ElfFile::parse(&LIBC[..40]),
        Err(ElfError::Damaged(_))
    ));
}

#[test]
fn a_build_id_is_found_among_other_notes() {
    let note = |kind: u32, name: &[u8], text: &[u8], align: usize| {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_le_bytes());
        note.extend((text.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        for part in [name, text] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(align), 0);
        }
        note
    };
    let notes = [
        note(1, b"GNU\0", &[0; 16], 4),
        note(3, b"Go\0\0", b"no", 4),
        note(3, b"GNU\0", b"abcde", 4),
    ]
    .concat();
    assert_eq!(find_build_id(&notes, 4), Some(b"abcde".to_vec()));
    assert_eq!(find_build_id(&notes[..notes.len() - 8], 4), None);
    let mut endless = note(3, b"GNU\0", b"abcde", 4);
    endless[4..8].fill(0xff);
    assert_eq!(find_build_id(&endless, 4), None);
}

#[test]
fn a_debug_link_is_read_and_never_leads_elsewhere() {
    let link = |bytes: &[u8]| {
        let section = Section {
            name: String::new(),
            vaddr: 0,
            file_offset: 0,
            size: bytes.len() as u64,
            kind: 1,
            flags: 0,
        };
        read_debug_link(bytes, &section)
    };
    let found = link(b"a.debug\0\x78\x56\x34\x12").unwrap();
    assert_eq!(
        (found.name.as_path(), found.crc),
        (Path::new("a.debug"), 0x1234_5678)
    );
    assert_eq!(link(b"../../x\0\x78\x56\x34\x12"), None);
    assert_eq!(link(b"a.debug\0\x78"), None);
    assert_eq!(link(b""), None);
}

fn use_all_of_it(bytes: &[u8]) {
    let Ok(elf) = ElfFile::parse(bytes) else {
        return;
    };
    let _ = elf.symbols(bytes, |name| name == b"malloc");
    let _ = elf.symbol_slots(bytes, |name| name == b"free");
    let _ = elf.code_at(bytes, elf.entry, u64::MAX);
    let _ = elf.file_offset_of(elf.entry);
    let _ = elf.vaddr_of(elf.entry);
}

/// Where the tables lie that a hostile file would damage: the headers, the dynamic section, the hash table.
fn places(bytes: &[u8]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..64 + 56 * 14).collect();
    let elf = ElfFile::parse(bytes).unwrap();
    for name in [".dynamic", ".gnu.hash", ".rela.plt", ".note.gnu.build-id"] {
        let section = elf.section(name).unwrap();
        places.extend((section.file_offset as usize..).take(section.size.min(400) as usize));
    }
    let headers = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    places.extend(headers..bytes.len());
    places
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_damaged_file_is_an_error_or_harmless(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0), Just(0xff), any::<u8>()]), 1..8),
        keep_sections in any::<bool>(),
    ) {
        static PLACES: LazyLock<Vec<usize>> = LazyLock::new(|| places(&LIBC));
        let mut bytes = LIBC.clone();
        if !keep_sections {
            bytes[40..48].fill(0);
        }
        for (place, byte) in damage {
            bytes[PLACES[place.index(PLACES.len())]] = byte;
        }
        use_all_of_it(&bytes);
    }

    #[test]
    fn a_file_cut_short_is_an_error_or_harmless(length in any::<prop::sample::Index>()) {
        use_all_of_it(&LIBC[..length.index(LIBC.len())]);
    }

    #[test]
    fn notes_of_any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..100), align in any::<u64>()) {
        let _ = find_build_id(&bytes, align);
    }
}

#[test]
fn a_mapping_that_begins_before_its_segment() {
    let mut elf = ElfFile::parse(&LIBC[..]).unwrap();
    // As lld lays out: the first bytes of the code lie in the same page as the last of what stands before it.
    elf.segments = vec![
        Segment {
            vaddr: 0,
            file_offset: 0,
            file_size: 0x16344,
            executable: false,
            ..elf.segments[0]
        },
        Segment {
            vaddr: 0x17350,
            file_offset: 0x16350,
            file_size: 0x44400,
            executable: true,
            ..elf.segments[0]
        },
    ];
    assert_eq!(elf.vaddr_of_mapping(0, false), Some(0));
    assert_eq!(elf.vaddr_of_mapping(0x16000, true), Some(0x17000));
    assert_eq!(elf.vaddr_of_mapping(0x16000, false), Some(0x16000));
    // A part of the mapping whose permission changed.
    assert_eq!(elf.vaddr_of_mapping(0x20000, true), Some(0x21000));
    assert_eq!(elf.vaddr_of_mapping(0x5A750, true), None);
}
