//! A process's memory over time as a few lines of block characters.

use crate::report::model::MemoryPoint;
use crate::units::{bytes, duration};

/// Columns of the curve, where there is room.
const COLUMNS: usize = 60;

/// And where there is little.
const FEWEST_COLUMNS: usize = 16;

/// Lines of the curve.
const ROWS: usize = 4;

/// Below so many points there is no curve.
const FEW: usize = 8;

/// Heights of an eighth of a line to a whole one.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is drawn, and its lines; `None` when there is too little to draw. Bytes in use are drawn from 0; where there are none,
/// resident memory is; `anonymous` memory where that is what was watched. In at most `width` columns, where that is given.
pub(super) fn lines(
    series: &[MemoryPoint],
    anonymous: bool,
    width: Option<usize>,
) -> Option<(&'static str, Vec<String>)> {
    let (first, last) = series.first().zip(series.last())?;
    let elapsed = last.at_s - first.at_s;
    if series.len() < FEW || elapsed.is_nan() || elapsed <= 0.0 {
        return None;
    }
    let (name, value): (_, fn(&MemoryPoint) -> u64) = if anonymous {
        ("anonymous", |point| point.anonymous_bytes)
    } else if series.iter().any(|point| point.inuse_bytes > 0) {
        ("in use", |point| point.inuse_bytes)
    } else {
        ("resident", |point| point.rss_bytes)
    };
    let most = series.iter().map(value).max().filter(|most| *most > 0)?;
    let label = bytes(most);
    let label_columns = label.chars().count();
    let columns = width.map_or(COLUMNS, |width| {
        width
            .saturating_sub(label_columns + 2)
            .clamp(FEWEST_COLUMNS, COLUMNS)
    });
    let mut points = series.iter().peekable();
    let mut current = value(first);
    let heights: Vec<usize> = (1..=columns)
        .map(|column| {
            let until = first.at_s + elapsed * column as f64 / columns as f64;
            // The highest in the column's time; a column without a point continues.
            let mut highest = None;
            while let Some(point) = points.next_if(|point| point.at_s <= until || column == columns)
            {
                current = value(point);
                highest = highest.max(Some(current));
            }
            let height = highest.unwrap_or(current) as f64 / most as f64 * (ROWS * 8) as f64;
            height.round() as usize
        })
        .collect();
    let mut lines: Vec<String> = (0..ROWS)
        .rev()
        .map(|row| {
            let curve: String = heights
                .iter()
                .filter_map(|height| EIGHTHS.get(height.saturating_sub(row * 8).min(8)))
                .collect();
            let label = match row {
                0 => "0 B",
                row if row + 1 == ROWS => &label,
                _ => "",
            };
            format!("{label:>label_columns$} │{}", curve.trim_end())
        })
        .collect();
    let (from, to) = (duration(first.at_s), duration(last.at_s));
    lines.push(format!(
        "{:label_columns$} └{from}{to:─>fill$}",
        "",
        fill = columns.saturating_sub(from.chars().count())
    ));
    Some((name, lines))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{COLUMNS, ROWS, lines};
    use crate::report::model::MemoryPoint;
    use proptest::prelude::*;

    fn series(values: &[u64]) -> Vec<MemoryPoint> {
        (0_u32..)
            .zip(values)
            .map(|(at, value)| MemoryPoint {
                at_s: f64::from(at),
                inuse_bytes: *value,
                rss_bytes: 5,
                anonymous_bytes: value.saturating_mul(2),
            })
            .collect()
    }

    #[test]
    fn anonymous_memory_is_drawn_where_it_was_watched() {
        let values: Vec<u64> = (1..=20).map(|point| point << 20).collect();
        let (name, curve) = lines(&series(&values), true, None).unwrap();
        assert_eq!(name, "anonymous");
        // Twice what is in use.
        assert!(curve.first().unwrap().contains("40"), "{curve:?}");
    }

    #[test]
    fn a_rise_is_drawn() {
        let values: Vec<u64> = (0..=60).map(|at| at * 1024).collect();
        let (name, lines) = lines(&series(&values), false, None).unwrap();
        insta::assert_snapshot!(format!("{name}\n{}", lines.join("\n")));
    }

    #[test]
    fn little_is_not_drawn() {
        assert_eq!(lines(&[], false, None), None);
        assert_eq!(lines(&series(&[1, 2, 3]), false, None), None);
        assert_eq!(lines(&[MemoryPoint::default(); 20], false, None), None);
        assert_eq!(lines(&series(&[0; 20]), false, None).unwrap().0, "resident");
    }

    proptest! {
        #[test]
        fn any_series_fits(values in prop::collection::vec(any::<u64>(), 8..200)) {
            if let Some((_, lines)) = lines(&series(&values), false, None) {
                prop_assert_eq!(lines.len(), ROWS + 1);
                prop_assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS + 12));
            }
        }
    }
}
