//! Who is traced: from the current thread to its record.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use leakscope_common::{Loss, PROCESS_EXEC_PENDING, ThreadRecord};

use crate::maps::{NEW_THREAD, PROCESSES, THREADS, lose};

/// The record of the current thread, if its process is traced. One hash lookup from the thread's second call on.
#[inline(always)]
pub(crate) fn current_thread() -> Option<*mut ThreadRecord> {
    let thread = bpf_get_current_pid_tgid();
    THREADS.get_ptr_mut(&thread).or_else(|| first_sight(thread))
}

/// The record of the current thread, if it has one.
#[inline(always)]
pub(crate) fn known_thread() -> Option<*mut ThreadRecord> {
    THREADS.get_ptr_mut(&bpf_get_current_pid_tgid())
}

/// Makes a record for a thread of a traced process.
#[inline(never)]
fn first_sight(thread: u64) -> Option<*mut ThreadRecord> {
    let tgid = (thread >> 32) as u32;
    // SAFETY: the entry is only read; a concurrent exec may renew the incarnation, and then deletes the record that
    // is made here.
    let process = unsafe { PROCESSES.get(&tgid) }?;
    if process.flags & PROCESS_EXEC_PENDING != 0 {
        return None;
    }
    let incarnation = process.incarnation;
    let blank = NEW_THREAD.get(0)?;
    if THREADS.insert(&thread, blank, 0).is_err() {
        lose(Loss::ThreadTableFull);
        return None;
    }
    let record = THREADS.get_ptr_mut(&thread)?;
    // SAFETY: the pointer comes from the map lookup and was checked; only this thread writes to its record.
    unsafe { (*record).incarnation = incarnation };
    Some(record)
}
