//! Growth of a heap that is no size's: of blocks that are lengthened again and again. How much it is was counted; whose it is, windows say by how long the
//! blocks are that sites leave behind. Pure.

use std::collections::BTreeMap;

use super::{Counted, MOST_OF_IT, RISES};
use crate::{Estimate, Lengthening, SiteId};

/// What others explain leaves this share of the heap's growth at least.
const LEFT: f64 = 0.5;

/// One block alone becomes longer as fast as the heap grows. It may be off by this factor, for it is known by few windows.
const OFF: f64 = 1.4;

/// A site whose blocks become longer, and what of the heap's growth is its.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lengthened {
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Its share of what no other site explains.
    pub share: f64,
    /// So many blocks of it there are, as follows from how fast they and the heap grow.
    pub blocks: f64,
    /// How long they are now, bytes.
    pub bytes: f64,
    /// How long they were in the first window that left any, and in how many it did.
    pub first_bytes: f64,
    /// See `first_bytes`.
    pub windows: usize,
    /// Bytes that the heap holds at most.
    most: f64,
    /// Seconds that the heap was counted for.
    over_s: f64,
}

impl Lengthened {
    /// Whether the growth is its, for the most part.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.share >= MOST_OF_IT
    }

    /// What it holds is as much as there are blocks: at least what they grew by, at most the heap.
    fn correct(&self, estimate: &mut Estimate) {
        let bytes = (self.blocks * self.bytes).min(self.most);
        let least = (self.bytes_per_s * self.over_s).min(bytes);
        estimate.inuse_objects = (self.blocks.round() as u64).max(1);
        estimate.inuse_bytes = bytes as u64;
        estimate.inuse_bytes_low = (least as u64).min(estimate.inuse_bytes);
        estimate.inuse_bytes_high = (self.most as u64).max(estimate.inuse_bytes);
        estimate.counted_bytes = estimate.counted_bytes.min(estimate.inuse_bytes);
        estimate.growth_bytes_per_s = self.bytes_per_s;
        estimate.alloc_bytes = estimate.alloc_bytes.max(estimate.inuse_bytes);
        estimate.alloc_objects = estimate.alloc_objects.max(estimate.inuse_objects);
    }
}

impl Counted {
    /// Divides what no site explains of the heap's growth among those whose blocks become longer, which are looked for where it grows. `at_s`: now,
    /// in seconds since the first window.
    pub fn divide_among(
        &mut self,
        find: impl FnOnce() -> BTreeMap<SiteId, Lengthening>,
        at_s: f64,
    ) {
        if !self.heap.is_steady {
            return;
        }
        let found = find();
        let explained: f64 = self
            .sites
            .iter()
            .filter(|(id, site)| site.carries() || !found.contains_key(id) && site.is_known())
            .map(|(_, site)| site.bytes_per_s.max(0.0))
            .sum();
        let rest = self.heap.bytes_per_s - explained;
        if rest < LEFT * self.heap.bytes_per_s {
            return;
        }
        let grown: Vec<(SiteId, &Lengthening)> = found
            .iter()
            .filter(|(id, _)| !self.sites.get(id).is_some_and(super::CountedSite::carries))
            .filter(|(_, grown)| explains(grown, rest, self.heap.most, at_s))
            .map(|(id, grown)| (*id, grown))
            .collect();
        let weight = |grown: &Lengthening| grown.per_s * grown.left;
        let all: f64 = grown.iter().map(|(_, grown)| weight(grown)).sum();
        for (id, grown) in grown {
            let share = weight(grown) / all.max(f64::MIN_POSITIVE);
            let bytes_per_s = share * rest;
            let first = grown.points.first().map_or(0.0, |(_, bytes)| *bytes);
            let lengthened = Lengthened {
                bytes_per_s,
                share,
                blocks: (bytes_per_s / grown.per_s).max(1.0),
                bytes: grown.bytes_at(at_s),
                first_bytes: first,
                windows: grown.points.len(),
                most: self.heap.most,
                over_s: self.over_s,
            };
            self.sites.entry(id).or_default().lengthens = Some(lengthened);
        }
    }

    /// Corrects the estimates of sites whose blocks become longer.
    pub fn correct_lengthened(&self, estimates: &mut BTreeMap<SiteId, Estimate>) {
        for (id, site) in &self.sites {
            if let (Some(lengthens), Some(estimate)) = (site.lengthens, estimates.get_mut(id)) {
                lengthens.correct(estimate);
            }
        }
    }
}

/// Whether blocks that become longer may be what a heap grows by, bytes a second: they rise beyond chance, or are one block which grows from each window to the
/// next as the heap does; and as many as would have to be there have room in it.
fn explains(grown: &Lengthening, rest: f64, most: f64, at_s: f64) -> bool {
    let is_as_fast = |per_s: f64| per_s * OFF >= rest && per_s <= OFF * rest;
    let is_one = || {
        grown.points.windows(2).all(|pair| match pair {
            [(from, one), (to, other)] => is_as_fast((other - one) / (to - from).max(1e-9)),
            _ => false,
        })
    };
    let blocks = rest / grown.per_s;
    blocks * OFF >= 1.0
        && blocks * grown.bytes_at(at_s) <= OFF * most
        && (grown.rise > RISES || is_one())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Counted, CountedSite, HeapGrowth};
    use crate::{
        Lengthening, ProcessBesides, SiteId, ToldApart, Verdict, WindowOfSite, judge_windows,
    };

    const RATE: f64 = 80_000.0;

    fn heap(bytes_per_s: f64) -> Counted {
        Counted {
            heap: HeapGrowth {
                most: 90.0 * bytes_per_s,
                bytes: 60.0 * bytes_per_s,
                bytes_per_s,
                is_steady: bytes_per_s > 0.0,
            },
            over_s: 60.0,
            ..Counted::default()
        }
    }

    fn longer(at_s: &[f64], bytes: impl Fn(f64) -> f64) -> Option<Lengthening> {
        let points: Vec<(f64, f64)> = at_s.iter().map(|at| (*at, bytes(*at))).collect();
        let left = points.len() as f64;
        Lengthening::of(points, left)
    }

    /// What is made of a site of which each window saw one block that was gone by the next.
    fn judged(mut counted: Counted, found: Option<Lengthening>) -> (Verdict, f64) {
        let sites: BTreeMap<SiteId, Lengthening> = found.into_iter().map(|it| (1, it)).collect();
        counted.divide_among(|| sites, 62.0);
        let window = WindowOfSite {
            effective_s: 0.03,
            born: 1.0,
            survived: 1.0,
            ..WindowOfSite::default()
        };
        let windows: Vec<WindowOfSite> = (0..16)
            .map(|number| WindowOfSite {
                closed_s: f64::from(number) * 4.0,
                ..window
            })
            .collect();
        let besides = ProcessBesides::default();
        let site = counted.sites.get(&1);
        let found = judge_windows(&windows, 62.0, ToldApart::ALL, &besides, site);
        (found.verdict, found.growth_bytes_per_s)
    }

    #[test]
    fn a_buffer_that_only_grows_by_realloc_was_never_named() {
        let few = [9.0, 31.0, 40.0];
        let (verdict, rate) = judged(heap(RATE), longer(&few, |at| RATE * at));
        assert_eq!(verdict, Verdict::Leaking);
        assert!((rate - RATE).abs() < 1.0, "{rate}");
        // A thousand texts, each a thousandth as fast.
        let many = [4.0, 9.0, 17.0, 22.0, 31.0, 40.0, 55.0];
        let (verdict, rate) = judged(heap(RATE), longer(&many, |at| 40.0 + RATE * at / 1e3));
        assert_eq!(verdict, Verdict::Leaking);
        assert!((rate - RATE).abs() < 1.0, "{rate}");
    }

    #[test]
    fn blocks_that_become_longer_are_no_leak_where_the_heap_does_not_grow() {
        let many = [4.0, 9.0, 17.0, 22.0, 31.0, 40.0, 55.0];
        let rising = || longer(&many, |at| RATE * at);
        assert_ne!(judged(heap(0.0), rising()).0, Verdict::Leaking);
        // Another site explains it.
        let mut explained = heap(RATE);
        let carries = CountedSite {
            bytes_per_s: 0.9 * RATE,
            ..CountedSite::default()
        };
        explained.sites.insert(2, carries);
        assert_ne!(judged(explained, rising()).0, Verdict::Leaking);
        // It reached its length, or there is no room for as many.
        assert_eq!(longer(&many, |at| RATE * at.min(20.0)), None);
        let again = longer(&many, |at| RATE * (at % 20.0));
        assert_ne!(judged(heap(RATE), again).0, Verdict::Leaking);
        let long = longer(&many, |at| 60.0 * RATE + at);
        assert_ne!(judged(heap(RATE), long).0, Verdict::Leaking);
    }
}
