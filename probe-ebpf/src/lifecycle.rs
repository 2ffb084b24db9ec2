//! Exec, thread exit, and newly mapped files.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_ktime_get_ns, bpf_send_signal},
    },
    programs::{RawTracePointContext, TracePointContext},
};
use leakscope_common::{
    Event, EventKind, HIT_SLOTS, HitCounts, Loss, PROCESS_EXEC_PENDING, ThreadRecord,
};

use crate::{
    atomic, filter,
    maps::{EVENTS, HITS, HOLDS, INCARNATIONS, PROCESSES, THREADS, lose},
};

/// `SIGSTOP` (asm-generic/signal.h).
const SIGSTOP: u32 = 19;
/// `PROT_EXEC` (asm-generic/mman-common.h).
const PROT_EXEC: u64 = 4;
/// `MAP_ANONYMOUS` (asm-generic/mman-common.h).
const MAP_ANONYMOUS: u64 = 0x20;

/// Offset of the first argument in a `syscalls:sys_enter_*` record, and of the result in a `sys_exit_*` record: behind the
/// common fields (8 bytes) and the system call's number (kernel/trace/trace_syscalls.c, `struct syscall_trace_enter`).
const SYSCALL_FIELDS: usize = 16;

/// Hands a process event to user space.
#[inline(always)]
fn tell(kind: EventKind, tgid: u32, incarnation: u32, value: u32, held: bool) {
    let event = Event {
        kind: kind as u32,
        tgid,
        incarnation,
        value,
        held: held as u32,
        reserved: 0,
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
    };
    if EVENTS.output::<Event>(&event, 0).is_err() {
        lose(Loss::EventLost);
    }
}

/// Stops a command of ours until user space has looked at what it mapped. The signal is pending before the event is sent,
/// and is taken before the process runs another instruction of its own.
#[inline(always)]
fn hold(tgid: u32) -> bool {
    if HOLDS.get_ptr(&tgid).is_none() {
        return false;
    }
    // SAFETY: the helper checks its argument.
    unsafe { bpf_send_signal(SIGSTOP) == 0 }
}

/// How often a thread asks for its process's mappings at most.
const ASK_EVERY_NS: u64 = 100_000_000;

/// Asks user space to look at the mappings of the current process: the walk met an address in none that is known. At most ten
/// times a second for each thread.
#[inline(never)]
pub(crate) fn ask_for_mappings(thread: *mut ThreadRecord) {
    // SAFETY: `thread` points to the current thread's map value, which only it writes; the helper takes nothing.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now.wrapping_sub((*thread).asked_ns) < ASK_EVERY_NS {
            return;
        }
        (*thread).asked_ns = now;
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        tell(
            EventKind::UnknownMapping,
            tgid,
            (*thread).incarnation,
            0,
            false,
        );
    }
}

/// `sched_process_exec`: arguments are the task, its old thread id, the binary (include/trace/events/sched.h).
#[inline(always)]
pub(crate) fn exec(ctx: &RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let tgid = (thread >> 32) as u32;
    let Some(process) = PROCESSES.get_ptr_mut(&tgid) else {
        return 0;
    };
    // SAFETY: the pointer comes from the map lookup and was checked. An exec ends all other threads first.
    unsafe {
        let ended = (*process).incarnation;
        if (*process).flags & PROCESS_EXEC_PENDING != 0 {
            (*process).flags &= !PROCESS_EXEC_PENDING;
        } else if let Some(next) = INCARNATIONS.get_ptr_mut(0) {
            let fresh = atomic::fetch_add(next, 1) as u32;
            // The thread that called exec took over the leader's id; its record may stand under the old one.
            let old_thread = (thread & !0xffff_ffff) | (ctx.arg::<u32>(1) as u64);
            forget(old_thread);
            forget(thread);
            (*process).incarnation = fresh;
        }
        let held = hold(tgid);
        tell(EventKind::Exec, tgid, (*process).incarnation, ended, held);
    }
    0
}

/// `sched_process_exit`: the current thread ends. That a process ended, user space learns from its pidfd.
#[inline(always)]
pub(crate) fn exit() -> i32 {
    forget(bpf_get_current_pid_tgid());
    0
}

/// Drops a thread's record and keeps its hits.
#[inline(always)]
fn forget(thread: u64) {
    let Some(record) = THREADS.get_ptr_mut(&thread) else {
        return;
    };
    // SAFETY: the pointers come from map lookups and were checked; the thread itself runs no call any more.
    unsafe {
        let incarnation = (*record).incarnation;
        if HITS.get_ptr_mut(&incarnation).is_none() {
            // Two threads of a process may end at once: the one that comes second must not clear the first's hits.
            let none = HitCounts {
                slots: [0; HIT_SLOTS],
            };
            const NO_EXIST: u64 = 1;
            let _ = HITS.insert(&incarnation, &none, NO_EXIST);
        }
        if let Some(sum) = HITS.get_ptr_mut(&incarnation) {
            let mut slot = 0;
            while slot < HIT_SLOTS {
                atomic::add(&raw mut (*sum).slots[slot], (*record).hits.slots[slot]);
                slot += 1;
            }
        }
    }
    let _ = THREADS.remove(&thread);
}

/// `syscalls:sys_enter_mmap`.
#[inline(always)]
pub(crate) fn mmap_enter(ctx: &TracePointContext) -> u32 {
    // SAFETY: the offsets are those of the tracepoint's record.
    let (protection, flags) = unsafe {
        (
            ctx.read_at::<u64>(SYSCALL_FIELDS + 16).unwrap_or(0),
            ctx.read_at::<u64>(SYSCALL_FIELDS + 24).unwrap_or(0),
        )
    };
    if protection & PROT_EXEC == 0 || flags & MAP_ANONYMOUS != 0 {
        return 0;
    }
    if let Some(thread) = filter::current_thread() {
        // SAFETY: `thread` points to the current thread's map value, which only it writes.
        unsafe { (*thread).mapping_code = 1 };
    }
    0
}

/// `syscalls:sys_exit_mmap`.
#[inline(always)]
pub(crate) fn mmap_return(ctx: &TracePointContext) -> u32 {
    let _ = ctx.as_ptr();
    let Some(thread) = filter::known_thread() else {
        return 0;
    };
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    unsafe {
        if (*thread).mapping_code == 0 {
            return 0;
        }
        (*thread).mapping_code = 0;
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let held = hold(tgid);
        tell(EventKind::MappedCode, tgid, (*thread).incarnation, 0, held);
    }
    0
}
