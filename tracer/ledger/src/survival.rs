//! Survival by cohort: how many of the blocks born in an interval are alive, now and at earlier ages. Owns the intervals;
//! knows neither totals over time nor verdicts.
//!
//! An interval is `2^shift` nanoseconds, about 2 s at first. When all [`INTERVALS`] are used, neighbours are joined, so that
//! memory is fixed and the resolution is always between a 128th and a 64th of the time since the site was first seen.

use super::Spread;

/// How many intervals there are at most.
pub const INTERVALS: usize = 128;

/// How many ages of a cohort are noted: 1, 2, 4 ... 64 intervals.
pub const AGES: usize = 7;

/// The first width of an interval: 2^31 ns, 2.1 s.
const FIRST_SHIFT: u32 = 31;

/// The blocks that were born in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cohort {
    /// How many were born, as far as the totals say; up to a look's time askew.
    pub born: u64,
    /// How many of them were alive at the last survey.
    pub alive: u32,
    /// Their bytes.
    pub alive_bytes: u64,
    /// How many were alive when the youngest of them was 1, 2, 4 ... intervals old.
    alive_at: [u32; AGES],
    /// How many places of `alive_at` are filled.
    noted: u8,
    /// How many were alive at the survey before, with those born since: what a survey misses of them has been freed.
    expected: u32,
}

/// An interval without births, in which there is nothing to note.
static NOTHING: Cohort = Cohort {
    born: 0,
    alive: 0,
    alive_bytes: 0,
    alive_at: [0; AGES],
    noted: 0,
    expected: 0,
};

impl Cohort {
    /// How many were alive when the youngest of them was at most `age` intervals old, and at least half that.
    #[must_use]
    pub fn alive_at(&self, age: u64) -> Option<u32> {
        let place = age
            .checked_ilog2()?
            .min(u32::from(self.noted).checked_sub(1)?);
        self.alive_at.get(place as usize).copied()
    }

    /// This cohort and the one that was born after it, as one.
    fn join(self, later: Self) -> Self {
        let noted = self.noted.min(later.noted).saturating_sub(1);
        let mut alive_at = [0; AGES];
        let pairs = self.alive_at.iter().zip(later.alive_at).skip(1);
        for (sum, (one, two)) in alive_at.iter_mut().zip(pairs).take(usize::from(noted)) {
            *sum = one.saturating_add(two);
        }
        Self {
            born: self.born.saturating_add(later.born),
            alive: self.alive.saturating_add(later.alive),
            alive_bytes: self.alive_bytes.saturating_add(later.alive_bytes),
            alive_at,
            noted,
            expected: self.expected.saturating_add(later.expected),
        }
    }
}

/// The cohorts of a site.
#[derive(Clone, Debug)]
pub struct Survival {
    origin_ns: u64,
    shift: u32,
    /// Up to the last interval with a birth or a live block: nothing is kept of those after it.
    cohorts: Vec<Cohort>,
    /// How many intervals there are.
    reached: usize,
    surveyed_ns: Option<u64>,
    freed: Spread,
}

impl Survival {
    /// No cohorts yet; the first begins at this time, CLOCK_MONOTONIC nanoseconds.
    #[must_use]
    pub fn new(origin_ns: u64) -> Self {
        Self {
            origin_ns,
            shift: FIRST_SHIFT,
            cohorts: Vec::new(),
            reached: 0,
            surveyed_ns: None,
            freed: Spread::default(),
        }
    }

    /// The interval of a time, which is made if it is not there.
    fn reach(&mut self, at_ns: u64) -> usize {
        let since = at_ns.saturating_sub(self.origin_ns);
        while since >> self.shift >= INTERVALS as u64 {
            let mut pairs = self.cohorts.iter();
            let mut joined = Vec::with_capacity(self.cohorts.len().div_ceil(2));
            while let Some(one) = pairs.next() {
                // What is known of nothing at all ages is known as long as what is known of the other.
                let nothing = Cohort {
                    noted: one.noted,
                    ..NOTHING
                };
                joined.push(one.join(pairs.next().copied().unwrap_or(nothing)));
            }
            self.cohorts = joined;
            self.reached = self.reached.div_ceil(2);
            self.shift += 1;
        }
        let place = (since >> self.shift) as usize;
        self.reached = self.reached.max(place + 1);
        place
    }

    /// The cohort of an interval, which is made if it is not there.
    fn cohort(&mut self, place: usize) -> Option<&mut Cohort> {
        if place >= self.cohorts.len() {
            // By a quarter: most sites have few.
            let more = place + 1 - self.cohorts.len();
            self.cohorts
                .reserve_exact(more.max((place / 4).min(INTERVALS - place.min(INTERVALS))));
            self.cohorts.resize(place + 1, NOTHING);
        }
        self.cohorts.get_mut(place)
    }

    /// Notes that so many blocks were born about a time.
    pub fn note_births(&mut self, at_ns: u64, count: u64) {
        let place = self.reach(at_ns);
        if let Some(cohort) = self.cohort(place) {
            cohort.born = cohort.born.saturating_add(count);
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            cohort.expected = cohort.expected.saturating_add(count);
        }
    }

    /// Begins to count the live blocks anew.
    pub fn begin_survey(&mut self, now_ns: u64) {
        self.reach(now_ns);
        for cohort in &mut self.cohorts {
            cohort.alive = 0;
            cohort.alive_bytes = 0;
        }
    }

    /// Counts a live block that stands for `weight` blocks. Those that were born after the survey began count as born then.
    #[inline]
    pub fn note_alive(&mut self, born_ns: u64, bytes: u64, weight: u32) {
        let place = (born_ns.saturating_sub(self.origin_ns) >> self.shift) as usize;
        let last = self.reached.saturating_sub(1);
        if let Some(cohort) = self.cohort(place.min(last)) {
            cohort.alive = cohort.alive.saturating_add(weight);
            cohort.alive_bytes = cohort
                .alive_bytes
                .saturating_add(bytes.saturating_mul(u64::from(weight)));
        }
    }

    /// All live blocks are counted.
    pub fn end_survey(&mut self, now_ns: u64) {
        self.surveyed_ns = Some(now_ns);
        self.note_freed(now_ns);
        let now = now_ns.saturating_sub(self.origin_ns) >> self.shift;
        for (end, cohort) in (1..).zip(&mut self.cohorts) {
            let age = now.saturating_sub(end);
            while usize::from(cohort.noted) < AGES && age >= 1 << cohort.noted {
                if let Some(noted) = cohort.alive_at.get_mut(usize::from(cohort.noted)) {
                    *noted = cohort.alive;
                }
                cohort.noted += 1;
            }
        }
    }

    /// Counts what the survey before had found, or what was born since, and this one has not.
    fn note_freed(&mut self, now_ns: u64) {
        // Births are noted at looks: those of one interval may be taken for the next one's, which then seem to be freed.
        let surplus = |cohort: &Cohort| u64::from(cohort.alive.saturating_sub(cohort.expected));
        let mut surplus: u64 = self.cohorts.iter().map(surplus).sum();
        for (place, cohort) in self.cohorts.iter_mut().enumerate().rev() {
            let missed = u64::from(cohort.expected.saturating_sub(cohort.alive));
            let taken = missed.min(surplus);
            surplus -= taken;
            let began_ns = self.origin_ns.saturating_add((place as u64) << self.shift);
            self.freed
                .note_life(now_ns.saturating_sub(began_ns), missed - taken);
            cohort.expected = cohort.alive;
        }
    }

    /// The blocks that were freed, by how long they lived at most: from the beginning of the interval of their birth to the survey that missed them.
    #[must_use]
    pub fn freed(&self) -> &Spread {
        &self.freed
    }

    /// When the last survey was, CLOCK_MONOTONIC nanoseconds; `None` before the first.
    #[must_use]
    pub fn surveyed_ns(&self) -> Option<u64> {
        self.surveyed_ns
    }

    /// When the first interval begins, CLOCK_MONOTONIC nanoseconds.
    #[must_use]
    pub fn origin_ns(&self) -> u64 {
        self.origin_ns
    }

    /// The width of an interval, seconds.
    #[must_use]
    pub fn width_s(&self) -> f64 {
        (1_u64 << self.shift) as f64 / 1e9
    }

    /// The cohorts, the oldest first; the last is not complete.
    #[must_use]
    pub fn cohorts(&self) -> impl DoubleEndedIterator<Item = &Cohort> + ExactSizeIterator {
        (0..self.reached).map(|place| self.cohorts.get(place).unwrap_or(&NOTHING))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a failing test may panic")]

    use super::{INTERVALS, Survival};
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    /// A block a second of which every second dies at the age of 20 s.
    fn follow(seconds: u64, every: u64) -> Survival {
        let mut cohorts = Survival::new(0);
        for now in 0..=seconds {
            cohorts.note_births(now * SECOND, 1);
            if now % every == 0 {
                cohorts.begin_survey(now * SECOND);
                for born in 0..=now {
                    if born % 2 == 0 || now - born < 20 {
                        cohorts.note_alive(born * SECOND, 10, 1);
                    }
                }
                cohorts.end_survey(now * SECOND);
            }
        }
        cohorts
    }

    #[test]
    fn earlier_ages_are_remembered_when_cohorts_are_joined() {
        for seconds in [100, 270, 300, 1200] {
            let cohorts = follow(seconds, 1);
            let width = cohorts.width_s();
            let now = seconds as f64 / width;
            assert!(cohorts.cohorts().len() <= INTERVALS);
            let first = cohorts.cohorts().nth(1).copied().unwrap_or_default();
            assert_eq!(
                u64::from(first.alive),
                first.born.div_ceil(2).min(u64::from(first.alive))
            );
            // Half of them were still to die while the youngest was younger than 20 s.
            if width < 8.0 {
                assert_eq!(
                    u64::from(first.alive_at(1).unwrap_or(0)),
                    first.born,
                    "{seconds}"
                );
            }
            let age = (now / 2.0) as u64;
            assert!(
                first
                    .alive_at(age)
                    .is_some_and(|alive| alive == first.alive),
                "{seconds}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_block_is_lost_or_made_up(
            births in prop::collection::vec(0_u64..5_000, 0..300),
            surveys in prop::collection::vec(0_u64..5_000, 1..12),
        ) {
            let mut surveys = surveys;
            surveys.sort_unstable();
            let mut cohorts = Survival::new(0);
            let mut noted = 0;
            let mut sorted = births;
            sorted.sort_unstable();
            for survey in surveys {
                while sorted.get(noted).is_some_and(|born| *born <= survey) {
                    cohorts.note_births(sorted[noted] * SECOND, 1);
                    noted += 1;
                }
                cohorts.begin_survey(survey * SECOND);
                for born in &sorted[..noted] {
                    cohorts.note_alive(born * SECOND, 3, 2);
                }
                cohorts.end_survey(survey * SECOND);
                let alive: u64 = cohorts.cohorts().map(|cohort| u64::from(cohort.alive)).sum();
                let bytes: u64 = cohorts.cohorts().map(|cohort| cohort.alive_bytes).sum();
                let born: u64 = cohorts.cohorts().map(|cohort| cohort.born).sum();
                prop_assert_eq!(alive, 2 * noted as u64);
                prop_assert_eq!(bytes, 6 * noted as u64);
                prop_assert_eq!(born, noted as u64);
                prop_assert!(cohorts.cohorts().len() <= INTERVALS);
            }
        }
    }
}
