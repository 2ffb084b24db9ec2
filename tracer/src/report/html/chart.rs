//! A chart of memory over time, as SVG.

use std::io::{self, Write};

use super::super::model::MemoryPoint;
use crate::units;

/// Units of the drawing, which the page stretches to its own width: lines keep theirs, and text stands beside it.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;

/// A line: of these points this value.
struct Line<'a> {
    class: &'static str,
    name: &'static str,
    points: &'a [MemoryPoint],
    value: fn(&MemoryPoint) -> u64,
}

/// Draws resident and surviving memory; nothing of fewer than two points.
pub(super) fn write(points: &[MemoryPoint], out: &mut dyn Write) -> io::Result<()> {
    let lines = [
        Line {
            class: "resident",
            name: "resident memory",
            points,
            value: |point| point.rss_bytes,
        },
        Line {
            class: "inuse",
            name: "survives of what was traced",
            points,
            value: |point| point.inuse_bytes,
        },
    ];
    draw(&lines, out)
}

/// The same of two traces, each from its own beginning.
pub(super) fn write_two(
    before: &[MemoryPoint],
    now: &[MemoryPoint],
    out: &mut dyn Write,
) -> io::Result<()> {
    let lines = [
        Line {
            class: "resident before",
            name: "resident before",
            points: before,
            value: |point| point.rss_bytes,
        },
        Line {
            class: "inuse before",
            name: "survived before",
            points: before,
            value: |point| point.inuse_bytes,
        },
        Line {
            class: "resident",
            name: "resident now",
            points: now,
            value: |point| point.rss_bytes,
        },
        Line {
            class: "inuse",
            name: "survives now",
            points: now,
            value: |point| point.inuse_bytes,
        },
    ];
    draw(&lines, out)
}

fn draw(lines: &[Line<'_>], out: &mut dyn Write) -> io::Result<()> {
    let points = || lines.iter().flat_map(|line| line.points);
    let times = || points().map(|point| point.at_s);
    let (first, last) = (
        times().fold(f64::INFINITY, f64::min),
        times().fold(f64::NEG_INFINITY, f64::max),
    );
    let span = last - first;
    // Nothing, one point alone, and not a number.
    if !span.is_finite() || span <= 0.0 {
        return Ok(());
    }
    let most = points()
        .map(|point| point.rss_bytes.max(point.inuse_bytes))
        .max()
        .unwrap_or(0)
        .max(1);
    let drawn = || lines.iter().filter(|line| line.points.len() > 1);
    write!(
        out,
        "<p class=\"axis dim\"><span>{}</span>",
        units::bytes(most)
    )?;
    for line in drawn() {
        write!(
            out,
            "<span class=\"{}\">{} {}</span>",
            line.class,
            if line.class.ends_with("before") {
                "┄"
            } else {
                "—"
            },
            line.name
        )?;
    }
    write!(
        out,
        "</p>\n<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"memory over time\">"
    )?;
    for line in drawn() {
        let path = line
            .points
            .iter()
            .map(|point| {
                let x = (point.at_s - first) / span * WIDTH;
                let y = HEIGHT * (1.0 - (line.value)(point) as f64 / most as f64);
                format!("{x:.1},{y:.1}")
            })
            .collect::<Vec<_>>()
            .join(" ");
        write!(
            out,
            "<polyline class=\"{}\" points=\"{path}\"/>",
            line.class
        )?;
    }
    writeln!(
        out,
        "</svg>\n<p class=\"axis dim\"><span>{}</span><span>{}</span></p>",
        units::duration(first),
        units::duration(last)
    )
}
