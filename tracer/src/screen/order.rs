//! In what order processes and sites stand, and which of them are left out. Made once for a report or a key, never for a frame.

use std::cmp::{Ordering, Reverse};

use super::history::{Base, History, ProcessKey};
use crate::report::{Process, Report, Site, SiteKind, Verdict, callers, function, unnamed};

/// What processes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessSort {
    Verdict,
    Memory,
    Growth,
    Inuse,
    Name,
    Pid,
}

impl ProcessSort {
    pub(super) const ALL: [Self; 6] = [
        Self::Verdict,
        Self::Memory,
        Self::Growth,
        Self::Inuse,
        Self::Name,
        Self::Pid,
    ];

    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Memory => "memory",
            Self::Growth => "growth",
            Self::Inuse => "in use",
            Self::Name => "name",
            Self::Pid => "pid",
        }
    }
}

/// What sites are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SiteSort {
    Verdict,
    Inuse,
    Growth,
    Blocks,
    Allocates,
    Age,
}

impl SiteSort {
    pub(super) const ALL: [Self; 6] = [
        Self::Verdict,
        Self::Inuse,
        Self::Growth,
        Self::Blocks,
        Self::Allocates,
        Self::Age,
    ];

    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Inuse => "in use",
            Self::Growth => "growth",
            Self::Blocks => "blocks",
            Self::Allocates => "new per second",
            Self::Age => "oldest",
        }
    }
}

/// The one after another, round and round; before it if `back`.
pub(super) fn next<S: Copy + PartialEq>(all: &[S], current: S, back: bool) -> S {
    let place = all.iter().position(|sort| *sort == current).unwrap_or(0);
    let step = if back { all.len().saturating_sub(1) } else { 1 };
    let next = (place + step) % all.len().max(1);
    all.get(next).copied().unwrap_or(current)
}

/// The worst verdict first.
fn rank(verdict: Verdict) -> usize {
    let place = Verdict::ALL.iter().position(|other| *other == verdict);
    place.unwrap_or(Verdict::ALL.len())
}

/// The greatest first.
fn greatest(first: f64, second: f64) -> Ordering {
    second.total_cmp(&first)
}

/// The growth of what may leak; of others it is of no matter to their order.
fn worry(verdict: Verdict, growth: f64) -> f64 {
    if matches!(verdict, Verdict::Leaking | Verdict::WarmingUp) {
        growth
    } else {
        0.0
    }
}

/// Whether nothing of a process is worth a line where lines are few.
fn is_quiet(process: &Process) -> bool {
    process.inuse_bytes == 0
        && process.verdict != Verdict::Leaking
        && process.verdict != Verdict::WarmingUp
        && !kernel_leaks(process)
}

/// Whether what it makes the kernel hold leaks.
pub(super) fn kernel_leaks(process: &Process) -> bool {
    process
        .kernel
        .as_ref()
        .is_some_and(crate::report::ProcessKernel::leaks)
}

/// What decides over a list of processes.
#[derive(Clone, Copy)]
pub(super) struct ProcessOrder<'a> {
    pub(super) sort: ProcessSort,
    pub(super) is_reversed: bool,
    pub(super) filter: &'a str,
    pub(super) is_folded: bool,
    /// Changes since it count, not levels.
    pub(super) base: Option<&'a Base>,
}

/// Places of processes, and how many are folded away.
pub(super) fn processes(report: &Report, order: ProcessOrder<'_>) -> (Vec<u32>, usize) {
    let mut folded = 0;
    let mut rows: Vec<(u32, &Process)> = (0..)
        .zip(&report.processes)
        .filter(|(_, process)| {
            let wanted = order.filter.is_empty() || process_matches(process, order.filter);
            let is_folded = wanted && order.is_folded && is_quiet(process);
            folded += usize::from(is_folded);
            wanted && !is_folded
        })
        .collect();
    let levels = |process: &Process| match order.base {
        Some(base) => base.process(process),
        None => (
            i64::try_from(process.rss_bytes).unwrap_or(i64::MAX),
            i64::try_from(process.inuse_bytes).unwrap_or(i64::MAX),
        ),
    };
    rows.sort_by(|(_, first), (_, second)| {
        let key = |process: &Process| (Reverse(levels(process).0), ProcessKey::of(process));
        let order_by = match order.sort {
            ProcessSort::Verdict => {
                let judged = |process: &Process| {
                    let leaks = kernel_leaks(process) || process.verdict == Verdict::Leaking;
                    (!leaks, rank(process.verdict), process.exited)
                };
                judged(first).cmp(&judged(second)).then_with(|| {
                    let worry = |one: &Process| worry(one.verdict, one.rss_growth_bytes_per_s);
                    greatest(worry(first), worry(second))
                })
            }
            ProcessSort::Memory => Reverse(levels(first).0).cmp(&Reverse(levels(second).0)),
            ProcessSort::Growth => {
                greatest(first.rss_growth_bytes_per_s, second.rss_growth_bytes_per_s)
            }
            ProcessSort::Inuse => Reverse(levels(first).1).cmp(&Reverse(levels(second).1)),
            ProcessSort::Name => first.comm.cmp(&second.comm),
            ProcessSort::Pid => first.pid.cmp(&second.pid),
        };
        let order_by = order_by.then_with(|| key(first).cmp(&key(second)));
        if order.is_reversed {
            order_by.reverse()
        } else {
            order_by
        }
    });
    (rows.into_iter().map(|(place, _)| place).collect(), folded)
}

fn process_matches(process: &Process, filter: &str) -> bool {
    contains(&process.comm, filter)
        || contains(&process.cgroup, filter)
        || contains(process.verdict.name(), filter)
        || process.pid.to_string() == filter
        || process
            .program
            .as_deref()
            .is_some_and(|program| contains(program, filter))
}

/// Whether a text has another in it, which is in lower case.
fn contains(text: &str, lower: &str) -> bool {
    if !text.is_ascii() || !lower.is_ascii() {
        return text.to_lowercase().contains(lower);
    }
    let (text, lower) = (text.as_bytes(), lower.as_bytes());
    lower.is_empty()
        || text
            .windows(lower.len())
            .any(|window| window.eq_ignore_ascii_case(lower))
}

/// What decides over a list of sites.
#[derive(Clone, Copy)]
pub(super) struct SiteOrder<'a> {
    pub(super) sort: SiteSort,
    pub(super) is_reversed: bool,
    pub(super) filter: &'a str,
    pub(super) is_folded: bool,
    pub(super) base: Option<&'a Base>,
    pub(super) history: &'a History,
    /// The process whose they are; all of them if none is given.
    pub(super) process: Option<ProcessKey>,
}

/// Goroutines fewer than this at a place are folded, as in the report for people.
const FEW_GOROUTINES: u64 = 8;

/// Whether a site holds nothing that would be worth a line.
fn is_empty(site: &Site) -> bool {
    if site.kind == SiteKind::Goroutines {
        return site.inuse_objects < FEW_GOROUTINES;
    }
    site.inuse_bytes == 0 && site.inuse_objects == 0
}

/// Places of sites, and how many are folded away.
pub(super) fn sites(report: &Report, order: SiteOrder<'_>) -> (Vec<u32>, usize) {
    let mut folded = 0;
    let is_of = |site: &Site| {
        order.process.is_none_or(|process| {
            (process.pid, process.incarnation) == (site.pid, site.incarnation)
        })
    };
    // What is sorted by is worked out once for each, not for each comparison.
    let mut rows: Vec<(SiteRank, u32)> = (0..)
        .zip(&report.sites)
        .filter(|(_, site)| {
            let wanted =
                is_of(site) && (order.filter.is_empty() || site_matches(site, order.filter));
            let is_folded = wanted && order.is_folded && is_empty(site);
            folded += usize::from(is_folded);
            wanted && !is_folded
        })
        .map(|(place, site)| (SiteRank::of(report, site, &order), place))
        .collect();
    rows.sort_by(|first, second| {
        let by = first.0.compare(&second.0);
        let by = if order.is_reversed { by.reverse() } else { by };
        by.then(first.1.cmp(&second.1))
    });
    (rows.into_iter().map(|(_, place)| place).collect(), folded)
}

/// What a site's place in the order rests on: the least rank first, then the greatest value, then the most bytes.
struct SiteRank {
    rank: usize,
    value: f64,
    bytes: i64,
}

impl SiteRank {
    fn of(report: &Report, site: &Site, order: &SiteOrder<'_>) -> Self {
        let (bytes, objects) = match order.base {
            Some(base) => base.site(site),
            None => (
                i64::try_from(site.inuse_bytes).unwrap_or(i64::MAX),
                i64::try_from(site.inuse_objects).unwrap_or(i64::MAX),
            ),
        };
        let (rank, value) = match order.sort {
            SiteSort::Verdict => {
                let rank = if site.has_lost() {
                    0
                } else {
                    rank(site.verdict)
                };
                // Pages hold what others hold, too.
                let rank = rank * 2 + usize::from(site.kind == SiteKind::Pages);
                (rank, worry(site.verdict, site.growth_bytes_per_s))
            }
            SiteSort::Inuse => (0, 0.0),
            SiteSort::Growth => (0, site.growth_bytes_per_s),
            SiteSort::Blocks => (0, objects as f64),
            SiteSort::Allocates => (0, order.history.allocates(report, site).0),
            SiteSort::Age => (0, site.oldest_age_s),
        };
        Self { rank, value, bytes }
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.rank
            .cmp(&other.rank)
            .then_with(|| greatest(self.value, other.value))
            .then_with(|| other.bytes.cmp(&self.bytes))
    }
}

/// Whether a site has the text in its verdict, or in a function, source file or module of its callers.
fn site_matches(site: &Site, filter: &str) -> bool {
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| contains(name, filter));
    contains(site.verdict.name(), filter)
        || site.types.iter().any(|of| contains(&of.name, filter))
        || callers(site).iter().any(|frame| {
            named(&frame.file)
                || named(&frame.module)
                || match function(frame) {
                    Some(name) => contains(name, filter),
                    None => contains(&unnamed(frame), filter),
                }
        })
}

#[cfg(test)]
mod tests {
    use super::{ProcessSort, contains, next};

    #[test]
    fn sorts_go_round() {
        assert_eq!(
            next(&ProcessSort::ALL, ProcessSort::Pid, false),
            ProcessSort::Verdict
        );
        assert_eq!(
            next(&ProcessSort::ALL, ProcessSort::Verdict, true),
            ProcessSort::Pid
        );
    }

    #[test]
    fn filters_do_not_mind_the_case() {
        assert!(contains("HandleRequest", "erequ"));
        assert!(contains("ÄRGER", "ärg"));
        assert!(!contains("short", "shorter"));
        assert!(contains("anything", ""));
    }
}
