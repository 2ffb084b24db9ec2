//! The victims by themselves: each speaks the protocol, ends well, and states the truth that its source states.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;

use leakscope_tests::{
    Truth, Victim, missing, programs, require_victim, run_command, skip, victim,
};

/// Victims that do not speak the protocol, or not by themselves.
const SILENT: [&str; 36] = [
    "liar",
    "liar_go",
    "stuck",
    "kept-stripped",
    "kept-pie",
    "one",
    "demo",
    "kernel_leak",
    "behaviours",
    "family",
    "short",
    "endless",
    "bare",
    "containers-omit",
    "libplugin.so",
    "libplugin-omit.so",
    "leakext.so",
    "exec",
    "load",
    "load_threads",
    "busy",
    "fill_up",
    "renamed",
    "sessions",
    "fragments",
    "lost",
    "hoard",
    "entries",
    "entries-stripped",
    "entries-pie",
    "hostile",
    "records",
    "cached",
    "shapes",
    "shapes-v0",
    "losing",
];

fn truth_of(name: &str) -> Vec<Truth> {
    let path = victim(name).expect("built");
    let mut running = Victim::start(&path).expect("started");
    let truths = running
        .go()
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    assert!(running.quit().expect("ends").success(), "{name}");
    truths
}

#[test]
fn every_victim_states_the_truth_of_its_source() {
    for program in programs() {
        if SILENT.contains(&program.name) {
            continue;
        }
        if let Some(reason) = missing(program.name) {
            skip(&format!("victim {}: {reason}", program.name));
            continue;
        }
        let truths = truth_of(program.name);
        assert!(!truths.is_empty(), "{}", program.name);
        if std::env::var_os("LEAKSCOPE_VICTIMS").is_some() {
            continue; // The sources are not there.
        }
        let source = fs::read_to_string(program.source()).expect("its source");
        for truth in truths {
            assert!(source.contains(&truth.function), "{truth:?}");
            // What some count at run time, or state as a formula, is not in the source as a number.
            let counted = program.name.starts_with("threads")
                || program.name.starts_with("backtrace")
                || program.name == "longjmp"
                || program.name == "mappings"
                || program.name == "realloc_race";
            if truth.objects > 0 && !counted {
                let figures = format!("{} / {}", truth.bytes, truth.objects);
                assert!(source.contains(&figures), "{}: {truth:?}", program.name);
            }
        }
    }
}

#[test]
fn a_victim_runs_as_a_plain_command() {
    let kinds = require_victim!("kinds");
    let mut command = std::process::Command::new(kinds);
    command.arg("now");
    let finished = run_command(command).expect("runs");
    assert!(finished.status.success());
    assert!(finished.stdout.ends_with("done\n"), "{}", finished.stdout);
}

#[test]
fn realloc_race_is_the_same_every_time() {
    require_victim!("realloc_race");
    let figures = || -> Vec<(u64, u64)> {
        truth_of("realloc_race")
            .iter()
            .map(|truth| (truth.bytes, truth.objects))
            .collect()
    };
    assert_eq!(figures(), figures());
}

#[test]
fn exec_states_its_second_role_only() {
    require_victim!("exec");
    let truths = truth_of("exec");
    let names: Vec<&str> = truths.iter().map(|truth| truth.function.as_str()).collect();
    assert_eq!(names, ["leak_after_exec"]);
}
