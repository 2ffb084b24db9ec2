//! The report for people, in a terminal or a mail.
//!
//! The processes first, then a block of lines per site, the largest first, then what the figures rest on: totals,
//! losses, tier, overhead.

mod chart;
mod difference;
mod footer;
mod kernel;
mod stack;

use std::io::{self, Write};

use super::model::{
    CountedGrowth, Probe, Process, ProcessKernel, Report, Site, SiteKind, Tier, Verdict,
};
use super::names::{self, UNKNOWN_STACK, base_name, clean, process_name, why_all_empty, why_empty};
use super::{Difference, Format};
use crate::units::{blocks, bytes, count, duration, pages, plural, rate, share};
use stack::Line;

/// Of so many processes, memory is drawn.
const PROCESSES_DRAWN: usize = 4;

/// So many processes are described; of the others the number is given.
const PROCESSES_SHOWN: usize = 20;

/// So many processes are described even if nothing of theirs survives.
const FEW_PROCESSES: usize = 4;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text {
    style: Style,
}

/// How the text is dressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether to use ANSI colours: headings bold, leaks red, secondary lines dim.
    pub color: bool,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const YELLOW: &str = "33";

impl Text {
    /// The view in a style.
    #[must_use]
    pub const fn new(style: Style) -> Self {
        Self { style }
    }

    /// Text in one of the colours above (a parameter of ANSI's "select graphic rendition").
    fn dress(self, color: &str, text: &str) -> String {
        if self.style.color {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

impl Format for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn media_type(&self) -> &'static str {
        "text/plain; charset=utf-8"
    }

    fn write(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let total = report.total();
        let nothing = total.inuse_bytes == 0 && total.inuse_objects == 0;
        self.header(report, nothing, out)?;
        let several = report.processes.len() > 1;
        let mut rank = 0;
        let surviving = || report.sites.iter().filter(|site| survives(site));
        let held = || surviving().filter(|site| site.kind != SiteKind::Pages);
        // What is lost at exit comes first, however small it is.
        let comes_first = |site: &&Site| report.lost_at_exit && site.has_lost();
        let (lost, others) = (
            held().filter(comes_first),
            held().filter(|site| !comes_first(site)),
        );
        for site in lost.chain(others) {
            rank += 1;
            self.site(report, site, rank, several, total.inuse_bytes, out)?;
        }
        if nothing {
            writeln!(out, "{}", self.dress(BOLD, "No surviving blocks"))?;
            for why in why_all_empty(&report.processes)
                .iter()
                .take(PROCESSES_SHOWN)
            {
                writeln!(out, "  {why}")?;
            }
            writeln!(out)?;
        }
        let touched = || surviving().filter(|site| site.kind == SiteKind::Pages);
        let total = touched().fold(0, |sum: u64, site| sum.saturating_add(site.inuse_bytes));
        for (place, site) in touched().enumerate() {
            if place == 0 {
                let title = "Pages, by where they were first written to";
                let of =
                    "an estimate; mappings may hold the same bytes, so they are not in the total";
                writeln!(out, "{} ({of})\n", self.dress(BOLD, title))?;
            }
            rank += 1;
            self.site(report, site, rank, several, total, out)?;
        }
        self.kernel(report, out)?;
        self.footer(report, rank, out)
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
        difference::write(*self, difference, out)
    }
}

/// What a person looks for first: the line of Python, else the first caller.
pub(crate) fn headline(site: &Site) -> String {
    let (_, callers) = stack::split(&site.frames);
    stack::python_line(callers)
        .or_else(|| stack_lines(site).into_iter().next())
        .unwrap_or_default()
}

/// The frames that called the allocator, innermost first.
pub(crate) fn callers(site: &Site) -> &[std::sync::Arc<super::Frame>] {
    stack::split(&site.frames).1
}

/// A site's stack without the allocator's own frames, a line each.
pub(crate) fn stack_lines(site: &Site) -> Vec<String> {
    let (own, callers) = stack::split(&site.frames);
    let mut lines: Vec<String> = stack::lines(callers)
        .into_iter()
        .map(|line| match line {
            Line::Frame(text) | Line::Remark(text) => text,
        })
        .collect();
    if lines.is_empty() {
        lines.push(missing(own.is_empty()).to_owned());
    }
    lines.extend(names::incomplete(site));
    lines
}

/// What stands where no caller does.
fn missing(no_allocator: bool) -> &'static str {
    if no_allocator {
        UNKNOWN_STACK
    } else {
        "[no caller recorded]"
    }
}

/// Fewer goroutines of a place than this are counted, not listed: every program has some.
const FEW_GOROUTINES: u64 = 8;

/// Sites whose blocks are all freed are counted, not listed.
fn survives(site: &Site) -> bool {
    if site.kind == SiteKind::Goroutines {
        return site.inuse_objects >= FEW_GOROUTINES;
    }
    site.inuse_objects > 0 || site.inuse_bytes > 0
}

impl Text {
    fn header(self, report: &Report, nothing: bool, out: &mut dyn Write) -> io::Result<()> {
        let title = format!(
            "leakscope: {} tier, traced for {}",
            report.tier.name(),
            duration(report.duration_s)
        );
        writeln!(
            out,
            "{}  {}\n",
            self.dress(BOLD, &title),
            self.dress(DIM, &report.captured_at.to_string())
        )?;
        let few = report.processes.len() <= FEW_PROCESSES;
        let leaks = |process: &Process| process.kernel.as_ref().is_some_and(ProcessKernel::leaks);
        let is_shown =
            |process: &&Process| few || nothing || process.inuse_bytes > 0 || leaks(process);
        let mut shown = 0;
        for process in report
            .processes
            .iter()
            .filter(is_shown)
            .take(PROCESSES_SHOWN)
        {
            self.process(report, process, nothing, shown < PROCESSES_DRAWN, out)?;
            shown += 1;
        }
        let more = report.processes.len() - shown;
        if more > 0 {
            let empty = report.processes.iter().filter(|one| !is_shown(one)).count();
            let what = if empty == more {
                ", with nothing surviving"
            } else {
                ""
            };
            writeln!(
                out,
                "and {more} more process{}{what}\n",
                if more == 1 { "" } else { "es" }
            )?;
        }
        Ok(())
    }

    /// `nothing` survives anywhere: why is said once, further below.
    fn process(
        self,
        report: &Report,
        process: &Process,
        nothing: bool,
        drawn: bool,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        writeln!(out, "{}", self.dress(BOLD, &process_name(process)))?;
        if !process.verdict_reason.is_empty() {
            let color = verdict_color(process.verdict);
            let verdict = self.dress(color, process.verdict.name());
            let reason = clean(&process.verdict_reason);
            writeln!(out, "  {:<11}{verdict}: {reason}", "verdict")?;
        }
        let mut line = |key: &str, value: &str| writeln!(out, "  {key:<11}{value}");
        if !process.cgroup.is_empty() && process.cgroup != "/" {
            line("cgroup", &clean(&process.cgroup))?;
        }
        if process.allocators.is_empty() && report.tier != Tier::Growth {
            line("allocator", "none found")?;
        }
        for allocator in &process.allocators {
            let unused = if is_unused(process, allocator) {
                " (no call seen)"
            } else {
                ""
            };
            line("allocator", &format!("{}{unused}", clean(allocator)))?;
        }
        if !process.probes.is_empty() {
            line("calls", &calls(&process.probes))?;
        }
        if process.rss_bytes > 0 {
            let trend = rate(process.rss_growth_bytes_per_s);
            let trend = trend.map(|rate| format!(", {rate}")).unwrap_or_default();
            let anonymous = if report.tier == Tier::Growth {
                format!(", {} of it anonymous", bytes(process.anonymous_bytes))
            } else {
                String::new()
            };
            let resident = format!("{} resident{anonymous}{trend}", bytes(process.rss_bytes));
            line("memory", &resident)?;
        }
        if let Some(go) = &process.go {
            line("go", &names::go_use(go))?;
        }
        if let Some(heap) = process.notable_heap() {
            line("heap", &names::heap_use(heap))?;
        } else if let Some(note) = &process.heap_note {
            line("heap", &clean(note))?;
        }
        if process.inuse_objects > 0 || process.inuse_bytes > 0 {
            let surviving = format!(
                "{} in {}, of {} in {} allocated",
                bytes(process.inuse_bytes),
                blocks(process.inuse_objects),
                bytes(process.alloc_bytes),
                blocks(process.alloc_objects)
            );
            line("surviving", &surviving)?;
        } else if !nothing {
            line("surviving", &format!("nothing: {}", why_empty(process)))?;
        }
        if process.frees_of_unknown_blocks > 0 {
            let allocated = match report.tier {
                Tier::Sampled => "outside the windows",
                Tier::Exact | Tier::Growth => "before tracing",
            };
            let frees = format!(
                "{} unmatched (allocated {allocated}, or filtered out)",
                count(process.frees_of_unknown_blocks)
            );
            line("frees", &frees)?;
        }
        if let Some(kernel) = &process.kernel {
            self.process_kernel(kernel, out)?;
        }
        let mut line = |key: &str, value: &str| writeln!(out, "  {key:<11}{value}");
        match process.exit_note.as_deref() {
            note if process.exited => {
                line("ended", &clean(note.unwrap_or("while it was traced")))?;
            }
            Some(note) => line("note", &clean(note))?,
            None => {}
        }
        let anonymous = report.tier == Tier::Growth;
        if let Some((what, curve)) =
            chart::lines(&process.memory_series, anonymous).filter(|_| drawn)
        {
            for (place, text) in curve.iter().enumerate() {
                line(if place == 0 { what } else { "" }, text)?;
            }
        }
        writeln!(out)
    }

    fn site(
        self,
        report: &Report,
        site: &Site,
        rank: usize,
        several: bool,
        total: u64,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let head = format!(
            "#{rank}  {} in {}",
            bytes(site.inuse_bytes),
            objects(site, site.inuse_objects)
        );
        write!(
            out,
            "{}  {}",
            self.dress(BOLD, &head),
            share(site.inuse_bytes, total)
        )?;
        if several {
            let process = report.process_of(site).map(process_name);
            let name = process.unwrap_or_else(|| format!("pid {}", site.pid));
            write!(out, "  {name}")?;
        }
        if let Some(kind) = site.mapping {
            write!(out, "  {}", kind.label())?;
        }
        if site.kind == SiteKind::Goroutines {
            write!(out, "  stacks of goroutines")?;
        }
        let verdict = self.dress(verdict_color(site.verdict), site.verdict.name());
        writeln!(out, "  {verdict}")?;
        let (own, callers) = stack::split(&site.frames);
        if let Some(line) = stack::python_line(callers) {
            writeln!(out, "    in {line}")?;
        }
        if !site.verdict_reason.is_empty() {
            writeln!(out, "    {}", clean(&site.verdict_reason))?;
        }
        if let Some(estimate) = estimate(site) {
            writeln!(out, "    {}", self.dress(DIM, &estimate))?;
        }
        let process = report.process_of(site);
        let several = process.is_some_and(|process| process.allocators.len() > 1);
        let facts = facts(site, stack::via(own), several);
        writeln!(out, "    {}", self.dress(DIM, &facts))?;
        for line in names::looked_at(site) {
            writeln!(out, "    {line}")?;
        }
        self.stack(site, own.is_empty(), callers, out)?;
        writeln!(out)
    }

    fn stack(
        self,
        site: &Site,
        no_allocator: bool,
        callers: &[std::sync::Arc<super::Frame>],
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if callers.is_empty() {
            writeln!(out, "      {}", missing(no_allocator))?;
        }
        for line in stack::lines(callers) {
            match line {
                Line::Frame(text) => writeln!(out, "      {text}")?,
                Line::Remark(text) => writeln!(out, "      {}", self.dress(DIM, &text))?,
            }
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

fn verdict_color(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Leaking => RED,
        Verdict::WarmingUp => YELLOW,
        Verdict::Plateau | Verdict::Churn | Verdict::InsufficientData => BOLD,
    }
}

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
    parts.extend(site.counted.as_ref().and_then(counted));
    (!parts.is_empty()).then(|| parts.join(" · "))
}

/// How much of a site's growth is counted, and how much of what stays is its.
fn counted(counted: &CountedGrowth) -> Option<String> {
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
    Some(format!(
        "{rate} counted in blocks of {of}; {} ± {} % of those that stay are this site's",
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
    if site.inuse_objects > 0 && !matches!(site.kind, SiteKind::Go | SiteKind::Goroutines) {
        facts.push(format!("oldest {}", duration(site.oldest_age_s)));
    }
    facts.extend(rate(site.growth_bytes_per_s));
    if site.reserved_bytes > 0 {
        facts.push(format!("{} more reserved", bytes(site.reserved_bytes)));
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

/// Whether nothing went through an allocator while another was called: it is linked in, and that is all.
fn is_unused(process: &Process, allocator: &str) -> bool {
    let is_of = |probe: &&Probe| {
        probe
            .module
            .as_deref()
            .is_some_and(|module| allocator.ends_with(module))
    };
    let probes = &process.probes;
    // Of those that share a counter, each may have been called.
    let called = |probe: &Probe| {
        let shares = |other: &&Probe| probe.together.is_some() && other.together == probe.together;
        probe.hits > 0 || probes.iter().filter(shares).any(|other| other.hits > 0)
    };
    probes.iter().any(|probe| probe.hits > 0)
        && probes.iter().any(|probe| is_of(&probe))
        && !probes.iter().filter(is_of).any(called)
}

/// How often each function was called. Its file is named where there is more than one.
fn calls(probes: &[Probe]) -> String {
    let several = probes
        .windows(2)
        .any(|pair| matches!(pair, [first, second] if first.module != second.module));
    let called: Vec<String> = probes
        .iter()
        .filter(|probe| probe.hits > 0)
        .map(|probe| {
            let module = match &probe.module {
                Some(module) if several => format!(" [{}]", clean(base_name(module))),
                _ => String::new(),
            };
            let others = probes
                .iter()
                .filter(|other| probe.together.is_some() && other.together == probe.together)
                .count()
                .saturating_sub(1);
            let together = match others {
                0 => String::new(),
                others => format!(" and {others} more together"),
            };
            let name = clean(&probe.name);
            format!("{name}{module}{together} {}", count(probe.hits))
        })
        .collect();
    if called.is_empty() {
        let probed = probes.len() as u64;
        format!(
            "none to the {} probed function{}",
            count(probed),
            plural(probed)
        )
    } else {
        called.join(" · ")
    }
}
