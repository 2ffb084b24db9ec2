//! What the screen remembers of earlier reports: how each site's bytes went, how fast blocks come now, and the snapshot that
//! later ones are compared with. All of it by the numbers that a trace gives its sites.

use std::collections::HashMap;

use crate::report::{Process, Report, Site, SiteKind, Tier, Timestamp};

/// A process, told apart from others that had its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ProcessKey {
    pub(super) pid: u32,
    pub(super) incarnation: u32,
}

impl ProcessKey {
    pub(super) fn of(process: &Process) -> Self {
        Self {
            pid: process.pid,
            incarnation: process.incarnation,
        }
    }
}

/// A site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SiteKey {
    pub(super) process: ProcessKey,
    kind: SiteKind,
    pub(super) id: u64,
}

impl SiteKey {
    pub(super) fn of(site: &Site) -> Self {
        Self {
            process: ProcessKey {
                pid: site.pid,
                incarnation: site.incarnation,
            },
            kind: site.kind,
            id: site.id,
        }
    }
}

/// So many points of each site are kept; then every second one is dropped.
const POINTS: usize = 96;

/// The rate of new blocks is over at least so long, seconds: of a moment it would only flicker.
const RATE_OVER_S: f64 = 5.0;

/// Two reports whose traces began so far apart are of different traces, milliseconds.
const SAME_START_MS: f64 = 5000.0;

/// When the trace of a report began, milliseconds since 1970.
fn began(report: &Report) -> f64 {
    report.captured_at.unix_ms() as f64 - report.duration_s * 1000.0
}

/// Bytes and blocks that a site had allocated at a time.
#[derive(Debug, Default)]
struct Mark {
    at_s: f64,
    allocated: HashMap<SiteKey, (u64, u64)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    began: f64,
    times: Vec<f64>,
    bytes: HashMap<SiteKey, Vec<u64>>,
    /// The older is what rates are measured from.
    marks: [Mark; 2],
}

impl History {
    /// Takes a report in. Whether it is of another trace than those before, which are forgotten then.
    pub(super) fn record(&mut self, report: &Report) -> bool {
        let is_other = !self.times.is_empty() && (began(report) - self.began).abs() > SAME_START_MS;
        if is_other || self.times.is_empty() {
            *self = Self {
                began: began(report),
                ..Self::default()
            };
        }
        let now = report.duration_s;
        if self.times.last().is_some_and(|last| now <= *last) {
            return is_other;
        }
        let before = self.times.len();
        self.times.push(now);
        for site in &report.sites {
            let key = SiteKey::of(site);
            let series = match self.bytes.get_mut(&key) {
                Some(series) => series,
                // Most sites of a busy machine never hold anything when it is looked.
                None if site.inuse_bytes == 0 => continue,
                None => self.bytes.entry(key).or_default(),
            };
            // A site that is new held nothing before.
            series.resize(before, 0);
            series.push(site.inuse_bytes);
        }
        // Of those that are not told of any more nothing is shown.
        self.bytes.retain(|_, series| series.len() > before);
        if self.times.len() >= POINTS {
            halve(&mut self.times);
            self.bytes.values_mut().for_each(halve);
        }
        let [_, newer] = &self.marks;
        if newer.allocated.is_empty() || now - newer.at_s >= RATE_OVER_S {
            let mark = Mark {
                at_s: now,
                allocated: report
                    .sites
                    .iter()
                    .map(|site| (SiteKey::of(site), (site.alloc_bytes, site.alloc_objects)))
                    .collect(),
            };
            self.marks.swap(0, 1);
            self.marks[1] = mark;
        }
        is_other
    }

    /// The bytes of a site in use over time, the oldest first.
    pub(super) fn series(&self, site: &SiteKey) -> Vec<(f64, u64)> {
        let series = self.bytes.get(site).map(Vec::as_slice).unwrap_or_default();
        self.times
            .iter()
            .copied()
            .zip(series.iter().copied())
            .collect()
    }

    /// Bytes and blocks that a site allocates each second now. In windows that is not seen: there it is the mean of the trace.
    pub(super) fn allocates(&self, report: &Report, site: &Site) -> (f64, f64) {
        let is_estimated = report.tier == Tier::Sampled && site.kind == SiteKind::Heap;
        let [older, newer] = &self.marks;
        let mark = if older.allocated.is_empty() {
            newer
        } else {
            older
        };
        let elapsed = report.duration_s - mark.at_s;
        let then = mark.allocated.get(&SiteKey::of(site));
        let (bytes, objects, elapsed) = match then {
            Some((bytes, objects)) if !is_estimated && elapsed >= 0.5 => (
                site.alloc_bytes.saturating_sub(*bytes),
                site.alloc_objects.saturating_sub(*objects),
                elapsed,
            ),
            // Go counts from its program's beginning.
            _ if matches!(site.kind, SiteKind::Go | SiteKind::Goroutines) => return (0.0, 0.0),
            _ => (site.alloc_bytes, site.alloc_objects, report.duration_s),
        };
        if elapsed > 0.0 {
            (bytes as f64 / elapsed, objects as f64 / elapsed)
        } else {
            (0.0, 0.0)
        }
    }
}

/// Drops every second value; the newest stays.
fn halve<T>(values: &mut Vec<T>) {
    let mut keep = values.len().is_multiple_of(2);
    values.retain(|_| {
        keep = !keep;
        keep
    });
}

/// A snapshot that later reports are compared with.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) at: Timestamp,
    /// Seconds of the trace by then.
    pub(super) at_s: f64,
    pub(super) inuse_bytes: u64,
    /// Resident bytes, and bytes in use.
    processes: HashMap<ProcessKey, (u64, u64)>,
    /// Bytes and blocks in use.
    sites: HashMap<SiteKey, (u64, u64)>,
}

impl Base {
    pub(super) fn of(report: &Report) -> Self {
        let of_process = |process: &Process| {
            (
                ProcessKey::of(process),
                (process.rss_bytes, process.inuse_bytes),
            )
        };
        let of_site = |site: &Site| (SiteKey::of(site), (site.inuse_bytes, site.inuse_objects));
        Self {
            at: report.captured_at,
            at_s: report.duration_s,
            inuse_bytes: report.total().inuse_bytes,
            processes: report.processes.iter().map(of_process).collect(),
            sites: report.sites.iter().map(of_site).collect(),
        }
    }

    /// By how much a process's resident memory and its bytes in use have changed.
    pub(super) fn process(&self, process: &Process) -> (i64, i64) {
        let (resident, inuse) = self
            .processes
            .get(&ProcessKey::of(process))
            .copied()
            .unwrap_or_default();
        (
            change(resident, process.rss_bytes),
            change(inuse, process.inuse_bytes),
        )
    }

    /// By how much a site's bytes and blocks in use have changed.
    pub(super) fn site(&self, site: &Site) -> (i64, i64) {
        let (bytes, objects) = self
            .sites
            .get(&SiteKey::of(site))
            .copied()
            .unwrap_or_default();
        (
            change(bytes, site.inuse_bytes),
            change(objects, site.inuse_objects),
        )
    }
}

/// From one value to another, as far as the type goes.
pub(super) fn change(from: u64, to: u64) -> i64 {
    let more = i128::from(to) - i128::from(from);
    i64::try_from(more).unwrap_or(if more < 0 { i64::MIN } else { i64::MAX })
}
