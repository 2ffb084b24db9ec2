//! Lists, dictionaries and queues of CPython: how many entries they have, where the next ones will stand, and what was put there. An entry is written once,
//! when something is put into the container, so that it tells who keeps things. Layouts of 3.8 to 3.14: `Include/cpython/listobject.h`, dictionaries as in
//! [`super::objects`], `dequeobject` of `Modules/_collectionsmodule.c`.

use serde::{Deserialize, Serialize};

use super::{
    cpython::{self, OVERHEAD, POOL_SIZES},
    memory::{Memory, Region, WORD},
    objects::dicts,
    pooled::{BlockObject, object_in},
};

/// `ob_size` of a list and a queue, `ma_used` of a dictionary.
const ENTRIES: u64 = 16;
/// `ob_item` and `allocated`.
const LIST_ITEMS: u64 = 24;
const LIST_ROOM: u64 = 32;
/// `rightblock`, `leftindex` and `rightindex`; `leftlink`, the entries and how many there are of a block.
const RIGHT_BLOCK: u64 = 32;
const RIGHT_INDEX: u64 = 48;
const LEFT_LINK: u64 = 0;
const BLOCK_ENTRIES: u64 = 8;
const BLOCK_LENGTH: u64 = 64;
/// So many blocks from the end of a queue on are looked through.
const MOST_BLOCKS: usize = 16;

/// Of smaller containers nothing is told: there are many.
const LEAST_ENTRIES: u64 = 16;

/// Of the entries to come so many are told of.
const AHEAD: u64 = 8;

/// What a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// A list.
    List,
    /// A dictionary, or what is based on one.
    Dict,
    /// `collections.deque`.
    Deque,
}

/// The types, by name.
const SHAPES: [(&str, Shape); 8] = [
    ("list", Shape::List),
    ("dict", Shape::Dict),
    ("collections.defaultdict", Shape::Dict),
    ("defaultdict", Shape::Dict),
    ("collections.OrderedDict", Shape::Dict),
    ("OrderedDict", Shape::Dict),
    ("collections.deque", Shape::Deque),
    ("deque", Shape::Deque),
];

/// A container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The object.
    pub address: u64,
    /// What it is.
    pub shape: Shape,
    /// Entries in it.
    pub entries: u64,
}

impl Shape {
    /// Of a type's instances.
    pub(super) fn of(name: &str) -> Option<Self> {
        let known = SHAPES.iter().find(|(known, _)| *known == name);
        known.map(|(_, shape)| *shape)
    }
}

/// The container that begins so far into a block, if it has entries enough.
pub(super) fn container(
    shape: Shape,
    block: u64,
    object_at: u64,
    bytes: &[u8],
) -> Option<Container> {
    let at = usize::try_from(object_at.checked_add(ENTRIES)?).ok()?;
    let word = bytes.get(at..at.checked_add(WORD as usize)?)?;
    let entries = u64::from_le_bytes(word.try_into().ok()?);
    ((LEAST_ENTRIES..1 << 40).contains(&entries)).then_some(Container {
        address: block.checked_add(object_at)?,
        shape,
        entries,
    })
}

/// A row of entries.
struct Row {
    first: u64,
    /// Bytes from one to the next, and where in an entry objects are pointed to.
    stride: u64,
    words: &'static [u64],
    used: u64,
    room: u64,
}

impl Row {
    /// The row whose end the next entries are put to.
    fn last_of(memory: &dyn Memory, of: &Container) -> Option<Self> {
        let word = |at: u64| memory.word(of.address.checked_add(at)?);
        match of.shape {
            Shape::List => Some(Self {
                first: word(LIST_ITEMS)?,
                stride: WORD,
                words: &[0],
                used: word(ENTRIES)?,
                room: word(LIST_ROOM)?,
            }),
            Shape::Dict => {
                let (keys, values) = dicts::parts(memory, of.address)?;
                values.is_none().then_some(Self {
                    first: keys.first,
                    stride: keys.stride,
                    words: if keys.stride == 2 * WORD {
                        &[0, WORD]
                    } else {
                        &[WORD, 2 * WORD]
                    },
                    used: keys.entries,
                    room: keys.room,
                })
            }
            Shape::Deque => {
                let used = word(RIGHT_INDEX)?.checked_add(1)?;
                Self::of_block(word(RIGHT_BLOCK)?, used)
            }
        }
    }

    fn of_block(block: u64, used: u64) -> Option<Self> {
        (used <= BLOCK_LENGTH).then_some(Self {
            first: block.checked_add(BLOCK_ENTRIES)?,
            stride: WORD,
            words: &[0],
            used,
            room: BLOCK_LENGTH,
        })
    }

    /// Whether a word is one in an entry that is in use.
    fn has(&self, word: u64) -> bool {
        let place = word.checked_sub(self.first);
        place.is_some_and(|at| {
            at.checked_div(self.stride)
                .is_some_and(|number| number < self.used)
                && self
                    .words
                    .contains(&at.checked_rem(self.stride).unwrap_or(0))
        })
    }
}

/// The words that will point to what is put into a container next, `skip` entries from now.
#[must_use]
pub fn next_words(memory: &dyn Memory, of: &Container, skip: u64) -> Vec<u64> {
    let Some(row) = Row::last_of(memory, of) else {
        return Vec::new();
    };
    let from = row.used.saturating_add(skip);
    let to = row.room.min(from.saturating_add(AHEAD));
    let starts =
        (from..to).filter_map(|number| number.checked_mul(row.stride)?.checked_add(row.first));
    starts
        .flat_map(|start| {
            row.words
                .iter()
                .filter_map(move |at| start.checked_add(*at))
        })
        .filter(|word| word % WORD == 0)
        .collect()
}

/// What a word of a container's entries points to, if it still is one: its block, and what it is.
#[must_use]
pub fn kept(
    memory: &dyn Memory,
    regions: &[Region],
    of: &Container,
    word: u64,
    pool_bytes: u64,
) -> Option<(u64, BlockObject)> {
    if !POOL_SIZES.contains(&pool_bytes) {
        return None;
    }
    let mut row = Row::last_of(memory, of)?;
    for _ in 0..MOST_BLOCKS {
        if row.has(word) || of.shape != Shape::Deque {
            break;
        }
        let block = row.first.checked_sub(BLOCK_ENTRIES)?;
        row = Row::of_block(memory.word(block.checked_add(LEFT_LINK)?)?, BLOCK_LENGTH)?;
    }
    if !row.has(word) {
        return None;
    }
    let object = memory.word(word)?;
    let pool = object - object % pool_bytes;
    let header = cpython::header_at(memory, pool, pool_bytes)?;
    let before = object.checked_sub(pool.checked_add(OVERHEAD)?)?;
    let block = object.checked_sub(before.checked_rem(header.block)?)?;
    let found = object_in(memory, regions, block, header.block)?;
    (block.checked_add(found.kind.object_at) == Some(object)).then_some((block, found))
}

#[cfg(test)]
mod tests {
    use super::{AHEAD, Container, Row, Shape, container, next_words};
    use crate::heap::testing::Image;

    const START: u64 = 0x7f00_0000_0000;
    const TABLE: u64 = START + 0x1000;

    fn image() -> Image {
        let mut image = Image::default();
        image.0.insert(START, vec![0; 0x4000]);
        image
    }

    fn of(shape: Shape) -> Container {
        Container {
            address: START,
            shape,
            entries: 60,
        }
    }

    #[test]
    fn the_next_items_of_a_list_stand_behind_its_last() {
        let mut image = image();
        image.put(START + 16, 60);
        image.put(START + 24, TABLE);
        image.put(START + 32, 64);
        let words = next_words(&image, &of(Shape::List), 1);
        assert_eq!(words, [61, 62, 63].map(|number| TABLE + number * 8));
        assert!(next_words(&image, &of(Shape::List), 9).is_empty());
        let row = Row::last_of(&image, &of(Shape::List));
        assert!(row.is_some_and(|row| row.has(TABLE + 59 * 8)
            && !row.has(TABLE + 60 * 8)
            && !row.has(TABLE + 4)
            && !row.has(TABLE - 8)));
    }

    /// `PyDictKeysObject` of 3.11 with text for keys, of 3.11 with any, and of 3.8.
    #[test]
    fn the_next_entry_of_a_dictionary_is_a_key_and_a_value() {
        for (is_old, kind, first, stride, at) in [
            (false, 1, 32 + 128, 16, 0),
            (false, 0, 32 + 128, 24, 8),
            (true, 0, 40 + 128, 24, 8),
        ] {
            let mut image = image();
            image.put(START + 16, 60);
            image.put(START + 32, TABLE);
            image.put(TABLE, 1);
            if is_old {
                image.put(TABLE + 8, 128);
                image.put(TABLE + 24, 24);
                image.put(TABLE + 32, 61);
            } else {
                image.put(TABLE + 8, 7 | 7 << 8 | kind << 16);
                image.put(TABLE + 16, 24);
                image.put(TABLE + 24, 61);
            }
            let words = next_words(&image, &of(Shape::Dict), 0);
            let entry = TABLE + first + 61 * stride + at;
            assert_eq!(
                words.get(..2),
                Some(&[entry, entry + 8][..]),
                "{kind} {stride}"
            );
            assert_eq!(words.len() as u64, 2 * AHEAD);
            // Two thirds of the table are used before it is made anew.
            assert!(next_words(&image, &of(Shape::Dict), 24).is_empty());
        }
    }

    #[test]
    fn a_queue_grows_in_its_last_block() {
        let mut image = image();
        image.put(START + 16, 60);
        image.put(START + 32, TABLE);
        image.put(START + 48, 61);
        let words = next_words(&image, &of(Shape::Deque), 0);
        assert_eq!(words, [TABLE + 8 + 62 * 8, TABLE + 8 + 63 * 8]);
    }

    #[test]
    fn what_a_target_writes_is_bounded() {
        for word in [u64::MAX, 1 << 63, TABLE + 3] {
            let mut image = image();
            for at in (0..64).step_by(8) {
                image.put(START + at, word);
            }
            for shape in [Shape::List, Shape::Dict, Shape::Deque] {
                let words = next_words(&image, &of(shape), 0);
                assert!(words.is_empty(), "{shape:?} {word:x}");
            }
            let bytes = word.to_le_bytes().repeat(8);
            assert_eq!(container(Shape::List, START, 16, &bytes), None);
        }
    }
}
