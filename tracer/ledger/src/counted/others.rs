//! Whether growth that is counted can be any other site's, whatever the blocks look like: what leaks outlives its window, so that a site leaks no more blocks of a
//! size than windows left of it. Pure.

use std::collections::BTreeMap;

use super::{Counted, CountedSite};
use crate::{
    SiteId,
    sizes::{BlockSize, GRAIN},
};

/// All others together have at most this part of what windows should have caught of the growth, beyond chance: so many standard deviations.
const MOST_OF_OTHERS: f64 = 0.5;
const CHANCE: f64 = 2.0;

/// What windows tell of a site's growth is what was counted if neither is more than so many times the other. Blocks that are replaced one by one by
/// others of the site seem to stay as often as they are allocated, which is no measure of how many there are.
const AGREES: f64 = 2.0;

/// The blocks that outlived their windows, all of them, whatever became of them later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Left {
    /// By size and site.
    pub sizes: BTreeMap<BlockSize, BTreeMap<SiteId, f64>>,
    /// Those of which only the number is known: of sites with so many sizes that they may have any.
    pub any: BTreeMap<SiteId, f64>,
}

impl Counted {
    /// Takes in what all windows left behind, which stand for so many seconds together.
    pub fn note_left(&mut self, left: &Left, effective_s: f64) {
        for (id, site) in &mut self.sites {
            let of_others = |sites: &BTreeMap<SiteId, f64>| -> f64 {
                let others = sites.iter().filter(|(other, _)| *other != id);
                others.map(|(_, blocks)| blocks).sum()
            };
            let sizes = || site.sizes.iter().filter(|of| of.part > 0.0);
            // Blocks of its largest size, or as many bytes: chance makes the most of few large ones.
            let largest = sizes().map(|of| of.bytes).fold(1.0, f64::max);
            // A request may take a chunk of its size or of the next one. Each is counted once, where the site has both.
            let mut asked_for: Vec<BlockSize> = sizes()
                .flat_map(|of| [of.size, of.size.saturating_sub(GRAIN)])
                .collect();
            asked_for.sort_unstable();
            asked_for.dedup();
            let others: f64 = asked_for
                .into_iter()
                .filter_map(|size| Some(size as f64 / largest * of_others(left.sizes.get(&size)?)))
                .sum();
            site.others = others + of_others(&left.any);
            site.caught = site.bytes_per_s.max(0.0) * effective_s / largest;
        }
    }
}

impl CountedSite {
    /// Whether its growth, which windows make out to be so many bytes a second, is its own even if nothing tells its blocks from others that took their place, be it
    /// that contents do not or that they were first read too late: nobody else leaves as many behind, and it leaves about as many as there are more.
    pub(crate) fn is_nobody_elses(&self, bytes_per_s: f64) -> bool {
        let most = MOST_OF_OTHERS * self.caught - CHANCE * self.caught.max(0.0).sqrt();
        self.grows
            && self.is_divided
            && self.is_known()
            && self.is_mostly_its()
            && self.others < most
            && bytes_per_s <= AGREES * self.bytes_per_s
            && self.bytes_per_s <= AGREES * bytes_per_s
    }
}
