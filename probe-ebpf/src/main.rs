//! The kernel side: the list of programs. Each is a line or two that calls a room below.
//!
//! Allocator probes come in two kinds of link. A session link (Linux 6.13) runs one program at a call's entry and at
//! its return; elsewhere entry and return are programs of their own. What they do is the same.

#![no_std]
#![no_main]
#![allow(
    internal_features,
    reason = "atomic operations: the BPF targets of core lack the stable ones"
)]
#![feature(asm_experimental_arch, core_intrinsics)]

mod atomic;
mod bounds;
mod fault;
mod filter;
mod go;
mod growth;
mod heap;
mod held;
mod kernel_memory;
mod lifecycle;
mod live;
mod maps;
mod python;
mod stack;
mod unwind;
mod window;

use aya_ebpf::{
    bindings::pt_regs,
    macros::{fentry, fexit, perf_event, raw_tracepoint, tracepoint, uprobe, uretprobe},
    maps::ProgramArray,
    programs::{
        FEntryContext, FExitContext, PerfEventContext, ProbeContext, RawTracePointContext,
        RetProbeContext, TracePointContext,
    },
};

/// Keeps the kernel from giving a program a private stack: see [`maps::JUMPS_OF_ENTER`]. No thread that calls a function has its
/// stack at 0, and the table is empty: the jump is never made.
#[inline(always)]
fn no_private_stack(jumps: &ProgramArray, regs: *mut pt_regs) {
    // SAFETY: the kernel hands over the registers.
    if unsafe { (*regs).rsp } == 0 {
        let context = ProbeContext { regs };
        // SAFETY: the table is empty, so that this comes back.
        let _ = unsafe { jumps.tail_call(&context, 0) };
    }
}

/// Entry of an allocating function.
#[uprobe]
pub fn allocate_enter(ctx: ProbeContext) -> u32 {
    no_private_stack(&maps::JUMPS_OF_ENTER, ctx.regs);
    heap::enter(ctx.regs, false)
}

/// Return of an allocating function.
#[uretprobe]
pub fn allocate_return(ctx: RetProbeContext) -> u32 {
    no_private_stack(&maps::JUMPS_OF_RETURN, ctx.regs);
    heap::leave(ctx.regs)
}

/// Entry and return of an allocating function under one session link. Written out, for the `uprobe` attribute makes a
/// program that always returns 0, and here the value says whether the return is trapped.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn allocate_session(regs: *mut pt_regs) -> u32 {
    no_private_stack(&maps::JUMPS_OF_SESSION, regs);
    if heap::is_return(regs) {
        heap::leave(regs)
    } else {
        heap::enter(regs, true)
    }
}

/// Entry of a freeing function.
#[uprobe]
pub fn release(ctx: ProbeContext) -> u32 {
    no_private_stack(&maps::JUMPS_OF_RELEASE, ctx.regs);
    heap::release(ctx.regs)
}

/// Entry of the C library's `_exit`.
#[uprobe]
pub fn process_ends(_ctx: ProbeContext) -> u32 {
    lifecycle::ends()
}

/// An instruction at which Go's runtime hands out a block.
#[uprobe]
pub fn go_block(ctx: ProbeContext) -> u32 {
    no_private_stack(&maps::JUMPS_OF_GO, ctx.regs);
    go::handed_out(ctx.regs)
}

/// Does nothing: what remains of a probe's cost is the kernel's own (the benchmark's floor).
#[uprobe]
pub fn nothing(_ctx: ProbeContext) -> u32 {
    0
}

/// The kernel walks over a process's open files for us. Written out: the crate has no attribute for it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn held_by_file(ctx: *mut core::ffi::c_void) -> u32 {
    held::by_file(ctx)
}

/// A process replaced its program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    lifecycle::exec(&ctx)
}

/// A process or a thread was made.
#[tracepoint]
pub fn process_fork(ctx: TracePointContext) -> u32 {
    lifecycle::fork(&ctx)
}

/// A thread ended.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    lifecycle::exit()
}

/// A thread is about to take memory away. Tied to kernel functions where the kernel does that, as are the next two.
#[fentry]
pub fn mapping_begins(_ctx: FEntryContext) -> u32 {
    growth::enter()
}

/// A thread has made or moved a mapping, or not.
#[fexit]
pub fn mapping_made(ctx: FExitContext) -> u32 {
    growth::returned::<true>(&ctx)
}

/// A thread has taken a mapping away, or not.
#[fexit]
pub fn mapping_changed(ctx: FExitContext) -> u32 {
    growth::returned::<false>(&ctx)
}

/// The kernel has chosen an address for a new mapping.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
pub fn mapping_placed(ctx: RawTracePointContext) -> i32 {
    growth::placed(&ctx)
}

/// A page is not there, or may not be written to. Tied to two tracepoints.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn page_fault(ctx: RawTracePointContext) -> i32 {
    fault::fault(&ctx)
}

/// A word that user space has chosen was written to.
#[perf_event]
pub fn word_written(ctx: PerfEventContext) -> u32 {
    fault::written(&ctx)
}

/// The kernel has allocated an object of a size.
#[raw_tracepoint(tracepoint = "kmalloc")]
pub fn kernel_sized(ctx: RawTracePointContext) -> i32 {
    kernel_memory::sized(&ctx)
}

/// The kernel has allocated an object of a cache.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
pub fn kernel_cached(ctx: RawTracePointContext) -> i32 {
    kernel_memory::cached(&ctx)
}

/// The kernel frees an object.
#[raw_tracepoint(tracepoint = "kfree")]
pub fn kernel_freed(ctx: RawTracePointContext) -> i32 {
    kernel_memory::freed(&ctx)
}

/// The kernel frees an object of a cache.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub fn kernel_uncached(ctx: RawTracePointContext) -> i32 {
    kernel_memory::uncached(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets only programs under a licence compatible with the GPL call most helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The processor of which the programs know the registers: user space refuses an object that was made for another.
#[cfg(bpf_target_arch = "x86_64")]
#[unsafe(link_section = "architecture")]
#[unsafe(no_mangle)]
pub static ARCHITECTURE: [u8; 6] = *b"x86_64";

/// See above.
#[cfg(bpf_target_arch = "aarch64")]
#[unsafe(link_section = "architecture")]
#[unsafe(no_mangle)]
pub static ARCHITECTURE: [u8; 7] = *b"aarch64";
