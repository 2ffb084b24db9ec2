//! Code objects read from outside: function, file and line of a Python frame. All that is read is the target's: what does not fit has no name.

use super::{
    layout::{CodeLayout, LineTable},
    lines::line_of,
};
use crate::heap::Memory;

/// `PyUnicodeObject`: `length`, and `state` with `kind` in three bits from the third on, then `compact` and `ascii`.
const LENGTH: usize = 16;
const STATE: usize = 32;
const TEXT_HEAD: usize = 36;
const COMPACT: u32 = 1 << 5;
const ASCII: u32 = 1 << 6;
/// `PyObject.ob_refcnt`: 32 bits of it are used, and at least one object holds what is there. Of what was freed, a pointer to another free block stands
/// in its place.
const REFERENCES: usize = 0;
const MOST_REFERENCES: u64 = 0xffff_ffff;
/// `PyVarObject.ob_size` of a code object since 3.11: its instructions, 2 bytes each.
const INSTRUCTIONS: usize = 16;
/// The longest names and paths that are read, characters.
const LONGEST: u64 = 4096;
/// `PyBytesObject`: `ob_size`, `ob_sval`.
const BYTES_SIZE: usize = 16;
const BYTES_DATA: usize = 32;
/// The longest line table that is read, bytes.
const MOST_LINES: u64 = 1 << 20;

/// A code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Code {
    /// `co_qualname`, or `co_name` where there is none.
    pub(super) function: String,
    /// `co_filename`.
    pub(super) file: String,
    first_line: i64,
    lines: Vec<u8>,
    /// How many instructions it has, where it says so.
    instructions: Option<i64>,
}

/// What a code object points to: one that was freed, and whose memory is another's now, points elsewhere.
pub(super) type Mark = [u64; 4];

/// What tells a code object from another at the same address.
pub(super) fn mark(memory: &dyn Memory, layout: &CodeLayout, address: u64) -> Option<Mark> {
    mark_of(&object(memory, address, layout.size)?, layout)
}

fn mark_of(bytes: &[u8], layout: &CodeLayout) -> Option<Mark> {
    Some([
        word(bytes, layout.filename)?,
        word(bytes, layout.name)?,
        word(bytes, layout.lines)?,
        u64::from(half(bytes, layout.first_line)?),
    ])
}

impl Code {
    /// Reads a code object.
    pub(super) fn read(memory: &dyn Memory, layout: &CodeLayout, address: u64) -> Option<Self> {
        let bytes = object(memory, address, layout.size)?;
        let [file, name, lines, first_line] = mark_of(&bytes, layout)?;
        let size = word(&object(memory, lines, BYTES_DATA)?, BYTES_SIZE)?;
        let instructions = if layout.line_table == LineTable::Locations {
            Some(i64::try_from(word(&bytes, INSTRUCTIONS)?).ok()?)
        } else {
            None
        };
        if size > MOST_LINES {
            return None;
        }
        Some(Self {
            function: text(memory, layout, name)?,
            file: text(memory, layout, file)?,
            first_line: i64::from((first_line as u32).cast_signed()),
            lines: read(
                memory,
                lines.checked_add(BYTES_DATA as u64)?,
                usize::try_from(size).ok()?,
            )?,
            instructions,
        })
    }

    /// Whether it is none that a programmer wrote: what the interpreter runs between a call of a class and its `__init__` (since 3.12).
    pub(super) fn is_shim(&self) -> bool {
        self.file == "__init__" && self.function == "__init__"
    }

    /// The line of a position: see [`leakscope_common::python_frame`]. `None` where the code has no such instruction: it is another's.
    pub(super) fn line(&self, layout: &CodeLayout, position: u64) -> Option<u32> {
        let position = i64::try_from(position).ok()?;
        let at = if layout.line_table == LineTable::Locations {
            position
                .checked_mul(2)?
                .checked_sub_unsigned(layout.first_instruction)?
        } else {
            position
                .checked_sub(1)?
                .checked_mul(i64::try_from(layout.index_bytes).ok()?)?
        };
        if self.instructions.is_some_and(|all| at / 2 >= all) {
            return None;
        }
        let line = line_of(layout.line_table, &self.lines, self.first_line, at);
        // An instruction of none belongs to the function.
        u32::try_from(line.unwrap_or(self.first_line))
            .ok()
            .filter(|line| *line > 0)
    }
}

/// The text of a string.
fn text(memory: &dyn Memory, layout: &CodeLayout, object: u64) -> Option<String> {
    let head = self::object(memory, object, TEXT_HEAD)?;
    let (length, state) = (word(&head, LENGTH)?, half(&head, STATE)?);
    if state & COMPACT == 0 || length > LONGEST {
        return None;
    }
    let width = match state >> 2 & 7 {
        width @ (1 | 2 | 4) => u64::from(width),
        _ => return None,
    };
    let [ascii, other] = layout.text;
    let start = object.checked_add(if state & ASCII != 0 { ascii } else { other })?;
    let bytes = read(memory, start, usize::try_from(length * width).ok()?)?;
    bytes
        .chunks_exact(usize::try_from(width).ok()?)
        .map(|letter| {
            let mut whole = [0; 4];
            whole.get_mut(..letter.len())?.copy_from_slice(letter);
            // A lone surrogate, which paths may hold, is no letter.
            Some(char::from_u32(u32::from_le_bytes(whole)).unwrap_or(char::REPLACEMENT_CHARACTER))
        })
        .collect()
}

/// The beginning of an object that is in use.
fn object(memory: &dyn Memory, address: u64, size: usize) -> Option<Vec<u8>> {
    let bytes = read(memory, address, size)?;
    (1..=MOST_REFERENCES)
        .contains(&word(&bytes, REFERENCES)?)
        .then_some(bytes)
}

fn read(memory: &dyn Memory, address: u64, size: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size];
    (memory.read(address, &mut bytes) == size).then_some(bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..)?.get(..8)?;
    Some(u64::from_le_bytes(part.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..)?.get(..4)?;
    Some(u32::from_le_bytes(part.try_into().ok()?))
}
