//! Other looks at what one found unreachable: whether it still is, and whether nobody wrote to it.

use std::ops::Range;

use super::{LookOptions, LostBlock, described, has_type, is_stale, present, walk};
use crate::heap::{
    blocks::{BlockId, Blocks},
    census::{GroupId, OTHER},
    graph::{Graph, Reach, Reader, heads},
    look::Look,
    memory::{Memory, Region, RegionKind, WORD, Window},
    owners::Owned,
};

/// So many bytes of a block tell whether it was written to.
const DIGESTED: u64 = 256;

/// What leads to a block that was written to may have been born with it: so many steps up.
const DOUBTED_STEPS: usize = 4;

/// Another look at what one found unreachable: only what is unreachable now as well, and was not written to up to its end, may be lost.
/// `regions` is asked before and after. Gives how many blocks that was not true of; where there were some, there may be more, for
/// pointers move while they are looked for.
pub fn confirm(
    memory: &dyn Memory,
    regions: &mut dyn FnMut() -> Option<Vec<Region>>,
    options: LookOptions,
    owned: &[Owned],
    look: &mut Look,
) -> u64 {
    let found = look.lost.len();
    let confirmed = still_lost(memory, regions, options, owned, look);
    look.lost = confirmed.unwrap_or_default();
    look.count_lost();
    (found - look.lost.len()) as u64
}

/// What of the lost blocks no root reaches now, in order.
fn still_lost(
    memory: &dyn Memory,
    regions: &mut dyn FnMut() -> Option<Vec<Region>>,
    options: LookOptions,
    owned: &[Owned],
    look: &mut Look,
) -> Option<Vec<LostBlock>> {
    let is_python = options.is_python;
    let before = std::mem::take(&mut look.lost);
    // Nobody can write to a lost block: one that was written to has given its place to another, or is held after all.
    let written = look.written(memory, &before);
    let known = || before.iter().map(|block| (block.address, block.bytes));
    let first = regions()?;
    let first_present = present(&first);
    let (_, mut others, apart) = walk(memory, &first, is_python, owned)?;
    let blocks = others.take(known());
    let of_blocks = places(&blocks, &before);
    let group_of: Vec<GroupId> = of_blocks
        .iter()
        .map(|place| place.and_then(|place| before.get(place)))
        .map(|block| block.map_or(OTHER, |block| block.group))
        .collect();
    let reader = Reader {
        memory,
        present: &first_present,
    };
    let graph = Graph::build(reader, &blocks, options.most_edges, |_, _, _| 0..0);
    look.dropped_edges += graph.dropped;
    let mut reach = Reach::of(&blocks);
    let is_pointer = apart.is_pointer(&look.groups, &group_of);
    let stale = |address: u64, bytes: &[u8]| match look.stale.get(&address) {
        Some(from) if is_stale(*from, bytes) => *from..u64::MAX,
        _ => 0..0,
    };
    reach.add_blocks(reader, &others, &blocks, stale, &is_pointer);
    reach.add_roots(reader, &first, &apart.torn, &blocks, &is_pointer);
    // A table may have moved meanwhile, to where nothing was: what is new is looked through, and what changes all the time once more.
    let mut now = regions()?;
    let (_, mut new, apart) = walk(memory, &now, is_python, owned)?;
    drop(new.take(others.iter().map(|(_, address, bytes)| (address, bytes))));
    drop(new.take(known()));
    drop(others);
    for region in &mut now {
        if !matches!(region.kind, RegionKind::Data | RegionKind::Stack) {
            region.present = without(&region.present, &first_present);
        }
    }
    let now_present = present(&now);
    let reader = Reader {
        memory,
        present: &now_present,
    };
    let is_pointer = apart.is_pointer(&look.groups, &group_of);
    reach.add_blocks(reader, &new, &blocks, stale, &is_pointer);
    reach.add_roots(reader, &now, &apart.torn, &blocks, &is_pointer);
    // Once more, for while all this was read its place may have changed hands.
    let since = look.written(memory, &before);
    let was_written =
        |place: usize| written.get(place) != Some(&false) || since.get(place) != Some(&false);
    let mut doubted: Vec<bool> = of_blocks
        .iter()
        .map(|place| place.is_none_or(was_written))
        .collect();
    graph.doubt(&mut doubted, DOUBTED_STEPS);
    for (block, is_doubted) in (0..).zip(&doubted) {
        if *is_doubted {
            reach.root(block, 0);
        }
    }
    reach.spread(&graph, 0, |_| true);
    let is_lost = |block: &BlockId| look.dropped_edges == 0 && !reach.has(*block);
    let lost: Vec<BlockId> = (0..blocks.count()).filter(is_lost).collect();
    let heads = heads(&graph, &lost, has_type(&look.groups, &group_of));
    let mut lost = described(&blocks, &group_of, &lost, heads);
    let mut same = before.iter().peekable();
    for block in &mut lost {
        while same.next_if(|same| same.address < block.address).is_some() {}
        block.digest = same.peek().map_or(0, |same| same.digest);
    }
    Some(lost)
}

/// For each of some blocks its place among the lost ones; both are in order.
fn places(blocks: &Blocks, lost: &[LostBlock]) -> Vec<Option<usize>> {
    let mut same = lost.iter().enumerate().peekable();
    blocks
        .iter()
        .map(|(_, address, _)| {
            while same.next_if(|(_, block)| block.address < address).is_some() {}
            same.peek()
                .filter(|(_, block)| block.address == address)
                .map(|(place, _)| *place)
        })
        .collect()
}

/// What of some ranges lies in none of others; both are in order.
fn without(ranges: &[Range<u64>], others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    for range in ranges {
        let mut start = range.start;
        let first = others.partition_point(|other| other.end <= start);
        for other in others.get(first..).unwrap_or_default() {
            if other.start >= range.end {
                break;
            }
            if other.start > start {
                rest.push(start..other.start);
            }
            start = start.max(other.end);
        }
        if start < range.end {
            rest.push(start..range.end);
        }
    }
    rest
}

impl Look {
    /// Of each of some blocks whether it was written to since it was found.
    fn written(&self, memory: &dyn Memory, lost: &[LostBlock]) -> Vec<bool> {
        let digests = self.digests(memory, lost);
        let both = lost.iter().zip(digests);
        both.map(|(block, digest)| block.digest != digest).collect()
    }

    /// Of each lost block, what it begins with, without what the runtime writes to objects that it does not move.
    pub(super) fn digests(&self, memory: &dyn Memory, lost: &[LostBlock]) -> Vec<u32> {
        let (Some(first), Some(last)) = (lost.first(), lost.last()) else {
            return Vec::new();
        };
        let end = last.address.saturating_add(last.bytes);
        let mut window = Window::new(memory, first.address, end);
        let digest = |block: &LostBlock| {
            let group = self.groups.get(usize::from(block.group));
            let object_at = group.map_or(0, |group| group.object_at);
            // Of the collector's links it changes the first wherever an object gives its place to another, the second while it works.
            let link_back = object_at.checked_sub(WORD);
            let length = block.bytes.min(DIGESTED);
            window.hold(block.address, length);
            let bytes = window.from(block.address).unwrap_or_default();
            let bytes = bytes.get(..length as usize).unwrap_or(bytes);
            let words = (0_u64..)
                .step_by(WORD as usize)
                .zip(bytes.chunks(WORD as usize));
            let words = words
                .filter(|(at, _)| Some(*at) != link_back)
                .map(|(_, word)| word);
            let mix = |sum: u64, word: &[u8]| {
                let word = word
                    .iter()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte));
                (sum ^ word)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(29)
            };
            (words.fold(length, mix) >> 32) as u32
        };
        lost.iter().map(digest).collect()
    }
}
