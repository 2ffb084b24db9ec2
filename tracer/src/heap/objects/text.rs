//! Strings of CPython: `PyASCIIObject` and `PyCompactUnicodeObject` of `Include/cpython/unicodeobject.h`. Legacy strings, whose text
//! stands elsewhere, have no name to give.

use super::{Fields, Memory};

/// `length`, and `state`: `kind` in three bits from the third on, then `compact` and `ascii`.
const LENGTH: usize = 16;
const STATE: usize = 32;
const COMPACT: u32 = 1 << 5;
const ASCII: u32 = 1 << 6;
const HEAD_BYTES: usize = 40;

/// Where the text stands, ASCII and other: 3.12 left out `wstr` and `wstr_length`.
const SINCE_3_12: [u64; 2] = [40, 56];
const BEFORE_3_12: [u64; 2] = [48, 72];

/// The longest text that is shown, characters.
const LONGEST: u64 = 40;
/// A string longer than this is no name.
const MOST: u64 = 1 << 20;

/// Reads strings; the first one tells which layout the process has.
#[derive(Debug, Default)]
pub(super) struct Texts {
    is_before_3_12: Option<bool>,
}

impl Texts {
    /// Whether strings were seen that have a `wstr`.
    pub(super) fn are_of_before_3_12(&self) -> bool {
        self.is_before_3_12 == Some(true)
    }

    /// The text of a string.
    pub(super) fn read(&mut self, memory: &dyn Memory, object: u64) -> Option<String> {
        let head = Fields::read(memory, object, HEAD_BYTES)?;
        let (length, state) = (head.word(LENGTH)?, head.half(STATE)?);
        if state & COMPACT == 0 || length > MOST {
            return None;
        }
        if length == 0 {
            return Some(String::new());
        }
        let is_ascii = state & ASCII != 0;
        let width = match state >> 2 & 7 {
            width @ (1 | 2 | 4) => u64::from(width),
            _ => return None,
        };
        if self.is_before_3_12.is_none() && is_ascii {
            // `wstr` of a string of ASCII is null; in its place stands the first letter.
            let first = memory.word(object.checked_add(SINCE_3_12[0])?)?;
            self.is_before_3_12 = Some(first == 0);
        }
        let layout = if self.is_before_3_12? {
            BEFORE_3_12
        } else {
            SINCE_3_12
        };
        let [ascii, other] = layout;
        let start = object.checked_add(if is_ascii { ascii } else { other })?;
        let shown = length.min(LONGEST);
        let bytes = Fields::read(memory, start, usize::try_from(shown * width).ok()?)?.0;
        let mut text = String::new();
        for letter in bytes.chunks_exact(width as usize) {
            let mut whole = [0; 4];
            whole.get_mut(..letter.len())?.copy_from_slice(letter);
            text.push(char::from_u32(u32::from_le_bytes(whole))?);
        }
        if length > shown {
            text.push('…');
        }
        Some(text)
    }
}

/// A name that is not longer than texts are.
pub(super) fn shortened(name: String) -> String {
    match name.char_indices().nth(LONGEST as usize) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name,
    }
}
