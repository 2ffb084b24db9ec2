//! Whether a flow of blocks is steady: the tests by which its earlier and later parts are compared, and what is said of one that fails them.
//! Which flow it is, is known elsewhere.

use super::{
    history::{SiteHistory, SiteLevel},
    series::{Point, thin_out},
    trend,
    verdict::TREND_POINTS,
};

/// Of those born in the first third of the time, this share may be gone beyond what is gone of those born in the last.
const MAY_BE_GONE: f64 = 0.2;

/// The flow of the last third is at least this share of the largest of the others, unless chance explains it.
const KEEPS: f64 = 0.6;

/// So many standard deviations explain a difference between two parts.
pub(super) const CHANCE: f64 = 1.6;

/// The same of blocks that are a sample by chance: nothing of their scatter is the program's, and what a collection finds is laid to several
/// parts of the time alike, so that the scatter within them tells of less than there is.
const CHANCE_OF_SAMPLES: f64 = 2.5;

/// Samples of fewer moments than these are a few jumps, however many they are.
const FEW_MOMENTS: usize = 5;

/// A flow that falls steadily is at least this share of the first third's.
const KEEPS_STEADILY: f64 = 0.9;

/// The same where it is less sure that it falls.
const KEEPS_LIKELY: f64 = 0.8;

/// 99.5 % confidence, one-sided: of a fall by ranks.
pub(super) const SURE: f64 = 2.576;

/// 97.5 % confidence, one-sided: enough to distrust a part of the time for what the whole of it shows.
const LIKELY: f64 = 1.96;

/// The gap between two births that stay is at most this share of the time.
pub(super) const LONGEST_GAP: f64 = 1.0 / 3.0;

/// Why a site is not called a leak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum NoLeak {
    /// It was not watched long enough.
    TooShort,
    /// It grew in so many steps only.
    FewSteps(usize),
    /// The parts of the time differ too much.
    Uneven,
    /// Less and less stays, blocks a second.
    Slows {
        /// Of the first part.
        first: f64,
        /// Of the last.
        last: f64,
    },
    /// Nothing was added for so many seconds.
    Stopped(f64),
    /// Old blocks are freed.
    OldDie {
        /// So many.
        died: f64,
        /// Of so many.
        of: f64,
    },
    /// As many blocks from before the trace were freed.
    Turnover {
        /// So many were counted.
        frees: f64,
        /// In so many seconds.
        over_s: f64,
    },
    /// It takes no memory.
    NoBytes,
}

impl NoLeak {
    /// The reason that says more; the first, if in doubt.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::FewSteps(one), Self::FewSteps(two)) => Self::FewSteps(one.max(two)),
            _ => self,
        }
    }
}

/// Births that are apart: neighbours belong together, but a long row of them is a flow. Of a sample each is one of many that it stands for, and
/// looks may come too rarely to tell them apart: where they are not of a few moments, two of a moment count as two.
pub(super) fn steps(counts: &[f64], is_sampled: bool) -> usize {
    if is_sampled {
        let moments = counts.iter().filter(|count| **count > 0.0);
        let several: f64 = moments.clone().map(|count| count.min(2.0)).sum();
        let moments = moments.count();
        return if moments < FEW_MOMENTS {
            moments
        } else {
            several as usize
        };
    }
    counts
        .chunk_by(|one, two| (*one > 0.0) == (*two > 0.0))
        .filter(|row| row.first().is_some_and(|count| *count > 0.0))
        .map(|row| row.len().saturating_sub(1).max(1))
        .sum()
}

/// Whether all of the time, of which the last part is even, shows less and less: what saturates looks even wherever one
/// looks closely. The first third may hold anything, for that is where programs start up.
pub(super) fn not_slowing(counts: &[f64], width_s: f64) -> Result<(), NoLeak> {
    let third = counts.len() / 3;
    let mut thirds = counts.chunks(third.max(1));
    let mut next = || trend::moments(thirds.next().unwrap_or_default());
    let (_, (second, noise_2), (last, noise_3)) = (next(), next(), next());
    let noise = ((noise_2 + noise_3) / third.max(1) as f64).sqrt();
    let falls = last < KEEPS * second && second - last > CHANCE * noise;
    if falls || trend::rise(counts) < -LIKELY {
        return Err(NoLeak::Slows {
            first: second / width_s,
            last: last / width_s,
        });
    }
    Ok(())
}

/// Whether later parts of the time keep as much as earlier ones.
pub(super) fn even(values: &[f64], width_s: f64) -> Result<(), NoLeak> {
    even_but_for_chance(values, width_s, false)
}

/// The same of blocks that may be a sample.
pub(super) fn even_but_for_chance(
    values: &[f64],
    width_s: f64,
    is_sampled: bool,
) -> Result<(), NoLeak> {
    let chance = if is_sampled {
        CHANCE_OF_SAMPLES
    } else {
        CHANCE
    };
    let (first, last) = thirds_agree(values, width_s, chance)?;
    let rise = trend::rise(values);
    let (steadily, likely) = if is_sampled {
        (KEEPS, KEEPS)
    } else {
        (KEEPS_STEADILY, KEEPS_LIKELY)
    };
    if last < steadily * first && rise < -SURE || last < likely * first && rise < -LIKELY {
        return Err(NoLeak::Slows {
            first: first / width_s,
            last: last / width_s,
        });
    }
    Ok(())
}

/// Compares the thirds of the time with the scatter within them; gives the means of the first and the last.
pub(super) fn thirds_agree(
    values: &[f64],
    width_s: f64,
    chance: f64,
) -> Result<(f64, f64), NoLeak> {
    let third = (values.len() / 3).max(1);
    let (one, rest) = values.split_at(third.min(values.len()));
    let (two, three) = rest.split_at(third.min(rest.len()));
    let ((first, noise_1), (second, noise_2), (last, noise_3)) = (
        trend::moments(one),
        trend::moments(two),
        trend::moments(three),
    );
    let most = first.max(second);
    let noise = ((noise_1 + noise_2 + noise_3) / 3.0 * 2.0 / third as f64).sqrt();
    let falls = last < KEEPS * most && most - last > chance * noise;
    if falls || last <= 0.0 {
        return Err(NoLeak::Slows {
            first: most / width_s,
            last: last.max(0.0) / width_s,
        });
    }
    // A flow that rises from nothing has not been steady for long.
    if second <= 0.0 || first < last / 5.0 {
        return Err(NoLeak::Uneven);
    }
    Ok((first, last))
}

/// Whether of those born at first as large a share stayed as of those born lately. If not, time takes its toll: of what
/// is freed at long intervals, only what came after the last time stays.
pub(super) fn same_share(alive: &[f64], born: &[f64]) -> Result<(), NoLeak> {
    let third = alive.len() / 3;
    let first = |values: &[f64]| values.iter().take(third).sum::<f64>();
    let last = |values: &[f64]| values.iter().rev().take(third).sum::<f64>();
    let expected = (last(alive) / last(born).max(1.0)).min(1.0) * first(born);
    let missing = expected - first(alive);
    if missing > MAY_BE_GONE * expected && missing > 2.0 * expected.sqrt() {
        return Err(NoLeak::OldDie {
            died: missing,
            of: expected,
        });
    }
    Ok(())
}

/// Whether blocks that stay were born lately, and without too long a gap before.
pub(super) fn not_stopped(
    site: &SiteHistory,
    counts: &[f64],
    first: f64,
    now: f64,
    width: f64,
) -> Result<(), NoLeak> {
    let (mut gap, mut longest) = (0.0_f64, 0.0_f64);
    for count in counts {
        gap = if *count > 0.0 { 0.0 } else { gap + 1.0 };
        longest = longest.max(gap);
    }
    let window = now - first;
    if longest > LONGEST_GAP * window {
        return Err(NoLeak::Uneven);
    }
    let last = site
        .survival
        .cohorts()
        .rposition(|cohort| cohort.alive > 0)
        .map_or(0.0, |place| (place + 1) as f64);
    let quiet = now - last;
    if quiet > 1.5 * longest + 2.0 {
        return Err(NoLeak::Stopped(quiet * width));
    }
    Ok(())
}

/// Whether the level rises to the end, where it is smooth enough to tell.
pub(super) fn level_rises(points: &[Point<SiteLevel>], from_s: f64) -> Result<(), NoLeak> {
    let chosen: Vec<_> = points
        .iter()
        .filter(|point| point.at_s >= from_s)
        .copied()
        .collect();
    let thin: Vec<(f64, f64)> = thin_out(&chosen, TREND_POINTS)
        .iter()
        .map(|point| (point.at_s, point.value.bytes))
        .collect();
    let (Some(line), Some((begin, _)), Some((end, value))) =
        (trend::line(&thin), thin.first(), thin.last())
    else {
        return Err(NoLeak::TooShort);
    };
    let rise = line.slope * (end - begin);
    if rise < -4.0 * line.scatter && rise < 0.0 {
        return Err(NoLeak::Uneven);
    }
    let lately = (end - begin) / 8.0;
    let expected = line.slope * lately;
    let before = thin
        .iter()
        .rev()
        .find(|(at, _)| *at <= end - lately)
        .map_or(*value, |(_, value)| *value);
    let jump = thin
        .windows(2)
        .filter_map(|pair| match pair {
            [(_, one), (_, two)] => Some((two - one).abs()),
            _ => None,
        })
        .fold(0.0, f64::max);
    if expected > 4.0 * line.scatter && expected > 2.0 * jump && value - before < 0.3 * expected {
        return Err(NoLeak::Stopped(lately));
    }
    Ok(())
}
