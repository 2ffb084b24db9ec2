//! What machine code of the runtime's functions says of the runtime's variables: their addresses, which stripped files keep nowhere
//! else. x86-64.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

/// The longest function that is read, bytes: those that are looked for have some hundred.
pub(super) const LONGEST: u64 = 16 << 10;

/// Memory that an instruction names by its distance from itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// The address.
    pub(super) address: u64,
    /// Bytes that are read or written there; 0 where only the address is taken.
    pub(super) bytes: usize,
}

/// What the code at an address refers to, in order.
pub(super) fn references(code: &[u8], address: u64) -> Vec<Reference> {
    let mut found = Vec::new();
    for instruction in instructions(code, address) {
        if instruction.is_ip_rel_memory_operand() {
            let bytes = if instruction.mnemonic() == Mnemonic::Lea {
                0
            } else {
                instruction.memory_size().size()
            };
            found.push(Reference {
                address: instruction.ip_rel_memory_address(),
                bytes,
            });
        }
    }
    found
}

/// The instructions at which a function returns.
pub(super) fn returns(code: &[u8], address: u64) -> Vec<u64> {
    instructions(code, address)
        .filter(|instruction| instruction.mnemonic() == Mnemonic::Ret)
        .map(|instruction| instruction.ip())
        .collect()
}

/// The instructions of some code, up to what is none.
pub(super) fn instructions(code: &[u8], address: u64) -> impl Iterator<Item = Instruction> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE)
        .into_iter()
        .take_while(|instruction| !instruction.is_invalid())
}

#[cfg(test)]
mod tests {
    use super::{Reference, references, returns};

    #[test]
    fn returns_are_found_and_what_looks_like_one_is_not() {
        let code = [
            0xb8, 0xc3, 0, 0, 0,    // mov eax, 0xc3
            0xc3, // ret
            0x5d, 0xc3, // pop rbp; ret
            0xcc, 0xcc, // int3
            0x06, 0xc3, // no instruction
        ];
        assert_eq!(returns(&code, 0x1000), [0x1005, 0x1007]);
    }

    #[test]
    fn a_load_a_comparison_and_an_address_are_told_apart() {
        let code = [
            0x48, 0x8b, 0x0d, 0x10, 0, 0, 0, // mov rcx, [rip+0x10]
            0x83, 0x3d, 0x20, 0, 0, 0, 0, // cmp dword [rip+0x20], 0
            0x48, 0x8d, 0x05, 0x30, 0, 0, 0,    // lea rax, [rip+0x30]
            0x06, // no instruction
        ];
        let found = references(&code, 0x1000);
        let of = |address, bytes| Reference { address, bytes };
        assert_eq!(found, [of(0x1017, 8), of(0x102e, 4), of(0x1045, 0)]);
    }
}
