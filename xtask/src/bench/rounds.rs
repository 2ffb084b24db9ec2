//! A case under its subjects, in rounds: A B C, A B C, ... so that a drift of the machine meets all alike.

use super::Bench;
use super::case::{Bar, Case, SCALING_BAR};
use super::figures::{
    BarFigures, CaseFigures, Scaling, ScalingSubject, SubjectFigures, median, median_of_bytes,
};
use super::proc;
use super::report_file::ReportFile;
use super::subject::{Attached, Subject};
use super::victim::{Progress, Victim};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How long each measurement takes.
const WINDOW: Duration = Duration::from_millis(1200);
/// How long the same of the program alone.
const ALONE: Duration = Duration::from_millis(500);

/// One measurement of one subject.
struct Sample {
    progress: Progress,
    target_resident: u64,
    tracer_resident: u64,
    map_bytes: u64,
    report: Option<ReportFile>,
}

/// Measures a case.
///
/// # Errors
/// When the program or leakscope fails; another tool's failure is noted and the tool left out.
pub(super) fn measure(bench: &mut Bench, case: &Case, subjects: &[Subject]) -> Result<CaseFigures> {
    let program = super::victim::compile(case.program)?;
    let mut victim = Victim::of(case, &program, bench.folder())?;
    let mut subjects = subjects.to_vec();
    let mut samples: Vec<(Subject, Vec<Sample>)> = subjects
        .iter()
        .map(|subject| (subject.clone(), Vec::new()))
        .collect();
    for run in 1..=bench.runs {
        let untraced = victim.measure(ALONE)?.cpu_ns_per_operation();
        for subject in subjects.clone() {
            bench.say(&format!(
                "{} {run}/{}: {}",
                case.name,
                bench.runs,
                subject.name()
            ));
            match sample(bench, case, &program, &subject, &mut victim, untraced) {
                Ok(sample) => {
                    if sample
                        .report
                        .as_ref()
                        .is_some_and(|report| !report.lost().is_empty())
                    {
                        bench.keep_report(case.name, run)?;
                    }
                    if let Some((_, list)) = samples.iter_mut().find(|(own, _)| *own == subject) {
                        list.push(sample);
                    }
                }
                Err(error) if subject.is_own() => {
                    return Err(error)
                        .with_context(|| format!("{} under {}", case.name, subject.name()));
                }
                Err(error) => {
                    bench.note(format!("{} under {}: {error:#}", case.name, subject.name()));
                    subjects.retain(|other| *other != subject);
                }
            }
        }
    }
    victim.end()?;
    Ok(figures(case, &samples))
}

/// One measurement.
fn sample(
    bench: &Bench,
    case: &Case,
    program: &Path,
    subject: &Subject,
    victim: &mut Victim,
    untraced: f64,
) -> Result<Sample> {
    if *subject == Subject::Nothing {
        return Ok(Sample {
            progress: victim.measure(WINDOW)?,
            target_resident: proc::memory(victim.pid()).resident,
            tracer_resident: 0,
            map_bytes: 0,
            report: None,
        });
    }
    if let Some(mut command) = subject.wrap(case, program, bench.folder()) {
        // The program that is measured beside it would take its processor.
        victim.activate(0)?;
        let wrapped = wrapped(&mut command, bench.folder());
        victim.activate(case.threads)?;
        return wrapped;
    }
    let attached = Attached::start(
        subject,
        &bench.leakscope,
        case,
        victim,
        untraced,
        bench.folder(),
    )?;
    let counted_from = victim.progress()?;
    if case.fill && *subject == Subject::Exact {
        victim.fill()?;
    }
    let progress = victim.measure(WINDOW)?;
    let target_resident = proc::memory(victim.pid()).resident;
    let tracer_resident = proc::memory(attached.pid()).resident;
    let map_bytes = proc::map_bytes(attached.pid());
    let counted = victim.progress()? - counted_from;
    attached.stop(victim, untraced)?;
    let report = if *subject == Subject::Exact {
        let report = ReportFile::read(&bench.folder().join("report.json"))?;
        let calls = counted.operations * case.operation.calls();
        if report.overhead.probe_hits < calls {
            bail!(
                "leakscope saw {} calls of at least {calls}",
                report.overhead.probe_hits
            );
        }
        Some(report)
    } else {
        None
    };
    Ok(Sample {
        progress,
        target_resident,
        tracer_resident,
        map_bytes,
        report,
    })
}

/// A measurement of a program that runs under a tool from its start.
fn wrapped(command: &mut std::process::Command, folder: &Path) -> Result<Sample> {
    let mut victim = Victim::start(command, folder)?;
    // Warm up.
    victim.measure(ALONE)?;
    let progress = victim.measure(WINDOW)?;
    let target_resident = proc::memory(victim.pid()).resident;
    victim.end()?;
    Ok(Sample {
        progress,
        target_resident,
        tracer_resident: 0,
        map_bytes: 0,
        report: None,
    })
}

fn figures(case: &Case, samples: &[(Subject, Vec<Sample>)]) -> CaseFigures {
    let cost = |subject: &Subject| {
        let (_, list) = samples.iter().find(|(own, _)| own == subject)?;
        let each: Vec<f64> = list
            .iter()
            .map(|sample| sample.progress.cpu_ns_per_operation())
            .collect();
        (!each.is_empty()).then_some(each)
    };
    let middle = |subject| cost(subject).map(|each| median(&each));
    let (nothing, floor) = (middle(&Subject::Nothing), middle(&Subject::Floor));
    let mut subjects = Vec::new();
    let mut frames = None;
    for (subject, list) in samples {
        let Some(each) = cost(subject) else {
            continue;
        };
        let cpu_ns = median(&each);
        let reports: Vec<&ReportFile> = list.iter().filter_map(|s| s.report.as_ref()).collect();
        frames = frames.or_else(|| reports.last()?.frames());
        let rates: Vec<f64> = list
            .iter()
            .map(|sample| sample.progress.operations_per_second())
            .collect();
        subjects.push(SubjectFigures {
            name: subject.name().to_owned(),
            cpu_ns,
            cpu_ns_of_each_run: each,
            operations_per_second: median(&rates),
            times_nothing: nothing.map(|nothing| cpu_ns / nothing),
            times_floor: floor
                .filter(|_| *subject != Subject::Nothing)
                .map(|floor| cpu_ns / floor),
            target_resident_bytes: median_of_bytes(list.iter().map(|s| s.target_resident)),
            tracer_resident_bytes: median_of_bytes(list.iter().map(|s| s.tracer_resident)),
            map_bytes: median_of_bytes(list.iter().map(|s| s.map_bytes)),
            lost: (!reports.is_empty()).then(|| most_lost(reports.iter().copied())),
            weight: reports.iter().map(|report| report.weight()).max(),
        });
    }
    let mut bars = Vec::new();
    if let (Some(floor), Some(exact)) = (floor, middle(&Subject::Exact)) {
        match case.bar {
            Bar::None => {}
            Bar::TimesFloor(limit) => bars.push(BarFigures::at_most(
                "leakscope / floor".into(),
                exact / floor,
                limit,
            )),
            Bar::TimesFloorAndFrames(limit, ns) => {
                let frames = frames.unwrap_or(0);
                bars.push(BarFigures::at_most(
                    format!("leakscope / (floor + {frames} frames of {ns} ns)"),
                    exact / (floor + frames as f64 * ns),
                    limit,
                ));
            }
        }
    }
    if let Some(lost) = subjects.iter().find_map(|subject| subject.lost.as_ref()) {
        bars.push(BarFigures::at_most(
            "events lost".into(),
            lost.values().sum::<u64>() as f64,
            0.0,
        ));
    }
    CaseFigures {
        name: case.name.to_owned(),
        what: case.what.to_owned(),
        frames,
        subjects,
        bars,
    }
}

/// By cause, the most of any report.
pub(super) fn most_lost<'a>(
    reports: impl Iterator<Item = &'a ReportFile>,
) -> BTreeMap<String, u64> {
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for (name, count) in reports.flat_map(ReportFile::lost) {
        let known = most.entry(name).or_default();
        *known = count.max(*known);
    }
    most
}

/// Operations a second with one and with two threads of the same program, under one attachment: 1 2 1 2.
///
/// # Errors
/// As [`measure`].
pub(super) fn scale(bench: &mut Bench, case: &Case, subjects: &[Subject]) -> Result<Scaling> {
    let program = super::victim::compile(case.program)?;
    let mut victim = Victim::of(case, &program, bench.folder())?;
    let mut samples: Vec<(Subject, Vec<[Progress; 2]>)> = subjects
        .iter()
        .map(|subject| (subject.clone(), Vec::new()))
        .collect();
    for run in 1..=bench.runs {
        for (subject, list) in &mut samples {
            bench.say(&format!(
                "{} {run}/{}: {}",
                case.name,
                bench.runs,
                subject.name()
            ));
            victim.activate(1)?;
            let untraced = victim.measure(ALONE)?.cpu_ns_per_operation();
            let attached = if *subject == Subject::Nothing {
                None
            } else {
                Some(Attached::start(
                    subject,
                    &bench.leakscope,
                    case,
                    &mut victim,
                    untraced,
                    bench.folder(),
                )?)
            };
            for _ in 0..2 {
                let one = victim.measure(WINDOW)?;
                victim.activate(2)?;
                let two = victim.measure(WINDOW)?;
                victim.activate(1)?;
                list.push([one, two]);
            }
            if let Some(attached) = attached {
                attached.stop(&mut victim, untraced)?;
            }
        }
    }
    victim.end()?;
    let mut scaling = Scaling::default();
    for (subject, list) in &samples {
        let median_of = |figure: &dyn Fn(&[Progress; 2]) -> f64| {
            median(&list.iter().map(figure).collect::<Vec<_>>())
        };
        let rate =
            |[one, two]: &[Progress; 2]| two.operations_per_second() / one.operations_per_second();
        let cpu = |[one, two]: &[Progress; 2]| {
            2.0 * one.cpu_ns_per_operation() / two.cpu_ns_per_operation()
        };
        scaling.subjects.push(ScalingSubject {
            name: subject.name().to_owned(),
            one_per_second: median_of(&|[one, _]| one.operations_per_second()),
            two_per_second: median_of(&|[_, two]| two.operations_per_second()),
            ratio: median_of(&rate),
            ratios: list.iter().map(rate).collect(),
            cpu_ratio: median_of(&cpu),
        });
        if *subject == Subject::Exact {
            scaling.bars.push(BarFigures::at_least(
                "leakscope: rate of two threads / one, by CPU time".into(),
                median_of(&cpu),
                SCALING_BAR,
            ));
        }
    }
    Ok(scaling)
}
