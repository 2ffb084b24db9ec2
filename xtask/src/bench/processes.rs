//! A machine with many processes, and one on which many short ones start: what leakscope takes to follow them.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, ProcessesFigures, Times, median};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Processes that run when the trace begins.
const RUNNING: usize = 500;
/// The bar for attaching to them, milliseconds.
const ATTACH_LIMIT_MS: f64 = 3_000.0;
/// Processes that start in a second, and for how many seconds.
const STARTED: u32 = 200;
const SECONDS: u32 = 5;
/// The bar for what leakscope takes of one processor meanwhile, percent.
const CPU_LIMIT: f64 = 3.0;
/// How long the trace lasts whose start is timed; what goes beyond is attaching, reporting, detaching.
const TRACE: Duration = Duration::from_secs(2);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Processes that do nothing; killed when dropped.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn start(count: usize) -> Result<Self> {
        let mut all = Self(Vec::with_capacity(count));
        for _ in 0..count {
            let child = Command::new("sleep").arg("1000").spawn();
            all.0.push(child.context("sleep does not start")?);
        }
        Ok(all)
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that is gone is as wanted.
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// Measures both.
///
/// # Errors
/// When leakscope fails.
pub(super) fn measure(bench: &mut Bench) -> Result<ProcessesFigures> {
    let mut beyond = Vec::new();
    let mut idle = Vec::new();
    let mut busy = Vec::new();
    for run in 1..=bench.runs {
        bench.say(&format!("processes {run}/{}", bench.runs));
        let sleepers = Sleepers::start(RUNNING)?;
        thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        let seconds = format!("{}s", TRACE.as_secs());
        let mut command = Command::new(&bench.leakscope);
        command.args(["trace", "--tier", "exact", "--all", "--for", &seconds]);
        command.args(["--format", "json", "-o"]);
        command.arg(bench.folder().join("processes.json"));
        let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
        if !tracer.end(PATIENCE)?.success() {
            bail!("leakscope failed: {}", bench.log("tracer.log"));
        }
        beyond.push(begun.elapsed().saturating_sub(TRACE).as_secs_f64() * 1e3);
        drop(sleepers);
        let (quiet, loaded) = short_processes(bench)?;
        idle.push(quiet);
        busy.push(loaded);
    }
    let attach = Times::of(&beyond);
    let (idle_percent, busy_percent) = (median(&idle), median(&busy));
    Ok(ProcessesFigures {
        running: RUNNING,
        bars: vec![
            BarFigures::at_most(
                format!("{RUNNING} processes, ms"),
                attach.median_ms,
                ATTACH_LIMIT_MS,
            ),
            BarFigures::at_most(
                format!("{STARTED} processes a second, % of one processor"),
                busy_percent,
                CPU_LIMIT,
            ),
        ],
        attach,
        started_per_second: STARTED,
        idle_percent,
        busy_percent,
    })
}

/// What leakscope takes of a processor while nothing starts, and while short processes start: percent.
fn short_processes(bench: &Bench) -> Result<(f64, f64)> {
    let mut command = Command::new(&bench.leakscope);
    command.args([
        "trace", "--tier", "exact", "--all", "--format", "json", "-o",
    ]);
    command.arg(bench.folder().join("processes.json"));
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    // Until everything that runs is followed.
    thread::sleep(Duration::from_secs(3));
    let quiet = share_of_a_processor(tracer.pid(), || {
        thread::sleep(Duration::from_secs(u64::from(SECONDS)));
        Ok(())
    })?;
    let loaded = share_of_a_processor(tracer.pid(), || {
        let begun = Instant::now();
        for number in 0..STARTED * SECONDS {
            let status = Command::new("true").stdin(Stdio::null()).status();
            status.context("true does not start")?;
            let due = begun + Duration::from_secs(1) * number / STARTED;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    })?;
    tracer.interrupt()?;
    tracer.end(PATIENCE)?;
    Ok((quiet, loaded))
}

/// The share of one processor that a process takes while something is done: percent.
pub(super) fn share_of_a_processor(pid: u32, action: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), processor_seconds(pid)?);
    action()?;
    let used = processor_seconds(pid)? - before;
    Ok(used / begun.elapsed().as_secs_f64() * 100.0)
}

/// Processor time of a process: fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
///
/// # Errors
/// When it is gone.
pub(super) fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}
