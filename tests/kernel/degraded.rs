//! What older kernels have, forced on newer ones: the essential scenarios with each kind of link that this kernel would not
//! choose itself. On a kernel that has but the oldest kind, every other test is such a test.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;

use leakscope_tests::{
    ALL_SITES, DEGRADED, Outcome, Report, Tracer, Truth, Victim, by_any_frame, by_caller, degraded,
    leave_out, require_kernel, require_victim, run, wait_for_breakpoints,
};

/// Every degraded kind that can be forced here, one after the other.
fn for_each_kind(scenario: impl FnMut(&str)) {
    for_each_of(&DEGRADED, scenario);
}

/// Those of some kinds that can be forced here. The last takes seconds to detach.
fn for_each_of(kinds: &[&str], mut scenario: impl FnMut(&str)) {
    let mut forced = false;
    for kind in kinds {
        if degraded(kind).expect("doctor") {
            scenario(kind);
            forced = true;
        }
    }
    if !forced {
        leave_out("this kernel has no better kind of link, and all other tests use that one");
    }
}

fn trace(name: &str, kind: &str) -> Outcome {
    let path = leakscope_tests::victim(name).expect("the victim");
    let running = Victim::start(&path).expect("started");
    let outcome = Outcome::of_running(running, &["--links", kind])
        .unwrap_or_else(|error| panic!("{name} with {kind} links: {error:#}"));
    // What was asked for is what was used.
    let names = [("multi", "uprobe-multi"), ("perf", "perf-event")];
    let (_, long) = names.iter().find(|(short, _)| *short == kind).unwrap();
    let reason = &outcome.report.tier_reason;
    assert!(reason.contains(long), "{kind}: {reason}");
    outcome
}

#[test]
fn every_function_of_the_allocator() {
    let _alone = require_kernel!();
    let _built = require_victim!("kinds");
    for_each_kind(|kind| trace("kinds", kind).assert_true(by_caller));
}

#[test]
fn threads_that_free_for_each_other() {
    let _alone = require_kernel!();
    let _built = require_victim!("threads-omit");
    for_each_kind(|kind| {
        let outcome = trace("threads-omit", kind);
        outcome.assert_true(by_any_frame);
        outcome.assert_complete(&["main", "worker"]);
    });
}

#[test]
fn realloc_that_races_for_addresses() {
    let _alone = require_kernel!();
    let _built = require_victim!("realloc_race");
    for_each_of(&["multi"], |kind| {
        trace("realloc_race", kind).assert_true(by_caller);
    });
}

#[test]
fn complete_stacks_of_cpp_without_frame_pointers() {
    let _alone = require_kernel!();
    let _built = require_victim!("cpp-omit");
    for_each_kind(|kind| {
        let outcome = trace("cpp-omit", kind);
        outcome.assert_true(by_any_frame);
        outcome.assert_nothing_lost();
        outcome.assert_complete(&["main"]);
    });
}

#[test]
fn a_library_that_is_loaded_late() {
    let _alone = require_kernel!();
    let _built = require_victim!("dlopen");
    for_each_of(&["multi"], |kind| {
        trace("dlopen", kind).assert_true(by_caller);
    });
}

#[test]
fn calls_that_never_return() {
    let _alone = require_kernel!();
    let _built = require_victim!("longjmp");
    for_each_kind(|kind| {
        let mut outcome = trace("longjmp", kind);
        let never = outcome.report.losses.remove("call_never_returned");
        assert!(never.is_some_and(|count| count > 0), "{kind}: {outcome:?}");
        outcome.assert_true(by_caller);
    });
}

#[test]
fn a_command_from_its_first_allocation() {
    let _alone = require_kernel!();
    let path = require_victim!("kinds");
    for_each_kind(|kind| {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("report.json");
        let mut arguments = vec!["trace", "--tier", "exact", "--top", ALL_SITES];
        arguments.extend(["--links", kind, "--format", "json", "-o"]);
        arguments.extend([
            output.to_str().unwrap(),
            "--",
            path.to_str().unwrap(),
            "now",
        ]);
        let finished = run(&arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 0, "{kind}: {finished:?}");
        let text = fs::read_to_string(&output).unwrap();
        let report: Report = serde_json::from_str(&text).expect("by the contract");
        let truths = finished
            .stdout
            .lines()
            .filter(|line| *line != "done")
            .map(|line| Truth::parse(line).unwrap())
            .collect();
        let pid = report.processes.first().unwrap().pid;
        let outcome = Outcome {
            report,
            truths,
            pid,
        };
        outcome.assert_true(by_caller);
    });
}

#[test]
fn killing_leakscope_leaves_the_target_running_and_no_breakpoint() {
    let _alone = require_kernel!();
    let path = require_victim!("endless");
    for_each_kind(|kind| {
        let mut running = Victim::start(&path).expect("started");
        let tracer = Tracer::attach(&running, &["--links", kind]).expect("attached");
        running.say("go").unwrap();
        running.line().unwrap().expect("a round");
        tracer.kill().expect("killed");
        wait_for_breakpoints(running.pid(), false, || Ok(())).expect("no breakpoint stays");
        drop(running.pending_lines());
        running.line().unwrap().expect("the victim still runs");
        running.say("quit").unwrap();
        assert!(running.end().expect("it ends").success(), "{kind}");
    });
}
