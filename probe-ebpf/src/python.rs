//! Python frames: from the current thread to its interpreter's state, and from frame to frame. What stands where, user space says. Knows nothing of
//! native frames.
//!
//! The thread is in the kernel, so that its frames stand still.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel, bpf_probe_read_user, generated::bpf_get_current_task,
};
use leakscope_common::{
    Loss, NO_CFRAME, PYTHON_NOT_SOUGHT, PythonEnd, PythonTable, StackRecord, ThreadRecord,
    WALK_PYTHON_DONE, WALK_PYTHON_ONLY, WalkState, python_frame,
};

use crate::{
    maps::{PYTHONS, lose},
    stack,
    unwind::{CONTINUE, STOP, cut_at_limit, push},
    window::Window,
};

/// The values of the first keys stand in the thread itself, 16 bytes each, those of the others in blocks of as many that it points to behind
/// (`struct pthread`, nptl/descr.h of glibc: `specific_1stblock`, `specific`).
const FIRST_KEYS: u64 = 32;
const KEY_BYTES: u64 = 16;
const MOST_KEYS: u64 = 1024;

/// Words of a frame that are read: of a `PyFrameObject` (368 bytes in 3.9), and of a `_PyInterpreterFrame` (80 bytes).
const OBJECT_WORDS: u32 = 14;
const FRAME_WORDS: u32 = 10;

const END_EACH: u8 = PythonEnd::Each as u8;
const END_MARKED: u8 = PythonEnd::Marked as u8;
const END_BEFORE_MARKED: u8 = PythonEnd::BeforeMarked as u8;

/// The current frame of the thread, and how frames look; 0 where it has none. The verifier follows it by itself: see [`stack::capture`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_python(thread: *mut ThreadRecord) -> u64 {
    let Some(settings) = stack::settings_for(thread) else {
        return 0;
    };
    // SAFETY: `thread` points to the current thread's map value, which only it writes.
    let incarnation = unsafe { (*thread).incarnation };
    // SAFETY: the entry is only read, and its words are replaced one by one, if ever.
    let Some(table) = (unsafe { PYTHONS.get(&incarnation) }) else {
        return 0;
    };
    // SAFETY: as above.
    unsafe { (*thread).walk.python_shape = table.shape };
    match current_frame(table, u64::from(settings.thread_pointer)) {
        Some(frame) => frame,
        None => {
            // A thread whose native frames lead nowhere may have no Python state.
            // SAFETY: as above.
            if unsafe { (*thread).walk.python } != WALK_PYTHON_ONLY {
                lose(Loss::PythonThreadUnknown);
            }
            0
        }
    }
}

/// From the thread pointer to the value of the key, and on.
#[inline(always)]
fn current_frame(table: &PythonTable, thread_pointer: u64) -> Option<u64> {
    if thread_pointer == 0 {
        return None;
    }
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helpers check the addresses.
    unsafe {
        let base = bpf_probe_read_kernel(task.wrapping_add(thread_pointer) as *const u64).ok()?;
        let [is_created, key] = bpf_probe_read_user(table.key as *const [u32; 2]).ok()?;
        let key = u64::from(key);
        if is_created == 0 || key >= MOST_KEYS {
            return None;
        }
        let mut values = base.wrapping_add(u64::from(table.slots));
        if key >= FIRST_KEYS {
            let block = values
                .wrapping_add(FIRST_KEYS * KEY_BYTES)
                .wrapping_add(key / FIRST_KEYS * 8);
            values = bpf_probe_read_user(block as *const u64).ok()?;
        }
        let value = values
            .wrapping_add(key % FIRST_KEYS * KEY_BYTES)
            .wrapping_add(8);
        let state = bpf_probe_read_user(value as *const u64).ok()?;
        if state == 0 {
            return None;
        }
        let frame = state.wrapping_add(u64::from(table.thread_frame));
        let frame = bpf_probe_read_user(frame as *const u64).ok()?;
        if table.cframe == NO_CFRAME {
            return Some(frame);
        }
        bpf_probe_read_user(frame.wrapping_add(u64::from(table.cframe)) as *const u64).ok()
    }
}

/// Records the next Python frame; at the end of those that the current native frame runs, the walk goes on with that. Of the stack, nothing is known
/// to `window` afterwards.
#[inline(always)]
pub(crate) fn step_python(
    thread: *mut ThreadRecord,
    state: &mut WalkState,
    stack: &mut StackRecord,
    window: &mut Window,
) -> i64 {
    if state.python_frame == PYTHON_NOT_SOUGHT {
        state.python_frame = find_python(thread);
    }
    let frame = state.python_frame;
    let shape = state.python_shape;
    let only = state.python == WALK_PYTHON_ONLY;
    // At the end of a run of frames there is either a native one to go on with, or nothing.
    let end = if only { STOP } else { CONTINUE };
    if frame == 0 {
        state.python = WALK_PYTHON_DONE;
        return end;
    }
    let is_index = shape >> 24 & 1 != 0;
    let words = if is_index { OBJECT_WORDS } else { FRAME_WORDS };
    if !window.read_elsewhere(&mut state.window_base, frame, words) {
        state.python_frame = 0;
        state.python = WALK_PYTHON_DONE;
        lose(Loss::PythonFrameUnreadable);
        return end;
    }
    let mark = window.elsewhere(shape >> 32) >> (shape >> 40 & 63) & 0xff;
    let is_marked = mark == shape >> 48 & 0xff;
    let kind = (shape >> 56) as u8;
    state.python_frame = window.elsewhere(shape >> 8);
    if kind == END_BEFORE_MARKED && is_marked {
        if !only {
            state.python = WALK_PYTHON_DONE;
        }
        return CONTINUE;
    }
    let code = window.elsewhere(shape);
    let instruction = window.elsewhere(shape >> 16);
    let position = if is_index {
        u64::from((instruction as u32).wrapping_add(1))
    } else {
        instruction.wrapping_sub(code) >> 1
    };
    if !push(state, stack, python_frame(code, position)) {
        return cut_at_limit(state);
    }
    if !only && (kind == END_EACH || kind == END_MARKED && is_marked) {
        state.python = WALK_PYTHON_DONE;
    }
    CONTINUE
}
