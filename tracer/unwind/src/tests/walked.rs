//! The walk: each way to go on and each way to end, on made-up stacks.

use std::collections::HashMap;

use leakscope_common::{BpRule, CfaRule, UnwindRow};

use super::super::{End, Lookup, Registers, Walk, walk, walk_from_system_call};

const STACK: u64 = 0x7FFF_0000_0000;

/// A thread that has just entered the function at 0x100.
const REGISTERS: Registers = Registers {
    ip: 0x100,
    sp: STACK,
    bp: STACK + 0x80,
};

fn row(cfa: CfaRule, offset: i16, bp: BpRule, bp_offset: i8, add: i8) -> Lookup {
    Lookup::Row(UnwindRow {
        address_low: 0,
        cfa: cfa as u8,
        bp: bp as u8,
        cfa_offset: offset,
        packed: UnwindRow::pack(bp_offset, add),
    })
}

fn sp(offset: i16) -> Lookup {
    row(CfaRule::Sp, offset, BpRule::Same, 0, 0)
}

fn plain(cfa: CfaRule) -> Lookup {
    row(cfa, 0, BpRule::Same, 0, 0)
}

/// Walks with the code at each multiple of 0x1000 as given, and the stack's slots by their number.
fn go(code: &[(u64, Lookup)], slots: &[(u64, u64)], max_frames: usize) -> Walk {
    let code: HashMap<u64, Lookup> = code.iter().copied().collect();
    let slots: HashMap<u64, u64> = slots
        .iter()
        .map(|(slot, value)| (STACK + 8 * slot, *value))
        .collect();
    walk(
        REGISTERS,
        |address| code.get(&(address & !0xFFF)).copied(),
        |address| slots.get(&address).copied(),
        max_frames,
    )
}

fn ends(code: &[(u64, Lookup)], slots: &[(u64, u64)], frames: &[u64], end: End) {
    let walk = go(code, slots, 127);
    assert_eq!(walk.end, end);
    assert_eq!(walk.frames, frames);
}

#[test]
fn a_stack_is_whole_only_at_an_undefined_return_address() {
    let slots = [(0, 0x1010), (2, 0x2010), (5, 0x3010)];
    let frames = [0x100, 0x1010, 0x2010, 0x3010];
    for (last, end) in [
        (Some(plain(CfaRule::End)), End::Complete),
        (Some(plain(CfaRule::None)), End::NoRule),
        (Some(plain(CfaRule::Signal)), End::Signal),
        (Some(plain(CfaRule::Unsupported)), End::Unsupported),
        (Some(Lookup::NoTable), End::NoTable),
        (None, End::UnknownMapping),
        (Some(sp(4)), End::Fault(STACK + 8 * 9)),
        (Some(sp(0)), End::NotAscending),
        (Some(sp(-4)), End::NotAscending),
    ] {
        let mut code = vec![(0x1000, sp(2)), (0x2000, sp(3))];
        code.extend(last.map(|last| (0x3000, last)));
        ends(&code, &slots, &frames, end);
    }
}

#[test]
fn a_return_address_is_looked_up_one_byte_before() {
    // The call was the last instruction of the function at 0x1000.
    let slots = [(0, 0x2000), (2, 0x3010)];
    let code = [
        (0x1000, sp(2)),
        (0x2000, plain(CfaRule::None)),
        (0x3000, plain(CfaRule::End)),
    ];
    ends(&code, &slots, &[0x100, 0x2000, 0x3010], End::Complete);
}

#[test]
fn a_null_return_address_is_no_end() {
    ends(
        &[(0x1000, sp(2))],
        &[(0, 0x1010), (2, 0)],
        &[0x100, 0x1010],
        End::NullReturnAddress,
    );
}

#[test]
fn no_more_frames_than_asked_for() {
    let code = [(0x1000, sp(1))];
    let slots: Vec<_> = (0..200).map(|slot| (slot, 0x1010)).collect();
    let walk = go(&code, &slots, 127);
    assert_eq!((walk.frames.len(), walk.end), (127, End::Limit));
    let walk = go(&code, &slots, 0);
    assert_eq!((walk.frames.len(), walk.end), (0, End::Limit));
    // Exactly as many as there are is no limit.
    let whole = [(0x1000, plain(CfaRule::End))];
    let walk = go(&whole, &slots, 2);
    assert_eq!((walk.frames.len(), walk.end), (2, End::Complete));
    let walk = go(&whole, &slots, 1);
    assert_eq!((walk.frames.len(), walk.end), (1, End::Limit));
}

#[test]
fn the_frame_pointer_is_restored_by_each_rule() {
    let end = (0x9000, plain(CfaRule::End));
    let by_bp = (0x2000, row(CfaRule::Bp, 2, BpRule::AtCfa, -2, 0));
    // Unchanged: bp points to slot 16.
    ends(
        &[(0x1000, sp(2)), by_bp, end],
        &[(0, 0x1010), (2, 0x2010), (16, 0), (17, 0x9010)],
        &[0x100, 0x1010, 0x2010, 0x9010],
        End::Complete,
    );
    // Saved in slot 1, two below a CFA in slot 3.
    ends(
        &[
            (0x1000, row(CfaRule::Sp, 2, BpRule::AtCfa, -2, 0)),
            by_bp,
            end,
        ],
        &[
            (0, 0x1010),
            (1, STACK + 8 * 30),
            (2, 0x2010),
            (30, 0),
            (31, 0x9010),
        ],
        &[0x100, 0x1010, 0x2010, 0x9010],
        End::Complete,
    );
    // Saved at bp - 8, in slot 15.
    ends(
        &[
            (0x1000, row(CfaRule::Sp, 2, BpRule::AtBp, -1, 0)),
            by_bp,
            end,
        ],
        &[
            (0, 0x1010),
            (15, STACK + 8 * 30),
            (2, 0x2010),
            (30, 0),
            (31, 0x9010),
        ],
        &[0x100, 0x1010, 0x2010, 0x9010],
        End::Complete,
    );
    // Saved where nothing can be read.
    ends(
        &[
            (0x1000, row(CfaRule::Sp, 2, BpRule::AtCfa, -2, 0)),
            by_bp,
            end,
        ],
        &[(0, 0x1010), (2, 0x2010)],
        &[0x100, 0x1010],
        End::Fault(STACK + 8),
    );
}

#[test]
fn a_lost_frame_pointer_hurts_only_who_needs_it() {
    let lost = (0x1000, row(CfaRule::Sp, 2, BpRule::Unknown, 0, 0));
    let end = (0x9000, plain(CfaRule::End));
    let slots = [
        (0, 0x1010),
        (2, 0x2010),
        (4, 0x3010),
        (3, STACK + 8 * 40),
        (41, 0x9010),
    ];
    for rule in [
        row(CfaRule::Bp, 2, BpRule::AtCfa, -2, 0),
        row(CfaRule::DerefBp, -1, BpRule::Same, 0, 0),
        Lookup::FramePointers,
    ] {
        ends(
            &[lost, (0x2000, rule)],
            &slots,
            &[0x100, 0x1010, 0x2010],
            End::FramePointerLost,
        );
    }
    // Restored from the stack by the next frame, it serves again. What is saved relative to it stays lost.
    let restores = (0x2000, row(CfaRule::Sp, 2, BpRule::AtCfa, -2, 0));
    let needs = (0x3000, row(CfaRule::Bp, 2, BpRule::AtCfa, -2, 0));
    let mut with_saved = slots.to_vec();
    with_saved.push((40, 0));
    ends(
        &[lost, restores, needs, end],
        &with_saved,
        &[0x100, 0x1010, 0x2010, 0x3010, 0x9010],
        End::Complete,
    );
    let relative = (0x2000, row(CfaRule::Sp, 2, BpRule::AtBp, 0, 0));
    ends(
        &[lost, relative, needs, end],
        &slots,
        &[0x100, 0x1010, 0x2010, 0x3010],
        End::FramePointerLost,
    );
}

#[test]
fn dereferenced_and_stub_rules_find_the_cfa() {
    let end = (0x9000, plain(CfaRule::End));
    let frames = [0x100, 0x1010, 0x9010];
    // *(sp + 16) + 8: slot 3 leads to slot 20.
    ends(
        &[(0x1000, row(CfaRule::DerefSp, 2, BpRule::Same, 0, 1)), end],
        &[(0, 0x1010), (3, STACK + 8 * 20), (20, 0x9010)],
        &frames,
        End::Complete,
    );
    // *(bp - 8): slot 15 leads to slot 20, and the return address lies below.
    ends(
        &[(0x1000, row(CfaRule::DerefBp, -1, BpRule::Same, 0, 0)), end],
        &[(0, 0x1010), (15, STACK + 8 * 20), (19, 0x9010)],
        &frames,
        End::Complete,
    );
    // Unreadable, and leading down the stack.
    let deref = [(0x1000, row(CfaRule::DerefSp, 2, BpRule::Same, 0, 0))];
    ends(&deref, &[(0, 0x1010)], &frames[..2], End::Fault(STACK + 24));
    ends(
        &deref,
        &[(0, 0x1010), (3, 16)],
        &frames[..2],
        End::NotAscending,
    );
    // A stub before and behind its push, by the address modulo 16.
    for (address, slot) in [(0x100B, 1), (0x100C, 2)] {
        ends(
            &[(0x1000, row(CfaRule::Plt, 1, BpRule::Same, 0, 11)), end],
            &[(0, address), (slot, 0x9010)],
            &[0x100, address, 0x9010],
            End::Complete,
        );
    }
}

#[test]
fn frame_pointers_are_followed_up_the_stack_only() {
    let code = [(0x1000, Lookup::FramePointers)];
    let frames = [0x100, 0x1010, 0x1020, 0x1030];
    // bp is slot 16, then slot 20, then 0.
    ends(
        &code,
        &[
            (0, 0x1010),
            (16, STACK + 8 * 20),
            (17, 0x1020),
            (20, 0),
            (21, 0x1030),
        ],
        &frames,
        End::Complete,
    );
    for (saved, end) in [
        (STACK, End::FramePointerBroken),
        (STACK + 8 * 20 + 4, End::FramePointerBroken),
        (u64::MAX - 7, End::FramePointerBroken),
        (STACK + 8 * 24, End::Fault(STACK + 8 * 24)),
    ] {
        ends(
            &code,
            &[(0, 0x1010), (16, saved), (17, 0x1020)],
            &frames[..3],
            end,
        );
    }
}

#[test]
fn a_thread_in_a_system_call_is_looked_up_behind_it() {
    // No return address at sp: the frame has a rule, found one byte before.
    let lookup = |address: u64| match address {
        0xFFF => Some(sp(2)),
        0x900F => Some(plain(CfaRule::End)),
        _ => None,
    };
    let registers = Registers {
        ip: 0x1000,
        ..REGISTERS
    };
    let read = |address| (address == STACK + 8).then_some(0x9010);
    let walk = walk_from_system_call(registers, lookup, read, 127);
    assert_eq!(
        (walk.frames, walk.end),
        (vec![0x1000, 0x9010], End::Complete)
    );
    let walk = walk_from_system_call(registers, lookup, read, 1);
    assert_eq!((walk.frames, walk.end), (vec![0x1000], End::Limit));
}
