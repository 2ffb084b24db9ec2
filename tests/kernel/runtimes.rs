//! Programs with a runtime of their own between C and the kernel: Go that calls C, node with code that it generates.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use leakscope_tests::{
    Outcome, Report, Sum, Tracer, Victim, answers, leave_out, missing, prebuilt, require_kernel,
    require_victim,
};

/// The C part is seen to the byte, each function below the runtime's switch to the C stack. Whether the walk gets through the
/// switch to Go's own stack is not asserted: the figures are.
#[test]
fn c_that_go_calls() {
    let _alone = require_kernel!();
    if let Some(reason) = missing("cgo") {
        leave_out(&reason);
        return;
    }
    let mut running = Victim::start(&require_victim!("cgo")).expect("started");
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("ends").success());
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for site in report
        .sites
        .iter()
        .filter(|site| site.contains("leak_in_c"))
    {
        let above = site.names().contains(&"runtime.asmcgocall");
        assert!(above, "{:?}", site.names());
    }
    // Behind it lies another stack, whose remains made a site of each call.
    for function in ["leak_in_c", "leak_from_goroutine"] {
        let sites: Vec<_> = report
            .sites
            .iter()
            .filter(|site| site.contains(function))
            .collect();
        assert_eq!(
            sites.len(),
            1,
            "{function}: {:?}",
            sites.iter().map(|site| site.names()).collect::<Vec<_>>()
        );
        assert!(sites.iter().all(|site| site.stack_complete), "{sites:?}");
        assert!(
            sites
                .iter()
                .all(|site| site.names().last() == Some(&"runtime.asmcgocall"))
        );
    }
}

/// The perf map that a process wrote. Removed when dropped.
struct PerfMap(PathBuf);

impl Drop for PerfMap {
    fn drop(&mut self) {
        // It is only in the way.
        let _ = fs::remove_file(&self.0);
    }
}

/// JavaScript is seen to the byte, by the names of its functions, and every stack goes through V8's code to its true end.
#[test]
fn javascript_that_keeps_buffers() {
    let _alone = require_kernel!();
    let node = ["node", "nodejs"]
        .into_iter()
        .find(|name| answers(name, "--version"));
    let Some(node) = node.filter(|_| !prebuilt()) else {
        leave_out("node is not installed (Debian: nodejs)");
        return;
    };
    let running = Victim::start_node(node).expect("started");
    let _map = PerfMap(PathBuf::from(format!("/tmp/perf-{}.map", running.pid())));
    let outcome = Outcome::of_running(running, &[]).expect("traced");
    // In a perf map a function's name stands between what made it and its file.
    let named = |report: &Report, function: &str| {
        report
            .sites
            .iter()
            .filter(|site| {
                site.frames.iter().any(|frame| {
                    let name = frame.function.as_deref().unwrap_or_default();
                    frame.kind == "jit" && name.contains(function) && name.contains("node.js")
                })
            })
            .cloned()
            .collect::<Vec<_>>()
    };
    outcome.assert_true(|report, _, truth| {
        let mut sum = Sum::default();
        // Arrays of JavaScript that hold the buffers are not of this size.
        for site in named(report, &truth.function)
            .iter()
            .filter(|site| site.alloc_bytes == 5000 * site.alloc_objects)
        {
            sum.sites += 1;
            sum.bytes += site.inuse_bytes;
            sum.objects += site.inuse_objects;
        }
        sum
    });
    let sites = named(&outcome.report, "serve");
    assert!(!sites.is_empty());
    for site in sites {
        assert!(site.stack_complete, "{:?}", site.names());
        // Its `main` ends in a jump there.
        assert!(site.contains("node::Start"), "{:?}", site.names());
    }
}
