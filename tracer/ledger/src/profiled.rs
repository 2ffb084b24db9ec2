//! The lives of blocks that a garbage-collected heap's own profile samples: how many were born is known at once, and how many died with each
//! collection, but not which. Pure.
//!
//! Those that a collection finds free are taken to be of those born since the last, all alike; only where more died than were born are older
//! ones among them. So a block counts as staying where the level never falls below it again: what comes and goes never grows old.

use std::collections::VecDeque;

use leakscope_common::SiteTotals;

/// At most so many groups of blocks are told apart by their birth; more are joined in pairs, the oldest first.
const MOST_GROUPS: usize = 192;

/// A profile's counts of one stack and size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Blocks sampled, as of the last collection that was published.
    pub allocs: u64,
    /// Those of them that were found free.
    pub frees: u64,
    /// Blocks sampled since, of which nothing is known yet.
    pub pending: u64,
}

impl Sampled {
    fn born(&self) -> u64 {
        self.allocs.saturating_add(self.pending)
    }

    /// The share of the blocks that stayed so far, by which those are reckoned of which nothing is known; none before a collection.
    fn stays(&self) -> f64 {
        let alive = self.allocs.saturating_sub(self.frees);
        alive as f64 / (self.allocs as f64 + 1.0)
    }
}

/// Blocks that were born at about the same time.
#[derive(Clone, Copy, Debug)]
struct Group {
    born_ns: u64,
    /// How many of them there are, as far as is known.
    count: f64,
    /// A collection has looked at them.
    is_settled: bool,
}

/// The blocks of one stack and size.
#[derive(Clone, Debug)]
pub struct ProfiledBlocks {
    seen: Sampled,
    /// Those that were there when it began, as far as they are.
    old: f64,
    /// The oldest first.
    groups: VecDeque<Group>,
    /// When it was looked at last, CLOCK_MONOTONIC nanoseconds.
    looked_ns: u64,
    /// Born and died since it began.
    births: u64,
    deaths: u64,
}

impl ProfiledBlocks {
    /// Blocks that were first looked at now; those that are there are of before.
    #[must_use]
    pub fn new(now_ns: u64, seen: Sampled) -> Self {
        Self {
            seen,
            old: seen.allocs.saturating_sub(seen.frees) as f64,
            groups: VecDeque::from([Group {
                born_ns: now_ns,
                count: seen.pending as f64,
                is_settled: false,
            }]),
            looked_ns: now_ns,
            births: 0,
            deaths: 0,
        }
    }

    /// Blocks of which there was none at the last look, at that time.
    #[must_use]
    pub fn appeared(since_ns: u64) -> Self {
        Self::new(since_ns, Sampled::default())
    }

    /// Notes what the profile says now.
    pub fn observe(&mut self, now_ns: u64, seen: Sampled) {
        let born = seen.born().saturating_sub(self.seen.born());
        if born > 0 {
            self.births = self.births.saturating_add(born);
            self.groups.push_back(Group {
                born_ns: self.looked_ns.midpoint(now_ns),
                count: born as f64,
                is_settled: false,
            });
        }
        let died = seen.frees.saturating_sub(self.seen.frees);
        self.deaths = self.deaths.saturating_add(died);
        self.settle(seen.pending as f64, died as f64);
        self.seen = seen;
        self.looked_ns = now_ns;
        while self.groups.len() > MOST_GROUPS {
            self.join();
        }
    }

    /// A collection was published: so many died, and all but the last `pending` were looked at.
    fn settle(&mut self, pending: f64, died: f64) {
        let (mut unknown, mut fresh) = (pending, 0.0);
        let mut first = self.groups.len();
        let mut until = first;
        let mut split = None;
        for (place, group) in self.groups.iter_mut().enumerate().rev() {
            if group.is_settled {
                break;
            }
            let of = unknown.min(group.count);
            unknown -= of;
            if of > 0.0 && of >= group.count {
                until = place;
            } else if of > 0.0 {
                // Born before the collection and after it.
                split = Some((
                    place + 1,
                    Group {
                        count: of,
                        ..*group
                    },
                ));
                group.count -= of;
            }
            if until != place {
                fresh += group.count;
            }
            first = place;
        }
        if let Some((place, group)) = split {
            self.groups.insert(place, group);
        }
        let mut died = died;
        let left = if fresh > 0.0 {
            1.0 - (died / fresh).min(1.0)
        } else {
            1.0
        };
        for group in self.groups.range_mut(first..until) {
            group.count *= left;
            group.is_settled = true;
        }
        died -= died.min(fresh);
        // Older ones, the youngest first.
        for group in self.groups.range_mut(..first).rev() {
            let of = died.min(group.count);
            group.count -= of;
            died -= of;
        }
        self.old = (self.old - died).max(0.0);
    }

    /// Two old groups that are next to each other become one.
    fn join(&mut self) {
        let Some(one) = self.groups.pop_front() else {
            return;
        };
        if let Some(two) = self.groups.front_mut() {
            two.count += one.count;
            two.is_settled |= one.is_settled;
        }
    }

    /// How many blocks there are, as far as can be told: those that stayed, and of those of which nothing is known as many as of others.
    #[must_use]
    pub fn level(&self) -> f64 {
        let alive = self.seen.allocs.saturating_sub(self.seen.frees) as f64;
        alive + self.seen.pending as f64 * self.seen.stays()
    }

    /// Born since it began, as far as that came to anything: of those of which nothing is known as many as of others. And of these and
    /// older ones died.
    #[must_use]
    pub fn births_and_deaths(&self) -> (u64, u64) {
        let unknown = self.seen.pending.min(self.births);
        let lost = unknown as f64 * (1.0 - self.seen.stays());
        (self.births.saturating_sub(lost.ceil() as u64), self.deaths)
    }

    /// As totals of blocks of so many bytes.
    #[must_use]
    pub fn totals(&self, bytes: f64) -> SiteTotals {
        let born = self.seen.born();
        let gone = (born as f64 - self.level()).max(0.0).round() as u64;
        SiteTotals {
            alloc_objects: born,
            alloc_bytes: (born as f64 * bytes) as u64,
            free_objects: gone,
            free_bytes: (gone as f64 * bytes) as u64,
        }
    }

    /// Calls back with when blocks were born that are there, and how many, but for those that were there when it began.
    pub fn visit(&self, mut visit: impl FnMut(u64, u32)) {
        let stays = self.seen.stays();
        // What rounding leaves over is the next one's.
        let mut rest = 0.0;
        for group in &self.groups {
            let count = if group.is_settled {
                group.count
            } else {
                group.count * stays
            };
            let whole = (count + rest).round().max(0.0);
            rest += count - whole;
            if whole > 0.0 {
                visit(group.born_ns, whole as u32);
            }
        }
    }
}

/// Whether more were born than died, beyond chance: of what comes and goes evenly, as many do, but for their scatter.
#[must_use]
pub fn rises(births: u64, deaths: u64) -> bool {
    let (births, deaths) = (births as f64, deaths as f64);
    births - deaths > SURE * (births + deaths).sqrt()
}

/// So many standard deviations are no chance.
const SURE: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::{ProfiledBlocks, Sampled, rises};

    fn alive(blocks: &ProfiledBlocks) -> Vec<(u64, u32)> {
        let mut alive = Vec::new();
        blocks.visit(|born, count| alive.push((born, count)));
        alive
    }

    fn sampled(allocs: u64, frees: u64, pending: u64) -> Sampled {
        Sampled {
            allocs,
            frees,
            pending,
        }
    }

    #[test]
    fn blocks_that_no_collection_frees_stay_and_count_before_the_next() {
        let mut blocks = ProfiledBlocks::new(0, sampled(99, 0, 0));
        for second in 1..=10 {
            blocks.observe(10 * second, sampled(99, 0, second));
        }
        let born: u32 = alive(&blocks).iter().map(|(_, count)| count).sum();
        assert_eq!(born, 10);
        blocks.observe(110, sampled(109, 0, 0));
        assert_eq!(alive(&blocks).len(), 10);
        assert!((blocks.level() - 109.0).abs() < 1e-9);
        assert_eq!(blocks.births_and_deaths(), (10, 0));
    }

    #[test]
    fn garbage_does_not_count_as_alive_before_it_is_collected() {
        let mut blocks = ProfiledBlocks::new(0, sampled(1000, 1000, 0));
        for second in 1..=50 {
            blocks.observe(second, sampled(1000, 1000, 10 * second));
            assert_eq!(alive(&blocks), []);
        }
        blocks.observe(60, sampled(1500, 1500, 0));
        assert_eq!(alive(&blocks), []);
    }

    #[test]
    fn of_more_dead_than_born_the_youngest_old_ones_are_taken() {
        let mut blocks = ProfiledBlocks::new(0, sampled(10, 0, 0));
        blocks.observe(10, sampled(15, 0, 0));
        blocks.observe(20, sampled(19, 0, 0));
        blocks.observe(30, sampled(20, 6, 0));
        assert_eq!(alive(&blocks), [(5, 4)]);
        blocks.observe(40, sampled(20, 20, 0));
        assert_eq!(alive(&blocks), []);
        assert!(blocks.level().abs() < 1e-9);
    }

    #[test]
    fn a_cache_that_is_replaced_did_not_lose_its_dead_between_two_looks() {
        // 4 blocks a second, of which the last 4 are there; collections between looks, ever more rarely.
        let mut blocks = ProfiledBlocks::new(0, sampled(8, 4, 0));
        let (mut published, mut pending) = (8, 0);
        for second in 1..=60 {
            let collects = [2, 5, 9, 17, 34, 58].contains(&second);
            if collects {
                published += pending + 2;
                pending = 2;
            } else {
                pending += 4;
            }
            blocks.observe(second, sampled(published, published - 4, pending));
            let count: u32 = alive(&blocks).iter().map(|(_, count)| count).sum();
            assert!(
                f64::from(count) <= blocks.level() + 1.0,
                "{second}: {count}"
            );
        }
        let (births, deaths) = blocks.births_and_deaths();
        assert!(!rises(births, deaths), "{births} {deaths}");
    }

    #[test]
    fn groups_are_bounded_and_none_is_lost() {
        let mut blocks = ProfiledBlocks::appeared(0);
        for second in 1..=1000 {
            blocks.observe(second, sampled(second, 0, 0));
        }
        let count: u32 = alive(&blocks).iter().map(|(_, count)| count).sum();
        assert_eq!(count, 1000);
        assert!(alive(&blocks).len() <= super::MOST_GROUPS);
    }

    #[test]
    fn chance_does_not_rise() {
        assert!(rises(10, 0));
        assert!(!rises(8, 0));
        assert!(!rises(1000, 900));
        assert!(!rises(5, 50));
    }
}
