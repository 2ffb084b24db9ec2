//! DWARF expressions (DWARF 5, 2.5) to the rules that a row can say: the few forms that compilers, assemblers and linkers write. Knows
//! nothing of instructions and rows.

use gimli::{LittleEndian, Register};

use super::rules::{Cfa, RIP, RSP, Saved, Slice};

/// The longest expression that is looked at, in bytes. All forms that rows can express are shorter.
const MAX_EXPRESSION: usize = 32;

/// One operation of an expression, of those that are understood (DWARF 5, 2.5 and 7.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Register(Register, i64),
    Literal(u8),
    Deref,
    And,
    Plus,
    PlusConstant(u64),
    Shl,
    Ge,
}

/// Reads an expression; `None` if it is long or has an operation that is not understood.
fn operations(bytes: &[u8]) -> Option<Vec<Operation>> {
    use gimli::Reader;
    use gimli::constants as c;

    if bytes.len() > MAX_EXPRESSION {
        return None;
    }
    let mut input = Slice::new(bytes, LittleEndian);
    let mut operations = Vec::new();
    while !input.is_empty() {
        operations.push(match gimli::DwOp(input.read_u8().ok()?) {
            op @ gimli::DwOp(breg0..=breg31) => Operation::Register(
                Register(u16::from(op.0 - breg0)),
                input.read_sleb128().ok()?,
            ),
            gimli::DwOp(literal @ lit0..=lit31) => Operation::Literal(literal - lit0),
            c::DW_OP_deref => Operation::Deref,
            c::DW_OP_and => Operation::And,
            c::DW_OP_plus => Operation::Plus,
            c::DW_OP_plus_uconst => Operation::PlusConstant(input.read_uleb128().ok()?),
            c::DW_OP_shl => Operation::Shl,
            c::DW_OP_ge => Operation::Ge,
            _ => return None,
        });
    }
    Some(operations)
}

#[expect(non_upper_case_globals, reason = "the names of DWARF 5, 7.7.1")]
const breg0: u8 = gimli::constants::DW_OP_breg0.0;
#[expect(non_upper_case_globals, reason = "the names of DWARF 5, 7.7.1")]
const breg31: u8 = gimli::constants::DW_OP_breg31.0;
#[expect(non_upper_case_globals, reason = "the names of DWARF 5, 7.7.1")]
const lit0: u8 = gimli::constants::DW_OP_lit0.0;
#[expect(non_upper_case_globals, reason = "the names of DWARF 5, 7.7.1")]
const lit31: u8 = gimli::constants::DW_OP_lit31.0;

/// The forms of a CFA expression that occur: what compilers emit for functions that realign their stack
/// (`*(rbp - 8)`), what hand-written assembly says of a saved stack pointer (`*(rsp + a) + b`), and the linker's for its stubs.
pub(super) fn cfa_expression(bytes: &[u8]) -> Cfa {
    use Operation::{And, Deref, Ge, Literal, Plus, PlusConstant, Register, Shl};

    match operations(bytes).as_deref() {
        Some(&[Register(register, offset)]) => Cfa::Offset(register, offset),
        Some(&[Register(register, a), Deref]) => Cfa::Deref(register, a, 0),
        Some(&[Register(register, a), Deref, PlusConstant(b)]) => {
            i64::try_from(b).map_or(Cfa::Other, |b| Cfa::Deref(register, a, b))
        }
        // The entries have 16 bytes; from `threshold` on, the stub has pushed 8 bytes (GNU ld's and lld's
        // `.eh_frame` for `.plt`).
        Some(
            &[
                Register(RSP, base),
                Register(RIP, 0),
                Literal(15),
                And,
                Literal(threshold @ 0..=15),
                Ge,
                Literal(3),
                Shl,
                Plus,
            ],
        ) => Cfa::Plt { base, threshold },
        _ => Cfa::Other,
    }
}

/// An expression that gives the address where a register is saved.
pub(super) fn register_expression(bytes: &[u8]) -> Saved {
    match operations(bytes).as_deref() {
        Some(&[Operation::Register(register, offset)]) => Saved::At(register, offset),
        _ => Saved::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::RBP;
    use super::*;

    #[test]
    fn expressions_of_compilers_assemblers_and_linkers_are_understood() {
        // *(rbp - 8)
        assert_eq!(cfa_expression(&[0x76, 0x78, 0x06]), Cfa::Deref(RBP, -8, 0));
        // *(rsp + 176) + 8
        assert_eq!(
            cfa_expression(&[0x77, 0xB0, 0x01, 0x06, 0x23, 0x08]),
            Cfa::Deref(RSP, 176, 8)
        );
        // The lazy stub, and the one that begins with endbr64.
        for (literal, threshold) in [(0x3B, 11), (0x39, 9)] {
            assert_eq!(
                cfa_expression(&[
                    0x77, 0x08, 0x80, 0x00, 0x3F, 0x1A, literal, 0x2A, 0x33, 0x24, 0x22
                ]),
                Cfa::Plt { base: 8, threshold }
            );
        }
        // An unknown operation, one that is cut off, and none.
        assert_eq!(cfa_expression(&[0x77, 0x08, 0x96]), Cfa::Other);
        assert_eq!(cfa_expression(&[0x77]), Cfa::Other);
        assert_eq!(cfa_expression(&[]), Cfa::Other);
    }
}
