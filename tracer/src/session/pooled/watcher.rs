//! The thread that looks at the pools of one process: it counts the objects now and then, and watches words in blocks that are about to be handed out, so that
//! the probe tells who makes an object there. It knows a process by its id, and nothing of the trace.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::choose::{Choice, Random, choose, state_of};
use crate::{
    apart::{Place, kinds_of, spent_here, walk_pools, walk_young_pools},
    heap::{ObjectKind, PooledCounts, Region},
    kernel::{
        WatchedWord, WriteWatcher, monotonic_ns, ordinary_priority, process_cpu_time,
        thread_cpu_time,
    },
    process::procfs::list_threads,
    reader::{ProcessMemory, read_address_space},
};

/// How often watched words are looked after.
const TICK: Duration = Duration::from_millis(50);

/// Words that are watched at once. The processor has four registers for that, and a debugger may want one.
const WORDS: usize = 3;

/// Words are chosen this far apart at least; to look where blocks are handed out takes at most one part in so many of a processor.
const CHOOSE_EVERY: Duration = Duration::from_millis(250);
const CHOOSE_SHARE: u32 = 200;

/// What was written to and then not for so long has settled: it is an object, and who wrote last made it.
const SETTLES: Duration = Duration::from_secs(1);

/// What was not written to for so long is given up, for what will be handed out is elsewhere by now.
const PATIENCE: Duration = Duration::from_secs(2);

/// So many writes to one word are seen: of one that is used again all the time nothing is learnt.
const MOST_WRITES: u32 = 24;

/// What a write that is seen costs the process: 12.7 µs measured on a virtual machine, which leaves the processor for it; 1 to 2 µs elsewhere.
const WRITE_NS: u64 = 13_000;

/// So many objects are looked at again, the last ones: by then it is known whose growth is whose.
const MOST_KEPT: usize = 1024;

/// Of more threads than this a process's words are not watched: each has to be told of each word, in some 30 µs.
const MOST_THREADS: usize = 64;

/// Between two counts there is at least this time; the first few come sooner than the budget has room for.
const COUNT_EVERY: Duration = Duration::from_secs(5);
const SECOND_AFTER: Duration = Duration::from_secs(4);
const FIRST: u32 = 6;
const FIRST_EVERY: Duration = Duration::from_secs(8);
const FIRST_SHARE: f64 = 0.025;

/// Of the budget, the part that counting may take, and the part that writes may; of these some hundred come sooner.
const COUNT_PART: f64 = 0.25;
const WRITE_PART: f64 = 0.25;
const FIRST_WRITES_S: f64 = 0.001;

/// A process at rest is taken to use so many processors, or it would be looked at too rarely to tell anything: counting takes nothing of its time.
const LEAST_CORES: f64 = 0.25;
const LEAST_CORES_FOR_WRITES: f64 = 0.02;

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

/// A word that is watched.
#[derive(Debug)]
struct Armed {
    choice: Choice,
    watched: WatchedWord,
    since: Instant,
    writes: u64,
    written: Option<Instant>,
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
    pool_bytes: u64,
    /// Objects of each kind at the first count, and by how many bytes each has grown since.
    first: HashMap<ObjectKind, u64>,
    wanted: Vec<(ObjectKind, f64)>,
    /// How pools were at the last choice.
    before: HashMap<u64, (u64, u64, u32)>,
    /// How many objects of each kind have settled: of those that have fewer, more are watched.
    seen: HashMap<ObjectKind, u32>,
    /// Blocks of which it was told that they have settled.
    settled: Vec<(u64, ObjectKind)>,
    next_count: Instant,
    next_choice: Instant,
    counts: u32,
    failed: u32,
    /// Processor time of the process that writes may still cost, seconds.
    credit: f64,
    credited: (Instant, Duration),
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
            pool_bytes: 0,
            first: HashMap::new(),
            wanted: Vec::new(),
            before: HashMap::new(),
            seen: HashMap::new(),
            settled: Vec::new(),
            next_count: now,
            next_choice: now,
            counts: 0,
            failed: 0,
            credit: FIRST_WRITES_S,
            credited: (now, cpu),
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
        if self.task.writes.is_some() && now >= self.next_choice && !self.wanted.is_empty() {
            self.earn();
            if self.credit > 0.0
                && self.shared.words().len() < WORDS
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

    /// Counts all objects.
    fn count(&mut self, memory: &ProcessMemory, tell: &Sender<Told>) {
        let (begun, begun_ns) = (spent_so_far(), monotonic_ns());
        if let Ok(image) = read_address_space(&self.task.proc_root, self.task.pid) {
            self.regions = image.regions;
            let counts = walk_pools(self.place(memory)).ok().flatten();
            match counts.filter(|counts| counts.pools > 0) {
                None => self.failed += 1,
                Some(counts) => {
                    self.failed = 0;
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
            .map(|(block, kind)| (*block, kind.block_bytes))
            .collect();
        if blocks.is_empty() {
            return Vec::new();
        }
        let Ok(kinds) = kinds_of(self.place(memory), &blocks) else {
            return Vec::new();
        };
        let mut gone = Vec::new();
        let mut kinds = kinds.into_iter();
        self.settled.retain(|(block, kind)| {
            let is_there = kinds.next().flatten().as_ref() == Some(kind);
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
        let mut settled = Vec::new();
        let mut writes = 0;
        self.shared.words().retain_mut(|armed| {
            let count = armed.watched.writes();
            if count > armed.writes {
                writes += count - armed.writes;
                armed.writes = count;
                armed.written = Some(now);
            }
            if count >= u64::from(MOST_WRITES) {
                return false;
            }
            match armed.written {
                None => now.saturating_duration_since(armed.since) < PATIENCE,
                Some(written) if now.saturating_duration_since(written) < SETTLES => true,
                Some(_) => {
                    settled.push(armed.choice.clone());
                    false
                }
            }
        });
        self.shared.writes.fetch_add(writes, Ordering::Relaxed);
        self.credit -= Duration::from_nanos(writes.saturating_mul(WRITE_NS)).as_secs_f64();
        if settled.is_empty() {
            return;
        }
        let blocks: Vec<(u64, u64)> = settled
            .iter()
            .map(|choice| (choice.block, choice.kind.block_bytes))
            .collect();
        let kinds = kinds_of(self.place(memory), &blocks).unwrap_or_default();
        for (choice, found) in settled.into_iter().zip(kinds) {
            // It may have become something else of the same size, of which the same word tells.
            let found = found.filter(|kind| {
                kind.word_at().and_then(|at| choice.block.checked_add(at)) == Some(choice.word)
            });
            let Some(kind) = found else { continue };
            if self.settled.len() >= MOST_KEPT {
                let (block, _) = self.settled.remove(0);
                let _ = tell.send(Told::Forgotten { block });
            }
            *self.seen.entry(kind.clone()).or_default() += 1;
            self.settled.push((choice.block, kind.clone()));
            let _ = tell.send(Told::Settled {
                block: choice.block,
                word: choice.word,
                kind,
            });
        }
    }

    /// Watches words where there is room for more. An error says why none can be watched at all.
    fn arm(&mut self, memory: &ProcessMemory) -> Result<(), String> {
        let begun = spent_so_far();
        let Some(writes) = self.task.writes.clone() else {
            return Ok(());
        };
        let threads = list_threads(&self.task.proc_root, self.task.pid).unwrap_or_default();
        if threads.len() > MOST_THREADS {
            return Err(format!(
                "it has {} threads: at which line objects are made is looked for with up to {MOST_THREADS}",
                threads.len()
            ));
        }
        // New arenas appear all the time.
        if let Ok(image) = read_address_space(&self.task.proc_root, self.task.pid) {
            self.regions = image.regions;
        }
        let pools = walk_young_pools(self.place(memory), self.pool_bytes).unwrap_or_default();
        let room = WORDS.saturating_sub(self.shared.words().len());
        for _ in 0..room {
            let wanted: Vec<(ObjectKind, f64)> = self
                .wanted
                .iter()
                .map(|(kind, bytes)| {
                    let seen = self.seen.get(kind).copied().unwrap_or(0);
                    (kind.clone(), bytes / f64::from(1 + seen))
                })
                .collect();
            let choice = choose(&pools, &self.before, &wanted, &mut self.random);
            let Some(choice) = choice else { break };
            let is_watched = |armed: &Armed| armed.choice.word == choice.word;
            if self.shared.words().iter().any(is_watched) {
                continue;
            }
            match writes.watch(&threads, choice.word, MOST_WRITES) {
                Ok(watched) => {
                    let mut words = self.shared.words();
                    // Stopped meanwhile: nothing is to stay.
                    if !self.shared.is_stopped() {
                        words.push(Armed {
                            choice,
                            watched,
                            since: Instant::now(),
                            writes: 0,
                            written: None,
                        });
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break,
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
