//! What programs map by themselves: the report against the victim's truth, to the byte, with and without probes in the allocator.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use leakscope_tests::{ALL_SITES, Report, Site, Sum, Truth, require_kernel, require_victim, run};

const HEAP: &str = "leak_malloc";

/// Sites of a kind below a function, together.
fn below(report: &Report, pid: u32, kind: &str, function: &str) -> Sum {
    let mut sum = Sum::default();
    for site in sites(report, pid, kind).filter(|site| site.contains(function)) {
        sum.sites += 1;
        sum.bytes += site.inuse_bytes;
        sum.objects += site.inuse_objects;
        sum.alloc_bytes += site.alloc_bytes;
        sum.alloc_objects += site.alloc_objects;
    }
    sum
}

fn sites<'r>(report: &'r Report, pid: u32, kind: &str) -> impl Iterator<Item = &'r Site> {
    report
        .sites
        .iter()
        .filter(move |site| site.pid == pid && site.kind == kind)
}

#[track_caller]
fn assert_mappings(report: &Report, pid: u32, truths: &[Truth]) {
    let mapped: Vec<Truth> = truths
        .iter()
        .filter(|truth| truth.function != HEAP)
        .cloned()
        .collect();
    let differences = report.differences(&mapped, |report, truth| {
        below(report, pid, "mapping", &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
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
    assert_mappings(&report, pid, &truths);
    assert_eq!(sites(&report, pid, "heap").count(), 0);
    let stack = sites(&report, pid, "mapping")
        .find(|site| site.contains("leak_stack"))
        .expect("the thread's stack");
    assert_eq!(stack.mapping.as_deref(), Some("thread-stack"));
    // The heap's growth is there as what it is: mappings and the data segment, with the stacks that made it grow. Its blocks of
    // 100,000 and 200,000 bytes have headers, and fit into no less.
    let heap = below(&report, pid, "mapping", HEAP);
    assert!(
        heap.bytes >= 45_000_000 && heap.bytes < 50_000_000,
        "{heap:?}"
    );
}
