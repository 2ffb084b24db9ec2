//! Surviving blocks per site over time: sums, ages, trends, intervals, verdicts. Pure: numbers in, numbers out. Knows neither
//! where the numbers come from nor what a site's stack looks like.

mod bound;
mod cohort;
mod collected;
mod counted;
mod filled;
mod flow;
mod held;
mod history;
mod level;
mod mappings;
mod pages;
mod process;
mod profiled;
mod resumed;
mod sampled_level;
mod series;
mod sizes;
mod spread;
mod steady;
mod survey;
mod survival;
pub mod trend;
mod typed;
mod unreachable;
mod verdict;
mod windows;

pub use bound::{Held, bound};
pub use cohort::{
    Alike, Cohorts, Estimate, LEAST_SHARE, Lengthening, MOST_WATCHED, Occasion, OfSize, Reading,
    Shared, SiteWindows, Span, Survivor,
};
pub use counted::{
    Counted, CountedSite, HeapGrowth, Left, Lengthened, SizeOfSite, Unexplained, count,
};
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod profiled_lives;
#[cfg(test)]
mod simulate;

pub use collected::{CollectedCount, CollectedLevels, KnownLevels};
pub use filled::{ArraySite, filled};
pub use flow::LEAK_AFTER_S;
pub use held::HeldByOne;
pub use history::{ProcessLevel, SiteHistory, SiteLevel};
pub use level::{Level, LevelHistory, LevelJudgement, LevelRules, Unit};
pub use mappings::{Area, LookTimes, MappingKind, MappingSurvey, Mappings, PAGE, Step};
pub use pages::{Expected, HUGE_PAGES, PageSurvey, Pages, Seen, Touch};
pub use process::{InUse, Limit, Room, SiteOfProcess};
pub use profiled::{ProfiledBlocks, Sampled};
pub use sampled_level::SampledLevel;
pub use series::{Point, Resolution, Series, Value, thin_out};
pub use sizes::{BlockSize, Rounding, SizeCounts};
pub use spread::{Alive, Fates, Spread};
pub use survey::{BlockFilter, SiteSurvey, Survey};
pub use survival::{AGES, Cohort, INTERVALS, Survival};
pub use typed::{Born, FIRST_KIND, Kind, KindOfSite, TypedGrowth, TypedSite};
pub use unreachable::{NO_POINTER, Unreachable};
pub use verdict::{Judgement, Turnover, Verdict};
pub use windows::{ProcessBesides, ToldApart, WindowOfSite, are_enough, judge_windows};

use std::collections::HashMap;

use leakscope_common::{Block, SiteTotals};

use history::ProcessHistory;

/// A site's number. Slots of the probe's stack table, joined where two hold the same stack.
pub type SiteId = u32;

/// Follows sites and processes from look to look. Times are CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    started_ns: u64,
    /// The last look, and the one before.
    looks_ns: (u64, u64),
    places: HashMap<SiteId, usize>,
    sites: Vec<SiteHistory>,
    /// Places in `sites` that are free.
    free: Vec<usize>,
    processes: HashMap<u32, ProcessHistory>,
}

impl Ledger {
    /// A ledger of a trace that begins now.
    #[must_use]
    pub fn new(started_ns: u64) -> Self {
        Self {
            started_ns,
            looks_ns: (started_ns, started_ns),
            ..Self::default()
        }
    }

    /// Seconds from its beginning, by which times in its series are.
    #[must_use]
    pub fn seconds(&self, at_ns: u64) -> f64 {
        at_ns.saturating_sub(self.started_ns) as f64 / 1e9
    }

    /// Notes the totals of a site; `weight` is how many blocks each recorded one stands for. Beyond 1, what was freed is
    /// not known from totals, and the level is taken from surveys.
    pub fn observe(&mut self, now_ns: u64, site: SiteId, totals: &SiteTotals, weight: u64) {
        if now_ns > self.looks_ns.0 {
            self.looks_ns = (now_ns, self.looks_ns.0);
        }
        let now_s = self.seconds(now_ns);
        // It was not there at the look before.
        if let Some(history) = self.history(site, totals, self.looks_ns.1) {
            history.observe(now_s, now_ns, totals, weight);
        }
    }

    /// Notes that looks found how a site grew.
    pub fn note_found_by_looks(&mut self, site: SiteId) {
        if let Some(place) = self.places.get(&site)
            && let Some(history) = self.sites.get_mut(*place)
        {
            history.by_looks = true;
        }
    }

    /// Notes that a site's blocks are a sample, and that it is known only how many of them died.
    pub fn note_sampled(&mut self, site: SiteId) {
        if let Some(place) = self.places.get(&site)
            && let Some(history) = self.sites.get_mut(*place)
        {
            history.is_sampled = true;
        }
    }

    /// Notes what a site has that was there before it was looked at.
    pub fn begin(&mut self, now_ns: u64, site: SiteId, totals: &SiteTotals) {
        let now_s = self.seconds(now_ns);
        if let Some(history) = self.history(site, totals, now_ns) {
            history.begin(now_s, totals);
        }
    }

    /// Notes the totals that a site's process ended with, at its end; later ones change nothing.
    pub fn observe_end(&mut self, end_ns: u64, site: SiteId, totals: &SiteTotals, weight: u64) {
        let end_s = self.seconds(end_ns);
        let before_ns = if self.looks_ns.0 <= end_ns {
            self.looks_ns.0
        } else {
            self.looks_ns.1
        };
        if let Some(history) = self.history(site, totals, before_ns) {
            history.observe_end(end_s, end_ns, totals, weight);
        }
    }

    /// The history of a site with these totals, which is made if it is not there: it was not at this time.
    fn history(
        &mut self,
        site: SiteId,
        totals: &SiteTotals,
        since_ns: u64,
    ) -> Option<&mut SiteHistory> {
        let since_s = self.seconds(since_ns);
        let new = || SiteHistory::new(since_s, since_ns);
        let place = *self.places.entry(site).or_insert_with(|| {
            let place = self.free.pop().unwrap_or(self.sites.len());
            match self.sites.get_mut(place) {
                Some(free) => *free = new(),
                None => self.sites.push(new()),
            }
            place
        });
        let history = self.sites.get_mut(place)?;
        if totals.alloc_objects < history.totals.alloc_objects {
            // Totals never fall: the number stands for another stack now.
            *history = new();
        }
        Some(history)
    }

    /// Forgets a site: its number stands for another stack from now on.
    pub fn forget(&mut self, site: SiteId) {
        if let Some(place) = self.places.remove(&site) {
            if let Some(history) = self.sites.get_mut(place) {
                *history = SiteHistory::new(0.0, self.started_ns);
            }
            self.free.push(place);
        }
    }

    /// Forgets a process that is not followed any more.
    pub fn forget_process(&mut self, incarnation: u32) {
        self.processes.remove(&incarnation);
    }

    /// Notes a process's memory.
    pub fn observe_process(&mut self, now_ns: u64, incarnation: u32, level: ProcessLevel) {
        let at_s = self.seconds(now_ns);
        self.processes
            .entry(incarnation)
            .or_default()
            .observe(at_s, level);
    }

    /// Notes the memory that a process ended with, at its end; later calls change nothing.
    pub fn observe_process_end(&mut self, end_ns: u64, incarnation: u32, level: ProcessLevel) {
        let at_s = self.seconds(end_ns);
        self.processes
            .entry(incarnation)
            .or_default()
            .observe_end(at_s, level);
    }

    /// For how long a process has been looked at, seconds.
    #[must_use]
    pub fn watched_s(&self, incarnation: u32) -> f64 {
        self.processes
            .get(&incarnation)
            .map_or(0.0, ProcessHistory::watched_s)
    }

    /// Begins to count the live blocks by age. Of a process that has ended the last count stays. `joined` gives the site that each of the first `slots` numbers stands for.
    pub fn survey_ages(
        &mut self,
        now_ns: u64,
        weight: u64,
        slots: usize,
        joined: impl Fn(SiteId) -> SiteId,
    ) -> AgeSurvey<'_> {
        // An index by number: there are many more blocks than sites.
        let mut places = vec![usize::MAX; slots];
        for (slot, place) in (0..).zip(&mut places) {
            let known = self.places.get(&joined(slot)).copied();
            let is_counted = |known: &usize| {
                let site = self.sites.get(*known);
                site.is_some_and(|site| site.survey_at(now_ns).is_some())
            };
            if let Some(known) = known.filter(is_counted) {
                *place = known;
            }
        }
        for site in &mut self.sites {
            if let Some(at_ns) = site.survey_at(now_ns) {
                site.survival.begin_survey(at_ns);
            }
        }
        AgeSurvey {
            now_ns,
            started_ns: self.started_ns,
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            places,
            places_of_others: &self.places,
            sites: &mut self.sites,
        }
    }

    /// What is known of a site.
    #[must_use]
    pub fn site(&self, site: SiteId) -> Option<&SiteHistory> {
        self.sites.get(*self.places.get(&site)?)
    }

    /// Judges a site of a process.
    #[must_use]
    pub fn judge(&self, site: SiteId, incarnation: u32) -> Judgement {
        let process = self.processes.get(&incarnation);
        self.site(site).map_or_else(Judgement::default, |site| {
            verdict::judge(site, |last_s| {
                process.map_or_else(Turnover::default, |process| process.turnover(last_s))
            })
        })
    }

    /// Adds to the windows of a site the time since which every call was seen again. Gives how well its blocks can be told apart by that, where most of them
    /// are of it: perfectly.
    pub fn resumed(
        &self,
        site: SiteId,
        since_ns: u64,
        now_ns: u64,
        seen: &mut SiteWindows,
    ) -> Option<ToldApart> {
        let watched_ns = (seen.watched_s * 1e9) as u64;
        let more = self
            .site(site)?
            .windows_since(since_ns, now_ns.saturating_sub(watched_ns));
        let alive =
            |windows: &[WindowOfSite]| -> f64 { windows.iter().map(|window| window.alive).sum() };
        let is_most = alive(&more) > alive(&seen.windows);
        seen.windows.extend(more);
        is_most.then_some(ToldApart::ALL)
    }

    /// Judges a site at which a process maps memory: no block of an allocator makes way for it.
    #[must_use]
    pub fn judge_mapping(&self, site: SiteId) -> Judgement {
        self.site(site).map_or_else(Judgement::default, |site| {
            verdict::judge(site, |_| Turnover::default())
        })
    }

    /// What is known, beside its windows, of a process that has been seen in windows for so many seconds.
    #[must_use]
    pub fn besides_windows(&self, incarnation: u32, watched_s: f64) -> ProcessBesides {
        self.processes
            .get(&incarnation)
            .map_or_else(ProcessBesides::default, |process| {
                process.besides_windows(watched_s)
            })
    }

    /// Judges a process by its memory and its sites' verdicts. `room` is what it may still take;
    /// `in_use`: what is known of its bytes in use.
    #[must_use]
    pub fn judge_process(
        &self,
        incarnation: u32,
        sites: &[SiteOfProcess],
        room: Option<&Room>,
        in_use: InUse,
    ) -> Judgement {
        self.processes
            .get(&incarnation)
            .map_or_else(Judgement::default, |process| {
                process.judge(sites, room, in_use)
            })
    }

    /// How fast the anonymous memory of a process grows by now, bytes per second; `None` where it does not grow steadily.
    #[must_use]
    pub fn anonymous_growth(&self, incarnation: u32) -> Option<f64> {
        self.processes.get(&incarnation)?.anonymous_growth()
    }

    /// Judges a process of whose allocators nothing is seen: by its mappings, and by its anonymous memory over time.
    #[must_use]
    pub fn judge_anonymous(
        &self,
        incarnation: u32,
        mappings: &[SiteOfProcess],
        room: Option<&Room>,
    ) -> Judgement {
        self.processes
            .get(&incarnation)
            .map_or_else(Judgement::default, |process| {
                process.judge_anonymous(mappings, room)
            })
    }

    /// The most that a process had at a look, bytes: in use, and resident.
    #[must_use]
    pub fn peaks(&self, incarnation: u32) -> (u64, u64) {
        let most = self
            .processes
            .get(&incarnation)
            .map_or((0.0, 0.0), |process| process.most);
        (most.0.max(0.0) as u64, most.1 as u64)
    }

    /// A process's memory over time, at most so many points.
    #[must_use]
    pub fn memory(&self, incarnation: u32, count: usize) -> Vec<Point<ProcessLevel>> {
        self.processes
            .get(&incarnation)
            .map_or_else(Vec::new, |process| {
                thin_out(&process.points_to_the_end(), count)
            })
    }
}

/// A count of the live blocks, under way.
#[derive(Debug)]
pub struct AgeSurvey<'ledger> {
    now_ns: u64,
    started_ns: u64,
    weight: u32,
    places: Vec<usize>,
    /// By site, for those whose numbers are beyond the slots of stacks.
    places_of_others: &'ledger HashMap<SiteId, usize>,
    sites: &'ledger mut Vec<SiteHistory>,
}

impl AgeSurvey<'_> {
    /// Counts a live block.
    #[inline]
    pub fn note(&mut self, block: &Block) {
        let site = self
            .places
            .get(block.site as usize)
            .and_then(|place| self.sites.get_mut(*place));
        if let Some(site) = site {
            site.survival
                .note_alive(block.born_ns, block.size, self.weight);
        }
    }

    /// Counts a mapping that is there; none is ever left out.
    pub fn note_mapping(&mut self, site: SiteId, born_ns: u64, bytes: u64) {
        let site = self
            .places
            .get(site as usize)
            .or_else(|| self.places_of_others.get(&site))
            .and_then(|place| self.sites.get_mut(*place));
        if let Some(site) = site {
            site.survival.note_alive(born_ns, bytes, 1);
        }
    }

    /// Counts so many blocks that are there, of so many bytes each.
    pub fn note_blocks(&mut self, site: SiteId, born_ns: u64, bytes: u64, count: u32) {
        let site = self
            .places_of_others
            .get(&site)
            .and_then(|place| self.sites.get_mut(*place));
        if let Some(site) = site {
            site.survival.note_alive(born_ns, bytes, count);
        }
    }

    /// Counts pages that are there and of which each stands for `weight`.
    pub fn note_pages(&mut self, site: SiteId, born_ns: u64, pages: u32, weight: u32) {
        let site = self
            .places
            .get(site as usize)
            .and_then(|place| self.sites.get_mut(*place));
        if let Some(site) = site {
            let weight = weight.saturating_mul(pages);
            site.survival
                .note_alive(born_ns, leakscope_common::PAGE_BYTES, weight);
        }
    }

    /// All are counted.
    pub fn finish(self) {
        for site in self.sites {
            if let Some(at_ns) = site.survey_at(self.now_ns) {
                let at_s = at_ns.saturating_sub(self.started_ns) as f64 / 1e9;
                site.end_survey(at_s, at_ns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Ledger, ProcessLevel, Verdict};
    use leakscope_common::{Block, SiteTotals};

    const SECOND: u64 = 1_000_000_000;

    fn inuse(bytes: u64) -> SiteTotals {
        SiteTotals {
            alloc_objects: bytes,
            alloc_bytes: bytes + 10,
            free_bytes: 10,
            ..SiteTotals::default()
        }
    }

    /// What is said of a process whose anonymous memory is this at each second.
    fn of_anonymous(bytes: impl Fn(u64) -> f64) -> Judgement {
        let mut ledger = Ledger::new(0);
        for second in 1..=60 {
            let level = ProcessLevel {
                anonymous_bytes: bytes(second),
                ..ProcessLevel::default()
            };
            ledger.observe_process(second * SECOND, 1, level);
        }
        ledger.judge_anonymous(1, &[], None)
    }

    #[test]
    fn anonymous_memory_grows_or_levels_off() {
        let grows = of_anonymous(|second| 1e8 + 1e6 * second as f64);
        assert_eq!(grows.verdict, Verdict::WarmingUp);
        assert!((grows.growth_bytes_per_s - 1e6).abs() < 1.0);
        let levels_off = of_anonymous(|second| 1e8 + 1e7 * second.min(25) as f64);
        assert_eq!(levels_off.verdict, Verdict::Plateau);
        let falls = of_anonymous(|second| 1e9 - 1e6 * second as f64);
        assert_eq!(falls.verdict, Verdict::Plateau);
        let mut short = Ledger::new(0);
        short.observe_process(SECOND, 1, ProcessLevel::default());
        assert_eq!(
            short.judge_anonymous(1, &[], None).verdict,
            Verdict::InsufficientData
        );
    }

    #[test]
    fn growth_of_a_few_looks_is_that_between_the_first_and_the_last() {
        let mut ledger = Ledger::new(0);
        ledger.observe(SECOND, 1, &inuse(100), 1);
        ledger.observe(2 * SECOND, 1, &inuse(900), 1);
        ledger.observe(3 * SECOND, 1, &inuse(1500), 1);
        assert!((ledger.judge(1, 1).growth_bytes_per_s - 500.0).abs() < 1e-9);
        assert!(ledger.judge(2, 1).growth_bytes_per_s.abs() < f64::EPSILON);
    }

    #[test]
    fn more_frees_than_allocations_are_a_negative_balance_not_a_huge_one() {
        let mut ledger = Ledger::new(0);
        let totals = SiteTotals {
            alloc_bytes: 10,
            free_bytes: 60,
            ..SiteTotals::default()
        };
        ledger.observe(SECOND, 1, &totals, 1);
        assert!(
            ledger
                .site(1)
                .is_some_and(|site| (site.level().bytes + 50.0).abs() < 1e-9)
        );
    }

    #[test]
    fn a_number_that_stands_for_another_stack_begins_anew() {
        let mut ledger = Ledger::new(0);
        ledger.observe(SECOND, 1, &inuse(100), 1);
        ledger.observe(9 * SECOND, 1, &inuse(7), 1);
        assert!(ledger.site(1).is_some_and(|site| site.since_s > 0.5));
    }

    #[test]
    fn a_site_that_was_forgotten_begins_anew() {
        let mut ledger = Ledger::new(0);
        ledger.observe(SECOND, 1, &inuse(100), 1);
        ledger.observe(SECOND, 2, &inuse(5), 1);
        ledger.forget(1);
        assert!(ledger.site(1).is_none());
        ledger.observe(9 * SECOND, 3, &inuse(7), 1);
        ledger.observe(9 * SECOND, 1, &inuse(8), 1);
        let level = |site| ledger.site(site).map(|site| site.level().bytes as u64);
        assert_eq!([level(1), level(2), level(3)], [Some(8), Some(5), Some(7)]);
    }

    #[test]
    fn blocks_count_at_the_site_that_theirs_is_joined_to() {
        let mut ledger = Ledger::new(0);
        ledger.observe(SECOND, 1, &inuse(100), 1);
        let mut survey = ledger.survey_ages(2 * SECOND, 4, 3, |slot| slot.min(1));
        for site in [1, 2, 3] {
            survey.note(&Block {
                site,
                size: 5,
                born_ns: SECOND / 2,
                ..Block::default()
            });
        }
        survey.finish();
        let alive: u64 = ledger.site(1).map_or(0, |site| {
            site.survival
                .cohorts()
                .map(|cohort| cohort.alive_bytes)
                .sum()
        });
        assert_eq!(alive, 2 * 5 * 4);
    }
}
