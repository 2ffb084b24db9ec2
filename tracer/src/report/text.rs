//! The report for people, in a terminal or a mail.
//!
//! The processes first, then a block of lines per site, the largest first, then what the figures rest on: totals,
//! losses, tier, overhead.

mod stack;
mod units;

use std::io::{self, Write};

use leakscope_common::Loss;

use super::Format;
use super::model::{Probe, Process, Report, Site, Verdict};
use super::names::{UNKNOWN_STACK, base_name, clean, why_empty};
use stack::Line;
use units::{blocks, bytes, count, duration, percent, plural, rate, share};

/// So many processes are described; of the others the number is given.
const PROCESSES_SHOWN: usize = 20;

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
        self.header(report, out)?;
        let total = report.total();
        let several = report.processes.len() > 1;
        let mut rank = 0;
        for site in report.sites.iter().filter(|site| survives(site)) {
            rank += 1;
            self.site(report, site, rank, several, total.inuse_bytes, out)?;
        }
        if total.inuse_bytes == 0 && total.inuse_objects == 0 {
            writeln!(out, "{}", self.dress(BOLD, "No surviving blocks"))?;
            for why in why_empty(&report.processes).iter().take(PROCESSES_SHOWN) {
                writeln!(out, "  {why}")?;
            }
            writeln!(out)?;
        }
        self.footer(report, rank, out)
    }
}

/// Sites whose blocks are all freed are counted, not listed.
fn survives(site: &Site) -> bool {
    site.inuse_objects > 0 || site.inuse_bytes > 0
}

impl Text {
    fn header(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
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
        for process in report.processes.iter().take(PROCESSES_SHOWN) {
            self.process(process, out)?;
        }
        let more = report.processes.len().saturating_sub(PROCESSES_SHOWN);
        if more > 0 {
            writeln!(
                out,
                "and {more} more process{}\n",
                if more == 1 { "" } else { "es" }
            )?;
        }
        Ok(())
    }

    fn process(self, process: &Process, out: &mut dyn Write) -> io::Result<()> {
        let name = format!("{} (pid {})", clean(&process.comm), process.pid);
        writeln!(out, "{}", self.dress(BOLD, &name))?;
        let mut line = |key: &str, value: &str| writeln!(out, "  {key:<11}{value}");
        if !process.cgroup.is_empty() && process.cgroup != "/" {
            line("cgroup", &clean(&process.cgroup))?;
        }
        if process.allocators.is_empty() {
            line("allocator", "none found")?;
        }
        for allocator in &process.allocators {
            line("allocator", &clean(allocator))?;
        }
        if !process.probes.is_empty() {
            line("calls", &calls(&process.probes))?;
        }
        if process.rss_bytes > 0 {
            let resident = format!(
                "{} resident, {}",
                bytes(process.rss_bytes),
                rate(process.rss_growth_bytes_per_s)
            );
            line("memory", &resident)?;
        }
        let surviving = format!(
            "{} in {}, of {} in {} allocated",
            bytes(process.inuse_bytes),
            blocks(process.inuse_objects),
            bytes(process.alloc_bytes),
            blocks(process.alloc_objects)
        );
        line("surviving", &surviving)?;
        if process.frees_of_unknown_blocks > 0 {
            let frees = format!(
                "{} of blocks from before the trace or filtered out",
                count(process.frees_of_unknown_blocks)
            );
            line("frees", &frees)?;
        }
        if process.exited {
            let note = process
                .exit_note
                .as_deref()
                .unwrap_or("while it was traced");
            line("ended", &clean(note))?;
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
            blocks(site.inuse_objects)
        );
        write!(
            out,
            "{}  {}",
            self.dress(BOLD, &head),
            share(site.inuse_bytes, total)
        )?;
        if several {
            let comm = report.process_of(site).map(|process| clean(&process.comm));
            write!(out, "  {} (pid {})", comm.unwrap_or_default(), site.pid)?;
        }
        match site.verdict {
            Verdict::InsufficientData => {}
            verdict => {
                let color = match verdict {
                    Verdict::Leaking => RED,
                    Verdict::WarmingUp => YELLOW,
                    _ => BOLD,
                };
                write!(out, "  {}", self.dress(color, verdict.name()))?;
            }
        }
        writeln!(out)?;
        if !site.verdict_reason.is_empty() {
            writeln!(out, "    {}", clean(&site.verdict_reason))?;
        }
        let (own, callers) = stack::split(&site.frames);
        writeln!(
            out,
            "    {}",
            self.dress(DIM, &facts(site, stack::via(own)))
        )?;
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
            let missing = if no_allocator {
                UNKNOWN_STACK
            } else {
                "[no caller recorded]"
            };
            writeln!(out, "      {missing}")?;
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

    fn footer(self, report: &Report, shown: usize, out: &mut dyn Write) -> io::Result<()> {
        let total = report.total();
        let mut line = |key: &str, value: &str| {
            writeln!(out, "{} {value}", self.dress(BOLD, &format!("{key:<9}")))
        };
        line(
            "Total",
            &format!(
                "{} in {} at {} site{}, of {} in {} allocated",
                bytes(total.inuse_bytes),
                blocks(total.inuse_objects),
                count(total.sites),
                plural(total.sites),
                bytes(total.alloc_bytes),
                blocks(total.alloc_objects)
            ),
        )?;
        let omitted = report.omitted;
        if omitted.sites > 0 {
            line(
                "Not shown",
                &format!(
                    "{} site{} with {} in {}",
                    count(omitted.sites),
                    plural(omitted.sites),
                    bytes(omitted.inuse_bytes),
                    blocks(omitted.inuse_objects)
                ),
            )?;
        }
        let freed = report.sites.len().saturating_sub(shown) as u64;
        if freed > 0 {
            line(
                "Freed",
                &format!(
                    "{} site{} where no block survives",
                    count(freed),
                    plural(freed)
                ),
            )?;
        }
        self.losses(report, out)?;
        let mut line = |key: &str, value: &str| {
            writeln!(out, "{} {value}", self.dress(BOLD, &format!("{key:<9}")))
        };
        let reason = if report.tier_reason.is_empty() {
            String::new()
        } else {
            format!(": {}", clean(&report.tier_reason))
        };
        line("Tier", &format!("{}{reason}", report.tier.name()))?;
        let overhead = &report.overhead;
        line(
            "Overhead",
            &format!(
                "{} probe hits, about {} of the traced CPU time; budget {}; probes attached {} of the time",
                count(overhead.probe_hits),
                percent(overhead.target_cpu_fraction),
                percent(overhead.budget),
                percent(overhead.duty)
            ),
        )
    }

    fn losses(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let heading = self.dress(BOLD, &format!("{:<9}", "Losses"));
        let mut lost = report
            .losses
            .iter()
            .filter(|&(_, &lost)| lost > 0)
            .peekable();
        if lost.peek().is_none() {
            return writeln!(out, "{heading} no losses");
        }
        writeln!(out, "{heading}")?;
        for (name, &lost) in lost {
            let known = Loss::ALL.into_iter().find(|loss| loss.name() == name);
            let sentence = known.map_or_else(|| clean(name), |loss| loss.sentence().into());
            let effect = match known {
                Some(loss) if loss.affects_bytes() => "; the figures may be off by as many blocks",
                _ => "",
            };
            writeln!(out, "  {:>9}  {sentence}{effect}", count(lost))?;
        }
        Ok(())
    }
}

/// The figures of a site below its heading.
fn facts(site: &Site, via: Option<String>) -> String {
    let mut facts = Vec::new();
    if (site.inuse_bytes_low, site.inuse_bytes_high) != (site.inuse_bytes, site.inuse_bytes) {
        facts.push(format!(
            "between {} and {} with 95 % confidence",
            bytes(site.inuse_bytes_low),
            bytes(site.inuse_bytes_high)
        ));
    }
    if site.weight > 1 {
        facts.push(format!("one of {} blocks recorded", count(site.weight)));
    }
    facts.push(format!(
        "allocated {} in {}",
        bytes(site.alloc_bytes),
        blocks(site.alloc_objects)
    ));
    if site.inuse_objects > 0 {
        facts.push(format!("oldest {}", duration(site.oldest_age_s)));
    }
    facts.push(rate(site.growth_bytes_per_s));
    if let Some(via) = via {
        facts.push(format!("via {via}"));
    }
    facts.join(" · ")
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
            format!("{}{module} {}", clean(&probe.name), count(probe.hits))
        })
        .collect();
    if called.is_empty() {
        format!("none to the {} probed functions", probes.len())
    } else {
        called.join(" · ")
    }
}
