//! The surviving bytes as an interactive flame graph: an SVG file that needs nothing else.

use std::io;

use inferno::flamegraph::{self, Options};

use super::folded::{changed_stacks, stacks};
use super::model::Report;
use super::names::why_all_empty;
use super::{Difference, Format};

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Svg;

/// The sum of all stacks may not exceed this, for it is kept in 64 bits. No machine has so much memory.
const LARGEST_SUM: u64 = u64::MAX / 2;

/// In a picture of differences colours are computed with up to 150 times twice the greatest one, also in 64 bits.
const LARGEST_CHANGED_SUM: u64 = LARGEST_SUM / 300;

impl Format for Svg {
    fn name(&self) -> &'static str {
        "svg"
    }

    fn media_type(&self) -> &'static str {
        "image/svg+xml"
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        let stacks = stacks(report);
        if stacks.is_empty() {
            return write_empty(report, out);
        }
        let largest = LARGEST_SUM / stacks.len() as u64;
        let lines: Vec<String> = stacks
            .into_iter()
            .map(|(stack, bytes)| format!("{stack} {}", bytes.min(largest)))
            .collect();
        let mut options = options("Surviving memory", subtitle(report));
        flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()> {
        let stacks = changed_stacks(difference);
        if stacks.is_empty() {
            let lines = ["No change of surviving memory".to_owned(), span(difference)];
            return write_lines(&lines, out);
        }
        let largest = LARGEST_CHANGED_SUM / stacks.len() as u64;
        // Widths are those of the second value. Where nothing is left, what was there is drawn.
        let gone = stacks.values().all(|(_, after)| *after == 0);
        let lines: Vec<String> = stacks
            .into_iter()
            .map(|(stack, (before, after))| {
                let (first, second) = if gone {
                    (after, before)
                } else {
                    (before, after)
                };
                format!("{stack} {} {}", first.min(largest), second.min(largest))
            })
            .collect();
        let title = if gone {
            "Surviving memory that is gone since"
        } else {
            "Surviving memory at stacks that changed: red has grown, blue has shrunk"
        };
        let mut options = options(title, span(difference));
        options.negate_differentials = gone;
        flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
    }
}

fn options(title: &str, subtitle: String) -> Options<'static> {
    let mut options = Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle);
    options.count_name = "bytes".to_owned();
    options.deterministic = true;
    options
}

fn span(difference: &Difference) -> String {
    format!(
        "from {} to {}",
        difference.base.captured_at, difference.new.captured_at
    )
}

fn subtitle(report: &Report) -> String {
    format!(
        "{} tier, traced for {:.1} s, {}",
        report.tier.name(),
        report.duration_s,
        report.captured_at
    )
}

/// A picture of nothing says why.
fn write_empty(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let mut lines = vec!["No surviving memory".to_owned(), subtitle(report)];
    lines.extend(why_all_empty(&report.processes));
    write_lines(&lines, out)
}

/// A picture of lines of text.
fn write_lines(lines: &[String], out: &mut dyn io::Write) -> io::Result<()> {
    const LINE_HEIGHT: usize = 20;
    let height = LINE_HEIGHT * (lines.len() + 1);
    writeln!(
        out,
        r##"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="1200" height="{height}" viewBox="0 0 1200 {height}" xmlns="http://www.w3.org/2000/svg">
<rect width="100%" height="100%" fill="#f8f8f8"/>"##
    )?;
    for (place, line) in lines.iter().enumerate() {
        writeln!(
            out,
            r#"<text x="10" y="{}" font-family="monospace" font-size="12">{}</text>"#,
            LINE_HEIGHT * (place + 1),
            escape(line)
        )?;
    }
    writeln!(out, "</svg>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
