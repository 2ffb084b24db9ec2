//! Objects in CPython's pools, which are made without a call that a probe could see: how many of each type there are is counted from outside, and who makes
//! them is told by the processor, for single words in blocks that are about to be handed out. From there to sites of the report.

mod armed;
mod choose;
mod growing;
mod threads;
mod watcher;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::mpsc::TryRecvError,
    time::{Duration, Instant},
};

use leakscope_common::{FaultRecord, PYTHON_FRAME, UNKNOWN_SITE};

use super::{Session, moment::Moment, process::Traced};
use crate::{
    budget::Choice,
    heap::{ObjectKind, PooledCounts},
    kernel::KernelError,
    ledger::{Born, FIRST_KIND, Judgement, Kind, KindOfSite, SiteId, TypedGrowth, TypedSite},
    report::{Process, Site, SiteKind, SiteType, Verdict},
    symbol::{AddressSpace, Module},
    units::{count, duration},
};
pub(super) use watcher::FIRST_WRITES;
use watcher::{Task, Told, Watcher};

/// Sites from here on are of objects; the stack of one is that of the site without this bit. Beyond the slots of any stack table.
const OF_OBJECTS: SiteId = 1 << 30;

/// Of so many processes at once objects are looked at.
const MOST_PROCESSES: usize = 8;

/// So many types of a site are named in its verdict, and so many listed.
const NAMED: usize = 3;
const LISTED: usize = 5;

/// Of a word that was written to so long ago nothing is asked any more, nanoseconds.
const KEPT_NS: u64 = 120_000_000_000;

/// The last report waits so long for a count.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// Where the first count takes longer than this, it is said that there is none.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);

/// While it waits, what happens is dealt with so often.
const STEP: Duration = Duration::from_millis(10);

/// What files of C libraries are called: glibc's, as it was called before 2.34, musl's, and the loader.
const C_LIBRARIES: [&str; 4] = ["libc.so", "libc-", "ld-", "libc.musl-"];

/// The allocator, by its usual name.
pub(super) const ALLOCATOR: &str = "pymalloc";

/// What a process maps at a time for its pools: `ARENA_SIZE` (`Include/internal/pycore_obmalloc.h`) since 3.10, and before.
const ARENA_BYTES: [u64; 2] = [1 << 20, 256 << 10];

/// The site with the stack of this one.
pub(super) fn stack_of(site: SiteId) -> SiteId {
    if is_of_objects(site) {
        site & !OF_OBJECTS
    } else {
        site
    }
}

/// Whether a site is one of objects.
pub(super) fn is_of_objects(site: SiteId) -> bool {
    site >> 30 == 1
}

/// The stack of who makes an object, without what the interpreter does for that and calls for it, such as the C library to copy: it says nothing of the line.
/// Nor do addresses at which a walk through the interpreter has ended.
pub(super) fn from_the_interpreter<'a>(space: &AddressSpace, frames: &'a [u64]) -> &'a [u64] {
    let is_of_c = |module: &Module| {
        let name = module.path.file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        C_LIBRARIES.iter().any(|of_c| name.starts_with(of_c))
    };
    let says_nothing = |address: &&u64| {
        let module = space
            .find(**address)
            .and_then(|range| range.module.as_ref());
        **address & PYTHON_FRAME == 0
            && (space.python().is_folded(**address) || module.is_none_or(|module| is_of_c(module)))
    };
    let helpers = frames.iter().take_while(says_nothing).count();
    match frames.get(helpers..) {
        None | Some([]) => frames,
        Some(rest) => rest,
    }
}

/// The objects of all followed processes with an interpreter, by incarnation.
#[derive(Debug, Default)]
pub(super) struct Objects {
    processes: HashMap<u32, ObjectsOf>,
}

#[derive(Debug)]
struct ObjectsOf {
    watcher: Watcher,
    typed: TypedGrowth,
    kinds: HashMap<ObjectKind, Kind>,
    names: Vec<ObjectKind>,
    /// Who wrote to a word last.
    written: HashMap<u64, (SiteId, u64)>,
    first_bytes: Option<u64>,
    last: PooledCounts,
    looks: u64,
    begun: Instant,
    note: Option<String>,
    is_over: bool,
    /// The sites as of a moment, CLOCK_MONOTONIC nanoseconds.
    sites: BTreeMap<SiteId, TypedSite>,
    judged: HashMap<SiteId, Judgement>,
}

impl ObjectsOf {
    fn begin(task: Task) -> Self {
        Self {
            watcher: Watcher::begin(task),
            typed: TypedGrowth::default(),
            kinds: HashMap::new(),
            names: Vec::new(),
            written: HashMap::new(),
            first_bytes: None,
            last: PooledCounts::default(),
            looks: 0,
            begun: Instant::now(),
            note: None,
            is_over: false,
            sites: BTreeMap::new(),
            judged: HashMap::new(),
        }
    }

    fn kind(&mut self, of: &ObjectKind) -> Option<Kind> {
        if let Some(known) = self.kinds.get(of) {
            return Some(*known);
        }
        let number = Kind::try_from(self.names.len())
            .ok()?
            .checked_add(FIRST_KIND)?;
        self.names.push(of.clone());
        self.kinds.insert(of.clone(), number);
        Some(number)
    }

    fn name(&self, kind: Kind) -> Option<&ObjectKind> {
        self.names.get(usize::from(kind.checked_sub(FIRST_KIND)?))
    }

    /// Takes in what the thread tells.
    fn take_in(&mut self) {
        loop {
            match self.watcher.told.try_recv() {
                Ok(Told::Counted {
                    counts,
                    at_ns,
                    gone,
                }) => {
                    for block in gone {
                        self.typed.remove(block);
                    }
                    let mut rest = 0_u64;
                    let mut kinds = Vec::new();
                    for (kind, objects) in &counts.kinds {
                        if kind.name.is_empty() {
                            rest = rest.saturating_add(objects.saturating_mul(kind.block_bytes));
                        } else if let Some(number) = self.kind(kind) {
                            kinds.push((number, *objects));
                        }
                    }
                    self.written
                        .retain(|_, (_, written_ns)| at_ns.saturating_sub(*written_ns) < KEPT_NS);
                    self.typed.note(at_ns, kinds, rest);
                    self.first_bytes.get_or_insert(counts.bytes);
                    self.last = counts;
                    self.looks += 1;
                }
                Ok(Told::Settled {
                    block,
                    word,
                    kind,
                    is_told_apart,
                    since_ns,
                }) => {
                    let written = self.written.remove(&word);
                    let is_known =
                        |(site, at_ns): &(SiteId, u64)| *site != UNKNOWN_SITE && *at_ns >= since_ns;
                    if let Some((site, at_ns)) = written.filter(is_known)
                        && let Some(number) = self.kind(&kind)
                    {
                        let born = Born {
                            site,
                            kind: number,
                            bytes: kind.block_bytes,
                            at_ns,
                            is_told_apart,
                        };
                        self.typed.add(block, born);
                    }
                }
                Ok(Told::Again {
                    block,
                    seconds,
                    is_replaced,
                }) => self.typed.watched_again(block, seconds, is_replaced),
                Ok(Told::Forgotten { block }) => self.typed.remove(block),
                Ok(Told::Over(why)) => self.note = Some(why),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    return;
                }
            }
        }
    }

    /// What a site grows by, in words: `+1,000 Metric/s, +1,000 str/s`.
    fn words(&self, kinds: &[KindOfSite]) -> String {
        let mut by_name: Vec<(&str, f64)> = Vec::new();
        for of in kinds.iter().filter(|of| of.objects_per_s > 0.0) {
            let Some(kind) = self.name(of.kind) else {
                continue;
            };
            match by_name.iter_mut().find(|(name, _)| *name == kind.name) {
                Some((_, sum)) => *sum += of.objects_per_s,
                None => by_name.push((&kind.name, of.objects_per_s)),
            }
        }
        let words: Vec<String> = by_name
            .iter()
            .take(NAMED)
            .map(|(name, per_s)| match *per_s {
                fast if fast >= 10.0 => format!("+{} {name}/s", count(fast.round() as u64)),
                slow => format!("+{slow:.1} {name}/s"),
            })
            .collect();
        words.join(", ")
    }

    fn types(&self, kinds: &[KindOfSite]) -> Vec<SiteType> {
        let mut types: Vec<SiteType> = Vec::new();
        for of in kinds.iter().filter(|of| of.objects >= 1.0) {
            let Some(kind) = self.name(of.kind) else {
                continue;
            };
            let objects = of.objects as u64;
            let bytes = (of.objects * of.bytes as f64) as u64;
            match types.iter_mut().find(|known| known.name == kind.name) {
                Some(known) => {
                    known.objects += objects;
                    known.bytes += bytes;
                }
                None => types.push(SiteType {
                    name: kind.name.clone(),
                    objects,
                    bytes,
                }),
            }
        }
        types.truncate(LISTED);
        types
    }
}

impl Objects {
    /// Deals with a record of the probe.
    pub(super) fn note(&mut self, record: &FaultRecord) {
        if let Some(objects) = self.processes.get_mut(&record.incarnation) {
            objects
                .written
                .insert(record.address, (record.site, record.at_ns));
        }
    }

    /// Whether it is known where an incarnation's objects are made: its arenas are no sites of their own then.
    pub(super) fn are_known(&self, incarnation: u32) -> bool {
        self.processes
            .get(&incarnation)
            .is_some_and(|objects| objects.typed.born().next().is_some())
    }

    /// What seeing writes took of an incarnation's time.
    pub(super) fn cost(&self, incarnation: u32) -> Duration {
        self.processes
            .get(&incarnation)
            .map_or(Duration::ZERO, |objects| objects.watcher.cost().1)
    }

    /// By how many bytes an incarnation's objects have grown since the first look.
    pub(super) fn grown_bytes(&self, incarnation: u32) -> f64 {
        self.processes.get(&incarnation).map_or(0.0, |objects| {
            let first = objects.first_bytes.unwrap_or(objects.last.bytes);
            objects.last.bytes.saturating_sub(first) as f64
        })
    }

    /// Whether any process's objects are looked at.
    pub(super) fn are_looked_at(&self) -> bool {
        self.processes.values().any(|objects| objects.looks > 0)
    }

    /// Drops what is known of other incarnations than these.
    pub(super) fn keep(&mut self, incarnations: &HashSet<u32>) {
        self.processes
            .retain(|incarnation, _| incarnations.contains(incarnation));
    }

    /// Watches nothing any more.
    pub(super) fn stop(&self) {
        for objects in self.processes.values() {
            objects.watcher.stop();
        }
    }

    /// What to make of a site of objects.
    pub(super) fn judgement(&self, incarnation: u32, site: SiteId) -> Option<&Judgement> {
        self.processes.get(&incarnation)?.judged.get(&site)
    }

    /// Tells of a process's pools.
    pub(super) fn describe(&self, incarnation: u32, python: &str, process: &mut Process) {
        let Some(objects) = self.processes.get(&incarnation) else {
            return;
        };
        if objects.looks == 0 {
            if !objects.is_over && objects.begun.elapsed() >= COUNTED_WITHIN {
                let note = format!(
                    "CPython's small objects are not counted yet, for there are many: {} since the trace began; `leakscope heap -p {}` counts them",
                    duration(objects.begun.elapsed().as_secs_f64()),
                    process.pid
                );
                process.heap_note.get_or_insert(note);
            }
            return;
        }
        process.allocators.push(format!("{ALLOCATOR} {python}"));
        if let Some(why) = &objects.note {
            let note = format!("where its objects are made is not seen: {why}");
            process.heap_note.get_or_insert(note);
        }
    }
}

impl Session {
    /// Begins to look at the objects of processes that run an interpreter, and takes in what was found.
    pub(super) fn step_objects(&mut self) {
        for objects in self.objects.processes.values_mut() {
            objects.take_in();
        }
        if self.options.mappings_only
            || self.options.tier == Choice::Exact
            || self.objects.processes.len() >= MOST_PROCESSES
        {
            return;
        }
        let wanted: Vec<(u32, u32)> = self
            .processes
            .values()
            .filter(|traced| is_looked_at(traced))
            .filter(|traced| !self.objects.processes.contains_key(&traced.incarnation))
            .map(|traced| (traced.pid, traced.incarnation))
            .take(MOST_PROCESSES.saturating_sub(self.objects.processes.len()))
            .collect();
        for (pid, incarnation) in wanted {
            let writes = match self.probe.write_watcher() {
                Ok(writes) => Some(writes),
                Err(why) => {
                    if let Some(traced) = self.processes.get_mut(&pid) {
                        traced.note(format!("where its objects are made is not seen: {why}"));
                    }
                    None
                }
            };
            let task = Task {
                proc_root: self.proc_root.clone(),
                pid,
                writes,
                budget: self.options.budget,
            };
            self.objects
                .processes
                .insert(incarnation, ObjectsOf::begin(task));
        }
    }

    /// Counts once more for the last report, which is of now.
    pub(super) fn count_objects_for_last_report(&mut self) -> Result<(), KernelError> {
        let before: HashMap<u32, u64> = self
            .objects
            .processes
            .iter()
            .filter(|(_, objects)| !objects.is_over && objects.looks > 0)
            .map(|(incarnation, objects)| (*incarnation, objects.looks))
            .collect();
        for incarnation in before.keys() {
            if let Some(objects) = self.objects.processes.get(incarnation) {
                objects.watcher.want();
            }
        }
        let begun = Instant::now();
        let waits = |session: &Self| {
            before.iter().any(|(incarnation, looks)| {
                let objects = session.objects.processes.get(incarnation);
                objects.is_some_and(|objects| objects.looks == *looks && !objects.is_over)
            })
        };
        while waits(self) && begun.elapsed() < LAST_WITHIN {
            self.step(STEP)?;
        }
        self.objects.stop();
        Ok(())
    }

    /// Adds the sites at which objects are made that stay.
    pub(super) fn add_object_sites(&mut self, moment: &Moment, sites: &mut Vec<Site>) {
        let incarnations: Vec<(u32, u32, u64)> = self
            .processes
            .values()
            .map(|traced| (traced.incarnation, traced.pid, moment.of(traced.ended).ns()))
            .collect();
        for (incarnation, pid, now_ns) in incarnations {
            let Some(mut objects) = self.objects.processes.remove(&incarnation) else {
                continue;
            };
            let lines = self.python_lines(&objects);
            let line = |site| lines.get(&site).copied().unwrap_or(site);
            objects.sites = objects.typed.sites(line, now_ns);
            objects.judged.clear();
            let watched_s = objects.typed.watched_s(now_ns);
            for (stack, found) in &objects.sites {
                let grown = found.counted.grown_bytes;
                if found.counted.bytes_per_s <= 0.0 || grown < 1.0 {
                    continue;
                }
                let id = OF_OBJECTS | *stack;
                let words = objects.words(&found.kinds);
                let judgement = found.judge(watched_s, &words);
                let error = 1.96 * found.counted.error() * watched_s;
                let types = objects.types(&found.kinds);
                let number: f64 = found.kinds.iter().map(|of| of.objects.max(0.0)).sum();
                let high = (grown + error).min(objects.last.bytes as f64).max(grown);
                sites.push(Site {
                    kind: SiteKind::Heap,
                    inuse_bytes: grown as u64,
                    inuse_objects: (number as u64).max(1),
                    inuse_bytes_low: (grown - error).max(0.0) as u64,
                    inuse_bytes_high: high as u64,
                    alloc_bytes: grown as u64,
                    alloc_objects: (number as u64).max(1),
                    oldest_age_s: now_ns.saturating_sub(found.since_ns) as f64 / 1e9,
                    growth_bytes_per_s: judgement.growth_bytes_per_s,
                    weight: 1,
                    allocator: Some(ALLOCATOR.to_owned()),
                    types,
                    ..super::report::identity_of(self, *stack, id, pid, incarnation)
                });
                objects.judged.insert(id, judgement);
            }
            self.objects.processes.insert(incarnation, objects);
        }
    }

    /// Of each site at which objects were seen to be made, the one that stands for all with the same Python functions: where in the interpreter an object
    /// is made says little.
    fn python_lines(&self, objects: &ObjectsOf) -> HashMap<SiteId, SiteId> {
        let mut first: HashMap<Vec<u64>, (usize, SiteId)> = HashMap::new();
        let mut keys: HashMap<SiteId, Vec<u64>> = HashMap::new();
        for (_, born) in objects.typed.born() {
            let Some(stack) = self.stacks.get(&born.site) else {
                continue;
            };
            let is_python = |frame: &&u64| **frame & PYTHON_FRAME != 0;
            let key: Vec<u64> = stack.frames.iter().filter(is_python).copied().collect();
            if key.is_empty() {
                continue;
            }
            // The one with the fewest others.
            let found = (stack.frames.len(), stack.canonical);
            let known = first.entry(key.clone()).or_insert(found);
            *known = found.min(*known);
            keys.insert(born.site, key);
        }
        keys.into_iter()
            .filter_map(|(site, key)| Some((site, first.get(&key)?.1)))
            .collect()
    }

    /// The site of objects that one stands for; for looks at who holds them.
    pub(super) fn object_sites(&self, incarnation: u32) -> Vec<(u64, Born)> {
        let Some(objects) = self.objects.processes.get(&incarnation) else {
            return Vec::new();
        };
        let lines = self.python_lines(objects);
        objects
            .typed
            .born()
            .map(|(block, born)| {
                let site = lines.get(&born.site).copied().unwrap_or(born.site);
                let site = OF_OBJECTS | site;
                (block, Born { site, ..*born })
            })
            .collect()
    }

    /// Whether what was mapped at a site are arenas of a process's pools, which are no sites of their own where it is known what fills them.
    pub(super) fn is_arena(&self, traced: &Traced, site: SiteId, frames: &[u64]) -> bool {
        self.objects.are_known(traced.incarnation) && self.is_mapped_for_pools(traced, site, frames)
    }

    /// Whether what was mapped at a site was mapped by a process's interpreter, in the size of its arenas.
    fn is_mapped_for_pools(&self, traced: &Traced, site: SiteId, frames: &[u64]) -> bool {
        let Some(python) = &traced.python else {
            return false;
        };
        let mean = self.growth.mean_bytes(traced.incarnation, site);
        if !ARENA_BYTES.contains(&mean) {
            return false;
        }
        // The C library's, then the interpreter's.
        let caller = frames.iter().skip(1).find_map(|address| {
            let range = traced.space.find(address.saturating_sub(1))?;
            range.module.as_ref()
        });
        caller.is_some_and(|module| module.number == python.python.module().number)
    }

    /// What to make of a mapping: arenas come at whichever line needs the next one, which is not to be blamed for what fills them.
    pub(super) fn judge_mapping(&self, site: &Site, id: SiteId) -> Judgement {
        let judgement = self.ledger.judge_mapping(id);
        let is_counted = self.objects.processes.contains_key(&site.incarnation);
        if judgement.verdict != Verdict::Leaking || !is_counted {
            return judgement;
        }
        let traced = self.processes.get(&site.pid);
        let is_of_pools = traced
            .zip(self.stacks.get(&id))
            .is_some_and(|(traced, stack)| self.is_mapped_for_pools(traced, id, &stack.frames));
        if is_of_pools {
            not_of_this_line(&judgement)
        } else {
            judgement
        }
    }
}

/// The verdict of arenas while nothing is known of the objects in them.
fn not_of_this_line(judgement: &Judgement) -> Judgement {
    Judgement {
        verdict: Verdict::InsufficientData,
        reason: format!(
            "{}; but these are arenas for CPython's small objects, which come at whichever line needs the next one: whose objects fill them is not known",
            judgement.reason
        ),
        growth_bytes_per_s: judgement.growth_bytes_per_s,
    }
}

/// Whether a process runs an interpreter whose objects can be looked at.
fn is_looked_at(traced: &Traced) -> bool {
    traced.ended.is_none() && !traced.failed && traced.python.is_some()
}

#[cfg(test)]
mod tests {
    use super::{Judgement, OF_OBJECTS, Verdict, not_of_this_line, stack_of};

    #[test]
    fn a_line_was_called_leaking_for_it_needed_the_next_arena() {
        let judged = not_of_this_line(&Judgement {
            verdict: Verdict::Leaking,
            reason: "every one of 12 blocks is alive".to_owned(),
            growth_bytes_per_s: 214_000.0,
        });
        assert_eq!(judged.verdict, Verdict::InsufficientData);
        assert!(judged.reason.contains("arenas"), "{}", judged.reason);
        assert!(judged.growth_bytes_per_s > 0.0);
    }

    #[test]
    fn a_site_of_objects_has_the_stack_of_the_site_that_it_is_of() {
        assert_eq!(stack_of(OF_OBJECTS | 77), 77);
        assert_eq!(stack_of(77), 77);
        assert_eq!(stack_of(1 << 31), 1 << 31);
        assert_eq!(stack_of(3 << 30), 3 << 30);
    }
}
