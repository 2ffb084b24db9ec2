//! How soon the one leak of a server under full load is the first site of a report at the default budget, and how near the rate that is
//! given for it is to the truth.
//!
//! `tests/programs/bench_server.c` counts what it leaks itself.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, LeakFigures, LeakRun, median};
use super::victim::{Leaked, Victim, compile};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long the server has run before: longer than its blocks live that do not leak.
const WARM: Duration = Duration::from_secs(9);
/// Within this time the leak is to be the first site.
const WITHIN: Duration = Duration::from_secs(60);
/// A look every so often. The last is as late as the bar allows: a rate rests on what was seen by then.
const EVERY: Duration = Duration::from_secs(5);
/// How far the rate may be off, percent.
const OFF_PERCENT: f64 = 25.0;
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The function that leaks.
const LEAK: &str = "leak";

/// A server: the program's arguments, and the allocator that is put before glibc's.
pub(super) struct Server {
    name: &'static str,
    arguments: &'static [&'static str],
    preload: Option<&'static str>,
}

const fn server(name: &'static str, arguments: &'static [&'static str]) -> Server {
    Server {
        name,
        arguments,
        preload: None,
    }
}

/// Those that the bar is for.
pub(super) const SERVERS: [Server; 2] =
    [server("one thread", &["1"]), server("two threads", &["2"])];

/// Blocks that end by what the server does instead of by the clock, blocks that look alike, and allocators whose chunks have no header.
pub(super) const OTHERS: [Server; 4] = [
    server("two threads, blocks end by work", &["2", "work"]),
    server("two threads, all blocks zero", &["2", "zero"]),
    Server {
        preload: Some("libjemalloc.so.2"),
        ..server("two threads, jemalloc", &["2"])
    },
    Server {
        preload: Some("libtcmalloc_minimal.so.4"),
        ..server("two threads, tcmalloc", &["2"])
    },
];

/// A report, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
struct Look {
    duration_s: f64,
    sites: Vec<Site>,
}

#[derive(Debug, Deserialize)]
struct Site {
    growth_bytes_per_s: f64,
    verdict: String,
    frames: Vec<Frame>,
}

#[derive(Debug, Deserialize)]
struct Frame {
    function: Option<String>,
}

impl Site {
    fn is_the_leak(&self) -> bool {
        self.frames
            .iter()
            .any(|frame| frame.function.as_deref() == Some(LEAK))
    }
}

impl Look {
    /// The leak's place among the sites, from 1 on, and what is said of it.
    fn leak(&self) -> Option<(u32, &Site)> {
        (1..).zip(&self.sites).find(|(_, site)| site.is_the_leak())
    }
}

/// Measures each server in turn, as many runs in all as are asked for.
///
/// # Errors
/// When the program or leakscope fails.
pub(super) fn measure(bench: &mut Bench, case: &str, servers: &[Server]) -> Result<LeakFigures> {
    let program = compile("bench_server")?;
    let mut runs = Vec::new();
    for (run, server) in (1..=bench.runs).zip(servers.iter().cycle()) {
        bench.say(&format!("{case}: {} {run}/{}", server.name, bench.runs));
        let measured = watch(bench, &program, server)?;
        bench.say(&format!("  {measured}"));
        runs.push(measured);
    }
    let first = runs.iter().filter(|run| run.first_after_s.is_some());
    let off: Vec<f64> = runs.iter().map(LeakRun::off_percent).collect();
    let bars = vec![
        BarFigures::at_least(
            format!("runs of {} with the leak first within 60 s", runs.len()),
            first.count() as f64,
            runs.len() as f64,
        ),
        BarFigures::at_most(
            "its rate off by at most, %".to_owned(),
            off.iter().copied().fold(0.0, f64::max),
            OFF_PERCENT,
        ),
    ];
    Ok(LeakFigures {
        case: case.to_owned(),
        off_percent: median(&off),
        runs,
        bars,
    })
}

/// One run.
fn watch(bench: &Bench, program: &Path, server: &Server) -> Result<LeakRun> {
    let mut command = Command::new(program);
    command.args(server.arguments);
    if let Some(library) = server.preload {
        command.env("LD_PRELOAD", library);
    }
    let mut victim = Victim::start(&mut command, bench.folder())?;
    thread::sleep(WARM);
    let (seconds, every) = (
        format!("{}s", WITHIN.as_secs()),
        format!("{}s", EVERY.as_secs()),
    );
    let pid = victim.pid().to_string();
    let mut command = Command::new(&bench.leakscope);
    command.args(["trace", "--format", "json", "--top", "1000", "-p", &pid]);
    command.args(["--for", &seconds, "--every", &every]);
    let before = victim.leaked()?;
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    let begun = Instant::now();
    let mut seen = Seen::default();
    let truth = loop {
        let look = look(&tracer).with_context(|| bench.log("tracer.log"))?;
        let truth = victim.leaked()?;
        seen.add(look);
        if begun.elapsed() + EVERY > WITHIN {
            break truth - before;
        }
    };
    tracer.interrupt()?;
    if !tracer.end(PATIENCE)?.success() {
        bail!("leakscope failed: {}", bench.log("tracer.log"));
    }
    Ok(seen.run(server, truth))
}

/// The next report on its output.
fn look(tracer: &Running) -> Result<Look> {
    let mut text = String::new();
    loop {
        let (_, line) = tracer.line(EVERY + PATIENCE)?;
        text.push_str(&line);
        text.push('\n');
        // An object ends in the first column.
        if line.ends_with('}') && !line.starts_with(' ') {
            return serde_json::from_str(&text)
                .context("leakscope's report is not by the contract");
        }
    }
}

/// What the looks of a run have shown.
#[derive(Debug, Default)]
struct Seen {
    /// Since which look the leak has been the first site.
    first_since_s: Option<f64>,
    last: Look,
}

impl Seen {
    /// Takes a look in.
    fn add(&mut self, look: Look) {
        let is_first = look.leak().is_some_and(|(place, _)| place == 1);
        self.first_since_s = is_first.then(|| self.first_since_s.unwrap_or(look.duration_s));
        self.last = look;
    }

    fn run(&self, server: &Server, truth: Leaked) -> LeakRun {
        let leak = self.last.leak();
        LeakRun {
            server: server.name.to_owned(),
            watched_s: self.last.duration_s,
            first_after_s: self.first_since_s,
            place: leak.map(|(place, _)| place),
            verdict: leak.map_or_else(String::new, |(_, site)| site.verdict.clone()),
            bytes_per_s: leak.map_or(0.0, |(_, site)| site.growth_bytes_per_s),
            true_bytes_per_s: truth.bytes_per_second(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Frame, Look, SERVERS, Seen, Site};
    use crate::bench::victim::Leaked;

    fn look(duration_s: f64, functions: &[&str]) -> Look {
        let site = |function: &&str| Site {
            growth_bytes_per_s: 150.0,
            verdict: "leaking".to_owned(),
            frames: vec![Frame {
                function: Some((*function).to_owned()),
            }],
        };
        Look {
            duration_s,
            sites: functions.iter().map(site).collect(),
        }
    }

    #[test]
    fn a_leak_that_falls_back_begins_again() {
        let mut seen = Seen::default();
        seen.add(look(25.0, &["leak", "serve"]));
        seen.add(look(30.0, &["serve", "leak"]));
        seen.add(look(35.0, &["leak", "serve"]));
        seen.add(look(40.0, &["leak", "serve"]));
        seen.add(look(45.0, &["leak", "serve"]));
        let truth = Leaked {
            bytes: 5000,
            wall_ns: 50_000_000_000,
        };
        let run = seen.run(&SERVERS[0], truth);
        assert_eq!(run.first_after_s, Some(35.0));
        assert_eq!(run.place, Some(1));
        assert!((run.off_percent() - 50.0).abs() < 1e-9);
    }

    #[test]
    fn a_leak_that_is_not_first_in_the_end_was_not_found() {
        let mut seen = Seen::default();
        seen.add(look(55.0, &["leak", "serve"]));
        seen.add(look(60.0, &["serve"]));
        let truth = Leaked {
            bytes: 5000,
            wall_ns: 50_000_000_000,
        };
        let run = seen.run(&SERVERS[0], truth);
        assert_eq!((run.first_after_s, run.place), (None, None));
        assert!((run.off_percent() - 100.0).abs() < 1e-9);
    }
}
