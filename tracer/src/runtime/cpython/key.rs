//! Where the key stands under which each thread keeps its `PyThreadState`: read out of `PyGILState_GetThisThreadState`, which looks there. The
//! variable has no symbol of its own. Knows nothing of files and processes.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind, Register};

/// So many instructions are looked at: the function has some ten.
const MOST_INSTRUCTIONS: usize = 64;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// An address of the file.
    Address(u64),
    /// What stands at one, 4 bytes.
    Loaded(u64),
}

type Registers = HashMap<Register, Value>;

/// The address of the `Py_tss_t` that a function's code hands to `PyThread_tss_get`, or whose key it hands to `pthread_getspecific`. `runtime`: the
/// address of `_PyRuntime`, the only variable of the interpreter that the function uses: what it loads from elsewhere than code is that address.
pub(super) fn key_address(code: &[u8], start: u64, runtime: u64) -> Option<u64> {
    /// `Py_tss_t._key` (`Include/pythread.h`).
    const KEY: u64 = 4;
    let end = start.checked_add(code.len() as u64)?;
    let mut waiting = vec![(start, Registers::new())];
    let mut looked_at = 0;
    while let Some((at, mut registers)) = waiting.pop() {
        let rest = code.get(usize::try_from(at.checked_sub(start)?).ok()?..)?;
        let mut decoder = Decoder::with_ip(64, rest, at, DecoderOptions::NONE);
        while decoder.can_decode() {
            looked_at += 1;
            if looked_at > MOST_INSTRUCTIONS {
                return None;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            let target = instruction.near_branch_target();
            let leaves = match instruction.flow_control() {
                FlowControl::Call | FlowControl::IndirectCall | FlowControl::IndirectBranch => true,
                FlowControl::UnconditionalBranch => !(start..end).contains(&target),
                FlowControl::ConditionalBranch => {
                    if (start..end).contains(&target) {
                        waiting.push((target, registers.clone()));
                    }
                    false
                }
                FlowControl::Return => break,
                _ => false,
            };
            if leaves {
                match registers.get(&Register::RDI) {
                    Some(Value::Address(address)) => return Some(*address),
                    Some(Value::Loaded(address)) => return address.checked_sub(KEY),
                    None if instruction.flow_control() == FlowControl::Call => continue,
                    None => break,
                }
            }
            if instruction.flow_control() == FlowControl::UnconditionalBranch {
                waiting.push((target, registers));
                break;
            }
            follow(&instruction, runtime, &mut registers);
        }
    }
    None
}

/// What an instruction does to what registers hold.
fn follow(instruction: &iced_x86::Instruction, runtime: u64, registers: &mut Registers) {
    if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register {
        return;
    }
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push
    ) {
        return;
    }
    let to = instruction.op0_register().full_register();
    let place = || {
        if instruction.is_ip_rel_memory_operand() {
            return Some(instruction.ip_rel_memory_address());
        }
        match registers.get(&instruction.memory_base().full_register()) {
            Some(Value::Address(base)) if instruction.memory_index() == Register::None => {
                Some(base.wrapping_add(instruction.memory_displacement64()))
            }
            _ => None,
        }
    };
    let value = match (instruction.mnemonic(), instruction.op_count()) {
        (Mnemonic::Lea, _) => place().map(Value::Address),
        (Mnemonic::Mov, _) if instruction.op1_kind() == OpKind::Memory => {
            if instruction.op0_register().size() == 8 {
                // From the table of addresses of variables.
                instruction
                    .is_ip_rel_memory_operand()
                    .then_some(Value::Address(runtime))
            } else {
                place().map(Value::Loaded)
            }
        }
        (Mnemonic::Mov, _) if instruction.op1_kind() == OpKind::Register => registers
            .get(&instruction.op1_register().full_register())
            .copied(),
        (Mnemonic::Mov, _) => Some(Value::Address(instruction.immediate(1))),
        (Mnemonic::Add, _) if instruction.op1_kind() != OpKind::Register => {
            match registers.get(&to) {
                Some(Value::Address(base)) if instruction.op1_kind() != OpKind::Memory => {
                    Some(Value::Address(base.wrapping_add(instruction.immediate(1))))
                }
                _ => None,
            }
        }
        _ => None,
    };
    match value {
        Some(value) => registers.insert(to, value),
        None => registers.remove(&to),
    };
}

#[cfg(test)]
mod tests {
    use super::key_address;

    const RUNTIME: u64 = 0x47_2e00;

    #[test]
    fn the_key_of_a_library() {
        // libpython3.8 (pyenv): mov _PyRuntime@GOTPCREL(%rip),%rax; cmpq $0,0x568(%rax); je; lea 0x570(%rax),%rdi; jmp PyThread_tss_get
        let code = [
            0x48, 0x8b, 0x05, 0xc1, 0x86, 0x16, 0x00, 0x48, 0x83, 0xb8, 0x68, 0x05, 0x00, 0x00,
            0x00, 0x74, 0x0f, 0x48, 0x8d, 0xb8, 0x70, 0x05, 0x00, 0x00, 0xe9, 0x23, 0x7a, 0xeb,
            0xff, 0x0f, 0x1f, 0x00, 0x31, 0xc0, 0xc3,
        ];
        assert_eq!(
            key_address(&code, 0x1b_25b0, RUNTIME),
            Some(RUNTIME + 0x570)
        );
    }

    #[test]
    fn the_key_of_a_program() {
        // Debian's python3.11, behind `cmpq $0x0,_PyRuntime+0x248(%rip)`: je; mov _PyRuntime+0x254(%rip),%edi; jmp pthread_getspecific@plt
        let code = [
            0x74, 0x0b, 0x8b, 0x3d, 0x14, 0x91, 0x58, 0x00, 0xe9, 0x8b, 0x33, 0xf5, 0xff, 0x31,
            0xc0, 0xc3,
        ];
        let key = 0x4c_d360 + 0x58_9114;
        assert_eq!(key_address(&code, 0x4c_d358, 0), Some(key - 4));
    }

    #[test]
    fn the_key_that_is_asked_for_first() {
        // libpython3.12: push %rbx; mov GOT(%rip),%rbx; add $0x608,%rbx; mov %rbx,%rdi; call PyThread_tss_is_created
        let code = [
            0x53, 0x48, 0x8b, 0x1d, 0x00, 0x10, 0x00, 0x00, 0x48, 0x81, 0xc3, 0x08, 0x06, 0x00,
            0x00, 0x48, 0x89, 0xdf, 0xe8, 0xd9, 0x21, 0xe3, 0xff,
        ];
        assert_eq!(
            key_address(&code, 0x2d_7c30, RUNTIME),
            Some(RUNTIME + 0x608)
        );
    }

    #[test]
    fn other_code_has_no_key() {
        assert_eq!(key_address(&[0x31, 0xc0, 0xc3], 0x1000, RUNTIME), None);
        assert_eq!(key_address(&[0xeb, 0xfe], 0x1000, RUNTIME), None);
        assert_eq!(key_address(&[0xe8, 0, 0, 0, 0], 0x1000, RUNTIME), None);
        assert_eq!(key_address(&[], 0x1000, RUNTIME), None);
    }
}
