//! What processes make the kernel hold, without a probe: each way to grow it, by kind, process and number, beside the
//! program's truth; and ways that only look like leaks.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use leakscope_tests::{Tracer, require_kernel, require_victim};
use serde::Deserialize;
use serde_json::Value;

/// How long the programs go on, seconds; the trace is so much longer that what they hold by then is what is reported.
const GROWS_S: u32 = 26;
const TRACED: Duration = Duration::from_secs(30);

/// A program that makes the kernel hold more and more. Ends with its standard input.
struct Leak {
    mode: &'static str,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pid: u32,
}

/// What it held in the end.
#[derive(Debug, Deserialize)]
struct Truth {
    kind: String,
    held: u64,
}

impl Leak {
    fn start(program: &Path, mode: &'static str, rate: u32, seconds: u32) -> Self {
        let mut child = Command::new(program)
            .args([mode, &rate.to_string(), &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.next().expect("a line").expect("ready");
        let pid = ready
            .strip_prefix("ready ")
            .expect("ready")
            .parse()
            .unwrap();
        Self {
            mode,
            child,
            lines,
            pid,
        }
    }

    /// What it says in the end; `None` where the machine refused it.
    fn truth(&mut self) -> Option<Truth> {
        let line = self.lines.next()?.ok()?;
        Some(serde_json::from_str(&line).expect("its truth"))
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        // It cleans up when its input ends.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The report of a trace of these processes that watches the kernel.
fn traced(leaks: &[Leak], duration: Duration) -> Value {
    let seconds = format!("{}s", duration.as_secs());
    let pids: Vec<String> = leaks.iter().map(|leak| leak.pid.to_string()).collect();
    let arguments = [
        "--tier",
        "growth",
        "--kernel",
        "--for",
        &seconds,
        "-p",
        &pids.join(","),
    ];
    let mut tracer = Tracer::start(&arguments).expect("leakscope starts");
    // An end is not waited for that long.
    sleep(duration);
    let finished = tracer.end().expect("leakscope ends");
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let text = std::fs::read(tracer.report_path()).expect("a report");
    serde_json::from_slice(&text).expect("JSON")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> f64 {
    value.get(name).and_then(Value::as_f64).unwrap_or_default()
}

/// What the report says that a process holds of a kind: a holding, a kind of descriptor, or what those of a kind hold; and how
/// fast it grows, where that is told.
fn held(report: &Value, pid: u32, kind: &str) -> Option<(f64, Option<f64>)> {
    let process = list(report, "processes")
        .iter()
        .find(|process| number(process, "pid") as u32 == pid)?;
    let kernel = process.get("kernel")?;
    let holding = list(kernel, "holdings")
        .iter()
        .find(|held| text(held, "kind") == kind)
        .map(|held| (number(held, "objects"), Some(number(held, "growth_per_s"))));
    let kinds = list(kernel, "descriptor_kinds");
    let entries = |name: &str| {
        let of = kinds.iter().find(|found| text(found, "kind") == name)?;
        Some((number(of, "entries"), None))
    };
    let descriptors = || {
        let of = kinds.iter().find(|found| text(found, "kind") == kind)?;
        let growth = of.get("growth_per_s").and_then(Value::as_f64);
        Some((number(of, "open"), growth))
    };
    match kind {
        "watches" => entries("inotify"),
        "locks" => entries("file"),
        _ => holding.or_else(descriptors),
    }
}

/// The caches that grow, the first first; each by all of its names.
fn growing_caches(report: &Value) -> Vec<Vec<String>> {
    list(report.get("kernel").expect("watched"), "levels")
        .iter()
        .filter(|level| text(level, "kind") == "cache")
        .filter(|level| ["leaking", "warming-up"].contains(&text(level, "verdict")))
        .map(|level| {
            let others = list(level, "shared_with").iter();
            let others = others.filter_map(Value::as_str);
            std::iter::once(text(level, "name"))
                .chain(others)
                .map(str::to_owned)
                .collect()
        })
        .collect()
}

#[test]
fn what_each_process_makes_the_kernel_hold_is_named_and_counted() {
    let _alone = require_kernel!();
    let program = require_victim!("kernel_leak");
    let ways = [
        ("pipe", 200),
        ("pipe-full", 20),
        ("unix", 200),
        ("queue", 100),
        ("tcp", 200),
        ("eventfd", 200),
        ("timerfd", 200),
        ("timer", 200),
        ("memfd", 100),
        ("epoll", 100),
        ("inotify", 100),
        ("bpf-map", 50),
        ("mount-namespace", 20),
        ("net-namespace", 4),
        ("ring", 50),
        ("zombie", 20),
        ("signal", 100),
        ("lock", 100),
    ];
    let mut leaks: Vec<Leak> = ways
        .into_iter()
        .map(|(mode, rate)| Leak::start(&program, mode, rate, GROWS_S))
        .collect();
    let report = traced(&leaks, TRACED);
    let (mut named, mut wrong) = (0, Vec::new());
    for leak in &mut leaks {
        let Some(truth) = leak.truth() else {
            // The machine refuses it.
            continue;
        };
        let found = held(&report, leak.pid, &truth.kind);
        let held = truth.held as f64;
        let is_right = found.is_some_and(|(count, _)| match truth.kind.as_str() {
            // Those of its user, timers among them, as the report says.
            "queued-signals" => count >= held,
            _ => (count - held).abs() <= 0.1 * held + 2.0,
        });
        if is_right {
            named += 1;
        } else {
            wrong.push(format!("{}: {truth:?}: {found:?}", leak.mode));
        }
    }
    assert!(named >= 12, "{wrong:?}");
    assert_eq!(wrong, Vec::<String>::new());
}

/// Bytes of one kind that a process makes the kernel hold, and what the kind of descriptor says of them.
fn held_bytes(report: &Value, pid: u32, kind: &str, descriptor: &str) -> Option<(f64, f64)> {
    let process = list(report, "processes")
        .iter()
        .find(|process| number(process, "pid") as u32 == pid)?;
    let kernel = process.get("kernel")?;
    let of = |name: &str, kind: &str| {
        list(kernel, name)
            .iter()
            .find(|found| text(found, "kind") == kind)
    };
    let holding = number(of("holdings", kind)?, "bytes");
    Some((
        holding,
        number(of("descriptor_kinds", descriptor)?, "held_bytes"),
    ))
}

#[test]
fn pages_of_pipes_and_queues_of_sockets_are_told_of_whoever_holds_them() {
    let _alone = require_kernel!();
    let program = require_victim!("kernel_leak");
    let mut leaks: Vec<Leak> = [("pipe-full", 20), ("queue", 100), ("pipe", 20)]
        .into_iter()
        .map(|(mode, rate)| Leak::start(&program, mode, rate, GROWS_S))
        .collect();
    let report = traced(&leaks, TRACED);
    let held: Vec<f64> = leaks
        .iter_mut()
        .map(|leak| leak.truth().map_or(0.0, |truth| truth.held as f64 / 2.0))
        .collect();
    let [full, queues, empty] = leaks.as_slice() else {
        panic!("three");
    };
    // Sixteen pages in each, which both ends hold.
    let (bytes, of_kind) = held_bytes(&report, full.pid, "pipe-buffers", "pipe").expect("told");
    assert!(
        (bytes - held[0] * 65_536.0).abs() <= 0.1 * bytes,
        "{bytes} of {}",
        held[0]
    );
    assert!((bytes - of_kind).abs() < 1.0, "{bytes} and {of_kind}");
    // A packet of 1,000 bytes with what the kernel needs for it.
    let (bytes, _) = held_bytes(&report, queues.pid, "socket-queues", "socket").expect("told");
    let each = bytes / held[1];
    assert!((1000.0..=4096.0).contains(&each), "{each}");
    // None but what the program writes to us.
    let (bytes, _) = held_bytes(&report, empty.pid, "pipe-buffers", "pipe").unwrap_or_default();
    assert!(bytes <= 4096.0, "{bytes}");
}

#[test]
fn the_cache_that_fills_is_among_the_first_of_the_machine() {
    let _alone = require_kernel!();
    let program = require_victim!("kernel_leak");
    for (mode, names) in [
        ("unix", ["UNIX", "UNIX-STREAM", "filp"]),
        ("sysv", ["shmem_inode_cache", "filp", "filp"]),
    ] {
        let leaks = [Leak::start(&program, mode, 150, GROWS_S)];
        let report = traced(&leaks, TRACED);
        let caches = growing_caches(&report);
        let is_named =
            |cache: &Vec<String>| cache.iter().any(|name| names.contains(&name.as_str()));
        assert!(caches.iter().take(3).any(is_named), "{mode}: {caches:?}");
    }
}

/// Whether a site's stack passes the kernel and then this function of the program.
fn is_made_by(site: &Value, function: &str) -> bool {
    let frames = list(site, "frames");
    let is_ours = |frame: &&Value| {
        text(frame, "function") == function
            && text(frame, "file").ends_with("kernel_leak.c")
            && number(frame, "line") > 0.0
    };
    frames
        .first()
        .is_some_and(|frame| text(frame, "kind") == "kernel")
        && frames.iter().any(|frame| is_ours(&frame))
}

#[test]
fn objects_of_the_kernel_are_told_at_the_line_that_makes_it_hold_them() {
    let _alone = require_kernel!();
    let program = require_victim!("kernel_leak");
    // The function, and how many objects of the cache that comes first each operation makes at most.
    let ways = [
        ("unix", 200, "unix_sockets", 2.0),
        ("timer", 200, "timers", 1.0),
        ("eventfd", 200, "eventfds", 1.0),
        ("tcp", 100, "tcp_sockets", 1.0),
    ];
    let leaks: Vec<Leak> = ways
        .iter()
        .map(|(mode, rate, ..)| Leak::start(&program, mode, *rate, 60))
        .collect();
    let report = traced(&leaks, TRACED);
    let kernel = report.get("kernel").expect("watched");
    let mut wrong = Vec::new();
    for (leak, (mode, rate, function, most)) in leaks.iter().zip(ways) {
        let first = list(kernel, "sites")
            .iter()
            .find(|site| number(site, "pid") as u32 == leak.pid);
        let per_operation = first.map_or(0.0, |site| {
            number(site, "growth_objects_per_s") / f64::from(rate)
        });
        let is_right = first.is_some_and(|site| is_made_by(site, function))
            && (1..=2).any(|whole| {
                let whole = f64::from(whole);
                whole <= most && (per_operation - whole).abs() <= 0.1 * whole
            });
        if !is_right {
            wrong.push(format!("{mode}: {per_operation} for each: {first:?}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "{:?}", kernel.get("notes"));
}

#[test]
fn descriptors_that_leak_fail_the_trace_and_say_when_the_limit_is_reached() {
    let _alone = require_kernel!();
    let program = require_victim!("kernel_leak");
    let leak = Leak::start(&program, "eventfd", 200, 70);
    let pid = leak.pid.to_string();
    let arguments = [
        "--kernel",
        "--fail-on-leak",
        "--tier",
        "growth",
        "--for",
        "60s",
        "-p",
        &pid,
    ];
    let mut tracer = Tracer::start(&arguments).expect("leakscope starts");
    let finished = tracer.end().expect("leakscope ends");
    let report: Value =
        serde_json::from_slice(&std::fs::read(tracer.report_path()).unwrap()).unwrap();
    let kernel = list(&report, "processes")
        .first()
        .and_then(|process| process.get("kernel"));
    let held = list(kernel.expect("watched"), "holdings");
    let descriptors = held
        .iter()
        .find(|held| text(held, "kind") == "descriptors")
        .unwrap();
    assert_eq!(text(descriptors, "verdict"), "leaking", "{descriptors}");
    assert!(
        text(descriptors, "verdict_reason").contains("its limit of"),
        "{descriptors}"
    );
    let rate = number(descriptors, "growth_per_s");
    assert!((rate - 200.0).abs() <= 20.0, "{descriptors}");
    assert_eq!(finished.code(), 3, "{}", finished.stderr);
}

/// Names that do not exist, inodes and pages of files: caches, which the kernel frees.
#[test]
fn what_the_kernel_caches_is_never_called_leaking() {
    let _alone = require_kernel!();
    let program = require_victim!("kernel_leak");
    let leaks: Vec<Leak> = [("negative", 400), ("inodes", 100), ("buffers", 100)]
        .into_iter()
        .map(|(mode, rate)| Leak::start(&program, mode, rate, 150))
        .collect();
    // Caches are judged after two minutes.
    let report = traced(&leaks, Duration::from_secs(140));
    let leaking: Vec<&Value> = list(report.get("kernel").expect("watched"), "levels")
        .iter()
        .filter(|level| text(level, "verdict") == "leaking")
        .collect();
    assert!(leaking.is_empty(), "{leaking:?}");
    for site in list(report.get("kernel").expect("watched"), "sites") {
        assert_ne!(text(site, "verdict"), "leaking", "{site}");
    }
    let grow = growing_caches(&report);
    assert!(
        grow.iter().flatten().any(|name| name == "dentry"),
        "{grow:?}"
    );
    for process in list(&report, "processes") {
        for held in list(process.get("kernel").expect("watched"), "holdings") {
            assert_ne!(text(held, "verdict"), "leaking", "{held}");
        }
    }
}
