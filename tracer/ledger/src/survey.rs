//! One look at everything that is alive: the live blocks summed by site, and intervals where they were thinned.

use std::collections::HashMap;

use leakscope_common::Block;

use super::{Alive, SiteId};

/// Which live blocks count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFilter {
    /// Only blocks at least this old, nanoseconds.
    pub min_age_ns: u64,
    /// Now, CLOCK_MONOTONIC nanoseconds.
    pub now_ns: u64,
}

impl BlockFilter {
    /// Whether a block counts.
    #[must_use]
    pub fn passes(&self, block: &Block) -> bool {
        self.now_ns.saturating_sub(block.born_ns) >= self.min_age_ns
    }
}

/// What is alive of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SiteSurvey {
    /// Blocks in the table.
    pub kept_objects: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// The sum of the squares of their sizes, for the interval.
    squares: f64,
    /// When the oldest was allocated, CLOCK_MONOTONIC nanoseconds.
    pub oldest_born_ns: Option<u64>,
}

impl SiteSurvey {
    /// Counts a live block.
    pub fn note(&mut self, block: &Block, filter: &BlockFilter) {
        if !filter.passes(block) {
            return;
        }
        self.kept_objects += 1;
        self.kept_bytes = self.kept_bytes.saturating_add(block.size);
        self.squares += (block.size as f64) * (block.size as f64);
        self.oldest_born_ns = Some(
            self.oldest_born_ns
                .map_or(block.born_ns, |oldest| oldest.min(block.born_ns)),
        );
    }
}

/// The live blocks of all sites at one moment.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    sites: HashMap<SiteId, SiteSurvey>,
    alive: HashMap<SiteId, Alive>,
    thin_shift: u32,
}

/// The 97.5th percentile of the normal distribution: 95 % of it lie within so many standard deviations.
const NORMAL_95: f64 = 1.959_964;

impl Survey {
    /// An empty survey of a table that keeps one of `2^thin_shift` blocks.
    #[must_use]
    pub fn new(thin_shift: u32) -> Self {
        Self {
            thin_shift,
            ..Self::default()
        }
    }

    /// Counts a live block at its site.
    pub fn add(&mut self, site: SiteId, block: &Block, filter: &BlockFilter) {
        let mut one = SiteSurvey::default();
        one.note(block, filter);
        self.merge(site, &one);
    }

    /// Adds what was counted of a site elsewhere.
    pub fn merge(&mut self, site: SiteId, other: &SiteSurvey) {
        if other.kept_objects == 0 {
            return;
        }
        let survey = self.sites.entry(site).or_default();
        survey.kept_objects += other.kept_objects;
        survey.kept_bytes = survey.kept_bytes.saturating_add(other.kept_bytes);
        survey.squares += other.squares;
        survey.oldest_born_ns = match (survey.oldest_born_ns, other.oldest_born_ns) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
    }

    /// Adds the sizes and ages of blocks that were kept.
    pub fn spread(&mut self, site: SiteId, alive: &Alive) {
        self.alive.entry(site).or_default().add(alive);
    }

    /// The sizes and ages of the blocks that were kept of a site.
    #[must_use]
    pub fn alive(&self, site: SiteId) -> Option<&Alive> {
        self.alive.get(&site)
    }

    /// What is alive of a site.
    #[must_use]
    pub fn site(&self, site: SiteId) -> SiteSurvey {
        self.sites.get(&site).copied().unwrap_or_default()
    }

    /// The sites that have live blocks.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.sites.keys().copied()
    }

    /// How many blocks each kept one stands for.
    #[must_use]
    pub fn weight(&self) -> u64 {
        1 << self.thin_shift
    }

    /// Blocks and bytes of a site, scaled by the weight.
    #[must_use]
    pub fn inuse(&self, site: SiteId) -> (u64, u64) {
        let survey = self.site(site);
        (
            survey.kept_objects.saturating_mul(self.weight()),
            survey.kept_bytes.saturating_mul(self.weight()),
        )
    }

    /// The 95 % interval of a site's bytes; both ends are the value itself when nothing was thinned.
    ///
    /// Each block is kept with probability p = 1/weight, independently (by a hash of its address). The estimate
    /// sum(size)/p has the variance sum over all blocks of size^2 (1-p)/p, whose own estimate from the kept ones is
    /// sum(size^2) (1-p)/p^2 (Horvitz and Thompson 1952). The kept bytes themselves are certain.
    #[must_use]
    pub fn interval(&self, site: SiteId) -> (u64, u64) {
        let survey = self.site(site);
        let (_, estimate) = self.inuse(site);
        if self.thin_shift == 0 {
            return (estimate, estimate);
        }
        let weight = self.weight() as f64;
        let deviation = (survey.squares * (1.0 - 1.0 / weight)).sqrt() * weight;
        let margin = (NORMAL_95 * deviation) as u64;
        (
            estimate.saturating_sub(margin).max(survey.kept_bytes),
            estimate.saturating_add(margin),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockFilter, Survey};
    use leakscope_common::{Block, live_key, thin_keeps};
    use proptest::prelude::*;

    const ALL: BlockFilter = BlockFilter {
        min_age_ns: 0,
        now_ns: 1_000,
    };

    fn block(size: u64, born_ns: u64) -> Block {
        Block {
            size,
            born_ns,
            ..Block::default()
        }
    }

    #[test]
    fn young_blocks_do_not_count() {
        let mut survey = Survey::new(0);
        let filter = BlockFilter {
            min_age_ns: 500,
            now_ns: 1_000,
        };
        survey.add(1, &block(10, 501), &filter);
        survey.add(1, &block(100, 500), &filter);
        survey.add(1, &block(1_000, 2_000), &filter);
        assert_eq!(survey.inuse(1), (1, 100));
        assert_eq!(survey.site(1).oldest_born_ns, Some(500));
    }

    #[test]
    fn the_interval_holds_the_truth_at_its_rate() {
        let mut held = 0;
        let sites = 400;
        for site in 0..sites {
            let mut survey = Survey::new(3);
            let mut truth = 0;
            for number in 0..2_000_u64 {
                let size = 16 + (number * 37 + u64::from(site)) % 500;
                truth += size;
                let address = 0x5600_0000_0000 + (u64::from(site) * 2_000 + number) * 512;
                if thin_keeps(live_key(1, address), 3) {
                    survey.add(site, &block(size, 0), &ALL);
                }
            }
            let (low, high) = survey.interval(site);
            held += u32::from((low..=high).contains(&truth));
        }
        // 95 % of 400 is 380; below 365 or none missed at all would be 3.5 standard deviations off or a bound too wide.
        assert!((365..400).contains(&held), "{held} of {sites}");
    }

    proptest! {
        #[test]
        fn unthinned_surveys_are_exact(sizes in prop::collection::vec(0_u64..1 << 40, 0..200)) {
            let mut survey = Survey::new(0);
            for size in &sizes {
                survey.add(7, &block(*size, 1), &ALL);
            }
            let sum: u64 = sizes.iter().sum();
            prop_assert_eq!(survey.inuse(7), (sizes.len() as u64, sum));
            prop_assert_eq!(survey.interval(7), (sum, sum));
        }
    }
}
