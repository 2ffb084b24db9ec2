//! What tracing within the default budget takes from servers under full load, and how late their slowest answers become.
//!
//! Each load runs all the time; slices with and without leakscope beside it alternate, and one with it is compared with the mean of those before
//! and behind it, by what each did in the time in which the machine did the same work of ours (`pace`). A slice begins when leakscope has had
//! time to learn what the load costs.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, BudgetFigures, BudgetLoad, median};
use super::loads::{Postgres, Redis};
use super::pace;
use super::victim::{Victim, compile};
use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How long a slice lasts.
const SLICE: Duration = Duration::from_secs(6);
/// How long leakscope is there before one begins.
const SETTLE: Duration = Duration::from_secs(3);
/// The bars: percent of the throughput, milliseconds of the 99.9th percentile.
const LOSS_PERCENT: f64 = 2.0;
const LATER_MS: f64 = 10.0;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a load did in a slice.
pub(super) struct Sample {
    pub(super) per_second: f64,
    /// The 99.9th percentile of its answers' times, where it is a server.
    pub(super) p999_ms: Option<f64>,
}

/// The same, and how fast the machine was meanwhile (`pace`): bursts of work in a second of a processor's time.
struct Slice {
    sample: Sample,
    pace: f64,
}

/// Something under full load.
pub(super) trait Load {
    /// What leakscope is to trace.
    fn target(&self) -> Vec<String>;

    /// Measures a slice of so long.
    fn slice(&mut self, time: Duration) -> Result<Sample>;
}

/// Starts a load, with a folder for its files.
type Start = fn(&Path) -> Result<Box<dyn Load>>;

/// Measures each load that this machine has.
///
/// # Errors
/// When leakscope fails; a load that is missing is a note.
pub(super) fn measure(bench: &mut Bench) -> Result<BudgetFigures> {
    let mut figures = BudgetFigures::default();
    let folder = bench.folder().to_owned();
    let loads: [(&str, Start); 4] = [
        ("redis-benchmark, set", |folder| {
            Ok(Box::new(Redis::start(folder)?.under_load()?))
        }),
        ("pgbench, select only", |folder| {
            Ok(Box::new(Postgres::start(folder)?.under_load()?))
        }),
        ("CPython, a loop that allocates", |folder| {
            Ok(Box::new(python(folder)?))
        }),
        ("pairs of malloc and free", |folder| {
            Ok(Box::new(pairs(folder)?))
        }),
    ];
    for (name, start) in loads {
        match start(&folder) {
            Ok(mut load) => {
                let measured = alternate(bench, name, &mut *load)?;
                figures.bars.push(BarFigures::at_most(
                    format!("{name}: throughput lost, %"),
                    measured.loss_percent,
                    LOSS_PERCENT,
                ));
                if let Some(later) = measured.p999_later_ms {
                    figures.bars.push(BarFigures::at_most(
                        format!("{name}: 99.9th percentile later by, ms"),
                        later,
                        LATER_MS,
                    ));
                }
                figures.loads.push(measured);
            }
            Err(error) => bench.note(format!("{name}: left out: {error:#}")),
        }
    }
    Ok(figures)
}

/// Slices without and with leakscope, in turn.
fn alternate(bench: &Bench, name: &str, load: &mut dyn Load) -> Result<BudgetLoad> {
    let target = load.target();
    // Caches fill.
    load.slice(SLICE)?;
    let mut paced =
        || pace::during(|| load.slice(SLICE)).map(|(sample, pace)| Slice { sample, pace });
    let mut alone = vec![paced()?];
    let mut traced = Vec::new();
    for run in 1..=bench.runs {
        bench.say(&format!("budget: {name} {run}/{}", bench.runs));
        let mut command = Command::new(&bench.leakscope);
        command.args(["trace", "--format", "json", "-o"]);
        command.arg(bench.folder().join("budget.json"));
        command.args(&target);
        let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
        thread::sleep(SETTLE);
        traced.push(paced()?);
        tracer.interrupt()?;
        if !tracer.end(PATIENCE)?.success() {
            bail!("leakscope failed: {}", bench.log("tracer.log"));
        }
        alone.push(paced()?);
    }
    let at_pace = |slice: &Slice| slice.sample.per_second / slice.pace;
    let as_timed = |slice: &Slice| slice.sample.per_second;
    let lost = losses(&rates(&traced, at_pace), &rates(&alone, at_pace));
    let later: Vec<f64> = traced
        .iter()
        .zip(alone.windows(2))
        .filter_map(|(with, around)| {
            let [before, behind] = around else {
                return None;
            };
            let without = f64::midpoint(before.sample.p999_ms?, behind.sample.p999_ms?);
            Some(with.sample.p999_ms? - without)
        })
        .collect();
    let timed = losses(&rates(&traced, as_timed), &rates(&alone, as_timed));
    Ok(BudgetLoad {
        name: name.to_owned(),
        per_second: median(&rates(&alone, as_timed)),
        traced_per_second: median(&rates(&traced, as_timed)),
        loss_percent: median(&lost),
        loss_percent_of_each_run: lost,
        untraced_loss_percent: untraced_losses(&rates(&alone, at_pace)),
        timed_loss_percent: median(&timed),
        untraced_timed_loss_percent: untraced_losses(&rates(&alone, as_timed)),
        p999_later_ms: (!later.is_empty()).then(|| median(&later)),
    })
}

/// A figure of each slice.
fn rates(slices: &[Slice], figure: impl Fn(&Slice) -> f64) -> Vec<f64> {
    slices.iter().map(figure).collect()
}

/// What each slice with leakscope lost against those without it before and behind it, percent.
fn losses(traced: &[f64], alone: &[f64]) -> Vec<f64> {
    traced
        .iter()
        .zip(alone.windows(2))
        .map(|(with, around)| {
            let without = around.iter().sum::<f64>() / around.len() as f64;
            (1.0 - with / without) * 100.0
        })
        .collect()
}

/// What each slice without leakscope lost against those before and behind it, percent; `None` where there are fewer than three.
fn untraced_losses(alone: &[f64]) -> Option<Vec<f64>> {
    let losses: Vec<f64> = alone
        .windows(3)
        .filter_map(|three| {
            let [before, slice, behind] = three else {
                return None;
            };
            Some((1.0 - slice / f64::midpoint(*before, *behind)) * 100.0)
        })
        .collect();
    (!losses.is_empty()).then_some(losses)
}

/// A program that counts what it does, and answers `?` (tests/programs/bench.h).
struct Counting(Victim);

impl Load for Counting {
    fn target(&self) -> Vec<String> {
        vec!["-p".to_owned(), self.0.pid().to_string()]
    }

    fn slice(&mut self, time: Duration) -> Result<Sample> {
        let before = self.0.progress()?;
        thread::sleep(time);
        let done = self.0.progress()? - before;
        Ok(Sample {
            per_second: done.operations_per_second(),
            p999_ms: None,
        })
    }
}

/// The tight loop of pairs.
fn pairs(folder: &Path) -> Result<Counting> {
    let program = compile("bench_pair")?;
    Ok(Counting(Victim::start(&mut Command::new(program), folder)?))
}

/// An interpreter that makes and drops lists, strings and dictionaries.
const PYTHON: &str = r"
import os, sys, threading, time
done = 0
def work():
    global done
    kept = {}
    while True:
        for i in range(1000):
            kept[i % 97] = [str(i) * 3, {'a': i, 'b': bytes(700 + i)}]
        done += 1000
threading.Thread(target=work, daemon=True).start()
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    print(done, time.monotonic_ns(), time.process_time_ns(), flush=True)
";

fn python(folder: &Path) -> Result<Counting> {
    let python = shell::find_program("python3").context("there is no python3")?;
    let mut command = Command::new(python);
    command.args(["-c", PYTHON]);
    Ok(Counting(Victim::start(&mut command, folder)?))
}

#[cfg(test)]
mod tests {
    use super::{losses, untraced_losses};

    #[test]
    fn what_the_machine_does_by_itself_is_shown_beside() {
        assert_eq!(untraced_losses(&[100.0, 90.0]), None);
        let losses = untraced_losses(&[100.0, 90.0, 100.0, 110.0]);
        let rounded = losses.map(|losses| losses.iter().map(|loss| loss.round()).collect());
        assert_eq!(rounded, Some(vec![10.0, 0.0]));
    }

    #[test]
    fn a_slice_is_compared_with_both_beside_it() {
        let lost = losses(&[90.0, 110.0], &[80.0, 120.0, 80.0]);
        let rounded: Vec<f64> = lost.iter().map(|loss| loss.round()).collect();
        assert_eq!(rounded, [10.0, -10.0]);
    }
}
