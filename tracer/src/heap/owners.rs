//! Blocks of which a trace knows whose they are: what those of each owner are. An owner is a number; what it stands for is not known
//! here.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    blocks::{BlockId, Blocks, GRAIN, Segment},
    census::{Group, GroupId},
    holders::Holder,
};

/// A block that somebody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owned {
    /// Its first address.
    pub address: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Whose it is.
    pub owner: u32,
}

/// What the blocks of an owner are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnerLook {
    /// Blocks that were found in the heap.
    pub checked: u64,
    /// By type, the most bytes first.
    pub types: Vec<TypeCount>,
    /// Who holds those that are held, the most first.
    pub holders: Vec<Holder>,
}

/// Blocks of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeCount {
    /// What a person would call it.
    pub name: String,
    /// Blocks.
    pub objects: u64,
    /// Bytes that the program may use of them.
    pub bytes: u64,
}

/// So many blocks that no walk knows are looked at: each costs a step in every search, and those left out are roots.
const MOST_UNWALKED: usize = 100_000;

/// So many types are told of an owner.
const MOST_TYPES: usize = 5;

/// Blocks that lie in no segment, each as a segment of its own. `owned` is in order.
pub(super) fn segments(owned: &[Owned], walked: &[Segment]) -> Vec<Segment> {
    let mut ranges: Vec<(u64, u64)> = walked
        .iter()
        .map(|segment| (segment.range().start, segment.range().end))
        .collect();
    ranges.sort_unstable();
    let is_walked = |address: u64| {
        ranges
            .partition_point(|(start, _)| *start <= address)
            .checked_sub(1)
            .and_then(|place| ranges.get(place))
            .is_some_and(|(_, end)| address < *end)
    };
    let unwalked: Vec<&Owned> = owned
        .iter()
        .filter(|block| {
            let end = block.address.checked_add(block.bytes);
            block.address.is_multiple_of(GRAIN)
                && block.bytes > 0
                && end.is_some_and(|end| !is_walked(block.address) && !is_walked(end))
        })
        .collect();
    let every = unwalked.len().div_ceil(MOST_UNWALKED).max(1);
    unwalked
        .into_iter()
        .step_by(every)
        .map(|block| {
            let end = block.address + block.bytes;
            let end = end.checked_next_multiple_of(GRAIN).unwrap_or(end);
            let mut segment = Segment::new(block.address..end, 0);
            segment.begin(block.address, true);
            segment
        })
        .collect()
}

/// The blocks that were found, with whose they are.
pub(super) fn blocks_of<'look>(
    owned: &'look [Owned],
    blocks: &'look Blocks,
) -> impl Iterator<Item = (BlockId, u32)> + 'look {
    owned.iter().filter_map(|block| {
        let (id, distance) = blocks.find(block.address)?;
        (distance == 0).then_some((id, block.owner))
    })
}

/// Of each owner, how many blocks of which type were found.
pub(super) fn types(
    owned: &[Owned],
    blocks: &Blocks,
    groups: &[Group],
    group_of: &[GroupId],
) -> HashMap<u32, OwnerLook> {
    let mut counts: HashMap<(u32, GroupId), u64> = HashMap::new();
    for (block, owner) in blocks_of(owned, blocks) {
        if let Some(group) = group_of.get(block as usize) {
            *counts.entry((owner, *group)).or_default() += 1;
        }
    }
    let mut owners: HashMap<u32, OwnerLook> = HashMap::new();
    for ((owner, group), objects) in counts {
        let Some(group) = groups.get(usize::from(group)) else {
            continue;
        };
        let look = owners.entry(owner).or_default();
        look.checked += objects;
        let bytes = objects.saturating_mul(group.block_bytes);
        let name = group.label();
        match look.types.iter_mut().find(|known| known.name == name) {
            Some(known) => {
                known.objects += objects;
                known.bytes = known.bytes.saturating_add(bytes);
            }
            None => look.types.push(TypeCount {
                name,
                objects,
                bytes,
            }),
        }
    }
    for look in owners.values_mut() {
        look.types
            .sort_by(|one, other| (other.bytes, &one.name).cmp(&(one.bytes, &other.name)));
        look.types.truncate(MOST_TYPES);
    }
    owners
}
