//! Windows: when calls are seen, what is kept of them, and the looks at the survivors in between. The budget decides, the ledger keeps; this file
//! ties them to a process.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use leakscope_common::{HIT_SLOTS, Loss};

use super::{Session, process::Traced};
use crate::{
    budget::{Choice, Close, Controller, Limits, Mode, Usage},
    kernel::{
        BlockReading, BlockToPut, BlockToRead, KernelError, close_links, monotonic_ns,
        process_cpu_time, raise_priority, read_blocks,
    },
    ledger::{Cohorts, MOST_WATCHED, Reading, SiteId, Span, Survivor},
};

/// Looks at the survivors after a window's end: two soon, for most blocks that do not last go soon; then each second.
const LOOKS_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A look that is not older than this is fresh.
const FRESH: Duration = Duration::from_millis(200);

/// How far the cost of a hit in the process may differ from that of one in our own (deeper stacks cost more).
const COST_UNCERTAINTY: f64 = 0.25;

/// The share of a window's processor time that traps may take for what is left to be taken as measured, window by window.
const SMALL_SHARE: f64 = 0.3;
/// What is left to the process itself is at least this share, and at most so uncertain.
const LEAST_OWN_SHARE: f64 = 0.02;
const MOST_UNCERTAIN: f64 = 3.0;

/// Growth below this is within what allocators keep and give back anyway, bytes.
const LEAST_GROWTH: f64 = 1_048_576.0;
/// How far growth and what survives may differ otherwise: fragments, memory of other kinds.
const GROWTH_ERROR: f64 = 0.08;

/// A window that is open.
struct Open {
    at_ns: u64,
    /// Processor time and cost by then.
    usage: Usage,
    /// Watched blocks that could not be put into the live table: nobody sees what becomes of them.
    unseen: HashSet<u64>,
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
    /// Hits in thread records that were dropped at the ends of windows, of this incarnation.
    hits_before: [u64; HIT_SLOTS],
    /// What hits in incarnations that have ended cost.
    spent: Duration,
    /// Each site's births (objects and bytes) when the last window was closed.
    births: HashMap<SiteId, (u64, u64)>,
    /// Processor time and time between windows: what the process does by itself.
    own: (f64, f64),
    /// Of windows in which traps took most of the time: processor time, cost, hits.
    trapped: (f64, f64, f64),
    /// Anonymous memory when it began, and at the last look, bytes.
    anonymous: (u64, u64),
    closed_usage: Option<Usage>,
    looked: Option<Instant>,
    looks: usize,
    next_look: Option<Instant>,
    next_observe: Instant,
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
            open: Some(Open {
                at_ns: monotonic_ns(),
                usage: Usage::default(),
                unseen: HashSet::new(),
            }),
            hits_before: [0; HIT_SLOTS],
            spent: Duration::ZERO,
            births: HashMap::new(),
            own: (0.0, 0.0),
            trapped: (0.0, 0.0, 0.0),
            anonymous: (0, 0),
            closed_usage: None,
            looked: None,
            looks: 0,
            next_look: None,
            next_observe: now,
        }
    }

    /// The trace of the process begins: its first window is open from now on.
    pub(super) fn begin(&mut self, pid: u32, incarnation: u32) {
        self.cohorts = Cohorts::new(incarnation);
        self.began = Instant::now();
        self.cpu_before = process_cpu_time(pid).ok();
        self.controller.opened(Usage::default());
        self.open = Some(Open {
            at_ns: monotonic_ns(),
            usage: Usage::default(),
            unseen: HashSet::new(),
        });
    }

    /// Whether windows are opened and closed at all.
    pub(super) fn is_enforced(&self) -> bool {
        self.is_enforced
    }

    /// Whether calls are seen now.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// When the window that is open was opened, CLOCK_MONOTONIC nanoseconds.
    pub(super) fn opened_ns(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.at_ns)
    }

    /// Births of a site in windows that are closed.
    pub(super) fn births_before(&self, site: SiteId) -> (u64, u64) {
        self.births.get(&site).copied().unwrap_or_default()
    }

    /// The share of the time in which calls were seen.
    pub(super) fn duty(&self) -> f64 {
        self.controller.duty(self.began.elapsed())
    }

    /// The calls of this incarnation that are in no thread's record any more.
    pub(super) fn hits_before(&self) -> &[u64; HIT_SLOTS] {
        &self.hits_before
    }

    /// Cores that the process uses by itself, from the times between windows.
    fn own_cores(&self) -> Option<f64> {
        (self.own.1 > 0.05 && self.own.0 > 0.0).then(|| self.own.0 / self.own.1)
    }

    /// The span of a window.
    ///
    /// Traps take processor time. A process that has all it wants (a server that waits for requests) does as much as before and uses more of it; one that
    /// is saturated uses as much as before and does less. Its own processor time in the window, divided by what it uses each second
    /// between windows, is right for both.
    ///
    /// Until the last probe is gone a few `late` hits are seen; the time at which each block was born is known to a tick of the clock only (1 to 10 ms), so
    /// that they belong to the window, and make it longer.
    fn span(
        &mut self,
        opened_ns: u64,
        closed_ns: u64,
        (cpu, cost, hits): (f64, f64, f64),
        late: f64,
    ) -> Span {
        let length = closed_ns.saturating_sub(opened_ns) as f64 / 1e9;
        // Before the first gap: what it used in the window itself.
        let cores = self
            .own_cores()
            .unwrap_or_else(|| (cpu / length.max(1e-9)).max(1e-3));
        let longer = (hits + late) / hits.max(1.0);
        let mut span = Span {
            opened_ns,
            closed_ns,
            effective_s: ((cpu - cost) / cores).min(length) * longer,
            uncertainty: (COST_UNCERTAINTY * cost / (cpu - cost).max(1e-9))
                .clamp(0.02, MOST_UNCERTAIN),
            calls: None,
        };
        if cost > SMALL_SHARE * cpu && hits > 0.0 {
            self.trapped.0 += cpu;
            self.trapped.1 += cost;
            self.trapped.2 += hits;
            let (time, uncertainty) = self.time_of_a_call().unwrap_or_default();
            span.calls = Some(hits + late);
            span.effective_s = (hits + late) * time;
            span.uncertainty = uncertainty;
        }
        span
    }

    /// The time that the process takes from call to call by itself, seconds, from all windows in which traps took most of the time; and how far that
    /// may be off, as a part of it.
    fn time_of_a_call(&self) -> Option<(f64, f64)> {
        let (cpu, cost, hits) = self.trapped;
        if hits <= 0.0 {
            return None;
        }
        let cores = self.own_cores().unwrap_or(1.0);
        let own = (cpu - cost).max(LEAST_OWN_SHARE * cpu);
        let uncertainty = (COST_UNCERTAINTY * cost / own).clamp(0.02, MOST_UNCERTAIN);
        Some((own / hits / cores, uncertainty))
    }

    /// The cohorts with the best that is known of how much the windows missed. Where traps took most of the time in the windows, that
    /// is little; but what outlives the windows must make the process grow, and how much it grows is measured: the two are
    /// weighed by how far each may be off.
    pub(super) fn weighed(&self, now_ns: u64, covered_until_ns: u64) -> Weighed {
        let mut cohorts = self.cohorts.clone();
        let mut weighed = Weighed {
            estimated_growth: None,
            measured_growth: None,
            cohorts: Cohorts::default(),
        };
        let known = self.time_of_a_call();
        if let Some((time, uncertainty)) = known {
            cohorts.set_time_of_a_call(time, uncertainty);
        }
        let grown = self.anonymous.1.checked_sub(self.anonymous.0);
        let elapsed = self.began.elapsed().as_secs_f64();
        let sites = cohorts.estimates(now_ns, covered_until_ns, 0.0);
        let (mut footprint, mut largest, mut blocks) = (0.0, 0.0_f64, 0.0);
        for estimate in sites.values() {
            if estimate.growth_bytes_per_s > 0.0 && estimate.inuse_objects > 0 {
                let mean = estimate.inuse_bytes as f64 / estimate.inuse_objects as f64;
                // What an allocator adds: glibc rounds up to 16 bytes, with 8 of its own.
                let chunk = ((mean + 8.0) / 16.0).ceil().max(2.0) * 16.0;
                let of_site = estimate.growth_bytes_per_s * chunk / mean.max(1.0);
                footprint += of_site;
                largest = largest.max(of_site);
                blocks += estimate.observed_objects as f64;
            }
        }
        weighed.estimated_growth = Some(footprint);
        if let Some(grown) = grown {
            let grown = grown as f64;
            weighed.measured_growth = Some(grown / elapsed.max(1e-9));
            if let Some((time, uncertainty)) = known
                && grown > LEAST_GROWTH
                && footprint > 0.0
            {
                // Of a site whose blocks merely last longer than the watch, older ones go meanwhile, and it grows by nothing. Which sites those
                // are is not known yet: what grows lies between the largest site alone and all of them.
                let spread = (footprint / largest).ln() / 2.0;
                let ratio = (grown / elapsed / footprint).ln() + spread;
                let prior = uncertainty.ln_1p().powi(2);
                let error = GROWTH_ERROR
                    + LEAST_GROWTH / grown
                    + 1.0 / blocks.max(1.0).sqrt()
                    + spread / 2.0;
                let weight = prior / (prior + error * error);
                let left = (prior * error * error / (prior + error * error)).sqrt();
                cohorts.set_time_of_a_call(time / (weight * ratio).exp(), left);
            }
        }
        weighed.cohorts = cohorts;
        weighed
    }

    /// Looks at how much anonymous memory the process holds.
    pub(super) fn measure(&mut self, proc_root: &std::path::Path, pid: u32) {
        if let Ok(bytes) = crate::target::process::exact_anonymous_bytes(proc_root, pid) {
            if self.anonymous.0 == 0 {
                self.anonymous.0 = bytes;
            }
            self.anonymous.1 = bytes;
        }
    }
}

/// See [`Windows::weighed`].
pub(super) struct Weighed {
    pub(super) cohorts: Cohorts,
    /// Bytes that the process must grow by each second for what survives, and by how much it did.
    pub(super) estimated_growth: Option<f64>,
    pub(super) measured_growth: Option<f64>,
}

impl Session {
    /// What a process has used so far.
    pub(super) fn usage(&self, traced: &Traced) -> Usage {
        let windows = &traced.windows;
        // Of a process that is gone, the last value stays.
        let cpu = process_cpu_time(traced.pid)
            .ok()
            .zip(windows.cpu_before)
            .map_or(windows.last.cpu, |(now, before)| now.saturating_sub(before));
        if cpu == windows.last.cpu && !cpu.is_zero() {
            // It has not run: it was not trapped either, and need not be asked.
            return Usage {
                at: windows.began.elapsed(),
                ..windows.last
            };
        }
        let hits = self.hits(traced);
        let calls: u64 = hits
            .iter()
            .take(leakscope_common::UNKNOWN_FREE_SLOT)
            .sum::<u64>()
            + self.growth.steps(traced.incarnation);
        let cost = windows.spent
            + Duration::from_secs_f64(self.cost_of_a_hit.as_secs_f64() * calls as f64);
        Usage {
            at: windows.began.elapsed(),
            cpu,
            cost,
        }
    }

    /// Calls seen of a process's present program, by hit slot.
    pub(super) fn hits(&self, traced: &Traced) -> [u64; HIT_SLOTS] {
        let mut hits = self.probe.hits_of(traced.pid, traced.incarnation);
        for (sum, before) in hits.iter_mut().zip(traced.windows.hits_before()) {
            *sum += before;
        }
        hits
    }

    fn stale_blocks(&self) -> u64 {
        self.probe
            .losses()
            .into_iter()
            .filter(|(loss, _)| *loss == Loss::StaleBlock)
            .map(|(_, count)| count)
            .sum()
    }

    /// How soon a window wants to be looked at.
    pub(super) fn next_window_step(&self) -> Duration {
        let now = Instant::now();
        let mut wait = Duration::MAX;
        for traced in self.processes.values() {
            let windows = &traced.windows;
            if traced.ended.is_some() || !windows.is_enforced {
                continue;
            }
            let mut at = windows.next_observe;
            if let Some(look) = windows.next_look {
                at = at.min(look);
            }
            wait = wait.min(at.saturating_duration_since(now));
        }
        wait
    }

    /// A followed process begins a program: what is known of the one before is of no use.
    pub(super) fn begin_windows(&mut self, traced: &mut Traced) {
        let usage = self.usage(traced);
        let windows = &mut traced.windows;
        windows.spent = usage.cost;
        windows.hits_before = [0; HIT_SLOTS];
        windows.cohorts = Cohorts::new(traced.incarnation);
        windows.births.clear();
        windows.next_look = None;
        if windows.cpu_before.is_none() {
            windows.begin(traced.pid, traced.incarnation);
        } else if let Some(open) = &mut windows.open {
            open.at_ns = monotonic_ns();
            open.unseen.clear();
        } else {
            // The first calls of a program are the ones that nobody else can see.
            windows.controller.opened(usage);
            windows.open = Some(Open {
                at_ns: monotonic_ns(),
                usage,
                unseen: HashSet::new(),
            });
            windows.closed_usage = None;
            traced.arm(&self.probe);
        }
    }

    /// Opens and closes what is due.
    pub(super) fn step_windows(&mut self) -> Result<(), KernelError> {
        self.check_watched(false);
        let now = Instant::now();
        if !self.is_urgent {
            // Now, not earlier: a command that we start must not inherit it.
            self.is_urgent = true;
            raise_priority();
        }
        let due: Vec<u32> = self
            .processes
            .iter()
            .filter(|(_, traced)| {
                traced.ended.is_none()
                    && traced.windows.is_enforced
                    && traced.windows.cpu_before.is_some()
                    && now >= traced.windows.next_observe
            })
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            let Some(mut traced) = self.processes.remove(&pid) else {
                continue;
            };
            let result = self.step_window(&mut traced);
            self.processes.insert(pid, traced);
            result?;
        }
        Ok(())
    }

    fn step_window(&mut self, traced: &mut Traced) -> Result<(), KernelError> {
        let windows = &mut traced.windows;
        let at = windows.began.elapsed();
        if windows.is_open()
            && let Some(wait) = windows.controller.look_again(at)
            && let (Ok(now), Some(before)) = (process_cpu_time(traced.pid), windows.cpu_before)
            && now.saturating_sub(before).saturating_sub(windows.last.cpu)
                < windows.controller.slack()
            && at.saturating_sub(windows.last.at) < LOOK_EVERY
        {
            // It can have spent no more than the time that it ran.
            windows.next_observe = Instant::now() + wait;
            return Ok(());
        }
        let usage = self.usage(traced);
        traced.windows.last = usage;
        if traced.windows.is_open() {
            if let Some(reason) = traced.windows.controller.observe(usage) {
                self.close_window(traced, reason, usage)?;
            }
        } else if traced.windows.controller.may_open(usage) {
            self.open_window(traced, usage)?;
        }
        let windows = &mut traced.windows;
        let at = windows.began.elapsed();
        windows.next_observe = Instant::now()
            + if windows.is_open() {
                windows.controller.look_again(at).unwrap_or(LOOK_EVERY)
            } else {
                windows.controller.next_opening().saturating_sub(at)
            };
        Ok(())
    }

    fn open_window(&mut self, traced: &mut Traced, usage: Usage) -> Result<(), KernelError> {
        if traced
            .windows
            .looked
            .is_none_or(|looked| looked.elapsed() > FRESH)
        {
            look_at(traced);
        }
        let windows = &mut traced.windows;
        if let Some(closed) = windows.closed_usage.take() {
            let cost = usage.cost.saturating_sub(closed.cost);
            windows.own.0 += usage
                .cpu
                .saturating_sub(closed.cpu)
                .saturating_sub(cost)
                .as_secs_f64();
            windows.own.1 += usage.at.saturating_sub(closed.at).as_secs_f64();
            // What it did long ago says less.
            if windows.own.1 > 30.0 {
                windows.own = (windows.own.0 / 2.0, windows.own.1 / 2.0);
            }
        }
        windows.cohorts.thin_to(self.probe.thin_shift());
        let watched = windows.cohorts.watched().map(|block| BlockToPut {
            address: block.address,
            size: block.size,
            site: block.site,
        });
        let refused = self.probe.put_blocks(traced.incarnation, watched)?;
        let unseen = refused.iter().map(|block| block.address).collect();
        // A window begins when everything is attached; what is seen until then costs, and does not count.
        windows.open = Some(Open {
            at_ns: u64::MAX,
            usage,
            unseen,
        });
        traced.arm(&self.probe);
        let usage = self.usage(traced);
        let windows = &mut traced.windows;
        windows.controller.opened(usage);
        if let Some(open) = &mut windows.open {
            open.at_ns = monotonic_ns();
            open.usage = usage;
        }
        Ok(())
    }

    fn close_window(
        &mut self,
        traced: &mut Traced,
        reason: Close,
        decided: Usage,
    ) -> Result<(), KernelError> {
        let closed_ns = monotonic_ns();
        let stale = self.stale_blocks();
        // While the kernel takes the probes away, which it waits for: a first look at what is alive, as soon after the end as can be. Until the next one,
        // nobody can tell a block from a successor.
        let links: Vec<_> = traced.links.drain().map(|(_, link)| link).collect();
        let closing = std::thread::Builder::new()
            .name("detach".to_owned())
            // Where no thread can be made, the closure is dropped, and the links with it.
            .spawn(move || close_links(links));
        let glibc: HashSet<u8> = traced
            .sites
            .iter()
            .filter(|site| site.allocator.starts_with("glibc"))
            .map(|site| site.hit_slot)
            .collect();
        let opened_ns = traced.windows.opened_ns().unwrap_or(closed_ns);
        let mut alive = Vec::new();
        self.probe.visit_blocks_of(traced.incarnation, |live| {
            if live.block.born_ns >= opened_ns {
                alive.push((live.address, live.block));
            }
        })?;
        let has_header = |site: &SiteId| {
            self.stacks
                .get(site)
                .is_some_and(|stack| glibc.contains(&stack.hit_slot))
        };
        // Of very many, as many as will be watched.
        let every = alive.len() / (2 * MOST_WATCHED) + 1;
        let ask: Vec<BlockToRead> = alive
            .iter()
            .filter(|(address, _)| leakscope_common::mix(*address).is_multiple_of(every as u64))
            .map(|(address, block)| BlockToRead {
                address: *address,
                size: block.size,
                has_header: has_header(&block.site),
            })
            .collect();
        let looks: HashMap<u64, Reading> = ask
            .iter()
            .zip(read_blocks(traced.pid, &ask).unwrap_or_default())
            .filter_map(|(block, reading)| Some((block.address, as_reading(&reading?))))
            .collect();
        if let Ok(closing) = closing {
            // It panics nowhere; and if it did, its links are closed.
            let _ = closing.join();
        }
        // While the links go, frees may be missed and allocations seen: that ends blocks as it should, and is no loss.
        self.stale_at_ends += self.stale_blocks().saturating_sub(stale);
        // Stacks that the survivors' sites stand for.
        self.drain()?;
        let usage = self.usage(traced);
        let records = self.probe.take_thread_hits(traced.pid);
        let mut births = HashMap::new();
        for (site, (incarnation, totals)) in self.heap_sites()? {
            if incarnation == traced.incarnation {
                births.insert(site, (totals.alloc_objects, totals.alloc_bytes));
            }
        }
        let windows = &mut traced.windows;
        for (sum, hits) in windows.hits_before.iter_mut().zip(records) {
            *sum += hits;
        }
        let Some(open) = windows.open.take() else {
            return Ok(());
        };
        let mut untouched = open.unseen;
        let mut survivors = Vec::new();
        self.probe.take_blocks(traced.incarnation, |live| {
            if live.block.born_ns == 0 {
                untouched.insert(live.address);
            } else if live.block.born_ns >= open.at_ns {
                survivors.push((live.address, live.block));
            }
        })?;
        let cpu = decided.cpu.saturating_sub(open.usage.cpu).as_secs_f64();
        let cost = decided.cost.saturating_sub(open.usage.cost).as_secs_f64();
        let hit = self.cost_of_a_hit.as_secs_f64().max(1e-12);
        let late = usage.cost.saturating_sub(decided.cost).as_secs_f64() / hit;
        let span = windows.span(open.at_ns, closed_ns, (cpu, cost, cost / hit), late);
        let survivors = survivors.into_iter().map(|(address, block)| {
            let stack = self.stacks.get(&block.site);
            let survivor = Survivor {
                address,
                size: block.size,
                born_ns: block.born_ns,
                site: stack.map_or(block.site, |stack| stack.canonical),
                has_header: stack.is_some_and(|stack| glibc.contains(&stack.hit_slot)),
            };
            (survivor, looks.get(&address).copied())
        });
        let new_births = births.iter().filter_map(|(site, (objects, bytes))| {
            let (objects_before, bytes_before) =
                windows.births.get(site).copied().unwrap_or_default();
            Some((
                *site,
                objects.checked_sub(objects_before)?,
                bytes.saturating_sub(bytes_before),
            ))
        });
        windows.cohorts.close(
            span,
            new_births,
            survivors,
            &untouched,
            self.probe.thin_shift(),
        );
        windows.births = births;
        windows.controller.closed(reason, decided, usage);
        windows.closed_usage = Some(usage);
        windows.last = usage;
        windows.looks = 0;
        look_at(traced);
        if traced.windows.controller.mode() == Mode::Exact {
            traced.windows.next_observe = Instant::now();
        }
        Ok(())
    }

    /// Looks at watched blocks where it is time; at all of them when `now` is set.
    pub(super) fn check_watched(&mut self, now: bool) {
        let at = Instant::now();
        for traced in self.processes.values_mut() {
            let due = traced.windows.next_look.is_some_and(|look| at >= look);
            if traced.ended.is_none() && (due || (now && traced.windows.next_look.is_some())) {
                look_at(traced);
            }
        }
    }
}

/// Looks at a process's watched blocks.
fn look_at(traced: &mut Traced) {
    let windows = &mut traced.windows;
    let blocks: Vec<BlockToRead> = windows
        .cohorts
        .watched()
        .map(|block| BlockToRead {
            address: block.address,
            size: block.size,
            has_header: block.has_header,
        })
        .collect();
    let now = Instant::now();
    let wait = LOOKS_AFTER
        .get(windows.looks)
        .copied()
        .unwrap_or(LOOK_EVERY);
    windows.looks += 1;
    windows.looked = Some(now);
    windows.next_look = Some(now + wait);
    // A process that is gone, or has just replaced its program, holds nothing that could be contradicted.
    if let Ok(readings) = read_blocks(traced.pid, &blocks) {
        let readings: Vec<Option<Reading>> = readings
            .iter()
            .map(|reading| reading.as_ref().map(as_reading))
            .collect();
        windows.cohorts.check(monotonic_ns(), &readings);
    }
}

/// The same in the ledger's terms.
fn as_reading(reading: &BlockReading) -> Reading {
    Reading {
        header: reading.header,
        next_header: reading.next_header,
        fingerprint: reading.fingerprint,
        is_constant: reading.is_constant,
        second_word: reading.second_word,
        second_is_random: reading.second_is_random,
    }
}
