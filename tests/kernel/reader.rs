//! The process that reads files: whatever becomes of it, a report is made, and says what was not read.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::Duration,
};

use leakscope_tests::{Report, Tracer, Victim, children, require_kernel, require_victim};

/// The readers of a leakscope.
fn readers(leakscope: u32) -> Vec<u32> {
    let is_reader = |pid: &u32| {
        // The kernel keeps 15 bytes of a name.
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| "leakscope-reader".starts_with(comm.trim()) && comm.len() > 10)
    };
    children(leakscope)
        .unwrap_or_default()
        .into_iter()
        .filter(is_reader)
        .collect()
}

/// A trace to whose readers something happens whenever one is seen, from the attach to the end.
fn traced(program: &Path, harm: impl Fn(u32) + Sync) -> Report {
    let mut victim = Victim::start(program).expect("started");
    let pid = victim.pid();
    let mut tracer = Tracer::start(&["--tier", "exact", "-p", &pid.to_string()]).expect("started");
    tracer.wait_until_attached(pid).expect("attached");
    victim.go().expect("its truth");
    let leakscope = tracer.pid();
    let is_over = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                readers(leakscope).into_iter().for_each(&harm);
                sleep(Duration::from_millis(1));
            }
        });
        let report = tracer.stop();
        is_over.store(true, Ordering::SeqCst);
        report
    });
    report.expect("a report")
}

fn has_names(report: &Report) -> bool {
    report
        .sites
        .iter()
        .flat_map(|site| &site.frames)
        .any(|frame| frame.function.as_deref() == Some("main"))
}

/// It has names, or says why not.
fn is_honest(report: &Report) -> bool {
    let process = report.processes.first().expect("a process");
    let note = process.exit_note.as_deref().unwrap_or_default();
    !report.sites.is_empty() && (has_names(report) || note.contains("have no names: "))
}

fn run(program: &str, words: &[&str]) {
    // The reader may have ended meanwhile.
    let _ = Command::new(program)
        .args(words)
        .stderr(Stdio::null())
        .status();
}

#[test]
fn a_reader_may_do_nothing_but_read_what_it_is_handed() {
    let _turn = require_kernel!();
    let program = require_victim!("basic");
    let seen = AtomicBool::new(false);
    let report = traced(&program, |reader| {
        // It may be about to confine itself, or gone.
        let status = fs::read_to_string(format!("/proc/{reader}/status")).unwrap_or_default();
        if !status.contains("Seccomp:\t2\n") {
            return;
        }
        for line in [
            "NoNewPrivs:\t1\n",
            "CapPrm:\t0000000000000000\n",
            "CapEff:\t0000000000000000\n",
        ] {
            assert!(status.contains(line), "{status}");
        }
        let limits = fs::read_to_string(format!("/proc/{reader}/limits")).unwrap_or_default();
        let memory = limits
            .lines()
            .find(|line| line.starts_with("Max data size"));
        assert!(
            memory.is_none_or(|line| !line.contains("unlimited")),
            "{limits}"
        );
        let Ok(descriptors) = fs::read_dir(format!("/proc/{reader}/fd")) else {
            return;
        };
        for descriptor in descriptors.flatten() {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            assert!(
                !target.contains("bpf") && !target.contains("perf"),
                "{target}"
            );
        }
        seen.store(true, Ordering::SeqCst);
    });
    assert!(has_names(&report));
    assert!(seen.load(Ordering::SeqCst), "no reader was looked at");
}

#[test]
fn a_report_is_made_though_readers_are_killed() {
    let _turn = require_kernel!();
    let program = require_victim!("basic");
    let report = traced(&program, |reader| {
        run("kill", &["-KILL", &reader.to_string()]);
    });
    assert!(is_honest(&report));
}

#[test]
fn a_report_is_made_though_readers_hang() {
    let _turn = require_kernel!();
    let program = require_victim!("basic");
    let report = traced(&program, |reader| {
        run("kill", &["-STOP", &reader.to_string()]);
    });
    assert!(is_honest(&report));
}

#[test]
fn a_report_is_made_though_readers_have_no_memory() {
    let _turn = require_kernel!();
    let program = require_victim!("basic");
    let report = traced(&program, |reader| {
        run(
            "prlimit",
            &["--pid", &reader.to_string(), "--data=4096", "--as=4096"],
        );
    });
    assert!(is_honest(&report));
}
