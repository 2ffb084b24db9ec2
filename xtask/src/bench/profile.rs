//! Where the time goes inside the programs, by the kernel's own statistics. Counting costs time itself (two clock
//! readings a run), so that it is never on while anything else is measured.

use super::Bench;
use super::case::CASES;
use super::figures::{ProfileFigures, ProgramFigures};
use super::proc;
use super::subject::Attached;
use super::victim::{Victim, compile};
use anyhow::{Context as _, Result};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// The switch (Documentation/admin-guide/sysctl/kernel.rst).
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// How long each variant is counted.
const WINDOW: Duration = Duration::from_millis(1500);
/// `BPF_PROG_TYPE_KPROBE`: uprobes too.
const UPROBE: u64 = 2;

/// Cases that show it.
const PROFILED: [&str; 3] = ["pair", "deep-40", "mixed"];

/// Arguments that leave something out, and the names of the programs in the order in which they are loaded.
const VARIANTS: [(&str, &[&str], &[&str]); 5] = [
    ("floor", &["floor"], &["entry and return", "free"]),
    (
        "session links",
        &["trace", "--tier", "exact"],
        &["entry and return", "free"],
    ),
    (
        "multi links",
        &["trace", "--tier", "exact", "--links", "multi"],
        &["entry", "return", "free"],
    ),
    (
        "multi links, no table walk",
        &[
            "trace",
            "--tier",
            "exact",
            "--links",
            "multi",
            "--frame-pointers",
        ],
        &["entry", "return", "free"],
    ),
    (
        "session links, all rejected by size",
        &["trace", "--tier", "exact", "--min-size", "1GiB"],
        &["entry and return", "free"],
    ),
];

/// Counting, while this lives.
struct Counting {
    before: String,
}

impl Counting {
    fn begin() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("cannot read {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("cannot write to {SWITCH}"))?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // As it was; if that fails there is nobody to tell.
        let _ = fs::write(SWITCH, self.before.trim());
    }
}

/// Measures every variant on every profiled case.
///
/// # Errors
/// When the statistics cannot be switched on, or the program or leakscope fails.
pub(super) fn measure(bench: &mut Bench) -> Result<Vec<ProfileFigures>> {
    let mut figures = Vec::new();
    for case in CASES.iter().filter(|case| PROFILED.contains(&case.name)) {
        let program = compile(case.program)?;
        let mut victim = Victim::of(case, &program, bench.folder())?;
        for (variant, arguments, names) in VARIANTS {
            bench.say(&format!("profile {}: {variant}", case.name));
            let untraced = victim.measure(Duration::from_millis(300))?;
            let untraced = untraced.cpu_ns_per_operation();
            let mut command = Command::new(&bench.leakscope);
            command.args(arguments);
            command.args(["-p", &victim.pid().to_string()]);
            let attached = Attached::start_command(
                &mut command,
                "leakscope",
                &mut victim,
                untraced,
                bench.folder(),
            )?;
            if case.fill && variant != "floor" {
                victim.fill()?;
            }
            let counting = Counting::begin()?;
            let programs = |pid| {
                let mut programs = proc::held(pid).programs;
                programs.retain(|program| program.kind == UPROBE);
                programs
            };
            let before = programs(attached.pid());
            let progress = victim.measure(WINDOW)?;
            let after = programs(attached.pid());
            drop(counting);
            attached.stop(&mut victim, untraced)?;
            let operations = progress.operations.max(1) as f64;
            figures.push(ProfileFigures {
                case: case.name.to_owned(),
                variant: variant.to_owned(),
                cpu_ns: progress.cpu_ns_per_operation(),
                programs: before
                    .iter()
                    .zip(&after)
                    .enumerate()
                    .map(|(index, (before, after))| {
                        let runs = after.runs.saturating_sub(before.runs);
                        let ns = after.run_ns.saturating_sub(before.run_ns) as f64;
                        ProgramFigures {
                            name: names.get(index).copied().unwrap_or("?").to_owned(),
                            runs_per_operation: runs as f64 / operations,
                            ns_per_run: ns / runs.max(1) as f64,
                            ns_per_operation: ns / operations,
                            missed: after.missed,
                        }
                    })
                    .collect(),
            });
        }
        victim.end()?;
    }
    Ok(figures)
}
