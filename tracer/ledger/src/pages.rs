//! Fresh anonymous pages of a process by where they were first touched: a sample, from which is estimated what of each site is still
//! there. Pure.
//!
//! Which pages are told of is chosen by a hash of their addresses ([`page_is_sampled`]). Whatever happens to a page of the sample is
//! told of, so that one that was given back and touched anew counts where it was touched last; one that was only given back is found gone
//! by a look from outside. A page that was chosen among `2^shift` stands for as many.

use std::collections::BTreeMap;

use leakscope_common::{PAGE_BYTES, page_is_sampled};

use super::SiteId;

/// The 97.5th percentile of the normal distribution: 95 % of it lie within so many standard deviations.
const NORMAL_95: f64 = 1.959_964;

/// Pages of a huge page (`HPAGE_PMD_NR`, include/linux/huge_mm.h): 2 MiB.
pub const HUGE_PAGES: u32 = 512;

/// A fault is told of before the kernel deals with it, which takes up to some 10 ms for a huge page and longer where memory is scarce: for
/// so long, a page that is not there may be still to come.
const ARRIVES_WITHIN_NS: u64 = 200_000_000;

/// A write to fresh memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Where; any address of the page.
    pub address: u64,
    /// From where in the program.
    pub site: SiteId,
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
    /// One of `2^shift` pages was told of.
    pub shift: u32,
    /// The page was there already, as a file's: a copy was made of it.
    pub copied: bool,
}

/// A page of the sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    site: SiteId,
    born_ns: u64,
    /// It stands for `2^shift` pages.
    shift: u32,
    /// Pages that the fault brought and that are still there: more than one with huge pages. `None`: nobody has looked yet.
    pages: Option<u32>,
}

/// What a site ever touched.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    /// Pages, each counted as often as it stands for.
    pages: u64,
    /// The last touch's.
    shift: u32,
}

/// What a look found where a page of the sample should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was given back.
    Gone,
    /// It is there, with so many pages of the same huge page; 1 where it is none.
    There(u32),
}

/// What a look may find where a page of the sample should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A page.
    Page,
    /// A page, or a huge page: nobody has looked yet, and no other page of its range is in the sample.
    Either,
    /// What is left of a huge page.
    Huge,
}

/// The sample of a process.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// By the page's first address.
    sample: BTreeMap<u64, Page>,
    made: BTreeMap<SiteId, Made>,
    /// Pages that are not chosen at this shift are not in the sample.
    shift: u32,
}

/// What is estimated of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageSurvey {
    /// Pages that are still there.
    pub inuse_pages: u64,
    /// The interval in which they are with 95 % confidence.
    pub inuse_pages_low: u64,
    /// Its upper end.
    pub inuse_pages_high: u64,
    /// Pages that were ever touched.
    pub alloc_pages: u64,
    /// How many pages each of the sample stands for, on average.
    pub weight: u64,
    /// When the oldest that is still there was touched, CLOCK_MONOTONIC nanoseconds.
    pub oldest_born_ns: Option<u64>,
}

/// Sums over the surviving pages of a site.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    alloc_pages: u64,
    shift: u32,
    kept: u64,
    estimate: u64,
    /// Of the estimate.
    variance: f64,
    faults: u64,
    weights: u64,
    oldest_born_ns: Option<u64>,
}

impl Sums {
    /// The estimate and its interval.
    ///
    /// Each fault is in the sample with probability p = 1/w, independently (by a hash of its address). The estimate, the sum of s w
    /// over the sampled ones of s pages each, has the variance sum of s^2 (w - 1) over all, whose own estimate is the sum of
    /// s^2 w (w - 1) over the sampled ones (Horvitz and Thompson 1952). Few are often sampled, or none, where the normal interval
    /// around the estimate is too narrow: the true sum T is therefore sought for which the estimate is just within its deviation,
    /// (E - T)^2 = z^2 c T with the variance of one page c = V / E (Wilson 1927). What was sampled is certain.
    fn survey(&self) -> PageSurvey {
        let estimate = self.estimate as f64;
        let each = if self.estimate > 0 {
            self.variance / estimate
        } else {
            ((1_u64 << self.shift) - 1) as f64
        };
        let spread = NORMAL_95 * NORMAL_95 * each;
        let middle = estimate + spread / 2.0;
        let margin = (spread * estimate + spread * spread / 4.0).sqrt();
        let high = (middle + margin) as u64;
        PageSurvey {
            inuse_pages: self.estimate,
            inuse_pages_low: ((middle - margin).max(0.0) as u64)
                .max(self.kept)
                .min(self.estimate),
            inuse_pages_high: high.max(self.estimate),
            // What is chosen anew as the sample is thinned may come out as more than was counted of what it was chosen from.
            alloc_pages: self.alloc_pages.max(self.estimate),
            weight: self
                .weights
                .checked_div(self.faults)
                .unwrap_or(1 << self.shift)
                .max(1),
            oldest_born_ns: self.oldest_born_ns,
        }
    }
}

impl Pages {
    /// Adds a touch to the sample, in the order in which they happened.
    pub fn touch(&mut self, touch: Touch) {
        let address = touch.address & !(PAGE_BYTES - 1);
        if !page_is_sampled(address, self.shift) {
            return;
        }
        if touch.copied && self.sample.contains_key(&address) {
            // A copy of what is its own already, after a fork.
            return;
        }
        let shift = touch.shift.max(self.shift);
        let made = self.made.entry(touch.site).or_default();
        made.pages = made.pages.saturating_add(1 << shift);
        made.shift = shift;
        self.sample.insert(
            address,
            Page {
                site: touch.site,
                born_ns: touch.at_ns,
                shift,
                pages: None,
            },
        );
    }

    /// From now on one of `2^shift` pages is in the sample; those that would not be chosen are dropped, and the others stand for more.
    pub fn set_shift(&mut self, shift: u32) {
        if shift > self.shift {
            self.sample
                .retain(|address, _| page_is_sampled(*address, shift));
            for page in self.sample.values_mut() {
                page.shift = page.shift.max(shift);
            }
        }
        self.shift = shift;
    }

    /// How many pages are in the sample.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sample.len()
    }

    /// Whether the sample is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sample.is_empty()
    }

    /// Looks at every page of the sample, by rising address. `see` is told the page's address and what it may find there. `None`: it
    /// could not be seen, and stays as it was. `now_ns` is when the look began, CLOCK_MONOTONIC nanoseconds.
    pub fn look(&mut self, now_ns: u64, mut see: impl FnMut(u64, Expected) -> Option<Seen>) {
        let huge_bytes = u64::from(HUGE_PAGES) * PAGE_BYTES;
        let mut gone = Vec::new();
        let addresses: Vec<u64> = self.sample.keys().copied().collect();
        let range = |address: u64| address / huge_bytes;
        for (place, address) in addresses.iter().enumerate() {
            let neighbour = |place: Option<usize>| {
                place
                    .and_then(|place| addresses.get(place))
                    .is_some_and(|other| range(*other) == range(*address))
            };
            let is_alone = !neighbour(place.checked_sub(1)) && !neighbour(Some(place + 1));
            let Some(page) = self.sample.get_mut(address) else {
                continue;
            };
            let expected = match page.pages {
                Some(2..) => Expected::Huge,
                None if is_alone => Expected::Either,
                _ => Expected::Page,
            };
            match see(*address, expected) {
                None => {}
                Some(Seen::Gone | Seen::There(0)) => {
                    let is_young = now_ns.saturating_sub(page.born_ns) < ARRIVES_WITHIN_NS;
                    if page.pages.is_some() || !is_young {
                        gone.push(*address);
                    }
                }
                Some(Seen::There(pages)) => {
                    let pages = if expected == Expected::Page { 1 } else { pages };
                    if page.pages.is_none() && pages > 1 {
                        let made = self.made.entry(page.site).or_default();
                        let more = u64::from(pages - 1) << page.shift;
                        made.pages = made.pages.saturating_add(more);
                    }
                    // What came later is another fault's.
                    page.pages = Some(page.pages.map_or(pages, |before| before.min(pages)));
                }
            }
        }
        for address in gone {
            self.sample.remove(&address);
        }
    }

    /// How many pages of the sample nobody has looked at: nothing is said of what survives of them.
    #[must_use]
    pub fn unseen(&self) -> usize {
        self.sample
            .values()
            .filter(|page| page.pages.is_none())
            .count()
    }

    /// What is estimated of each site that ever touched fresh memory. `join` tells which site stands for one; only pages touched at
    /// `born_until_ns` or before count as in use.
    pub fn survey(
        &self,
        mut join: impl FnMut(SiteId) -> SiteId,
        born_until_ns: u64,
    ) -> BTreeMap<SiteId, PageSurvey> {
        let mut sums: BTreeMap<SiteId, Sums> = BTreeMap::new();
        for (site, made) in &self.made {
            let sum = sums.entry(join(*site)).or_default();
            sum.alloc_pages = sum.alloc_pages.saturating_add(made.pages);
            sum.shift = sum.shift.max(made.shift);
        }
        for page in self.sample.values() {
            let Some(pages) = page.pages.filter(|_| page.born_ns <= born_until_ns) else {
                continue;
            };
            let sum = sums.entry(join(page.site)).or_default();
            let weight = 1_u64 << page.shift;
            sum.kept += u64::from(pages);
            sum.estimate = sum
                .estimate
                .saturating_add(u64::from(pages).saturating_mul(weight));
            sum.variance +=
                f64::from(pages) * f64::from(pages) * weight as f64 * (weight - 1) as f64;
            sum.faults += 1;
            sum.weights += weight;
            let oldest = sum.oldest_born_ns.unwrap_or(u64::MAX);
            sum.oldest_born_ns = Some(oldest.min(page.born_ns));
        }
        sums.into_iter()
            .map(|(site, sum)| (site, sum.survey()))
            .collect()
    }

    /// Shows each page of the sample that is still there: its site, when it was touched (CLOCK_MONOTONIC nanoseconds), how many pages it
    /// brought, and how many pages each of them stands for.
    pub fn visit(&self, mut visitor: impl FnMut(SiteId, u64, u32, u32)) {
        for page in self.sample.values() {
            if let Some(pages) = page.pages {
                visitor(page.site, page.born_ns, pages, 1 << page.shift);
            }
        }
    }
}

#[cfg(test)]
mod tests;
