//! `leakscope heap` on live processes, against the truth that they print. No probe: only the right to read another process.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "JSON: what is not there is null")]

mod waiting;

use std::process::{Command, Stdio};

use leakscope_tests::{
    Container, NewerLibc, leakscope, leave_out, prebuilt, python, require_victim, run,
};
use waiting::{Waiting, first_way, nearly_all, sum};

#[test]
fn what_a_program_lost_before_anybody_attached_is_found_and_what_it_holds_is_not_called_lost() {
    check_sessions(&mut Command::new(require_victim!("sessions")));
}

fn check_sessions(command: &mut Command) {
    let victim = Waiting::start(command);
    let report = victim.heap(&[]);
    let (lost, held) = (victim.truth("lost"), victim.truth("held"));
    assert_eq!(sum(&report, "Session", "objects"), lost);
    let found = sum(&report, "Session", "unreachable_objects");
    assert!(nearly_all(found, lost), "{found} of {lost}");
    let heads = sum(&report, "Session", "direct_objects");
    assert_eq!(heads, found, "nothing holds a session");
    // A session's name is a string, whose text is a block of its own.
    let texts = sum(&report, "text of 56 B", "unreachable_objects");
    assert!(nearly_all(texts, lost), "{texts} of {lost}");
    assert_eq!(sum(&report, "text of 56 B", "direct_objects"), 0);
    // The nodes of the map.
    assert_eq!(sum(&report, "size 56", "unreachable_objects"), 0);
    assert_eq!(sum(&report, "Metric", "objects"), held);
    assert_eq!(sum(&report, "Metric", "unreachable_objects"), 0);
    let way = first_way(&report, "Metric");
    let last = way.last().expect("a way");
    assert!(last.starts_with("global cache in sessions"), "{way:?}");
    // Since glibc 2.43 neighbours become one piece.
    let free = report["free_bytes"].as_u64().expect("a number");
    assert!(free >= victim.truth("free") * 80, "{free}");
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
    assert!(way.contains("list <- Analyzer.metrics"), "{way}");
    assert!(
        way.ends_with("Analyzer.metrics <- module __main__.analyzer"),
        "{way}"
    );
    // Blocks above 512 bytes are no pool's, and are counted by the interpreter too.
    let (blocks, known) = (report["blocks"].as_u64().unwrap(), victim.truth("blocks"));
    assert!(blocks.abs_diff(known) * 200 <= known, "{blocks} of {known}");
}

#[test]
fn records_chains_and_rings_of_a_program_in_c() {
    check_records(&mut Command::new(require_victim!("records")), 16);
}

/// `beside`: bytes of a mapping with one block that are not the program's.
fn check_records(command: &mut Command, beside: u64) {
    let victim = Waiting::start(command);
    let report = victim.heap(&[]);
    let of = |name: &str, field: &str| sum(&report, name, field);
    let records = victim.truth("records");
    assert_eq!(of("size 88", "objects"), records);
    assert_eq!(of("size 88", "unreachable_objects"), 0);
    // A thousand words of one table are one root.
    let way = first_way(&report, "size 88");
    assert_eq!(way, ["global table in records"]);
    let (links, chains) = (victim.truth("links"), victim.truth("chains"));
    assert!(nearly_all(of("size 120", "unreachable_objects"), links));
    assert!(nearly_all(of("size 120", "direct_objects"), chains));
    assert!(nearly_all(
        of("text of 168 B", "unreachable_objects"),
        links
    ));
    assert_eq!(of("text of 168 B", "direct_objects"), 0);
    let rings = victim.truth("rings");
    assert!(nearly_all(of("size 152", "unreachable_objects"), 2 * rings));
    assert!(nearly_all(of("size 152", "direct_objects"), rings));
    let (lost, held) = (victim.truth("lost_large"), victim.truth("held_large"));
    let sizes = [303_104, 200_704].map(|mapping| format!("size {}", mapping - beside));
    assert_eq!(of(&sizes[0], "unreachable_objects"), lost);
    assert_eq!(of(&sizes[1], "objects"), held);
    assert_eq!(of(&sizes[1], "unreachable_objects"), 0);
    assert!(report["losses"].as_object().expect("losses").is_empty());
}

/// `tunables`: how large blocks are in caches.
fn check_cached(command: &mut Command, tunables: &str) {
    let victim = Waiting::start(command.env("GLIBC_TUNABLES", tunables));
    let report = victim.heap(&[]);
    let mapped = victim.truth("mapped_bytes");
    for (bytes, truth) in [(200, "small"), (3000, "large"), (mapped, "mapped")] {
        let found = sum(&report, &format!("zeroed {bytes} B"), "objects");
        assert_eq!(found, victim.truth(truth), "{tunables} {truth}");
    }
    assert!(report["losses"].as_object().expect("losses").is_empty());
}

/// Without and with caches for large blocks, which there are since glibc 2.42.
const TUNABLES: [&str; 2] = ["", "glibc.malloc.tcache_max=4000000"];

#[test]
fn blocks_in_the_caches_of_threads_are_free() {
    for tunables in TUNABLES {
        check_cached(&mut Command::new(require_victim!("cached")), tunables);
    }
}

#[test]
fn since_glibc_2_43_no_heap_was_known() {
    if prebuilt() {
        leave_out("there is no newer C library beside the victims");
        return;
    }
    let libc = match NewerLibc::find() {
        Ok(libc) => libc,
        Err(why) => {
            leakscope_tests::skip(why);
            return;
        }
    };
    check_sessions(&mut libc.command(&require_victim!("sessions")));
    check_records(&mut libc.command(&require_victim!("records")), 24);
    for tunables in TUNABLES {
        check_cached(&mut libc.command(&require_victim!("cached")), tunables);
    }
}

#[test]
fn in_a_root_without_dev_null_no_reader_was_started() {
    let victim = Waiting::start(&mut Command::new(require_victim!("records")));
    if !Container::can_be_made() {
        leave_out("no process can be given a root of its own here");
        return;
    }
    let root = tempfile::tempdir().expect("a folder");
    // The test's binary needs libraries.
    let script = "cp \"$0\" leakscope; for part in proc sys usr lib lib64; do \
        [ -d /$part ] || continue; mkdir $part && mount --rbind /$part $part || exit; done; exec chroot . /leakscope heap -p \"$1\"";
    let found = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(leakscope().expect("built"))
        .arg(victim.pid())
        .current_dir(root.path())
        .output()
        .expect("unshare");
    assert!(found.status.success(), "{found:?}");
    let text = String::from_utf8_lossy(&found.stdout);
    assert!(text.contains("glibc, 1 arena"), "{text}");
}

#[test]
fn boxed_traits_of_rust_are_named_also_where_types_share_their_functions() {
    for program in ["shapes", "shapes-v0"] {
        let victim = Waiting::start(&mut Command::new(require_victim!(program)));
        let report = victim.heap(&[]);
        let of = |name: &str, field: &str| sum(&report, name, field);
        let (held, dots) = (victim.truth("held"), victim.truth("dots"));
        for name in ["shapes::Circle", "shapes::Square"] {
            assert_eq!(of(name, "objects"), held, "{name}");
            assert_eq!(of(name, "unreachable_objects"), 0, "{name}");
            let way = first_way(&report, name).pop().expect("a way");
            assert!(way.starts_with("global shapes::SHAPES"), "{way}");
        }
        assert_eq!(of("shapes::Dot", "objects"), held + dots);
        let lost = of("shapes::Dot", "unreachable_objects");
        assert!(nearly_all(lost, dots), "{lost} of {dots}");
        let groups = report["groups"].as_array().expect("groups");
        let kind = |name: &str| groups.iter().find(|group| group["name"] == name);
        assert_eq!(kind("shapes::Dot").expect("dots")["kind"], "rust");
        let rings = of("size 104", "unreachable_objects");
        assert!(nearly_all(rings, victim.truth("rings")), "{rings}");
        let bytes = of("size 200", "unreachable_objects");
        assert!(nearly_all(bytes, victim.truth("bytes")), "{bytes}");
        let lists = of("size 168", "direct_objects");
        assert_eq!(lists, victim.truth("lists"));
    }
}

#[test]
fn the_holders_are_drawn_as_a_page_and_for_graphviz() {
    let victim = Waiting::start(&mut Command::new(require_victim!("sessions")));
    let page = victim.written("html", &[]);
    assert!(page.contains("<svg class=\"tree\""), "{page}");
    assert!(page.contains("global cache in sessions"), "{page}");
    for part in ["<script", "src=", "http:", "https:", "@import", "url("] {
        assert!(!page.contains(part), "{part}");
    }
    let graph = victim.written("dot", &[]);
    let Ok(mut dot) = Command::new("dot")
        .arg("-Tsvg")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        leakscope_tests::skip("no graphviz");
        return;
    };
    let mut input = dot.stdin.take().expect("its input");
    std::io::Write::write_all(&mut input, graph.as_bytes()).expect("written");
    drop(input);
    let drawn = dot.wait_with_output().expect("drawn");
    assert!(drawn.status.success(), "{graph}");
    let drawn = String::from_utf8(drawn.stdout).expect("text");
    assert!(drawn.contains("global cache in sessions"), "{drawn}");
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
