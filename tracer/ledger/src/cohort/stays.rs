//! Whether the blocks of a site stay, by what windows saw of those that were watched: not one of them freed or given out again in so long a time that
//! hardly any can go between windows either. Then contents that change are the program's writing: a list that is linked, a count of references, a
//! buffer that is filled.

use hashbrown::{HashMap, HashSet};

use super::{Cohorts, Watched, seconds};
use crate::SiteId;

/// What windows saw of a site's watched blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stays {
    /// Blocks that were freed or given out again.
    touched: u32,
    /// Block-seconds in windows.
    exposure: f64,
    /// How long after their own window one saw blocks untouched, seconds, at the most.
    age_s: f64,
}

/// The longest that nothing must have been seen for, as a multiple of the time watched: with a mean life as long as the watch, this many block-seconds
/// pass without an event once in twenty times (e^-3).
const LONG_ENOUGH: f64 = 3.0;

/// Blocks may all go at one age, as from a ring: what windows saw of them must reach to this part of the time watched.
const OLD_ENOUGH: f64 = 0.5;

/// Of the blocks that windows left of a site, this share is still there where hardly any went.
const NEARLY_ALL: f64 = 0.8;

impl Stays {
    /// Adds what was seen of others.
    pub(super) fn add(&mut self, other: Self) {
        self.touched = self.touched.saturating_add(other.touched);
        self.exposure += other.exposure;
        self.age_s = self.age_s.max(other.age_s);
    }

    /// Notes a block that was watched through a window of so many seconds, which ended so long after the block's own.
    pub(super) fn note(&mut self, is_untouched: bool, window_s: f64, age_s: f64) {
        if is_untouched {
            self.exposure += window_s;
            self.age_s = self.age_s.max(age_s);
        } else {
            self.touched = self.touched.saturating_add(1);
        }
    }
}

impl Cohorts {
    /// Whether a window saw one of the site's watched blocks go.
    pub(super) fn frees(&self, site: SiteId) -> bool {
        self.stays.get(&site).is_some_and(|seen| seen.touched > 0)
    }

    /// The blocks that count as alive: their contents are the same, or say nothing since blocks of their sites stay.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Watched> {
        self.watched
            .iter()
            .filter(|watched| !watched.is_changed || self.stay(watched.survivor.site))
    }

    /// The addresses of watched blocks that are surely still their site's: they were first read before the window's probes went, their contents
    /// are the same since, and nearly all blocks that windows left of the site are there still. Of another site's blocks, the few that seem to be there may be those of a third, which took their places
    /// before they were first read. Where the site frees some, and their contents are like others', a third's may lie there at any time.
    #[must_use]
    pub fn own_blocks(&self) -> HashSet<u64> {
        let mut counts: HashMap<SiteId, (f64, f64)> = HashMap::new();
        for (id, site) in self.cohorts.iter().flat_map(|cohort| &cohort.sites) {
            let (left, there) = counts.entry(*id).or_default();
            *left += site.ages.iter().map(|class| class.objects).sum::<f64>();
            *there += (site.alive_objects * self.weight()) as f64;
        }
        // Whether those whose blocks are nearly all there were seen to free any.
        let frees: HashMap<SiteId, bool> = counts
            .into_iter()
            .filter(|(_, (left, there))| *there >= NEARLY_ALL * left)
            .map(|(site, _)| (site, self.is_seen_to_go(site)))
            .collect();
        self.watched
            .iter()
            .filter(|watched| !watched.is_changed && !watched.is_late)
            .filter(|watched| {
                let frees = frees.get(&watched.survivor.site);
                frees.is_some_and(|frees| !frees || !self.looks_alike(watched))
            })
            .map(|watched| watched.survivor.address)
            .collect()
    }

    /// Whether the blocks of a site stay, by the windows.
    pub(super) fn stay(&self, site: SiteId) -> bool {
        let watched_s = self
            .began_ns()
            .zip(self.cohorts.last())
            .map_or(f64::INFINITY, |(began_ns, last)| {
                seconds(began_ns, last.checked_ns.max(last.span.closed_ns))
            });
        self.stays.get(&site).is_some_and(|seen| {
            seen.touched == 0
                && seen.exposure >= LONG_ENOUGH * watched_s
                && seen.age_s >= OLD_ENOUGH * watched_s
        })
    }
}

#[cfg(test)]
mod tests {
    use hashbrown::HashSet;

    use super::super::{Cohorts, Occasion, Reading, Span, Survivor};

    const SECOND: u64 = 1_000_000_000;

    /// Of a block of 72 bytes with such contents.
    fn reading(contents: u64) -> Reading {
        Reading {
            header: 0x51,
            next_header: Some(0x21),
            fingerprint: contents,
            ..Reading::default()
        }
    }

    /// A site whose every block is written to after its window. Twenty windows of half a second, two seconds apart, in which five blocks are born; in
    /// each a block of before is `freed`, or none. Gives the blocks that count as alive in the end.
    fn written_to(freed: bool) -> Cohorts {
        let mut cohorts = Cohorts::new(1);
        for window in 0..20_u64 {
            let opened_ns = window * 2 * SECOND;
            let closed_ns = opened_ns + SECOND / 2;
            let untouched: HashSet<u64> = cohorts
                .watched()
                .map(|block| block.address)
                .skip(usize::from(freed))
                .collect();
            let born = (0..5).map(|number| {
                let survivor = Survivor {
                    address: 0x1000 * (1 + 5 * window + number),
                    size: 72,
                    born_ns: opened_ns + 1,
                    site: 3,
                    rounding: crate::Rounding::Glibc,
                };
                (survivor, Some(reading(survivor.address)))
            });
            let span = Span {
                opened_ns,
                closed_ns,
                effective_s: 0.5,
                uncertainty: 0.0,
                shared: None,
                occasion: Occasion::Random,
            };
            cohorts.close(span, [(3, 5, 360)], born, &untouched, 0);
            for look in 1..3 {
                let readings: Vec<_> = cohorts
                    .watched()
                    .map(|block| Some(reading(block.address + 1)))
                    .collect();
                cohorts.check(closed_ns + look * SECOND / 2, &readings);
            }
        }
        cohorts
    }

    #[test]
    fn blocks_that_are_written_to_stay_where_windows_see_none_go() {
        assert_eq!(written_to(false).counted().count(), 100);
    }

    #[test]
    fn blocks_whose_contents_changed_are_gone_where_windows_see_others_go() {
        assert_eq!(written_to(true).counted().count(), 0);
    }

    /// Two windows shortly after each other, then none for long, as on a machine without time for more.
    #[test]
    fn blocks_of_a_ring_counted_for_minutes_after_two_windows_saw_them_young() {
        let mut cohorts = Cohorts::new(1);
        for window in 0..2_u64 {
            let opened_ns = window * SECOND / 2;
            let untouched: HashSet<u64> = cohorts.watched().map(|block| block.address).collect();
            let born = (0..2_000).map(|number| {
                let survivor = Survivor {
                    address: 0x100 * (1 + 2_000 * window + number),
                    size: 72,
                    born_ns: opened_ns + 1,
                    site: 3,
                    rounding: crate::Rounding::Glibc,
                };
                (survivor, Some(reading(survivor.address)))
            });
            let span = Span {
                opened_ns,
                closed_ns: opened_ns + SECOND / 5,
                effective_s: 0.2,
                uncertainty: 0.0,
                shared: None,
                occasion: Occasion::Random,
            };
            cohorts.close(span, [(3, 2_000, 144_000)], born, &untouched, 0);
        }
        // The ring has come round; others of the site lie there.
        let readings: Vec<_> = cohorts
            .watched()
            .map(|block| Some(reading(block.address + 1)))
            .collect();
        cohorts.check(60 * SECOND, &readings);
        assert_eq!(cohorts.counted().count(), 0);
    }

    /// One of a few blocks of 72 bytes that are born at once.
    fn survivor(number: u64) -> Survivor {
        Survivor {
            address: 0x1000 * number,
            size: 72,
            born_ns: 1,
            site: 3,
            rounding: crate::Rounding::Glibc,
        }
    }

    /// A window of one second, the first.
    const FIRST: Span = Span {
        opened_ns: 0,
        closed_ns: SECOND,
        effective_s: 1.0,
        uncertainty: 0.0,
        shared: None,
        occasion: Occasion::Random,
    };

    #[test]
    fn churn_was_a_leak_for_a_leak_of_blocks_that_look_alike_took_its_places() {
        let own = |born: u64| {
            let mut cohorts = Cohorts::new(1);
            let left = (1..11).map(|number| (survivor(number), Some(reading(0x5a))));
            cohorts.close(FIRST, [(3, born, 72 * born)], left, &HashSet::new(), 0);
            cohorts.check(2 * SECOND, &vec![Some(reading(0x5a)); 10]);
            cohorts.own_blocks().len()
        };
        assert_eq!(own(10), 10);
        // Two of them were freed while the window was open.
        assert_eq!(own(12), 0);
    }

    #[test]
    fn a_site_whose_blocks_go_keeps_none_that_could_be_called_its_own() {
        let mut cohorts = Cohorts::new(1);
        let born = (1..11).map(|number| (survivor(number), Some(reading(number))));
        cohorts.close(FIRST, [(3, 10, 720)], born, &HashSet::new(), 0);
        assert_eq!(cohorts.own_blocks().len(), 10);
        // One has other contents: it is not surely the same, and the others are.
        let looked =
            |changed: u64| move |number| Some(reading(if number <= changed { 99 } else { number }));
        let readings: Vec<_> = (1..11).map(looked(1)).collect();
        cohorts.check(2 * SECOND, &readings);
        assert_eq!(cohorts.own_blocks().len(), 9);
        let readings: Vec<_> = (1..11).map(looked(5)).collect();
        cohorts.check(3 * SECOND, &readings);
        assert_eq!(cohorts.own_blocks().len(), 0);
        // Those of a window that could be read only later may be anybody's.
        let born = (21..31).map(|number| (survivor(number), Some(reading(number))));
        let mut late = Cohorts::new(1);
        late.close(FIRST, [(3, 10, 720)], born, &HashSet::new(), 0);
        late.distrust_newest();
        assert_eq!(late.own_blocks().len(), 0);
    }
}
