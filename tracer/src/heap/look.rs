//! One look at a heap: walk, types, graph, and two looks together: what is lost, and who holds the rest.

use std::{collections::HashMap, ops::Range};

use super::{
    blocks::{BlockId, Blocks},
    boxed::Boxed,
    census::{Group, GroupId, GroupKind},
    cpython, glibc,
    graph::{Graph, Reach, heads},
    holders::{Held, RootName, holders, jumps},
    memory::{Memory, Region},
    modules::Modules,
    naming::Naming,
    objects::Objects,
    owners::{self, Owned, OwnerLook},
    types::Types,
};

/// `sizeof(PyGC_Head)` of CPython's `Include/internal/pycore_gc.h`: two links, before the object.
const GC_HEAD: u64 = 16;

/// What is wanted of a look.
#[derive(Clone, Copy, Debug)]
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
#[derive(Clone, Debug, Default)]
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
    /// Of a process that is stopped, or where blocks were given whose owners are known: the blocks that are lost, in order.
    pub lost: Vec<LostBlock>,
    /// What the blocks of each owner are.
    pub owners: HashMap<u32, OwnerLook>,
}

/// A block that no root reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostBlock {
    /// Its first address.
    pub address: u64,
    /// Bytes that the program may use.
    pub bytes: u64,
    /// Whether it hangs on no other lost block.
    pub is_direct: bool,
}

/// Blocks that a first look found unreachable, by address, for the second look to confirm; which has none for a third.
#[derive(Clone, Debug, Default)]
pub struct Lost(Vec<u64>);

/// Looks at a heap. With what an earlier look found unreachable, what is unreachable in both is lost.
///
/// Gives `None` where no allocator is known whose heap could be walked.
pub fn look(
    memory: &dyn Memory,
    regions: &[Region],
    options: LookOptions,
    before: Option<&Lost>,
    names: &mut dyn RootName,
) -> Option<(Look, Lost)> {
    look_with(memory, regions, options, before, &[], names)
}

/// The same, and tells of blocks that are known otherwise, by address, whose they are: what they are and who holds them. Those of
/// allocators whose heaps cannot be walked are looked at too, and their other blocks are taken for roots.
pub fn look_with(
    memory: &dyn Memory,
    regions: &[Region],
    options: LookOptions,
    before: Option<&Lost>,
    owned: &[Owned],
    names: &mut dyn RootName,
) -> Option<(Look, Lost)> {
    let (mut result, blocks, apart) = walk(memory, regions, options.is_python, owned)?;
    let mut types = Types::new(memory, regions, options.is_python);
    // A first look is only about what is reachable.
    let boxed = if before.is_some() || options.is_stopped {
        Boxed::find(memory, regions, &blocks, names)
    } else {
        Boxed::default()
    };
    let mut group_of: Vec<GroupId> = Vec::with_capacity(blocks.count() as usize);
    let graph = Graph::build(memory, &blocks, options.most_edges, |length, bytes| {
        result.blocks += 1;
        result.bytes = result.bytes.saturating_add(length);
        let block = BlockId::try_from(group_of.len()).unwrap_or(BlockId::MAX);
        let (group, object_at) = types.count(length, bytes, boxed.type_of(block, length));
        group_of.push(group);
        if let Some(from) = types.stale(group, object_at, bytes) {
            return from..length;
        }
        // The collector of CPython links all objects that it knows: that holds none of them.
        object_at.saturating_sub(GC_HEAD)..object_at
    });
    result.dropped_edges = graph.dropped;
    let mut groups = types.into_census().into_groups();
    // Where in the blocks of each group the object begins.
    let object_at: Vec<u64> = groups.iter().map(|group| group.object_at).collect();
    let Apart { books, torn } = &apart;
    let mut reach = Reach::from_roots(
        memory,
        regions,
        torn,
        &blocks,
        &graph,
        |at, block, distance| {
            let object_at = group_of
                .get(block as usize)
                .and_then(|group| object_at.get(usize::from(*group)).copied())
                .unwrap_or(0);
            // References to objects lead to the object, links of the collector before it.
            distance >= object_at && !books.iter().any(|books| books.contains(&at))
        },
    );
    let lost = || {
        blocks
            .iter()
            .filter(|(block, ..)| graph.dropped == 0 && !reach.has(*block))
    };
    let mut addresses = Vec::new();
    if before.is_none() {
        addresses.extend(lost().map(|(_, address, _)| address));
    }
    let is_confirmed = |address: &u64| {
        options.is_stopped || before.is_some_and(|before| before.0.binary_search(address).is_ok())
    };
    if before.is_some() || options.is_stopped {
        let confirmed: Vec<BlockId> = lost()
            .filter(|(_, address, _)| is_confirmed(address))
            .map(|(block, ..)| block)
            .collect();
        let mut visit = |block: LostBlock| {
            if options.is_stopped || !owned.is_empty() {
                result.lost.push(block);
            }
        };
        count_lost(
            &mut groups,
            &group_of,
            &graph,
            &blocks,
            &confirmed,
            &mut visit,
        );
        result.owners = owners::types(owned, &blocks, &groups, &group_of);
        if options.levels > 0 {
            let mut objects = Objects::new(memory);
            let modules = Modules::of(&mut objects, &blocks, &groups, &group_of, &reach);
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
            let jumps = jumps(&group_of, &reach);
            let first_of = first_of(&groups, options.by_size);
            let asked = largest(&groups, &first_of, options.groups_with_holders);
            let of_groups = reach.order().iter().filter_map(|block| {
                let group = *group_of.get(*block as usize)?;
                let first = *first_of.get(usize::from(group))?;
                asked.contains(&first).then_some((*block, first))
            });
            let names = &mut modules.names(memory, names);
            let held = Held {
                groups: &groups,
                group_of: &group_of,
                reach: &reach,
                jumps: &jumps,
                is_module: &|block| modules.has(block),
                levels: options.levels,
            };
            let mut naming = options
                .is_python
                .then(|| Naming::new(objects, &blocks, &groups, &group_of, &modules));
            let mut found = holders(&held, of_groups, &mut naming, names);
            let of_owners = owners::blocks_of(owned, &blocks);
            let mut of_owners = holders(&held, of_owners, &mut naming, names);
            for (owner, of_owner) in &mut result.owners {
                of_owner.holders = of_owners.remove(owner).unwrap_or_default();
            }
            for id in asked {
                if let Some(group) = groups.get_mut(usize::from(id)) {
                    group.holders = found.remove(&id).unwrap_or_default();
                }
            }
        }
    }
    groups.retain(|group| group.objects > 0);
    groups.sort_by(|one, other| {
        (other.bytes, &one.name, one.block_bytes).cmp(&(one.bytes, &other.name, other.block_bytes))
    });
    result.groups = groups;
    Some((result, Lost(addresses)))
}

/// What lies in the heaps, or beside them, and is no block.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// The allocators' own books: what they point to is free, or the block beside it.
    books: Vec<Range<u64>>,
    /// What changed while it was walked, and may be blocks.
    torn: Vec<Range<u64>>,
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

fn count_lost(
    groups: &mut [Group],
    group_of: &[GroupId],
    graph: &Graph,
    blocks: &Blocks,
    lost: &[BlockId],
    visit: &mut dyn FnMut(LostBlock),
) {
    let mut at = 0;
    let heads = {
        let has_type = |block: BlockId| {
            group_of
                .get(block as usize)
                .and_then(|group| groups.get(usize::from(*group)))
                .is_some_and(|group| group.kind.has_name())
        };
        let mut heads = heads(graph, lost, has_type);
        heads.sort_unstable();
        heads
    };
    for (block, address, length) in blocks.iter() {
        if lost.get(at) != Some(&block) {
            continue;
        }
        at += 1;
        let is_direct = heads.binary_search(&block).is_ok();
        visit(LostBlock {
            address,
            bytes: length,
            is_direct,
        });
        let Some(group) = group_of
            .get(block as usize)
            .and_then(|group| groups.get_mut(usize::from(*group)))
        else {
            continue;
        };
        group.unreachable_objects += 1;
        group.unreachable_bytes = group.unreachable_bytes.saturating_add(length);
        if is_direct {
            group.lost_heads += 1;
            group.lost_head_bytes = group.lost_head_bytes.saturating_add(length);
        }
    }
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
