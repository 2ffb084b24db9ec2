//! What comes out where: the JSON contract field by field, results on stdout, broken pipes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use leakscope_tests::{ALL_SITES, Report, Victim, leakscope, require_kernel, require_victim, run};
use serde_json::Value;

#[track_caller]
fn assert_keys(value: &Value, keys: &[&str]) {
    let object = value.as_object().expect("an object");
    for key in keys {
        assert!(object.contains_key(*key), "no {key} in {value}");
    }
}

#[test]
fn json_has_every_field_of_the_contract() {
    let _alone = require_kernel!();
    let short = require_victim!("short");
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = file.path().to_str().unwrap();
    let command = short.to_str().unwrap();
    let finished = run(&["trace", "--format", "json", "-o", output, "--", command]).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    let report: Value =
        serde_json::from_slice(&fs::read(output).unwrap()).expect("one JSON object");
    assert_keys(
        &report,
        &[
            "schema",
            "captured_at",
            "duration_s",
            "tier",
            "tier_reason",
            "processes",
            "sites",
            "losses",
            "overhead",
        ],
    );
    assert_eq!(report["schema"], 1);
    let captured = report["captured_at"].as_str().unwrap();
    assert!(
        captured.len() >= 20 && captured.ends_with('Z') && captured.as_bytes()[10] == b'T',
        "{captured}"
    );
    assert_eq!(report["tier"], "exact");
    let processes = report["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 1, "{report}");
    assert_keys(
        &processes[0],
        &[
            "pid",
            "comm",
            "cgroup",
            "allocators",
            "rss_bytes",
            "rss_growth_bytes_per_s",
        ],
    );
    assert_eq!(processes[0]["comm"], "short");
    let allocator = processes[0]["allocators"][0]
        .as_str()
        .expect("an allocator");
    assert!(
        allocator.starts_with("glibc ") && allocator.ends_with("/libc.so.6"),
        "{allocator}"
    );
    let sites = report["sites"].as_array().unwrap();
    assert!(!sites.is_empty(), "{report}");
    for site in sites {
        assert_keys(
            site,
            &[
                "pid",
                "inuse_bytes",
                "inuse_objects",
                "alloc_bytes",
                "alloc_objects",
                "inuse_bytes_low",
                "inuse_bytes_high",
                "oldest_age_s",
                "growth_bytes_per_s",
                "verdict",
                "verdict_reason",
                "stack_complete",
                "frames",
            ],
        );
        let verdict = site["verdict"].as_str().unwrap();
        let verdicts = [
            "leaking",
            "plateau",
            "churn",
            "warming-up",
            "insufficient-data",
        ];
        assert!(verdicts.contains(&verdict), "{verdict}");
        for frame in site["frames"].as_array().unwrap() {
            assert_keys(
                frame,
                &[
                    "function", "module", "offset", "file", "line", "inlined", "kind",
                ],
            );
        }
    }
    assert!(
        report["losses"]
            .as_object()
            .unwrap()
            .values()
            .all(Value::is_u64)
    );
    assert_keys(
        &report["overhead"],
        &["probe_hits", "duty", "target_cpu_fraction", "budget"],
    );
}

#[test]
fn json_follows_the_output_of_the_command_on_stdout() {
    let _alone = require_kernel!();
    let short = require_victim!("short");
    let finished = run(&["trace", "--format", "json", "--", short.to_str().unwrap()]).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    let json = finished
        .stdout
        .strip_prefix("short says hello\n")
        .expect("the command's output comes first");
    let report: Report = serde_json::from_str(json).expect("the rest is the report");
    assert!(!finished.stderr.contains("inuse_bytes"), "{finished:?}");
    assert_eq!(report.schema, 1);
}

#[test]
fn text_is_for_people_and_names_the_site_and_its_line() {
    let _alone = require_kernel!();
    let short = require_victim!("short");
    let finished = run(&["trace", "--", short.to_str().unwrap()]).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    for word in ["leak_short", "short.c:", "leak_before_main", "exact"] {
        assert!(
            finished.stdout.contains(word),
            "to name {word}: {}",
            finished.stdout
        );
    }
    // Progress is for terminals.
    assert!(!finished.stderr.contains('\r'), "{finished:?}");
    assert!(
        !finished.stdout.contains('\u{1b}'),
        "colours in a pipe: {}",
        finished.stdout
    );
}

#[test]
fn top_limits_the_sites() {
    let _alone = require_kernel!();
    let kinds = require_victim!("kinds");
    let kinds = kinds.to_str().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = file.path().to_str().unwrap();
    let arguments = [
        "trace", "--top", "3", "--format", "json", "-o", output, "--", kinds, "now",
    ];
    let finished = run(&arguments).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    let report: Report = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(report.sites.len(), 3);
    assert!(
        report.sites[0].contains("leak_realloc_move"),
        "{:?}",
        report.sites[0].names()
    );
}

#[test]
fn a_broken_pipe_is_no_failure() {
    let _alone = require_kernel!();
    // Thousands of stacks: more than a pipe holds, so that leakscope meets the closed end while it writes.
    let victim = require_victim!("backtrace");
    let mut child = Command::new(leakscope().unwrap())
        .args(["trace", "--top", ALL_SITES, "--format", "json", "--"])
        .arg(victim)
        .arg("now")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // The victim's own lines come first, and it must be able to write them.
    let mut read = Vec::new();
    let mut chunk = [0; 4096];
    while !read.windows(5).any(|window| window == b"done\n") {
        let count = stdout.read(&mut chunk).unwrap();
        assert!(count > 0, "the output ended before the victim did");
        read.extend_from_slice(&chunk[..count]);
    }
    drop(stdout);
    let finished = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&finished.stderr);
    assert_eq!(finished.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn an_empty_result_says_why() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let running = Victim::start(&basic).expect("started");
    let pid = running.pid().to_string();
    let finished = run(&["trace", "-p", &pid, "--for", "1s"]).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    // The victim waits for its word: not one call is made.
    assert!(!finished.stdout.contains("leak_basic"), "{finished:?}");
    assert!(finished.stdout.contains("no "), "{finished:?}");
}
