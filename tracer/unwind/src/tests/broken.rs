//! Broken files: nothing panics, tables stay sound, and the damage stays where it is.

use leakscope_common::{BpRule, CfaRule};
use proptest::prelude::*;

use super::super::{BuildOptions, Kept, Table, build, build_id};
use super::made_up::{Frames, INITIAL, Part, TEXT, elf};
use super::{FILES, Random, full, section};

/// What the walk relies on.
fn assert_sound(table: &Table) {
    let starts = &table.page_starts;
    assert_eq!(starts.first(), Some(&0));
    assert_eq!(starts.last().copied(), Some(table.rows.len() as u32));
    assert!(starts.len() <= 65_538);
    let addresses: Vec<u64> = table.iter().map(|(address, _)| address).collect();
    assert_eq!(addresses.len(), table.rows.len());
    assert!(addresses.is_sorted_by(|a, b| a < b));
    for row in &table.rows {
        assert!(row.cfa <= CfaRule::SpFar as u8 && row.bp <= BpRule::Unknown as u8);
    }
}

fn build_both(file: &[u8]) {
    for kept in [Kept::Calls, Kept::Writes, Kept::All] {
        let options = BuildOptions {
            kept,
            ..BuildOptions::default()
        };
        if let Ok(table) = build(file, &options) {
            assert_sound(&table);
        }
    }
    assert!(build_id(file).is_none_or(|id| (1..=64).contains(&id.len())));
}

/// A small file with both sections, and every kind of entry.
fn small() -> Vec<u8> {
    let eh = Frames::new(false)
        .cie(b"", INITIAL)
        .fde(
            TEXT,
            0x20,
            &[0x41, 0x0E, 16, 0x86, 2, 0x43, 0x0D, 6, 0x50, 0x0C, 7, 8],
        )
        .fde(
            TEXT + 0x30,
            0x10,
            &[0x0F, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0],
        )
        .cie(b"zS", INITIAL)
        .fde(TEXT + 0x40, 0x10, &[0x44, 0x0A, 0x0C, 10, 0, 0x44, 0x0B]);
    let debug = Frames::new(true)
        .cie(b"", INITIAL)
        .fde(TEXT + 0x60, 0x10, &[0x0E, 32]);
    let note = [
        4, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0, 1, 2, 3, 4,
    ];
    elf(
        &[0xE8; 0x80],
        TEXT + 0x70,
        &[
            eh.part(),
            debug.part(),
            Part(".note.gnu.build-id", 7, 2, 0, &note),
        ],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        build_both(&bytes);
    }

    #[test]
    fn a_small_file_with_changed_bytes_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        words in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![
            0_u64, 1, u64::MAX, u64::MAX - 7, 1 << 32, 1 << 47, 1 << 63, TEXT, 0x7FFF_FFFF, 0xFFFF_FFFF,
        ])), 0..3),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = small();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        for (at, word) in words {
            let at = at.index(file.len() - 7);
            file[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        build_both(&file);
    }
}

/// The smallest system file there is, with damage in its headers and its call frame information, where it hurts.
#[test]
fn a_system_file_with_changed_bytes_does_no_harm() {
    let file = std::fs::read(FILES[0]).unwrap();
    let object = object::File::parse(&*file).unwrap();
    let header = section(&object, ".eh_frame_hdr").unwrap().1;
    let frames = section(&object, ".eh_frame").unwrap().1;
    let offset = |part: &[u8]| part.as_ptr() as usize - file.as_ptr() as usize;
    let targets = [
        (0, 64 + 9 * 56),
        (offset(header), header.len()),
        (offset(frames), frames.len()),
        (file.len() - 64 * 24, 64 * 24),
    ];
    let mut random = Random(1);
    for _ in 0..400 {
        let mut broken = file.clone();
        for _ in 0..=random.below(6) {
            let (from, length) = targets[random.below(targets.len())];
            let at = from + random.below(length);
            broken[at] = random.next() as u8;
        }
        build_both(&broken);
    }
}

/// For each of many entries: its instructions overwritten, then its length. All other functions keep their rows.
#[test]
fn a_corrupt_entry_costs_its_own_function() {
    let file = std::fs::read(FILES[0]).unwrap();
    let object = object::File::parse(&*file).unwrap();
    let (address, frames) = section(&object, ".eh_frame").unwrap();
    let base = frames.as_ptr() as usize - file.as_ptr() as usize;
    let bases = gimli::BaseAddresses::default().set_eh_frame(address);
    let eh_frame = gimli::EhFrame::new(frames, gimli::LittleEndian);
    let sound = full(&file);

    let mut entries = gimli::UnwindSection::entries(&eh_frame, &bases);
    let mut checked = 0;
    while let Some(entry) = entries.next().unwrap() {
        let gimli::CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial
            .parse(<gimli::EhFrame<_> as gimli::UnwindSection<_>>::cie_from_offset)
            .unwrap();
        // A signal trampoline's instructions are not followed.
        if fde.is_signal_trampoline() {
            continue;
        }
        let at = base + fde.offset();
        let own = fde.initial_address()..fde.end_address();
        // An unknown instruction behind length, CIE pointer, start, range and augmentation length.
        for (at, bytes) in [(at + 17, &[0x3F_u8][..]), (at, &[0xF0, 0xFF, 0xFF, 0x7F])] {
            let mut broken = file.clone();
            broken[at..at + bytes.len()].copy_from_slice(bytes);
            let table = full(&broken);
            assert_eq!(table.stats.corrupt, 1, "{at:#x} {bytes:?} {own:#x?}");
            for (address, _) in sound.iter() {
                if !own.contains(&address) && address != own.end {
                    let without = |row: Option<leakscope_common::UnwindRow>| {
                        row.map(|row| (row.cfa, row.bp, row.cfa_offset, row.packed))
                    };
                    assert_eq!(
                        without(table.lookup(address)),
                        without(sound.lookup(address)),
                        "{address:#x} after damage to {own:#x?}"
                    );
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 200, "{checked}");
}

/// Without section headers (as `sstrip` leaves a file, and as the loader sees it) the program headers lead to the same rows.
#[test]
fn stripped_section_headers_change_nothing() {
    for (name, file) in super::files() {
        let mut stripped = file.clone();
        stripped[0x28..0x30].fill(0);
        stripped[0x3C..0x40].fill(0);
        let (with, without) = (full(&file), full(&stripped));
        assert_eq!(with.rows, without.rows, "{name}");
        assert_eq!(with.page_starts, without.page_starts, "{name}");
    }
}

/// The number of threads changes nothing.
#[test]
fn threads_do_not_change_the_table() {
    for (name, file) in super::files() {
        let with = |threads| {
            let options = BuildOptions {
                threads: std::num::NonZeroUsize::new(threads),
                ..BuildOptions::default()
            };
            build(&file, &options).unwrap()
        };
        assert_eq!(with(1), with(7), "{name}");
    }
}
