//! The daemon's page: its scripts by themselves, and in a browser in which somebody clicks, over reports that are made up
//! (`tracer/examples/page.rs`). Nothing is traced.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leakscope_tests::{answers, done, example, leave_out, prebuilt, run_command};

/// Whether this machine has no Node; says so.
fn lacks_node() -> bool {
    let missing = prebuilt() || !answers("node", "--version");
    if missing {
        leave_out("node is not installed (Debian: nodejs)");
    }
    missing
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("page")
        .join(name)
}

#[test]
fn the_scripts_count_order_and_filter_as_they_should() {
    if lacks_node() {
        return;
    }
    let mut command = Command::new("node");
    command.arg("--test").arg(script("parts.test.mjs"));
    done(run_command(command).unwrap()).unwrap();
}

/// A daemon of made-up reports. Killed when dropped.
struct MadeUp {
    child: Child,
    url: String,
}

impl MadeUp {
    fn start(sites: &str) -> Self {
        let mut child = Command::new(example("page").unwrap())
            .args(["0", sites])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let url = said
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                line.strip_prefix("listening on http")
                    .map(|rest| format!("http{rest}"))
            })
            .unwrap();
        Self { child, url }
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_leak_is_found_by_clicks_and_names_of_targets_are_no_markup() {
    if lacks_node() {
        return;
    }
    if !answers("chromium", "--version") {
        leave_out("chromium is not installed (Debian: chromium)");
        return;
    }
    let daemon = MadeUp::start("1000");
    // It has a patience of its own for each step.
    let clicked = Command::new("node")
        .arg(script("clicks.mjs"))
        .arg(&daemon.url)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&clicked.stdout);
    assert!(clicked.status.success(), "{said}");
}
