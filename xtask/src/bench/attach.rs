//! Attaching and detaching as the target feels it, for each kind of link, with programs that do nothing.

use super::Bench;
use super::child::Running;
use super::figures::{AttachFigures, median};
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
/// An operation that takes so many times its untraced time is slowed.
const SLOWED: f64 = 3.0;
/// How long the probes stay.
const STAY: Duration = Duration::from_millis(300);

/// Milliseconds of one attachment.
#[derive(Default)]
struct Sample {
    follow: f64,
    arm: f64,
    attach_gap: f64,
    disarm: f64,
    detach_gap: f64,
    detach: f64,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
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
            let of =
                |figure: fn(&Sample) -> f64| median(&list.iter().map(figure).collect::<Vec<_>>());
            AttachFigures {
                links: (*links).to_owned(),
                follow_ms: of(|sample| sample.follow),
                arm_ms: of(|sample| sample.arm),
                attach_gap_ms: of(|sample| sample.attach_gap),
                disarm_ms: of(|sample| sample.disarm),
                detach_gap_ms: of(|sample| sample.detach_gap),
                detach_ms: of(|sample| sample.detach),
            }
        })
        .collect())
}

/// Waits for a word of the tracer's.
fn word(tracer: &Running, expected: &str) -> Result<Instant> {
    let (at, line) = tracer.line(PATIENCE)?;
    if line != expected {
        bail!("leakscope said {line:?} where {expected:?} was due");
    }
    Ok(at)
}

/// Asks the target until its operations are slow, or fast again; when that began.
fn wait_until(victim: &mut Victim, slow: bool, untraced: f64) -> Result<Instant> {
    let begun = Instant::now();
    let mut before = victim.progress()?;
    loop {
        let at = Instant::now();
        thread::sleep(LOOK_EVERY);
        let now = victim.progress()?;
        let is_slow = (now - before).cpu_ns_per_operation() > SLOWED * untraced;
        if is_slow == slow {
            return Ok(at);
        }
        before = now;
        if begun.elapsed() > PATIENCE {
            bail!(
                "the program is not {} after {PATIENCE:?}",
                if slow { "slowed" } else { "as fast as before" }
            );
        }
    }
}

fn sample(bench: &Bench, victim: &mut Victim, links: &str) -> Result<Sample> {
    let untraced = victim
        .measure(Duration::from_millis(300))?
        .cpu_ns_per_operation();
    let mut command = Command::new(&bench.leakscope);
    command.args(["floor", "--links", links, "-p", &victim.pid().to_string()]);
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    let begun = word(&tracer, "attaching").with_context(|| bench.log("tracer.log"))?;
    victim.progress()?;
    let first = wait_until(victim, true, untraced)?;
    let attached = word(&tracer, "attached").with_context(|| bench.log("tracer.log"))?;
    let attach_gap = victim.progress()?.gap_ns;
    thread::sleep(STAY);
    victim.progress()?;
    tracer.interrupt()?;
    let detaching = word(&tracer, "detaching")?;
    let fast = wait_until(victim, false, untraced)?;
    let detached = word(&tracer, "detached")?;
    let detach_gap = victim.progress()?.gap_ns;
    tracer.end(PATIENCE)?;
    Ok(Sample {
        follow: ms(attached - begun),
        arm: ms(attached.saturating_duration_since(first)),
        attach_gap: attach_gap as f64 / 1e6,
        disarm: ms(fast.saturating_duration_since(detaching)),
        detach_gap: detach_gap as f64 / 1e6,
        detach: ms(detached - detaching),
    })
}
