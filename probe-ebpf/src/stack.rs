//! Stacks: capture, hash, deduplicate, and the totals of each.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id},
};
use leakscope_common::{
    Block, EventKind, INTERN_PROBES, Loss, MAX_FRAMES, ProbeCookie, STACK_HEADER_BYTES,
    STACK_UNKNOWN_MAPPING, Settings, SiteTotals, ThreadRecord, UNKNOWN_SITE,
};

use crate::{
    atomic, lifecycle,
    maps::{EVENTS, SITES, TOTALS, lose},
    unwind,
};

/// Walks the current thread's user stack and returns its site.
#[inline(always)]
pub(crate) fn capture(
    regs: *mut pt_regs,
    settings: &Settings,
    thread: *mut ThreadRecord,
    cookie: ProbeCookie,
) -> u32 {
    let walk = unwind::walk(regs, settings, thread);
    keep(settings, thread, &walk, cookie)
}

/// As [`capture`], from the middle of a function (see [`unwind::walk_within`]). No probe of an allocator saw it.
#[inline(always)]
pub(crate) fn capture_within(
    settings: &Settings,
    thread: *mut ThreadRecord,
    registers: &unwind::Registers,
    executed: u64,
) -> u32 {
    let walk = unwind::walk_within(settings, thread, registers, executed);
    keep(settings, thread, &walk, ProbeCookie::from_bits(0))
}

/// As [`capture_within`], where the tables have no rule for the instruction.
#[inline(always)]
pub(crate) fn capture_no_further(
    settings: &Settings,
    thread: *mut ThreadRecord,
    registers: &unwind::Registers,
) -> u32 {
    let walk = unwind::walk_no_further(settings, thread, registers);
    keep(settings, thread, &walk, ProbeCookie::from_bits(0))
}

/// Returns the site of a stack that was walked.
#[inline(always)]
fn keep(
    settings: &Settings,
    thread: *mut ThreadRecord,
    walk: &unwind::Walk,
    cookie: ProbeCookie,
) -> u32 {
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    unsafe {
        let stack = &mut (*thread).stack;
        stack.kind = EventKind::Stack as u32;
        stack.depth = walk.depth as u16;
        stack.flags = walk.flags as u16;
        stack.cookie = cookie.to_bits() as u32;
    }
    if walk.flags & STACK_UNKNOWN_MAPPING as u32 != 0 {
        lifecycle::ask_for_mappings(thread);
    }
    intern(settings, thread, walk.tag, walk.check)
}

/// Finds the stack's slot in the stack table, or takes one and hands the frames to user space.
#[inline(always)]
fn intern(settings: &Settings, thread: *mut ThreadRecord, tag: u64, check: u64) -> u32 {
    // 0 means empty and "being filled"; slot 0 is the unknown site.
    let tag = tag | 1;
    let check = check | 1;
    let start = (tag >> 32) as u32;
    let mut probe = 0;
    while probe < INTERN_PROBES {
        let slot = start.wrapping_add(probe) & settings.stack_mask;
        probe += 1;
        if slot == UNKNOWN_SITE {
            continue;
        }
        let Some(key) = SITES.get_ptr_mut(slot) else {
            break;
        };
        // SAFETY: the pointer comes from the map lookup and was checked; the words are written atomically.
        unsafe {
            let there = core::ptr::read_volatile(&raw const (*key).tag);
            if there == tag {
                let other = core::ptr::read_volatile(&raw const (*key).check);
                if other == check {
                    if core::ptr::read_volatile(&raw const (*key).sent) == 0 {
                        send(thread, slot);
                    }
                    return slot;
                }
                if other != 0 {
                    lose(Loss::StackHashCollision);
                }
                // Being filled by another CPU, perhaps with the same stack: take a slot of our own; user space joins
                // slots with the same frames.
            } else if there == 0 && atomic::replace(&raw mut (*key).tag, 0, tag) {
                (*key).incarnation = (*thread).incarnation;
                atomic::swap(&raw mut (*key).check, check);
                send(thread, slot);
                return slot;
            }
        }
    }
    lose(Loss::StackTableFull);
    UNKNOWN_SITE
}

/// Hands the thread's stack to user space. If the ring buffer is full, the site's next call tries again.
#[inline(never)]
fn send(thread: *mut ThreadRecord, slot: u32) {
    // SAFETY: `thread` points to the current thread's map value; the length is bounded by the record's size.
    unsafe {
        let stack = &raw mut (*thread).stack;
        (*stack).site = slot;
        (*stack).incarnation = (*thread).incarnation;
        (*stack).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let depth = (*stack).depth as u64 & MAX_FRAMES as u64;
        let length = STACK_HEADER_BYTES as u64 + depth * 8;
        let record = core::slice::from_raw_parts(stack.cast::<u8>(), length as usize);
        if EVENTS.output::<[u8]>(record, 0).is_err() {
            lose(Loss::StackDeferred);
        } else if let Some(key) = SITES.get_ptr_mut(slot) {
            (*key).sent = 1;
        }
    }
}

/// The totals that this CPU adds to.
#[inline(always)]
fn totals(settings: &Settings, site: u32) -> Option<*mut SiteTotals> {
    // SAFETY: the helper takes nothing.
    let stripe = unsafe { bpf_get_smp_processor_id() } & settings.stripe_mask;
    TOTALS.get_ptr_mut(stripe * (settings.stack_mask + 1) + site)
}

/// Counts an allocation at its site.
#[inline(always)]
pub(crate) fn count_alloc(settings: &Settings, block: &Block) {
    if let Some(totals) = totals(settings, block.site) {
        // SAFETY: the pointer comes from the map lookup and was checked.
        unsafe {
            atomic::add(&raw mut (*totals).alloc_objects, 1);
            atomic::add(&raw mut (*totals).alloc_bytes, block.size);
        }
    }
}

/// Counts a free at the site of the allocation.
#[inline(always)]
pub(crate) fn count_free(settings: &Settings, block: &Block) {
    if let Some(totals) = totals(settings, block.site) {
        // SAFETY: as above.
        unsafe {
            atomic::add(&raw mut (*totals).free_objects, 1);
            atomic::add(&raw mut (*totals).free_bytes, block.size);
        }
    }
}

/// Takes back a counted free.
#[inline(always)]
pub(crate) fn uncount_free(settings: &Settings, block: &Block) {
    if let Some(totals) = totals(settings, block.site) {
        // SAFETY: as above. Adding the two's complement subtracts; the sum over the stripes is right.
        unsafe {
            atomic::add(&raw mut (*totals).free_objects, 1_u64.wrapping_neg());
            atomic::add(&raw mut (*totals).free_bytes, block.size.wrapping_neg());
        }
    }
}
