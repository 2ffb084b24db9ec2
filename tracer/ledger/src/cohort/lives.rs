//! What became of the blocks that windows saw, and how those that are watched spread over sizes and ages: counts of what was seen, scaled to nothing.

use std::collections::HashMap;

use super::{Cohorts, SiteCohort, Span, seconds};
use crate::{Alive, Fates, SiteId};

impl Span {
    /// Its length, nanoseconds.
    fn length_ns(&self) -> u64 {
        self.closed_ns.saturating_sub(self.opened_ns)
    }
}

impl SiteCohort {
    /// What became of its blocks. Of `thinned` ones, what was counted in the window alone: chance makes the rest.
    pub(super) fn fates(&self, span: &Span, thinned: bool) -> Fates {
        let followed = self.births.objects.round() as u64;
        let alive: f64 = self.ages.iter().map(|class| class.objects).sum();
        let mut alive = (alive.round() as u64).min(followed);
        let mut fates = Fates {
            followed,
            temporary: followed - alive,
            ..Fates::default()
        };
        if fates.temporary > 0 {
            fates.temporary_ns = span.length_ns();
        }
        fates.freed.note_life(span.length_ns(), fates.temporary);
        if !thinned {
            for point in self.history.iter().chain(&self.last) {
                let there = (point.alive.objects.round() as u64).min(alive);
                let lag_ns = (point.lag_s * 1e9) as u64;
                fates
                    .freed
                    .note_life(span.length_ns().saturating_add(lag_ns), alive - there);
                alive = there;
            }
        }
        fates
    }
}

impl Cohorts {
    /// What became of each site's blocks since the first window.
    #[must_use]
    pub fn fates(&self) -> HashMap<SiteId, Fates> {
        let mut sites: HashMap<SiteId, Fates> = self
            .settled_fates
            .iter()
            .map(|(site, fates)| (*site, fates.clone()))
            .collect();
        for cohort in &self.cohorts {
            for (site, seen) in &cohort.sites {
                let fates = seen.fates(&cohort.span, self.shift > 0);
                sites.entry(*site).or_default().add(&fates);
            }
        }
        sites
    }

    /// The watched blocks of each site that are there, for all that is known, at least so old.
    #[must_use]
    pub fn alive(&self, now_ns: u64, min_age_s: f64) -> HashMap<SiteId, Alive> {
        let mut sites: HashMap<SiteId, Alive> = HashMap::new();
        for watched in self.counted() {
            let block = &watched.survivor;
            if seconds(block.born_ns, now_ns) >= min_age_s {
                let age_ns = now_ns.saturating_sub(block.born_ns);
                let alive = sites.entry(block.site).or_default();
                alive.note(block.size, age_ns, 1);
            }
        }
        sites
    }
}
