//! The verdict of a site whose calls were seen in windows only. Pure; the same evidence as for a site that was seen all the time, from
//! less: what was born in each window, and what of that is alive. Of what happened between windows nothing is known, so that there
//! is no level, and what a site of few blocks does may not be seen at all.

mod besides;

pub use besides::ProcessBesides;

use super::{
    counted::CountedSite,
    flow::{self, LEAK_AFTER_S, too_short},
    steady,
    verdict::{Judgement, Verdict},
};
use leakscope_model::units::{blocks, bytes, count, duration, plural, rate as per_second};

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

/// Where the process's memory shows the leak by itself, windows only have to say whose it is: so many of each are enough.
const FEW_BLOCKS: f64 = 3.0;
const FEW_STEPS: usize = 3;
const FEW_WINDOWS: usize = 3;

/// A window so long is no chance moment, seconds.
const LONG_S: f64 = 15.0;

/// Where the growth itself is counted, and blocks enough say whose it is: in two windows, or in one where it was counted for so long, seconds.
const COUNTED_STEPS: usize = 2;
const COUNTED_ALONE_S: f64 = 60.0;

/// A flow whose blocks stay has a stretch of time without any, at its end, that is less likely than this, only if it has stopped.
const UNLIKELY: f64 = 0.05;

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

/// Where contents do not tell blocks apart, memory must have grown by so much in the second half of the time, bytes.
const GROWN: f64 = 1_048_576.0;

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

/// Judges a site by its process's windows, the oldest first, at so many seconds since the first one was opened; and by what was counted of its blocks, where
/// they can be.
#[must_use]
pub fn judge_windows(
    windows: &[WindowOfSite],
    now_s: f64,
    told_apart: ToldApart,
    process: &ProcessBesides,
    counted: Option<&CountedSite>,
) -> Judgement {
    let born: f64 = windows.iter().map(|window| window.born).sum();
    let alive: f64 = windows.iter().map(|window| window.alive).sum();
    let with = |verdict, reason| Judgement {
        verdict,
        reason,
        growth_bytes_per_s: 0.0,
    };
    let seen = format!("{} sampled in {}", blocks(born as u64), of_time(windows));
    // The young ones may still die.
    let old: Vec<WindowOfSite> = old_ones(windows, now_s).copied().collect();
    let old_born: f64 = old.iter().map(|window| window.born).sum();
    let stay: f64 = old.iter().map(|window| window.alive).sum();
    let stay_bytes: f64 = old.iter().map(|window| window.alive_bytes).sum();
    let effective: f64 = old.iter().map(|window| window.effective_s).sum();
    let rate = stay_bytes / effective.max(1e-9);
    if let Some(judgement) = counted.and_then(|counted| lengthened(counted, now_s)) {
        return judgement;
    }
    // How much grows is counted; windows only have to say whose it is.
    let is_its_own = counted.is_some_and(|counted| counted.is_nobody_elses(rate));
    let carries = is_its_own || counted.is_some_and(CountedSite::carries);
    // What decides by itself where there are few blocks.
    let shown = carries || stay >= 0.5 * old_born && process.shows(rate, now_s);
    let is_long = counted.is_some_and(|counted| counted.over_s >= COUNTED_ALONE_S);
    let (least_blocks, least_steps, least_windows) = if carries && is_long && stay >= BLOCKS {
        (BLOCKS, 1, 1)
    } else if carries {
        (FEW_BLOCKS, COUNTED_STEPS, COUNTED_STEPS)
    } else if shown {
        (FEW_BLOCKS, FEW_STEPS, FEW_WINDOWS)
    } else {
        (BLOCKS, STEPS, WINDOWS)
    };
    if born < least_blocks {
        return with(
            Verdict::InsufficientData,
            format!("{seen}: not enough samples"),
        );
    }
    // A queue that is filled faster than it is emptied keeps no block for long.
    let rises = counted.filter(|counted| counted.rises());
    let goes = |reason: String| match rises {
        None => with(Verdict::Churn, reason),
        Some(counted) => with(
            Verdict::WarmingUp,
            format!(
                "{reason}, yet there are more and more of them: {} counted in {}",
                per_second(counted.bytes_per_s).unwrap_or_default(),
                duration(counted.over_s)
            ),
        ),
    };
    if !carries && old_born >= BLOCKS && stay < 0.01 * old_born && stay < BLOCKS {
        return goes(format!(
            "{} of {} sampled {} lived longer than {}",
            none_or(stay),
            count(old_born as u64),
            of_blocks(old_born as u64),
            duration(now_s / 8.0)
        ));
    }
    // The seconds in which every call was seen before there were windows tell as much as two.
    let of_window = |window: &WindowOfSite| if window.effective_s >= LONG_S { 2 } else { 1 };
    if now_s < LEAK_AFTER_S || old.iter().map(of_window).sum::<usize>() < least_windows {
        return with(
            Verdict::WarmingUp,
            if now_s < LEAK_AFTER_S {
                format!("{}; {}", still_live(alive, born), too_short(now_s))
            } else {
                format!(
                    "{}; too few windows for a verdict ({} of {least_windows})",
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
    let is_few = stay < BLOCKS || old.len() < WINDOWS;
    // Of few, that one went is no chance.
    if died > MAY_DIE * of + if is_few { 0.5 } else { 1.0 } {
        let share = format!(
            "{} of {} old ones were freed",
            count(died as u64),
            count(of as u64)
        );
        let reason = format!("{seen}; {share}");
        return if died > 0.5 * of {
            goes(reason)
        } else {
            with(Verdict::WarmingUp, reason)
        };
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
    let stopped = !carries && stay >= BLOCKS && last_alive <= 0.0;
    if stopped && first_alive + stay >= 2.0 * BLOCKS {
        return with(
            Verdict::Plateau,
            format!("{} sampled stay, none of the latest", blocks(stay as u64)),
        );
    }
    let steps: usize = old
        .iter()
        .filter(|window| window.alive > 0.0)
        .map(of_window)
        .sum();
    if steps < least_steps || stay < least_blocks {
        return with(
            Verdict::InsufficientData,
            format!("{} of {seen} stay: not enough samples", count(stay as u64)),
        );
    }
    let told = told_apart.share >= 0.5
        || stay >= 0.5 * old_born
            && (shown || told_apart.is_sure(now_s) || process.bears_out(rate, now_s, GROWN))
        || is_its_own;
    if !carries && stay < STAYS * old_born || !told {
        return with(
            Verdict::InsufficientData,
            format!(
                "{} of {seen} seem to stay, but contents hardly tell them from others that took their place",
                count(stay as u64)
            ),
        );
    }
    if let Some(counted) = counted.filter(|counted| counted.is_flat_beside(rate)) {
        return with(
            if counted.falls() {
                Verdict::WarmingUp
            } else {
                Verdict::Plateau
            },
            format!(
                "{} of {seen} stay, but blocks of {} B are not more than {} ago, as counted",
                count(stay as u64),
                count(counted.size),
                duration(counted.over_s)
            ),
        );
    }
    let is_uneven = if carries {
        false
    } else if is_few || steps < STEPS {
        // Too few for thirds; that memory grows to the end says that something does.
        stopped_by_chance(windows) < UNLIKELY
    } else {
        first <= 0.0 || steady::even(&rates, 1.0).is_err()
    };
    if is_uneven {
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
    if !carries && expected >= EXPECTED && of_part(young, |window| window.alive) < 0.5 * expected {
        return with(
            Verdict::WarmingUp,
            format!(
                "{seen}; almost none of those allocated in the last {} stay",
                duration(now_s / 8.0)
            ),
        );
    }
    if !carries && process.may_replace(stay, rate, now_s) {
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
    let rate = match counted.filter(|counted| counted.is_known()) {
        Some(counted) => counted.bytes_per_s,
        None if shown => process.rate_with(rate, stay),
        None => rate,
    };
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
            "{} of {} sampled in {} more than {} ago are still live, {}",
            count(stay as u64),
            blocks(old_born as u64),
            of_time(&old),
            duration(now_s / 8.0),
            if died < 0.5 {
                "the others were freed young".to_owned()
            } else {
                format!(
                    "of the older ones only {} were freed since",
                    count(died as u64)
                )
            }
        )
    };
    let memory = if carries {
        ", as counted"
    } else if is_few || steps < STEPS {
        ", and the process's memory grows as fast"
    } else {
        ""
    };
    Judgement {
        verdict: Verdict::Leaking,
        reason: format!(
            "{evidence}; about {} for {}{memory}, no sign of levelling off",
            flow::rate_of(rate),
            duration(now_s)
        ),
        growth_bytes_per_s: rate,
    }
}

/// Judges a site whose blocks become longer, and by which the heap grows.
fn lengthened(counted: &CountedSite, now_s: f64) -> Option<Judgement> {
    let grown = counted.lengthens?;
    let said = format!(
        "its blocks become longer: from {} to {} in {} windows; so does the heap, {} as counted in {}",
        bytes(grown.first_bytes as u64),
        bytes(grown.bytes as u64),
        grown.windows,
        flow::rate_of(grown.bytes_per_s),
        duration(now_s)
    );
    let (verdict, reason) = if now_s < LEAK_AFTER_S {
        (Verdict::WarmingUp, format!("{said}; {}", too_short(now_s)))
    } else if grown.is_sure() {
        (Verdict::Leaking, said)
    } else {
        (
            Verdict::WarmingUp,
            format!("{said}, and those of other sites too"),
        )
    };
    Some(Judgement {
        verdict,
        reason,
        growth_bytes_per_s: grown.bytes_per_s,
    })
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

/// How likely it is that the time behind the last window of which blocks stay holds none by chance, where they come evenly.
fn stopped_by_chance(windows: &[WindowOfSite]) -> f64 {
    let last = windows.iter().rposition(|window| window.alive > 0.0);
    let until = last.map_or(0, |place| place.saturating_add(1));
    let time =
        |windows: &[WindowOfSite]| -> f64 { windows.iter().map(|window| window.effective_s).sum() };
    let (with, all) = (
        time(windows.get(..until).unwrap_or_default()),
        time(windows),
    );
    let blocks: f64 = windows.iter().map(|window| window.alive).sum();
    (with / all.max(1e-9)).powf(blocks)
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
mod tests;
