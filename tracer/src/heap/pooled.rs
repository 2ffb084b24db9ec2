//! What CPython's pools hold, counted by type, and where in them the next objects will be born. Without pointers: a walk through the pools takes a tenth of a
//! second for 100 MiB.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde::{Deserialize, Serialize};

use super::{
    blocks::Segment,
    census::GroupKind,
    containers::{Container, container},
    cpython::{self, OVERHEAD, POOL_SIZES},
    graph::VISITED,
    memory::{Memory, Region, RegionKind, WORD, Window},
    types::Types,
};

/// Objects that are alike: of one type, in blocks of one size, at the same place in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKind {
    /// The type; empty for blocks that are no objects: tables of dictionaries, items of lists.
    pub name: String,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Where in the block the object begins.
    pub object_at: u64,
}

/// `SMALL_REQUEST_THRESHOLD`, bytes.
const LARGEST_BLOCK: u64 = 512;

/// So many containers with many entries are told of.
const MOST_CONTAINERS: usize = 1 << 17;

/// `PyObject.ob_type`: written when an object is made.
const OB_TYPE: u64 = 8;

/// What a string has behind its head: `wstr` up to 3.11, then its text, or how long that is as UTF-8 (`Include/cpython/unicodeobject.h`); all are written when
/// it is made. So is what stands this close to the end of its block, for otherwise it would be in a smaller one: `ALIGNMENT` (`Objects/obmalloc.c`).
const STR_WORD: u64 = 40;
const GRAIN: u64 = 16;

/// Types that keep some of their objects for reuse, with the type that they have, and a word that is written whenever one is used again: `ma_keys`
/// (`Include/cpython/dictobject.h`), `ob_item` (`listobject.h`, `tupleobject.h`), `ob_fval` (`floatobject.h`).
const REUSED: [(&str, u64); 4] = [("dict", 32), ("list", 24), ("tuple", 24), ("float", 16)];

impl ObjectKind {
    /// How far into a block of this kind the word stands that is written when an object is made, and then hardly any more. `None` where there is none.
    #[must_use]
    pub fn word_at(&self) -> Option<u64> {
        if self.name.is_empty() {
            return None;
        }
        let reused = REUSED.iter().find(|(name, _)| *name == self.name);
        let at = self.object_at + reused.map_or(OB_TYPE, |(_, at)| *at);
        (at + WORD <= self.block_bytes).then_some(at)
    }

    /// Whether the word so far into a block of this kind is one that is written when an object is made, and then hardly any more. A string has more of them,
    /// so that one word can tell of it and of another kind.
    #[must_use]
    pub fn tells_at(&self, at: u64) -> bool {
        let is_of_text = self.name == "str"
            && (at == self.object_at + STR_WORD || at == self.block_bytes.saturating_sub(GRAIN))
            && at > self.object_at + OB_TYPE
            && at + WORD <= self.block_bytes;
        self.word_at() == Some(at) || is_of_text
    }
}

/// What a walk has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PooledCounts {
    /// Objects in use, kind by kind.
    pub kinds: Vec<(ObjectKind, u64)>,
    /// Bytes of all blocks in use.
    pub bytes: u64,
    /// Pools, and how many of them changed whenever they were read.
    pub pools: u64,
    /// See [`PooledCounts::pools`].
    pub torn_pools: u64,
    /// Bytes of a pool; 0 where there are none.
    pub pool_bytes: u64,
    /// Containers with many entries, up to some number.
    pub containers: Vec<Container>,
}

/// Walks the pools of a process.
#[must_use]
pub fn pooled(memory: &dyn Memory, regions: &[Region]) -> PooledCounts {
    let found = cpython::find(memory, regions, &[]);
    let mut types = Types::new(memory, regions, true);
    let mut counts = PooledCounts {
        torn_pools: found.torn.len() as u64,
        pool_bytes: pool_bytes(memory, &found.segments),
        ..PooledCounts::default()
    };
    let mut shapes = HashMap::new();
    for segment in &found.segments {
        let range = segment.range();
        counts.pools += (range.end - range.start) / counts.pool_bytes.max(1);
        let mut window = Window::new(memory, range.start, range.end);
        for (_, address, length) in segment.used_blocks() {
            window.hold(address, length.min(VISITED));
            let Some(bytes) = window.from(address) else {
                continue;
            };
            let shown = usize::try_from(length.min(VISITED)).unwrap_or(0);
            let bytes = bytes.get(..shown).unwrap_or(bytes);
            let (group, object_at) = types.count(length, bytes, None);
            let shape = shapes
                .entry(group)
                .or_insert_with(|| types.container(group));
            if let Some(shape) = *shape
                && counts.containers.len() < MOST_CONTAINERS
            {
                let found = container(shape, address, object_at, bytes);
                counts.containers.extend(found);
            }
            counts.bytes = counts.bytes.saturating_add(length);
        }
    }
    for group in types.take_census().into_groups() {
        if group.objects == 0 {
            continue;
        }
        let is_object = group.kind == GroupKind::Python;
        let kind = ObjectKind {
            name: if is_object { group.name } else { String::new() },
            block_bytes: group.block_bytes,
            object_at: group.object_at,
        };
        match counts.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, objects)) => *objects += group.objects,
            None => counts.kinds.push((kind, group.objects)),
        }
    }
    counts
}

/// How large the pools are.
fn pool_bytes(memory: &dyn Memory, segments: &[Segment]) -> u64 {
    let first = segments.first().map(|segment| segment.range().start);
    first
        .and_then(|start| {
            POOL_SIZES
                .into_iter()
                .find(|size| cpython::header_at(memory, start, *size).is_some())
        })
        .unwrap_or(0)
}

/// An object in a block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockObject {
    /// What it is.
    pub kind: ObjectKind,
    /// Of what never changes: another one of its kind in its place has another print, where the type has such.
    pub print: u64,
}

/// What never changes of objects, by type: from so far behind the object's beginning on so many bytes. `ob_size`, `ob_fval` and what follows, `ob_digit`,
/// `ob_item`.
const CONSTANT: [(&str, u64, u64); 5] = [
    ("str", 16, WORD),
    ("bytes", 16, WORD),
    ("float", 16, WORD),
    ("int", 16, 2 * WORD),
    ("tuple", 16, 3 * WORD),
];

/// Types whose text reaches to the end of their block.
const WITH_TEXT: [&str; 2] = ["str", "bytes"];

fn print_of(kind: &ObjectKind, bytes: &[u8]) -> u64 {
    let Some((_, from, length)) = CONSTANT.iter().find(|(name, ..)| *name == kind.name) else {
        return 0;
    };
    let part = |from: u64, to: u64| {
        let from = usize::try_from(from).ok()?;
        bytes.get(from..usize::try_from(to).ok()?.min(bytes.len()))
    };
    let mut hasher = DefaultHasher::new();
    let begins = kind.object_at.saturating_add(*from);
    part(begins, begins.saturating_add(*length)).hash(&mut hasher);
    if WITH_TEXT.contains(&kind.name.as_str()) {
        part(kind.block_bytes.saturating_sub(GRAIN), kind.block_bytes).hash(&mut hasher);
    }
    hasher.finish()
}

/// The object in a block of so many bytes, whether or not the block is in use.
#[must_use]
pub fn object_in(
    memory: &dyn Memory,
    regions: &[Region],
    block: u64,
    block_bytes: u64,
) -> Option<BlockObject> {
    let mut bytes = vec![0; usize::try_from(block_bytes.min(LARGEST_BLOCK)).ok()?];
    if memory.read(block, &mut bytes) != bytes.len() {
        return None;
    }
    let mut types = Types::new(memory, regions, true);
    let shown = usize::try_from(VISITED).ok()?.min(bytes.len());
    types.count(block_bytes, bytes.get(..shown)?, None);
    let groups = types.take_census().into_groups();
    let group = groups.into_iter().find(|group| group.objects > 0)?;
    let kind = ObjectKind {
        name: group.name,
        block_bytes,
        object_at: group.object_at,
    };
    (group.kind == GroupKind::Python).then(|| BlockObject {
        print: print_of(&kind, &bytes),
        kind,
    })
}

/// A pool with room for more blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct YoungPool {
    /// Where it begins.
    pub start: u64,
    /// Bytes of its blocks.
    pub block_bytes: u64,
    /// Blocks in use.
    pub count: u32,
    /// The block that is handed out next of those that were given back; 0 where there is none.
    pub free: u64,
    /// The first block that was never handed out, and how many such there are.
    pub next: u64,
    /// See [`YoungPool::next`].
    pub left: u64,
}

/// The pools with room for more blocks, by their headers alone.
#[must_use]
pub fn young_pools(memory: &dyn Memory, regions: &[Region], pool_bytes: u64) -> Vec<YoungPool> {
    let mut pools = Vec::new();
    if !POOL_SIZES.contains(&pool_bytes) {
        return pools;
    }
    let anonymous = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Anonymous);
    for region in anonymous {
        for present in &region.present {
            let mut start = present.start.next_multiple_of(pool_bytes);
            while start < present.end {
                let header = cpython::header_at(memory, start, pool_bytes);
                if let Some(header) = header.filter(|header| header.count > 0) {
                    let left = (pool_bytes.saturating_sub(header.next)) / header.block.max(1);
                    if (left > 0 || header.free != 0) && header.next >= OVERHEAD {
                        pools.push(YoungPool {
                            start,
                            block_bytes: header.block,
                            count: header.count,
                            free: header.free,
                            next: start + header.next,
                            left,
                        });
                    }
                }
                start = start.saturating_add(pool_bytes);
            }
        }
    }
    pools
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ObjectKind, YoungPool, object_in, pooled, print_of, young_pools};
    use crate::heap::{Region, RegionKind, testing::Image};

    const START: u64 = 0x7f00_0000_0000;
    const POOL: u64 = 0x4000;
    const POOLS: u64 = 3;
    const BLOCK: u64 = 64;
    /// The type `type`, and another one with its name.
    const META: u64 = START + POOL * POOLS;
    const TYPE: u64 = META + 0x400;

    fn regions() -> Vec<Region> {
        [
            (START, POOL * POOLS, RegionKind::Anonymous),
            (META, 0x1000, RegionKind::Data),
        ]
        .into_iter()
        .map(|(start, length, kind)| Region {
            range: start..start + length,
            present: std::iter::once(start..start + length).collect(),
            kind,
            name: String::new(),
        })
        .collect()
    }

    /// A pool with so many blocks in use, each an object of the other type behind a collector's head, and the next one given back.
    fn image(used: u64) -> Image {
        let mut image = Image::default();
        image
            .0
            .insert(START, vec![0; (POOL * POOLS + 0x1000) as usize]);
        let first = START + 48;
        image.put(START, used);
        image.put(START + 8, first + used * BLOCK);
        // `arenaindex` and `szidx`, `nextoffset` and `maxnextoffset`.
        image.put(START + 32, (BLOCK / 16 - 1) << 32);
        image.put(START + 40, (48 + (used + 1) * BLOCK) | (POOL - BLOCK) << 32);
        for number in 0..used {
            image.put(first + number * BLOCK + 16, 1);
            image.put(first + number * BLOCK + 24, TYPE);
        }
        for (place, name, flags) in [(META, 0x700, 1 << 31 | 1 << 12), (TYPE, 0x710, 1 << 12)] {
            image.put(place, 1);
            image.put(place + 8, META);
            image.put(place + 24, META + name);
            image.put(place + 168, flags);
        }
        image.put(META + 0x700, u64::from_le_bytes(*b"type\0\0\0\0"));
        image.put(META + 0x710, u64::from_le_bytes(*b"Metric\0\0"));
        image
    }

    #[test]
    fn objects_are_counted_by_type_and_the_next_block_is_known() {
        let (image, regions) = (image(5), regions());
        let counts = pooled(&image, &regions);
        let metric = ObjectKind {
            name: "Metric".to_owned(),
            block_bytes: BLOCK,
            object_at: 16,
        };
        assert_eq!(counts.kinds, [(metric.clone(), 5)]);
        assert_eq!((counts.pools, counts.bytes), (1, 5 * BLOCK));
        let first = START + 48;
        let found = object_in(&image, &regions, first, BLOCK);
        assert_eq!(found.map(|found| found.kind), Some(metric));
        assert_eq!(object_in(&image, &regions, first + 5 * BLOCK, BLOCK), None);
        let young = YoungPool {
            start: START,
            block_bytes: BLOCK,
            count: 5,
            free: first + 5 * BLOCK,
            next: first + 6 * BLOCK,
            left: (POOL - 48 - 6 * BLOCK) / BLOCK,
        };
        assert_eq!(young_pools(&image, &regions, POOL), [young]);
        assert_eq!(young_pools(&image, &regions, 0), []);
    }

    /// Text that a cache had dropped, and other text in its place, was taken for text that stays.
    #[test]
    fn another_text_in_the_place_of_one_was_taken_for_it() {
        let kind = ObjectKind {
            name: "str".to_owned(),
            block_bytes: 64,
            object_at: 0,
        };
        let text = |length: u8, hash: u8, last: u8| {
            let mut bytes = [7; 64];
            for (at, byte) in [(0, hash), (16, length), (24, hash), (50, last)] {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            print_of(&kind, &bytes)
        };
        // References and the hash change while it stays.
        assert_eq!(text(9, 0, b'a'), text(9, 5, b'a'));
        assert_ne!(text(9, 0, b'a'), text(8, 0, b'a'));
        assert_ne!(text(9, 0, b'a'), text(9, 0, b'b'));
        let metric = ObjectKind {
            name: "Metric".to_owned(),
            ..kind.clone()
        };
        assert_eq!(print_of(&metric, &[1; 64]), print_of(&metric, &[2; 64]));
        assert_eq!(print_of(&kind, &[]), print_of(&kind, &[]));
    }

    proptest! {
        /// A target writes what it pleases: what is counted, and what is watched, lies in its pools.
        #[test]
        fn damaged_pools_are_bounded(
            damage in proptest::collection::vec((0..POOL * POOLS + 0x1000, any::<u64>(), any::<bool>()), 0..40),
        ) {
            let mut image = image(9);
            for (at, word, is_near) in damage {
                let at = START + at / 8 * 8;
                image.put(at, if is_near { START + word % (POOL * POOLS) } else { word });
            }
            let regions = regions();
            let counts = pooled(&image, &regions);
            prop_assert!(counts.bytes <= POOL * POOLS);
            for pool in young_pools(&image, &regions, POOL) {
                let pool_range = pool.start..pool.start + POOL;
                prop_assert!(pool.free == 0 || pool_range.contains(&pool.free));
                prop_assert!(pool.left == 0 || pool_range.contains(&pool.next));
                prop_assert!(pool.next + pool.left * pool.block_bytes <= pool.start + POOL);
            }
        }
    }
}
