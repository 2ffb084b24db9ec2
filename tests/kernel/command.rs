//! A command that leakscope itself starts: seen from its first malloc to its end, and otherwise left alone.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use leakscope_tests::{
    ALL_SITES, Finished, Report, Truth, leakscope, require_kernel, require_victim, run,
};

/// Traces a command; what leakscope said, and the report.
fn trace(command: &[&str]) -> (Finished, Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut arguments = vec![
        "trace",
        "--top",
        ALL_SITES,
        "--tier",
        "exact",
        "--format",
        "json",
        "-o",
        path.to_str().unwrap(),
        "--",
    ];
    arguments.extend(command);
    let finished = run(&arguments).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let text = std::fs::read_to_string(&path).expect("a report");
    let report = serde_json::from_str(&text).expect("by the contract");
    (finished, report)
}

/// The one process that a report speaks of.
#[track_caller]
fn only_pid(report: &Report) -> u32 {
    // A process that executed another program may be listed once for each.
    let pid = report.processes.first().expect("a process").pid;
    let others = report.processes.iter().filter(|process| process.pid != pid);
    assert_eq!(others.count(), 0, "{:?}", report.processes);
    pid
}

#[track_caller]
fn assert_figures(report: &Report, figures: &[(&str, u64, u64)]) {
    let pid = only_pid(report);
    let truths: Vec<Truth> = figures
        .iter()
        .map(|(function, bytes, objects)| {
            let line =
                serde_json::json!({ "function": function, "bytes": bytes, "objects": objects });
            Truth::parse(&line.to_string()).unwrap()
        })
        .collect();
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Runs a victim as a plain command; the report must meet the truth that it printed.
#[track_caller]
fn assert_truth(path: &Path) -> Report {
    let (finished, report) = trace(&[path.to_str().unwrap(), "now"]);
    let pid = only_pid(&report);
    let mut lines: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(lines.pop(), Some("done"), "{finished:?}");
    let truths: Vec<Truth> = lines
        .into_iter()
        .map(|line| Truth::parse(line).unwrap())
        .collect();
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    report
}

#[test]
fn a_command_that_is_over_at_once() {
    let _alone = require_kernel!();
    let path = require_victim!("short");
    let (finished, report) = trace(&[path.to_str().unwrap(), "one", "--for", "-- two"]);
    assert_eq!(
        finished.stdout,
        "short says hello\nargument one\nargument --for\nargument -- two\n"
    );
    assert_figures(
        &report,
        &[("leak_before_main", 55, 5), ("leak_short", 2091, 17)],
    );
}

#[test]
fn a_short_command_is_seen_from_its_first_malloc_every_time() {
    let _alone = require_kernel!();
    let path = require_victim!("short");
    for _ in 0..3 {
        let (_, report) = trace(&[path.to_str().unwrap()]);
        assert_figures(
            &report,
            &[("leak_before_main", 55, 5), ("leak_short", 2091, 17)],
        );
    }
}

#[test]
fn every_function_of_the_allocator() {
    let _alone = require_kernel!();
    let path = require_victim!("kinds");
    let report = assert_truth(&path);
    // All of these were freed or reallocated later, and this time their births were seen.
    let prepared = report.called_by(only_pid(&report), "prepare");
    assert_eq!((prepared.bytes, prepared.objects), (0, 0));
}

#[test]
fn threads() {
    let _alone = require_kernel!();
    assert_truth(&require_victim!("threads"));
}

#[test]
fn a_library_that_is_loaded_late_and_a_process_that_is_gone() {
    let _alone = require_kernel!();
    assert_truth(&require_victim!("dlopen"));
}

#[test]
fn a_command_that_becomes_another_program() {
    let _alone = require_kernel!();
    let path = require_victim!("exec");
    assert_truth(&path);
    // A shell that gives way to the command.
    let short = require_victim!("short");
    let script = format!("exec {}", short.display());
    let (finished, report) = trace(&["sh", "-c", &script]);
    assert_eq!(finished.stdout, "short says hello\n");
    assert_figures(
        &report,
        &[("leak_before_main", 55, 5), ("leak_short", 2091, 17)],
    );
}

#[test]
fn a_command_is_found_on_the_path_and_reads_our_input() {
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut child = Command::new(leakscope().unwrap())
        .args(["trace", "--format", "json", "-o"])
        .arg(&report)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"through and through\n").unwrap();
    drop(stdin);
    let finished = child.wait_with_output().unwrap();
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(finished.stdout, b"through and through\n");
    assert!(report.exists());
}
