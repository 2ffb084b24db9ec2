//! A running trace: which processes are followed, what is attached to them, and the events between. It ties the rooms
//! together, kernel to ledger to symbol to `Report`; each subcommand that traces drives one of these. It knows neither
//! arguments nor views.

mod at_exit;
mod calibration;
mod code;
mod ended;
mod events;
mod fault;
mod follow;
mod go;
mod growth;
mod heaps;
mod inspect;
mod joined;
mod kernel_watch;
mod links;
mod looks;
mod moment;
mod pages;
mod pooled;
mod process;
mod python;
mod report;
mod room;
mod select;
mod stacks;
mod tables;
mod totals;
mod verdicts;
mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    io::Read,
    os::fd::AsFd,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leakscope_common::{Loss, SiteTotals};

pub use inspect::{InspectedFile, Inspection, PlannedProbe, inspect};
pub use process::{ProbeSite, TraceError, check_target};
pub(crate) use tables::read_table;
pub use tables::{Tables, Unwinding};

use crate::{
    apart,
    budget::Choice,
    kernel::{
        CodeMaps, KernelError, Link, Probe, ProbeOptions, close_links, keep_clocks_ready,
        process_cpu_time,
    },
    ledger::{Ledger, SiteId},
    process::{discover::Files, procfs::OomCounts},
    report::{Report, Suppressions},
    runtime::cpython::Interpreters,
    symbol::{Debuginfod, ElfSymbols, Modules, Resolver},
    units::{bytes, duration},
    unwind::BuildOptions,
};
use calibration::Costs;
use fault::{Faults, place};
use go::GoHeaps;
use growth::Growth;
use heaps::Heaps;
use joined::JoinedStacks;
use kernel_watch::KernelWatch;
use links::Links;
use moment::Moment;
use pages::PageFaults;
use pooled::Objects;
use process::Traced;
use select::Selecting;
use stacks::StackUse;
use totals::{Totals, Wanted};

/// Where the kernel shows its processes.
const PROC: &str = "/proc";

/// How long one wait for events lasts at most: how soon a full table is noticed.
const TICK: Duration = Duration::from_millis(100);

/// The same where hardly a call was seen for as long: the probe wakes us when there are many.
const TICK_AT_REST: Duration = Duration::from_secs(1);

/// So many calls of a process are told of by the probe: what they cost by then, about a millisecond, is soon looked at, and to tell of
/// them costs little beside them.
const TOLD_AFTER: u32 = 1024;

/// How often the sites' totals are looked at.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// The same where the whole machine is traced.
const OBSERVE_MACHINE_EVERY: Duration = Duration::from_secs(2);

/// A look takes at most one part in so many of a processor: with very many sites looks are rarer.
const LOOK_SHARE: u32 = 50;

/// But there is a look at least this often.
const OBSERVE_AT_LEAST: Duration = Duration::from_secs(10);

/// How to trace.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// How to load the probe.
    pub probe: ProbeOptions,
    /// Which rows of unwind tables to keep.
    pub unwind: BuildOptions,
    /// Where to keep unwind tables between runs.
    pub unwind_cache: Option<PathBuf>,
    /// Only blocks at least this old are reported.
    pub min_age: Duration,
    /// The share of the targets' CPU time that tracing may take.
    pub budget: f64,
    /// How allocations are to be seen.
    pub tier: Choice,
    /// The length of every window; as the budget allows when `None`.
    pub window: Option<Duration>,
    /// Sites that are not reported.
    pub suppressions: Suppressions,
    /// No allocator is probed: only mappings are seen.
    pub mappings_only: bool,
    /// The heaps of commands of ours are looked at where they end.
    pub at_exit: bool,
    /// An interpreter's own functions are shown, too.
    pub native: bool,
    /// Who has debug information that is not on this machine.
    pub debuginfod: Option<Debuginfod>,
    /// What the kernel holds is watched, too.
    pub kernel: bool,
}

impl SessionOptions {
    /// Which blocks are left out of the report, as they were asked to be; `None` where none are.
    fn filters(&self) -> Option<String> {
        let (least, most) = self.probe.sizes;
        let mut filters = Vec::new();
        if least > 0 {
            filters.push(format!("--min-size {}", bytes(least)));
        }
        if most < u64::MAX {
            filters.push(format!("--max-size {}", bytes(most)));
        }
        if !self.min_age.is_zero() {
            filters.push(format!(
                "--min-age {}",
                duration(self.min_age.as_secs_f64())
            ));
        }
        (!filters.is_empty()).then(|| filters.join(", "))
    }
}

/// The share of the targets' CPU time that tracing may take, unless something else is asked for.
pub(crate) const DEFAULT_BUDGET: f64 = 0.01;

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            probe: ProbeOptions::default(),
            unwind: BuildOptions::default(),
            unwind_cache: None,
            min_age: Duration::ZERO,
            budget: DEFAULT_BUDGET,
            tier: Choice::default(),
            window: None,
            suppressions: Suppressions::default(),
            mappings_only: false,
            at_exit: false,
            native: false,
            debuginfod: None,
            kernel: false,
        }
    }
}

/// The totals of every site, sites with the same stack together; with the incarnation that each belongs to.
type SiteLevels = BTreeMap<SiteId, (u32, SiteTotals)>;

/// A stack as the probe handed it over.
struct Stack {
    incarnation: u32,
    frames: Vec<u64>,
    flags: u16,
    hit_slot: u8,
    /// The first slot that held the same stack.
    canonical: SiteId,
}

/// What is shown while a trace runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Processes that are still running.
    pub running: usize,
    /// Distinct stacks seen.
    pub stacks: usize,
    /// Bytes in use by the totals, at the last look.
    pub inuse_bytes: i64,
    /// Blocks allocated, at the last look.
    pub alloc_objects: u64,
    /// Events lost whose loss concerns bytes.
    pub lost: u64,
}

/// Processor time of all our threads, and of the readers.
fn own_cpu_time() -> Duration {
    // A process can always ask for its own.
    let own = process_cpu_time(std::process::id()).unwrap_or_default();
    own.saturating_add(apart::spent())
}

/// A running trace.
pub struct Session {
    options: SessionOptions,
    probe: Probe,
    proc_root: PathBuf,
    tables: Tables,
    modules: Modules,
    /// What is mapped for execution; `None` where the kernel does not tell.
    code_maps: Option<CodeMaps>,
    files: Files,
    resolver: Resolver,
    interpreters: Interpreters,
    ledger: Ledger,
    /// When the ages of the live blocks are looked at next.
    next_survey: Instant,
    processes: BTreeMap<u32, Traced>,
    links: Links,
    growth: Growth,
    pages: PageFaults,
    objects: Objects,
    /// How much of the stacks of threads is in memory.
    stack_use: StackUse,
    heaps: Heaps,
    go: GoHeaps,
    /// What the kernel holds; `None` where that is not watched.
    kernel_watch: Option<KernelWatch>,
    selecting: Selecting,
    stacks: HashMap<SiteId, Stack>,
    joined_stacks: JoinedStacks,
    started: Instant,
    /// Our own processor time by then.
    cpu_before: Duration,
    last_look: Instant,
    last_crowd_check: Instant,
    last_beat: Instant,
    /// When a look is due: see [`LOOK_SHARE`].
    look_every: Duration,
    progress: Progress,
    /// When something happened last.
    last_busy: Instant,
    /// The sites' totals as last read.
    totals: Totals,
    /// What hits and samples take of their process's time, measured on our own.
    costs: Costs,
    /// Blocks found stale while windows were being closed.
    stale_at_ends: u64,
    /// Held for the windows' clocks; `None` where the kernel has none, or all calls are seen.
    clocks_ready: Option<Link>,
    /// Whether we run before others, so that windows are closed in time on a machine under load.
    is_urgent: bool,
    /// What ends a step before its time.
    wake: Option<UnixStream>,
    /// Processes that have ended, and were not dealt with yet.
    ended: Vec<u32>,
    faults: Faults,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("processes", &self.processes.keys())
            .field("stacks", &self.stacks.len())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Loads the probe and attaches to process events; no process is followed yet.
    ///
    /// # Errors
    /// The kernel refused something; the error says what to do.
    pub fn new(options: SessionOptions) -> Result<Self, KernelError> {
        let mut options = options;
        options.probe.kernel_allocations |= options.kernel;
        let mut probe = Probe::load(&options.probe)?;
        probe.attach_lifecycle()?;
        let tables = Tables::new(&probe, options.unwind, options.unwind_cache.as_deref());
        let now = Instant::now();
        let servers = options.debuginfod.clone();
        let mut session = Self {
            options,
            probe,
            proc_root: PathBuf::from(PROC),
            tables,
            modules: Modules::default(),
            code_maps: CodeMaps::start(),
            files: Files::default(),
            resolver: Resolver::new(Box::new(ElfSymbols::with_servers(servers))),
            interpreters: Interpreters::default(),
            ledger: Ledger::new(crate::kernel::monotonic_ns()),
            next_survey: now,
            processes: BTreeMap::new(),
            links: Links::default(),
            growth: Growth::default(),
            pages: PageFaults::default(),
            objects: Objects::default(),
            stack_use: StackUse::default(),
            heaps: Heaps::default(),
            go: GoHeaps::default(),
            kernel_watch: None,
            selecting: Selecting::default(),
            stacks: HashMap::new(),
            joined_stacks: JoinedStacks::default(),
            started: now,
            cpu_before: Duration::ZERO,
            last_look: now,
            last_crowd_check: now,
            last_beat: now,
            look_every: OBSERVE_EVERY,
            progress: Progress::default(),
            last_busy: now,
            totals: Totals::default(),
            costs: Costs::default(),
            stale_at_ends: 0,
            clocks_ready: None,
            is_urgent: false,
            wake: None,
            ended: Vec::new(),
            faults: Faults::new(),
        };
        session.costs = session.calibrate()?;
        if session.options.tier != Choice::Exact {
            session.probe.tell_after(TOLD_AFTER);
            session.clocks_ready = keep_clocks_ready().ok();
        }
        session.begin_pages();
        if session.options.kernel {
            session.kernel_watch = Some(KernelWatch::new(&session.proc_root));
        }
        session.begin_now();
        session.ledger = Ledger::new(crate::kernel::monotonic_ns());
        Ok(session)
    }

    /// What is asked for lasts from now on.
    fn begin_now(&mut self) {
        self.started = Instant::now();
        self.cpu_before = own_cpu_time();
    }

    /// Takes the probes off a process, for the benchmark; nothing more is recorded of it.
    pub fn detach(&mut self, pid: u32) {
        if let Some(traced) = self.processes.get_mut(&pid) {
            close_links(traced.take_links());
        }
    }

    /// From now on a step ends when there is something to be read here, which must not block.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wake_by(&mut self, wake: UnixStream) -> Result<(), KernelError> {
        self.probe.wake_by(wake.as_fd())?;
        self.wake = Some(wake);
        Ok(())
    }

    /// How long nothing need be looked at, if nobody wakes us.
    fn tick(&self) -> Duration {
        let is_told_of_hits = self.options.tier != Choice::Exact && !self.options.mappings_only;
        if is_told_of_hits && self.last_busy.elapsed() >= TICK_AT_REST {
            TICK_AT_REST
        } else {
            TICK
        }
    }

    /// Waits for what happens next, at most for a second, and deals with it. What fails inside of leakscope meanwhile ends the trace of the process
    /// that it happened at, and is in [`Session::faults`].
    ///
    /// # Errors
    /// Waiting failed.
    pub fn step(&mut self, at_most: Duration) -> Result<(), KernelError> {
        self.guard_step(|session| session.take_step(at_most))
    }

    fn take_step(&mut self, at_most: Duration) -> Result<(), KernelError> {
        let at_most = at_most
            .min(self.tick())
            .min(self.selecting.wait_at_most())
            .min(self.next_window_step());
        self.ended.extend(self.probe.wait(at_most)?);
        if let Some(wake) = &self.wake {
            // Why it woke us is for whoever called to know; nothing to read is what there usually is.
            let _ = Read::read(&mut &*wake, &mut [0; 64]);
        }
        self.beat();
        self.drain()?;
        self.step_pages();
        while let Some(pid) = self.ended.pop() {
            self.faults.work_on(pid);
            if let Some(traced) = self.processes.get_mut(&pid) {
                if !traced.failed {
                    traced.ended = Some(Instant::now());
                    traced.measure_cpu(&self.proc_root);
                    traced.measure_end(&self.proc_root);
                }
                // The names of its mappings are kept; what the walk needed is not.
                self.tables.remove(&mut self.probe, traced.incarnation);
                self.probe.forget(pid, traced.incarnation);
                let links = traced.take_links();
                self.links.release(pid, links);
                self.note_unseen_mappings(pid);
                self.note_end(pid);
            }
        }
        self.faults.work_on(None);
        self.consider_candidates()?;
        self.links.close_retired();
        self.step_windows()?;
        self.count_heaps();
        self.step_objects();
        self.step_go();
        self.step_heaps()?;
        self.look_at_kernel(false, &Moment::now());
        if self.last_look.elapsed() >= self.look_every {
            self.sweep()?;
            self.look(false, &Moment::now())?;
            if self.last_look >= self.next_survey && self.holds_blocks() {
                self.note_ages()?;
            }
            let every = if self.is_of_machine() {
                OBSERVE_MACHINE_EVERY
            } else {
                OBSERVE_EVERY
            };
            self.look_every = self
                .last_look
                .elapsed()
                .saturating_mul(LOOK_SHARE)
                .clamp(every, OBSERVE_AT_LEAST);
        }
        if self.last_crowd_check.elapsed() >= TICK {
            self.last_crowd_check = Instant::now();
            self.bound_mappings();
            self.look_for_names();
            self.look_for_code()?;
            if self.probe.is_crowded() {
                self.probe.thin()?;
            }
        }
        Ok(())
    }

    /// Looks at the sites' totals, which it gives; at `all` of them, or at those of processes that have run since the last look.
    fn look(&mut self, all: bool, moment: &Moment) -> Result<SiteLevels, KernelError> {
        self.faults.inject(place::LOOK, None);
        self.last_look = Instant::now();
        let followed = self.processes.values().map(|traced| traced.incarnation);
        let followed = followed.collect();
        self.growth.keep(&followed);
        self.stack_use.keep(&followed);
        self.pages.keep(&followed);
        self.objects.keep(&followed);
        self.go.keep(&followed);
        let mut ran = HashSet::new();
        for traced in self.processes.values_mut() {
            if traced.has_run() {
                ran.insert(traced.incarnation);
            }
        }
        let mut counts = OomCounts::default();
        for pid in self.due_for_measurement(&ran) {
            if let Some(traced) = self.processes.get_mut(&pid) {
                traced.measure(&self.proc_root, &mut counts);
            }
        }
        self.look_at_mapped(&ran, all)?;
        self.look_at_go(&ran, all);
        let mut inuse = 0_i64;
        let mut allocated = 0;
        let levels = self.note_levels(&ran, all, moment)?;
        for (_, totals) in levels.values() {
            inuse = inuse.wrapping_add(totals.alloc_bytes.wrapping_sub(totals.free_bytes) as i64);
            allocated += totals.alloc_objects;
        }
        self.progress.inuse_bytes = inuse;
        self.progress.alloc_objects = allocated;
        self.progress.running = self.running();
        self.progress.lost = self
            .losses()
            .into_iter()
            .filter(|(loss, _)| loss.affects_bytes())
            .map(|(_, count)| count)
            .sum();
        Ok(levels)
    }

    /// How many followed processes have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.processes
            .values()
            .filter(|traced| traced.ended.is_none())
            .count()
    }

    /// What to show while the trace runs, as of the last look.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Processors that we have used in the mean since the trace began.
    fn own_cores(&self, moment: &Moment) -> f64 {
        let used = own_cpu_time()
            .saturating_sub(self.cpu_before)
            .saturating_add(self.probe.spent_on_links());
        used.as_secs_f64() / moment.since(self.started).as_secs_f64().max(1e-3)
    }

    /// When the trace began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The probe, for `doctor`.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The result so far.
    ///
    /// # Errors
    /// The probe's last words could not be read.
    pub fn report(&mut self, top: usize) -> Result<Report, KernelError> {
        self.guard_report(|session| session.make_report(top))
    }

    fn make_report(&mut self, top: usize) -> Result<Report, KernelError> {
        self.drain()?;
        self.look_at_pages();
        self.look_at_stacks();
        self.check_watched(true);
        let mut counts = OomCounts::default();
        for traced in self.processes.values_mut() {
            if traced.ended.is_some() {
                continue;
            }
            self.faults.work_on(traced.pid);
            traced.measure(&self.proc_root, &mut counts);
            if traced.windows.cohorts.windows() > 0 {
                traced.measure_exactly(&self.proc_root);
            }
        }
        self.faults.work_on(None);
        // All that follows is of this moment. Its walk through the live table looks at the ages too.
        let moment = Moment::now();
        self.look_at_kernel(true, &moment);
        let levels = self.look(true, &moment)?;
        report::make(self, levels, top, &moment)
    }

    /// Reports from now on with these suppressions.
    pub fn suppress(&mut self, suppressions: Suppressions) {
        self.options.suppressions = suppressions;
    }

    /// The last report, after which nothing more is to be traced. What sees mappings is taken away meanwhile, and heaps are looked at.
    ///
    /// # Errors
    /// As for [`Session::report`].
    pub fn last_report(&mut self, top: usize) -> Result<Report, KernelError> {
        self.probe.end_mappings();
        self.end_kernel_windows();
        self.look_at_heaps()?;
        self.count_for_last_report()?;
        self.count_objects_for_last_report()?;
        self.count_go_for_last_report()?;
        self.resolver.be_patient();
        self.report(top)
    }

    /// Takes all probes away, for good. The targets are free at once; the kernel waits out a grace period of some 20 to 40 ms. What
    /// tells of processes goes too, beside what follows: when the session is dropped, all is gone.
    pub fn detach_all(&mut self) {
        self.objects.stop();
        self.end_kernel_windows();
        self.probe.begin_detach();
        let own: Vec<_> = self
            .processes
            .values_mut()
            .flat_map(Traced::take_links)
            .collect();
        self.links.close_all(own);
    }

    /// The root of the proc file system in use.
    pub(crate) fn proc_root(&self) -> &Path {
        &self.proc_root
    }

    /// Losses, for the report.
    pub(crate) fn losses(&self) -> Vec<(Loss, u64)> {
        let mut losses = self.probe.losses();
        for (loss, count) in &mut losses {
            match loss {
                Loss::StaleBlock => *count = count.saturating_sub(self.stale_at_ends),
                Loss::MappingMissed => *count += self.probe.missed_mappings(),
                Loss::KernelAllocationMissed => *count += self.kernel_counts().missed,
                Loss::KernelTableFull => *count += self.kernel_counts().refused,
                _ => {}
            }
        }
        losses
    }
}
