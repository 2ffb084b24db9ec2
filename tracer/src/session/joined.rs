//! Stacks that are the same: which site stands for those of others. Knows nothing of blocks.
//!
//! A stack that ends in code of which the probe did not know yet that it was mapped (a library that was loaded a moment ago) is the
//! beginning of another one. Where just one whole stack begins like it, it is taken for that one.

use std::collections::{HashMap, HashSet};

use crate::{ledger::SiteId, symbol::Place};

/// Cut stacks that are looked at for the whole ones that they may be: each is compared with each new stack.
const MOST_CUT: usize = 1000;

/// What tells a stack from others: its incarnation and its frames.
type Key = (u32, Vec<Place>);

/// The sites with a stack that was cut short.
#[derive(Debug, Default)]
struct Cut {
    sites: Vec<SiteId>,
    /// The first two whole stacks that begin like it.
    whole: Vec<SiteId>,
}

impl Cut {
    /// The site that stands for these.
    fn stands_for(&self) -> Option<SiteId> {
        match self.whole.as_slice() {
            [one] => Some(*one),
            _ => self.sites.first().copied(),
        }
    }
}

/// The stacks that were seen.
#[derive(Debug, Default)]
pub(super) struct JoinedStacks {
    /// The first site with each stack, and whether that is whole.
    first: HashMap<Key, (SiteId, bool)>,
    cut: HashMap<Key, Cut>,
}

impl JoinedStacks {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.first.len() + self.cut.len()
    }

    /// Drops those of these incarnations.
    pub(super) fn drop_incarnations(&mut self, dropped: &HashSet<u32>) {
        self.first.retain(|(of, _), _| !dropped.contains(of));
        self.cut.retain(|(of, _), _| !dropped.contains(of));
    }

    /// Takes note of a site's stack. Gives the site that stands for it, and for which others that is another one from now on.
    pub(super) fn note(
        &mut self,
        site: SiteId,
        key: Key,
        is_cut: bool,
    ) -> (SiteId, Vec<(SiteId, SiteId)>) {
        // Of a stack that ends at once nothing is known.
        let is_beginning =
            is_cut && key.1.len() > 1 && matches!(key.1.last(), Some(Place::Code(..)));
        if is_beginning && (self.cut.len() < MOST_CUT || self.cut.contains_key(&key)) {
            return (self.note_cut(site, key), Vec::new());
        }
        if let Some((first, _)) = self.first.get(&key) {
            return (*first, Vec::new());
        }
        let moved = if is_cut {
            Vec::new()
        } else {
            self.note_whole(site, &key)
        };
        self.first.insert(key, (site, !is_cut));
        (site, moved)
    }

    /// A stack was cut short.
    fn note_cut(&mut self, site: SiteId, key: Key) -> SiteId {
        let first = &self.first;
        let cut = self.cut.entry(key).or_insert_with_key(|(of, beginning)| {
            let whole = first
                .iter()
                .filter(|((other, frames), (_, whole))| {
                    *whole && other == of && frames.starts_with(beginning)
                })
                .map(|(_, (site, _))| *site)
                .take(2)
                .collect();
            Cut {
                sites: Vec::new(),
                whole,
            }
        });
        cut.sites.push(site);
        cut.stands_for().unwrap_or(site)
    }

    /// There is one more whole stack: those that were cut short may be the same, or can no more be told.
    fn note_whole(&mut self, site: SiteId, (of, frames): &Key) -> Vec<(SiteId, SiteId)> {
        let mut moved = Vec::new();
        for ((other, beginning), cut) in &mut self.cut {
            if other != of || cut.whole.len() > 1 || !frames.starts_with(beginning) {
                continue;
            }
            cut.whole.push(site);
            if let Some(now) = cut.stands_for() {
                moved.extend(cut.sites.iter().map(|site| (*site, now)));
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::JoinedStacks;
    use crate::symbol::Place;
    use std::collections::HashSet;

    fn key(of: u32, offsets: &[u64]) -> (u32, Vec<Place>) {
        let places = offsets.iter().map(|offset| Place::Code(1, *offset));
        (of, places.collect())
    }

    #[test]
    fn a_library_that_was_loaded_a_moment_ago_made_a_second_site_of_a_cut_stack() {
        let mut stacks = JoinedStacks::default();
        assert_eq!(stacks.note(1, key(7, &[1, 2]), true), (1, vec![]));
        assert_eq!(stacks.note(2, key(7, &[1, 2]), true), (1, vec![]));
        // Another process's is nothing to it.
        assert_eq!(stacks.note(3, key(8, &[1, 2, 3]), false), (3, vec![]));
        let (whole, moved) = stacks.note(4, key(7, &[1, 2, 3]), false);
        assert_eq!((whole, moved), (4, vec![(1, 4), (2, 4)]));
        assert_eq!(stacks.note(5, key(7, &[1, 2]), true), (4, vec![]));
        assert_eq!(stacks.note(6, key(8, &[1, 2]), true), (3, vec![]));
        assert_eq!(stacks.note(7, key(7, &[1, 2, 3]), false), (4, vec![]));
        stacks.drop_incarnations(&HashSet::from([7]));
        assert_eq!(stacks.len(), 2);
    }

    #[test]
    fn a_cut_stack_that_may_be_one_of_two_stands_for_itself() {
        let mut stacks = JoinedStacks::default();
        stacks.note(1, key(7, &[1, 2, 3]), false);
        assert_eq!(stacks.note(2, key(7, &[1, 2]), true), (1, vec![]));
        assert_eq!(stacks.note(3, key(7, &[1, 2, 4]), false), (3, vec![(2, 2)]));
        assert_eq!(stacks.note(4, key(7, &[1, 2, 5]), false), (4, vec![]));
        assert_eq!(stacks.note(5, key(7, &[1, 2]), true), (2, vec![]));
    }

    #[test]
    fn a_stack_that_ends_at_once_or_out_of_any_file_begins_like_none() {
        let mut stacks = JoinedStacks::default();
        stacks.note(1, key(7, &[1, 2]), false);
        assert_eq!(stacks.note(2, key(7, &[1]), true), (2, vec![]));
        let (of, mut places) = key(7, &[1]);
        places.push(Place::Address(99));
        assert_eq!(stacks.note(3, (of, places), true), (3, vec![]));
        assert_eq!(stacks.len(), 3);
    }
}
