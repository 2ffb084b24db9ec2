//! Verdicts from windows, of behaviours of known truth.

use super::{ProcessBesides, ToldApart, WindowOfSite, judge_windows};
use crate::{
    corpus::{CORPUS, Chance, Life, Truth, pace, stays},
    trend,
    verdict::{Judgement, Verdict},
};

/// Sees a behaviour in windows of 0.4 s, every two seconds or so.
fn watch(chance: &mut Chance, lives: &[Life], now_s: f64) -> Judgement {
    let mut windows = Vec::new();
    let mut lives = lives.to_vec();
    lives.sort_by(|one, two| one.born.total_cmp(&two.born));
    let place = |at: f64| lives.partition_point(|life| life.born < at);
    let mut at = 0.0;
    while at < now_s {
        let closed = at + 0.4;
        let mine = || lives.iter().take(place(closed)).skip(place(at));
        let alive_at = |time: f64| mine().filter(|life| life.dies > time).count() as f64;
        windows.push(WindowOfSite {
            is_exact: false,
            closed_s: closed,
            effective_s: 0.4,
            born: mine().count() as f64,
            survived: alive_at(closed),
            alive: alive_at(now_s),
            alive_bytes: mine()
                .filter(|life| life.dies > now_s)
                .map(|life| life.size as f64)
                .sum(),
            alive_before: Some(alive_at(f64::midpoint(closed, now_s))),
        });
        at = closed + 3.0 * chance.share();
    }
    judge_windows(
        &windows,
        now_s,
        ToldApart::ALL,
        &ProcessBesides::default(),
        None,
    )
}

#[test]
fn windows_tell_leaks_from_others() {
    let (mut faults, mut named, mut leaks) = (Vec::new(), 0, 0);
    for (number, (name, truth, behave)) in CORPUS.iter().enumerate() {
        // Blocks of before the trace are not known here.
        if name.starts_with("big-cache") {
            continue;
        }
        for now_s in [20.0, 60.0, 120.0, 400.0] {
            let mut chance = Chance(number as u64);
            let lives = behave(&mut chance);
            let judgement = watch(&mut chance, &lives, now_s);
            let said = judgement.verdict;
            let wrong = match truth {
                Truth::Leak | Truth::SlowLeak(_) => {
                    said == Verdict::Plateau && *name != "leak-after-start-up"
                }
                Truth::Bounded => said == Verdict::Leaking,
                Truth::BoundedAfter(from) => said == Verdict::Leaking && now_s >= *from,
            };
            if wrong {
                faults.push(format!(
                    "{name} after {now_s} s: {} ({})",
                    said.name(),
                    judgement.reason
                ));
            }
            if *truth == Truth::Leak && now_s >= 120.0 {
                leaks += 1;
                named += u32::from(said == Verdict::Leaking);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Slow ones are hardly seen in windows.
    assert!(named * 2 > leaks, "{named} of {leaks}");
}

#[test]
fn nothing_is_no_verdict() {
    let verdict = |windows: &[WindowOfSite]| {
        judge_windows(
            windows,
            60.0,
            ToldApart::ALL,
            &ProcessBesides::default(),
            None,
        )
        .verdict
    };
    assert_eq!(verdict(&[]), Verdict::InsufficientData);
    assert_eq!(
        verdict(&[WindowOfSite::default(); 30]),
        Verdict::InsufficientData
    );
}

/// A cache under full load whose blocks all look the same: at the end of the watch, those that took the places of others seem to be the ones that
/// were born in each window.
#[test]
fn blocks_that_look_the_same_are_no_leak_unless_memory_bears_it_out() {
    let windows: Vec<WindowOfSite> = (0..25)
        .map(|number| WindowOfSite {
            is_exact: false,
            closed_s: f64::from(number) * 2.5,
            effective_s: 0.01,
            born: 300.0,
            survived: 290.0,
            alive: 270.0,
            alive_bytes: 27_000.0,
            alive_before: Some(272.0),
        })
        .collect();
    let verdict = |unseen_per_s, memory_bytes_per_s| {
        let told_apart = ToldApart {
            share: 0.1,
            unseen_per_s,
        };
        let process = ProcessBesides {
            memory_bytes_per_s,
            ..ProcessBesides::default()
        };
        judge_windows(&windows, 64.5, told_apart, &process, None).verdict
    };
    assert_eq!(verdict(0.3, 0.0), Verdict::InsufficientData);
    assert_eq!(verdict(f64::INFINITY, 100_000.0), Verdict::InsufficientData);
    assert_eq!(verdict(0.3, 2_000_000.0), Verdict::Leaking);
    assert_eq!(verdict(0.01, 0.0), Verdict::Leaking);
}

/// A cache that was full before the trace, turned over in five minutes: whatever is born stays for as long as anybody looks.
#[test]
fn what_takes_the_place_of_blocks_from_before_is_no_leak_unless_memory_grows() {
    let windows: Vec<WindowOfSite> = (0..25)
        .map(|number| WindowOfSite {
            is_exact: false,
            closed_s: f64::from(number) * 2.5,
            effective_s: 0.2,
            born: 20.0,
            survived: 20.0,
            alive: 20.0,
            alive_bytes: 10_000.0,
            alive_before: Some(20.0),
        })
        .collect();
    let verdict = |frees, memory_bytes_per_s| {
        let process = ProcessBesides {
            frees,
            memory_bytes_per_s,
            ..ProcessBesides::default()
        };
        judge_windows(&windows, 64.5, ToldApart::ALL, &process, None).verdict
    };
    assert_eq!(verdict(450.0, 0.0), Verdict::WarmingUp);
    assert_eq!(verdict(450.0, 45_000.0), Verdict::Leaking);
    assert_eq!(verdict(20.0, 0.0), Verdict::Leaking);
}

/// What is seen of a behaviour in windows of so many seconds, one in two seconds or so: the windows, and the memory that the blocks take.
fn seen_rarely(
    chance: &mut Chance,
    lives: &[Life],
    now_s: f64,
    length_s: f64,
) -> (Vec<WindowOfSite>, ProcessBesides) {
    let mut windows = Vec::new();
    let mut lives = lives.to_vec();
    lives.sort_by(|one, two| one.born.total_cmp(&two.born));
    let place = |at: f64| lives.partition_point(|life| life.born < at);
    let mut deaths: Vec<(f64, f64)> = lives.iter().map(|life| (life.dies, life.born)).collect();
    deaths.sort_by(|one, two| one.0.total_cmp(&two.0));
    let died = |at: f64| deaths.partition_point(|(dies, _)| *dies < at);
    let (mut frees, mut gone_later, mut at) = (0.0, 0.0, 0.0);
    while at < now_s {
        let closed = at + length_s;
        let mine = || lives.iter().take(place(closed)).skip(place(at));
        let alive_at = |time: f64| mine().filter(|life| life.dies > time).count() as f64;
        let bytes = mine()
            .filter(|life| life.dies > now_s)
            .map(|life| life.size);
        if at > now_s / 2.0 {
            let ended = deaths.iter().take(died(closed)).skip(died(at));
            frees += ended.filter(|(_, born)| *born < at).count() as f64;
        }
        let (survived, alive) = (alive_at(closed), alive_at(now_s));
        gone_later += survived - alive;
        windows.push(WindowOfSite {
            is_exact: false,
            closed_s: closed,
            effective_s: length_s,
            born: mine().count() as f64,
            survived,
            alive,
            alive_bytes: bytes.sum::<u64>() as f64,
            alive_before: Some(alive_at(f64::midpoint(closed, now_s))),
        });
        at = closed + 1.0 + 2.0 * chance.share();
    }
    // What a heap has taken once it keeps; it takes whole pages.
    let mut steps: Vec<(f64, f64)> = lives
        .iter()
        .flat_map(|life| {
            [
                (life.born, life.size as f64),
                (life.dies, -(life.size as f64)),
            ]
        })
        .collect();
    steps.sort_by(|one, two| one.0.total_cmp(&two.0));
    let mut steps = steps.into_iter().peekable();
    let (mut held, mut most) = (0.0, 0.0_f64);
    let looks: Vec<(f64, f64)> = (0..=now_s as u32)
        .map(|second| {
            let second = f64::from(second);
            while let Some((_, change)) = steps.next_if(|(at, _)| *at <= second) {
                held += change;
                most = most.max((held / 4096.0).ceil() * 4096.0);
            }
            (second, most)
        })
        .collect();
    let part = |from: f64, until: f64| -> Vec<(f64, f64)> {
        let within = |(second, _): &&(f64, f64)| (from * now_s..=until * now_s).contains(second);
        looks.iter().filter(within).copied().collect()
    };
    let slope = |looks: &[(f64, f64)]| trend::line(looks).map_or(0.0, |line| line.slope);
    let late = part(0.5, 1.0);
    let levels: Vec<f64> = late.iter().map(|(_, bytes)| *bytes).collect();
    let besides = ProcessBesides {
        frees: (2.0 * frees - gone_later).max(0.0),
        frees_error: (4.0 * frees + gone_later).sqrt(),
        counted: frees,
        counted_over_s: now_s / 2.0,
        memory_bytes_per_s: slope(&late),
        memory_before_bytes_per_s: [slope(&part(0.0, 0.25)), slope(&part(0.25, 0.5))],
        memory_last_bytes_per_s: slope(&part(0.875, 1.0)),
        memory_rise: trend::rise(&levels),
        others_bytes_per_s: 0.0,
    };
    (windows, besides)
}

/// What windows of a busy program see of a site of ten blocks a second: some blocks in a minute and a half.
#[test]
fn of_a_leak_beside_churn_windows_held_too_few_blocks_to_name_it() {
    let mut told_by_length = Vec::new();
    for length_s in [0.02, 0.04, 0.1] {
        let named = (0..40_u64)
            .filter(|seed| {
                let mut chance = Chance(*seed);
                let lives = pace(&mut chance, 0.0, 90.0, 10.0, |_, at| stays(at, 150));
                let (windows, besides) = seen_rarely(&mut chance, &lives, 90.0, length_s);
                let judged = judge_windows(&windows, 90.0, ToldApart::ALL, &besides, None);
                judged.verdict == Verdict::Leaking
            })
            .count();
        told_by_length.push(named);
    }
    // In windows of 20 ms there are nine blocks, and often three of them not old enough.
    assert!(
        told_by_length
            .iter()
            .zip([30, 38, 40])
            .all(|(named, least)| *named >= least),
        "{told_by_length:?} of 40"
    );
}

#[test]
fn few_blocks_of_what_is_bounded_are_no_leak_though_memory_grows() {
    let mut faults = Vec::new();
    for (number, (name, truth, behave)) in CORPUS.iter().enumerate() {
        for seed in 0..6_u64 {
            for (now_s, length_s) in [(60.0, 0.005), (60.0, 0.02), (90.0, 0.005), (90.0, 0.02)] {
                let is_bounded = match truth {
                    Truth::Leak | Truth::SlowLeak(_) => false,
                    Truth::Bounded => true,
                    Truth::BoundedAfter(from) => now_s >= *from,
                };
                if !is_bounded {
                    continue;
                }
                let mut chance = Chance(number as u64 + 1_000 * seed);
                let lives = behave(&mut chance);
                let (windows, besides) = seen_rarely(&mut chance, &lives, now_s, length_s);
                let judged = judge_windows(&windows, now_s, ToldApart::ALL, &besides, None);
                // Of more blocks, the flow alone decides, whatever memory does.
                let by_memory = judged.reason.contains("memory grows as fast");
                if judged.verdict == Verdict::Leaking && by_memory {
                    faults.push(format!(
                        "{name} {seed} after {now_s} s, {length_s} s: {}",
                        judged.reason
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_rate_of_a_leak_was_that_of_three_blocks_while_memory_told_it() {
    let besides = ProcessBesides {
        memory_bytes_per_s: 1_500.0,
        ..ProcessBesides::default()
    };
    for (seen, blocks, least, most) in [
        (700.0, 3.0, 1_150.0, 1_500.0),
        (1_600.0, 400.0, 1_550.0, 1_600.0),
    ] {
        let rate = besides.rate_with(seen, blocks);
        assert!((least..=most).contains(&rate), "{rate}");
    }
    // Beside others of which as little is known it tells less.
    let beside = ProcessBesides {
        others_bytes_per_s: 40_000.0,
        memory_bytes_per_s: 45_000.0,
        ..besides
    };
    let rate = beside.rate_with(3_000.0, 9.0);
    assert!((2_900.0..=3_100.0).contains(&rate), "{rate}");
}

/// 300 threads hold a block each for a moment: in each window as many from before it are freed as outlive it, but for chance, which alone is more than what
/// leaks.
#[test]
fn frees_that_chance_explains_were_held_against_a_leak() {
    let besides = |frees, frees_error| ProcessBesides {
        frees,
        frees_error,
        memory_bytes_per_s: 1_400.0,
        ..ProcessBesides::default()
    };
    assert!(besides(20.0, 3.0).may_replace(12.0, 3_000.0, 60.0));
    assert!(!besides(20.0, 27.0).may_replace(12.0, 1_500.0, 60.0));
    // Memory that does not grow at all excuses nothing.
    assert!(besides(20.0, 27.0).may_replace(12.0, 3_000.0, 60.0));
    assert!(!besides(4.0, 27.0).may_replace(12.0, 3_000.0, 60.0));
}
