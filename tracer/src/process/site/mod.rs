//! Where in a function a uprobe goes.
//!
//! A uprobe replaces an instruction by a breakpoint. The kernel then emulates the instruction if it can
//! (`arch/x86/kernel/uprobes.c`: `branch_setup_xol_ops()`, `push_setup_xol_ops()`), and else executes a copy of it in single steps, which
//! costs a second trap: two to thirty times as much. So the site is moved from the entry to the first instruction that is emulated, where
//! that can be proved to change nothing. Owns that proof. Pure: bytes in, site out.

mod walk;

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use leakscope_common::Function;
use serde::{Deserialize, Serialize};

use super::by_number;
use walk::{Jumps, Step};

/// What the kernel does with the instruction under a probe, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SiteCost {
    /// Emulated by every kernel: about half a microsecond.
    Emulated,
    /// A no-operation. The kernel emulates the one-byte form, and since Linux 6.18 its own longer ones; before, those are single-stepped.
    Nop,
    /// Executed out of line in single steps.
    SingleStepped,
}

impl fmt::Display for SiteCost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Emulated => "emulated",
            Self::Nop => "nop",
            Self::SingleStepped => "single-stepped",
        })
    }
}

/// The place for a probe in a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSite {
    /// Bytes behind the function's first.
    pub offset_from_entry: u64,
    /// Bytes by which the stack pointer lies below its value at the entry.
    pub stack_moved: u16,
    /// What the probe is to take the function for: the function itself, or one that reads the same values from the registers that hold
    /// them at the site. It belongs into the cookie, at the return too.
    #[serde(with = "by_number::function")]
    pub function: Function,
    /// What the instruction there costs.
    pub cost: SiteCost,
    /// The instruction there, for people.
    pub instruction: String,
    /// Why this place, in words for a report.
    pub reason: String,
}

/// Chooses the site for a function from its bytes. Code outside of `code` is taken not to jump into it: see [`select_with`].
///
/// `wants_return` is for a probe that also takes the function's return, which the kernel catches by way of the return address at
/// the stack pointer: so the stack pointer must not have moved.
#[must_use]
pub fn select(code: &[u8], vaddr: u64, function: Function, wants_return: bool) -> ProbeSite {
    select_with(code, vaddr, function, wants_return, &mut |_| None)
}

/// As [`select`]; `elsewhere` gives the bytes from an address on, some KiB of them, to which the function jumps: compilers move
/// unlikely parts of a function far away, and those jump back.
#[must_use]
pub fn select_with(
    code: &[u8],
    vaddr: u64,
    function: Function,
    wants_return: bool,
    elsewhere: &mut dyn FnMut(u64) -> Option<Vec<u8>>,
) -> ProbeSite {
    let at_entry = |cost, instruction: &str, reason: String| ProbeSite {
        offset_from_entry: 0,
        stack_moved: 0,
        function,
        cost,
        instruction: instruction.to_owned(),
        reason,
    };
    if code.first() == Some(&0xcc) {
        let reason =
            "at the entry: a breakpoint of another tracer or debugger stands there already";
        return at_entry(SiteCost::SingleStepped, "int3", reason.to_owned());
    }
    let line = walk::straight_line(code, vaddr, function, wants_return);
    let Some(first) = line.steps.first() else {
        let reason = if code.is_empty() {
            "at the entry: its code cannot be read"
        } else {
            "at the entry: its first bytes do not decode"
        };
        return at_entry(SiteCost::SingleStepped, "?", reason.to_owned());
    };
    let jumps = Jumps::of(code, vaddr, elsewhere);
    let twice = if jumps.lead_back_to(vaddr) {
        "; the function jumps back to its entry, and each time counts as a call"
    } else {
        ""
    };
    let stay = |why: &str| match first.cost {
        Some(SiteCost::Emulated) => at_entry(
            SiteCost::Emulated,
            &describe(&first.instruction),
            format!("at the entry: the kernel emulates the instruction there{twice}"),
        ),
        Some(cost) => at_entry(
            cost,
            &describe(&first.instruction),
            format!("at the entry ({cost}): {why}{twice}"),
        ),
        None => at_entry(
            SiteCost::SingleStepped,
            &describe(&first.instruction),
            format!(
                "at the entry, where the kernel refuses probes for the instruction that stands there: {why}"
            ),
        ),
    };

    // Cheaper than the entry, and cheapest first; where the kernel refuses the entry, any place is better.
    let mut better: Vec<&Step> = line
        .steps
        .iter()
        .skip(1)
        .filter(|step| {
            step.cost
                .is_some_and(|cost| first.cost.is_none_or(|entry| cost < entry))
        })
        .collect();
    better.sort_by_key(|step| (step.cost, step.offset));
    let Some(best) = better.first() else {
        return stay(&line.end);
    };
    if let Some(why) = &jumps.unknown {
        return stay(&format!(
            "{why}, perhaps to between it and the `{}` at +{}",
            describe(&best.instruction),
            best.offset
        ));
    }
    // Code that is jumped to is reached twice in a call, or without passing the entry; and so is all behind it.
    let entered = jumps
        .first_target_behind(vaddr)
        .map_or(u64::MAX, |target| target - vaddr);
    let Some(step) = better.iter().find(|step| step.offset < entered) else {
        return stay(&format!(
            "the function jumps to +{entered}, so the `{}` at +{} may be reached twice in a call",
            describe(&best.instruction),
            best.offset
        ));
    };
    let cost = step.cost.unwrap_or(SiteCost::SingleStepped);
    let instruction = describe(&step.instruction);
    let does = match cost {
        SiteCost::Emulated => "the kernel emulates",
        SiteCost::Nop => "does nothing",
        SiteCost::SingleStepped => "the kernel accepts",
    };
    let moved_arguments = if step.function == function {
        ""
    } else {
        "; the arguments stand one register further there"
    };
    ProbeSite {
        offset_from_entry: step.offset,
        stack_moved: step.stack_moved,
        function: step.function,
        cost,
        reason: format!(
            "moved {} bytes from `{}` to `{instruction}`, which {does}{moved_arguments}{twice}",
            step.offset,
            describe(&first.instruction)
        ),
        instruction,
    }
}

/// Longest no-operation that the kernel knows as such, bytes (`x86_nops[]` of `arch/x86/kernel/alternative.c`).
const LONGEST_NOP: usize = 8;
/// The kernel's own no-operations by length, the P6 forms.
const NOPS: [&[u8]; LONGEST_NOP] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// What the kernel does with an instruction given by its bytes; none where it refuses to put a probe on it (`uprobe_init_insn()`).
fn cost_of(instruction: &Instruction, bytes: &[u8]) -> Option<SiteCost> {
    // ES, CS, SS, DS, LOCK: is_prefix_bad().
    let is_prefix = |byte: &&u8| {
        matches!(
            **byte,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        )
    };
    let prefixes = bytes.iter().take_while(is_prefix).count();
    let (prefixes, rest) = bytes.split_at_checked(prefixes)?;
    if prefixes
        .iter()
        .any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0))
    {
        return None;
    }
    if NOPS.contains(&bytes) {
        return Some(SiteCost::Nop);
    }
    let is_branch = match *rest {
        // jcc rel8, call rel32, jmp rel32, jmp rel8, jcc rel32.
        [0x70..=0x7f | 0xe8 | 0xe9 | 0xeb, ..] | [0x0f, 0x80..=0x8f, ..] => true,
        _ => false,
    };
    if is_branch {
        // Processors disagree on what an operand-size prefix means here, and the kernel wants no part in it.
        return (!prefixes.contains(&0x66)).then_some(SiteCost::Emulated);
    }
    // One byte, or two with REX.B.
    if matches!(*bytes, [0x50..=0x57] | [0x41, 0x50..=0x57]) {
        return Some(SiteCost::Emulated);
    }
    let refused = matches!(
        instruction.mnemonic(),
        // Not in good_insns_64: they trap, or need privileges.
        Mnemonic::Int
            | Mnemonic::Int1
            | Mnemonic::Int3
            | Mnemonic::Hlt
            | Mnemonic::Cli
            | Mnemonic::Sti
            | Mnemonic::Iretq
            | Mnemonic::Ud2
            | Mnemonic::Syscall
            | Mnemonic::Sysenter
    );
    (!refused).then_some(SiteCost::SingleStepped)
}

/// An instruction in few words: its name, the registers among its operands, where a branch leads.
fn describe(instruction: &Instruction) -> String {
    let mut text = format!("{:?}", instruction.mnemonic()).to_ascii_lowercase();
    for operand in 0..instruction.op_count() {
        let word = match instruction.op_kind(operand) {
            OpKind::Register => {
                format!("{:?}", instruction.op_register(operand)).to_ascii_lowercase()
            }
            OpKind::NearBranch64 => format!("{:#x}", instruction.near_branch_target()),
            OpKind::Memory if instruction.mnemonic() != Mnemonic::Nop => "[memory]".to_owned(),
            OpKind::Immediate8
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32
            | OpKind::Immediate32to64 => format!("{:#x}", instruction.immediate(operand)),
            _ => continue,
        };
        text.push_str(if text.contains(' ') { ", " } else { " " });
        text.push_str(&word);
    }
    text
}

/// The arguments that the probe reads at the site of a function, by their number, and the register that holds each at the entry
/// (System V x86-64 calling convention). Alignments and `__rust_realloc`'s old size are not read.
fn arguments(function: Function) -> &'static [(u8, Register)] {
    const FIRST: (u8, Register) = (0, Register::RDI);
    const SECOND: (u8, Register) = (1, Register::RSI);
    const THIRD: (u8, Register) = (2, Register::RDX);
    const FOURTH: (u8, Register) = (3, Register::RCX);
    match function {
        Function::Malloc | Function::Valloc | Function::Pvalloc | Function::Free => &[FIRST],
        Function::AlignedAlloc => &[SECOND],
        Function::Calloc | Function::Realloc => &[FIRST, SECOND],
        Function::HeapCalloc | Function::HeapRealloc => &[SECOND, THIRD],
        Function::PosixMemalign => &[FIRST, THIRD],
        Function::ReallocArray => &[FIRST, SECOND, THIRD],
        Function::RustRealloc => &[FIRST, FOURTH],
    }
}

/// The functions that mean the same to the probe as a given one, itself first: the same values, read from other registers. mimalloc's
/// `malloc` and its like begin by moving their arguments one register up, to make room for the heap.
fn readings(function: Function) -> &'static [Function] {
    match function {
        Function::Malloc => &[Function::Malloc, Function::AlignedAlloc],
        Function::AlignedAlloc => &[Function::AlignedAlloc, Function::Malloc],
        Function::Calloc => &[Function::Calloc, Function::HeapCalloc],
        Function::HeapCalloc => &[Function::HeapCalloc, Function::Calloc],
        Function::Realloc => &[Function::Realloc, Function::HeapRealloc],
        Function::HeapRealloc => &[Function::HeapRealloc, Function::Realloc],
        Function::ReallocArray => &[Function::ReallocArray],
        Function::PosixMemalign => &[Function::PosixMemalign],
        Function::Valloc => &[Function::Valloc],
        Function::Pvalloc => &[Function::Pvalloc],
        Function::Free => &[Function::Free],
        Function::RustRealloc => &[Function::RustRealloc],
    }
}

fn decode_at(code: &[u8], vaddr: u64, offset: u64) -> Option<(Instruction, &[u8])> {
    let rest = code.get(usize::try_from(offset).ok()?..)?;
    let mut decoder = Decoder::with_ip(64, rest, vaddr.checked_add(offset)?, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    Some((instruction, rest.get(..instruction.len())?))
}

#[cfg(test)]
mod tests;
