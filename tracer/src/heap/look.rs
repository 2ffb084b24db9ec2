//! One look at a heap: walk, types, graph, and two looks together: what is lost, and who holds the rest.

mod again;

pub use again::confirm;

use std::{collections::HashMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::{
    blocks::{BlockId, Blocks},
    boxed::Boxed,
    census::{Group, GroupId, GroupKind, OTHER},
    cpython, glibc,
    graph::{Graph, Reach, Reader, VISITED, heads},
    holders::{Held, Holder, RootName, holders, jumps},
    memory::{Memory, Region},
    modules::Modules,
    naming::Naming,
    objects::Objects,
    owners::{self, Owned, OwnerLook},
    types::{Types, is_stale},
};

/// `sizeof(PyGC_Head)` of CPython's `Include/internal/pycore_gc.h`: two links, before the object.
const GC_HEAD: u64 = 16;

/// Of a group of more blocks some are followed to their holders, and each stands for others: what holds a part in a thousand is told.
const MOST_FOLLOWED: u64 = 1 << 18;

/// What is wanted of a look.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LookOptions {
    /// Whether the process runs CPython.
    pub is_python: bool,
    /// Whether it is stopped, and its registers are among what is read: then one look is enough.
    pub is_stopped: bool,
    /// How many steps up holders are followed; 0: not at all.
    pub levels: usize,
    /// Of so many types, those with the most bytes; blocks without a type are told apart by their size.
    pub groups_with_holders: usize,
    /// Of so many sizes instead.
    pub by_size: bool,
    /// At most so many pointers between blocks are kept; four bytes each.
    pub most_edges: usize,
}

/// Pointers between blocks that are kept, at least, and one for so many bytes of anonymous memory: with what else is kept it stays below
/// four tenths of a heap of small blocks.
const LEAST_EDGES: u64 = 1 << 20;
const BYTES_FOR_EDGE: u64 = 16;

impl LookOptions {
    /// How many pointers between blocks are to be kept of a process with so many bytes of anonymous memory.
    #[must_use]
    pub fn edges_for(anonymous_bytes: u64) -> usize {
        usize::try_from((anonymous_bytes / BYTES_FOR_EDGE).max(LEAST_EDGES)).unwrap_or(usize::MAX)
    }
}

/// What a look has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Look {
    /// Groups with a block at least, the most bytes first.
    pub groups: Vec<Group>,
    /// Blocks in use.
    pub blocks: u64,
    /// Bytes of them that the program may use.
    pub bytes: u64,
    /// Bytes free inside the heap: free chunks, free blocks in pools.
    pub free_bytes: u64,
    /// In how many pieces.
    pub free_pieces: u64,
    /// Bytes at the ends of the heaps.
    pub top_bytes: u64,
    /// Bytes of the runs of addresses that blocks lie in.
    pub heap_bytes: u64,
    /// Of these, bytes that are in memory or swapped out.
    pub present_bytes: u64,
    /// Arenas of glibc.
    pub arenas: usize,
    /// Pools of CPython were found.
    pub has_pools: bool,
    /// glibc's heap was found.
    pub has_glibc: bool,
    /// Bytes that could not be walked, for they changed meanwhile.
    pub torn_bytes: u64,
    /// Pools that changed meanwhile.
    pub torn_pools: u64,
    /// Pointers between blocks for which there was no room: unreachable is then not known.
    pub dropped_edges: u64,
    /// Threads' caches were not recognised: their free blocks count as in use.
    pub caches_unknown: bool,
    /// The runs of addresses that were walked, in order.
    pub ranges: Vec<Range<u64>>,
    /// The blocks that no root reached, by address: in all looks so far.
    pub lost: Vec<LostBlock>,
    /// Where there was not time for looks that agree: those that no root reached in the looks that there were.
    pub doubtful: Vec<LostBlock>,
    /// Blocks that hold stale words: from so far in them on. By address.
    #[serde(skip)]
    pub(crate) stale: HashMap<u64, u64>,
    /// What the blocks of each owner are.
    pub owners: HashMap<u32, OwnerLook>,
}

/// A block that no root reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostBlock {
    /// Its first address.
    pub address: u64,
    /// Bytes that the program may use.
    pub bytes: u64,
    /// Whether it hangs on no other lost block; known once they are confirmed.
    pub is_direct: bool,
    /// Its place in [`Look::groups`].
    group: GroupId,
    /// Of what it begins with.
    #[serde(skip)]
    digest: u32,
}

#[cfg(test)]
impl LostBlock {
    /// One that hangs on no other.
    pub(crate) fn direct(address: u64, bytes: u64) -> Self {
        Self {
            address,
            bytes,
            is_direct: true,
            ..Self::default()
        }
    }
}

/// Looks at a heap. What is unreachable in a process that runs is lost only once other looks have confirmed it: [`confirm`].
///
/// Of blocks that are known otherwise, `owned`, by address, it is told what the blocks of each owner are and who holds them. Those of
/// allocators whose heaps cannot be walked are looked at too, and their other blocks are taken for roots.
///
/// Gives `None` where no allocator is known whose heap could be walked.
pub fn look(
    memory: &dyn Memory,
    regions: &[Region],
    options: LookOptions,
    owned: &[Owned],
    names: &mut dyn RootName,
) -> Option<Look> {
    let (mut result, blocks, apart) = walk(memory, regions, options.is_python, owned)?;
    let mut types = Types::new(memory, regions, options.is_python);
    let boxed = Boxed::find(memory, regions, &blocks, names);
    let mut group_of: Vec<GroupId> = Vec::with_capacity(blocks.count() as usize);
    let present = present(regions);
    let reader = Reader {
        memory,
        present: &present,
    };
    let graph = Graph::build(
        reader,
        &blocks,
        options.most_edges,
        |address, length, bytes| {
            result.blocks += 1;
            result.bytes = result.bytes.saturating_add(length);
            let block = BlockId::try_from(group_of.len()).unwrap_or(BlockId::MAX);
            let (group, object_at) = types.count(length, bytes, boxed.type_of(block, length));
            group_of.push(group);
            if let Some(from) = types.stale(group, object_at, bytes) {
                result.stale.insert(address, from);
                return from..length;
            }
            // The collector of CPython links all objects that it knows: that holds none of them.
            object_at.saturating_sub(GC_HEAD)..object_at
        },
    );
    result.dropped_edges = graph.dropped;
    let mut groups = types.take_census().into_groups();
    let reach = {
        let is_pointer = apart.is_pointer(&groups, &group_of);
        let torn = &apart.torn;
        Reach::from_roots(reader, regions, torn, &blocks, &graph, is_pointer)
    };
    let is_lost = |block: &BlockId| graph.dropped == 0 && !reach.has(*block);
    let lost: Vec<BlockId> = (0..blocks.count()).filter(is_lost).collect();
    let heads = if options.is_stopped {
        heads(&graph, &lost, has_type(&groups, &group_of))
    } else {
        Vec::new()
    };
    result.lost = described(&blocks, &group_of, &lost, heads);
    result.owners = owners::types(owned, &blocks, &groups, &group_of);
    if options.levels > 0 {
        let first_of = first_of(&groups, options.by_size);
        let asked = largest(&groups, &first_of, options.groups_with_holders);
        let owned = owners::blocks_of(owned, &blocks);
        let known = (groups.as_slice(), group_of.as_slice());
        let (mut of_groups, mut of_owners) = who_holds(
            (memory, &blocks, known),
            (graph, reach),
            (&asked, &first_of, owned),
            options,
            names,
        );
        for (owner, of_owner) in &mut result.owners {
            of_owner.holders = of_owners.remove(owner).unwrap_or_default();
        }
        for id in asked {
            if let Some(group) = groups.get_mut(usize::from(id)) {
                group.holders = of_groups.remove(&id).unwrap_or_default();
            }
        }
    }
    result.take_groups(groups);
    if options.is_stopped {
        result.count_lost();
    } else {
        let digests = result.digests(memory, &result.lost);
        for (block, digest) in result.lost.iter_mut().zip(digests) {
            block.digest = digest;
        }
        result.drop_others(memory, &types);
    }
    Some(result)
}

/// Of the blocks that are reached those of some groups, or where there are very many some of them, and for how many each stands.
fn followed<'look>(
    reach: &'look Reach,
    group_of: &'look [GroupId],
    asked: &'look [GroupId],
    first_of: &'look [GroupId],
) -> impl Iterator<Item = (BlockId, GroupId, u64)> + 'look {
    let mut places: Vec<Option<usize>> = Vec::with_capacity(first_of.len());
    places.extend(
        first_of
            .iter()
            .map(|first| asked.iter().position(|asked| asked == first)),
    );
    let place_of = move |block: BlockId| {
        let group = *group_of.get(block as usize)?;
        *places.get(usize::from(group))?
    };
    let mut left = vec![0_u64; asked.len()];
    for block in reach.order() {
        if let Some(left) = place_of(*block).and_then(|place| left.get_mut(place)) {
            *left += 1;
        }
    }
    let every: Vec<u64> = left
        .iter()
        .map(|left| left.div_ceil(MOST_FOLLOWED).max(1))
        .collect();
    let mut passed = vec![0_u64; asked.len()];
    reach.order().iter().filter_map(move |block| {
        let place = place_of(*block)?;
        let (every, left) = (*every.get(place)?, left.get_mut(place)?);
        let passed = passed.get_mut(place)?;
        let is_followed = passed.is_multiple_of(every);
        *passed += 1;
        let weight = every.min(*left);
        *left -= 1;
        is_followed.then_some((*block, *asked.get(place)?, weight))
    })
}

type Holders<Owner> = HashMap<Owner, Vec<Holder>>;

/// Who holds the blocks of some groups, and those of owners.
fn who_holds(
    (memory, blocks, (groups, group_of)): (&dyn Memory, &Blocks, (&[Group], &[GroupId])),
    (graph, mut reach): (Graph, Reach),
    (asked, first_of, owned): (&[GroupId], &[GroupId], impl Iterator<Item = (BlockId, u32)>),
    options: LookOptions,
    names: &mut dyn RootName,
) -> (Holders<GroupId>, Holders<u32>) {
    let mut objects = Objects::new(memory);
    let modules = Modules::of(&mut objects, blocks, groups, group_of, &reach);
    if !modules.is_empty() {
        // A module is where people look for a name, not the tables of the interpreter.
        let leaves: Vec<bool> = groups.iter().map(Group::is_leaf).collect();
        reach = reach.again(&graph, modules.blocks(), |block| {
            let group = group_of.get(block as usize);
            group.is_some_and(|group| leaves.get(usize::from(*group)) == Some(&true))
        });
    }
    // The largest part of what is kept of a heap of small blocks.
    drop(graph);
    let jumps = jumps(group_of, &reach);
    let names = &mut modules.names(memory, names);
    let held = Held {
        groups,
        group_of,
        reach: &reach,
        jumps: &jumps,
        is_module: &|block| modules.has(block),
        levels: options.levels,
    };
    let mut naming = options
        .is_python
        .then(|| Naming::new(objects, blocks, groups, group_of, &modules));
    let of_groups = followed(&reach, group_of, asked, first_of);
    let of_groups = holders(&held, of_groups, &mut naming, names);
    let owned = owned.map(|(block, owner)| (block, owner, 1));
    (of_groups, holders(&held, owned, &mut naming, names))
}

/// The lost blocks, in order, of which `heads` hang on no other.
fn described(
    blocks: &Blocks,
    group_of: &[GroupId],
    lost: &[BlockId],
    mut heads: Vec<BlockId>,
) -> Vec<LostBlock> {
    heads.sort_unstable();
    let mut lost = lost.iter().peekable();
    let mut heads = heads.iter().peekable();
    blocks
        .iter()
        .filter(|(block, ..)| lost.next_if_eq(&block).is_some())
        .map(|(block, address, bytes)| LostBlock {
            address,
            bytes,
            is_direct: heads.next_if_eq(&&block).is_some(),
            group: group_of.get(block as usize).copied().unwrap_or(OTHER),
            digest: 0,
        })
        .collect()
}

/// Whether a block is of a class or type with a name.
fn has_type(groups: &[Group], group_of: &[GroupId]) -> impl Fn(BlockId) -> bool {
    move |block| {
        group_of
            .get(block as usize)
            .and_then(|group| groups.get(usize::from(*group)))
            .is_some_and(|group| group.kind.has_name())
    }
}

fn present(regions: &[Region]) -> Vec<Range<u64>> {
    regions
        .iter()
        .flat_map(|region| region.present.iter().cloned())
        .collect()
}

impl Look {
    /// Takes the groups that have blocks, the largest first.
    fn take_groups(&mut self, groups: Vec<Group>) {
        let mut groups: Vec<(usize, Group)> = groups
            .into_iter()
            .enumerate()
            .filter(|(_, group)| group.objects > 0)
            .collect();
        groups.sort_by(|(_, one), (_, other)| {
            (other.bytes, &one.name, one.block_bytes).cmp(&(
                one.bytes,
                &other.name,
                other.block_bytes,
            ))
        });
        let places: HashMap<usize, GroupId> = groups.iter().map(|(id, _)| *id).zip(0..).collect();
        for block in &mut self.lost {
            block.group = places
                .get(&usize::from(block.group))
                .copied()
                .unwrap_or(OTHER);
        }
        self.groups = groups.into_iter().map(|(_, group)| group).collect();
    }

    /// Leaves out lost blocks that hold another object by now.
    fn drop_others(&mut self, memory: &dyn Memory, types: &Types<'_>) {
        let groups = &self.groups;
        let mut bytes = [0; VISITED as usize];
        self.lost.retain(|block| {
            let group = groups.get(usize::from(block.group));
            group.is_none_or(|group| {
                let length = match group.object_at {
                    0 => 0,
                    _ => memory.read(block.address, &mut bytes),
                };
                types.is_still(group, bytes.get(..length).unwrap_or_default())
            })
        });
    }

    /// Nothing is known to be lost; these may be.
    pub fn forget_lost(&mut self, doubtful: Vec<LostBlock>) {
        self.lost.clear();
        self.doubtful = doubtful;
        self.count_lost();
    }

    /// Counts the lost blocks in their groups.
    fn count_lost(&mut self) {
        for group in &mut self.groups {
            group.unreachable_objects = 0;
            group.unreachable_bytes = 0;
            group.lost_heads = 0;
            group.lost_head_bytes = 0;
        }
        for block in &self.lost {
            let Some(group) = self.groups.get_mut(usize::from(block.group)) else {
                continue;
            };
            group.unreachable_objects += 1;
            group.unreachable_bytes = group.unreachable_bytes.saturating_add(block.bytes);
            if block.is_direct {
                group.lost_heads += 1;
                group.lost_head_bytes = group.lost_head_bytes.saturating_add(block.bytes);
            }
        }
    }
}

/// What lies in the heaps, or beside them, and is no block.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// The allocators' own books: what they point to is free, or the block beside it.
    books: Vec<Range<u64>>,
    /// What changed while it was walked, and may be blocks.
    torn: Vec<Range<u64>>,
}

impl Apart {
    /// Says of a word at an address that leads so far into a block whether the program put it there.
    fn is_pointer(
        &self,
        groups: &[Group],
        group_of: &[GroupId],
    ) -> impl Fn(u64, BlockId, u64) -> bool {
        move |at, block, distance| {
            let object_at = group_of
                .get(block as usize)
                .and_then(|group| groups.get(usize::from(*group)))
                .map_or(0, |group| group.object_at);
            // References to objects lead to the object, links of the collector before it.
            distance >= object_at && !self.books.iter().any(|books| books.contains(&at))
        }
    }
}

/// Walks the heaps of the allocators that are known. Gives what that tells, the blocks, and what is none.
pub(super) fn walk(
    memory: &dyn Memory,
    regions: &[Region],
    is_python: bool,
    owned: &[Owned],
) -> Option<(Look, Blocks, Apart)> {
    let glibc = glibc::walk(memory, regions);
    let mut result = Look::default();
    let mut segments = Vec::new();
    let mut apart = Apart::default();
    if let Some(heap) = glibc {
        result.has_glibc = true;
        result.arenas = heap.arenas;
        result.free_bytes = heap.free_bytes;
        result.free_pieces = heap.free_pieces;
        result.top_bytes = heap.top_bytes;
        result.torn_bytes = heap.torn_bytes;
        result.caches_unknown = !heap.knows_caches;
        segments = heap.segments;
        apart = Apart {
            books: heap.books,
            torn: heap.torn,
        };
    }
    if is_python {
        let pools = cpython::find(memory, regions, &segments);
        result.has_pools = !pools.segments.is_empty();
        result.free_bytes += pools.free_bytes;
        result.free_pieces += pools.free_pieces;
        result.torn_pools = pools.torn.len() as u64;
        apart.torn.extend(pools.torn);
        segments.extend(pools.segments);
    }
    segments.extend(owners::segments(owned, &segments));
    if segments.is_empty() {
        return None;
    }
    let blocks = Blocks::new(segments);
    let ranges = blocks
        .segments()
        .iter()
        .map(|segment| segment.range().clone());
    result.ranges = ranges.collect();
    result.heap_bytes = result
        .ranges
        .iter()
        .map(|range| range.end - range.start)
        .fold(0, u64::saturating_add);
    result.present_bytes = blocks.present_bytes(regions);
    Some((result, blocks, apart))
}

/// For each group the first one that people take for the same: of its type, or of its size.
fn first_of(groups: &[Group], by_size: bool) -> Vec<GroupId> {
    let mut firsts: HashMap<(GroupKind, &str, u64), GroupId> = HashMap::new();
    (0..)
        .zip(groups)
        .map(|(id, group)| {
            let key = match group.kind {
                _ if by_size => (GroupKind::Size, "", group.block_bytes),
                kind if kind.has_name() => (kind, group.name.as_str(), 0),
                kind => (kind, "", group.block_bytes),
            };
            *firsts.entry(key).or_insert(id)
        })
        .collect()
}

/// The first groups of those that together have the most bytes.
fn largest(groups: &[Group], first_of: &[GroupId], count: usize) -> Vec<GroupId> {
    let mut bytes: HashMap<GroupId, u64> = HashMap::new();
    for (group, first) in groups.iter().zip(first_of) {
        *bytes.entry(*first).or_default() += group.bytes;
    }
    let mut all: Vec<(u64, GroupId)> = bytes
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(id, bytes)| (bytes, id))
        .collect();
    all.sort_unstable_by(|one, other| other.cmp(one));
    all.into_iter().take(count).map(|(_, id)| id).collect()
}
