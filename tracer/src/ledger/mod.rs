//! Surviving blocks per site over time: sums, ages, trends, intervals. Pure: numbers in, numbers out. Knows neither
//! where the numbers come from nor what a site's stack looks like.

mod cohort;
mod survey;

pub use cohort::{Cohorts, Estimate, MOST_WATCHED, Reading, Span, Survivor};
pub use survey::{BlockFilter, SiteSurvey, Survey};

use std::collections::HashMap;

use leakscope_common::SiteTotals;

/// A site's number. Slots of the probe's stack table, joined where two hold the same stack.
pub type SiteId = u32;

/// What is known of a site over time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct History {
    /// The first look: when, and the bytes in use.
    first: Option<(f64, f64)>,
    /// The last look.
    last: Option<(f64, f64)>,
}

/// Follows sites from look to look.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    histories: HashMap<SiteId, History>,
}

impl Ledger {
    /// Notes the totals of a site at a time, in seconds since the trace began.
    pub fn observe(&mut self, at_s: f64, site: SiteId, totals: &SiteTotals) {
        let inuse = totals.alloc_bytes.wrapping_sub(totals.free_bytes) as i64 as f64;
        let history = self.histories.entry(site).or_default();
        history.first.get_or_insert((at_s, inuse));
        history.last = Some((at_s, inuse));
    }

    /// Forgets a site: its number stands for another stack from now on.
    pub fn forget(&mut self, site: SiteId) {
        self.histories.remove(&site);
    }

    /// The mean growth of a site since it was first seen, bytes per second; 0 before the second look. A site that
    /// first appeared in the middle of the trace began at 0 bytes then.
    #[must_use]
    pub fn growth_bytes_per_s(&self, site: SiteId) -> f64 {
        let Some(History {
            first: Some((from, before)),
            last: Some((to, after)),
        }) = self.histories.get(&site).copied()
        else {
            return 0.0;
        };
        let elapsed = to - from;
        if elapsed > 0.0 {
            (after - before) / elapsed
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ledger;
    use leakscope_common::SiteTotals;

    fn inuse(bytes: u64) -> SiteTotals {
        SiteTotals {
            alloc_bytes: bytes + 10,
            free_bytes: 10,
            ..SiteTotals::default()
        }
    }

    #[test]
    fn growth_is_the_slope_between_the_first_and_the_last_look() {
        let mut ledger = Ledger::default();
        assert!(ledger.growth_bytes_per_s(1).abs() < f64::EPSILON);
        ledger.observe(1.0, 1, &inuse(100));
        assert!(ledger.growth_bytes_per_s(1).abs() < f64::EPSILON);
        ledger.observe(2.0, 1, &inuse(900));
        ledger.observe(3.0, 1, &inuse(500));
        assert!((ledger.growth_bytes_per_s(1) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn more_frees_than_allocations_are_a_negative_balance_not_a_huge_one() {
        let mut ledger = Ledger::default();
        ledger.observe(0.0, 1, &inuse(100));
        ledger.observe(
            1.0,
            1,
            &SiteTotals {
                alloc_bytes: 10,
                free_bytes: 60,
                ..SiteTotals::default()
            },
        );
        assert!((ledger.growth_bytes_per_s(1) + 150.0).abs() < 1e-9);
    }
}
