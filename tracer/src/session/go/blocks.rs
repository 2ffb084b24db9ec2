//! The heap of a Go program without a profile: from what is counted and seen of single blocks to sites of the report.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Arc, mpsc::TryRecvError},
    time::{Duration, Instant},
};

use leakscope_common::{FaultRecord, GO_SPAN};

use super::{
    GoProcess, Names,
    site::physical_frames,
    types::types_of,
    watcher::{Task, Told, Watcher},
    windows::WindowsTask,
};
use crate::{
    kernel::KernelError,
    ledger::{
        Born, CollectedCount, CollectedLevels, FIRST_KIND, Judgement, Kind, KindOfSite, SiteId,
        TypedGrowth, TypedSite, Verdict,
    },
    report::{Frame, GoHeapUse, GoSize, Site, SiteKind},
    runtime::go::{BlockKind, SpanCounts},
    session::{Session, moment::Moment, report::identity_of},
    units::{bytes, count},
};

/// So many sizes are named in a verdict, and so many listed.
const NAMED: usize = 3;
const LISTED: usize = 12;

/// The last report waits so long for a count; while it does, what happens is dealt with so often.
const LAST_WITHIN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(10);

/// What is said of blocks that the runtime keeps for itself, and the functions that make them: records of goroutines, of who waits, of deferred
/// calls, of threads (src/runtime/proc.go, panic.go).
const OF_RUNTIME: &str =
    "; they are the runtime's own records of goroutines and of what waits, which it uses again";
const KEPT: [&[u8]; 4] = [
    b"runtime.malg",
    b"runtime.acquireSudog",
    b"runtime.newdefer",
    b"runtime.allocm",
];

/// Blocks that values without pointers share which are smaller.
const SHARED: BlockKind = BlockKind {
    bytes: 16,
    is_plain: true,
};

/// What is known of the heap.
#[derive(Debug)]
pub(super) struct Blocks {
    watcher: Watcher,
    levels: CollectedLevels,
    typed: TypedGrowth,
    kinds: HashMap<BlockKind, Kind>,
    names: Vec<BlockKind>,
    last: Option<SpanCounts>,
    collected: Option<Instant>,
    looks: u64,
    /// Bytes by the first level that is known, and by the last.
    first_bytes: Option<u64>,
    level_bytes: u64,
    /// Why no block is seen where it is handed out.
    pub(super) unseen: Option<String>,
    is_over: bool,
    /// Sites of stacks that are seen once more behind the function that called this one.
    doubled: HashMap<SiteId, bool>,
    /// The report's sites by the stack's slot, and as of the last report.
    ids: BTreeMap<SiteId, SiteId>,
    stacks: HashMap<SiteId, Vec<u64>>,
    /// What blocks are that are handed out at a stack, as far as the call that allocates them says.
    types: HashMap<SiteId, Option<String>>,
    judged: HashMap<SiteId, Judgement>,
}

impl Blocks {
    pub(super) fn begin(task: Task, unseen: Option<String>) -> Self {
        Self {
            watcher: Watcher::begin(task),
            levels: CollectedLevels::default(),
            typed: TypedGrowth::default(),
            kinds: HashMap::new(),
            names: Vec::new(),
            last: None,
            collected: None,
            looks: 0,
            first_bytes: None,
            level_bytes: 0,
            unseen,
            is_over: false,
            doubled: HashMap::new(),
            ids: BTreeMap::new(),
            stacks: HashMap::new(),
            types: HashMap::new(),
            judged: HashMap::new(),
        }
    }

    /// Whether anything was counted so far.
    pub(super) fn is_counted(&self) -> bool {
        self.last.is_some()
    }

    /// By how many bytes it has grown since the first level that is known, as far as sites tell of it.
    pub(super) fn inuse_bytes(&self) -> f64 {
        let size = |kind| self.name(kind).map_or(0, |kind| kind.bytes);
        self.typed.grown_bytes(size) as f64
    }

    /// Bytes in use at the first level that is known, as far as they still are, and what it has grown by since. `None`: nothing is known, or
    /// not where.
    pub(super) fn levels(&self) -> Option<(u64, u64)> {
        let first = self.first_bytes.filter(|_| self.unseen.is_none())?;
        let level = self.level_bytes;
        Some((first.min(level), level.saturating_sub(first)))
    }

    /// Blocks that were seen where they are handed out.
    pub(super) fn hits(&self) -> u64 {
        self.watcher.hits()
    }

    /// Whether a count is still to come for a report that waits for one, which began when there had been so many.
    fn is_awaited(&self, looks: u64) -> bool {
        self.looks == looks && !self.is_over
    }

    fn kind(&mut self, of: BlockKind) -> Option<Kind> {
        if let Some(known) = self.kinds.get(&of) {
            return Some(*known);
        }
        let number = Kind::try_from(self.names.len())
            .ok()?
            .checked_add(FIRST_KIND)?;
        self.names.push(of);
        self.kinds.insert(of, number);
        Some(number)
    }

    fn name(&self, kind: Kind) -> Option<BlockKind> {
        let place = usize::from(kind.checked_sub(FIRST_KIND)?);
        self.names.get(place).copied()
    }

    /// Takes in what the thread tells.
    pub(super) fn take_in(&mut self) {
        loop {
            match self.watcher.told.try_recv() {
                Ok(Told::Counted(counts, at_ns)) => self.counted(counts, at_ns),
                Ok(Told::Stays {
                    block,
                    site,
                    kind,
                    at_ns,
                }) => {
                    if let Some(number) = self.kind(kind) {
                        let born = Born {
                            site,
                            kind: number,
                            bytes: kind.bytes,
                            at_ns,
                            is_told_apart: true,
                        };
                        self.typed.add(block, born);
                    }
                }
                Ok(Told::Gone { block }) => self.typed.remove(block),
                Ok(Told::Unseen(why)) => self.unseen = Some(why),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    return;
                }
            }
        }
    }

    fn counted(&mut self, counts: SpanCounts, at_ns: u64) {
        let is_new = self
            .last
            .as_ref()
            .is_some_and(|last| last.generation != counts.generation);
        if is_new {
            self.collected = Some(Instant::now());
        }
        let of_kinds: Vec<(Kind, CollectedCount)> = counts
            .kinds
            .iter()
            .filter_map(|(kind, found)| {
                let of = CollectedCount {
                    live: found.live,
                    born: found.born,
                };
                Some((self.kind(*kind)?, of))
            })
            .collect();
        let collections = u64::from(counts.generation / 2);
        let known = self
            .levels
            .note(at_ns, collections, of_kinds.into_iter().collect());
        for (at_ns, levels) in known {
            self.level_bytes = levels
                .iter()
                .filter_map(|(kind, objects)| {
                    Some(self.name(*kind)?.bytes.saturating_mul(*objects))
                })
                .fold(0, u64::saturating_add);
            self.first_bytes.get_or_insert(self.level_bytes);
            self.typed.note(at_ns, levels, 0);
        }
        self.last = Some(counts);
        self.looks += 1;
    }

    /// What a site grows by, in words: `+1,000 blocks of 96 B/s`.
    fn words(&self, kinds: &[KindOfSite]) -> String {
        let words: Vec<String> = kinds
            .iter()
            .filter(|of| of.objects_per_s > 0.0)
            .take(NAMED)
            .filter_map(|of| {
                let size = bytes(self.name(of.kind)?.bytes);
                Some(match of.objects_per_s {
                    fast if fast >= 10.0 => {
                        format!("+{} blocks of {size}/s", count(fast.round() as u64))
                    }
                    slow => format!("+{slow:.1} blocks of {size}/s"),
                })
            })
            .collect();
        words.join(", ")
    }

    /// The sizes that grow, where it is not known at which line.
    pub(super) fn growing(&self) -> Option<String> {
        let size = |kind| self.name(kind).map_or(0, |kind| kind.bytes);
        let growing = self.typed.growing(size);
        let words = self.words(&growing);
        (!words.is_empty()).then_some(words)
    }

    /// What is said of the heap.
    pub(super) fn used(&self) -> Option<GoHeapUse> {
        let last = self.last.as_ref()?;
        let mut sizes: Vec<GoSize> = last
            .kinds
            .iter()
            .filter(|(_, count)| count.live > 0)
            .map(|(kind, count)| GoSize {
                block_bytes: kind.bytes,
                has_pointers: !kind.is_plain,
                objects: count.live,
                bytes: kind.bytes.saturating_mul(count.live),
            })
            .collect();
        sizes.sort_by_key(|size| std::cmp::Reverse(size.bytes));
        let sum = |of: fn(&GoSize) -> u64| sizes.iter().map(of).fold(0, u64::saturating_add);
        let since = last
            .kinds
            .iter()
            .map(|(kind, count)| kind.bytes.saturating_mul(count.born));
        Some(GoHeapUse {
            inuse_bytes: sum(|size| size.bytes),
            inuse_objects: sum(|size| size.objects),
            allocated_since_bytes: since.fold(0, u64::saturating_add),
            span_bytes: last.span_bytes,
            sizes: {
                sizes.truncate(LISTED);
                sizes
            },
            is_sampled: self.unseen.is_none(),
        })
    }

    /// Collections: in all, since tracing began, and when the last of these was.
    pub(super) fn collections(&self) -> (u64, u64, Option<Instant>) {
        let last = self.last.as_ref();
        let all = last.map_or(0, |last| u64::from(last.generation / 2));
        (all, self.levels.collections(), self.collected)
    }

    pub(super) fn judgement(&self, id: SiteId) -> Option<&Judgement> {
        self.judged.get(&id)
    }

    /// Names the frames of a site.
    pub(super) fn frames(&self, id: SiteId, names: Names<'_>) -> Option<Vec<Arc<Frame>>> {
        let stack = self.stacks.get(&id)?;
        // The first is where the block is handed out.
        Some(physical_frames(names, stack.get(1..).unwrap_or(stack)))
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.ids.values().copied()
    }
}

/// Whether a block that was handed out at the leaf of a stack is handed on by `mallocgc`, where it is seen once more.
fn is_handed_on(process: &GoProcess, frames: &[u64]) -> bool {
    let Some(found) = process.found.as_ref() else {
        return false;
    };
    let is_general = |address: u64| {
        let place = address.wrapping_sub(found.bias);
        found.program.functions.name_of(place) == Some(b"runtime.mallocgc")
    };
    match frames {
        [leaf, caller, ..] => is_general(caller.wrapping_sub(1)) && !is_general(*leaf),
        _ => false,
    }
}

impl GoProcess {
    /// Whether a block that was handed out at a stack is the runtime's own: no code of the program's asked for it, or it is of a kind that
    /// the runtime keeps to use again.
    fn is_of_runtime(&self, frames: &[u64]) -> bool {
        let Some(found) = self.found.as_ref() else {
            return false;
        };
        let name = |address: &u64| {
            let place = address.wrapping_sub(found.bias).wrapping_sub(1);
            found.program.functions.name_of(place)
        };
        let of_runtime = frames
            .iter()
            .take_while(|address| name(address).is_some_and(|name| name.starts_with(b"runtime.")));
        let is_kept = |address| name(address).is_some_and(|name| KEPT.contains(&name));
        of_runtime.clone().any(is_kept) || of_runtime.count() == frames.len()
    }
}

impl Session {
    /// Begins to look at the heaps of Go programs without a profile, and takes in what was found.
    pub(in crate::session) fn step_go(&mut self) {
        let mut wanted = Vec::new();
        for (incarnation, process) in &mut self.go.processes {
            if let Some(blocks) = &mut process.blocks {
                blocks.watcher.note_drain();
                blocks.take_in();
            } else if process.looked_ns != 0 && !process.has_profile() && process.found.is_some() {
                wanted.push(*incarnation);
            }
        }
        for incarnation in wanted {
            let traced = self
                .processes
                .values()
                .find(|traced| traced.incarnation == incarnation && traced.ended.is_none());
            let Some(pid) = traced.map(|traced| traced.pid) else {
                continue;
            };
            let watcher = if self.options.mappings_only {
                Err("no allocator is probed in the growth tier".to_owned())
            } else {
                self.probe.block_watcher()
            };
            let Some(process) = self.go.processes.get_mut(&incarnation) else {
                continue;
            };
            let Some(found) = process.found.as_ref() else {
                continue;
            };
            let places = [
                (&found.program.returns, 0),
                (&found.program.returns_of_large, GO_SPAN),
            ];
            let windows = watcher.map(|watcher| {
                places
                    .into_iter()
                    .zip(0_usize..)
                    .filter_map(|((returns, marks), number)| {
                        let offset = |at: &u64| found.module.elf.as_ref()?.file_offset_of(*at);
                        let offsets: Vec<u64> = returns.iter().filter_map(offset).collect();
                        (!offsets.is_empty()).then(|| WindowsTask {
                            watcher: watcher.clone(),
                            module: Arc::clone(&found.module),
                            offsets,
                            marks,
                            number,
                        })
                    })
                    .collect::<Vec<_>>()
            });
            let (windows, unseen) = match windows {
                Ok(windows) => (windows, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            let task = Task {
                program: Arc::clone(&found.program),
                bias: found.bias,
                proc_root: self.proc_root.clone(),
                pid,
                windows,
                budget: self.options.budget,
                hit: self.costs.hit,
            };
            process.blocks = Some(Blocks::begin(task, unseen));
        }
    }

    /// Counts once more for the last report, which is of now.
    pub(in crate::session) fn count_go_for_last_report(&mut self) -> Result<(), KernelError> {
        let mut before = Vec::new();
        for (incarnation, process) in &self.go.processes {
            if let Some(blocks) = process.blocks.as_ref().filter(|it| it.is_counted()) {
                blocks.watcher.want();
                before.push((*incarnation, blocks.looks));
            }
        }
        let begun = Instant::now();
        let waits = |session: &Self| {
            before.iter().any(|(incarnation, looks)| {
                let process = session.go.processes.get(incarnation);
                let blocks = process.and_then(|process| process.blocks.as_ref());
                blocks.is_some_and(|blocks| blocks.is_awaited(*looks))
            })
        };
        while waits(self) && begun.elapsed() < LAST_WITHIN {
            self.step(STEP)?;
        }
        Ok(())
    }

    /// A block was handed out.
    pub(in crate::session) fn note_go_block(&mut self, record: FaultRecord) {
        let Some(process) = self.go.processes.get_mut(&record.incarnation) else {
            return;
        };
        let Some(mut blocks) = process.blocks.take() else {
            return;
        };
        let stack = self.stacks.get(&record.site);
        let is_doubled = record.marks & GO_SPAN == 0
            && stack.is_some_and(|stack| {
                *blocks
                    .doubled
                    .entry(record.site)
                    .or_insert_with(|| is_handed_on(process, &stack.frames))
            });
        if let Some(stack) = stack
            && let Entry::Vacant(place) = blocks.types.entry(stack.canonical)
        {
            let mut running = self.processes.values();
            let traced = running.find(|traced| traced.incarnation == record.incarnation);
            place.insert(
                traced.and_then(|traced| {
                    process.block_type(&self.proc_root, traced.pid, &stack.frames)
                }),
            );
        }
        blocks.watcher.note(record, is_doubled);
        process.blocks = Some(blocks);
    }

    /// Adds the sites at which blocks are handed out that stay.
    pub(in crate::session) fn add_go_blocks(&mut self, moment: &Moment, sites: &mut Vec<Site>) {
        let running: Vec<(u32, u32, u64)> = self
            .processes
            .values()
            .map(|traced| (traced.incarnation, traced.pid, moment.of(traced.ended).ns()))
            .collect();
        for (incarnation, pid, now_ns) in running {
            let Some(process) = self.go.processes.get_mut(&incarnation) else {
                continue;
            };
            let allocator = process.allocator();
            let Some(mut blocks) = process.blocks.take() else {
                continue;
            };
            self.add_blocks_of(&mut blocks, (incarnation, pid, now_ns), &allocator, sites);
            if let Some(process) = self.go.processes.get_mut(&incarnation) {
                process.blocks = Some(blocks);
            }
        }
    }

    fn add_blocks_of(
        &mut self,
        blocks: &mut Blocks,
        (incarnation, pid, now_ns): (u32, u32, u64),
        allocator: &str,
        sites: &mut Vec<Site>,
    ) {
        let stacks = &self.stacks;
        let joined = |site| stacks.get(&site).map_or(site, |stack| stack.canonical);
        let found = blocks.typed.sites(joined, now_ns);
        let watched_s = blocks.typed.watched_s(now_ns);
        blocks.judged.clear();
        for (slot, of) in &found {
            let grown = of.counted.grown_bytes;
            if of.counted.bytes_per_s <= 0.0 || grown < 1.0 {
                continue;
            }
            let next = &mut self.go.sites;
            let id = *blocks.ids.entry(*slot).or_insert_with(|| {
                let id = *next;
                *next = next.saturating_add(1).min(SiteId::MAX - 1);
                id
            });
            if let Some(stack) = self.stacks.get(slot) {
                blocks
                    .stacks
                    .entry(id)
                    .or_insert_with(|| stack.frames.clone());
            }
            let mut judgement = blocks.judge(of, watched_s);
            if judgement.verdict == Verdict::Leaking
                && let Some(process) = self.go.processes.get(&incarnation)
                && blocks
                    .stacks
                    .get(&id)
                    .is_some_and(|it| process.is_of_runtime(it))
            {
                judgement.verdict = Verdict::WarmingUp;
                judgement.reason.push_str(OF_RUNTIME);
            }
            let error = 1.96 * of.counted.error() * watched_s;
            let objects: f64 = of.kinds.iter().map(|kind| kind.objects.max(0.0)).sum();
            let objects = (objects as u64).max(1);
            let block_type = blocks.types.get(slot).and_then(Option::as_ref);
            sites.push(Site {
                kind: SiteKind::Go,
                types: types_of(block_type, objects, grown as u64),
                inuse_bytes: grown as u64,
                inuse_objects: objects,
                inuse_bytes_low: (grown - error).max(0.0) as u64,
                inuse_bytes_high: (grown + error) as u64,
                alloc_bytes: grown as u64,
                alloc_objects: objects,
                oldest_age_s: now_ns.saturating_sub(of.since_ns) as f64 / 1e9,
                growth_bytes_per_s: judgement.growth_bytes_per_s,
                weight: 1,
                allocator: Some(allocator.to_owned()),
                id: u64::from(id),
                ..identity_of(self, *slot, *slot, pid, incarnation)
            });
            blocks.judged.insert(id, judgement);
        }
    }
}

impl Blocks {
    /// Whether what grows are for the most part blocks that several small values share (src/runtime/malloc.go, `maxTinySize`).
    fn is_of_shared(&self, kinds: &[KindOfSite]) -> bool {
        let (mut all, mut shared) = (0.0, 0.0);
        for of in kinds.iter().filter(|of| of.objects_per_s > 0.0) {
            all += of.bytes_per_s();
            if self.name(of.kind) == Some(SHARED) {
                shared += of.bytes_per_s();
            }
        }
        2.0 * shared > all
    }

    fn judge(&self, of: &TypedSite, watched_s: f64) -> Judgement {
        let judgement = of.judge(watched_s, &self.words(&of.kinds));
        let collections = match self.levels.collections() {
            1 => "one collection seen".to_owned(),
            several => format!("{} collections seen", count(several)),
        };
        let reason = judgement
            .reason
            .replace("objects of its types", "blocks of its sizes")
            .replace("objects", "blocks");
        let is_shared = self.is_of_shared(&of.kinds);
        if judgement.verdict == Verdict::Leaking && is_shared {
            return Judgement {
                verdict: Verdict::WarmingUp,
                reason: format!(
                    "{reason}; {collections}; values of less than 16 B share a block, and which of them stays is not known"
                ),
                ..judgement
            };
        }
        let is_said = judgement.verdict != Verdict::InsufficientData;
        Judgement {
            reason: if is_said {
                format!("{reason}; {collections}")
            } else {
                reason
            },
            ..judgement
        }
    }
}
