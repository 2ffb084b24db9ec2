//! A series of bytes over time as block characters: one line high beside a name, or several.

use crate::units::{bytes, duration};

use super::text::{cut, width};

/// Heights of nothing to a whole line.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is less than one part in so many of the highest value is no change worth drawing.
const NOISE: u64 = 50;

/// One line: from the lowest value to the highest, the newest at the right. Empty where there is too little.
pub(super) fn spark(series: &[(f64, u64)], columns: usize) -> String {
    let values = spread(series, columns);
    let (Some(least), Some(most)) = (values.iter().min(), values.iter().max()) else {
        return String::new();
    };
    // A level that stays is drawn low.
    let range = (most - least).max(most / NOISE).max(1);
    values
        .iter()
        .filter_map(|value| {
            let height = (value - least) as f64 / range as f64 * 7.0;
            EIGHTHS.get(1 + (height.round() as usize).min(7))
        })
        .collect()
}

/// Several lines, from 0 up, with what the highest is and the times below; empty where there is too little.
pub(super) fn chart(series: &[(f64, u64)], columns: usize, lines: usize) -> Vec<String> {
    let most = series.iter().map(|(_, value)| *value).max().unwrap_or(0);
    let label = bytes(most);
    let lead = width(&label);
    let room = columns.saturating_sub(lead + 2);
    let values = spread(series, room);
    let (Some((first, _)), Some((last, _))) = (series.first(), series.last()) else {
        return Vec::new();
    };
    if values.is_empty() || most == 0 {
        return Vec::new();
    }
    let full = (lines * 8) as f64;
    let mut chart: Vec<String> = (0..lines)
        .rev()
        .map(|line| {
            let curve: String = values
                .iter()
                .filter_map(|value| {
                    let height = (*value as f64 / most as f64 * full).round() as usize;
                    EIGHTHS.get(height.saturating_sub(line * 8).min(8))
                })
                .collect();
            let label = match line {
                line if line + 1 == lines => label.as_str(),
                0 => "0 B",
                _ => "",
            };
            format!("{label:>lead$} │{}", curve.trim_end())
        })
        .collect();
    let (from, to) = (duration(*first), duration(*last));
    let fill = room.saturating_sub(from.len());
    let times = format!("{:lead$} └{from}{to:─>fill$}", "");
    chart.push(cut(&times, columns));
    chart
}

/// A value for each column: the newest of its time; where there is none, the one before. Empty where there is no time to spread.
fn spread(series: &[(f64, u64)], columns: usize) -> Vec<u64> {
    let (Some((first, value)), Some((last, _))) = (series.first(), series.last()) else {
        return Vec::new();
    };
    let elapsed = last - first;
    if series.len() < 2 || elapsed.is_nan() || elapsed <= 0.0 {
        return Vec::new();
    }
    let mut points = series.iter().peekable();
    let mut current = *value;
    (1..=columns)
        .map(|column| {
            let until = first + elapsed * column as f64 / columns as f64;
            while let Some((_, value)) = points.next_if(|(at, _)| *at <= until || column == columns)
            {
                current = *value;
            }
            current
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{chart, spark};
    use proptest::prelude::*;

    #[test]
    fn a_rise_rises_and_a_level_is_low() {
        let rise: Vec<(f64, u64)> = (0_u32..8)
            .map(|at| (f64::from(at), u64::from(at)))
            .collect();
        assert_eq!(spark(&rise, 8), "▁▂▃▄▅▆▇█");
        let level: Vec<(f64, u64)> = (0_u32..8).map(|at| (f64::from(at), 1000)).collect();
        assert_eq!(spark(&level, 4), "▁▁▁▁");
        assert_eq!(spark(&[(0.0, 1)], 4), "");
        assert_eq!(
            chart(&level, 20, 2),
            [
                "1000 B │████████████",
                "   0 B │████████████",
                "       └0 ms───7.0 s"
            ]
        );
        assert!(chart(&[(0.0, 0), (1.0, 0)], 20, 2).is_empty());
    }

    proptest! {
        #[test]
        fn any_series_fits(values in prop::collection::vec((any::<f64>(), any::<u64>()), 0..40), columns in 0..50_usize) {
            prop_assert!(spark(&values, columns).chars().count() <= columns);
            for line in chart(&values, columns, 3) {
                prop_assert!(line.chars().count() <= columns.max(12), "{line}");
            }
        }
    }
}
