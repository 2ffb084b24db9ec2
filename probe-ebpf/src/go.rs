//! Blocks that Go's runtime hands out, told of where its function returns: never by a return probe, for the runtime moves stacks and would
//! find a return address that is not its own.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_ktime_get_ns},
    },
};
use leakscope_common::{EventKind, FaultRecord, Loss};

use crate::{
    filter, growth,
    maps::{EVENTS, lose, settings},
    stack,
};

/// User space is woken when this part of what is allowed to wait for other reasons waits: it looks soon whether the blocks stay.
const WAKE_SOONER: u32 = 64;

/// An instruction that returns: the caller's address is on top of the stack and its frame pointer is back, as at a function's entry. The block's
/// address, or its span's, is in the first register for results (Go's ABIInternal, src/cmd/compile/abi-internal.md).
#[inline(always)]
pub(crate) fn handed_out(regs: *mut pt_regs) -> u32 {
    let (Some(settings), Some(thread)) = (settings(), filter::current_thread()) else {
        return 0;
    };
    // SAFETY: the kernel passes its registers as the context.
    let (address, ip, sp, bp) = unsafe { ((*regs).rax, (*regs).rip, (*regs).rsp, (*regs).rbp) };
    let site = stack::capture(thread, ip, sp, bp, 0);
    let record = FaultRecord {
        kind: EventKind::GoBlock as u32,
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        // SAFETY: `thread` points to the current thread's map value, which only it writes.
        incarnation: unsafe { (*thread).incarnation },
        site,
        shift: 0,
        // SAFETY: the helper takes the context as it was passed.
        marks: unsafe { bpf_get_attach_cookie(regs.cast::<c_void>()) } as u32,
        address,
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
    };
    let wakeup = growth::wakeup(settings.wake_bytes / WAKE_SOONER);
    if EVENTS.output::<FaultRecord>(&record, wakeup).is_err() {
        lose(Loss::GoBlockLost);
    }
    0
}
