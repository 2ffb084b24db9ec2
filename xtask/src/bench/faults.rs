//! What a page fault takes longer while fresh pages are followed, in the process that is traced and in others.

use super::Bench;
use super::child::Running;
use super::figures::{FaultFigures, median};
use super::victim::{Victim, compile};
use anyhow::{Result, bail};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How long a measurement lasts.
const SLICE: Duration = Duration::from_secs(2);
/// How soon it begins after leakscope was started: at once every fault is told of, and after some seconds few are.
const SOON: Duration = Duration::from_millis(100);
const SOON_SLICE: Duration = Duration::from_millis(400);
const SETTLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures.
///
/// # Errors
/// When the program or leakscope fails.
pub(super) fn measure(bench: &Bench) -> Result<FaultFigures> {
    let program = compile("bench_fault")?;
    let mut figures: [Vec<f64>; 4] = Default::default();
    for run in 1..=bench.runs {
        bench.say(&format!("faults {run}/{}", bench.runs));
        let mut victim = Victim::start(&mut Command::new(&program), bench.folder())?;
        let slice = |victim: &mut Victim, length| -> Result<f64> {
            let before = victim.progress()?;
            thread::sleep(length);
            Ok((victim.progress()? - before).cpu_ns_per_operation())
        };
        let untraced = slice(&mut victim, SLICE)?;
        let mut command = Command::new(&bench.leakscope);
        command.args(["trace", "--tier", "growth", "--format", "json", "-o"]);
        command.arg(bench.folder().join("faults.json")).arg("-p");
        command.arg(victim.pid().to_string());
        let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
        thread::sleep(SOON);
        let soon = slice(&mut victim, SOON_SLICE)?;
        thread::sleep(SETTLE);
        let settled = slice(&mut victim, SLICE)?;
        // By itself, while leakscope watches one that rests.
        victim.activate(0)?;
        let mut other = Victim::start(&mut Command::new(&program), bench.folder())?;
        let others = slice(&mut other, SLICE)?;
        other.end()?;
        tracer.interrupt()?;
        if !tracer.end(PATIENCE)?.success() {
            bail!("leakscope failed: {}", bench.log("tracer.log"));
        }
        victim.end()?;
        for (all, one) in figures.iter_mut().zip([untraced, soon, settled, others]) {
            all.push(one);
        }
    }
    let [untraced_ns, soon_ns, settled_ns, others_ns] = figures.each_ref().map(|all| median(all));
    Ok(FaultFigures {
        untraced_ns,
        soon_ns,
        settled_ns,
        others_ns,
    })
}
