//! A process's windows opened and closed: what is due, what it has cost, and what is taken over at a window's end.

use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use leakscope_common::{HIT_SLOTS, Loss};

use super::{
    super::{Session, Wanted, fault::place, process::Traced},
    Closing, Detaching, Late, Open, OwnTime, Used, Windows,
    look::{as_reading, look_at_newest, look_before_window, read_answering},
    usage::Boundary,
};
use crate::{
    budget::{Close, Mode, Usage},
    duration::times,
    kernel::{
        BlockToPut, BlockToRead, KernelError, close_links, monotonic_ns, raise_priority,
        thread_cpu_time,
    },
    ledger::{Cohorts, MOST_WATCHED, Reading, SiteId, Survivor},
    target::process::{list_threads, mode_ticks},
};

/// How often what a process has used is looked at where nothing tells of its calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Nothing waits for longer, whatever was planned: a clock does not go on for ever.
const LOOK_AT_LEAST: Duration = Duration::from_secs(3600);

/// The kernel takes so long to take probes away for good, about; and how often it is looked whether it has.
const CLOSING_TAKES: Duration = Duration::from_millis(40);
const CLOSING_LOOK_EVERY: Duration = Duration::from_millis(10);

/// When to look again after so long. Looks that are not urgent are done together, on the second: each by itself would wake us.
fn observe_after(wait: Duration) -> Instant {
    let now = Instant::now();
    if wait < LOOK_EVERY {
        return now + wait;
    }
    let past_the_second = Duration::from_nanos(monotonic_ns() % 1_000_000_000);
    now + wait.saturating_sub(past_the_second).min(LOOK_AT_LEAST)
}

impl Windows {
    /// Plans the next look at what was used.
    fn plan_look(&mut self) {
        let at = self.began.elapsed();
        self.next_observe = if self.is_open() {
            observe_after(self.controller.look_again(at).unwrap_or(LOOK_EVERY))
        } else {
            let wait = self.controller.next_opening().saturating_sub(at);
            Instant::now() + wait.min(LOOK_AT_LEAST)
        };
    }
}

impl Session {
    /// The probe says that a process was trapped so many times more: what that cost is looked at before anything else, unless it can be no
    /// more than is left.
    pub(in crate::session) fn note_hits(&mut self, pid: u32, incarnation: u32, hits: u32) {
        let cost = self.costs.hit.saturating_mul(hits);
        if let Some(traced) = self.processes.get_mut(&pid)
            && traced.incarnation == incarnation
        {
            let windows = &mut traced.windows;
            windows.told = windows.told.saturating_add(cost);
            if windows.told >= windows.controller.slack() {
                windows.next_observe = Instant::now();
            }
        }
    }

    /// How soon a window wants to be looked at.
    pub(in crate::session) fn next_window_step(&self) -> Duration {
        let now = Instant::now();
        let mut wait = Duration::MAX;
        for traced in self.processes.values() {
            let windows = &traced.windows;
            if traced.ended.is_some() || !windows.is_enforced {
                continue;
            }
            let mut at = windows.next_observe;
            if let Some(look) = windows.looks.next() {
                at = at.min(look);
            }
            wait = wait.min(at.saturating_duration_since(now));
        }
        wait
    }

    /// A followed process begins a program: what is known of the one before is of no use.
    pub(in crate::session) fn begin_windows(&mut self, traced: &mut Traced) {
        let usage = self.usage(traced);
        let windows = &mut traced.windows;
        windows.spent = usage.cost;
        windows.sampling = Duration::ZERO;
        windows.hits_before = [0; HIT_SLOTS];
        windows.cohorts = Cohorts::new(traced.incarnation);
        windows.inuse = None;
        windows.births.clear();
        windows.own = OwnTime::new((0, 0), self.costs.by_work);
        windows.looks.end();
        if windows.closing.take().is_some() {
            // Its probes are gone, and what it saw is the other program's.
            windows.open = None;
        }
        if windows.cpu_before.is_none() {
            windows.begin(traced.pid, traced.incarnation);
            self.begin_with_program(traced, Usage::default());
        } else if windows.is_open() {
            self.begin_with_program(traced, usage);
        } else {
            // The first calls of a program are the ones that nobody else can see.
            windows.controller.opened(usage);
            windows.closed_usage = None;
            windows.closed_ticks = None;
            self.begin_with_program(traced, usage);
            traced.arm(&mut self.probe);
        }
    }

    /// Opens and closes what is due.
    pub(in crate::session) fn step_windows(&mut self) -> Result<(), KernelError> {
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
        let peers = self
            .processes
            .values()
            .filter(|traced| {
                traced.ended.is_none() && traced.windows.controller.mode() == Mode::Sampled
            })
            .count();
        for pid in due {
            let stepped = self.deal_with(pid, |session, traced| {
                session.faults.inject(place::WINDOW, Some(pid));
                let work = |session: &Self| {
                    thread_cpu_time().saturating_add(session.probe.spent_on_links())
                };
                let begun = work(session);
                traced.windows.controller.set_peers(peers);
                let result = session.step_window(traced);
                traced.put_off_deadline();
                let worked = work(session).saturating_sub(begun);
                traced.windows.work = traced.windows.work.saturating_add(worked);
                result
            });
            stepped.unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    fn step_window(&mut self, traced: &mut Traced) -> Result<(), KernelError> {
        if let Some(closing) = traced.windows.closing.take() {
            if closing.is_over() {
                self.close_window(traced, closing)?;
                traced.windows.plan_look();
            } else {
                traced.windows.closing = Some(closing);
                traced.windows.next_observe = Instant::now() + CLOSING_LOOK_EVERY;
            }
            return Ok(());
        }
        if traced.windows.is_open() && traced.is_overdue() {
            // What it saw ended nobody knows when.
            self.begin_to_close(traced, Close::Planned)?;
            traced.windows.next_observe = Instant::now() + CLOSING_TAKES;
            return Ok(());
        }
        let windows = &mut traced.windows;
        let at = windows.began.elapsed();
        if windows.is_open()
            && let Some(wait) = windows.controller.look_again(at)
            && !wait.is_zero()
            && windows.told < windows.controller.slack()
            && windows.cpu(traced.pid).saturating_sub(windows.last.cpu) < windows.controller.slack()
            && at.saturating_sub(windows.last.at) < LOOK_EVERY
        {
            // It can have spent no more than the time that it ran.
            windows.next_observe = observe_after(wait);
            return Ok(());
        }
        if windows.is_open()
            && let Some(left) = windows.controller.about_to_close(at)
        {
            let begun = Instant::now();
            traced.windows.ready = self.probe.ready_to_detach();
            std::thread::sleep(left.saturating_sub(begun.elapsed()));
        }
        let usage = self.usage(traced);
        traced.windows.last = usage;
        traced.windows.told = Duration::ZERO;
        traced.windows.end_clocks();
        if traced.windows.is_open() {
            if let Some(reason) = traced.windows.controller.observe(usage) {
                self.begin_to_close(traced, reason)?;
                traced.windows.next_observe = Instant::now() + CLOSING_TAKES;
                return Ok(());
            }
        } else if traced.windows.controller.may_open(usage) {
            self.open_window(traced, usage)?;
        }
        traced.windows.plan_look();
        Ok(())
    }

    fn open_window(&mut self, traced: &mut Traced, usage: Usage) -> Result<(), KernelError> {
        look_before_window(traced);
        let windows = &mut traced.windows;
        if let Some(closed) = windows.closed_usage.take() {
            let cost = usage.cost.saturating_sub(closed.cost);
            let cpu = usage.cpu.saturating_sub(closed.cpu).saturating_sub(cost);
            let time = usage.at.saturating_sub(closed.at);
            let own = &mut windows.own;
            own.note_between(cpu.as_secs_f64(), time.as_secs_f64());
        }
        if let Some((user, system)) = windows.closed_ticks.take()
            && let Ok((user_now, system_now)) = mode_ticks(&self.proc_root, traced.pid)
        {
            let user = user_now.saturating_sub(user);
            windows
                .own
                .note_ticks((user, system_now.saturating_sub(system)));
        }
        windows.cohorts.thin_to(self.probe.thin_shift());
        let watched = windows.cohorts.watched().map(|block| BlockToPut {
            address: block.address,
            size: block.size,
            site: block.site,
        });
        let all = watched.len();
        let refused = self.probe.put_blocks(traced.incarnation, watched)?;
        let unseen = refused.iter().map(|block| block.address).collect();
        let put = all.saturating_sub(refused.len());
        // A window begins when everything is attached; what is seen until then costs, and does not count.
        traced.windows.open = Some(Open::new(u64::MAX, usage));
        traced.arm(&mut self.probe);
        self.begin_window(traced, unseen, put);
        Ok(())
    }

    /// Begins to close a window: the probes are being taken away, which the kernel waits for; beside that, a first look at what is alive, as soon after
    /// the end as can be. Until the next one, nobody can tell a block from a successor.
    fn begin_to_close(&mut self, traced: &mut Traced, reason: Close) -> Result<(), KernelError> {
        let open = traced.windows.open.as_ref();
        let clocks = open.and_then(|open| open.clocks.as_ref());
        let decided = self.boundary(traced, clocks);
        let closed_ns = decided.at_ns;
        let modes = clocks.map_or_else(
            || open.map(|open| open.modes).unwrap_or_default(),
            |_| decided.modes,
        );
        let stale = self.probe.loss(Loss::StaleBlock);
        let is_overdue = traced.is_overdue();
        // Of what was freed when the probes had gone, a look would see the successor. But a table with the blocks of others takes longer than the probes
        // may stay.
        let is_early = self.probe.is_windowed(traced.incarnation);
        let mut detaching = (!is_early).then(|| begin_to_detach(traced));
        let glibc: HashSet<u8> = traced
            .sites
            .iter()
            .filter(|site| site.allocator.starts_with("glibc"))
            .map(|site| site.hit_slot)
            .collect();
        let open = traced.windows.open.as_ref();
        let opened_ns = open.map_or(closed_ns, |open| open.survivors_from(closed_ns));
        let mut alive = Vec::new();
        let mut watched = 0;
        self.probe.visit_blocks_of(traced.incarnation, |live| {
            if live.block.born_ns >= opened_ns {
                alive.push((live.address, live.block));
            } else if live.block.born_ns == 0 {
                watched += 1;
            }
        })?;
        // Of a stack that has not been handed over yet: as all of the process's.
        let is_all_glibc = traced
            .sites
            .iter()
            .all(|site| glibc.contains(&site.hit_slot));
        let has_header = |site: &SiteId| {
            self.stacks
                .get(site)
                .map_or(is_all_glibc, |stack| glibc.contains(&stack.hit_slot))
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
            .zip(read_answering(traced.pid, &ask).unwrap_or_default())
            .filter_map(|(block, reading)| Some((block.address, as_reading(&reading?))))
            .collect();
        let detaching = detaching.take().unwrap_or_else(|| begin_to_detach(traced));
        traced.windows.closing = Some(Closing {
            detaching,
            is_early,
            reason,
            decided: Boundary { modes, ..decided },
            born: alive.len(),
            watched,
            looks,
            glibc,
            stale,
            is_overdue,
        });
        Ok(())
    }

    /// Takes over what a window has seen, once its last probe is gone.
    fn close_window(&mut self, traced: &mut Traced, closing: Closing) -> Result<(), KernelError> {
        let Closing {
            mut detaching,
            is_early,
            reason,
            decided,
            born,
            watched,
            looks,
            glibc,
            stale,
            is_overdue,
        } = closing;
        traced.windows.work = traced.windows.work.saturating_add(detaching.join());
        // While the links go, frees may be missed and allocations seen: that ends blocks as it should, and is no loss.
        self.stale_at_ends += self.probe.loss(Loss::StaleBlock).saturating_sub(stale);
        // Stacks that the survivors' sites stand for.
        self.drain()?;
        let Boundary {
            at_ns: closed_ns,
            usage: decided,
            calls,
            cpu,
            modes,
        } = decided;
        let Boundary {
            at_ns: over_ns,
            usage,
            calls: calls_now,
            ..
        } = self.boundary(traced, None);
        let mut births = HashMap::new();
        let wanted = std::collections::HashSet::from([traced.incarnation]);
        for (site, (incarnation, totals)) in self.heap_sites(&Wanted::Of(&wanted))? {
            if incarnation == traced.incarnation {
                births.insert(site, (totals.alloc_objects, totals.alloc_bytes));
            }
        }
        let Some(open) = traced.windows.open.take() else {
            return Ok(());
        };
        let opened_ns = open.survivors_from(closed_ns);
        let mut untouched = HashSet::new();
        let mut survivors = Vec::new();
        // Blocks that were seen to be born before it began, and are alive: objects and bytes, by site.
        let mut early: HashMap<SiteId, (u64, u64)> = HashMap::new();
        let stands_for = 1_u64 << self.probe.thin_shift();
        self.probe.take_blocks(traced.incarnation, |live| {
            if live.block.born_ns == 0 {
                untouched.insert(live.address);
            } else if live.block.born_ns >= opened_ns {
                survivors.push((live.address, live.block));
            } else {
                let stack = self.stacks.get(&live.block.site);
                let site = stack.map_or(live.block.site, |stack| stack.canonical);
                let (objects, bytes) = early.entry(site).or_default();
                *objects = objects.saturating_add(stands_for);
                *bytes = bytes.saturating_add(live.block.size.saturating_mul(stands_for));
            }
        })?;
        untouched.extend(&open.unseen);
        let windows = &mut traced.windows;
        let cpu = cpu
            .unwrap_or_else(|| decided.cpu.saturating_sub(open.usage.cpu))
            .as_secs_f64();
        let cost = decided.cost.saturating_sub(open.usage.cost).as_secs_f64();
        let hit = self.costs.hit.as_secs_f64().max(1e-12);
        let late_cost = usage.cost.saturating_sub(decided.cost).as_secs_f64();
        let sampling = times(self.costs.sample, modes.all as f64);
        windows.sampling = windows.sampling.saturating_add(sampling);
        let hits = cost / hit;
        let cpu = (cpu - sampling.as_secs_f64()).max(0.0);
        let weight = stands_for as f64;
        let old_frees = calls.unknown_frees.saturating_sub(open.calls.unknown_frees) as f64
            + open.put.saturating_sub(watched) as f64;
        let used = Used {
            time: closed_ns.saturating_sub(open.begun_ns) as f64 / 1e9,
            cpu,
            cost: hits * self.costs.by_work.in_a_process(cpu / hits.max(1.0)),
            hits,
            modes,
            allocations: calls.allocations.saturating_sub(open.calls.allocations) as f64,
            old_frees: old_frees * weight,
            survivors: born as f64 * weight,
        };
        let late = Late {
            hits: late_cost / hit,
            allocations: calls_now.allocations.saturating_sub(calls.allocations) as f64,
            time: over_ns.saturating_sub(closed_ns) as f64 / 1e9,
        };
        if !is_overdue {
            let span = windows.span(open.occasion, (opened_ns, closed_ns), used, late);
            let survivors = survivors.into_iter().map(|(address, block)| {
                let stack = self.stacks.get(&block.site);
                let survivor = Survivor {
                    address,
                    size: block.size,
                    born_ns: block.born_ns,
                    site: stack.map_or(block.site, |stack| stack.canonical),
                    has_header: stack.is_some_and(|stack| glibc.contains(&stack.hit_slot)),
                };
                // Before its stack was known it was read without its header: that was no look.
                let look = looks
                    .get(&address)
                    .filter(|look| look.header != 0 || !survivor.has_header);
                (survivor, look.copied())
            });
            let new_births = births.iter().filter_map(|(site, (objects, bytes))| {
                let (objects_before, bytes_before) =
                    windows.births.get(site).copied().unwrap_or_default();
                let (objects_early, bytes_early) = early.get(site).copied().unwrap_or_default();
                Some((
                    *site,
                    objects
                        .checked_sub(objects_before)?
                        .saturating_sub(objects_early),
                    bytes
                        .saturating_sub(bytes_before)
                        .saturating_sub(bytes_early),
                ))
            });
            windows.cohorts.close(
                span,
                new_births,
                survivors,
                &untouched,
                self.probe.thin_shift(),
            );
            if !is_early {
                windows.cohorts.distrust_newest();
            }
        }
        windows.births = births;
        windows.controller.closed(reason, decided, usage);
        windows.closed_usage = Some(usage);
        // Only where it will be asked.
        windows.closed_ticks = windows
            .own
            .is_trapped()
            .then(|| mode_ticks(&self.proc_root, traced.pid).ok())
            .flatten();
        windows.last = usage;
        windows.looks.begin();
        self.end_records(traced);
        look_at_newest(traced);
        if is_overdue {
            traced.note(
                "leakscope was stopped or came too late within a window, which is not counted"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Nothing is attached, and nothing of the process is in the live table: from now on its blocks stand where those of windows do, or no more; and
    /// the records of its threads are dropped, which would hide calls that never returned, and hold to where blocks stood before.
    fn end_records(&mut self, traced: &mut Traced) {
        let is_windowed = traced.windows.controller.mode() == Mode::Sampled;
        self.probe.set_windowed(traced.incarnation, is_windowed);
        let threads = list_threads(&self.proc_root, traced.pid).unwrap_or_default();
        let records = self.probe.take_thread_hits(traced.pid, &threads);
        for (sum, hits) in traced.windows.hits_before.iter_mut().zip(records) {
            *sum += hits;
        }
    }
}

/// Begins to take a process's probes away, on a thread: the kernel waits for those who run in them.
fn begin_to_detach(traced: &mut Traced) -> Detaching {
    let ready = traced.windows.ready.take();
    let links: Vec<_> = traced
        .links
        .drain()
        .map(|(_, link)| link)
        .chain(ready)
        .collect();
    let thread = std::thread::Builder::new()
        .name("detach".to_owned())
        // Where no thread can be made, the closure is dropped, and the links with it.
        .spawn(move || {
            close_links(links);
            thread_cpu_time()
        })
        .ok();
    Detaching(thread)
}
