//! Dictionaries of CPython: `PyDictObject` of `Include/cpython/dictobject.h`, `PyDictKeysObject` of `Objects/dict-common.h` (3.8 to
//! 3.10) and `Include/internal/pycore_dict.h` (3.11 on), `PyDictValues`.

use super::{Fields, Memory, WORD};

/// `ma_keys`, `ma_values`.
const MA_KEYS: u64 = 32;
const MA_VALUES: u64 = 40;

/// Since 3.11: `dk_log2_size`, `dk_log2_index_bytes`, `dk_kind` (two of them: a split table), `dk_nentries`, `dk_indices`.
const LOG2_SIZE: usize = 8;
const LOG2_INDEX: usize = 9;
const KIND: usize = 10;
const ENTRIES: usize = 24;
const INDICES: u64 = 32;
const GENERAL: u8 = 0;
const SPLIT: u8 = 2;
/// Before 3.11: `dk_size`, `dk_nentries`, `dk_indices`.
const OLD_SIZE: usize = 8;
const OLD_ENTRIES: usize = 32;
const OLD_INDICES: u64 = 40;
const HEAD_BYTES: usize = 40;

/// `PyDict_MINSIZE`, and more than fits into memory.
const SIZES: std::ops::RangeInclusive<u32> = 3..=40;
/// `SHARED_KEYS_MAX_SIZE` (3.11 on).
const MOST_SHARED: u8 = 30;
/// Of a larger table the key of a value is not looked for.
const MOST_SEARCHED: u64 = 4096;

/// The keys of a dictionary, as a table of entries.
#[derive(Clone, Copy, Debug)]
pub(in crate::heap) struct Keys {
    pub(in crate::heap) first: u64,
    /// Bytes of an entry: hash, key and value, or key and value.
    pub(in crate::heap) stride: u64,
    /// How many there are.
    pub(in crate::heap) entries: u64,
    /// How many there can be: `USABLE_FRACTION`.
    pub(in crate::heap) room: u64,
    /// The values stand elsewhere.
    pub(super) is_split: bool,
}

impl Keys {
    /// The keys that stand at an address.
    pub(super) fn read(memory: &dyn Memory, address: u64) -> Option<Self> {
        let head = Fields::read(memory, address, HEAD_BYTES)?;
        // References count up from one; immortal tables have few.
        if !(1..1 << 32).contains(&head.word(0)?) {
            return None;
        }
        Self::since_3_11(&head, address).or_else(|| Self::before_3_11(&head, address))
    }

    fn since_3_11(head: &Fields, address: u64) -> Option<Self> {
        let byte = |at: usize| head.0.get(at).copied();
        let (size, index, kind) = (byte(LOG2_SIZE)?, byte(LOG2_INDEX)?, byte(KIND)?);
        let width = match size {
            0..=7 => 0,
            8..=15 => 1,
            16..=31 => 2,
            _ => 3,
        };
        let entries = head.word(ENTRIES)?;
        let fits = SIZES.contains(&u32::from(size))
            && index == size + width
            && kind <= SPLIT
            && entries <= 1 << size;
        fits.then(|| {
            Some(Self {
                first: address.checked_add(INDICES)?.checked_add(1 << index)?,
                stride: if kind == GENERAL { 3 * WORD } else { 2 * WORD },
                entries,
                room: (2 << size) / 3,
                is_split: kind == SPLIT,
            })
        })
        .flatten()
    }

    fn before_3_11(head: &Fields, address: u64) -> Option<Self> {
        let (size, entries) = (head.word(OLD_SIZE)?, head.word(OLD_ENTRIES)?);
        let fits =
            size.is_power_of_two() && SIZES.contains(&size.trailing_zeros()) && entries <= size;
        let width = match size {
            0..=0xff => 1,
            0x100..=0xffff => 2,
            0x1_0000..=0xffff_ffff => 4,
            _ => 8,
        };
        fits.then(|| {
            Some(Self {
                first: address
                    .checked_add(OLD_INDICES)?
                    .checked_add(size * width)?,
                stride: 3 * WORD,
                entries,
                room: 2 * size / 3,
                is_split: false,
            })
        })
        .flatten()
    }

    /// The key of an entry.
    pub(super) fn key_at(&self, memory: &dyn Memory, number: u64) -> Option<u64> {
        if number >= self.entries {
            return None;
        }
        let entry = number.checked_mul(self.stride)?.checked_add(self.first)?;
        memory
            .word(entry.checked_add(self.stride - 2 * WORD)?)
            .filter(|key| *key != 0)
    }

    /// The number of the entry that has a value.
    pub(super) fn place_of(&self, memory: &dyn Memory, value: u64) -> Option<u64> {
        if self.entries > MOST_SEARCHED {
            return None;
        }
        let length = usize::try_from(self.entries * self.stride).ok()?;
        let table = Fields::read(memory, self.first, length)?;
        let of_entry = self.stride - WORD;
        (0..self.entries).find(|number| {
            let at = usize::try_from(number * self.stride + of_entry).ok();
            at.and_then(|at| table.word(at)) == Some(value)
        })
    }
}

/// A dictionary's keys, and where its values stand if not with them.
pub(in crate::heap) fn parts(memory: &dyn Memory, dict: u64) -> Option<(Keys, Option<u64>)> {
    let keys = Keys::read(memory, memory.word(dict.checked_add(MA_KEYS)?)?)?;
    let values = memory.word(dict.checked_add(MA_VALUES)?)?;
    if values == 0 {
        return Some((keys, None));
    }
    // Since 3.13 a word stands before the values, of which four bytes are used: `capacity`, `size`, `embedded`, `valid`.
    let head = memory.word(values)?;
    let [capacity, used, embedded, valid, ..] = head.to_le_bytes();
    let has_head =
        (1..=MOST_SHARED).contains(&capacity) && used <= capacity && embedded <= 1 && valid <= 1;
    let values = if has_head {
        values.checked_add(WORD)?
    } else {
        values
    };
    Some((keys, Some(values)))
}

/// The values of a table that is shared with other objects, as far as they can be read.
pub(super) fn split_values(memory: &dyn Memory, values: u64, keys: &Keys) -> Vec<u64> {
    let count = keys.entries.min(MOST_SEARCHED);
    let mut bytes = vec![0; (count * WORD) as usize];
    let length = memory.read(values, &mut bytes);
    bytes.truncate(length);
    let words = bytes.chunks_exact(WORD as usize);
    words
        .map(|word| word.try_into().map_or(0, u64::from_le_bytes))
        .collect()
}
