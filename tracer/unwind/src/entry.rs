//! The code at a file's entry point, where call frame information often is missing: the outermost frame.

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::elf::{Elf, Text};

/// Unconditional jumps followed from the entry point (Go enters through one).
const MAX_JUMPS: usize = 4;
/// Bytes of straight-line code looked at. The longest known, `_dl_start_user` of glibc's dynamic linker, has 61.
const MAX_BYTES: u64 = 256;

/// The address range of the straight-line code at `e_entry`.
///
/// The kernel (or the dynamic linker) jumps here with the arguments on the stack and no return address (psABI x86_64, 3.4.1),
/// so a frame of this code is outermost. It is written in assembly: musl's and the dynamic linker's have no call frame information.
/// The code is followed to the first unconditional transfer, over its calls: the dynamic linker runs the
/// constructors of all libraries from its second one.
pub(super) fn straight_line(elf: &Elf<'_>) -> Option<(u64, u64)> {
    let mut start = elf.entry;
    for _ in 0..=MAX_JUMPS {
        let (end, jump) = run(&elf.text, start)?;
        match jump {
            // Nothing but a jump on the way: the entry proper is where it leads.
            Some((first, target)) if first => start = target,
            _ => return Some((start, end)),
        }
    }
    None
}

/// Decodes from `start` to the first unconditional transfer. Gives the address behind it and, for a direct jump,
/// whether it was the first instruction and where it leads.
fn run(text: &Text<'_>, start: u64) -> Option<(u64, Option<(bool, u64)>)> {
    let segment = text.segment(start)?;
    let bytes = segment.slice(start, start.saturating_add(MAX_BYTES));
    let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Some((instruction.ip(), None));
        }
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch => {
                let jump = (instruction.ip() == start, instruction.near_branch_target());
                return Some((instruction.next_ip(), Some(jump)));
            }
            FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Interrupt
            | FlowControl::Exception => return Some((instruction.next_ip(), None)),
            FlowControl::Next
            | FlowControl::ConditionalBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
            | FlowControl::XbeginXabortXend => {
                if instruction.mnemonic() == iced_x86::Mnemonic::Hlt {
                    return Some((instruction.next_ip(), None));
                }
            }
        }
    }
    Some((decoder.ip(), None))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::super::elf::Segment;
    use super::*;

    fn elf(code: &[u8]) -> Elf<'_> {
        Elf {
            entry: 0x1000,
            text: Text::new(
                vec![Segment {
                    start: 0x1000,
                    bytes: code,
                }],
                true,
            ),
            eh_frame: None,
            eh_frame_hdr: None,
            debug_frame: None,
            ends: Vec::new(),
            got: 0,
        }
    }

    #[test]
    fn ends_behind_the_first_unconditional_transfer() {
        // xor ebp, ebp; call; je +0; call; jmp r12; nop
        let code = [
            0x31, 0xED, 0xE8, 0, 0, 0, 0, 0x74, 0, 0xE8, 0, 0, 0, 0, 0x41, 0xFF, 0xE4, 0x90,
        ];
        assert_eq!(straight_line(&elf(&code)).unwrap(), (0x1000, 0x1011));
        // call; hlt; call
        let code = [0xE8, 0, 0, 0, 0, 0xF4, 0xE8, 0, 0, 0, 0];
        assert_eq!(straight_line(&elf(&code)).unwrap(), (0x1000, 0x1006));
    }

    #[test]
    fn follows_a_jump_that_is_all_there_is() {
        // jmp +3; int3 x 3; call; ud2
        let code = [0xEB, 3, 0xCC, 0xCC, 0xCC, 0xE8, 0, 0, 0, 0, 0x0F, 0x0B];
        assert_eq!(straight_line(&elf(&code)).unwrap(), (0x1005, 0x100C));
        // A jump to itself ends, with nothing found.
        assert_eq!(straight_line(&elf(&[0xEB, 0xFE])), None);
    }

    #[test]
    fn an_entry_outside_of_the_text_is_nothing() {
        assert_eq!(straight_line(&elf(&[])), None);
    }
}
