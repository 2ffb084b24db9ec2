//! What the ledger is told at each look, and what it makes of the sites: levels every second, ages of the live blocks now
//! and then, verdicts for the report.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use leakscope_common::{HIT_SLOTS, SiteTotals, UNKNOWN_FREE_SLOT, UNKNOWN_SITE};

use super::{
    Session, SiteLevels, Wanted, moment::Moment, pooled::ALLOCATOR, process::Traced,
    report::collector::until_collected, room::room,
};
use crate::{
    budget::Mode,
    kernel::{KernelError, monotonic_ns, thread_cpu_time},
    ledger::{
        Alike, ArraySite, Cohorts, Counted, InUse, Judgement, LEAK_AFTER_S, Ledger, ProcessLevel,
        SiteId, SiteOfProcess, ToldApart, Unreachable, Verdict, are_enough, filled, judge_windows,
    },
    process::procfs::list_threads,
    report::{
        ALL_SUPPRESSED, Evidence, MemoryPoint, Process, Reachability, ReportParts, Site, SiteKind,
    },
    units::duration,
};

/// The ages of the live blocks are looked at so often at most: about the width of a site's first cohorts.
const SURVEY_EVERY: Duration = Duration::from_secs(2);

/// Looking at them takes at most one part in so many of our time.
const SURVEY_PART: u32 = 100;

/// The same where the whole machine is traced: most of it is idle.
const SURVEY_PART_OF_MACHINE: u32 = 4000;

/// So many points of a process's memory are reported.
const MEMORY_POINTS: usize = 120;

// The slot of unknown frees is the last.
const _: () = assert!(UNKNOWN_FREE_SLOT + 1 == HIT_SLOTS);

/// The windows of a process, for the verdicts of its sites.
struct SeenInWindows {
    /// As of when, CLOCK_MONOTONIC nanoseconds.
    now_ns: u64,
    cohorts: Cohorts,
    /// How well the watched blocks of each site can be told from others.
    told_apart: HashMap<SiteId, ToldApart>,
    /// Those of them that look alike.
    alike: Alike,
    /// Blocks that outlived their windows and went later.
    gone_later: f64,
    /// Since when every call has been seen again.
    exact_since_ns: Option<u64>,
    /// What was counted of its blocks.
    counted: Option<Counted>,
}

impl SeenInWindows {
    /// Whether a leak could be named by them.
    fn are_enough(&self) -> bool {
        // All windows are seen from any site, also from one that did nothing in them.
        let seen = self
            .cohorts
            .windows_of(UNKNOWN_SITE, self.now_ns, &self.alike);
        are_enough(&seen.windows, seen.watched_s)
    }

    /// Judges a site, beside others that take so many bytes a second; whether a leak could be named.
    fn judge(
        &self,
        ledger: &Ledger,
        site: SiteId,
        incarnation: u32,
        others_bytes_per_s: f64,
    ) -> (Judgement, bool) {
        let mut seen = self.cohorts.windows_of(site, self.now_ns, &self.alike);
        let mut process = ledger.besides_windows(incarnation, seen.watched_s);
        process.others_bytes_per_s = others_bytes_per_s;
        process.frees = (process.frees - self.gone_later).max(0.0);
        process.frees_error = process.frees_error.hypot(self.gone_later.sqrt());
        process.counted = (process.counted - self.gone_later).max(0.0);
        let told_apart = self
            .told_apart
            .get(&site)
            .copied()
            .unwrap_or(ToldApart::ALL);
        let told_apart = self
            .exact_since_ns
            .and_then(|since_ns| ledger.resumed(site, since_ns, self.now_ns, &mut seen))
            .unwrap_or(told_apart);
        let counted = self.counted.as_ref();
        let counted = counted.and_then(|counted| counted.sites.get(&site));
        let judgement = judge_windows(&seen.windows, seen.watched_s, told_apart, &process, counted);
        (judgement, are_enough(&seen.windows, seen.watched_s))
    }
}

/// A look, as the ledger is told of it: of a process that has ended, what it ended with, at its end and once.
pub(super) struct Observed {
    now_ns: u64,
    /// Incarnations that have ended, and when; `None` of what the ledger knows already.
    ended: HashMap<u32, Option<u64>>,
}

impl Observed {
    fn new<'a>(moment: &Moment, processes: impl Iterator<Item = &'a Traced>) -> Self {
        Self {
            now_ns: moment.ns(),
            ended: processes
                .filter(|traced| traced.ended.is_some())
                .map(|traced| {
                    let end_ns = moment.of(traced.ended).ns();
                    (traced.incarnation, (!traced.is_closed).then_some(end_ns))
                })
                .collect(),
        }
    }

    /// Notes a site's totals.
    pub(super) fn note(
        &self,
        ledger: &mut Ledger,
        site: SiteId,
        incarnation: u32,
        totals: &SiteTotals,
        weight: u64,
    ) {
        match self.ended.get(&incarnation) {
            None => ledger.observe(self.now_ns, site, totals, weight),
            Some(Some(end_ns)) => ledger.observe_end(*end_ns, site, totals, weight),
            Some(None) => {}
        }
    }

    fn note_process(&self, ledger: &mut Ledger, incarnation: u32, level: ProcessLevel) {
        match self.ended.get(&incarnation) {
            None => ledger.observe_process(self.now_ns, incarnation, level),
            Some(Some(end_ns)) => ledger.observe_process_end(*end_ns, incarnation, level),
            Some(None) => {}
        }
    }
}

impl Session {
    /// Tells the ledger what every site and process has now; gives the sites' totals.
    ///
    /// What is known of processes that did not run since the last look holds: only those that `ran` are asked for, or `all`.
    pub(super) fn note_levels(
        &mut self,
        ran: &HashSet<u32>,
        all: bool,
        moment: &Moment,
    ) -> Result<SiteLevels, KernelError> {
        self.note_stacks();
        let now = Observed::new(moment, self.processes.values());
        let weight = 1 << self.probe.thin_shift();
        let wanted = if all { Wanted::All } else { Wanted::Of(ran) };
        let sites = self.joined_sites(&wanted)?;
        let mapped = self.mapped_sites(u64::MAX);
        let memory = |traced: &Traced| traced.anonymous_bytes.saturating_add(traced.swapped_bytes);
        // Of what windows saw, totals do not say what is in use.
        let mut sampled: HashMap<u32, f64> = self
            .processes
            .values()
            .filter(|traced| traced.windows.is_estimated())
            .map(|traced| (traced.incarnation, 0.0))
            .collect();
        let mut levels: BTreeMap<u32, ProcessLevel> = BTreeMap::new();
        for (site, (incarnation, totals)) in &sites {
            let touched = self.stack_use.touched(*site);
            let totals = &touched.map_or(*totals, |touched| SiteTotals {
                alloc_bytes: touched,
                free_bytes: 0,
                ..*totals
            });
            now.note(&mut self.ledger, *site, *incarnation, totals, weight);
            if mapped.get(site).is_some_and(|(_, found)| found.by_looks) {
                self.ledger.note_found_by_looks(*site);
            }
            let level = levels.entry(*incarnation).or_default();
            let balance = totals.alloc_bytes.wrapping_sub(totals.free_bytes) as i64 as f64;
            match sampled.get_mut(incarnation) {
                Some(sum) if !mapped.contains_key(site) => *sum += balance,
                _ => {
                    level.inuse_bytes += balance;
                    level.most_inuse_bytes += balance;
                }
            }
            level.alloc_bytes += totals.alloc_bytes as f64;
        }
        self.note_page_levels(&now, &sites);
        for traced in self.processes.values_mut() {
            if ran.contains(&traced.incarnation) {
                let threads = list_threads(&self.proc_root, traced.pid).unwrap_or_default();
                let hits = self.probe.hits_of(traced.pid, &threads, traced.incarnation);
                traced.unknown_frees = hits.last().copied().unwrap_or(0);
                traced.hits = hits;
                for (sum, before) in traced.hits.iter_mut().zip(traced.windows.hits_before()) {
                    *sum = sum.saturating_add(*before);
                }
            }
            let mut level = levels.remove(&traced.incarnation).unwrap_or_default();
            if let Some(balance) = sampled.get(&traced.incarnation) {
                let memory = memory(traced);
                let bytes = traced.windows.inuse(memory, *balance) as f64;
                level.inuse_bytes += bytes;
                level.most_inuse_bytes += bytes;
            }
            let besides = self.go.inuse_bytes(traced.incarnation)
                + self.objects.grown_bytes(traced.incarnation);
            level.inuse_bytes += besides;
            level.most_inuse_bytes += besides;
            level.anonymous_bytes = traced.anonymous_bytes as f64;
            level.resident_bytes = traced.rss_last.map_or(0.0, |(_, bytes)| bytes as f64);
            level.unknown_frees = if traced.windows.cohorts.windows() > 0 {
                // Of the windows so far.
                let hits = traced.windows.hits_before();
                hits.last().copied().unwrap_or(0) as f64
            } else {
                traced.unknown_frees as f64
            };
            now.note_process(&mut self.ledger, traced.incarnation, level);
            traced.is_closed = traced.ended.is_some();
        }
        Ok(sites)
    }

    /// Whether there are blocks whose ages tell something: those of processes that are seen in windows stand in the live table while a window is
    /// open.
    pub(super) fn holds_blocks(&self) -> bool {
        self.options.mappings_only
            || self
                .processes
                .values()
                .any(|traced| traced.windows.controller.mode() == Mode::Exact)
    }

    /// Looks at the ages of all live blocks.
    pub(super) fn note_ages(&mut self) -> Result<(), KernelError> {
        let begun = thread_cpu_time();
        self.look_at_stacks();
        let hidden = self.mapped_for_others();
        let stacks = &self.stacks;
        let joined = |site| stacks.get(&site).map_or(site, |stack| stack.canonical);
        let mut ages = self.ledger.survey_ages(
            monotonic_ns(),
            1 << self.probe.thin_shift(),
            self.probe.site_slots(),
            joined,
        );
        self.probe.visit_blocks(|live| {
            // A time of birth of 0: a watched block of an earlier window.
            if live.block.born_ns != 0 {
                ages.note(&live.block);
            }
        })?;
        let used = |site| self.stack_use.share(joined(site));
        self.growth.note_ages(&mut ages, &hidden, used);
        self.pages.note_ages(&mut ages);
        ages.finish();
        self.surveyed_since(begun);
        Ok(())
    }

    /// The ages of the live blocks have been looked at; that began when our thread had taken so much processor time.
    pub(super) fn surveyed_since(&mut self, begun: Duration) {
        let cost = thread_cpu_time().saturating_sub(begun);
        let part = if self.is_of_machine() {
            SURVEY_PART_OF_MACHINE
        } else {
            SURVEY_PART
        };
        self.next_survey = Instant::now() + SURVEY_EVERY.max(cost.saturating_mul(part));
    }

    /// What the windows of a process saw, where not every call was seen.
    fn seen_in_windows(&self, pid: u32, moment: &Moment) -> Option<SeenInWindows> {
        let traced = self.processes.get(&pid)?;
        let windows = &traced.windows;
        (windows.cohorts.windows() > 0).then(|| {
            let moment = moment.of(traced.ended);
            let covered_until_ns = windows.opened_ns().unwrap_or(moment.ns());
            let cohorts = windows.weighed(&moment, covered_until_ns).cohorts;
            SeenInWindows {
                now_ns: moment.ns(),
                told_apart: cohorts.told_apart(),
                alike: cohorts.alike(),
                gone_later: cohorts.gone_later(),
                exact_since_ns: windows.exact_since_ns(),
                counted: windows.counted(&cohorts, moment.ns()),
                cohorts,
            }
        })
    }

    /// Why no leak of a process could have been named. `enough`: there were windows enough, if there were any.
    fn unjudged(&self, process: &Process, enough: bool) -> Option<String> {
        let traced = self.processes.get(&process.pid)?;
        if process.verdict == Verdict::Leaking {
            return None;
        }
        let probed = !process.probes.is_empty()
            || self.options.mappings_only
            || self.go.has_profile(process.incarnation)
            || self.go.sees_blocks(process.incarnation);
        if !probed && process.alloc_objects == 0 {
            let why = process.empty_reason.as_deref();
            return Some(why.unwrap_or("nothing could be attached to it").to_owned());
        }
        let is_complete = !self.is_sampled(process.pid)
            && !self.options.mappings_only
            && traced.windows.is_armed();
        if process.exited && is_complete && process.inuse_objects == 0 {
            // It freed all that it had allocated.
            return None;
        }
        let watched = self.ledger.watched_s(process.incarnation);
        if watched < LEAK_AFTER_S || !enough {
            return Some(format!(
                "{} of tracing are too few to name a leak{}",
                duration(watched),
                if watched < LEAK_AFTER_S {
                    format!(", which takes {LEAK_AFTER_S} s")
                } else {
                    " by, for calls were seen in few windows".to_owned()
                }
            ));
        }
        (process.verdict == Verdict::InsufficientData && process.inuse_objects > 0)
            .then(|| process.verdict_reason.clone())
    }

    /// Judges a site by what looks at the heap found, too.
    fn with_reachability(&self, id: SiteId, site: &mut Site, by_flow: Judgement) -> Judgement {
        let by_flow = self.with_holder(id, site, by_flow);
        let Some(found) = site.reachability.filter(|found| found.unreachable > 0) else {
            return by_flow;
        };
        if site.allocator.as_deref() == Some(ALLOCATOR) {
            return of_cycles(by_flow, &found);
        }
        let found = Unreachable {
            objects: found.unreachable,
            checked: found.checked,
            watched_s: self.ledger.watched_s(site.incarnation),
        };
        if found.is_leak() {
            site.evidence.push(Evidence::Unreachable {
                objects: found.objects,
                of: found.checked,
                watched_s: found.watched_s,
            });
        }
        found.judge(by_flow)
    }

    /// Whether a collector may still free blocks of a process.
    fn waits_for_collector(&self, incarnation: u32, pid: u32) -> bool {
        let watched_s = self.ledger.watched_s(incarnation);
        let traced = self.processes.get(&pid);
        traced.is_some_and(|traced| traced.waits_for_collector(watched_s))
    }

    /// Judges a site by the container that holds its blocks, where that is one.
    fn with_holder(&self, id: SiteId, site: &mut Site, by_flow: Judgement) -> Judgement {
        let held = self.heaps.held_by_one(site.incarnation, id);
        let Some((path, held)) =
            held.filter(|(_, held)| held.shrinks() && !site.holders.is_empty())
        else {
            return by_flow;
        };
        site.evidence.push(Evidence::Shrinks {
            path: path.to_vec(),
            before: held.before,
            objects: held.now,
        });
        held.judge(by_flow, &path.join(" <- "))
    }

    /// Where a process's memory grows and no site does, that may be an array which is filled.
    fn judge_filled(&self, sites: &mut [Site]) {
        let mut of_processes: HashMap<u32, Vec<usize>> = HashMap::new();
        for (place, site) in (0..).zip(sites.iter()) {
            if matches!(site.kind, SiteKind::Heap | SiteKind::Mapping) {
                of_processes
                    .entry(site.incarnation)
                    .or_default()
                    .push(place);
            }
        }
        for traced in self.processes.values() {
            let Some(of_process) = of_processes.get(&traced.incarnation) else {
                continue;
            };
            // What windows saw tells of no single blocks.
            let arrays: Vec<ArraySite> = of_process
                .iter()
                .filter_map(|place| sites.get(*place))
                .map(|site| ArraySite {
                    verdict: match site.verdict {
                        Verdict::Leaking => Verdict::Leaking,
                        verdict if site.kind == SiteKind::Heap && site.sample.is_none() => verdict,
                        _ => Verdict::InsufficientData,
                    },
                    growth_bytes_per_s: site.growth_bytes_per_s,
                    inuse_objects: site.inuse_objects,
                    inuse_bytes: site.inuse_bytes,
                    alloc_objects: site.alloc_objects,
                    alloc_bytes: site.alloc_bytes,
                    oldest_age_s: site.oldest_age_s,
                })
                .collect();
            let watched_s = self.ledger.watched_s(traced.incarnation);
            let memory = self.ledger.besides_windows(traced.incarnation, watched_s);
            if traced.ended.is_none()
                && !traced.waits_for_collector(watched_s)
                && let Some((place, judgement)) = filled(&arrays, &memory, watched_s)
                && let Some(site) = of_process
                    .get(place)
                    .and_then(|place| sites.get_mut(*place))
            {
                site.verdict = judgement.verdict;
                site.verdict_reason = judgement.reason;
                site.growth_bytes_per_s = judgement.growth_bytes_per_s;
            }
        }
    }

    /// Judges the sites and processes of a report that still has all of its sites.
    pub(super) fn judge(&self, parts: &mut ReportParts, moment: &Moment) {
        let mut judged: BTreeMap<u32, Vec<SiteOfProcess>> = BTreeMap::new();
        let mut pages: BTreeMap<u32, Vec<SiteOfProcess>> = BTreeMap::new();
        // Processes of which windows have seen enough.
        let mut enough: HashSet<u32> = HashSet::new();
        let mut in_windows: BTreeMap<u32, Option<SeenInWindows>> = BTreeMap::new();
        let mut grows: BTreeMap<u32, f64> = BTreeMap::new();
        for site in parts.sites.iter().filter(|site| site.sample.is_some()) {
            *grows.entry(site.pid).or_default() += site.growth_bytes_per_s;
        }
        for site in &mut parts.sites {
            let Ok(id) = SiteId::try_from(site.id) else {
                continue;
            };
            if id == UNKNOWN_SITE {
                "its blocks have many stacks".clone_into(&mut site.verdict_reason);
            } else {
                // Where calls were seen in windows, totals know nothing of what was freed in between.
                let seen = in_windows
                    .entry(site.pid)
                    .or_insert_with(|| self.seen_in_windows(site.pid, moment));
                let judgement = match (site.kind, seen) {
                    (SiteKind::Heap, _)
                        if let Some(known) = self.objects.judgement(site.incarnation, id) =>
                    {
                        known.clone()
                    }
                    (SiteKind::Heap, Some(seen)) => {
                        let (judgement, is_enough) = {
                            let all = grows.get(&site.pid).copied().unwrap_or_default();
                            let others = (all - site.growth_bytes_per_s).max(0.0);
                            seen.judge(&self.ledger, id, site.incarnation, others)
                        };
                        if is_enough {
                            enough.insert(site.pid);
                        }
                        judgement
                    }
                    (SiteKind::Heap, None) => self.ledger.judge(id, site.incarnation),
                    (SiteKind::Go | SiteKind::Goroutines, _) => self.go.judge(site.incarnation, id),
                    (SiteKind::Pages, _) => {
                        let stack = self.stacks.get(&id).map(|it| it.frames.as_slice());
                        let seen = self.ledger.judge_mapping(id);
                        self.go
                            .judge_pages(site.incarnation, stack.unwrap_or_default(), seen)
                    }
                    (SiteKind::Mapping, _) => self.judge_mapping(site, id),
                };
                let mut judgement = self.with_reachability(id, site, judgement);
                let is_reachable = site.reachability.is_none_or(|found| found.unreachable == 0);
                // Which files a process has mapped is looked up for those alone that it matters to.
                if judgement.verdict == Verdict::Leaking
                    && site.kind == SiteKind::Heap
                    && is_reachable
                    && self.waits_for_collector(site.incarnation, site.pid)
                {
                    judgement = until_collected(judgement);
                }
                site.verdict = judgement.verdict;
                site.verdict_reason = judgement.reason;
                if site.verdict == Verdict::Leaking && site.inuse_bytes == 0 {
                    site.verdict = Verdict::InsufficientData;
                    "nothing of it is in use".clone_into(&mut site.verdict_reason);
                }
                // One rate for a leak: that of its evidence.
                let has_rate = judgement.growth_bytes_per_s > 0.0;
                if site.sample.is_none() || site.verdict == Verdict::Leaking && has_rate {
                    site.growth_bytes_per_s = judgement.growth_bytes_per_s;
                } else if rests_on_few(site) {
                    // Its blocks are counted and stand for no others: neither do they tell of a rate.
                    site.growth_bytes_per_s = 0.0;
                }
            }
        }
        self.judge_filled(&mut parts.sites);
        for site in &parts.sites {
            if SiteId::try_from(site.id).is_err() {
                continue;
            }
            let of_process = SiteOfProcess {
                verdict: site.verdict,
                growth_bytes_per_s: site.growth_bytes_per_s,
                inuse_bytes: site.inuse_bytes,
            };
            let of = if site.kind == SiteKind::Pages {
                &mut pages
            } else {
                &mut judged
            };
            of.entry(site.incarnation).or_default().push(of_process);
        }
        // The ledger begins before all that runs is traced, the trace then.
        let before_s = self.ledger.seconds(moment.ns()) - moment.since(self.started).as_secs_f64();
        for process in &mut parts.processes {
            let mut sites = judged.remove(&process.incarnation).unwrap_or_default();
            // Mappings and blocks hold the same memory as pages, which count where nothing else tells of a leak.
            let leaks =
                |sites: &[SiteOfProcess]| sites.iter().any(|site| site.verdict == Verdict::Leaking);
            let pages = pages.remove(&process.incarnation).unwrap_or_default();
            if leaks(&pages) && !leaks(&sites) {
                sites = pages;
            }
            let room = room(self.proc_root(), &process.cgroup);
            let is_complete = !self.is_sampled(process.pid);
            let judgement = if self.options.mappings_only {
                self.ledger
                    .judge_anonymous(process.incarnation, &sites, room.as_ref())
            } else {
                let mut all = sites.clone();
                all.extend(self.go.besides(process.incarnation, &sites));
                let in_use = if !is_complete {
                    InUse::Estimated
                } else if self.go.is_known(process.incarnation) {
                    InUse::Collected
                } else {
                    InUse::Counted
                };
                self.ledger
                    .judge_process(process.incarnation, &all, room.as_ref(), in_use)
            };
            process.verdict = judgement.verdict;
            process.verdict_reason = judgement.reason;
            if sites.is_empty()
                && let Some(filters) = self.options.filters()
            {
                process.verdict_reason = format!("nothing that survives passes {filters}");
            }
            let seen = in_windows
                .entry(process.pid)
                .or_insert_with(|| self.seen_in_windows(process.pid, moment));
            let enough = enough.contains(&process.pid)
                || seen.as_ref().is_none_or(SeenInWindows::are_enough);
            process.unjudged = self.unjudged(process, enough);
            if let Some(reason) = process
                .empty_reason
                .as_ref()
                .filter(|reason| *reason == ALL_SUPPRESSED)
            {
                process.verdict_reason.clone_from(reason);
            }
            process.memory_series = self
                .ledger
                .memory(process.incarnation, MEMORY_POINTS)
                .into_iter()
                .map(|point| MemoryPoint {
                    at_s: (point.at_s - before_s).max(0.0),
                    inuse_bytes: point.value.inuse_bytes.max(0.0) as u64,
                    rss_bytes: point.value.resident_bytes as u64,
                    anonymous_bytes: point.value.anonymous_bytes as u64,
                })
                .collect();
            let (inuse, resident) = self.ledger.peaks(process.incarnation);
            process.peak_inuse_bytes = inuse.max(process.inuse_bytes);
            process.peak_rss_bytes = resident.max(process.rss_bytes);
            // Estimates are renewed now and then; the last is of this report.
            if !is_complete && let Some(last) = process.memory_series.last_mut() {
                last.inuse_bytes = process.inuse_bytes;
            }
        }
    }
}

/// What no root leads to waits for the collector of an interpreter; it leaks where there is ever more of it.
fn of_cycles(by_flow: Judgement, found: &Reachability) -> Judgement {
    if by_flow.verdict != Verdict::Leaking || found.unreachable * 2 < found.checked {
        return by_flow;
    }
    let reason = format!(
        "reference cycles that nobody collects: no root leads to {} of {} of its objects that were looked at; {}",
        found.unreachable, found.checked, by_flow.reason
    );
    Judgement { reason, ..by_flow }
}

/// Estimates that rest on so few blocks are of these alone.
const FEW: u64 = 2;

/// Whether a site's figures are of the blocks that windows saw, and stand for no others.
fn rests_on_few(site: &Site) -> bool {
    site.sample
        .as_ref()
        .is_some_and(|sample| sample.objects <= FEW)
}

#[cfg(test)]
mod tests {
    use super::{of_cycles, rests_on_few};
    use crate::{
        ledger::{Judgement, Verdict},
        report::{Reachability, Sample, Site},
    };

    #[test]
    fn objects_that_wait_for_their_collector_leak_only_where_there_are_ever_more() {
        let found = |unreachable| Reachability {
            checked: 10,
            unreachable,
            ..Reachability::default()
        };
        let of = |verdict| Judgement {
            verdict,
            ..Judgement::default()
        };
        let waiting = of_cycles(of(Verdict::Plateau), &found(10));
        assert_eq!(waiting, of(Verdict::Plateau));
        let named = of_cycles(of(Verdict::Leaking), &found(9));
        assert!(named.reason.contains("cycles that nobody collects"));
        let held = of_cycles(of(Verdict::Leaking), &found(1));
        assert_eq!(held, of(Verdict::Leaking));
    }

    #[test]
    fn one_block_showed_a_rate_beyond_the_growth_of_its_process() {
        let seen = |objects| Site {
            sample: Some(Sample {
                objects,
                ..Sample::default()
            }),
            ..Site::default()
        };
        assert!(rests_on_few(&seen(1)));
        assert!(!rests_on_few(&seen(3)));
        assert!(!rests_on_few(&Site::default()));
    }
}
