//! Cohorts: the blocks that were born in a window and survived it, watched from outside until they are seen to be gone.
//! Pure: windows, survivors and readings in, estimates out (see `docs/sampled.md`). Knows neither how a window is opened nor how memory is
//! read.

mod curve;
mod estimate;
mod fate;
mod gaps;
mod heirs;
mod interval;
mod joined;
mod lengthening;
mod lives;
mod look;
mod pool;
mod profile;
mod sizes;
mod stays;
#[cfg(test)]
mod tests;
mod variety;

pub use estimate::Estimate;
pub use fate::Reading;
pub use lengthening::Lengthening;
pub use profile::{Alike, SiteWindows};
pub use sizes::OfSize;

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use leakscope_common::{live_key, thin_keeps};

use super::{Fates, Rounding, SiteId};
use fate::{Fate, Keys, taken_for};
use gaps::Gaps;
use pool::Seen;
use stays::Stays;
use variety::Variety;

/// Blocks that are watched at most in one process. A look at all of them takes some 5 ms.
pub const MOST_WATCHED: usize = 10_000;

/// The thinnest choice that [`thin_keeps`] knows.
const MOST_SHIFT: u32 = 10;

/// Windows whose sites are kept apart. Of older ones only the watched blocks are kept, each with its window's weight.
const RECENT: usize = 64;

/// Classes of age at a window's end, as parts of the window's length.
pub(super) const AGE_EDGES: [f64; 5] = [0.0, 1.0 / 16.0, 0.25, 0.5, 1.0];
/// Their number.
const AGE_CLASSES: usize = AGE_EDGES.len() - 1;

/// A window: while it was open, every call was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// When it was opened, CLOCK_MONOTONIC nanoseconds.
    pub opened_ns: u64,
    /// When it was closed.
    pub closed_ns: u64,
    /// The time in which the process, untraced, does what it did in the window, seconds: the window's length less what its
    /// traps took.
    pub effective_s: f64,
    /// How far `effective_s` may be off, as a part of it (one standard deviation).
    pub uncertainty: f64,
    /// Where traps took a good part of the window, what is left for the process itself is too small a difference to be measured for each window: then
    /// all such windows share one time for an allocation (see [`Cohorts::set_time_of_an_allocation`]).
    pub shared: Option<Shared>,
    /// Why it was then.
    pub occasion: Occasion,
}

/// Why a window was when it was. Only one at a random time tells of others than its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Occasion {
    /// A random time.
    Random,
    /// It began with the trace of a process that runs, or when calls had become few, and ended for what it cost: it says less of what comes then than one
    /// at a random time, where there is one.
    #[default]
    Cost,
    /// It began with a program, which does at its start what it does not do later.
    Start,
}

/// What is known of a window by itself that shares the time of an allocation with others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shared {
    /// Allocations seen.
    pub allocations: f64,
    /// Its effective time at the least, seconds: its length without all that traps took.
    pub least_s: f64,
    /// At the most: its length, with the time that its probes took to go away.
    pub most_s: f64,
}

impl Shared {
    /// The effective time by the time of an allocation.
    #[must_use]
    pub fn effective_s(&self, of_an_allocation_s: f64) -> f64 {
        (self.allocations * of_an_allocation_s)
            .min(self.most_s)
            .max(self.least_s)
    }
}

/// A program that does nothing but call its allocator does at least this part of its work while all of its calls are traced: a pair of malloc and free
/// takes some 20 ns by itself, and two traps 2 us.
pub const LEAST_SHARE: f64 = 0.01;

impl Span {
    /// Whether it was at a random time.
    pub(super) fn is_random(&self) -> bool {
        self.occasion == Occasion::Random
    }

    /// Seconds from opening to closing.
    fn length_s(&self) -> f64 {
        seconds(self.opened_ns, self.closed_ns)
    }

    /// Seconds by which observed ones are to be divided for rates.
    fn effective_s(&self) -> f64 {
        let length = self.length_s().max(1e-9);
        if self.effective_s.is_finite() {
            self.effective_s.max(LEAST_SHARE * length)
        } else {
            length
        }
    }
}

/// Seconds from one time to a later one; 0 the other way round.
fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

/// A block that was born in a window and alive at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its address.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// When it was allocated, CLOCK_MONOTONIC nanoseconds.
    pub born_ns: u64,
    /// Where.
    pub site: SiteId,
    /// How its allocator rounds its size up.
    pub rounding: Rounding,
}

impl Survivor {
    /// Whether the words before and behind it tell whether it is in use.
    #[must_use]
    pub fn has_header(&self) -> bool {
        self.rounding == Rounding::Glibc
    }
}

/// Blocks and their bytes; not whole where thinned ones are scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Amount {
    pub(super) objects: f64,
    pub(super) bytes: f64,
}

impl Amount {
    pub(super) fn of(objects: u64, bytes: u64) -> Self {
        Self {
            objects: objects as f64,
            bytes: bytes as f64,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }

    pub(super) fn times(self, factor: f64) -> Self {
        Self {
            objects: self.objects * factor,
            bytes: self.bytes * factor,
        }
    }
}

/// What was alive of a site's cohort at a time after the window's end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) lag_s: f64,
    pub(super) alive: Amount,
}

/// A site's part in a cohort.
#[derive(Clone, Debug, Default)]
pub(super) struct SiteCohort {
    /// Born in the window.
    pub(super) births: Amount,
    /// Alive at its end, by age; complete, for this was counted before thinning.
    pub(super) ages: [Amount; AGE_CLASSES],
    /// Watched and alive, as counted.
    pub(super) alive_objects: u64,
    pub(super) alive_bytes: u64,
    /// What the checks found, where it changed.
    pub(super) history: Vec<Point>,
    /// Seconds from the window's end to the last check that counts, and what it found.
    pub(super) last: Option<Point>,
}

/// The survivors of one window.
#[derive(Clone, Debug)]
pub(super) struct Cohort {
    pub(super) span: Span,
    /// Empty once the window is an old one.
    pub(super) sites: BTreeMap<SiteId, SiteCohort>,
    /// Looks at its blocks since the window's end, without the first, to which the others are compared.
    pub(super) checks: u32,
    /// Windows opened since then.
    pub(super) later_windows: u32,
    /// The last look at its blocks; 0: there was none.
    pub(super) checked_ns: u64,
}

/// A block under watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    pub(super) survivor: Survivor,
    pub(super) cohort: u32,
    /// The first look at it.
    pub(super) first: Option<Reading>,
    /// The bytes that its allocator takes for it, where a walk has told.
    pub(super) taken: Option<u64>,
    /// It was looked at first when the probes had gone, or were going: what was read may be of a successor, which then seems to stay.
    pub(super) is_late: bool,
    /// Its contents have changed since: it counts only where windows show that blocks of its site stay.
    pub(super) is_changed: bool,
}

impl Watched {
    /// The bytes that its allocator takes for it.
    pub(super) fn taken(&self) -> u64 {
        self.taken
            .unwrap_or_else(|| taken_for(&self.survivor, self.first.as_ref()))
    }
}

/// How often blocks that look alike were contradicted by a window, and how often by a check.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Contradictions {
    /// Blocks that a window saw freed or given out again, although the check before it had found nothing.
    pub(super) in_windows: f64,
    /// Block-seconds in windows.
    pub(super) window_exposure: f64,
    /// Blocks that a check found gone.
    pub(super) by_checks: f64,
    /// Block-seconds between checks.
    pub(super) check_exposure: f64,
}

impl Contradictions {
    /// What windows saw.
    fn seen(&self) -> Seen {
        Seen {
            gone: self.in_windows,
            exposure: self.window_exposure,
        }
    }

    /// Blocks that checks find gone, per second.
    fn seen_by_checks(&self) -> f64 {
        if self.check_exposure > 0.0 {
            self.by_checks / self.check_exposure
        } else {
            0.0
        }
    }
}

/// The cohorts of one process.
#[derive(Clone, Debug, Default)]
pub struct Cohorts {
    incarnation: u32,
    pub(super) cohorts: Vec<Cohort>,
    pub(super) watched: Vec<Watched>,
    pub(super) shift: u32,
    /// For each site, of blocks that look alike: in the first window after their own, and in later ones.
    pub(super) contradictions: HashMap<SiteId, [Contradictions; 2]>,
    /// How many watched blocks of a site looked the same when they were first looked at.
    looks: HashMap<(SiteId, u64), u32>,
    /// What windows saw of each site's watched blocks, whatever they look like.
    stays: HashMap<SiteId, Stays>,
    /// The sizes of each site's survivors.
    variety: HashMap<SiteId, Variety>,
    keys: Keys,
    /// Births in windows that are old, scaled to the time that each stands for.
    pub(super) settled_births: HashMap<SiteId, Amount>,
    /// Windows in which the site allocated, among the old ones.
    pub(super) settled_windows: HashMap<SiteId, u32>,
    /// What became of the blocks of old windows, while these were young.
    settled_fates: HashMap<SiteId, Fates>,
}

impl Cohorts {
    /// Those of a process incarnation; blocks are thinned as in its live table.
    #[must_use]
    pub fn new(incarnation: u32) -> Self {
        Self {
            incarnation,
            ..Self::default()
        }
    }

    /// Windows so far.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.cohorts.len()
    }

    /// The time that the process, untraced, takes from one allocation to the next, seconds, for the windows that share it; and how far that may be off.
    pub fn set_time_of_an_allocation(&mut self, time_s: f64, uncertainty: f64) {
        for cohort in &mut self.cohorts {
            if let Some(shared) = cohort.span.shared {
                cohort.span.effective_s = shared.effective_s(time_s);
                cohort.span.uncertainty = uncertainty;
            }
        }
    }

    /// The first window's opening.
    #[must_use]
    pub fn began_ns(&self) -> Option<u64> {
        self.cohorts.first().map(|cohort| cohort.span.opened_ns)
    }

    /// The time for which the windows count, seconds.
    #[must_use]
    pub fn effective_s(&self) -> f64 {
        let time = |cohort: &Cohort| cohort.span.effective_s();
        self.cohorts.iter().map(time).sum()
    }

    /// How many blocks each watched one stands for.
    #[must_use]
    pub fn weight(&self) -> u64 {
        1 << self.shift
    }

    /// The blocks to be looked at, in the order in which [`Cohorts::check`] takes the readings.
    pub fn watched(&self) -> impl ExactSizeIterator<Item = &Survivor> {
        self.watched.iter().map(|watched| &watched.survivor)
    }

    /// Those of the last window alone, for [`Cohorts::check_newest`]: most blocks that do not last go soon.
    pub fn newest(&self) -> impl ExactSizeIterator<Item = &Survivor> {
        let first = self.first_of(self.newest_cohort());
        self.watched
            .iter()
            .skip(first)
            .map(|watched| &watched.survivor)
    }

    fn newest_cohort(&self) -> u32 {
        u32::try_from(self.cohorts.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Where the blocks of this cohort and of later ones begin: they are kept in the order of their windows.
    fn first_of(&self, cohort: u32) -> usize {
        self.watched
            .partition_point(|watched| watched.cohort < cohort)
    }

    /// Takes in what a window saw: every site's births (objects and bytes), and the blocks of its own that were alive at its
    /// end, of which one in `2^thin_shift` is given, with a look at each from then. `untouched`: of the watched blocks, those that
    /// no call in the window freed or gave out again.
    pub fn close(
        &mut self,
        span: Span,
        births: impl IntoIterator<Item = (SiteId, u64, u64)>,
        survivors: impl IntoIterator<Item = (Survivor, Option<Reading>)>,
        untouched: &HashSet<u64>,
        thin_shift: u32,
    ) {
        self.thin_to(thin_shift);
        let scale = (1_u64 << thin_shift.min(MOST_SHIFT)) as f64;
        self.contradict(&span, untouched);
        let number = u32::try_from(self.cohorts.len()).unwrap_or(u32::MAX);
        let mut sites: BTreeMap<SiteId, SiteCohort> = BTreeMap::new();
        for (site, objects, bytes) in births {
            if objects > 0 {
                sites.entry(site).or_default().births = Amount::of(objects, bytes);
            }
        }
        let length = span.length_s().max(1e-9);
        let mut taken = HashSet::new();
        let mut is_looked_at = false;
        for (survivor, reading) in survivors {
            let age = seconds(survivor.born_ns, span.closed_ns) / length;
            let class = AGE_EDGES
                .iter()
                .skip(1)
                .position(|edge| age < *edge)
                .unwrap_or(AGE_CLASSES - 1);
            let site = sites.entry(survivor.site).or_default();
            if let Some(ages) = site.ages.get_mut(class) {
                ages.add(Amount::of(1, survivor.size).times(scale));
            }
            self.variety
                .entry(survivor.site)
                .or_default()
                .note(survivor.size, survivor.rounding);
            taken.insert(survivor.address);
            is_looked_at |= reading.is_some();
            if reading
                .is_some_and(|reading| self.keys.fate(&survivor, None, &reading) != Fate::Same)
            {
                continue;
            }
            if thin_keeps(live_key(self.incarnation, survivor.address), self.shift) {
                if let Some(reading) = reading {
                    *self
                        .looks
                        .entry((survivor.site, reading.fingerprint))
                        .or_default() += 1;
                }
                self.watched.push(Watched {
                    survivor,
                    cohort: number,
                    first: reading,
                    taken: None,
                    is_late: reading.is_none(),
                    is_changed: false,
                });
                if self.watched.len() > 2 * MOST_WATCHED {
                    self.thin();
                }
            }
        }
        // An address that was given out in this window holds no block of an earlier one.
        self.watched.retain(|watched| {
            watched.cohort == number || !taken.contains(&watched.survivor.address)
        });
        for cohort in &mut self.cohorts {
            cohort.later_windows += 1;
        }
        self.cohorts.push(Cohort {
            span,
            sites,
            checks: u32::from(is_looked_at),
            later_windows: 0,
            checked_ns: if is_looked_at { span.closed_ns } else { 0 },
        });
        if self.watched.len() > MOST_WATCHED {
            self.watched.retain(|watched| !watched.is_changed);
        }
        while self.watched.len() > MOST_WATCHED && self.shift < MOST_SHIFT {
            self.thin();
        }
        self.recount();
        self.settle();
    }

    /// The last window's survivors were looked at when its probes were going already.
    pub fn distrust_newest(&mut self) {
        let first = self.first_of(self.newest_cohort());
        for watched in self.watched.iter_mut().skip(first) {
            watched.is_late = true;
        }
    }

    /// Keeps half of the watched blocks.
    fn thin(&mut self) {
        self.thin_to(self.shift + 1);
    }

    /// Watches one of `2^shift` blocks, if it was more.
    pub fn thin_to(&mut self, shift: u32) {
        if shift <= self.shift {
            return;
        }
        self.shift = shift.min(MOST_SHIFT);
        let (incarnation, shift) = (self.incarnation, self.shift);
        self.watched
            .retain(|watched| thin_keeps(live_key(incarnation, watched.survivor.address), shift));
    }

    /// Sums up windows that are old.
    fn settle(&mut self) {
        let old = self.cohorts.len().saturating_sub(RECENT);
        let gaps: Vec<Gaps> = (0..old).map(|number| self.gaps(number, 0)).collect();
        for (cohort, gaps) in self.cohorts.iter_mut().zip(gaps) {
            if cohort.sites.is_empty() {
                continue;
            }
            let weight = cohort.span.weight(&gaps);
            for (site, counts) in std::mem::take(&mut cohort.sites) {
                self.settled_births
                    .entry(site)
                    .or_default()
                    .add(counts.births.times(weight));
                *self.settled_windows.entry(site).or_default() += 1;
                let fates = counts.fates(&cohort.span, self.shift > 0);
                self.settled_fates.entry(site).or_default().add(&fates);
            }
        }
    }
}
