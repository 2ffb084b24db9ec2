//! What is kept of a site and of a process from look to look: bounded series, and the site's cohorts. Numbers only.

use leakscope_common::SiteTotals;

use super::{
    series::{Point, Resolution, Series, Value},
    spread::Fates,
    survival::Survival,
    verdict::LOOK_FOR_S,
};

/// Seconds for two minutes, minutes for an hour and a half, hours for a week: at most 386 points of 24 bytes.
const SITE: [Resolution; 3] = [
    Resolution {
        width_s: 1.0,
        kept: 128,
    },
    Resolution {
        width_s: 60.0,
        kept: 90,
    },
    Resolution {
        width_s: 3600.0,
        kept: 168,
    },
];

/// Seconds for five minutes, minutes for six hours, hours for four weeks: 1332 points of 56 bytes.
const PROCESS: [Resolution; 3] = [
    Resolution {
        width_s: 1.0,
        kept: 300,
    },
    Resolution {
        width_s: 60.0,
        kept: 360,
    },
    Resolution {
        width_s: 3600.0,
        kept: 672,
    },
];

/// Where no more than this share of the blocks was freed as the process ended, what is left is what it had before.
const FEW_FREED_AT_END: f64 = 0.02;

/// What is alive of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SiteLevel {
    /// Bytes.
    pub bytes: f64,
    /// The fewest bytes in the interval that the value stands for.
    pub least_bytes: f64,
    /// The most.
    pub most_bytes: f64,
    /// Blocks.
    pub objects: f64,
}

impl SiteLevel {
    /// The level at a moment.
    #[must_use]
    pub fn new(bytes: f64, objects: f64) -> Self {
        Self {
            bytes,
            least_bytes: bytes,
            most_bytes: bytes,
            objects,
        }
    }
}

/// A level as it is kept, for there are many: single precision tells bytes up to 16 MiB, and one part in 16 million of more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeptLevel {
    bytes: f32,
    least_bytes: f32,
    most_bytes: f32,
    objects: f32,
}

impl From<SiteLevel> for KeptLevel {
    fn from(level: SiteLevel) -> Self {
        Self {
            bytes: level.bytes as f32,
            least_bytes: level.least_bytes as f32,
            most_bytes: level.most_bytes as f32,
            objects: level.objects as f32,
        }
    }
}

impl From<KeptLevel> for SiteLevel {
    fn from(kept: KeptLevel) -> Self {
        Self {
            bytes: f64::from(kept.bytes),
            least_bytes: f64::from(kept.least_bytes),
            most_bytes: f64::from(kept.most_bytes),
            objects: f64::from(kept.objects),
        }
    }
}

impl Value for SiteLevel {
    type Kept = KeptLevel;

    fn absorb(&mut self, later: Self) {
        *self = Self {
            least_bytes: self.least_bytes.min(later.least_bytes),
            most_bytes: self.most_bytes.max(later.most_bytes),
            ..later
        };
    }
}

/// The memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessLevel {
    /// Bytes allocated while traced and not freed.
    pub inuse_bytes: f64,
    /// The most of them in the interval that the value stands for.
    pub most_inuse_bytes: f64,
    /// Resident bytes.
    pub resident_bytes: f64,
    /// Those of them that hold no file and are shared with nobody: what allocators hand out.
    pub anonymous_bytes: f64,
    /// Bytes allocated since the trace began.
    pub alloc_bytes: f64,
    /// Frees of blocks from before the trace, since it began.
    pub unknown_frees: f64,
}

impl Value for ProcessLevel {
    type Kept = Self;

    fn absorb(&mut self, later: Self) {
        *self = Self {
            most_inuse_bytes: self.most_inuse_bytes.max(later.most_inuse_bytes),
            ..later
        };
    }
}

/// A site over time.
#[derive(Clone, Debug)]
pub struct SiteHistory {
    /// What was alive.
    pub levels: Series<SiteLevel>,
    /// What became of the blocks.
    pub survival: Survival,
    /// The totals at the last look.
    pub totals: SiteTotals,
    /// How many blocks each recorded one stands for.
    pub weight: u64,
    /// The totals when its process had ended, where there is a history to judge by without them: what a process frees on its
    /// way out says nothing of how its memory was used.
    pub end: Option<SiteTotals>,
    /// Its process has ended: nothing changes any more.
    pub is_over: bool,
    /// Its blocks are what looks found, so that their number is that of looks, and bytes alone tell how it grows.
    pub by_looks: bool,
    /// Its blocks are a sample, by chance, of those that there are, and which of them died is reckoned by how many did.
    pub is_sampled: bool,
    /// When its process ended, CLOCK_MONOTONIC nanoseconds, until what is left of it has been counted once more.
    last_survey_ns: Option<u64>,
    /// When the last block was born at the latest, seconds since the trace began.
    pub born_s: f64,
    /// When the site was first seen at the latest, seconds since the trace began.
    pub since_s: f64,
    /// The last look, seconds since the trace began.
    pub now_s: f64,
    /// The last look that found a block freed; none so far when it is before `since_s`.
    pub freed_s: f64,
    /// The most bytes alive at a look.
    pub most_bytes: f64,
    /// Blocks that were surely born and freed between the same two looks: more were freed between them than there had been before.
    temporary: u64,
    /// The longest time between two such looks, nanoseconds.
    temporary_ns: u64,
}

impl SiteHistory {
    /// A site of which nothing was known at this time, seconds since the trace began and CLOCK_MONOTONIC nanoseconds.
    #[must_use]
    pub fn new(since_s: f64, since_ns: u64) -> Self {
        let mut levels = Series::new(&SITE);
        levels.push(since_s, SiteLevel::default());
        Self {
            levels,
            survival: Survival::new(since_ns),
            totals: SiteTotals::default(),
            weight: 1,
            end: None,
            is_over: false,
            by_looks: false,
            is_sampled: false,
            last_survey_ns: None,
            born_s: since_s,
            since_s,
            now_s: since_s,
            freed_s: f64::NEG_INFINITY,
            most_bytes: 0.0,
            temporary: 0,
            temporary_ns: 0,
        }
    }

    /// Puts down what is alive.
    fn push(&mut self, at_s: f64, level: SiteLevel) {
        self.most_bytes = self.most_bytes.max(level.bytes);
        self.levels.push(at_s, level);
    }

    /// Counts the blocks that were born since the look before, at `now_s`, and freed by this one.
    fn note_temporary(&mut self, at_s: f64, totals: &SiteTotals) {
        let freed = totals.free_objects.saturating_sub(self.totals.free_objects);
        let there = self
            .totals
            .alloc_objects
            .saturating_sub(self.totals.free_objects);
        let temporary = freed.saturating_sub(there);
        if temporary > 0 {
            self.temporary = self.temporary.saturating_add(temporary);
            let between_ns = ((at_s - self.now_s).max(0.0) * 1e9) as u64;
            self.temporary_ns = self.temporary_ns.max(between_ns);
        }
    }

    /// What became of its blocks, where all of them are followed; `None` where some are left out.
    #[must_use]
    pub fn fates(&self) -> Option<Fates> {
        if self.weight > 1 {
            return None;
        }
        let mut freed = self.survival.freed().clone();
        // They are among those that surveys missed, but for which was when.
        freed.take_smallest(self.temporary);
        freed.note_life(self.temporary_ns, self.temporary);
        freed.fit(self.totals.free_objects);
        Some(Fates {
            followed: self.totals.alloc_objects,
            temporary: self.temporary.min(freed.total()),
            temporary_ns: self.temporary_ns,
            freed,
        })
    }

    /// Notes what was there before: of these blocks none is born now.
    pub fn begin(&mut self, at_s: f64, totals: &SiteTotals) {
        self.totals = *totals;
        let balance = |allocated: u64, freed: u64| allocated.wrapping_sub(freed) as i64 as f64;
        self.push(
            at_s,
            SiteLevel::new(
                balance(totals.alloc_bytes, totals.free_bytes),
                balance(totals.alloc_objects, totals.free_objects),
            ),
        );
    }

    /// Notes the totals.
    pub fn observe(&mut self, at_s: f64, at_ns: u64, totals: &SiteTotals, weight: u64) {
        let births = totals
            .alloc_objects
            .saturating_sub(self.totals.alloc_objects);
        if births > 0 {
            self.born_s = at_s;
            // They were born since the last look: in the middle of that time, for want of better.
            let before = ((at_s - self.now_s).max(0.0) * 5e8) as u64;
            self.survival
                .note_births(at_ns.saturating_sub(before), births);
        }
        if totals.free_objects > self.totals.free_objects {
            self.freed_s = at_s;
        }
        self.note_temporary(at_s, totals);
        self.totals = *totals;
        self.weight = weight;
        self.now_s = at_s;
        if weight == 1 {
            let balance = |allocated: u64, freed: u64| allocated.wrapping_sub(freed) as i64 as f64;
            self.push(
                at_s,
                SiteLevel::new(
                    balance(totals.alloc_bytes, totals.free_bytes),
                    balance(totals.alloc_objects, totals.free_objects),
                ),
            );
        }
    }

    /// Notes the totals that its process ended with, once.
    pub fn observe_end(&mut self, at_s: f64, at_ns: u64, totals: &SiteTotals, weight: u64) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if self.now_s - self.since_s < LOOK_FOR_S {
            self.observe(at_s, at_ns, totals, weight);
        } else if weight == 1 {
            let freed = totals.free_objects.saturating_sub(self.totals.free_objects);
            if freed as f64 <= FEW_FREED_AT_END * self.level().objects {
                self.last_survey_ns = Some(at_ns);
            }
            self.end = Some(*totals);
        }
    }

    /// The time as of which its live blocks can be counted, CLOCK_MONOTONIC nanoseconds; `None`: the last count stays.
    #[must_use]
    pub fn survey_at(&self, now_ns: u64) -> Option<u64> {
        if self.is_over {
            self.last_survey_ns
        } else {
            Some(now_ns)
        }
    }

    /// The live blocks have been counted. Once the live table is thinned, they are all that tells what is alive: frees of
    /// blocks that are not kept cannot be told.
    pub fn end_survey(&mut self, at_s: f64, at_ns: u64) {
        self.survival.end_survey(at_ns);
        self.last_survey_ns = None;
        if self.weight > 1 {
            let (mut bytes, mut objects) = (0.0, 0.0);
            for cohort in self.survival.cohorts() {
                bytes += cohort.alive_bytes as f64;
                objects += f64::from(cohort.alive);
            }
            self.push(at_s, SiteLevel::new(bytes, objects));
        }
    }

    /// The last level.
    #[must_use]
    pub fn level(&self) -> SiteLevel {
        self.levels
            .last()
            .map_or_else(SiteLevel::default, |point| point.value)
    }
}

/// A process over time.
#[derive(Clone, Debug)]
pub(super) struct ProcessHistory {
    levels: Series<ProcessLevel>,
    /// What it ended with, in no judgement: see [`SiteHistory::end`].
    end: Option<Point<ProcessLevel>>,
    /// The most seen at a look: bytes in use, and resident ones.
    pub(super) most: (f64, f64),
}

impl Default for ProcessHistory {
    fn default() -> Self {
        Self {
            levels: Series::new(&PROCESS),
            end: None,
            most: (0.0, 0.0),
        }
    }
}

impl ProcessHistory {
    /// Notes its memory, at seconds since the trace began.
    pub(super) fn observe(&mut self, at_s: f64, level: ProcessLevel) {
        let (inuse, resident) = self.most;
        self.most = (
            inuse.max(level.inuse_bytes).max(level.most_inuse_bytes),
            resident.max(level.resident_bytes),
        );
        self.levels.push(at_s, level);
    }

    /// Notes what it ended with, once.
    pub(super) fn observe_end(&mut self, at_s: f64, level: ProcessLevel) {
        if self.levels.last().is_none() {
            self.observe(at_s, level);
        }
        self.end.get_or_insert(Point { at_s, value: level });
    }

    /// When the process ended, if it has.
    pub(super) fn end_s(&self) -> Option<f64> {
        self.end.map(|end| end.at_s)
    }

    /// All that is kept and its end, the oldest first.
    pub(super) fn points_to_the_end(&self) -> Vec<Point<ProcessLevel>> {
        let mut points = self.points();
        let end = self.end.filter(|end| {
            points
                .last()
                .is_none_or(|last: &Point<ProcessLevel>| last.at_s < end.at_s)
        });
        points.extend(end);
        points
    }

    /// All that is kept of the time before its end, the oldest first.
    #[must_use]
    pub(super) fn points(&self) -> Vec<Point<ProcessLevel>> {
        self.levels.points()
    }
}
