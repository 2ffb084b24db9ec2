//! The kernel's memory in a trace: when it is looked at, what that may cost, and how it stands in a report. Without a probe.

#[path = "kernel_watch/process.rs"]
mod process;
#[path = "kernel_watch/rank.rs"]
mod rank;
#[path = "kernel_watch/sites.rs"]
mod sites;
#[path = "kernel_watch/windows.rs"]
mod windows;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use leakscope_common::KernelSite;

use super::{Session, moment::Moment};
use crate::{
    kernel::{KernelCounts, thread_cpu_time},
    kernel_memory::{CgroupMemory, ClassKind, Machine, MemoryCgroup, Slab, Zombies, makes_slabs},
    ledger::{LevelHistory, LevelRules, Unit},
    report::{KernelLevel, KernelLevelKind, KernelMemory, KernelPart, KernelWindows, ReportParts},
    symbol::{AddressSpace, KernelSymbols},
};
use process::ProcessLevels;
use sites::{CacheFacts, Sites};
use windows::{Growing, Recent, Windows};

/// Where the kernel shows its caches, and where control groups are mounted.
const SYS: &str = "/sys";
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// How often the machine is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks at the machine, at processes, and for zombies each take at most one part in so many of a processor.
const LOOK_SHARE: u32 = 2000;

/// The same of followed processes.
const PROCESSES_EVERY: Duration = Duration::from_secs(1);

/// But there is a look this often.
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);

/// Children that were not waited for are looked for so often: every process of the machine is read.
const ZOMBIES_EVERY: Duration = Duration::from_secs(5);

/// Control groups that are followed at most.
const MOST_CGROUPS: usize = 256;

/// Machine-wide levels are judged later than a process's: others come and go meanwhile, seconds.
const MACHINE_AFTER_S: f64 = 120.0;

/// Unreclaimable by their flag, and yet freed with the inodes that the kernel takes back: an object for each.
const OF_INODES: [&str; 5] = [
    "lsm_inode_cache",
    "btrfs_delayed_node",
    "btrfs_extent_map",
    "btrfs_extent_buffer",
    "fscrypt_inode_info",
];

/// Why what grows is not called a leak.
const RECLAIMED: &str = "it grows, but the kernel frees it when memory is short";
const WITH_INODES: &str = "it grows with the inodes in the kernel's cache, and is freed with them";
const UNKNOWN: &str =
    "it grows; the kernel does not say whether it frees this when memory is short";
const OF_ONE_SIZE: &str = "it grows; all of the kernel allocates this size, for its caches too";
const BY_CACHE: &str = "it grows; the caches above say what of it";
const OF_USERS: &str = "it grows; memory of processes and caches of files are in it";

/// A cache over time.
#[derive(Debug)]
struct CacheLevel {
    now: Slab,
    history: LevelHistory,
    reclaimable: Option<bool>,
    recent: Recent,
}

/// A control group over time.
#[derive(Debug)]
struct CgroupLevel {
    now: CgroupMemory,
    history: LevelHistory,
}

/// What the kernel holds, over time.
#[derive(Debug)]
pub(super) struct KernelWatch {
    machine: Machine,
    next: Option<Instant>,
    processes_next: Option<Instant>,
    caches: BTreeMap<String, CacheLevel>,
    classes: BTreeMap<ClassKind, LevelHistory>,
    lines: BTreeMap<String, (u64, u64, LevelHistory)>,
    cgroups: BTreeMap<MemoryCgroup, CgroupLevel>,
    processes: HashMap<u32, ProcessLevels>,
    zombies: Zombies,
    zombies_due: Option<Instant>,
    /// The last process that was looked at in full.
    cursor: u32,
    windows: Windows,
    sites: Sites,
    symbols: KernelSymbols,
}

impl KernelWatch {
    pub(super) fn new(proc_root: &Path) -> Self {
        Self {
            machine: Machine::new(proc_root, Path::new(SYS)),
            next: None,
            processes_next: None,
            caches: BTreeMap::new(),
            classes: BTreeMap::new(),
            lines: BTreeMap::new(),
            cgroups: BTreeMap::new(),
            processes: HashMap::new(),
            zombies: Zombies::default(),
            zombies_due: None,
            cursor: 0,
            windows: Windows::new(),
            sites: Sites::default(),
            symbols: KernelSymbols::default(),
        }
    }

    /// Looks at the machine; tells which caches grow whose memory the kernel does not take back.
    fn look(&mut self, at_s: f64) -> Vec<Growing> {
        let mut growing = Vec::new();
        let found = self.machine.look();
        // A cache whose module is gone, or that is empty now, has fallen to nothing.
        for (name, level) in &mut self.caches {
            if !found.slabs.iter().any(|slab| slab.name == *name) {
                level.now.objects = 0;
                level.history.observe(at_s, 0.0);
            }
        }
        for slab in found.slabs {
            let machine = &mut self.machine;
            let level = self
                .caches
                .entry(slab.name.clone())
                .or_insert_with(|| CacheLevel {
                    now: slab.clone(),
                    history: LevelHistory::default(),
                    reclaimable: machine.is_reclaimable(&slab.name),
                    recent: Recent::default(),
                });
            level.history.observe(at_s, slab.objects as f64);
            let bytes_per_s = level.recent.note(at_s, &slab);
            if level.reclaimable == Some(false)
                && let Some(bytes_per_s) = bytes_per_s
            {
                growing.push(Growing {
                    name: slab.name.clone(),
                    bytes_per_s,
                });
            }
            level.now = slab;
        }
        for class in found.classes {
            let history = self.classes.entry(class.kind).or_default();
            history.observe(at_s, class.bytes as f64);
        }
        for line in found.lines.into_iter().flatten() {
            let level = self.lines.entry(line.place).or_default();
            (level.0, level.1) = (line.bytes, line.calls);
            level.2.observe(at_s, line.bytes as f64);
        }
        growing
    }

    fn look_at_cgroups(&mut self, at_s: f64, followed: &HashSet<MemoryCgroup>) {
        self.cgroups.retain(|cgroup, _| followed.contains(cgroup));
        for cgroup in followed.iter().take(MOST_CGROUPS) {
            let Some(now) = cgroup.read() else {
                continue;
            };
            let level = self
                .cgroups
                .entry(cgroup.clone())
                .or_insert_with(|| CgroupLevel {
                    now: CgroupMemory::default(),
                    history: LevelHistory::default(),
                });
            level.history.observe(at_s, now.kernel_bytes as f64);
            level.now = now;
        }
    }

    /// How it stands in a report.
    fn report(&self) -> KernelMemory {
        let caches = self.caches.values().map(|level| self.cache(level));
        let classes = self.classes.iter().filter_map(|(kind, history)| {
            let (_, bytes) = history.last()?;
            let no_leak = match kind {
                ClassKind::UnreclaimableSlabs => Some(BY_CACHE),
                ClassKind::ReclaimableSlabs => Some(RECLAIMED),
                ClassKind::SharedMemory => Some(OF_USERS),
                _ => None,
            };
            let noise = match kind {
                // It is what is left of all memory, and counters of the rest lag.
                ClassKind::OtherPages => 64 << 20,
                _ => 4 << 20,
            };
            Some(KernelLevel {
                kind: KernelLevelKind::Class,
                name: kind.name().to_owned(),
                reclaimable: *kind == ClassKind::ReclaimableSlabs,
                ..of_bytes(bytes as u64, noise, no_leak, history)
            })
        });
        let lines = self
            .lines
            .iter()
            .map(|(place, (bytes, calls, history))| KernelLevel {
                kind: KernelLevelKind::Line,
                name: place.clone(),
                objects: Some(*calls),
                ..of_bytes(*bytes, 1 << 20, Some(OF_USERS), history)
            });
        let cgroups = self.cgroups.iter().map(|(cgroup, level)| {
            // Version 1 counts caches with the rest.
            let no_leak = level.now.parts.is_empty().then_some(OF_USERS);
            KernelLevel {
                kind: KernelLevelKind::Cgroup,
                name: cgroup.path.clone(),
                parts: level
                    .now
                    .parts
                    .iter()
                    .map(|(name, bytes)| KernelPart {
                        name: (*name).to_owned(),
                        bytes: *bytes,
                    })
                    .collect(),
                ..of_bytes(level.now.kernel_bytes, 1 << 20, no_leak, &level.history)
            }
        });
        let levels = caches.chain(classes).chain(lines).chain(cgroups).collect();
        let (levels, omitted) = rank::ranked(levels);
        KernelMemory {
            levels,
            omitted,
            notes: self.machine.refused().to_vec(),
            sites: Vec::new(),
            windows: None,
        }
    }

    /// What is known of a cache, or of all caches of a size of kmalloc.
    fn facts(&self, name: &str) -> CacheFacts {
        let size = windows::kmalloc_size(name);
        let is_of = |other: &str| match size {
            Some(_) => windows::kmalloc_size(other) == size,
            None => other == name,
        };
        let levels = self.caches.values().filter(|level| is_of(&level.now.name));
        let mut facts = CacheFacts {
            shared_with: Vec::new(),
            no_leak: None,
            grows: false,
            objects: 0,
        };
        for level in levels {
            facts.objects = facts.objects.saturating_add(level.now.objects);
            facts.grows |= self.cache(level).grows();
        }
        if size.is_none() {
            let reclaimable = self.caches.get(name).and_then(|level| level.reclaimable);
            facts.shared_with = self.machine.shared_with(name);
            facts.no_leak = why_no_leak(name, reclaimable);
        }
        facts
    }

    fn cache(&self, level: &CacheLevel) -> KernelLevel {
        let slab = &level.now;
        let size = (slab.object_bytes as f64).max(1.0);
        let no_leak = why_no_leak(&slab.name, level.reclaimable);
        let judged = level.history.judge(&LevelRules {
            unit: Unit::Objects,
            // What processors keep at hand, and not less than some pages.
            noise: f64::max(256.0, 65_536.0 / size),
            noise_share: 0.02,
            after_s: MACHINE_AFTER_S,
            no_leak,
            limit: None,
        });
        KernelLevel {
            kind: KernelLevelKind::Cache,
            name: slab.name.clone(),
            shared_with: self.machine.shared_with(&slab.name),
            reclaimable: level.reclaimable.unwrap_or(true),
            bytes: slab.bytes(),
            objects: Some(slab.objects),
            object_bytes: Some(slab.object_bytes),
            growth_objects_per_s: Some(judged.growth_per_s),
            growth_bytes_per_s: judged.growth_per_s * size,
            growth_bytes_per_s_low: judged.growth_low_per_s * size,
            growth_bytes_per_s_high: judged.growth_high_per_s * size,
            verdict: judged.verdict,
            verdict_reason: judged.reason,
            parts: Vec::new(),
        }
    }
}

/// Why a cache is never called leaking; `None` where it may be.
fn why_no_leak(name: &str, reclaimable: Option<bool>) -> Option<&'static str> {
    match reclaimable {
        _ if OF_INODES.contains(&name) => Some(WITH_INODES),
        // `kmalloc-192`: file systems keep parts of what they cache there, unreclaimable by its flag.
        Some(false) if name.starts_with("kmalloc-") => Some(OF_ONE_SIZE),
        Some(false) => None,
        Some(true) => Some(RECLAIMED),
        None => Some(UNKNOWN),
    }
}

/// A level in bytes, judged, without a name.
fn of_bytes(bytes: u64, noise: u64, no_leak: Option<&str>, history: &LevelHistory) -> KernelLevel {
    let judged = history.judge(&LevelRules {
        unit: Unit::Bytes,
        noise: noise as f64,
        noise_share: 0.02,
        after_s: MACHINE_AFTER_S,
        no_leak,
        limit: None,
    });
    KernelLevel {
        bytes,
        growth_bytes_per_s: judged.growth_per_s,
        growth_bytes_per_s_low: judged.growth_low_per_s,
        growth_bytes_per_s_high: judged.growth_high_per_s,
        verdict: judged.verdict,
        verdict_reason: judged.reason,
        ..KernelLevel::default()
    }
}

impl Session {
    /// Looks at what the kernel holds, where that is watched and due, or at `all` of it.
    pub(super) fn look_at_kernel(&mut self, all: bool, moment: &Moment) {
        let Some(mut watch) = self.kernel_watch.take() else {
            return;
        };
        let now = Instant::now();
        let at_s = self.ledger.seconds(moment.ns());
        if all || watch.next.is_none_or(|next| now >= next) {
            let is_first = watch.next.is_none();
            let begun = thread_cpu_time();
            let growing = watch.look(at_s);
            watch.windows.note(growing, now);
            let followed: HashSet<MemoryCgroup> = self
                .processes
                .values()
                .filter(|traced| traced.ended.is_none())
                .filter_map(|traced| traced.memory_cgroup.clone())
                .collect();
            watch.look_at_cgroups(at_s, &followed);
            // The first look reads the names of caches, too, which later ones need not.
            let pause = if is_first {
                LOOK_EVERY
            } else {
                pause(begun, LOOK_EVERY)
            };
            watch.next = Some(now + pause);
            self.step_kernel_windows(&mut watch, now);
        } else if watch.windows.is_due(now) {
            self.step_kernel_windows(&mut watch, now);
        }
        if watch.zombies_due.is_none_or(|due| now >= due) {
            let begun = thread_cpu_time();
            watch.zombies = Zombies::read(&self.proc_root);
            watch.zombies_due = Some(now + pause(begun, ZOMBIES_EVERY));
        }
        if all || watch.processes_next.is_none_or(|next| now >= next) {
            let begun = thread_cpu_time();
            let probe = &mut self.probe;
            watch.look_at_processes(&self.proc_root, &self.processes, all, at_s, |pid| {
                probe.held_by_files(pid)
            });
            watch.processes_next = Some(now + pause(begun, PROCESSES_EVERY));
        }
        self.kernel_watch = Some(watch);
    }

    /// Opens, keeps or closes the window on the kernel's allocations, and takes note of what it has seen.
    fn step_kernel_windows(&mut self, watch: &mut KernelWatch, now: Instant) {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let allowed = self.options.budget * processors as f64;
        let running: HashSet<u32> = self
            .processes
            .values()
            .filter(|traced| traced.ended.is_none())
            .map(|traced| traced.incarnation)
            .collect();
        let mut others = HashMap::new();
        let mut ended = |site: &KernelSite| match (site.incarnation, site.tgid) {
            (0, 0) => false,
            // Not followed, or not yet.
            (0, tgid) => !*others
                .entry(tgid)
                .or_insert_with(|| self.proc_root.join(tgid.to_string()).exists()),
            (incarnation, _) => !running.contains(&incarnation),
        };
        watch
            .windows
            .step(&mut self.probe, now, allowed, &mut ended);
        let stacks = &self.stacks;
        let joined = |site| stacks.get(&site).map_or(site, |stack| stack.canonical);
        let gone = watch.windows.take_gone();
        watch.sites.let_go(&gone, ended, joined);
        if let Some(allocations) = self.probe.kernel_allocations() {
            let so_far = watch.windows.so_far();
            watch
                .sites
                .note(allocations, &so_far, &self.proc_root, joined);
        }
    }

    /// Takes the window on the kernel's allocations away, for good.
    pub(super) fn end_kernel_windows(&mut self) {
        if let Some(watch) = &mut self.kernel_watch {
            watch.windows.end(&mut self.probe);
        }
    }

    /// What windows on the kernel's allocations have counted.
    pub(super) fn kernel_counts(&self) -> KernelCounts {
        self.kernel_watch
            .as_ref()
            .map_or_else(KernelCounts::default, |watch| watch.windows.so_far().counts)
    }

    /// Where objects of the kernel are made, with names.
    fn describe_kernel_sites(
        &mut self,
        watch: &mut KernelWatch,
        parts: &ReportParts,
        kernel: &mut KernelMemory,
    ) {
        kernel
            .notes
            .extend(watch.windows.refused().map(str::to_owned));
        let so_far = watch.windows.so_far();
        if so_far.opened == 0 {
            return;
        }
        let passed = self.started.elapsed().as_secs_f64().max(1e-3);
        kernel.windows = Some(KernelWindows {
            opened: u64::from(so_far.opened),
            open_s: so_far.open_s,
            calls: so_far.counts.calls,
            followed: so_far.counts.stacks,
            cores: so_far.cost_s / passed,
        });
        let windows = &watch.windows;
        let holds = |pid, incarnation| {
            parts
                .processes
                .iter()
                .find(|process| (process.pid, process.incarnation) == (pid, incarnation))
                .and_then(|process| process.kernel.as_ref())
                .is_some_and(crate::report::ProcessKernel::leaks)
        };
        let symbols = &mut watch.symbols;
        symbols.learn(&self.proc_root, watch.sites.addresses());
        let is_of_slabs = |path: &[u64]| {
            path.iter().any(|address| {
                let frame = watch.symbols.frame(*address);
                frame.function.as_deref().is_some_and(makes_slabs)
            })
        };
        let told = watch.sites.told(
            |cache| windows.weight(cache),
            |name| watch.facts(name),
            holds,
            is_of_slabs,
        );
        let nothing = AddressSpace::default();
        for mut one in told {
            let path = one.path.iter().map(|address| watch.symbols.frame(*address));
            let mut frames: Vec<_> = path.collect();
            if let Some(stack) = self.stacks.get(&one.user_site) {
                let space = self
                    .processes
                    .get(&one.told.pid)
                    .filter(|traced| traced.incarnation == stack.incarnation)
                    .map_or(&nothing, |traced| &traced.space);
                frames.extend(self.resolver.stack(space, &stack.frames));
            }
            one.told.frames = frames;
            kernel.sites.push(one.told);
        }
        let hidden = watch.symbols.refused();
        kernel
            .notes
            .extend(hidden.map(|why| format!("functions of the kernel have no names: {why}")));
    }

    /// Puts it into a report.
    pub(super) fn describe_kernel(&mut self, parts: &mut ReportParts, moment: &Moment) {
        let Some(mut watch) = self.kernel_watch.take() else {
            return;
        };
        let mut kernel = watch.report();
        let at_s = self.ledger.seconds(moment.ns());
        let probe = &mut self.probe;
        watch.look_at_kinds(&self.proc_root, &self.processes, at_s, |pid| {
            probe.held_by_files(pid)
        });
        kernel.notes.extend(probe.held_unseen().map(str::to_owned));
        for process in &mut parts.processes {
            let levels = watch.processes.get(&process.incarnation);
            process.kernel = levels.map(|levels| levels.report(!process.exited));
        }
        self.describe_kernel_sites(&mut watch, parts, &mut kernel);
        parts.kernel = Some(kernel);
        self.kernel_watch = Some(watch);
    }
}

/// How long not to look again after a look that began when our thread had taken so much processor time.
fn pause(begun: Duration, least: Duration) -> Duration {
    thread_cpu_time()
        .saturating_sub(begun)
        .saturating_mul(LOOK_SHARE)
        .clamp(least, LOOK_AT_LEAST)
}

#[cfg(test)]
mod tests {
    use super::why_no_leak;

    #[test]
    fn files_that_are_cached_made_caches_of_a_size_leak() {
        assert!(why_no_leak("kmalloc-192", Some(false)).is_some());
        assert!(why_no_leak("lsm_inode_cache", Some(false)).is_some());
        assert!(why_no_leak("dentry", Some(true)).is_some());
        assert!(why_no_leak("unknown", None).is_some());
        assert_eq!(why_no_leak("filp", Some(false)), None);
    }
}
