//! Some of many, chosen at random, and what they stand for. Pure.

/// Numbers of which at most so many are looked at.
pub(super) struct Sampled {
    chosen: Vec<u32>,
    all: u64,
}

impl Sampled {
    /// Chooses at most `most`. By a hash of the number, for descriptors of a kind often come at a regular distance.
    pub(super) fn new(numbers: Vec<u32>, most: usize) -> Self {
        let all = numbers.len() as u64;
        let mut chosen = numbers;
        if chosen.len() > most {
            chosen.sort_unstable_by_key(|number| mixed(*number));
            chosen.truncate(most);
        }
        Self { chosen, all }
    }

    pub(super) fn chosen(&self) -> &[u32] {
        &self.chosen
    }

    /// What a count among the chosen stands for.
    pub(super) fn scaled(&self, count: u64) -> u64 {
        let chosen = (self.chosen.len() as u64).max(1);
        if self.all == chosen {
            return count;
        }
        let scaled = u128::from(count) * u128::from(self.all) / u128::from(chosen);
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): neighbours end up far apart.
fn mixed(number: u32) -> u64 {
    let mut hash = u64::from(number).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::Sampled;
    use proptest::prelude::*;

    #[test]
    fn few_are_all_looked_at() {
        let few = Sampled::new(vec![3, 4, 9], 3);
        assert_eq!((few.chosen(), few.scaled(2)), (&[3, 4, 9][..], 2));
    }

    proptest! {
        /// Every `step`th descriptor is of one kind.
        #[test]
        fn regular_ones_are_estimated(step in 2_u32..64) {
            let sampled = Sampled::new((0..100_000).collect(), 8192);
            let kind = sampled.chosen().iter().filter(|number| *number % step == 0).count();
            let estimated = sampled.scaled(kind as u64) as f64;
            let truth = f64::from(100_000_u32.div_ceil(step));
            // Four standard deviations.
            let share = truth / 100_000.0;
            let error = 4.0 * 100_000.0 * (share / 8192.0).sqrt();
            prop_assert!((estimated - truth).abs() <= error, "{estimated} of {truth}");
        }
    }
}
