//! A process's windows opened and closed: what is due, what it has cost, and what is taken over at a window's end.

use std::time::{Duration, Instant};

use leakscope_common::HIT_SLOTS;

use super::{
    super::{Session, fault::place, process::Traced},
    Open, OwnTime, Windows,
    look::look_before_window,
};
use crate::{
    budget::{Close, Mode, Usage},
    kernel::{BlockToPut, KernelError, monotonic_ns, raise_priority, thread_cpu_time},
    ledger::Cohorts,
    process::procfs::mode_ticks,
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
    /// Whether there is anything to open and close.
    fn has_begun(&self) -> bool {
        self.is_enforced && self.cpu_before.is_some()
    }

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
            if !windows.has_begun() || traced.ended.is_some() {
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
                    && traced.windows.has_begun()
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
}
