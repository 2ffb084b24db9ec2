//! Stacks: capture, hash, deduplicate, and the totals of each.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id};
use leakscope_common::{
    Block, EventKind, INTERN_PROBES, Loss, MAX_FRAMES, ProbeCookie, STACK_HEADER_BYTES,
    STACK_UNKNOWN_MAPPING, Settings, SiteTotals, ThreadRecord, UNKNOWN_SITE,
};

use crate::{
    atomic, lifecycle,
    maps::{EVENTS, SITES, TOTALS, lose, settings},
    unwind,
};

/// Walks the current thread's user stack from a function's first instructions on and returns its site. `cookie`: [`ProbeCookie::to_bits`].
///
/// A function that the verifier sees as global, as the other exported ones are: it follows them once for all programs, and does not care where
/// the thread's record stands; otherwise it would follow all that is done with one in a seat and one in the map.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn capture(
    thread: *mut ThreadRecord,
    ip: u64,
    sp: u64,
    bp: u64,
    cookie: u64,
) -> u32 {
    let Some(settings) = settings_for(thread) else {
        return UNKNOWN_SITE;
    };
    let walk = unwind::walk(settings, thread, &unwind::Registers { ip, sp, bp });
    keep(settings, thread, &walk, ProbeCookie::from_bits(cookie))
}

/// As [`capture`], from the middle of a function: `executed` as in [`unwind::walk_within`], or [`NO_RULE`]. No probe of an allocator saw it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn capture_within(
    thread: *mut ThreadRecord,
    ip: u64,
    sp: u64,
    bp: u64,
    executed: u64,
) -> u32 {
    let Some(settings) = settings_for(thread) else {
        return UNKNOWN_SITE;
    };
    let registers = unwind::Registers { ip, sp, bp };
    let walk = if executed == NO_RULE {
        unwind::walk_no_further(settings, thread, &registers)
    } else {
        unwind::walk_within(settings, thread, &registers, executed)
    };
    keep(settings, thread, &walk, ProbeCookie::from_bits(0))
}

/// For [`capture_within`]: the tables have no rule for the instruction, and the stack ends with it.
pub(crate) const NO_RULE: u64 = 2;

/// The settings, in a function that the verifier sees by itself: it does not know that there is a record.
#[inline(always)]
pub(crate) fn settings_for(thread: *mut ThreadRecord) -> Option<&'static Settings> {
    if thread.is_null() {
        return None;
    }
    settings()
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
