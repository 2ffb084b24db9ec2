//! What tracing within the default budget takes from a load, against the same load beside it that is not traced.
//!
//! What the machine's host gives to others meanwhile both lose alike, so that a few percent can be told where slices one after the other
//! differ by twenty. Now the one is traced, now the other: how their paces differ by themselves cancels out.

use super::Bench;
use super::budget::{LOADS, LOSS_PERCENT, Load, beside_leakscope};
use super::figures::{BarFigures, TwinFigures, TwinLoad, median, median_error};
use super::processes::share_of_a_processor;
use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::thread;
use std::time::Duration;

/// How long a slice lasts.
const SLICE: Duration = Duration::from_secs(4);

/// Two of a load.
type Twins = [Box<dyn Load>; 2];

/// A slice: what each of the two did in a second, and what leakscope took of one processor, percent.
struct Slice {
    per_second: [f64; 2],
    tracer_percent: f64,
}

/// Measures each load that this machine has.
///
/// # Errors
/// When leakscope fails; a load that is missing is a note.
pub(super) fn measure(bench: &mut Bench) -> Result<TwinFigures> {
    let mut figures = TwinFigures::default();
    for (name, start) in LOADS {
        if !name.contains(&bench.load) {
            continue;
        }
        let start_in = |name: &str| {
            let folder = bench.folder().join(name);
            shell::make_dir(&folder)?;
            start(&folder)
        };
        match start_in("one").and_then(|one| Ok([one, start_in("other")?])) {
            Ok(mut twins) => {
                let load = alternate(bench, name, &mut twins)?;
                figures.bars.push(BarFigures::at_most(
                    format!("{name}: throughput lost, %"),
                    load.percent(),
                    LOSS_PERCENT,
                ));
                figures.loads.push(load);
            }
            Err(error) => bench.note(format!("{name}: left out: {error:#}")),
        }
    }
    if figures.loads.is_empty() && !bench.load.is_empty() {
        bail!("no load that could be measured is called {}", bench.load);
    }
    Ok(figures)
}

/// Traces now the one, now the other.
fn alternate(bench: &Bench, name: &str, twins: &mut Twins) -> Result<TwinLoad> {
    // Caches fill.
    both(twins, SLICE)?;
    let mut losses = Vec::new();
    let mut tracer = Vec::new();
    for run in 1..=bench.runs {
        bench.say(&format!("twins: {name} {run}/{}", bench.runs));
        let first = trace(bench, twins, 0)?;
        let second = trace(bench, twins, 1)?;
        losses.push(loss_percent(first.per_second, second.per_second));
        tracer.extend([first.tracer_percent, second.tracer_percent]);
    }
    let processors = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    Ok(TwinLoad {
        name: name.to_owned(),
        loss_percent: median(&losses),
        loss_percent_error: median_error(&losses),
        loss_percent_of_each_run: losses,
        tracer_percent: median(&tracer) / processors,
    })
}

/// What being traced takes of the pace, from what both did when the first was traced, and when the second was; percent.
fn loss_percent(first: [f64; 2], second: [f64; 2]) -> f64 {
    let of_the_other = |[one, other]: [f64; 2]| one / other;
    // Each of the two was the traced one once.
    (1.0 - (of_the_other(first) / of_the_other(second)).sqrt()) * 100.0
}

/// A slice in which one of them is traced.
fn trace(bench: &Bench, twins: &mut Twins, traced: usize) -> Result<Slice> {
    let target = twins.get(traced).context("there are two")?.target_alone();
    let mut per_second = [0.0; 2];
    let tracer_percent = beside_leakscope(bench, target, |tracer| {
        share_of_a_processor(tracer, || {
            per_second = both(twins, SLICE)?;
            Ok(())
        })
    })?;
    Ok(Slice {
        per_second,
        tracer_percent,
    })
}

/// What each does in a second, at the same time.
fn both([one, other]: &mut Twins, time: Duration) -> Result<[f64; 2]> {
    thread::scope(|scope| {
        let one = scope.spawn(|| one.per_second(time));
        let other = other.per_second(time)?;
        let one = one.join().ok().context("the load's thread panicked")??;
        Ok([one, other])
    })
}

#[cfg(test)]
mod tests {
    use super::loss_percent;

    #[test]
    fn how_the_two_differ_by_themselves_cancels_out() {
        // The first is twice as fast, and each loses a tenth while it is traced.
        let found = loss_percent([180.0, 100.0], [200.0, 90.0]);
        assert!((found - 10.0).abs() < 1e-9, "{found}");
        // Meanwhile the host gave half to others.
        let found = loss_percent([90.0, 50.0], [200.0, 90.0]);
        assert!((found - 10.0).abs() < 1e-9, "{found}");
    }
}
