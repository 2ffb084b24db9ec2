//! Go's own account of its heap, read at each look from outside: from the runtime's sampled profile to the ledger, and from there to sites
//! of the report. Nothing is attached, and nothing runs in the program.

mod blocks;
mod goroutines;
mod site;
mod told;
mod types;
mod watcher;
mod windows;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Session, process::Traced};
use crate::{
    apart::{GoMemory, Unread},
    kernel::monotonic_ns,
    ledger::{Judgement, Ledger, SiteId, SiteOfProcess, Verdict},
    process::elf::is_go,
    process::procfs::answering_memory,
    reader::ProcessMemory,
    report::{GoUse, Site},
    runtime::go::{GoError, HeapProfile, Program},
    symbol::Module,
    units::rate,
};
use blocks::Blocks;
use goroutines::GoroutineSites;
use site::{GoSite, Look};

/// Sites from here on are of Go's profile; those of the probe and of mappings have smaller numbers.
const FIRST_SITE: SiteId = 3 << 30;

/// A look takes at most one part in so many of a processor, but there is one this often.
const LOOK_SHARE: u32 = 200;
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);

/// What a collection found free has been swept so long after it was first seen, nanoseconds: the runtime sweeps in the background, and here it
/// makes estimates worse, not wrong, where it takes longer.
const SWEPT_AFTER_NS: u64 = 500_000_000;

/// A report looks anew at what was looked at longer ago, nanoseconds.
const OF_NOW_NS: u64 = 1_000_000_000;

/// How the runtime's functions begin by which it maps memory for itself (src/runtime/mem_linux.go, cgo_mmap.go).
const MAPPERS: [&[u8]; 3] = [b"runtime.sys", b"runtime.mmap", b"runtime.callCgoMmap"];

/// The tables of functions of all programs take at most so many bytes: those of the largest have some 100 MiB.
const MOST_OF_TABLES: usize = 256 << 20;

/// What could not be read so often is not tried again.
pub(super) const MOST_UNREAD: u32 = 3;

/// So many stacks of a process are told apart: real programs have some thousands.
const MOST_SITES: usize = 1 << 16;

/// What names the frames of a program.
#[derive(Clone, Copy)]
struct Names<'a> {
    program: &'a Program,
    bias: u64,
    path: &'a str,
}

/// Why a Go program's heap is not seen.
pub(super) const NO_PROFILE: &str = "Go's runtime samples no block in it: the linker leaves the heap profile out of programs that import neither \
     runtime/pprof nor net/http/pprof, or MemProfileRate is 0";

/// What is known of all Go programs that are followed.
#[derive(Debug)]
pub(super) struct GoHeaps {
    /// By module; `None` of one that holds no Go.
    programs: HashMap<u64, Option<Result<Arc<Program>, GoError>>>,
    /// How often a program could not be read, by module.
    unread: HashMap<u64, u32>,
    /// By incarnation.
    processes: HashMap<u32, GoProcess>,
    /// Incarnations that hold none, as of so many mapped ranges.
    others: HashMap<u32, usize>,
    ledger: Ledger,
    sites: SiteId,
}

/// A Go program that runs, or did.
#[derive(Debug)]
struct GoProcess {
    /// Why nothing is read of it.
    refused: Option<GoError>,
    found: Option<Found>,
    /// Its file, as the process sees its path.
    path: String,
    sites: BTreeMap<SiteId, GoSite>,
    /// By stack.
    known: HashMap<Vec<u64>, SiteId>,
    goroutines: GoroutineSites,
    /// Its heap, where it keeps no profile.
    blocks: Option<Blocks>,
    rate: u64,
    buckets: usize,
    is_cut: bool,
    /// Collections that the profile knew of at the first look.
    first_cycle: u32,
    cycle: u32,
    /// What the last one found free is taken to be swept.
    is_swept: bool,
    /// When the last collection that was seen was published.
    collected: Option<Instant>,
    /// How often in a row it could not be read.
    unread: u32,
    /// When the profile is read next; and whether the process has run since it was.
    next: Option<Instant>,
    has_run: bool,
    /// CLOCK_MONOTONIC nanoseconds of the last look; 0: none so far.
    looked_ns: u64,
}

/// What its profile is read through.
#[derive(Debug)]
struct Found {
    program: Arc<Program>,
    module: Arc<Module>,
    bias: u64,
    memory: ProcessMemory,
}

impl Default for GoHeaps {
    fn default() -> Self {
        Self {
            programs: HashMap::new(),
            unread: HashMap::new(),
            processes: HashMap::new(),
            others: HashMap::new(),
            ledger: Ledger::new(monotonic_ns()),
            sites: FIRST_SITE,
        }
    }
}

impl GoHeaps {
    /// Looks whether a process holds Go's runtime. To be called once its code is known; costs little where nothing is new.
    fn find(&mut self, proc_root: &std::path::Path, traced: &Traced) {
        let ranges = traced.space.ranges();
        let incarnation = traced.incarnation;
        if self.processes.contains_key(&incarnation)
            || self.others.get(&incarnation) == Some(&ranges.len())
        {
            return;
        }
        for range in ranges {
            let Some((module, elf)) = range
                .module
                .as_ref()
                .and_then(|module| Some((module, module.elf.as_ref()?)))
            else {
                continue;
            };
            if matches!(self.programs.get(&module.number), Some(None)) || !is_go(elf) {
                self.programs.entry(module.number).or_insert(None);
                continue;
            }
            let Ok(memory) = ProcessMemory::open(proc_root, traced.pid) else {
                // It is gone, or not ours to read; then it may be later.
                continue;
            };
            let bias = range.start.wrapping_sub(module.mapped_at(range));
            let known = self.programs.get(&module.number).and_then(Clone::clone);
            let program = match known {
                Some(program) => program,
                None => {
                    let ranges = answering_memory(proc_root, traced.pid).unwrap_or_default();
                    let place = GoMemory {
                        memory: &memory,
                        ranges: &ranges,
                        bias,
                    };
                    let program = match place.program(elf) {
                        Ok(Ok(program)) if self.has_room_for(&program) => Ok(Arc::new(program)),
                        Ok(Ok(_)) => Err(GoError::Room),
                        Ok(Err(error)) => Err(error),
                        Err(why) => {
                            let tries = self.unread.entry(module.number).or_default();
                            *tries += u32::from(!why.is_for_now());
                            if *tries < MOST_UNREAD {
                                continue;
                            }
                            Err(GoError::Unread(why.to_string()))
                        }
                    };
                    self.unread.remove(&module.number);
                    self.programs.insert(module.number, Some(program.clone()));
                    program
                }
            };
            let (refused, found) = match program {
                Ok(program) => (
                    None,
                    Some(Found {
                        program,
                        module: Arc::clone(module),
                        bias,
                        memory,
                    }),
                ),
                Err(error) => (Some(error), None),
            };
            let process = GoProcess {
                refused,
                found,
                path: module.path.display().to_string(),
                sites: BTreeMap::new(),
                known: HashMap::new(),
                goroutines: GoroutineSites::default(),
                blocks: None,
                rate: 0,
                buckets: 0,
                is_cut: false,
                first_cycle: 0,
                is_swept: false,
                cycle: 0,
                collected: None,
                unread: 0,
                next: None,
                has_run: false,
                looked_ns: 0,
            };
            self.processes.insert(incarnation, process);
            self.others.remove(&incarnation);
            return;
        }
        self.others.insert(incarnation, ranges.len());
    }

    /// Whether the tables of functions that are held leave room for another.
    fn has_room_for(&self, program: &Program) -> bool {
        let held = self.programs.values().flatten().flatten();
        let bytes = held
            .map(|program| program.functions.held_bytes())
            .fold(program.functions.held_bytes(), usize::saturating_add);
        bytes <= MOST_OF_TABLES
    }

    /// Reads the profile of a process that ran since it was read, at most as often as that may cost; for a report sooner.
    fn look(
        &mut self,
        proc_root: &std::path::Path,
        traced: &Traced,
        sizes: (u64, u64),
        (ran, for_report): (bool, bool),
    ) {
        let Some(process) = self.processes.get_mut(&traced.incarnation) else {
            return;
        };
        process.has_run |= ran;
        let Some(found) = process.found.as_ref().filter(|_| process.refused.is_none()) else {
            return;
        };
        let begun = Instant::now();
        let is_early = process.next.is_some_and(|next| begun < next);
        let is_of_now = monotonic_ns().saturating_sub(process.looked_ns) < OF_NOW_NS;
        if !process.has_run || is_early && (!for_report || is_of_now) {
            return;
        }
        // Of a process that is gone nothing answers.
        let ranges = answering_memory(proc_root, traced.pid).unwrap_or_default();
        let place = GoMemory {
            memory: &found.memory,
            ranges: &ranges,
            bias: found.bias,
        };
        let (profile, goroutines) = match place.look(&found.program.places) {
            Ok((Some(profile), goroutines)) => {
                process.unread = 0;
                (profile, goroutines)
            }
            // It has ended, or is about to.
            Ok((None, _)) => return,
            Err(why) => {
                process.note_unread(&why);
                return;
            }
        };
        let now_ns = monotonic_ns();
        process.note_collections(&profile, begun, now_ns);
        let is_first = process.looked_ns == 0;
        for (place, site) in process.take(&profile, now_ns, sizes, &mut self.sites) {
            let totals = site.totals();
            if is_first {
                self.ledger.begin(now_ns, place, &totals);
            } else {
                self.ledger.observe(now_ns, place, &totals, 1);
            }
            self.ledger.note_sampled(place);
        }
        process.learn_types(&ranges);
        if let Some(seen) = goroutines {
            process.goroutines.take(&seen, now_ns, &mut self.sites);
            process.goroutines.note(&mut self.ledger, now_ns, is_first);
        }
        process.looked_ns = now_ns;
        process.has_run = false;
        let rest = begun.elapsed().saturating_mul(LOOK_SHARE);
        process.next = Some(Instant::now() + rest.min(LOOK_AT_LEAST));
    }

    /// Shows the ledger how old the blocks are that are there.
    fn survey(&mut self) {
        let now_ns = monotonic_ns();
        let mut ages = self.ledger.survey_ages(now_ns, 1, 0, |site| site);
        for process in self.processes.values() {
            for (id, site) in &process.sites {
                site.visit(|born_ns, bytes, count| ages.note_blocks(*id, born_ns, bytes, count));
            }
            process
                .goroutines
                .visit(|id, born_ns, bytes| ages.note_blocks(id, born_ns, bytes, 1));
        }
        ages.finish();
    }

    /// Drops what is known of other incarnations than these.
    pub(super) fn keep(&mut self, incarnations: &HashSet<u32>) {
        let ledger = &mut self.ledger;
        self.processes.retain(|incarnation, process| {
            let stays = incarnations.contains(incarnation);
            if !stays {
                for site in process
                    .sites
                    .keys()
                    .copied()
                    .chain(process.goroutines.ids())
                    .chain(process.blocks.iter().flat_map(Blocks::ids))
                {
                    ledger.forget(site);
                }
            }
            stays
        });
        self.others
            .retain(|incarnation, _| incarnations.contains(incarnation));
        // A program that nobody runs any more is read anew when somebody does.
        self.programs.retain(|_, program| match program {
            Some(Ok(program)) => Arc::strong_count(program) > 1,
            Some(Err(GoError::Room)) => false,
            _ => true,
        });
    }

    /// Bytes in use by the profile of a process.
    pub(super) fn inuse_bytes(&self, incarnation: u32) -> f64 {
        self.processes.get(&incarnation).map_or(0.0, |process| {
            let blocks: f64 = process
                .sites
                .values()
                .map(|site| site.inuse().1 as f64)
                .sum();
            let counted = process.blocks.as_ref().map_or(0.0, Blocks::inuse_bytes);
            blocks + counted + process.goroutines.stack_bytes() as f64
        })
    }

    /// Whether blocks of a process are seen by its profile.
    pub(super) fn has_profile(&self, incarnation: u32) -> bool {
        self.processes
            .get(&incarnation)
            .is_some_and(GoProcess::has_profile)
    }

    /// What a process's heap holds beside the sites that grow, of a heap that is counted.
    pub(super) fn besides(&self, incarnation: u32, sites: &[SiteOfProcess]) -> Vec<SiteOfProcess> {
        let process = self.processes.get(&incarnation);
        let blocks = process.and_then(|process| process.blocks.as_ref());
        let Some((before, since)) = blocks.and_then(Blocks::levels) else {
            return Vec::new();
        };
        let known = sites.iter().map(|site| site.inuse_bytes);
        let known = known.fold(0, u64::saturating_add);
        [
            (Verdict::Plateau, before),
            (Verdict::InsufficientData, since.saturating_sub(known)),
        ]
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(verdict, inuse_bytes)| SiteOfProcess {
            verdict,
            growth_bytes_per_s: 0.0,
            inuse_bytes,
        })
        .collect()
    }

    /// Whether blocks of a process are counted, and seen where they are handed out.
    pub(super) fn sees_blocks(&self, incarnation: u32) -> bool {
        let process = self.processes.get(&incarnation);
        let blocks = process.and_then(|process| process.blocks.as_ref());
        blocks.is_some_and(|blocks| blocks.is_counted() && blocks.unseen.is_none())
    }

    /// Blocks of a process that were seen where they are handed out.
    pub(super) fn hits(&self, incarnation: u32) -> u64 {
        let process = self.processes.get(&incarnation);
        let blocks = process.and_then(|process| process.blocks.as_ref());
        blocks.map_or(0, Blocks::hits)
    }

    /// Why the heap of a Go program is not seen; `None` where it is, or where there is no Go.
    pub(super) fn unseen(&self, incarnation: u32) -> Option<String> {
        let process = self.processes.get(&incarnation)?;
        match &process.refused {
            Some(error) => Some(format!("Go's heap is not read: {error}")),
            None if process.has_profile() || process.looked_ns == 0 => None,
            None => match &process.blocks {
                Some(blocks) if blocks.is_counted() => {
                    let why = blocks.unseen.as_ref()?;
                    let growing = blocks.growing();
                    let growing = growing.map_or_else(String::new, |words| format!(" ({words})"));
                    Some(format!(
                        "Go's heap is counted by size{growing}; at which line is not seen: {why}"
                    ))
                }
                _ => Some(NO_PROFILE.to_owned()),
            },
        }
    }

    /// Whether a process's runtime is one whose layout is known.
    pub(super) fn is_known(&self, incarnation: u32) -> bool {
        let process = self.processes.get(&incarnation);
        process.is_some_and(|process| process.found.is_some())
    }

    /// What is to be thought of pages that are first written to at a stack, and which seem to leak: of those of Go's heap that says nothing.
    pub(super) fn judge_pages(
        &self,
        incarnation: u32,
        frames: &[u64],
        seen: Judgement,
    ) -> Judgement {
        let found = self
            .processes
            .get(&incarnation)
            .and_then(|it| it.found.as_ref());
        let is_go = found.zip(frames.first()).is_some_and(|(found, address)| {
            let place = address.wrapping_sub(found.bias);
            found.program.functions.name_of(place).is_some()
        });
        if !is_go || seen.verdict != Verdict::Leaking {
            return seen;
        }
        Judgement {
            verdict: Verdict::WarmingUp,
            reason: format!(
                "Go code touches ever more pages, {}; what its heap keeps of them, a collection tells",
                rate(seen.growth_bytes_per_s).unwrap_or_default()
            ),
            ..seen
        }
    }

    /// Whether memory that was mapped at a stack is for Go's own heap and books, not by a call of the program's.
    pub(super) fn maps_for_itself(&self, incarnation: u32, frames: &[u64]) -> bool {
        let process = self.processes.get(&incarnation);
        let Some(found) = process.and_then(|process| process.found.as_ref()) else {
            return false;
        };
        frames.iter().any(|address| {
            let place = address.wrapping_sub(found.bias).wrapping_sub(1);
            found
                .program
                .functions
                .name_of(place)
                .is_some_and(|name| MAPPERS.iter().any(|mapper| name.starts_with(mapper)))
        })
    }
}

impl GoProcess {
    fn has_profile(&self) -> bool {
        self.rate > 0
    }

    /// Collections since the first look.
    fn collections(&self) -> u32 {
        self.cycle.wrapping_sub(self.first_cycle)
    }

    fn allocator(&self) -> String {
        format!("Go {}", self.path)
    }

    /// Who reads it for us had no answer.
    fn note_unread(&mut self, why: &Unread) {
        if !why.is_for_now() {
            // A machine that is out of breath is no reason to give up.
            self.unread += 1;
            if self.unread >= MOST_UNREAD {
                self.refused = Some(GoError::Unread(why.to_string()));
            }
        }
        self.next = Some(Instant::now() + LOOK_AT_LEAST);
    }

    fn note_collections(&mut self, profile: &HeapProfile, now: Instant, now_ns: u64) {
        if self.looked_ns == 0 {
            self.first_cycle = profile.cycle;
        } else if profile.cycle != self.cycle {
            self.collected = Some(now);
        }
        // Where a heap is collected between all looks, one collection more or less is nothing.
        let is_old = now_ns.saturating_sub(self.looked_ns) >= SWEPT_AFTER_NS;
        self.is_swept =
            self.looked_ns == 0 || profile.cycle == self.cycle && (self.is_swept || is_old);
        self.cycle = profile.cycle;
        self.rate = profile.rate;
        self.buckets = profile.buckets.len();
        self.is_cut = profile.is_cut;
    }

    /// Takes over a profile. Gives the sites.
    fn take(
        &mut self,
        profile: &HeapProfile,
        now_ns: u64,
        sizes: (u64, u64),
        next: &mut SiteId,
    ) -> impl Iterator<Item = (SiteId, &GoSite)> {
        let look = Look {
            rate: profile.rate,
            now_ns,
            looked_ns: self.looked_ns,
            is_swept: self.is_swept,
        };
        for bucket in &profile.buckets {
            // Of blocks that were sampled before that was turned off nothing can be reckoned.
            if profile.rate == 0 || !(sizes.0..=sizes.1).contains(&bucket.size) {
                continue;
            }
            let id = match self.known.get(&bucket.stack) {
                Some(id) => *id,
                None if self.known.len() >= MOST_SITES => {
                    self.is_cut = true;
                    continue;
                }
                None => {
                    let id = *next;
                    // They do not run out: each is a stack of a program.
                    *next = next.saturating_add(1).min(SiteId::MAX - 1);
                    self.known.insert(bucket.stack.clone(), id);
                    id
                }
            };
            self.sites
                .entry(id)
                .or_insert_with(|| GoSite::new(bucket.stack.clone()))
                .observe(bucket, look);
        }
        for site in self.sites.values_mut() {
            site.note_level(look.looked_ns);
        }
        self.sites.iter().map(|(id, site)| (*id, site))
    }

    fn used(&self) -> GoUse {
        let version = match (&self.found, &self.refused) {
            (Some(found), _) => Some(found.program.version.name.clone()),
            (None, Some(GoError::Version(version) | GoError::Layout { version, .. })) => {
                Some(version.clone())
            }
            _ => None,
        };
        let (all, seen, last) = self.blocks.as_ref().map_or_else(
            || {
                let seen = u64::from(self.collections());
                (u64::from(self.cycle), seen, self.collected)
            },
            Blocks::collections,
        );
        GoUse {
            version,
            profile_rate_bytes: self.rate,
            collections: all,
            collections_seen: seen,
            last_collection_s: last.map(|at| at.elapsed().as_secs_f64()),
            goroutines: self.goroutines.count(),
            is_cut: self.is_cut,
            heap: self.blocks.as_ref().and_then(Blocks::used),
        }
    }
}

impl Session {
    /// Looks whether a process that is about to be followed holds Go whose heap can be read; or why not.
    pub(super) fn begin_go(&mut self, traced: &Traced) -> Option<Result<(), String>> {
        self.go.find(&self.proc_root, traced);
        let process = self.go.processes.get(&traced.incarnation)?;
        Some(match &process.refused {
            Some(error) => Err(error.to_string()),
            None => Ok(()),
        })
    }

    /// Reads the profiles of Go programs that `ran`, or of `all`.
    pub(super) fn look_at_go(&mut self, ran: &HashSet<u32>, all: bool) {
        for traced in self.processes.values() {
            if traced.ended.is_some() {
                continue;
            }
            let has_run = all || ran.contains(&traced.incarnation);
            if has_run {
                self.go.find(&self.proc_root, traced);
            }
            let sizes = self.options.probe.sizes;
            self.go.look(&self.proc_root, traced, sizes, (has_run, all));
        }
        if !self.go.processes.is_empty() {
            self.go.survey();
        }
    }

    /// Adds the sites of Go's profiles.
    pub(super) fn add_go_sites(&self, sites: &mut Vec<Site>) {
        for traced in self.processes.values() {
            sites.extend(self.go.sites(traced.pid, traced.incarnation));
        }
    }
}
