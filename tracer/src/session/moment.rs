//! The one "now" of a look, of which everything in a report is: ages, rates, durations, series and verdicts. A process that has
//! ended has its own, its end. Reads the clocks once; knows nothing of what is looked at.

use std::time::{Duration, Instant, SystemTime};

use crate::kernel::monotonic_ns;

/// A moment by the clocks that are in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    at: Instant,
    ns: u64,
    wall: SystemTime,
}

impl Moment {
    /// Now.
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            ns: monotonic_ns(),
            wall: SystemTime::now(),
        }
    }

    /// The moment as of which a process is judged: its end, if it has ended by now.
    pub(super) fn of(&self, ended: Option<Instant>) -> Self {
        let since = ended.map_or(Duration::ZERO, |ended| {
            self.at.saturating_duration_since(ended)
        });
        Self {
            at: self.at.checked_sub(since).unwrap_or(self.at),
            ns: self
                .ns
                .saturating_sub(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
            wall: self.wall.checked_sub(since).unwrap_or(self.wall),
        }
    }

    /// CLOCK_MONOTONIC, nanoseconds: the clock of the probe's times.
    pub(super) fn ns(&self) -> u64 {
        self.ns
    }

    /// The calendar's time.
    pub(super) fn wall(&self) -> SystemTime {
        self.wall
    }

    /// How long ago something was then.
    pub(super) fn since(&self, earlier: Instant) -> Duration {
        self.at.saturating_duration_since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;
    use std::time::Duration;

    #[test]
    fn of_a_process_that_has_ended_it_is_its_end() {
        let begun = Moment::now();
        let now = Moment {
            at: begun.at + Duration::from_secs(90),
            ns: begun.ns + 90_000_000_000,
            ..begun
        };
        let end = begun.at + Duration::from_secs(30);
        assert_eq!(now.of(Some(end)).ns(), begun.ns + 30_000_000_000);
        assert_eq!(now.of(Some(end)).since(begun.at), Duration::from_secs(30));
        assert_eq!(now.of(None).ns(), now.ns());
        // An end that was noticed after the look began.
        assert_eq!(begun.of(Some(end)).ns(), begun.ns());
    }
}
