//! Which block points to which: what the roots reach, by whom each block is reached first, and what of the rest hangs on what.

use std::ops::Range;

use super::{
    blocks::{BlockId, Blocks},
    memory::{Memory, Region, RegionKind, WORD, Window, each_word},
};

/// Stands in [`Reach::parents`] for a block that a root points to; the rest of the number is the root's place.
const ROOT: u32 = 1 << 31;
/// Nobody reaches it.
const NOBODY: u32 = u32::MAX;

/// The edges between blocks in use.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Where each block's edges begin, and one behind the last.
    offsets: Vec<u32>,
    targets: Vec<BlockId>,
    /// Edges that there was no room for.
    pub(super) dropped: u64,
}

impl Graph {
    /// Reads every block in use, and hands its length and its content, or the beginning of it, to `visit`, which says what part of the
    /// block holds no pointers of the program's. Keeps at most so many edges.
    pub(super) fn build(
        memory: &dyn Memory,
        blocks: &Blocks,
        most_edges: usize,
        mut visit: impl FnMut(u64, &[u8]) -> Range<u64>,
    ) -> Self {
        let mut graph = Self {
            offsets: Vec::with_capacity(blocks.count() as usize + 1),
            ..Self::default()
        };
        let most_edges = most_edges.min(u32::MAX as usize);
        for segment in blocks.segments() {
            let mut window = Window::new(memory, segment.range().start, segment.range().end);
            for block in segment.used_blocks() {
                graph.offsets.push(graph.targets.len() as u32);
                graph.read_block(&mut window, blocks, block, most_edges, &mut visit);
            }
        }
        graph.offsets.push(graph.targets.len() as u32);
        graph
    }

    fn read_block(
        &mut self,
        window: &mut Window<'_>,
        blocks: &Blocks,
        (block, address, length): (BlockId, u64, u64),
        most_edges: usize,
        visit: &mut impl FnMut(u64, &[u8]) -> Range<u64>,
    ) {
        let end = address.saturating_add(length);
        let mut at = address;
        let mut skipped = None;
        while at < end {
            let Some(mut bytes) = window.from(at) else {
                break;
            };
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            if skipped.is_none() && bytes.len() < left.min(VISITED) {
                window.refresh(at);
                let Some(again) = window.from(at) else { break };
                bytes = again;
            }
            let bytes = bytes.get(..left.min(bytes.len())).unwrap_or(bytes);
            let skipped = skipped.get_or_insert_with(|| visit(length, bytes));
            let mut whole = 0;
            for word in bytes.chunks_exact(WORD as usize) {
                let place = at - address + whole;
                whole += WORD;
                let word = word.try_into().map_or(0, u64::from_le_bytes);
                if let Some((target, _)) = blocks.find(word)
                    && target != block
                    && !skipped.contains(&place)
                {
                    if self.targets.len() < most_edges {
                        self.targets.push(target);
                    } else {
                        self.dropped += 1;
                    }
                }
            }
            if whole == 0 {
                break;
            }
            at += whole;
        }
        if skipped.is_none() {
            visit(length, &[]);
        }
    }

    /// What a block points to.
    pub(super) fn targets(&self, block: BlockId) -> &[BlockId] {
        let place = block as usize;
        let (Some(from), Some(to)) = (self.offsets.get(place), self.offsets.get(place + 1)) else {
            return &[];
        };
        self.targets
            .get(*from as usize..*to as usize)
            .unwrap_or_default()
    }
}

/// As much of a block's content as is needed to say what it is, bytes.
pub(super) const VISITED: usize = 96;

/// By whom a block is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// By this block.
    By(BlockId),
    /// By the word at this address, which is in no heap.
    ByRoot(u64),
    /// By nobody.
    Not,
}

/// What the roots reach.
#[derive(Debug, Default)]
pub(super) struct Reach {
    parents: Vec<u32>,
    /// Addresses of words that were the first to point to some block.
    roots: Vec<u64>,
    /// Blocks in the order in which they were reached.
    order: Vec<BlockId>,
}

impl Reach {
    /// Goes out from every word of the process that lies in no heap. Of a word at an address that leads so far into a block
    /// `is_pointer` says whether the program put it there.
    pub(super) fn from_roots(
        memory: &dyn Memory,
        regions: &[Region],
        torn: &[Range<u64>],
        blocks: &Blocks,
        graph: &Graph,
        is_pointer: impl Fn(u64, BlockId, u64) -> bool,
    ) -> Self {
        let mut reach = Self {
            parents: vec![NOBODY; blocks.count() as usize],
            ..Self::default()
        };
        let outside = regions
            .iter()
            .filter(|region| region.kind != RegionKind::Constant)
            .flat_map(|region| &region.present)
            .flat_map(|present| outside(present.clone(), blocks));
        for range in outside.chain(torn.iter().cloned()) {
            each_word(memory, range, |address, word| {
                if let Some((block, distance)) = blocks.find(word)
                    && is_pointer(address, block, distance)
                {
                    reach.root(block, address);
                }
            });
        }
        reach.spread(graph, 0, |_| true);
        reach
    }

    /// The same roots once more, but with what hangs on the blocks in `first` as theirs; what hangs on a leaf, which can only have a
    /// stale word, last. The process is not read again.
    pub(super) fn again(
        self,
        graph: &Graph,
        first: &[(BlockId, u64)],
        is_leaf: impl Fn(BlockId) -> bool,
    ) -> Self {
        let mut parents = self.parents;
        parents.fill(NOBODY);
        let mut reach = Self {
            parents,
            ..Self::default()
        };
        for (block, address) in first {
            reach.root(*block, *address);
        }
        reach.spread(graph, 0, |block| !is_leaf(block));
        let begun = reach.order.len();
        // All roots were found before anything else was reached.
        for (block, address) in self.order.iter().zip(&self.roots) {
            reach.root(*block, *address);
        }
        reach.spread(graph, begun, |block| !is_leaf(block));
        let leaves: Vec<BlockId> = reach
            .order
            .iter()
            .copied()
            .filter(|block| is_leaf(*block))
            .collect();
        let begun = reach.order.len();
        for block in leaves {
            reach.expand(graph, block);
        }
        reach.spread(graph, begun, |_| true);
        reach
    }

    fn root(&mut self, block: BlockId, address: u64) {
        let Some(parent) = self.parents.get_mut(block as usize) else {
            return;
        };
        if *parent != NOBODY {
            return;
        }
        let place = u32::try_from(self.roots.len()).unwrap_or(ROOT);
        if place >= ROOT - 1 {
            return;
        }
        *parent = ROOT | place;
        self.roots.push(address);
        self.order.push(block);
    }

    /// Breadth first, so that a block's parents are the shortest way to a root.
    fn spread(&mut self, graph: &Graph, from: usize, is_expanded: impl Fn(BlockId) -> bool) {
        let mut next = from;
        while let Some(block) = self.order.get(next).copied() {
            next += 1;
            if is_expanded(block) {
                self.expand(graph, block);
            }
        }
    }

    fn expand(&mut self, graph: &Graph, block: BlockId) {
        for target in graph.targets(block) {
            if let Some(parent) = self.parents.get_mut(*target as usize)
                && *parent == NOBODY
            {
                *parent = block;
                self.order.push(*target);
            }
        }
    }

    /// Whether a block is reached.
    pub(super) fn has(&self, block: BlockId) -> bool {
        self.parents
            .get(block as usize)
            .is_some_and(|parent| *parent != NOBODY)
    }

    /// By whom a block is reached first.
    pub(super) fn by(&self, block: BlockId) -> Reached {
        match self.parents.get(block as usize).copied() {
            None | Some(NOBODY) => Reached::Not,
            Some(parent) if parent & ROOT != 0 => self
                .roots
                .get((parent & !ROOT) as usize)
                .map_or(Reached::Not, |address| Reached::ByRoot(*address)),
            Some(parent) => Reached::By(parent),
        }
    }

    /// The blocks that are reached, a parent before those that it reaches.
    pub(super) fn order(&self) -> &[BlockId] {
        &self.order
    }
}

/// What of a range lies in no segment.
fn outside(range: Range<u64>, blocks: &Blocks) -> impl Iterator<Item = Range<u64>> {
    let mut parts = Vec::new();
    let mut start = range.start;
    let segments = blocks.segments();
    let first = segments.partition_point(|segment| segment.range().end <= range.start);
    for segment in segments.get(first..).unwrap_or_default() {
        if segment.range().start >= range.end {
            break;
        }
        if segment.range().start > start {
            parts.push(start..segment.range().start);
        }
        start = start.max(segment.range().end);
    }
    if start < range.end {
        parts.push(start..range.end);
    }
    parts.into_iter()
}

/// Of lost blocks, the heads: what hangs on no other lost block. Of a ring of blocks that nothing else leads to, the first in memory whose type is known, or the first.
pub(super) fn heads(
    graph: &Graph,
    lost: &[BlockId],
    has_type: impl Fn(BlockId) -> bool,
) -> Vec<BlockId> {
    const UNSEEN: u8 = 0;
    const HELD: u8 = 1;
    const VISITED: u8 = 2;
    let place = |block: &BlockId| lost.binary_search(block).ok();
    let mut states = vec![UNSEEN; lost.len()];
    for block in lost {
        for target in graph.targets(*block) {
            if let Some(state) = place(target).and_then(|place| states.get_mut(place)) {
                *state = HELD;
            }
        }
    }
    let mut found: Vec<BlockId> = lost
        .iter()
        .zip(&states)
        .filter(|(_, state)| **state == UNSEEN)
        .map(|(block, _)| *block)
        .collect();
    let mut work = found.clone();
    let mut rings = lost
        .iter()
        .filter(|block| has_type(**block))
        .chain(lost.iter());
    loop {
        while let Some(block) = work.pop() {
            match place(&block).and_then(|place| states.get_mut(place)) {
                Some(state) if *state != VISITED => *state = VISITED,
                _ => continue,
            }
            work.extend(graph.targets(block).iter().filter(|target| {
                place(target)
                    .and_then(|place| states.get(place))
                    .is_some_and(|state| *state != VISITED)
            }));
        }
        // What is left are rings, and what hangs on them.
        let next = rings.find(|block| {
            place(block)
                .and_then(|place| states.get(place))
                .is_some_and(|state| *state != VISITED)
        });
        let Some(block) = next else { break };
        found.push(*block);
        work.push(*block);
    }
    found
}
