//! What the windows saw of one site, for the verdict.

use std::collections::HashMap;

use hashbrown::HashSet;

use super::{
    AGE_CLASSES, Cohort, Cohorts, Contradictions, RECENT, SiteCohort,
    curve::{Pools, most_unseen},
    heirs::Heirs,
    seconds,
};
use crate::{SiteId, ToldApart, WindowOfSite};

/// What [`Cohorts::alike`] gives.
pub struct Alike {
    /// The share of the watched blocks, and of these the ones whose chunks have become another site's; by site and window.
    shares: HashMap<(SiteId, u32), (f64, f64)>,
    pools: Pools,
    /// Sites whose blocks that look alike may be others', however long they seem to stay.
    pub(super) hardly_keeping: HashSet<SiteId>,
}

impl Alike {
    /// The share of a site's watched blocks of one window that are there after so many seconds, for all that is known.
    pub(super) fn kept(
        &self,
        part: (SiteId, u32),
        (cohort, there): (&Cohort, &SiteCohort),
        counts: [Contradictions; 2],
        goes: bool,
        lag_s: f64,
    ) -> f64 {
        let (share, inherited) = self.shares.get(&part).copied().unwrap_or_default();
        if share <= 0.0 {
            return 1.0 - inherited;
        }
        let hazard = self.pools.hazard(cohort, there, counts, goes);
        (1.0 - inherited) * hazard.kept_share(share, lag_s, lag_s)
    }
}

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
                let most = self.cohorts.iter().rev().find_map(|cohort| {
                    cohort.sites.get(&site)?;
                    Some(most_unseen(cohort, counts))
                });
                let told = ToldApart {
                    share: 1.0 - alike / watched,
                    unseen_per_s: most.unwrap_or(f64::INFINITY),
                };
                (site, told)
            })
            .collect()
    }

    /// Of each site and window, the share of the watched blocks that look alike; and how fast such blocks go.
    #[must_use]
    pub fn alike(&self) -> Alike {
        let heirs = Heirs::of(self);
        let mut counts: HashMap<(SiteId, u32), (f64, f64, f64)> = HashMap::new();
        for block in self.counted() {
            let (watched, alike, inherited) = counts
                .entry((block.survivor.site, block.cohort))
                .or_default();
            *watched += 1.0;
            if self.looks_alike(block) {
                *alike += 1.0;
                *inherited += f64::from(u8::from(heirs.have(block)));
            }
        }
        Alike {
            shares: counts
                .into_iter()
                .map(|(part, (watched, alike, inherited))| {
                    (part, (alike / watched, inherited / watched))
                })
                .collect(),
            pools: Pools::of(self.contradictions.values()),
            hardly_keeping: heirs.hardly_keeping(),
        }
    }

    /// How many blocks of the recent windows outlived theirs and went later. As many of those that were born between windows go in a window, where nobody
    /// knows them.
    #[must_use]
    pub fn gone_later(&self) -> f64 {
        let scale = self.weight() as f64;
        let recent = self.cohorts.len().saturating_sub(RECENT);
        self.cohorts
            .iter()
            .skip(recent)
            .flat_map(|cohort| cohort.sites.values())
            .map(|site| {
                let survived: f64 = site.ages.iter().map(|age| age.objects).sum();
                (survived - site.alive_objects as f64 * scale).max(0.0)
            })
            .sum()
    }

    /// The last windows with what they saw of a site. `alike`: what [`Cohorts::alike`] gives.
    #[must_use]
    pub fn windows_of(&self, site: SiteId, now_ns: u64, alike: &Alike) -> SiteWindows {
        let recent = self.cohorts.len().saturating_sub(RECENT);
        let Some(first) = self.cohorts.get(recent) else {
            return SiteWindows::default();
        };
        let opened_ns = first.span.opened_ns;
        let scale = self.weight() as f64;
        let counts = self.contradictions.get(&site).copied().unwrap_or_default();
        let goes = self.is_seen_to_go(site);
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
                let (share, inherited) = alike
                    .shares
                    .get(&(site, number))
                    .copied()
                    .unwrap_or_default();
                let hazard = alike.pools.hazard(cohort, there, counts, goes);
                let kept = |lag_s: f64| (1.0 - inherited) * hazard.kept_share(share, lag_s, lag_s);
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

#[cfg(test)]
mod tests {
    use hashbrown::HashSet;

    use super::super::{Cohorts, Occasion, Reading, Span, Survivor};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_outlived_its_window_and_went_is_counted() {
        let mut cohorts = Cohorts::new(1);
        let span = Span {
            opened_ns: SECOND,
            closed_ns: 2 * SECOND,
            effective_s: 1.0,
            uncertainty: 0.0,
            shared: None,
            occasion: Occasion::Random,
        };
        let reading = Reading {
            header: 0x51,
            next_header: Some(0x21),
            ..Reading::default()
        };
        let survivors = (1..=10_u64).map(|number| {
            let survivor = Survivor {
                address: 0x1000 * number,
                size: 72,
                born_ns: SECOND + number,
                site: 3,
                rounding: crate::Rounding::Glibc,
            };
            (survivor, Some(reading))
        });
        cohorts.close(span, [(3, 25, 1800)], survivors, &HashSet::new(), 0);
        assert!(cohorts.gone_later().abs() < f64::EPSILON);
        // Of every second the chunk behind says that it is free.
        let readings: Vec<_> = (0..10)
            .map(|number| {
                Some(Reading {
                    next_header: Some(0x20 + number % 2),
                    ..reading
                })
            })
            .collect();
        cohorts.check(3 * SECOND, &readings);
        assert!((cohorts.gone_later() - 5.0).abs() < f64::EPSILON);
    }
}
