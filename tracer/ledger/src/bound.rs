//! Estimates within what the process can hold. Pure: it knows no windows and no sites, only how much each is taken to be, how sure that is, and what they
//! may be together.

use super::Estimate;

/// What is known of a site's bytes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// As estimated.
    pub bytes: u64,
    /// The 95 % interval.
    pub low: u64,
    /// Its upper end.
    pub high: u64,
    /// Of `bytes`, those of blocks that were seen themselves. They are there whatever else is.
    pub counted: u64,
}

impl From<&Estimate> for Held {
    fn from(estimate: &Estimate) -> Self {
        Self {
            bytes: estimate.inuse_bytes,
            low: estimate.inuse_bytes_low,
            high: estimate.inuse_bytes_high,
            counted: estimate.counted_bytes,
        }
    }
}

/// Cuts estimates that are together more than `most`, the memory that their process holds: each by the variance of its interval (constrained least squares), so
/// that the least sure gives way first, and none below what was counted. No interval ends above what the others, at
/// their lower ends, leave of it.
///
/// What was counted may be more than `most`: blocks that were never written to are in no memory. Then they alone are the bound, which is returned.
pub fn bound(sites: &mut [Held], most: u64) -> u64 {
    let counted: u64 = sites
        .iter_mut()
        .map(|site| {
            site.counted = site.counted.min(site.bytes);
            site.counted
        })
        .fold(0, u64::saturating_add);
    let most = most.max(counted);
    let beyond = |sites: &[Held]| {
        let all = sites.iter().map(|site| site.bytes);
        all.fold(0, u64::saturating_add).saturating_sub(most)
    };
    let mut excess = beyond(sites);
    while excess > 0 {
        let variance = |site: &Held| {
            let width = (site.high.saturating_sub(site.low) as f64).max(1.0);
            if site.bytes > site.counted {
                width * width
            } else {
                0.0
            }
        };
        let all: f64 = sites.iter().map(variance).sum();
        if all <= 0.0 {
            break;
        }
        for site in sites.iter_mut() {
            let cut = (excess as f64 * variance(site) / all).ceil() as u64;
            site.bytes = site.bytes.saturating_sub(cut).max(site.counted);
        }
        // Each round at least one is cut to what was counted, or nothing is left to cut.
        excess = beyond(sites);
    }
    let least = |site: &Held| site.low.min(site.bytes).max(site.counted);
    let all: u64 = sites.iter().map(least).fold(0, u64::saturating_add);
    for site in sites {
        let left = most.saturating_sub(all.saturating_sub(least(site)));
        site.low = site.low.min(site.bytes);
        site.high = site.high.min(left).max(site.bytes);
    }
    most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Held, bound};

    const MIB: u64 = 1 << 20;

    fn held(bytes: u64, low: u64, high: u64, counted: u64) -> Held {
        Held {
            bytes,
            low,
            high,
            counted,
        }
    }

    /// The demonstration: a cache of 256 KiB of which one block in a short window stood for a minute, beside a leak.
    #[test]
    fn a_cache_that_hardly_anything_was_known_of_ranked_before_a_leak_of_hundreds_of_blocks() {
        let mut sites = [
            held(84 * MIB, 0, 200 * MIB, MIB / 4),
            held(4 * MIB, 3 * MIB, 5 * MIB, MIB),
        ];
        assert_eq!(bound(&mut sites, 7 * MIB), 7 * MIB);
        let [cache, leak] = sites;
        assert!(
            leak.bytes > 3 * MIB + MIB / 2 && cache.bytes < leak.bytes,
            "{sites:?}"
        );
        assert!(cache.bytes + leak.bytes <= 7 * MIB);
        // The leak takes 3 MiB of the 7 at the least.
        assert_eq!(cache.high, 4 * MIB);
    }

    #[test]
    fn what_fits_is_left_as_it_is_but_for_its_upper_ends() {
        let mut sites = [held(100, 90, 110, 10), held(50, 0, 9_000, 0)];
        bound(&mut sites, 1_000);
        assert_eq!(sites, [held(100, 90, 110, 10), held(50, 0, 910, 0)]);
    }

    #[test]
    fn blocks_that_were_counted_and_never_written_to_stay() {
        let mut sites = [held(5_000, 5_000, 5_000, 5_000), held(900, 100, 4_000, 0)];
        assert_eq!(bound(&mut sites, 1_000), 5_000);
        assert_eq!(sites, [held(5_000, 5_000, 5_000, 5_000), held(0, 0, 0, 0)]);
    }

    proptest! {
        #[test]
        fn no_sum_and_no_upper_end_is_beyond_the_bound(
            sites in prop::collection::vec((0..1_u64 << 45, any::<u32>(), 0..1_u64 << 46, 0..1_u64 << 20), 0..40),
            most in 0..1_u64 << 34,
        ) {
            let mut sites: Vec<Held> = sites
                .into_iter()
                .map(|(bytes, low, high, counted)| held(bytes, bytes.min(low.into()), bytes.max(high), counted))
                .collect();
            let most = bound(&mut sites, most);
            prop_assert!(sites.iter().map(|site| site.bytes).sum::<u64>() <= most);
            for site in &sites {
                prop_assert!(site.low <= site.bytes && site.bytes <= site.high && site.high <= most);
                prop_assert!(site.counted <= site.bytes);
            }
        }
    }
}
