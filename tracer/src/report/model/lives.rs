//! How blocks spread over sizes and lives, and what is seen of how long they live.

use serde::{Deserialize, Serialize};

/// Blocks by size and by life, in powers of two. Each list has the smallest first, and no empty entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lives {
    /// Surviving blocks by the bytes that were asked for. Where calls were seen in windows: those that are watched.
    pub sizes: Vec<OfSize>,
    /// The same blocks by age.
    pub ages: Vec<OfLife>,
    /// Blocks of which it was seen what became of them, from their birth on: all, or those born in windows.
    pub followed_objects: u64,
    /// Those among them that were freed, by how long they lived at most; not all, where that is not known of all.
    pub freed: Vec<OfLife>,
    /// Those among them that surely were freed before the next look, or in the window that they were born in.
    pub temporary_objects: u64,
    /// The longest time between two such looks, or the longest such window, seconds.
    pub temporary_below_s: f64,
}

/// Blocks of sizes from half of a power of two on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfSize {
    /// The power of two, bytes.
    pub below_bytes: u64,
    /// Blocks.
    pub objects: u64,
}

/// Blocks that live, or lived, less than a power of two of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfLife {
    /// The power of two, seconds.
    pub below_s: f64,
    /// Blocks.
    pub objects: u64,
}

impl Lives {
    /// Adds those of another site.
    pub fn add(&mut self, other: &Self) {
        for of in &other.sizes {
            match self
                .sizes
                .binary_search_by_key(&of.below_bytes, |one| one.below_bytes)
            {
                Ok(place) => {
                    if let Some(one) = self.sizes.get_mut(place) {
                        one.objects = one.objects.saturating_add(of.objects);
                    }
                }
                Err(place) => self.sizes.insert(place, *of),
            }
        }
        add_lives(&mut self.ages, &other.ages);
        add_lives(&mut self.freed, &other.freed);
        self.followed_objects = self.followed_objects.saturating_add(other.followed_objects);
        self.temporary_objects = self
            .temporary_objects
            .saturating_add(other.temporary_objects);
        self.temporary_below_s = self.temporary_below_s.max(other.temporary_below_s);
    }

    /// The blocks of each list.
    pub(in crate::report) fn sums(&self) -> [u64; 3] {
        let of_lives = |all: &[OfLife]| {
            all.iter()
                .fold(0, |sum: u64, of| sum.saturating_add(of.objects))
        };
        let of_sizes = self
            .sizes
            .iter()
            .fold(0, |sum: u64, of| sum.saturating_add(of.objects));
        [of_sizes, of_lives(&self.ages), of_lives(&self.freed)]
    }
}

fn add_lives(all: &mut Vec<OfLife>, others: &[OfLife]) {
    for of in others {
        match all.binary_search_by(|one| one.below_s.total_cmp(&of.below_s)) {
            Ok(place) => {
                if let Some(one) = all.get_mut(place) {
                    one.objects = one.objects.saturating_add(of.objects);
                }
            }
            Err(place) => all.insert(place, *of),
        }
    }
}
