//! Capability checks, load, attach, maps. The only room that speaks bpf(2), perf_event_open(2) and
//! process_vm_readv(2), and the only one of the tracer with unsafe code. It knows nothing of symbols, sites' meaning or
//! reports: it hands out numbers and addresses as the probe recorded them.

#![allow(unsafe_code, reason = "the room that speaks to the kernel")]

mod allocations;
mod attach;
mod blocks;
mod btf;
mod clock;
mod code_maps;
mod command;
mod confine;
mod error;
mod event;
mod exit;
mod features;
mod follow;
mod guardian;
mod held;
mod host_names;
mod limits;
mod link;
mod link_keeper;
mod load;
mod mappings;
mod maps;
mod modes;
mod nowhere;
mod object;
mod page_scan;
mod probe;
mod read;
mod registers;
mod shared;
mod slices;
mod stdout;
mod sys;
mod threads;
mod tracefs;
mod watch;
mod window;
mod writes;

pub use allocations::{KernelAllocations, KernelCounts};
pub use blocks::BlockWatcher;
pub use clock::{ThreadClocks, keep_clocks_ready, next_tick_ns};
pub use code_maps::{CodeMaps, MappedFile};
pub use command::{HeldCommand, RunningCommand, monotonic_ns, shares_memory};
pub use confine::{confine, end_after};
pub(crate) use confine::{is_readable, own_memory, spent_by};
pub use error::KernelError;
pub use event::ProbeEvent;
pub use exit::{child_exit_code, exit_code};
pub use features::{
    Capability, Check, Verdict, checks, effective_capabilities, missing_to_read_files,
    require_capabilities, require_pids_of_the_machine,
};
pub use guardian::Watched;
pub use held::HeldByFiles;
pub use host_names::look_up_hosts_by_ourselves;
pub use limits::require_address_space;
pub use link::{Attachment, Link, LinkMode, close_links};
pub use load::MapMemory;
pub use mappings::MappingWay;
pub use modes::{ModeSamples, Modes};
pub(crate) use nowhere::nowhere;
pub use object::{Provenance, provenance};
pub use page_scan::{ScannedPages, scan_pages};
pub use probe::{Probe, ProbeOptions, has_ended, open_pidfd};
pub(crate) use read::add_totals;
pub use read::{LiveBlock, SiteCount};
pub use registers::read_registers;
pub use stdout::stdout_was_closed;
pub use watch::{
    BlockReading, BlockToRead, ordinary_priority, process_cpu_time, raise_priority, read_blocks,
    thread_cpu_time,
};
pub use window::BlockToPut;
pub use writes::{WatchedWord, WriteWatcher, Writers};
