//! Attaching and detaching as the target feels it, for each kind of link, with programs that do nothing.

use super::Bench;
use super::child::Running;
use super::figures::{AttachFigures, Times};
use super::subject::slowed_from;
use super::victim::{Victim, compile};
use anyhow::{Context as _, Result, bail};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// As `leakscope --links` names them.
const LINKS: [&str; 3] = ["session", "multi", "perf"];

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the target is asked: the resolution of what it feels.
const LOOK_EVERY: Duration = Duration::from_micros(300);
/// CPU time that a judgement rests on: an answer takes some 10 µs, and the target may not run at all for a while.
const LOOK_CPU_NS: u64 = 150_000;
/// How long the probes stay.
const STAY: Duration = Duration::from_millis(300);

/// Milliseconds of one attachment.
#[derive(Default)]
struct Sample {
    follow: f64,
    arm: f64,
    attach_gap: f64,
    prepare: f64,
    disarm: f64,
    detach_gap: f64,
    detach: f64,
}

/// Milliseconds from one time in nanoseconds to another.
fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// Measures each kind of link that the kernel has.
///
/// # Errors
/// When the program fails; a kind of link that cannot be had is noted.
pub(super) fn measure(bench: &mut Bench) -> Result<Vec<AttachFigures>> {
    let program = compile("bench_pair")?;
    let mut victim = Victim::start(Command::new(&program).args(["1", "gaps"]), bench.folder())?;
    let mut kinds = LINKS.to_vec();
    let mut samples: Vec<(&str, Vec<Sample>)> =
        LINKS.iter().map(|links| (*links, Vec::new())).collect();
    for run in 1..=bench.runs {
        for links in kinds.clone() {
            bench.say(&format!("attach {run}/{}: {links}", bench.runs));
            match sample(bench, &mut victim, links) {
                Ok(sample) => {
                    if let Some((_, list)) = samples.iter_mut().find(|(own, _)| *own == links) {
                        list.push(sample);
                    }
                }
                Err(error) => {
                    bench.note(format!("attach, {links} links: {error:#}"));
                    kinds.retain(|other| *other != links);
                }
            }
        }
    }
    victim.end()?;
    Ok(samples
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(links, list)| {
            let of = |figure: fn(&Sample) -> f64| {
                Times::of(&list.iter().map(figure).collect::<Vec<_>>())
            };
            AttachFigures {
                links: (*links).to_owned(),
                follow: of(|sample| sample.follow),
                arm: of(|sample| sample.arm),
                attach_gap: of(|sample| sample.attach_gap),
                prepare: of(|sample| sample.prepare),
                disarm: of(|sample| sample.disarm),
                detach_gap: of(|sample| sample.detach_gap),
                detach: of(|sample| sample.detach),
            }
        })
        .collect())
}

/// Waits for a word of the tracer's; when it was said (CLOCK_MONOTONIC, nanoseconds), the target's own clock.
fn word(tracer: &Running, expected: &str, within: Duration) -> Result<Option<u64>> {
    let Some((_, line)) = tracer.line_if_any(within)? else {
        return Ok(None);
    };
    match line.split_once(' ') {
        Some((word, at)) if word == expected => Ok(Some(at.parse()?)),
        _ => bail!("leakscope said {line:?} where {expected:?} was due"),
    }
}

/// The same, which must come.
fn await_word(tracer: &Running, expected: &str) -> Result<u64> {
    word(tracer, expected, PATIENCE)?
        .with_context(|| format!("leakscope has not said {expected:?} within {PATIENCE:?}"))
}

/// Asks the target again and again until the tracer says the word and then until its operations are slow (or not). Gives
/// the time of the word, and the beginning of the first slow interval or the end of the last one.
fn watch(
    victim: &mut Victim,
    tracer: &Running,
    expected: &str,
    until_slow: bool,
    untraced: f64,
) -> Result<(u64, u64)> {
    let begun = Instant::now();
    let mut said = None;
    let mut slow_from = None;
    let mut slow_until = 0;
    let mut before = victim.progress()?;
    loop {
        if begun.elapsed() > PATIENCE {
            bail!("nothing happened within {PATIENCE:?} where {expected:?} was due");
        }
        thread::sleep(LOOK_EVERY);
        let now = victim.progress()?;
        if (now - before).cpu_ns < LOOK_CPU_NS {
            continue;
        }
        let is_slow = (now - before).cpu_ns_per_operation() > slowed_from(untraced);
        if is_slow {
            slow_from.get_or_insert(before.wall_ns);
            slow_until = now.wall_ns;
        }
        if said.is_none() {
            said = word(tracer, expected, Duration::ZERO)?;
        }
        match (said, slow_from) {
            (Some(said), Some(from)) if until_slow => return Ok((said, from)),
            (Some(said), _) if !until_slow && !is_slow && now.wall_ns > said => {
                return Ok((said, slow_until));
            }
            _ => {}
        }
        before = now;
    }
}

fn sample(bench: &Bench, victim: &mut Victim, links: &str) -> Result<Sample> {
    let untraced = victim
        .measure(Duration::from_millis(300))?
        .cpu_ns_per_operation();
    let mut command = Command::new(&bench.leakscope);
    command.args(["floor", "--links", links, "-p", &victim.pid().to_string()]);
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    let begun = await_word(&tracer, "attaching").with_context(|| bench.log("tracer.log"))?;
    let (attached, first) = watch(victim, &tracer, "attached", true, untraced)
        .with_context(|| bench.log("tracer.log"))?;
    let attach_gap = victim.gap()?;
    thread::sleep(STAY);
    victim.gap()?;
    tracer.interrupt()?;
    let preparing = await_word(&tracer, "preparing")?;
    let (detaching, last) = watch(victim, &tracer, "detaching", false, untraced)?;
    let detached = await_word(&tracer, "detached")?;
    let detach_gap = victim.gap()?;
    tracer.end(PATIENCE)?;
    Ok(Sample {
        follow: ms(begun, attached),
        arm: ms(first, attached),
        attach_gap: attach_gap as f64 / 1e6,
        prepare: ms(preparing, detaching),
        disarm: ms(detaching, last),
        detach_gap: detach_gap as f64 / 1e6,
        detach: ms(detaching, detached),
    })
}
