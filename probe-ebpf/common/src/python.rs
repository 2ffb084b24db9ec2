//! Frames of CPython: how the probe finds them in a thread's memory, and how one is written into a stack.

use crate::layout::layout;

/// How the probe finds the Python frames of the threads of a process: an entry of the `PYTHONS` map, by incarnation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PythonTable {
    /// The address of the `Py_tss_t` under whose key each thread keeps its `PyThreadState`.
    pub key: u64,
    /// [`PythonShape::to_bits`].
    pub shape: u64,
    /// Where in the `PyThreadState` the pointer stands that leads to the current frame, bytes.
    pub thread_frame: u32,
    /// Where in what that points to (`_PyCFrame`) the pointer to the frame stands, bytes; [`NO_CFRAME`]: it points to the frame.
    pub cframe: u32,
    /// Where the C library's first thread-specific values lie, bytes from the thread pointer.
    pub slots: u32,
    /// Always 0.
    pub reserved: u32,
}

/// See [`PythonTable::cframe`].
pub const NO_CFRAME: u32 = u32::MAX;

/// Which frame is the last of those that one call of the interpreter's loop runs.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PythonEnd {
    /// Each is (up to 3.10).
    Each = 0,
    /// The one that is marked (3.11).
    Marked = 1,
    /// The one before that which is marked, which is none itself (since 3.12).
    BeforeMarked = 2,
}

/// Where in a frame stands what the probe reads of it. Words are of 8 bytes, counted from the frame's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonShape {
    /// The code object.
    pub code: u8,
    /// The frame that called this one.
    pub previous: u8,
    /// The instruction's address, or its index.
    pub instruction: u8,
    /// It is an index, of 4 bytes, from -1 on; and the frame is a `PyFrameObject`, of which more can be read.
    pub is_index: bool,
    /// The word with the mark.
    pub mark: u8,
    /// Bits of that word below the mark, which has 8.
    pub mark_shift: u8,
    /// The mark's value in a frame that has it.
    pub mark_value: u8,
    /// See [`PythonEnd`].
    pub end: PythonEnd,
}

impl PythonShape {
    /// As one word.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.code as u64
            | (self.previous as u64) << 8
            | (self.instruction as u64) << 16
            | (self.is_index as u64) << 24
            | (self.mark as u64) << 32
            | (self.mark_shift as u64) << 40
            | (self.mark_value as u64) << 48
            | (self.end as u64) << 56
    }
}

/// The bit that a Python frame has in a stack, and no address of code in user memory.
pub const PYTHON_FRAME: u64 = 1 << 63;

/// The largest position that a frame in a stack can have; what is beyond has this one.
pub const MAX_PYTHON_POSITION: u64 = (1 << 19) - 1;

/// Bits of an address of user memory (47, Documentation/arch/x86/x86_64/mm.rst) less those that are 0 in a code object's.
const CODE_BITS: u32 = 44;

/// A Python frame in a stack: its code object and the position in it. Position: since 3.11 the instruction's distance from the code object's
/// beginning in units of 2 bytes, before that its index (`f_lasti`) and 1.
#[inline(always)]
#[must_use]
pub const fn python_frame(code: u64, position: u64) -> u64 {
    let position = if position > MAX_PYTHON_POSITION {
        MAX_PYTHON_POSITION
    } else {
        position
    };
    PYTHON_FRAME | position << CODE_BITS | code >> 3 & ((1 << CODE_BITS) - 1)
}

/// The code object and the position of a [`python_frame`]; `None` of an address.
#[must_use]
pub const fn python_frame_parts(frame: u64) -> Option<(u64, u64)> {
    if frame & PYTHON_FRAME == 0 {
        return None;
    }
    Some((
        (frame & ((1 << CODE_BITS) - 1)) << 3,
        frame >> CODE_BITS & MAX_PYTHON_POSITION,
    ))
}

layout! {
    PythonTable = 8 * 2 + 4 * 4;
}

#[cfg(test)]
mod tests {
    use super::{MAX_PYTHON_POSITION, python_frame, python_frame_parts};

    #[test]
    fn a_frame_survives_the_stack() {
        for (code, position) in [
            (0x7f12_3456_7890, 0),
            (0x55aa_0000_0008, 99),
            (0x7fff_ffff_fff8, MAX_PYTHON_POSITION),
        ] {
            let frame = python_frame(code, position);
            assert_eq!(python_frame_parts(frame), Some((code, position)));
        }
        assert_eq!(python_frame_parts(0x7f12_3456_7890), None);
        let far = python_frame(0x1000, u64::MAX);
        assert_eq!(python_frame_parts(far), Some((0x1000, MAX_PYTHON_POSITION)));
    }
}
