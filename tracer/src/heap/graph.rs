//! Which block points to which: what the roots reach, by whom each block is reached first, and what of the rest hangs on what.

use std::ops::Range;

use super::{
    blocks::{BlockId, Blocks},
    memory::{Memory, PAGE, Region, RegionKind, WORD, Window, each_word},
};

/// Stands in [`Reach::parents`] for a block that a root points to; the rest of the number is the root's place.
const ROOT: u32 = 1 << 31;
/// Nobody reaches it.
const NOBODY: u32 = u32::MAX;

/// Stands in [`Graph::targets`] beside a block that is pointed to somewhere in its middle.
const INSIDE: u32 = 1 << 31;
/// So far from its beginning pointers lead to what a block is for: behind what the runtime keeps there (`OBJECT_AT` of the types; the order
/// in which attributes were set, `Objects/dictobject.c` of 3.11 and 3.12).
const BEGINNING: u64 = 32;

/// The edges between blocks in use.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Where each block's edges begin, and one behind the last.
    offsets: Vec<u32>,
    /// Each with [`INSIDE`] where the pointer is not to an object's beginning.
    targets: Vec<u32>,
    /// Edges that there was no room for.
    pub(super) dropped: u64,
}

/// Reads what blocks hold.
#[derive(Clone, Copy)]
pub(super) struct Reader<'look> {
    pub(super) memory: &'look dyn Memory,
    /// What there is of the process's memory, in order: a block may be larger than all of it.
    pub(super) present: &'look [Range<u64>],
}

impl Reader<'_> {
    /// Reads the blocks in use, and hands each to somebody in parts: its number, address and length, how far in it a part
    /// begins, and the part.
    /// The first part begins with the block, holds [`VISITED`] bytes at least where there are so many, and is empty where nothing can
    /// be read.
    fn each_block(self, blocks: &Blocks, mut part: impl FnMut((BlockId, u64, u64), u64, &[u8])) {
        for segment in blocks.segments() {
            let mut window = Window::new(self.memory, segment.range().start, segment.range().end);
            for (block, address, length) in segment.used_blocks() {
                let end = address.saturating_add(length);
                let mut next = Some(address);
                while let Some(at) = next.filter(|at| *at < end) {
                    let left = end - at;
                    if at == address {
                        window.hold(at, left.min(VISITED));
                    }
                    let bytes = window.from(at).unwrap_or_default();
                    let bytes = bytes
                        .get(..usize::try_from(left).unwrap_or(usize::MAX))
                        .unwrap_or(bytes);
                    if at == address || !bytes.is_empty() {
                        part((block, address, length), at - address, bytes);
                    }
                    let whole = bytes.len() as u64 / WORD * WORD;
                    next = match whole {
                        0 => self.present_from(at / PAGE * PAGE + PAGE),
                        _ if left > LARGE => self.present_from(at + whole),
                        _ => Some(at + whole),
                    };
                }
                if length == 0 {
                    part((block, address, length), 0, &[]);
                }
            }
        }
    }

    /// The first address from this one on at which there is something.
    fn present_from(self, address: u64) -> Option<u64> {
        let behind = self.present.partition_point(|range| range.end <= address);
        self.present
            .get(behind)
            .map(|range| range.start.max(address))
    }
}

impl Graph {
    /// Reads every block in use, and hands its address, its length and its content, or the beginning of it, to `visit`, which says what part of the
    /// block holds no pointers of the program's. Keeps at most so many edges.
    pub(super) fn build(
        reader: Reader<'_>,
        blocks: &Blocks,
        most_edges: usize,
        mut visit: impl FnMut(u64, u64, &[u8]) -> Range<u64>,
    ) -> Self {
        let mut graph = Self {
            offsets: Vec::with_capacity(blocks.count() as usize + 1),
            ..Self::default()
        };
        let most_edges = most_edges.min(u32::MAX as usize);
        let mut skipped = 0..0;
        reader.each_block(blocks, |(block, address, length), place, bytes| {
            if place == 0 {
                graph.offsets.push(graph.targets.len() as u32);
                skipped = visit(address, length, bytes);
            }
            for (number, word) in bytes.chunks_exact(WORD as usize).enumerate() {
                let word = word.try_into().map_or(0, u64::from_le_bytes);
                if let Some((target, distance)) = blocks.find(word)
                    && target != block
                    && !skipped.contains(&(place + number as u64 * WORD))
                {
                    if graph.targets.len() < most_edges {
                        let inside = if distance <= BEGINNING { 0 } else { INSIDE };
                        graph.targets.push(target | inside);
                    } else {
                        graph.dropped += 1;
                    }
                }
            }
        });
        graph.offsets.push(graph.targets.len() as u32);
        graph
    }

    /// Doubts what leads to blocks that are doubted, so many steps up.
    pub(super) fn doubt(&self, doubted: &mut Vec<bool>, steps: usize) {
        for _ in 0..steps {
            let is_doubted = |block: &BlockId| doubted.get(*block as usize) == Some(&true);
            if !doubted.contains(&true) {
                return;
            }
            let leads = |block: BlockId| self.targets(block).any(|target| is_doubted(&target));
            let next = (0..)
                .zip(doubted.iter())
                .map(|(block, is)| *is || leads(block));
            *doubted = next.collect();
        }
    }

    /// What a block points to.
    pub(super) fn targets(&self, block: BlockId) -> impl Iterator<Item = BlockId> + '_ {
        self.edges(block).iter().map(|edge| edge & !INSIDE)
    }

    fn edges(&self, block: BlockId) -> &[u32] {
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
pub(super) const VISITED: u64 = 96;

/// Of a block of more bytes, what was never written to is passed over.
const LARGE: u64 = 16 * PAGE;

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
        reader: Reader<'_>,
        regions: &[Region],
        torn: &[Range<u64>],
        blocks: &Blocks,
        graph: &Graph,
        is_pointer: impl Fn(u64, BlockId, u64) -> bool,
    ) -> Self {
        let mut reach = Self::of(blocks);
        reach.add_roots(reader, regions, torn, blocks, is_pointer);
        reach.spread(graph, 0, |_| true);
        reach
    }

    /// Nothing is reached yet.
    pub(super) fn of(blocks: &Blocks) -> Self {
        Self {
            parents: vec![NOBODY; blocks.count() as usize],
            ..Self::default()
        }
    }

    /// Takes every word of the process that lies in no heap for a root.
    pub(super) fn add_roots(
        &mut self,
        reader: Reader<'_>,
        regions: &[Region],
        torn: &[Range<u64>],
        blocks: &Blocks,
        is_pointer: impl Fn(u64, BlockId, u64) -> bool,
    ) {
        let outside = regions
            .iter()
            .filter(|region| region.kind != RegionKind::Constant)
            .flat_map(|region| &region.present)
            .flat_map(|present| outside(present.clone(), blocks));
        for range in outside.chain(torn.iter().cloned()) {
            each_word(reader.memory, range, |address, word| {
                if let Some((block, distance)) = blocks.find(word)
                    && is_pointer(address, block, distance)
                {
                    self.root(block, address);
                }
            });
        }
    }

    /// Takes every word of blocks that are not looked at themselves for a root. Where it stands is not kept. `skipped` says of a block's
    /// address and beginning which part holds no pointers of the program's.
    pub(super) fn add_blocks(
        &mut self,
        reader: Reader<'_>,
        others: &Blocks,
        blocks: &Blocks,
        skipped: impl Fn(u64, &[u8]) -> Range<u64>,
        is_pointer: impl Fn(u64, BlockId, u64) -> bool,
    ) {
        let mut without = 0..0;
        reader.each_block(others, |(_, address, _), place, bytes| {
            if place == 0 {
                without = skipped(address, bytes);
            }
            for (number, word) in (0..).zip(bytes.chunks_exact(WORD as usize)) {
                let word = word.try_into().map_or(0, u64::from_le_bytes);
                if let Some((block, distance)) = blocks.find(word)
                    && !without.contains(&(place + number * WORD))
                    && is_pointer(0, block, distance)
                {
                    self.root(block, 0);
                }
            }
        });
    }

    /// The same roots once more, but with what hangs on the blocks in `first` as theirs; what only hangs on a pointer into the middle of
    /// a block, or on a leaf, which can only have a stale word, last. The process is not read again.
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
        let mut begun = 0;
        // All roots were found before anything else was reached.
        let others: Vec<(BlockId, u64)> = self.order.into_iter().zip(self.roots).collect();
        for roots in [first, &others] {
            for (block, address) in roots {
                reach.root(*block, *address);
            }
            while let Some(block) = reach.order.get(begun).copied() {
                begun += 1;
                if !is_leaf(block) {
                    reach.expand_exactly(graph, block);
                }
            }
        }
        for leaves in [false, true] {
            let begun = reach.order.len();
            for place in 0..begun {
                let block = reach.order.get(place).copied();
                if let Some(block) = block.filter(|block| is_leaf(*block) == leaves) {
                    reach.expand(graph, block);
                }
            }
            reach.spread(graph, begun, |block| leaves || !is_leaf(block));
        }
        reach
    }

    /// Takes a block as one that a word at an address leads to.
    pub(super) fn root(&mut self, block: BlockId, address: u64) {
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

    /// Goes on from what is reached, from one on in order. Breadth first, so that a block's parents are the shortest way to a root.
    pub(super) fn spread(
        &mut self,
        graph: &Graph,
        from: usize,
        is_expanded: impl Fn(BlockId) -> bool,
    ) {
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
            self.reach_by(block, target);
        }
    }

    /// The same, but only what it points to the beginning of.
    fn expand_exactly(&mut self, graph: &Graph, block: BlockId) {
        for edge in graph
            .edges(block)
            .iter()
            .filter(|edge| **edge & INSIDE == 0)
        {
            self.reach_by(block, *edge);
        }
    }

    fn reach_by(&mut self, parent: BlockId, target: BlockId) {
        if let Some(place) = self.parents.get_mut(target as usize)
            && *place == NOBODY
        {
            *place = parent;
            self.order.push(target);
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
            if let Some(state) = place(&target).and_then(|place| states.get_mut(place)) {
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
            work.extend(graph.targets(block).filter(|target| {
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
