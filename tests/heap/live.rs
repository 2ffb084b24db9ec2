//! `leakscope heap` on live processes, against the truth that they print. No probe: only the right to read another process.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "JSON: what is not there is null")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use leakscope_tests::{python, require_victim, run};
use serde_json::Value;

/// A process that has printed its truth and waits. Killed when dropped.
struct Waiting {
    child: Child,
    truth: Vec<(String, u64)>,
}

impl Waiting {
    /// Starts it and reads one line of names and numbers.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("started");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output"))
            .read_line(&mut line)
            .expect("its truth");
        let words: Vec<&str> = line.split_whitespace().collect();
        let truth = words
            .chunks_exact(2)
            .map(|pair| (pair[0].to_owned(), pair[1].parse().expect("a number")))
            .collect();
        Self { child, truth }
    }

    fn truth(&self, name: &str) -> u64 {
        let found = self.truth.iter().find(|(known, _)| known == name);
        found.expect("a truth of this name").1
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The heap's report as JSON.
    fn heap(&self, more: &[&str]) -> Value {
        let pid = self.pid();
        let mut arguments = vec!["heap", "-p", &pid, "--format", "json"];
        arguments.extend(more);
        let finished = run(&arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 0, "{finished:?}");
        serde_json::from_str(&finished.stdout).expect("JSON")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It waits for nothing else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sum over the groups of one name.
fn sum(report: &Value, name: &str, field: &str) -> u64 {
    report["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter(|group| group["name"] == name)
        .map(|group| group[field].as_u64().expect("a number"))
        .sum()
}

/// The way by which most blocks of a name are held.
fn first_way(report: &Value, name: &str) -> Vec<String> {
    let groups = report["groups"].as_array().expect("groups");
    groups
        .iter()
        .filter(|group| group["name"] == name)
        .flat_map(|group| group["holders"].as_array().expect("holders"))
        .max_by_key(|holder| holder["objects"].as_u64())
        .map(|holder| {
            let path = holder["path"].as_array().expect("a path");
            path.iter()
                .map(|step| step.as_str().expect("a name").to_owned())
                .collect()
        })
        .unwrap_or_default()
}

/// `part` is at least 99.9 % of `whole`, and not more than it.
fn nearly_all(part: u64, whole: u64) -> bool {
    part <= whole && part * 1000 >= whole * 999
}

#[test]
fn what_a_program_lost_before_anybody_attached_is_found_and_what_it_holds_is_not_called_lost() {
    let victim = Waiting::start(&mut Command::new(require_victim!("sessions")));
    let report = victim.heap(&[]);
    let (lost, held) = (victim.truth("lost"), victim.truth("held"));
    assert_eq!(sum(&report, "Session", "objects"), lost);
    let found = sum(&report, "Session", "unreachable_objects");
    assert!(nearly_all(found, lost), "{found} of {lost}");
    let heads = sum(&report, "Session", "direct_objects");
    assert_eq!(heads, found, "nothing holds a session");
    assert_eq!(sum(&report, "Metric", "objects"), held);
    assert_eq!(sum(&report, "Metric", "unreachable_objects"), 0);
    let way = first_way(&report, "Metric");
    let last = way.last().expect("a way");
    assert!(last.starts_with("global cache in sessions"), "{way:?}");
    let free = report["free_pieces"].as_u64().expect("a number");
    assert!(free >= victim.truth("free"), "{free}");
    // The blocks of 72 bytes that stay between those that were freed.
    assert_eq!(sum(&report, "size 72", "unreachable_objects"), 0);
    let (bytes, anonymous) = (&report["bytes"], &report["anonymous_bytes"]);
    assert!(
        bytes.as_u64() <= anonymous.as_u64(),
        "{bytes} of {anonymous}"
    );
    assert!(report["losses"].as_object().expect("losses").is_empty());
}

#[test]
fn what_grew_between_two_looks_is_what_the_program_did_meanwhile() {
    let program = require_victim!("sessions");
    let few = Waiting::start(Command::new(&program).arg("1000"));
    let many = Waiting::start(Command::new(&program).arg("3000"));
    let base = tempfile::NamedTempFile::new().expect("a file");
    let path = base.path().to_str().expect("a name");
    std::fs::write(path, few.heap(&[]).to_string()).expect("written");
    let report = many.heap(&["--base", path]);
    let first = &report["groups"][0];
    assert!(first["bytes_change"].as_i64().expect("a change") > 0);
    let sessions = report["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .find(|group| group["name"] == "Session")
        .expect("sessions");
    assert_eq!(sessions["objects_change"], 2200);
}

#[test]
fn objects_of_cpython_have_types_holders_and_cycles_that_nobody_collects() {
    let Ok(python) = python() else {
        leakscope_tests::skip("no CPython");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/metrics.py");
    let victim = Waiting::start(Command::new(python.executable).arg(script));
    let report = victim.heap(&[]);
    assert_eq!(
        sum(&report, "Metric", "objects"),
        victim.truth("metrics"),
        "every instance"
    );
    assert_eq!(sum(&report, "Metric", "unreachable_objects"), 0);
    // Words that the interpreter left behind lead to a few of them.
    let nodes = victim.truth("nodes");
    let found = sum(&report, "Node", "unreachable_objects");
    assert!(
        found <= nodes && found * 200 >= nodes * 199,
        "{found} of {nodes}"
    );
    let way = first_way(&report, "Metric").join(" <- ");
    assert!(way.contains("list <- Analyzer"), "{way}");
    assert!(way.ends_with("module __main__"), "{way}");
    // Blocks above 512 bytes are no pool's, and are counted by the interpreter too.
    let (blocks, known) = (report["blocks"].as_u64().unwrap(), victim.truth("blocks"));
    assert!(blocks.abs_diff(known) * 200 <= known, "{blocks} of {known}");
}

#[test]
fn a_process_that_is_not_there_and_one_without_a_known_heap_say_so() {
    let finished = run(&["heap", "-p", "4194304"]).expect("leakscope runs");
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("does not exist"), "{finished:?}");
    let bare = require_victim!("bare");
    let mut child = Command::new(bare)
        .stdin(Stdio::piped())
        .spawn()
        .expect("started");
    let pid = child.id().to_string();
    let finished = run(&["heap", "-p", &pid]).expect("leakscope runs");
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(
        finished.stderr.contains("no heap that is known"),
        "{finished:?}"
    );
}
