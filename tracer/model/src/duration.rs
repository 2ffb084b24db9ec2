//! Durations from figures that were measured, computed or asked for: whatever these are, nothing here panics.
//! Knows nothing of what they are of.

use std::time::Duration;

/// So many seconds: none for a negative figure or one that is no number, the longest for more than there can be.
#[must_use]
pub fn seconds(seconds: f64) -> Duration {
    let beyond = if seconds > 0.0 {
        Duration::MAX
    } else {
        Duration::ZERO
    };
    Duration::try_from_secs_f64(seconds).unwrap_or(beyond)
}

/// A time so many times over, as [`seconds`] has it.
#[must_use]
pub fn times(time: Duration, factor: f64) -> Duration {
    seconds(time.as_secs_f64() * factor)
}

#[cfg(test)]
mod tests {
    use super::{seconds, times};
    use std::time::Duration;

    #[test]
    fn figures_that_are_no_time_made_it_panic() {
        for odd in [-1.0, -0.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(seconds(odd), Duration::ZERO, "{odd}");
        }
        for endless in [1e300, f64::INFINITY] {
            assert_eq!(seconds(endless), Duration::MAX, "{endless}");
        }
        assert_eq!(seconds(1.5), Duration::from_millis(1500));
        assert_eq!(times(Duration::from_secs(2), 1.5), Duration::from_secs(3));
        assert_eq!(times(Duration::MAX, 2.0), Duration::MAX);
        assert_eq!(times(Duration::MAX, f64::NAN), Duration::ZERO);
    }
}
