//! Which time between windows each of them stands for. Knows nothing of blocks.

use super::{Cohorts, Occasion, Span, seconds};

/// The times between windows that one of them stands for, from and to, CLOCK_MONOTONIC nanoseconds; where it stands for none, they are of no length.
pub(super) type Gaps = [(u64, u64); 2];

impl Cohorts {
    /// A window stands for the time until the next one is opened, the last until `covered_until_ns`. For what is behind one that was not at a random time
    /// stands the next, if it was. One at a program's start stands for none but itself.
    pub(super) fn gaps(&self, number: usize, covered_until_ns: u64) -> Gaps {
        let span_of = |number: usize| self.cohorts.get(number).map(|cohort| cohort.span);
        let Some(span) = span_of(number) else {
            return [(0, 0); 2];
        };
        let next = number.checked_add(1).and_then(span_of);
        let stands_for_behind = match span.occasion {
            Occasion::Random => true,
            Occasion::Cost => next.is_none_or(|next| !next.is_random()),
            Occasion::Start => false,
        };
        let behind = if stands_for_behind {
            let next_ns = next.map_or(covered_until_ns, |next| next.opened_ns);
            (span.closed_ns, next_ns.max(span.closed_ns))
        } else {
            (0, 0)
        };
        let before = number
            .checked_sub(1)
            .and_then(span_of)
            .filter(|before| span.is_random() && !before.is_random())
            .map_or((0, 0), |before| (before.closed_ns, span.opened_ns));
        [behind, before]
    }
}

impl Span {
    /// How many births a birth in the window stands for, when it stands for these times too.
    pub(super) fn weight(&self, gaps: &Gaps) -> f64 {
        let time: f64 = gaps.iter().map(|(from, to)| seconds(*from, *to)).sum();
        1.0 + time / self.effective_s()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use hashbrown::HashSet;

    use super::super::{Cohorts, Estimate, Occasion, Reading, Span, Survivor};

    const SECOND: u64 = 1_000_000_000;
    const SITE: u32 = 3;

    /// A window from so many tenths of a second on, of one tenth, in which so many blocks of 100 bytes are born, which stay.
    fn window(cohorts: &mut Cohorts, at: u64, occasion: Occasion, born: u64) {
        let opened_ns = at * SECOND / 10;
        let span = Span {
            opened_ns,
            closed_ns: opened_ns + SECOND / 10,
            effective_s: 0.1,
            uncertainty: 0.0,
            shared: None,
            occasion,
        };
        let untouched: HashSet<u64> = cohorts.watched().map(|block| block.address).collect();
        let survivors = (0..born).map(|number| {
            let survivor = Survivor {
                address: 0x10_000 * (at + 1) + 0x80 * number,
                size: 100,
                born_ns: opened_ns + 1 + number * SECOND / 10 / born,
                site: SITE,
                rounding: crate::Rounding::Glibc,
            };
            let reading = Reading {
                header: 0x71,
                next_header: Some(0x21),
                fingerprint: survivor.address,
                ..Reading::default()
            };
            (survivor, Some(reading))
        });
        cohorts.close(span, [(SITE, born, 100 * born)], survivors, &untouched, 0);
        let readings: Vec<_> = cohorts
            .watched()
            .map(|block| {
                Some(Reading {
                    header: 0x71,
                    next_header: Some(0x21),
                    fingerprint: block.address,
                    ..Reading::default()
                })
            })
            .collect();
        cohorts.check(span.closed_ns + SECOND / 10, &readings);
    }

    /// What is known of the site ten seconds after the first window was opened.
    fn known(windows: &[(u64, Occasion, u64)]) -> Estimate {
        let mut cohorts = Cohorts::new(1);
        for (at, occasion, born) in windows {
            window(&mut cohorts, *at, *occasion, *born);
        }
        let now = 10 * SECOND;
        *cohorts.estimates(now, now, 0.0).get(&SITE).unwrap()
    }

    #[test]
    fn blocks_of_a_programs_start_were_multiplied_as_if_it_started_all_the_time() {
        // An interpreter's start, then nothing for the site.
        let start = known(&[(0, Occasion::Start, 500), (50, Occasion::Random, 0)]);
        assert_eq!(
            (start.inuse_objects, start.inuse_bytes),
            (500, 50_000),
            "{start:?}"
        );
        assert_eq!((start.alloc_objects, start.counted_bytes), (500, 50_000));
        assert!(start.growth_bytes_per_s.abs() < f64::EPSILON);
        // The same before there is any other window.
        assert_eq!(known(&[(0, Occasion::Start, 500)]).inuse_objects, 500);
    }

    #[test]
    fn the_first_window_at_a_random_time_stands_for_what_is_behind_a_start_too() {
        // A leak of 10 blocks a second: 5 of the start, then one in each window.
        let leak = known(&[
            (0, Occasion::Start, 5),
            (30, Occasion::Random, 10),
            (60, Occasion::Random, 10),
        ]);
        // 100 a second for 9.9 s, and 5.
        assert!((985..=1_000).contains(&leak.inuse_objects), "{leak:?}");
        assert!(
            (leak.growth_bytes_per_s / 10_000.0 - 1.0).abs() < 0.05,
            "{leak:?}"
        );
    }

    #[test]
    fn a_window_that_ended_for_what_it_cost_stands_for_others_only_while_there_is_no_better() {
        let alone = known(&[(0, Occasion::Cost, 100)]);
        assert!((9_000..=11_000).contains(&alone.inuse_objects), "{alone:?}");
        // It was busy then, and is not since.
        let dropped = known(&[
            (0, Occasion::Cost, 100),
            (30, Occasion::Random, 3),
            (60, Occasion::Random, 3),
        ]);
        assert!((390..=410).contains(&dropped.inuse_objects), "{dropped:?}");
    }

    #[test]
    fn one_or_two_blocks_stood_for_as_many_as_hundreds_did() {
        let few = known(&[(0, Occasion::Random, 2)]);
        assert_eq!((few.inuse_objects, few.inuse_bytes), (2, 200), "{few:?}");
        assert!(few.inuse_bytes_high > 20_000, "{few:?}");
    }
}
