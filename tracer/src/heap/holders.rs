//! Who holds what: from the blocks of a group the shortest ways to roots, in the names of groups. Blocks of one group that hold each
//! other (the nodes of a list) count as one step.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use super::{
    blocks::BlockId,
    census::{Group, GroupId, GroupKind},
    graph::{Reach, Reached},
};

/// Some way by which blocks of a group are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Names from the block that holds them to the root.
    pub path: Vec<String>,
    /// So many blocks of the group.
    pub objects: u64,
}

/// Names the words in which ways to blocks begin.
pub trait RootName {
    /// What a person would call the word at an address: a variable, a thread's stack.
    fn name(&mut self, address: u64) -> String;
}

/// So many ways are told of a group.
const MOST_WAYS: usize = 5;

/// So many different ways of a group are kept apart.
const MOST_WAYS_KEPT: usize = 1 << 16;

/// A step of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Group(GroupId),
    Root(u64),
    /// Of a group with very many ways, those that came last.
    Others,
}

/// For each of some blocks with whose they are, by whom those of each owner are held, at most `levels` steps up. A module is named by
/// its root, not as a step.
pub(super) fn holders<Owner: Copy + Eq + Hash>(
    (groups, group_of): (&[Group], &[GroupId]),
    reach: &Reach,
    jumps: &[BlockId],
    asked: impl Iterator<Item = (BlockId, Owner)>,
    is_module: &dyn Fn(BlockId) -> bool,
    levels: usize,
    names: &mut dyn RootName,
) -> HashMap<Owner, Vec<Holder>> {
    let mut ways: HashMap<Owner, BTreeMap<Vec<Step>, u64>> = HashMap::new();
    let mut add = |block: BlockId, owner: Owner, count: u64| {
        let ways = ways.entry(owner).or_default();
        let mut way = way(block, groups, group_of, jumps, reach, is_module, levels);
        if ways.len() >= MOST_WAYS_KEPT && !ways.contains_key(&way) {
            way = vec![Step::Others];
        }
        *ways.entry(way).or_default() += count;
    };
    // Blocks that follow each other and hang on the same one have one way.
    let mut last: Option<(BlockId, Owner, u64)> = None;
    let above = |block: BlockId| {
        jumps
            .get(block as usize)
            .filter(|above| **above != block)
            .map(|above| (*above, group_of.get(block as usize)))
    };
    for (block, owner) in asked.filter(|(block, _)| reach.has(*block)) {
        match &mut last {
            Some((like, of, count))
                if *of == owner && above(block).is_some() && above(block) == above(*like) =>
            {
                *count += 1;
            }
            _ => {
                if let Some((block, owner, count)) = last {
                    add(block, owner, count);
                }
                last = Some((block, owner, 1));
            }
        }
    }
    if let Some((block, owner, count)) = last {
        add(block, owner, count);
    }
    ways.into_iter()
        .map(|(owner, ways)| (owner, named(ways, groups, names)))
        .collect()
}

/// For each block the first one above it that is of another group, or itself where a root comes before that.
pub(super) fn jumps(group_of: &[GroupId], reach: &Reach) -> Vec<BlockId> {
    let mut jumps: Vec<BlockId> = (0..group_of.len() as u32).collect();
    // Parents come before those that they reach.
    for block in reach.order() {
        let Reached::By(parent) = reach.by(*block) else {
            continue;
        };
        let same = group_of.get(*block as usize) == group_of.get(parent as usize);
        let above = if same {
            jumps.get(parent as usize).copied().unwrap_or(parent)
        } else {
            parent
        };
        if let Some(jump) = jumps.get_mut(*block as usize) {
            // A parent that is its own jump hangs on a root, through blocks of its group.
            *jump = above;
        }
    }
    jumps
}

fn way(
    block: BlockId,
    groups: &[Group],
    group_of: &[GroupId],
    jumps: &[BlockId],
    reach: &Reach,
    is_module: &dyn Fn(BlockId) -> bool,
    levels: usize,
) -> Vec<Step> {
    let mut way = Vec::with_capacity(levels + 1);
    let mut at = block;
    // A step may be passed over without being told.
    for _ in 0..=2 * levels {
        let next = jumps.get(at as usize).copied().unwrap_or(at);
        let same_group = group_of.get(next as usize) == group_of.get(at as usize);
        if next == at || same_group {
            // The block by which the run of its group hangs on a root.
            if let Reached::ByRoot(address) = reach.by(next) {
                if is_module(next) {
                    way.pop();
                }
                way.push(Step::Root(address));
            }
            return way;
        }
        if way.len() == levels {
            return way;
        }
        if let Some(group) = group_of.get(next as usize)
            && !is_part_of_object(next, *group, groups, group_of, jumps)
        {
            way.push(Step::Group(*group));
        }
        at = next;
    }
    way
}

/// Whether a block has no type of its own and is held by an object of CPython: the items of a list, the table of a dictionary.
fn is_part_of_object(
    block: BlockId,
    group: GroupId,
    groups: &[Group],
    group_of: &[GroupId],
    jumps: &[BlockId],
) -> bool {
    let kind = |group: GroupId| groups.get(usize::from(group)).map(|group| group.kind);
    let above = jumps
        .get(block as usize)
        .filter(|above| **above != block)
        .and_then(|above| group_of.get(*above as usize));
    kind(group) != Some(GroupKind::Python)
        && above.and_then(|above| kind(*above)) == Some(GroupKind::Python)
}

/// The ways that most blocks have; ways whose roots have one name are one.
fn named(
    ways: BTreeMap<Vec<Step>, u64>,
    groups: &[Group],
    names: &mut dyn RootName,
) -> Vec<Holder> {
    let mut by_count: Vec<(Vec<Step>, u64)> = ways.into_iter().collect();
    by_count.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    // A root for each block (a table of pointers that is no heap) makes as many ways as blocks: they are named by the first ones.
    let mut merged: Vec<Holder> = Vec::new();
    let mut known: HashMap<Vec<String>, usize> = HashMap::new();
    let mut roots: HashMap<u64, String> = HashMap::new();
    for (way, count) in by_count {
        let path: Vec<String> = way
            .iter()
            .map(|step| match step {
                Step::Group(group) => groups
                    .get(usize::from(*group))
                    .map_or_else(String::new, Group::label),
                Step::Others => OTHER_ROOTS.to_owned(),
                Step::Root(address) => {
                    if roots.len() >= MOST_ROOTS_NAMED && !roots.contains_key(address) {
                        OTHER_ROOTS.to_owned()
                    } else {
                        roots
                            .entry(*address)
                            .or_insert_with(|| names.name(*address))
                            .clone()
                    }
                }
            })
            .collect();
        let place = *known.entry(path.clone()).or_insert_with(|| {
            merged.push(Holder { path, objects: 0 });
            merged.len() - 1
        });
        if let Some(holder) = merged.get_mut(place) {
            holder.objects += count;
        }
    }
    merged.sort_by_key(|holder| std::cmp::Reverse(holder.objects));
    merged.truncate(MOST_WAYS);
    merged
}

/// So many roots are named for a group: each is a look-up in a symbol table.
const MOST_ROOTS_NAMED: usize = 256;
const OTHER_ROOTS: &str = "other roots";
