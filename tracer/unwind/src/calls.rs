//! Where the near call and system call instructions of x86_64 code may end, by byte patterns. Knows no call frame information.
//!
//! Only two opcodes push a return address that a table is asked for (Intel SDM volume 2, CALL): `E8 rel32` and
//! `FF /2`. `0F 05` (SYSCALL) leaves a thread behind it while it is in the kernel. Prefixes (REX for r8-r15, `notrack`, operand or address size, those that a linker pads with) stand
//! before the opcode and change neither the bytes behind it nor where the instruction ends, so the search goes by the
//! opcode alone, at every byte: there is no need to know where instructions begin. Far calls (`9A`, `FF /3`) do not
//! occur in user-space programs.
//!
//! What is found is a superset of the real calls. It is thinned by one sure fact: the target of a direct call lies in the
//! executable bytes of the same file (other files are reached through its procedure linkage table), unless the
//! file has text relocations.

use super::elf::{Segment, Text};

/// The longest encoding from the opcode on: `FF`, ModRM, SIB, disp32.
const LONGEST: u64 = 7;

/// Whether a call or system call instruction may have its last byte in `[from, to)`, which lies in `segment`.
pub(super) fn may_end_in(text: &Text<'_>, segment: &Segment<'_>, from: u64, to: u64) -> bool {
    let first = from.saturating_sub(LONGEST - 1).max(segment.start);
    let mut bytes = segment.slice(first, to);
    let mut address = first;
    while let Some(skip) = bytes
        .iter()
        .position(|byte| matches!(byte, 0xE8 | 0xFF | 0x0F))
    {
        bytes = bytes.get(skip..).unwrap_or_default();
        address += skip as u64;
        if let Some(length) = length(bytes) {
            let last = address + length - 1;
            if (from..to).contains(&last) && target_is_plausible(text, address, bytes) {
                return true;
            }
        }
        bytes = bytes.get(1..).unwrap_or_default();
        address += 1;
    }
    false
}

/// Bytes of the near call or system call whose opcode begins `bytes`, without its prefixes; `None` where there is neither.
fn length(bytes: &[u8]) -> Option<u64> {
    match *bytes {
        [0xE8, _, _, _, _, ..] => Some(5),
        [0x0F, 0x05, ..] => Some(2),
        [0xFF, modrm, ref rest @ ..] if (modrm >> 3) & 7 == 2 => {
            // Intel SDM volume 2, tables 2-2 and 2-3: r/m 4 announces a SIB byte, in every mode but register.
            let (mode, rm) = (modrm >> 6, modrm & 7);
            let sib = mode != 3 && rm == 4;
            let displacement = match mode {
                // Relative to the instruction pointer, or a SIB byte without a base.
                0 if rm == 5 => 4,
                0 if sib && rest.first()? & 7 == 5 => 4,
                1 => 1,
                2 => 4,
                _ => 0,
            };
            Some(2 + u64::from(sib) + displacement)
        }
        _ => None,
    }
}

/// Whether a direct call at `address` leads into executable bytes of the file; true for every indirect call.
fn target_is_plausible(text: &Text<'_>, address: u64, bytes: &[u8]) -> bool {
    match *bytes {
        [0xE8, a, b, c, d, ..] if text.final_operands => {
            let relative = i64::from(i32::from_le_bytes([a, b, c, d]));
            let target = address.wrapping_add(5).wrapping_add_signed(relative);
            text.segment(target).is_some()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use iced_x86::{Decoder, DecoderOptions, FlowControl};
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x40_0000;

    fn ends(code: &[u8]) -> Vec<u64> {
        let text = Text::new(
            vec![Segment {
                start: BASE,
                bytes: code,
            }],
            true,
        );
        let segment = text.segment(BASE).unwrap();
        (0..code.len() as u64)
            .filter(|at| may_end_in(&text, &segment, BASE + at, BASE + at + 1))
            .collect()
    }

    #[test]
    fn every_encoding_of_a_call_ends_at_its_last_byte() {
        let cases: &[&[u8]] = &[
            &[0xE8, 0, 0, 0, 0],                   // call rel32
            &[0x67, 0xE8, 0, 0, 0, 0],             // addr32 call, a relaxed call *GOT
            &[0xFF, 0xD0],                         // call rax
            &[0x41, 0xFF, 0xD4],                   // call r12
            &[0x3E, 0xFF, 0xD0],                   // notrack call rax
            &[0xFF, 0x10],                         // call [rax]
            &[0xFF, 0x15, 1, 2, 3, 4],             // call [rip + disp32]
            &[0xFF, 0x14, 0xC8],                   // call [rax + rcx * 8]
            &[0xFF, 0x14, 0x25, 1, 2, 3, 4],       // call [disp32]
            &[0x41, 0xFF, 0x14, 0x24],             // call [r12]
            &[0xFF, 0x50, 0x18],                   // call [rax + disp8]
            &[0x41, 0xFF, 0x54, 0x24, 0x18],       // call [r12 + disp8]
            &[0xFF, 0x90, 1, 2, 3, 4],             // call [rax + disp32]
            &[0x43, 0xFF, 0x94, 0xEC, 1, 2, 3, 4], // call [r12 + r13 * 8 + disp32]
            &[0x0F, 0x05],                         // syscall
            &[0x66, 0x66, 0x48, 0xE8, 0, 0, 0, 0], // padded, thread-local storage sequence
        ];
        for code in cases {
            // The direct ones lead to the next instruction.
            let padded = [code, &[0x90; 8][..]].concat();
            assert_eq!(ends(&padded), [code.len() as u64 - 1], "{code:02x?}");
        }
    }

    #[test]
    fn other_instructions_are_not_calls() {
        let cases: &[&[u8]] = &[
            &[0xFF, 0x25, 1, 2, 3, 4],       // jmp [rip + disp32]
            &[0xFF, 0x35, 1, 2, 3, 4],       // push [rip + disp32]
            &[0xFF, 0xE0],                   // jmp rax
            &[0xFF, 0xC0],                   // inc eax
            &[0x90, 0x90, 0xC3],             // nop, nop, ret
            &[0xE8, 0x00, 0x00, 0x00, 0x70], // a direct call to nowhere
            &[0xE8, 0x00, 0x00],             // cut off
        ];
        for code in cases {
            assert_eq!(ends(code), [0_u64; 0], "{code:02x?}");
        }
    }

    proptest! {
        /// Whatever the decoder takes for a near call is found, at its very last byte.
        #[test]
        fn no_call_that_a_decoder_sees_is_missed(
            prefix in prop::sample::select(vec![vec![], vec![0x41], vec![0x3E], vec![0x49], vec![0x66]]),
            opcode in prop::sample::select(vec![0xE8_u8, 0xFF]),
            tail in prop::collection::vec(any::<u8>(), 6),
        ) {
            let mut code = prefix;
            code.push(opcode);
            code.extend(tail);
            let mut decoder = Decoder::with_ip(64, &code, BASE, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let near = match instruction.flow_control() {
                FlowControl::Call => instruction.is_call_near(),
                FlowControl::IndirectCall => instruction.is_call_near_indirect(),
                _ => false,
            };
            // The operand-size prefix makes CALL a 16-bit branch on processors of one vendor only; no compiler emits it.
            prop_assume!(near && !(instruction.is_call_near() && code.first() == Some(&0x66)));
            let text = Text::new(vec![Segment { start: BASE, bytes: &code }], false);
            let segment = text.segment(BASE).expect("the code is there");
            let last = BASE + instruction.len() as u64 - 1;
            prop_assert!(may_end_in(&text, &segment, last, last + 1));
        }
    }
}
