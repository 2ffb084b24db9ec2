//! What to make of a site: whether its blocks leak, come and go, have levelled off, or cannot be judged yet; with the
//! evidence in a sentence. Owns the thresholds. Pure.
//!
//! A leak is named only for a flow of blocks that stay: some of those born in every part of the time that was watched are
//! still alive, those that got through their youth do not die any more, later parts keep as many as earlier ones, and
//! the flow has not stopped. Growth alone is no evidence: a cache that fills, a queue before its flush and a load that
//! rises all grow.

use leakscope_common::SiteTotals;
use serde::{Deserialize, Serialize};

use super::{
    flow::{Flow, LEAK_AFTER_S, too_short},
    history::{SiteHistory, SiteLevel},
    series::{Point, thin_out},
    steady::NoLeak,
    trend,
};
use leakscope_model::units::{blocks, bytes, count, duration, rate};

/// Whether a site or a process leaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Its blocks are not freed and there are ever more.
    Leaking,
    /// It grew and has stopped.
    Plateau,
    /// Its blocks come and go.
    Churn,
    /// It grows, but ever more slowly, or too young to tell.
    WarmingUp,
    /// There is too little to judge by.
    #[default]
    InsufficientData,
}

impl Verdict {
    /// All of them, the worst first.
    pub const ALL: [Self; 5] = [
        Self::Leaking,
        Self::WarmingUp,
        Self::Plateau,
        Self::Churn,
        Self::InsufficientData,
    ];

    /// The name in JSON, labels and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leaking => "leaking",
            Self::Plateau => "plateau",
            Self::Churn => "churn",
            Self::WarmingUp => "warming-up",
            Self::InsufficientData => "insufficient-data",
        }
    }
}

/// A verdict with its evidence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The evidence, in a sentence.
    pub reason: String,
    /// The trend of the bytes in use, bytes per second. Of a leak: what stays of the blocks that are born.
    pub growth_bytes_per_s: f64,
}

/// No verdict at all before, seconds.
pub(super) const LOOK_FOR_S: f64 = 10.0;

/// A site that had no new block for so long, and twice as long as ever before, has stopped, seconds.
const STOPPED_AFTER_S: f64 = 20.0;

/// The same for a site of few blocks, which may come at long intervals.
const FEW_STOPPED_AFTER_S: f64 = 120.0;

/// A site needs so many blocks for more than "too few".
const FEW_BLOCKS: u64 = 8;

/// Growth below this share of what there is counts as none.
const NO_GROWTH: f64 = 0.02;

/// So many points of a series give the trend that is shown.
const GROWTH_POINTS: usize = 40;

/// So many points of a series are looked at.
pub(super) const TREND_POINTS: usize = 64;

/// The trend of the bytes in use, bytes per second: the median slope, of few points the mean one.
pub(super) fn growth(points: &[Point<SiteLevel>]) -> f64 {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return 0.0;
    };
    let elapsed = last.at_s - first.at_s;
    if points.len() >= 8 {
        let line: Vec<(f64, f64)> = thin_out(points, GROWTH_POINTS)
            .iter()
            .map(|point| (point.at_s, point.value.bytes))
            .collect();
        // More than half of all pairs are level when three quarters of the points are: the median is 0.
        let end = last.value.bytes;
        let level = line
            .iter()
            .filter(|(_, bytes)| bytes.total_cmp(&end).is_eq());
        if level.count() * 4 >= line.len() * 3 {
            return 0.0;
        }
        trend::line(&line).map_or(0.0, |line| line.slope)
    } else if elapsed > 0.0 {
        (last.value.bytes - first.value.bytes) / elapsed
    } else {
        0.0
    }
}

/// Of what was alive before its process ended, a leak keeps at least this share: what was freed on the way out was held.
const LEFT_AT_END: f64 = 0.5;

/// Judges a site. Of a process that has ended: as of before it, and by what it freed on its way out. `turnover`: how many blocks from before the trace its process freed in the last so many seconds, and
/// whether the process's resident memory bears the growth out.
#[must_use]
pub(super) fn judge(site: &SiteHistory, turnover: impl Fn(f64) -> Turnover) -> Judgement {
    let judgement = judge_before_end(site, turnover);
    match &site.end {
        Some(end) => at_the_end(judgement, site, end),
        None => judgement,
    }
}

/// What blocks that were freed as the process ended change: those that are not there any more do not leak.
fn at_the_end(judgement: Judgement, site: &SiteHistory, end: &SiteTotals) -> Judgement {
    let born = end.alloc_objects;
    let left = born.saturating_sub(end.free_objects);
    let freed = end.free_objects.saturating_sub(site.totals.free_objects);
    if freed == 0 || born == 0 {
        return judgement;
    }
    let grew = if judgement.growth_bytes_per_s > 0.0 {
        rate(judgement.growth_bytes_per_s).map(|rate| format!("{rate} until then; "))
    } else {
        None
    };
    let reason = format!(
        "{}{} of {} were freed as the process ended",
        grew.unwrap_or_default(),
        if freed >= born {
            "all".to_owned()
        } else {
            count(freed)
        },
        blocks(born),
    );
    if left == 0 {
        return Judgement {
            verdict: if born < FEW_BLOCKS {
                Verdict::InsufficientData
            } else {
                Verdict::Churn
            },
            reason: format!("{reason}, none is left"),
            growth_bytes_per_s: 0.0,
        };
    }
    if judgement.verdict == Verdict::Leaking && (left as f64) < LEFT_AT_END * site.level().objects {
        return Judgement {
            verdict: Verdict::WarmingUp,
            reason,
            ..judgement
        };
    }
    judgement
}

/// Judges a site by its history.
fn judge_before_end(site: &SiteHistory, turnover: impl Fn(f64) -> Turnover) -> Judgement {
    let points = site.levels.points();
    let growth_bytes_per_s = growth(&points);
    let judgement = |verdict, reason| Judgement {
        verdict,
        reason,
        growth_bytes_per_s,
    };
    let observed = site.now_s - site.since_s;
    let born = site.totals.alloc_objects;
    let alive = site.level();
    if born == 0 {
        return judgement(Verdict::InsufficientData, String::new());
    }
    if alive.objects < 0.5 {
        let verdict = if born < FEW_BLOCKS {
            Verdict::InsufficientData
        } else {
            Verdict::Churn
        };
        let all = if born == 1 {
            "its only block was freed".to_owned()
        } else {
            format!("all of its {} were freed", blocks(born))
        };
        return judgement(verdict, all);
    }
    if observed < LOOK_FOR_S {
        return judgement(Verdict::InsufficientData, too_short(observed));
    }
    let why = match Flow::best(site, &points, turnover) {
        // What takes no memory does not leak it.
        Ok(leak) if leak.bytes_per_s <= 0.0 || alive.bytes < 1.0 => NoLeak::NoBytes,
        Ok(leak) => {
            return Judgement {
                verdict: Verdict::Leaking,
                reason: leak.reason(),
                growth_bytes_per_s: leak.bytes_per_s,
            };
        }
        Err(why) => why,
    };
    let (verdict, reason) = bounded(site, &points, observed, &why);
    judgement(verdict, reason)
}

/// Frees of blocks that were there before the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Turnover {
    /// How many in all of the time, by those of its second half.
    pub frees: f64,
    /// How many were counted in the second half.
    pub counted: f64,
    /// How long that was, seconds.
    pub over_s: f64,
    /// The process's resident memory grows about as much as the bytes that it allocated and did not free: what is new
    /// does not take the place of what was there.
    pub borne_out: bool,
}

/// What a site is that does not leak as far as can be seen.
fn bounded(
    site: &SiteHistory,
    points: &[Point<SiteLevel>],
    observed: f64,
    why: &NoLeak,
) -> (Verdict, String) {
    let alive = site.level();
    let born = site.totals.alloc_objects;
    let stays = Stays::of(site);
    let freed_share = 1.0 - (alive.objects / born.max(1) as f64).min(1.0);
    let inuse = format!(
        "{} in {}",
        bytes(alive.bytes.max(0.0) as u64),
        blocks(alive.objects.max(0.0) as u64)
    );

    let quiet = stays.quiet_s;
    let rise = Rise::of(points, site.since_s + observed / 2.0);
    let half = duration(observed / 2.0);
    let settles = observed >= LEAK_AFTER_S;
    let long_quiet = if born < FEW_BLOCKS {
        FEW_STOPPED_AFTER_S
    } else {
        STOPPED_AFTER_S
    };
    if !rise.floor && quiet >= long_quiet && quiet >= 2.0 * stays.longest_pause_s && settles {
        return (
            Verdict::Plateau,
            format!(
                "{inuse} stay, and no block was added for {}",
                duration(quiet)
            ),
        );
    }
    if !(rise.floor && rise.peak) {
        let hidden = stays.recent_events > 0.0
            && stays.old >= 0.2 * stays.recent
            && stays.old_deaths < 0.5 * stays.recent;
        if hidden {
            return (
                Verdict::InsufficientData,
                format!(
                    "the level is steady, but {} of the last {half} stay: not enough samples to tell whether older ones are freed",
                    blocks(stays.recent as u64),
                ),
            );
        }
        if freed_share >= 0.5 && stays.old < 0.5 * alive.objects {
            return (
                Verdict::Churn,
                format!(
                    "{:.0} % of {} are freed again, and the level has not risen for {half}",
                    freed_share * 100.0,
                    blocks(born),
                ),
            );
        }
        if !settles {
            return (
                Verdict::WarmingUp,
                format!("{inuse}; {}", too_short(observed)),
            );
        }
        if rise.peak || born < FEW_BLOCKS {
            return (
                Verdict::InsufficientData,
                format!("{inuse}, of {} in {}", blocks(born), duration(observed)),
            );
        }
        return (
            Verdict::Plateau,
            format!("{inuse}, no more than {half} ago"),
        );
    }
    if freed_share >= 0.5
        && stays.old < 0.02 * stays.old_born
        && stays.old_born >= FEW_BLOCKS as f64
        && alive.objects > 2.0
    {
        return (
            Verdict::Churn,
            format!(
                "{:.0} % of {} are freed again, none is older than {}",
                freed_share * 100.0,
                blocks(born),
                duration(stays.oldest_s)
            ),
        );
    }
    let trend = rate(growth(points)).map_or_else(String::new, |rate| format!("{rate}, "));
    match why {
        NoLeak::TooShort => (
            Verdict::WarmingUp,
            format!("{trend}{}", too_short(observed)),
        ),
        NoLeak::FewSteps(steps) => (
            Verdict::InsufficientData,
            format!(
                "it grew in {steps} step{} only, in {}",
                if *steps == 1 { "" } else { "s" },
                duration(observed)
            ),
        ),
        NoLeak::Slows { first, last } if site.by_looks => (
            Verdict::WarmingUp,
            format!(
                "it grows ever more slowly: {} at first, {} lately",
                rate(*first).unwrap_or_default(),
                rate(*last).unwrap_or_else(|| "nothing".to_owned())
            ),
        ),
        NoLeak::Slows { first, last } => (
            Verdict::WarmingUp,
            format!(
                "it grows ever more slowly: {} a minute stayed at first, {} lately",
                blocks((first * 60.0) as u64),
                blocks((last * 60.0) as u64)
            ),
        ),
        NoLeak::Stopped(since) => (
            Verdict::WarmingUp,
            format!("it grew, and has stopped for {}", duration(*since)),
        ),
        NoLeak::OldDie { died, of } => (
            Verdict::WarmingUp,
            format!(
                "{trend}but old blocks are freed, too: {} of {}, and more may follow",
                count(*died as u64),
                blocks(*of as u64)
            ),
        ),
        NoLeak::NoBytes => (
            Verdict::InsufficientData,
            format!("{inuse}: it takes no memory"),
        ),
        NoLeak::Turnover { frees, over_s } => (
            Verdict::WarmingUp,
            format!(
                "{trend}while {} allocated before tracing were freed in {}, whose place the new ones may take",
                blocks(*frees as u64),
                duration(*over_s)
            ),
        ),
        NoLeak::Uneven => (
            Verdict::WarmingUp,
            format!(
                "{trend}in jumps, or for a part of the {} only",
                duration(observed)
            ),
        ),
    }
}

/// How the level after a time is above that before it.
#[derive(Clone, Copy, Debug)]
struct Rise {
    /// Its highest values.
    peak: bool,
    /// Its lowest values, in the last quarter of the time against the second.
    floor: bool,
}

impl Rise {
    fn of(points: &[Point<SiteLevel>], middle: f64) -> Self {
        let by_bytes = Self::by(points, middle, |level| {
            (level.least_bytes, level.most_bytes)
        });
        let by_objects = Self::by(points, middle, |level| (level.objects, level.objects));
        Self {
            peak: by_bytes.peak || by_objects.peak,
            floor: by_bytes.floor || by_objects.floor,
        }
    }

    fn by(
        points: &[Point<SiteLevel>],
        middle: f64,
        range: impl Fn(&SiteLevel) -> (f64, f64),
    ) -> Self {
        let end = points.last().map_or(middle, |point| point.at_s);
        let quarter = (end - middle) / 2.0;
        let of = |from: f64, to: f64| {
            points
                .iter()
                .filter(|point| point.at_s > from && point.at_s <= to)
                .map(|point| range(&point.value))
                .reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)))
                .unwrap_or((0.0, 0.0))
        };
        let before = of(f64::NEG_INFINITY, middle).1;
        let margin = NO_GROWTH * before;
        Self {
            peak: of(middle, end).1 > before + margin,
            floor: of(end - quarter, end).0 > of(middle - quarter, middle).0 + margin,
        }
    }
}

/// Which blocks stay, by the last survey.
#[derive(Clone, Copy, Debug, Default)]
struct Stays {
    /// Blocks alive that were born in the first half of the time.
    old: f64,
    /// Blocks born in the first half.
    old_born: f64,
    /// Blocks alive that were born in the second half, but for the youngest.
    recent: f64,
    /// In how many intervals those were born.
    recent_events: f64,
    /// Blocks of the first half that died in the second.
    old_deaths: f64,
    /// The age of the oldest, seconds.
    oldest_s: f64,
    /// The time since the last birth, seconds.
    quiet_s: f64,
    /// The longest time without a birth before that, seconds.
    longest_pause_s: f64,
}

impl Stays {
    fn of(site: &SiteHistory) -> Self {
        let cohorts = &site.survival;
        let width = cohorts.width_s();
        let surveyed = cohorts
            .surveyed_ns()
            .unwrap_or_else(|| cohorts.origin_ns())
            .saturating_sub(cohorts.origin_ns());
        let now = surveyed as f64 / 1e9 / width;
        let young = (now / 8.0).max(2.0);
        let mut stays = Self::default();
        let mut last_birth: Option<usize> = None;
        let mut pause = 0;
        for (place, cohort) in cohorts.cohorts().enumerate() {
            if cohort.born > 0 {
                if let Some(last) = last_birth {
                    pause = pause.max(place - last - 1);
                }
                last_birth = Some(place);
            }
            let age = now - (place + 1) as f64;
            let alive = f64::from(cohort.alive);
            if alive > 0.0 && stays.oldest_s <= 0.0 {
                stays.oldest_s = (age + 1.0) * width;
            }
            if age >= now / 2.0 {
                stays.old += alive;
                stays.old_born += cohort.born as f64;
                let before = cohort.alive_at((age / 2.0) as u64);
                stays.old_deaths +=
                    before.map_or(0.0, |before| (f64::from(before) - alive).max(0.0));
            } else if age >= young {
                stays.recent += alive;
                stays.recent_events += f64::from(u8::from(alive > 0.0));
            }
        }
        // By the looks, which are more frequent than the surveys.
        stays.quiet_s = site.now_s - site.born_s;
        stays.longest_pause_s = pause as f64 * width;
        stays
    }
}
