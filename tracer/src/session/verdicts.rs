//! What the ledger is told at each look, and what it makes of the sites: levels every second, ages of the live blocks now
//! and then, verdicts for the report.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use leakscope_common::{HIT_SLOTS, UNKNOWN_FREE_SLOT, UNKNOWN_SITE};

use super::{Session, SiteLevels, Wanted, process::Traced};
use crate::{
    budget::Mode,
    kernel::{KernelError, monotonic_ns},
    ledger::{
        Alike, Cohorts, Judgement, Ledger, Limit, ProcessLevel, Room, SiteId, SiteOfProcess,
        ToldApart, judge_windows,
    },
    report::{ALL_SUPPRESSED, MemoryPoint, ReportParts, SiteKind},
    target::process::list_threads,
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

/// Where cgroups are mounted: version 2, and version 1's memory controller.
const CGROUPS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    ),
];

/// The windows of a process, for the verdicts of its sites.
struct SeenInWindows {
    cohorts: Cohorts,
    /// How well the watched blocks of each site can be told from others.
    told_apart: HashMap<SiteId, ToldApart>,
    /// Those of them that look alike.
    alike: Alike,
    /// Blocks that outlived their windows and went later.
    gone_later: f64,
    /// Since when every call has been seen again.
    exact_since_ns: Option<u64>,
}

impl SeenInWindows {
    fn judge(&self, ledger: &Ledger, site: SiteId, incarnation: u32, now_ns: u64) -> Judgement {
        let mut seen = self.cohorts.windows_of(site, now_ns, &self.alike);
        let mut process = ledger.besides_windows(incarnation, seen.watched_s);
        process.frees = (process.frees - self.gone_later).max(0.0);
        let told_apart = self
            .told_apart
            .get(&site)
            .copied()
            .unwrap_or(ToldApart::ALL);
        let told_apart = self
            .exact_since_ns
            .and_then(|since_ns| ledger.resumed(site, since_ns, now_ns, &mut seen))
            .unwrap_or(told_apart);
        judge_windows(&seen.windows, seen.watched_s, told_apart, &process)
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
    ) -> Result<SiteLevels, KernelError> {
        let now_ns = monotonic_ns();
        let weight = 1 << self.probe.thin_shift();
        let wanted = if all { Wanted::All } else { Wanted::Of(ran) };
        let sites = self.joined_sites(&wanted)?;
        let stacks = self.stack_sites();
        let mapped = self.mapped_sites(u64::MAX);
        let memory = |traced: &Traced| traced.anonymous_bytes.saturating_add(traced.swapped_bytes);
        let sampled: HashMap<u32, u64> = self
            .processes
            .values()
            .filter_map(|traced| Some((traced.incarnation, traced.windows.inuse(memory(traced))?)))
            .collect();
        let mut levels: BTreeMap<u32, ProcessLevel> = BTreeMap::new();
        for (site, (incarnation, totals)) in &sites {
            self.ledger.observe(now_ns, *site, totals, weight);
            if stacks.contains(site) {
                // Address space, for the most part.
                continue;
            }
            let level = levels.entry(*incarnation).or_default();
            let balance = totals.alloc_bytes.wrapping_sub(totals.free_bytes) as i64 as f64;
            // Of what windows saw, totals do not say what is in use.
            if mapped.contains_key(site) || !sampled.contains_key(incarnation) {
                level.inuse_bytes += balance;
                level.most_inuse_bytes += balance;
            }
            level.alloc_bytes += totals.alloc_bytes as f64;
        }
        self.note_page_levels(now_ns, &sites);
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
            if let Some(bytes) = sampled.get(&traced.incarnation) {
                level.inuse_bytes += *bytes as f64;
                level.most_inuse_bytes += *bytes as f64;
            }
            level.anonymous_bytes = traced.anonymous_bytes as f64;
            level.resident_bytes = traced.rss_last.map_or(0.0, |(_, bytes)| bytes as f64);
            level.unknown_frees = if traced.windows.cohorts.windows() > 0 {
                // Of the windows so far.
                let hits = traced.windows.hits_before();
                hits.last().copied().unwrap_or(0) as f64
            } else {
                traced.unknown_frees as f64
            };
            self.ledger
                .observe_process(now_ns, traced.incarnation, level);
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
        let begun = Instant::now();
        let hidden = self.mapped_for_others();
        let stacks = &self.stacks;
        let mut ages = self.ledger.survey_ages(
            monotonic_ns(),
            1 << self.probe.thin_shift(),
            self.probe.site_slots(),
            |site| stacks.get(&site).map_or(site, |stack| stack.canonical),
        );
        self.probe.visit_blocks(|live| {
            // A time of birth of 0: a watched block of an earlier window.
            if live.block.born_ns != 0 {
                ages.note(&live.block);
            }
        })?;
        self.growth.note_ages(&mut ages, &hidden);
        self.pages.note_ages(&mut ages);
        ages.finish();
        self.surveyed_since(begun);
        Ok(())
    }

    /// The ages of the live blocks have been looked at; that began at this time.
    pub(super) fn surveyed_since(&mut self, begun: Instant) {
        let cost = begun.elapsed();
        let part = if self.is_of_machine() {
            SURVEY_PART_OF_MACHINE
        } else {
            SURVEY_PART
        };
        self.next_survey = begun + SURVEY_EVERY.max(cost.saturating_mul(part));
    }

    /// What the windows of a process saw, where not every call was seen.
    fn seen_in_windows(&self, pid: u32, now_ns: u64) -> Option<SeenInWindows> {
        let windows = &self.processes.get(&pid)?.windows;
        (windows.cohorts.windows() > 0).then(|| {
            let covered_until_ns = windows.opened_ns().unwrap_or(now_ns);
            let cohorts = windows.weighed(now_ns, covered_until_ns).cohorts;
            SeenInWindows {
                told_apart: cohorts.told_apart(),
                alike: cohorts.alike(),
                gone_later: cohorts.gone_later(),
                exact_since_ns: windows.exact_since_ns(),
                cohorts,
            }
        })
    }

    /// Judges the sites and processes of a report that still has all of its sites.
    pub(super) fn judge(&self, parts: &mut ReportParts) {
        let mut judged: BTreeMap<u32, Vec<SiteOfProcess>> = BTreeMap::new();
        let now_ns = monotonic_ns();
        let mut in_windows: BTreeMap<u32, Option<SeenInWindows>> = BTreeMap::new();
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
                    .or_insert_with(|| self.seen_in_windows(site.pid, now_ns));
                let judgement = match (site.kind, seen) {
                    (SiteKind::Heap, Some(seen)) => {
                        seen.judge(&self.ledger, id, site.incarnation, now_ns)
                    }
                    (SiteKind::Heap, None) => self.ledger.judge(id, site.incarnation),
                    _ => self.ledger.judge_mapping(id),
                };
                site.verdict = judgement.verdict;
                site.verdict_reason = judgement.reason;
                if site.sample.is_none() {
                    site.growth_bytes_per_s = judgement.growth_bytes_per_s;
                }
            }
            // Mappings hold the same memory.
            if site.kind == SiteKind::Pages {
                continue;
            }
            judged
                .entry(site.incarnation)
                .or_default()
                .push(SiteOfProcess {
                    verdict: site.verdict,
                    growth_bytes_per_s: site.growth_bytes_per_s,
                    inuse_bytes: site.inuse_bytes,
                });
        }
        for process in &mut parts.processes {
            let sites = judged.remove(&process.incarnation).unwrap_or_default();
            let room = room(self.proc_root(), &process.cgroup);
            let is_complete = !self.is_sampled(process.pid);
            let judgement = if self.options.mappings_only {
                self.ledger
                    .judge_anonymous(process.incarnation, &sites, room.as_ref())
            } else {
                self.ledger
                    .judge_process(process.incarnation, &sites, room.as_ref(), is_complete)
            };
            process.verdict = judgement.verdict;
            process.verdict_reason = judgement.reason;
            if sites.is_empty()
                && let Some(filters) = self.options.filters()
            {
                process.verdict_reason = format!("nothing that survives passes {filters}");
            }
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
                    at_s: point.at_s,
                    inuse_bytes: point.value.inuse_bytes.max(0.0) as u64,
                    rss_bytes: point.value.resident_bytes as u64,
                    anonymous_bytes: point.value.anonymous_bytes as u64,
                })
                .collect();
            // Estimates are renewed now and then; the last is of this report.
            if !is_complete && let Some(last) = process.memory_series.last_mut() {
                last.inuse_bytes = process.inuse_bytes;
            }
        }
    }
}

/// What a process of a cgroup may still take: what the nearest limit of the cgroup and those above it leaves, or what the machine
/// has.
fn room(proc_root: &Path, cgroup: &str) -> Option<Room> {
    let machine = fs::read_to_string(proc_root.join("meminfo"))
        .ok()
        .and_then(|text| available(&text))
        .map(|bytes| Room {
            bytes,
            limit: Limit::Machine,
        });
    let mut rooms: Vec<Room> = machine.into_iter().collect();
    for (root, limit, usage) in CGROUPS {
        let root = Path::new(root);
        let folder = root.join(cgroup.trim_start_matches('/'));
        for folder in folder
            .ancestors()
            .take_while(|folder| folder.starts_with(root))
        {
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(folder.join(name))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            // `max`, which is no number, is no limit.
            if let (Some(limit), Some(usage)) = (number(limit), number(usage)) {
                rooms.push(Room {
                    bytes: limit.saturating_sub(usage),
                    limit: Limit::Cgroup,
                });
            }
        }
    }
    // Version 1 writes a limit that is beyond any machine for none.
    rooms.into_iter().min_by_key(|room| room.bytes)
}

/// `MemAvailable` of `/proc/meminfo` (`proc_meminfo(5)`), bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::available;

    #[test]
    fn the_machine_says_what_it_has() {
        let text = "MemTotal:       16316412 kB\nMemFree:  1 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(available(text), Some(12_345_678 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB"), None);
    }
}
