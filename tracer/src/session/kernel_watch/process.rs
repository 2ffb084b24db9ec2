//! What followed processes make the kernel hold, over time: which are looked at, and how it is judged.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    time::Duration,
};

use super::KernelWatch;
use crate::{
    kernel::{HeldByFiles, thread_cpu_time},
    kernel_memory::{DescriptorKinds, HoldingKind, Holdings, count_descriptors, limit, read_kinds},
    ledger::{LevelHistory, LevelJudgement, LevelRules, Unit},
    report::{DescriptorKind, Holding, ProcessKernel, Verdict},
    session::process::Traced,
};

/// Between reports, so much of a look is spent on processes: the rest is looked at the next time.
const SPENT_AT_A_LOOK: Duration = Duration::from_micros(800);

/// Where a process has as many descriptors as before, the rest is looked at every so many times.
const DETAILS_EVERY: u32 = 4;

/// In a report, so much is spent on kinds of descriptors.
const SPENT_ON_KINDS: Duration = Duration::from_millis(500);

/// A process's descriptors are looked at one by one where they have changed by so many.
const CHANGED: f64 = 16.0;

/// The same where few processes are traced, or it has so many.
const FEW_PROCESSES: usize = 24;
const MANY_DESCRIPTORS: u64 = 256;

/// Between reports the kinds are looked at again where there are so many times as many, for their growth.
const GROWN: u64 = 2;

/// A change of less says nothing: things, bytes.
const FEW_THINGS: f64 = 16.0;
const FEW_BYTES: f64 = 1_048_576.0;

/// Why what grows is not called a leak.
const TOUCHED: &str = "it grows; memory that is touched for the first time counts too";
const FOLLOWS: &str = "it grows with the memory that the process maps";
const OF_USER: &str = "it grows; signals of all processes of the user count";

/// What a process makes the kernel hold, over time.
#[derive(Debug, Default)]
pub(super) struct ProcessLevels {
    levels: BTreeMap<HoldingKind, LevelHistory>,
    kinds: BTreeMap<String, LevelHistory>,
    last_kinds: Option<DescriptorKinds>,
    looks: u32,
    limit: Option<u64>,
}

impl ProcessLevels {
    fn observe(&mut self, at_s: f64, kind: HoldingKind, value: u64) {
        // What is not there and never was takes no room.
        if value > 0 || self.levels.contains_key(&kind) {
            let history = self.levels.entry(kind).or_default();
            history.observe(at_s, value as f64);
        }
    }

    /// Nothing but descriptors was looked at.
    fn repeat(&mut self, at_s: f64) {
        for (kind, history) in &mut self.levels {
            if *kind != HoldingKind::Descriptors
                && *kind != HoldingKind::Zombies
                && let Some((_, value)) = history.last()
            {
                history.observe(at_s, value);
            }
        }
    }

    fn observe_kinds(&mut self, at_s: f64, found: DescriptorKinds) {
        // One number for both: some were opened since they were counted.
        self.observe(at_s, HoldingKind::Descriptors, found.open);
        for (kind, history) in &mut self.kinds {
            if !found.kinds.contains_key(kind) {
                history.observe(at_s, 0.0);
            }
        }
        for (kind, count) in &found.kinds {
            let history = self.kinds.entry(kind.clone()).or_default();
            history.observe(at_s, count.open as f64);
        }
        self.last_kinds = Some(found);
    }

    /// How many descriptors there were at the last look.
    fn now(&self) -> Option<u64> {
        let (_, value) = self.descriptors()?.last()?;
        Some(value as u64)
    }

    fn descriptors(&self) -> Option<&LevelHistory> {
        self.levels.get(&HoldingKind::Descriptors)
    }

    /// Whether there are so many more than when their kinds were looked at that it is worth another look.
    fn wants_kinds(&self) -> bool {
        let Some(history) = self.descriptors() else {
            return false;
        };
        let now = history.last().map_or(0.0, |(_, value)| value);
        match &self.last_kinds {
            None => history.change() >= CHANGED,
            Some(kinds) => now >= (kinds.open.saturating_mul(GROWN) as f64).max(CHANGED),
        }
    }

    pub(super) fn report(&self, runs: bool) -> ProcessKernel {
        let holdings = self.levels.iter().filter_map(|(kind, history)| {
            let (_, value) = history.last()?;
            let limit = self.limit.filter(|_| *kind == HoldingKind::Descriptors);
            let mut judged = judge(*kind, history, limit.filter(|_| runs));
            if value < 0.5 {
                judged.verdict = Verdict::Churn;
            }
            let value = value as u64;
            let is_bytes = kind.is_bytes();
            Some(Holding {
                kind: kind.name().to_owned(),
                objects: (!is_bytes).then_some(value),
                bytes: is_bytes.then_some(value),
                limit,
                growth_per_s: judged.growth_per_s,
                growth_per_s_low: judged.growth_low_per_s,
                growth_per_s_high: judged.growth_high_per_s,
                verdict: judged.verdict,
                verdict_reason: judged.reason,
            })
        });
        ProcessKernel {
            holdings: holdings.collect(),
            descriptor_kinds: self.report_kinds(),
        }
    }

    fn report_kinds(&self) -> Vec<DescriptorKind> {
        // Those of an earlier look would not add up to what there is now.
        let is_current = |found: &&DescriptorKinds| self.now() == Some(found.open);
        let Some(found) = self.last_kinds.as_ref().filter(is_current) else {
            return Vec::new();
        };
        let mut kinds: Vec<DescriptorKind> = found
            .kinds
            .iter()
            .map(|(kind, count)| {
                let history = self.kinds.get(kind);
                let judged = history.map(|history| judge(HoldingKind::Descriptors, history, None));
                DescriptorKind {
                    kind: kind.clone(),
                    open: count.open,
                    // Of one look there is no trend.
                    growth_per_s: judged
                        .filter(|_| history.is_some_and(|history| history.looks() > 1))
                        .map(|judged| judged.growth_per_s),
                    held_bytes: count.held_bytes,
                    entries: count.entries,
                    estimated: found.looked_at < found.open,
                }
            })
            .collect();
        kinds.sort_by(|one, two| (two.open, &one.kind).cmp(&(one.open, &two.kind)));
        kinds
    }
}

fn judge(kind: HoldingKind, history: &LevelHistory, limit: Option<u64>) -> LevelJudgement {
    let no_leak = match kind {
        HoldingKind::Descriptors
        | HoldingKind::Threads
        | HoldingKind::Zombies
        | HoldingKind::Timers
        | HoldingKind::LockedMemory
        | HoldingKind::PipeBuffers
        | HoldingKind::SocketQueues => None,
        HoldingKind::PageTables => Some(FOLLOWS),
        HoldingKind::SharedMemory | HoldingKind::HugePages => Some(TOUCHED),
        HoldingKind::QueuedSignals => Some(OF_USER),
    };
    history.judge(&LevelRules {
        unit: if kind.is_bytes() {
            Unit::Bytes
        } else {
            Unit::Objects
        },
        noise: if kind.is_bytes() {
            FEW_BYTES
        } else {
            FEW_THINGS
        },
        noise_share: 0.02,
        after_s: 0.0,
        no_leak,
        limit: limit.map(|limit| (limit as f64, "its limit")),
    })
}

impl KernelWatch {
    /// Looks at processes, as many as there is time for; at `all` that run, for a report.
    pub(super) fn look_at_processes(
        &mut self,
        proc_root: &Path,
        processes: &BTreeMap<u32, Traced>,
        all: bool,
        at_s: f64,
        mut held: impl FnMut(u32) -> Option<HeldByFiles>,
    ) {
        let followed: HashSet<u32> = processes
            .values()
            .map(|traced| traced.incarnation)
            .collect();
        self.processes
            .retain(|incarnation, _| followed.contains(incarnation));
        let begun = thread_cpu_time();
        let (before, after): (Vec<&Traced>, Vec<&Traced>) = processes
            .values()
            .filter(|traced| traced.ended.is_none())
            .partition(|traced| traced.pid <= self.cursor);
        for traced in after.into_iter().chain(before) {
            let levels = self.processes.entry(traced.incarnation).or_default();
            // A child that ends makes its parent hold more, which may sleep.
            levels.observe(at_s, HoldingKind::Zombies, self.zombies.of(traced.pid));
            if !all && thread_cpu_time().saturating_sub(begun) > SPENT_AT_A_LOOK {
                continue;
            }
            self.cursor = traced.pid;
            let Some(count) = count_descriptors(proc_root, traced.pid) else {
                continue;
            };
            let is_same = levels.now().is_some_and(|before| before == count);
            levels.observe(at_s, HoldingKind::Descriptors, count);
            levels.looks = levels.looks.wrapping_add(1);
            if is_same && !all && !levels.looks.is_multiple_of(DETAILS_EVERY) {
                levels.repeat(at_s);
                continue;
            }
            for (kind, value) in Holdings::read(proc_root, traced.pid).0 {
                levels.observe(at_s, kind, value);
            }
            if let Some(timers) = Holdings::timers(proc_root, traced.pid) {
                levels.observe(at_s, HoldingKind::Timers, timers);
            }
            if let Some(held) = held(traced.pid) {
                levels.observe(at_s, HoldingKind::PipeBuffers, held.pipes);
                levels.observe(at_s, HoldingKind::SocketQueues, held.sockets);
            }
            if !all
                && levels.wants_kinds()
                && let Some(found) = read_kinds(proc_root, traced.pid, false)
            {
                levels.observe_kinds(at_s, found);
            }
        }
    }

    /// Looks at the kinds of descriptors of processes that have many or ever more, for a report.
    pub(super) fn look_at_kinds(
        &mut self,
        proc_root: &Path,
        processes: &BTreeMap<u32, Traced>,
        at_s: f64,
        mut held: impl FnMut(u32) -> Option<HeldByFiles>,
    ) {
        let begun = thread_cpu_time();
        let mut wanted: HashMap<u32, (u32, f64)> = HashMap::new();
        let few = processes.len() <= FEW_PROCESSES;
        for traced in processes.values().filter(|traced| traced.ended.is_none()) {
            let Some(levels) = self.processes.get(&traced.incarnation) else {
                continue;
            };
            let Some(history) = levels.descriptors() else {
                continue;
            };
            let (_, open) = history.last().unwrap_or_default();
            if few || history.change() >= CHANGED || open >= MANY_DESCRIPTORS as f64 {
                wanted.insert(traced.incarnation, (traced.pid, history.change()));
            }
        }
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_by(|(_, (_, one)), (_, (_, two))| two.total_cmp(one));
        for (incarnation, (pid, _)) in wanted {
            if thread_cpu_time().saturating_sub(begun) > SPENT_ON_KINDS {
                break;
            }
            let Some(levels) = self.processes.get_mut(&incarnation) else {
                continue;
            };
            if let Some(mut found) = read_kinds(proc_root, pid, true) {
                if let Some(held) = held(pid) {
                    found.set_held("pipe", held.pipes);
                    found.set_held("socket", held.sockets);
                    // One number for both.
                    levels.observe(at_s, HoldingKind::PipeBuffers, held.pipes);
                    levels.observe(at_s, HoldingKind::SocketQueues, held.sockets);
                }
                levels.observe_kinds(at_s, found);
            }
            levels.limit = limit(proc_root, pid);
        }
    }
}
