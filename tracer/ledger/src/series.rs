//! A bounded history of a quantity: seconds for minutes, minutes for hours, hours for weeks. Owns which values are kept
//! and how those of a longer interval are joined; knows not what they measure. What does not change takes next to no room.

use std::{collections::VecDeque, fmt};

/// A value that may stand for an interval.
pub trait Value: Copy {
    /// The form in which it is kept, perhaps shorter.
    type Kept: Copy + fmt::Debug + PartialEq + From<Self> + Into<Self>;

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
struct Level<V: Value> {
    resolution: Resolution,
    /// Of equal values one after the other only the first and the last.
    points: VecDeque<Point<V::Kept>>,
    /// How many were left out.
    left_out: usize,
}

impl<V: Value> Level<V> {
    fn new(resolution: Resolution) -> Self {
        Self {
            resolution,
            points: VecDeque::new(),
            left_out: 0,
        }
    }

    fn interval(&self, at_s: f64) -> f64 {
        (at_s / self.resolution.width_s).floor()
    }

    /// How many points between these two were left out.
    fn between(&self, one: &Point<V::Kept>, two: &Point<V::Kept>) -> usize {
        if one.value == two.value {
            (((two.at_s - one.at_s) / self.resolution.width_s).round() as usize).saturating_sub(1)
        } else {
            0
        }
    }

    fn push(&mut self, at_s: f64, value: V) {
        let Some(last) = self.points.pop_back() else {
            self.append(Point {
                at_s,
                value: value.into(),
            });
            return;
        };
        let before = self.points.back().copied();
        let behind = before.map_or(0, |before| self.between(&before, &last));
        self.left_out -= behind;
        if self.interval(last.at_s) >= self.interval(at_s) {
            let mut joined: V = last.value.into();
            joined.absorb(value);
            let joined: V::Kept = joined.into();
            if behind > 0 && joined != last.value {
                // It was the same up to the interval before.
                self.append(Point {
                    at_s: last.at_s - self.resolution.width_s,
                    ..last
                });
            }
            self.append(Point {
                at_s: at_s.max(last.at_s),
                value: joined,
            });
        } else {
            let value: V::Kept = value.into();
            let goes_on = last.value == value && before.is_some_and(|before| before.value == value);
            if !goes_on {
                self.append(last);
            }
            self.append(Point { at_s, value });
        }
    }

    /// Adds a point at the end, and drops those that are too many.
    fn append(&mut self, point: Point<V::Kept>) {
        if let Some(last) = self.points.back() {
            self.left_out += self.between(last, &point);
        }
        let most = self.resolution.kept.max(1);
        while self.points.len() + self.left_out >= most {
            let mut first_two = self.points.iter();
            let (Some(first), second) = (first_two.next().copied(), first_two.next().copied())
            else {
                break;
            };
            let second = second.unwrap_or(point);
            let gap = self.between(&first, &second);
            let later = Point {
                at_s: first.at_s + self.resolution.width_s,
                ..first
            };
            match self.points.front_mut() {
                Some(front) if gap > 0 => {
                    *front = later;
                    self.left_out = self.left_out - gap + self.between(&later, &second);
                }
                _ => drop(self.points.pop_front()),
            }
        }
        if self.points.len() == self.points.capacity() {
            // No more than will ever be used, which doubling would be.
            let more = (self.points.len() / 2).clamp(2, most.max(2));
            self.points
                .reserve_exact(more.min(most.saturating_sub(self.points.len())).max(1));
        }
        self.points.push_back(point);
    }

    /// All points, with those that were left out.
    fn all(&self) -> impl Iterator<Item = Point<V::Kept>> {
        let next = self.points.iter().skip(1).map(Some).chain([None]);
        self.points.iter().zip(next).flat_map(|(one, next)| {
            let count = next.map_or(0, |next| self.between(one, next));
            (0..=count).map(|place| Point {
                at_s: one.at_s + place as f64 * self.resolution.width_s,
                ..*one
            })
        })
    }
}

/// The history. Its memory is at most the sum of `kept` over the resolutions; it grows as it is filled with what changes.
#[derive(Clone, Debug)]
pub struct Series<V: Value> {
    /// Finest first.
    levels: Vec<Level<V>>,
}

impl<V: Value> Series<V> {
    /// An empty history with the resolutions, finest first; each must reach further back than the one before.
    #[must_use]
    pub fn new(resolutions: &[Resolution]) -> Self {
        Self {
            levels: resolutions.iter().copied().map(Level::new).collect(),
        }
    }

    /// Notes a value at a time, which must not lie before the last one's.
    pub fn push(&mut self, at_s: f64, value: V) {
        for level in &mut self.levels {
            level.push(at_s, value);
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
            from.extend(level.all().map(restore).filter(|point| point.at_s < until));
        }
        // A level may lack what a still coarser one has, never the reverse; yet times must ascend.
        from.sort_by(|one: &Point<V>, two| one.at_s.total_cmp(&two.at_s));
        from
    }

    /// The last value.
    #[must_use]
    pub fn last(&self) -> Option<Point<V>> {
        self.levels.first()?.points.back().copied().map(restore)
    }

    /// The first value that is still kept.
    #[must_use]
    pub fn first(&self) -> Option<Point<V>> {
        self.levels
            .iter()
            .filter_map(|level| level.points.front())
            .min_by(|one, two| one.at_s.total_cmp(&two.at_s))
            .copied()
            .map(restore)
    }

    /// The bytes that the points take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let points: usize = self
            .levels
            .iter()
            .map(|level| level.points.capacity())
            .sum();
        points * size_of::<Point<V::Kept>>()
    }
}

/// A point as it was.
fn restore<V: Value>(point: Point<V::Kept>) -> Point<V> {
    Point {
        at_s: point.at_s,
        value: point.value.into(),
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

    use super::{Point, Resolution, Series, Value, thin_out};
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Last(f64);

    impl Value for Last {
        type Kept = Self;

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

    #[test]
    fn what_does_not_change_takes_no_room() {
        let mut series = Series::new(&RESOLUTIONS);
        for second in 0..100_000 {
            series.push(f64::from(second) + 0.25, Last(7.0));
        }
        assert!(series.bytes() < 500, "{}", series.bytes());
        // And is there nevertheless: every second, minute, hour.
        let points = series.points();
        assert!(points.len() > 120 + 170 + 20, "{}", points.len());
        series.push(100_001.0, Last(8.0));
        let points = series.points();
        let last: Vec<f64> = points
            .iter()
            .rev()
            .take(3)
            .map(|point| point.value.0)
            .collect();
        assert_eq!(last, [8.0, 7.0, 7.0]);
        assert!((points[points.len() - 2].at_s - 99_999.25).abs() < 1e-9);
    }

    #[test]
    fn what_changes_takes_no_more_than_is_kept() {
        let mut series = Series::new(&RESOLUTIONS);
        for second in 0..2_000_000 {
            series.push(f64::from(second), Last(f64::from(second)));
        }
        let kept = 120 + 180 + 24 * 21;
        assert!(series.bytes() <= kept * size_of::<Point<Last>>());
    }

    proptest! {
        /// As if every value had been kept.
        #[test]
        fn leaving_out_what_does_not_change_changes_nothing(
            values in prop::collection::vec((0_u8..3, 1_usize..40), 1..40),
        ) {
            let mut series = Series::new(&RESOLUTIONS[..1]);
            let mut all = Vec::new();
            let mut at = 0.5;
            for (value, times) in values {
                for _ in 0..times {
                    series.push(at, Last(f64::from(value)));
                    all.push((at, f64::from(value)));
                    at += 1.0;
                }
            }
            let expected = &all[all.len().saturating_sub(120)..];
            let points: Vec<_> = series.points().iter().map(|point| (point.at_s, point.value.0)).collect();
            prop_assert_eq!(&points[..], expected);
        }

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
