//! The walks of glibc's heaps and CPython's pools, types, graph and holders, on memory that a target writes as it pleases and changes
//! between two looks.
#![no_main]

use std::ops::Range;

use leakscope::heap::{
    LookOptions, Memory, Owned, Region, RegionKind, RootName, confirm, look, space,
};
use libfuzzer_sys::fuzz_target;

/// Where the pieces of an input lie: data of libc, the heap, and where an arena or pools may be.
const DATA: u64 = 0x7f00_0000_0000;
const HEAP: u64 = 0x5500_0000_0000;
const OTHER: u64 = 0x7e00_0000_0000;
/// Bytes of an input that are the data, and those that are the heap; the rest is the other piece.
const DATA_BYTES: usize = 3968;
const HEAP_BYTES: usize = 4096;
/// Regions are larger than what is in memory of them.
const ROOM: u64 = 1 << 20;

/// Pieces of memory.
struct Image<'input>([(u64, &'input [u8]); 3]);

impl Memory for Image<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        for (start, bytes) in self.0 {
            let from = address
                .checked_sub(start)
                .and_then(|offset| bytes.get(usize::try_from(offset).ok()?..));
            if let Some(from) = from.filter(|from| !from.is_empty()) {
                let length = from.len().min(buffer.len());
                buffer[..length].copy_from_slice(&from[..length]);
                return length;
            }
        }
        0
    }
}

struct Names;

impl RootName for Names {
    fn name(&mut self, address: u64) -> String {
        format!("{address:#x}")
    }
}

fn image(input: &[u8]) -> Image<'_> {
    let (data, rest) = input.split_at(input.len().min(DATA_BYTES));
    let (heap, other) = rest.split_at(rest.len().min(HEAP_BYTES));
    Image([(DATA, data), (HEAP, heap), (OTHER, other)])
}

fn regions(image: &Image<'_>) -> Vec<Region> {
    let kinds = [RegionKind::Data, RegionKind::Brk, RegionKind::Anonymous];
    let mut regions: Vec<Region> = image
        .0
        .iter()
        .zip(kinds)
        .map(|((start, bytes), kind)| {
            let present: Range<u64> = *start..start + bytes.len() as u64;
            Region {
                range: *start..start + ROOM,
                present: vec![present],
                kind,
                name: String::new(),
            }
        })
        .collect();
    regions.sort_by_key(|region| region.range.start);
    regions
}

fuzz_target!(|input: &[u8]| {
    // The last bytes say what is changed between the looks, and which blocks somebody knows.
    let Some((input, tail)) = input.split_last_chunk::<16>() else {
        return;
    };
    let first = image(input);
    let mut changed = input.to_vec();
    for change in tail.chunks_exact(4) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        if let Some(byte) = changed.get_mut(place) {
            *byte ^= change[2];
        }
    }
    let mut owned: Vec<Owned> = tail
        .chunks_exact(4)
        .map(|known| Owned {
            address: [HEAP, OTHER][usize::from(known[3] % 2)] + u64::from(known[0]) * 16,
            bytes: u64::from(known[1]),
            owner: u32::from(known[2]),
        })
        .collect();
    owned.sort();
    let options = LookOptions {
        is_python: true,
        is_stopped: tail[0] % 2 == 0,
        levels: 5,
        groups_with_holders: 20,
        by_size: tail[0] % 4 < 2,
        most_edges: 1 << 16,
    };
    let around = regions(&first);
    let most = 3 * ROOM;
    if let Some(full) = space(&first, &around, true) {
        assert!(full.bytes <= most && full.free_bytes <= most);
    }
    let Some(mut found) = look(&first, &around, options, &owned, &mut Names) else {
        return;
    };
    assert!(found.bytes <= most, "{}", found.bytes);
    let second = image(&changed);
    confirm(
        &second,
        &mut || Some(around.clone()),
        options,
        &owned,
        &mut found,
    );
    let lost: u64 = found
        .groups
        .iter()
        .map(|group| group.unreachable_objects)
        .sum();
    assert_eq!(lost, found.lost.len() as u64);
    for group in &found.groups {
        assert!(group.lost_heads <= group.unreachable_objects);
        assert!(group.unreachable_objects <= group.objects);
    }
});
