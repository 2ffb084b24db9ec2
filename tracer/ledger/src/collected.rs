//! What a garbage-collected heap holds of each kind, look by look, where it is known for sure only as of a collection: in between it is known how
//! much was born since, and how much of what was born stayed the times before. Pure.

use std::collections::BTreeMap;

use super::Kind;

/// Where at least this part of what was born stayed, one collection tells of those to come; otherwise two must agree.
const MOSTLY: f64 = 0.5;

/// Looks that wait for the first collection.
const MOST_WAITING: usize = 64;

/// Objects of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectedCount {
    /// In use as of the last collection.
    pub live: u64,
    /// Made since.
    pub born: u64,
}

/// A look: objects of each kind.
type Counts = BTreeMap<Kind, CollectedCount>;

/// What looks tell of levels.
#[derive(Clone, Debug, Default)]
pub struct CollectedLevels {
    collections: u64,
    last: Option<(u64, Counts)>,
    /// Looks before the first collection that was seen.
    waiting: Vec<(u64, Counts)>,
    /// The part of what is born that stays: between the last two collections, and as it is reckoned with.
    stayed: BTreeMap<Kind, f64>,
    stays: BTreeMap<Kind, f64>,
}

/// How many there were at a time, CLOCK_MONOTONIC nanoseconds.
pub type KnownLevels = (u64, Vec<(Kind, u64)>);

impl CollectedLevels {
    /// Takes a look in, after so many collections in all. Gives the levels that are known by it: of now, and of earlier looks.
    pub fn note(&mut self, at_ns: u64, collections: u64, counts: Counts) -> Vec<KnownLevels> {
        let Some((before, last)) = self.last.replace((collections, counts.clone())) else {
            self.waiting.push((at_ns, counts));
            return Vec::new();
        };
        let more = collections.saturating_sub(before);
        let mut known = Vec::new();
        if more > 0 {
            let stayed = if more == 1 {
                stayed(&last, &counts)
            } else {
                // Of what was born between them nothing is known; they come so fast that nothing need be reckoned.
                BTreeMap::new()
            };
            let is_first = self.collections == 0;
            let waiting = std::mem::take(&mut self.waiting);
            let mut stayed = stayed;
            if let Some((_, first)) = waiting.first().filter(|_| more == 1) {
                stayed = stayed_since(first, &last, &counts);
                for (at_ns, look) in &waiting {
                    known.push((*at_ns, levels_since(first, look, &counts, &stayed)));
                }
            } else {
                for (at_ns, look) in &waiting {
                    known.push((*at_ns, levels(look, &stayed)));
                }
            }
            let agreed = |kind: &Kind, part: f64| match self.stayed.get(kind) {
                Some(earlier) if !is_first => part.min(*earlier),
                _ if part >= MOSTLY => part,
                _ => 0.0,
            };
            self.stays = stayed
                .iter()
                .map(|(kind, part)| (*kind, agreed(kind, *part)))
                .collect();
            self.stayed = stayed;
            self.collections = self.collections.saturating_add(more);
        } else if self.collections == 0 {
            if self.waiting.len() < MOST_WAITING {
                self.waiting.push((at_ns, counts));
            }
            return known;
        } else if self.stays.values().all(|part| *part <= 0.0) && !is_of_now(&counts) {
            // Nothing is known of what was born since.
            return known;
        }
        known.push((at_ns, levels(&counts, &self.stays)));
        known
    }

    /// Collections that were seen.
    #[must_use]
    pub fn collections(&self) -> u64 {
        self.collections
    }
}

/// Whether next to nothing was born since the collection: what it left is what there is.
fn is_of_now(counts: &Counts) -> bool {
    let sum = |of: fn(&CollectedCount) -> u64| counts.values().map(of).fold(0, u64::saturating_add);
    sum(|count| count.born).saturating_mul(100) <= sum(|count| count.live)
}

/// The part of what was born between two collections that the second left.
fn stayed(before: &Counts, after: &Counts) -> BTreeMap<Kind, f64> {
    before
        .iter()
        .filter(|(_, count)| count.born > 0)
        .map(|(kind, count)| {
            let live = after.get(kind).map_or(0, |after| after.live);
            let more = live as f64 - count.live as f64;
            (*kind, (more / count.born as f64).clamp(0.0, 1.0))
        })
        .collect()
}

/// The same of what was born since a first look. Of what was born before it, and since the collection before, nothing is known: all of it is
/// taken to have stayed, so that what filled up before anybody looked does not seem to grow.
fn stayed_since(first: &Counts, before: &Counts, after: &Counts) -> BTreeMap<Kind, f64> {
    let born = before.iter().filter_map(|(kind, count)| {
        let earlier = first.get(kind).map_or(0, |first| first.born);
        let born = count.born.checked_sub(earlier).filter(|born| *born > 0)?;
        let live = after.get(kind).map_or(0, |after| after.live);
        let more = live as f64 - count.live as f64 - earlier as f64;
        Some((*kind, (more / born as f64).clamp(0.0, 1.0)))
    });
    born.collect()
}

/// How many there were at a look before the first collection that was seen.
fn levels_since(
    first: &Counts,
    look: &Counts,
    after: &Counts,
    stays: &BTreeMap<Kind, f64>,
) -> Vec<(Kind, u64)> {
    look.iter()
        .map(|(kind, count)| {
            let earlier = first.get(kind).map_or(0, |first| first.born);
            let part = stays.get(kind).copied().unwrap_or(0.0);
            let since = part * count.born.saturating_sub(earlier) as f64;
            let level = count.live.saturating_add(earlier);
            let level = level.saturating_add(since.round() as u64);
            // Some of what was born before has died.
            let live = after.get(kind).map_or(0, |after| after.live);
            (*kind, if part > 0.0 { level } else { level.min(live) })
        })
        .collect()
}

fn levels(counts: &Counts, stays: &BTreeMap<Kind, f64>) -> Vec<(Kind, u64)> {
    counts
        .iter()
        .map(|(kind, count)| {
            let part = stays.get(kind).copied().unwrap_or(0.0);
            let stay = (part * count.born as f64).round() as u64;
            (*kind, count.live.saturating_add(stay))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{CollectedCount, CollectedLevels};

    fn of(live: u64, born: u64) -> BTreeMap<u16, CollectedCount> {
        BTreeMap::from([(1, CollectedCount { live, born })])
    }

    #[test]
    fn nothing_is_known_before_a_collection_and_then_of_all_looks() {
        let mut levels = CollectedLevels::default();
        assert_eq!(levels.note(1, 7, of(100, 0)), []);
        assert_eq!(levels.note(2, 7, of(100, 500)), []);
        assert_eq!(levels.note(3, 7, of(100, 1000)), []);
        let known = levels.note(4, 8, of(300, 0));
        let level = |at: u64, objects: u64| (at, vec![(1, objects)]);
        assert_eq!(
            known,
            [level(1, 100), level(2, 200), level(3, 300), level(4, 300)]
        );
        // A fifth stayed once: what is born now is not reckoned with.
        assert_eq!(levels.note(5, 8, of(300, 1000)), []);
        assert_eq!(levels.note(6, 9, of(500, 0)), [level(6, 500)]);
        // Twice: it is.
        assert_eq!(levels.note(7, 9, of(500, 500)), [level(7, 600)]);
    }

    #[test]
    fn where_all_that_is_born_stays_one_collection_tells() {
        let mut levels = CollectedLevels::default();
        levels.note(1, 1, of(0, 20));
        levels.note(2, 1, of(0, 100));
        let known = levels.note(3, 2, of(100, 0));
        assert_eq!(known.first(), Some(&(1, vec![(1, 20)])));
        assert_eq!(levels.note(4, 2, of(100, 50)), [(4, vec![(1, 150)])]);
    }

    #[test]
    fn a_cache_that_was_filled_before_the_first_look_does_not_grow_by_the_first_collection() {
        let mut levels = CollectedLevels::default();
        // 40,000 were put in since the collection before, and as many as are put in from now on are dropped.
        levels.note(1, 1, of(10_000, 40_000));
        levels.note(2, 1, of(10_000, 60_000));
        let known = levels.note(3, 2, of(50_000, 0));
        let full = |at| (at, vec![(1, 50_000)]);
        assert_eq!(known, [full(1), full(2), full(3)]);
        // Nor by what comes behind it.
        assert_eq!(levels.note(4, 2, of(50_000, 9_000)), []);
    }

    #[test]
    fn a_cache_that_is_full_is_not_reckoned_to_grow() {
        let mut levels = CollectedLevels::default();
        levels.note(1, 1, of(0, 100));
        levels.note(2, 2, of(100, 100));
        levels.note(3, 3, of(100, 0));
        assert_eq!(levels.note(4, 3, of(100, 90)), []);
        // Where nothing was born, all is known.
        assert_eq!(levels.note(5, 3, of(100, 1)), [(5, vec![(1, 100)])]);
        assert_eq!(levels.collections(), 2);
    }
}
