//! Runs test programs, some at a time, and says of each how it ended and how long it took.

use crate::shell::describe;
use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A program to run.
pub(super) struct Job {
    /// For people.
    pub(super) name: String,
    /// What runs it.
    pub(super) command: Command,
}

/// How one ended.
pub(super) struct Done {
    /// The job's name.
    pub(super) name: String,
    /// Whether it ended well.
    pub(super) passed: bool,
    /// How long it took.
    pub(super) time: Duration,
    /// What it wrote to stdout: a test harness's results, and what failed tests wrote.
    pub(super) results: String,
    /// What it wrote to stderr: remarks that are to be seen in any case.
    pub(super) remarks: String,
}

/// Runs the jobs in their order, so many at a time, and gives each to `heed` when it has ended.
pub(super) fn run(jobs: Vec<Job>, at_a_time: usize, mut heed: impl FnMut(Done)) {
    let queue = Mutex::new(VecDeque::from(jobs));
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            let (queue, send) = (&queue, send.clone());
            scope.spawn(move || {
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(job) = next else { break };
                    if send.send(perform(job)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        for done in receive {
            heed(done);
        }
    });
}

fn perform(mut job: Job) -> Done {
    let started = Instant::now();
    let outcome = job.command.stdin(Stdio::null()).output();
    let time = started.elapsed();
    let (passed, results, remarks) = match outcome {
        Ok(output) => (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ),
        Err(error) => (
            false,
            String::new(),
            format!("cannot start `{}`: {error}\n", describe(&job.command)),
        ),
    };
    Done {
        name: job.name,
        passed,
        time,
        results,
        remarks,
    }
}

#[cfg(test)]
mod tests {
    use super::{Job, run};
    use std::process::Command;

    #[test]
    fn each_is_run_once_and_told_of() {
        let jobs = ["true", "false", "no such program", "true"].map(|program| Job {
            name: program.to_owned(),
            command: Command::new(program),
        });
        let mut seen = Vec::new();
        run(jobs.into(), 2, |done| seen.push((done.name, done.passed)));
        seen.sort();
        let seen: Vec<(&str, bool)> = seen
            .iter()
            .map(|(name, passed)| (name.as_str(), *passed))
            .collect();
        assert_eq!(
            seen,
            [
                ("false", false),
                ("no such program", false),
                ("true", true),
                ("true", true)
            ]
        );
    }
}
