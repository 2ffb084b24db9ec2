//! Fork, exec, thread exit, and newly mapped files.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_ktime_get_ns, bpf_send_signal},
    },
    programs::{RawTracePointContext, TracePointContext},
};
use leakscope_common::{
    Event, EventKind, HIT_SLOTS, HOLD_CHILDREN, HitCounts, Loss, PROCESS_EXEC_PENDING,
    ProcessRecord, SEAT_CLAIMED, SELECT_LATER, SLICE_LENT, ThreadRecord,
};

use crate::{
    atomic, filter,
    maps::{EVENTS, HITS, HOLDS, INCARNATIONS, PROCESSES, THREADS, lose, settings},
};

/// `SIGSTOP` and `SIGCONT` (asm-generic/signal.h).
const SIGSTOP: u32 = 19;
const SIGCONT: u32 = 18;

/// `BPF_RB_FORCE_WAKEUP` (include/uapi/linux/bpf.h): by itself, the kernel wakes user space only for the first record that waits, and
/// that may be one that is not worth it.
const FORCE_WAKEUP: u64 = 2;

/// Hands a process event to user space.
#[inline(always)]
fn tell(kind: EventKind, tgid: u32, incarnation: u32, value: u32, held: bool) {
    tell_with(kind, tgid, incarnation, value, held, FORCE_WAKEUP);
}

/// Hands a process event to user space, with flags of bpf_ringbuf_output.
#[inline(always)]
fn tell_with(kind: EventKind, tgid: u32, incarnation: u32, value: u32, held: bool, wakeup: u64) {
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
    if EVENTS.output::<Event>(&event, wakeup).is_err() {
        lose(Loss::EventLost);
        if held {
            // Nobody knows of it, so nobody would let it run on. Takes back the stop that is pending.
            // SAFETY: the helper checks its argument.
            unsafe { bpf_send_signal(SIGCONT) };
        }
    }
}

/// `BPF_RB_NO_WAKEUP` (include/uapi/linux/bpf.h).
const NO_WAKEUP: u64 = 1;

/// Tells user space of a process that is not traced, if the current one meets the selection.
#[inline(always)]
fn suggest(tgid: u32, parent: u32) {
    if let Some(selection) = filter::selected() {
        let wakeup = if selection.flags & SELECT_LATER != 0 {
            NO_WAKEUP
        } else {
            FORCE_WAKEUP
        };
        tell_with(EventKind::Candidate, tgid, 0, parent, false, wakeup);
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
        suggest(tgid, 0);
        return 0;
    };
    // The thread that called exec took over the leader's id; its record may stand under the old one.
    let old_thread = (thread & !0xffff_ffff) | (ctx.arg::<u32>(1) as u64);
    // SAFETY: the pointer comes from the map lookup and was checked.
    let works_for = unsafe { (*process).works_for };
    if works_for != 0 {
        forget(old_thread);
        forget(thread);
        begin_own(tgid, works_for);
        return 0;
    }
    // SAFETY: as above. An exec ends all other threads first.
    unsafe {
        let ended = (*process).incarnation;
        if (*process).flags & PROCESS_EXEC_PENDING != 0 {
            (*process).flags &= !PROCESS_EXEC_PENDING;
        } else if let Some(next) = INCARNATIONS.get_ptr_mut(0) {
            let fresh = atomic::fetch_add(next, 1) as u32;
            forget(old_thread);
            forget(thread);
            (*process).incarnation = fresh;
        }
        let held = hold(tgid);
        tell(EventKind::Exec, tgid, (*process).incarnation, ended, held);
    }
    0
}

/// The current process is about to end. Of a command of ours user space looks at the memory before that.
#[inline(always)]
pub(crate) fn ends() -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let tgid = (thread >> 32) as u32;
    let Some(process) = PROCESSES.get_ptr(&tgid) else {
        return 0;
    };
    if hold(tgid) {
        // SAFETY: the pointer comes from the map lookup and was checked.
        let incarnation = unsafe { (*process).incarnation };
        tell(EventKind::Ending, tgid, incarnation, thread as u32, true);
    }
    0
}

/// Offsets of `pid` and `clone_flags` in a `task:task_newtask` record (include/trace/events/task.h); the tracer compares them
/// with what tracefs says before it attaches.
const NEW_TASK_PID: usize = 8;
const NEW_TASK_FLAGS: usize = 32;
/// `CLONE_VM`, `CLONE_VFORK`, `CLONE_THREAD` (include/uapi/linux/sched.h).
const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_THREAD: u64 = 0x1_0000;

/// `task:task_newtask`: the current thread made a process or a thread, which has not run yet.
#[inline(always)]
pub(crate) fn fork(ctx: &TracePointContext) -> u32 {
    // SAFETY: the offsets are those of the tracepoint's record.
    let (child, flags) = unsafe {
        (
            ctx.read_at::<u32>(NEW_TASK_PID).unwrap_or(0),
            ctx.read_at::<u64>(NEW_TASK_FLAGS).unwrap_or(CLONE_THREAD),
        )
    };
    if flags & CLONE_THREAD != 0 || child == 0 {
        return 0;
    }
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let holds = holds_children(parent);
    if flags & CLONE_VM != 0
        && let Some(incarnation) = recorded(parent)
    {
        follow_child(child, incarnation, parent, holds);
        if flags & CLONE_VFORK == 0 {
            // It may live long. Of others it is not known before their end whether they do anything but call exec.
            tell_unless_lent(parent, incarnation);
        }
    } else if holds {
        if let Some(incarnation) = new_incarnation()
            && follow_child(child, incarnation, 0, true)
        {
            tell(EventKind::Fork, child, incarnation, parent, false);
        }
    } else {
        suggest(child, parent);
    }
    0
}

/// Whether a process is a command of ours whose children are traced.
#[inline(always)]
fn holds_children(tgid: u32) -> bool {
    // SAFETY: the entry is only read.
    unsafe { HOLDS.get(&tgid) }.copied() == Some(HOLD_CHILDREN)
}

/// The incarnation of a process whose calls are recorded.
#[inline(always)]
fn recorded(tgid: u32) -> Option<u32> {
    // SAFETY: the entry is only read.
    let process = unsafe { PROCESSES.get(&tgid) }?;
    (process.flags & PROCESS_EXEC_PENDING == 0).then_some(process.incarnation)
}

/// A number for an incarnation.
#[inline(always)]
fn new_incarnation() -> Option<u32> {
    let next = INCARNATIONS.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from the map lookup and was checked.
    Some(unsafe { atomic::fetch_add(next, 1) } as u32)
}

/// Begins to record a child; with `held` it is held as its parent is. Gives whether there was room.
#[inline(always)]
fn follow_child(child: u32, incarnation: u32, works_for: u32, held: bool) -> bool {
    let record = ProcessRecord {
        incarnation,
        flags: 0,
        works_for,
        reserved: 0,
    };
    // On the stack: a reference to the constant would make a data section.
    let mut hold = 0;
    // SAFETY: a write to a variable of ours.
    unsafe { core::ptr::write_volatile(&raw mut hold, HOLD_CHILDREN) };
    let is_full = PROCESSES.insert(&child, &record, 0).is_err()
        || held && HOLDS.insert(&child, &hold, 0).is_err();
    if is_full {
        lose(Loss::ProcessTableFull);
    }
    !is_full
}

/// The current process worked in the memory of another one, and has its own from now on: it is a child of a command, or any process.
#[inline(always)]
fn begin_own(tgid: u32, parent: u32) {
    if !holds_children(tgid) {
        let _ = PROCESSES.remove(&tgid);
        suggest(tgid, 0);
        return;
    }
    if let Some(incarnation) = new_incarnation()
        && follow_child(tgid, incarnation, 0, true)
    {
        tell(EventKind::Fork, tgid, incarnation, parent, false);
        let held = hold(tgid);
        tell(EventKind::Exec, tgid, incarnation, incarnation, held);
    }
}

/// Tells of a child in a process's memory, unless there are probes for such children.
#[inline(always)]
fn tell_unless_lent(parent: u32, incarnation: u32) {
    if filter::marks_of(incarnation) & SLICE_LENT == 0 {
        tell(EventKind::UnseenChild, parent, incarnation, 0, false);
    }
}

/// `sched_process_exit`: the current thread ends. That a process ended, user space learns from its pidfd.
#[inline(always)]
pub(crate) fn exit() -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let tgid = (thread >> 32) as u32;
    if thread as u32 == tgid {
        end_work_for_other(thread, tgid);
    }
    forget(thread);
    0
}

/// A process ends that may have worked in the memory of another one, which goes on.
#[inline(always)]
fn end_work_for_other(thread: u64, tgid: u32) {
    // SAFETY: the entry is only read.
    let Some(process) = (unsafe { PROCESSES.get(&tgid) }) else {
        return;
    };
    let (works_for, incarnation) = (process.works_for, process.incarnation);
    if works_for == 0 {
        return;
    }
    let _ = PROCESSES.remove(&tgid);
    let _ = HOLDS.remove(&tgid);
    if filter::record_of(thread).is_none() {
        tell_unless_lent(works_for, incarnation);
    }
}

/// Drops a thread's record and keeps its hits.
#[inline(always)]
fn forget(thread: u64) {
    let Some(record) = filter::record_of(thread) else {
        return;
    };
    // SAFETY: the pointer comes from a map lookup and was checked.
    let seated = unsafe { (*record).owner } == thread;
    // SAFETY: as above.
    if seated && !unsafe { atomic::replace(&raw mut (*record).owner, thread, SEAT_CLAIMED) } {
        // User space has taken the hits.
        return;
    }
    keep_hits(record);
    if seated {
        // SAFETY: as above.
        unsafe { atomic::swap(&raw mut (*record).owner, 0) };
    } else {
        let _ = THREADS.remove(&thread);
    }
}

/// Adds a thread's hits to its process's. The verifier follows it by itself: see [`crate::stack::capture`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn keep_hits(record: *const ThreadRecord) -> u32 {
    if record.is_null() {
        return 0;
    }
    // SAFETY: the record is a map value, and its thread runs no call any more; the other pointers come from map lookups and were checked.
    unsafe {
        let incarnation = (*record).incarnation;
        if HITS.get_ptr_mut(&incarnation).is_none() {
            // Two threads of a process may end at once: the one that comes second must not clear the first's hits.
            let none = HitCounts {
                slots: [0; HIT_SLOTS],
                untold: 0,
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
            // Many threads that each see few calls cost as much as one that sees many.
            let untold = (*record).hits.untold;
            let before = atomic::fetch_add(&raw mut (*sum).untold, untold);
            let look_after = settings().map_or(u32::MAX, |settings| settings.look_after);
            if before + untold >= u64::from(look_after) {
                atomic::swap(&raw mut (*sum).untold, 0);
                many_hits(incarnation, before + untold);
            }
        }
    }
    0
}

/// The current process was trapped so many times more. That this is not heard of while the ring buffer is full is no loss: user space looks
/// by itself too, less often.
#[inline(never)]
pub(crate) fn many_hits(incarnation: u32, hits: u64) {
    let event = Event {
        kind: EventKind::ManyHits as u32,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        incarnation,
        value: hits as u32,
        held: 0,
        reserved: 0,
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
    };
    let _ = EVENTS.output::<Event>(&event, FORCE_WAKEUP);
}

/// The current thread has mapped part of a file for execution.
#[inline(always)]
pub(crate) fn mapped_code(thread: *const ThreadRecord) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let held = hold(tgid);
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let incarnation = unsafe { (*thread).incarnation };
    tell(EventKind::MappedCode, tgid, incarnation, 0, held);
}
