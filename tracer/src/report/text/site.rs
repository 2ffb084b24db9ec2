//! A site: in full with its stack, or in a row.

use std::io::{self, Write};
use std::sync::Arc;

use super::super::lives::lives;
use super::super::model::{CountedGrowth, Frame, Report, Site, SiteKind, Verdict};
use super::super::names::{self, clean, process_name};
use super::layout::cut;
use super::stack::{self, Line, Look};
use super::{BOLD, DIM, Text, YELLOW, missing, reserved, verdict_color};
use crate::units::{blocks, bytes, count, duration, pages, plural, rate, share};

/// Lines of a stack, where not all of it is asked for.
const STACK: usize = 8;

/// Columns before a frame of a stack.
const INDENT: usize = 6;

/// Columns of a row that are left for the title at least.
const TITLE: usize = 20;

/// A site, and what it is shown among.
pub(super) struct Shown<'a> {
    pub(super) report: &'a Report,
    pub(super) site: &'a Site,
    pub(super) rank: usize,
    /// What its bytes are a share of.
    pub(super) total: u64,
    /// The frame that tells it apart, and whether others stand before that.
    pub(super) title: Option<(&'a Frame, bool)>,
    /// What tells it apart from others with the same names.
    pub(super) mark: Option<&'a str>,
}

impl Shown<'_> {
    /// Whose it is, where there are several.
    fn process(&self) -> Option<String> {
        (self.report.processes.len() > 1).then(|| {
            let process = self.report.process_of(self.site).map(process_name);
            process.unwrap_or_else(|| format!("pid {}", self.site.pid))
        })
    }

    /// What kind of memory it is, where it is not the usual one.
    fn kind(&self) -> Option<&'static str> {
        let mapping = self.site.mapping.map(|kind| kind.label());
        mapping
            .or_else(|| (self.site.kind == SiteKind::Goroutines).then_some("stacks of goroutines"))
    }
}

impl Text {
    /// How frames are written here, set in by so many columns.
    pub(super) fn look(self, indent: usize) -> Look {
        Look {
            short: !self.style.full,
            links: self.style.links,
            width: self.style.width.map(|width| width.saturating_sub(indent)),
        }
    }

    /// A site `in_full`, or in one line.
    pub(super) fn site(
        self,
        shown: &Shown<'_>,
        in_full: bool,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if !in_full {
            return out.write_all(self.site_row(shown).as_bytes());
        }
        let site = shown.site;
        let verdict = self.dress(verdict_color(site.verdict), site.verdict.name());
        let head = format!(
            "{} in {}",
            bytes(site.inuse_bytes),
            objects(site, site.inuse_objects)
        );
        write!(
            out,
            "{}  {verdict}  {}  {}",
            self.dress(BOLD, &format!("#{}", shown.rank)),
            self.dress(BOLD, &head),
            share(site.inuse_bytes, shown.total)
        )?;
        let kind = shown.kind().map(str::to_owned);
        let mark = shown.mark.map(str::to_owned);
        for more in [shown.process(), kind, mark].into_iter().flatten() {
            write!(out, "  {more}")?;
        }
        writeln!(out)?;
        let (own, callers) = stack::split(&site.frames);
        if let Some((title, true)) = shown.title {
            writeln!(
                out,
                "    in {}",
                stack::text_in(title, self.look(INDENT + 1))
            )?;
        }
        if !site.verdict_reason.is_empty() {
            writeln!(out, "    {}", clean(&site.verdict_reason))?;
        }
        if let Some(estimate) = estimate(site) {
            writeln!(out, "    {}", self.dress(DIM, &estimate))?;
        }
        let process = shown.report.process_of(site);
        let several = process.is_some_and(|process| process.allocators.len() > 1);
        let facts = facts(site, stack::via(own), several);
        writeln!(out, "    {}", self.dress(DIM, &facts))?;
        for line in names::looked_at(site) {
            writeln!(out, "    {line}")?;
        }
        if self.style.full {
            for (name, line) in site.lives.iter().flat_map(lives) {
                writeln!(out, "    {name}: {line}")?;
            }
        }
        self.stack(site, own.is_empty(), callers, out)?;
        writeln!(out)
    }

    /// A site in one line.
    pub(super) fn site_row(self, shown: &Shown<'_>) -> String {
        let site = shown.site;
        let verdict = match site.verdict {
            Verdict::InsufficientData => "insufficient",
            verdict => verdict.name(),
        };
        let head = format!("#{}  {verdict}", shown.rank);
        let figures = format!(
            "{:>9} {:>7}  ",
            bytes(site.inuse_bytes),
            share(site.inuse_bytes, shown.total)
        );
        let mut end = String::new();
        let is_wide = self.style.width.is_none_or(|width| width >= WIDE);
        let kind = shown.kind().filter(|_| is_wide).map(str::to_owned);
        let process = (shown.report.processes.len() > 1).then(|| {
            let process = shown.report.process_of(site);
            let comm = process.map_or("pid".into(), |process| clean(&process.comm));
            format!("{comm} {}", site.pid)
        });
        let mark = shown.mark.map(str::to_owned);
        for more in [mark, kind, process].into_iter().flatten() {
            end.push_str("  ");
            end.push_str(&more);
        }
        let taken = ROW + figures.chars().count() + end.chars().count();
        let room = self
            .style
            .width
            .map(|width| width.saturating_sub(taken).max(TITLE));
        let title = match shown.title {
            None => missing(site.frames.is_empty()).to_owned(),
            Some((title, _)) => {
                let look = Look {
                    width: room,
                    links: false,
                    ..self.look(0)
                };
                let plain = stack::text_in(title, look);
                match room {
                    Some(room) if plain.chars().count() > room => cut(&plain, room).into_owned(),
                    _ => stack::text_in(
                        title,
                        Look {
                            links: self.style.links,
                            ..look
                        },
                    ),
                }
            }
        };
        let end = match self.style.width {
            Some(width) => {
                let room = width.saturating_sub(ROW + figures.chars().count() + TITLE);
                cut(&end, room.max(1)).into_owned()
            }
            None => end,
        };
        format!("{head:<ROW$}{figures}{title}{}\n", self.dress(DIM, &end))
    }

    pub(super) fn stack(
        self,
        site: &Site,
        no_allocator: bool,
        callers: &[Arc<Frame>],
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if callers.is_empty() {
            writeln!(out, "      {}", missing(no_allocator))?;
        }
        let lines = stack::lines_in(callers, self.look(INDENT));
        // One more would take the line that says so.
        let shown = if self.style.full || lines.len() <= STACK + 1 {
            lines.len()
        } else {
            STACK
        };
        for line in lines.iter().take(shown) {
            match line {
                Line::Frame(text) => writeln!(out, "      {text}")?,
                Line::Remark(text) => writeln!(out, "      {}", self.dress(DIM, text))?,
            }
        }
        let more = lines.len() - shown;
        if more > 0 {
            let text = format!("… {more} more frames");
            writeln!(out, "      {}", self.dress(DIM, &text))?;
        }
        if !site.stack_complete && !site.frames.is_empty() {
            let reason = site.stack_incomplete_reason.as_deref();
            let text = format!(
                "… stack incomplete: {}",
                clean(reason.unwrap_or("the reason is not known"))
            );
            writeln!(out, "      {}", self.dress(YELLOW, &text))?;
        }
        Ok(())
    }
}

/// Columns of a row's number and verdict: `#12  insufficient  `.
const ROW: usize = 19;

/// Terminals of fewer columns have no room in a row for what kind of memory it is.
const WIDE: usize = 100;

/// So many of what a site consists of.
fn objects(site: &Site, number: u64) -> String {
    if site.kind == SiteKind::Pages {
        pages(number)
    } else if site.kind == SiteKind::Goroutines {
        format!("{} goroutine{}", count(number), plural(number))
    } else {
        blocks(number)
    }
}

/// How far a site's figures are an estimate; `None` when they are exact.
fn estimate(site: &Site) -> Option<String> {
    let mut parts = Vec::new();
    if (site.inuse_bytes_low, site.inuse_bytes_high) != (site.inuse_bytes, site.inuse_bytes) {
        parts.push(format!(
            "between {} and {} with 95 % confidence",
            bytes(site.inuse_bytes_low),
            bytes(site.inuse_bytes_high)
        ));
    }
    if site.weight > 1 {
        let what = if site.kind == SiteKind::Pages {
            "pages followed"
        } else {
            "blocks recorded"
        };
        parts.push(format!("one of {} {what}", count(site.weight)));
    }
    if let Some(sample) = site.sample {
        let alike = if sample.alike_objects > 0 {
            format!(" ({} with the same contents)", count(sample.alike_objects))
        } else {
            String::new()
        };
        parts.push(format!(
            "estimated from {}{alike} sampled in {} window{}, rechecked {} time{}",
            blocks(sample.objects),
            count(sample.windows),
            plural(sample.windows),
            count(sample.checks),
            plural(sample.checks),
        ));
    }
    parts.extend(
        site.counted
            .as_ref()
            .and_then(|counted| counted_growth(counted, site.verdict == Verdict::Plateau)),
    );
    (!parts.is_empty()).then(|| parts.join(" · "))
}

/// How much of a site's growth is counted, and how much of what stays is its. What `is_over` grew then, and does not now.
fn counted_growth(counted: &CountedGrowth, is_over: bool) -> Option<String> {
    let of = bytes(counted.block_bytes);
    if counted.share <= 0.0 {
        return None;
    }
    let rate = rate(counted.growth_bytes_per_s)
        .filter(|_| counted.growth_bytes_per_s.abs() > 2.0 * counted.growth_error_bytes_per_s);
    let Some(rate) = rate else {
        return Some(format!("no growth counted in blocks of {of}"));
    };
    let percent = |share: f64| (100.0 * share).round();
    let when = if is_over { " over the whole trace" } else { "" };
    Some(format!(
        "{rate}{when} counted in blocks of {of}; {} ± {} % of those that stay are this site's",
        percent(counted.share),
        percent(counted.share_error).max(1.0)
    ))
}

/// The figures of a site below its heading. The allocator is named where the process has `several`.
fn facts(site: &Site, via: Option<String>, several: bool) -> String {
    let mut facts = vec![format!(
        "{} {} in {}",
        if site.kind == SiteKind::Pages {
            "touched"
        } else if site.kind == SiteKind::Goroutines {
            "started"
        } else {
            "allocated"
        },
        bytes(site.alloc_bytes),
        objects(site, site.alloc_objects)
    )];
    // A profile does not say how old its blocks are.
    let has_age = site.oldest_age_s > 0.0;
    if has_age
        && site.inuse_objects > 0
        && !matches!(site.kind, SiteKind::Go | SiteKind::Goroutines)
    {
        facts.push(format!("oldest {}", duration(site.oldest_age_s)));
    }
    // Of one that has stopped it is a mean, and of what was.
    facts.extend(rate(site.growth_bytes_per_s).filter(|_| site.verdict != Verdict::Plateau));
    facts.extend(reserved(site));
    if let Some(peak) = site.peak_bytes.filter(|peak| *peak > site.inuse_bytes) {
        facts.push(format!("peak {}", bytes(peak)));
    }
    let allocator = site.allocator.as_deref().filter(|_| several);
    let family = allocator
        .and_then(|allocator| allocator.split_whitespace().next())
        .map(|family| format!(" of {}", clean(family)))
        .unwrap_or_default();
    if let Some(via) = via {
        facts.push(format!("via {via}{family}"));
    }
    facts.join(" · ")
}
