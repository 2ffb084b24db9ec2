//! Windows: when calls are seen, what is kept of them, and the looks at the survivors in between. The budget decides, the ledger keeps; this room
//! ties them to a process. Here is what is known of a process's windows, and how much of the whole they stand for.

#[path = "window/anonymous.rs"]
mod anonymous;
#[path = "window/close.rs"]
mod close;
#[path = "window/count.rs"]
mod count;
#[path = "window/deadline.rs"]
mod deadline;
#[path = "window/inuse.rs"]
mod inuse;
#[path = "window/look.rs"]
mod look;
#[path = "window/own_time.rs"]
mod own_time;
#[path = "window/pace.rs"]
mod pace;
#[path = "window/ratio.rs"]
mod ratio;
#[path = "window/span.rs"]
mod span;
#[path = "window/step.rs"]
mod step;
#[path = "window/usage.rs"]
mod usage;

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};
use leakscope_common::HIT_SLOTS;

use super::moment::Moment;
use crate::{
    budget::{Choice, Close, Controller, Limits, Mode, Usage},
    kernel::{Link, ModeSamples, Modes, ThreadClocks, monotonic_ns, process_cpu_time},
    ledger::{Cohorts, Occasion, Reading, Rounding, SiteId},
};
use anonymous::AnonymousMemory;
use count::CountLooks;
pub(super) use deadline::exact_deadline;
use inuse::{Estimated, SeenAgain};
use look::Looks;
use own_time::{OwnTime, Used};
use span::Late;
use usage::Boundary;

/// Of a longer window, a tick of the process's clock is little.
const CLOCKS_FOR: Duration = Duration::from_secs(1);

/// Of a longer window, samples of modes tell nothing new.
const SAMPLES_FOR: Duration = Duration::from_millis(100);

/// Growth below this is within what allocators keep and give back anyway, bytes.
const LEAST_GROWTH: f64 = 1_048_576.0;
/// How far growth and what survives may differ otherwise: fragments, memory of other kinds.
const GROWTH_ERROR: f64 = 0.08;
/// What survives may fill holes, and holes may be left: this part of the memory that there is.
const HOLES: f64 = 0.05;

/// What a process uses from a window's beginning on.
pub(super) struct Clocks {
    time: ThreadClocks,
    /// `None` where there is no need of them, or the kernel refuses.
    samples: Option<ModeSamples>,
    /// What they had counted by then.
    cpu_before: Duration,
    modes_before: Modes,
    /// Those of samples that were ended.
    modes: Modes,
}

impl Clocks {
    /// They count from now on.
    fn new(time: ThreadClocks, samples: Option<ModeSamples>) -> Self {
        Self {
            time,
            samples,
            cpu_before: Duration::ZERO,
            modes_before: Modes::default(),
            modes: Modes::default(),
        }
    }

    /// The window begins when so much was counted.
    fn begin(&mut self, cpu: Duration, modes: Modes) {
        (self.cpu_before, self.modes_before) = (cpu, modes);
    }

    /// Processor time, without what the machine's host took of it, where that is known.
    fn cpu(&self) -> Option<Duration> {
        let counted = self.time.elapsed()?.saturating_sub(self.cpu_before);
        let most = self.samples.as_ref().and_then(ModeSamples::most_time);
        Some(most.map_or(counted, |most| counted.min(most)))
    }

    /// Samples.
    fn modes(&self) -> Modes {
        self.samples.as_ref().map_or(self.modes, |samples| {
            samples.taken().since(self.modes_before)
        })
    }

    /// There are enough samples: each takes of the process's time.
    fn end_samples(&mut self) {
        self.modes = self.modes();
        self.samples = None;
    }
}

/// Calls that were seen.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    allocations: u64,
    /// Frees of blocks that the live table does not hold.
    unknown_frees: u64,
}

/// A window that is open.
struct Open {
    occasion: Occasion,
    /// When it was opened.
    begun_ns: u64,
    /// Of blocks born before, nothing says whether they were born in it.
    at_ns: u64,
    /// Processor time, cost and calls by then.
    usage: Usage,
    calls: Calls,
    /// Watched blocks that could not be put into the live table: nobody sees what becomes of them.
    unseen: HashSet<u64>,
    /// Those that were put there.
    put: usize,
    /// What the process uses from then on; `None` where its own clock has to do, which goes on by ticks.
    clocks: Option<Clocks>,
    /// The samples of clocks that were ended before it.
    modes: Modes,
}

impl Open {
    /// A window that begins with a program, or nothing is known of what was before.
    fn new(begun_ns: u64, usage: Usage) -> Self {
        Self {
            occasion: Occasion::Start,
            begun_ns,
            at_ns: begun_ns,
            usage,
            calls: Calls::default(),
            unseen: HashSet::new(),
            put: 0,
            clocks: None,
            modes: Modes::default(),
        }
    }

    /// The samples of its modes so far.
    fn modes(&self) -> Modes {
        self.clocks.as_ref().map_or(self.modes, Clocks::modes)
    }

    /// The processor time of its threads so far, where they are counted. What is known by ticks may have been late when it was opened, by as
    /// long as the machine's host gave it no time.
    fn cpu(&self) -> Option<Duration> {
        self.clocks.as_ref()?.cpu()
    }

    /// Its survivors are the blocks born since. Of a window within one tick that is its beginning, at which some are taken to be born that
    /// were before.
    fn survivors_from(&self, closed_ns: u64) -> u64 {
        if self.at_ns < closed_ns {
            self.at_ns
        } else {
            self.begun_ns.min(closed_ns)
        }
    }
}

/// The thread that takes probes away. Dropping it waits for its end: if we ended before, the kernel might be killed out of its work, and leave a
/// breakpoint behind.
struct Detaching(Option<JoinHandle<Duration>>);

impl Detaching {
    fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end; the processor time that it took.
    fn join(&mut self) -> Duration {
        // It panics nowhere; and if it did, its links are closed.
        self.0
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Detaching {
    fn drop(&mut self) {
        self.join();
    }
}

/// A window whose probes are being taken away.
struct Closing {
    detaching: Detaching,
    /// What was alive was looked at before the first probe went.
    is_early: bool,
    reason: Close,
    /// What the process had used and done when that was decided, by its clocks too.
    decided: Boundary,
    /// Blocks that were born in it and are alive, and watched ones that are there still, by the table.
    born: usize,
    watched: usize,
    /// What was alive then.
    looks: HashMap<u64, Reading>,
    /// The hit slots of allocators whose blocks can be counted.
    roundings: HashMap<u8, Rounding>,
    /// Stale blocks before.
    stale: u64,
    /// Its probes had been taken away before, for we came too late: when, nobody knows, and what it saw counts for nothing.
    is_overdue: bool,
}

impl Closing {
    fn is_over(&self) -> bool {
        self.detaching.is_over()
    }
}

/// The windows of one process.
pub(super) struct Windows {
    pub(super) controller: Controller,
    pub(super) cohorts: Cohorts,
    is_enforced: bool,
    began: Instant,
    /// Processor time when it began, which does not count.
    cpu_before: Option<Duration>,
    last: Usage,
    open: Option<Open>,
    /// It is being closed.
    closing: Option<Closing>,
    /// Hits in thread records that were dropped at the ends of windows, of this incarnation.
    hits_before: [u64; HIT_SLOTS],
    /// What hits in incarnations that have ended cost.
    spent: Duration,
    /// What samples of modes in closed windows cost.
    sampling: Duration,
    /// Births (objects and bytes) by the numbers of their stacks when the last window was closed: which stacks are the same may be known later.
    births: HashMap<SiteId, (u64, u64)>,
    own: OwnTime,
    anonymous: AnonymousMemory,
    counting: CountLooks,
    closed_usage: Option<Usage>,
    /// User and system ticks of the process's account then.
    closed_ticks: Option<(u64, u64)>,
    looks: Looks,
    /// Held while a window is about to be closed: see [`crate::kernel::Probe::ready_to_detach`].
    ready: Option<Link>,
    /// Our own processor time that went into its windows.
    work: Duration,
    /// What calls cost that the probe told of since the last look.
    told: Duration,
    next_observe: Instant,
    /// What its blocks held at the last look that was taken for an estimate.
    inuse: Option<Estimated>,
    seen_again: Option<SeenAgain>,
}

impl Windows {
    /// None is open, but the first may be at once.
    pub(super) fn new(limits: Limits, pid: u32) -> Self {
        let now = Instant::now();
        Self {
            controller: Controller::new(limits, monotonic_ns() ^ u64::from(pid) << 32),
            cohorts: Cohorts::default(),
            is_enforced: limits.choice != Choice::Exact,
            began: now,
            cpu_before: None,
            last: Usage::default(),
            open: Some(Open::new(monotonic_ns(), Usage::default())),
            closing: None,
            hits_before: [0; HIT_SLOTS],
            spent: Duration::ZERO,
            sampling: Duration::ZERO,
            births: HashMap::new(),
            own: OwnTime::default(),
            anonymous: AnonymousMemory::default(),
            counting: CountLooks::default(),
            closed_usage: None,
            closed_ticks: None,
            looks: Looks::default(),
            ready: None,
            work: Duration::ZERO,
            told: Duration::ZERO,
            next_observe: now,
            inuse: None,
            seen_again: None,
        }
    }

    /// The trace of the process begins; its first window is the caller's to open.
    fn begin(&mut self, pid: u32, incarnation: u32) {
        self.cohorts = Cohorts::new(incarnation);
        self.began = Instant::now();
        self.cpu_before = process_cpu_time(pid).ok();
        self.controller.opened(Usage::default());
    }

    /// The processor time that the process has used since it is traced.
    fn cpu(&self, pid: u32) -> Duration {
        // Of a process that is gone, the last value stays.
        let by_ticks = process_cpu_time(pid)
            .ok()
            .zip(self.cpu_before)
            .map_or(Duration::ZERO, |(now, before)| now.saturating_sub(before));
        let in_window = self
            .open
            .as_ref()
            .and_then(|open| Some(open.usage.cpu.saturating_add(open.cpu()?)));
        by_ticks
            .max(in_window.unwrap_or_default())
            .max(self.last.cpu)
    }

    /// Of a window that is long by now, ticks say enough; the counters would make each switch to one of the threads dearer.
    fn end_clocks(&mut self) {
        let Some(open) = &mut self.open else {
            return;
        };
        let length = self.last.at.saturating_sub(open.usage.at);
        if length > CLOCKS_FOR {
            open.modes = open.modes();
            open.clocks = None;
        } else if length > SAMPLES_FOR
            && let Some(clocks) = &mut open.clocks
        {
            clocks.end_samples();
        }
    }

    /// Whether it is worth while to sample the modes of a window: of the first one nobody knows, and later ones are like those before.
    fn wants_modes(&self) -> bool {
        match self.controller.mode() {
            Mode::Sampled => self.cohorts.windows() == 0 || self.own.wants_modes(),
            Mode::Exact => self.cohorts.windows() == 0,
        }
    }

    /// Whether windows are opened and closed at all.
    pub(super) fn is_enforced(&self) -> bool {
        self.is_enforced
    }

    /// Whether there is a window whose blocks are in the live table.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether calls are to be seen now.
    pub(super) fn is_armed(&self) -> bool {
        self.open.is_some() && self.closing.is_none()
    }

    /// When the window that is open was opened, CLOCK_MONOTONIC nanoseconds.
    pub(super) fn opened_ns(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.at_ns)
    }

    /// Since when every call has been seen again, after windows; CLOCK_MONOTONIC nanoseconds.
    pub(super) fn exact_since_ns(&self) -> Option<u64> {
        let is_exact = self.is_armed() && self.controller.mode() == Mode::Exact;
        self.opened_ns()
            .filter(|_| is_exact && self.cohorts.windows() > 0)
    }

    /// A site is another one from now on.
    pub(super) fn join(&mut self, from: SiteId, to: SiteId) {
        self.cohorts.join(from, to);
    }

    /// Births in windows that are closed, objects and bytes by the site that each `joined` gives.
    pub(super) fn births_before(
        &self,
        joined: impl Fn(SiteId) -> SiteId,
    ) -> HashMap<SiteId, (u64, u64)> {
        let mut sums: HashMap<SiteId, (u64, u64)> = HashMap::new();
        for (site, (objects, bytes)) in &self.births {
            let (all_objects, all_bytes) = sums.entry(joined(*site)).or_default();
            *all_objects = all_objects.saturating_add(*objects);
            *all_bytes = all_bytes.saturating_add(*bytes);
        }
        sums
    }

    /// The share of the time in which calls were seen.
    pub(super) fn duty(&self, moment: &Moment) -> f64 {
        self.controller.duty(moment.since(self.began))
    }

    /// Samples of its modes in the window that is open: what they cost is not in [`Windows::sampling`] yet.
    fn samples_so_far(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.modes().all)
    }

    /// What samples of its modes took of the process's time.
    pub(super) fn sampling(&self) -> Duration {
        self.sampling
    }

    /// What calls of programs that it ran before took of its time.
    pub(super) fn spent(&self) -> Duration {
        self.spent
    }

    /// The calls of this incarnation that are in no thread's record any more.
    pub(super) fn hits_before(&self) -> &[u64; HIT_SLOTS] {
        &self.hits_before
    }

    /// The cohorts with the best that is known of how much the windows missed. Where traps took most of the time in the windows, that
    /// is little; but what outlives the windows must make the process grow, and how much it grows is measured: the two are
    /// weighed by how far each may be off.
    pub(super) fn weighed(&self, moment: &Moment, covered_until_ns: u64) -> Weighed {
        let mut cohorts = self.cohorts.clone();
        let mut weighed = Weighed {
            estimated_growth: None,
            measured_growth: None,
            cohorts: Cohorts::default(),
        };
        let known = self.own.of_an_allocation();
        if let Some((time, uncertainty)) = known {
            cohorts.set_time_of_an_allocation(time, uncertainty);
        }
        let growth = self.anonymous.growth();
        let elapsed = moment.since(self.began).as_secs_f64();
        let sites = cohorts.estimates(moment.ns(), covered_until_ns, 0.0);
        let (mut footprint, mut largest, mut blocks) = (0.0, 0.0_f64, 0.0);
        for estimate in sites.values() {
            if estimate.growth_bytes_per_s > 0.0 && estimate.inuse_objects > 0 {
                let of_site = estimate.growth_bytes_per_s * estimate.taken_per_byte;
                footprint += of_site;
                largest = largest.max(of_site);
                blocks += estimate.observed_objects as f64;
            }
        }
        weighed.estimated_growth = Some(footprint);
        if let Some(growth) = growth {
            let grown = growth.slope * elapsed;
            weighed.measured_growth = (growth.slope >= 0.0).then_some(growth.slope);
            if let Some((time, uncertainty)) = known
                && grown > LEAST_GROWTH
                && footprint > 0.0
            {
                // Of a site whose blocks merely last longer than the watch, older ones go meanwhile, and it grows by nothing. Which sites those
                // are is not known yet: what grows lies between the largest site alone and all of them.
                let spread = (footprint / largest).ln() / 2.0;
                let ratio = (growth.slope / footprint).ln() + spread;
                let prior = uncertainty.ln_1p().powi(2);
                // None of these has to do with another.
                let error: f64 = [
                    GROWTH_ERROR,
                    (LEAST_GROWTH + HOLES * self.anonymous.last_bytes()) / grown,
                    growth.scatter / grown,
                    1.0 / blocks.max(1.0).sqrt(),
                    spread / 2.0,
                ]
                .iter()
                .map(|part| part * part)
                .sum();
                let weight = prior / (prior + error);
                let left = (prior * error / (prior + error)).sqrt();
                cohorts.set_time_of_an_allocation(time / (weight * ratio).exp(), left);
            }
        }
        weighed.cohorts = cohorts;
        weighed
    }

    /// Takes in how much anonymous memory the process holds, in memory or swapped out.
    pub(super) fn note_memory(&mut self, bytes: u64) {
        self.anonymous.note(self.began.elapsed(), bytes);
    }
}

/// See [`Windows::weighed`].
pub(super) struct Weighed {
    pub(super) cohorts: Cohorts,
    /// Bytes that the process must grow by each second for what survives, and by how much it did.
    pub(super) estimated_growth: Option<f64>,
    pub(super) measured_growth: Option<f64>,
}
