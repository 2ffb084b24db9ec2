//! The verdict of a process: from its sites' verdicts and its memory over time, with a forecast. Pure.

use super::{
    flow::{rate_of, too_short},
    history::{ProcessHistory, ProcessLevel},
    series::{Point, thin_out},
    steady::SURE,
    trend,
    verdict::{Judgement, TREND_POINTS, Turnover, Verdict},
    windows::ProcessBesides,
};
use leakscope_model::units::{about, bytes, duration, rate};

/// What bounds a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The `memory.max` of its cgroup or of one above it.
    Cgroup,
    /// The machine's memory.
    Machine,
}

/// How much memory a process may still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// What ends it.
    pub limit: Limit,
}

/// What is known of a process's bytes in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// They are estimates, by what was seen in windows.
    Estimated,
    /// Every call was seen: they are known at every look.
    Counted,
    /// They are what collections leave of a heap of Go's.
    Collected,
}

/// A site of the process, judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteOfProcess {
    /// Its verdict.
    pub verdict: Verdict,
    /// Its growth, bytes per second.
    pub growth_bytes_per_s: f64,
    /// Its bytes in use.
    pub inuse_bytes: u64,
}

/// Nothing is forecast for longer than a year, seconds.
const FORECAST_S: f64 = 365.0 * 86_400.0;

/// Resident memory moves by pages and by what allocators keep: less than so many bytes says nothing.
const RESIDENT_NOISE: f64 = 1_048_576.0;

/// The growth of resident memory that bears out the growth of bytes in use is at least this share of it.
const BORNE_OUT: f64 = 0.5;

/// A process may be seen to take so long to free what it has before it ends, seconds.
const EXIT_TAKES_S: f64 = 3.0;

/// A site counts towards the process's verdict with at least this share of the bytes in use.
const COUNTS: f64 = 0.05;

/// A time below this says nothing to a reader, seconds.
const SHOWN_S: f64 = 0.1;

/// See [`ProcessHistory::late_anonymous`].
struct Late {
    /// Bytes per second.
    slope: f64,
    /// Bytes.
    grown: f64,
    /// How sure it is that it rises, standard deviations.
    rise: f64,
    /// It is neither chance nor noise.
    steady: bool,
}

impl ProcessHistory {
    /// What is freed of the blocks from before the trace in so many seconds, by the second half of them: a cache that is
    /// turned over soon is through by then.
    pub(super) fn turnover(&self, last_s: f64) -> Turnover {
        let mut points = self.points();
        if let Some(end_s) = self.end_s() {
            // What it frees on its way out makes place for nothing.
            points.retain(|point| point.at_s <= end_s - EXIT_TAKES_S);
        }
        let Some(now) = points.last() else {
            return Turnover::default();
        };
        let Some(then) = points
            .iter()
            .rev()
            .find(|point| point.at_s <= now.at_s - last_s / 2.0)
            .or(points.first())
        else {
            return Turnover::default();
        };
        let inuse = now.value.inuse_bytes - then.value.inuse_bytes;
        let resident = now.value.anonymous_bytes - then.value.anonymous_bytes;
        let frees = (now.value.unknown_frees - then.value.unknown_frees).max(0.0);
        Turnover {
            frees: 2.0 * frees,
            counted: frees,
            over_s: now.at_s - then.at_s,
            borne_out: inuse > RESIDENT_NOISE && resident > BORNE_OUT * inuse,
        }
    }

    /// For how long it has been looked at, seconds.
    pub(super) fn watched_s(&self) -> f64 {
        let points = self.points();
        match (points.first(), points.last()) {
            (Some(first), Some(last)) => last.at_s - first.at_s,
            _ => 0.0,
        }
    }

    /// See [`super::Ledger::judge_process`].
    pub(super) fn judge(
        &self,
        sites: &[SiteOfProcess],
        room: Option<&Room>,
        in_use: InUse,
    ) -> Judgement {
        // What has ended takes no more.
        let room = room.filter(|_| self.end_s().is_none());
        let points = thin_out(&self.points(), TREND_POINTS);
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Judgement::default();
        };
        let observed = last.at_s - first.at_s;
        let inuse: Vec<(f64, f64)> = points
            .iter()
            .map(|point| (point.at_s, point.value.inuse_bytes))
            .collect();
        let is_complete = in_use != InUse::Estimated;
        let growth = if is_complete {
            trend::line(&inuse).map_or(0.0, |line| line.slope)
        } else {
            sites.iter().map(|site| site.growth_bytes_per_s).sum()
        };
        let with = |verdict, reason| Judgement {
            verdict,
            reason,
            growth_bytes_per_s: growth,
        };

        let leaks: Vec<&SiteOfProcess> = sites
            .iter()
            .filter(|site| site.verdict == Verdict::Leaking)
            .collect();
        if !leaks.is_empty() {
            let together: f64 = leaks.iter().map(|site| site.growth_bytes_per_s).sum();
            let mut reason = match leaks.len() {
                1 => "one site leaks".to_owned(),
                several => format!("{several} sites leak"),
            };
            // What was lost once and is not lost any more has no rate.
            if let Some(rate) = rate(together) {
                reason.push_str(", ");
                reason.push_str(&rate);
            }
            if let Some(forecast) = room.and_then(|room| forecast(room, together)) {
                reason.push_str(&forecast);
            }
            return Judgement {
                growth_bytes_per_s: growth.max(together),
                ..with(Verdict::Leaking, reason)
            };
        }
        let resident = is_complete
            .then(|| self.unexplained(growth * observed, in_use))
            .flatten();
        let all: u64 = sites.iter().map(|site| site.inuse_bytes).sum();
        let weighs = |verdict| {
            let part: u64 = sites
                .iter()
                .filter(|site| site.verdict == verdict)
                .map(|site| site.inuse_bytes)
                .sum();
            part as f64 / all.max(1) as f64
        };
        if sites.is_empty() {
            return with(
                Verdict::InsufficientData,
                "no allocation was seen".to_owned(),
            );
        }
        if let Some(resident) = resident {
            return with(Verdict::WarmingUp, resident);
        }
        // What grows decides; then what there is most of.
        if weighs(Verdict::WarmingUp) >= COUNTS {
            return with(
                Verdict::WarmingUp,
                format!(
                    "no leak confirmed yet; {} at sites still growing",
                    live_bytes(weighs(Verdict::WarmingUp))
                ),
            );
        }
        let (plateau, churn, unknown) = (
            weighs(Verdict::Plateau),
            weighs(Verdict::Churn),
            weighs(Verdict::InsufficientData),
        );
        let inuse = bytes(all);
        let time = duration(observed);
        if all == 0 && unknown_only(sites) {
            with(
                Verdict::InsufficientData,
                "too little was seen to judge it".to_owned(),
            )
        } else if unknown > plateau + churn {
            with(
                Verdict::InsufficientData,
                if observed < SHOWN_S {
                    format!("too little was seen to judge most of the {inuse} in use")
                } else {
                    format!("too little was seen in {time} to judge most of the {inuse} in use")
                },
            )
        } else if plateau >= churn && all > 0 {
            with(
                Verdict::Plateau,
                format!("no site grows any more; {inuse} in use after {time}"),
            )
        } else {
            with(
                Verdict::Churn,
                format!("blocks come and go; {inuse} in use after {time}"),
            )
        }
    }

    /// See [`super::Ledger::judge_anonymous`].
    pub(super) fn judge_anonymous(
        &self,
        mappings: &[SiteOfProcess],
        room: Option<&Room>,
    ) -> Judgement {
        if mappings.iter().any(|site| site.verdict == Verdict::Leaking) {
            return self.judge(mappings, room, InUse::Counted);
        }
        let room = room.filter(|_| self.end_s().is_none());
        let points = self.points();
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Judgement::default();
        };
        let observed = duration(last.at_s - first.at_s);
        let Some(late) = self.late_anonymous() else {
            return Judgement {
                reason: too_short(last.at_s - first.at_s),
                ..Judgement::default()
            };
        };
        if late.steady {
            let mut reason = format!(
                "anonymous memory grows, {}, and does not level off so far; which calls of an allocator it is, another tier tells",
                rate_of(late.slope)
            );
            if let Some(forecast) = room.and_then(|room| forecast(room, late.slope)) {
                reason.push_str(&forecast);
            }
            return Judgement {
                verdict: Verdict::WarmingUp,
                reason,
                growth_bytes_per_s: late.slope,
            };
        }
        Judgement {
            verdict: Verdict::Plateau,
            reason: format!(
                "anonymous memory does not grow any more: {} after {observed}",
                bytes(last.value.anonymous_bytes as u64)
            ),
            growth_bytes_per_s: late.slope,
        }
    }

    /// How anonymous memory has changed in the second half of the time: what a process that was just attached to touches at first says
    /// nothing. `None` for too few looks.
    fn late_anonymous(&self) -> Option<Late> {
        let points = thin_out(&self.points(), TREND_POINTS);
        let (first, last) = points.first().zip(points.last())?;
        let middle = f64::midpoint(first.at_s, last.at_s);
        let late: Vec<(f64, f64)> = points
            .iter()
            .filter(|point| point.at_s >= middle)
            .map(|point| (point.at_s, point.value.anonymous_bytes))
            .collect();
        if late.len() < 8 {
            return None;
        }
        let line = trend::line(&late)?;
        let values: Vec<f64> = late.iter().map(|(_, value)| *value).collect();
        let grown = line.slope * (last.at_s - middle);
        let rise = trend::rise(&values);
        Some(Late {
            slope: line.slope,
            grown,
            rise,
            steady: rise > SURE && grown >= RESIDENT_NOISE.max(4.0 * line.scatter),
        })
    }

    /// See [`super::Ledger::besides_windows`].
    pub(super) fn besides_windows(&self, watched_s: f64) -> ProcessBesides {
        let turnover = self.turnover(watched_s);
        let (slope, rise) = self
            .late_anonymous()
            .map_or((0.0, 0.0), |late| (late.slope, late.rise));
        let points = self.points();
        let part = |from: f64, length: f64| {
            let (first, last) = points.first().zip(points.last())?;
            let from_s = first.at_s + from * (last.at_s - first.at_s);
            let until_s = from_s + length * (last.at_s - first.at_s);
            let looks: Vec<Point<ProcessLevel>> = points
                .iter()
                .filter(|point| (from_s..=until_s).contains(&point.at_s))
                .copied()
                .collect();
            let looks: Vec<(f64, f64)> = thin_out(&looks, TREND_POINTS)
                .iter()
                .map(|point| (point.at_s, point.value.anonymous_bytes))
                .collect();
            trend::line(&looks).map(|line| line.slope)
        };
        let part = |from, length| part(from, length).unwrap_or_default();
        ProcessBesides {
            frees: turnover.frees,
            // Twice a number has twice its deviation.
            frees_error: 2.0 * turnover.counted.sqrt(),
            counted: turnover.counted,
            counted_over_s: turnover.over_s,
            memory_bytes_per_s: slope,
            memory_before_bytes_per_s: [part(0.0, 0.25), part(0.25, 0.25)],
            memory_last_bytes_per_s: part(0.875, 0.125),
            memory_rise: rise,
            others_bytes_per_s: 0.0,
        }
    }

    /// How fast anonymous memory grows by now, bytes per second; `None` where it does not grow steadily.
    pub(super) fn anonymous_growth(&self) -> Option<f64> {
        self.late_anonymous()
            .filter(|late| late.steady)
            .map(|late| late.slope)
    }

    /// A sentence where resident memory grows steadily, and the bytes in use do not.
    fn unexplained(&self, inuse_growth: f64, in_use: InUse) -> Option<String> {
        let late = self.late_anonymous()?;
        if !late.steady || inuse_growth > BORNE_OUT * late.grown {
            return None;
        }
        let grows = rate_of(late.slope);
        Some(if in_use == InUse::Collected {
            // How much it keeps of what, is not read.
            format!(
                "resident memory grows {grows}, and what collections leave of Go's heap does not: blocks that wait for the next collection, pages that the runtime keeps, free or used in part, or memory beside its heap"
            )
        } else {
            format!(
                "resident memory grows {grows} and the bytes in use do not: fragmentation, mappings, or memory touched for the first time"
            )
        })
    }
}

/// `all live bytes are`, `73 % of the live bytes are`.
fn live_bytes(share: f64) -> String {
    if share >= 0.995 {
        "all live bytes are".to_owned()
    } else {
        format!("{:.0} % of the live bytes are", 100.0 * share)
    }
}

fn unknown_only(sites: &[SiteOfProcess]) -> bool {
    sites
        .iter()
        .all(|site| site.verdict == Verdict::InsufficientData)
}

/// When the room will be used up.
fn forecast(room: &Room, bytes_per_s: f64) -> Option<String> {
    let seconds = room.bytes as f64 / bytes_per_s;
    (bytes_per_s > 0.0 && seconds < FORECAST_S).then(|| {
        let what = match room.limit {
            Limit::Cgroup => "the cgroup's memory limit is reached",
            Limit::Machine => "memory runs out",
        };
        format!("; at this rate {what} in about {}", about(seconds))
    })
}

#[cfg(test)]
mod tests {
    use super::{InUse, SiteOfProcess};
    use crate::{Ledger, ProcessLevel, Verdict};

    #[test]
    fn a_go_process_was_told_that_its_heap_falls_to_pieces() {
        let mut ledger = Ledger::new(0);
        for second in 1..=60_u32 {
            let level = ProcessLevel {
                inuse_bytes: 2e7,
                anonymous_bytes: 3e7 + 3e5 * f64::from(second),
                resident_bytes: 4e7 + 3e5 * f64::from(second),
                ..ProcessLevel::default()
            };
            ledger.observe_process(u64::from(second) * 1_000_000_000, 1, level);
        }
        let sites = [SiteOfProcess {
            verdict: Verdict::Plateau,
            growth_bytes_per_s: 0.0,
            inuse_bytes: 20_000_000,
        }];
        let reason = |in_use| ledger.judge_process(1, &sites, None, in_use).reason;
        assert!(reason(InUse::Counted).contains("fragmentation"));
        let of_go = reason(InUse::Collected);
        assert!(
            of_go.contains("resident memory grows +293 KiB/s"),
            "{of_go}"
        );
        assert!(of_go.contains("the next collection"), "{of_go}");
        assert!(!of_go.contains("fragmentation"), "{of_go}");
        assert!(!reason(InUse::Estimated).contains("resident"));
    }
}
