//! Programs with a runtime of their own between C and the kernel: Go with its own heap, Go that calls C, node with code that it
//! generates.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::path::PathBuf;
use std::thread;

use leakscope_tests::{
    Outcome, Report, Sum, Tracer, Victim, answers, leave_out, missing, prebuilt, require_kernel,
    require_victim, run, victim,
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

/// What Go has in use is what its own profile says, to the byte, with names, files and lines also where nothing else is left in the file;
/// and goroutines that nobody wakes are counted where they were started.
#[test]
fn go_by_its_own_profile() {
    let _alone = require_kernel!();
    for name in ["entries", "entries-stripped", "entries-pie"] {
        if let Some(reason) = missing(name) {
            leave_out(&reason);
            return;
        }
        let mut running = Victim::start(&require_victim!(name)).expect("started");
        let pid = running.pid();
        // There is no allocator in it that could be attached to.
        let mut tracer = Tracer::start(&["-p", &pid.to_string()]).expect("started");
        tracer.wait_until_following().expect("followed");
        let truths = running.go().expect("the victim's truth");
        let report = tracer.stop().expect("the report");
        assert!(running.quit().expect("ends").success());
        for truth in &truths {
            let is_stacks = truth.function == "main.waitForever";
            let kind = if is_stacks { "goroutines" } else { "go" };
            let sites: Vec<_> = report
                .sites
                .iter()
                .filter(|site| site.pid == pid && site.kind == kind)
                .filter(|site| site.names().first() == Some(&truth.function.as_str()))
                .collect();
            // Of another block of that function, such as a number that is printed, there may be a sample, too.
            let objects: u64 = sites.iter().map(|site| site.inuse_objects).sum();
            assert_eq!(objects, truth.objects, "{name}: {}", truth.function);
            if !is_stacks {
                let bytes: u64 = sites.iter().map(|site| site.inuse_bytes).sum();
                assert_eq!(bytes, truth.bytes, "{name}: {}", truth.function);
            }
            let site = sites.first().expect("a site");
            let leaf = site.frames.first().expect("a frame");
            assert_eq!(leaf.kind, "go");
            let file = leaf.file.as_deref().unwrap_or_default();
            assert!(file.ends_with("entries.go"), "{name}: {file}");
            assert!(leaf.line.is_some());
            assert!(site.stack_complete);
        }
        // An inlined call has a frame of its own.
        let cache = report
            .sites
            .iter()
            .find(|site| site.names().first() == Some(&"main.fillCache"))
            .expect("the cache");
        let refill = cache
            .frames
            .iter()
            .find(|frame| frame.function.as_deref() == Some("main.refill"));
        assert!(
            refill.is_some_and(|frame| frame.inlined),
            "{:?}",
            cache.names()
        );
        // The runtime maps its heap for itself.
        assert!(
            report
                .sites
                .iter()
                .all(|site| site.kind != "mapping" || site.inuse_bytes < 1 << 20),
            "{name}"
        );
    }
}

/// Of a Go program that keeps no profile what stays is known by line all the same: how much is counted from outside, and whose it is is seen of
/// some blocks where they are handed out. What comes and goes, and a cache that is filled, is not accused.
#[test]
fn go_without_a_profile_of_its_own() {
    let _alone = require_kernel!();
    let names = ["kept-stripped", "kept-pie"];
    if let Some(reason) = names.into_iter().find_map(missing) {
        leave_out(&reason);
        return;
    }
    let mut running = names.map(|name| {
        let victim = victim(name).expect("the victim");
        Victim::start(&victim).expect("started")
    });
    let pids = running.each_ref().map(Victim::pid);
    let [first, second] = pids;
    let doctor = run(&["doctor", "-p", &first.to_string()]).expect("it runs");
    assert_eq!(doctor.code(), 0, "{doctor:?}");
    assert!(
        doctor.stdout.contains("it has no heap profile"),
        "{doctor:?}"
    );
    let mut tracer = Tracer::start(&["-p", &format!("{first},{second}")]).expect("started");
    tracer.wait_until_following().expect("followed");
    // Both work at the same time.
    let truths = thread::scope(|scope| {
        let work = running
            .each_mut()
            .map(|victim| scope.spawn(|| victim.go().expect("the victim's truth")));
        work.map(|work| work.join().expect("it worked"))
    });
    let report = tracer.stop().expect("the report");
    for victim in running {
        assert!(victim.quit().expect("ends").success());
    }
    for ((name, pid), truths) in names.into_iter().zip(pids).zip(truths) {
        for truth in &truths {
            let sites: Vec<_> = report
                .sites
                .iter()
                .filter(|site| site.pid == pid && site.kind == "go")
                .filter(|site| site.names().first() == Some(&truth.function.as_str()))
                .collect();
            let bytes: u64 = sites.iter().map(|site| site.inuse_bytes).sum();
            let ratio = bytes as f64 / truth.bytes as f64;
            assert!(
                (0.75..1.25).contains(&ratio),
                "{name}: {}: {bytes} of {}: {:#?}",
                truth.function,
                truth.bytes,
                report.sites
            );
            let site = sites.first().expect("a site");
            assert_eq!(site.verdict, "leaking", "{name}: {site:#?}");
            let leaf = site.frames.first().expect("a frame");
            let file = leaf.file.as_deref().unwrap_or_default();
            assert!(
                file.ends_with("kept.go") && leaf.line.is_some(),
                "{name}: {file}"
            );
        }
        // The first is the larger of both.
        let first = report.sites.iter().find(|site| site.pid == pid);
        let first = first.expect("a site");
        assert_eq!(first.names().first(), Some(&"main.keepDevice"), "{name}");
        // The call that allocates says what it is.
        let records = report
            .sites
            .iter()
            .find(|site| site.pid == pid && site.names().first() == Some(&"main.keepRecord"));
        let types = records.and_then(|site| site.types.first());
        assert_eq!(
            types.map(|it| it.name.as_str()),
            Some("*main.record"),
            "{name}"
        );
    }
    for site in &report.sites {
        let is_kept = ["main.keepDevice", "main.keepRecord"]
            .iter()
            .any(|function| site.contains(function));
        assert!(is_kept || site.verdict != "leaking", "{site:#?}");
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
