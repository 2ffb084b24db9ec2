//! Looks at heaps that are made up, and at such that were damaged.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::{
    Look, LookOptions, Memory, Owned, Region, RegionKind, RootName, confirm, look,
    testing::{ARENA, DATA, HEAP, Image, MadeUp, STACK},
};

struct Addresses;

impl RootName for Addresses {
    fn name(&mut self, address: u64) -> String {
        if address >= STACK { "stack" } else { "data" }.to_owned()
    }
}

const OPTIONS: LookOptions = LookOptions {
    is_python: true,
    is_stopped: false,
    levels: 5,
    groups_with_holders: 20,
    by_size: false,
    most_edges: 1 << 20,
};

/// Two looks, as the command makes them.
fn looked(heap: &MadeUp) -> Option<Look> {
    let regions = heap.regions();
    let mut look = look(&heap.image, &regions, OPTIONS, &[], &mut Addresses)?;
    assert_eq!(
        confirm(
            &heap.image,
            &mut || Some(regions.clone()),
            OPTIONS,
            &[],
            &mut look
        ),
        0
    );
    Some(look)
}

/// Blocks, unreachable ones, and of these the heads, of one size.
fn counts(look: &Look, bytes: u64) -> (u64, u64, u64) {
    look.groups
        .iter()
        .filter(|group| group.block_bytes == bytes)
        .fold((0, 0, 0), |sum, group| {
            (
                sum.0 + group.objects,
                sum.1 + group.unreachable_objects,
                sum.2 + group.lost_heads,
            )
        })
}

#[test]
fn what_is_free_in_any_way_is_not_in_use() {
    let mut heap = MadeUp::new();
    let held = heap.used(0x40);
    heap.free(0x60);
    let separator = heap.used(0x80);
    let cached: Vec<u64> = (0..3).map(|_| heap.used(0x30)).collect();
    let fast: Vec<u64> = (0..2).map(|_| heap.used(0x50)).collect();
    heap.used(0x30);
    heap.cache(0x30, &cached);
    heap.fastbin(0x50, &fast);
    heap.image.put(STACK, held);
    heap.image.put(STACK + 8, separator);
    let look = looked(&heap).unwrap();
    assert_eq!(counts(&look, 0x38), (1, 0, 0));
    assert_eq!(counts(&look, 0x58), (0, 0, 0));
    assert_eq!(counts(&look, 0x28), (1, 1, 1));
    assert_eq!(counts(&look, 0x48), (0, 0, 0));
    assert_eq!(look.free_bytes, 0x60 + 3 * 0x30 + 2 * 0x50);
    assert_eq!(look.free_pieces, 6);
    assert!(!look.caches_unknown);
}

#[test]
fn lost_blocks_are_told_from_held_ones_and_heads_from_what_hangs_on_them() {
    let mut heap = MadeUp::new();
    let (head, child) = (heap.used(0x40), heap.used(0x60));
    let (one, other) = (heap.used(0x80), heap.used(0x80));
    let (held, below) = (heap.used(0xa0), heap.used(0xc0));
    heap.image.put(head + 8, child);
    // A ring that nothing leads to.
    heap.image.put(one, other);
    heap.image.put(other + 16, one + 8);
    // An inner pointer holds as well.
    heap.image.put(DATA + 0x1000, held + 24);
    heap.image.put(held, below);
    let look = looked(&heap).unwrap();
    assert_eq!(counts(&look, 0x38), (1, 1, 1));
    assert_eq!(counts(&look, 0x58), (1, 1, 0));
    assert_eq!(counts(&look, 0x78), (2, 2, 1));
    assert_eq!(counts(&look, 0x98), (1, 0, 0));
    assert_eq!(counts(&look, 0xb8), (1, 0, 0));
    let group = look.groups.iter().find(|group| group.block_bytes == 0xb8);
    let holders = &group.unwrap().holders;
    let paths: Vec<&[String]> = holders.iter().map(|holder| &holder.path[..]).collect();
    assert_eq!(paths, [["size 152", "data"]]);
}

#[test]
fn a_block_that_one_look_alone_finds_unreachable_is_not_lost() {
    let mut heap = MadeUp::new();
    let (held, below, lost) = (heap.used(0x40), heap.used(0x60), heap.used(0x80));
    let holder = heap.used(0xa0);
    heap.image.put(held, below);
    heap.image.put(STACK, holder);
    let regions = heap.regions();
    let mut look = look(&heap.image, &regions, OPTIONS, &[], &mut Addresses).unwrap();
    assert_eq!(look.lost.len(), 4);
    assert_eq!(counts(&look, 0x38), (1, 0, 0));
    heap.image.put(holder + 8, held);
    let held_after_all = confirm(
        &heap.image,
        &mut || Some(regions.clone()),
        OPTIONS,
        &[],
        &mut look,
    );
    assert_eq!(held_after_all, 2);
    assert_eq!(counts(&look, 0x38), (1, 0, 0));
    assert_eq!(counts(&look, 0x58), (1, 0, 0));
    assert_eq!(counts(&look, 0x78), (1, 1, 1));
    assert!(look.lost.iter().any(|block| block.address == lost));
}

#[test]
fn a_block_that_was_freed_or_written_to_between_two_looks_was_called_lost() {
    let mut heap = MadeUp::new();
    let (written, freed, lost) = (heap.used(0x40), heap.used(0x60), heap.used(0x80));
    heap.used(0xa0);
    let regions = heap.regions();
    let mut look = look(&heap.image, &regions, OPTIONS, &[], &mut Addresses).unwrap();
    heap.image.put(written + 16, 7);
    heap.cache(0x60, &[freed]);
    assert_eq!(
        confirm(
            &heap.image,
            &mut || Some(regions.clone()),
            OPTIONS,
            &[],
            &mut look
        ),
        3,
        "the thread's cache as well"
    );
    let left: Vec<u64> = look.lost.iter().map(|block| block.address).collect();
    assert!(left.contains(&lost) && !left.contains(&written) && !left.contains(&freed));
    assert_eq!(counts(&look, 0x38), (1, 0, 0));
    assert_eq!(counts(&look, 0x58), (1, 0, 0));
}

/// Memory that changes while it is read.
struct Changing(std::cell::RefCell<Image>);

impl Memory for Changing {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.0.borrow().read(address, buffer)
    }
}

#[test]
fn a_block_born_again_during_the_last_look_and_what_leads_to_it_were_called_lost() {
    let mut heap = MadeUp::new();
    let [node, value, other, lost, end] = [0x40; 5].map(|size| heap.used(size));
    heap.used(0xa0);
    for (from, to) in [(node, value), (node + 8, other), (lost, end)] {
        heap.image.put(from, to);
    }
    let regions = heap.regions();
    let mut look = look(&heap.image, &regions, OPTIONS, &[], &mut Addresses).unwrap();
    let memory = Changing(heap.image.into());
    let mut asked = 0;
    let mut regions = || {
        asked += 1;
        if asked == 2 {
            memory.0.borrow_mut().put(value + 16, 7);
        }
        Some(regions.clone())
    };
    assert_eq!(
        confirm(&memory, &mut regions, OPTIONS, &[], &mut look),
        3,
        "the node with its values"
    );
    let left: Vec<u64> = look.lost.iter().map(|block| block.address).collect();
    assert!(left.contains(&lost) && left.contains(&end), "{left:x?}");
    for held in [node, value, other] {
        assert!(!left.contains(&held), "{held:x}: {left:x?}");
    }
}

#[test]
fn a_header_that_makes_no_sense_costs_what_stands_there_and_not_the_rest() {
    let mut heap = MadeUp::new();
    let blocks: Vec<u64> = (0..200).map(|_| heap.used(0x40)).collect();
    let damaged = blocks.get(20).unwrap();
    heap.image.put(damaged - 8, 0x7777_7777_7777);
    let look = looked(&heap).unwrap();
    assert!(look.torn_bytes > 0);
    assert!(counts(&look, 0x38).0 >= 198, "{:?}", counts(&look, 0x38));
}

#[test]
fn what_only_a_torn_piece_points_to_was_called_unreachable() {
    let mut heap = MadeUp::new();
    let blocks: Vec<u64> = (0..200).map(|_| heap.used(0x40)).collect();
    let held = heap.used(0x60);
    let damaged = *blocks.get(20).unwrap();
    heap.image.put(damaged - 8, 0x7777_7777_7777);
    heap.image.put(damaged, held);
    let look = looked(&heap).unwrap();
    assert!(look.torn_bytes > 0);
    assert_eq!(counts(&look, 0x58), (1, 0, 0));
}

#[test]
fn a_large_block_behind_memory_of_another_allocator_was_not_seen() {
    const PLACE: u64 = 0x7f10_0000_0000;
    const SIZE: u64 = 0x40000;
    let mut heap = MadeUp::new();
    let below = heap.used(0x40);
    let length = 0x1000 + SIZE as usize;
    heap.image.0.insert(PLACE, vec![0; length]);
    heap.image.put(PLACE, 0x1234);
    heap.image.put(PLACE + 0x1008, SIZE | 2);
    heap.image.put(PLACE + 0x1010, below);
    heap.image.put(STACK, PLACE + 0x1010);
    let mut regions = heap.regions();
    regions.push(Region {
        range: PLACE..PLACE + length as u64,
        present: std::iter::once(PLACE..PLACE + length as u64).collect(),
        kind: RegionKind::Anonymous,
        name: String::new(),
    });
    regions.sort_by_key(|region| region.range.start);
    let mut look = look(&heap.image, &regions, OPTIONS, &[], &mut Addresses).unwrap();
    confirm(
        &heap.image,
        &mut || Some(regions.clone()),
        OPTIONS,
        &[],
        &mut look,
    );
    assert_eq!(counts(&look, SIZE - 16), (1, 0, 0));
    assert_eq!(counts(&look, 0x38), (1, 0, 0));
    let held = look.groups.iter().find(|group| group.block_bytes == 0x38);
    let path = &held.unwrap().holders.first().unwrap().path;
    assert_eq!(
        path.as_slice(),
        [format!("size {}", SIZE - 16), "stack".to_owned()]
    );
}

#[test]
fn a_heap_that_grew_after_its_mappings_were_listed_was_said_to_be_none() {
    let mut heap = MadeUp::new();
    let block = heap.used(0x40);
    heap.image.put(STACK, block);
    let listed = heap.regions();
    // The last chunk and `top` stand behind what was listed.
    let end = listed
        .iter()
        .find(|region| region.kind == RegionKind::Brk)
        .map(|region| region.range.end)
        .unwrap();
    let last = block - 16 + 0x40;
    heap.image.put(last + 8, (end + 0x500 - last) | 1);
    heap.image.put(ARENA + 96, end + 0x500);
    let look = look(&heap.image, &listed, OPTIONS, &[], &mut Addresses).unwrap();
    assert_eq!(counts(&look, 0x38), (1, 0, 0));
}

#[test]
fn memory_without_a_main_arena_is_no_heap() {
    let mut heap = MadeUp::new();
    heap.used(0x40);
    heap.image.put(ARENA + 96, 0x1234);
    assert!(looked(&heap).is_none());
}

proptest! {
    /// A target writes what it pleases: nothing may end, hang or count more than there is room for.
    #[test]
    fn damaged_heaps_are_bounded(
        damage in proptest::collection::vec((0_u64..0x20000, any::<u64>(), any::<bool>(), any::<u8>()), 0..60),
        pool in any::<bool>(),
    ) {
        let mut heap = MadeUp::new();
        for size in 0..60 {
            let block = heap.used(0x20 + size % 7 * 0x10);
            heap.image.put(STACK + size * 8, block);
        }
        if pool {
            heap.free(0x200);
        }
        for (at, word, is_heap, kind) in damage {
            let place = if is_heap { HEAP } else { DATA } + at / 8 * 8;
            // Words that nearly fit do more harm than any others.
            let word = match kind % 4 {
                0 => word,
                1 => HEAP + word % 0x20000,
                2 => (word % 0x400) | 1,
                _ => place.wrapping_sub(16),
            };
            heap.image.put(place, word);
        }
        if let Some(look) = looked(&heap) {
            prop_assert!(look.bytes <= 3 * 0x20000, "{}", look.bytes);
            prop_assert!(look.blocks <= 3 * 0x20000 / 16);
            let lost: u64 = look.groups.iter().map(|group| group.unreachable_objects).sum();
            prop_assert_eq!(look.lost.len() as u64, lost);
            for group in &look.groups {
                prop_assert!(group.unreachable_objects <= group.objects);
                prop_assert!(group.lost_heads <= group.unreachable_objects);
            }
        }
    }
}

#[test]
fn blocks_that_somebody_owns_have_types_and_holders_also_where_no_walk_knows_them() {
    let mut heap = MadeUp::new();
    let (held, lost) = (heap.used(0x40), heap.used(0x40));
    // An allocator of its own, in the stack's region: one block is held by the walked one, one by nobody.
    let (foreign, gone) = (STACK + 0x1000, STACK + 0x2000);
    heap.image.put(STACK, held);
    heap.image.put(held, foreign);
    let owned = [(held, 7), (lost, 7), (foreign, 8), (gone, 8)].map(|(address, owner)| Owned {
        address,
        bytes: 0x38,
        owner,
    });
    let regions = heap.regions();
    let mut look = look(&heap.image, &regions, OPTIONS, &owned, &mut Addresses).unwrap();
    assert_eq!(
        confirm(
            &heap.image,
            &mut || Some(regions.clone()),
            OPTIONS,
            &owned,
            &mut look
        ),
        0
    );
    let unreachable: Vec<u64> = look
        .lost
        .iter()
        .map(|block| block.address)
        .filter(|address| owned.iter().any(|block| block.address == *address))
        .collect();
    assert_eq!(unreachable, [lost, gone]);
    let of = |owner: u32| look.owners.get(&owner).unwrap();
    assert_eq!((of(7).checked, of(8).checked), (2, 2));
    assert_eq!(of(7).types.first().unwrap().objects, 1);
    let path = &of(8).holders.first().unwrap().path;
    assert_eq!(path.as_slice(), ["size 56", "stack"]);
}
