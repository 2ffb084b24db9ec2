//! What the windows saw of one site, for the verdict.

use std::collections::HashMap;

use super::{AGE_CLASSES, Cohorts, RECENT, seconds};
use crate::ledger::{SiteId, WindowOfSite};

/// The windows of a site, as far as they are kept apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SiteWindows {
    /// The oldest first.
    pub windows: Vec<WindowOfSite>,
    /// Seconds since the first of them was opened.
    pub watched_s: f64,
}

impl Cohorts {
    /// Of each site with watched blocks, the share of them that their contents tell from others.
    #[must_use]
    pub fn told_apart(&self) -> HashMap<SiteId, f64> {
        let mut counts: HashMap<SiteId, (f64, f64)> = HashMap::new();
        for block in &self.watched {
            let (watched, alike) = counts.entry(block.survivor.site).or_default();
            *watched += 1.0;
            *alike += f64::from(u8::from(self.looks_alike(block)));
        }
        counts
            .into_iter()
            .map(|(site, (watched, alike))| (site, 1.0 - alike / watched))
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
        let windows = self
            .cohorts
            .iter()
            .skip(recent)
            .map(|cohort| {
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
                window.alive = there.alive_objects as f64 * scale;
                window.alive_bytes = there.alive_bytes as f64 * scale;
                let half = seconds(cohort.span.closed_ns, now_ns) / 2.0;
                window.alive_before = there
                    .history
                    .iter()
                    .rev()
                    .find(|point| point.lag_s <= half)
                    .map(|point| point.alive.objects);
                window
            })
            .collect();
        SiteWindows {
            windows,
            watched_s: seconds(opened_ns, now_ns),
        }
    }
}
