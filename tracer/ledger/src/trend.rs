//! Trends that a few jumps cannot fool: the median of all slopes, and a test on ranks. Pure mathematics.

/// A straight line through points of (time, value).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    /// Value per unit of time: the median over the slopes of all pairs of points (Theil 1950, Sen 1968). Up to 29 % of the
    /// points may be anything.
    pub slope: f64,
    /// The median distance of the points from the line.
    pub scatter: f64,
}

/// The slopes between all pairs of points of different times.
fn slopes(points: &[(f64, f64)]) -> Vec<f64> {
    let mut slopes = Vec::with_capacity(points.len().saturating_mul(points.len()) / 2);
    for (place, (at, value)) in points.iter().enumerate() {
        for (earlier_at, earlier) in points.iter().take(place) {
            if at > earlier_at {
                slopes.push((value - earlier) / (at - earlier_at));
            }
        }
    }
    slopes
}

/// The 95 % interval of [`line`]'s slope: the slopes whose ranks lie so far from the median's as Kendall's S scatters
/// (Sen 1968). `None` for fewer than two different times.
#[must_use]
pub fn slope_interval(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let mut slopes = slopes(points);
    let count = points.len() as f64;
    let variance = count * (count - 1.0) * (2.0 * count + 5.0) / 18.0;
    let half_width = 1.96 * variance.sqrt() / 2.0;
    let middle = slopes.len() as f64 / 2.0;
    let last = slopes.len().checked_sub(1)?;
    let low = (middle - half_width).floor().max(0.0) as usize;
    let high = ((middle + half_width).ceil() as usize).min(last);
    slopes.sort_by(f64::total_cmp);
    Some((*slopes.get(low.min(last))?, *slopes.get(high)?))
}

/// The line; `None` for fewer than two different times. Takes time with the square of the number of points.
#[must_use]
pub fn line(points: &[(f64, f64)]) -> Option<Line> {
    let slope = median(&mut slopes(points))?;
    let mut rest: Vec<f64> = points
        .iter()
        .map(|(at, value)| value - slope * at)
        .collect();
    let middle = median(&mut rest)?;
    for value in &mut rest {
        *value = (*value - middle).abs();
    }
    Some(Line {
        slope,
        scatter: median(&mut rest)?,
    })
}

/// The middle value, or the mean of the two in the middle. Changes the order.
#[must_use]
pub fn median(values: &mut [f64]) -> Option<f64> {
    let half = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let (below, middle, _) = values.select_nth_unstable_by(half, f64::total_cmp);
    let middle = *middle;
    if values_are_odd(below.len(), values.len()) {
        return Some(middle);
    }
    let lower = values
        .iter()
        .take(half)
        .copied()
        .max_by(f64::total_cmp)
        .unwrap_or(middle);
    Some(f64::midpoint(lower, middle))
}

fn values_are_odd(below: usize, all: usize) -> bool {
    below * 2 + 1 == all
}

/// How sure it is that values rise with their place: Kendall's S over its standard deviation, with the correction for ties
/// (Mann 1945; Kendall 1975). Above 1.96 they rise, below -1.96 they fall, with 95 % confidence each; 0 when nothing can be
/// said.
#[must_use]
pub fn rise(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mut s = 0.0;
    for (place, value) in values.iter().enumerate() {
        for earlier in values.iter().take(place) {
            s += match value.total_cmp(earlier) {
                std::cmp::Ordering::Less => -1.0,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Greater => 1.0,
            };
        }
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let ties: f64 = sorted
        .chunk_by(|one, two| one.total_cmp(two).is_eq())
        .map(|equal| equal.len() as f64)
        .map(|equal| equal * (equal - 1.0) * (2.0 * equal + 5.0))
        .sum();
    let variance = (count * (count - 1.0) * (2.0 * count + 5.0) - ties) / 18.0;
    if variance <= 0.0 || s == 0.0 {
        return 0.0;
    }
    // The usual step towards 0, for S is a whole number.
    (s - f64::signum(s)) / variance.sqrt()
}

/// Mean and variance of the values (the latter from n - 1); zeros for none.
#[must_use]
pub fn moments(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (
        mean,
        if count > 1.0 {
            squares / (count - 1.0)
        } else {
            0.0
        },
    )
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a failing test may panic"
    )]

    use super::{line, median, rise, slope_interval};
    use proptest::prelude::*;

    #[test]
    fn a_few_jumps_change_nothing() {
        let mut points: Vec<(f64, f64)> = (0..40)
            .map(|at| (f64::from(at), 3.0 * f64::from(at)))
            .collect();
        for (place, wild) in [(3, 1e9), (17, -1e7), (30, 5e8), (39, 1e12)] {
            points[place].1 = wild;
        }
        let line = line(&points).unwrap();
        assert!((line.slope - 3.0).abs() < 0.01, "{line:?}");
        assert!(line.scatter < 1.0);
    }

    #[test]
    fn too_little_has_no_line() {
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[(1.0, 5.0)]), None);
        assert_eq!(line(&[(1.0, 5.0), (1.0, 9.0)]), None);
    }

    /// Kendall's own table: of ten untied values, S of 23 and more has the probability 0.023, which is z = 1.97.
    #[test]
    fn the_test_on_ranks_agrees_with_its_table() {
        let rising: Vec<f64> = (0..10).map(f64::from).collect();
        assert!((rise(&rising) - 44.0 / 125.0_f64.sqrt()).abs() < 1e-9);
        assert!((rise(&[1.0; 20])).abs() < f64::EPSILON);
        assert!(rise(&[]).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn the_slope_of_a_line_is_found(slope in -1e6_f64..1e6, offset in -1e6_f64..1e6, count in 3_usize..40) {
            let points: Vec<(f64, f64)> = (0..count).map(|at| (at as f64, offset + slope * at as f64)).collect();
            let found = line(&points).unwrap();
            prop_assert!((found.slope - slope).abs() <= 1e-6 * (1.0 + slope.abs()));
        }

        #[test]
        fn the_interval_holds_the_slope(points in prop::collection::vec((0_u16..200, -1e6_f64..1e6), 2..40)) {
            let points: Vec<(f64, f64)> = points.into_iter().map(|(at, value)| (f64::from(at), value)).collect();
            if let Some(found) = line(&points) {
                let (low, high) = slope_interval(&points).unwrap();
                prop_assert!(low <= found.slope && found.slope <= high, "{low} {found:?} {high}");
            }
        }

        #[test]
        fn the_median_has_as_many_on_either_side(mut values in prop::collection::vec(-1e9_f64..1e9, 1..60)) {
            let middle = median(&mut values).unwrap();
            let below = values.iter().filter(|value| **value < middle).count();
            let above = values.iter().filter(|value| **value > middle).count();
            prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
        }

        #[test]
        fn rising_and_falling_are_mirrored(values in prop::collection::vec(-5_i32..5, 0..40)) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let back: Vec<f64> = values.iter().rev().copied().collect();
            prop_assert!((rise(&values) + rise(&back)).abs() < 1e-9);
        }
    }
}
