//! Where a probe goes, in functions of real libraries and in made-up ones.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use proptest::prelude::*;

use super::*;

mod real;

const ENTRY: u64 = 0x40_1000;

fn site_of(code: &[u8], function: Function, wants_return: bool) -> (u64, SiteCost) {
    let site = select(code, ENTRY, function, wants_return);
    (site.offset_from_entry, site.cost)
}

#[test]
fn what_is_emulated_at_the_entry_stays_there() {
    for code in [
        &[0x53, 0xc3][..],                           // push %rbx
        &[0x41, 0x54, 0xc3],                         // push %r12
        &[0xe9, 0, 1, 0, 0],                         // jmp
        &[0xeb, 0x10],                               // jmp
        &[0xe8, 0, 1, 0, 0, 0xc3],                   // call
        &[0x74, 0x00, 0xc3],                         // je
        &[0x0f, 0x85, 0x00, 0x01, 0x00, 0x00, 0xc3], // jne
    ] {
        assert_eq!(
            site_of(code, Function::Malloc, true),
            (0, SiteCost::Emulated),
            "{code:x?}"
        );
    }
}

#[test]
fn the_site_moves_to_what_is_emulated() {
    // test %rdi,%rdi; je; ret
    assert_eq!(
        site_of(&[0x48, 0x85, 0xff, 0x74, 0x00, 0xc3], Function::Free, false),
        (3, SiteCost::Emulated)
    );
    // endbr64; push %rbx; pop %rbx; ret
    assert_eq!(
        site_of(
            &[0xf3, 0x0f, 0x1e, 0xfa, 0x53, 0x5b, 0xc3],
            Function::Malloc,
            true
        ),
        (4, SiteCost::Emulated)
    );
    // mov %rdi,%rax; nop; ret
    assert_eq!(
        site_of(&[0x48, 0x89, 0xf8, 0x90, 0xc3], Function::Malloc, true),
        (3, SiteCost::Nop)
    );
    // mov %rdi,%rax; nopl 0(%rax); push %rbx: the push is cheaper on every kernel
    let code = [0x48, 0x89, 0xf8, 0x0f, 0x1f, 0x40, 0x00, 0x53, 0x5b, 0xc3];
    assert_eq!(
        site_of(&code, Function::Malloc, true),
        (7, SiteCost::Emulated)
    );
    // endbr64; mov %rdi,%rax; ret: nothing better than the entry
    assert_eq!(
        site_of(
            &[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x89, 0xf8, 0xc3],
            Function::Malloc,
            true
        ),
        (0, SiteCost::SingleStepped)
    );
}

#[test]
fn a_jump_into_the_prologue_keeps_the_probe_out_of_it() {
    // 0: test %rdi,%rdi; 3: je 9; 5: dec %edx; 7: jmp 3; 9: ret. The je would count a loop.
    let loops = [0x48, 0x85, 0xff, 0x74, 0x04, 0xff, 0xca, 0xeb, 0xfa, 0xc3];
    let site = select(&loops, ENTRY, Function::Free, false);
    assert_eq!(
        (site.offset_from_entry, site.cost),
        (0, SiteCost::SingleStepped)
    );
    assert!(site.reason.contains("jumps to +3"), "{}", site.reason);

    // As above, into the middle of the test: what overlaps the site is no better.
    let middle = [0x48, 0x85, 0xff, 0x74, 0x04, 0xff, 0xca, 0xeb, 0xf8, 0xc3];
    assert_eq!(
        site_of(&middle, Function::Free, false),
        (0, SiteCost::SingleStepped)
    );

    // 0: mov %rdi,%rax; 3: nop; 4: mov %rax,%rcx; 7: je 4. Before the target a nop is left.
    let before = [0x48, 0x89, 0xf8, 0x90, 0x48, 0x89, 0xc1, 0x74, 0xfb, 0xc3];
    assert_eq!(site_of(&before, Function::Malloc, true), (3, SiteCost::Nop));

    // A call into the prologue, and the same jump from behind a byte that does not decode.
    let call = [
        0x48, 0x85, 0xff, 0x74, 0x00, 0xe8, 0xf9, 0xff, 0xff, 0xff, 0xc3,
    ];
    assert_eq!(
        site_of(&call, Function::Free, false),
        (0, SiteCost::SingleStepped)
    );
    let data = [0x48, 0x85, 0xff, 0x74, 0x02, 0xc3, 0x06, 0xeb, 0xfa];
    let site = select(&data, ENTRY, Function::Free, false);
    assert_eq!(site.offset_from_entry, 0, "{}", site.reason);
}

#[test]
fn a_jump_from_a_far_part_of_the_function_counts() {
    // test %rdi,%rdi; je 0x401103; ret. There: jmp 0x401003.
    let code = [0x48, 0x85, 0xff, 0x0f, 0x84, 0xfa, 0x00, 0x00, 0x00, 0xc3];
    let mut asked = Vec::new();
    let mut elsewhere = |at| {
        asked.push(at);
        Some(vec![0x90, 0xe9, 0xfa, 0xfe, 0xff, 0xff])
    };
    let site = select_with(&code, ENTRY, Function::Free, false, &mut elsewhere);
    assert_eq!(site.offset_from_entry, 0);
    assert!(site.reason.contains("jumps to +3"), "{}", site.reason);
    assert_eq!(asked, [0x40_1103]);
    assert_eq!(
        site_of(&code, Function::Free, false),
        (3, SiteCost::Emulated),
        "taken to be another function"
    );
}

#[test]
fn a_computed_jump_may_lead_anywhere_but_a_slot_does_not() {
    // test; je +2; jmp *%rax
    let computed = [0x48, 0x85, 0xff, 0x74, 0x00, 0xff, 0xe0];
    let site = select(&computed, ENTRY, Function::Free, false);
    assert_eq!(site.offset_from_entry, 0);
    assert!(site.reason.contains("computed"), "{}", site.reason);
    // test; je; jmp *(%rax,%rcx,8)
    assert_eq!(
        site_of(
            &[0x48, 0x85, 0xff, 0x74, 0x00, 0xff, 0x24, 0xc8],
            Function::Free,
            false
        )
        .0,
        0
    );
    // test; je; jmp *0x100(%rip)
    assert_eq!(
        site_of(
            &[0x48, 0x85, 0xff, 0x74, 0x00, 0xff, 0x25, 0, 1, 0, 0],
            Function::Free,
            false
        )
        .0,
        3
    );
}

#[test]
fn an_overwritten_argument_ends_the_line() {
    // mov $1,%edi; push %rbx; pop %rbx; ret
    let code = [0xbf, 1, 0, 0, 0, 0x53, 0x5b, 0xc3];
    let site = select(&code, ENTRY, Function::Malloc, true);
    assert_eq!(
        (site.offset_from_entry, site.cost),
        (0, SiteCost::SingleStepped)
    );
    assert!(site.reason.contains("argument 1"), "{}", site.reason);
    // mov $1,%esi: the size of calloc, of no meaning to malloc.
    let code = [0xbe, 1, 0, 0, 0, 0x53, 0x5b, 0xc3];
    assert_eq!(site_of(&code, Function::Malloc, true).0, 5);
    assert_eq!(site_of(&code, Function::Calloc, true).0, 0);
    assert_eq!(site_of(&code, Function::AlignedAlloc, true).0, 0);
    assert_eq!(
        site_of(&code, Function::PosixMemalign, true).0,
        5,
        "its alignment"
    );
    // xchg %rdi,%rsi; push %rbx
    assert_eq!(
        site_of(
            &[0x48, 0x87, 0xfe, 0x53, 0x5b, 0xc3],
            Function::Realloc,
            true
        )
        .0,
        0
    );
    // movb $1,%dil; push %rbx: a part of it
    assert_eq!(
        site_of(
            &[0x40, 0xb7, 0x01, 0x53, 0x5b, 0xc3],
            Function::Malloc,
            true
        )
        .0,
        0
    );
    // mov %rdi,%rax; mov %rax,%rdi; push: lost nowhere
    assert_eq!(
        site_of(
            &[0x48, 0x89, 0xf8, 0x48, 0x89, 0xc7, 0x53, 0x5b, 0xc3],
            Function::Malloc,
            true
        )
        .0,
        6
    );
    // mov %edi,%edi; push: the upper half is lost
    assert_eq!(
        site_of(&[0x89, 0xff, 0x53, 0x5b, 0xc3], Function::Malloc, true).0,
        0
    );
}

#[test]
fn arguments_that_moved_on_are_read_where_they_are() {
    // mov %rsi,%rdx; mov %rdi,%rsi; mov (%rax),%rdi; je
    let shift = [
        0x48, 0x89, 0xf2, 0x48, 0x89, 0xfe, 0x48, 0x8b, 0x38, 0x74, 0x00, 0xc3,
    ];
    for (function, read_as) in [
        (Function::Malloc, Function::AlignedAlloc),
        (Function::Calloc, Function::HeapCalloc),
        (Function::Realloc, Function::HeapRealloc),
    ] {
        let site = select(&shift, ENTRY, function, true);
        assert_eq!(
            (site.offset_from_entry, site.function),
            (9, read_as),
            "{}",
            site.reason
        );
    }
    // No function of the probe reads valloc's size, or the block of free, from the second register.
    for function in [Function::Valloc, Function::Pvalloc, Function::Free] {
        let site = select(&shift, ENTRY, function, true);
        assert_eq!(
            (site.offset_from_entry, site.function),
            (0, function),
            "{}",
            site.reason
        );
    }
}

#[test]
fn a_moved_stack_pointer_is_handed_on_or_forbidden() {
    // sub $0x18,%rsp; test %rdi,%rdi; je
    let code = [0x48, 0x83, 0xec, 0x18, 0x48, 0x85, 0xff, 0x74, 0x00, 0xc3];
    let site = select(&code, ENTRY, Function::Free, false);
    assert_eq!((site.offset_from_entry, site.stack_moved), (7, 0x18));
    let site = select(&code, ENTRY, Function::Malloc, true);
    assert_eq!((site.offset_from_entry, site.stack_moved), (0, 0));
    assert!(
        site.reason.contains("stack pointer moves"),
        "{}",
        site.reason
    );
    // lea -0x20(%rsp),%rsp; je
    let site = select(
        &[0x48, 0x8d, 0x64, 0x24, 0xe0, 0x74, 0x00, 0xc3],
        ENTRY,
        Function::Free,
        false,
    );
    assert_eq!((site.offset_from_entry, site.stack_moved), (5, 0x20));
    // and $-64,%rsp; je: by how much is not known
    assert_eq!(
        site_of(
            &[0x48, 0x83, 0xe4, 0xc0, 0x74, 0x00, 0xc3],
            Function::Free,
            false
        )
        .0,
        0
    );
    // pop %rax; je: above the entry's
    assert_eq!(
        site_of(&[0x58, 0x74, 0x00, 0xc3], Function::Free, false).0,
        0
    );
    // sub $0x20000,%rsp; je: does not fit the cookie
    assert_eq!(
        site_of(
            &[0x48, 0x81, 0xec, 0, 0, 2, 0, 0x74, 0x00, 0xc3],
            Function::Free,
            false
        )
        .0,
        0
    );
}

#[test]
fn the_callers_registers_are_whole_at_the_site() {
    // mov %rsp,%rbp; je: the frame would be counted twice
    let site = select(
        &[0x48, 0x89, 0xe5, 0x74, 0x00, 0xc3],
        ENTRY,
        Function::Free,
        false,
    );
    assert_eq!(site.offset_from_entry, 0);
    assert!(site.reason.contains("rbp"), "{}", site.reason);
    // mov %rdi,%r12; je
    assert_eq!(
        site_of(&[0x49, 0x89, 0xfc, 0x74, 0x00, 0xc3], Function::Free, false).0,
        0
    );
}

#[test]
fn what_the_kernel_refuses_is_no_site() {
    // lock xadd %eax,(%rcx); push %rbx
    let site = select(
        &[0xf0, 0x0f, 0xc1, 0x01, 0x53, 0x5b, 0xc3],
        ENTRY,
        Function::Malloc,
        true,
    );
    assert_eq!((site.offset_from_entry, site.cost), (4, SiteCost::Emulated));
    // lock xadd; mov %rdi,%rax; ret: single-stepped is better than refused
    let site = select(
        &[0xf0, 0x0f, 0xc1, 0x01, 0x48, 0x89, 0xf8, 0xc3],
        ENTRY,
        Function::Malloc,
        true,
    );
    assert_eq!(
        (site.offset_from_entry, site.cost),
        (4, SiteCost::SingleStepped)
    );
    // test; cs nopw 0(%rax,%rax,1); data16 jmp: neither
    let code = [
        0x48, 0x85, 0xff, 0x2e, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0xc3,
    ];
    assert_eq!(
        site_of(&code, Function::Free, false),
        (0, SiteCost::SingleStepped)
    );
    let (instruction, bytes) = decode_at(&[0x66, 0xe9, 0, 0, 0, 0], ENTRY, 0).unwrap();
    assert_eq!(cost_of(&instruction, bytes), None);
    // int3 behind the first byte
    let (instruction, bytes) = decode_at(&[0xcc], ENTRY, 0).unwrap();
    assert_eq!(cost_of(&instruction, bytes), None);
    // xchg %r8,%rax is no nop, nor is a push of another size one that is emulated.
    for code in [
        &[0x49, 0x90][..],
        &[0x66, 0x50],
        &[0x48, 0x50],
        &[0xff, 0x30],
    ] {
        let (instruction, bytes) = decode_at(code, ENTRY, 0).unwrap();
        assert_eq!(
            cost_of(&instruction, bytes),
            Some(SiteCost::SingleStepped),
            "{code:x?}"
        );
    }
}

#[test]
fn what_cannot_be_read_stays_at_the_entry() {
    for (code, word) in [
        (&[][..], "cannot be read"),
        (&[0x06, 0x53][..], "do not decode"),
        (&[0xcc, 0x53], "breakpoint"),
    ] {
        let site = select(code, ENTRY, Function::Malloc, true);
        assert_eq!((site.offset_from_entry, site.stack_moved), (0, 0));
        assert!(site.reason.contains(word), "{}", site.reason);
    }
}

#[test]
fn a_loop_through_the_entry_is_told() {
    // push %rbx; pop %rbx; je entry; ret
    let site = select(
        &[0x53, 0x5b, 0x74, 0xfc, 0xc3],
        ENTRY,
        Function::Malloc,
        true,
    );
    assert!(
        site.offset_from_entry == 0 && site.reason.contains("back to its entry"),
        "{}",
        site.reason
    );
}

/// What a site promises, checked by looking at each instruction anew.
fn check(
    code: &[u8],
    vaddr: u64,
    function: Function,
    wants_return: bool,
    site: &ProbeSite,
    name: &str,
) {
    if site.offset_from_entry == 0 {
        assert_eq!((site.stack_moved, site.function), (0, function), "{name}");
        return;
    }
    let end = vaddr + site.offset_from_entry;
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut pushed = 0;
    while decoder.ip() < end {
        let instruction = decoder.decode();
        assert_eq!(
            instruction.flow_control(),
            iced_x86::FlowControl::Next,
            "{name}: a branch before the site"
        );
        pushed += match instruction.mnemonic() {
            Mnemonic::Push => 8,
            Mnemonic::Pop => -8,
            Mnemonic::Sub if instruction.op0_register() == Register::RSP => {
                instruction.immediate(1) as i64
            }
            Mnemonic::Add if instruction.op0_register() == Register::RSP => {
                -(instruction.immediate(1) as i64)
            }
            Mnemonic::Lea if instruction.op0_register() == Register::RSP => {
                -(instruction.memory_displacement64() as i64)
            }
            _ => 0,
        };
        assert_ne!(instruction.mnemonic(), Mnemonic::Leave, "{name}");
        if instruction.op0_kind() == OpKind::Register && instruction.mnemonic() == Mnemonic::Mov {
            assert_ne!(
                instruction.op0_register().full_register(),
                Register::RBP,
                "{name}"
            );
        }
    }
    assert_eq!(
        decoder.ip(),
        end,
        "{name}: the site lies in the middle of an instruction"
    );
    assert_eq!(pushed, i64::from(site.stack_moved), "{name}");
    assert!(
        !wants_return || pushed == 0,
        "{name}: the return address is elsewhere"
    );

    let rest = &code[site.offset_from_entry as usize..];
    let prefixes = rest
        .iter()
        .take_while(|byte| matches!(byte, 0x64 | 0x65 | 0x67 | 0xf2 | 0xf3))
        .count();
    let branch = matches!(
        rest[prefixes..],
        [0x70..=0x7f | 0xe8 | 0xe9 | 0xeb, ..] | [0x0f, 0x80..=0x8f, ..]
    );
    let emulated = branch || matches!(*rest, [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..]);
    assert_eq!(
        emulated,
        site.cost == SiteCost::Emulated,
        "{name}: {:x?}",
        &rest[..rest.len().min(4)]
    );

    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.op0_kind() == OpKind::NearBranch64 {
            let target = instruction.near_branch_target();
            assert!(
                target <= vaddr || target > end,
                "{name}: a jump to +{}",
                target - vaddr
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes_give_a_site_that_keeps_its_promises(
        code in proptest::collection::vec(prop_oneof![
            any::<u8>(),
            prop_oneof![Just(0x48_u8), Just(0x89), Just(0x8b), Just(0x85), Just(0xff), Just(0x74), Just(0x53), Just(0xeb), Just(0x90), Just(0xc3), Just(0x00)],
        ], 0..60),
        vaddr in prop_oneof![Just(ENTRY), any::<u64>()],
        wants_return in any::<bool>(),
        function in prop_oneof![Just(Function::Malloc), Just(Function::Free), Just(Function::Realloc), Just(Function::PosixMemalign)],
    ) {
        let site = select_with(&code, vaddr, function, wants_return, &mut |_| Some(vec![0xeb, 0x80]));
        prop_assert!(site.offset_from_entry == 0 || site.offset_from_entry < code.len() as u64);
        if vaddr < u64::MAX - 1000 && vaddr > 1000 {
            check(&code, vaddr, function, wants_return, &site, "random");
        }
    }
}
