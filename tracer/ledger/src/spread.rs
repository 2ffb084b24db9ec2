//! How blocks spread over sizes and lives: counted by powers of two. Pure; knows neither sites nor where the counts come from.

/// A unit of lives: 1,024 are a second.
const UNITS: u64 = 1024;

const NS_PER_S: u64 = 1_000_000_000;

/// Counts of values by the power of two that they are below, the smallest first. Most sites have few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread(Vec<(u8, u64)>);

impl Spread {
    /// Counts so many of a value.
    #[inline]
    pub fn note(&mut self, value: u64, count: u64) {
        if count == 0 {
            return;
        }
        // Below 2^64 there is no power of two above the largest values.
        let power = (u64::BITS - value.leading_zeros()).min(u64::BITS - 1) as u8;
        let place = self.0.iter().position(|(known, _)| *known >= power);
        let place = place.unwrap_or(self.0.len());
        match self.0.get_mut(place) {
            Some((known, sum)) if *known == power => *sum = sum.saturating_add(count),
            _ => self.0.insert(place, (power, count)),
        }
    }

    /// Counts so many that live, or lived, less than so long.
    pub fn note_life(&mut self, ns: u64, count: u64) {
        self.note(
            (u128::from(ns) * u128::from(UNITS) / u128::from(NS_PER_S)) as u64,
            count,
        );
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (power, count) in &other.0 {
            self.note((1 << power) - 1, *count);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Takes so many away, of the smallest values first.
    pub fn take_smallest(&mut self, mut count: u64) {
        for (_, known) in &mut self.0 {
            let taken = count.min(*known);
            *known -= taken;
            count -= taken;
        }
        self.0.retain(|(_, count)| *count > 0);
    }

    /// Leaves at most so many: what is too many is taken from where there are most.
    pub fn fit(&mut self, most: u64) {
        let mut over = self.total().saturating_sub(most);
        while over > 0 {
            let Some((_, largest)) = self.0.iter_mut().max_by_key(|(_, count)| *count) else {
                return;
            };
            let taken = over.min(*largest);
            *largest -= taken;
            over -= taken;
        }
        self.0.retain(|(_, count)| *count > 0);
    }

    /// Each power of two, as the value that those counted are below, and how many they are.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(power, count)| (1 << power, *count))
    }

    /// The same of lives, in seconds.
    pub fn lives(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.counts()
            .map(|(below, count)| (below as f64 / UNITS as f64, count))
    }
}

/// What became of blocks that were followed from their birth on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// So many.
    pub followed: u64,
    /// Those that were freed, by how long they lived at most.
    pub freed: Spread,
    /// Those of them that were freed before the next look, or in the window that they were born in.
    pub temporary: u64,
    /// Nobody of those lived longer, nanoseconds.
    pub temporary_ns: u64,
}

impl Fates {
    /// Adds those of other blocks.
    pub fn add(&mut self, other: &Self) {
        self.followed = self.followed.saturating_add(other.followed);
        self.freed.add(&other.freed);
        self.temporary = self.temporary.saturating_add(other.temporary);
        self.temporary_ns = self.temporary_ns.max(other.temporary_ns);
    }
}

/// Live blocks by size and by age.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// By bytes asked for.
    pub sizes: Spread,
    /// By how long they have lived.
    pub ages: Spread,
}

impl Alive {
    /// Counts so many blocks of a size and an age.
    #[inline]
    pub fn note(&mut self, bytes: u64, age_ns: u64, count: u64) {
        self.sizes.note(bytes, count);
        self.ages.note_life(age_ns, count);
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.sizes.add(&other.sizes);
        self.ages.add(&other.ages);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{NS_PER_S, Spread};

    #[test]
    fn values_lie_below_their_power_of_two() {
        let mut spread = Spread::default();
        for value in [64, 0, 63, 64, 127, u64::MAX] {
            spread.note(value, 1);
        }
        let counts: Vec<_> = spread.counts().collect();
        assert_eq!(counts, [(1, 1), (64, 1), (128, 3), (1 << 63, 1)]);
        let mut lives = Spread::default();
        lives.note_life(NS_PER_S, 2);
        lives.note_life(NS_PER_S - 1, 1);
        assert_eq!(lives.lives().collect::<Vec<_>>(), [(1.0, 1), (2.0, 2)]);
        lives.take_smallest(2);
        assert_eq!(lives.lives().collect::<Vec<_>>(), [(2.0, 1)]);
    }

    proptest! {
        #[test]
        fn no_count_is_lost_and_none_is_left_over(values in prop::collection::vec((0_u64.., 1_u64..1000), 0..50), most in 0_u64..20_000) {
            let (mut one, mut other) = (Spread::default(), Spread::default());
            for (place, (value, count)) in values.iter().enumerate() {
                if place % 2 == 0 { one.note(*value, *count) } else { other.note(*value, *count) }
            }
            one.add(&other);
            let sum: u64 = values.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(one.total(), sum);
            prop_assert!(one.counts().collect::<Vec<_>>().is_sorted());
            one.fit(most);
            prop_assert_eq!(one.total(), sum.min(most));
        }
    }
}
