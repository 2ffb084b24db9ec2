//! The end of a process's window: what was alive when it was decided, and what is taken over once the last probe is gone.

use hashbrown::{HashMap, HashSet};
use leakscope_common::{Block, Loss};

use super::{
    super::{Session, process::Traced},
    Closing, Detaching, Late, Open, Used, Windows,
    count::rounding_of,
    look::{as_reading, look_at_newest, read_answering},
    usage::Boundary,
};
use crate::{
    budget::{Close, Mode},
    duration::times,
    kernel::{BlockToRead, KernelError, close_links, thread_cpu_time},
    ledger::{MOST_WATCHED, Reading, Rounding, SiteId, Span, Survivor},
    process::procfs::{list_threads, mode_ticks},
};

/// A process's blocks, out of the live table.
#[derive(Default)]
struct Taken {
    /// Addresses of watched blocks that nobody freed.
    untouched: HashSet<u64>,
    /// Those that were born in the window, by address.
    survivors: Vec<(u64, Block)>,
    /// Those that were seen to be born before it began, and are alive: objects and bytes, by site.
    early: HashMap<SiteId, (u64, u64)>,
}

impl Session {
    /// Begins to close a window: the probes are being taken away, which the kernel waits for; beside that, a first look at what is alive, as soon after
    /// the end as can be. Until the next one, nobody can tell a block from a successor.
    pub(super) fn begin_to_close(
        &mut self,
        traced: &mut Traced,
        reason: Close,
    ) -> Result<(), KernelError> {
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
        let roundings: HashMap<u8, Rounding> = traced
            .sites
            .iter()
            .filter_map(|site| Some((site.hit_slot, rounding_of(&site.allocator)?)))
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
        let is_glibc = |slot: &u8| roundings.get(slot) == Some(&Rounding::Glibc);
        let is_all_glibc = traced.sites.iter().all(|site| is_glibc(&site.hit_slot));
        let has_header = |site: &SiteId| {
            self.stacks
                .get(site)
                .map_or(is_all_glibc, |stack| is_glibc(&stack.hit_slot))
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
            roundings,
            stale,
            is_overdue,
        });
        Ok(())
    }

    /// Takes over what a window has seen, once its last probe is gone.
    pub(super) fn close_window(
        &mut self,
        traced: &mut Traced,
        mut closing: Closing,
    ) -> Result<(), KernelError> {
        let detached = closing.detaching.join();
        traced.windows.work = traced.windows.work.saturating_add(detached);
        // While the links go, frees may be missed and allocations seen: that ends blocks as it should, and is no loss.
        self.stale_at_ends += self
            .probe
            .loss(Loss::StaleBlock)
            .saturating_sub(closing.stale);
        // Stacks that the survivors' sites stand for.
        self.drain()?;
        let over = self.boundary(traced, None);
        let births = self
            .sites_of(traced.incarnation)?
            .map(|(site, totals)| (site, (totals.alloc_objects, totals.alloc_bytes)))
            .collect();
        let Some(open) = traced.windows.open.take() else {
            return Ok(());
        };
        let opened_ns = open.survivors_from(closing.decided.at_ns);
        let mut taken = self.take_blocks(traced.incarnation, opened_ns)?;
        taken.untouched.extend(&open.unseen);
        let (used, late) = self.used(&mut traced.windows, &open, &closing, &over);
        if !closing.is_overdue {
            let closed = (opened_ns, closing.decided.at_ns);
            let span = traced.windows.span(open.occasion, closed, used, late);
            self.add_cohort(&mut traced.windows, span, &births, taken, &closing);
        }
        let windows = &mut traced.windows;
        windows.births = births;
        windows
            .controller
            .closed(closing.reason, closing.decided.usage, over.usage);
        windows.closed_usage = Some(over.usage);
        // Only where it will be asked.
        windows.closed_ticks = windows
            .own
            .is_trapped()
            .then(|| mode_ticks(&self.proc_root, traced.pid).ok())
            .flatten();
        windows.last = over.usage;
        windows.looks.begin();
        self.end_records(traced);
        look_at_newest(traced);
        if closing.is_overdue {
            traced.note(
                "leakscope was stopped or came too late within a window, which is not counted"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Takes a process's blocks out of the live table, of which those since `opened_ns` are a window's.
    fn take_blocks(&mut self, incarnation: u32, opened_ns: u64) -> Result<Taken, KernelError> {
        let mut taken = Taken::default();
        let stands_for = 1_u64 << self.probe.thin_shift();
        self.probe.take_blocks(incarnation, |live| {
            if live.block.born_ns == 0 {
                taken.untouched.insert(live.address);
            } else if live.block.born_ns >= opened_ns {
                taken.survivors.push((live.address, live.block));
            } else {
                let stack = self.stacks.get(&live.block.site);
                let site = stack.map_or(live.block.site, |stack| stack.canonical);
                let (objects, bytes) = taken.early.entry(site).or_default();
                *objects = objects.saturating_add(stands_for);
                *bytes = bytes.saturating_add(live.block.size.saturating_mul(stands_for));
            }
        })?;
        Ok(taken)
    }

    /// What the process used in a window, and what was seen while its probes went.
    fn used(
        &self,
        windows: &mut Windows,
        open: &Open,
        closing: &Closing,
        over: &Boundary,
    ) -> (Used, Late) {
        let Boundary {
            at_ns: closed_ns,
            usage: decided,
            ref calls,
            cpu,
            modes,
        } = closing.decided;
        let cpu = cpu
            .unwrap_or_else(|| decided.cpu.saturating_sub(open.usage.cpu))
            .as_secs_f64();
        let cost = decided.cost.saturating_sub(open.usage.cost).as_secs_f64();
        let hit = self.costs.hit.as_secs_f64().max(1e-12);
        let late_cost = over.usage.cost.saturating_sub(decided.cost).as_secs_f64();
        let sampling = times(self.costs.sample, modes.all as f64);
        windows.sampling = windows.sampling.saturating_add(sampling);
        let hits = cost / hit;
        let cpu = (cpu - sampling.as_secs_f64()).max(0.0);
        let weight = (1_u64 << self.probe.thin_shift()) as f64;
        let old_frees = calls.unknown_frees.saturating_sub(open.calls.unknown_frees) as f64
            + open.put.saturating_sub(closing.watched) as f64;
        let time = closed_ns.saturating_sub(open.begun_ns) as f64 / 1e9;
        let used = Used {
            time,
            planned: time * windows.controller.planned_times(decided.at),
            cpu,
            cost: hits * self.costs.by_work.in_a_process(cpu / hits.max(1.0)),
            hits,
            modes,
            allocations: calls.allocations.saturating_sub(open.calls.allocations) as f64,
            old_frees: old_frees * weight,
            survivors: closing.born as f64 * weight,
        };
        let late = Late {
            hits: late_cost / hit,
            allocations: over.calls.allocations.saturating_sub(calls.allocations) as f64,
            time: over.at_ns.saturating_sub(closed_ns) as f64 / 1e9,
        };
        (used, late)
    }

    /// Adds what a window has seen to the cohorts.
    fn add_cohort(
        &self,
        windows: &mut Windows,
        span: Span,
        births: &HashMap<SiteId, (u64, u64)>,
        taken: Taken,
        closing: &Closing,
    ) {
        let survivors = taken.survivors.into_iter().map(|(address, block)| {
            let stack = self.stacks.get(&block.site);
            let survivor = Survivor {
                address,
                size: block.size,
                born_ns: block.born_ns,
                site: stack.map_or(block.site, |stack| stack.canonical),
                rounding: stack
                    .and_then(|stack| closing.roundings.get(&stack.hit_slot).copied())
                    .unwrap_or_default(),
            };
            // Before its stack was known it was read without its header: that was no look.
            let look = closing
                .looks
                .get(&address)
                .filter(|look| look.header != 0 || !survivor.has_header());
            (survivor, look.copied())
        });
        let mut new_births: HashMap<SiteId, (u64, u64)> = HashMap::new();
        for (site, (objects, bytes)) in births {
            let before = windows.births.get(site).copied().unwrap_or_default();
            // Totals never fall: else the number stands for another stack now.
            let before = if before.0 <= *objects { before } else { (0, 0) };
            let site = self.stacks.get(site).map_or(*site, |stack| stack.canonical);
            let (all_objects, all_bytes) = new_births.entry(site).or_default();
            *all_objects = all_objects.saturating_add(objects.saturating_sub(before.0));
            *all_bytes = all_bytes.saturating_add(bytes.saturating_sub(before.1));
        }
        let new_births = new_births.into_iter().map(|(site, (objects, bytes))| {
            let early = taken.early.get(&site).copied().unwrap_or_default();
            let objects = objects.saturating_sub(early.0);
            (site, objects, bytes.saturating_sub(early.1))
        });
        windows.cohorts.close(
            span,
            new_births,
            survivors,
            &taken.untouched,
            self.probe.thin_shift(),
        );
        if !closing.is_early {
            windows.cohorts.distrust_newest();
        }
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
