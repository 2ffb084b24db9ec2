//! A chart of memory over time, as SVG.

use std::io::{self, Write};

use super::super::model::MemoryPoint;
use crate::units;

/// Units of the drawing; the page scales it.
const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 160.0;
/// Room for the labels on the left and below.
const LEFT: f64 = 80.0;
const BELOW: f64 = 22.0;

/// Draws resident and surviving memory; nothing of fewer than two points.
pub(super) fn write(points: &[MemoryPoint], out: &mut dyn Write) -> io::Result<()> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Ok(());
    };
    let span = last.at_s - first.at_s;
    // Not a number, too.
    if span.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
        return Ok(());
    }
    let most = points
        .iter()
        .map(|point| point.rss_bytes.max(point.inuse_bytes))
        .max()
        .unwrap_or(0)
        .max(1);
    let bottom = HEIGHT - BELOW;
    let line = |value: fn(&MemoryPoint) -> u64| {
        points
            .iter()
            .map(|point| {
                let x = LEFT + (point.at_s - first.at_s) / span * (WIDTH - LEFT);
                let y = bottom - value(point) as f64 / most as f64 * (bottom - 8.0);
                format!("{x:.1},{y:.1}")
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    writeln!(
        out,
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\" role=\"img\" aria-label=\"memory over time\">\
         <path d=\"M{LEFT},8V{bottom}H{WIDTH}\" fill=\"none\" stroke=\"#d9dee5\"/>\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#35618e\" stroke-width=\"2\"/>\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#b3261e\" stroke-width=\"2\"/>",
        line(|point| point.rss_bytes),
        line(|point| point.inuse_bytes)
    )?;
    let label = |x: f64, y: f64, anchor: &str, color: &str, text: &str| {
        format!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"12\" font-family=\"system-ui,sans-serif\" fill=\"{color}\">{text}</text>"
        )
    };
    let dim = "#5d6875";
    writeln!(
        out,
        "{}{}{}{}{}{}</svg>",
        label(LEFT - 6.0, 14.0, "end", dim, &units::bytes(most)),
        label(LEFT - 6.0, bottom, "end", dim, "0 B"),
        label(
            LEFT,
            HEIGHT - 6.0,
            "start",
            dim,
            &units::duration(first.at_s)
        ),
        label(WIDTH, HEIGHT - 6.0, "end", dim, &units::duration(last.at_s)),
        label(
            LEFT + 200.0,
            HEIGHT - 6.0,
            "start",
            "#35618e",
            "— resident memory"
        ),
        label(
            LEFT + 360.0,
            HEIGHT - 6.0,
            "start",
            "#b3261e",
            "— survives of what was traced"
        ),
    )
}
