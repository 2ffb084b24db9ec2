//! Usage: what is wrong with the command line itself ends with 2 and says what; help and version end with 0.

#![allow(clippy::expect_used, reason = "tests")]

use std::process::Command;

use leakscope_tests::{Finished, run, run_command};

/// A usage error: code 2, nothing on stdout, a message on stderr that names `subject`.
fn misused(arguments: &[&str], subject: &str) -> Option<String> {
    let finished = run(arguments).expect("leakscope runs");
    let Finished { stdout, stderr, .. } = &finished;
    let wrong = finished.code() != 2
        || !stdout.is_empty()
        || !stderr.contains(subject)
        || stderr.contains("panicked");
    wrong.then(|| format!("{arguments:?} (to name {subject}): {finished:?}"))
}

#[test]
fn usage_errors_end_with_2_and_name_what_is_wrong() {
    let wrong: Vec<String> = [
        misused(&[], "Usage"),
        misused(&["frobnicate"], "frobnicate"),
        misused(&["trace"], "--pid"),
        misused(&["trace", "--for", "1s"], "--pid"),
        misused(&["trace", "--frobnicate", "-p", "1"], "--frobnicate"),
        misused(&["trace", "-p", "abc"], "abc"),
        misused(&["trace", "-p", ""], "--pid"),
        misused(&["trace", "-p", "0"], "0"),
        misused(&["trace", "-p=-1"], "-1"),
        misused(
            &["trace", "-p", "99999999999999999999"],
            "99999999999999999999",
        ),
        misused(&["trace", "-p", "1", "--for", "5parsecs"], "5parsecs"),
        misused(&["trace", "-p", "1", "--for", "-5s"], "-5s"),
        misused(
            &["trace", "-p", "1", "--format", "interpretive-dance"],
            "interpretive-dance",
        ),
        misused(&["trace", "-p", "1", "--tier", "guess"], "guess"),
        misused(&["trace", "-p", "1", "--top", "many"], "many"),
        misused(
            &["trace", "-p", "1", "--min-size", "12 elephants"],
            "12 elephants",
        ),
        misused(
            &["trace", "-p", "1", "--min-size", "100", "--max-size", "10"],
            "--max-size",
        ),
        misused(&["trace", "-p", "1", "--", "true"], "--pid"),
        misused(&["trace", "--"], "--pid"),
        misused(&["trace", "-p", "1", "--at-exit"], "-- COMMAND"),
        misused(
            &["heap", "-p", "1", "--holders", "99999999999"],
            "99999999999",
        ),
        misused(&["heap", "-p", "1", "--holders", "-1"], "from 0 to 100"),
        misused(&["trace", "-p", "1", "--suppress"], "--suppress"),
        misused(&["top", "--url", "a:1", "--tier", "exact"], "--tier"),
        misused(&["top", "--url", "a:1", "--socket", "b"], "--socket"),
        misused(&["top", "--url", "a:1", "--", "true"], "--url"),
        misused(&["top", "--every", "1"], "add a unit"),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Option, value, what is expected, and an example, in one message.
#[test]
fn wrong_values_are_answered_with_what_is_expected_and_an_example() {
    let process = ["trace", "-p", "1"];
    let cases: [([&str; 2], &str, &str, &str); 12] = [
        (["--for", "5"], "--for", "add a unit", "5s"),
        (["--for", "-5s"], "--for", "a number with a unit", "30s"),
        (["--for", "soon"], "--for", "a number with a unit", "30s"),
        (["--every", "0s"], "--every", "longer than 0", "30s"),
        (
            ["--for", "600000000000years"],
            "--for",
            "at most ten years",
            "30d",
        ),
        (["--min-size", "5x"], "--min-size", "a size", "64KiB"),
        (["--max-size", "-5"], "--max-size", "a size", "64KiB"),
        (["--budget", "-1"], "--budget", "a percentage", "0.5"),
        (["--top", "0"], "--top", "at least 1", "20"),
        (["--max-stacks", "1"], "--max-stacks", "from 64", "e.g. 64"),
        (["-p", "abc"], "--pid", "a process id", "1234"),
        (["-p", "-1"], "--pid", "a process id", "1234"),
    ];
    for ([name, value], option, expected, example) in cases {
        let mut arguments = process.to_vec();
        if name == "-p" {
            arguments.truncate(1);
        }
        arguments.extend([name, value]);
        let finished = run(&arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 2, "{arguments:?}: {finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
        for part in [option, value, expected, "e.g.", example] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
    }
}

#[test]
fn an_address_to_listen_on_has_a_port() {
    for wrong in ["localhost", "7117", ":7117", "localhost:port"] {
        let finished = run(&["daemon", "--listen", wrong]).expect("leakscope runs");
        assert_eq!(finished.code(), 2, "{finished:?}");
        for part in ["--listen", wrong, "localhost:7117"] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
    }
}

/// `dump` traces nothing: its options are not those of `trace`.
#[test]
fn the_help_of_dump_is_its_own() {
    let help = run(&["dump", "--help"]).expect("leakscope runs").stdout;
    for words in ["to trace", "Trace ", "that start later"] {
        assert!(!help.contains(words), "{words}: {help}");
    }
    assert!(help.contains("Filter:"), "{help}");
}

#[test]
fn help_is_a_result() {
    for arguments in [
        &["--help"][..],
        &["help"],
        &["trace", "--help"],
        &["doctor", "--help"],
    ] {
        let finished = run(arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 0, "{arguments:?}: {finished:?}");
        assert!(
            finished.stdout.contains("Usage"),
            "{arguments:?}: {finished:?}"
        );
        assert!(finished.stderr.is_empty(), "{arguments:?}: {finished:?}");
    }
}

#[test]
fn trace_explains_its_options() {
    let help = run(&["trace", "--help"]).expect("leakscope runs").stdout;
    for option in [
        "--pid",
        "--for",
        "--every",
        "--tier",
        "--top",
        "--min-size",
        "--max-size",
        "--format",
        "json",
    ] {
        assert!(help.contains(option), "{option} is not in: {help}");
    }
}

#[test]
fn version_is_a_result() {
    let finished = run(&["--version"]).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(
        finished.stdout.contains(env!("CARGO_PKG_VERSION")),
        "{finished:?}"
    );
    assert!(finished.stderr.is_empty(), "{finished:?}");
}

#[test]
fn the_schema_of_reports_is_printed() {
    let finished = run(&["schema"]).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let schema: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert!(schema.pointer("/properties/sites").is_some(), "{schema}");
}

#[test]
fn completions_are_ones_that_the_shell_takes() {
    let finished = run(&["completions", "bash"]).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{}\ncomplete -p leakscope", finished.stdout)]);
    let taken = run_command(shell).expect("bash runs");
    assert_eq!(taken.code(), 0, "{taken:?}");
    assert!(taken.stdout.contains("leakscope"), "{taken:?}");
}
