//! Who holds a chunk now. Where a site keeps what it allocates, it takes over, one by one, the chunks of its size that others free; and where its
//! blocks look like theirs, those seem to be there still, and never go. Knows nothing of time.

use hashbrown::{HashMap, HashSet};

use super::{Cohorts, Watched, fate::chunk_of};
use crate::SiteId;

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
    /// Of these, the ones that free nearly all.
    hardly_keeping: HashSet<SiteId>,
}

impl Heirs {
    pub(super) fn of(cohorts: &Cohorts) -> Self {
        let mut watched: HashMap<SiteId, f64> = HashMap::new();
        for block in cohorts.counted().filter(|block| cohorts.looks_alike(block)) {
            *watched.entry(block.survivor.site).or_default() += 1.0;
        }
        let mut keeping = HashSet::new();
        let mut freeing = HashSet::new();
        let mut hardly_keeping = HashSet::new();
        for (site, there) in watched {
            let gone: f64 = cohorts.contradictions.get(&site).map_or(0.0, |counts| {
                counts
                    .iter()
                    .map(|counts| counts.by_checks + counts.in_windows)
                    .sum()
            });
            let share = gone / (gone + there);
            if there < KEEPS * cohorts.born_in_windows(site).max(gone + there) {
                hardly_keeping.insert(site);
            }
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
            hardly_keeping,
        }
    }

    /// The sites that free nearly all of their blocks: of these, what looks alike and seems to stay may as well be another site's, that keeps
    /// a few and frees most of its own as well.
    pub(super) fn hardly_keeping(self) -> HashSet<SiteId> {
        self.hardly_keeping
    }

    /// Whether a block that looks alike has most likely been freed, and its chunk taken over for good.
    pub(super) fn have(&self, block: &Watched) -> bool {
        self.freeing.contains(&block.survivor.site)
            && chunk_of(&block.survivor, block.first.as_ref())
                .is_some_and(|size| self.kept_sizes.contains(&size))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use hashbrown::HashSet;

    use super::super::{Cohorts, Estimate, Occasion, Reading, Span, Survivor};

    const SECOND: u64 = 1_000_000_000;
    /// Every block is zero.
    const ZERO: u64 = 7;
    const LEAK: u32 = 1;
    const CACHE: u32 = 2;

    fn block(site: u32, number: u64) -> Survivor {
        Survivor {
            address: 0x1000 * (u64::from(site) * 1_000 + number),
            size: 100,
            born_ns: SECOND / 2,
            site,
            rounding: crate::Rounding::Glibc,
        }
    }

    fn zero(chunk: u64) -> Reading {
        Reading {
            header: chunk | 1,
            next_header: Some(0x21),
            fingerprint: ZERO,
            is_constant: true,
            ..Reading::default()
        }
    }

    /// What is known of a cache half a minute after a window of a second. A look has found other chunks where most of its blocks were; where the others
    /// were, there are zero blocks in chunks of its size. Beside it a leak, whose chunks have this size.
    fn cache(chunk_of_leak: u64) -> Estimate {
        let mut cohorts = Cohorts::new(1);
        let span = Span {
            opened_ns: 0,
            closed_ns: SECOND,
            effective_s: 1.0,
            uncertainty: 0.0,
            shared: None,
            occasion: Occasion::Random,
        };
        let chunk_of = |site| if site == LEAK { chunk_of_leak } else { 112 };
        let born = (0..20).flat_map(|number| [block(LEAK, number), block(CACHE, number)]);
        let born = born.map(|survivor| (survivor, Some(zero(chunk_of(survivor.site)))));
        let births = [(LEAK, 20, 2_000), (CACHE, 20, 2_000)];
        cohorts.close(span, births, born, &HashSet::new(), 0);
        let readings: Vec<_> = cohorts
            .watched()
            .map(|block| {
                let is_other = block.site == CACHE && block.address / 0x1000 % 1_000 >= 6;
                Some(zero(if is_other { 240 } else { chunk_of(block.site) }))
            })
            .collect();
        cohorts.check(2 * SECOND, &readings);
        // A short window in which none of them goes.
        let untouched: HashSet<u64> = cohorts.watched().map(|block| block.address).collect();
        let (opened_ns, closed_ns) = (3 * SECOND, 3 * SECOND + SECOND / 100);
        let short = Span {
            opened_ns,
            closed_ns,
            effective_s: 0.01,
            ..span
        };
        cohorts.close(short, [], [], &untouched, 0);
        let estimates = cohorts.estimates(31 * SECOND, 31 * SECOND, 0.0);
        *estimates.get(&CACHE).unwrap()
    }

    #[test]
    fn blocks_in_whose_chunks_a_leak_has_moved_counted_as_alive() {
        let taken_over = cache(112);
        assert!(taken_over.growth_bytes_per_s < 1.0, "{taken_over:?}");
        // Nobody knows.
        assert_eq!(taken_over.inuse_bytes_low, 0);
        assert!(taken_over.inuse_bytes_high > 6 * 100 * 30);
    }

    #[test]
    fn the_few_zero_blocks_of_a_site_that_frees_the_others_were_its_leak() {
        let mut cohorts = Cohorts::new(1);
        let span = Span {
            opened_ns: 0,
            closed_ns: SECOND,
            effective_s: 1.0,
            uncertainty: 0.0,
            shared: None,
            occasion: Occasion::Random,
        };
        let of_leak = (block(LEAK, 500), Some(zero(240)));
        let born = (0..200).map(|number| (block(CACHE, number), Some(zero(112))));
        let births = [(CACHE, 200, 20_000), (LEAK, 1, 100)];
        cohorts.close(span, births, born.chain([of_leak]), &HashSet::new(), 0);
        let readings: Vec<_> = cohorts
            .watched()
            .map(|block| {
                Some(zero(if block.address / 0x1000 % 1_000 > 0 {
                    240
                } else {
                    112
                }))
            })
            .collect();
        cohorts.check(2 * SECOND, &readings);
        let sizes = cohorts.by_size(60 * SECOND, &cohorts.alike(), crate::Rounding::Glibc);
        let of = sizes.get(&(CACHE, 112)).unwrap();
        assert!(of.doubtful > 0.0, "{of:?}");
        assert!(of.old.abs() < 1e-9, "{of:?}");
    }

    #[test]
    fn a_leak_that_takes_chunks_of_another_size_moves_into_none() {
        let there = cache(128);
        assert!(there.growth_bytes_per_s > 500.0, "{there:?}");
    }
}
