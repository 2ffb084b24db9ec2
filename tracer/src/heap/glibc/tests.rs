//! Heaps of the versions that are known, and of one that is not.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::{Heap, walk};
use crate::heap::{
    blocks::Segment,
    memory::{Memory as _, Region, RegionKind},
    testing::{ARENA, BYTES, GLIBC_2_41, GLIBC_2_42, GLIBC_2_43, HEAP, Libc, MadeUp},
};

const VERSIONS: [Libc; 3] = [GLIBC_2_41, GLIBC_2_42, GLIBC_2_43];

/// Where another piece of memory is, at a multiple of `HEAP_MAX_SIZE`.
const OTHER: u64 = 0x7e00_0000_0000;

fn walked(heap: &MadeUp) -> Option<Heap> {
    walk(&heap.image, &heap.regions())
}

/// With a piece of anonymous memory, which begins with these words.
fn with_other(heap: &mut MadeUp, words: &[(u64, u64)]) -> Heap {
    let mut regions = heap.regions();
    heap.image.0.insert(OTHER, vec![0; BYTES as usize]);
    for (at, word) in words {
        heap.image.put(OTHER + at, *word);
    }
    let range = OTHER..OTHER + BYTES;
    regions.push(Region {
        present: std::iter::once(range.clone()).collect(),
        range,
        kind: RegionKind::Anonymous,
        name: String::new(),
    });
    regions.sort_by_key(|region| region.range.start);
    walk(&heap.image, &regions).unwrap()
}

/// Addresses and bytes of the blocks in use.
fn used(heap: &Heap) -> Vec<(u64, u64)> {
    heap.segments
        .iter()
        .flat_map(Segment::used_blocks)
        .map(|(_, address, bytes)| (address, bytes))
        .collect()
}

#[test]
fn since_2_42_no_cache_was_known_and_since_2_43_no_heap() {
    for libc in VERSIONS {
        let mut heap = MadeUp::of(libc);
        let kept = heap.used(0x40);
        heap.free(0x60);
        heap.used(0x80);
        let cached: Vec<u64> = (0..3).map(|_| heap.used(0x30)).collect();
        heap.used(0x20);
        heap.cache(0x30, &cached);
        let found = walked(&heap).unwrap();
        assert!(found.knows_caches, "{libc:?}");
        assert_eq!(found.free_pieces, 4, "{libc:?}");
        assert_eq!(found.free_bytes, 0x60 + 3 * 0x30, "{libc:?}");
        let used = used(&found);
        assert!(used.contains(&(kept, 0x38)), "{libc:?}");
        assert!(cached.iter().all(|block| !used.contains(&(*block, 0x28))));
        let state = ARENA..ARENA + libc.bins + 2088;
        assert_eq!(found.books, [state], "{libc:?}");
    }
}

/// Texts of a thousand lengths left free blocks in nearly all bins.
#[test]
fn a_heap_with_free_blocks_of_all_sizes_was_of_no_known_form() {
    for libc in VERSIONS {
        let mut heap = MadeUp::of(libc);
        let free = heap.free(0x60) - 16;
        let kept = heap.used(0x40);
        for bin in (1..127).filter(|bin| bin % 12 != 0) {
            let at = ARENA + libc.bins + bin * 16;
            heap.image.put(at, free);
            heap.image.put(at + 8, free);
        }
        let found = walked(&heap).unwrap();
        assert!(used(&found).contains(&(kept, 0x38)), "{libc:?}");
    }
}

#[test]
fn bins_of_a_cache_for_large_blocks_hold_blocks_of_many_sizes() {
    for libc in [GLIBC_2_42, GLIBC_2_43] {
        let mut heap = MadeUp::of(libc);
        let (small, large) = (heap.used(0x420), heap.used(0x7f0));
        let next = heap.used(0x800);
        let other = heap.used(0x500);
        heap.cache_in(HEAP + 16, 64, &[large, small]);
        heap.cache_in(HEAP + 16, 65, &[next]);
        let found = walked(&heap).unwrap();
        assert_eq!(found.free_pieces, 3);
        assert_eq!(found.free_bytes, 0x420 + 0x7f0 + 0x800);
        assert!(used(&found).contains(&(other, 0x4f8)));
    }
}

#[test]
fn a_list_that_leads_to_a_block_of_another_bin_ends_there() {
    let mut heap = MadeUp::of(GLIBC_2_43);
    let (block, wrong) = (heap.used(0x420), heap.used(0x800));
    heap.cache_in(HEAP + 16, 64, &[wrong, block]);
    let found = walked(&heap).unwrap();
    assert_eq!((found.free_pieces, found.free_bytes), (1, 0x420));
}

#[test]
fn a_cache_in_a_chunk_that_was_a_little_larger_was_not_recognised() {
    for (libc, chunk) in [
        (GLIBC_2_41, 0x2a0),
        (GLIBC_2_42, 0x310),
        (GLIBC_2_43, 0x310),
    ] {
        let mut heap = MadeUp::without_cache(libc);
        heap.free(0x60);
        heap.used(0x40);
        assert!(!walked(&heap).unwrap().knows_caches, "{libc:?}");
        let cache = heap.used(chunk);
        heap.begin_cache(cache);
        let cached = heap.used(0x30);
        heap.cache_in(cache, 1, &[cached]);
        let found = walked(&heap).unwrap();
        assert_eq!(
            (found.knows_caches, found.free_pieces),
            (true, 2),
            "{libc:?}"
        );
    }
}

#[test]
fn since_2_43_a_program_that_has_freed_nothing_has_no_cache() {
    for (libc, knows) in [(GLIBC_2_42, false), (GLIBC_2_43, true)] {
        let mut heap = MadeUp::without_cache(libc);
        heap.used(0x40);
        assert_eq!(walked(&heap).unwrap().knows_caches, knows, "{libc:?}");
    }
}

#[test]
fn data_of_a_caches_size_is_no_cache() {
    let mut heap = MadeUp::of(GLIBC_2_43);
    let block = heap.used(0x40);
    let data = heap.used(0x300);
    for word in 0..95 {
        heap.image.put(data + word * 8, block);
    }
    let found = walked(&heap).unwrap();
    assert_eq!(found.free_pieces, 0);
    assert!(used(&found).contains(&(block, 0x38)));
}

#[test]
fn the_ring_of_arenas_tells_versions_apart_whose_fields_lie_alike_around_the_bins() {
    for libc in VERSIONS {
        let mut heap = MadeUp::of(libc);
        heap.used(0x40);
        let state = 48;
        let bins = state + libc.bins;
        let first = (bins + 2088).next_multiple_of(16);
        let top = first + 0x50;
        heap.image.put(ARENA + libc.bins + 2048, OTHER + state);
        let found = with_other(
            &mut heap,
            &[
                // `struct heap_info`.
                (0, OTHER + state),
                (16, BYTES),
                // `struct malloc_state`.
                (bins - 16, OTHER + top),
                (bins + 2048, ARENA),
                // A block, and what is left.
                (first + 8, 0x50 | 5),
                (top + 8, (BYTES - top) | 5),
            ],
        );
        assert_eq!(found.arenas, 2, "{libc:?}");
        let block = (OTHER + first + 16, 0x48);
        assert!(used(&found).contains(&block), "{libc:?}");
        assert_eq!(found.torn_bytes, 0, "{libc:?}");
    }
}

#[test]
fn since_2_43_a_block_with_its_own_mapping_ends_before_the_header_that_would_follow() {
    // First words: none, and huge pages, which only the newest notes there.
    for (libc, first, size, bytes) in [
        (GLIBC_2_41, 0, 0x4000, Some(0x3ff0)),
        (GLIBC_2_42, 0, 0x4000, Some(0x3ff0)),
        (GLIBC_2_42, 1, 0x4000, None),
        (GLIBC_2_42, 0, 0x3ff0, None),
        (GLIBC_2_43, 0, 0x3ff0, Some(0x3fe8)),
        (GLIBC_2_43, 1, 0x3ff0, Some(0x3fe8)),
        (GLIBC_2_43, 0, 0x4000, None),
    ] {
        let mut heap = MadeUp::of(libc);
        let found = with_other(&mut heap, &[(0, first), (8, size | 2)]);
        let used = used(&found);
        let own = used.iter().find(|(address, _)| *address == OTHER + 16);
        assert_eq!(own.map(|(_, bytes)| *bytes), bytes, "{libc:?} {first}");
    }
}

#[test]
fn since_2_43_a_block_with_its_own_mapping_can_be_in_a_cache() {
    let mut heap = MadeUp::of(GLIBC_2_43);
    // 16,368 bytes: 2^10 times 2^3 and more.
    heap.cache_in(HEAP + 16, 64 + 3, &[OTHER + 16]);
    let found = with_other(&mut heap, &[(8, 0x3ff0 | 2), (16, (OTHER + 16) >> 12)]);
    assert_eq!((found.free_pieces, found.free_bytes), (1, 0x3ff0));
    assert!(used(&found).iter().all(|(address, _)| *address < OTHER));
}

#[test]
fn a_main_arena_that_ends_in_a_mapping_was_read_as_if_it_were_empty() {
    let mut heap = MadeUp::new();
    heap.used(0x40);
    let mut regions = heap.regions();
    for region in &mut regions {
        if region.kind == RegionKind::Brk {
            region.kind = RegionKind::Anonymous;
        }
    }
    assert!(walk(&heap.image, &regions).is_none());
}

#[test]
fn a_heap_of_a_form_that_is_not_known_is_none() {
    let mut heap = MadeUp::of(Libc {
        bins: 40,
        ..GLIBC_2_43
    });
    heap.used(0x40);
    assert!(walked(&heap).is_none());
    assert_eq!(heap.image.word(ARENA + 40), Some(ARENA + 24));
}
