//! No harm: whatever becomes of leakscope or of the target, the other goes on as it should and nothing stays behind.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_tests::{
    ALL_SITES, PATIENCE, Tracer, Truth, Victim, breakpoints, leakscope, require_kernel,
    require_victim, wait_for_breakpoints,
};

/// The number in a line `round N` of the endless victim.
fn round(line: &str) -> u64 {
    let number = line
        .strip_prefix("round ")
        .unwrap_or_else(|| panic!("the victim said {line}"));
    number.parse().unwrap()
}

/// Reads the endless victim's rounds until it has counted `further` more; the last count.
fn advance(running: &Victim, further: u64) -> u64 {
    let first = round(&running.line().unwrap().expect("the victim runs"));
    let mut last = first;
    while last < first + further {
        last = round(&running.line().unwrap().expect("the victim runs"));
    }
    last
}

fn start_endless() -> Option<Victim> {
    if let Some(reason) = leakscope_tests::missing("endless") {
        leakscope_tests::skip(&reason);
        return None;
    }
    let path = leakscope_tests::victim("endless").expect("built");
    Some(Victim::start(&path).expect("started"))
}

#[test]
fn killing_leakscope_leaves_the_target_running_and_no_breakpoint() {
    let _alone = require_kernel!();
    let Some(mut running) = start_endless() else {
        return;
    };
    assert!(breakpoints(running.pid()).unwrap().is_empty());
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    running.say("go").unwrap();
    advance(&running, 300);
    tracer.kill().expect("killed");
    wait_for_breakpoints(running.pid(), false, || Ok(())).expect("no breakpoint stays");
    // Lines that were written while leakscope lived may still be waiting to be read.
    drop(running.pending_lines());
    advance(&running, 500);
    running.say("quit").unwrap();
    assert!(running.end().expect("it ends").success());
}

#[test]
fn ctrl_c_prints_the_report_and_leaves_no_breakpoint() {
    let _alone = require_kernel!();
    let Some(mut running) = start_endless() else {
        return;
    };
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    running.say("go").unwrap();
    let seen = advance(&running, 300);
    let report = tracer.stop().expect("a report");
    let found = report.called_by(pid, "leak_endless");
    assert!(
        found.objects >= seen,
        "{seen} rounds were heard of: {found:?}"
    );
    assert_eq!(found.bytes, 40 * found.objects);
    assert!(report.byte_losses().is_empty(), "{:?}", report.losses);
    wait_for_breakpoints(pid, false, || Ok(())).expect("no breakpoint stays");
    drop(running.pending_lines());
    advance(&running, 300);
}

#[test]
fn the_end_of_the_target_ends_the_trace_with_what_was_seen() {
    let _alone = require_kernel!();
    let Some(mut running) = start_endless() else {
        return;
    };
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    running.say("go").unwrap();
    let mut rounds = advance(&running, 300);
    running.kill().unwrap();
    while let Some(line) = running.line().unwrap() {
        rounds = round(&line);
    }
    let report = tracer.report().expect("a report, without being asked");
    let found = report.called_by(pid, "leak_endless");
    assert!(
        (rounds..=rounds + 100).contains(&found.objects),
        "{rounds} rounds: {found:?}"
    );
    assert_eq!(found.bytes, 40 * found.objects);
}

#[test]
fn a_target_that_ends_well_is_exact_to_its_last_block() {
    let _alone = require_kernel!();
    let Some(mut running) = start_endless() else {
        return;
    };
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    running.say("go").unwrap();
    advance(&running, 300);
    running.say("quit").unwrap();
    let mut truths = Vec::new();
    while let Some(line) = running.line().unwrap() {
        if line.starts_with('{') {
            truths.push(Truth::parse(&line).unwrap());
        }
    }
    assert!(running.end().unwrap().success());
    let report = tracer.report().expect("a report, without being asked");
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn the_target_is_neither_traced_by_ptrace_nor_stopped_nor_given_files() {
    let _alone = require_kernel!();
    let Some(mut running) = start_endless() else {
        return;
    };
    let descriptors = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let modules = |pid: u32| -> Vec<String> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mut paths: Vec<String> = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .filter(|path| path.starts_with('/'))
            .map(str::to_owned)
            .collect();
        paths.dedup();
        paths
    };
    let before = (descriptors(running.pid()), modules(running.pid()));
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    running.say("go").unwrap();
    for _ in 0..5 {
        advance(&running, 100);
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
        assert!(
            !status.contains("State:\tT") && !status.contains("State:\tt"),
            "{status}"
        );
    }
    assert_eq!(before, (descriptors(running.pid()), modules(running.pid())));
    tracer.stop().expect("a report");
}

#[test]
fn a_second_ctrl_c_quits() {
    let _alone = require_kernel!();
    // Thousands of stacks: more than a pipe holds, so that leakscope cannot finish while nobody reads.
    let path = require_victim!("backtrace");
    let mut running = Victim::start(&path).expect("started");
    let mut child = Command::new(leakscope().unwrap())
        .args([
            "trace",
            "--tier",
            "exact",
            "--top",
            ALL_SITES,
            "--format",
            "json",
            "-p",
            &running.pid().to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_breakpoints(running.pid(), true, || Ok(())).expect("attached");
    running.go().expect("the victim runs");
    let interrupt = |pid: u32| {
        let status = Command::new("kill")
            .args(["-s", "INT", &pid.to_string()])
            .status();
        assert!(status.unwrap().success());
    };
    interrupt(child.id());
    let mut byte = [0];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut byte).expect("the report begins");
    assert_eq!(&byte, b"{");
    assert!(
        child.try_wait().unwrap().is_none(),
        "the report was too small for this test"
    );
    interrupt(child.id());
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("leakscope ignores the second Ctrl-C");
        }
        sleep(Duration::from_millis(10));
    }
    drop(stdout);
    wait_for_breakpoints(running.pid(), false, || Ok(())).expect("no breakpoint stays");
    assert!(running.quit().expect("the victim ends").success());
}
