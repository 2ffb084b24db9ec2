//! The lives of blocks that a garbage-collected heap's own profile samples: how many were born is known at once, and how many died with each
//! collection, but not which. Pure.
//!
//! Those that a collection finds free are taken to be of those born since the last; only where more died than were born are older ones among
//! them. So a block counts as staying where the level never falls below it again: what comes and goes never grows old. Which of those born since
//! died nobody knows: as many of each look's are taken to stay as were reckoned with before, the oldest first, so that what chance makes a
//! collection find more or less is laid to the youngest, and does not look like deaths of blocks that had come to stay.

use std::{collections::VecDeque, ops::Range};

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

    /// In use as of the collection.
    fn alive(&self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }
}

/// What is born is reckoned to stay as so many of the last ones did, or as all did that the last collection looked at, if those are more.
const RECKONED_BY: f64 = 64.0;

/// Blocks that were born at about the same time.
#[derive(Clone, Copy, Debug)]
struct Group {
    born_ns: u64,
    /// How many of them there are, as far as is known.
    count: f64,
    /// A collection has looked at them.
    is_settled: bool,
    /// They were there when it began.
    is_before: bool,
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
    /// Of so many births that collections looked at since it began, so many more came to stay than died.
    looked_at: f64,
    stayed: f64,
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
                is_before: true,
            }]),
            looked_ns: now_ns,
            looked_at: 0.0,
            stayed: 0.0,
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
            self.groups.push_back(Group {
                born_ns: self.looked_ns.midpoint(now_ns),
                count: born as f64,
                is_settled: false,
                is_before: false,
            });
        }
        let died = seen.frees.saturating_sub(self.seen.frees);
        let settled = seen.allocs.saturating_sub(self.seen.allocs);
        self.settle(seen.pending as f64, died as f64);
        if settled > 0 || died > 0 {
            let keeps = (RECKONED_BY / self.looked_at.max(RECKONED_BY)).min(1.0);
            self.looked_at = self.looked_at * keeps + settled as f64;
            self.stayed = self.stayed * keeps + settled as f64 - died as f64;
        }
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
        self.share_out(first..until, fresh, (fresh - died).max(0.0));
        let mut died = (died - fresh).max(0.0);
        // Older ones, the youngest first.
        for group in self.groups.range_mut(..first).rev() {
            let of = died.min(group.count);
            group.count -= of;
            died -= of;
        }
        self.old = (self.old - died).max(0.0);
    }

    /// So many blocks of these groups, of all there are in them, stay.
    fn share_out(&mut self, fresh: Range<usize>, all: f64, stay: f64) {
        let stays = self.stays();
        let reckoned = all * stays;
        // What is more than was reckoned with, of those that were to die.
        let more = if stay > reckoned {
            (stay - reckoned) / (all - reckoned)
        } else {
            0.0
        };
        let mut rest = stay;
        for group in self.groups.range_mut(fresh) {
            let of = group.count * (stays + more * (1.0 - stays));
            group.count = of.min(rest);
            rest -= group.count;
            group.is_settled = true;
        }
    }

    /// The share of the blocks of which nothing is known that is reckoned to stay: as of the last ones that collections looked at; before
    /// the first, of all that were ever sampled.
    fn stays(&self) -> f64 {
        if self.looked_at > 0.0 {
            (self.stayed / (self.looked_at + 1.0)).clamp(0.0, 1.0)
        } else {
            self.seen.alive() as f64 / (self.seen.allocs as f64 + 1.0)
        }
    }

    /// Two old groups that are next to each other become one.
    fn join(&mut self) {
        let Some(one) = self.groups.pop_front() else {
            return;
        };
        if let Some(two) = self.groups.front_mut() {
            two.count += one.count;
            two.is_settled |= one.is_settled;
            two.is_before &= one.is_before;
        }
    }

    /// How many blocks there are, as far as can be told: those that stayed, and of those of which nothing is known as many as of others.
    #[must_use]
    pub fn level(&self) -> f64 {
        self.seen.alive() as f64 + self.seen.pending as f64 * self.stays()
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
        let stays = self.stays();
        // What rounding leaves over is the next one's.
        let mut rest = 0.0;
        for group in self.groups.iter().filter(|group| !group.is_before) {
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

#[cfg(test)]
mod tests {
    use super::{ProfiledBlocks, Sampled};

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
    }

    #[test]
    fn what_a_collection_found_less_than_was_reckoned_with_looked_like_deaths_of_old_blocks() {
        let mut blocks = ProfiledBlocks::appeared(0);
        // Half of what is born stays, but by chance less of what the last collection looked at.
        for second in 1..=10 {
            blocks.observe(second, sampled(0, 0, 4 * second));
        }
        blocks.observe(11, sampled(40, 20, 0));
        for second in 12..=21 {
            blocks.observe(second, sampled(40, 20, 4 * (second - 11)));
        }
        let before = alive(&blocks);
        blocks.observe(22, sampled(80, 45, 0));
        let after = alive(&blocks);
        let of = |alive: &[(u64, u32)]| {
            let old = alive.iter().filter(|(born, _)| *born < 18);
            old.map(|(_, count)| count).sum::<u32>()
        };
        assert_eq!(of(&before), of(&after));
        assert!(after.len() < before.len());
    }

    #[test]
    fn what_was_pending_at_the_first_look_was_taken_to_be_born_then() {
        let mut blocks = ProfiledBlocks::new(0, sampled(2, 0, 30));
        assert_eq!(alive(&blocks), []);
        blocks.observe(1, sampled(32, 0, 2));
        let born: u32 = alive(&blocks).iter().map(|(_, count)| count).sum();
        assert!(born <= 2, "{born}");
        assert!((blocks.level() - 34.0).abs() < 0.5);
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
}
