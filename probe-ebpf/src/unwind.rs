//! The walk: from the probed function's entry, or from wherever the thread entered the kernel, to the end of the user stack.
//!
//! One `bpf_loop` (Linux 5.17), a frame for each iteration. The probed function has just been called, so that its
//! return address stands at the stack pointer and the caller's frame pointer in bp; from there on each frame is left by
//! the row of its file's unwind table. Only an undefined return address is an end; everything else cuts the stack short,
//! is counted, and marks the stack.
//!
//! The walk's state lives in the thread's record, not on the BPF stack: kernels before 6.7 check a loop's callback once, with
//! what they know of the stack at the first iteration, and drop the branches that this iteration cannot take.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use leakscope_common::{
    BpRule, CfaRule, Loss, MAPPING_EVAL, MAPPING_FRAME_POINTERS, MAPPING_GAPS_KEEP_FRAME_POINTERS,
    MAPPING_INTERPRETER, MAPPING_NO_TABLE, MAPPING_UPROBES, MAX_FRAMES, PYTHON_NOT_SOUGHT,
    REMEMBERED_ROWS, RememberedRows, SLICE_SLOTS, STACK_COMPLETE, STACK_FAULT, STACK_LIMIT,
    STACK_NO_RULE, STACK_UNKNOWN_MAPPING, Settings, Slice, StackRecord, ThreadRecord, UnwindRow,
    WALK_NATIVE, WALK_PYTHON, WALK_PYTHON_ONLY, WalkState, remembered_slot,
};

use crate::maps::{MAPPINGS, SLICES, UNWIND_PAGES, UNWIND_ROWS, lose};
use crate::python::step_python;
use crate::window::{NO_WINDOW, Window};

/// Frames that one frame-pointer step may skip at most, bytes: more than any stack is large by default (8 MiB,
/// `RLIMIT_STACK`) is a broken chain.
const MAX_FRAME_BYTES: u64 = 8 << 20;

/// Steps of one walk at most: frames of an interpreter that are left out take one each. The callback is followed once, however many there are.
const MOST_STEPS: u32 = 640;

/// From so many frames on those of an interpreter's own code are left out.
const FOLDED_FROM: u32 = 64;

/// Steps of the search among a process's mappings: 2^12 = 4,096 executable mappings.
const MAPPING_SEARCH_STEPS: u32 = 12;
/// Steps of the search among a page's rows: 2^16 addresses, so at most as many rows.
const ROW_SEARCH_STEPS: u32 = 16;

/// What a walk found.
pub(crate) struct Walk {
    /// Number of frames, in the thread's record.
    pub(crate) depth: u32,
    /// `STACK_*`.
    pub(crate) flags: u32,
    /// Hash of (incarnation, frames).
    pub(crate) tag: u64,
    /// Second hash.
    pub(crate) check: u64,
}

/// What each step is handed: the way to the thread's record, and what was read of the stack.
#[repr(C)]
struct Context {
    thread: *mut ThreadRecord,
    window: Window,
}

impl Context {
    #[inline(always)]
    const fn new(thread: *mut ThreadRecord) -> Self {
        Self {
            thread,
            window: Window::new(),
        }
    }
}

/// Multipliers of the two hashes: odd, with well-spread bits (the golden ratio and the fractional part of sqrt 3 in 64 bits).
const TAG_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const CHECK_MULTIPLIER: u64 = 0xbb67_ae85_84ca_a73b;

/// Appends a frame; `false` when there is no room.
#[inline(always)]
pub(crate) fn push(state: &mut WalkState, stack: &mut StackRecord, ip: u64) -> bool {
    let depth = state.depth as usize;
    if depth >= MAX_FRAMES {
        return false;
    }
    stack.frames[depth & MAX_FRAMES] = ip;
    state.depth = depth as u32 + 1;
    let tag = (state.tag ^ ip).wrapping_mul(TAG_MULTIPLIER);
    state.tag = tag ^ (tag >> 29);
    let check = (state.check.wrapping_add(ip)).wrapping_mul(CHECK_MULTIPLIER);
    state.check = check ^ (check >> 32);
    true
}

/// Cuts the stack short.
#[inline(always)]
fn cut(state: &mut WalkState, flag: u16, loss: Loss) -> i64 {
    state.flags = flag as u32;
    lose(loss);
    STOP
}

/// Cuts the stack short where there is no more room for frames.
#[inline(always)]
pub(crate) fn cut_at_limit(state: &mut WalkState) -> i64 {
    cut(state, STACK_LIMIT, Loss::UnwindTooDeep)
}

/// A step of the loop says whether there are more.
pub(crate) const STOP: i64 = 1;
pub(crate) const CONTINUE: i64 = 0;

/// Walks the current thread's user stack into its record, from a function's first instructions on.
#[inline(always)]
pub(crate) fn walk(
    settings: &Settings,
    thread: *mut ThreadRecord,
    &Registers { ip, sp, bp }: &Registers,
) -> Walk {
    begin(settings, thread, sp.wrapping_add(8), bp);
    // SAFETY: `thread` points to the current thread's map value, which only it writes; its fields do not overlap.
    let (state, stack) = unsafe { (&mut (*thread).walk, &mut (*thread).stack) };
    push(state, stack, ip);
    let mut context = Context::new(thread);
    match context.window.refill(&mut state.window_base, sp) {
        Ok(caller) => {
            state.ip = caller;
            state.pending = 1;
            run(&mut context);
        }
        Err(_) => {
            cut(state, STACK_FAULT, Loss::UnwindFault);
        }
    }
    found(thread)
}

/// Walks the current thread's user stack from the middle of a function on. `executed`: bytes by which the instruction that is looked up
/// lies before `ip`: 1 behind a system call, 0 at an instruction that faulted.
#[inline(always)]
pub(crate) fn walk_within(
    settings: &Settings,
    thread: *mut ThreadRecord,
    registers: &Registers,
    executed: u64,
) -> Walk {
    begin(settings, thread, registers.sp, registers.bp);
    // SAFETY: `thread` points to the current thread's map value, which only it writes; its fields do not overlap.
    let (state, stack) = unsafe { (&mut (*thread).walk, &mut (*thread).stack) };
    push(state, stack, registers.ip);
    // Each step looks up the byte before.
    state.ip = registers.ip.wrapping_sub(executed).wrapping_add(1);
    let mut context = Context::new(thread);
    // That it cannot be read, the step that needs it finds.
    let _ = context.window.refill(&mut state.window_base, registers.sp);
    run(&mut context);
    found(thread)
}

/// The stack of a thread of which only the instruction that it is at is known for sure: it is cut short there.
#[inline(always)]
pub(crate) fn walk_no_further(
    settings: &Settings,
    thread: *mut ThreadRecord,
    registers: &Registers,
) -> Walk {
    begin(settings, thread, registers.sp, registers.bp);
    // SAFETY: `thread` points to the current thread's map value, which only it writes; its fields do not overlap.
    let (state, stack) = unsafe { (&mut (*thread).walk, &mut (*thread).stack) };
    push(state, stack, registers.ip);
    cut(state, STACK_NO_RULE, Loss::UnwindNoRule);
    found(thread)
}

/// What a walk begins with.
pub(crate) struct Registers {
    /// The instruction pointer.
    pub(crate) ip: u64,
    /// The stack pointer.
    pub(crate) sp: u64,
    /// The frame pointer.
    pub(crate) bp: u64,
}

/// Sets the walk's state to the beginning.
#[inline(always)]
fn begin(settings: &Settings, thread: *mut ThreadRecord, sp: u64, bp: u64) {
    // SAFETY: `thread` points to the current thread's map value.
    let incarnation = unsafe { (*thread).incarnation };
    let slice = slice_of(incarnation);
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let state = unsafe { &mut (*thread).walk };
    // One by one, and what the first look at a mapping writes not at all: a loop over bytes would set it to 0 (aya-ebpf, `memset`).
    state.sp = sp;
    state.bp = bp;
    state.tag = incarnation as u64;
    state.check = !(incarnation as u64);
    state.slice = slice;
    state.frame_pointers_only = settings.frame_pointers_only;
    // No address is below: the mapping is looked for.
    state.end = 0;
    state.depth = 0;
    state.flags = 0;
    state.bp_lost = 0;
    state.frame_flags = 0;
    state.window_base = NO_WINDOW;
    state.pending = 0;
    state.python = WALK_NATIVE;
    state.python_frame = PYTHON_NOT_SOUGHT;
    // SAFETY: as above.
    unsafe {
        if (*thread).remembered.slice != slice {
            forget(thread, slice);
        }
    }
}

/// Drops the rows that were found with another slice.
#[inline(never)]
fn forget(thread: *mut ThreadRecord, slice: u64) {
    let mut index = 0;
    while index < REMEMBERED_ROWS {
        // SAFETY: `thread` points to the current thread's map value, which only it writes; `index` is inside the array.
        unsafe { core::ptr::write_volatile(&raw mut (*thread).remembered.rows[index].ip, 0) };
        index += 1;
    }
    // SAFETY: as above.
    unsafe { (*thread).remembered.slice = slice };
}

/// Leaves frame after frame.
#[inline(always)]
fn run(context: &mut Context) {
    // SAFETY: the callback has the signature that the helper asks for and the context outlives the loop.
    unsafe {
        bpf_loop(
            MOST_STEPS,
            step as *mut c_void,
            (&raw mut *context).cast::<c_void>(),
            0,
        );
    }
}

/// What the walk found.
#[inline(always)]
fn found(thread: *mut ThreadRecord) -> Walk {
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let state = unsafe { &mut (*thread).walk };
    if state.flags == 0 {
        cut_at_limit(state);
    }
    Walk {
        depth: state.depth,
        flags: state.flags,
        tag: state.tag,
        check: state.check,
    }
}

/// Looks at one frame: leaves a native one, or records one of Python.
unsafe extern "C" fn step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the loop hands over the context that `walk` gave it, with the current thread's map value, which only it writes; its
    // fields do not overlap.
    let (thread, state, stack, window, remembered) = unsafe {
        let context = &mut *context.cast::<Context>();
        let thread = context.thread;
        (
            thread,
            &mut (*thread).walk,
            &mut (*thread).stack,
            &mut context.window,
            &mut (*thread).remembered,
        )
    };
    if state.python & WALK_PYTHON != 0 {
        return step_python(thread, state, stack, window);
    }
    let went = step_native(state, stack, window, remembered);
    if went == STOP && state.flags & (STACK_COMPLETE | STACK_LIMIT) as u32 == 0 {
        // The rest of the stack is not known; what the interpreter knows of it is.
        state.python = WALK_PYTHON_ONLY;
        return CONTINUE;
    }
    went
}

/// Leaves a native frame, or has the Python frames recorded that it runs.
#[inline(always)]
fn step_native(
    state: &mut WalkState,
    stack: &mut StackRecord,
    window: &mut Window,
    remembered: &mut RememberedRows,
) -> i64 {
    if state.frame_pointers_only != 0 {
        return if record(state, stack) {
            step_by_frame_pointer(state, window)
        } else {
            cut_at_limit(state)
        };
    }
    let slot = remembered_slot(state.ip);
    // SAFETY: the slot is inside the array.
    let place = unsafe { &mut *(&raw mut remembered.rows[slot & (REMEMBERED_ROWS - 1)]) };
    let row = if place.ip == state.ip {
        place.row
    } else {
        match search(state) {
            Ok(row) => {
                place.ip = state.ip;
                place.row = row;
                row
            }
            Err(stop) => {
                // Why the walk ends is known; that there is no room beside is of no interest.
                record(state, stack);
                return stop;
            }
        }
    };
    let flags = row.address_low as u32;
    state.frame_flags = flags;
    if flags & MAPPING_INTERPRETER != 0 && state.depth >= FOLDED_FROM {
        state.pending = 0;
    }
    if !record(state, stack) {
        return cut_at_limit(state);
    }
    if flags & MAPPING_EVAL != 0 && state.python == WALK_NATIVE {
        state.python = WALK_PYTHON;
        return CONTINUE;
    }
    if flags & MAPPING_FRAME_POINTERS != 0
        || row.cfa == CfaRule::None as u8 && flags & MAPPING_GAPS_KEEP_FRAME_POINTERS != 0
    {
        return step_by_frame_pointer(state, window);
    }
    apply(state, window, row)
}

/// Records the current frame, if it is not yet; `false` when there is no room.
#[inline(always)]
fn record(state: &mut WalkState, stack: &mut StackRecord) -> bool {
    if state.pending == 0 {
        return true;
    }
    state.pending = 0;
    push(state, stack, state.ip)
}

/// Finds the row of the current frame, with the flags of its mapping in place of the address: those of a mapping that is walked by
/// frame pointers stand alone.
#[inline(always)]
fn search(state: &mut WalkState) -> Result<UnwindRow, i64> {
    // A return address may lie behind its function's end (a call that does not return): look up the call itself.
    let address = state.ip.wrapping_sub(1);
    if (address < state.start || address >= state.end) && !find_mapping(state, address) {
        return Err(cut(
            state,
            STACK_UNKNOWN_MAPPING,
            Loss::UnwindUnknownMapping,
        ));
    }
    if state.mapping_flags & MAPPING_NO_TABLE != 0 {
        return Err(cut(state, STACK_NO_RULE, Loss::UnwindNoRule));
    }
    let row = if state.mapping_flags & MAPPING_FRAME_POINTERS != 0 {
        UnwindRow {
            address_low: 0,
            cfa: 0,
            bp: 0,
            cfa_offset: 0,
            packed: 0,
        }
    } else {
        let row = find_row(state.first_page, address.wrapping_sub(state.bias));
        if row == NO_ROW {
            return Err(cut(state, STACK_NO_RULE, Loss::UnwindNoRule));
        }
        // SAFETY: both are eight bytes without padding, and all bits are valid.
        unsafe { core::mem::transmute::<u64, UnwindRow>(row) }
    };
    Ok(UnwindRow {
        address_low: state.mapping_flags as u16,
        ..row
    })
}

/// Leaves a frame by its row.
#[inline(always)]
fn apply(state: &mut WalkState, window: &mut Window, row: UnwindRow) -> i64 {
    const CFA_NONE: u8 = CfaRule::None as u8;
    const CFA_SP: u8 = CfaRule::Sp as u8;
    const CFA_BP: u8 = CfaRule::Bp as u8;
    const CFA_DEREF_SP: u8 = CfaRule::DerefSp as u8;
    const CFA_DEREF_BP: u8 = CfaRule::DerefBp as u8;
    const CFA_PLT: u8 = CfaRule::Plt as u8;
    const CFA_END: u8 = CfaRule::End as u8;
    const CFA_SIGNAL: u8 = CfaRule::Signal as u8;
    const CFA_SP_FAR: u8 = CfaRule::SpFar as u8;
    const BP_SAME: u8 = BpRule::Same as u8;
    const BP_AT_CFA: u8 = BpRule::AtCfa as u8;
    const BP_AT_BP: u8 = BpRule::AtBp as u8;

    let offset = (row.cfa_offset as i64) * 8;
    let (bp_offset, add) = row.operands();
    let (bp_offset, add) = (bp_offset * 8, add * 8);
    let uses_bp = row.cfa == CFA_BP || row.cfa == CFA_DEREF_BP;
    if uses_bp && state.bp_lost != 0 {
        return cut(state, STACK_NO_RULE, Loss::UnwindUnsupportedRule);
    }
    let base = if uses_bp { state.bp } else { state.sp };
    let mut cfa = base.wrapping_add(offset as u64);
    match row.cfa {
        CFA_SP | CFA_BP => {}
        CFA_SP_FAR => cfa = state.sp.wrapping_add(row.far_offset() * 8),
        CFA_PLT => {
            // The entry's address modulo 16 says whether its index has been pushed.
            if state.ip.wrapping_sub(1) & 15 >= (row.packed >> 8) as u64 {
                cfa = cfa.wrapping_add(8);
            }
        }
        CFA_DEREF_SP | CFA_DEREF_BP => match window.read(&mut state.window_base, cfa) {
            Ok(value) => cfa = value.wrapping_add(add as u64),
            Err(_) => return cut(state, STACK_FAULT, Loss::UnwindFault),
        },
        CFA_END => {
            state.flags = STACK_COMPLETE as u32;
            return STOP;
        }
        CFA_NONE => return cut(state, STACK_NO_RULE, Loss::UnwindNoRule),
        CFA_SIGNAL => return cut(state, STACK_NO_RULE, Loss::UnwindSignalFrame),
        _ => return cut(state, STACK_NO_RULE, Loss::UnwindUnsupportedRule),
    }
    // Stacks grow down (psABI x86_64, 3.2.2): a caller's frame lies above.
    if cfa <= state.sp.wrapping_sub(8) {
        return cut(state, STACK_NO_RULE, Loss::UnwindUnsupportedRule);
    }
    let caller = if row.bp == BP_AT_CFA && bp_offset == -16 {
        // The usual prologue: the saved frame pointer stands below the return address.
        match window.read_pair(&mut state.window_base, cfa.wrapping_sub(16)) {
            Ok([bp, caller]) => {
                state.bp = bp;
                state.bp_lost = 0;
                caller
            }
            Err(_) => return cut(state, STACK_FAULT, Loss::UnwindFault),
        }
    } else {
        if row.bp == BP_AT_CFA || row.bp == BP_AT_BP {
            let slot =
                if row.bp == BP_AT_CFA { cfa } else { state.bp }.wrapping_add(bp_offset as u64);
            match window.read(&mut state.window_base, slot) {
                Ok(bp) => {
                    state.bp = bp;
                    state.bp_lost = 0;
                }
                Err(_) => return cut(state, STACK_FAULT, Loss::UnwindFault),
            }
        } else if row.bp != BP_SAME {
            state.bp_lost = 1;
        }
        match window.read(&mut state.window_base, cfa.wrapping_sub(8)) {
            Ok(caller) => caller,
            Err(_) => return cut(state, STACK_FAULT, Loss::UnwindFault),
        }
    };
    state.sp = cfa;
    next(state, caller)
}

/// Leaves a frame that keeps a frame pointer: the caller's stands at bp, the return address behind it.
#[inline(always)]
fn step_by_frame_pointer(state: &mut WalkState, window: &mut Window) -> i64 {
    let bp = state.bp;
    let known = state.frame_flags & MAPPING_FRAME_POINTERS != 0;
    if bp == 0 && known {
        state.flags = STACK_COMPLETE as u32;
        return STOP;
    }
    if state.bp_lost != 0
        || bp & 7 != 0
        || bp < state.sp.wrapping_sub(8)
        || bp - state.sp.wrapping_sub(8) > MAX_FRAME_BYTES
    {
        return cut(state, STACK_NO_RULE, Loss::UnwindFramePointers);
    }
    match window.read_pair(&mut state.window_base, bp) {
        Ok([saved, caller]) => {
            state.bp = saved;
            state.sp = bp + 16;
            if caller == 0 && known {
                state.flags = STACK_COMPLETE as u32;
                return STOP;
            }
            next(state, caller)
        }
        Err(_) => cut(state, STACK_FAULT, Loss::UnwindFault),
    }
}

/// Goes on with the caller's frame.
#[inline(always)]
fn next(state: &mut WalkState, caller: u64) -> i64 {
    // Below the first page, or in the kernel's half: no code.
    if caller < 4096 || caller >> 56 != 0 {
        return cut(state, STACK_UNKNOWN_MAPPING, Loss::UnwindUnknownMapping);
    }
    state.ip = caller;
    state.pending = 1;
    state.python = WALK_NATIVE;
    CONTINUE
}

/// The slice of a process incarnation ([`Slice::range`]); 0 where there is none.
#[inline(always)]
fn slice_of(incarnation: u32) -> u64 {
    match SLICES.get(incarnation & (SLICE_SLOTS - 1)) {
        Some(slice) if slice.incarnation == incarnation => slice.range,
        _ => 0,
    }
}

/// Finds the mapping of an address in the process's sorted slice and remembers it.
#[inline(always)]
fn find_mapping(state: &mut WalkState, address: u64) -> bool {
    let Some(mapping) = MAPPINGS.get(search_mappings(state.slice, address)) else {
        return false;
    };
    state.start = mapping.start;
    state.end = mapping.end;
    state.bias = mapping.bias;
    state.first_page = mapping.first_page;
    state.mapping_flags = mapping.flags;
    true
}

/// What [`search_mappings`] gives where there is none: beyond the end of `MAPPINGS`.
const NO_MAPPING: u32 = u32::MAX;

/// Finds the mapping of an address in a sorted slice of `MAPPINGS`: its place, or [`NO_MAPPING`].
///
/// The verifier follows it by itself, as [`find_row`]: see there.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn search_mappings(slice: u64, address: u64) -> u32 {
    let first = Slice::first(slice);
    let mut low = 0;
    let mut high = Slice::count(slice);
    let mut step = 0;
    while step < MAPPING_SEARCH_STEPS {
        step += 1;
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        let place = first.wrapping_add(middle);
        let Some(mapping) = MAPPINGS.get(place) else {
            break;
        };
        if address < mapping.start {
            high = middle;
        } else if address >= mapping.end {
            low = middle + 1;
        } else {
            return place;
        }
    }
    NO_MAPPING
}

/// Whether an address lies in code of the process's own: in a known mapping that is not the kernel's place for return
/// probes.
#[inline(always)]
pub(crate) fn is_own_code(incarnation: u32, address: u64) -> bool {
    MAPPINGS
        .get(search_mappings(slice_of(incarnation), address))
        .is_some_and(|mapping| mapping.flags & MAPPING_UPROBES == 0)
}

/// What [`find_row`] gives where there is none: a rule of 255 does not exist.
const NO_ROW: u64 = u64::MAX;

/// Finds the row that covers an ELF virtual address: the last one at or before it; its bits, or [`NO_ROW`].
///
/// A function that the verifier sees as global: it follows it once, by itself. Inside the callback of a `bpf_loop` every state must lie
/// within an earlier one, scalars with their ranges (kernel/bpf/verifier.c, `RANGE_WITHIN`), and each round of the search narrows them:
/// from Linux 6.19 on it followed every way through all rounds, more than a million instructions. So no loop stands in the callback itself.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_row(first_page: u32, address: u64) -> u64 {
    let page = first_page.wrapping_add((address >> 16) as u32);
    let low16 = address as u16;
    let Some(page) = UNWIND_PAGES.get(page) else {
        return NO_ROW;
    };
    let mut low = page.first;
    let mut high = page.end;
    // Invariant: rows before `low` are at or before the address, rows from `high` on behind it.
    let mut step = 0;
    while step < ROW_SEARCH_STEPS + 1 {
        step += 1;
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        let Some(row) = UNWIND_ROWS.get(middle) else {
            return NO_ROW;
        };
        if row.address_low <= low16 {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    // With none in this page, the last row of an earlier page applies.
    match UNWIND_ROWS.get(low.wrapping_sub(1)) {
        // SAFETY: both are eight bytes without padding.
        Some(row) => unsafe { core::mem::transmute::<UnwindRow, u64>(*row) },
        None => NO_ROW,
    }
}
