//! Mappings: the system calls that make, move and take away memory, as they come from the program.
//!
//! Where the kernel ties programs to its functions, one program stands at the entry of those that take something away, others at the
//! return of all. Elsewhere one stands where the kernel chooses an address for a new mapping (tracepoint `mmap:vm_unmapped_area`), which
//! sees neither what is taken away nor what is mapped at an address that the program chose: user space finds that by looking. Either
//! costs only who maps. Which call it is and its arguments stand in the thread's user registers, which the kernel keeps as they were at
//! the call. The result stands there only when the call's function has returned: a program at its end is told of it. Only 64-bit calls
//! are seen.

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs},
    },
    programs::{FExitContext, RawTracePointContext},
};
use leakscope_common::{
    EventKind, Loss, MAPPING_BY_ALLOCATOR, MappingRecord, MappingStep, SLICE_NO_STEPS, Settings,
    TELL_PLACES, TELL_STEPS, ThreadRecord, UNKNOWN_SITE,
};

use crate::{
    filter, lifecycle,
    maps::{EVENTS, lose, settings},
    stack,
    unwind::Registers,
};

/// System call numbers (arch/x86/entry/syscalls/syscall_64.tbl).
const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const MUNMAP: u64 = 11;
const BRK: u64 = 12;
const MREMAP: u64 = 25;
const SHMAT: u64 = 30;
const PKEY_MPROTECT: u64 = 329;

/// `PROT_EXEC`, and `PROT_READ | PROT_WRITE | PROT_EXEC` (asm-generic/mman-common.h).
const PROT_EXEC: u64 = 4;
const PROT_ANY: u64 = 7;
/// `MAP_ANONYMOUS` (asm-generic/mman-common.h) and `MAP_DENYWRITE` (asm-generic/mman.h), which the kernel ignores: glibc's dynamic loader
/// sets it when it maps a library. That call has the library's whole length; its code is then mapped into it, at addresses that are known.
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_DENYWRITE: u64 = 0x800;

/// Where `length` lies in `struct vm_unmapped_area_info` (include/linux/mm.h, 6.1 to 7.3), bytes; the tracer compares it with BTF.
const UNMAPPED_LENGTH: usize = 8;

/// Results from here on are errors (`IS_ERR_VALUE`, include/linux/err.h).
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// The user registers of the current thread.
#[inline(always)]
pub(crate) fn user_registers() -> *const pt_regs {
    // SAFETY: the helpers take the current task and return its registers, which live as long as the task.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs }
}

/// Whether the thread is in a call of an allocator that is followed: what it maps there is the allocator's.
#[inline(always)]
fn in_allocator(thread: *const ThreadRecord, stack_pointer: u64) -> bool {
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let entered = unsafe { (*thread).inflight.stack_pointer };
    // A call that never returned lies below where the thread is now.
    entered != 0 && stack_pointer <= entered
}

/// Whether the steps of the thread's process are told of.
#[inline(always)]
fn is_told_of(settings: &Settings, thread: *const ThreadRecord) -> bool {
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let incarnation = unsafe { (*thread).incarnation };
    settings.mappings & TELL_STEPS != 0 && filter::marks_of(incarnation) & SLICE_NO_STEPS == 0
}

/// A record with what every step has.
#[inline(always)]
fn record(thread: *const ThreadRecord, step: MappingStep) -> MappingRecord {
    let id = bpf_get_current_pid_tgid();
    MappingRecord {
        kind: EventKind::Mapping as u32,
        tgid: (id >> 32) as u32,
        // SAFETY: `thread` points to the current thread's map value, which only it writes.
        incarnation: unsafe { (*thread).incarnation },
        thread: id as u32,
        step: step as u32,
        site: UNKNOWN_SITE,
        protection: 0,
        flags: 0,
        marks: 0,
        page_offset: 0,
        address: 0,
        length: 0,
        new_length: 0,
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
    }
}

/// `BPF_RB_AVAIL_DATA`, `BPF_RB_NO_WAKEUP`, `BPF_RB_FORCE_WAKEUP` (include/uapi/linux/bpf.h).
const AVAILABLE: u64 = 0;
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;

/// Flags of `bpf_ringbuf_output` for what user space need not know at once, which looks often enough by itself: it is woken only where
/// more than so many bytes wait for it.
#[inline(always)]
pub(crate) fn wakeup(wake_bytes: u32) -> u64 {
    if EVENTS.query(AVAILABLE) > u64::from(wake_bytes) {
        FORCE_WAKEUP
    } else {
        NO_WAKEUP
    }
}

/// Hands a record to user space.
#[inline(always)]
fn tell(settings: &Settings, record: &MappingRecord) {
    let wakeup = wakeup(settings.wake_bytes);
    if EVENTS.output::<MappingRecord>(record, wakeup).is_err() {
        lose(Loss::MappingLost);
    }
}

/// Entry of munmap and mremap.
#[inline(always)]
pub(crate) fn enter() -> u32 {
    let Some((settings, thread)) = of_followed() else {
        return 0;
    };
    if !is_told_of(settings, thread) {
        return 0;
    }
    let registers = user_registers();
    // SAFETY: the registers are the kernel's; the verifier knows their layout.
    let (call, first, second, third, fourth, sp) = unsafe {
        (
            (*registers).orig_rax,
            (*registers).rdi,
            (*registers).rsi,
            (*registers).rdx,
            (*registers).r10,
            (*registers).rsp,
        )
    };
    if in_allocator(thread, sp) {
        return 0;
    }
    let step = match call {
        MUNMAP => MappingStep::Unmapping,
        MREMAP => MappingStep::Remapping,
        _ => return 0,
    };
    let mut record = record(thread, step);
    record.address = first;
    record.length = second;
    if call == MREMAP {
        record.new_length = third;
        record.flags = fourth as u32;
    }
    tell(settings, &record);
    0
}

/// The kernel has chosen an address for a new mapping, or found none: arguments are the address and a `struct vm_unmapped_area_info`
/// (include/trace/events/mmap.h). The thread holds its process's `mmap_lock`: a stop that is asked for here comes when the call is over.
#[inline(always)]
pub(crate) fn placed(ctx: &RawTracePointContext) -> i32 {
    let Some((settings, thread)) = of_followed() else {
        return 0;
    };
    let address = ctx.arg::<u64>(0);
    let registers = user_registers();
    // SAFETY: the registers are the kernel's; the verifier knows their layout.
    let (call, third, fourth, sp) = unsafe {
        (
            (*registers).orig_rax,
            (*registers).rdx,
            (*registers).r10,
            (*registers).rsp,
        )
    };
    if address >= FIRST_ERROR || !matches!(call, MMAP | MREMAP | SHMAT) {
        return 0;
    }
    // At the functions of these calls more is seen, but not the length of a segment.
    let is_only_way = settings.mappings & TELL_PLACES != 0;
    if !is_only_way && call != SHMAT {
        return 0;
    }
    if call == MMAP
        && fourth & MAP_ANONYMOUS == 0
        && (third & PROT_EXEC != 0 || fourth & MAP_DENYWRITE != 0)
    {
        lifecycle::mapped_code(thread);
    }
    if !is_told_of(settings, thread) || in_allocator(thread, sp) {
        return 0;
    }
    let info = ctx.arg::<u64>(1) as *const u8;
    // SAFETY: the helper checks the address.
    let free = unsafe { bpf_probe_read_kernel(info.add(UNMAPPED_LENGTH).cast::<u64>()) };
    let beginning = beginning(registers);
    let site = stack::capture_within(thread, beginning.ip, beginning.sp, beginning.bp, 1);
    tell_of_place(thread, address, free.unwrap_or(0), site) as i32
}

/// Tells of a mapping that is about to be made at an address, where so many bytes are free. See [`tell_of_change`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tell_of_place(
    thread: *mut ThreadRecord,
    address: u64,
    free: u64,
    site: u32,
) -> u32 {
    let Some(settings) = stack::settings_for(thread) else {
        return 0;
    };
    let registers = user_registers();
    // SAFETY: the registers are the kernel's; the verifier knows their layout.
    let (call, first, second, third, fourth, sixth) = unsafe {
        (
            (*registers).orig_rax,
            (*registers).rdi,
            (*registers).rsi,
            (*registers).rdx,
            (*registers).r10,
            (*registers).r9,
        )
    };
    let mut told = record(thread, MappingStep::Placed);
    match call {
        MMAP => {
            told.length = second;
            told.protection = third as u32;
            told.flags = fourth as u32;
            told.page_offset = (sixth >> 12) as u32;
        }
        MREMAP => {
            told.step = MappingStep::Remapping as u32;
            told.address = first;
            told.length = second;
            told.new_length = third;
            told.flags = fourth as u32;
            tell(settings, &told);
            told.step = MappingStep::Remapped as u32;
            told.length = third;
        }
        _ => {}
    }
    told.address = address;
    told.new_length = free;
    told.site = site;
    tell(settings, &told);
    0
}

/// The end of the kernel's function of one of these calls. Without `MAKES`, only munmap is told of, for which no stack is walked: a program
/// for each function is loaded, and what it cannot need is not verified again.
#[inline(always)]
pub(crate) fn returned<const MAKES: bool>(ctx: &FExitContext) -> u32 {
    let Some((settings, thread)) = of_followed() else {
        return 0;
    };
    // SAFETY: the functions have one argument, behind which their result stands.
    let result = unsafe { *ctx.as_ptr().cast::<u64>().add(1) };
    done::<MAKES>(settings, thread, result)
}

/// Settings and thread, where the process is followed.
#[inline(always)]
fn of_followed() -> Option<(&'static Settings, *mut ThreadRecord)> {
    Some((settings()?, filter::current_thread()?))
}

/// A call has come back with a result.
#[inline(always)]
fn done<const MAKES: bool>(settings: &Settings, thread: *mut ThreadRecord, result: u64) -> u32 {
    let registers = user_registers();
    // SAFETY: the registers are the kernel's; the verifier knows their layout.
    let (call, first, third, fourth, sp) = unsafe {
        (
            (*registers).orig_rax,
            (*registers).rdi,
            (*registers).rdx,
            (*registers).r10,
            (*registers).rsp,
        )
    };
    if !MAKES && call != MUNMAP {
        return 0;
    }
    let failed = result >= FIRST_ERROR;
    if call == MMAP && !failed && third & PROT_EXEC != 0 && fourth & MAP_ANONYMOUS == 0 {
        lifecycle::mapped_code(thread);
    }
    if !is_told_of(settings, thread) {
        return 0;
    }
    let own = in_allocator(thread, sp);
    if own && call != BRK {
        return 0;
    }
    let maps = match call {
        MMAP => !failed,
        MREMAP => !failed,
        BRK => !own && first != 0,
        // What could not be accessed may become memory.
        MPROTECT | PKEY_MPROTECT => !failed && third & PROT_ANY != 0,
        _ => false,
    };
    let site = if MAKES && maps {
        let beginning = beginning(registers);
        stack::capture_within(thread, beginning.ip, beginning.sp, beginning.bp, 1)
    } else {
        UNKNOWN_SITE
    };
    tell_of_change(thread, result, site, u32::from(own))
}

/// Tells of a step that is over, with the site where something was mapped; `own`: 1 if an allocator did it. What it keeps on the BPF stack is in
/// no walk's way, and the verifier follows it by itself: see [`stack::capture`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tell_of_change(
    thread: *mut ThreadRecord,
    result: u64,
    site: u32,
    own: u32,
) -> u32 {
    let Some(settings) = stack::settings_for(thread) else {
        return 0;
    };
    let registers = user_registers();
    // SAFETY: the registers are the kernel's; the verifier knows their layout.
    let (call, first, second, third, fourth) = unsafe {
        (
            (*registers).orig_rax,
            (*registers).rdi,
            (*registers).rsi,
            (*registers).rdx,
            (*registers).r10,
        )
    };
    let failed = result >= FIRST_ERROR;
    let mut record = match call {
        MMAP => {
            if failed {
                return 0;
            }
            let mut record = record(thread, MappingStep::Mapped);
            record.address = result;
            record.length = second;
            record.protection = third as u32;
            record.flags = fourth as u32;
            record
        }
        MUNMAP => {
            if !failed {
                return 0;
            }
            record(thread, MappingStep::UnmapFailed)
        }
        MREMAP => {
            let mut record = record(thread, MappingStep::Remapped);
            record.address = if failed { 0 } else { result };
            record
        }
        BRK => {
            let mut record = record(thread, MappingStep::Broke);
            record.length = result;
            if own != 0 {
                record.marks = MAPPING_BY_ALLOCATOR;
            }
            record
        }
        MPROTECT | PKEY_MPROTECT => {
            if failed {
                return 0;
            }
            let mut record = record(thread, MappingStep::Protected);
            record.address = first;
            record.length = second;
            record.protection = third as u32;
            record
        }
        _ => return 0,
    };
    record.site = site;
    tell(settings, &record);
    0
}

/// Where a walk of the thread's stack begins: where it entered the kernel.
#[inline(always)]
pub(crate) fn beginning(registers: *const pt_regs) -> Registers {
    // SAFETY: the registers are the kernel's; the verifier knows their layout.
    unsafe {
        Registers {
            ip: (*registers).rip,
            sp: (*registers).rsp,
            bp: (*registers).rbp,
        }
    }
}
