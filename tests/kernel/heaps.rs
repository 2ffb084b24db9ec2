//! What a trace says of the heap that it finds: how full it is, what the blocks of a site are, who holds them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "JSON: what is not there is null")]

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use leakscope_tests::{
    NewerLibc, Tracer, leave_out, prebuilt, require_kernel, require_victim, skip,
};
use serde_json::Value;

/// A program that waits for a line, does something, prints its truth and waits.
struct Waiting {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(program: &Path) -> Self {
        Self::run(&mut Command::new(program))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        stdout.read_line(&mut String::new()).expect("ready");
        Self {
            stdin: child.stdin.take().expect("its input"),
            child,
            stdout,
        }
    }

    /// Lets it do what it does; gives the truth.
    fn go(&mut self) -> HashMap<String, u64> {
        self.stdin.write_all(b"go\n").expect("written");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("its truth");
        let words: Vec<&str> = line.split_whitespace().collect();
        words
            .chunks_exact(2)
            .map(|pair| (pair[0].to_owned(), pair[1].parse().expect("a number")))
            .collect()
    }

    /// Traces it while it does that and for some time after it, with the truth.
    fn traced(&mut self, tier: &str, after: Duration) -> (HashMap<String, u64>, Value) {
        let pid = self.child.id();
        let mut tracer = Tracer::start(&["--tier", tier, "-p", &pid.to_string()]).expect("started");
        tracer.wait_until_following().expect("following");
        if tier == "exact" {
            tracer.wait_until_attached(pid).expect("attached");
        }
        let truth = self.go();
        sleep(after);
        tracer.signal("INT").expect("asked to stop");
        let finished = tracer.end().expect("ends");
        assert_eq!(finished.code(), 0, "{finished:?}");
        let text = std::fs::read(tracer.report_path()).expect("a report");
        (truth, serde_json::from_slice(&text).expect("JSON"))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It waits for nothing else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn holes_in_the_heap_explain_the_memory_that_no_block_has() {
    let _alone = require_kernel!();
    let program = require_victim!("fragments");
    for tier in ["exact", "growth"] {
        check_holes(Waiting::start(&program), tier);
    }
}

#[test]
fn holes_in_the_heap_of_a_newer_c_library() {
    let _alone = require_kernel!();
    let program = require_victim!("fragments");
    if prebuilt() {
        leave_out("there is no newer C library beside the victims");
        return;
    }
    match NewerLibc::find() {
        Ok(libc) => check_holes(Waiting::run(&mut libc.command(&program)), "exact"),
        Err(why) => skip(why),
    }
}

#[test]
fn a_trace_says_when_a_heap_has_a_form_that_is_not_known() {
    let _alone = require_kernel!();
    let program = require_victim!("fragments");
    let note = |tunables: &str| {
        let mut command = Command::new(&program);
        command.env("GLIBC_TUNABLES", tunables);
        let (_, report) = Waiting::run(&mut command).traced("exact", Duration::ZERO);
        report["processes"][0]["heap_note"].clone()
    };
    assert!(note("").is_null());
    // There its arena lies elsewhere.
    let said = note("glibc.malloc.hugetlb=2");
    let said = said.as_str().unwrap_or_default();
    assert!(said.contains("of no known form (glibc 2.30 to"), "{said}");
}

fn check_holes(mut victim: Waiting, tier: &str) {
    let (truth, report) = victim.traced(tier, Duration::ZERO);
    let heap = &report["processes"][0]["heap"];
    let (free, pieces) = (heap["free_bytes"].as_u64(), heap["free_pieces"].as_u64());
    let (free, pieces) = (free.expect("looked"), pieces.expect("looked"));
    assert!(
        free.abs_diff(truth["free"]) * 50 <= free,
        "{heap} {truth:?}"
    );
    assert!(pieces.abs_diff(truth["pieces"]) <= 50, "{heap} {truth:?}");
    let anonymous = report["processes"][0]["anonymous_bytes"].as_u64();
    assert!(free <= anonymous.expect("known"), "{heap}");
}

/// The sites of a function, as far as they are of objects of a class.
fn sites_of<'r>(report: &'r Value, function: &str, class: &str) -> Vec<&'r Value> {
    let sites = report["sites"].as_array().expect("sites");
    sites
        .iter()
        .filter(|site| {
            let frames = site["frames"].as_array().expect("frames");
            let calls = |frame: &Value| {
                let name = frame["function"].as_str();
                name.is_some_and(|name| name.contains(function))
            };
            frames.iter().any(calls) && site["types"][0]["name"] == class
        })
        .collect()
}

fn sum(sites: &[&Value], pointer: &str) -> u64 {
    let number = |site: &&Value| site.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    sites.iter().map(number).sum()
}

#[test]
fn blocks_that_nothing_points_to_leak_and_those_that_a_global_holds_do_not() {
    let _alone = require_kernel!();
    let mut victim = Waiting::start(&require_victim!("fragments"));
    let (truth, report) = victim.traced("exact", Duration::from_secs(12));
    let lost = sites_of(&report, "lose_session", "Session");
    assert_eq!(sum(&lost, "/reachability/checked"), truth["lost"]);
    // What stands on the stack of a function that has returned may lead to one.
    let found = sum(&lost, "/reachability/unreachable");
    assert!(found <= truth["lost"] && found * 1000 >= truth["lost"] * 999);
    assert_eq!(sum(&lost, "/types/0/objects"), truth["lost"]);
    assert!(
        lost.iter().all(|site| site["verdict"] == "leaking"),
        "{lost:?}"
    );
    assert_eq!(lost[0]["evidence"][0]["kind"], "unreachable");
    assert_eq!(report["processes"][0]["verdict"], "leaking");
    let held = sites_of(&report, "hold_metric", "Metric");
    assert_eq!(sum(&held, "/reachability/checked"), truth["held"]);
    assert_eq!(sum(&held, "/reachability/unreachable"), 0);
    let path = held[0]["holders"][0]["path"].as_array().expect("a way");
    let last = path.last().and_then(Value::as_str).expect("a root");
    assert!(last.starts_with("global cache in fragments"), "{path:?}");
    assert!(
        held.iter().all(|site| site["verdict"] != "leaking"),
        "{held:?}"
    );
}
