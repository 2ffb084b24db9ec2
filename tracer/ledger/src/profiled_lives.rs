//! Garbage-collected heaps of known truth, simulated: what their own sampled profile says of a stack, look by look, and what the ledger makes of
//! it.

#![expect(clippy::indexing_slicing, reason = "a failing test may panic")]

use super::{
    Judgement, Ledger, ProfiledBlocks, Sampled, SampledLevel, Verdict,
    corpus::{Chance, Life, fifo, flushed, lives_for, pace, stays},
};

/// A runtime samples a block of so many bytes each.
const RATE: f64 = 524_288.0;

/// A heap is collected when it has become twice as large as it was, and this at least.
const LEAST_HEAP: f64 = 4e6;

/// A program: the lives of one stack's blocks, what it allocates besides and drops at once, and what it holds besides.
struct Heap {
    lives: Vec<Life>,
    garbage_per_s: f64,
    held: f64,
    size: u64,
}

/// When it is collected.
fn collections(heap: &Heap, until: f64) -> Vec<f64> {
    let mut born: Vec<f64> = heap.lives.iter().map(|life| life.born).collect();
    let mut dies: Vec<f64> = heap.lives.iter().map(|life| life.dies).collect();
    born.sort_unstable_by(f64::total_cmp);
    dies.sort_unstable_by(f64::total_cmp);
    let before = |sorted: &[f64], at: f64| sorted.partition_point(|it| *it < at) as f64;
    let size = heap.size as f64;
    let (mut times, mut at, mut last, mut marked) = (Vec::new(), 0.0, 0.0, heap.held);
    while at < until {
        at += 0.05;
        let new =
            size * (before(&born, at) - before(&born, last)) + heap.garbage_per_s * (at - last);
        if marked + new >= LEAST_HEAP.max(2.0 * marked) {
            times.push(at);
            marked = heap.held + size * (before(&born, at) - before(&dies, at));
            last = at;
        }
    }
    times
}

/// The judgements at times since a tracer came at `attached`.
fn judged(heap: &Heap, chance: &mut Chance, attached: f64, times: &[f64]) -> Vec<Judgement> {
    let until = attached + times.iter().copied().fold(0.0, f64::max);
    let collected = collections(heap, until);
    let chosen = 1.0 - (-(heap.size as f64) / RATE).exp();
    let sampled: Vec<Life> = heap
        .lives
        .iter()
        .filter(|_| chance.share() < chosen)
        .copied()
        .collect();
    let bytes = heap.size as f64 / chosen;
    let nanoseconds = |at: f64| ((at + 10_000.0) * 1e9) as u64;
    let mut ledger = Ledger::new(nanoseconds(attached));
    let mut blocks: Option<ProfiledBlocks> = None;
    let mut level: Option<SampledLevel> = None;
    let mut looked = 0.0;
    let mut judgements = Vec::new();
    // A machine that is busy looks more rarely.
    let apart_s = 1.003 + 4.0 * chance.share() * chance.share();
    let mut at = attached + 0.3;
    while at < until + apart_s {
        // What a collection frees is known when it has been swept.
        let done = collected.partition_point(|it| *it < at - 1.0);
        let last = done
            .checked_sub(1)
            .and_then(|place| collected.get(place))
            .copied()
            .unwrap_or_default();
        let count =
            |of: &dyn Fn(&Life) -> bool| sampled.iter().filter(|life| of(life)).count() as u64;
        let seen = Sampled {
            allocs: count(&|life| life.born < last),
            frees: count(&|life| life.born < last && life.dies < last),
            pending: count(&|life| life.born >= last && life.born < at),
        };
        let now = nanoseconds(at);
        let of = blocks.get_or_insert_with(|| {
            if looked == 0.0 {
                ProfiledBlocks::new(now, seen)
            } else {
                ProfiledBlocks::appeared(nanoseconds(looked))
            }
        });
        of.observe(now, seen);
        let level = level.get_or_insert_with(|| {
            if looked == 0.0 {
                SampledLevel::default()
            } else {
                SampledLevel::appeared()
            }
        });
        level.observe(seen.allocs, seen.frees, seen.pending);
        if looked == 0.0 {
            ledger.begin(now, 1, &of.totals(bytes));
        } else {
            ledger.observe(now, 1, &of.totals(bytes), 1);
        }
        ledger.note_sampled(1);
        let mut ages = ledger.survey_ages(now, 1, 0, |site| site);
        of.visit(|born, count| ages.note_blocks(1, born, bytes as u64, count));
        ages.finish();
        if times
            .iter()
            .any(|time| (looked..at).contains(&(attached + time)))
        {
            let mut judgement = ledger.judge_mapping(1);
            if judgement.verdict == Verdict::Leaking && !level.rises() {
                judgement.verdict = Verdict::WarmingUp;
                judgement.reason = format!("{level:?}");
            }
            judgements.push(judgement);
        }
        looked = at;
        at += apart_s;
    }
    judgements
}

type Behave = fn(&mut Chance) -> Heap;

fn heap(lives: Vec<Life>, garbage_per_s: f64, held: f64) -> Heap {
    let size = lives.first().map_or(1, |life| life.size);
    Heap {
        lives,
        garbage_per_s,
        held,
        size,
    }
}

const UNTIL: f64 = 140.0;

const LEAKS: [(&str, Behave); 4] = [
    ("entries of which half are dropped", |c| {
        heap(
            pace(c, 0.0, UNTIL, 13.0, |c, at| {
                if c.share() < 0.5 {
                    stays(at, 73_728)
                } else {
                    lives_for(at, 73_728, 0.005)
                }
            }),
            3e5,
            1e6,
        )
    }),
    ("small records", |c| {
        heap(pace(c, 0.0, UNTIL, 880.0, |_, at| stays(at, 208)), 3e5, 1e6)
    }),
    ("a tenth of what is made", |c| {
        heap(
            pace(c, 0.0, UNTIL, 60.0, |c, at| {
                if c.share() < 0.1 {
                    stays(at, 100_000)
                } else {
                    lives_for(at, 100_000, 0.05)
                }
            }),
            3e5,
            1e6,
        )
    }),
    ("all of few large ones", |c| {
        heap(
            pace(c, 0.0, UNTIL, 0.5, |_, at| stays(at, 1 << 20)),
            3e5,
            1e6,
        )
    }),
];

/// And from when on, seconds since the tracer came: until it has filled, nothing tells a cache from a leak.
const HEALTHY: [(&str, Behave, f64); 14] = [
    (
        "a cache",
        |c| {
            heap(
                fifo(pace(c, 0.0, UNTIL, 400.0, |_, at| stays(at, 12_000)), 3000),
                1e5,
                1e6,
            )
        },
        0.0,
    ),
    (
        "a cache with random eviction",
        |c| {
            heap(
                pace(c, 0.0, UNTIL, 400.0, |c, at| {
                    let age = c.wait(20.0);
                    lives_for(at, 1000, age)
                }),
                3e5,
                1e6,
            )
        },
        0.0,
    ),
    (
        "a batch that is dropped",
        |c| {
            heap(
                flushed(pace(c, 0.0, UNTIL, 230.0, |_, at| stays(at, 10_000)), 8.7),
                1e5,
                1e6,
            )
        },
        0.0,
    ),
    (
        "a slow batch that is dropped",
        |c| {
            heap(
                flushed(pace(c, 0.0, UNTIL, 50.0, |_, at| stays(at, 10_000)), 19.0),
                1e5,
                1e6,
            )
        },
        0.0,
    ),
    (
        "warm-up",
        |c| {
            heap(
                pace(c, 0.0, 20.0, 180.0, |_, at| stays(at, 20_000)),
                6e5,
                1e6,
            )
        },
        0.0,
    ),
    (
        "a ring of large ones",
        |c| {
            heap(
                fifo(pace(c, 0.0, UNTIL, 1.0, |_, at| stays(at, 1 << 20)), 16),
                1e5,
                1e6,
            )
        },
        0.0,
    ),
    (
        "a ring of few",
        |c| {
            heap(
                fifo(pace(c, 0.0, UNTIL, 5.0, |_, at| stays(at, 64 << 10)), 100),
                5e4,
                1e7,
            )
        },
        0.0,
    ),
    (
        "a slow cache",
        |c| {
            heap(
                fifo(pace(c, 0.0, UNTIL, 100.0, |_, at| stays(at, 5000)), 1800),
                2e5,
                1e7,
            )
        },
        0.0,
    ),
    (
        "a cache of keys that come again",
        |c| {
            let mut known = vec![false; 6000];
            let all = pace(c, 0.0, UNTIL, 300.0, |_, at| stays(at, 15_000));
            let first = all.into_iter().filter(|_| {
                let key = (c.share() * 6000.0) as usize;
                !std::mem::replace(&mut known[key], true)
            });
            heap(first.collect(), 4e5, 1e6)
        },
        75.0,
    ),
    (
        "a slow cache of keys that come again",
        |c| {
            let mut known = vec![false; 3000];
            let all = pace(c, 0.0, UNTIL, 200.0, |_, at| stays(at, 15_000));
            let first = all.into_iter().filter(|_| {
                let key = (c.share() * 3000.0) as usize;
                !std::mem::replace(&mut known[key], true)
            });
            heap(first.collect(), 4e5, 1e6)
        },
        0.0,
    ),
    (
        "a full cache of small ones of which many go at once",
        |c| {
            let mut lives = pace(c, 0.0, 0.5, 100_000.0, |_, at| stays(at, 350));
            lives.extend(pace(c, 0.5, UNTIL, 1900.0, |_, at| stays(at, 350)));
            for place in 50_000..lives.len() {
                let old = place - 50_000 + (c.share() * 50_000.0) as usize;
                let at = lives[place].born;
                if lives[old].dies > at && lives[old].born < at {
                    lives[old].dies = at;
                } else {
                    lives[place].dies = at + 0.01;
                }
            }
            heap(lives, 1.5e5, 2e6)
        },
        0.0,
    ),
    (
        "a large heap that is filled and then replaced",
        |c| {
            heap(
                fifo(pace(c, 0.0, UNTIL, 40.0, |_, at| stays(at, 30_000)), 900),
                5e4,
                2e7,
            )
        },
        0.0,
    ),
    (
        "two batches",
        |c| {
            let mut lives = flushed(pace(c, 0.0, UNTIL, 60.0, |_, at| stays(at, 20_000)), 13.0);
            lives.extend(pace(c, 0.0, UNTIL, 30.0, |c, at| {
                lives_for(at, 20_000, c.wait(3.0))
            }));
            heap(lives, 2e5, 1e7)
        },
        0.0,
    ),
    (
        "garbage",
        |c| {
            heap(
                pace(c, 0.0, UNTIL, 50.0, |c, at| {
                    lives_for(at, 30_000, c.wait(0.5))
                }),
                1e5,
                2e7,
            )
        },
        0.0,
    ),
];

const SEEDS: u64 = 40;

/// How often of all a behaviour is called a leak at so many seconds, and what is said where it is not, or is.
fn called_leaking(
    behave: Behave,
    attached: (f64, f64),
    times: &[f64],
    is_leak: bool,
) -> (usize, String) {
    let (mut count, mut words) = (0, String::new());
    for seed in 0..SEEDS {
        let mut chance = Chance(seed * 7919 + 3);
        let heap = behave(&mut chance);
        let attached = attached.0 + attached.1 * chance.share();
        for judgement in judged(&heap, &mut chance, attached, times) {
            let is_leaking = judgement.verdict == Verdict::Leaking;
            count += usize::from(is_leaking);
            if is_leaking != is_leak {
                words.push_str(&format!("{seed}: {}\n", judgement.reason));
            }
        }
    }
    (count, words)
}

#[test]
fn a_leak_of_which_a_profile_samples_a_few_blocks_was_called_one_by_chance() {
    for (name, behave) in LEAKS {
        for (at, of_hundred) in [(59.0, 80), (90.0, 90)] {
            let (named, words) = called_leaking(behave, (2.0, 20.0), &[at], true);
            assert!(
                named * 100 >= of_hundred * SEEDS as usize,
                "{name} at {at} s: {named} of {SEEDS}\n{words}"
            );
        }
    }
}

#[test]
fn hardly_any_heap_that_is_bounded_is_called_a_leak_by_its_profile() {
    let mut wrong = (0, String::new());
    for (name, behave, from) in HEALTHY {
        let times = [46.0, 60.0, 75.0, 100.0].map(|at| if at < from { from } else { at });
        let (count, words) = called_leaking(behave, (25.0, 10.0), &times, false);
        wrong.0 += count;
        wrong.1.push_str(&format!("{name}: {count}\n{words}"));
    }
    let all = HEALTHY.len() * 4 * SEEDS as usize;
    assert!(wrong.0 * 200 <= all, "{} of {all}\n{}", wrong.0, wrong.1);
}
