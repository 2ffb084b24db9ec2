//! Processes, threads, calls in flight and the events that tell user space of them.

use crate::layout::layout;
use crate::site::{Block, StackRecord};
use crate::unwind::UnwindRow;

/// The allocator functions that the probe understands. The number travels in the attach cookie.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// `void *malloc(size_t size)`.
    Malloc = 1,
    /// `void *calloc(size_t count, size_t size)`.
    Calloc = 2,
    /// `void *realloc(void *old, size_t size)`.
    Realloc = 3,
    /// `void *reallocarray(void *old, size_t count, size_t size)`.
    ReallocArray = 4,
    /// `int posix_memalign(void **out, size_t alignment, size_t size)`.
    PosixMemalign = 5,
    /// `void *aligned_alloc(size_t alignment, size_t size)`, `memalign`.
    AlignedAlloc = 6,
    /// `void *valloc(size_t size)`.
    Valloc = 7,
    /// `void *pvalloc(size_t size)`.
    Pvalloc = 8,
    /// `void free(void *block)`.
    Free = 9,
    /// Rust's `realloc(ptr: *mut u8, old_size: usize, align: usize, new_size: usize) -> *mut u8` (`__rust_realloc`).
    RustRealloc = 10,
    /// `void *calloc(heap, size_t count, size_t size)`: mimalloc's `mi_heap_calloc`.
    HeapCalloc = 11,
    /// `void *realloc(heap, void *old, size_t size)`: mimalloc's `mi_heap_realloc`.
    HeapRealloc = 12,
}

/// The number of hit counters of a process: one for each attached function of each of its allocators. Further
/// probes share the last but one.
pub const HIT_SLOTS: usize = 32;

/// The hit slot that counts frees of blocks that are not in the live table: allocated before the attach, or filtered.
pub const UNKNOWN_FREE_SLOT: usize = HIT_SLOTS - 1;

/// What the attach cookie of a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeCookie {
    /// A [`Function`] as a number.
    pub function: u8,
    /// Index into the hit counters.
    pub hit_slot: u8,
    /// Bytes by which the stack pointer lies below its value at the function's entry (0 for return probes).
    pub stack_moved: u16,
    /// 1: the probe is there for children that work in their parent's memory alone ([`crate::SLICE_LENT`]).
    pub for_children: u8,
}

impl ProbeCookie {
    /// The cookie as the kernel keeps it.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.function as u64
            | (self.hit_slot as u64) << 8
            | (self.stack_moved as u64) << 16
            | (self.for_children as u64) << 32
    }

    /// The reverse of [`ProbeCookie::to_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            function: bits as u8,
            hit_slot: (bits >> 8) as u8,
            stack_moved: (bits >> 16) as u16,
            for_children: (bits >> 32) as u8,
        }
    }
}

/// What user space tells the probe once, and may change while it runs. One entry of the `SETTINGS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// Smallest allocation to record, bytes.
    pub min_size: u64,
    /// Largest allocation to record, bytes.
    pub max_size: u64,
    /// Only blocks for which [`crate::thin_keeps`] says so are kept: one of `2^thin_shift`.
    pub thin_shift: u32,
    /// Number of buckets of the live table less one; the number is a power of two.
    pub live_mask: u32,
    /// Number of slots of the stack table less one; the number is a power of two.
    pub stack_mask: u32,
    /// No table walk: use frame pointers only.
    pub frame_pointers_only: u32,
    /// CPUs share a stripe of the totals when their number is the same under this mask.
    pub stripe_mask: u32,
    /// `TELL_*` flags: what is told of mappings.
    pub mappings: u32,
    /// As `live_mask`, for incarnations that are seen in windows.
    pub window_mask: u32,
    /// User space is told each time that a thread has seen so many calls ([`EventKind::ManyHits`]); `u32::MAX`: practically never.
    pub look_after: u32,
    /// User space is woken for steps of mappings when so many bytes wait for it in the ring buffer.
    pub wake_bytes: u32,
    /// The write faults of one of `2^(page_faults - 1)` pages are told of (see [`crate::page_is_sampled`]); 0: none are.
    pub page_faults: u32,
    /// Where in the kernel's `task_struct` a thread's thread pointer (`fsbase`) stands, bytes; 0: that is not known.
    pub thread_pointer: u32,
    /// Always 0.
    pub reserved: u32,
}

/// The steps of mappings are told of; otherwise only that code was mapped.
pub const TELL_STEPS: u32 = 1;

/// Mappings are seen when the kernel chooses their addresses, not at the functions of their system calls.
pub const TELL_PLACES: u32 = 2;

/// The process is a child of ours that has not yet executed the command: its exec begins the trace.
pub const PROCESS_EXEC_PENDING: u32 = 1;

/// A command of ours whose children are traced and held like itself; the value of an entry of the `HOLDS` map.
pub const HOLD_CHILDREN: u32 = 1;

/// A traced process, in the `PROCESSES` map by its thread group id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessRecord {
    /// Renewed at exec, so that two programs in one process, or a reused id, never mix.
    pub incarnation: u32,
    /// `PROCESS_*` flags.
    pub flags: u32,
    /// The thread group id of the process in whose memory this one works until it calls exec or ends (`CLONE_VM`, vfork(2)), and whose
    /// incarnation it has; 0: its memory is its own.
    pub works_for: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Calls seen: by a thread, and by threads that have ended, in the `HITS` map by incarnation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HitCounts {
    /// By hit slot.
    pub slots: [u64; HIT_SLOTS],
    /// Those since user space was last told: see [`Settings::look_after`].
    pub untold: u64,
}

/// The allocation call that a thread is in, if any.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Inflight {
    /// The stack pointer at the call's entry; 0: no call in flight.
    pub stack_pointer: u64,
    /// Bytes asked for.
    pub size: u64,
    /// `posix_memalign`'s out-pointer; `realloc`'s old block.
    pub argument: u64,
    /// A [`Function`] as a number.
    pub function: u32,
    /// The stack's site.
    pub site: u32,
    /// Filtered out: do not store the result.
    pub rejected: u32,
    /// `old` holds the block that `realloc` took, to be put back when it fails.
    pub old_taken: u32,
    /// See `old_taken`.
    pub old: Block,
    /// The stack pointer behind the last return that was dealt with: of one return, several probes may tell. A call that ends in
    /// another allocating function (`jmp` instead of `call`) has two, and a return probe that is a perf event runs in every process.
    pub returned_stack_pointer: u64,
}

/// Where the walk of a thread's stack stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WalkState {
    /// The current frame's return address: it lies in the function that is to be left next.
    pub ip: u64,
    /// The stack pointer behind that return address.
    pub sp: u64,
    /// The frame pointer there.
    pub bp: u64,
    /// Running hash of (incarnation, frames).
    pub tag: u64,
    /// Second hash.
    pub check: u64,
    /// First address of the last step's mapping: callers often lie in the same file.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Its [`crate::Mapping::bias`].
    pub bias: u64,
    /// Its [`crate::Mapping::first_page`].
    pub first_page: u32,
    /// Its flags.
    pub mapping_flags: u32,
    /// The process's slice of mappings: see [`crate::Slice::range`].
    pub slice: u64,
    /// Frames so far.
    pub depth: u32,
    /// `STACK_*` flags.
    pub flags: u32,
    /// Walk by frame pointers only.
    pub frame_pointers_only: u32,
    /// The frame pointer was not restored by the last frames: its value is not the caller's.
    pub bp_lost: u32,
    /// Flags of the mapping that the current frame lies in.
    pub frame_flags: u32,
    /// `WALK_*`: what the next step looks at.
    pub python: u32,
    /// The address of the first word of the piece of the stack that was read last; 1, which no word has: none was.
    pub window_base: u64,
    /// The next Python frame; 0: there is none; [`PYTHON_NOT_SOUGHT`].
    pub python_frame: u64,
    /// [`crate::PythonTable::shape`].
    pub python_shape: u64,
    /// 1: the current frame is not among the recorded ones yet.
    pub pending: u32,
    /// Always 0.
    pub reserved: u32,
}

/// The next step of a walk looks at the current frame.
pub const WALK_NATIVE: u32 = 0;
/// It looks at a Python frame that the current one runs.
pub const WALK_PYTHON: u32 = 1;
/// It looks at the current frame, of which the Python frames have been seen.
pub const WALK_PYTHON_DONE: u32 = 2;
/// It looks at a Python frame: how the current one is left is not known, and only those of Python are to be had.
pub const WALK_PYTHON_ONLY: u32 = 3;

/// Python frames have not been looked for: an address that no frame has.
pub const PYTHON_NOT_SOUGHT: u64 = 1;

/// Return addresses whose rows a thread remembers. 128: as many as the deepest stack has frames; 2 KiB.
pub const REMEMBERED_ROWS: usize = 128;

/// How the frame that returns to an address is left, as the last search found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RememberedRow {
    /// The return address; 0: nothing is remembered here.
    pub ip: u64,
    /// The row that covers the call before it, with the mapping's flags in place of `address_low`.
    pub row: UnwindRow,
}

/// The rows that a thread's walks found last. A program comes back to the same few calls: to look there takes a fraction of the two
/// binary searches that find a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RememberedRows {
    /// The slice ([`crate::Slice::range`]) that they were found with; with another one all are void.
    pub slice: u64,
    /// By [`remembered_slot`].
    pub rows: [RememberedRow; REMEMBERED_ROWS],
}

/// Where a return address's row is remembered.
#[inline(always)]
#[must_use]
pub const fn remembered_slot(ip: u64) -> usize {
    // The golden ratio in 64 bits: its upper bits depend on all bits of the address (Knuth, TAOCP 6.4).
    (ip.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57) as usize & (REMEMBERED_ROWS - 1)
}

/// Seats for threads: the first traced thread of all whose ids are the same modulo this has its record there, the others theirs in the
/// `THREADS` map. 256: more threads than most processes have, whose ids follow one another; 1 MiB.
pub const SEATS: u32 = 256;

/// The owner of a seat that is being taken or left.
pub const SEAT_CLAIMED: u64 = 1;

/// The seat of a thread, by its `pid_tgid`.
#[inline(always)]
#[must_use]
pub const fn seat_of(thread: u64) -> u32 {
    thread as u32 & (SEATS - 1)
}

/// What the probe knows of a thread: in its seat, or in the `THREADS` map by `pid_tgid`. Only the thread itself writes to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadRecord {
    /// Of a seat: whose it is (`pid_tgid`); 0: nobody's; or [`SEAT_CLAIMED`]. In the map always 0.
    pub owner: u64,
    /// The process incarnation that the record belongs to.
    pub incarnation: u32,
    /// Number of buckets of the live table in which its blocks may stand, less one.
    pub live_mask: u32,
    /// The [`ProbeCookie::for_children`] of the probes that it is seen by: of two that stand at the same place, only one sees it.
    pub for_children: u32,
    /// Always 0.
    pub reserved: u32,
    /// The kernel's tick (jiffy) in which `now_ns` was read.
    pub now_jiffies: u64,
    /// CLOCK_MONOTONIC nanoseconds at some moment of that tick: to read the clock takes longer than to store a block.
    pub now_ns: u64,
    /// When the thread last asked user space to look at the process's mappings, CLOCK_MONOTONIC nanoseconds.
    pub asked_ns: u64,
    /// The call in flight.
    pub inflight: Inflight,
    /// Calls seen.
    pub hits: HitCounts,
    /// Where the walk stands.
    pub walk: WalkState,
    /// Room for the stack that is being walked.
    pub stack: StackRecord,
    /// What its walks found.
    pub remembered: RememberedRows,
}

/// What kind of record stands in the ring buffer; its first four bytes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A [`StackRecord`]: a stack seen for the first time.
    Stack = 1,
    /// A process replaced its program: an [`Event`], `value` is the incarnation that ended.
    Exec = 2,
    /// A process mapped a file for execution.
    MappedCode = 3,
    /// The walk met an address in no known mapping of the process.
    UnknownMapping = 4,
    /// A process that is not traced started or replaced its program, and meets the selection; `value` is the thread group id
    /// of its parent, or 0 after an exec.
    Candidate = 5,
    /// A child of a traced command of ours started, and is traced: `value` is the thread group id of its parent.
    Fork = 6,
    /// A process changes its mappings: a [`crate::MappingRecord`].
    Mapping = 7,
    /// A process wrote to a page that was not there: a [`crate::FaultRecord`].
    PageFault = 8,
    /// A traced process was trapped some hundred times more, `value` in all since it last said so: what that cost is to be looked at.
    ManyHits = 9,
    /// A child of a followed process works in its parent's memory, and no probe has seen it: `tgid` is the parent.
    UnseenChild = 10,
    /// A command of ours is about to end: `value` is the thread that ends it.
    Ending = 11,
    /// A word that is watched was written to: a [`crate::FaultRecord`].
    Written = 12,
    /// Go's runtime handed out a block: a [`crate::FaultRecord`] with its address.
    GoBlock = 13,
}

/// A process event in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// An [`EventKind`] as a number.
    pub kind: u32,
    /// Thread group id, in the kernel's initial PID namespace.
    pub tgid: u32,
    /// The incarnation that the event speaks of.
    pub incarnation: u32,
    /// See [`EventKind`].
    pub value: u32,
    /// 1 if the process was stopped and waits to be continued.
    pub held: u32,
    /// Always 0.
    pub reserved: u32,
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
}

layout! {
    Settings = 8 * 2 + 4 * 12;
    ProcessRecord = 4 * 4;
    HitCounts = 8 * HIT_SLOTS + 8;
    Inflight = 8 * 4 + 4 * 4 + core::mem::size_of::<Block>();
    ThreadRecord = 4 * 4
        + 8 * 4
        + core::mem::size_of::<WalkState>()
        + core::mem::size_of::<Inflight>() + core::mem::size_of::<HitCounts>() + core::mem::size_of::<StackRecord>() + core::mem::size_of::<RememberedRows>();
    RememberedRow = 8 + core::mem::size_of::<UnwindRow>();
    RememberedRows = 8 + REMEMBERED_ROWS * core::mem::size_of::<RememberedRow>();
    WalkState = 8 * 12 + 4 * 10;
    Event = 4 * 6 + 8;
}

// The kernel allocates the entries of `THREADS` one by one, up to this size (kernel/bpf/memalloc.c, `sizes`), and with less than 64 bytes
// of its own.
const _: () = assert!(core::mem::size_of::<ThreadRecord>() <= 4096 - 64);

#[cfg(test)]
mod tests {
    use super::ProbeCookie;

    #[test]
    fn a_cookie_survives_the_kernel() {
        let cookie = ProbeCookie {
            function: 9,
            hit_slot: 31,
            stack_moved: 0x1238,
            for_children: 1,
        };
        assert_eq!(ProbeCookie::from_bits(cookie.to_bits()), cookie);
    }
}
