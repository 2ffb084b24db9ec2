//! Real files: the rows against gimli's own evaluation of the same entries and against framehop. Nothing of
//! the room is used to find out what the answer should be.

use framehop::{FrameAddress, Unwinder};
use gimli::{EndianSlice, LittleEndian, RegisterRule, UnwindSection, X86_64};
use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess};
use leakscope_common::CfaRule;
use object::Object;

use super::super::walk::{End, Frame, leave};
use super::super::{BuildOptions, Kept, build};
use super::{Random, files, full, loaded, own_file, pruned, section};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

const SP: u64 = 0x7FFF_1000_0000;
const BP: u64 = SP + 0x2340;

/// Made-up stack memory: every slot points up the stack, each elsewhere.
fn memory(address: u64) -> u64 {
    assert_eq!(address % 8, 0, "an unaligned read at {address:#x}");
    let spread = address.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52;
    address.wrapping_add(0x10_0000 + 8 * spread)
}

/// What leaving a frame should give.
#[derive(Debug, PartialEq)]
enum Expected {
    /// The caller's registers; bp is `None` where a row may say that it is lost.
    Caller(u64, Option<u64>),
    End,
    Signal,
    /// The rule uses what rows do not have.
    NotExpressible,
}

/// Evaluates an expression on the made-up stack; `None` if it needs another register than sp, bp and ip.
fn evaluate(
    expression: gimli::Expression<Slice<'_>>,
    encoding: gimli::Encoding,
    initial: Option<u64>,
    ip: u64,
) -> Option<u64> {
    let mut evaluation = expression.evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            gimli::EvaluationResult::Complete => break,
            gimli::EvaluationResult::RequiresMemory { address, .. } => evaluation
                .resume_with_memory(gimli::Value::Generic(memory(address)))
                .ok()?,
            gimli::EvaluationResult::RequiresRegister { register, .. } => {
                let value = match register {
                    X86_64::RSP => SP,
                    X86_64::RBP => BP,
                    X86_64::RA => ip,
                    _ => return None,
                };
                evaluation
                    .resume_with_register(gimli::Value::Generic(value))
                    .ok()?
            }
            _ => return None,
        };
    }
    evaluation.value_result()?.to_u64(u64::MAX).ok()
}

/// What gimli's row says for the made-up registers.
fn expected(
    eh_frame: &gimli::EhFrame<Slice<'_>>,
    row: &gimli::UnwindTableRow<usize>,
    encoding: gimli::Encoding,
    signal: bool,
    ip: u64,
) -> Expected {
    if signal {
        return Expected::Signal;
    }
    match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return Expected::End,
        Some(RegisterRule::Offset(-8)) => {}
        _ => return Expected::NotExpressible,
    }
    let cfa = match row.cfa() {
        gimli::CfaRule::RegisterAndOffset { register, offset } if offset % 8 == 0 => {
            match *register {
                X86_64::RSP => Some(SP.wrapping_add_signed(*offset)),
                X86_64::RBP => Some(BP.wrapping_add_signed(*offset)),
                _ => None,
            }
        }
        gimli::CfaRule::RegisterAndOffset { .. } => None,
        gimli::CfaRule::Expression(expression) => {
            evaluate(expression.get(eh_frame).unwrap(), encoding, None, ip)
        }
    };
    let Some(cfa) = cfa else {
        return Expected::NotExpressible;
    };
    let bp = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue) => Some(BP),
        Some(RegisterRule::Offset(offset)) if offset % 8 == 0 => {
            Some(memory(cfa.wrapping_add_signed(offset)))
        }
        Some(RegisterRule::Expression(expression)) => {
            evaluate(expression.get(eh_frame).unwrap(), encoding, Some(cfa), ip).map(memory)
        }
        _ => None,
    };
    Expected::Caller(cfa, bp)
}

/// How often each answer occurred, so that a test which compares nothing fails.
#[derive(Debug, Default)]
struct Tally {
    callers: usize,
    lost_bp: usize,
    ends: usize,
    not_expressible: usize,
}

/// Compares a row with what gimli says.
fn compare(
    name: &str,
    address: u64,
    row: leakscope_common::UnwindRow,
    expected: &Expected,
    tally: &mut Tally,
) {
    let frame = Frame {
        sp: SP,
        bp: Some(BP),
    };
    let left = leave(row, address, frame, &mut |at| Some(memory(at)));
    let context = format!("{name} at {address:#x}: {row:?}, expected {expected:?}");
    match (expected, left) {
        (Expected::Caller(cfa, bp), Ok(caller)) => {
            assert_eq!(caller.sp, *cfa, "{context}");
            if bp.is_some() {
                assert_eq!(caller.bp, *bp, "{context}");
            }
            tally.lost_bp += usize::from(caller.bp.is_none());
            tally.callers += 1;
        }
        // At the very first instruction of some assembly the CFA is at or below sp: said, not followed.
        (Expected::Caller(cfa, _), Err(End::NotAscending)) => assert!(*cfa <= SP, "{context}"),
        (Expected::End, Err(End::Complete)) | (Expected::Signal, Err(End::Signal)) => {
            tally.ends += 1;
        }
        (Expected::NotExpressible, Err(End::Unsupported)) => tally.not_expressible += 1,
        (_, left) => panic!("{context}, got {left:?}"),
    }
}

/// Addresses of the last bytes of a function's call instructions.
fn calls(code: &[u8], start: u64) -> Vec<u64> {
    let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    decoder
        .into_iter()
        .filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            )
        })
        .map(|instruction| instruction.next_ip() - 1)
        .collect()
}

/// Addresses of a function's instructions that write to memory and are no pushes.
fn writes(code: &[u8], start: u64) -> Vec<u64> {
    let mut factory = InstructionInfoFactory::new();
    Decoder::with_ip(64, code, start, DecoderOptions::NONE)
        .into_iter()
        .filter(|instruction| {
            let pushes = [
                Mnemonic::Push,
                Mnemonic::Pushfq,
                Mnemonic::Enter,
                Mnemonic::Call,
            ];
            let memory = factory.info(instruction).used_memory();
            !pushes.contains(&instruction.mnemonic())
                && memory.iter().any(|memory| {
                    !matches!(
                        memory.access(),
                        OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                    )
                })
        })
        .map(|instruction| instruction.ip())
        .collect()
}

/// Compares one file in full: the first and last address and a random one of each row of gimli's with the full table; every call
/// instruction with the pruned ones; every instruction that writes and is no push with the one that keeps those.
fn check(name: &str, file: &[u8]) {
    let object = object::File::parse(file).unwrap();
    let (address, bytes) = section(&object, ".eh_frame").unwrap();
    let mut eh_frame = gimli::EhFrame::new(bytes, LittleEndian);
    eh_frame.set_address_size(8);
    let bases = gimli::BaseAddresses::default().set_eh_frame(address);
    let (full, pruned) = (full(file), pruned(file));
    let options = BuildOptions {
        kept: Kept::Writes,
        ..BuildOptions::default()
    };
    let at_writes = build(file, &options).unwrap();
    assert!(at_writes.rows.len() * 4 < full.rows.len(), "{name}");
    assert!(
        pruned.rows.len() * 4 < full.rows.len(),
        "{name}: not pruned"
    );
    assert_eq!(full.stats.corrupt, 0, "{name}");
    // The row behind the last function is counted too.
    assert_eq!(full.stats.rows_full as usize, full.rows.len(), "{name}");
    assert_eq!(pruned.stats.rows_full, full.stats.rows_full, "{name}");

    let mut random = Random(address);
    let (mut anywhere, mut behind_calls) = (Tally::default(), Tally::default());
    let mut writing = Tally::default();
    let mut context = gimli::UnwindContext::new();
    let mut entries = eh_frame.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let gimli::CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial.parse(gimli::EhFrame::cie_from_offset).unwrap();
        if fde.len() == 0 {
            continue;
        }
        let encoding = fde.cie().encoding();
        let signal = fde.is_signal_trampoline();
        let code = loaded(&object, fde.initial_address(), fde.end_address());
        let mut calls = calls(code, fde.initial_address()).into_iter().peekable();
        let mut writes = writes(code, fde.initial_address()).into_iter().peekable();
        let mut rows = fde.rows(&eh_frame, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let (from, to) = (row.start_address(), row.end_address());
            if from == to {
                continue;
            }
            for address in [from, to - 1, from + random.next() % (to - from)] {
                let expected = expected(&eh_frame, row, encoding, signal, address);
                compare(
                    name,
                    address,
                    full.lookup(address).unwrap(),
                    &expected,
                    &mut anywhere,
                );
            }
            while let Some(address) = calls.next_if(|call| *call < to) {
                let expected = expected(&eh_frame, row, encoding, signal, address);
                compare(
                    name,
                    address,
                    pruned.lookup(address).unwrap(),
                    &expected,
                    &mut behind_calls,
                );
                let found = at_writes.lookup(address).unwrap();
                compare(name, address, found, &expected, &mut writing);
            }
            while let Some(address) = writes.next_if(|write| *write < to) {
                let expected = expected(&eh_frame, row, encoding, signal, address);
                let found = at_writes.lookup(address).unwrap();
                compare(name, address, found, &expected, &mut writing);
            }
        }
    }
    println!("{name}: anywhere {anywhere:?}, behind calls {behind_calls:?}, writing {writing:?}");
    assert!(writing.callers > 1000, "{name}: {writing:?}");
    assert!(anywhere.callers > 1000, "{name}: {anywhere:?}");
    assert!(behind_calls.callers > 500, "{name}: {behind_calls:?}");
    // Rows that say little would agree with everything. The worst seen is the dynamic linker: the trampolines of lazy
    // binding find their frame by rbx.
    assert!(
        behind_calls.not_expressible * 100 < behind_calls.callers,
        "{name}: {behind_calls:?}"
    );
}

#[test]
fn rows_of_system_libraries_say_what_gimli_says() {
    for (name, file) in files() {
        check(name, &file);
    }
}

#[test]
fn rows_of_a_rust_program_say_what_gimli_says() {
    check("the test program", &own_file());
}

/// One step of framehop from behind many calls, against one step by the pruned table's row.
#[test]
fn steps_agree_with_framehop() {
    for (name, file) in files() {
        let object = object::File::parse(&*file).unwrap();
        let pruned = pruned(&file);
        let base = 0x5500_0000_0000;
        let (text_address, text) = section(&object, ".text").unwrap();
        let (eh_frame_address, eh_frame) = section(&object, ".eh_frame").unwrap();
        let (header_address, header) = section(&object, ".eh_frame_hdr").unwrap();
        let range = |address: u64, bytes: &[u8]| address..address + bytes.len() as u64;
        let info = framehop::ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: Some(range(text_address, text)),
            text: Some(text.to_vec()),
            eh_frame_svma: Some(range(eh_frame_address, eh_frame)),
            eh_frame: Some(eh_frame.to_vec()),
            eh_frame_hdr_svma: Some(range(header_address, header)),
            eh_frame_hdr: Some(header.to_vec()),
            ..framehop::ExplicitModuleSectionInfo::default()
        };
        let mut unwinder = framehop::x86_64::UnwinderX86_64::new();
        unwinder.add_module(framehop::Module::new(
            name.to_owned(),
            base..base + text_address + text.len() as u64,
            base,
            info,
        ));
        let mut cache = framehop::x86_64::CacheX86_64::<_>::new();

        // By function: some text has data between functions.
        let bases = gimli::BaseAddresses::default().set_eh_frame(eh_frame_address);
        let mut entries = gimli::EhFrame::new(eh_frame, LittleEndian).entries(&bases);
        let mut all_calls = Vec::new();
        while let Some(entry) = entries.next().unwrap() {
            if let gimli::CieOrFde::Fde(partial) = entry {
                let fde = partial.parse(gimli::EhFrame::cie_from_offset).unwrap();
                let (from, to) = (fde.initial_address(), fde.end_address());
                if text_address <= from && to <= text_address + text.len() as u64 {
                    all_calls.extend(calls(loaded(&object, from, to), from));
                }
            }
        }
        let mut random = Random(text_address);
        let mut compared = 0;
        for _ in 0..20_000 {
            let last = all_calls[random.below(all_calls.len())];
            let row = pruned.lookup(last).unwrap();
            let frame = Frame {
                sp: SP,
                bp: Some(BP),
            };
            // framehop does not follow expressions that read memory (gimli's evaluation above does), and takes code without
            // a rule for code with frame pointers.
            if ![CfaRule::Sp, CfaRule::SpFar, CfaRule::Bp]
                .map(|rule| rule as u8)
                .contains(&row.cfa)
            {
                continue;
            }
            let Ok(ours) = leave(row, last, frame, &mut |at| Some(memory(at))) else {
                continue;
            };
            let mut registers = framehop::x86_64::UnwindRegsX86_64::new(base + last + 1, SP, BP);
            let theirs = unwinder.unwind_frame(
                FrameAddress::from_return_address(base + last + 1).unwrap(),
                &mut registers,
                &mut cache,
                &mut |at| Ok(memory(at)),
            );
            let context = format!("{name} at {last:#x}: {row:?}");
            assert_eq!(theirs, Ok(Some(memory(ours.sp - 8))), "{context}");
            assert_eq!(registers.sp(), ours.sp, "{context}");
            if let Some(bp) = ours.bp {
                assert_eq!(registers.bp(), bp, "{context}");
            }
            compared += 1;
        }
        assert!(compared > 19_000, "{name}: only {compared} compared");
    }
}

/// The code at the entry point is outermost, whether it has call frame information (glibc's `_start`) or not
/// (`_dl_start_user` of its dynamic linker).
#[test]
fn entry_points_are_ends() {
    for (name, file) in files() {
        let entry = object::File::parse(&*file).unwrap().entry();
        if entry == 0 || name.contains("lib") && !name.contains("ld-linux") {
            continue;
        }
        for table in [pruned(&file), full(&file)] {
            let row = table.lookup(entry).unwrap();
            assert_eq!(row.cfa, CfaRule::End as u8, "{name}");
        }
        // Every call of the straight-line code there.
        let object = object::File::parse(&*file).unwrap();
        let mut seen = 0;
        for instruction in &mut Decoder::with_ip(
            64,
            loaded(&object, entry, entry + 128),
            entry,
            DecoderOptions::NONE,
        ) {
            match instruction.flow_control() {
                FlowControl::Call | FlowControl::IndirectCall => {
                    let row = pruned(&file).lookup(instruction.next_ip() - 1).unwrap();
                    assert_eq!(row.cfa, CfaRule::End as u8, "{name}");
                    seen += 1;
                }
                FlowControl::Next | FlowControl::ConditionalBranch
                    if instruction.mnemonic() != Mnemonic::Hlt => {}
                _ => break,
            }
        }
        assert!(seen >= 1, "{name}");
    }
}

/// A signal handler's return address was planted by the kernel: no call stands before it, and it is found all the same.
#[test]
fn signal_trampolines_survive_pruning() {
    let libc = files()
        .into_iter()
        .find(|(name, _)| name.contains("libc.so"));
    let Some((name, file)) = libc else { return };
    let signal = CfaRule::Signal as u8;
    for table in [full(&file), pruned(&file)] {
        let count = table.rows.iter().filter(|row| row.cfa == signal).count();
        assert_eq!(count, 1, "{name}");
    }
}
