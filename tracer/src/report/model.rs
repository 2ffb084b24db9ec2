//! The report: what a trace found, as plain values.
//!
//! Owns the names and units of everything that leakscope tells the outside; their JSON is the contract with its users
//! (`schema.json` beside this file): fields may be added, never renamed. Knows neither how the values were obtained
//! nor how they will be shown.

mod closed;
mod container;
mod go;
mod heap;
mod kernel;
mod lives;
mod lost;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::time::Timestamp;
pub use crate::ledger::{MappingKind, Verdict};
pub use closed::{ReadError, Report};
pub use container::Container;
pub use go::{GoHeapUse, GoSize, GoUse};
pub use heap::{
    CountedGrowth, CountedSize, Evidence, HeapUse, HeldMemory, SiteHolder, SiteType, UnseenGrowth,
};
pub use kernel::{
    DESCRIPTORS, DescriptorKind, Holding, KernelLevel, KernelLevelKind, KernelMemory,
    KernelObjects, KernelPart, KernelSiteKind, KernelWindows, ProcessKernel,
};
pub use lives::{Lives, OfLife, OfSize};
pub use lost::{LostAtExit, LostType, Reachability};

/// The version of the JSON contract that this program writes and reads.
pub const SCHEMA: u32 = 1;

/// The fields of a [`Report`], while it is put together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportParts {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When the values were read.
    pub captured_at: Timestamp,
    /// How long had been traced by then, seconds.
    pub duration_s: f64,
    /// How allocations were seen.
    pub tier: Tier,
    /// Why this tier was taken, for people.
    pub tier_reason: String,
    /// The processes that were traced, also those in which nothing was found; the most surviving bytes first.
    pub processes: Vec<Process>,
    /// Call stacks that allocated; the most surviving bytes first.
    pub sites: Vec<Site>,
    /// What `sites` leaves out.
    #[serde(default)]
    pub omitted: Omitted,
    /// What suppressions took away, a line each, also those that took nothing; counted nowhere else.
    #[serde(default)]
    pub suppressed: Vec<Suppressed>,
    /// What could not be recorded, by cause ([`Loss::name`]); 0 where nothing was lost.
    pub losses: BTreeMap<String, u64>,
    /// What tracing cost.
    pub overhead: Overhead,
    /// Whether the heap of a process was looked at where it ended.
    #[serde(default)]
    pub lost_at_exit: bool,
    /// What the kernel holds on the whole machine; `None` where that was not watched. In no sum.
    #[serde(default)]
    pub kernel: Option<KernelMemory>,
}

/// How allocations were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Page faults and mappings only.
    Growth,
    /// Allocator calls in windows.
    Sampled,
    /// Every allocator call.
    #[default]
    Exact,
}

impl Tier {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Growth, Self::Sampled, Self::Exact];

    /// The name in JSON and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Sampled => "sampled",
            Self::Exact => "exact",
        }
    }
}

/// A traced process. Identified by `pid` and `incarnation` together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Thread group id.
    pub pid: u32,
    /// Tells apart the programs that one `pid` executed one after the other.
    #[serde(default)]
    pub incarnation: u32,
    /// The name in `/proc/PID/comm`.
    pub comm: String,
    /// The program's file, as the process sees its path, where that is known.
    #[serde(default)]
    pub program: Option<String>,
    /// The path below the cgroup hierarchy's root; empty when unknown.
    pub cgroup: String,
    /// The container that it is in, by the path of its cgroup.
    #[serde(default)]
    pub container: Option<Container>,
    /// The unit of systemd that it is in, likewise: `nginx.service`.
    #[serde(default)]
    pub unit: Option<String>,
    /// The allocators that were found: family and file.
    pub allocators: Vec<String>,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Its trend.
    pub rss_growth_bytes_per_s: f64,
    /// Resident anonymous memory, bytes: heaps, stacks and private copies, without files.
    #[serde(default)]
    pub anonymous_bytes: u64,
    /// Anonymous memory that is swapped out, bytes.
    #[serde(default)]
    pub swapped_bytes: u64,
    /// Bytes allocated while traced and not freed, over all of the process's sites, shown or not.
    #[serde(default)]
    pub inuse_bytes: u64,
    /// The sum of [`Sample::counted_bytes`] over all of its sites.
    #[serde(default)]
    pub counted_bytes: u64,
    /// Blocks allocated while traced and not freed.
    #[serde(default)]
    pub inuse_objects: u64,
    /// Bytes allocated while traced.
    #[serde(default)]
    pub alloc_bytes: u64,
    /// Blocks allocated while traced.
    #[serde(default)]
    pub alloc_objects: u64,
    /// Frees of blocks that had been allocated before the trace began or that a filter left out.
    #[serde(default)]
    pub frees_of_unknown_blocks: u64,
    /// The probed functions and how often each was called.
    #[serde(default)]
    pub probes: Vec<Probe>,
    /// Whether the process, or this program in it, ended while it was traced.
    #[serde(default)]
    pub exited: bool,
    /// How it ended; `None` while it runs, and where the kernel did not say.
    #[serde(default)]
    pub ended: Option<Ended>,
    /// How it ended, for people.
    #[serde(default)]
    pub exit_note: Option<String>,
    /// Why there are no sites of this process, for people.
    #[serde(default)]
    pub empty_reason: Option<String>,
    /// What to make of it.
    #[serde(default)]
    pub verdict: Verdict,
    /// The evidence, in a sentence; may be empty.
    #[serde(default)]
    pub verdict_reason: String,
    /// Why no leak of it could have been named, for people; `None` where one would have been.
    #[serde(default)]
    pub unjudged: Option<String>,
    /// What it had lost where it ended; `None` where that was not looked at.
    #[serde(default)]
    pub lost_at_exit: Option<LostAtExit>,
    /// What its descriptors alone hold; `None` where that is nothing to speak of.
    #[serde(default)]
    pub held: Option<HeldMemory>,
    /// What its heap grows by and no site explains; `None` where that is nothing, or was not counted.
    #[serde(default)]
    pub unseen: Option<UnseenGrowth>,
    /// Its memory over time, the oldest first.
    #[serde(default)]
    pub memory_series: Vec<MemoryPoint>,
    /// The most bytes in use at a look; never less than `inuse_bytes`. Estimated, where that is.
    #[serde(default)]
    pub peak_inuse_bytes: u64,
    /// The most resident memory at a look, bytes.
    #[serde(default)]
    pub peak_rss_bytes: u64,
    /// Sizes and lives of the blocks of all of its sites, shown or not; `None` where nothing is known of them.
    #[serde(default)]
    pub lives: Option<Lives>,
    /// How full its heap is; `None` where that was not looked at.
    #[serde(default)]
    pub heap: Option<HeapUse>,
    /// Why its heap was not looked at, for people; `None` where it was, or has nothing that could be.
    #[serde(default)]
    pub heap_note: Option<String>,
    /// Its Go runtime; `None` where there is none.
    #[serde(default)]
    pub go: Option<GoUse>,
    /// What it makes the kernel hold; `None` where that was not watched. In no sum.
    #[serde(default)]
    pub kernel: Option<ProcessKernel>,
}

/// How a process ended: by itself or by a signal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What it exited with.
    pub exit_status: Option<u32>,
    /// The signal that killed it, `SIGKILL`.
    pub signal: Option<String>,
    /// What memory ran out, where the kernel killed it for that.
    pub out_of_memory: Option<MemoryLimit>,
}

/// What bounds a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryLimit {
    /// The limit of its cgroup, or of one above it.
    Cgroup,
    /// The machine's memory.
    Machine,
    /// Which of the two is not known.
    Unknown,
}

/// The memory of a process at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// Seconds since the trace began.
    pub at_s: f64,
    /// Bytes allocated while traced and not freed.
    pub inuse_bytes: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Anonymous memory that is resident, bytes: what the program wrote to and no file holds.
    #[serde(default)]
    pub anonymous_bytes: u64,
}

/// A probed function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The function's symbol.
    pub name: String,
    /// The file it is in.
    #[serde(default)]
    pub module: Option<String>,
    /// Where in the file the probe sits, bytes from the file's beginning.
    #[serde(default)]
    pub site_offset: u64,
    /// Calls seen.
    pub hits: u64,
    /// The number of a counter that it shares with those of the process's other functions that have the same number here: there were
    /// more functions than counters. The calls of all of them stand at the first, and 0 at the others.
    #[serde(default)]
    pub together: Option<u32>,
}

/// A call stack that allocated, and what became of its blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The process it belongs to.
    pub pid: u32,
    /// See [`Process::incarnation`].
    #[serde(default)]
    pub incarnation: u32,
    /// The site's number within the trace.
    #[serde(default)]
    pub id: u64,
    /// Bytes that survive, estimated when `weight` or the tier says so.
    pub inuse_bytes: u64,
    /// Blocks that survive.
    pub inuse_objects: u64,
    /// Bytes allocated since the start.
    pub alloc_bytes: u64,
    /// Blocks allocated since the start.
    pub alloc_objects: u64,
    /// Lower end of the 95 % interval of `inuse_bytes`; equal to it when exact.
    pub inuse_bytes_low: u64,
    /// Upper end.
    pub inuse_bytes_high: u64,
    /// Age of the oldest surviving block, seconds; 0 when none survives.
    pub oldest_age_s: f64,
    /// The trend of `inuse_bytes`.
    pub growth_bytes_per_s: f64,
    /// What to make of it.
    pub verdict: Verdict,
    /// The evidence, in a sentence; may be empty.
    pub verdict_reason: String,
    /// How many blocks each recorded block stands for; 1 when none were thinned out.
    #[serde(default = "one")]
    pub weight: u64,
    /// What the figures rest on where calls were seen in windows; `None` where all were seen.
    #[serde(default)]
    pub sample: Option<Sample>,
    /// What counting the heap says of it; `None` where that was not done.
    #[serde(default)]
    pub counted: Option<CountedGrowth>,
    /// The allocator that was called: family and file, as in [`Process::allocators`].
    #[serde(default)]
    pub allocator: Option<String>,
    /// What kind of memory it is. Heap and mappings do not overlap: what an allocator maps for itself is not counted as mapped. Pages
    /// hold the bytes of either, seen in another way, and are in no sum.
    #[serde(default)]
    pub kind: SiteKind,
    /// What was mapped, where `kind` is a mapping.
    #[serde(default)]
    pub mapping: Option<MappingKind>,
    /// Address space that is mapped and may not be accessed, bytes; of blocks that were counted, what more of them there is than the process
    /// has memory: it was never written to. Not among `inuse_bytes`.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// Which of the surviving blocks no pointer led to; `None` where that was not looked at.
    #[serde(default)]
    pub reachability: Option<Reachability>,
    /// What the surviving blocks are, the most bytes first; empty where that was not looked at.
    #[serde(default)]
    pub types: Vec<SiteType>,
    /// Who holds those that are held, by the shortest ways to roots, the most first.
    #[serde(default)]
    pub holders: Vec<SiteHolder>,
    /// The most of its bytes in use at a look; `None` where they are only estimated, and of what is no block of an allocator.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// Sizes and lives of its blocks; `None` where nothing is known of them.
    #[serde(default)]
    pub lives: Option<Lives>,
    /// What speaks for the verdict, as it was counted.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// Whether the stack was walked to its true end.
    pub stack_complete: bool,
    /// Why not, for people.
    #[serde(default)]
    pub stack_incomplete_reason: Option<String>,
    /// Leaf first; a function that was inlined stands before the one it was inlined into. Empty when the stack is unknown.
    /// Shared, for most frames occur in many stacks.
    pub frames: Vec<Arc<Frame>>,
}

impl Site {
    /// Whether no pointer led to some of its blocks.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.reachability.is_some_and(|found| found.unreachable > 0)
    }
}

/// What kind of memory a site holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteKind {
    /// Blocks of an allocator.
    #[default]
    Heap,
    /// Memory that the program mapped by itself.
    Mapping,
    /// Anonymous pages, where they were first written to. Each counts as a block.
    Pages,
    /// Blocks of Go's heap, by the runtime's own profile: as of its last collection, and allocated since the program began.
    Go,
    /// Goroutines by where they were started; bytes are those of their stacks, and types what they do.
    Goroutines,
}

/// What an estimate from windows rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Blocks born in windows that have been watched since and were never seen to be gone.
    pub objects: u64,
    /// Those among them whose contents would not tell them from a successor at the same address.
    pub alike_objects: u64,
    /// Windows in which the site allocated.
    pub windows: u64,
    /// Looks at the oldest of the blocks that could have found it gone.
    pub checks: u64,
    /// Bytes of blocks that were seen themselves and are there, for all that is known; the rest of `inuse_bytes` is what they stand for.
    #[serde(default)]
    pub counted_bytes: u64,
}

fn one() -> u64 {
    1
}

/// A frame of a stack. What is not known is `None`, `null` in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The function, demangled.
    pub function: Option<String>,
    /// Bytes from the function's beginning.
    #[serde(default)]
    pub function_offset: Option<u64>,
    /// The file that holds the code, as the process sees its path.
    pub module: Option<String>,
    /// Where in the module: the address less the module's load bias, as `addr2line` takes it.
    pub offset: Option<u64>,
    /// Where in the module's file the code is, bytes from the file's beginning. Differs from `offset` where the linker
    /// gave segments other addresses than file offsets; taken to be the same when not known.
    #[serde(default)]
    pub file_offset: Option<u64>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// Whether the function was inlined into the one of the next frame.
    pub inlined: bool,
    /// What kind of code it is.
    pub kind: FrameKind,
    /// The address in the process: of the probed function for the leaf, else where the call returns to.
    #[serde(default)]
    pub address: Option<u64>,
    /// The module's build-id, in hexadecimal.
    #[serde(default)]
    pub build_id: Option<String>,
}

/// What kind of code a frame is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// Compiled code in a file.
    #[default]
    Native,
    /// Code that the process generated.
    Jit,
    /// The kernel.
    Kernel,
    /// A Python function.
    Python,
    /// A Go function.
    Go,
}

/// The sum of the sites that a report leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omitted {
    /// How many sites.
    pub sites: u64,
    /// Their surviving bytes.
    pub inuse_bytes: u64,
    /// Their surviving blocks.
    pub inuse_objects: u64,
    /// Bytes allocated at them.
    pub alloc_bytes: u64,
    /// Blocks allocated at them.
    pub alloc_objects: u64,
}

/// The sum of the sites that a suppression took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppressed {
    /// The suppression's pattern.
    pub pattern: String,
    /// How many sites.
    pub sites: u64,
    /// Their surviving bytes.
    pub inuse_bytes: u64,
    /// Their surviving blocks.
    pub inuse_objects: u64,
}

/// What tracing cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Times that a probe was hit.
    pub probe_hits: u64,
    /// The share of the time during which probes were attached, 0 to 1.
    pub duty: f64,
    /// The share of the targets' CPU time that the probes took, as estimated, 0 to 1.
    pub target_cpu_fraction: f64,
    /// The share that was allowed.
    pub budget: f64,
    /// Processors that leakscope itself used in the mean, as measured, since it began to trace.
    #[serde(default)]
    pub tracer_cores: f64,
}

impl Default for ReportParts {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            captured_at: Timestamp::default(),
            duration_s: 0.0,
            tier: Tier::default(),
            tier_reason: String::new(),
            processes: Vec::new(),
            sites: Vec::new(),
            omitted: Omitted::default(),
            suppressed: Vec::new(),
            losses: BTreeMap::new(),
            overhead: Overhead::default(),
            lost_at_exit: false,
            kernel: None,
        }
    }
}

impl ReportParts {
    /// Sorts the sites: surviving bytes, then allocated bytes, the largest first; then process and number. The processes
    /// likewise.
    pub fn sort(&mut self) {
        self.processes.sort_by_key(|process| {
            (
                Reverse(process.inuse_bytes),
                (process.pid, process.incarnation),
            )
        });
        self.sites.sort_by_key(|site| {
            (
                Reverse((site.inuse_bytes, site.alloc_bytes, site.inuse_objects)),
                (site.pid, site.incarnation, site.id),
            )
        });
    }

    /// Sets the sums of every process from the sites. To be called while all sites are there; those of processes that
    /// are not listed count nowhere.
    pub fn add_up(&mut self) {
        let mut sums: BTreeMap<(u32, u32), (Omitted, u64, Option<Lives>)> = BTreeMap::new();
        for site in &self.sites {
            let (sum, counted, known) = sums.entry((site.pid, site.incarnation)).or_default();
            sum.add(site);
            // Pages are blocks of others, and in no sum.
            if let Some(lives) = site.lives.as_ref().filter(|_| site.kind != SiteKind::Pages) {
                known.get_or_insert_default().add(lives);
            }
            let sample = site.sample.unwrap_or_default();
            *counted = counted.saturating_add(sample.counted_bytes);
        }
        for process in &mut self.processes {
            let (sum, counted, lives) = sums
                .remove(&(process.pid, process.incarnation))
                .unwrap_or_default();
            process.counted_bytes = counted;
            process.lives = lives;
            process.inuse_bytes = sum.inuse_bytes;
            process.inuse_objects = sum.inuse_objects;
            process.alloc_bytes = sum.alloc_bytes;
            process.alloc_objects = sum.alloc_objects;
        }
    }

    /// Sorts, and keeps the `count` largest sites, those that have lost blocks and those that leak before others; the others' sum
    /// is added to `omitted`.
    pub fn keep_top(&mut self, count: usize) {
        self.sort();
        let lost_first = self.lost_at_exit;
        // Stable: the largest stay first.
        self.sites.sort_by_key(|site| {
            let is_lost = lost_first && site.has_lost();
            (!is_lost, site.verdict != Verdict::Leaking)
        });
        for site in self.sites.drain(count.min(self.sites.len())..) {
            self.omitted.add(&site);
        }
        self.sort();
    }

    /// Bytes and blocks over the sites and the omitted ones.
    #[must_use]
    pub fn total(&self) -> Omitted {
        let mut total = self.omitted;
        for site in &self.sites {
            total.add(site);
        }
        total
    }

    /// A copy without processes and sites.
    pub(super) fn without_lists(&self) -> Self {
        Self {
            schema: self.schema,
            captured_at: self.captured_at,
            duration_s: self.duration_s,
            tier: self.tier,
            tier_reason: self.tier_reason.clone(),
            processes: Vec::new(),
            sites: Vec::new(),
            omitted: self.omitted,
            suppressed: self.suppressed.clone(),
            losses: self.losses.clone(),
            overhead: self.overhead,
            lost_at_exit: self.lost_at_exit,
            kernel: self.kernel.clone(),
        }
    }

    /// Whether anything of the traced processes leaks, shown or not: a site, or what one of them makes the kernel hold. What
    /// the machine as a whole holds may be anybody's.
    #[must_use]
    pub fn leaks(&self) -> bool {
        let held = |process: &Process| process.kernel.as_ref().is_some_and(ProcessKernel::leaks);
        if self.processes.iter().any(held) {
            return true;
        }
        let of_processes = self.processes.iter().map(|process| process.verdict);
        let of_sites = self.sites.iter().map(|site| site.verdict);
        of_processes
            .chain(of_sites)
            .any(|verdict| verdict == Verdict::Leaking)
    }

    /// The process that a site belongs to.
    #[must_use]
    pub fn process_of(&self, site: &Site) -> Option<&Process> {
        self.processes
            .iter()
            .find(|process| (process.pid, process.incarnation) == (site.pid, site.incarnation))
    }
}

impl Omitted {
    /// Adds a site's figures; of one of pages, that there is one.
    pub(super) fn add(&mut self, site: &Site) {
        self.sites = self.sites.saturating_add(1);
        if site.kind == SiteKind::Pages {
            return;
        }
        self.inuse_bytes = self.inuse_bytes.saturating_add(site.inuse_bytes);
        self.inuse_objects = self.inuse_objects.saturating_add(site.inuse_objects);
        self.alloc_bytes = self.alloc_bytes.saturating_add(site.alloc_bytes);
        self.alloc_objects = self.alloc_objects.saturating_add(site.alloc_objects);
    }
}
