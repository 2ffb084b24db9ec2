//! The figures as text.

use super::figures::{
    AttachFigures, BarFigures, BudgetFigures, CaseFigures, DaemonFigures, FaultFigures, Figures,
    HeapFigures, KernelFigures, LanguagesFigures, LeakFigures, LeakRun, ProcessesFigures,
    ProfileFigures, ReportFigures, Scaling, ServersFigures, SubjectFigures, Times, TurnoverFigures,
    TwinFigures,
};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

/// The machine and how it was measured; each case is printed by itself.
impl Display for Figures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "Linux {}, {} processors, {}; medians of {} runs, interleaved",
            self.kernel, self.processors, self.processor, self.runs
        )
    }
}

impl Display for CaseFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.name, self.what)?;
        if let Some(frames) = self.frames {
            write!(out, " (stack: {frames} return addresses)")?;
        }
        writeln!(out)?;
        writeln!(
            out,
            "  {:<11} {:>9} {:>9} {:>8} {:>11} {:>10} {:>10} {:>10}  lost",
            "", "ns/op", "x nothing", "x floor", "op/s", "target", "tracer", "maps"
        )?;
        for subject in &self.subjects {
            writeln!(out, "  {subject}")?;
        }
        bars(out, &self.bars)
    }
}

impl Display for SubjectFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let times = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
        let bytes = |value: u64| {
            if value == 0 {
                String::new()
            } else {
                format!("{:.1} MiB", value as f64 / f64::from(1 << 20))
            }
        };
        write!(
            out,
            "{:<11} {:>9.1} {:>9} {:>8} {:>11.0} {:>10} {:>10} {:>10}",
            self.name,
            self.cpu_ns,
            times(self.times_nothing),
            times(self.times_floor),
            self.operations_per_second,
            bytes(self.target_resident_bytes),
            bytes(self.tracer_resident_bytes),
            bytes(self.map_bytes)
        )?;
        if let Some(lost) = &self.lost {
            write!(out, "  {}", losses(lost))?;
        }
        if let Some(weight) = self.weight.filter(|weight| *weight > 1) {
            write!(out, "; one of {weight} blocks kept")?;
        }
        Ok(())
    }
}

fn losses(lost: &BTreeMap<String, u64>) -> String {
    if lost.is_empty() {
        return "0".into();
    }
    let parts: Vec<String> = lost
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    parts.join(", ")
}

fn bars(out: &mut Formatter<'_>, bars: &[BarFigures]) -> fmt::Result {
    for (index, bar) in bars.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        write!(
            out,
            "  bar: {} = {:.2}, limit {:.2}: {}",
            bar.what,
            bar.measured,
            bar.limit,
            if bar.met { "met" } else { "MISSED" }
        )?;
    }
    Ok(())
}

impl Display for Scaling {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "scaling: malloc and free of 64 bytes, one thread against two (waiting for a processor does not count by CPU time)"
        )?;
        writeln!(
            out,
            "  {:<11} {:>12} {:>12} {:>6} {:>12}",
            "", "1: op/s", "2: op/s", "ratio", "by CPU time"
        )?;
        for subject in &self.subjects {
            writeln!(
                out,
                "  {:<11} {:>12.0} {:>12.0} {:>6.2} {:>12.2}",
                subject.name,
                subject.one_per_second,
                subject.two_per_second,
                subject.ratio,
                subject.cpu_ratio
            )?;
        }
        bars(out, &self.bars)
    }
}

/// The median, and the least in parentheses.
impl Display for Times {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{:.1} ({:.1})", self.median_ms, self.least_ms)
    }
}

impl Display for DaemonFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            out,
            "daemon: {} live blocks at {} sites; milliseconds, medians (and the least)",
            self.blocks, self.sites
        )?;
        writeln!(
            out,
            "  cold profile {}, warm profile {}, metrics {}",
            self.cold, self.warm, self.metrics
        )?;
        writeln!(
            out,
            "  {} readers for {} s: {} answers, {} errors",
            self.readers, self.read_s, self.answers, self.errors
        )?;
        writeln!(
            out,
            "  resident {:.1} MiB before, {:.1} MiB at most while they read; BPF maps {:.1} MiB, the kernel's",
            mib(self.resident_idle_bytes),
            mib(self.resident_most_bytes),
            mib(self.map_bytes)
        )?;
        writeln!(out, "  from SIGTERM to the end {:.0} ms", self.ended_ms)?;
        bars(out, &self.bars)
    }
}

/// The kinds of link, one a line.
pub(super) struct Attach<'a>(pub(super) &'a [AttachFigures]);

impl Display for Attach<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "attach: every function of the C library; milliseconds, medians (and the least)"
        )?;
        write!(
            out,
            "  {:<8} {:>15} {:>15} {:>15} {:>15} {:>15} {:>15} {:>17}",
            "links",
            "follow (all)",
            "first-last",
            "longest op",
            "prepared",
            "disarmed",
            "longest op",
            "detached"
        )?;
        for kind in self.0 {
            write!(
                out,
                "\n  {:<8} {:>15} {:>15} {:>15} {:>15} {:>15} {:>15} {:>17}",
                kind.links,
                kind.follow.to_string(),
                kind.arm.to_string(),
                kind.attach_gap.to_string(),
                kind.prepare.to_string(),
                kind.disarm.to_string(),
                kind.detach_gap.to_string(),
                kind.detach.to_string()
            )?;
        }
        Ok(())
    }
}

impl Display for ReportFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "report: {} blocks at {} sites: written {} ms after Ctrl-C, ended after {} ms; lost {}; tracer {:.0} MiB, maps {:.0} MiB",
            self.blocks,
            self.sites,
            self.written,
            self.ended,
            losses(&self.lost),
            self.tracer_resident_bytes as f64 / f64::from(1 << 20),
            self.map_bytes as f64 / f64::from(1 << 20)
        )?;
        bars(out, &self.bars)
    }
}

impl Display for ProcessesFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "processes: {} at once: followed, reported and let go in {} ms; {} short ones a second: {:.1} % of one processor ({:.1} % without them)",
            self.running,
            self.attach,
            self.started_per_second,
            self.busy_percent,
            self.idle_percent
        )?;
        bars(out, &self.bars)
    }
}

impl Display for FaultFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "faults: a fresh page {:.0} ns untraced; with --tier growth {:.0} ns at first, {:.0} ns from then on, {:.0} ns in another process",
            self.untraced_ns, self.soon_ns, self.settled_ns, self.others_ns
        )
    }
}

impl Display for KernelFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "kernel: system calls, times as long as untraced")?;
        writeln!(
            out,
            "  {:<10}{:>12}{:>10}{:>10}",
            "", "untraced, ns", "window", "peer"
        )?;
        for cost in &self.operations {
            let peer = cost
                .peer_times
                .map_or_else(|| "-".to_owned(), |times| format!("{times:.2}"));
            writeln!(
                out,
                "  {:<10}{:>12.0}{:>10.2}{peer:>10}",
                cost.operation, cost.untraced_ns, cost.window_times
            )?;
        }
        if !self.peer.is_empty() {
            writeln!(out, "  peer: {}", self.peer)?;
        }
        bars(out, &self.bars)
    }
}

impl Display for HeapFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "heap of {:.0} MiB: {:.1} s, {:.1} s of processor time; our memory {:.0} % of it; the program {:+.1} %, longest operation {:.2} ms",
            self.heap_bytes / f64::from(1 << 20),
            self.took_s,
            self.cpu_s,
            self.memory * 100.0,
            self.slowed * 100.0,
            self.pause_ms
        )?;
        bars(out, &self.bars)
    }
}

impl Display for TurnoverFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "looks at programs that change all the time and lose nothing"
        )?;
        for looks in &self.programs {
            writeln!(
                out,
                "  {} looks at {} with {} blocks: {} called some lost",
                looks.looks, looks.program, looks.blocks, looks.wrong
            )?;
        }
        bars(out, &self.bars)
    }
}

impl Display for ServersFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "servers under steady load: what is said of them")?;
        for server in &self.servers {
            writeln!(
                out,
                "  {:<16} {:<18} {} of {} sites leaking; {}",
                server.name,
                server.verdict,
                server.leaking.len(),
                server.sites,
                server.reason
            )?;
            for reason in &server.leaking {
                writeln!(out, "      {reason}")?;
            }
        }
        bars(out, &self.bars)
    }
}

impl Display for LeakFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{}: one leak among 200 sites under full load; rates off by {:.0} % (median)",
            self.case, self.off_percent
        )?;
        for run in &self.runs {
            writeln!(out, "  {run}")?;
        }
        bars(out, &self.bars)
    }
}

impl Display for LeakRun {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{:<30} ", self.server)?;
        match (self.first_after_s, self.place) {
            (Some(after), _) => write!(out, "first from {after:.0} s on")?,
            (None, Some(place)) => write!(out, "at place {place}")?,
            (None, None) => write!(out, "not found")?,
        }
        write!(
            out,
            "; after {:.0} s {:.0} KB/s of {:.0} ({:.2}); {}",
            self.watched_s,
            self.bytes_per_s / 1e3,
            self.true_bytes_per_s / 1e3,
            self.bytes_per_s / self.true_bytes_per_s.max(1.0),
            self.verdict
        )
    }
}

/// Bytes of one MiB.
const MIB: f64 = (1 << 20) as f64;

/// The losses of each run, percent.
fn each(losses: &[f64]) -> String {
    let each: Vec<String> = losses.iter().map(|loss| format!("{loss:.1}")).collect();
    each.join(" ")
}

impl Display for BudgetFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "budget: operations a second, alone and traced")?;
        for load in &self.loads {
            write!(
                out,
                "  {:<32} {:>12.0} {:>12.0}  {:>5.1} % less",
                load.name, load.per_second, load.traced_per_second, load.loss_percent,
            )?;
            if let Some(error) = load.loss_percent_error {
                write!(out, " +- {error:.1}")?;
            }
            write!(out, " ({})", each(&load.loss_percent_of_each_run))?;
            if let Some(losses) = &load.untraced_loss_percent {
                write!(out, "; with nothing beside it {}", each(losses))?;
            }
            if let Some(later) = load.p999_later_ms {
                write!(out, "; 99.9th percentile {later:+.2} ms")?;
            }
            writeln!(out)?;
        }
        bars(out, &self.bars)
    }
}

impl Display for TwinFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "twins: what a load loses against the same beside it that is not traced"
        )?;
        for load in &self.loads {
            write!(out, "  {:<32} {:>5.1} %", load.name, load.loss_percent)?;
            if let Some(error) = load.loss_percent_error {
                write!(out, " +- {error:.1}")?;
            }
            writeln!(
                out,
                " ({}), and leakscope takes {:.1} % of the processors",
                each(&load.loss_percent_of_each_run),
                load.tracer_percent
            )?;
        }
        bars(out, &self.bars)
    }
}

impl Display for LanguagesFigures {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "languages: processor time of a request, alone and traced"
        )?;
        for language in &self.languages {
            write!(
                out,
                "  {:<8} {:>8.0} ns {:>8.0} ns  {:>5.1} % more",
                language.name,
                language.ns_per_request,
                language.traced_ns_per_request,
                language.more_percent,
            )?;
            if let Some(error) = language.more_percent_error {
                write!(out, " +- {error:.1}")?;
            }
            writeln!(
                out,
                " ({}); leakscope: {:.1} % of a processor, {:.1} MiB resident, {:.1} MiB of BPF maps",
                each(&language.more_percent_of_each_run),
                language.tracer_percent,
                language.tracer_resident / MIB,
                language.tracer_maps / MIB,
            )?;
        }
        bars(out, &self.bars)
    }
}

/// The profiled variants and their programs.
pub(super) struct Profile<'a>(pub(super) &'a [ProfileFigures]);

impl Display for Profile<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "profile: nanoseconds inside the programs, for an operation (the counting itself included)"
        )?;
        for variant in self.0 {
            let inside: f64 = variant
                .programs
                .iter()
                .map(|program| program.ns_per_operation)
                .sum();
            write!(
                out,
                "\n  {:<9} {:<36} {:>7.0} in all, {:>6.0} inside",
                variant.case, variant.variant, variant.cpu_ns, inside
            )?;
            for program in &variant.programs {
                write!(
                    out,
                    "\n            {:<18} {:>5.2} runs of {:>6.0} ns",
                    program.name, program.runs_per_operation, program.ns_per_run
                )?;
                if program.missed > 0 {
                    write!(out, ", {} missed", program.missed)?;
                }
            }
        }
        Ok(())
    }
}
