//! The verdict of a level: of a number that is read now and then, of which neither births nor deaths are seen, such as the
//! objects of a slab cache or the descriptors of a process. Pure.
//!
//! Growth alone is no leak here either: it has to rise to the end and as fast in later parts of the time as in earlier ones.

use super::{
    flow::{LEAK_AFTER_S, too_short},
    series::{Point, Resolution, Series, Value, thin_out},
    steady::{NoLeak, SURE, even, not_slowing},
    trend,
    verdict::{LOOK_FOR_S, TREND_POINTS, Verdict},
};
use leakscope_model::units::{about, bytes, count, count_rate, duration, rate};

/// Seconds for three minutes, minutes for two hours, hours for a week: at most 468 points of 16 bytes.
const KEPT: [Resolution; 3] = [
    Resolution {
        width_s: 1.0,
        kept: 180,
    },
    Resolution {
        width_s: 60.0,
        kept: 120,
    },
    Resolution {
        width_s: 3600.0,
        kept: 168,
    },
];

/// Where the time that is looked at begins, as a share of all: a leak may begin late.
const WINDOWS: [f64; 4] = [0.0, 0.25, 0.5, 0.75];

/// Of a longer time the last halves are looked at too, down to this, seconds: whoever watches for weeks is to know today.
const SHORTEST_LATE_S: f64 = 3600.0;

/// So many parts of the time are compared.
const PARTS: usize = 12;

/// Of those, so many may fall.
const MAY_FALL: usize = 1;

/// Over all of the time, from this share of the second third's flow on the last third's is the same: what is counted without noise falls
/// surely by one percent. What saturates falls below it: by the root of the time to 0.77, by its logarithm to 0.6.
const SAME: f64 = 0.95;

/// A change counts that is so many times what the points scatter.
const BEYOND_SCATTER: f64 = 4.0;

/// A number that is read now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level(pub f64);

impl Value for Level {
    type Kept = Self;

    fn absorb(&mut self, later: Self) {
        *self = later;
    }
}

/// What a level counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Objects,
    /// Bytes.
    Bytes,
}

impl Unit {
    fn level(self, value: f64) -> String {
        match self {
            Self::Objects => count(value.max(0.0) as u64),
            Self::Bytes => bytes(value.max(0.0) as u64),
        }
    }

    fn rate(self, per_s: f64) -> Option<String> {
        match self {
            Self::Objects => count_rate(per_s),
            Self::Bytes => rate(per_s),
        }
    }
}

/// By which rules a level is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelRules<'a> {
    /// What it counts.
    pub unit: Unit,
    /// A change below this says nothing, in its unit.
    pub noise: f64,
    /// The same as a share of the level.
    pub noise_share: f64,
    /// A leak is named after so many seconds at the earliest; never before [`LEAK_AFTER_S`].
    pub after_s: f64,
    /// Why it is never called a leak; `None` where it may be.
    pub no_leak: Option<&'a str>,
    /// What ends its growth, and at which level.
    pub limit: Option<(f64, &'a str)>,
}

/// A level's verdict with its trend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LevelJudgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The evidence, in a sentence.
    pub reason: String,
    /// The trend, a second.
    pub growth_per_s: f64,
    /// The lower end of its 95 % interval.
    pub growth_low_per_s: f64,
    /// The upper end.
    pub growth_high_per_s: f64,
}

/// A level over time.
#[derive(Clone, Debug)]
pub struct LevelHistory {
    levels: Series<Level>,
}

impl Default for LevelHistory {
    fn default() -> Self {
        Self {
            levels: Series::new(&KEPT),
        }
    }
}

/// A trend over a part of the time.
#[derive(Clone, Copy)]
struct Trend {
    line: trend::Line,
    low: f64,
    high: f64,
    /// How sure it is that it rises, standard deviations.
    rise: f64,
    over_s: f64,
}

impl Trend {
    fn of(points: &[Point<Level>]) -> Option<Self> {
        let (first, last) = points.first().zip(points.last())?;
        let pairs: Vec<(f64, f64)> = points
            .iter()
            .map(|point| (point.at_s, point.value.0))
            .collect();
        let values: Vec<f64> = pairs.iter().map(|(_, value)| *value).collect();
        let (low, high) = trend::slope_interval(&pairs)?;
        Some(Self {
            line: trend::line(&pairs)?,
            low,
            high,
            rise: trend::rise(&values),
            over_s: last.at_s - first.at_s,
        })
    }

    /// Whether it rises, and by more than chance and noise.
    fn rises(&self, noise: f64) -> bool {
        let grown = self.line.slope * self.over_s;
        self.rise > SURE && self.low > 0.0 && grown >= noise.max(BEYOND_SCATTER * self.line.scatter)
    }
}

impl LevelHistory {
    /// Notes a level, at seconds since the trace began.
    pub fn observe(&mut self, at_s: f64, level: f64) {
        self.levels.push(at_s, Level(level));
    }

    /// The last level, and the seconds since the trace began at which it was read.
    #[must_use]
    pub fn last(&self) -> Option<(f64, f64)> {
        self.levels.last().map(|point| (point.at_s, point.value.0))
    }

    /// At how many different times it was read, as far as that is kept.
    #[must_use]
    pub fn looks(&self) -> usize {
        self.levels.points().len()
    }

    /// How far it has moved since it was first read.
    #[must_use]
    pub fn change(&self) -> f64 {
        match (self.levels.first(), self.levels.last()) {
            (Some(first), Some(last)) => last.value.0 - first.value.0,
            _ => 0.0,
        }
    }

    /// Judges it.
    #[must_use]
    pub fn judge(&self, rules: &LevelRules<'_>) -> LevelJudgement {
        let points = self.levels.points();
        let thin = thin_out(&points, TREND_POINTS);
        let (Some(first), Some(last), Some(whole)) = (thin.first(), thin.last(), Trend::of(&thin))
        else {
            return LevelJudgement::default();
        };
        let noise = rules.noise.max(rules.noise_share * last.value.0.abs());
        let made = |trend: &Trend, verdict, reason| LevelJudgement {
            verdict,
            reason,
            growth_per_s: trend.line.slope,
            growth_low_per_s: trend.low,
            growth_high_per_s: trend.high,
        };
        let observed = whole.over_s;
        if observed < LOOK_FOR_S {
            return made(&whole, Verdict::InsufficientData, too_short(observed));
        }
        let after_s = rules.after_s.max(LEAK_AFTER_S);
        let mut why = None;
        for from_s in windows(first.at_s, last.at_s, after_s) {
            let chosen: Vec<_> = points
                .iter()
                .filter(|point| point.at_s >= from_s)
                .copied()
                .collect();
            let Some(trend) = Trend::of(&thin_out(&chosen, TREND_POINTS)) else {
                continue;
            };
            match steady(&chosen, &trend, noise, from_s <= first.at_s) {
                Ok(()) => {
                    if let Some(no_leak) = rules.no_leak {
                        return made(&trend, Verdict::WarmingUp, no_leak.to_owned());
                    }
                    let reason = leak(rules, &trend, last.value.0);
                    return made(&trend, Verdict::Leaking, reason);
                }
                Err(no_leak) => why = why.or(Some(no_leak)),
            }
        }
        let range = range(&thin);
        let (verdict, reason) = if whole.rises(noise) {
            if observed < after_s {
                (Verdict::WarmingUp, short(observed, after_s))
            } else {
                (Verdict::WarmingUp, why_not(rules.unit, why, observed))
            }
        } else if observed < LEAK_AFTER_S {
            (Verdict::InsufficientData, too_short(observed))
        } else if range.1 - range.0 > noise {
            let (low, high) = (rules.unit.level(range.0), rules.unit.level(range.1));
            (
                Verdict::Churn,
                format!("it rises and falls between {low} and {high}"),
            )
        } else {
            (
                Verdict::Plateau,
                format!("it has not grown for {}", duration(observed)),
            )
        };
        made(&whole, verdict, reason)
    }
}

/// Where the stretches of time begin that are looked at for a leak, the longest first.
fn windows(first_s: f64, last_s: f64, after_s: f64) -> Vec<f64> {
    let observed = last_s - first_s;
    let mut from: Vec<f64> = WINDOWS
        .iter()
        .filter(|share| (1.0 - *share) * observed >= after_s)
        .map(|share| first_s + share * observed)
        .collect();
    let mut length = observed / 8.0;
    while length >= SHORTEST_LATE_S.max(after_s) {
        from.push(last_s - length);
        length /= 2.0;
    }
    from
}

/// Whether a level rises as a leak does. `is_whole`: over all of the time.
fn steady(
    points: &[Point<Level>],
    trend: &Trend,
    noise: f64,
    is_whole: bool,
) -> Result<(), NoLeak> {
    if !trend.rises(noise) {
        return Err(NoLeak::Uneven);
    }
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Err(NoLeak::TooShort);
    };
    let width = (last.at_s - first.at_s) / PARTS as f64;
    if points.len() <= PARTS || width <= 0.0 {
        return Err(NoLeak::TooShort);
    }
    let at = |at_s: f64| {
        let before = points.iter().rev().find(|point| point.at_s <= at_s);
        let after = points.iter().find(|point| point.at_s > at_s);
        match (before, after) {
            (Some(one), Some(two)) => {
                let share = (at_s - one.at_s) / (two.at_s - one.at_s);
                one.value.0 + share * (two.value.0 - one.value.0)
            }
            (Some(point), None) | (None, Some(point)) => point.value.0,
            (None, None) => 0.0,
        }
    };
    let borders: Vec<f64> = (0..=PARTS)
        .map(|part| at(first.at_s + part as f64 * width))
        .collect();
    let grown: Vec<f64> = borders
        .windows(2)
        .filter_map(|pair| match pair {
            [one, two] => Some(two - one),
            _ => None,
        })
        .collect();
    let falls = |part: &&f64| **part <= 0.0;
    let quiet = grown.iter().rev().take_while(falls).count();
    if quiet > MAY_FALL {
        return Err(NoLeak::Stopped(quiet as f64 * width));
    }
    if grown.iter().filter(falls).count() > MAY_FALL {
        return Err(NoLeak::Uneven);
    }
    even(&grown, width)?;
    match not_slowing(&grown, width) {
        Err(NoLeak::Slows { first, last }) if is_whole && last >= SAME * first => Ok(()),
        judged => judged,
    }
}

/// The evidence of a leak.
fn leak(rules: &LevelRules<'_>, trend: &Trend, level: f64) -> String {
    let rate = rules.unit.rate(trend.line.slope).unwrap_or_default();
    let mut reason = format!(
        "{rate} for {}, no sign of levelling off",
        duration(trend.over_s)
    );
    if let Some((limit, name)) = rules.limit {
        let left_s = (limit - level) / trend.line.slope;
        if left_s > 0.0 && left_s < 365.0 * 86_400.0 {
            let at = rules.unit.level(limit);
            reason.push_str(&format!(
                "; at this rate {name} of {at} is reached in about {}",
                about(left_s)
            ));
        }
    }
    reason
}

/// Says that so many seconds are too few where it takes longer than usual.
fn short(observed: f64, after_s: f64) -> String {
    format!(
        "{} is too short for a verdict ({after_s:.0} s)",
        duration(observed)
    )
}

/// Why what grows is not called a leak.
fn why_not(unit: Unit, why: Option<NoLeak>, observed: f64) -> String {
    match why {
        Some(NoLeak::Slows { first, last }) => format!(
            "it grows ever more slowly: {} at first, {} lately",
            unit.rate(first).unwrap_or_else(|| "nothing".to_owned()),
            unit.rate(last).unwrap_or_else(|| "nothing".to_owned())
        ),
        Some(NoLeak::Stopped(since)) => {
            format!("it grew, and has stopped for {}", duration(since))
        }
        _ => format!(
            "it grows in jumps, or for a part of the {} only",
            duration(observed)
        ),
    }
}

/// The lowest and the highest.
fn range(points: &[Point<Level>]) -> (f64, f64) {
    points
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| {
            (low.min(point.value.0), high.max(point.value.0))
        })
}

#[cfg(test)]
mod tests {
    use super::{LevelHistory, LevelJudgement, LevelRules, Unit};
    use crate::Verdict;
    use proptest::prelude::*;

    const RULES: LevelRules<'static> = LevelRules {
        unit: Unit::Objects,
        noise: 64.0,
        noise_share: 0.02,
        after_s: 45.0,
        no_leak: None,
        limit: Some((50_000.0, "its limit")),
    };

    fn judged(seconds: u32, level: impl Fn(f64) -> f64) -> LevelJudgement {
        let mut history = LevelHistory::default();
        for second in 0..=seconds {
            let at = f64::from(second);
            history.observe(at, level(at));
        }
        history.judge(&RULES)
    }

    #[test]
    fn what_grows_evenly_leaks_with_a_forecast() {
        let found = judged(60, |at| 1000.0 + 400.0 * at);
        assert_eq!(found.verdict, Verdict::Leaking, "{found:?}");
        assert!((found.growth_per_s - 400.0).abs() < 1.0);
        assert_eq!(
            found.reason,
            "+400/s for 60.0 s, no sign of levelling off; at this rate its limit of 50,000 is reached in about 62 s"
        );
    }

    #[test]
    fn a_short_look_is_no_verdict_but_has_a_rate() {
        let found = judged(30, |at| 400.0 * at);
        assert_eq!(found.verdict, Verdict::WarmingUp, "{found:?}");
        assert!(found.growth_low_per_s > 390.0 && found.growth_high_per_s < 410.0);
        assert_eq!(
            judged(5, |at| 400.0 * at).verdict,
            Verdict::InsufficientData
        );
    }

    #[test]
    fn what_fills_steps_or_waves_does_not_leak() {
        let saturates = judged(300, |at| 20_000.0 * (1.0 - (-at / 60.0).exp()));
        assert_eq!(saturates.verdict, Verdict::WarmingUp, "{saturates:?}");
        let jumps = judged(300, |at| if at > 150.0 { 9000.0 } else { 100.0 });
        assert_ne!(jumps.verdict, Verdict::Leaking, "{jumps:?}");
        let waves = judged(300, |at| 5000.0 + 2000.0 * (at / 7.0).sin());
        assert_eq!(waves.verdict, Verdict::Churn, "{waves:?}");
        let level = judged(300, |at| 5000.0 + (at * 1.7).sin());
        assert_eq!(level.verdict, Verdict::Plateau, "{level:?}");
        let stopped = judged(300, |at| 400.0 * at.min(200.0));
        assert_eq!(stopped.verdict, Verdict::WarmingUp, "{stopped:?}");
    }

    #[test]
    fn a_flow_without_noise_that_fell_by_one_percent_was_called_ever_slower() {
        let found = judged(60, |at| 1000.0 + 400.0 * at - 0.03 * at * at);
        assert_eq!(found.verdict, Verdict::Leaking, "{found:?}");
        // The root of the time is no leak, whatever its parts look like.
        let slows = judged(300, |at| 4000.0 * at.sqrt());
        assert_eq!(slows.verdict, Verdict::WarmingUp, "{slows:?}");
    }

    #[test]
    fn a_leak_that_begins_late_is_found() {
        let found = judged(300, |at| 500.0 + 300.0 * (at - 160.0).max(0.0));
        assert_eq!(found.verdict, Verdict::Leaking, "{found:?}");
    }

    #[test]
    fn a_cache_never_leaks() {
        let mut history = LevelHistory::default();
        for second in 0..600 {
            history.observe(f64::from(second), 400.0 * f64::from(second));
        }
        let rules = LevelRules {
            no_leak: Some("a cache"),
            ..RULES
        };
        let found = history.judge(&rules);
        assert_eq!(found.verdict, Verdict::WarmingUp);
        assert_eq!(found.reason, "a cache");
    }

    proptest! {
        #[test]
        fn chance_is_no_leak(steps in prop::collection::vec(-50_i32..=50, 60..200)) {
            let mut history = LevelHistory::default();
            let mut level = 20_000.0;
            // Around a level, however far it goes.
            for (second, step) in (0_u32..).zip(&steps) {
                level += f64::from(*step) - 0.2 * (level - 20_000.0);
                history.observe(f64::from(second), level);
            }
            prop_assert_ne!(history.judge(&RULES).verdict, Verdict::Leaking);
        }

        #[test]
        fn every_figure_is_finite(values in prop::collection::vec((0.0_f64..9.0, 0.0_f64..1e18), 0..80)) {
            let mut history = LevelHistory::default();
            let mut at = 0.0;
            for (step, value) in values {
                at += step;
                history.observe(at, value);
            }
            let found = history.judge(&RULES);
            prop_assert!(found.growth_per_s.is_finite());
            prop_assert!(found.growth_low_per_s <= found.growth_high_per_s);
        }
    }
}
