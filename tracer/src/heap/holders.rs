//! Who holds what: from the blocks of a group the shortest ways to roots, in the names of groups. Blocks of one group that hold each
//! other (the nodes of a list) count as one step.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    ops::Range,
};

use serde::{Deserialize, Serialize};

use super::{
    blocks::BlockId,
    census::{Group, GroupId, GroupKind},
    graph::{Reach, Reached},
    naming::{Naming, shares},
};

/// Some way by which blocks of a group are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The same without where in it, for several words of one variable; and the addresses of which it is said.
    fn whole(&mut self, address: u64) -> (String, Range<u64>) {
        (self.name(address), address..address.saturating_add(1))
    }

    /// Whether the process has code of Rust's, whose functions have names.
    fn has_rust(&mut self) -> bool {
        false
    }

    /// The names, without hashes, of Rust's functions that begin at an address; `None` where no code is.
    fn functions(&mut self, _address: u64) -> Option<Vec<String>> {
        None
    }

    /// Whether the file that maps an address has a function of this name.
    fn has_function(&mut self, _address: u64, _name: &str) -> bool {
        false
    }
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

/// Of the blocks with one way, so many are looked at for the names in it.
const MOST_SAMPLES: usize = 64;
/// Of an owner, so many ways are named as the program would; the others by types alone.
const MOST_WAYS_NAMED: usize = 16;

/// Blocks that are held in one way.
#[derive(Debug, Default)]
struct Way {
    count: u64,
    /// Some of them, each with the number of blocks for which it stands.
    samples: Vec<(BlockId, u64)>,
    /// How many there were to take samples of, less one for each so many.
    seen: u64,
    every: u32,
}

impl Way {
    fn add(&mut self, block: BlockId, count: u64) {
        if self.seen.is_multiple_of(1 << self.every) {
            self.samples.push((block, count));
        }
        self.seen += 1;
        if self.samples.len() > MOST_SAMPLES {
            let mut is_kept = false;
            self.samples.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            self.every = (self.every + 1).min(63);
        }
    }
}

/// What holders are told from.
pub(super) struct Held<'look> {
    pub(super) groups: &'look [Group],
    pub(super) group_of: &'look [GroupId],
    pub(super) reach: &'look Reach,
    pub(super) jumps: &'look [BlockId],
    pub(super) is_module: &'look dyn Fn(BlockId) -> bool,
    /// How many steps up are told.
    pub(super) levels: usize,
}

/// For each of some blocks with whose they are, and for how many it stands, by whom those of each owner are held. A module is named by
/// its root, not as a step.
pub(super) fn holders<Owner: Copy + Eq + Hash>(
    held: &Held<'_>,
    asked: impl Iterator<Item = (BlockId, Owner, u64)>,
    naming: &mut Option<Naming<'_>>,
    names: &mut dyn RootName,
) -> HashMap<Owner, Vec<Holder>> {
    let Held {
        group_of,
        reach,
        jumps,
        ..
    } = *held;
    let mut ways: HashMap<Owner, BTreeMap<Vec<Step>, Way>> = HashMap::new();
    let mut add = |(first, last): (BlockId, BlockId), owner: Owner, count: u64| {
        let ways = ways.entry(owner).or_default();
        let mut way = way(first, held);
        if ways.len() >= MOST_WAYS_KEPT && !ways.contains_key(&way) {
            way = vec![Step::Others];
        }
        let way = ways.entry(way).or_default();
        way.count += count;
        if naming.is_some() {
            way.add(first, count - count / 2);
            if count > 1 {
                way.add(last, count / 2);
            }
        }
    };
    // Blocks that follow each other and hang on the same one have one way.
    let mut last: Option<((BlockId, BlockId), Owner, u64)> = None;
    let above = |block: BlockId| {
        jumps
            .get(block as usize)
            .filter(|above| **above != block)
            .map(|above| (*above, group_of.get(block as usize)))
    };
    for (block, owner, weight) in asked.filter(|(block, ..)| reach.has(*block)) {
        match &mut last {
            Some(((like, last), of, count))
                if *of == owner && above(block).is_some() && above(block) == above(*like) =>
            {
                *last = block;
                *count += weight;
            }
            _ => {
                if let Some((run, owner, count)) = last {
                    add(run, owner, count);
                }
                last = Some(((block, block), owner, weight));
            }
        }
    }
    if let Some((run, owner, count)) = last {
        add(run, owner, count);
    }
    ways.into_iter()
        .map(|(owner, ways)| (owner, named(ways, held, naming, names)))
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

fn way(block: BlockId, held: &Held<'_>) -> Vec<Step> {
    let Held {
        groups,
        group_of,
        reach,
        jumps,
        is_module,
        levels,
    } = *held;
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
    ways: BTreeMap<Vec<Step>, Way>,
    held: &Held<'_>,
    naming: &mut Option<Naming<'_>>,
    names: &mut dyn RootName,
) -> Vec<Holder> {
    let mut by_count: Vec<(Vec<Step>, Way)> = ways.into_iter().collect();
    by_count.sort_by_key(|(_, way)| std::cmp::Reverse(way.count));
    // A root for each block (a table of pointers that is no heap) makes as many ways as blocks: they are named by the first ones.
    let mut merged: Vec<Holder> = Vec::new();
    let mut known: HashMap<Vec<String>, usize> = HashMap::new();
    let mut roots = Roots::of(by_count.iter().filter_map(|(steps, _)| steps.last()), names);
    let mut root = |address: u64| roots.name(address, names);
    for (number, (steps, way)) in by_count.into_iter().enumerate() {
        let mut paths = Vec::new();
        if let Some(naming) = naming.as_mut().filter(|_| number < MOST_WAYS_NAMED) {
            let read: Option<Vec<_>> = way
                .samples
                .iter()
                .map(|(block, weight)| {
                    let way = naming.way(*block, held.reach, held.jumps, held.levels, &mut root)?;
                    Some((way, *weight))
                })
                .collect();
            paths = shares(read.unwrap_or_default(), way.count);
        }
        if paths.is_empty() {
            let path = steps.iter().map(|step| match step {
                Step::Group(group) => held
                    .groups
                    .get(usize::from(*group))
                    .map_or_else(String::new, Group::label),
                Step::Others => OTHER_ROOTS.to_owned(),
                Step::Root(address) => root(*address),
            });
            paths.push((path.collect(), way.count));
        }
        for (path, count) in paths {
            let place = *known.entry(path.clone()).or_insert_with(|| {
                merged.push(Holder { path, objects: 0 });
                merged.len() - 1
            });
            if let Some(holder) = merged.get_mut(place) {
                holder.objects += count;
            }
        }
    }
    merged.sort_by_key(|holder| std::cmp::Reverse(holder.objects));
    merged.truncate(MOST_WAYS);
    merged
}

/// So many roots are named for an owner: each is a look-up in a symbol table.
const MOST_ROOTS_NAMED: usize = 4096;
/// What roots are called that are not named for want of time.
pub(crate) const OTHER_ROOTS: &str = "other roots";

/// Names of the roots of an owner's ways: of several in one variable (a table) that of the variable.
#[derive(Debug, Default)]
struct Roots {
    known: HashMap<u64, String>,
}

impl Roots {
    fn of<'steps>(last: impl Iterator<Item = &'steps Step>, names: &mut dyn RootName) -> Self {
        let mut places: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut known = HashMap::new();
        for step in last {
            let Step::Root(address) = *step else { continue };
            if known.len() >= MOST_ROOTS_NAMED {
                break;
            }
            known.entry(address).or_insert_with(|| {
                let (whole, _) = names.whole(address);
                places.entry(whole.clone()).or_default().push(address);
                whole
            });
        }
        for addresses in places.values() {
            if let [only] = addresses.as_slice() {
                known.insert(*only, names.name(*only));
            }
        }
        Self { known }
    }

    fn name(&mut self, address: u64, names: &mut dyn RootName) -> String {
        if let Some(name) = self.known.get(&address) {
            return name.clone();
        }
        if self.known.len() >= MOST_ROOTS_NAMED {
            return OTHER_ROOTS.to_owned();
        }
        let name = names.name(address);
        self.known.insert(address, name.clone());
        name
    }
}
