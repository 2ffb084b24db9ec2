//! Two sites that turned out to be one: what windows saw of the first becomes the second's.

use std::collections::btree_map::Entry;

use super::{Cohorts, Contradictions, SiteCohort};
use crate::SiteId;

impl SiteCohort {
    /// Adds what the same window saw of another site.
    fn add(&mut self, other: &Self) {
        self.births.add(other.births);
        for (ages, others) in self.ages.iter_mut().zip(other.ages) {
            ages.add(others);
        }
        self.alive_objects += other.alive_objects;
        self.alive_bytes += other.alive_bytes;
        // Checks found something of each, at times of its own: of both together the next one tells first.
        self.history.clear();
        self.last = None;
    }
}

impl Contradictions {
    fn add(&mut self, other: Self) {
        self.in_windows += other.in_windows;
        self.window_exposure += other.window_exposure;
        self.by_checks += other.by_checks;
        self.check_exposure += other.check_exposure;
    }
}

impl Cohorts {
    /// What was seen of a site is another's from now on: its stack is the beginning of that one's.
    pub fn join(&mut self, from: SiteId, to: SiteId) {
        let is_known = |sites: &super::Cohort| sites.sites.contains_key(&from);
        if from == to
            || !(self.cohorts.iter().any(is_known) || self.settled_births.contains_key(&from))
        {
            return;
        }
        for cohort in &mut self.cohorts {
            let Some(site) = cohort.sites.remove(&from) else {
                continue;
            };
            match cohort.sites.entry(to) {
                Entry::Vacant(place) => {
                    place.insert(site);
                }
                Entry::Occupied(mut place) => place.get_mut().add(&site),
            }
        }
        for watched in &mut self.watched {
            if watched.survivor.site == from {
                watched.survivor.site = to;
            }
        }
        if let Some(counts) = self.contradictions.remove(&from) {
            let sums = self.contradictions.entry(to).or_default();
            for (sum, count) in sums.iter_mut().zip(counts) {
                sum.add(count);
            }
        }
        let looks: Vec<(u64, u32)> = self
            .looks
            .extract_if(|(site, _), _| *site == from)
            .map(|((_, fingerprint), count)| (fingerprint, count))
            .collect();
        for (fingerprint, count) in looks {
            *self.looks.entry((to, fingerprint)).or_default() += count;
        }
        if let Some(stays) = self.stays.remove(&from) {
            self.stays.entry(to).or_default().add(stays);
        }
        if let Some(variety) = self.variety.remove(&from) {
            self.variety.entry(to).or_default().add(&variety);
        }
        if let Some(births) = self.settled_births.remove(&from) {
            self.settled_births.entry(to).or_default().add(births);
        }
        if let Some(fates) = self.settled_fates.remove(&from) {
            self.settled_fates.entry(to).or_default().add(&fates);
        }
        if let Some(windows) = self.settled_windows.remove(&from) {
            // The same windows may have seen both.
            let known = self.settled_windows.entry(to).or_default();
            *known = windows.max(*known);
        }
    }
}

#[cfg(test)]
mod tests {
    use hashbrown::HashSet;

    use super::super::{Cohorts, Occasion, Reading, Span, Survivor};
    use crate::SiteId;

    const SECOND: u64 = 1_000_000_000;

    fn window(cohorts: &mut Cohorts, number: u64, site: SiteId) {
        let opened_ns = 10 * number * SECOND;
        let span = Span {
            opened_ns,
            closed_ns: opened_ns + SECOND,
            effective_s: 1.0,
            uncertainty: 0.0,
            shared: None,
            occasion: Occasion::Random,
        };
        let born = (0..10).map(|block| {
            let survivor = Survivor {
                address: 0x1000 * (100 * number + block),
                size: 111,
                born_ns: opened_ns + SECOND / 2,
                site,
                rounding: crate::Rounding::Glibc,
            };
            let reading = Reading {
                header: 0x81,
                next_header: Some(0x21),
                fingerprint: 7,
                ..Reading::default()
            };
            (survivor, Some(reading))
        });
        let untouched: HashSet<u64> = cohorts.watched().map(|block| block.address).collect();
        cohorts.close(span, [(site, 10, 1110)], born, &untouched, 0);
    }

    #[test]
    fn a_site_whose_first_stacks_were_cut_short_was_told_from_itself() {
        let mut cut = Cohorts::new(1);
        window(&mut cut, 0, 1);
        cut.join(1, 2);
        // Blocks of a size that it was never seen to have are none of what is counted of that size.
        let share = cut.share_of_sizes(2, &[64], crate::Rounding::Glibc);
        assert!(share.abs() < 1e-9, "{share}");
        window(&mut cut, 1, 2);
        let mut whole = Cohorts::new(1);
        window(&mut whole, 0, 2);
        window(&mut whole, 1, 2);
        let now_ns = 30 * SECOND;
        let estimate = |cohorts: &Cohorts| cohorts.estimates(now_ns, now_ns, 0.0);
        assert!(!estimate(&cut).contains_key(&1));
        assert_eq!(estimate(&cut).get(&2), estimate(&whole).get(&2));
    }
}
