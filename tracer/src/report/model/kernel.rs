//! What the kernel holds, in a report: on the machine, and for each process. In no sum with sites.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Frame, Verdict};

/// The kernel's memory on the whole machine, as far as it tells without a probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelMemory {
    /// Levels: those that leak first, then those that grow, the fastest first, then the largest.
    pub levels: Vec<KernelLevel>,
    /// So many slab caches, lines and control groups are left out: the smallest of those that do not grow.
    #[serde(default)]
    pub omitted: u64,
    /// What could not be read, for people.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Where objects of caches that grow are made, by windows; what leaks first, then what grows fastest.
    #[serde(default)]
    pub sites: Vec<KernelObjects>,
    /// The windows; `None` where there was none.
    #[serde(default)]
    pub windows: Option<KernelWindows>,
}

/// Windows on the kernel's allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelWindows {
    /// How many there were.
    pub opened: u64,
    /// How long they were open, seconds.
    pub open_s: f64,
    /// Calls of the kernel's allocators meanwhile, of any cache.
    pub calls: u64,
    /// Objects of which stacks were taken.
    pub followed: u64,
    /// Processors that they took in the mean of the trace, as estimated.
    pub cores: f64,
}

/// What kind of memory it is: as in [`super::Site`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelSiteKind {
    /// Objects of the kernel.
    #[default]
    Kernel,
}

/// Objects of a cache that are made by one way through the kernel on behalf of one place of a process. In no sum with sites.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelObjects {
    /// What kind of memory it is.
    #[serde(default)]
    pub kind: KernelSiteKind,
    /// On whose behalf, its thread group id; 0 in interrupts.
    pub pid: u32,
    /// See [`super::Process::incarnation`]; 0 of a process that is not traced.
    #[serde(default)]
    pub incarnation: u32,
    /// The name of who ran.
    pub comm: String,
    /// The path of its control group; empty when unknown.
    #[serde(default)]
    pub cgroup: String,
    /// Made while an interrupt was served: on whose behalf is not known.
    #[serde(default)]
    pub interrupt: bool,
    /// The cache: of several names that it has, the one in `/proc/slabinfo`; `kmalloc-` and a size.
    pub cache: String,
    /// The cache's other names.
    #[serde(default)]
    pub shared_with: Vec<String>,
    /// The size of an object.
    pub object_bytes: u64,
    /// Bytes of the objects that were made in windows and not freed, for all that is known.
    pub inuse_bytes: u64,
    /// Those objects.
    pub inuse_objects: u64,
    /// Bytes made in windows.
    pub alloc_bytes: u64,
    /// Objects made in windows.
    pub alloc_objects: u64,
    /// Those that were seen to be freed.
    pub freed_objects: u64,
    /// Those whose address was handed out again: freed where no event tells of it.
    #[serde(default)]
    pub inferred_frees: u64,
    /// How many objects each one stands for that is followed now.
    #[serde(default)]
    pub weight: u64,
    /// The trend of the objects while windows were open.
    pub growth_objects_per_s: f64,
    /// The lower end of its 95 % interval.
    #[serde(default)]
    pub growth_objects_per_s_low: f64,
    /// The upper end.
    #[serde(default)]
    pub growth_objects_per_s_high: f64,
    /// The trend of the bytes.
    pub growth_bytes_per_s: f64,
    /// What to make of it.
    pub verdict: Verdict,
    /// The evidence, in a sentence; may be empty.
    pub verdict_reason: String,
    /// Leaf first: the kernel's functions from where its allocator is called on, then the process's.
    pub frames: Vec<Arc<Frame>>,
}

impl KernelObjects {
    /// Whether what is made there stays, and more and more of it.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.inuse_objects > 0 && self.growth_objects_per_s > 0.0
    }
}

/// What a level is of. They overlap: a cache's bytes are in a class, too, and in the control groups of those it serves.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum KernelLevelKind {
    /// A slab cache.
    #[default]
    Cache,
    /// A class of `/proc/meminfo`.
    Class,
    /// A line of the kernel's source (`/proc/allocinfo`).
    Line,
    /// What a control group makes the kernel hold.
    Cgroup,
}

impl KernelLevelKind {
    /// Its name in JSON and in labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Class => "class",
            Self::Line => "line",
            Self::Cgroup => "cgroup",
        }
    }
}

/// How much of something the kernel holds, and its trend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelLevel {
    /// What it is of.
    pub kind: KernelLevelKind,
    /// Its name: of several that a cache has, the one in `/proc/slabinfo`.
    pub name: String,
    /// The cache's other names: what is in it may be of any of them.
    #[serde(default)]
    pub shared_with: Vec<String>,
    /// Whether the kernel takes the memory back when it is short: a cache in the sense of the word.
    pub reclaimable: bool,
    /// Bytes.
    pub bytes: u64,
    /// Objects of a cache, allocations of a line.
    #[serde(default)]
    pub objects: Option<u64>,
    /// The size of an object.
    #[serde(default)]
    pub object_bytes: Option<u64>,
    /// The trend of the objects.
    #[serde(default)]
    pub growth_objects_per_s: Option<f64>,
    /// The trend of the bytes.
    pub growth_bytes_per_s: f64,
    /// The lower end of its 95 % interval.
    #[serde(default)]
    pub growth_bytes_per_s_low: f64,
    /// The upper end.
    #[serde(default)]
    pub growth_bytes_per_s_high: f64,
    /// What to make of it.
    pub verdict: Verdict,
    /// The evidence, in a sentence; may be empty.
    pub verdict_reason: String,
    /// What it consists of, where the kernel tells.
    #[serde(default)]
    pub parts: Vec<KernelPart>,
}

impl KernelLevel {
    /// Whether it grows beyond noise.
    #[must_use]
    pub fn grows(&self) -> bool {
        grows(self.verdict)
    }
}

/// A part of what a control group makes the kernel hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPart {
    /// Its name in `memory.stat`.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// What a process makes the kernel hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessKernel {
    /// By kind; only what it has.
    pub holdings: Vec<Holding>,
    /// Its descriptors by kind, the most first; empty where they were not looked at.
    #[serde(default)]
    pub descriptor_kinds: Vec<DescriptorKind>,
}

impl ProcessKernel {
    /// What grows beyond noise.
    pub fn growing(&self) -> impl Iterator<Item = &Holding> {
        self.holdings.iter().filter(|holding| holding.grows())
    }

    /// The descriptors.
    #[must_use]
    pub fn descriptors(&self) -> Option<&Holding> {
        self.holdings
            .iter()
            .find(|holding| holding.kind == DESCRIPTORS)
    }

    /// Whether any of it leaks.
    #[must_use]
    pub fn leaks(&self) -> bool {
        self.holdings
            .iter()
            .any(|holding| holding.verdict == Verdict::Leaking)
    }
}

/// The kind of [`Holding`] that [`DescriptorKind`]s are parts of.
pub const DESCRIPTORS: &str = "descriptors";

/// How much of one kind a process makes the kernel hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holding {
    /// `descriptors`, `threads`, `zombies`, `timers`, `queued-signals`, `page-tables`, `locked-memory`, `shared-memory`,
    /// `huge-pages`, `pipe-buffers`, `socket-queues`.
    pub kind: String,
    /// So many things; `None` of memory.
    #[serde(default)]
    pub objects: Option<u64>,
    /// So many bytes; `None` of things.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// What bounds it.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Its trend.
    pub growth_per_s: f64,
    /// The lower end of its 95 % interval.
    #[serde(default)]
    pub growth_per_s_low: f64,
    /// The upper end.
    #[serde(default)]
    pub growth_per_s_high: f64,
    /// What to make of it.
    pub verdict: Verdict,
    /// The evidence, in a sentence; may be empty.
    pub verdict_reason: String,
}

impl Holding {
    /// Whether it grows beyond noise.
    #[must_use]
    pub fn grows(&self) -> bool {
        grows(self.verdict)
    }
}

/// The descriptors of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DescriptorKind {
    /// `socket`, `pipe`, `eventfd`, …
    pub kind: String,
    /// So many.
    pub open: u64,
    /// Their trend; `None` where they were looked at once.
    #[serde(default)]
    pub growth_per_s: Option<f64>,
    /// Memory that they hold by what the kernel says of them (memfd, BPF maps, rings of io_uring, pipes,
    /// sockets), bytes.
    #[serde(default)]
    pub held_bytes: u64,
    /// Watches of inotify, entries of epoll, file locks that they hold.
    #[serde(default)]
    pub entries: u64,
    /// Not all were looked at.
    #[serde(default)]
    pub estimated: bool,
}

fn grows(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Leaking | Verdict::WarmingUp)
}

impl KernelMemory {
    /// Every float, to be made finite.
    pub(super) fn floats(&mut self) -> impl Iterator<Item = &mut f64> {
        let levels = self.levels.iter_mut().flat_map(|level| {
            [
                &mut level.growth_bytes_per_s,
                &mut level.growth_bytes_per_s_low,
                &mut level.growth_bytes_per_s_high,
            ]
            .into_iter()
            .chain(level.growth_objects_per_s.as_mut())
        });
        let sites = self.sites.iter_mut().flat_map(|site| {
            [
                &mut site.growth_objects_per_s,
                &mut site.growth_objects_per_s_low,
                &mut site.growth_objects_per_s_high,
                &mut site.growth_bytes_per_s,
            ]
        });
        let windows = self
            .windows
            .iter_mut()
            .flat_map(|windows| [&mut windows.open_s, &mut windows.cores]);
        levels.chain(sites).chain(windows)
    }
}

impl ProcessKernel {
    /// Every float, to be made finite.
    pub(super) fn floats(&mut self) -> impl Iterator<Item = &mut f64> {
        let held = self.holdings.iter_mut().flat_map(|holding| {
            [
                &mut holding.growth_per_s,
                &mut holding.growth_per_s_low,
                &mut holding.growth_per_s_high,
            ]
        });
        let kinds = self
            .descriptor_kinds
            .iter_mut()
            .filter_map(|kind| kind.growth_per_s.as_mut());
        held.chain(kinds)
    }
}
