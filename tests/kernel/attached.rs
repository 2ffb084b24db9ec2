//! Attached to a running process: the report against the victim's truth, to the byte.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use leakscope_tests::{
    Outcome, Report, Sum, Tracer, Truth, Victim, by_caller, require_kernel, require_victim, run,
    victim,
};

/// What holds for every exact report on one process.
#[track_caller]
fn assert_exact(report: &Report, pid: u32) {
    assert_eq!(report.schema, 1);
    assert_eq!(report.tier, "exact", "{}", report.tier_reason);
    assert!(report.processes.iter().any(|process| process.pid == pid));
    assert!(report.overhead.probe_hits > 0);
    let mut last = u64::MAX;
    for site in &report.sites {
        assert!(
            site.inuse_bytes <= last,
            "sites are sorted by surviving bytes"
        );
        last = site.inuse_bytes;
        assert_eq!(site.inuse_bytes_low, site.inuse_bytes);
        assert_eq!(site.inuse_bytes_high, site.inuse_bytes);
        assert!(site.alloc_bytes >= site.inuse_bytes);
        assert!(site.alloc_objects >= site.inuse_objects);
        assert!(!site.frames.is_empty());
    }
}

/// Lets a victim run under the tracer; the report must meet its truth, found by `found`.
#[track_caller]
fn assert_truth(running: Victim, found: impl Fn(&Report, u32, &Truth) -> Sum) -> Report {
    let outcome = Outcome::of_running(running, &[]).expect("traced");
    assert_exact(&outcome.report, outcome.pid);
    outcome.assert_true(found);
    outcome.report
}

fn start(path: &Path) -> Victim {
    Victim::start(path).expect("started")
}

#[test]
fn every_function_of_the_allocator() {
    let _alone = require_kernel!();
    let path = require_victim!("kinds");
    let running = start(&path);
    let pid = running.pid();
    let report = assert_truth(running, by_caller);
    // Blocks born before the attach are nobody's.
    assert_eq!(report.below(pid, "prepare"), Sum::default());
    let process = report.processes.first().unwrap();
    assert_eq!(process.comm, "kinds");
    assert!(
        process
            .allocators
            .iter()
            .any(|name| name.ends_with("/libc.so.6"))
    );
}

#[test]
fn frames_name_the_source_line() {
    let _alone = require_kernel!();
    let path = require_victim!("basic");
    let report = assert_truth(start(&path), by_caller);
    let site = report.sites.first().unwrap();
    let frame = site.caller().unwrap();
    assert_eq!(frame.function.as_deref(), Some("leak_basic"));
    assert!(
        frame.file.as_deref().unwrap().ends_with("basic.c"),
        "{frame:?}"
    );
    // The line of `keep(malloc(2500))`, whatever the comment above it grows to.
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/basic.c"));
    if let Ok(source) = source {
        let line = source
            .lines()
            .position(|line| line.contains("malloc(2500)"))
            .unwrap()
            + 1;
        assert_eq!(frame.line, Some(u32::try_from(line).unwrap()), "{frame:?}");
    }
    assert!(
        frame.module.as_deref().unwrap().ends_with("/basic"),
        "{frame:?}"
    );
    assert!(site.contains("main"), "{:?}", site.names());
}

#[test]
fn threads_that_free_for_each_other() {
    let _alone = require_kernel!();
    let path = require_victim!("threads");
    let report = assert_truth(start(&path), by_caller);
    assert!(
        report.overhead.probe_hits >= 2 * 8 * 20_000,
        "{:?}",
        report.overhead
    );
}

#[test]
fn more_threads_than_have_a_seat() {
    let _alone = require_kernel!();
    let report = assert_truth(start(&require_victim!("crowd")), by_caller);
    // Each allocates 40 blocks and frees 30 of them; those of threads that have ended count too.
    assert!(
        report.overhead.probe_hits >= 600 * 70,
        "{:?}",
        report.overhead
    );
}

#[test]
fn realloc_that_races_for_addresses() {
    let _alone = require_kernel!();
    assert_truth(start(&require_victim!("realloc_race")), by_caller);
}

#[test]
fn churn_with_a_small_leak() {
    let _alone = require_kernel!();
    assert_truth(start(&require_victim!("churn")), by_caller);
}

#[test]
fn children_that_free_what_they_inherited() {
    let _alone = require_kernel!();
    assert_truth(start(&require_victim!("fork")), by_caller);
}

#[test]
fn children_of_vfork_that_work_in_their_parents_memory_were_not_seen() {
    let _alone = require_kernel!();
    let report = assert_truth(start(&require_victim!("vfork")), by_caller);
    assert_eq!(report.processes.len(), 1);
    let pid = report.processes.first().unwrap().pid;
    assert_eq!(report.called_by(pid, "handed_over").objects, 0);
}

#[test]
fn deep_stacks_with_frame_pointers() {
    let _alone = require_kernel!();
    let path = require_victim!("deep");
    let running = start(&path);
    let report = assert_truth(running, by_caller);
    for (function, depth) in [
        ("leak_depth_10", 10),
        ("leak_depth_40", 40),
        ("leak_depth_100", 100),
    ] {
        let sites: Vec<_> = report
            .sites
            .iter()
            .filter(|site| site.caller().is_some_and(|frame| frame.is(function)))
            .collect();
        // The compiler may have unrolled the loop: a site for each call.
        assert!(!sites.is_empty(), "{function}");
        for site in sites {
            let recursions = site
                .frames
                .iter()
                .filter(|frame| frame.is("recurse"))
                .count();
            assert_eq!(recursions, depth, "{:?}", site.names());
        }
    }
    // More than the probe records: the stack is cut, and says so.
    let cut = report
        .sites
        .iter()
        .find(|site| site.contains("leak_depth_200"))
        .unwrap();
    assert!(!cut.stack_complete);
    assert!(!cut.contains("main"));
    assert!(cut.frames.len() >= 100, "{:?}", cut.names());
    assert!(
        report
            .losses
            .get("unwind_too_deep")
            .is_some_and(|count| *count > 0)
    );
}

#[test]
fn a_library_that_is_loaded_late() {
    let _alone = require_kernel!();
    let report = assert_truth(start(&require_victim!("dlopen")), by_caller);
    let site = report
        .sites
        .iter()
        .find(|site| site.contains("leak_plugin"))
        .unwrap();
    let module = site.caller().unwrap().module.as_deref().unwrap();
    assert!(module.ends_with("/libplugin.so"), "{module}");
}

#[test]
fn operator_new_and_exceptions() {
    let _alone = require_kernel!();
    assert_truth(start(&require_victim!("cpp")), |report, pid, truth| {
        match truth.function.as_str() {
            "leak_before_throw" => report.called_by(pid, &truth.function),
            // libstdc++ keeps no frame pointers: without unwind tables the frame that called it is lost.
            function => report.below(pid, &format!("outer_{function}")),
        }
    });
}

#[test]
fn a_program_that_is_not_position_independent() {
    let _alone = require_kernel!();
    assert_truth(start(&require_victim!("basic-nopie")), by_caller);
}

#[test]
fn a_process_that_becomes_another_program() {
    let _alone = require_kernel!();
    let path = require_victim!("exec");
    let mut running = start(&path);
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // The memory of the first program went with it: its blocks are stated as they stood then, or not at all.
    let before = report.called_by(pid, "leak_before_exec");
    let either = [(0, 0), (1000, 10)];
    assert!(
        either.contains(&(before.bytes, before.objects)),
        "{before:?}"
    );
}

#[test]
fn signal_handlers() {
    let _alone = require_kernel!();
    assert_truth(start(&require_victim!("signal")), by_caller);
}

#[test]
fn calls_that_never_return() {
    let _alone = require_kernel!();
    let mut running = start(&require_victim!("longjmp"));
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    assert!(
        truths.iter().any(|truth| truth.objects > 0),
        "the timer never hit: {truths:?}"
    );
    assert!(
        report
            .losses
            .get("call_never_returned")
            .is_some_and(|count| *count > 0)
    );
    let mut differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    differences.retain(|line| !line.starts_with("lost: call_never_returned"));
    let only_sites = differences.iter().all(|line| line.starts_with("site of"));
    assert!(only_sites, "{}", differences.join("\n"));
}

#[test]
fn two_processes_at_once() {
    let _alone = require_kernel!();
    let mut first = start(&require_victim!("basic"));
    let mut second = start(&victim("churn").expect("built"));
    let tracer = Tracer::attach_all(&[&first, &second], &[]).expect("attached");
    let of_first = first.go().expect("the first one's truth");
    let of_second = second.go().expect("the second one's truth");
    let report = tracer.stop().expect("the report");
    for (running, truths) in [(first, of_first), (second, of_second)] {
        let pid = running.pid();
        let differences = report.differences(&truths, |report, truth| {
            report.called_by(pid, &truth.function)
        });
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        assert!(running.quit().expect("ends").success());
    }
}

#[test]
fn sizes_are_filtered() {
    let _alone = require_kernel!();
    let mut running = start(&require_victim!("kinds"));
    let pid = running.pid();
    let sizes = ["--min-size", "300", "--max-size", "6000"];
    let tracer = Tracer::attach(&running, &sizes).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    // Every function leaks blocks of one size.
    let filtered: Vec<Truth> = truths
        .into_iter()
        .map(|mut truth| {
            let size = truth.bytes.checked_div(truth.objects).unwrap_or(0);
            if !(300..=6000).contains(&size) {
                truth.bytes = 0;
                truth.objects = 0;
            }
            truth
        })
        .collect();
    assert!(filtered.iter().filter(|truth| truth.objects > 0).count() > 5);
    let differences = report.differences(&filtered, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// With an age asked for, figures come from the table of live blocks rather than from the totals: the two must agree.
#[test]
fn the_live_table_agrees_with_the_totals() {
    let _alone = require_kernel!();
    for name in ["kinds", "realloc_race", "many"] {
        let mut running = start(&require_victim!(name));
        let pid = running.pid();
        let tracer = Tracer::attach(&running, &["--min-age", "1ms"]).expect("attached");
        let truths = running.go().expect("the victim's truth");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let report = tracer.stop().expect("the report");
        assert!(running.quit().expect("the victim ends").success());
        let differences = report.differences(&truths, |report, truth| {
            report.called_by(pid, &truth.function)
        });
        assert!(differences.is_empty(), "{name}: {}", differences.join("\n"));
    }
}

#[test]
fn blocks_younger_than_asked_for_are_left_out() {
    let _alone = require_kernel!();
    let mut running = start(&require_victim!("basic"));
    let tracer = Tracer::attach(&running, &["--min-age", "1h"]).expect("attached");
    running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    assert!(report.sites.is_empty(), "{:?}", report.sites);
}

/// More live blocks than the table was asked to hold: one of some is kept, nothing is lost, and the interval holds the truth.
#[test]
fn a_full_live_table_is_thinned_and_says_so() {
    let _alone = require_kernel!();
    let mut running = start(&require_victim!("many"));
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &["--max-blocks", "4096"]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    assert_eq!(report.byte_losses(), [], "nothing is lost");
    assert!(
        report.tier_reason.contains("estimates"),
        "{}",
        report.tier_reason
    );
    let truth = truths
        .iter()
        .find(|truth| truth.function == "leak_many")
        .expect("its truth");
    let site = report
        .sites
        .iter()
        .find(|site| site.pid == pid && site.contains("leak_many"))
        .expect("the leak is shown");
    // No more can survive than was allocated: an estimate that came out above that is cut to it, and one in forty so far above
    // that its interval's lower end is cut, too.
    assert!(site.inuse_bytes_low <= site.inuse_bytes && site.inuse_bytes <= site.inuse_bytes_high);
    assert!(site.inuse_bytes_low < site.inuse_bytes_high || site.inuse_bytes == site.alloc_bytes);
    // Five standard deviations, so that the test does not fail by chance: the interval is 1.96 of them on either side.
    let margin = (site.inuse_bytes - site.inuse_bytes_low) * 5 / 2;
    assert!(
        site.inuse_bytes.abs_diff(truth.bytes) <= margin,
        "{} of {} +- {margin}",
        site.inuse_bytes,
        truth.bytes
    );
    assert_eq!(site.alloc_objects, truth.objects);
    assert_eq!(report.called_by(pid, "freed_later").objects, 0);
}

#[test]
fn a_trace_for_a_stated_time_ends_by_itself() {
    let _alone = require_kernel!();
    let mut running = start(&require_victim!("basic"));
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &["--for", "4s"]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.report().expect("the report");
    assert!(report.duration_s >= 3.9, "{}", report.duration_s);
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(running.is_alive().unwrap());
}

#[test]
fn a_second_trace_of_the_same_process_begins_at_nothing() {
    let _alone = require_kernel!();
    let mut running = start(&require_victim!("basic"));
    let pid = running.pid();
    let first = Tracer::attach(&running, &[]).expect("attached");
    running.go().expect("the victim's truth");
    let report = first.stop().expect("the report");
    assert_eq!(report.called_by(pid, "leak_basic").objects, 4);
    let output = run(&[
        "trace",
        "-p",
        &pid.to_string(),
        "--for",
        "1s",
        "--format",
        "json",
    ])
    .unwrap();
    let report: Report = serde_json::from_str(&output.stdout).expect("a report");
    assert_eq!(report.called_by(pid, "leak_basic"), Sum::default());
}
