//! A bounded history of a quantity: seconds for minutes, minutes for hours, hours for weeks. Owns which values are kept
//! and how those of a longer interval are joined; knows not what they measure.

use std::collections::VecDeque;

/// A value that may stand for an interval.
pub trait Value: Copy {
    /// Takes in a later value of the same interval.
    fn absorb(&mut self, later: Self);
}

/// One resolution: intervals of `width_s` seconds, the last `kept` of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resolution {
    /// Seconds.
    pub width_s: f64,
    /// How many intervals are kept.
    pub kept: usize,
}

/// A value and when it was last brought up to date, in seconds since the trace began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point<V> {
    /// When.
    pub at_s: f64,
    /// What.
    pub value: V,
}

#[derive(Clone, Debug)]
struct Level<V> {
    resolution: Resolution,
    points: VecDeque<Point<V>>,
}

/// The history. Its memory is at most the sum of `kept` over the resolutions; it grows as it is filled.
#[derive(Clone, Debug)]
pub struct Series<V> {
    /// Finest first.
    levels: Vec<Level<V>>,
}

impl<V: Value> Series<V> {
    /// An empty history with the resolutions, finest first; each must reach further back than the one before.
    #[must_use]
    pub fn new(resolutions: &[Resolution]) -> Self {
        Self {
            levels: resolutions
                .iter()
                .map(|resolution| Level {
                    resolution: *resolution,
                    points: VecDeque::new(),
                })
                .collect(),
        }
    }

    /// Notes a value at a time, which must not lie before the last one's.
    pub fn push(&mut self, at_s: f64, value: V) {
        for level in &mut self.levels {
            let width = level.resolution.width_s;
            let interval = (at_s / width).floor();
            match level.points.back_mut() {
                Some(last) if (last.at_s / width).floor() >= interval => {
                    last.at_s = at_s.max(last.at_s);
                    last.value.absorb(value);
                }
                _ => level.points.push_back(Point { at_s, value }),
            }
            while level.points.len() > level.resolution.kept.max(1) {
                level.points.pop_front();
            }
        }
    }

    /// Everything that is kept, the oldest first: each stretch of time at the finest resolution that reaches it.
    #[must_use]
    pub fn points(&self) -> Vec<Point<V>> {
        let mut from = Vec::new();
        for (place, level) in self.levels.iter().enumerate().rev() {
            // A coarse interval is used up to where the finer level begins.
            let until = self
                .levels
                .get(place.wrapping_sub(1))
                .and_then(|finer| finer.points.front())
                .map_or(f64::INFINITY, |point| point.at_s);
            from.extend(level.points.iter().filter(|point| point.at_s < until));
        }
        // A level may lack what a still coarser one has, never the reverse; yet times must ascend.
        from.sort_by(|one: &Point<V>, two| one.at_s.total_cmp(&two.at_s));
        from
    }

    /// The last value.
    #[must_use]
    pub fn last(&self) -> Option<Point<V>> {
        self.levels.first()?.points.back().copied()
    }

    /// The first value that is still kept.
    #[must_use]
    pub fn first(&self) -> Option<Point<V>> {
        self.levels
            .iter()
            .filter_map(|level| level.points.front())
            .min_by(|one, two| one.at_s.total_cmp(&two.at_s))
            .copied()
    }
}

/// At most `count` points that are spread evenly over the time: the last of each interval, and the very first.
#[must_use]
pub fn thin_out<V: Copy>(points: &[Point<V>], count: usize) -> Vec<Point<V>> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    if points.len() <= count.max(2) {
        return points.to_vec();
    }
    let intervals = count.max(2) - 1;
    let width = (last.at_s - first.at_s) / intervals as f64;
    let mut kept: Vec<Point<V>> = vec![*first];
    let mut current = None;
    for point in points.iter().skip(1) {
        let interval = (((point.at_s - first.at_s) / width).ceil() as usize).clamp(1, intervals);
        match kept.last_mut() {
            Some(last) if current == Some(interval) => *last = *point,
            _ => kept.push(*point),
        }
        current = Some(interval);
    }
    kept
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a failing test may panic"
    )]

    use super::{Resolution, Series, Value, thin_out};
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Last(f64);

    impl Value for Last {
        fn absorb(&mut self, later: Self) {
            *self = later;
        }
    }

    const RESOLUTIONS: [Resolution; 3] = [
        Resolution {
            width_s: 1.0,
            kept: 120,
        },
        Resolution {
            width_s: 60.0,
            kept: 180,
        },
        Resolution {
            width_s: 3600.0,
            kept: 24 * 21,
        },
    ];

    #[test]
    fn weeks_are_kept_in_bounded_memory() {
        let mut series = Series::new(&RESOLUTIONS);
        let week = 7 * 24 * 3600;
        for second in 0..week {
            series.push(f64::from(second), Last(f64::from(second)));
        }
        let points = series.points();
        assert!(points.len() <= 120 + 180 + 24 * 21);
        // Seconds at the end, hours at the beginning, and no value at a wrong time.
        let last = points.last().unwrap();
        assert!((last.value.0 - f64::from(week - 1)).abs() < f64::EPSILON);
        assert!(
            points
                .iter()
                .rev()
                .take(100)
                .zip(points.iter().rev().skip(1))
                .all(|(later, earlier)| (later.at_s - earlier.at_s - 1.0).abs() < 1e-9)
        );
        assert!(points.first().unwrap().at_s <= 3600.0);
        assert!(
            points
                .iter()
                .all(|point| (point.at_s - point.value.0).abs() < f64::EPSILON)
        );
    }

    proptest! {
        #[test]
        fn times_ascend_and_the_last_value_is_there(
            steps in prop::collection::vec(0.01_f64..400.0, 1..600),
            count in 2_usize..100,
        ) {
            let mut series = Series::new(&RESOLUTIONS);
            let mut at = 0.0;
            for step in steps {
                at += step;
                series.push(at, Last(at));
            }
            let points = series.points();
            prop_assert!(points.windows(2).all(|pair| pair[0].at_s < pair[1].at_s));
            prop_assert_eq!(points.last().unwrap().at_s, at);
            prop_assert_eq!(series.last().unwrap().at_s, at);
            let thin = thin_out(&points, count);
            prop_assert!(thin.len() <= count.max(2));
            prop_assert!(thin.windows(2).all(|pair| pair[0].at_s < pair[1].at_s));
            prop_assert_eq!(thin.first().unwrap().at_s, points.first().unwrap().at_s);
            prop_assert_eq!(thin.last().unwrap().at_s, at);
        }
    }
}
