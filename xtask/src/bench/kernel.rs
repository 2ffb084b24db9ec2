//! What system calls that allocate in the kernel take longer while a window on the kernel's allocators is open, beside bcc's memleak or
//! what does the same, where that is there.
//!
//! A program beside makes the kernel hold more and more sockets, so that a window opens; the budget lets it stay open. Slices alternate
//! from run to run: untraced, in a window, under memleak.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, KernelCost, KernelFigures, median};
use super::victim::{Victim, compile};
use crate::shell;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long an operation is measured.
const SLICE: Duration = Duration::from_secs(1);
/// Until the window is open: three looks at the caches.
const SETTLE: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(60);
/// At most so many times as long.
const BAR: f64 = 1.3;

/// What sees all of the kernel's allocations: a program, its arguments, and how the line begins with which it says that it does.
struct Peer {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    begun: &'static str,
}

/// bcc's memleak, which takes the kernel's headers; and the same in bpftrace: every object with its stack in a hash until it is freed.
const PEERS: [Peer; 2] = [
    Peer {
        name: "memleak",
        program: "memleak-bpfcc",
        arguments: &["600"],
        begun: "Attaching to kernel allocators",
    },
    Peer {
        name: "bpftrace, as memleak does",
        program: "bpftrace",
        arguments: &[
            "-e",
            "tracepoint:kmem:kmalloc { @[args->ptr] = (args->bytes_alloc, kstack); }
             tracepoint:kmem:kmem_cache_alloc { @[args->ptr] = (args->bytes_alloc, kstack); }
             tracepoint:kmem:kfree, tracepoint:kmem:kmem_cache_free { delete(@[args->ptr]); }
             END { clear(@); }",
        ],
        begun: "Attaching",
    },
];

/// Processor time of an operation in each run, nanoseconds: untraced, in a window, under another tool.
type Times = [Vec<f64>; 3];

const OPERATIONS: [&str; 6] = ["open", "pipe", "unix", "tcp", "file", "fork"];

/// Measures.
///
/// # Errors
/// When a program or leakscope fails, or no window was open.
pub(super) fn measure(bench: &mut Bench) -> Result<KernelFigures> {
    let program = compile("bench_kernel")?;
    let leaking = compile("kernel_leak")?;
    let mut peers: Vec<&Peer> = PEERS
        .iter()
        .filter(|peer| shell::find_program(peer.program).is_some())
        .collect();
    let mut times: [Times; OPERATIONS.len()] = Default::default();
    for run in 1..=bench.runs {
        bench.say(&format!("kernel {run}/{}", bench.runs));
        let mut loads = Vec::new();
        for name in OPERATIONS {
            let mut load = Victim::start(Command::new(&program).arg(name), bench.folder())?;
            load.activate(0)?;
            loads.push(load);
        }
        slices(&mut loads, &mut times, 0)?;
        in_window(bench, &leaking, &mut loads, &mut times)?;
        while let Some(peer) = peers.first() {
            match under(peer, bench, &mut loads, &mut times) {
                Ok(()) => break,
                Err(error) => {
                    bench.note(format!(
                        "kernel: {} does not run here: {error:#}",
                        peer.name
                    ));
                    peers.remove(0);
                }
            }
        }
        for load in loads {
            load.end()?;
        }
    }
    let mut figures = KernelFigures {
        peer: peers
            .first()
            .map_or_else(String::new, |peer| peer.name.to_owned()),
        ..KernelFigures::default()
    };
    for (name, [untraced, window, peer]) in OPERATIONS.iter().zip(&times) {
        // Of each run by itself: what the machine was like then cancels out.
        let ratio = |traced: &[f64]| {
            let ratios: Vec<f64> = traced
                .iter()
                .zip(untraced)
                .map(|(one, other)| one / other.max(1.0))
                .collect();
            median(&ratios)
        };
        let cost = KernelCost {
            operation: (*name).to_owned(),
            untraced_ns: median(untraced),
            window_times: ratio(window),
            peer_times: (peer.len() == untraced.len()).then(|| ratio(peer)),
        };
        figures.bars.push(BarFigures::at_most(
            format!("{name}: times as long in a window"),
            cost.window_times,
            BAR,
        ));
        figures.operations.push(cost);
    }
    Ok(figures)
}

/// A slice of each operation, by itself.
fn slices(
    loads: &mut [Victim],
    times: &mut [Times; OPERATIONS.len()],
    column: usize,
) -> Result<()> {
    for (load, times) in loads.iter_mut().zip(times) {
        load.activate(1)?;
        let pace = load.measure(SLICE)?;
        load.activate(0)?;
        let column = times.get_mut(column).context("there are three")?;
        column.push(pace.cpu_ns_per_operation());
    }
    Ok(())
}

/// The slices while a window is open.
fn in_window(
    bench: &Bench,
    leaking: &std::path::Path,
    loads: &mut [Victim],
    times: &mut [Times; OPERATIONS.len()],
) -> Result<()> {
    let mut leak = Running::start(
        Command::new(leaking).args(["unix", "200", "600"]),
        &bench.folder().join("leak.log"),
    )?;
    let (_, ready) = leak.line(PATIENCE)?;
    let pid = ready
        .strip_prefix("ready ")
        .context("the leak's process id")?
        .to_owned();
    let report = bench.folder().join("kernel.json");
    let mut command = Command::new(&bench.leakscope);
    command.args([
        "trace", "--tier", "growth", "--kernel", "--budget", "50", "--format", "json", "-o",
    ]);
    command.arg(&report).args(["-p", &pid]);
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    thread::sleep(SETTLE);
    let begun = Instant::now();
    slices(loads, times, 1)?;
    let lasted = begun.elapsed();
    tracer.interrupt()?;
    if !tracer.end(PATIENCE)?.success() {
        bail!("leakscope failed: {}", bench.log("tracer.log"));
    }
    leak.signal("KILL")?;
    leak.end(PATIENCE)?;
    // It makes files there in other ways.
    let _ = std::fs::remove_dir(format!("/tmp/kernel_leak.{pid}"));
    let report: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    let open_s = report
        .pointer("/kernel/windows/open_s")
        .and_then(Value::as_f64);
    if open_s.is_none_or(|open_s| open_s < lasted.as_secs_f64()) {
        bail!("windows were open for {open_s:?} s while the slices took {lasted:?}");
    }
    Ok(())
}

/// The slices while another tool sees all of the kernel's allocations.
fn under(
    peer: &Peer,
    bench: &Bench,
    loads: &mut [Victim],
    times: &mut [Times; OPERATIONS.len()],
) -> Result<()> {
    let mut command = Command::new("stdbuf");
    command.args(["-oL", peer.program]).args(peer.arguments);
    let mut running = Running::start(&mut command, &bench.folder().join("peer.log"))?;
    while !running.line(PATIENCE)?.1.starts_with(peer.begun) {}
    thread::sleep(SETTLE);
    let measured = slices(loads, times, 2);
    running.interrupt()?;
    running.end(PATIENCE)?;
    measured
}
