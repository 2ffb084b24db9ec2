//! Intervals for weighted counts.

/// The 97.5th percentile of the normal distribution.
const NORMAL: f64 = 1.959_964;

/// The 97.5th percentile of Student's distribution by degrees of freedom, from 1.
const STUDENT: [f64; 15] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131,
];

/// By how much an interval must be wider than the normal one when its variance was itself estimated from so many differences.
pub(super) fn student_factor(degrees: usize) -> f64 {
    let quantile = match degrees.checked_sub(1) {
        None => STUDENT.first().copied().unwrap_or(NORMAL),
        Some(index) => STUDENT
            .get(index)
            .copied()
            // Its expansion in the inverse of the degrees (Abramowitz and Stegun 26.7.5).
            .unwrap_or(NORMAL + 2.372 / degrees as f64),
    };
    quantile / NORMAL
}

/// A quantile of the chi-square distribution (Wilson and Hilferty 1931); `normal` is the normal distribution's.
fn chi_square(degrees: f64, normal: f64) -> f64 {
    let spread = 2.0 / (9.0 * degrees);
    degrees * (1.0 - spread + normal * spread.sqrt()).max(0.0).powi(3)
}

/// Where a sum is so uncertain that the gamma distribution has its mode at 0: the factor to the upper end of a log-normal one
/// of the same variance.
fn wide(sum: f64, variance: f64) -> f64 {
    let spread = (variance / (sum * sum)).ln_1p().sqrt();
    (NORMAL * spread).exp()
}

/// The lower end of the 95 % interval of a weighted sum of counts with this variance (Fay and Feuer 1997).
pub(super) fn low(sum: f64, variance: f64) -> f64 {
    if sum <= 0.0 {
        return 0.0;
    }
    if variance <= 0.0 {
        return sum;
    }
    if variance > sum * sum {
        return 0.0;
    }
    let scale = variance / (2.0 * sum);
    (scale * chi_square(sum / scale, -NORMAL)).min(sum)
}

/// The upper end; `most` is the largest weight that one more count could have.
pub(super) fn high(sum: f64, variance: f64, most: f64) -> f64 {
    let (sum_one, variance_one) = (sum + most, variance + most * most);
    if sum_one <= 0.0 || variance_one <= 0.0 {
        return sum.max(0.0);
    }
    if variance_one > sum_one * sum_one {
        return sum_one * wide(sum_one, variance_one);
    }
    let scale = variance_one / (2.0 * sum_one);
    (scale * chi_square(sum_one / scale, NORMAL)).max(sum)
}

#[cfg(test)]
mod tests {
    use super::{high, low, student_factor};

    #[test]
    fn unweighted_counts_have_the_exact_poisson_interval() {
        // Garwood (1936), 95 %.
        for (count, lower, upper) in [
            (0.0, 0.0, 3.689),
            (1.0, 0.025, 5.572),
            (10.0, 4.795, 18.390),
            (100.0, 81.364, 121.627),
        ] {
            let (ours, theirs) = (low(count, count), lower);
            assert!(
                (ours - theirs).abs() < 0.05 + theirs * 0.01,
                "{ours} {theirs}"
            );
            let (ours, theirs) = (high(count, count, 1.0), upper);
            assert!(
                (ours - theirs).abs() < 0.05 + theirs * 0.01,
                "{ours} {theirs}"
            );
        }
    }

    #[test]
    fn the_interval_widens_with_the_variance() {
        let mut last = (100.0, 100.0);
        for variance in [10.0, 100.0, 1_000.0, 9_000.0, 40_000.0, 1e6, 1e9] {
            let now = (low(100.0, variance), high(100.0, variance, 0.0));
            assert!(
                now.0 <= last.0 && now.1 > last.1,
                "{variance} {now:?} {last:?}"
            );
            last = now;
        }
    }

    #[test]
    fn what_is_exact_has_no_width() {
        assert!((low(77.0, 0.0) - 77.0).abs() < f64::EPSILON);
        assert!((high(77.0, 0.0, 0.0) - 77.0).abs() < f64::EPSILON);
    }

    #[test]
    fn few_windows_say_little() {
        assert!((student_factor(1) - 12.706 / 1.959_964).abs() < 1e-9);
        assert!((student_factor(16) * 1.959_964 - 2.120).abs() < 0.02);
        assert!(student_factor(1_000) < 1.01);
    }
}
