//! What stands in the daemon's configuration file governs how it traces.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_tests::{
    Daemon, PATIENCE, Victim, answers, leave_out, require_kernel, require_victim,
};
use serde_json::Value;

/// A report of the daemon that traces the victim, by a file and options, once it has seen calls.
fn report(program: &Path, file: &str, options: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, file).unwrap();
    let mut victim = Victim::start(program).unwrap();
    let pid = victim.pid().to_string();
    let mut arguments = vec!["--config", path.to_str().unwrap(), "-p", &pid];
    arguments.extend(options);
    let daemon = Daemon::start(&arguments).unwrap();
    victim.go().unwrap();
    let start = Instant::now();
    let report = loop {
        let text = daemon.curl(&[], "/api/v1/report").unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();
        let seen = report.pointer("/processes/0/alloc_objects");
        if seen.and_then(Value::as_u64) > Some(0) {
            break report;
        }
        assert!(start.elapsed() < PATIENCE, "{report}");
        sleep(Duration::from_millis(100));
    };
    assert!(victim.quit().unwrap().success());
    report
}

#[test]
fn a_daemon_traces_by_the_budget_in_its_file_unless_told_otherwise() {
    let _turn = require_kernel!();
    let basic = require_victim!("basic");
    if !answers("curl", "--version") {
        leave_out("curl is not installed (Debian: curl)");
        return;
    }
    let budget = |report: &Value| report.pointer("/overhead/budget").and_then(Value::as_f64);
    let by_file = report(&basic, "budget = 2.5\n", &[]);
    assert_eq!(budget(&by_file), Some(0.025), "{by_file}");
    let by_both = report(&basic, "budget = 2.5\n", &["--budget", "0.5"]);
    assert_eq!(budget(&by_both), Some(0.005), "{by_both}");
}
