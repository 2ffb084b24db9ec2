//! The surviving bytes of sites over time, as reports told them: for those that leak and the largest, a bounded number of points each.

use std::collections::HashMap;

use serde::Serialize;

use crate::report::{Report, Verdict};

/// Sites that are kept of each: those that leak, and the largest. At most twice so many, with [`POINTS`] of 16 bytes each: 1 MiB.
const SITES: usize = 256;

/// Points of a site. When there are so many, every second one is dropped.
const POINTS: usize = 120;

/// Process id, incarnation, and the site's number.
pub(super) type SiteKey = (u32, u32, u64);

/// A site's memory at a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct SitePoint {
    /// Seconds since the trace began.
    pub(super) at_s: f64,
    /// Bytes that survive.
    pub(super) inuse_bytes: u64,
}

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct History {
    sites: HashMap<SiteKey, Vec<SitePoint>>,
}

impl History {
    /// Notes a report, whose sites come by size. Sites that are not among those that are kept are forgotten.
    pub(super) fn note(&mut self, report: &Report) {
        let leaking = report
            .sites
            .iter()
            .filter(|site| site.verdict == Verdict::Leaking);
        let kept = leaking
            .take(SITES)
            .chain(report.sites.iter().take(SITES))
            .map(|site| ((site.pid, site.incarnation, site.id), site.inuse_bytes))
            .collect::<HashMap<SiteKey, u64>>();
        self.sites.retain(|key, _| kept.contains_key(key));
        for (key, inuse_bytes) in kept {
            let points = self.sites.entry(key).or_default();
            if points.len() >= POINTS {
                let mut number = 0_usize;
                points.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
            }
            points.push(SitePoint {
                at_s: report.duration_s,
                inuse_bytes,
            });
        }
    }

    /// A site's points, the oldest first.
    pub(super) fn series(&self, key: &SiteKey) -> Vec<SitePoint> {
        self.sites.get(key).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{History, POINTS, SITES};
    use crate::{daemon::testing::large_report, report::Report};

    fn report(at_s: f64, more: u64) -> Report {
        let mut parts = large_report(4 * SITES as u64, 1).into_parts();
        parts.duration_s = at_s;
        for site in &mut parts.sites {
            site.inuse_bytes += more;
        }
        Report::new(parts)
    }

    #[test]
    fn a_week_of_reports_stays_in_the_same_memory_and_ends_with_the_newest() {
        let mut history = History::default();
        for number in 0..1000_u32 {
            history.note(&report(f64::from(number), u64::from(number)));
            assert!(history.sites.len() <= 2 * SITES);
            assert!(history.sites.values().all(|points| points.len() <= POINTS));
        }
        let largest = &report(0.0, 0);
        let largest = largest.sites.first().unwrap();
        let points = history.series(&(largest.pid, largest.incarnation, largest.id));
        assert!(points.len() >= POINTS / 2);
        assert!(points.is_sorted_by(|one, other| one.at_s < other.at_s));
        let (first, last) = (points.first().unwrap(), points.last().unwrap());
        assert_eq!((first.at_s, last.at_s), (0.0, 999.0));
        assert_eq!(last.inuse_bytes, largest.inuse_bytes + 999);
        assert_eq!(history.series(&(1, 2, 3)), []);
    }
}
