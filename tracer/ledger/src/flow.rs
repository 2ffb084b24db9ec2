//! The evidence of a leak: a flow of blocks that stay, or of blocks that are replaced by ever larger ones, and which tests
//! such a flow must pass; what a site is that does not pass is for the verdict to say.

use super::{
    history::{SiteHistory, SiteLevel},
    series::{Point, thin_out},
    steady::{
        CHANCE, LONGEST_GAP, NoLeak, SURE, even_but_for_chance, level_rises, not_slowing,
        not_stopped, same_share, steps, thirds_agree,
    },
    trend,
    verdict::{TREND_POINTS, Turnover},
};
use leakscope_model::units::{blocks, count, duration, rate};

/// A leak is named after so many seconds at the earliest. A cache that takes longer to fill, evenly, looks like one.
pub const LEAK_AFTER_S: f64 = 45.0;

/// Says that so many seconds are too few.
pub(super) fn too_short(seconds: f64) -> String {
    let observed = duration(seconds);
    if seconds < LEAK_AFTER_S {
        format!("{observed} is too short for a verdict ({LEAK_AFTER_S} s)")
    } else {
        format!("{observed} is too short for a verdict")
    }
}

/// Of more blocks than this that grow together, a leak is named later: buffers of connections and lists of bounded length
/// grow like that when a program is young.
const FEW_GROWING: f64 = 4.0;
const MANY_GROWING_AFTER_S: f64 = 240.0;

/// A flow is made of at least so many births that are apart. Fewer are a few jumps, however regular.
const STEPS: usize = 8;

/// At least so many intervals are looked at.
const INTERVALS: usize = 12;

/// Of blocks that got through their youth, at most this share may have died since.
const MAY_DIE: f64 = 0.05;

/// Of those that came to stay, no more than this share may have died.
const MAY_DIE_OF_FLOW: f64 = 0.1;

/// What takes the place of blocks from before the trace comes with a like number of their frees: at least this share.
const REPLACES: f64 = 0.4;

/// Where the time that is looked at begins, as a share of all: a leak may begin late, or hide behind what was built up
/// at first.
const WINDOWS: [f64; 4] = [0.0, 0.25, 0.5, 0.75];

/// A leak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Flow {
    /// How fast.
    pub(super) bytes_per_s: f64,
    /// How long it was watched, seconds.
    window_s: f64,
    /// Blocks that stay.
    stay: f64,
    /// Blocks born in that time.
    born: f64,
    /// Old blocks that died.
    died: f64,
    /// The age beyond which blocks count, seconds.
    young_s: f64,
    /// The blocks are replaced by larger ones.
    replaced: bool,
}

impl Flow {
    /// The leak of the longest window that shows one; else why the whole time does not.
    pub(super) fn best(
        site: &SiteHistory,
        points: &[Point<SiteLevel>],
        turnover: impl Fn(f64) -> Turnover,
    ) -> Result<Self, NoLeak> {
        // Most sites of most programs have nothing new: they are not looked at closely.
        if let Some(quiet) = Self::quiet(site) {
            return Err(NoLeak::Stopped(quiet));
        }
        let mut why = None;
        for begin in WINDOWS {
            for found in [
                Self::of_blocks_that_stay(site, points, begin),
                Self::of_growing_blocks(site, points, begin),
            ] {
                let found = found.and_then(|flow| {
                    let turnover = turnover(flow.window_s);
                    if turnover.frees > REPLACES * flow.stay && !turnover.borne_out {
                        return Err(NoLeak::Turnover {
                            frees: turnover.counted,
                            over_s: turnover.over_s,
                        });
                    }
                    Ok(flow)
                });
                match found {
                    Ok(flow) => return Ok(flow),
                    Err(reason) => why = Some(why.map_or(reason, |why: NoLeak| why.or(reason))),
                }
            }
        }
        Err(why.unwrap_or(NoLeak::TooShort))
    }

    /// For how many seconds no block was born, where that is more than a third of the time.
    fn quiet(site: &SiteHistory) -> Option<f64> {
        let quiet = site.now_s - site.born_s;
        (quiet > LONGEST_GAP * (site.now_s - site.since_s)).then_some(quiet)
    }

    fn of_blocks_that_stay(
        site: &SiteHistory,
        points: &[Point<SiteLevel>],
        begin: f64,
    ) -> Result<Self, NoLeak> {
        let cohorts = &site.survival;
        let width = cohorts.width_s();
        let surveyed = cohorts.surveyed_ns().ok_or(NoLeak::TooShort)?;
        let now = surveyed.saturating_sub(cohorts.origin_ns()) as f64 / 1e9 / width;
        let first = (begin * now).ceil();
        let window = now - first;
        let young = (window / 8.0).max(2.0);
        let end = (now - young).floor().max(first);
        let chosen: Vec<_> = cohorts
            .cohorts()
            .take(end as usize)
            .skip(first as usize)
            .collect();
        if window * width < LEAK_AFTER_S || chosen.len() < INTERVALS {
            return Err(NoLeak::TooShort);
        }
        let counts: Vec<f64> = chosen
            .iter()
            .map(|cohort| f64::from(cohort.alive))
            .collect();
        let sizes: Vec<f64> = chosen
            .iter()
            .map(|cohort| cohort.alive_bytes as f64)
            .collect();
        let stay: f64 = counts.iter().sum();

        // Those that came through their youth do not die.
        let (mut died, mut of) = (0.0, 0.0);
        for (place, cohort) in cohorts.cohorts().enumerate() {
            let age = now - (place + 1) as f64;
            if age < (window / 3.0).max(4.0) {
                break;
            }
            if let Some(before) = cohort.alive_at((age / 2.0) as u64) {
                of += f64::from(before);
                died += f64::from(before.saturating_sub(cohort.alive));
            }
        }
        // Where the live table was thinned, or which died is reckoned, counts are estimates.
        let chance = if site.weight > 1 || site.is_sampled {
            2.0 * (of * site.weight as f64).sqrt()
        } else {
            0.0
        };
        if died > MAY_DIE * of + chance || died > MAY_DIE_OF_FLOW * stay + chance {
            return Err(NoLeak::OldDie { died, of });
        }

        let steps = steps(&counts, site.is_sampled);
        if steps < STEPS {
            return Err(NoLeak::FewSteps(steps));
        }
        // How many there are says nothing where that depends on when it was looked.
        let told = if site.by_looks { &sizes } else { &counts };
        even_but_for_chance(told, width, site.is_sampled)?;
        if sizes.iter().any(|size| *size > 0.0) {
            even_but_for_chance(&sizes, width, site.is_sampled)?;
        }
        let born: Vec<f64> = chosen.iter().map(|cohort| cohort.born as f64).collect();
        same_share(&counts, &born)?;
        if begin > 0.0 {
            let whole: Vec<f64> = cohorts
                .cohorts()
                .take(end as usize)
                .map(|cohort| {
                    if site.by_looks {
                        cohort.alive_bytes as f64
                    } else {
                        f64::from(cohort.alive)
                    }
                })
                .collect();
            not_slowing(&whole, width)?;
        }
        not_stopped(site, told, first, now, width)?;
        level_rises(points, site.now_s - window * width)?;
        Ok(Self {
            bytes_per_s: steady_rate(&sizes) / width,
            window_s: window * width,
            stay,
            // By the intervals, births are up to a look's time askew.
            born: if site.totals.free_objects == 0 {
                stay
            } else {
                chosen.iter().map(|cohort| cohort.born as f64).sum()
            },
            died,
            young_s: (now - end) * width,
            replaced: false,
        })
    }

    /// The number of blocks is steady, and they are ever larger.
    fn of_growing_blocks(
        site: &SiteHistory,
        points: &[Point<SiteLevel>],
        begin: f64,
    ) -> Result<Self, NoLeak> {
        let observed = site.now_s - site.since_s;
        let from = site.since_s + begin * observed;
        let window_s = site.now_s - from;
        if window_s < LEAK_AFTER_S {
            return Err(NoLeak::TooShort);
        }
        let chosen: Vec<_> = points
            .iter()
            .filter(|point| point.at_s >= from)
            .copied()
            .collect();
        let chosen = thin_out(&chosen, TREND_POINTS);
        let objects = chosen.iter().map(|point| point.value.objects);
        let most = objects.clone().fold(0.0, f64::max);
        // The first look may have been before the first block.
        let least = objects.filter(|count| *count > 0.0).fold(most, f64::min);
        if most - least > (0.05 * most).max(2.0) || least < 1.0 {
            return Err(NoLeak::Uneven);
        }
        if most > FEW_GROWING && window_s < MANY_GROWING_AFTER_S {
            return Err(NoLeak::TooShort);
        }
        let (Some(begin), Some(end)) = (
            chosen.iter().find(|point| point.value.objects > 0.5),
            chosen.last(),
        ) else {
            return Err(NoLeak::TooShort);
        };
        let more = end.value.objects - begin.value.objects;
        let mean = begin.value.bytes / begin.value.objects;
        if more * mean > 0.3 * (end.value.bytes - begin.value.bytes) {
            return Err(NoLeak::Uneven);
        }
        let changes: Vec<f64> = chosen
            .windows(2)
            .filter_map(|pair| match pair {
                [one, two] => Some(two.value.bytes - one.value.bytes),
                _ => None,
            })
            .collect();
        let up: f64 = changes.iter().filter(|change| **change > 0.0).sum();
        let down: f64 = -changes.iter().filter(|change| **change < 0.0).sum::<f64>();
        let largest = changes.iter().copied().fold(0.0, f64::max);
        let steps = changes.iter().filter(|change| **change > 0.0).count();
        if steps < STEPS {
            return Err(NoLeak::FewSteps(steps));
        }
        let values: Vec<f64> = chosen.iter().map(|point| point.value.bytes).collect();
        if down > MAY_DIE * up || largest > LONGEST_GAP * up || trend::rise(&values) < SURE {
            return Err(NoLeak::Uneven);
        }
        let between = window_s / changes.len().max(1) as f64;
        thirds_agree(&changes, between, CHANCE)?;
        let quiet = changes
            .iter()
            .rev()
            .take_while(|change| **change <= 0.0)
            .count() as f64
            * between;
        if quiet > window_s / 8.0 {
            return Err(NoLeak::Stopped(quiet));
        }
        Ok(Self {
            bytes_per_s: (up - down) / window_s,
            window_s,
            stay: most,
            born: most,
            died: 0.0,
            young_s: 0.0,
            replaced: true,
        })
    }

    /// The evidence in a sentence.
    pub(super) fn reason(&self) -> String {
        let trend = rate_of(self.bytes_per_s);
        let time = duration(self.window_s);
        if self.replaced {
            let which = if self.stay < 1.5 {
                "its block is".to_owned()
            } else {
                format!("its {} are", blocks(self.stay as u64))
            };
            return format!(
                "{which} replaced by ever larger ones; {trend} for {time}, no sign of levelling off"
            );
        }
        let young = duration(self.young_s);
        let evidence = if self.stay >= self.born {
            format!(
                "every one of {} born more than {young} ago is alive",
                blocks(self.stay as u64)
            )
        } else {
            let since = if self.died < 0.5 {
                "the others were freed young".to_owned()
            } else {
                format!(
                    "of the older ones only {} were freed since",
                    count(self.died as u64)
                )
            };
            format!(
                "{} of {} born more than {young} ago are alive, {since}",
                count(self.stay as u64),
                blocks(self.born as u64)
            )
        };
        format!("{evidence}; {trend} for {time}, no sign of levelling off")
    }
}

/// What comes to stay with each interval: the slope of the sum, which what was built up at first does not change.
fn steady_rate(sizes: &[f64]) -> f64 {
    let mut sum = 0.0;
    let sums: Vec<(f64, f64)> = (0_u32..)
        .zip(sizes)
        .map(|(at, size)| {
            sum += size;
            (f64::from(at), sum)
        })
        .collect();
    trend::line(&sums).map_or(0.0, |line| line.slope)
}

/// A rate for a sentence.
pub(super) fn rate_of(bytes_per_s: f64) -> String {
    rate(bytes_per_s).unwrap_or_else(|| "less than a byte an hour".to_owned())
}

#[cfg(test)]
mod tests {
    use leakscope_common::SiteTotals;

    use crate::{Verdict, history::SiteHistory, verdict::judge};

    const SECOND: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    /// A mapping of which 1 MiB more is used each second from the 15th on, as looks find it that come ever more rarely.
    fn found(by_looks: bool) -> SiteHistory {
        let mut site = SiteHistory::new(0.0, 0);
        site.by_looks = by_looks;
        let mut found: Vec<(u64, u64)> = Vec::new();
        let mut last = 15;
        for second in 1..=75_u64 {
            let is_look = second < 35 || second % 4 == 3;
            if is_look && second > last {
                found.push((second * SECOND, (second - last) * MIB));
                last = second;
            }
            let totals = SiteTotals {
                alloc_objects: found.len() as u64,
                alloc_bytes: found.iter().map(|(_, bytes)| bytes).sum(),
                ..SiteTotals::default()
            };
            site.observe(second as f64, second * SECOND, &totals, 1);
            site.survival.begin_survey(second * SECOND);
            for (born_ns, bytes) in &found {
                site.survival.note_alive(*born_ns, *bytes, 1);
            }
            site.survival.end_survey(second * SECOND);
        }
        site
    }

    #[test]
    fn looks_that_came_more_rarely_made_a_steady_growth_seem_to_slow_down() {
        let judged = |by_looks| judge(&found(by_looks), |_| super::Turnover::default());
        let judgement = judged(true);
        assert_eq!(judgement.verdict, Verdict::Leaking, "{}", judgement.reason);
        let rate = judgement.growth_bytes_per_s / MIB as f64;
        assert!((0.9..1.1).contains(&rate), "{rate}");
        assert_eq!(judged(false).verdict, Verdict::WarmingUp);
    }
}
