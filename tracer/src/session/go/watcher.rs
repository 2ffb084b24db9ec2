//! The thread that looks at the heap of one Go program without a profile: it counts the blocks in use as of each collection, has some told of
//! where they are handed out, in windows that a budget bounds, and looks after each collection which of those are still there. It knows a process
//! by its id, and nothing of the trace.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use leakscope_common::{FaultRecord, GO_SPAN, UNKNOWN_SITE};

use super::{
    MOST_UNREAD,
    windows::{Windows, WindowsTask},
};
use crate::{
    apart::{self, GoMemory, Unread},
    kernel::{monotonic_ns, ordinary_priority, process_cpu_time, thread_cpu_time},
    ledger::SiteId,
    process::procfs::answering_memory,
    reader::ProcessMemory,
    runtime::go::{BlockFate, BlockKind, BlockPlace, Program, SpanCounts},
};

/// How often it is looked whether there was a collection.
const TICK: Duration = Duration::from_millis(50);

/// What of a process's memory can be read is looked at so often: heaps grow.
const REFRESH_EVERY: Duration = Duration::from_millis(250);

/// Blocks are counted so often where there was none; to count takes at most one part in so many of a processor.
const COUNT_EVERY: Duration = Duration::from_secs(1);
const COUNT_SHARE: u32 = 100;

/// A collection that ended so long after a block was handed out began after that: to mark takes less. Nanoseconds.
const MARKS_WITHIN_NS: u64 = 2_000_000_000;

/// The ends of so many collections are remembered, twice: of a block that was handed out before them it is heard within a second.
const REMEMBERED: u32 = 256;

/// Of so many collections at a time it is seen what they leave of a block: after two, its place may be another's that stays.
const MOST_UNSEEN: u32 = 1;

/// So many blocks are looked after. Of those that wait for a collection, those that came first.
const MOST_WATCHED: usize = 8192;
const MOST_STAYING: usize = 4096;

/// The part of the budget that blocks may take: the rest is for pages, and for C that the program calls.
const PART: f64 = 0.5;

/// A process at rest is taken to use so many processors, or next to no block of it would be seen.
const LEAST_CORES: f64 = 0.02;

/// What is asked of the thread.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) program: Arc<Program>,
    pub(super) bias: u64,
    pub(super) proc_root: PathBuf,
    pub(super) pid: u32,
    /// Where blocks are seen: of ordinary ones, and of large ones. None where no probe can be set.
    pub(super) windows: Vec<WindowsTask>,
    /// The share of the process's processor time that may be taken.
    pub(super) budget: f64,
    /// What a block that is told of takes of it.
    pub(super) hit: Duration,
}

/// What it tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The heap was counted; as of when (CLOCK_MONOTONIC nanoseconds).
    Counted(SpanCounts, u64),
    /// A block was there at a collection that began after it was handed out.
    Stays {
        block: u64,
        site: SiteId,
        kind: BlockKind,
        at_ns: u64,
    },
    /// It is there no more, or not looked at any more.
    Gone { block: u64 },
    /// Nothing more is to be seen of single blocks; why.
    Unseen(String),
}

/// The thread, as the trace sees it.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) told: Receiver<Told>,
    born: Sender<FaultRecord>,
    shared: Arc<Shared>,
}

/// What both sides know.
#[derive(Debug, Default)]
pub(super) struct Shared {
    stop: AtomicBool,
    /// A report waits for a count.
    wanted: AtomicBool,
    /// Blocks that were told of: ordinary and large ones; and how often those that wait to be told of were dealt with.
    pub(super) hits: [AtomicU64; 2],
    drains: AtomicU64,
}

impl Shared {
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn drains(&self) -> u64 {
        self.drains.load(Ordering::Relaxed)
    }

    pub(super) fn hits(&self, of: usize) -> u64 {
        self.hits
            .get(of)
            .map_or(0, |hits| hits.load(Ordering::Relaxed))
    }
}

impl Watcher {
    /// Begins. Nobody waits for the thread: what it reads may hang.
    pub(super) fn begin(task: Task) -> Self {
        let (tell, told) = channel();
        let (born, handed) = channel();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // Where no thread can be made, the channel is closed.
        let _ = thread::Builder::new()
            .name("go".to_owned())
            .spawn(move || Work::new(task, of_thread).run(&tell, &handed));
        Self { told, born, shared }
    }

    /// A block was handed out. `is_seen_twice`: it costs, and is told of once more.
    pub(super) fn note(&self, record: FaultRecord, is_seen_twice: bool) {
        let of = usize::from(record.marks & GO_SPAN != 0);
        if let Some(hits) = self.shared.hits.get(of) {
            hits.fetch_add(1, Ordering::Relaxed);
        }
        if !is_seen_twice {
            // The thread may have ended.
            let _ = self.born.send(record);
        }
    }

    /// What the probe has told so far was dealt with.
    pub(super) fn note_drain(&self) {
        self.shared.drains.fetch_add(1, Ordering::Relaxed);
    }

    /// Blocks that were told of.
    pub(super) fn hits(&self) -> u64 {
        self.shared.hits(0).saturating_add(self.shared.hits(1))
    }

    /// Asks for a count now.
    pub(super) fn want(&self) {
        self.shared.wanted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// A block that is looked after.
#[derive(Debug)]
struct Watched {
    place: BlockPlace,
    site: SiteId,
    at_ns: u64,
    /// Collections by then, and by the last look at which it was there.
    generation: u32,
    seen: u32,
    stays: bool,
}

/// The thread's own.
struct Work {
    task: Task,
    shared: Arc<Shared>,
    windows: Vec<Windows>,
    /// By where they begin.
    watched: BTreeMap<u64, Watched>,
    staying: usize,
    /// Collections at the last look at the blocks, and when each was first seen to have ended.
    looked: Option<u32>,
    ended_ns: HashMap<u32, u64>,
    counted: Option<u32>,
    next_count: Instant,
    /// What of its memory answers, and when that is looked at next.
    ranges: Vec<Range<u64>>,
    next_refresh: Instant,
    earned: (Instant, Duration),
}

impl Work {
    fn new(mut task: Task, shared: Arc<Shared>) -> Self {
        let cpu = process_cpu_time(task.pid).unwrap_or_default();
        let windows = std::mem::take(&mut task.windows);
        Self {
            windows: windows.into_iter().map(Windows::new).collect(),
            task,
            shared,
            watched: BTreeMap::new(),
            staying: 0,
            looked: None,
            ended_ns: HashMap::new(),
            counted: None,
            next_count: Instant::now(),
            ranges: Vec::new(),
            next_refresh: Instant::now(),
            earned: (Instant::now(), cpu),
        }
    }

    fn run(mut self, tell: &Sender<Told>, born: &Receiver<FaultRecord>) {
        ordinary_priority();
        let mut unread = 0;
        while !self.shared.is_stopped() {
            let Ok(memory) = ProcessMemory::open(&self.task.proc_root, self.task.pid) else {
                return;
            };
            self.refresh();
            let ranges = std::mem::take(&mut self.ranges);
            let place = GoMemory {
                memory: &memory,
                ranges: &ranges,
                bias: self.task.bias,
            };
            let looked = self
                .take_in(place, born, tell)
                .and_then(|()| self.look(place, tell));
            self.ranges = ranges;
            match looked {
                Ok(Some(())) => unread = 0,
                // It has ended, or is about to.
                Ok(None) => return,
                Err(why) if why.is_for_now() || unread < MOST_UNREAD => unread += 1,
                Err(why) => {
                    let _ = tell.send(Told::Unseen(format!("its heap is not read: {why}")));
                    return;
                }
            }
            self.earn();
            for windows in &mut self.windows {
                if let Err(why) = windows.step(self.task.pid, &self.shared) {
                    let _ = tell.send(Told::Unseen(why));
                    self.windows.clear();
                    break;
                }
            }
            thread::sleep(TICK);
        }
    }

    /// Looks what of its memory can be read, where that is not known of a moment ago.
    fn refresh(&mut self) {
        let now = Instant::now();
        if now >= self.next_refresh || now >= self.next_count {
            let (root, pid) = (&self.task.proc_root, self.task.pid);
            self.ranges = answering_memory(root, pid).unwrap_or_default();
            self.next_refresh = now + REFRESH_EVERY;
        }
    }

    /// Adds to each budget what the process's time since earns.
    fn earn(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.earned.0).as_secs_f64();
        let cpu = process_cpu_time(self.task.pid).unwrap_or(self.earned.1);
        let used = cpu.saturating_sub(self.earned.1).as_secs_f64();
        self.earned = (now, cpu);
        let earns = self.task.budget * PART * used.max(LEAST_CORES * passed);
        let parts = self.windows.len().max(1) as f64;
        for (of, windows) in self.windows.iter_mut().enumerate() {
            windows.earn(earns / parts, self.task.hit, self.shared.hits(of));
        }
    }

    /// Takes blocks in that were handed out.
    fn take_in(
        &mut self,
        memory: GoMemory<'_>,
        born: &Receiver<FaultRecord>,
        tell: &Sender<Told>,
    ) -> Result<(), Unread> {
        let records: Vec<FaultRecord> = born
            .try_iter()
            .filter(|record| record.site != UNKNOWN_SITE)
            .collect();
        if records.is_empty() {
            return Ok(());
        }
        let of_program = &self.task.program.places;
        let Some(generation) = memory.generation(of_program)? else {
            return Ok(());
        };
        let addresses = records
            .iter()
            .map(|record| (record.address, record.marks & GO_SPAN != 0));
        let places = memory.blocks(of_program, addresses.collect())?;
        let has_large = self.windows.len() > 1;
        for (record, place) in records.iter().zip(places) {
            let Some(place) = place else {
                continue;
            };
            // A large one is seen where its span is made, too.
            let is_seen_there = place.is_large && record.marks & GO_SPAN == 0 && has_large;
            if is_seen_there || self.watched.len() >= MOST_WATCHED {
                continue;
            }
            let born = self.generation_at(record.at_ns).unwrap_or(generation);
            if born != generation {
                // There was a collection before it was known of: what it left is looked at now, for its place may be another block's later.
                self.looked = None;
            }
            let watched = Watched {
                place,
                site: record.site,
                at_ns: record.at_ns,
                generation: born,
                seen: born,
                stays: false,
            };
            let before = self.watched.insert(place.start, watched);
            if before.is_some_and(|before| before.stays) {
                // Its place is another's.
                self.staying = self.staying.saturating_sub(1);
                let _ = tell.send(Told::Gone { block: place.start });
            }
        }
        Ok(())
    }

    /// Collections by a time, as far as they were seen.
    fn generation_at(&self, at_ns: u64) -> Option<u32> {
        let seen = self.ended_ns.iter().filter(|(_, ended)| **ended <= at_ns);
        let last = seen.max_by_key(|(_, ended)| **ended);
        let first = self.ended_ns.iter().min_by_key(|(_, ended)| **ended);
        last.or(first).map(|(generation, _)| *generation)
    }

    /// Looks what there is, and after a collection what is still there. `None`: there is no heap.
    fn look(&mut self, memory: GoMemory<'_>, tell: &Sender<Told>) -> Result<Option<()>, Unread> {
        let Some(generation) = memory.generation(&self.task.program.places)? else {
            return Ok(None);
        };
        self.ended_ns.entry(generation).or_insert_with(monotonic_ns);
        self.ended_ns
            .retain(|ended, _| generation.wrapping_sub(*ended) <= REMEMBERED);
        let is_wanted = self.shared.wanted.load(Ordering::Relaxed);
        if self.counted != Some(generation) || is_wanted || Instant::now() >= self.next_count {
            let spent = || thread_cpu_time().saturating_add(apart::spent_here());
            let (begun, begun_ns) = (spent(), monotonic_ns());
            // While it is being swept, the next turn does it.
            if let Some(counts) = memory.counts(&self.task.program.places)? {
                self.counted = Some(counts.generation);
                self.shared.wanted.store(false, Ordering::Relaxed);
                let spent = spent().saturating_sub(begun);
                self.next_count =
                    Instant::now() + COUNT_EVERY.max(spent.saturating_mul(COUNT_SHARE));
                let _ = tell.send(Told::Counted(counts, begun_ns));
            }
        }
        if self.looked != Some(generation) {
            self.look_after(memory, generation, tell)?;
        }
        Ok(Some(()))
    }

    /// Looks which blocks a collection has left.
    fn look_after(
        &mut self,
        memory: GoMemory<'_>,
        generation: u32,
        tell: &Sender<Told>,
    ) -> Result<(), Unread> {
        let ended_ns = self.ended_ns.get(&generation).copied().unwrap_or(0);
        let places: Vec<BlockPlace> = self.watched.values().map(|it| it.place).collect();
        let fates = memory.fates(&self.task.program.places, &places)?;
        let mut is_swept = true;
        for (place, fate) in places.iter().zip(fates) {
            let Some(watched) = self.watched.get_mut(&place.start) else {
                continue;
            };
            let collections = generation.wrapping_sub(watched.generation) / 2;
            if !watched.stays && generation.wrapping_sub(watched.seen) / 2 > MOST_UNSEEN {
                // It may have been freed by a collection that was missed, and be another block by now.
                self.watched.remove(&place.start);
                continue;
            }
            let was_there = collections >= 2
                || collections == 1 && watched.at_ns.saturating_add(MARKS_WITHIN_NS) < ended_ns;
            match fate {
                BlockFate::Unswept => is_swept = false,
                BlockFate::Marked if was_there && !watched.stays => {
                    if self.staying < MOST_STAYING {
                        watched.stays = true;
                        watched.seen = generation;
                        self.staying += 1;
                        let _ = tell.send(Told::Stays {
                            block: place.start,
                            site: watched.site,
                            kind: place.kind,
                            at_ns: watched.at_ns,
                        });
                    } else {
                        self.watched.remove(&place.start);
                    }
                }
                BlockFate::Marked => watched.seen = generation,
                // Not looked at by a collection so far.
                BlockFate::Unmarked if collections == 0 => {}
                BlockFate::Unmarked | BlockFate::Gone => {
                    if watched.stays {
                        self.staying = self.staying.saturating_sub(1);
                        let _ = tell.send(Told::Gone { block: place.start });
                    }
                    self.watched.remove(&place.start);
                }
            }
        }
        if is_swept {
            self.looked = Some(generation);
        }
        Ok(())
    }
}
