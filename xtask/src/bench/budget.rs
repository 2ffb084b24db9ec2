//! What tracing within the default budget takes from servers under full load, and how late their slowest answers become.
//!
//! Each load runs all the time; slices with and without leakscope beside it alternate, and one with it is compared with the mean of those before
//! and behind it. A slice begins when leakscope has had time to learn what the load costs.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, BudgetFigures, BudgetLoad, median, median_error};
use super::loads::{Postgres, Redis};
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
pub(super) const LOSS_PERCENT: f64 = 2.0;
const LATER_MS: f64 = 10.0;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a load did in a slice.
pub(super) struct Sample {
    pub(super) per_second: f64,
    /// The 99.9th percentile of its answers' times, where it is a server.
    pub(super) p999_ms: Option<f64>,
}

/// Something under full load.
pub(super) trait Load: Send {
    /// What leakscope is to trace.
    fn target(&self) -> Vec<String>;

    /// The same where another of its kind runs.
    fn target_alone(&self) -> Vec<String> {
        self.target()
    }

    /// Measures a slice of so long.
    fn slice(&mut self, time: Duration) -> Result<Sample>;

    /// What it does in a second, for no longer than that.
    fn per_second(&mut self, time: Duration) -> Result<f64> {
        Ok(self.slice(time)?.per_second)
    }
}

/// Starts a load, with a folder for its files.
type Start = fn(&Path) -> Result<Box<dyn Load>>;

/// The loads, by name.
pub(super) const LOADS: [(&str, Start); 4] = [
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

/// Measures each load that this machine has.
///
/// # Errors
/// When leakscope fails; a load that is missing is a note.
pub(super) fn measure(bench: &mut Bench) -> Result<BudgetFigures> {
    let mut figures = BudgetFigures::default();
    let folder = bench.folder().to_owned();
    for (name, start) in LOADS {
        if !name.contains(&bench.load) {
            continue;
        }
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
    if figures.loads.is_empty() && !bench.load.is_empty() {
        bail!("no load that could be measured is called {}", bench.load);
    }
    Ok(figures)
}

/// Slices without and with leakscope, in turn.
fn alternate(bench: &Bench, name: &str, load: &mut dyn Load) -> Result<BudgetLoad> {
    // Caches fill.
    load.slice(SLICE)?;
    let mut alone = vec![load.slice(SLICE)?];
    let mut traced = Vec::new();
    for run in 1..=bench.runs {
        bench.say(&format!("budget: {name} {run}/{}", bench.runs));
        let target = load.target();
        traced.push(beside_leakscope(bench, target, |_| load.slice(SLICE))?);
        alone.push(load.slice(SLICE)?);
    }
    let mut losses = Vec::new();
    let mut later = Vec::new();
    for (with, around) in traced.iter().zip(alone.windows(2)) {
        let mean = |figure: fn(&Sample) -> Option<f64>| {
            let figures: Option<Vec<f64>> = around.iter().map(figure).collect();
            figures.map(|figures| figures.iter().sum::<f64>() / figures.len() as f64)
        };
        if let Some(without) = mean(|sample| Some(sample.per_second)) {
            losses.push((1.0 - with.per_second / without) * 100.0);
        }
        later.extend(
            with.p999_ms
                .zip(mean(|sample| sample.p999_ms))
                .map(|(with, without)| with - without),
        );
    }
    let per_second = |samples: &[Sample]| {
        let all: Vec<f64> = samples.iter().map(|sample| sample.per_second).collect();
        median(&all)
    };
    Ok(BudgetLoad {
        name: name.to_owned(),
        per_second: per_second(&alone),
        traced_per_second: per_second(&traced),
        loss_percent: median(&losses),
        loss_percent_error: median_error(&losses),
        loss_percent_of_each_run: losses,
        untraced_loss_percent: untraced_losses(&alone),
        p999_later_ms: (!later.is_empty()).then(|| median(&later)),
    })
}

/// Does something while leakscope traces a target and has had time to learn what that costs; it is given leakscope's process.
pub(super) fn beside_leakscope<T>(
    bench: &Bench,
    target: Vec<String>,
    action: impl FnOnce(u32) -> Result<T>,
) -> Result<T> {
    let mut command = Command::new(&bench.leakscope);
    command.args(["trace", "--format", "json", "-o"]);
    command.arg(bench.folder().join("budget.json")).args(target);
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    thread::sleep(SETTLE);
    let done = action(tracer.pid())?;
    tracer.interrupt()?;
    if !tracer.end(PATIENCE)?.success() {
        bail!("leakscope failed: {}", bench.log("tracer.log"));
    }
    Ok(done)
}

/// What each slice without leakscope lost against those before and behind it, percent; `None` where there are fewer than three.
fn untraced_losses(alone: &[Sample]) -> Option<Vec<f64>> {
    let losses: Vec<f64> = alone
        .windows(3)
        .filter_map(|three| {
            let [before, slice, behind] = three else {
                return None;
            };
            let around = f64::midpoint(before.per_second, behind.per_second);
            Some((1.0 - slice.per_second / around) * 100.0)
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
    use super::{Sample, untraced_losses};

    #[test]
    fn what_the_machine_does_by_itself_is_shown_beside() {
        let samples = |rates: &[f64]| -> Vec<Sample> {
            let sample = |rate: &f64| Sample {
                per_second: *rate,
                p999_ms: None,
            };
            rates.iter().map(sample).collect()
        };
        assert_eq!(untraced_losses(&samples(&[100.0, 90.0])), None);
        let losses = untraced_losses(&samples(&[100.0, 90.0, 100.0, 110.0]));
        let rounded = losses.map(|losses| losses.iter().map(|loss| loss.round()).collect());
        assert_eq!(rounded, Some(vec![10.0, 0.0]));
    }
}
