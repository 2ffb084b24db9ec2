//! What tracing costs a program in C, in Python and in Go: the same sessions at full speed (tests/programs/bench_sessions.*), default budget.
//!
//! Costs are processor time of the program for one request, so that other work on the machine does not count; slices with and without
//! leakscope alternate, and one with it is compared with the mean of those before and behind it.

use super::Bench;
use super::budget::beside_leakscope;
use super::figures::{BarFigures, LanguageFigures, LanguagesFigures, median, median_error};
use super::proc::{children, map_bytes, memory};
use super::processes::processor_seconds;
use super::victim::{Victim, compile};
use crate::shell::{self, root};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a slice lasts.
const SLICE: Duration = Duration::from_secs(6);
/// The bar: percent of a program's processor time.
const MORE_PERCENT: f64 = 1.5;

/// The command that starts a program, which may be built in a folder.
type Program = fn(&Path) -> Result<Command>;

/// The languages, each with its program.
const LANGUAGES: [(&str, Program); 3] = [("C", c), ("Python", python), ("Go", go)];

fn c(_: &Path) -> Result<Command> {
    Ok(Command::new(compile("bench_sessions")?))
}

fn python(_: &Path) -> Result<Command> {
    let python = shell::find_program("python3").context("there is no python3")?;
    let mut command = Command::new(python);
    command.arg(root().join("tests/programs/bench_sessions.py"));
    Ok(command)
}

fn go(folder: &Path) -> Result<Command> {
    let go = shell::find_program("go").context("there is no Go (Debian: golang-go)")?;
    let program = folder.join("bench_sessions_go");
    let mut build = shell::command(go);
    build.args(["build", "-o"]).arg(&program);
    shell::run(build.arg(root().join("tests/programs/bench_sessions.go")))?;
    Ok(Command::new(program))
}

/// Measures each language that this machine has.
///
/// # Errors
/// When leakscope fails; a language that is missing is a note.
pub(super) fn measure(bench: &mut Bench) -> Result<LanguagesFigures> {
    let mut figures = LanguagesFigures::default();
    for (name, command) in LANGUAGES {
        if !name.contains(&bench.load) {
            continue;
        }
        let folder = bench.folder().to_owned();
        match command(&folder).and_then(|mut command| Victim::start(&mut command, &folder)) {
            Ok(mut victim) => {
                let language = alternate(bench, name, &mut victim)?;
                figures.bars.push(BarFigures::at_most(
                    format!("{name}: processor time of a request more, %"),
                    language.more_percent,
                    MORE_PERCENT,
                ));
                figures.languages.push(language);
            }
            Err(error) => bench.note(format!("{name}: left out: {error:#}")),
        }
    }
    Ok(figures)
}

/// Slices without and with leakscope, in turn.
fn alternate(bench: &Bench, name: &str, victim: &mut Victim) -> Result<LanguageFigures> {
    // Caches fill.
    victim.measure(SLICE)?;
    let target = vec!["-p".to_owned(), victim.pid().to_string()];
    let mut alone = vec![victim.measure(SLICE)?.cpu_ns_per_operation()];
    let mut traced = Vec::new();
    let mut tracer_percent = Vec::new();
    let mut resident = Vec::new();
    let mut maps = Vec::new();
    for run in 1..=bench.runs {
        bench.say(&format!("languages: {name} {run}/{}", bench.runs));
        let percent = beside_leakscope(bench, target.clone(), |tracer| {
            // Its reader and what holds its probes are processes of their own.
            let processes: Vec<u32> = children(tracer).into_iter().chain([tracer]).collect();
            // One that ends meanwhile took nothing.
            let used = || -> f64 {
                processes
                    .iter()
                    .filter_map(|pid| processor_seconds(*pid).ok())
                    .sum()
            };
            let (begun, before) = (Instant::now(), used());
            traced.push(victim.measure(SLICE)?.cpu_ns_per_operation());
            let percent = (used() - before).max(0.0) / begun.elapsed().as_secs_f64() * 100.0;
            let bytes: u64 = processes.iter().map(|pid| memory(*pid).resident).sum();
            resident.push(bytes as f64);
            maps.push(map_bytes(tracer) as f64);
            Ok(percent)
        })?;
        tracer_percent.push(percent);
        alone.push(victim.measure(SLICE)?.cpu_ns_per_operation());
    }
    let more: Vec<f64> = traced
        .iter()
        .zip(alone.windows(2))
        .map(|(with, around)| {
            let without = around.iter().sum::<f64>() / around.len() as f64;
            (with / without - 1.0) * 100.0
        })
        .collect();
    Ok(LanguageFigures {
        name: name.to_owned(),
        ns_per_request: median(&alone),
        traced_ns_per_request: median(&traced),
        more_percent: median(&more),
        more_percent_error: median_error(&more),
        more_percent_of_each_run: more,
        tracer_percent: median(&tracer_percent),
        tracer_resident: median(&resident),
        tracer_maps: median(&maps),
    })
}
