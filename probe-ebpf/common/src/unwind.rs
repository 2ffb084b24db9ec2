//! The unwind tables that user space builds and the probe walks.

use crate::layout::layout;

/// One row of a file's unwind table: how to leave a frame whose program counter lies in
/// `[row, next row)`. Only the low 16 bits of the address are kept; the row's 64 KiB page is known from the page
/// index that led to it.
///
/// Offsets are in units of 8 bytes: on x86_64 the stack is a sequence of 8-byte slots (psABI 3.2.2), and a rule
/// whose offset is not a multiple of 8 or does not fit is [`CfaRule::Unsupported`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnwindRow {
    /// The low 16 bits of the row's first address, an ELF virtual address.
    pub address_low: u16,
    /// A [`CfaRule`] as a number.
    pub cfa: u8,
    /// A [`BpRule`] as a number.
    pub bp: u8,
    /// First operand of the CFA rule, in 8-byte units: `off` of sp + off and bp + off, `a` of `*(reg + a) + b`.
    pub cfa_offset: i16,
    /// Low byte: operand of the bp rule in 8-byte units (signed 8-bit). High byte: `b` of `*(reg + a) + b` in 8-byte
    /// units (signed 8-bit), or of [`CfaRule::Plt`]. See [`UnwindRow::operands`].
    pub packed: u16,
}

impl UnwindRow {
    /// Packs the bp rule's operand and the `b` of a dereferencing CFA rule, both in 8-byte units.
    #[must_use]
    pub const fn pack(bp_offset: i8, deref_add: i8) -> u16 {
        (bp_offset as u8 as u16) | ((deref_add as u8 as u16) << 8)
    }

    /// The offset of [`CfaRule::SpFar`] in 8-byte units: `cfa_offset` is its low 16 bits, the high byte of `packed` the next 8, all
    /// without a sign.
    #[inline(always)]
    #[must_use]
    pub const fn far_offset(self) -> u64 {
        self.cfa_offset as u16 as u64 | ((self.packed >> 8) as u64) << 16
    }

    /// The bp rule's operand and the `b` of a dereferencing CFA rule, both in 8-byte units.
    #[inline(always)]
    #[must_use]
    pub const fn operands(self) -> (i64, i64) {
        (
            (self.packed as u8 as i8) as i64,
            ((self.packed >> 8) as u8 as i8) as i64,
        )
    }
}

/// How the canonical frame address (DWARF 5, 6.4.1) is found. The return address is always at CFA - 8 (psABI
/// x86_64, 3.2.2); a file that says otherwise gets [`CfaRule::Unsupported`] rows.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CfaRule {
    /// No rule covers the address: a gap between functions, or code without call frame information.
    None = 0,
    /// CFA = sp + offset.
    Sp = 1,
    /// CFA = bp + offset.
    Bp = 2,
    /// CFA = *(sp + a) + b.
    DerefSp = 3,
    /// CFA = *(bp + a) + b.
    DerefBp = 4,
    /// A procedure linkage stub: CFA = sp + `cfa_offset`, and 8 bytes more where the address modulo 16 is at least `b`
    /// (the high byte of `packed`, here a plain number): 11 in lazy stubs, 9 in those that begin with `endbr64`.
    /// Never met behind a call: stubs jump.
    Plt = 5,
    /// The return address is undefined: the outermost frame, a true end.
    End = 6,
    /// A signal frame; the interrupted registers would be needed, which pruned tables do not describe.
    Signal = 7,
    /// A rule that the rows cannot express.
    Unsupported = 8,
    /// CFA = sp + offset, for frames of 256 KiB to 128 MiB: see [`UnwindRow::far_offset`].
    SpFar = 9,
}

/// How the caller's frame pointer is found.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BpRule {
    /// Unchanged by this frame.
    Same = 0,
    /// Saved at CFA + offset.
    AtCfa = 1,
    /// Saved at bp + offset (functions that realign their stack).
    AtBp = 2,
    /// Lost or not expressible: a later frame that needs it ends the walk.
    Unknown = 3,
}

/// The rows of one 64 KiB page of a file's text: `[first, end)` in the row table. An address before the page's first
/// row belongs to the row at `first - 1`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnwindPage {
    /// Index of the first row whose address lies in the page.
    pub first: u32,
    /// Index behind the last one.
    pub end: u32,
}

/// One executable mapping of a process, in a slice sorted by `start`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind the mapping.
    pub end: u64,
    /// What to subtract (wrapping) from an address to get the file's ELF virtual address.
    pub bias: u64,
    /// What to add (wrapping) to an ELF virtual address's 64 KiB page number to get its entry in the page index.
    pub first_page: u32,
    /// `MAPPING_*` flags.
    pub flags: u32,
}

/// Slots for slices of mappings: a process incarnation uses the one at its number modulo this.
pub const SLICE_SLOTS: u32 = 65_536;

/// Where a process incarnation's mappings stand. User space writes `range` before `incarnation`, and replaces it as one word.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Slice {
    /// See [`Slice::pack`]; 0: none. One word, so that it is never read torn.
    pub range: u64,
    /// Whose slice it is; 0: nobody's.
    pub incarnation: u32,
    /// `SLICE_*` flags.
    pub flags: u32,
}

/// The steps of the incarnation's mappings are not told of.
pub const SLICE_NO_STEPS: u32 = 1;

/// The incarnation is seen in windows: its blocks stand in the live table's first buckets alone (see [`crate::WINDOW_BUCKETS`]).
pub const SLICE_WINDOWED: u32 = 2;

/// Children that work in the incarnation's memory (vfork(2)) are seen by probes of their own: of a multi link with a process, Linux runs the
/// programs for that process's threads alone (since 6.12, `uprobe_prog_run`, kernel/trace/bpf_trace.c).
pub const SLICE_LENT: u32 = 4;

impl Slice {
    /// The most mappings in a slice; the search among them reaches fewer.
    pub const MAX_COUNT: u32 = (1 << 16) - 1;
    /// The last entry of the mappings table that a slice can begin at.
    pub const MAX_FIRST: u32 = (1 << 24) - 1;

    /// A slice's word: the first entry (24 bits), the count (16 bits), and a number (24 bits) that tells it from the slices that stood
    /// at the same place before.
    #[must_use]
    pub const fn pack(generation: u32, first: u32, count: u32) -> u64 {
        (generation as u64) << 40
            | ((first & Self::MAX_FIRST) as u64) << 16
            | (count & Self::MAX_COUNT) as u64
    }

    /// The first entry of a slice, from its word.
    #[inline(always)]
    #[must_use]
    pub const fn first(range: u64) -> u32 {
        (range >> 16) as u32 & Self::MAX_FIRST
    }

    /// The number of entries of a slice, from its word.
    #[inline(always)]
    #[must_use]
    pub const fn count(range: u64) -> u32 {
        range as u32 & Self::MAX_COUNT
    }
}

/// Code in this mapping is known to keep frame pointers (Go, JIT regions): walk by them.
pub const MAPPING_FRAME_POINTERS: u32 = 1;
/// The mapping is known and has no table.
pub const MAPPING_NO_TABLE: u32 = 2;
/// The kernel's page of the process for uprobes (`[uprobes]`), where hijacked return addresses point.
pub const MAPPING_UPROBES: u32 = 4;
/// Code in this mapping that no row covers is known to keep frame pointers (the builtins that V8 links in).
pub const MAPPING_GAPS_KEEP_FRAME_POINTERS: u32 = 8;

/// The interpreter's loop (`_PyEval_EvalFrameDefault`) or a part of it: a frame here runs Python frames, which stand behind it in the stack.
pub const MAPPING_EVAL: u32 = 16;
/// Code of a Python interpreter: deep in a stack its frames are left out, so that there is room for those of Python.
pub const MAPPING_INTERPRETER: u32 = 32;

layout! {
    UnwindRow = 2 + 1 + 1 + 2 + 2;
    UnwindPage = 4 + 4;
    Slice = 8 + 4 * 2;
    Mapping = 8 * 3 + 4 * 2;
}

#[cfg(test)]
mod tests {
    use super::{Slice, UnwindRow};

    #[test]
    fn a_slice_survives_packing_and_differs_from_its_predecessor() {
        for (generation, first, count) in [
            (0, 0, 1),
            (1, Slice::MAX_FIRST, Slice::MAX_COUNT),
            (0xff_ffff, 77, 0),
        ] {
            let word = Slice::pack(generation, first, count);
            assert_eq!((Slice::first(word), Slice::count(word)), (first, count));
            assert_ne!(word, Slice::pack(generation + 1, first, count));
        }
    }

    #[test]
    fn operands_survive_packing() {
        for bp in [-128_i8, -2, 0, 1, 127] {
            for add in [-128_i8, -1, 0, 5, 127] {
                let row = UnwindRow {
                    packed: UnwindRow::pack(bp, add),
                    ..UnwindRow::default()
                };
                assert_eq!(row.operands(), (i64::from(bp), i64::from(add)));
            }
        }
    }
}
