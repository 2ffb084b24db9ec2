//! What the windows saw of one site, for the verdict.

use std::collections::HashMap;

use super::{
    AGE_CLASSES, Cohorts, RECENT,
    estimate::{hazard, kept_share},
    seconds,
};
use crate::ledger::{SiteId, ToldApart, WindowOfSite};

/// The windows of a site, as far as they are kept apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteWindows {
    /// The oldest first.
    pub windows: Vec<WindowOfSite>,
    /// Seconds since the first of them was opened.
    pub watched_s: f64,
}

impl Cohorts {
    /// Of each site with watched blocks, how well these can be told from others that take their place.
    #[must_use]
    pub fn told_apart(&self) -> HashMap<SiteId, ToldApart> {
        let mut counts: HashMap<SiteId, (f64, f64)> = HashMap::new();
        for block in self.counted() {
            let (watched, alike) = counts.entry(block.survivor.site).or_default();
            *watched += 1.0;
            *alike += f64::from(u8::from(self.looks_alike(block)));
        }
        counts
            .into_iter()
            .map(|(site, (watched, alike))| {
                if self.stay(site) {
                    return (site, ToldApart::ALL);
                }
                let counts = self.contradictions.get(&site).copied().unwrap_or_default();
                let most =
                    self.cohorts.iter().rev().find_map(|cohort| {
                        Some(hazard(cohort, cohort.sites.get(&site)?, counts).most)
                    });
                let told = ToldApart {
                    share: 1.0 - alike / watched,
                    unseen_per_s: most.unwrap_or(f64::INFINITY),
                };
                (site, told)
            })
            .collect()
    }

    /// Of each recent window, the share of a site's watched blocks that look alike.
    fn alike_of(&self, site: SiteId) -> HashMap<u32, f64> {
        let mut counts: HashMap<u32, (f64, f64)> = HashMap::new();
        for block in self.counted().filter(|block| block.survivor.site == site) {
            let (watched, alike) = counts.entry(block.cohort).or_default();
            *watched += 1.0;
            *alike += f64::from(u8::from(self.looks_alike(block)));
        }
        counts
            .into_iter()
            .map(|(cohort, (watched, alike))| (cohort, alike / watched))
            .collect()
    }

    /// The last windows with what they saw of a site.
    #[must_use]
    pub fn windows_of(&self, site: SiteId, now_ns: u64) -> SiteWindows {
        let recent = self.cohorts.len().saturating_sub(RECENT);
        let Some(first) = self.cohorts.get(recent) else {
            return SiteWindows::default();
        };
        let opened_ns = first.span.opened_ns;
        let scale = self.weight() as f64;
        let alike = self.alike_of(site);
        let counts = self.contradictions.get(&site).copied().unwrap_or_default();
        let windows = (0_u32..)
            .zip(&self.cohorts)
            .skip(recent)
            .map(|(number, cohort)| {
                let closed_s = seconds(opened_ns, cohort.span.closed_ns);
                let mut window = WindowOfSite {
                    closed_s,
                    effective_s: cohort.span.effective_s(),
                    ..WindowOfSite::default()
                };
                let Some(there) = cohort.sites.get(&site) else {
                    return window;
                };
                window.born = there.births.objects;
                window.survived = there
                    .ages
                    .iter()
                    .take(AGE_CLASSES)
                    .map(|age| age.objects)
                    .sum();
                // Of blocks that look alike, some have been replaced unseen.
                let alike = alike.get(&number).copied().unwrap_or(0.0);
                let hazard = hazard(cohort, there, counts).likely;
                let kept = |lag_s: f64| kept_share(alike, hazard, lag_s, lag_s);
                let lag_s = seconds(cohort.span.closed_ns, now_ns);
                window.alive = there.alive_objects as f64 * scale * kept(lag_s);
                window.alive_bytes = there.alive_bytes as f64 * scale * kept(lag_s);
                let half = lag_s / 2.0;
                window.alive_before = there
                    .history
                    .iter()
                    .rev()
                    .find(|point| point.lag_s <= half)
                    .map(|point| point.alive.objects * kept(half));
                window
            })
            .collect();
        SiteWindows {
            windows,
            watched_s: seconds(opened_ns, now_ns),
        }
    }
}
