//! The watched blocks by site and by the size of their chunks: whose those are that stay, of each size that can be counted in the heap.

use std::collections::BTreeMap;

use super::{Alike, Cohorts, Occasion, SiteCohort, seconds};
use crate::{
    Left, SiteId,
    sizes::{BlockSize, Rounding, size_of},
};

/// Blocks of windows that were closed so long ago, as a part of the time since the first, have had time to go.
const OLD: f64 = 1.0 / 8.0;
/// Of these, the ones that tell most.
const OLDEST: f64 = 0.5;

/// Of one site, its watched blocks of one size, for all that is known still there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OfSize {
    /// Their number, and the bytes that were asked for.
    pub watched: f64,
    pub(crate) bytes: f64,
    /// Those of old windows, and of the oldest.
    pub(crate) old: f64,
    pub(crate) oldest: f64,
    /// Old ones that may be others' which took their places: see [`Cohorts::distrust_newest`], and what looks alike of sites that keep hardly any.
    pub(crate) doubtful: f64,
    /// So many windows the old ones were born in.
    pub(crate) windows: u32,
}

impl Cohorts {
    /// See the module. Only blocks of the allocator that is counted; a site that allocates such, and of which none is watched, has an entry that is
    /// empty.
    #[must_use]
    pub fn by_size(
        &self,
        now_ns: u64,
        alike: &Alike,
        rounding: Rounding,
    ) -> BTreeMap<(SiteId, BlockSize), OfSize> {
        let mut sizes: BTreeMap<(SiteId, BlockSize), OfSize> = BTreeMap::new();
        let mut last: BTreeMap<(SiteId, BlockSize), u32> = BTreeMap::new();
        let watched_s = self
            .began_ns()
            .map_or(0.0, |began_ns| seconds(began_ns, now_ns));
        let nothing = SiteCohort::default();
        // Of each site the last.
        let means: BTreeMap<SiteId, BlockSize> = self.mean_sizes(rounding).collect();
        // Whether other sites allocate blocks of about this size.
        let is_shared = |site: SiteId, size: BlockSize| {
            means.iter().any(|(other, mean)| {
                *other != site && (size / 2..=size.saturating_mul(2)).contains(mean)
            })
        };
        for block in self
            .counted()
            .filter(|block| block.survivor.rounding == rounding)
        {
            let survivor = &block.survivor;
            let Some(cohort) = self.cohorts.get(block.cohort as usize) else {
                continue;
            };
            let site = survivor.site;
            let counts = self.contradictions.get(&site).copied().unwrap_or_default();
            let there = cohort.sites.get(&site).unwrap_or(&nothing);
            let lag_s = seconds(cohort.span.closed_ns, now_ns);
            let kept = alike.kept(
                (site, block.cohort),
                (cohort, there),
                counts,
                self.is_seen_to_go(site),
                lag_s,
            );
            let key = (site, size_of(block.taken()));
            let of = sizes.entry(key).or_default();
            of.watched += kept;
            of.bytes += kept * survivor.size as f64;
            if lag_s < OLD * watched_s || cohort.span.occasion == Occasion::Start {
                continue;
            }
            let is_others = alike.hardly_keeping.contains(&site)
                && self.looks_alike(block)
                && is_shared(site, key.1);
            if block.is_late || is_others {
                of.doubtful += kept;
                continue;
            }
            of.old += kept;
            if lag_s >= OLDEST * watched_s {
                of.oldest += kept;
            }
            if last.insert(key, block.cohort) != Some(block.cohort) {
                of.windows = of.windows.saturating_add(1);
            }
        }
        for (site, size) in self.mean_sizes(rounding) {
            // Of a site of another allocator nothing tells here; its sizes have no stayers then, and take no part of any growth.
            sizes.entry((site, size)).or_default();
        }
        sizes
    }

    /// Of each site that allocates in a window, the size that a block of its mean takes; window by window.
    fn mean_sizes(&self, rounding: Rounding) -> impl Iterator<Item = (SiteId, BlockSize)> + '_ {
        let allocating = self.cohorts.iter().flat_map(|cohort| &cohort.sites);
        allocating
            .filter(|(_, there)| there.births.objects > 0.0)
            .map(move |(site, there)| {
                let mean = there.births.bytes / there.births.objects;
                (*site, size_of(rounding.taken_for(mean as u64)))
            })
    }

    /// All blocks of this allocator that outlived their windows. Where only some are looked at, each stands for as many as a watched one, which is no fewer.
    #[must_use]
    pub fn left(&self, rounding: Rounding) -> Left {
        let weight = self.weight() as f64;
        let mut left = Left::default();
        for (site, variety) in &self.variety {
            let Some((counts, any)) = variety.counts(rounding) else {
                continue;
            };
            for (size, count) in counts {
                let of_size = left.sizes.entry(*size).or_default();
                of_size.insert(*site, weight * *count as f64);
            }
            if any > 0 {
                left.any.insert(*site, weight * any as f64);
            }
        }
        left
    }

    /// The part of a site's blocks that are this allocator's, and of these sizes.
    #[must_use]
    pub fn share_of_sizes(&self, site: SiteId, sizes: &[BlockSize], rounding: Rounding) -> f64 {
        self.variety
            .get(&site)
            .map_or(1.0, |variety| variety.share_of(sizes, rounding))
    }

    /// Of each site, the part of what outlived its window that is still there, of old windows.
    #[must_use]
    pub fn staying(&self, now_ns: u64) -> BTreeMap<SiteId, f64> {
        let watched_s = self
            .began_ns()
            .map_or(0.0, |began_ns| seconds(began_ns, now_ns));
        let scale = self.weight() as f64;
        let mut sums: BTreeMap<SiteId, (f64, f64)> = BTreeMap::new();
        for cohort in &self.cohorts {
            if seconds(cohort.span.closed_ns, now_ns) < OLD * watched_s {
                continue;
            }
            for (site, there) in &cohort.sites {
                let (alive, survived) = sums.entry(*site).or_default();
                *alive += there.alive_objects as f64 * scale;
                *survived += there.ages.iter().map(|age| age.objects).sum::<f64>();
            }
        }
        sums.into_iter()
            .filter(|(_, (_, survived))| *survived > 0.0)
            .map(|(site, (alive, survived))| (site, (alive / survived).min(1.0)))
            .collect()
    }
}
