//! The layouts that cross the boundary between the probe (kernel side) and the tracer (user space), and nothing else.
//!
//! This crate owns every type, constant and number that both sides must agree on. It must not know how either side
//! uses them: no maps, no I/O, no policy. Every type is `repr(C)`, has no padding, and its size is asserted at compile
//! time by the `layout!` macro.

#![no_std]

mod growth;
mod held;
mod kernel_memory;
mod layout;
mod loss;
mod page;
mod process;
mod python;
mod select;
mod site;
mod unwind;

pub use growth::{MAPPING_BY_ALLOCATOR, MappingRecord, MappingStep};
pub use held::{HELD_BY_PIPE, HELD_BY_SOCKET, HeldOffsets, HeldRecord};
pub use kernel_memory::{
    CACHE_NAME_BYTES, CACHE_PROBES, CACHE_SLOTS, KERNEL_BUCKET_SLOTS, KERNEL_BUCKETS,
    KERNEL_FRAMES, KERNEL_PROGRAMS, KERNEL_SITE_INTERRUPT, KERNEL_SITE_PROBES, KERNEL_SITE_SLOTS,
    KMALLOC_SIZE, KernelBucket, KernelCache, KernelSettings, KernelSite, WATCHED_SIZES, cache_slot,
    kernel_bucket, made_at, made_parts,
};
pub use layout::Plain;
pub use loss::Loss;
pub use page::{
    FAULT_ON_PRESENT, FaultRecord, GO_SPAN, MAX_PAGE_SHIFT, PAGE_BYTES, page_is_sampled,
};
pub use process::{
    Event, EventKind, Function, HIT_SLOTS, HOLD_CHILDREN, HitCounts, Inflight,
    PROCESS_EXEC_PENDING, PYTHON_NOT_SOUGHT, ProbeCookie, ProcessRecord, REMEMBERED_ROWS,
    RememberedRow, RememberedRows, SEAT_CLAIMED, SEATS, Settings, TELL_PLACES, TELL_STEPS,
    ThreadRecord, UNKNOWN_FREE_SLOT, WALK_NATIVE, WALK_PYTHON, WALK_PYTHON_DONE, WALK_PYTHON_ONLY,
    WalkState, remembered_slot, seat_of,
};
pub use python::{
    MAX_PYTHON_POSITION, NO_CFRAME, PYTHON_FRAME, PythonEnd, PythonShape, PythonTable,
    python_frame, python_frame_parts,
};
pub use select::{
    COMM_BYTES, SELECT_ACTIVE, SELECT_CGROUP, SELECT_COMM, SELECT_LATER, SELECTED_CGROUPS,
    Selection,
};
pub use site::{
    BUCKET_SLOTS, Block, Bucket, FRAME_SLOTS, INTERN_PROBES, LIVE_CLAIMED, MAX_FRAMES,
    STACK_COMPLETE, STACK_FAULT, STACK_HEADER_BYTES, STACK_LIMIT, STACK_NO_RULE,
    STACK_UNKNOWN_MAPPING, SiteKey, SiteTotals, StackRecord, TOTALS_STRIPES, UNKNOWN_SITE,
    WINDOW_BUCKETS, live_bucket_pair, live_key, mix, thin_keeps,
};
pub use unwind::{
    BpRule, CfaRule, MAPPING_EVAL, MAPPING_FRAME_POINTERS, MAPPING_GAPS_KEEP_FRAME_POINTERS,
    MAPPING_INTERPRETER, MAPPING_NO_TABLE, MAPPING_UPROBES, Mapping, SLICE_LENT, SLICE_NO_STEPS,
    SLICE_SLOTS, SLICE_WINDOWED, Slice, UnwindPage, UnwindRow,
};
