//! Who holds a chunk now. Where a site keeps what it allocates, it takes over, one by one, the chunks of its size that others free; and where its
//! blocks look like theirs, those seem to be there still, and never go. Knows nothing of time.

use hashbrown::{HashMap, HashSet};

use super::{Cohorts, Watched, fate::chunk_of};
use crate::ledger::SiteId;

/// A site keeps its blocks of which fewer than this share were seen to go, and frees them of which more than that were.
const KEEPS: f64 = 0.02;
const FREES: f64 = 0.2;

/// A site of which fewer are watched says nothing.
const ENOUGH: f64 = 5.0;

/// The sizes of chunks that sites which keep their blocks take, and the sites that do not keep theirs; of blocks that look alike.
#[derive(Clone, Debug, Default)]
pub(super) struct Heirs {
    kept_sizes: HashSet<u64>,
    freeing: HashSet<SiteId>,
}

impl Heirs {
    pub(super) fn of(cohorts: &Cohorts) -> Self {
        let mut watched: HashMap<SiteId, f64> = HashMap::new();
        for block in cohorts.counted().filter(|block| cohorts.looks_alike(block)) {
            *watched.entry(block.survivor.site).or_default() += 1.0;
        }
        let mut keeping = HashSet::new();
        let mut freeing = HashSet::new();
        for (site, there) in watched {
            let gone: f64 = cohorts.contradictions.get(&site).map_or(0.0, |counts| {
                counts
                    .iter()
                    .map(|counts| counts.by_checks + counts.in_windows)
                    .sum()
            });
            let share = gone / (gone + there);
            if share > FREES || cohorts.ends_young(site) {
                freeing.insert(site);
            } else if share < KEEPS && there >= ENOUGH {
                keeping.insert(site);
            }
        }
        let kept_sizes = cohorts
            .counted()
            .filter(|block| keeping.contains(&block.survivor.site) && cohorts.looks_alike(block))
            .filter_map(|block| chunk_of(&block.survivor, block.first.as_ref()))
            .collect();
        Self {
            kept_sizes,
            freeing,
        }
    }

    /// Whether a block that looks alike has most likely been freed, and its chunk taken over for good.
    pub(super) fn have(&self, block: &Watched) -> bool {
        self.freeing.contains(&block.survivor.site)
            && chunk_of(&block.survivor, block.first.as_ref())
                .is_some_and(|size| self.kept_sizes.contains(&size))
    }
}
