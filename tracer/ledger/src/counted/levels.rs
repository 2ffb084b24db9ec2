//! What is in use, by what is counted: a site's blocks that stay are as many as were counted, and those of all sites of one size no more than there are.

use std::collections::BTreeMap;

use super::{Counted, CountedSite, SizeOfSite};
use crate::{Estimate, Held, SiteId, bound, sizes::BlockSize};

/// Of a site whose blocks outlive their windows and stay to this share, those that are in use are the ones that stay.
const STAY: f64 = 0.9;

/// Contents do not tell a site's blocks from their successors where so many of them look alike.
const ALIKE: f64 = 0.5;

/// What windows tell of blocks that do stay is not so many times as much as is counted.
const MANY_MORE: f64 = 4.0;

/// 97.5 % of a normal distribution lie below so many standard deviations.
const NORMAL: f64 = 1.96;

impl Counted {
    /// Corrects estimates: `time_s` since the first window. `stay`: which part of what outlived its window is still there, of the old blocks of each site.
    pub fn correct(
        &self,
        estimates: &mut BTreeMap<SiteId, Estimate>,
        time_s: f64,
        stay: impl Fn(SiteId) -> f64,
    ) {
        for (id, site) in &self.sites {
            if let Some(estimate) = estimates.get_mut(id) {
                site.correct(estimate, time_s, stay(*id));
            }
        }
    }

    /// Cuts estimates of sites that are together more blocks of a size than there are, the least sure first. `share_of`: the part of a site's blocks that
    /// have one of some sizes; of the others nothing is said.
    pub fn bound(
        &mut self,
        estimates: &mut BTreeMap<SiteId, Estimate>,
        share_of: impl Fn(SiteId, &[BlockSize]) -> f64,
    ) {
        let shares: BTreeMap<SiteId, f64> = self
            .sites
            .iter()
            .map(|(id, site)| {
                let sizes: Vec<BlockSize> = site.sizes.iter().map(|of| of.size).collect();
                (*id, share_of(*id, &sizes).clamp(0.0, 1.0))
            })
            .collect();
        let mut of_sizes: BTreeMap<BlockSize, Vec<(SiteId, usize, SizeOfSite)>> = BTreeMap::new();
        for (id, site) in &self.sites {
            for (place, of) in site.sizes.iter().enumerate() {
                of_sizes.entry(of.size).or_default().push((*id, place, *of));
            }
        }
        let mut sums: BTreeMap<SiteId, [f64; 3]> = BTreeMap::new();
        for sites in of_sizes.into_values() {
            let held = held(&sites, estimates, &shares);
            for ((id, place, of), held) in sites.iter().zip(held) {
                let sums = sums.entry(*id).or_default();
                for (sum, objects) in sums.iter_mut().zip([held.bytes, held.low, held.high]) {
                    *sum += objects as f64 * of.bytes;
                }
                let site = self.sites.get_mut(id);
                if let Some(of) = site.and_then(|site| site.sizes.get_mut(*place)) {
                    of.objects = held.bytes;
                }
            }
        }
        for (id, [bytes, low, high]) in sums {
            let Some(estimate) = estimates.get_mut(&id) else {
                continue;
            };
            // What is cut off by whole blocks of each size is no change.
            let slack: f64 = self
                .sites
                .get(&id)
                .map_or(0.0, |site| site.sizes.iter().map(|of| of.bytes).sum());
            let others = 1.0 - shares.get(&id).copied().unwrap_or(1.0);
            let cut = |value: &mut u64, of_sizes: f64| {
                let to = of_sizes + others * *value as f64;
                if to + slack < *value as f64 {
                    *value = to as u64;
                }
            };
            let objects = estimate.inuse_objects as f64;
            let all = estimate.inuse_bytes.max(1) as f64;
            cut(&mut estimate.inuse_bytes, bytes);
            cut(&mut estimate.inuse_bytes_low, low);
            cut(&mut estimate.inuse_bytes_high, high);
            estimate.inuse_objects = (objects * estimate.inuse_bytes as f64 / all).round() as u64;
            estimate.counted_bytes = estimate.counted_bytes.min(estimate.inuse_bytes);
            estimate.inuse_bytes_low = estimate.inuse_bytes_low.min(estimate.inuse_bytes);
            estimate.inuse_bytes_high = estimate.inuse_bytes_high.max(estimate.inuse_bytes);
        }
        self.bound_by_heap(estimates, &shares);
    }

    /// Cuts estimates of sites that are together more than the heap holds.
    fn bound_by_heap(
        &self,
        estimates: &mut BTreeMap<SiteId, Estimate>,
        shares: &BTreeMap<SiteId, f64>,
    ) {
        if self.heap.most <= 0.0 {
            return;
        }
        let is_of_heap = |id: &SiteId| shares.get(id).is_some_and(|share| *share > 0.0);
        let of_heap = || estimates.iter().filter(|(id, _)| is_of_heap(id));
        let mut held: Vec<Held> = of_heap().map(|(_, estimate)| estimate.into()).collect();
        bound(&mut held, self.heap.most as u64);
        let of_heap = estimates.iter_mut().filter(|(id, _)| is_of_heap(id));
        for ((_, estimate), held) in of_heap.zip(held) {
            let left = held.bytes as f64 / estimate.inuse_bytes.max(1) as f64;
            estimate.inuse_objects = (estimate.inuse_objects as f64 * left).round() as u64;
            estimate.inuse_bytes = held.bytes;
            estimate.inuse_bytes_low = held.low;
            estimate.inuse_bytes_high = held.high;
            estimate.counted_bytes = held.counted;
        }
    }
}

/// What the sites hold of one size, blocks; together no more than there are.
fn held(
    sites: &[(SiteId, usize, SizeOfSite)],
    estimates: &BTreeMap<SiteId, Estimate>,
    shares: &BTreeMap<SiteId, f64>,
) -> Vec<Held> {
    let there = sites.iter().map(|(.., of)| of.counted).fold(0.0, f64::max) as u64;
    let mut held: Vec<Held> = sites
        .iter()
        .map(|(id, _, of)| {
            let estimate = estimates.get(id).copied().unwrap_or_default();
            let share = shares.get(id).copied().unwrap_or(1.0);
            let objects = |bytes: f64| (bytes * of.part / of.bytes.max(1.0)) as u64;
            // The watched blocks have these sizes, all of them.
            let counted = objects(estimate.counted_bytes as f64);
            let of_sizes = |bytes: u64| objects(share * bytes as f64).max(counted);
            Held {
                bytes: of_sizes(estimate.inuse_bytes),
                low: of_sizes(estimate.inuse_bytes_low),
                high: of_sizes(estimate.inuse_bytes_high),
                counted,
            }
        })
        .collect();
    // Some of those that were watched may be gone since they were looked at.
    let watched: u64 = held.iter().map(|held| held.counted).sum();
    if watched > there {
        for held in &mut held {
            held.counted = (held.counted as f64 * there as f64 / watched as f64) as u64;
        }
    }
    bound(&mut held, there);
    held
}

impl CountedSite {
    /// Of what is estimated, the part that stays is as much as was counted, where that is known better.
    fn correct(&self, estimate: &mut Estimate, time_s: f64, stay: f64) {
        if !self.is_divided || self.looks < 2 {
            return;
        }
        let all = estimate.inuse_bytes as f64;
        let objects = estimate.inuse_objects as f64;
        // What comes and goes is known from windows alone.
        let comes_and_goes = if stay >= STAY {
            0.0
        } else {
            (all - estimate.growth_bytes_per_s * time_s).max(0.0)
        };
        let part = comes_and_goes / all.max(1.0);
        let error = NORMAL * self.error() * time_s.max(self.over_s);
        let least = estimate.counted_bytes as f64;
        let bytes = (comes_and_goes + self.grown_bytes).max(least);
        let low = part * estimate.inuse_bytes_low as f64 + (self.grown_bytes - error).max(0.0);
        let mut high = part * estimate.inuse_bytes_high as f64 + self.grown_bytes + error;
        // Were they all there that look as if they stayed, many more would have been counted: others have taken the places of some, and for
        // how long each stays nobody can tell.
        let alike =
            estimate.alike_objects as f64 >= ALIKE * estimate.observed_objects.max(1) as f64;
        if alike && estimate.inuse_bytes_high as f64 > MANY_MORE * high {
            high = estimate.inuse_bytes_high as f64;
        }
        let mean = if objects > 0.0 {
            all / objects
        } else {
            self.sizes.iter().map(|of| of.part * of.bytes).sum()
        };
        estimate.inuse_objects = (bytes / mean.max(1.0)).round() as u64;
        estimate.inuse_bytes = bytes.round() as u64;
        estimate.inuse_bytes_low = (low.max(least) as u64).min(estimate.inuse_bytes);
        estimate.inuse_bytes_high = (high as u64).max(estimate.inuse_bytes);
        estimate.growth_bytes_per_s = self.bytes_per_s.max(0.0);
        estimate.alloc_bytes = estimate.alloc_bytes.max(estimate.inuse_bytes);
        estimate.alloc_objects = estimate.alloc_objects.max(estimate.inuse_objects);
    }
}
