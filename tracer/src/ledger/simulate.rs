//! The corpus under the ledger: each behaviour is traced in simulation and judged at many times; the truth decides.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failing test may panic"
)]

use leakscope_common::{Block, SiteTotals};

use super::{
    Judgement, Ledger, ProcessLevel, Verdict,
    corpus::{CORPUS, Chance, Life, Truth},
};

/// Traces a behaviour from a time on, and judges it at the given times since then.
fn trace(lives: &[Life], attached: f64, times: &[f64]) -> Vec<Judgement> {
    trace_with(&mut Ledger::default(), lives, attached, times)
}

/// The same with a ledger that is to be looked at afterwards.
fn trace_with(ledger: &mut Ledger, lives: &[Life], attached: f64, times: &[f64]) -> Vec<Judgement> {
    let nanoseconds = |at: f64| ((at + 10_000.0) * 1e9) as u64;
    *ledger = Ledger::new(nanoseconds(attached));
    let mut judgements = Vec::new();
    let end = times.iter().copied().fold(0.0, f64::max);
    let mut next_survey = 0.0;
    let mut births: Vec<Life> = lives.to_vec();
    births.sort_by(|one, two| one.born.total_cmp(&two.born));
    let unknown: Vec<f64> = births
        .iter()
        .filter(|life| life.born < attached)
        .map(|life| life.dies)
        .collect();
    births.retain(|life| life.born >= attached);
    let mut births = births.into_iter().peekable();
    let mut live: Vec<Life> = Vec::new();
    let mut totals = SiteTotals::default();
    let mut level = ProcessLevel::default();
    // Looks come a second and a little apart, as they do.
    let mut at = 0.0;
    while at < end {
        let before = at;
        at = f64::min(at + 1.003, end);
        let now = attached + at;
        while let Some(life) = births.next_if(|life| life.born <= now) {
            totals.alloc_objects += 1;
            totals.alloc_bytes += life.size;
            live.push(life);
        }
        live.retain(|life| {
            let dead = life.dies <= now;
            totals.free_objects += u64::from(dead);
            totals.free_bytes += if dead { life.size } else { 0 };
            !dead
        });
        if totals.alloc_objects > 0 {
            ledger.observe(nanoseconds(now), 1, &totals, 1);
        }
        level.inuse_bytes = (totals.alloc_bytes - totals.free_bytes) as f64;
        level.alloc_bytes = totals.alloc_bytes as f64;
        level.unknown_frees = unknown
            .iter()
            .filter(|dies| (attached..now).contains(*dies))
            .count() as f64;
        level.anonymous_bytes = 1e7;
        ledger.observe_process(nanoseconds(now), 1, level);
        let due = times.iter().any(|time| before < *time && *time <= at);
        if at >= next_survey || due {
            let mut survey = ledger.survey_ages(nanoseconds(now), 1, 2, |slot| slot);
            for life in &live {
                survey.note(&Block {
                    size: life.size,
                    born_ns: nanoseconds(life.born),
                    site: 1,
                    incarnation: 1,
                });
            }
            survey.finish();
            next_survey = at + 2.0;
        }
        if due {
            judgements.push(ledger.judge(1, 1));
        }
    }
    judgements
}

const TIMES: [f64; 10] = [
    15.0, 30.0, 44.0, 60.0, 75.0, 90.0, 120.0, 240.0, 400.0, 600.0,
];

/// What is wrong with the verdicts of a behaviour, a line each.
fn faults(
    name: &str,
    truth: Truth,
    lives: &[Life],
    attached: f64,
    missed: &mut Vec<String>,
) -> Vec<String> {
    let judgements = trace(lives, attached, &TIMES);
    assert_eq!(judgements.len(), TIMES.len());
    let mut faults = Vec::new();
    for (at, judgement) in TIMES.into_iter().zip(judgements) {
        let leaking = judgement.verdict == Verdict::Leaking;
        let plateau = judgement.verdict == Verdict::Plateau;
        let line = format!(
            "{name} attached at {attached}, after {at} s: {} ({})",
            judgement.verdict.name(),
            judgement.reason
        );
        let (wrong, late) = match truth {
            Truth::Leak => (plateau, at >= 60.0 && !leaking),
            Truth::SlowLeak(from) => (plateau && name != "leak-late", at >= from && !leaking),
            Truth::Bounded => (leaking, false),
            Truth::BoundedAfter(from) => (at >= from - attached && leaking, false),
        };
        if wrong {
            faults.push(line);
        } else if late {
            missed.push(line);
        }
    }
    faults
}

#[test]
fn the_corpus_is_judged_rightly() {
    let (mut faults, mut missed, mut traced) = (Vec::new(), Vec::new(), 0);
    for (number, (name, truth, behave)) in CORPUS.iter().enumerate() {
        for seed in 0..3 {
            let lives = behave(&mut Chance(1000 * number as u64 + seed));
            // From the start, and a program that has run for a while.
            let attached = [0.0, 1.7, 5.3][seed as usize];
            faults.extend(self::faults(name, *truth, &lives, attached, &mut missed));
            traced += usize::from(*truth == Truth::Leak);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Seven judgements of each leak are due; one in a hundred may be put off by chance.
    assert!(
        missed.len() * 100 <= traced * 7,
        "{} of {} missed:\n{}",
        missed.len(),
        traced * 7,
        missed.join("\n")
    );
}

#[test]
#[ignore = "prints the verdicts of the corpus over time, for people"]
fn the_corpus_over_time() {
    let mut text = String::new();
    for (name, _, behave) in CORPUS {
        let lives = behave(&mut Chance(7));
        text.push_str(name);
        text.push('\n');
        for (at, judgement) in TIMES.into_iter().zip(trace(&lives, 0.0, &TIMES)) {
            text.push_str(&format!(
                "  {at:>4} s  {:<18}{}\n",
                judgement.verdict.name(),
                judgement.reason
            ));
        }
    }
    panic!("{text}");
}

#[test]
#[ignore = "prints what judging takes, for people"]
fn the_time_that_judging_takes() {
    let mut text = String::new();
    for name in [
        "leak-fast",
        "churn-5s",
        "start-up-only",
        "cache-fills-in-20s",
        "flush-every-17s",
    ] {
        let (_, _, behave) = CORPUS.iter().find(|(one, _, _)| *one == name).unwrap();
        let mut ledger = Ledger::default();
        trace_with(&mut ledger, &behave(&mut Chance(7)), 0.0, &[120.0]);
        let begun = std::time::Instant::now();
        for _ in 0..1000 {
            std::hint::black_box(ledger.judge(1, 1));
        }
        text.push_str(&format!(
            "{name}: {:?} for a thousand sites\n",
            begun.elapsed()
        ));
    }
    panic!("{text}");
}
