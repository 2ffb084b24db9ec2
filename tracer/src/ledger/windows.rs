//! The verdict of a site whose calls were seen in windows only. Pure; the same evidence as for a site that was seen all the time, from
//! less: what was born in each window, and what of that is alive. Of what happened between windows nothing is known, so that there
//! is no level, and what a site of few blocks does may not be seen at all.

use super::{
    flow::{self, LEAK_AFTER_S, too_short},
    steady,
    verdict::{Judgement, Verdict},
};
use crate::units::{blocks, count, duration, plural};

/// A window, as a site of its process sees it; also windows in which the site did nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowOfSite {
    /// It is a part of a time in which every call was seen again.
    pub is_exact: bool,
    /// When it was closed, seconds since the first window was opened.
    pub closed_s: f64,
    /// The time that it stands for, seconds: its length, less what its traps took.
    pub effective_s: f64,
    /// Blocks born in it.
    pub born: f64,
    /// Of these alive at its end.
    pub survived: f64,
    /// Of these alive at the last check.
    pub alive: f64,
    /// Their bytes.
    pub alive_bytes: f64,
    /// Alive when the window was about half as long ago as now, where that is known.
    pub alive_before: Option<f64>,
}

/// How well the watched blocks of a site can be told from others that take their place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToldApart {
    /// The share of them that contents tell apart.
    pub share: f64,
    /// How fast the others may go unseen at most, per second: by how often later windows saw one freed or given out again that had looked
    /// untouched, with 95 % confidence.
    pub unseen_per_s: f64,
}

impl ToldApart {
    /// Nothing goes unseen.
    pub const ALL: Self = Self {
        share: 1.0,
        unseen_per_s: 0.0,
    };

    /// Whether blocks that seem to stay for so many seconds do stay.
    fn is_sure(&self, watched_s: f64) -> bool {
        self.share >= 0.5 || self.unseen_per_s * watched_s <= MAY_GO_UNSEEN
    }
}

/// At least so many windows, of those that are old enough to tell.
const WINDOWS: usize = 9;

/// Windows that are shorter than this part of the mean are put together with the next.
const SHORT: f64 = 0.5;

/// In at least so many of these, blocks were born that stay.
const STEPS: usize = 6;

/// At least so many blocks stay.
const BLOCKS: f64 = 8.0;

/// Old blocks that may have died. Checks from outside err to the other side: they see a block alive that was replaced by one that looks
/// the same.
const MAY_DIE: f64 = 0.05;

/// So many blocks that should have come lately are missed when they did not.
const EXPECTED: f64 = 6.0;

/// What stays is at least this share of what was born, or it is what checks from outside cannot tell from its successors: where blocks are
/// filled with constants, some of every churn seem to stay.
const STAYS: f64 = 0.002;

/// Blocks that cannot be told apart may go unseen so fast at most that their lives are at least three quarters as long as they were watched.
const MAY_GO_UNSEEN: f64 = 4.0 / 3.0;

/// The process's memory bears a leak out that grows by at least this share of what the leak takes.
const BORNE_OUT: f64 = 0.5;

/// Where contents do not tell blocks apart, memory must have grown by so much in the second half of the time, bytes.
const GROWN: f64 = 1_048_576.0;

/// Where blocks from before the trace are freed, it must have grown by so much, bytes: where it does not grow at all, not a page comes.
const GROWN_BESIDE_FREES: f64 = 65_536.0;

/// What takes the place of blocks from before the trace comes with a like number of their frees: at least this share.
const REPLACES: f64 = 0.4;

/// What is known of a process beside its windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessBesides {
    /// Blocks from before the trace that windows saw freed, in as long a time as the site is watched; without as many as were born between windows,
    /// by those that outlived theirs and went later.
    pub frees: f64,
    /// How many of these were counted, in the second half of the time.
    pub counted: f64,
    /// How long that was, seconds.
    pub counted_over_s: f64,
    /// How fast its anonymous memory has grown in the second half of the time, bytes per second.
    pub memory_bytes_per_s: f64,
}

impl ProcessBesides {
    /// Whether its memory has grown, by at least so many bytes, as a leak of this rate would have it.
    fn bears_out(&self, bytes_per_s: f64, watched_s: f64, least: f64) -> bool {
        self.memory_bytes_per_s >= BORNE_OUT * bytes_per_s
            && self.memory_bytes_per_s * watched_s / 2.0 >= least
    }
}

/// Whether so many windows, the oldest first, are enough to name a leak by, at so many seconds since the first one was opened.
#[must_use]
pub fn are_enough(windows: &[WindowOfSite], now_s: f64) -> bool {
    now_s >= LEAK_AFTER_S && old_ones(windows, now_s).count() >= WINDOWS
}

/// Those whose blocks have had time to die.
fn old_ones(windows: &[WindowOfSite], now_s: f64) -> impl Iterator<Item = &WindowOfSite> {
    windows
        .iter()
        .filter(move |window| now_s - window.closed_s >= now_s / 8.0)
}

/// Judges a site by its process's windows, the oldest first, at so many seconds since the first one was opened.
#[must_use]
pub fn judge_windows(
    windows: &[WindowOfSite],
    now_s: f64,
    told_apart: ToldApart,
    process: &ProcessBesides,
) -> Judgement {
    let born: f64 = windows.iter().map(|window| window.born).sum();
    let alive: f64 = windows.iter().map(|window| window.alive).sum();
    let with = |verdict, reason| Judgement {
        verdict,
        reason,
        growth_bytes_per_s: 0.0,
    };
    let seen = format!("{} sampled in {}", blocks(born as u64), of_time(windows));
    if born < BLOCKS {
        return with(
            Verdict::InsufficientData,
            format!("{seen}: not enough samples"),
        );
    }
    // The young ones may still die.
    let old: Vec<WindowOfSite> = old_ones(windows, now_s).copied().collect();
    let old_born: f64 = old.iter().map(|window| window.born).sum();
    let stay: f64 = old.iter().map(|window| window.alive).sum();
    if old_born >= BLOCKS && stay < 0.01 * old_born && stay < BLOCKS {
        return with(
            Verdict::Churn,
            format!(
                "{} of {} sampled {} lived longer than {}",
                none_or(stay),
                count(old_born as u64),
                of_blocks(old_born as u64),
                duration(now_s / 8.0)
            ),
        );
    }
    if !are_enough(windows, now_s) {
        return with(
            Verdict::WarmingUp,
            if now_s < LEAK_AFTER_S {
                format!("{}; {}", still_live(alive, born), too_short(now_s))
            } else {
                format!(
                    "{}; too few windows for a verdict ({} of {WINDOWS})",
                    still_live(alive, born),
                    old.len()
                )
            },
        );
    }
    let (mut died, mut of) = (0.0, 0.0);
    for window in &old {
        if let Some(before) = window
            .alive_before
            .filter(|_| now_s - window.closed_s >= now_s / 3.0)
        {
            of += before;
            died += (before - window.alive).max(0.0);
        }
    }
    if died > MAY_DIE * of + 1.0 {
        let share = format!(
            "{} of {} old ones were freed",
            count(died as u64),
            count(of as u64)
        );
        let verdict = if died > 0.5 * of {
            Verdict::Churn
        } else {
            Verdict::WarmingUp
        };
        return with(verdict, format!("{seen}; {share}"));
    }
    let rates = rates(&old);
    let third = (old.len() / 3).max(1);
    let of_part = |part: &[WindowOfSite], value: fn(&WindowOfSite) -> f64| -> f64 {
        part.iter().map(value).sum()
    };
    let parts: Vec<&[WindowOfSite]> = vec![
        old.get(..third).unwrap_or_default(),
        old.get(third..2 * third).unwrap_or_default(),
        old.get(2 * third..).unwrap_or_default(),
    ];
    let alive_of: Vec<f64> = parts
        .iter()
        .map(|part| of_part(part, |window| window.alive))
        .collect();
    let rate_of: Vec<f64> = parts
        .iter()
        .map(|part| {
            of_part(part, |window| window.alive)
                / of_part(part, |window| window.effective_s).max(1e-9)
        })
        .collect();
    let (&[first, second, last], &[first_alive, _, last_alive]) =
        (rate_of.as_slice(), alive_of.as_slice())
    else {
        return with(Verdict::InsufficientData, seen);
    };
    let stopped = stay >= BLOCKS && last_alive <= 0.0;
    if stopped && first_alive + stay >= 2.0 * BLOCKS {
        return with(
            Verdict::Plateau,
            format!("{} sampled stay, none of the latest", blocks(stay as u64)),
        );
    }
    let steps = old.iter().filter(|window| window.alive > 0.0).count();
    if steps < STEPS || stay < BLOCKS {
        return with(
            Verdict::InsufficientData,
            format!("{} of {seen} stay: not enough samples", count(stay as u64)),
        );
    }
    let bytes: f64 = old.iter().map(|window| window.alive_bytes).sum();
    let effective: f64 = old.iter().map(|window| window.effective_s).sum();
    let rate = bytes / effective.max(1e-9);
    let told = told_apart.share >= 0.5
        || stay >= 0.5 * old_born
            && (told_apart.is_sure(now_s) || process.bears_out(rate, now_s, GROWN));
    if stay < STAYS * old_born || !told {
        return with(
            Verdict::InsufficientData,
            format!(
                "{} of {seen} seem to stay, but contents hardly tell them from others that took their place",
                count(stay as u64)
            ),
        );
    }
    if first <= 0.0 || steady::even(&rates, 1.0).is_err() {
        let verdict = Verdict::WarmingUp;
        let trend = if last < first.max(second) {
            "fewer of the latest stay than of those before"
        } else {
            "more of the latest stay than of those before"
        };
        return with(verdict, format!("{seen}; {trend}"));
    }
    let young = windows.get(old.len()..).unwrap_or_default();
    let expected = of_part(young, |window| window.effective_s) * last;
    if expected >= EXPECTED && of_part(young, |window| window.alive) < 0.5 * expected {
        return with(
            Verdict::WarmingUp,
            format!(
                "{seen}; almost none of those allocated in the last {} stay",
                duration(now_s / 8.0)
            ),
        );
    }
    if process.frees > REPLACES * stay && !process.bears_out(rate, now_s, GROWN_BESIDE_FREES) {
        return with(
            Verdict::WarmingUp,
            format!(
                "{} of {seen} stay, while {} allocated before tracing were freed in {}, whose place they may take",
                count(stay as u64),
                blocks(process.counted as u64),
                duration(process.counted_over_s)
            ),
        );
    }
    // Thinned ones are scaled: they may be more than were born.
    let evidence = if stay >= 0.995 * old_born {
        format!(
            "all {} sampled in {} more than {} ago are still live",
            blocks(old_born as u64),
            of_time(&old),
            duration(now_s / 8.0)
        )
    } else {
        format!(
            "{} of {} sampled in {} more than {} ago are still live, and {} since",
            count(stay as u64),
            blocks(old_born as u64),
            of_time(&old),
            duration(now_s / 8.0),
            if died < 0.5 {
                "no old one was freed".to_owned()
            } else {
                format!("only {} old ones were freed", count(died as u64))
            }
        )
    };
    Judgement {
        verdict: Verdict::Leaking,
        reason: format!(
            "{evidence}; about {} for {}, no sign of levelling off",
            flow::rate_of(rate),
            duration(now_s)
        ),
        growth_bytes_per_s: rate,
    }
}

/// `9 windows`, `4 windows and 31 s of full tracing`.
fn of_time(windows: &[WindowOfSite]) -> String {
    let (exact, sampled): (Vec<&WindowOfSite>, Vec<&WindowOfSite>) =
        windows.iter().partition(|window| window.is_exact);
    let number = sampled.len() as u64;
    let sampled = format!("{number} window{}", plural(number));
    if exact.is_empty() {
        return sampled;
    }
    let time: f64 = exact.iter().map(|window| window.effective_s).sum();
    format!("{sampled} and {} of full tracing", duration(time))
}

/// `none`, `1,234`.
fn none_or(number: f64) -> String {
    if number < 1.0 {
        "none".to_owned()
    } else {
        count(number as u64)
    }
}

/// How many of those sampled are live. Thinned ones are scaled: they may be more than were born.
fn still_live(alive: f64, born: f64) -> String {
    let born = born as u64;
    let alive = alive as u64;
    if alive < born {
        format!(
            "{} of {} sampled {} still live",
            count(alive),
            count(born),
            of_blocks(born)
        )
    } else {
        format!("all {} sampled {} still live", count(born), of_blocks(born))
    }
}

fn of_blocks(number: u64) -> &'static str {
    if number == 1 { "block" } else { "blocks" }
}

/// What stays of each second, by windows of about the same length: a short one holds nothing for the most part, which is not to be taken for less.
fn rates(windows: &[WindowOfSite]) -> Vec<f64> {
    let all: f64 = windows.iter().map(|window| window.effective_s).sum();
    let least = SHORT * all / windows.len().max(1) as f64;
    let mut rates = Vec::new();
    let (mut alive, mut time) = (0.0, 0.0);
    for window in windows {
        alive += window.alive;
        time += window.effective_s;
        if time >= least {
            rates.push(alive / time.max(1e-9));
            (alive, time) = (0.0, 0.0);
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::{ProcessBesides, ToldApart, WindowOfSite, judge_windows};
    use crate::ledger::{
        corpus::{CORPUS, Chance, Life, Truth},
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
        judge_windows(&windows, now_s, ToldApart::ALL, &ProcessBesides::default())
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
            judge_windows(windows, 60.0, ToldApart::ALL, &ProcessBesides::default()).verdict
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
            judge_windows(&windows, 64.5, told_apart, &process).verdict
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
            judge_windows(&windows, 64.5, ToldApart::ALL, &process).verdict
        };
        assert_eq!(verdict(450.0, 0.0), Verdict::WarmingUp);
        assert_eq!(verdict(450.0, 45_000.0), Verdict::Leaking);
        assert_eq!(verdict(20.0, 0.0), Verdict::Leaking);
    }
}
