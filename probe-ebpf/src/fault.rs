//! Page faults: writes of followed processes to pages that are not there yet, or may not be written to yet.
//!
//! Also writes to single words that user space has chosen, by the processor's own registers for that: each traps after it is done.
//!
//! One program stands at both of the kernel's tracepoints, for faults in user mode and for those of system calls that copy into user
//! memory. They fire for every process of the machine, so what is cheapest to ask comes first: is it a write, is the page among
//! those that are told of, is the process followed. Programs of the kernel only read user memory: no fault is theirs.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_perf_event_data,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    programs::{PerfEventContext, RawTracePointContext},
};
use leakscope_common::{
    EventKind, FAULT_ON_PRESENT, FaultRecord, Loss, ThreadRecord, page_is_sampled,
};

use crate::{
    filter, growth,
    maps::{EVENTS, lose, settings},
    stack,
};

/// `X86_PF_PROT`, `X86_PF_WRITE`, `X86_PF_USER` (arch/x86/include/asm/trap_pf.h).
const ON_PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;

/// User addresses end below (with five-level page tables, arch/x86/include/asm/page_64_types.h, `TASK_SIZE_MAX`).
const USER_LIMIT: u64 = 1 << 56;

/// `page_fault_user` and `page_fault_kernel`: the address, the registers, the processor's error code (trace/exceptions.h).
#[inline(always)]
pub(crate) fn fault(ctx: &RawTracePointContext) -> i32 {
    let arguments = ctx.as_ptr().cast::<u64>();
    // SAFETY: both tracepoints have three arguments of 64 bits.
    let (address, code) = unsafe { (*arguments, *arguments.add(2)) };
    if code & WRITE == 0 || address >= USER_LIMIT {
        return 0;
    }
    let Some(settings) = settings() else {
        return 0;
    };
    // SAFETY: user space may change the word at any time.
    let page_faults = unsafe { core::ptr::read_volatile(&raw const settings.page_faults) };
    if page_faults == 0 {
        return 0;
    }
    let shift = page_faults - 1;
    if !page_is_sampled(address, shift) {
        return 0;
    }
    let Some(thread) = filter::current_thread() else {
        return 0;
    };
    let site = site(thread, address, code & USER != 0);
    let record = FaultRecord {
        kind: EventKind::PageFault as u32,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        // SAFETY: `thread` points to the current thread's map value, which only it writes.
        incarnation: unsafe { (*thread).incarnation },
        site,
        shift,
        marks: if code & ON_PRESENT != 0 {
            FAULT_ON_PRESENT
        } else {
            0
        },
        address,
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
    };
    // Much sooner than for mappings: only user space can make faults that come fast be told of more rarely.
    let wakeup = growth::wakeup(settings.wake_bytes / WAKE_SOONER);
    if EVENTS.output::<FaultRecord>(&record, wakeup).is_err() {
        lose(Loss::PageFaultLost);
    }
    0
}

/// A word that is watched was written to, in user mode. 1: so that the kernel goes on, and counts the write to the event's limit.
#[inline(always)]
pub(crate) fn written(ctx: &PerfEventContext) -> u32 {
    let data = ctx.as_ptr().cast::<bpf_perf_event_data>();
    // SAFETY: the kernel hands over the record; what is read of it is translated to where that stands.
    let address = unsafe { (*data).addr };
    let Some((settings, thread)) = settings().zip(filter::current_thread()) else {
        return 1;
    };
    let beginning = growth::beginning(growth::user_registers());
    // The write is done: the instruction pointer stands behind it, as behind a call.
    let site = stack::capture_within(thread, beginning.ip, beginning.sp, beginning.bp, 1);
    let record = FaultRecord {
        kind: EventKind::Written as u32,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        // SAFETY: `thread` points to the current thread's map value, which only it writes.
        incarnation: unsafe { (*thread).incarnation },
        site,
        shift: 0,
        marks: 0,
        address,
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
    };
    let wakeup = growth::wakeup(settings.wake_bytes / WAKE_SOONER);
    if EVENTS.output::<FaultRecord>(&record, wakeup).is_err() {
        lose(Loss::PageFaultLost);
    }
    1
}

/// The site of a fault. The tables have rules for instructions that write, except pushes, and for system calls.
#[inline(always)]
fn site(thread: *mut ThreadRecord, address: u64, in_user_mode: bool) -> u32 {
    let registers = growth::user_registers();
    let beginning = growth::beginning(registers);
    let has_rule = if in_user_mode {
        beginning.sp.wrapping_sub(address).wrapping_sub(1) >= LARGEST_PUSH
    } else {
        // SAFETY: the registers are the kernel's; the verifier knows their layout.
        let call = unsafe { (*registers).orig_rax } as i64;
        // Otherwise an interrupt or an exception, such as before a signal handler's frame is written.
        call >= 0
    };
    let executed = if has_rule {
        // In user mode the instruction that faulted is still to be executed; a system call's is over.
        u64::from(!in_user_mode)
    } else {
        stack::NO_RULE
    };
    stack::capture_within(thread, beginning.ip, beginning.sp, beginning.bp, executed)
}

/// Pushes write so many bytes below the stack pointer at most.
const LARGEST_PUSH: u64 = 8;

/// User space is woken when this part of what is allowed to wait for other reasons waits: with the usual ring buffer, some 700 faults.
const WAKE_SOONER: u32 = 32;
