//! Whether others make so many system calls that seeing mappings at tracepoints takes too much from them. Pure: it is told what was counted.
//!
//! While one tracepoint of a system call is on, the kernel sends every call of every process on a longer way. What that takes is paid by whoever
//! makes most calls, and stands in nobody's account.

use std::time::Duration;

/// How much longer a call takes, seconds. Measured on two virtual machines: 14 ns of 120 and 63 ns of 231 in a loop of the shortest call, some
/// 100 ns a call of a server under full load.
const LONGER_S: f64 = 50e-9;

/// The part of the budget that this may take of a processor: with the usual one, a processor may make 25,000 calls a second.
const PART: f64 = 0.125;

/// So many of the last counts must be too high: a moment of many calls is nothing to give up for, but a load that comes in bursts is.
const TOO_MANY: u32 = 3;
const LAST: u8 = 0b1_1111;

/// How often calls are counted, and how soon again when they were too many.
const EVERY: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(300);

/// How long each count lasts: long enough to be of what a processor does all the time, and short, for it too takes from each call.
pub const COUNT_FOR: Duration = Duration::from_millis(30);

/// Watches the machine's system calls.
#[derive(Clone, Debug)]
pub struct CallWatch {
    /// Calls a second that a processor may make.
    may_make: f64,
    /// A bit for each of the last counts, set where it was too high.
    last: u8,
    next: Duration,
}

impl CallWatch {
    /// For a budget, the share of a processor's time.
    #[must_use]
    pub fn new(budget: f64) -> Self {
        Self {
            may_make: budget * PART / LONGER_S,
            last: 0,
            next: Duration::ZERO,
        }
    }

    /// When calls are to be counted next.
    #[must_use]
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Whether the last counts give reason to count again soon.
    #[must_use]
    pub fn is_alarmed(&self) -> bool {
        self.last != 0
    }

    /// Whether the last count was too high.
    #[must_use]
    pub fn was_too_high(&self) -> bool {
        self.last & 1 != 0
    }

    /// Hardly anything ran until now, so that nothing was counted.
    pub fn rested(&mut self, at: Duration) {
        self.note(at, false);
    }

    /// So many calls were counted on the processor that made most, in a time. Gives how many that is a second where they are too many.
    pub fn counted(&mut self, at: Duration, calls: u64, over: Duration) -> Option<f64> {
        let a_second = a_second(calls, over);
        let is_too_high = a_second > self.may_make;
        self.note(at, is_too_high);
        (is_too_high && self.last.count_ones() >= TOO_MANY).then_some(a_second)
    }

    fn note(&mut self, at: Duration, is_too_high: bool) {
        self.last = (self.last << 1 | u8::from(is_too_high)) & LAST;
        self.next = at.saturating_add(if self.is_alarmed() { AGAIN } else { EVERY });
    }
}

/// How many a second so many calls in a time are.
#[must_use]
pub fn a_second(calls: u64, over: Duration) -> f64 {
    calls as f64 / over.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::{COUNT_FOR, CallWatch};
    use std::time::Duration;

    /// When it gives up at so many calls a second, within ten seconds.
    fn gives_up(budget: f64, calls_at: impl Fn(Duration) -> f64) -> Option<Duration> {
        let mut watch = CallWatch::new(budget);
        while watch.next() < Duration::from_secs(10) {
            let at = watch.next() + COUNT_FOR;
            let calls = calls_at(at) * COUNT_FOR.as_secs_f64();
            if watch.counted(at, calls as u64, COUNT_FOR).is_some() {
                return Some(at);
            }
        }
        None
    }

    #[test]
    fn a_server_under_full_load_is_relieved_within_two_seconds() {
        let at = gives_up(0.01, |_| 100_000.0);
        assert!(at.is_some_and(|at| at < Duration::from_secs(1)), "{at:?}");
        // Its load begins at the worst moment.
        let begins = Duration::from_millis(31);
        let at = gives_up(0.01, |at| if at < begins { 0.0 } else { 400_000.0 });
        assert!(at.is_some_and(|at| at < Duration::from_secs(2)), "{at:?}");
    }

    #[test]
    fn a_quiet_machine_and_one_that_compiles_keep_their_mappings() {
        for calls in [0.0, 3_000.0, 12_000.0] {
            assert_eq!(gives_up(0.01, |_| calls), None, "{calls}");
        }
    }

    #[test]
    fn who_allows_more_gives_up_later() {
        assert!(gives_up(0.01, |_| 60_000.0).is_some());
        assert_eq!(gives_up(0.05, |_| 60_000.0), None);
        assert!(gives_up(0.001, |_| 5_000.0).is_some());
    }

    #[test]
    fn a_moment_of_many_calls_is_forgotten() {
        let burst = |at: Duration| if at.subsec_millis() < 200 { 1e6 } else { 100.0 };
        assert_eq!(gives_up(0.01, burst), None);
        assert!(!CallWatch::new(0.01).is_alarmed());
        // So is one before the machine rested.
        let mut watch = CallWatch::new(0.01);
        for second in 1..10 {
            let at = Duration::from_secs(second);
            assert_eq!(watch.counted(at, 1_000_000, COUNT_FOR), None);
            for _ in 0..3 {
                watch.rested(at);
                assert!(watch.next() > at);
            }
        }
    }

    #[test]
    fn a_load_that_comes_in_bursts_is_no_moment() {
        // 400 ms of work in each second, and then 600 ms of sleep, with which the counts are not in step.
        let bursts = |at: Duration| {
            if at.as_millis() % 1000 < 400 {
                4e6
            } else {
                0.0
            }
        };
        let at = gives_up(0.01, bursts);
        assert!(at.is_some_and(|at| at < Duration::from_secs(4)), "{at:?}");
    }

    #[test]
    fn nothing_counted_in_no_time_is_nothing() {
        assert_eq!(
            CallWatch::new(0.01).counted(Duration::ZERO, 0, Duration::ZERO),
            None
        );
    }
}
