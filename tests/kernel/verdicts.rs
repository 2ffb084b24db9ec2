//! Verdicts of real processes, and what hangs on them: the exit status with `--fail-on-leak`, and suppressions.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use leakscope_tests::{Tracer, leave_out, prebuilt, require_kernel, require_victim};
use serde_json::Value;

/// A behaviour under way. Ends with its standard input.
struct Behaviour(Child);

impl Behaviour {
    fn start(program: &Path, name: &str) -> Self {
        let mut command = Command::new(program);
        command.args([name, "0"]).stdin(Stdio::piped());
        Self(command.spawn().expect("started"))
    }
}

impl Drop for Behaviour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a trace ended, and its report.
#[derive(Debug)]
struct Judged {
    code: i32,
    process: String,
    sites: Vec<String>,
    report: Value,
}

impl Judged {
    fn of(mut tracer: Tracer) -> Self {
        let finished = tracer.end().expect("ends");
        let text = std::fs::read(tracer.report_path()).expect("a report");
        let report: Value = serde_json::from_slice(&text).expect("JSON");
        let verdict = |of: &Value| {
            of.get("verdict")
                .and_then(Value::as_str)
                .unwrap()
                .to_owned()
        };
        let list = |name: &str| report.get(name).and_then(Value::as_array).unwrap().clone();
        Self {
            code: finished.code(),
            process: verdict(list("processes").first().unwrap()),
            sites: list("sites").iter().map(verdict).collect(),
            report,
        }
    }
}

/// Three traces at once, for a leak takes 45 s to be named.
#[test]
fn a_leak_fails_the_trace_unless_it_is_suppressed() {
    let _alone = require_kernel!();
    if prebuilt() {
        leave_out("how fast a leak is named says nothing where the machine is emulated");
        return;
    }
    let program = require_victim!("behaviours");
    let folder = tempfile::tempdir().unwrap();
    let known = folder.path().join("known.supp");
    std::fs::write(&known, "# known\nleak:never_called\nleak:^grow$\n").unwrap();
    let leaking = Behaviour::start(&program, "leak_fast");
    let bounded = Behaviour::start(&program, "lru_of_2s");
    let trace = |target: &Behaviour, more: &[&str]| {
        let pid = target.0.id().to_string();
        let mut arguments = vec![
            "--tier",
            "exact",
            "--fail-on-leak",
            "--for",
            "50s",
            "-p",
            &pid,
        ];
        arguments.extend(more);
        Tracer::start(&arguments).expect("started")
    };
    let named = trace(&leaking, &[]);
    let suppressed = trace(&leaking, &["--suppress", known.to_str().unwrap()]);
    let steady = trace(&bounded, &[]);
    let (named, suppressed, steady) = (
        Judged::of(named),
        Judged::of(suppressed),
        Judged::of(steady),
    );

    assert_eq!(named.code, 3, "{named:?}");
    assert_eq!(named.process, "leaking");
    assert_eq!(named.sites, ["leaking"]);
    let series = named.report.pointer("/processes/0/memory_series");
    assert!(series.and_then(Value::as_array).unwrap().len() > 10);

    assert_eq!(suppressed.code, 0, "{suppressed:?}");
    assert_ne!(suppressed.process, "leaking");
    assert!(suppressed.sites.is_empty());
    let count = |path: &str| {
        suppressed
            .report
            .pointer(path)
            .and_then(Value::as_u64)
            .unwrap()
    };
    assert_eq!(count("/suppressed/0/sites"), 0);
    assert_eq!(count("/suppressed/1/sites"), 1);
    assert!(count("/suppressed/1/inuse_objects") > 10_000);

    assert_eq!(steady.code, 0, "{steady:?}");
    assert_eq!(steady.process, "churn");
    assert_eq!(steady.sites, ["churn"]);
}

/// glibc keeps a cache for each thread, which it takes without a call and frees with one when the thread ends: always at the same few addresses.
#[test]
fn what_ending_threads_give_back_is_not_from_before_the_trace() {
    let _alone = require_kernel!();
    let program = require_victim!("behaviours");
    let threads = Behaviour::start(&program, "leak_of_short_threads");
    let pid = threads.0.id().to_string();
    let tracer = Tracer::start(&["--tier", "exact", "--for", "8s", "-p", &pid]).expect("started");
    let judged = Judged::of(tracer);
    let count = |path: &str| judged.report.pointer(path).and_then(Value::as_u64).unwrap();
    let (left, freed) = (
        count("/processes/0/alloc_objects"),
        count("/processes/0/frees_of_unknown_blocks"),
    );
    assert!(left >= 8, "{judged:?}");
    assert!(freed * 2 < left, "{freed} of {left}: {judged:?}");
}
