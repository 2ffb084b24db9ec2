//! Call frame instructions (DWARF 5, 6.4.2) to the rules of a row: only the columns that a walk needs, which are the CFA, rbp
//! and the return address. Knows neither files nor tables.

use gimli::{CallFrameInstruction, CallFrameInstructionIter, EndianSlice, LittleEndian, Register};
use leakscope_common::{BpRule, CfaRule, UnwindRow};

use super::expression::{cfa_expression, register_expression};

/// How this room reads sections.
pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// psABI x86_64, figure 3.36: DWARF register numbers.
pub(super) const RBP: Register = Register(6);
pub(super) const RSP: Register = Register(7);
/// The largest frame that a [`CfaRule::Sp`] row can say, bytes.
const NEAR: i64 = 8 * i16::MAX as i64;
/// Frames that a [`CfaRule::SpFar`] row can say are smaller, in 8-byte units: 24 bits.
const FAR_SLOTS: u32 = 1 << 24;
pub(super) const RIP: Register = Register(16);

/// `DW_CFA_remember_state` may nest this deep; compilers nest once.
const MAX_REMEMBERED: usize = 64;

/// An FDE or CIE whose instructions cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// The canonical frame address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    /// No rule yet.
    Unset,
    /// Register plus bytes.
    Offset(Register, i64),
    /// `*(register + a) + b`, in bytes.
    Deref(Register, i64, i64),
    /// The linker's stub: sp + `base`, 8 more from `threshold` on, an address modulo 16.
    Plt { base: i64, threshold: u8 },
    /// Another expression.
    Other,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// No rule: for rbp, which callees preserve, the same as `Same`.
    Default,
    Same,
    Undefined,
    /// At CFA plus bytes.
    AtCfa(i64),
    /// At register plus bytes.
    At(Register, i64),
    Other,
}

/// The columns of one row while instructions are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    cfa: Cfa,
    /// The last offset said of the CFA, which an expression leaves as it was.
    cfa_offset: i64,
    bp: Saved,
    return_address: Saved,
}

impl Columns {
    /// Before the first instruction of a CIE.
    pub(super) const EMPTY: Self = Self {
        cfa: Cfa::Unset,
        cfa_offset: 0,
        bp: Saved::Default,
        return_address: Saved::Default,
    };

    fn set_cfa(&mut self, register: Register, offset: i64) {
        self.cfa = Cfa::Offset(register, offset);
        self.cfa_offset = offset;
    }

    /// DWARF 5 (6.4.2.2) allows neither this nor the next behind an expression. Hand-written assembly does it
    /// (libgcrypt), and libgcc's unwinder takes it so: a register goes with the last offset, an offset waits for a register.
    fn set_cfa_register(&mut self, register: Register) -> Result<(), Corrupt> {
        if self.cfa == Cfa::Unset {
            return Err(Corrupt);
        }
        self.set_cfa(register, self.cfa_offset);
        Ok(())
    }

    fn set_cfa_offset(&mut self, offset: i64) -> Result<(), Corrupt> {
        self.cfa_offset = offset;
        match &mut self.cfa {
            Cfa::Unset => return Err(Corrupt),
            Cfa::Offset(_, current) => *current = offset,
            Cfa::Deref(..) | Cfa::Plt { .. } | Cfa::Other => {}
        }
        Ok(())
    }

    fn register(&mut self, register: Register) -> Option<&mut Saved> {
        match register {
            RBP => Some(&mut self.bp),
            RIP => Some(&mut self.return_address),
            _ => None,
        }
    }

    /// The row that says the same; its address is left at 0.
    pub(super) fn row(&self) -> UnwindRow {
        match self.return_address {
            Saved::Undefined => return plain(CfaRule::End),
            Saved::AtCfa(-8) => {}
            _ => return plain(CfaRule::Unsupported),
        }
        let (rule, offset, add) = match self.cfa {
            Cfa::Offset(RSP, offset) if offset > NEAR => return self.far_row(offset),
            Cfa::Offset(RSP, offset) => (CfaRule::Sp, slots(offset), Some(0)),
            Cfa::Offset(RBP, offset) => (CfaRule::Bp, slots(offset), Some(0)),
            Cfa::Deref(RSP, a, b) => (CfaRule::DerefSp, slots(a), slots(b)),
            Cfa::Deref(RBP, a, b) => (CfaRule::DerefBp, slots(a), slots(b)),
            Cfa::Plt { base, threshold } => {
                (CfaRule::Plt, slots(base), i8::try_from(threshold).ok())
            }
            _ => return plain(CfaRule::Unsupported),
        };
        let (Some(cfa_offset), Some(add)) = (offset, add) else {
            return plain(CfaRule::Unsupported);
        };
        let (bp, bp_offset) = self.bp_rule();
        UnwindRow {
            address_low: 0,
            cfa: rule as u8,
            bp: bp as u8,
            cfa_offset,
            packed: UnwindRow::pack(bp_offset, add),
        }
    }

    /// The row of a frame that is larger than the usual rows can say.
    fn far_row(&self, offset: i64) -> UnwindRow {
        let Some(far) = slots::<u32>(offset).filter(|far| *far < FAR_SLOTS) else {
            return plain(CfaRule::Unsupported);
        };
        let (bp, bp_offset) = self.bp_rule();
        let [low, next, high, _] = far.to_le_bytes();
        let [bp_byte, _] = UnwindRow::pack(bp_offset, 0).to_le_bytes();
        UnwindRow {
            address_low: 0,
            cfa: CfaRule::SpFar as u8,
            bp: bp as u8,
            cfa_offset: i16::from_le_bytes([low, next]),
            packed: u16::from_le_bytes([bp_byte, high]),
        }
    }

    fn bp_rule(&self) -> (BpRule, i8) {
        let (rule, offset) = match (self.bp, self.cfa) {
            (Saved::Default | Saved::Same, _) => return (BpRule::Same, 0),
            (Saved::AtCfa(offset), _) => (BpRule::AtCfa, offset),
            (Saved::At(RBP, offset), _) => (BpRule::AtBp, offset),
            // The same slot, said from sp, which lies `cfa` below the CFA.
            (Saved::At(RSP, offset), Cfa::Offset(RSP, cfa)) => {
                (BpRule::AtCfa, offset.wrapping_sub(cfa))
            }
            _ => return (BpRule::Unknown, 0),
        };
        match slots(offset) {
            Some(offset) => (rule, offset),
            None => (BpRule::Unknown, 0),
        }
    }
}

/// A row without operands.
pub(super) fn plain(rule: CfaRule) -> UnwindRow {
    UnwindRow {
        cfa: rule as u8,
        ..UnwindRow::default()
    }
}

/// Bytes to 8-byte units, if they are whole and fit.
fn slots<T: TryFrom<i64>>(bytes: i64) -> Option<T> {
    if bytes % 8 != 0 {
        return None;
    }
    T::try_from(bytes / 8).ok()
}

/// Follows call frame instructions from one address on.
pub(super) struct Machine<'s> {
    /// The section's bytes, for expressions.
    pub(super) section: &'s [u8],
    /// From the CIE.
    pub(super) code_alignment: u64,
    /// From the CIE.
    pub(super) data_alignment: i64,
    /// What the CIE's own instructions left; `None` while they are followed.
    pub(super) initial: Option<Columns>,
}

impl Machine<'_> {
    /// Calls `emit(address, columns)` wherever a row begins, with ascending addresses. Addresses that are not
    /// below `end` belong to no row; a row of no length is given all the same.
    pub(super) fn run<'i>(
        &self,
        instructions: &mut CallFrameInstructionIter<'i, Slice<'i>>,
        start: u64,
        end: u64,
        mut emit: impl FnMut(u64, &Columns),
    ) -> Result<Columns, Corrupt> {
        use CallFrameInstruction as I;

        let mut now = self.initial.unwrap_or(Columns::EMPTY);
        let mut remembered: Vec<Columns> = Vec::new();
        let mut address = start;
        while let Some(instruction) = instructions.next().map_err(|_| Corrupt)? {
            match instruction {
                I::AdvanceLoc { delta } => {
                    emit(address, &now);
                    address = u64::from(delta)
                        .checked_mul(self.code_alignment)
                        .and_then(|delta| address.checked_add(delta))
                        .ok_or(Corrupt)?;
                    if address >= end {
                        return Ok(now);
                    }
                }
                I::SetLoc { address: to } => {
                    if to < address {
                        return Err(Corrupt);
                    }
                    emit(address, &now);
                    address = to;
                    if address >= end {
                        return Ok(now);
                    }
                }
                I::DefCfa { register, offset } => now.set_cfa(register, offset as i64),
                I::DefCfaSf {
                    register,
                    factored_offset,
                } => now.set_cfa(register, self.data(factored_offset)),
                I::DefCfaRegister { register } => now.set_cfa_register(register)?,
                I::DefCfaOffset { offset } => now.set_cfa_offset(offset as i64)?,
                I::DefCfaOffsetSf { factored_offset } => {
                    now.set_cfa_offset(self.data(factored_offset))?;
                }
                I::DefCfaExpression { expression } => {
                    now.cfa = cfa_expression(self.expression(&expression)?);
                }
                I::Undefined { register } => set(&mut now, register, Saved::Undefined),
                I::SameValue { register } => set(&mut now, register, Saved::Same),
                I::Offset {
                    register,
                    factored_offset,
                } => set(
                    &mut now,
                    register,
                    Saved::AtCfa(self.data(factored_offset as i64)),
                ),
                I::OffsetExtendedSf {
                    register,
                    factored_offset,
                } => set(&mut now, register, Saved::AtCfa(self.data(factored_offset))),
                I::Expression {
                    register,
                    expression,
                } => {
                    let saved = register_expression(self.expression(&expression)?);
                    set(&mut now, register, saved);
                }
                I::ValOffset { register, .. }
                | I::ValOffsetSf { register, .. }
                | I::ValExpression { register, .. }
                | I::Register {
                    dest_register: register,
                    ..
                } => set(&mut now, register, Saved::Other),
                I::Restore { register } => {
                    let mut initial = self.initial.ok_or(Corrupt)?;
                    if let Some(saved) = initial.register(register) {
                        set(&mut now, register, *saved);
                    }
                }
                I::RememberState => {
                    if remembered.len() == MAX_REMEMBERED {
                        return Err(Corrupt);
                    }
                    remembered.push(now);
                }
                I::RestoreState => now = remembered.pop().ok_or(Corrupt)?,
                I::Nop | I::ArgsSize { .. } => {}
                // Of another architecture.
                I::NegateRaState => return Err(Corrupt),
            }
        }
        emit(address, &now);
        Ok(now)
    }

    fn data(&self, factored: i64) -> i64 {
        factored.wrapping_mul(self.data_alignment)
    }

    fn expression(&self, expression: &gimli::UnwindExpression<usize>) -> Result<&[u8], Corrupt> {
        self.section
            .get(expression.offset..)
            .and_then(|rest| rest.get(..expression.length))
            .ok_or(Corrupt)
    }
}

fn set(columns: &mut Columns, register: Register, saved: Saved) {
    if let Some(column) = columns.register(register) {
        *column = saved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(cfa: Cfa, bp: Saved) -> Columns {
        Columns {
            cfa,
            cfa_offset: 0,
            bp,
            return_address: Saved::AtCfa(-8),
        }
    }

    #[test]
    fn what_does_not_fit_a_row_is_said_to() {
        let unsupported = plain(CfaRule::Unsupported);
        let cases = [
            (Cfa::Offset(RSP, 12), unsupported),
            (Cfa::Offset(RSP, 8 << 24), unsupported),
            (Cfa::Offset(RSP, 8 * 32_768 + 4), unsupported),
            (Cfa::Offset(Register(10), 0), unsupported),
            (Cfa::Deref(RBP, -8, 8 * 128), unsupported),
            (Cfa::Other, unsupported),
            (Cfa::Unset, unsupported),
        ];
        for (cfa, expected) in cases {
            assert_eq!(columns(cfa, Saved::Same).row(), expected, "{cfa:?}");
        }
        let largest = columns(Cfa::Offset(RSP, 8 * 32_767), Saved::Same).row();
        assert_eq!(
            (largest.cfa, largest.cfa_offset),
            (CfaRule::Sp as u8, 32_767)
        );
        // rustc has functions with frames of half a MiB: their callers were never seen.
        for slots in [32_768, 67_510, (1 << 24) - 1] {
            let far = columns(Cfa::Offset(RSP, 8 * slots), Saved::AtCfa(-16)).row();
            assert_eq!(far.cfa, CfaRule::SpFar as u8);
            assert_eq!(far.far_offset(), slots as u64);
            assert_eq!((far.bp, far.operands().0), (BpRule::AtCfa as u8, -2));
        }
        // A saved rbp that is out of reach costs rbp, not the frame.
        for bp in [
            Saved::AtCfa(-8 * 129),
            Saved::AtCfa(-12),
            Saved::Undefined,
            Saved::Other,
            Saved::At(Register(10), 0),
        ] {
            let row = columns(Cfa::Offset(RSP, 16), bp).row();
            assert_eq!(
                (row.cfa, row.bp),
                (CfaRule::Sp as u8, BpRule::Unknown as u8),
                "{bp:?}"
            );
        }
    }

    #[test]
    fn a_slot_said_from_sp_is_one_said_from_the_cfa() {
        let row = columns(Cfa::Offset(RSP, 64), Saved::At(RSP, 40)).row();
        assert_eq!((row.bp, row.operands().0), (BpRule::AtCfa as u8, -3));
        let row = columns(Cfa::Offset(RBP, 16), Saved::At(RBP, 0)).row();
        assert_eq!((row.bp, row.operands().0), (BpRule::AtBp as u8, 0));
    }

    #[test]
    fn only_a_return_address_below_the_cfa_is_walked() {
        let mut odd = columns(Cfa::Offset(RSP, 16), Saved::Same);
        for saved in [Saved::Default, Saved::Same, Saved::AtCfa(-16), Saved::Other] {
            odd.return_address = saved;
            assert_eq!(odd.row(), plain(CfaRule::Unsupported), "{saved:?}");
        }
        odd.return_address = Saved::Undefined;
        assert_eq!(odd.row(), plain(CfaRule::End));
    }
}
