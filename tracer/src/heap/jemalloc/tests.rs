//! Runs that are made up, and such that were damaged.

use proptest::prelude::*;

use super::{super::testing::Image, BASE_BYTES, LAYOUTS, PAGE, class_bytes, jemalloc_counts};
use crate::heap::{Counts, Region, RegionKind};

const BASE: u64 = 0x7f00_0020_0000;
const RUNS: u64 = BASE + BASE_BYTES;
const BYTES: u64 = 2 * BASE_BYTES;

/// A base block with nothing in it, and memory for runs behind.
fn empty() -> Image {
    let mut image = Image::default();
    image.0.insert(BASE, vec![0; BYTES as usize]);
    image.put(BASE, BASE_BYTES);
    image.put(BASE + 24, BASE + 0x1000);
    image
}

fn regions() -> Vec<Region> {
    let range = BASE..BASE + BYTES;
    vec![Region {
        present: std::iter::once(range.clone()).collect(),
        range,
        kind: RegionKind::Anonymous,
        name: String::new(),
    }]
}

/// Puts a descriptor at a place of the base block: a run of blocks of a class, of which some are free.
fn put(image: &mut Image, layout: usize, place: u64, run: u64, class: u64, pages: u64, free: u64) {
    let Some(layout) = LAYOUTS.get(layout) else {
        return;
    };
    let at = BASE + 0x1000 + 128 * place;
    let is_small = class < 36;
    let count = if is_small { free.count_ones() } else { 0 };
    image.put(
        at,
        3 | u64::from(is_small) << layout.slab
            | class << layout.class
            | u64::from(count) << layout.free,
    );
    image.put(at + 8, RUNS + run * PAGE);
    image.put(at + 16, (pages * PAGE) | 7);
    if is_small {
        image.put(at + 64, free);
    }
}

fn counted(image: &Image, blocks: &[u64]) -> Counts {
    jemalloc_counts(image, &regions(), blocks).unwrap_or_default()
}

#[test]
fn blocks_in_use_are_those_that_the_bitmap_does_not_name() {
    for layout in 0..LAYOUTS.len() {
        let mut image = empty();
        // 64 of 64 bytes, of which three are free; one of 16 KiB.
        put(&mut image, layout, 0, 0, 4, 1, 0b1011);
        put(&mut image, layout, 1, 8, 36, 5, 0);
        let blocks = [RUNS, RUNS + 64, RUNS + 128, RUNS + 192, RUNS + 8 * PAGE];
        let found = counted(&image, &blocks);
        assert_eq!(found.sizes, [(64, 61), (16 << 10, 1)]);
        assert_eq!(found.gone, [RUNS, RUNS + 64, RUNS + 192]);
        assert_eq!(found.taken.last(), Some(&(RUNS + 8 * PAGE, 16 << 10)));
        assert_eq!(found.torn_bytes, 0);
    }
}

#[test]
fn a_run_whose_count_and_bitmap_differ_is_torn() {
    let mut image = empty();
    put(&mut image, 0, 0, 0, 4, 1, 0);
    put(&mut image, 0, 1, 1, 4, 1, 0);
    image.put(BASE + 0x1000 + 64, 1);
    let found = counted(&image, &[]);
    assert_eq!((found.sizes, found.torn_bytes), (vec![(64, 64)], PAGE));
}

#[test]
fn memory_that_two_runs_claim_is_torn() {
    let mut image = empty();
    put(&mut image, 0, 0, 0, 4, 1, 0);
    put(&mut image, 0, 1, 0, 8, 1, 0);
    assert_eq!(counted(&image, &[]).torn_bytes, PAGE);
}

#[test]
fn memory_without_base_blocks_is_none_of_jemallocs() {
    let mut image = empty();
    put(&mut image, 0, 0, 0, 4, 1, 0);
    image.put(BASE, BASE_BYTES + 1);
    assert!(jemalloc_counts(&image, &regions(), &[]).is_none());
}

#[test]
fn classes_are_those_of_jemalloc() {
    let classes = [0, 1, 8, 9, 12, 13, 35, 36].map(class_bytes);
    assert_eq!(classes, [8, 16, 128, 160, 256, 320, 14 << 10, 16 << 10]);
}

proptest! {
    /// A target writes what it pleases: nothing may end, and no more be counted than there is room for.
    #[test]
    fn damaged_descriptors_are_bounded(
        damage in proptest::collection::vec((0_u64..0x4000, any::<u64>(), any::<u8>()), 0..80),
    ) {
        let mut image = empty();
        for place in 0..40 {
            put(&mut image, 0, place, 2 * place, place, 2, 0x5555);
        }
        for (at, word, kind) in damage {
            // Words that nearly fit do more harm than any others.
            let word = match kind % 4 {
                0 => word,
                1 => RUNS + word % BYTES,
                2 => word % 0x10000,
                _ => word & 0x0fff_ffff_ffff,
            };
            image.put(BASE + 0x1000 + at / 8 * 8, word);
        }
        let found = counted(&image, &[RUNS, RUNS + 64]);
        prop_assert!(found.bytes <= BYTES.saturating_mul(300));
    }
}
