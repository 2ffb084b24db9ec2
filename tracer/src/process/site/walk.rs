//! The two walks over a function: along the straight line from its entry, and over all of it for jumps.

use std::collections::BTreeSet;

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};
use leakscope_common::Function;

use super::{SiteCost, arguments, cost_of, decode_at, readings};

/// Registers that a function must give back as it found them (System V x86-64 calling convention). The stack is walked from the
/// site as if from the entry, so they must still be the caller's.
const CALLEE_SAVED: [Register; 6] = [
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Most places outside of a function whose code is looked at.
const MOST_ELSEWHERE: usize = 256;

/// A place at which everything is as it was at the entry, but for the stack pointer.
pub(super) struct Step {
    pub(super) offset: u64,
    pub(super) stack_moved: u16,
    pub(super) instruction: Instruction,
    /// None where the kernel refuses a probe.
    pub(super) cost: Option<SiteCost>,
    /// The function whose arguments stand here: the one that was asked for, or one that reads the same from other registers.
    pub(super) function: Function,
}

/// The places along the straight line, and why it ends.
pub(super) struct Line {
    pub(super) steps: Vec<Step>,
    pub(super) end: String,
}

/// Walks from the entry for as long as every call passes, and the arguments, the caller's registers and, with `wants_return`, the stack
/// pointer are as they were.
pub(super) fn straight_line(
    code: &[u8],
    vaddr: u64,
    function: Function,
    wants_return: bool,
) -> Line {
    let mut steps = Vec::new();
    let mut factory = InstructionInfoFactory::new();
    let mut held = Held::at_entry();
    let (mut offset, mut moved) = (0_u64, 0_i64);
    // Between two moves of the arguments none of the readings may hold; the line goes on, in case one does again.
    let end = loop {
        let Some((instruction, bytes)) = decode_at(code, vaddr, offset) else {
            break format!("what stands at +{offset} does not decode");
        };
        let Ok(stack_moved) = u16::try_from(moved) else {
            break format!("the stack pointer is far away at +{offset}");
        };
        if let Some(function) = readings(function)
            .iter()
            .copied()
            .find(|reading| held.serves(function, *reading))
        {
            steps.push(Step {
                offset,
                stack_moved,
                instruction,
                cost: cost_of(&instruction, bytes),
                function,
            });
        }
        if instruction.flow_control() != FlowControl::Next {
            let here = steps
                .last()
                .is_some_and(|step: &Step| step.offset == offset);
            break format!(
                "the straight line ends at +{offset}, {}",
                if here {
                    "and the kernel emulates nothing on it"
                } else {
                    "where the arguments stand elsewhere"
                }
            );
        }

        let behind = offset + instruction.len() as u64;
        if let Some(spoilt) = CALLEE_SAVED
            .iter()
            .find(|register| writes(&mut factory, &instruction, **register))
        {
            let name = format!("{spoilt:?}").to_ascii_lowercase();
            break format!("{name}, the caller's, is overwritten before +{behind}");
        }
        if let Some(lost) = held.step(&mut factory, &instruction, function) {
            break format!(
                "argument {} is lost before +{behind}, and the kernel emulates nothing up to there",
                lost + 1
            );
        }
        match stack_change(&mut factory, &instruction) {
            Some(change) => moved -= change,
            None => break format!("the stack pointer is computed before +{behind}"),
        }
        if wants_return && moved != 0 {
            break format!(
                "the stack pointer moves before +{behind}, and the return address is read there"
            );
        }
        offset = behind;
    };
    Line { steps, end }
}

/// Which arguments the general registers hold.
struct Held([(Register, Option<u8>); 10]);

impl Held {
    /// The System V x86-64 calling convention, and the other registers that a function may use as it likes.
    fn at_entry() -> Self {
        Self([
            (Register::RDI, Some(0)),
            (Register::RSI, Some(1)),
            (Register::RDX, Some(2)),
            (Register::RCX, Some(3)),
            (Register::R8, None),
            (Register::R9, None),
            (Register::RAX, None),
            (Register::R10, None),
            (Register::R11, None),
            (Register::RBP, None),
        ])
    }

    fn argument_in(&self, register: Register) -> Option<u8> {
        self.0.iter().find(|(known, _)| *known == register)?.1
    }

    /// Whether the arguments of `function` stand where `reading` reads its own.
    fn serves(&self, function: Function, reading: Function) -> bool {
        let wanted = arguments(function);
        let read = arguments(reading);
        wanted.len() == read.len()
            && wanted
                .iter()
                .zip(read)
                .all(|((argument, _), (_, register))| {
                    self.argument_in(*register) == Some(*argument)
                })
    }

    /// Follows an instruction. Gives an argument that no register holds any more.
    fn step(
        &mut self,
        factory: &mut InstructionInfoFactory,
        instruction: &Instruction,
        function: Function,
    ) -> Option<u8> {
        let copied = (instruction.mnemonic() == Mnemonic::Mov
            && instruction.op1_kind() == OpKind::Register
            && instruction.op1_register().is_gpr64())
        .then(|| self.argument_in(instruction.op1_register()))
        .flatten();
        let is_target = |register| {
            instruction.op0_kind() == OpKind::Register && instruction.op0_register() == register
        };
        for (register, argument) in &mut self.0 {
            if writes(factory, instruction, *register) {
                *argument = if is_target(*register) { copied } else { None };
            }
        }
        arguments(function)
            .iter()
            .map(|(argument, _)| *argument)
            .find(|argument| !self.0.iter().any(|(_, held)| *held == Some(*argument)))
    }
}

fn writes(
    factory: &mut InstructionInfoFactory,
    instruction: &Instruction,
    register: Register,
) -> bool {
    factory
        .info(instruction)
        .used_registers()
        .iter()
        .any(|used| {
            used.register().full_register() == register
                && matches!(
                    used.access(),
                    OpAccess::Write
                        | OpAccess::CondWrite
                        | OpAccess::ReadWrite
                        | OpAccess::ReadCondWrite
                )
        })
}

/// By how much an instruction changes the stack pointer, bytes, upwards; none where that depends on more than the instruction.
fn stack_change(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> Option<i64> {
    if instruction.is_stack_instruction() {
        // Not `leave`, which computes the pointer, nor `pop %rsp`, which loads it, nor the forms that push two bytes.
        let plain = match instruction.mnemonic() {
            Mnemonic::Push => true,
            Mnemonic::Pop => instruction.op0_register() != Register::RSP,
            _ => false,
        };
        let change = instruction.stack_pointer_increment();
        return (plain && change.abs() == 8).then(|| change.into());
    }
    if !writes(factory, instruction, Register::RSP) {
        return Some(0);
    }
    if instruction.op0_kind() != OpKind::Register || instruction.op0_register() != Register::RSP {
        return None;
    }
    let by_immediate = || match instruction.op1_kind() {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
            Some(instruction.immediate(1).cast_signed())
        }
        _ => None,
    };
    match instruction.mnemonic() {
        Mnemonic::Sub => by_immediate()?.checked_neg(),
        Mnemonic::Add => by_immediate(),
        Mnemonic::Lea
            if instruction.memory_base() == Register::RSP
                && instruction.memory_index() == Register::None =>
        {
            Some(instruction.memory_displacement64().cast_signed())
        }
        _ => None,
    }
}

/// Where the instructions of a function jump to.
pub(super) struct Jumps {
    targets: BTreeSet<u64>,
    /// Why the targets are not all known, if they are not.
    pub(super) unknown: Option<String>,
}

impl Jumps {
    /// Every instruction counts: those that follow each other from the first byte on (this finds what only a jump table or the unwinder
    /// leads to), and those that jumps lead to (this finds what hides behind data between the instructions).
    pub(super) fn of(
        code: &[u8],
        vaddr: u64,
        elsewhere: &mut dyn FnMut(u64) -> Option<Vec<u8>>,
    ) -> Self {
        let mut jumps = Self {
            targets: BTreeSet::new(),
            unknown: None,
        };
        let end = vaddr.saturating_add(code.len() as u64);
        let falls_out = jumps.sweep(code, vaddr);
        let mut seen = BTreeSet::new();
        let mut waiting: Vec<u64> = jumps.targets.iter().copied().collect();
        let mut outside = BTreeSet::new();
        if falls_out {
            outside.insert(end);
        }
        while let Some(start) = waiting.pop() {
            let mut at = start;
            while seen.insert(at) {
                let Some(offset) = at.checked_sub(vaddr).filter(|_| at < end) else {
                    outside.insert(at);
                    break;
                };
                let Some((instruction, _)) = decode_at(code, vaddr, offset) else {
                    break;
                };
                if let Some(target) = jumps.note(&instruction) {
                    waiting.push(target);
                }
                if ends(&instruction) {
                    break;
                }
                at = instruction.next_ip();
            }
        }
        if outside.len() > MOST_ELSEWHERE {
            jumps.unknown = Some(format!(
                "it jumps to {} places outside of it",
                outside.len()
            ));
        }
        for target in outside.into_iter().take(MOST_ELSEWHERE) {
            if let Some(code) = elsewhere(target) {
                let mut there = Self {
                    targets: BTreeSet::new(),
                    unknown: None,
                };
                // Only direct jumps lead back to a place that has no symbol.
                there.sweep(&code, target);
                jumps.targets.append(&mut there.targets);
            }
        }
        jumps
    }

    /// Notes the jumps of all instructions from the first byte on. Says whether the last one runs on behind the end.
    fn sweep(&mut self, code: &[u8], vaddr: u64) -> bool {
        let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
        let mut runs_on = false;
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                runs_on = decoder.last_error() == DecoderError::NoMoreBytes;
                if !runs_on && self.unknown.is_none() {
                    self.unknown = Some(format!(
                        "what stands at +{} does not decode, and the function may jump from there",
                        instruction.ip().saturating_sub(vaddr)
                    ));
                }
                continue;
            }
            self.note(&instruction);
            runs_on = !ends(&instruction);
        }
        runs_on
    }

    /// Notes a jump, and gives its target.
    fn note(&mut self, instruction: &Instruction) -> Option<u64> {
        let near = instruction.op0_kind() == OpKind::NearBranch64;
        match instruction.flow_control() {
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::XbeginXabortXend
                if near =>
            {
                let target = instruction.near_branch_target();
                self.targets.insert(target);
                Some(target)
            }
            FlowControl::Call if near => {
                // It comes back behind itself; only its target counts, where that is in the function.
                self.targets.insert(instruction.near_branch_target());
                None
            }
            // A fixed slot holds another function's address; a register or an indexed table may lead anywhere.
            FlowControl::IndirectBranch if !is_slot(instruction) => {
                self.unknown
                    .get_or_insert_with(|| "the function makes a computed jump".to_owned());
                None
            }
            _ => None,
        }
    }

    /// Whether something in the function jumps back to its first instruction.
    pub(super) fn lead_back_to(&self, entry: u64) -> bool {
        self.targets.contains(&entry)
    }

    /// The lowest target behind `entry`.
    pub(super) fn first_target_behind(&self, entry: u64) -> Option<u64> {
        self.targets.range(entry.checked_add(1)?..).next().copied()
    }
}

fn is_slot(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory && instruction.memory_index() == Register::None
}

/// Whether nothing runs on behind an instruction.
fn ends(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    ) || instruction.mnemonic() == Mnemonic::Int3
}
