//! The malloc family: a call's entry, its return, and free.
//!
//! The outermost call wins: the thread's record holds the call in flight with the stack pointer of its entry, and calls
//! further down the stack belong to it. A call at or above that stack pointer means that the earlier one never returned.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip, bpf_jiffies64, bpf_ktime_get_ns},
    },
};
use leakscope_common::{
    Block, Function, Loss, ProbeCookie, Settings, ThreadRecord, UNKNOWN_FREE_SLOT, live_key,
    thin_keeps,
};

use crate::{
    filter, lifecycle, live,
    maps::{lose, settings},
    stack, unwind,
};

/// Ends a session program at entry: no return trap for this call.
const NO_RETURN: u32 = 1;
/// Ends any other program; in a session program at entry: trap the return too.
const GO_ON: u32 = 0;

/// Bytes that `ret` takes from the stack.
const RETURN_ADDRESS: u64 = 8;

const CALLOC: u8 = Function::Calloc as u8;
const REALLOC: u8 = Function::Realloc as u8;
const REALLOC_ARRAY: u8 = Function::ReallocArray as u8;
const POSIX_MEMALIGN: u8 = Function::PosixMemalign as u8;
const ALIGNED_ALLOC: u8 = Function::AlignedAlloc as u8;
const RUST_REALLOC: u8 = Function::RustRealloc as u8;
const HEAP_CALLOC: u8 = Function::HeapCalloc as u8;
const HEAP_REALLOC: u8 = Function::HeapRealloc as u8;

/// Whether a session program runs for the return: at entry the instruction pointer is the probe's own address, at return
/// it is the caller's (kernel/events/uprobes.c, `handle_trampoline`), which is never a probed first instruction.
#[inline(always)]
pub(crate) fn is_return(regs: *mut pt_regs) -> bool {
    // SAFETY: the kernel passes its registers as the context; both helpers take it.
    unsafe { bpf_get_func_ip(regs.cast::<c_void>()) != (*regs).rip }
}

/// Reads and counts the cookie of the probe that was hit; nothing if another probe at the same place sees the thread.
#[inline(always)]
fn arrive(regs: *mut pt_regs, thread: *mut ThreadRecord) -> Option<ProbeCookie> {
    // SAFETY: the helper takes the context as it was passed.
    let cookie = ProbeCookie::from_bits(unsafe { bpf_get_attach_cookie(regs.cast::<c_void>()) });
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    if u32::from(cookie.for_children) != unsafe { (*thread).for_children } {
        return None;
    }
    count(thread, cookie.hit_slot as usize);
    Some(cookie)
}

/// Tells user space when the thread has seen so many calls that what they cost is to be looked at.
#[inline(always)]
fn tell_of_hits(settings: &Settings, thread: *mut ThreadRecord) {
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    unsafe {
        (*thread).hits.untold += 1;
        if (*thread).hits.untold >= u64::from(settings.look_after) {
            let hits = (*thread).hits.untold;
            (*thread).hits.untold = 0;
            lifecycle::many_hits((*thread).incarnation, hits);
        }
    }
}

/// Adds to one of the thread's own hit counters.
#[inline(always)]
fn count(thread: *mut ThreadRecord, slot: usize) {
    // SAFETY: `thread` points to the current thread's map value, which only it writes; the slot is masked.
    unsafe { (*thread).hits.slots[slot & (leakscope_common::HIT_SLOTS - 1)] += 1 };
}

/// The time, CLOCK_MONOTONIC nanoseconds, as of the thread's last look at the clock in this tick of 1 to 10 ms.
#[inline(always)]
fn now(thread: *mut ThreadRecord) -> u64 {
    // SAFETY: `thread` points to the current thread's map value, which only it writes; the helpers take nothing.
    unsafe {
        let jiffies = bpf_jiffies64();
        if (*thread).now_jiffies != jiffies {
            (*thread).now_jiffies = jiffies;
            (*thread).now_ns = bpf_ktime_get_ns();
        }
        (*thread).now_ns
    }
}

/// Whether a call at the same stack pointer as the one in flight is what that one ended in: a jump to another allocating
/// function (glibc's `realloc(NULL, n)` jumps to `malloc`). The return address on the stack is then the return probe's, in the
/// kernel's page for uprobes; a new call, after one that never returned, has pushed one of the program's own.
#[inline(always)]
fn is_tail_call(incarnation: u32, stack_pointer: u64) -> bool {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(stack_pointer as *const u64) }
        .is_ok_and(|address| !unwind::is_own_code(incarnation, address))
}

/// Entry of an allocating function. `session`: the value returned says whether the return is trapped.
#[inline(always)]
pub(crate) fn enter(regs: *mut pt_regs, session: bool) -> u32 {
    let (Some(settings), Some(thread)) = (settings(), filter::current_thread()) else {
        return NO_RETURN;
    };
    let Some(cookie) = arrive(regs, thread) else {
        return NO_RETURN;
    };
    tell_of_hits(settings, thread);
    // SAFETY: the kernel passes its registers as the context.
    let (first, second, third, fourth, stack_pointer) = unsafe {
        (
            (*regs).rdi,
            (*regs).rsi,
            (*regs).rdx,
            (*regs).rcx,
            (*regs).rsp,
        )
    };
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let inflight = unsafe { &mut (*thread).inflight };
    if inflight.stack_pointer != 0 {
        if stack_pointer < inflight.stack_pointer {
            return NO_RETURN;
        }
        // SAFETY: as above.
        let incarnation = unsafe { (*thread).incarnation };
        if stack_pointer == inflight.stack_pointer && is_tail_call(incarnation, stack_pointer) {
            return NO_RETURN;
        }
        lose(Loss::CallNeverReturned);
    }
    let function = cookie.function;
    let (argument, size) = match function {
        CALLOC => (0, first.wrapping_mul(second)),
        REALLOC => (first, second),
        REALLOC_ARRAY => (first, second.wrapping_mul(third)),
        HEAP_CALLOC => (0, second.wrapping_mul(third)),
        RUST_REALLOC => (first, fourth),
        HEAP_REALLOC => (second, third),
        POSIX_MEMALIGN => (first, third),
        ALIGNED_ALLOC => (0, second),
        _ => (0, first),
    };
    let rejected = size < settings.min_size || size > settings.max_size;
    let reallocates = matches!(
        function,
        REALLOC | REALLOC_ARRAY | RUST_REALLOC | HEAP_REALLOC
    );
    inflight.old_taken = 0;
    if reallocates && argument != 0 {
        take_old(thread, argument);
    } else if rejected && session {
        inflight.stack_pointer = 0;
        return NO_RETURN;
    }
    inflight.stack_pointer = stack_pointer;
    inflight.size = size;
    inflight.argument = argument;
    inflight.function = function as u32;
    inflight.rejected = rejected as u32;
    if !rejected {
        // SAFETY: as above.
        let (ip, bp) = unsafe { ((*regs).rip, (*regs).rbp) };
        inflight.site = stack::capture(thread, ip, stack_pointer, bp, cookie.to_bits());
    }
    GO_ON
}

/// Takes the block that a `realloc` is given out of the table, now: once it has freed the block, another thread may be given its address at any
/// time. The verifier follows it by itself: see [`stack::capture`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn take_old(thread: *mut ThreadRecord, argument: u64) -> u32 {
    let Some(settings) = stack::settings_for(thread) else {
        return GO_ON;
    };
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let (incarnation, live_mask) = unsafe { ((*thread).incarnation, (*thread).live_mask) };
    if let Some(old) = live::remove(live_mask, incarnation, argument) {
        stack::count_free(settings, &old);
        // SAFETY: as above.
        unsafe {
            (*thread).inflight.old = old;
            (*thread).inflight.old_taken = 1;
        }
    } else {
        unknown_free(settings, thread, argument);
    }
    GO_ON
}

/// Return of an allocating function.
#[inline(always)]
pub(crate) fn leave(regs: *mut pt_regs) -> u32 {
    let Some(thread) = filter::known_thread() else {
        return GO_ON;
    };
    // SAFETY: the kernel passes its registers as the context.
    let (result, stack_pointer) = unsafe { ((*regs).rax, (*regs).rsp) };
    returned(thread, result, stack_pointer)
}

/// An allocating function has returned `result`. The verifier follows it by itself: see [`stack::capture`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn returned(thread: *mut ThreadRecord, result: u64, stack_pointer: u64) -> u32 {
    let Some(settings) = stack::settings_for(thread) else {
        return GO_ON;
    };
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let inflight = unsafe { &mut (*thread).inflight };
    let expected = inflight.stack_pointer + RETURN_ADDRESS;
    if inflight.stack_pointer == 0 && inflight.returned_stack_pointer == stack_pointer {
        return GO_ON;
    }
    if inflight.stack_pointer == 0 || stack_pointer > expected {
        lose(Loss::ReturnWithoutCall);
        return GO_ON;
    }
    if stack_pointer < expected {
        // A nested call's.
        return GO_ON;
    }
    inflight.stack_pointer = 0;
    inflight.returned_stack_pointer = stack_pointer;
    let function = inflight.function as u8;
    let address = if function == POSIX_MEMALIGN {
        if result as u32 != 0 {
            return GO_ON;
        }
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_user(inflight.argument as *const u64) } {
            Ok(address) => address,
            Err(_) => {
                lose(Loss::ResultUnreadable);
                return GO_ON;
            }
        }
    } else {
        result
    };
    if address == 0 {
        // A failed realloc leaves the old block as it was; with size 0 it freed it (glibc).
        if inflight.old_taken != 0 && inflight.size != 0 {
            let old = inflight.old;
            stack::uncount_free(settings, &old);
            // SAFETY: `thread` points to the current thread's map value, which only it writes.
            let live_mask = unsafe { (*thread).live_mask };
            live::insert(settings, live_mask, inflight.argument, &old);
        }
        return GO_ON;
    }
    if inflight.rejected != 0 {
        return GO_ON;
    }
    let block = Block {
        size: inflight.size,
        born_ns: now(thread),
        site: inflight.site,
        // SAFETY: `thread` points to the current thread's map value, which only it writes.
        incarnation: unsafe { (*thread).incarnation },
    };
    stack::count_alloc(settings, &block);
    // SAFETY: as above.
    let live_mask = unsafe { (*thread).live_mask };
    if let Some(stale) = live::insert(settings, live_mask, address, &block) {
        // A time of birth of 0: a block of an earlier window, whose free nobody could see.
        if stale.born_ns != 0 {
            lose(Loss::StaleBlock);
        }
        stack::count_free(settings, &stale);
    }
    GO_ON
}

/// Entry of a freeing function.
#[inline(always)]
pub(crate) fn release(regs: *mut pt_regs) -> u32 {
    let (Some(settings), Some(thread)) = (settings(), filter::current_thread()) else {
        return GO_ON;
    };
    let Some(cookie) = arrive(regs, thread) else {
        return GO_ON;
    };
    tell_of_hits(settings, thread);
    // SAFETY: the kernel passes its registers as the context.
    let (address, stack_pointer) =
        unsafe { ((*regs).rdi, (*regs).rsp + cookie.stack_moved as u64) };
    if address == 0 {
        return GO_ON;
    }
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let inflight = unsafe { &(*thread).inflight };
    if inflight.stack_pointer != 0
        && stack_pointer <= inflight.stack_pointer
        && inflight.argument == address
        && inflight.function != POSIX_MEMALIGN as u32
    {
        // realloc gives its old block back; that was counted at its entry.
        return GO_ON;
    }
    freed(thread, address)
}

/// A block is freed. The verifier follows it by itself: see [`stack::capture`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn freed(thread: *mut ThreadRecord, address: u64) -> u32 {
    let Some(settings) = stack::settings_for(thread) else {
        return GO_ON;
    };
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let (incarnation, live_mask) = unsafe { ((*thread).incarnation, (*thread).live_mask) };
    match live::remove(live_mask, incarnation, address) {
        Some(block) => stack::count_free(settings, &block),
        None => unknown_free(settings, thread, address),
    }
    GO_ON
}

/// Counts a free of a block that the table does not hold, unless thinning explains it, or the block cannot be from before the trace.
#[inline(always)]
fn unknown_free(settings: &Settings, thread: *mut ThreadRecord, address: u64) {
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let (incarnation, live_mask) = unsafe { ((*thread).incarnation, (*thread).live_mask) };
    if thin_keeps(live_key(incarnation, address), settings.thin_shift)
        && live::is_first_free(live_mask, incarnation, address)
    {
        count(thread, UNKNOWN_FREE_SLOT);
    }
}
