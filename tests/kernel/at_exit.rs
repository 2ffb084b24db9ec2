//! What commands have lost by the time they end: the blocks that they say, and those that LeakSanitizer finds in the same program.
//! How they end is their own matter.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "JSON: what is not there is null")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use leakscope_tests::{Finished, programs, require_kernel, require_victim, run};
use serde_json::Value;

/// What `lost.c` says that it loses: function, bytes, blocks, of these direct.
const LOSSES: [(&str, u64, u64, u64); 5] = [
    ("lose_direct", 300, 3, 3),
    ("lose_list", 64, 4, 1),
    ("lose_ring", 72, 3, 1),
    ("lose_large", 1_000_000, 1, 1),
    ("lose_in_thread", 500, 5, 5),
];

/// Runs a command under `trace --at-exit`; what was said, and the report.
fn trace(more: &[&str], command: &[&str]) -> (Finished, Value) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut arguments = vec!["trace", "--top", "100000", "--format", "json", "-o"];
    arguments.push(path.to_str().unwrap());
    arguments.extend(more);
    arguments.push("--");
    arguments.extend(command);
    let finished = run(&arguments).expect("leakscope runs");
    assert!(!finished.stderr.contains("itself failed"), "{finished:?}");
    let text = fs::read_to_string(&path).expect("a report");
    (finished, serde_json::from_str(&text).expect("JSON"))
}

/// The lost blocks of the process at a place in the report: bytes, blocks and direct blocks by the first function that begins with
/// `lose`, or else by the allocating one's caller.
fn lost(report: &Value, process: usize) -> BTreeMap<String, (u64, u64, u64)> {
    let pid = &report["processes"][process]["pid"];
    let mut found = BTreeMap::new();
    for site in report["sites"].as_array().unwrap() {
        let count = |name: &str| site["reachability"][name].as_u64().unwrap_or(0);
        if &site["pid"] != pid || count("unreachable") == 0 {
            continue;
        }
        assert_eq!(site["verdict"], "leaking", "{site}");
        let functions: Vec<&str> = site["frames"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|frame| frame["function"].as_str())
            .collect();
        let name = functions.iter().find(|name| name.starts_with("lose"));
        let name = name.or(functions.get(1)).expect("a stack");
        let sum: &mut (u64, u64, u64) = found.entry((*name).to_owned()).or_default();
        sum.0 += count("unreachable_bytes");
        sum.1 += count("unreachable");
        sum.2 += count("direct");
    }
    found
}

fn expected(functions: &[&str]) -> BTreeMap<String, (u64, u64, u64)> {
    LOSSES
        .into_iter()
        .filter(|(name, ..)| functions.contains(name))
        .map(|(name, bytes, blocks, direct)| (name.to_owned(), (bytes, blocks, direct)))
        .collect()
}

fn all() -> BTreeMap<String, (u64, u64, u64)> {
    expected(&LOSSES.map(|(name, ..)| name))
}

#[test]
fn what_a_returned_function_left_on_the_stack_held_the_only_lost_block() {
    let _shared = require_kernel!();
    let program = require_victim!("one");
    for _ in 0..5 {
        let (_, report) = trace(&["--at-exit"], &[program.to_str().unwrap()]);
        let sums = &report["processes"][0]["lost_at_exit"];
        let found = (&sums["direct_objects"], &sums["direct_bytes"]);
        assert_eq!(found, (&1.into(), &100.into()), "{sums}");
    }
}

#[test]
fn what_is_lost_where_a_command_ends_by_itself_and_nothing_that_is_held() {
    let _alone = require_kernel!();
    let path = require_victim!("lost");
    let path = path.to_str().unwrap();
    for (way, status) in [
        ("return", 7),
        ("exit", 7),
        ("_exit", 7),
        ("quick", 7),
        ("last", 0),
        ("vfork", 7),
    ] {
        let (finished, report) = trace(&["--at-exit"], &[path, way]);
        assert_eq!(finished.code(), status, "{way}: {finished:?}");
        assert_eq!(report["lost_at_exit"], true, "{way}");
        assert_eq!(lost(&report, 0), all(), "{way}");
        let process = &report["processes"][0];
        assert_eq!(process["verdict"], "leaking");
        let sums = &process["lost_at_exit"];
        assert_eq!(sums["untraced_objects"], 0, "{way}: {sums}");
        assert_eq!(sums["unread_registers"], 0, "{way}: {sums}");
        let blocks = LOSSES.map(|(_, _, blocks, _)| blocks).iter().sum::<u64>();
        let found =
            sums["direct_objects"].as_u64().unwrap() + sums["indirect_objects"].as_u64().unwrap();
        assert_eq!(found, blocks, "{way}: {sums}");
    }
    let (finished, report) = trace(&["--at-exit"], &[path, "clean"]);
    assert_eq!(finished.code(), 7, "{finished:?}");
    assert!(lost(&report, 0).is_empty(), "{report}");
    assert_eq!(report["lost_at_exit"], true);
}

#[test]
fn a_command_that_does_not_end_by_itself_is_not_looked_at_and_says_so() {
    let _alone = require_kernel!();
    let path = require_victim!("lost");
    let path = path.to_str().unwrap();
    for (way, status) in [("abort", 128 + 6), ("kill", 128 + 9)] {
        let (finished, report) = trace(&["--at-exit"], &[path, way]);
        assert_eq!(finished.code(), status, "{way}: {finished:?}");
        assert_eq!(report["lost_at_exit"], false, "{way}");
        let note = report["processes"][0]["exit_note"].as_str().unwrap();
        assert!(note.contains("a signal ended it"), "{way}: {note}");
        assert_ne!(report["processes"][0]["verdict"], "leaking");
    }
    // What it becomes has lost nothing.
    let (finished, report) = trace(&["--at-exit"], &[path, "exec"]);
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(lost(&report, 0).is_empty(), "{report}");
    let note = report["processes"][0]["exit_note"].as_str().unwrap();
    assert!(note.contains("replaced its program"), "{note}");
}

#[test]
fn a_lost_block_fails_the_trace_unless_it_is_suppressed() {
    let _alone = require_kernel!();
    let path = require_victim!("lost");
    let path = path.to_str().unwrap();
    let (finished, _) = trace(&["--fail-on-leak"], &[path, "return"]);
    assert_eq!(finished.code(), 3, "{finished:?}");
    // Its own status says that it failed, and that it was judged.
    let (finished, _) = trace(&["--fail-on-leak"], &[path, "clean"]);
    assert_eq!(finished.code(), 7, "{finished:?}");
    let folder = tempfile::tempdir().unwrap();
    let known = folder.path().join("known.supp");
    fs::write(&known, "leak:^lose_*\n").unwrap();
    let known = known.to_str().unwrap();
    let (finished, report) = trace(&["--fail-on-leak", "--suppress", known], &[path, "return"]);
    assert_eq!(finished.code(), 7, "{finished:?}");
    assert!(lost(&report, 0).is_empty(), "{report}");
    let reason = report["processes"][0]["verdict_reason"].as_str().unwrap();
    assert!(reason.contains("suppressed"), "{reason}");
}

#[test]
fn it_finds_the_blocks_that_leak_sanitizer_finds() {
    let _alone = require_kernel!();
    let blocks = LOSSES.map(|(_, _, blocks, _)| blocks).iter().sum::<u64>();
    compare(
        &require_victim!("lost"),
        "lost",
        &[
            ("return", blocks),
            ("exit", blocks),
            ("vfork", blocks),
            ("clean", 0),
        ],
    );
    compare(
        &require_victim!("losing"),
        "losing",
        &[
            ("containers", 349),
            ("cycle", 47),
            ("indirect", 100),
            ("threads", 7),
            ("signal", 7),
            ("clean", 0),
        ],
    );
}

/// Runs a program in some ways under leakscope, and the same one built with LeakSanitizer; with each the blocks that it loses.
fn compare(path: &Path, name: &str, ways: &[(&str, u64)]) {
    let program = programs()
        .iter()
        .find(|program| program.name == name)
        .expect("in the table");
    let folder = tempfile::tempdir().unwrap();
    let built = folder.path().join("sanitized");
    let made = Command::new(program.compiler)
        .args(["-fsanitize=leak", "-g", "-O1", "-pthread", "-o"])
        .args([&built, &program.source()])
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        leakscope_tests::skip("the compiler has no LeakSanitizer");
        return;
    }
    for (way, truth) in ways {
        let (finished, report) = trace(&["--at-exit"], &[path.to_str().unwrap(), way]);
        assert_eq!(finished.code(), 7, "{way}: {finished:?}");
        let found = lost(&report, 0)
            .into_values()
            .fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        assert_eq!(found.1, *truth, "{name} {way}");
        let others = sanitized(&built, way);
        // A word that was left on its stack may hold one for it.
        assert!(
            found == others || others.1 + 1 == found.1,
            "{name} {way}: {found:?} {others:?}"
        );
    }
}

/// Bytes and blocks that LeakSanitizer finds: `SUMMARY: LeakSanitizer: 64 byte(s) leaked in 4 allocation(s).`
fn sanitized(program: &Path, way: &str) -> (u64, u64) {
    let output = Command::new(program).arg(way).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let Some(summary) = said
        .lines()
        .find(|line| line.starts_with("SUMMARY: LeakSanitizer"))
    else {
        assert!(output.status.code() == Some(7), "{said}");
        return (0, 0);
    };
    let mut numbers = summary
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
