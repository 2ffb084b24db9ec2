//! What a look at a heap of a gibibyte takes, from us and from the program.

use super::Bench;
use super::figures::{BarFigures, HeapFigures, median};
use super::proc;
use super::victim::{Victim, compile};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The bars: seconds; parts of the heap; parts of the program's time; milliseconds.
const SECONDS: f64 = 8.0;
const MEMORY: f64 = 0.4;
const SLOWED: f64 = 0.02;
const PAUSE_MS: f64 = 1.0;
/// How long the program is measured before it is looked at.
const BEFORE: Duration = Duration::from_secs(5);
const POLLED: Duration = Duration::from_millis(20);
/// A tick of `/proc/PID/stat`, seconds (`USER_HZ`).
const TICK_S: f64 = 0.01;

/// Measures.
///
/// # Errors
/// When a program or leakscope fails.
pub(super) fn measure(bench: &mut Bench) -> Result<HeapFigures> {
    let program = compile("bench_heap")?;
    let mut figures = HeapFigures::default();
    let [mut took, mut cpu, mut memory, mut slowed, mut pause] = [const { Vec::new() }; 5];
    for run in 1..=bench.runs {
        bench.say(&format!("heap {run}/{}", bench.runs));
        let mut victim = Victim::start(&mut Command::new(&program), bench.folder())?;
        let before = victim.measure(BEFORE)?;
        victim.gap()?;
        let begun = victim.progress()?;
        let one = look(bench, victim.pid())?;
        let meanwhile = victim.progress()? - begun;
        pause.push(victim.gap()? as f64 / 1e6);
        slowed.push(meanwhile.cpu_ns_per_operation() / before.cpu_ns_per_operation() - 1.0);
        let heap = one
            .report
            .get("bytes")
            .and_then(Value::as_f64)
            .context("no bytes")?;
        took.push(one.took_s);
        cpu.push(one.cpu_s);
        memory.push(one.peak_bytes as f64 / heap);
        figures.heap_bytes = heap;
        victim.end()?;
    }
    let medians = [&took, &cpu, &memory, &slowed, &pause].map(|all| median(all));
    [
        figures.took_s,
        figures.cpu_s,
        figures.memory,
        figures.slowed,
        figures.pause_ms,
    ] = medians;
    figures.bars = vec![
        BarFigures::at_most("looks, s".into(), figures.took_s, SECONDS),
        BarFigures::at_most("memory of the heap's".into(), figures.memory, MEMORY),
        BarFigures::at_most("program slowed by".into(), figures.slowed, SLOWED),
        BarFigures::at_most("longest operation, ms".into(), figures.pause_ms, PAUSE_MS),
    ];
    Ok(figures)
}

/// A look from outside, and what it took.
pub(super) struct Look {
    pub(super) report: Value,
    took_s: f64,
    cpu_s: f64,
    peak_bytes: u64,
}

///
/// # Errors
/// When leakscope fails.
pub(super) fn look(bench: &Bench, pid: u32) -> Result<Look> {
    let path = bench.folder().join("heap.json");
    let begun = Instant::now();
    let mut child = Command::new(&bench.leakscope)
        .args(["heap", "--format", "json", "-o"])
        .arg(&path)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start leakscope")?;
    let (mut cpu_s, mut peak_bytes) = (0.0, 0);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let resident = proc::resident(child.id());
        peak_bytes = resident.max(peak_bytes);
        cpu_s = cpu(child.id()).unwrap_or(cpu_s);
        thread::sleep(POLLED);
    };
    let took_s = begun.elapsed().as_secs_f64();
    if !status.success() {
        bail!("leakscope heap failed: {status}");
    }
    let report = serde_json::from_slice(&fs::read(&path)?)?;
    Ok(Look {
        report,
        took_s,
        cpu_s,
        peak_bytes,
    })
}

/// Processor time of a process, seconds: `utime` and `stime` of `/proc/PID/stat`, the 12th and 13th field behind the name.
fn cpu(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = text.rsplit_once(") ")?.1.split(' ');
    let ticks = fields.skip(11).take(2).map(str::parse::<u64>);
    Some(ticks.sum::<Result<u64, _>>().ok()? as f64 * TICK_S)
}
