//! Processes that have printed their truth, and what `leakscope heap` says of them.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use leakscope_tests::run;
use serde_json::Value;

/// A process that has printed its truth and waits. Killed when dropped.
pub(crate) struct Waiting {
    child: Child,
    truth: Vec<(String, u64)>,
}

impl Waiting {
    /// Starts it and reads one line of names and numbers.
    pub(crate) fn start(command: &mut Command) -> Self {
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

    /// A number that it printed.
    pub(crate) fn truth(&self, name: &str) -> u64 {
        let found = self.truth.iter().find(|(known, _)| known == name);
        found.expect("a truth of this name").1
    }

    /// Its process.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The heap's report as JSON.
    pub(crate) fn heap(&self, more: &[&str]) -> Value {
        serde_json::from_str(&self.written("json", more)).expect("JSON")
    }

    /// The heap's report in a format.
    pub(crate) fn written(&self, format: &str, more: &[&str]) -> String {
        let pid = self.pid();
        let mut arguments = vec!["heap", "-p", &pid, "--format", format];
        arguments.extend(more);
        let finished = run(&arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 0, "{finished:?}");
        finished.stdout
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
pub(crate) fn sum(report: &Value, name: &str, field: &str) -> u64 {
    report["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter(|group| group["name"] == name)
        .map(|group| group[field].as_u64().expect("a number"))
        .sum()
}

/// The way by which most blocks of a name are held.
pub(crate) fn first_way(report: &Value, name: &str) -> Vec<String> {
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
pub(crate) fn nearly_all(part: u64, whole: u64) -> bool {
    part <= whole && part * 1000 >= whole * 999
}
