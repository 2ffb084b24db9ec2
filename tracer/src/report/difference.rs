//! What changed between two reports, by stack.
//!
//! Owns when two stacks are the same: when their frames have the same names, source files and lines, or, without a name,
//! the same place in the same file. So a saved profile, a saved report and a running trace compare with each other, and
//! address space randomization does not matter. Sites with the same stack are taken together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::model::{MemoryPoint, Process, Report, ReportParts, SCHEMA, Site, SiteKind};
use super::names::base_name;
use super::pprof::profile;
use super::pprof::proto::{Location, Mapping, Profile};
use super::time::Timestamp;

/// What changed from one report to a later one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Tells the JSON of a difference from that of a report: `difference`.
    pub kind: String,
    /// The earlier report.
    pub base: Moment,
    /// The later one.
    pub new: Moment,
    /// The processes of the later report.
    pub processes: Vec<Process>,
    /// The memory of the earlier report's processes over time, where that tells it: profiles do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_before: Vec<MemoryBefore>,
    /// What changed in all, with what `changes` leaves out.
    pub total: Changed,
    /// Stacks whose figures changed; the greatest change of surviving bytes first, growth before shrinkage of the same
    /// size.
    pub changes: Vec<Change>,
    /// What `changes` leaves out.
    pub omitted: Changed,
}

/// The memory of a process of the earlier report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryBefore {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its memory over time, the oldest first; seconds since the earlier trace began.
    pub memory_series: Vec<MemoryPoint>,
}

/// One of the two reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// When it was captured.
    pub captured_at: Timestamp,
    /// How long had been traced by then, seconds.
    pub duration_s: f64,
    /// Surviving bytes then, over all sites.
    pub inuse_bytes: u64,
    /// Surviving blocks then.
    pub inuse_objects: u64,
}

/// A sum of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How many stacks.
    pub stacks: u64,
    /// More surviving bytes.
    pub inuse_bytes_change: i64,
    /// More surviving blocks.
    pub inuse_objects_change: i64,
    /// More bytes allocated since the start.
    pub alloc_bytes_change: i64,
    /// More blocks allocated since the start.
    pub alloc_objects_change: i64,
}

/// A stack whose figures changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// In what way.
    pub change: ChangeKind,
    /// The process's name.
    pub comm: String,
    /// Surviving bytes in the earlier report.
    pub inuse_bytes_base: u64,
    /// By how much the figures changed.
    #[serde(flatten)]
    pub by: Figures,
    /// The site as it is in the later report; where it is gone from that, as it was, with figures of 0.
    #[serde(flatten)]
    pub site: Site,
}

/// Changes of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// More surviving bytes.
    pub inuse_bytes_change: i64,
    /// More surviving blocks.
    pub inuse_objects_change: i64,
    /// More bytes allocated since the start.
    pub alloc_bytes_change: i64,
    /// More blocks allocated since the start.
    pub alloc_objects_change: i64,
}

/// In what way a stack changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// Nothing of it survived before: new since.
    New,
    /// More survives.
    Grown,
    /// Less survives.
    Shrunk,
    /// Nothing of it survives any more.
    Gone,
    /// As much survives; blocks came and went.
    Churned,
}

impl ChangeKind {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Grown => "grown",
            Self::Shrunk => "shrunk",
            Self::Gone => "gone",
            Self::Churned => "churned",
        }
    }
}

/// What makes a stack of a process distinct, in both reports.
type Key<'a> = (u32, &'a str, Vec<u32>);

impl Difference {
    /// What changed from `base` to `new`.
    #[must_use]
    pub fn between(base: &Report, new: &Report) -> Self {
        let mut names = Names::default();
        let same = same_processes(base, new);
        let mut changes: BTreeMap<Key<'_>, (Change, Sums)> = BTreeMap::new();
        for (site, key) in names.keyed(new, &same) {
            let comm = key.1.to_owned();
            match changes.entry(key) {
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    let (_, sums) =
                        vacant.insert((Change::of(site.clone(), comm), Sums::default()));
                    sums.add(site, 1);
                }
                std::collections::btree_map::Entry::Occupied(mut other) => {
                    let (change, sums) = other.get_mut();
                    add(&mut change.site, site);
                    sums.add(site, 1);
                }
            }
        }
        for (site, key) in names.keyed(base, &same) {
            let comm = key.1.to_owned();
            let (change, sums) = changes.entry(key).or_insert_with(|| {
                let gone = Site {
                    inuse_bytes: 0,
                    inuse_objects: 0,
                    alloc_bytes: 0,
                    alloc_objects: 0,
                    inuse_bytes_low: 0,
                    inuse_bytes_high: 0,
                    oldest_age_s: 0.0,
                    ..site.clone()
                };
                (Change::of(gone, comm), Sums::default())
            });
            change.inuse_bytes_base = change.inuse_bytes_base.saturating_add(site.inuse_bytes);
            sums.add(site, -1);
        }
        let mut difference = Self {
            schema: SCHEMA,
            kind: "difference".to_owned(),
            base: Moment::of(base),
            new: Moment::of(new),
            processes: new.processes.clone(),
            memory_before: base
                .processes
                .iter()
                .filter(|process| !process.memory_series.is_empty())
                .map(|process| MemoryBefore {
                    pid: process.pid,
                    comm: process.comm.clone(),
                    memory_series: process.memory_series.clone(),
                })
                .collect(),
            total: Changed::default(),
            changes: changes
                .into_values()
                .map(|(change, sums)| Change {
                    by: sums.figures(),
                    ..change
                })
                .filter(|change| change.by != Figures::default())
                .collect(),
            omitted: Changed::default(),
        };
        for change in &mut difference.changes {
            change.decide();
            difference.total.add_change(change);
        }
        difference.sort();
        difference
    }

    /// The memory of a process of the later report in the earlier one: its own, or that of the only one of its name.
    #[must_use]
    pub fn memory_before(&self, process: &Process) -> &[MemoryPoint] {
        let namesakes = || {
            self.memory_before
                .iter()
                .filter(|before| before.comm == process.comm)
        };
        let own = namesakes().find(|before| before.pid == process.pid);
        let is_alone = namesakes().count() == 1
            && self
                .processes
                .iter()
                .filter(|other| other.comm == process.comm)
                .count()
                == 1;
        own.or_else(|| namesakes().next().filter(|_| is_alone))
            .map_or(&[], |before| &before.memory_series)
    }

    /// The changed sites as a report, their place in `changes` as their number.
    pub(super) fn as_report(&self) -> Report {
        let mut processes = self.processes.clone();
        for change in &self.changes {
            let (pid, incarnation) = (change.site.pid, change.site.incarnation);
            if !processes
                .iter()
                .any(|process| (process.pid, process.incarnation) == (pid, incarnation))
            {
                // It is gone from the later report.
                processes.push(Process {
                    pid,
                    incarnation,
                    comm: change.comm.clone(),
                    ..Process::default()
                });
            }
        }
        Report::new(ReportParts {
            captured_at: self.new.captured_at,
            duration_s: (self.new.captured_at.unix_ms() as f64
                - self.base.captured_at.unix_ms() as f64)
                / 1000.0,
            tier_reason: format!("what changed since {}", self.base.captured_at),
            processes,
            sites: (0..)
                .zip(&self.changes)
                .map(|(id, change)| Site {
                    id,
                    ..change.site.clone()
                })
                .collect(),
            ..ReportParts::default()
        })
    }

    fn sort(&mut self) {
        self.changes.sort_by_key(|change| {
            (
                Reverse(change.by.inuse_bytes_change.unsigned_abs()),
                Reverse(change.by.inuse_bytes_change),
                Reverse(change.by.alloc_bytes_change.unsigned_abs()),
                (change.site.pid, change.site.incarnation, change.site.id),
            )
        });
    }

    /// Keeps the `count` greatest changes; the others' sum is added to `omitted`.
    #[must_use]
    pub fn keep_top(mut self, count: usize) -> Self {
        for change in self.changes.drain(count.min(self.changes.len())..) {
            self.omitted.add_change(&change);
        }
        self
    }
}

impl Moment {
    fn of(report: &Report) -> Self {
        let total = report.total();
        Self {
            captured_at: report.captured_at,
            duration_s: report.duration_s,
            inuse_bytes: total.inuse_bytes,
            inuse_objects: total.inuse_objects,
        }
    }
}

/// Two starts so far apart are those of two traces, seconds: reports say when they were captured to a millisecond.
const SAME_START_S: f64 = 2.0;

impl Difference {
    /// Whether the reports are known to be of two traces, each of which counted from a start of its own.
    #[must_use]
    pub fn of_two_traces(&self) -> bool {
        let [base, new] = [&self.base, &self.new].map(|moment| {
            // Profiles of other programs may not say for how long they were taken.
            (moment.duration_s > 0.0)
                .then(|| moment.captured_at.unix_ms() as f64 / 1000.0 - moment.duration_s)
        });
        matches!((base, new), (Some(base), Some(new)) if (base - new).abs() > SAME_START_S)
    }
}

impl Changed {
    /// Adds the stack of a change; of one of pages, which are in no sum, that there is one.
    fn add_change(&mut self, change: &Change) {
        if change.site.kind == SiteKind::Pages {
            self.stacks += 1;
        } else {
            self.add(&change.by);
        }
    }

    /// Adds one stack.
    pub(super) fn add(&mut self, by: &Figures) {
        self.stacks += 1;
        for (sum, part) in [
            (&mut self.inuse_bytes_change, by.inuse_bytes_change),
            (&mut self.inuse_objects_change, by.inuse_objects_change),
            (&mut self.alloc_bytes_change, by.alloc_bytes_change),
            (&mut self.alloc_objects_change, by.alloc_objects_change),
        ] {
            *sum = sum.saturating_add(part);
        }
    }
}

/// The figures of one stack while sites are added and taken away: wide enough that none of them saturates on the way, in whatever
/// order they come.
#[derive(Clone, Copy, Default)]
struct Sums([i128; 4]);

impl Sums {
    fn add(&mut self, site: &Site, sign: i128) {
        let parts = [
            site.inuse_bytes,
            site.inuse_objects,
            site.alloc_bytes,
            site.alloc_objects,
        ];
        for (sum, part) in self.0.iter_mut().zip(parts) {
            *sum += i128::from(part) * sign;
        }
    }

    fn figures(self) -> Figures {
        let [inuse_bytes, inuse_objects, alloc_bytes, alloc_objects] = self
            .0
            .map(|sum| sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
        Figures {
            inuse_bytes_change: inuse_bytes,
            inuse_objects_change: inuse_objects,
            alloc_bytes_change: alloc_bytes,
            alloc_objects_change: alloc_objects,
        }
    }
}

impl Change {
    fn of(site: Site, comm: String) -> Self {
        Self {
            change: ChangeKind::Churned,
            comm,
            inuse_bytes_base: 0,
            by: Figures::default(),
            site,
        }
    }

    fn decide(&mut self) {
        let more = self.by.inuse_bytes_change;
        self.change = if more == 0 {
            ChangeKind::Churned
        } else if self.inuse_bytes_base == 0 {
            ChangeKind::New
        } else if self.site.inuse_bytes == 0 {
            ChangeKind::Gone
        } else if more > 0 {
            ChangeKind::Grown
        } else {
            ChangeKind::Shrunk
        };
    }
}

/// Adds the figures of a site with the same stack.
fn add(sum: &mut Site, site: &Site) {
    for (sum, part) in [
        (&mut sum.inuse_bytes, site.inuse_bytes),
        (&mut sum.inuse_objects, site.inuse_objects),
        (&mut sum.alloc_bytes, site.alloc_bytes),
        (&mut sum.alloc_objects, site.alloc_objects),
        (&mut sum.inuse_bytes_low, site.inuse_bytes_low),
        (&mut sum.inuse_bytes_high, site.inuse_bytes_high),
    ] {
        *sum = sum.saturating_add(part);
    }
    sum.oldest_age_s = sum.oldest_age_s.max(site.oldest_age_s);
    // No infinity: JSON has none.
    sum.growth_bytes_per_s =
        (sum.growth_bytes_per_s + site.growth_bytes_per_s).clamp(f64::MIN, f64::MAX);
}

/// The ids that mean the same program in both reports. Of other processes, the name alone has to do: a service that was
/// started anew is compared with itself.
fn same_processes(base: &Report, new: &Report) -> HashSet<u32> {
    let before: HashSet<(u32, &str)> = base
        .processes
        .iter()
        .map(|process| (process.pid, process.comm.as_str()))
        .collect();
    new.processes
        .iter()
        .filter(|process| before.contains(&(process.pid, process.comm.as_str())))
        .map(|process| process.pid)
        .collect()
}

/// The texts of frames, as numbers.
#[derive(Default)]
struct Names {
    numbers: HashMap<String, u32>,
}

impl Names {
    /// The sites of a report with what makes them distinct. The profile of a report has a sample for each site, in the
    /// same order, and says of a frame what any profile can say.
    fn keyed<'a>(&mut self, report: &'a Report, same: &HashSet<u32>) -> Vec<(&'a Site, Key<'a>)> {
        let comms: HashMap<(u32, u32), &str> = report
            .processes
            .iter()
            .map(|process| ((process.pid, process.incarnation), process.comm.as_str()))
            .collect();
        let profile = profile(report);
        let stacks = self.stacks(&profile);
        report
            .sites
            .iter()
            .zip(stacks)
            .map(|(site, stack)| {
                let comm = comms
                    .get(&(site.pid, site.incarnation))
                    .copied()
                    .unwrap_or_default();
                let pid = if same.contains(&site.pid) {
                    site.pid
                } else {
                    0
                };
                (site, (pid, comm, stack))
            })
            .collect()
    }

    fn stacks(&mut self, profile: &Profile) -> Vec<Vec<u32>> {
        let mappings: HashMap<u64, &Mapping> = profile
            .mapping
            .iter()
            .map(|mapping| (mapping.id, mapping))
            .collect();
        let names: HashMap<u64, (i64, i64)> = profile
            .function
            .iter()
            .map(|function| (function.id, (function.name, function.filename)))
            .collect();
        let locations: HashMap<u64, u32> = profile
            .location
            .iter()
            .map(|location| {
                let mapping = mappings.get(&location.mapping_id).copied();
                let text = text(profile, location, mapping, &names);
                let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
                (location.id, *self.numbers.entry(text).or_insert(next))
            })
            .collect();
        profile
            .sample
            .iter()
            .map(|sample| {
                sample
                    .location_id
                    .iter()
                    .filter_map(|id| locations.get(id).copied())
                    .collect()
            })
            .collect()
    }
}

/// What makes a location distinct.
fn text(
    profile: &Profile,
    location: &Location,
    mapping: Option<&Mapping>,
    names: &HashMap<u64, (i64, i64)>,
) -> String {
    let mut text = String::new();
    for line in &location.line {
        let (name, file) = names.get(&line.function_id).copied().unwrap_or_default();
        text.push_str(&format!(
            "{}\0{}\0{}\n",
            profile.string(name),
            profile.string(file),
            line.line
        ));
    }
    if text.is_empty() {
        let (module, offset) = mapping.map_or(("", location.address), |mapping| {
            let offset = location
                .address
                .wrapping_sub(mapping.memory_start)
                .wrapping_add(mapping.file_offset);
            (base_name(profile.string(mapping.filename)), offset)
        });
        text = format!("{module}+{offset:#x}");
    }
    text
}

#[cfg(test)]
mod tests;
