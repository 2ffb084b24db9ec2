//! Files made up byte by byte: what system libraries do not have.

use std::io::Write;

use leakscope_common::{BpRule, CfaRule, UnwindRow};

use super::super::{BuildOptions, UnwindError, build, build_id};
use super::{full, pruned};

/// Where the text of a made-up file is loaded.
pub(super) const TEXT: u64 = 0x40_1000;
/// Where its `.eh_frame` is.
const FRAMES: u64 = 0x48_0000;

/// CIE instructions of every compiler for x86_64: CFA = rsp + 8, the return address at CFA - 8.
pub(super) const INITIAL: &[u8] = &[0x0C, 7, 8, 0x90, 1];

/// A section of a made-up file: name, type, flags, address, bytes.
pub(super) struct Part<'a>(
    pub(super) &'a str,
    pub(super) u32,
    pub(super) u64,
    pub(super) u64,
    pub(super) &'a [u8],
);

/// An ELF executable with its text in one segment, its other parts in another, and a section table.
pub(super) fn elf(code: &[u8], entry: u64, parts: &[Part<'_>]) -> Vec<u8> {
    let headers = 64 + 3 * 56;
    let mut body = code.to_vec();
    let mut names = vec![0_u8];
    // sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, link and info, align, entsize
    let mut sections: Vec<[u64; 9]> = vec![[0; 9]];
    let mut note = (0, 0);
    for Part(name, kind, flags, address, bytes) in parts {
        body.resize(body.len().next_multiple_of(8), 0);
        let offset = headers + body.len() as u64;
        let name_at = names.len() as u64;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        sections.push([
            name_at,
            u64::from(*kind),
            *flags,
            *address,
            offset,
            bytes.len() as u64,
            0,
            8,
            0,
        ]);
        if *kind == 7 {
            note = (offset, bytes.len() as u64);
        }
        body.extend_from_slice(bytes);
    }
    let name_at = names.len() as u64;
    names.extend_from_slice(b".shstrtab\0");
    sections.push([
        name_at,
        3,
        0,
        0,
        headers + body.len() as u64,
        names.len() as u64,
        0,
        1,
        0,
    ]);
    body.extend_from_slice(&names);
    body.resize(body.len().next_multiple_of(8), 0);

    let mut file = vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend((headers + body.len() as u64).to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [
        64_u16,
        56,
        3,
        64,
        sections.len() as u16,
        sections.len() as u16 - 1,
    ] {
        file.extend(half.to_le_bytes());
    }
    let segments = [
        (1_u32, 5_u32, headers, TEXT, code.len() as u64),
        (1, 4, headers, FRAMES - 0x1000, body.len() as u64),
        (4, 4, note.0, 0, note.1),
    ];
    for (kind, flags, offset, address, size) in segments {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            file.extend(word.to_le_bytes());
        }
    }
    assert_eq!(file.len() as u64, headers);
    file.extend(body);
    for [name, kind, rest @ ..] in sections {
        file.extend((name as u32).to_le_bytes());
        file.extend((kind as u32).to_le_bytes());
        for word in rest {
            file.extend(word.to_le_bytes());
        }
    }
    file
}

/// Call frame information written entry by entry, with absolute addresses.
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    /// `.debug_frame`, not `.eh_frame`.
    debug: bool,
    cie: u32,
}

impl Frames {
    pub(super) fn new(debug: bool) -> Self {
        Self {
            bytes: Vec::new(),
            debug,
            cie: 0,
        }
    }

    fn entry(&mut self, id: u32, body: &[u8]) {
        let padded = (4 + body.len()).next_multiple_of(8);
        self.bytes.extend((padded as u32).to_le_bytes());
        self.bytes.extend(id.to_le_bytes());
        self.bytes.extend_from_slice(body);
        self.bytes
            .resize(self.bytes.len() + padded - 4 - body.len(), 0);
    }

    pub(super) fn cie(mut self, augmentation: &[u8], instructions: &[u8]) -> Self {
        self.cie = self.bytes.len() as u32;
        // Version 1; code alignment 1, data alignment -8, return address in column 16.
        let mut body = vec![1];
        body.extend_from_slice(augmentation);
        body.extend([0, 1, 0x78, 16]);
        if augmentation.starts_with(b"z") {
            body.push(0);
        }
        body.extend_from_slice(instructions);
        self.entry(if self.debug { u32::MAX } else { 0 }, &body);
        self
    }

    pub(super) fn fde(mut self, start: u64, length: u64, instructions: &[u8]) -> Self {
        let pointer = match self.debug {
            true => self.cie,
            false => self.bytes.len() as u32 + 4 - self.cie,
        };
        let mut body = start.to_le_bytes().to_vec();
        body.extend(length.to_le_bytes());
        body.extend_from_slice(instructions);
        self.entry(pointer, &body);
        self
    }

    pub(super) fn part(&self) -> Part<'_> {
        match self.debug {
            true => Part(".debug_frame", 1, 0, 0, &self.bytes),
            false => Part(".eh_frame", 1, 2, FRAMES, &self.bytes),
        }
    }
}

fn row(cfa: CfaRule, offset: i16, bp: BpRule, bp_offset: i8, add: i8) -> (u8, i16, u8, u16) {
    (cfa as u8, offset, bp as u8, UnwindRow::pack(bp_offset, add))
}

fn plain(cfa: CfaRule) -> (u8, i16, u8, u16) {
    row(cfa, 0, BpRule::Same, 0, 0)
}

/// The rows as (offset into the text, rule).
fn rows(table: &super::Table) -> Vec<(u64, (u8, i16, u8, u16))> {
    table
        .iter()
        .map(|(address, row)| {
            (
                address - TEXT,
                (row.cfa, row.cfa_offset, row.bp, row.packed),
            )
        })
        .collect()
}

/// Where the functions of [`varied`] begin, in bytes from [`TEXT`].
fn varied() -> Frames {
    Frames::new(false)
        .cie(b"", INITIAL)
        // push rbp at 0, mov rbp, rsp at 1; leave; ret: the common frame.
        .fde(
            TEXT,
            0x20,
            &[0x41, 0x0E, 16, 0x86, 2, 0x43, 0x0D, 6, 0x50, 0x0C, 7, 8],
        )
        // A gap of 16, then a realigned stack: CFA = *(rbp - 8), rbp saved at rbp + 0.
        .fde(
            TEXT + 0x30,
            0x10,
            &[0x0F, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0],
        )
        // Hand-written: CFA = *(rsp + 16) + 8, rbp undefined.
        .fde(
            TEXT + 0x40,
            0x10,
            &[0x0F, 5, 0x77, 16, 0x06, 0x23, 8, 0x07, 6],
        )
        // A lazy procedure linkage table.
        .fde(
            TEXT + 0x50,
            0x10,
            &[
                0x0F, 11, 0x77, 8, 0x80, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x33, 0x24, 0x22,
            ],
        )
        // The outermost function.
        .fde(TEXT + 0x60, 0x10, &[0x07, 16])
        // CFA by r10, which rows cannot say; remembered and restored around it.
        .fde(TEXT + 0x70, 0x10, &[0x44, 0x0A, 0x0C, 10, 0, 0x44, 0x0B])
        .cie(b"zS", INITIAL)
        .fde(TEXT + 0x80, 0x10, &[0])
}

#[test]
fn every_rule_becomes_its_row() {
    let frames = varied();
    let table = full(&elf(&[0x90; 0xA0], 0, &[frames.part()]));
    let same = BpRule::Same;
    assert_eq!(
        rows(&table),
        [
            (0x00, row(CfaRule::Sp, 1, same, 0, 0)),
            (0x01, row(CfaRule::Sp, 2, BpRule::AtCfa, -2, 0)),
            (0x04, row(CfaRule::Bp, 2, BpRule::AtCfa, -2, 0)),
            (0x14, row(CfaRule::Sp, 1, BpRule::AtCfa, -2, 0)),
            (0x20, plain(CfaRule::None)),
            (0x30, row(CfaRule::DerefBp, -1, BpRule::AtBp, 0, 0)),
            (0x40, row(CfaRule::DerefSp, 2, BpRule::Unknown, 0, 1)),
            (0x50, row(CfaRule::Plt, 1, same, 0, 11)),
            (0x60, plain(CfaRule::End)),
            (0x70, row(CfaRule::Sp, 1, same, 0, 0)),
            (0x74, plain(CfaRule::Unsupported)),
            (0x78, row(CfaRule::Sp, 1, same, 0, 0)),
            (0x80, plain(CfaRule::Signal)),
            (0x90, plain(CfaRule::None)),
        ]
    );
    assert_eq!((table.stats.functions, table.stats.unsupported), (7, 1));
}

#[test]
fn pruning_keeps_calls_ends_signals_and_the_last_row() {
    let mut code = [0x90; 0xA0];
    // call r12 as the last bytes of the row at 4; it ends at 0x13.
    code[0x11..0x14].copy_from_slice(&[0x41, 0xFF, 0xD4]);
    // A direct call in the gap, which ends with it: code without call frame information.
    code[0x2B..0x30].copy_from_slice(&[0xE8, 0, 0, 0, 0]);
    // A direct call as the last instruction of a function: its return address is the next one's.
    code[0x3B..0x40].copy_from_slice(&[0xE8, 0, 0, 0, 0]);
    let frames = varied();
    let table = pruned(&elf(&code, 0, &[frames.part()]));
    assert_eq!(
        rows(&table),
        [
            (0x04, row(CfaRule::Bp, 2, BpRule::AtCfa, -2, 0)),
            (0x20, plain(CfaRule::None)),
            (0x30, row(CfaRule::DerefBp, -1, BpRule::AtBp, 0, 0)),
            (0x60, plain(CfaRule::End)),
            (0x80, plain(CfaRule::Signal)),
            (0x90, plain(CfaRule::None)),
        ]
    );
    assert_eq!(table.stats.rows_full, 14);
}

#[test]
fn the_entry_point_is_outermost_where_nothing_describes_it() {
    // call; hlt at the entry, in a gap.
    let mut code = [0x90; 0x60];
    code[0x20..0x26].copy_from_slice(&[0xE8, 0, 0, 0, 0, 0xF4]);
    let frames = Frames::new(false)
        .cie(b"", INITIAL)
        .fde(TEXT, 0x10, &[0])
        .fde(TEXT + 0x40, 0x10, &[0]);
    let common = row(CfaRule::Sp, 1, BpRule::Same, 0, 0);
    let table = full(&elf(&code, TEXT + 0x20, &[frames.part()]));
    assert_eq!(
        rows(&table),
        [
            (0x00, common),
            (0x10, plain(CfaRule::None)),
            (0x20, plain(CfaRule::End)),
            (0x26, plain(CfaRule::None)),
            (0x40, common),
            (0x50, plain(CfaRule::None)),
        ]
    );
    // An entry that is described keeps its rule, and one that reaches into a function is cut.
    assert_eq!(
        rows(&full(&elf(&code, TEXT + 0x44, &[frames.part()])))[2].0,
        0x40
    );
    let table = full(&elf(&code, TEXT + 0x3C, &[frames.part()]));
    assert_eq!(
        rows(&table)[2..4],
        [(0x3C, plain(CfaRule::End)), (0x40, common)]
    );
}

#[test]
fn debug_frame_serves_where_it_is_all_there_is() {
    let debug = Frames::new(true)
        .cie(b"", INITIAL)
        .fde(TEXT, 0x10, &[0x0E, 32])
        .fde(TEXT + 0x10, 0x10, &[0x0E, 48]);
    let code = [0x90; 0x40];
    let expected = |first, second| {
        [
            (0x00, row(CfaRule::Sp, first, BpRule::Same, 0, 0)),
            (0x10, row(CfaRule::Sp, second, BpRule::Same, 0, 0)),
            (0x20, plain(CfaRule::None)),
        ]
    };
    assert_eq!(rows(&full(&elf(&code, 0, &[debug.part()]))), expected(4, 6));

    // Compressed, as Go's linker does.
    let mut compressed = vec![1, 0, 0, 0, 0, 0, 0, 0];
    compressed.extend((debug.bytes.len() as u64).to_le_bytes());
    compressed.extend(8_u64.to_le_bytes());
    let mut encoder = flate2::write::ZlibEncoder::new(compressed, flate2::Compression::best());
    encoder.write_all(&debug.bytes).unwrap();
    let compressed = encoder.finish().unwrap();
    let part = Part(".debug_frame", 1, 1 << 11, 0, &compressed);
    assert_eq!(rows(&full(&elf(&code, 0, &[part]))), expected(4, 6));

    // Beside .eh_frame, only for what that does not describe.
    let both = Frames::new(false)
        .cie(b"", INITIAL)
        .fde(TEXT, 0x10, &[0x0E, 16]);
    let file = elf(&code, 0, &[both.part(), debug.part()]);
    assert_eq!(rows(&full(&file)), expected(2, 6));
}

#[test]
fn a_corrupt_entry_costs_itself() {
    let frames = Frames::new(false)
        .cie(b"", INITIAL)
        .fde(TEXT, 0x10, &[0])
        // An unknown instruction.
        .fde(TEXT + 0x10, 0x10, &[0x41, 0x3F])
        // State restored that was never remembered.
        .fde(TEXT + 0x20, 0x10, &[0x41, 0x0B])
        // Not in the text at all; then of no length.
        .fde(TEXT + 0x1000, 0x10, &[0])
        .fde(TEXT + 0x28, 0, &[0])
        // Overlaps the next one, and is cut by neither.
        .fde(TEXT + 0x30, 0x10, &[0x0E, 32]);
    let table = full(&elf(&[0x90; 0x40], 0, &[frames.part()]));
    assert_eq!(
        rows(&table),
        [
            (0x00, row(CfaRule::Sp, 1, BpRule::Same, 0, 0)),
            (0x10, plain(CfaRule::Unsupported)),
            (0x30, row(CfaRule::Sp, 4, BpRule::Same, 0, 0)),
            (0x40, plain(CfaRule::None)),
        ]
    );
    assert_eq!((table.stats.corrupt, table.stats.outside), (2, 2));
    // A CIE that is corrupt costs all that use it.
    let frames = Frames::new(false)
        .cie(b"", &[0x3F])
        .fde(TEXT, 0x10, &[0])
        .cie(b"", INITIAL)
        .fde(TEXT + 0x10, 0x10, &[0]);
    let table = full(&elf(&[0x90; 0x40], 0, &[frames.part()]));
    assert_eq!(rows(&table)[0].0, 0x10);
    assert_eq!((table.stats.functions, table.stats.corrupt), (1, 1));
}

#[test]
fn entries_that_overlap_do_not_break_the_order() {
    let frames = Frames::new(false)
        .cie(b"", INITIAL)
        .fde(TEXT + 0x08, 0x18, &[0x44, 0x0E, 16, 0x48, 0x0E, 24])
        .fde(TEXT, 0x10, &[0]);
    let table = full(&elf(&[0x90; 0x40], 0, &[frames.part()]));
    assert_eq!(
        rows(&table),
        [
            (0x00, row(CfaRule::Sp, 1, BpRule::Same, 0, 0)),
            (0x10, row(CfaRule::Sp, 2, BpRule::Same, 0, 0)),
            (0x14, row(CfaRule::Sp, 3, BpRule::Same, 0, 0)),
            (0x20, plain(CfaRule::None)),
        ]
    );
}

#[test]
fn what_cannot_be_unwound_says_why() {
    let good = elf(&[0x90; 0x40], 0, &[varied().part()]);
    let changed = |at: usize, to: &[u8]| {
        let mut file = good.clone();
        file[at..at + to.len()].copy_from_slice(to);
        build(&file, &BuildOptions::default()).map(|table| table.rows.len())
    };
    assert_eq!(changed(0, b"\x7FFLE"), Err(UnwindError::NotElf));
    assert_eq!(
        changed(18, &183_u16.to_le_bytes()),
        Err(UnwindError::WrongMachine {
            machine: 183,
            bits: 64
        })
    );
    assert_eq!(
        changed(4, &[1]),
        Err(UnwindError::WrongMachine {
            machine: 62,
            bits: 32
        })
    );
    // Big-endian, another machine.
    assert_eq!(
        changed(5, &[2]),
        Err(UnwindError::WrongMachine {
            machine: 62 << 8,
            bits: 64
        })
    );
    assert_eq!(
        changed(16, &1_u16.to_le_bytes()),
        Err(UnwindError::WrongType(1))
    );
    // p_flags of the first segment without PF_X.
    assert_eq!(changed(64 + 4, &[4]), Err(UnwindError::NoText));
    assert!(matches!(
        build(&elf(&[0x90; 0x40], 0, &[]), &BuildOptions::default()),
        Err(UnwindError::NoCallFrameInformation {
            corrupt: 0,
            outside: 0
        })
    ));
    assert_eq!(
        build(b"", &BuildOptions::default()),
        Err(UnwindError::NotElf)
    );
    // The second segment executable as well, and very far away.
    let mut file = good.clone();
    file[64 + 56 + 4] = 5;
    file[64 + 56 + 16..64 + 56 + 24].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert!(matches!(
        build(&file, &BuildOptions::default()),
        Err(UnwindError::TooLarge { limit, .. }) if limit == 1 << 32
    ));
}

#[test]
fn the_build_id_is_read_from_its_note() {
    let note = |id: &[u8]| {
        let mut note = Vec::new();
        for word in [4, id.len() as u32, 3] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"GNU\0");
        note.extend_from_slice(id);
        note
    };
    let with = |id: &[u8]| {
        elf(
            &[0x90; 0x10],
            0,
            &[Part(".note.gnu.build-id", 7, 2, 0, &note(id))],
        )
    };
    assert_eq!(build_id(&with(&[7; 20])), Some(&[7; 20][..]));
    assert_eq!(build_id(&with(&[])), None);
    assert_eq!(build_id(&with(&[7; 65])), None);
    assert_eq!(build_id(&elf(&[0x90; 0x10], 0, &[])), None);
    assert_eq!(build_id(b"\x7FELF"), None);
}

#[test]
fn a_register_behind_an_expression_goes_with_the_last_offset() {
    // def_cfa_offset 56; expression *(rsp + 16) + 8; def_cfa_register rbp; expression again; def_cfa_offset 48 (waits);
    // def_cfa_register rsp.
    let expression = [0x0F, 5, 0x77, 16, 0x06, 0x23, 8];
    let instructions = [
        &[0x0E, 56, 0x41][..],
        &expression,
        &[0x41, 0x0D, 6, 0x41],
        &expression,
        &[0x41, 0x0E, 48, 0x41, 0x0D, 7],
    ];
    let frames = Frames::new(false)
        .cie(b"", INITIAL)
        .fde(TEXT, 0x10, &instructions.concat());
    let table = full(&elf(&[0x90; 0x10], 0, &[frames.part()]));
    let same = BpRule::Same;
    assert_eq!(
        rows(&table),
        [
            (0x0, row(CfaRule::Sp, 7, same, 0, 0)),
            (0x1, row(CfaRule::DerefSp, 2, same, 0, 1)),
            (0x2, row(CfaRule::Bp, 7, same, 0, 0)),
            (0x3, row(CfaRule::DerefSp, 2, same, 0, 1)),
            (0x5, row(CfaRule::Sp, 6, same, 0, 0)),
            (0x10, plain(CfaRule::None)),
        ]
    );
    assert_eq!(table.stats.corrupt, 0);
}
