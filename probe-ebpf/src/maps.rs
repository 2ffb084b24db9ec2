//! Every map, its capacity, and why that capacity.
//!
//! Capacities marked "set at load" are replaced by the tracer; what stands here is the default.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use leakscope_common::{
    Bucket, HeldOffsets, HeldRecord, HitCounts, KernelBucket, KernelCache, KernelSettings,
    KernelSite, Loss, Mapping, ProcessRecord, PythonTable, SEATS, SLICE_SLOTS, Selection, Settings,
    SiteKey, SiteTotals, Slice, ThreadRecord, UnwindPage, UnwindRow,
};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): user space maps the array into its memory.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: entries are allocated when they are inserted.
const NO_PREALLOC: u32 = 1;

/// Tables of programs that stay empty, one for each uprobe program (a table is for one kind of program and of link). That a program
/// could jump to another one keeps the kernel from giving it a private stack (Linux 6.13, `bpf_enable_priv_stack` of
/// kernel/bpf/verifier.c): that is one for each CPU, nothing keeps a uprobe program from being preempted, and whoever runs it next
/// on that CPU overwrites what it has there.
#[map]
pub(crate) static JUMPS_OF_ENTER: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// As [`JUMPS_OF_ENTER`].
#[map]
pub(crate) static JUMPS_OF_RETURN: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// As [`JUMPS_OF_ENTER`].
#[map]
pub(crate) static JUMPS_OF_SESSION: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// As [`JUMPS_OF_ENTER`].
#[map]
pub(crate) static JUMPS_OF_RELEASE: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// As [`JUMPS_OF_ENTER`].
#[map]
pub(crate) static JUMPS_OF_GO: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// One entry: what user space tells the probe.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, MMAPABLE);

/// One entry: which processes are to be traced as they start.
#[map]
pub(crate) static SELECTION: Array<Selection> = Array::with_max_entries(1, MMAPABLE);

/// One counter for each [`Loss`].
#[map]
pub(crate) static LOSSES: Array<u64> = Array::with_max_entries(Loss::COUNT, MMAPABLE);

/// One entry: the next process incarnation; both sides take numbers from it.
#[map]
pub(crate) static INCARNATIONS: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// Traced processes by thread group id. 65,536: twice the default `kernel.pid_max` of small machines, and more
/// processes than a machine under one kernel usually runs; entries cost memory only while they exist.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessRecord> =
    HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Commands that leakscope itself started, by thread group id: stopped (SIGSTOP) whenever they exec or map a file for
/// execution, until user space has looked at it, so that neither an allocation nor a frame of a new library is missed; also where they
/// end, if that is to be seen. The value is
/// 0 or `HOLD_CHILDREN`. 16,384 entries: one is usual, a build or a test-suite has some thousands of children.
#[map]
pub(crate) static HOLDS: HashMap<u32, u32> = HashMap::with_max_entries(16_384, NO_PREALLOC);

/// Hits of ended threads by incarnation. As many as processes.
#[map]
pub(crate) static HITS: HashMap<u32, HitCounts> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Threads that have a seat: see [`SEATS`]. An array, for a thread is looked up at each entry and each return, and in a hash that takes a
/// good part of the time that we take.
#[map]
pub(crate) static SEATED: Array<ThreadRecord> = Array::with_max_entries(SEATS, MMAPABLE);

/// The other threads by `pid_tgid`. 131,072: a large Java server has some thousands, a machine some ten thousands; an entry
/// (3.5 KiB, for it holds the room for a stack) is allocated at a thread's first call and freed when it ends.
#[map]
pub(crate) static THREADS: HashMap<u64, ThreadRecord> =
    HashMap::with_max_entries(131_072, NO_PREALLOC);

/// One zeroed record to make new thread records from: it is too large for the 512-byte BPF stack. Never written.
#[map]
pub(crate) static NEW_THREAD: Array<ThreadRecord> = Array::with_max_entries(1, 0);

/// The live table. Set at load: slots for twice the blocks that are to be held, rounded up to a power of two; at half
/// load, with a choice of two buckets of eight, an insertion practically never fails. 262,144 buckets: 1,000,000 blocks, 64 MiB.
#[map]
pub(crate) static LIVE: Array<Bucket> = Array::with_max_entries(262_144, MMAPABLE);

/// The stack table. Set at load: twice the distinct stacks that are to be held; 131,072: 65,536 stacks, 3 MiB.
#[map]
pub(crate) static SITES: Array<SiteKey> = Array::with_max_entries(131_072, MMAPABLE);

/// Totals by stripe and site: `stripe * slots + site`. Set at load: slots of `SITES` times `TOTALS_STRIPES`; 16 MiB.
#[map]
pub(crate) static TOTALS: Array<SiteTotals> = Array::with_max_entries(131_072 * 4, MMAPABLE);

/// New stacks and process events. 4 MiB: 3,800 stacks of the greatest depth, some ten thousand of usual depth,
/// between two visits of user space (some milliseconds).
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Where each process's mappings stand in `MAPPINGS`, by incarnation modulo the number of slots. An array, for it is looked up at
/// every allocation. 65,536: as many as processes; 1 MiB.
#[map]
pub(crate) static SLICES: Array<Slice> = Array::with_max_entries(SLICE_SLOTS, MMAPABLE);

/// Executable mappings, a sorted slice for each process. Set at load. 65,536: 32 mappings each for 2,000 processes, 2.5 MiB.
#[map]
pub(crate) static MAPPINGS: Array<Mapping> = Array::with_max_entries(65_536, MMAPABLE);

/// Page index of the unwind tables: for each 64 KiB page of a file's text the first row. Set at load.
/// 262,144: 16 GiB of text, 2 MiB.
#[map]
pub(crate) static UNWIND_PAGES: Array<UnwindPage> = Array::with_max_entries(262_144, MMAPABLE);

/// Rows of the unwind tables. Set at load. 1,048,576: about 8 MiB, the text of some hundred libraries.
#[map]
pub(crate) static UNWIND_ROWS: Array<UnwindRow> = Array::with_max_entries(1_048_576, MMAPABLE);

/// How the Python frames of a process are found, by incarnation. As many as processes; an entry exists for processes of Python alone.
#[map]
pub(crate) static PYTHONS: HashMap<u32, PythonTable> =
    HashMap::with_max_entries(65_536, NO_PREALLOC);

/// One entry: what user space tells the programs at the kernel's allocators. These maps are as large as they are to be where the kernel is
/// watched, and have one entry elsewhere: set at load.
#[map]
pub(crate) static KERNEL_SETTINGS: Array<KernelSettings> = Array::with_max_entries(1, MMAPABLE);

/// The kernel's caches: see [`leakscope_common::CACHE_SLOTS`].
#[map]
pub(crate) static KERNEL_CACHES: Array<KernelCache> = Array::with_max_entries(1024, MMAPABLE);

/// Where objects of the kernel are made: see [`leakscope_common::KERNEL_SITE_SLOTS`].
#[map]
pub(crate) static KERNEL_SITES: Array<KernelSite> = Array::with_max_entries(4096, MMAPABLE);

/// Objects of the kernel that are there: see [`leakscope_common::KERNEL_BUCKETS`].
#[map]
pub(crate) static KERNEL_LIVE: Array<KernelBucket> = Array::with_max_entries(16_384, MMAPABLE);

/// Calls of each of the programs at the kernel's allocators, see [`leakscope_common::KERNEL_PROGRAMS`].
#[map]
pub(crate) static KERNEL_CALLS: PerCpuArray<u64> = PerCpuArray::with_max_entries(4, 0);

/// Where a site is put together, one for each of the two programs that see objects being made: the kernel runs neither inside of itself
/// on a processor, but one inside of the other.
#[map]
pub(crate) static KERNEL_DRAFTS: PerCpuArray<KernelSite> = PerCpuArray::with_max_entries(2, 0);

/// One entry: where members of the kernel's structures lie that `held` reads.
#[map]
pub(crate) static HELD_OFFSETS: Array<HeldOffsets> = Array::with_max_entries(1, MMAPABLE);

/// One entry: where an address becomes a number.
#[map]
pub(crate) static HELD_DRAFT: PerCpuArray<HeldRecord> = PerCpuArray::with_max_entries(1, 0);

/// The settings; the array's only entry always exists.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    // The lookup's lifetime is the map's: array entries are never freed while the program runs.
    SETTINGS.get(0)
}

/// Counts a loss.
#[inline(always)]
pub(crate) fn lose(loss: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the pointer comes from the map lookup and was checked.
        unsafe { crate::atomic::add(counter, 1) };
    }
}
