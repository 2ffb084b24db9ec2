//! Whether x86_64 code writes to memory, by its instructions. Knows no call frame information.
//!
//! A page fault of a write leaves a thread at the instruction that writes. What writes only below the stack pointer as it moves it (push,
//! call, enter) is left out: nearly every prologue has a row for each of its pushes, three times as many as all others together, and
//! they fault on the stack alone.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic,
    OpAccess,
};

use super::elf::Segment;

/// Whether an instruction in `[from, to)`, at which instructions begin and end, writes to memory otherwise than by pushing. Bytes that are no
/// instruction may be anything.
pub(super) fn are_in(segment: &Segment<'_>, from: u64, to: u64) -> bool {
    let bytes = segment.slice(from, to);
    let mut decoder = Decoder::with_ip(64, bytes, from, DecoderOptions::NONE);
    let mut factory = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() || writes(&mut factory, &instruction) {
            return true;
        }
    }
    false
}

/// Whether an instruction writes to memory otherwise than by pushing.
pub(super) fn writes(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    let pushes = matches!(
        instruction.mnemonic(),
        Mnemonic::Push | Mnemonic::Pushf | Mnemonic::Pushfq | Mnemonic::Call | Mnemonic::Enter
    );
    if pushes {
        return false;
    }
    factory
        .info_options(instruction, InstructionInfoOptions::NO_REGISTER_USAGE)
        .used_memory()
        .iter()
        .any(|memory| {
            matches!(
                memory.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        })
}

#[cfg(test)]
mod tests {
    use super::{Segment, are_in};

    fn found(code: &[u8]) -> bool {
        let segment = Segment {
            start: 0x1000,
            bytes: code,
        };
        are_in(&segment, 0x1000, 0x1000 + code.len() as u64)
    }

    #[test]
    fn writes_are_found_and_pushes_are_none() {
        let writing: &[&[u8]] = &[
            &[0x90, 0xC6, 0x00, 0x01],                   // nop; mov byte [rax], 1
            &[0x48, 0x89, 0x44, 0x24, 0x08],             // mov [rsp + 8], rax
            &[0xF3, 0x48, 0xAB],                         // rep stosq
            &[0xF3, 0xA4],                               // rep movsb
            &[0x87, 0x03],                               // xchg [rbx], eax
            &[0xF0, 0x0F, 0xB1, 0x0B],                   // lock cmpxchg [rbx], ecx
            &[0xC5, 0xFE, 0x7F, 0x07],                   // vmovdqu [rdi], ymm0
            &[0x8F, 0x00],                               // pop [rax]
            &[0x0F, 0xAE, 0x64, 0x24, 0x40],             // xsave [rsp + 64]
            &[0x62, 0xF2, 0x7D, 0x49, 0xA0, 0x04, 0x88], // vpscatterdd [rax + zmm1 * 4] {k1}, zmm0
            &[0x06],                                     // no instruction
        ];
        for code in writing {
            assert!(found(code), "{code:02x?}");
        }
        let others: &[&[u8]] = &[
            &[],
            &[0x55],                         // push rbp
            &[0xFF, 0x30],                   // push [rax]
            &[0xE8, 0, 0, 0, 0],             // call
            &[0x5D, 0xC3],                   // pop rbp; ret
            &[0x48, 0x8B, 0x44, 0x24, 0x08], // mov rax, [rsp + 8]
            &[0x48, 0x8D, 0x44, 0x24, 0x08], // lea rax, [rsp + 8]
            &[0x48, 0x83, 0xEC, 0x18],       // sub rsp, 24
        ];
        for code in others {
            assert!(!found(code), "{code:02x?}");
        }
    }
}
