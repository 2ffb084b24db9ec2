//! A chart of memory over time, as SVG.

use std::io::{self, Write};

use super::super::model::MemoryPoint;
use crate::units;

/// Units of the drawing, which the page stretches to its own width: lines keep theirs, and text stands beside it.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;

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
    let line = |value: fn(&MemoryPoint) -> u64| {
        points
            .iter()
            .map(|point| {
                let x = (point.at_s - first.at_s) / span * WIDTH;
                let y = HEIGHT * (1.0 - value(point) as f64 / most as f64);
                format!("{x:.1},{y:.1}")
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    writeln!(
        out,
        "<p class=\"axis dim\"><span>{}</span><span class=\"resident\">— resident memory</span>\
         <span class=\"inuse\">— survives of what was traced</span></p>\
         <svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"memory over time\">\
         <polyline class=\"resident\" points=\"{}\"/><polyline class=\"inuse\" points=\"{}\"/></svg>\
         <p class=\"axis dim\"><span>{}</span><span>{}</span></p>",
        units::bytes(most),
        line(|point| point.rss_bytes),
        line(|point| point.inuse_bytes),
        units::duration(first.at_s),
        units::duration(last.at_s)
    )
}
