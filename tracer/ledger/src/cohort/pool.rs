//! How fast blocks that look alike go, by the windows that saw them, of all sites together. A site that few windows saw for milliseconds says little by
//! itself: that none of its blocks went in them is what to expect of one that never frees, and of most that free as fast as the others. How
//! the others do tells the two apart. Knows numbers only, no blocks.

/// Hazards that are told apart: none, and from the slowest that was seen for long enough to differ from none, four to a decade.
const HAZARDS: usize = 30;
const TO_A_DECADE: f64 = 4.0;

/// How often the shares are renewed: by then they move by less than chance does.
const ROUNDS: usize = 40;

/// A smaller probability counts for nothing.
const LEAST_SHARE: f64 = 1e-6;

/// What windows saw of the blocks of a site: how many went, in how many block-seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) gone: f64,
    pub(super) exposure: f64,
}

impl Seen {
    /// How well a hazard explains it: the logarithm of its likelihood (Poisson), but for what is the same for all.
    fn log_likelihood(self, hazard: f64) -> f64 {
        let expected = hazard * self.exposure;
        if self.gone > 0.0 {
            self.gone * expected.ln() - expected
        } else {
            -expected
        }
    }
}

/// The share of sites with each hazard.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// The least that is not none, per second.
    slowest: f64,
    shares: [f64; HAZARDS],
}

impl Pool {
    /// The shares that explain best what was seen of the sites: the nonparametric maximum likelihood (Laird 1978), found by expectation and
    /// maximization on a grid. Of a single site it is the hazard that was seen of it.
    pub(super) fn of(sites: impl Iterator<Item = Seen>) -> Self {
        let sites: Vec<Seen> = sites.filter(|seen| seen.exposure > 0.0).collect();
        let longest = sites.iter().map(|seen| seen.exposure).fold(0.0, f64::max);
        let mut pool = Self {
            slowest: if longest > 0.0 { 1.0 / longest } else { 1.0 },
            shares: [0.5 / (HAZARDS - 1) as f64; HAZARDS],
        };
        // Where nothing tells, what looks the same is taken to be the same.
        if let Some(stay) = pool.shares.first_mut() {
            *stay = 0.5;
        }
        let likelihoods: Vec<_> = sites.iter().map(|seen| pool.likelihoods(*seen)).collect();
        for _ in 0..ROUNDS {
            let mut sums = [0.0; HAZARDS];
            for likelihood in &likelihoods {
                for (sum, part) in sums.iter_mut().zip(pool.posterior(likelihood)) {
                    *sum += part;
                }
            }
            let all: f64 = sums.iter().sum();
            if all <= 0.0 {
                break;
            }
            pool.shares = sums.map(|sum| sum / all);
        }
        pool
    }

    /// The hazard of that number, per second.
    fn hazard(&self, number: usize) -> f64 {
        match number.checked_sub(1) {
            None => 0.0,
            Some(step) => self.slowest * 10.0_f64.powf(step as f64 / TO_A_DECADE),
        }
    }

    /// How well each hazard explains what was seen, as a part of how well the best does.
    fn likelihoods(&self, seen: Seen) -> [f64; HAZARDS] {
        let logs: [f64; HAZARDS] =
            std::array::from_fn(|number| seen.log_likelihood(self.hazard(number)));
        let best = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        logs.map(|log| (log - best).exp())
    }

    /// The probability of each hazard, by the shares and the likelihoods.
    fn posterior(&self, likelihoods: &[f64; HAZARDS]) -> [f64; HAZARDS] {
        let mut joint: [f64; HAZARDS] = [0.0; HAZARDS];
        for ((value, share), likely) in joint.iter_mut().zip(&self.shares).zip(likelihoods) {
            *value = share * likely;
        }
        let all: f64 = joint.iter().sum();
        if all > 0.0 {
            joint.map(|value| value / all)
        } else {
            joint
        }
    }

    /// The hazards that a site of which this was seen may have, each with its probability.
    pub(super) fn hazards_of(&self, seen: Seen) -> Vec<(f64, f64)> {
        self.posterior(&self.likelihoods(seen))
            .into_iter()
            .enumerate()
            .filter(|(_, share)| *share > LEAST_SHARE)
            .map(|(number, share)| (self.hazard(number), share))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, Seen};

    fn seen(gone: f64, exposure: f64) -> Seen {
        Seen { gone, exposure }
    }

    /// The probability that a site's blocks stay.
    fn stays(pool: &Pool, site: Seen) -> f64 {
        pool.hazards_of(site)
            .into_iter()
            .filter(|(hazard, _)| *hazard <= 0.0)
            .map(|(_, share)| share)
            .sum()
    }

    #[test]
    fn of_a_single_site_its_own_hazard_is_all_that_is_known() {
        let still = seen(0.0, 0.01);
        assert!(stays(&Pool::of([still].into_iter()), still) > 0.9);
        let going = seen(20.0, 0.2);
        let mean: f64 = Pool::of([going].into_iter())
            .hazards_of(going)
            .into_iter()
            .map(|(hazard, share)| hazard * share)
            .sum();
        assert!((70.0..140.0).contains(&mean), "{mean}");
    }

    #[test]
    fn a_site_of_which_none_went_by_chance_was_taken_for_one_that_never_frees() {
        // A hundred sites of which five blocks should go, a few of which had two; one had none, in half the time of the others. And a leak.
        let (short, leak) = (seen(0.0, 0.012), seen(0.0, 0.2));
        let sites = (0..100)
            .map(|site| seen(f64::from(2 + site % 7), 0.025))
            .chain([short, leak]);
        let pool = Pool::of(sites);
        assert!(stays(&pool, short) < 0.2, "{}", stays(&pool, short));
        assert!(stays(&pool, leak) > 0.99, "{}", stays(&pool, leak));
    }

    #[test]
    fn nothing_seen_of_any_says_nothing() {
        let pool = Pool::of(std::iter::empty());
        assert!(!pool.hazards_of(seen(0.0, 0.0)).is_empty());
        assert!(!pool.hazards_of(seen(3.0, 1.0)).is_empty());
    }

    #[test]
    fn very_many_that_went_had_no_hazard_at_all() {
        let site = seen(1e6, 1.0);
        let all: f64 = Pool::of([site].into_iter())
            .hazards_of(site)
            .into_iter()
            .map(|(_, share)| share)
            .sum();
        assert!((all - 1.0).abs() < 1e-3, "{all}");
    }
}
