//! A row of bits with counts, so that the number of bits before a place is known at once. Knows nothing of blocks.

/// Words between two counts.
const STEP: usize = 8;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits {
    words: Vec<u64>,
    /// How many bits are set before each [`STEP`] words; filled in by [`Bits::count`].
    before: Vec<u32>,
}

impl Bits {
    /// So many bits, none of them set.
    pub(super) fn new(length: usize) -> Self {
        Self {
            words: vec![0; length.div_ceil(64)],
            before: Vec::new(),
        }
    }

    /// Sets a bit; nothing happens where there is none.
    pub(super) fn set(&mut self, place: usize) {
        if let Some(word) = self.words.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }

    /// Clears a bit.
    pub(super) fn clear(&mut self, place: usize) {
        if let Some(word) = self.words.get_mut(place / 64) {
            *word &= !(1 << (place % 64));
        }
    }

    /// Whether a bit is set.
    pub(super) fn has(&self, place: usize) -> bool {
        self.words
            .get(place / 64)
            .is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// Counts, once all bits stand; gives how many are set.
    pub(super) fn count(&mut self) -> u32 {
        self.before.clear();
        let mut sum = 0_u32;
        for words in self.words.chunks(STEP) {
            self.before.push(sum);
            for word in words {
                sum = sum.saturating_add(word.count_ones());
            }
        }
        sum
    }

    /// How many bits are set before a place, as of the last count.
    pub(super) fn rank(&self, place: usize) -> u32 {
        let word = place / 64;
        let step = word / STEP;
        let mut sum = self.before.get(step).copied().unwrap_or(0);
        for part in self.words.get(step * STEP..word).unwrap_or_default() {
            sum += part.count_ones();
        }
        let below = (1_u64 << (place % 64)) - 1;
        sum + self
            .words
            .get(word)
            .map_or(0, |part| (part & below).count_ones())
    }

    /// Where the bit is before which `rank` bits are set.
    pub(super) fn select(&self, rank: u32) -> Option<usize> {
        let step = self
            .before
            .partition_point(|before| *before <= rank)
            .checked_sub(1)?;
        let mut left = rank - self.before.get(step)?;
        for (place, word) in self.words.iter().enumerate().skip(step * STEP).take(STEP) {
            let ones = word.count_ones();
            if left < ones {
                let mut word = *word;
                for _ in 0..left {
                    word &= word - 1;
                }
                return Some(place * 64 + word.trailing_zeros() as usize);
            }
            left -= ones;
        }
        None
    }

    /// The last place that is set at or before one, looking at most at `most` words.
    pub(super) fn last_at_or_before(&self, place: usize, most: usize) -> Option<usize> {
        let first = place / 64;
        for (distance, at) in (0..=first).rev().enumerate() {
            if distance > most {
                return None;
            }
            let mut word = *self.words.get(at)?;
            if at == first && place % 64 < 63 {
                word &= (1 << (place % 64 + 1)) - 1;
            }
            if word != 0 {
                return Some(at * 64 + 63 - word.leading_zeros() as usize);
            }
        }
        None
    }

    /// The places that are set, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros() as usize;
                    left &= left - 1;
                    at * 64 + bit
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_and_places_agree_with_a_list(places in proptest::collection::btree_set(0_usize..3000, 0..400)) {
            let mut bits = Bits::new(3000);
            for place in &places {
                bits.set(*place);
            }
            prop_assert_eq!(bits.count() as usize, places.len());
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), places.iter().copied().collect::<Vec<_>>());
            for (rank, place) in places.iter().enumerate() {
                prop_assert_eq!(bits.rank(*place) as usize, rank);
                prop_assert_eq!(bits.select(rank as u32), Some(*place));
            }
            prop_assert_eq!(bits.select(places.len() as u32), None);
            for place in [0, 1, 63, 64, 777, 2999] {
                prop_assert_eq!(bits.last_at_or_before(place, usize::MAX), places.range(..=place).next_back().copied());
            }
        }
    }
}
