//! What a process has used and done so far, read where it matters: at the boundaries of windows, and to see whether one is to be closed. What
//! follows from it is decided elsewhere.

use std::time::Duration;

use hashbrown::HashSet;
use leakscope_common::{HIT_SLOTS, UNKNOWN_FREE_SLOT};

use super::{
    super::{Session, process::Traced},
    Calls, Clocks, Open, OwnTime,
};
use crate::{
    budget::{Mode, Usage},
    duration::times,
    kernel::{ModeSamples, Modes, ThreadClocks, monotonic_ns, next_tick_ns},
    ledger::Occasion,
    process::procfs::{list_threads, mode_ticks},
};

/// Processor time of a thread between two samples of its mode. A prime number of nanoseconds, for what it does may come back in steps. A sample
/// takes 2 us, in a virtual machine 40.
const SAMPLE_EVERY: Duration = Duration::from_nanos(499_979);

/// A reading that took less is of one time, beside windows of milliseconds; and how often it is tried, nanoseconds and times.
const QUICK_NS: u64 = 50_000;
const MOST_READINGS: u32 = 4;

/// What a process has used and done by a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Boundary {
    /// CLOCK_MONOTONIC nanoseconds.
    pub(super) at_ns: u64,
    pub(super) usage: Usage,
    pub(super) calls: Calls,
    /// Of the clocks of a window, where there are any: see [`Clocks`].
    pub(super) cpu: Option<Duration>,
    pub(super) modes: Modes,
}

impl Session {
    /// What a process has used so far.
    pub(in crate::session) fn usage(&self, traced: &Traced) -> Usage {
        let windows = &traced.windows;
        let cpu = windows.cpu(traced.pid);
        if cpu == windows.last.cpu && !cpu.is_zero() {
            // It has not run: it was not trapped either, and need not be asked.
            return Usage {
                at: windows.began.elapsed(),
                work: windows.work,
                ..windows.last
            };
        }
        let threads = list_threads(&self.proc_root, traced.pid).unwrap_or_default();
        let hits = self.hits(traced, &threads);
        let usage = self.usage_by(traced, cpu, &hits);
        let sampling = times(self.costs.sample, windows.samples_so_far() as f64);
        Usage {
            cost: usage.cost.saturating_add(sampling),
            ..usage
        }
    }

    /// The same, where its processor time and its calls are known.
    fn usage_by(&self, traced: &Traced, cpu: Duration, hits: &[u64; HIT_SLOTS]) -> Usage {
        let windows = &traced.windows;
        let calls = hits
            .iter()
            .take(UNKNOWN_FREE_SLOT)
            .fold(self.growth.steps(traced.incarnation), |sum, hits| {
                sum.saturating_add(*hits)
            });
        let cost = times(self.costs.hit, calls as f64)
            .saturating_add(windows.spent)
            .saturating_add(windows.sampling);
        Usage {
            at: windows.began.elapsed(),
            cpu,
            cost,
            work: windows.work,
        }
    }

    /// Reads what a process has used and done, for the beginning or the end of a window: all of it at once, or what is compared with each
    /// other would not be of the same time. We may be interrupted meanwhile, for longer than a window is; then it is read again.
    pub(super) fn boundary(&self, traced: &Traced, clocks: Option<&Clocks>) -> Boundary {
        let threads = list_threads(&self.proc_root, traced.pid).unwrap_or_default();
        let mut quickest: Option<(u64, Boundary)> = None;
        for _ in 0..MOST_READINGS {
            let at_ns = monotonic_ns();
            let own = clocks.and_then(Clocks::cpu);
            let modes = clocks.map(Clocks::modes).unwrap_or_default();
            let hits = self.hits(traced, &threads);
            let took = monotonic_ns().saturating_sub(at_ns);
            if quickest.as_ref().is_none_or(|(least, _)| took < *least) {
                let usage = self.usage_by(traced, traced.windows.cpu(traced.pid), &hits);
                let calls = calls_of(traced, &hits);
                let boundary = Boundary {
                    at_ns,
                    usage,
                    calls,
                    cpu: own,
                    modes,
                };
                quickest = Some((took, boundary));
            }
            if took < QUICK_NS {
                break;
            }
        }
        quickest.map(|(_, boundary)| boundary).unwrap_or_default()
    }

    /// Begins to count what a process uses, for a window that may be shorter than a tick of its clock.
    fn start_clocks(&self, traced: &Traced) -> Option<Clocks> {
        if !traced.windows.is_enforced || self.clocks_ready.is_none() {
            return None;
        }
        let threads = list_threads(&self.proc_root, traced.pid).ok()?;
        let time = ThreadClocks::start(&threads)?;
        let modes = traced
            .windows
            .wants_modes()
            .then(|| ModeSamples::start(&threads, SAMPLE_EVERY))
            .flatten();
        Some(Clocks::new(time, modes))
    }

    /// A window begins now: everything is attached. `unseen` and `put` are as in [`Open`].
    pub(super) fn begin_window(&self, traced: &mut Traced, unseen: HashSet<u64>, put: usize) {
        let clocks = self.start_clocks(traced);
        let open = self.open_now(traced, clocks);
        traced.windows.controller.opened(open.usage);
        let occasion = match traced.windows.controller.mode() {
            Mode::Sampled => Occasion::Random,
            Mode::Exact => Occasion::Cost,
        };
        traced.windows.open = Some(Open {
            occasion,
            unseen,
            put,
            ..open
        });
    }

    /// The trace of a process that runs begins, with its first window: what was attached saw before does not count.
    pub(in crate::session) fn begin_first_window(&self, traced: &mut Traced) {
        let before = mode_ticks(&self.proc_root, traced.pid).unwrap_or_default();
        let clocks = self.start_clocks(traced);
        let (pid, incarnation) = (traced.pid, traced.incarnation);
        traced.windows.begin(pid, incarnation);
        traced.windows.own = OwnTime::new(before, self.costs.by_work);
        traced.windows.open = Some(self.open_now(traced, clocks));
    }

    /// A window of a process that runs, and of which calls were seen before.
    fn open_now(&self, traced: &Traced, mut clocks: Option<Clocks>) -> Open {
        let begun = self.boundary(traced, clocks.as_ref());
        if let Some(clocks) = &mut clocks {
            clocks.begin(begun.cpu.unwrap_or_default(), begun.modes);
        }
        Open {
            occasion: Occasion::Cost,
            at_ns: next_tick_ns(begun.at_ns),
            calls: begun.calls,
            clocks,
            ..Open::new(begun.at_ns, begun.usage)
        }
    }

    /// A window begins with a program, of which nothing was seen before.
    pub(super) fn begin_with_program(&self, traced: &mut Traced, usage: Usage) {
        let clocks = self.start_clocks(traced);
        traced.windows.open = Some(Open {
            clocks,
            ..Open::new(monotonic_ns(), usage)
        });
    }

    /// Calls seen of a process's present program, by hit slot; of threads that have ended, and of these.
    fn hits(&self, traced: &Traced, threads: &[u32]) -> [u64; HIT_SLOTS] {
        let mut hits = self.probe.hits_of(traced.pid, threads, traced.incarnation);
        for (sum, before) in hits.iter_mut().zip(traced.windows.hits_before()) {
            *sum += before;
        }
        hits
    }
}

/// Allocations and frees among calls by hit slot.
fn calls_of(traced: &Traced, hits: &[u64; HIT_SLOTS]) -> Calls {
    let of_slot = |slot: usize| hits.get(slot).copied().unwrap_or(0);
    // Functions may share a slot.
    let slots: HashSet<u8> = traced
        .sites
        .iter()
        .filter(|site| site.allocates)
        .map(|site| site.hit_slot)
        .collect();
    Calls {
        allocations: slots.into_iter().map(|slot| of_slot(slot.into())).sum(),
        unknown_frees: of_slot(UNKNOWN_FREE_SLOT),
    }
}
