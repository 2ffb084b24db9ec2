//! The processes: each with its lines, or, where there are many, a row for each of those that grow.

use std::io::{self, Write};

use super::super::lives::lives;
use super::super::model::{Probe, Process, ProcessKernel, Report, Tier, Verdict};
use super::super::names::{self, base_name, clean, process_name, why_empty};
use super::{BOLD, DIM, Text, chart, verdict_color};
use crate::units::{blocks, bytes, count, duration, plural, rate};

/// Where the text of a process's lines begins, columns.
pub(super) const HANG: usize = 13;

/// So many processes are described even if nothing of theirs survives; from more on they are a machine's.
const FEW: usize = 4;

/// Of so many processes, memory is drawn where all is shown.
const DRAWN: usize = 4;

/// So many processes are described, or have a row; of the others the number is given.
const SHOWN: usize = 20;

/// Rows of processes on one screen.
const ROWS: usize = 8;

/// A process that grows more slowly than this is not said to, bytes a second: memory of every process moves a little.
const SLOWEST: f64 = 256.0;

/// Terminals of fewer columns have no room in a row for where a process runs.
const WIDE: usize = 110;

/// Columns of a process's name and of its verdict in a row.
const NAME: usize = 30;
const VERDICT: usize = 17;

/// Whether a report is one of many processes, of which a person wants the few that grow.
pub(super) fn is_a_machine(report: &Report) -> bool {
    report.processes.len() > FEW
}

/// Where a process runs: its container, or else its unit of systemd.
fn place(process: &Process) -> Option<String> {
    let container = process.container.as_ref().map(|one| {
        let text = one.describe();
        text.split(" of pod ").next().unwrap_or(&text).to_owned()
    });
    let place = container.or_else(|| process.unit.clone())?;
    Some(clean(&place).into_owned())
}

/// Whether a process makes the kernel hold more and more.
fn leaks_in_kernel(process: &Process) -> bool {
    process.kernel.as_ref().is_some_and(ProcessKernel::leaks)
}

impl Text {
    /// What is shown, and of when.
    pub(super) fn heading(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let mut title = format!("leakscope: {}", names::seen_by(report));
        // Profiles of others may not say.
        if report.duration_s > 0.0 || report.tier_reason != names::FROM_PROFILE {
            title.push_str(&format!(", traced for {}", duration(report.duration_s)));
        }
        writeln!(
            out,
            "{}  {}\n",
            self.dress(BOLD, &title),
            self.dress(DIM, &report.captured_at.to_string())
        )
    }

    /// The processes, each with its lines. `nothing` survives anywhere: why is said once, further below.
    pub(super) fn processes(
        self,
        report: &Report,
        nothing: bool,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let few = !is_a_machine(report);
        let is_shown = |process: &&Process| {
            few || nothing || process.inuse_bytes > 0 || leaks_in_kernel(process)
        };
        let mut sorted: Vec<&Process> = report.processes.iter().filter(is_shown).collect();
        // Those that leak first.
        sorted.sort_by_key(|process| {
            process.verdict != Verdict::Leaking && !leaks_in_kernel(process)
        });
        let mut shown = 0;
        for process in sorted.into_iter().take(SHOWN) {
            let is_drawn = if self.style.full {
                shown < DRAWN
            } else {
                report.processes.len() == 1
            };
            self.process(report, process, nothing, is_drawn, out)?;
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

    /// Who grows: those that leak first, then those that grow fastest.
    pub(super) fn rows(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let leaks =
            |process: &Process| process.verdict == Verdict::Leaking || leaks_in_kernel(process);
        let mut sorted: Vec<&Process> = report
            .processes
            .iter()
            .filter(|process| leaks(process) || process.rss_growth_bytes_per_s >= SLOWEST)
            .collect();
        sorted.sort_by(|one, two| {
            let growth = |process: &Process| process.rss_growth_bytes_per_s;
            leaks(two)
                .cmp(&leaks(one))
                .then(growth(two).total_cmp(&growth(one)))
                .then(one.pid.cmp(&two.pid))
        });
        let leaking = sorted.iter().filter(|process| leaks(process)).count() as u64;
        let title = format!(
            "{} processes: {}, {} grow{}",
            report.processes.len(),
            match leaking {
                0 => "none leaks".to_owned(),
                1 => "1 leaks".to_owned(),
                many => format!("{} leak", count(many)),
            },
            sorted.len(),
            if sorted.len() == 1 { "s" } else { "" }
        );
        writeln!(out, "{}", self.dress(BOLD, &title))?;
        let rows = if self.style.full { SHOWN } else { ROWS };
        for process in sorted.iter().take(rows) {
            let verdict = if leaks(process) {
                Verdict::Leaking
            } else {
                process.verdict
            };
            let name = process_name(process);
            let wide = self.style.width.is_none_or(|width| width >= WIDE);
            writeln!(
                out,
                "  {}{} {:<NAME$} {:>12}  {:>9}{}",
                self.dress(verdict_color(verdict), verdict.name()),
                " ".repeat(VERDICT.saturating_sub(verdict.name().len())),
                super::layout::cut(&name, NAME),
                rate(process.rss_growth_bytes_per_s).unwrap_or_default(),
                bytes(process.rss_bytes),
                place(process)
                    .filter(|_| wide)
                    .map(|place| self.dress(DIM, &format!("  {place}")))
                    .unwrap_or_default(),
            )?;
            if process.verdict == Verdict::Leaking && !process.verdict_reason.is_empty() {
                writeln!(out, "      {}", clean(&process.verdict_reason))?;
            }
        }
        if sorted.len() > rows {
            let more = format!("and {} more that grow", sorted.len() - rows);
            writeln!(out, "  {}", self.dress(DIM, &more))?;
        }
        writeln!(out)
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
        if let Some(container) = &process.container {
            line("container", &clean(&container.describe()))?;
        }
        // A container's path says no more than that.
        let is_told = process.container.is_some() && !self.style.full;
        if !process.cgroup.is_empty() && process.cgroup != "/" && !is_told {
            line("cgroup", &clean(&process.cgroup))?;
        }
        let is_known = report.tier_reason != names::FROM_PROFILE;
        if process.allocators.is_empty() && report.tier != Tier::Growth && is_known {
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
        if !process.probes.is_empty() && self.style.full {
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
            line("note", &clean(note))?;
        }
        if process.inuse_objects > 0 || process.inuse_bytes > 0 {
            let since = if process.go.as_ref().is_some_and(|go| go.heap.is_some()) {
                ", since tracing began"
            } else {
                ""
            };
            let surviving = format!(
                "{} in {}, of {} in {} allocated{since}",
                bytes(process.inuse_bytes),
                blocks(process.inuse_objects),
                bytes(process.alloc_bytes),
                blocks(process.alloc_objects)
            );
            line("surviving", &surviving)?;
        } else if !nothing {
            line("surviving", &format!("nothing: {}", why_empty(process)))?;
        }
        if self.style.full {
            if let Some(peak) = names::peak(process) {
                line("peak", &peak)?;
            }
            for (name, text) in process.lives.iter().flat_map(lives) {
                line(name, &text)?;
            }
        }
        if process.frees_of_unknown_blocks > 0 && self.style.full {
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
            self.process_kernel(kernel, &process.verdict_reason, out)?;
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
        let width = self.style.width.map(|width| width.saturating_sub(HANG));
        if let Some((what, curve)) =
            chart::lines(&process.memory_series, anonymous, width).filter(|_| drawn)
        {
            for (place, text) in curve.iter().enumerate() {
                line(if place == 0 { what } else { "" }, text)?;
            }
        }
        writeln!(out)
    }
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
