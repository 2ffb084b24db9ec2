//! Objects that are made up, and such that were damaged.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::{
    super::testing::Image, DICT_SUBCLASS, HEAPTYPE, INLINE_VALUES, MANAGED_DICT, Objects, READY,
    TP_BASICSIZE, TP_FLAGS, TP_NAME, UNICODE_SUBCLASS,
};

const BASE: u64 = 0x7f00_0000_0000;
const BYTES: u64 = 0x4000;
const STR: u64 = BASE;
const DICT: u64 = BASE + 0x400;
const ANALYZER: u64 = BASE + 0x800;
const NAMES: u64 = BASE + 0xc00;
const KEY: u64 = BASE + 0xd00;
const KEYS: u64 = BASE + 0xe00;
const SHARED: u64 = BASE + 0xf00;
const TABLE: u64 = BASE + 0x1000;
const OBJECT: u64 = BASE + 0x1100;
const VALUE: u64 = BASE + 0x1200;

fn text(image: &mut Image, at: u64, text: &[u8]) {
    for (place, letters) in (0..).step_by(8).zip(text.chunks(8)) {
        let mut word = [0; 8];
        word.iter_mut()
            .zip(letters)
            .for_each(|(to, from)| *to = *from);
        image.put(at + place, u64::from_le_bytes(word));
    }
}

/// A dictionary with one key and an object with one attribute, as 3.13 lays them out.
fn made_up() -> Image {
    let mut image = Image::default();
    image.0.insert(BASE, vec![0; BYTES as usize]);
    let types = [
        (STR, "str", UNICODE_SUBCLASS),
        (DICT, "dict", DICT_SUBCLASS),
        (
            ANALYZER,
            "Analyzer",
            MANAGED_DICT | INLINE_VALUES | HEAPTYPE,
        ),
    ];
    for (number, (place, name, flags)) in (0..).zip(types) {
        text(&mut image, NAMES + number * 32, name.as_bytes());
        image.put(place + TP_NAME as u64, NAMES + number * 32);
        image.put(place + TP_FLAGS as u64, flags | READY);
        image.put(place + TP_BASICSIZE as u64, 16);
    }
    image.put(ANALYZER + 880, SHARED);
    // ASCII, compact, of letters of one byte.
    image.put(KEY + 8, STR);
    image.put(KEY + 16, 7);
    image.put(KEY + 32, 0x64);
    text(&mut image, KEY + 40, b"metrics");
    // A table of eight with one entry; of unicode keys, and of shared ones.
    for (keys, kind) in [(KEYS, 1), (SHARED, 2)] {
        image.put(keys, 1);
        image.put(keys + 8, kind << 16 | 0x0303);
        image.put(keys + 24, 1);
        image.put(keys + 40, KEY);
    }
    image.put(KEYS + 48, VALUE);
    image.put(TABLE + 8, DICT);
    image.put(TABLE + 32, KEYS);
    image.put(OBJECT + 8, ANALYZER);
    image.put(OBJECT + 16, 0x0100_0101);
    image.put(OBJECT + 24, VALUE);
    image
}

#[test]
fn keys_and_attributes_are_read() {
    let image = made_up();
    let mut objects = Objects::new(&image);
    assert_eq!(objects.text(KEY).as_deref(), Some("metrics"));
    assert!(objects.type_of(TABLE).unwrap().is_dict());
    assert_eq!(objects.key_of(TABLE, VALUE).as_deref(), Some("metrics"));
    assert_eq!(objects.key_of(TABLE, VALUE + 16), None);
    let of = objects.type_of(OBJECT).unwrap();
    let attribute = objects.attribute(&of, OBJECT, VALUE);
    assert_eq!(attribute.as_deref(), Some("metrics"));
    assert_eq!(objects.attribute(&of, OBJECT, VALUE + 16), None);
}

proptest! {
    /// A target writes what it pleases: nothing may end, hang or grow.
    #[test]
    fn damaged_objects_are_bounded(damage in proptest::collection::vec((0..BYTES / 8, any::<u64>(), any::<u8>()), 0..40)) {
        let mut image = made_up();
        for (at, word, kind) in damage {
            let word = match kind % 4 {
                0 => word,
                1 => BASE + word % BYTES,
                2 => word % 64,
                _ => word | READY | UNICODE_SUBCLASS | DICT_SUBCLASS,
            };
            image.put(BASE + at % 0x260 * 8, word);
        }
        let mut objects = Objects::new(&image);
        for object in [KEY, TABLE, OBJECT, STR, ANALYZER, KEYS] {
            let text = objects.text(object).unwrap_or_default();
            prop_assert!(text.chars().count() <= 41);
            let key = objects.key_of(object, VALUE).unwrap_or_default();
            prop_assert!(key.chars().count() <= 41);
            if let Some(of) = objects.type_of(object) {
                let name = objects.attribute(&of, object, VALUE).unwrap_or_default();
                prop_assert!(name.chars().count() <= 41);
                objects.is_namespace(&of, object, TABLE);
            }
            let name = objects.module_name(object).or(objects.class_name(object));
            prop_assert!(name.is_none_or(|name| name.len() <= 256));
        }
    }
}
