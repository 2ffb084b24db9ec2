//! Usage: what is wrong with the command line itself ends with 2 and says what; help and version end with 0.

#![allow(clippy::expect_used, reason = "tests")]

use leakscope_tests::{Finished, run};

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
        misused(&["trace", "-p", "1", "--suppress"], "--suppress"),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
