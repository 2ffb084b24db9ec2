//! Looks that count what a process holds, by size, where its allocator's chunks can be walked from outside: on a thread of its own, one process at a time, as
//! often as the budget allows. What follows from the counts is the ledger's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use super::{super::Session, Windows};
use crate::{
    apart::{Place, spent_here, walk_counts},
    budget::Mode,
    heap::{Allocator, Counts},
    kernel::{KernelError, monotonic_ns, ordinary_priority, thread_cpu_time},
    ledger::{Cohorts, Counted, Estimate, Rounding, SiteId, SizeCounts, count},
    reader::{ProcessMemory, read_address_space},
    session::{moment::Moment, process::Traced},
};

/// Of the budget, the part that these looks may take.
const PART: f64 = 0.25;

/// The processors that a process uses are taken to be so many at least, or looks at one at rest would be too rare to tell anything.
const LEAST_CORES: f64 = 0.25;

/// Between two looks there is at least this time.
const EVERY: Duration = Duration::from_secs(2);

/// The first looks are an allowance: so many may take this part of a processor, and are so far apart at least; the second comes sooner.
const FIRST: u32 = 6;
const FIRST_PART: f64 = 0.025;
const FIRST_EVERY: Duration = Duration::from_secs(8);
const SECOND_AFTER: Duration = Duration::from_secs(4);

/// The last report waits so long for looks.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// While it waits, what happens is dealt with so often.
const STEP: Duration = Duration::from_millis(10);

/// A look ends after so long, and after so many bytes: a larger heap is not counted.
const WITHIN: Duration = Duration::from_secs(20);
const MOST_BYTES: u64 = 16 << 30;

/// Where more of a heap than this could not be walked, for it changed meanwhile, the look tells nothing.
const TORN: f64 = 0.01;

/// What came of a look.
struct Outcome {
    counts: Option<Counts>,
    /// There was no heap of a form that is known.
    found_no_heap: bool,
    /// When it was begun, and half done, CLOCK_MONOTONIC nanoseconds.
    begun_ns: u64,
    at_ns: u64,
    spent: Duration,
}

/// The looks at one process.
#[derive(Debug, Default)]
pub(super) struct CountLooks {
    series: SizeCounts,
    /// Whose blocks they count.
    rounding: Rounding,
    running: Option<Receiver<Outcome>>,
    next: Option<Instant>,
    taken: u32,
    /// A report waits for the next.
    is_wanted: bool,
    /// Looks that told nothing: another allocator, a heap that is too large or that changed too fast.
    failed: u32,
    /// The last found no heap of a form that is known.
    found_no_heap: bool,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Outcome").finish_non_exhaustive()
    }
}

/// After so many looks that told nothing there are no more.
const FAILURES: u32 = 3;

impl Windows {
    /// Whether blocks were to be counted, and the allocator's heap has a form that is not known.
    pub(in crate::session) fn found_no_heap(&self) -> bool {
        self.counting.found_no_heap
    }

    /// What looks have counted, divided among the sites. `None` where that is not known, or every call is seen again.
    pub(in crate::session) fn counted(&self, cohorts: &Cohorts, now_ns: u64) -> Option<Counted> {
        if self.exact_since_ns().is_some() {
            return None;
        }
        let began_ns = cohorts.began_ns()?;
        let blocks = cohorts.by_size(now_ns, &cohorts.alike(), self.counting.rounding);
        let mut counted = count(&self.counting.series, &blocks, began_ns, now_ns)?;
        let at_s = now_ns.saturating_sub(began_ns) as f64 / 1e9;
        counted.note_left(&cohorts.left(self.counting.rounding), cohorts.effective_s());
        counted.divide_among(|| cohorts.lengthening(), at_s);
        Some(counted)
    }

    /// The estimates of all sites of blocks at least so old, by windows and by what was counted; and what that was.
    pub(in crate::session) fn estimates(
        &self,
        moment: &Moment,
        covered_until_ns: u64,
        min_age_s: f64,
    ) -> (BTreeMap<SiteId, Estimate>, Option<Counted>) {
        let cohorts = self.weighed(moment, covered_until_ns).cohorts;
        let now_ns = moment.ns();
        let mut estimates = cohorts.estimates(now_ns, covered_until_ns, min_age_s);
        // What is younger than asked for is counted with the others.
        let counted = (min_age_s <= 0.0)
            .then(|| self.counted(&cohorts, now_ns))
            .flatten()
            .map(|mut counted| {
                let began_ns = cohorts.began_ns().unwrap_or(now_ns);
                let time_s = now_ns.saturating_sub(began_ns) as f64 / 1e9;
                let stay = cohorts.staying(now_ns);
                counted.correct(&mut estimates, time_s, |site| {
                    stay.get(&site).copied().unwrap_or(0.0)
                });
                counted.bound(&mut estimates, |site, sizes| {
                    cohorts.share_of_sizes(site, sizes, self.counting.rounding)
                });
                counted.correct_lengthened(&mut estimates);
                counted
            });
        (estimates, counted)
    }

    /// Cores that it uses, about.
    fn cores(&self) -> f64 {
        let cpu = self.last.cpu.saturating_sub(self.last.cost).as_secs_f64();
        (cpu / self.last.at.as_secs_f64().max(1.0)).max(LEAST_CORES)
    }
}

impl CountLooks {
    fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && self.failed < FAILURES && self.next.is_none_or(|next| now >= next)
    }

    fn take_in(&mut self, outcome: Outcome, cohorts: &mut Cohorts, may_take: f64) {
        let mut wait = outcome.spent.div_f64(may_take.max(1e-6)).max(EVERY);
        self.taken = self.taken.saturating_add(1);
        if self.taken < FIRST {
            let least = if self.taken == 1 {
                SECOND_AFTER
            } else {
                FIRST_EVERY
            };
            wait = wait.min(outcome.spent.div_f64(FIRST_PART).max(least));
        }
        self.is_wanted = false;
        self.next = Instant::now().checked_add(wait);
        self.found_no_heap = outcome.found_no_heap;
        match outcome.counts.filter(|found| found.torn_share() <= TORN) {
            Some(found) => {
                self.failed = 0;
                cohorts.drop_gone(outcome.begun_ns, &found.gone);
                cohorts.note_taken(&found.taken);
                self.series.note(outcome.at_ns, found.sizes);
            }
            None => self.failed = self.failed.saturating_add(1),
        }
    }
}

impl Session {
    /// Counts once more for the last report, which is of now.
    pub(in crate::session) fn count_for_last_report(&mut self) -> Result<(), KernelError> {
        for traced in self.processes.values_mut() {
            traced.windows.counting.is_wanted = counted_as(traced).is_some();
        }
        let begun = Instant::now();
        let waits = |session: &Self| {
            session.processes.values().any(|traced| {
                let looks = &traced.windows.counting;
                looks.is_wanted && looks.failed < FAILURES && traced.ended.is_none()
            })
        };
        while waits(self) && begun.elapsed() < LAST_WITHIN {
            self.step(STEP)?;
        }
        Ok(())
    }

    /// Takes in what looks have counted, and begins the next.
    pub(in crate::session) fn count_heaps(&mut self) {
        let now = Instant::now();
        let mut is_running = false;
        for traced in self.processes.values_mut() {
            let may_take = PART * self.options.budget * traced.windows.cores();
            let Windows {
                counting: looks,
                cohorts,
                ..
            } = &mut traced.windows;
            if let Some(running) = looks.running.take() {
                match running.try_recv() {
                    Ok(outcome) => looks.take_in(outcome, cohorts, may_take),
                    Err(TryRecvError::Empty) => {
                        is_running = true;
                        looks.running = Some(running);
                    }
                    Err(TryRecvError::Disconnected) => looks.failed = FAILURES,
                }
            }
        }
        if is_running {
            return;
        }
        let due = self
            .processes
            .values()
            .filter(|traced| traced.windows.counting.is_due(now))
            .filter_map(|traced| Some((traced, counted_as(traced)?)))
            .min_by_key(|(traced, _)| traced.windows.counting.next)
            .map(|(traced, rounding)| (traced.pid, rounding));
        let root = self.proc_root().to_owned();
        if let Some((pid, rounding)) = due
            && let Some(traced) = self.processes.get_mut(&pid)
        {
            let looks = &mut traced.windows.counting;
            if looks.rounding != rounding {
                // Another allocator's counts are no measure of this one's.
                looks.series = SizeCounts::default();
                looks.rounding = rounding;
            }
            let watched = traced.windows.cohorts.watched();
            let mut blocks: Vec<u64> = watched
                .filter(|block| block.rounding == rounding)
                .map(|block| block.address)
                .collect();
            blocks.sort_unstable();
            traced.windows.counting.running = Some(begin(root, pid, rounding, blocks));
        }
    }
}

/// The allocator whose blocks are counted, of a process that is seen in windows. Where another is, the C library's own is not called.
fn counted_as(traced: &Traced) -> Option<Rounding> {
    let is_seen = traced.ended.is_none()
        && traced.windows.controller.mode() == Mode::Sampled
        && traced.windows.cohorts.windows() > 0;
    let there = || {
        let sites = traced.sites.iter();
        sites.filter_map(|site| rounding_of(&site.allocator))
    };
    is_seen
        .then(|| {
            there()
                .find(|rounding| *rounding != Rounding::Glibc)
                .or_else(|| there().next())
        })
        .flatten()
}

/// How an allocator rounds, by the name that sites have of it; `None` where its blocks cannot be counted.
pub(super) fn rounding_of(allocator: &str) -> Option<Rounding> {
    [
        ("glibc", Rounding::Glibc),
        ("jemalloc", Rounding::Jemalloc),
        ("mimalloc", Rounding::Mimalloc),
    ]
    .into_iter()
    .find_map(|(name, rounding)| allocator.starts_with(name).then_some(rounding))
}

/// Begins a look. Nobody waits for the thread: what it reads may hang.
fn begin(proc_root: PathBuf, pid: u32, rounding: Rounding, blocks: Vec<u64>) -> Receiver<Outcome> {
    let (send, result) = channel();
    let look = move || {
        ordinary_priority();
        let spent = || thread_cpu_time().saturating_add(spent_here());
        let begun = spent();
        let begun_ns = monotonic_ns();
        let looked = look(&proc_root, pid, rounding, &blocks);
        let outcome = Outcome {
            found_no_heap: matches!(looked, Some((None, false))),
            counts: looked.and_then(|(counts, _)| counts),
            begun_ns,
            at_ns: begun_ns.midpoint(monotonic_ns()),
            spent: spent().saturating_sub(begun),
        };
        // Nobody may wait for it any more.
        let _ = send.send(outcome);
    };
    // Where no thread can be made, the channel is closed.
    let _ = thread::Builder::new().name("count".to_owned()).spawn(look);
    result
}

/// Counts; and if there are no counts, whether that is for want of time. `None` where nothing was looked at.
fn look(
    proc_root: &Path,
    pid: u32,
    rounding: Rounding,
    blocks: &[u64],
) -> Option<(Option<Counts>, bool)> {
    let memory = ProcessMemory::open(proc_root, pid).ok()?;
    let image = read_address_space(proc_root, pid).ok()?;
    let allocator = match rounding {
        Rounding::Glibc => Allocator::Glibc,
        Rounding::Jemalloc => Allocator::Jemalloc,
        Rounding::Mimalloc => Allocator::Mimalloc,
        Rounding::Unknown => return None,
    };
    let place = Place {
        memory: &memory,
        regions: &image.regions,
        until: Some(Instant::now() + WITHIN),
        most_bytes: MOST_BYTES,
    };
    walk_counts(place, allocator, blocks).ok()
}

#[cfg(test)]
mod tests {
    use super::{Cohorts, CountLooks, Counts, FAILURES, Outcome};
    use std::time::{Duration, Instant};

    fn outcome(torn_bytes: u64, at_ns: u64) -> Outcome {
        Outcome {
            found_no_heap: false,
            counts: Some(Counts {
                sizes: vec![(64, 1_000)],
                bytes: 64_000,
                torn_bytes,
                ..Counts::default()
            }),
            begun_ns: at_ns,
            at_ns,
            spent: Duration::from_millis(400),
        }
    }

    #[test]
    fn a_look_that_tore_counted_less_than_there_was() {
        let (mut looks, mut cohorts) = (CountLooks::default(), Cohorts::default());
        looks.take_in(outcome(0, 1), &mut cohorts, 0.01);
        looks.take_in(outcome(10_000, 2), &mut cohorts, 0.01);
        assert_eq!((looks.series.taken(), looks.failed), (1, 1));
        for at_ns in 3..6 {
            looks.take_in(outcome(10_000, at_ns), &mut cohorts, 0.01);
        }
        assert!(looks.failed >= FAILURES && !looks.is_due(Instant::now()));
    }

    #[test]
    fn a_large_heap_is_looked_at_rarely() {
        let (mut looks, mut cohorts) = (CountLooks::default(), Cohorts::default());
        for at_ns in 1..10 {
            looks.take_in(outcome(0, at_ns), &mut cohorts, 0.0025);
        }
        let wait = looks
            .next
            .map(|next| next.saturating_duration_since(Instant::now()));
        assert!(wait.is_some_and(|wait| wait > Duration::from_secs(150)));
    }
}
