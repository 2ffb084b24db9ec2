//! Who is traced: from the current thread to its record, and which processes are to be traced as they start.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid,
    generated::{bpf_get_current_ancestor_cgroup_id, bpf_probe_read_kernel},
};
use leakscope_common::{
    Loss, PROCESS_EXEC_PENDING, SEAT_CLAIMED, SELECT_ACTIVE, SELECT_CGROUP, SELECT_COMM,
    SELECTED_CGROUPS, SLICE_LENT, SLICE_SLOTS, SLICE_WINDOWED, Selection, ThreadRecord, seat_of,
};

use crate::{
    atomic,
    maps::{NEW_THREAD, PROCESSES, SEATED, SELECTION, SLICES, THREADS, lose, settings},
};

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

/// The record of the current thread, if its process is traced. One look at its seat from the thread's second call on; for a thread without one,
/// a hash lookup more.
#[inline(always)]
pub(crate) fn current_thread() -> Option<*mut ThreadRecord> {
    let thread = bpf_get_current_pid_tgid();
    record_of(thread).or_else(|| first_sight(thread))
}

/// The record of the current thread, if it has one.
#[inline(always)]
pub(crate) fn known_thread() -> Option<*mut ThreadRecord> {
    record_of(bpf_get_current_pid_tgid())
}

/// The record of a thread, if it has one.
#[inline(always)]
pub(crate) fn record_of(thread: u64) -> Option<*mut ThreadRecord> {
    let seat = SEATED.get_ptr_mut(seat_of(thread))?;
    // SAFETY: the pointer comes from the map lookup and was checked.
    if unsafe { core::ptr::read_volatile(&raw const (*seat).owner) } == thread {
        return Some(seat);
    }
    THREADS.get_ptr_mut(&thread)
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
    let works_for_other = process.works_for != 0;
    let settings = settings()?;
    let marks = marks_of(incarnation);
    let windowed = marks & SLICE_WINDOWED != 0;
    let seat = take_seat(thread);
    let record = match seat {
        Some(seat) => seat,
        None => {
            if THREADS.insert(&thread, NEW_THREAD.get(0)?, 0).is_err() {
                lose(Loss::ThreadTableFull);
                return None;
            }
            THREADS.get_ptr_mut(&thread)?
        }
    };
    // SAFETY: the pointer comes from a map lookup and was checked; only this thread writes to its record.
    unsafe {
        (*record).incarnation = incarnation;
        (*record).live_mask = if windowed {
            settings.window_mask
        } else {
            settings.live_mask
        };
        (*record).for_children = (works_for_other && marks & SLICE_LENT != 0) as u32;
        if seat.is_some() {
            // Last: who sees the owner sees the record.
            atomic::swap(&raw mut (*record).owner, thread);
        }
    }
    Some(record)
}

/// The `SLICE_*` flags of an incarnation.
#[inline(always)]
pub(crate) fn marks_of(incarnation: u32) -> u32 {
    SLICES
        .get(incarnation & (SLICE_SLOTS - 1))
        .filter(|slice| slice.incarnation == incarnation)
        .map_or(0, |slice| slice.flags)
}

/// A thread's seat with a blank record, claimed; nothing if another has it.
#[inline(always)]
fn take_seat(thread: u64) -> Option<*mut ThreadRecord> {
    let seat = SEATED.get_ptr_mut(seat_of(thread))?;
    let blank = NEW_THREAD.get(0)?;
    // SAFETY: both pointers come from map lookups and were checked; what is copied is a record but for its owner, which is its first field.
    unsafe {
        if !atomic::replace(&raw mut (*seat).owner, 0, SEAT_CLAIMED) {
            return None;
        }
        let (to, from) = (
            (&raw mut (*seat).incarnation).cast::<c_void>(),
            (&raw const blank.incarnation).cast::<c_void>(),
        );
        bpf_probe_read_kernel(to, BEHIND_OWNER, from);
    }
    Some(seat)
}

/// Bytes of a record behind its owner.
const BEHIND_OWNER: u32 =
    (size_of::<ThreadRecord>() - offset_of!(ThreadRecord, incarnation)) as u32;
const _: () = assert!(offset_of!(ThreadRecord, incarnation) == 8);
