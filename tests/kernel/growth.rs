//! What programs map by themselves: the report against the victim's truth, to the byte, with and without probes in the allocator.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use leakscope_tests::{
    ALL_SITES, PATIENCE, Report, Site, Sum, Tracer, Truth, Victim, breakpoints,
    mappings_at_functions, require_kernel, require_victim, run,
};

const HEAP: &str = "leak_malloc";
const STACK: &str = "leak_stack";

/// A thread's stack of 65,536 bytes, of which what was touched is in use.
#[track_caller]
fn assert_stack(report: &Report, pid: u32, is_running: bool) {
    let stack = sites(report, pid, "mapping")
        .find(|site| site.contains(STACK))
        .expect("the thread's stack");
    assert_eq!(stack.mapping.as_deref(), Some("thread-stack"));
    assert_eq!(stack.inuse_objects, 1);
    // A guard page comes with it.
    assert_eq!(
        stack.inuse_bytes + stack.reserved_bytes,
        65536 + 4096,
        "{stack:?}"
    );
    assert_eq!(stack.inuse_bytes > 0, is_running, "{stack:?}");
    assert!(stack.inuse_bytes < 65536, "{stack:?}");
}

/// Sites of a kind below a function, together.
fn below(report: &Report, pid: u32, kind: &str, function: &str) -> Sum {
    let mut sum = Sum::default();
    for site in sites(report, pid, kind).filter(|site| site.contains(function)) {
        sum.add(site);
    }
    sum
}

fn sites<'r>(report: &'r Report, pid: u32, kind: &str) -> impl Iterator<Item = &'r Site> {
    report
        .sites
        .iter()
        .filter(move |site| site.pid == pid && site.kind == kind)
}

/// What is to be found where mappings are seen when the kernel chooses their addresses: brk has no stack, and what replaces a mapping at its own
/// address belongs to who made that.
fn seen_by_place(truths: &[Truth]) -> Vec<Truth> {
    let mut seen: Vec<Truth> = truths
        .iter()
        .filter(|truth| truth.function != "leak_brk")
        .cloned()
        .collect();
    for truth in &mut seen {
        match truth.function.as_str() {
            "replaced" => "leak_replacing".clone_into(&mut truth.function),
            "leak_replacing" => "replaced".clone_into(&mut truth.function),
            _ => {}
        }
    }
    seen
}

#[track_caller]
fn assert_mappings(report: &Report, pid: u32, truths: &[Truth]) {
    let mapped: Vec<Truth> = truths
        .iter()
        .filter(|truth| truth.function != HEAP && truth.function != STACK)
        .cloned()
        .collect();
    let differences = report.differences(&mapped, |report, truth| {
        below(report, pid, "mapping", &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn mappings_are_exact_and_the_allocators_own_are_not_among_them() {
    let _alone = require_kernel!();
    let mut running = Victim::start(&require_victim!("mappings")).expect("started");
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    let at_functions = mappings_at_functions().expect("doctor");
    if at_functions {
        assert_mappings(&report, pid, &truths);
    } else {
        assert_mappings(&report, pid, &seen_by_place(&truths));
    }
    // 45 MB of the heap, whose blocks are mapped one by one or lie in the data segment, are counted once.
    assert_eq!(below(&report, pid, "mapping", HEAP), Sum::default());
    let heap = below(&report, pid, "heap", HEAP);
    assert_eq!((heap.bytes, heap.objects), (45_000_000, 300));
    // A page of each block at least has been written to. The kernel's count lags behind by some dozen pages for each processor.
    let series = &report.processes.first().expect("the process").memory_series;
    let anonymous = series.last().expect("a look").anonymous_bytes;
    assert!(anonymous > 300 * 4096 / 2, "{anonymous}");
    assert_stack(&report, pid, true);
    for site in sites(&report, pid, "mapping") {
        assert!(site.stack_complete, "{:?}", site.names());
    }
    let mapped: u64 = sites(&report, pid, "mapping")
        .map(|site| site.alloc_objects)
        .sum();
    // 5 + 1 + 1 + 2 + 1 + 1 + 1, 50 that were unmapped, one that is replaced; and what replaces it, and brk.
    assert_eq!(mapped, if at_functions { 65 } else { 63 });
}

#[test]
fn mappings_are_seen_when_the_kernel_places_them() {
    let _alone = require_kernel!();
    let mut running = Victim::start(&require_victim!("mappings")).expect("started");
    let pid = running.pid();
    // Where the kernel ties programs to its functions, only so are mappings seen by their places.
    let tracer = Tracer::attach(&running, &["--links", "perf"]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    assert_mappings(&report, pid, &seen_by_place(&truths));
    assert_eq!(below(&report, pid, "mapping", HEAP), Sum::default());
    assert!(report.byte_losses().is_empty(), "{:?}", report.losses);
}

#[test]
fn without_allocator_probes_every_mapping_is_shown() {
    let _alone = require_kernel!();
    let path = require_victim!("mappings");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let finished = run(&[
        "trace",
        "--tier",
        "growth",
        "--top",
        ALL_SITES,
        "--format",
        "json",
        "-o",
        file.to_str().unwrap(),
        "--",
        path.to_str().unwrap(),
        "now",
    ])
    .expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let report: Report = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report.tier, "growth");
    assert_eq!(report.overhead.probe_hits, 0);
    let pid = report.processes.first().unwrap().pid;
    let truths: Vec<Truth> = finished
        .stdout
        .lines()
        .filter_map(|line| Truth::parse(line).ok())
        .collect();
    assert!(truths.len() > 10);
    let at_functions = mappings_at_functions().expect("doctor");
    if at_functions {
        assert_mappings(&report, pid, &truths);
    } else {
        // Nobody may have looked at it before it ended, which is said.
        let placed = ["leak_mmap", "leak_mremap", "leak_remap", "leak_shared"];
        let truths: Vec<Truth> = truths
            .into_iter()
            .filter(|truth| placed.contains(&truth.function.as_str()))
            .collect();
        assert_mappings(&report, pid, &truths);
        let note = report.processes.first().unwrap().exit_note.as_deref();
        let note = note.unwrap_or_default();
        assert!(note.contains("they may have been unmapped"), "{note}");
    }
    assert_eq!(sites(&report, pid, "heap").count(), 0);
    assert_stack(&report, pid, false);
    // The heap's growth is there as what it is: mappings and the data segment, with the stacks that made it grow. Its blocks of
    // 100,000 and 200,000 bytes have headers, and fit into no less.
    let heap = below(&report, pid, "mapping", HEAP);
    let least = if at_functions { 45_000_000 } else { 30_000_000 };
    assert!(heap.bytes >= least && heap.bytes < 50_000_000, "{heap:?}");
}

#[test]
fn files_memfds_and_shared_segments_were_not_seen() {
    let _alone = require_kernel!();
    let path = require_victim!("segments");
    for tier in ["exact", "growth"] {
        let mut running = Victim::start(&path).expect("started");
        let pid = running.pid();
        let mut tracer = Tracer::start(&["--tier", tier, "-p", &pid.to_string()]).expect("started");
        tracer.wait_until_following().expect("following");
        let truths = running.go().expect("the victim's truth");
        let report = tracer.stop().expect("the report");
        assert!(running.quit().expect("the victim ends").success());
        assert_mappings(&report, pid, &truths);
        for (function, kind) in [
            ("leak_file", "file"),
            ("leak_memfd", "memfd"),
            ("leak_sysv", "sysv"),
            ("leak_shared", "shared"),
        ] {
            let mut found = sites(&report, pid, "mapping").filter(|site| site.contains(function));
            assert!(
                found.all(|site| site.mapping.as_deref() == Some(kind)),
                "{tier}: {function}"
            );
        }
        let mapped = below(&report, pid, "mapping", "opened_and_closed");
        assert_eq!(mapped.alloc_objects, 8);
        let reason = &report
            .processes
            .first()
            .expect("the process")
            .verdict_reason;
        assert!(
            reason.contains("descriptors hold 6.0 MiB of shared memory in 6 memfd files"),
            "{tier}: {reason}"
        );
    }
}

/// What an allocator maps where no probe sees its call, in `free` and between windows, is told apart by its stack.
#[track_caller]
fn assert_allocators_own_are_hidden(victim: &str, arguments: &[&str], in_window: bool) {
    let mut running = Victim::start(&require_victim!(victim)).expect("started");
    let pid = running.pid();
    let mut all = vec!["-p"];
    let number = pid.to_string();
    all.push(&number);
    all.extend(arguments);
    let mut tracer = Tracer::start(&all).expect("leakscope starts");
    if in_window {
        tracer.wait_until_attached(pid).expect("attached");
    } else {
        // The first window may be over before anybody has looked, and of a process that rests there is no second one.
        tracer.wait_until_following().expect("following");
    }
    let begun = Instant::now();
    while !in_window && !breakpoints(pid).unwrap().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the window does not close");
        sleep(Duration::from_millis(1));
    }
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    let mapped = truths
        .iter()
        .find(|truth| truth.function == "leak_mapped")
        .expect("its truth");
    let found = below(&report, pid, "mapping", "leak_mapped");
    assert_eq!((found.bytes, found.objects), (mapped.bytes, mapped.objects));
    for site in sites(&report, pid, "mapping") {
        let is_own = site.contains("leak_mapped");
        let is_stack = site.mapping.as_deref() == Some("thread-stack");
        assert!(is_own || is_stack, "{:?}", site.names());
    }
}

#[test]
fn an_arena_that_free_maps_is_the_allocators() {
    let _alone = require_kernel!();
    for victim in ["arenas", "arenas-omit"] {
        assert_allocators_own_are_hidden(victim, &["--tier", "exact"], true);
    }
}

#[test]
fn between_windows_an_allocators_mappings_are_its_own() {
    let _alone = require_kernel!();
    for victim in ["arenas", "arenas-omit"] {
        let arguments = ["--tier", "sampled", "--window", "100ms"];
        assert_allocators_own_are_hidden(victim, &arguments, false);
    }
}

#[test]
fn mappings_that_take_too_much_of_the_budget_are_given_up() {
    let _alone = require_kernel!();
    let path = require_victim!("remap");
    for (tier, is_given_up) in [("exact", false), ("auto", true)] {
        let mut running = Victim::start(&path).expect("started");
        let pid = running.pid();
        let number = pid.to_string();
        let mut tracer = Tracer::start(&["--tier", tier, "-p", &number]).expect("started");
        tracer.wait_until_attached(pid).expect("attached");
        let truths = running.go().expect("the victim's truth");
        // The next look at what it costs.
        sleep(Duration::from_millis(500));
        let report = tracer.stop().expect("the report");
        assert!(running.quit().expect("the victim ends").success());
        let process = report.processes.first().expect("the process");
        let note = process.exit_note.as_deref().unwrap_or_default();
        assert_eq!(note.contains("mmap tracking off"), is_given_up, "{note:?}");
        if is_given_up {
            assert_eq!(sites(&report, pid, "mapping").count(), 0);
        } else {
            assert_mappings(&report, pid, &truths);
            let pairs = below(&report, pid, "mapping", "map_and_unmap");
            assert_eq!((pairs.bytes, pairs.alloc_objects), (0, 20_000));
        }
    }
}
