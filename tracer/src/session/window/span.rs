//! For how much time a window stands. Knows nothing of blocks.

use super::{
    Windows,
    own_time::{self, Used},
};
use crate::ledger::{LEAST_SHARE, Occasion, Shared, Span};

/// What was seen between a window's end and the end of its last probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub(super) hits: f64,
    pub(super) allocations: f64,
    /// How long that was at the most, seconds.
    pub(super) time: f64,
}

impl Windows {
    /// The span of a window whose survivors are those born from `opened_ns` on.
    ///
    /// Traps take processor time. A process that has all it wants (a server that waits for requests) does as much as before and uses more of it; one that
    /// is saturated uses as much as before and does less. Its own processor time in the window, divided by what it uses each second
    /// between windows, is right for both; but no window counts for more than its length, or for less than what traps leave of it: one in
    /// which the process slept counts for all of it.
    ///
    /// A window that was ended for what it cost is one of much work, and by itself would say that there is as much all the time. It counts for as long as the
    /// process usually takes for that work, and at the most as long as it was planned.
    ///
    /// Until the last probe is gone a few `late` calls are seen; the time at which each block was born is known to a tick of the clock only (1 to 10 ms), so
    /// that they belong to the window, and make it longer: by as long as they take at its pace, and at the most by as long as that was.
    pub(super) fn span(
        &mut self,
        occasion: Occasion,
        (opened_ns, closed_ns): (u64, u64),
        used: Used,
        late: Late,
    ) -> Span {
        let length = closed_ns.saturating_sub(opened_ns) as f64 / 1e9;
        let used = used.part(length);
        let least = used.least(length).max(LEAST_SHARE * length);
        let most = length.max(used.planned).max(least);
        // Before the first gap nothing is known but the least.
        let own = self
            .own
            .cores()
            .map_or(least, |cores| (used.cpu - used.cost) / cores)
            .clamp(least, most);
        let late_s = if late.hits > 0.0 {
            (own * late.hits / used.hits.max(1e-9)).min(late.time)
        } else {
            0.0
        };
        // The bounds are the closer the less traps took.
        let spread = (most - least) / least.max(1e-9);
        let mut span = Span {
            opened_ns,
            closed_ns,
            effective_s: own + late_s,
            uncertainty: own_time::of_what_is_left(used).min(spread.max(own_time::LEAST_UNCERTAIN)),
            shared: None,
            occasion,
        };
        if self.own.note_window(used)
            && let Some((time, uncertainty)) = self.own.of_an_allocation()
        {
            let shared = Shared {
                allocations: used.allocations + late.allocations,
                least_s: least + late_s,
                most_s: most + late.time,
            };
            span.effective_s = shared.effective_s(time);
            span.uncertainty = uncertainty;
            span.shared = Some(shared);
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::{Late, Occasion, Used, Windows};
    use crate::budget::Limits;

    const MS: u64 = 1_000_000;

    /// The effective time of a window of so many milliseconds of a process that uses so many processors between windows.
    fn effective_ms(windows: &mut Windows, length_ms: u64, used: Used, late: Late) -> f64 {
        let used = Used {
            time: length_ms as f64 / 1e3,
            ..used
        };
        let span = windows.span(Occasion::Random, (MS, MS + length_ms * MS), used, late);
        assert!(span.uncertainty.is_finite());
        1e3 * span.effective_s
    }

    fn windows(cores: f64) -> Windows {
        let mut windows = Windows::new(Limits::exact(), 1);
        windows.own.note_between(10.0 * cores, 10.0);
        windows
    }

    /// Calls that cost 1.5 us each among 1 us of their own work, as many as a processor can make in so many seconds.
    fn saturated(seconds: f64) -> Used {
        let hits = seconds / 2.5e-6;
        Used {
            cpu: seconds,
            cost: 1.5e-6 * hits,
            hits,
            allocations: hits / 2.0,
            old_frees: 100.0,
            survivors: 100.0,
            ..Used::default()
        }
    }

    const NONE: Late = Late {
        hits: 0.0,
        allocations: 0.0,
        time: 0.03,
    };

    #[test]
    fn a_window_in_which_the_process_slept_and_late_calls_were_seen_had_no_length() {
        let late = Late {
            hits: 40.0,
            allocations: 20.0,
            ..NONE
        };
        let mut idle = windows(0.002);
        let slept = effective_ms(&mut idle, 50, Used::default(), late);
        assert!((50.0..=80.0).contains(&slept), "{slept}");
        let mut busy = windows(0.9);
        effective_ms(&mut busy, 10, saturated(0.01), NONE);
        let slept = effective_ms(&mut busy, 50, Used::default(), late);
        assert!((50.0..=80.0).contains(&slept), "{slept}");
    }

    #[test]
    fn a_burst_that_ended_its_window_stood_for_bursts_all_the_time() {
        // 100 allocations in 0.1 ms every 10 ms; a window of 50 ms was ended after 0.1 ms for what they cost.
        let used = Used {
            time: 0.0001,
            planned: 0.05,
            cpu: 0.00035,
            cost: 0.0003,
            hits: 200.0,
            allocations: 100.0,
            ..Used::default()
        };
        let mut bursts = windows(0.005);
        let span = bursts.span(Occasion::Random, (MS, MS + MS / 10), used, NONE);
        let ms = 1e3 * span.effective_s;
        assert!((5.0..=50.0).contains(&ms), "{ms}");
    }

    #[test]
    fn late_calls_make_a_busy_window_longer_by_the_time_that_they_take() {
        let used = Used {
            cpu: 0.04,
            cost: 0.001,
            hits: 1_000.0,
            allocations: 500.0,
            ..Used::default()
        };
        let late = Late {
            hits: 100.0,
            allocations: 50.0,
            ..NONE
        };
        let long = effective_ms(&mut windows(0.8), 50, used, late);
        assert!((long - 55.0).abs() < 1.5, "{long}");
    }

    #[test]
    fn a_quiet_window_counted_by_the_time_of_an_allocation_in_busy_ones() {
        let mut windows = windows(0.9);
        for _ in 0..4 {
            let busy = effective_ms(&mut windows, 10, saturated(0.01), NONE);
            assert!((2.0..=6.0).contains(&busy), "{busy}");
        }
        // Ten pairs of calls each tenth of a second, of which most of the processor time is traps.
        let quiet = Used {
            cpu: 0.0005,
            cost: 0.0003,
            hits: 220.0,
            allocations: 110.0,
            ..Used::default()
        };
        let quiet = effective_ms(&mut windows, 1_000, quiet, NONE);
        assert!((990.0..=1_000.0).contains(&quiet), "{quiet}");
    }
}
