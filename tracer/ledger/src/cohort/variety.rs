//! Which sizes a site's blocks have, by all that outlived their windows: whether what is counted of some sizes says all of the site. Knows no heap.

use std::collections::BTreeMap;

use crate::{
    Rounding,
    sizes::{BlockSize, size_of},
};

/// Sizes that are kept of a site. One with more has blocks of any size.
const MOST_SIZES: usize = 64;

/// A request may take a chunk of its size or of the next one.
const NEXT_SIZE: BlockSize = 16;

/// The blocks of a site that outlived their windows, by size.
#[derive(Clone, Debug, Default)]
pub(super) struct Variety {
    counts: BTreeMap<BlockSize, u64>,
    /// Of sizes that came when there were [`MOST_SIZES`] already.
    others: u64,
    /// Whose they are.
    rounding: Rounding,
}

impl Variety {
    /// One more, of so many bytes.
    pub(super) fn note(&mut self, bytes: u64, rounding: Rounding) {
        self.rounding = rounding;
        let size = size_of(rounding.taken_for(bytes));
        if self.counts.len() >= MOST_SIZES && !self.counts.contains_key(&size) {
            self.others = self.others.saturating_add(1);
            return;
        }
        let count = self.counts.entry(size).or_default();
        *count = count.saturating_add(1);
    }

    /// Those of a site that turned out to be the same.
    pub(super) fn add(&mut self, other: &Self) {
        self.rounding = other.rounding;
        self.others = self.others.saturating_add(other.others);
        for (size, count) in &other.counts {
            if self.counts.len() >= MOST_SIZES && !self.counts.contains_key(size) {
                self.others = self.others.saturating_add(*count);
            } else {
                let sum = self.counts.entry(*size).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
    }

    /// How many there were of each size, and how many of any, where they are this allocator's.
    pub(super) fn counts(&self, rounding: Rounding) -> Option<(&BTreeMap<BlockSize, u64>, u64)> {
        (self.rounding == rounding).then_some((&self.counts, self.others))
    }

    /// The part of the site's blocks that have one of these sizes. As many as there are of sizes seen once have sizes that were not seen yet
    /// (Good 1953); but one size is what most sites have. None of another allocator's has.
    pub(super) fn share_of(&self, sizes: &[BlockSize], rounding: Rounding) -> f64 {
        let all = self
            .counts
            .values()
            .sum::<u64>()
            .saturating_add(self.others);
        if all == 0 {
            return 1.0;
        }
        if self.rounding != rounding {
            return 0.0;
        }
        let is_one = |size: &BlockSize| {
            sizes
                .iter()
                .any(|one| *one == *size || *one == size.saturating_add(NEXT_SIZE))
        };
        let among: u64 = self
            .counts
            .iter()
            .filter(|(size, _)| is_one(size))
            .map(|(_, count)| count)
            .sum();
        let once = self.counts.values().filter(|count| **count == 1).count() as u64;
        let unseen = once.saturating_sub(1).saturating_add(self.others);
        among.min(all.saturating_sub(unseen)) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_SIZES, Rounding, Variety};

    fn of(sizes: impl IntoIterator<Item = u64>) -> Variety {
        let mut variety = Variety::default();
        for size in sizes {
            variety.note(size - 8, Rounding::Glibc);
        }
        variety
    }

    #[test]
    fn one_size_is_all_of_a_site_however_few_were_seen() {
        assert!((of([]).share_of(&[48], Rounding::Glibc) - 1.0).abs() < 1e-9);
        assert!((of([48]).share_of(&[48], Rounding::Glibc) - 1.0).abs() < 1e-9);
        assert!((of([48; 30]).share_of(&[48], Rounding::Glibc) - 1.0).abs() < 1e-9);
        // The chunk that was free was a little larger.
        assert!((of([48]).share_of(&[64], Rounding::Glibc) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn sizes_that_hardly_recur_tell_little_of_the_others() {
        let any = of((0..600).map(|number| 4096 + 16 * (number * 7 % 3700)));
        let watched: Vec<u64> = (0..30)
            .map(|number| 4096 + 16 * (number * 7 % 3700))
            .collect();
        assert!(any.share_of(&watched, Rounding::Glibc) < 0.1);
        let few = of((0..10).map(|number| 4096 + 160 * number));
        let watched: Vec<u64> = (0..10).map(|number| 4096 + 160 * number).collect();
        assert!(few.share_of(&watched, Rounding::Glibc) < 0.2);
        assert!(any.counts.len() <= MOST_SIZES);
    }

    #[test]
    fn sizes_none_of_which_is_watched_are_a_part_too() {
        let two = of([[48; 30], [96; 30]].concat());
        assert!((two.share_of(&[48], Rounding::Glibc) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_is_counted_of_one_allocator_was_taken_for_a_bound_of_anothers() {
        assert!(of([48; 30]).share_of(&[48], Rounding::Jemalloc).abs() < 1e-9);
    }
}
