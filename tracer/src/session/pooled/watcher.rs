//! The thread that looks at the pools of one process: it counts the objects now and then, and watches words in blocks that are about to be handed out, so that
//! the probe tells who makes an object there. It knows a process by its id, and nothing of the trace.

use std::{
    collections::HashMap,
    num::NonZero,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    armed::{Armed, MOST_WRITES, State},
    choose::{Choice, Random, choose, state_of},
    growing::Growing,
    threads::{Threads, time_of},
};
use crate::{
    apart::{
        Place, objects_in, spent_here, walk_kept, walk_next_words, walk_pools, walk_young_pools,
    },
    heap::{BlockObject, ObjectKind, PooledCounts, Region, YoungPool},
    kernel::{
        WriteWatcher, Writers, monotonic_ns, ordinary_priority, process_cpu_time, thread_cpu_time,
    },
    process::procfs::list_threads,
    reader::{ProcessMemory, read_address_space},
};

/// How often watched words are looked after.
const TICK: Duration = Duration::from_millis(50);

/// Words are chosen this far apart at least; to look where blocks are handed out takes at most one part in so many of a processor.
const CHOOSE_EVERY: Duration = Duration::from_millis(250);
const CHOOSE_SHARE: u32 = 200;

/// Which memory there is is read so often: to read it takes longer than to look through the pools.
const REGIONS_EVERY: Duration = Duration::from_secs(2);

/// What a write that is seen costs the process: 12.7 µs measured on a virtual machine, which leaves the processor for it; 1 to 2 µs elsewhere.
const WRITE_NS: u64 = 13_000;

/// Of the words that are chosen, the part in objects that have settled.
const AGAIN_PART: f64 = 0.5;

/// So many objects are looked at again, the last ones: by then it is known whose growth is whose.
const MOST_KEPT: usize = 1024;

/// Between two counts there is at least this time; the first few come sooner than the budget has room for.
const COUNT_EVERY: Duration = Duration::from_secs(5);
const SECOND_AFTER: Duration = Duration::from_secs(4);
const FIRST: u32 = 6;
const FIRST_EVERY: Duration = Duration::from_secs(8);
const FIRST_SHARE: f64 = 0.025;

/// Of the budget, the part that counting may take, and the part that writes may.
const COUNT_PART: f64 = 0.25;
const WRITE_PART: f64 = 0.35;

/// What the first writes that are seen may take besides, once in a trace: of a process that hardly runs, its budget would not let anything be learnt.
pub(in crate::session) const FIRST_WRITES: Duration = Duration::from_millis(6);

/// A process at rest is taken to use so many processors, or it would be looked at too rarely to tell anything: counting takes nothing of its time.
const LEAST_CORES: f64 = 0.25;
const LEAST_CORES_FOR_WRITES: f64 = 0.005;

/// A kind by so few objects more than at first does not grow, for all that is known.
const LEAST_GROWTH: u64 = 50;

/// A count ends after so long, and after so many bytes.
const WITHIN: Duration = Duration::from_secs(20);
const MOST_BYTES: u64 = 16 << 30;

/// A process whose heap was not found so often has none of this kind.
const FAILURES: u32 = 3;

/// What is asked of the thread.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) proc_root: PathBuf,
    pub(super) pid: u32,
    /// `None`: no word can be watched.
    pub(super) writes: Option<WriteWatcher>,
    /// The share of the process's processor time that may be taken.
    pub(super) budget: f64,
}

/// What it tells.
#[derive(Debug)]
pub(super) enum Told {
    /// Objects were counted; as of when (CLOCK_MONOTONIC nanoseconds).
    Counted {
        counts: PooledCounts,
        at_ns: u64,
        /// Blocks whose object is there no more.
        gone: Vec<u64>,
    },
    /// An object was made in a block, and has stayed for a while: whoever wrote to the word last made it.
    Settled {
        block: u64,
        word: u64,
        kind: ObjectKind,
        /// Whether what it holds tells it from another of its kind.
        is_told_apart: bool,
        /// Since when it was watched, CLOCK_MONOTONIC nanoseconds.
        since_ns: u64,
    },
    /// An object that had settled was watched again for so many seconds; whether another one took its place.
    Again {
        block: u64,
        seconds: f64,
        is_replaced: bool,
    },
    /// A block is not looked at any more, for there are enough.
    Forgotten { block: u64 },
    /// Nothing more is to come; why.
    Over(String),
}

/// The thread, as the trace sees it.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) told: Receiver<Told>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// A report waits for a count.
    wanted: AtomicBool,
    /// Writes seen, and our own processor time in nanoseconds.
    writes: AtomicU64,
    spent_ns: AtomicU64,
    armed: Mutex<Vec<Armed>>,
}

impl Watcher {
    /// Begins. Nobody waits for the thread: what it reads may hang.
    pub(super) fn begin(task: Task) -> Self {
        let (tell, told) = channel();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // Where no thread can be made, the channel is closed.
        let _ = thread::Builder::new()
            .name("objects".to_owned())
            .spawn(move || Work::new(task, of_thread).run(&tell));
        Self { told, shared }
    }

    /// Asks for a count now.
    pub(super) fn want(&self) {
        self.shared.wanted.store(true, Ordering::Relaxed);
    }

    /// Writes seen and what they took of the process's time.
    pub(super) fn cost(&self) -> (u64, Duration) {
        let writes = self.shared.writes.load(Ordering::Relaxed);
        (
            writes,
            Duration::from_nanos(writes.saturating_mul(WRITE_NS)),
        )
    }

    /// Watches nothing any more, from now on.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.words().clear();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn words(&self) -> std::sync::MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The thread's own.
struct Work {
    task: Task,
    shared: Arc<Shared>,
    regions: Vec<Region>,
    regions_read: Instant,
    pool_bytes: u64,
    /// Objects of each kind at the first count, and by how many bytes each has grown since.
    first: HashMap<ObjectKind, u64>,
    wanted: Vec<(ObjectKind, f64)>,
    /// How pools were at the last choice.
    before: HashMap<u64, (u64, u64, u32)>,
    /// How many objects of each kind have settled: of those that have fewer, more are watched.
    seen: HashMap<ObjectKind, u32>,
    /// Blocks of which it was told that they have settled.
    settled: Vec<(u64, BlockObject)>,
    began: Instant,
    next_count: Instant,
    next_choice: Instant,
    counts: u32,
    failed: u32,
    /// Processor time of the process that writes may still cost, seconds.
    credit: f64,
    credited: (Instant, Duration),
    threads: Threads,
    growing: Growing,
    random: Random,
}

impl Work {
    fn new(task: Task, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let cpu = process_cpu_time(task.pid).unwrap_or_default();
        Self {
            task,
            shared,
            regions: Vec::new(),
            regions_read: now,
            pool_bytes: 0,
            first: HashMap::new(),
            wanted: Vec::new(),
            before: HashMap::new(),
            seen: HashMap::new(),
            settled: Vec::new(),
            began: now,
            next_count: now,
            next_choice: now,
            counts: 0,
            failed: 0,
            credit: FIRST_WRITES.as_secs_f64(),
            credited: (now, cpu),
            threads: Threads::default(),
            growing: Growing::default(),
            random: Random::new(monotonic_ns()),
        }
    }

    fn run(mut self, tell: &Sender<Told>) {
        ordinary_priority();
        while !self.shared.is_stopped() {
            let over = self.step(tell);
            let spent = spent_so_far();
            let spent = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
            self.shared.spent_ns.store(spent, Ordering::Relaxed);
            if let Some(why) = over {
                self.shared.words().clear();
                let _ = tell.send(Told::Over(why));
                return;
            }
            thread::sleep(TICK);
        }
    }

    /// One turn; why there is no other.
    fn step(&mut self, tell: &Sender<Told>) -> Option<String> {
        let Ok(memory) = ProcessMemory::open(&self.task.proc_root, self.task.pid) else {
            return Some("it has ended, or its memory cannot be read".to_owned());
        };
        let now = Instant::now();
        let is_wanted = self.shared.wanted.swap(false, Ordering::Relaxed);
        if is_wanted || now >= self.next_count {
            self.count(&memory, tell);
            if self.failed >= FAILURES {
                return Some("no pools of CPython's allocator were found in it".to_owned());
            }
        }
        self.look_after(&memory, tell);
        let is_any_wanted = !self.wanted.is_empty() || self.growing.is_wanted(&self.seen);
        if self.task.writes.is_some() && now >= self.next_choice && is_any_wanted {
            self.earn();
            if self.credit > 0.0
                && self.shared.words().len() < self.threads.words()
                && let Err(why) = self.arm(&memory)
            {
                self.task.writes = None;
                let _ = tell.send(Told::Over(why));
            }
        }
        None
    }

    /// What is looked at.
    fn place<'a>(&'a self, memory: &'a ProcessMemory) -> Place<'a> {
        Place {
            memory,
            regions: &self.regions,
            until: Some(Instant::now() + WITHIN),
            most_bytes: MOST_BYTES,
        }
    }

    /// Reads which memory there is; whether that could be done.
    fn read_regions(&mut self) -> bool {
        let image = read_address_space(&self.task.proc_root, self.task.pid);
        self.regions_read = Instant::now();
        let Ok(image) = image else { return false };
        self.regions = image.regions;
        true
    }

    /// Counts all objects.
    fn count(&mut self, memory: &ProcessMemory, tell: &Sender<Told>) {
        let (begun, begun_ns) = (spent_so_far(), monotonic_ns());
        self.look_at_threads();
        if self.read_regions() {
            let counts = walk_pools(self.place(memory)).ok().flatten();
            match counts.filter(|counts| counts.pools > 0) {
                None => self.failed += 1,
                Some(mut counts) => {
                    self.failed = 0;
                    let containers = std::mem::take(&mut counts.containers);
                    let passed = self.began.elapsed().as_secs_f64();
                    self.growing.note(&containers, passed);
                    self.pool_bytes = counts.pool_bytes;
                    self.note_growth(&counts);
                    let gone = self.gone(memory);
                    let told = Told::Counted {
                        counts,
                        at_ns: begun_ns.midpoint(monotonic_ns()),
                        gone,
                    };
                    // Nobody may wait for it any more.
                    let _ = tell.send(told);
                }
            }
        }
        let spent = spent_so_far().saturating_sub(begun);
        self.counts += 1;
        let may_take = self.task.budget * COUNT_PART * self.cores().max(LEAST_CORES);
        let mut wait = spent.div_f64(may_take.max(1e-6)).max(COUNT_EVERY);
        if self.counts < FIRST {
            let least = if self.counts == 1 {
                SECOND_AFTER
            } else {
                FIRST_EVERY
            };
            wait = wait.min(spent.div_f64(FIRST_SHARE).max(least));
        }
        self.next_count = Instant::now() + wait;
    }

    /// Which kinds grow.
    fn note_growth(&mut self, counts: &PooledCounts) {
        if self.first.is_empty() {
            self.first = counts.kinds.iter().cloned().collect();
            return;
        }
        let grown = counts.kinds.iter().filter_map(|(kind, objects)| {
            let before = self.first.get(kind).copied().unwrap_or(0);
            let more = objects.saturating_sub(before);
            let bytes = more.saturating_mul(kind.block_bytes) as f64;
            (more >= LEAST_GROWTH && kind.word_at().is_some()).then(|| (kind.clone(), bytes))
        });
        self.wanted = grown.collect();
    }

    /// The blocks that have settled and hold another object by now, or none.
    fn gone(&mut self, memory: &ProcessMemory) -> Vec<u64> {
        let blocks: Vec<(u64, u64)> = self
            .settled
            .iter()
            .map(|(block, object)| (*block, object.kind.block_bytes))
            .collect();
        if blocks.is_empty() {
            return Vec::new();
        }
        let Ok(found) = objects_in(self.place(memory), &blocks) else {
            return Vec::new();
        };
        let mut gone = Vec::new();
        let mut found = found.into_iter();
        self.settled.retain(|(block, object)| {
            let is_there = found.next().flatten().as_ref() == Some(object);
            if !is_there {
                gone.push(*block);
            }
            is_there
        });
        gone
    }

    /// Looks after the words that are watched.
    fn look_after(&mut self, memory: &ProcessMemory, tell: &Sender<Told>) {
        let now = Instant::now();
        let mut settled: Vec<(Choice, u64)> = Vec::new();
        let mut writes = 0;
        let (proc_root, pid) = (&self.task.proc_root, self.task.pid);
        // A thread that was made since may have written last.
        let are_all_seen = |armed: &Armed| {
            armed.threads.as_ref().is_none_or(|seen| {
                let now = list_threads(proc_root, pid).unwrap_or_default();
                now.iter().all(|thread| seen.contains(thread))
            })
        };
        let mut again: Vec<(u64, f64, bool)> = Vec::new();
        self.shared.words().retain_mut(|armed| {
            let (state, more) = armed.look(now);
            writes += more;
            let is_replaced = state == State::Replaced;
            if (is_replaced || state == State::Stayed) && are_all_seen(armed) {
                again.push((armed.choice.block, armed.seconds(now), is_replaced));
            }
            if state == State::Settled && are_all_seen(armed) {
                settled.push((armed.choice.clone(), armed.since_ns));
            }
            state == State::Waits
        });
        self.shared.writes.fetch_add(writes, Ordering::Relaxed);
        self.credit -= Duration::from_nanos(writes.saturating_mul(WRITE_NS)).as_secs_f64();
        for (block, seconds, is_replaced) in again {
            if is_replaced {
                self.settled.retain(|(settled, _)| *settled != block);
            }
            let _ = tell.send(Told::Again {
                block,
                seconds,
                is_replaced,
            });
        }
        if settled.is_empty() {
            return;
        }
        let (entries, settled): (Vec<_>, Vec<_>) = settled
            .into_iter()
            .partition(|(choice, _)| choice.kept_in.is_some());
        for (choice, since_ns) in entries {
            let Some(of) = choice.kept_in else { continue };
            let found = walk_kept(self.place(memory), of, choice.word, self.pool_bytes);
            if let Some((block, object)) = found.ok().flatten() {
                self.growing.kept(&of, &object.kind);
                self.tell_settled(tell, (block, object), choice.word, since_ns);
            }
        }
        let blocks: Vec<(u64, u64)> = settled
            .iter()
            .map(|(choice, _)| (choice.block, choice.kind.block_bytes))
            .collect();
        if blocks.is_empty() {
            return;
        }
        let objects = objects_in(self.place(memory), &blocks).unwrap_or_default();
        for ((choice, since_ns), found) in settled.into_iter().zip(objects) {
            // It may have become something else of the same size, of which the same word tells.
            let at = choice.word.saturating_sub(choice.block);
            if let Some(object) = found.filter(|found| found.kind.tells_at(at)) {
                *self.seen.entry(object.kind.clone()).or_default() += 1;
                self.tell_settled(tell, (choice.block, object), choice.word, since_ns);
            }
        }
    }

    /// Tells of an object in a block, and by which word it is known who made or kept it.
    fn tell_settled(
        &mut self,
        tell: &Sender<Told>,
        (block, object): (u64, BlockObject),
        word: u64,
        since_ns: u64,
    ) {
        if self.settled.len() >= MOST_KEPT {
            let (block, _) = self.settled.remove(0);
            let _ = tell.send(Told::Forgotten { block });
        }
        let (kind, is_told_apart) = (object.kind.clone(), object.print != 0);
        self.settled.push((block, object));
        let _ = tell.send(Told::Settled {
            block,
            word,
            kind,
            is_told_apart,
            since_ns,
        });
    }

    /// Watches words where there is room for more. An error says why none can be watched at all.
    fn arm(&mut self, memory: &ProcessMemory) -> Result<(), String> {
        let begun = spent_so_far();
        let Some(writes) = self.task.writes.clone() else {
            return Ok(());
        };
        self.look_at_threads();
        // New arenas appear all the time.
        if self.regions_read.elapsed() >= REGIONS_EVERY {
            self.read_regions();
        }
        let pools = walk_young_pools(self.place(memory), self.pool_bytes).unwrap_or_default();
        let room = (self.threads.words()).saturating_sub(self.shared.words().len());
        for _ in 0..room {
            let Some(choice) = self.choose(memory, &pools) else {
                break;
            };
            let is_watched = |armed: &Armed| armed.choice.word == choice.word;
            if self.shared.words().iter().any(is_watched) {
                continue;
            }
            let threads = (!self.threads.are_all()).then(|| Arc::clone(&self.threads.now));
            let since_ns = monotonic_ns();
            let writers = threads.as_deref().map_or(Writers::All, Writers::Threads);
            match writes.watch(writers, choice.word, MOST_WRITES) {
                Ok(watched) => {
                    let mut words = self.shared.words();
                    // Stopped meanwhile: nothing is to stay.
                    if !self.shared.is_stopped() {
                        words.push(Armed::new(choice, watched, threads, since_ns));
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break,
                Err(_) if threads.is_none() && self.threads.refused() => break,
                Err(error) => {
                    return Err(format!("words in its memory cannot be watched: {error}"));
                }
            }
        }
        self.before = pools
            .iter()
            .map(|pool| (pool.start, state_of(pool)))
            .collect();
        let spent = spent_so_far().saturating_sub(begun);
        let wait = spent.saturating_mul(CHOOSE_SHARE).max(CHOOSE_EVERY);
        self.next_choice = Instant::now() + wait;
        Ok(())
    }

    /// Chooses a word: the next entry of a container that grows, if none is watched so far, or else one in a block that is about to be handed out.
    fn choose(&mut self, memory: &ProcessMemory, pools: &[YoungPool]) -> Option<Choice> {
        let is_entry = |armed: &Armed| armed.choice.kept_in.is_some();
        if !self.shared.words().iter().any(is_entry)
            && let Some((of, skip)) = self.growing.choose(&self.seen, &mut self.random)
        {
            let words = walk_next_words(self.place(memory), of, skip).unwrap_or_default();
            let place = self.random.part() * words.len() as f64;
            if let Some(word) = words.get(place as usize) {
                return Some(Choice {
                    block: *word,
                    word: *word,
                    kind: ObjectKind::default(),
                    kept_in: Some(of),
                    is_again: false,
                });
            }
        }
        if self.random.part() < AGAIN_PART
            && let Some(choice) = self.choose_again()
        {
            return Some(choice);
        }
        let wanted: Vec<(ObjectKind, f64)> = self
            .wanted
            .iter()
            .map(|(kind, bytes)| {
                let seen = self.seen.get(kind).copied().unwrap_or(0);
                (kind.clone(), bytes / f64::from(1 + seen))
            })
            .collect();
        choose(pools, &self.before, &wanted, &mut self.random)
    }

    /// Chooses an object that has settled, and that nothing in it tells from another of its kind: whether another has taken its place, only a write tells.
    fn choose_again(&mut self) -> Option<Choice> {
        let alike = || self.settled.iter().filter(|(_, object)| object.print == 0);
        let place = self.random.next().checked_rem(alike().count() as u64)?;
        let (block, object) = alike().nth(usize::try_from(place).ok()?)?;
        Some(Choice {
            block: *block,
            word: block.checked_add(object.kind.word_at()?)?,
            kind: object.kind.clone(),
            kept_in: None,
            is_again: true,
        })
    }

    /// Sees which threads there are, and whether others have come and gone.
    fn look_at_threads(&mut self) {
        let (proc_root, pid) = (&self.task.proc_root, self.task.pid);
        let threads: Arc<[u32]> = list_threads(proc_root, pid).unwrap_or_default().into();
        let of_these = time_of(proc_root, pid, &threads);
        let all = process_cpu_time(pid).unwrap_or_default();
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        self.threads.note(threads, of_these, all, cpus);
    }

    /// Adds to the credit what the process's time since earns.
    fn earn(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.credited.0).as_secs_f64();
        let cores = self.cores().max(LEAST_CORES_FOR_WRITES);
        let earned = self.task.budget * WRITE_PART * cores * passed;
        self.credited = (now, process_cpu_time(self.task.pid).unwrap_or_default());
        let most = self.task.budget;
        self.credit = (self.credit + earned).min(most);
    }

    /// Processors that the process uses.
    fn cores(&self) -> f64 {
        let (at, cpu) = self.credited;
        let passed = at.elapsed().as_secs_f64();
        let used = process_cpu_time(self.task.pid)
            .unwrap_or_default()
            .saturating_sub(cpu);
        used.as_secs_f64() / passed.max(0.1)
    }
}

/// Processor time of this thread, and of who reads for it.
fn spent_so_far() -> Duration {
    thread_cpu_time().saturating_add(spent_here())
}
