//! A time in which every call of a process was seen again, after windows: as evidence it is one endless window, and what the ledger keeps of each interval
//! of it is judged as a window that stands for itself alone. Pure; knows neither how windows are opened nor why.

use super::{history::SiteHistory, windows::WindowOfSite};

impl SiteHistory {
    /// The intervals that lie in such a time as windows: it began at `since_ns`. They are closed at seconds since `first_ns`, when the first window was
    /// opened.
    pub(super) fn windows_since(&self, since_ns: u64, first_ns: u64) -> Vec<WindowOfSite> {
        let survival = &self.survival;
        let Some(surveyed_ns) = survival.surveyed_ns() else {
            return Vec::new();
        };
        let width = survival.width_s();
        let seconds = |ns: u64| ns.saturating_sub(survival.origin_ns()) as f64 / 1e9;
        let (since, surveyed) = (seconds(since_ns), seconds(surveyed_ns));
        // Births are known up to a look's time askew. Where none was freed, those that are alive are all that were born.
        let all_live = self.weight == 1 && self.freed_s <= self.since_s + since;
        let origin = survival.origin_ns().saturating_sub(first_ns) as f64 / 1e9;
        (0_u32..)
            .zip(survival.cohorts())
            .filter_map(|(place, cohort)| {
                let begin = f64::from(place) * width;
                let end = begin + width;
                if begin < since || end > surveyed {
                    return None;
                }
                let age = (surveyed - end) / width;
                let alive = f64::from(cohort.alive);
                Some(WindowOfSite {
                    is_exact: true,
                    closed_s: origin + end,
                    effective_s: width,
                    born: if all_live { alive } else { cohort.born as f64 },
                    survived: alive,
                    alive,
                    alive_bytes: cohort.alive_bytes as f64,
                    alive_before: cohort.alive_at((age / 2.0) as u64).map(f64::from),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        ProcessBesides, Survival, ToldApart, Verdict, WindowOfSite, history::SiteHistory,
        judge_windows,
    };
    use leakscope_common::SiteTotals;

    const SECOND: u64 = 1_000_000_000;

    /// Ten blocks of 500 bytes a second from the 20th second on, of which a part lasts; all calls are seen since the 25th.
    fn history(lasts: impl Fn(u64) -> bool) -> SiteHistory {
        let mut site = SiteHistory::new(0.0, 0);
        for second in 1..=60_u64 {
            let born = second.saturating_sub(20) * 10;
            let totals = SiteTotals {
                alloc_objects: born,
                alloc_bytes: 500 * born,
                free_objects: (0..born).filter(|number| !lasts(*number)).count() as u64,
                ..SiteTotals::default()
            };
            site.observe(second as f64, second * SECOND, &totals, 1);
            site.survival.begin_survey(second * SECOND);
            for number in 50..born {
                if lasts(number) {
                    let born_ns = 20 * SECOND + number * SECOND / 10;
                    site.survival.note_alive(born_ns, 500, 1);
                }
            }
            site.survival.end_survey(second * SECOND);
        }
        site
    }

    /// After windows in which hardly anything was seen.
    fn judged(site: &SiteHistory) -> (Verdict, f64, String) {
        let mut windows: Vec<WindowOfSite> = (1..=4)
            .map(|number| WindowOfSite {
                closed_s: 5.0 * f64::from(number),
                effective_s: 0.1,
                ..WindowOfSite::default()
            })
            .collect();
        windows.extend(site.windows_since(25 * SECOND, 0));
        let besides = ProcessBesides::default();
        let judgement = judge_windows(&windows, 60.0, ToldApart::ALL, &besides, None);
        (
            judgement.verdict,
            judgement.growth_bytes_per_s,
            judgement.reason,
        )
    }

    #[test]
    fn the_time_after_back_to_every_call_was_no_evidence() {
        let (verdict, rate, reason) = judged(&history(|_| true));
        assert_eq!(verdict, Verdict::Leaking, "{reason}");
        assert!((4000.0..6000.0).contains(&rate), "{rate}");
        assert!(reason.contains("of full tracing"), "{reason}");
        // Births that were taken for those of the interval after theirs counted twice.
        assert!(reason.starts_with("all "), "{reason}");
    }

    #[test]
    fn what_goes_while_every_call_is_seen_does_not_leak() {
        let (verdict, _, reason) = judged(&history(|_| false));
        assert_ne!(verdict, Verdict::Leaking, "{reason}");
    }

    #[test]
    fn nothing_before_it_and_nothing_that_was_not_counted_is_taken() {
        let mut site = history(|_| true);
        assert!(site.windows_since(61 * SECOND, 0).is_empty());
        site.survival = Survival::new(0);
        assert!(site.windows_since(0, 0).is_empty());
    }
}
