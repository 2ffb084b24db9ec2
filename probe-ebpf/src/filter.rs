//! Who is traced: from the current thread to its record, and which processes are to be traced as they start.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_current_ancestor_cgroup_id,
};
use leakscope_common::{
    Loss, PROCESS_EXEC_PENDING, SELECT_ACTIVE, SELECT_CGROUP, SELECT_COMM, SELECTED_CGROUPS,
    SLICE_SLOTS, SLICE_WINDOWED, Selection, ThreadRecord,
};

use crate::maps::{NEW_THREAD, PROCESSES, SELECTION, SLICES, THREADS, lose, settings};

/// The selection, if the current process meets it.
#[inline(always)]
pub(crate) fn selected() -> Option<&'static Selection> {
    let selection = SELECTION.get(0)?;
    if selection.flags & SELECT_ACTIVE == 0 {
        return None;
    }
    if selection.flags & SELECT_COMM != 0
        && !bpf_get_current_comm().is_ok_and(|comm| selection.matches_comm(&comm))
    {
        return None;
    }
    (selection.flags & SELECT_CGROUP == 0 || is_in_selected_cgroup(selection)).then_some(selection)
}

/// Whether the current process is in one of the groups, or in a group below.
#[inline(always)]
fn is_in_selected_cgroup(selection: &Selection) -> bool {
    let mut index = 0;
    while index < SELECTED_CGROUPS {
        if index as u32 >= selection.cgroup_count {
            return false;
        }
        // SAFETY: the helper takes a number.
        let id =
            unsafe { bpf_get_current_ancestor_cgroup_id(selection.cgroup_levels[index] as i32) };
        if id == selection.cgroups[index] {
            return true;
        }
        index += 1;
    }
    false
}

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
    let settings = settings()?;
    let windowed = SLICES
        .get(incarnation & (SLICE_SLOTS - 1))
        .is_some_and(|slice| slice.incarnation == incarnation && slice.flags & SLICE_WINDOWED != 0);
    // SAFETY: the pointer comes from the map lookup and was checked; only this thread writes to its record.
    unsafe {
        (*record).incarnation = incarnation;
        (*record).live_mask = if windowed {
            settings.window_mask
        } else {
            settings.live_mask
        };
    }
    Some(record)
}
