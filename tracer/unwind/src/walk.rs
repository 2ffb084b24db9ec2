//! The walk over a stack by table rows, in user space: the reference for the one in the probe. Pure: memory and tables are
//! reached through callbacks.

use leakscope_common::{BpRule, CfaRule, UnwindRow};

/// The registers at the entry of a function, before its first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The function's first address: the innermost frame.
    pub ip: u64,
    /// The stack pointer; the return address lies there. Where the probe sits behind instructions that moved it, add back
    /// what they took.
    pub sp: u64,
    /// The frame pointer register, whatever it is used for.
    pub bp: u64,
}

/// What is known of the code at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The row of a table; its rule may be [`CfaRule::None`].
    Row(UnwindRow),
    /// Code that is known to keep frame pointers.
    FramePointers,
    /// A mapping that is known and has no table.
    NoTable,
}

/// How a walk ended. Only [`End::Complete`] is a whole stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// At the outermost frame: an undefined return address, or a frame pointer of 0 in code that keeps frame
    /// pointers (psABI x86_64, 3.4.1: "mark the deepest stack frame by setting the frame pointer to zero").
    Complete,
    /// There are more frames than were asked for.
    Limit,
    /// Stack memory could not be read at this address.
    Fault(u64),
    /// A return address lies in no known mapping.
    UnknownMapping,
    /// A return address lies in a mapping without a table.
    NoTable,
    /// A return address lies in code that its file's table does not describe.
    NoRule,
    /// A return address lies in code whose rule the rows cannot express.
    Unsupported,
    /// At a signal frame.
    Signal,
    /// A rule needs the frame pointer register, which an inner frame had lost.
    FramePointerLost,
    /// A chain of frame pointers that does not lead up the stack.
    FramePointerBroken,
    /// A frame that does not lie above the one it called.
    NotAscending,
    /// A return address of 0 in code that has another rule.
    NullReturnAddress,
}

/// The frames of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Innermost first: the entered function's address, then return addresses.
    pub frames: Vec<u64>,
    /// How it ended.
    pub end: End,
}

/// What is carried from frame to frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The stack pointer at the call, once the return address has been popped.
    pub(super) sp: u64,
    /// `None` once it is lost.
    pub(super) bp: Option<u64>,
}

/// Walks the stack of a thread that has just entered a function.
///
/// The innermost frame needs no rule: at a function's entry CFA = sp + 8. Every other is looked up by `lookup` at return
/// address - 1, which is a byte of the call instruction (`None`: no known mapping), and left by the row that is
/// found. `read` gives the 8 bytes at an address of the thread's memory. At most `max_frames` frames are recorded.
pub fn walk(
    registers: Registers,
    lookup: impl Fn(u64) -> Option<Lookup>,
    mut read: impl FnMut(u64) -> Option<u64>,
    max_frames: usize,
) -> Walk {
    let mut frames = Vec::new();
    let end = if max_frames == 0 {
        End::Limit
    } else {
        frames.push(registers.ip);
        let caller = Frame {
            sp: registers.sp.wrapping_add(8),
            bp: Some(registers.bp),
        };
        follow(caller, &lookup, &mut read, max_frames, &mut frames)
    };
    Walk { frames, end }
}

/// Walks the stack of a thread that is in a system call: `registers.ip` lies behind its `syscall` instruction, as the kernel
/// saved it. Otherwise the same as [`walk`].
pub fn walk_from_system_call(
    registers: Registers,
    lookup: impl Fn(u64) -> Option<Lookup>,
    mut read: impl FnMut(u64) -> Option<u64>,
    max_frames: usize,
) -> Walk {
    let mut frames = Vec::new();
    let frame = Frame {
        sp: registers.sp,
        bp: Some(registers.bp),
    };
    let end = if max_frames == 0 {
        End::Limit
    } else {
        frames.push(registers.ip);
        match step(registers.ip, frame, &lookup, &mut read) {
            Ok(caller) => follow(caller, &lookup, &mut read, max_frames, &mut frames),
            Err(end) => end,
        }
    };
    Walk { frames, end }
}

/// Records return addresses from that of `frame`'s callee on.
fn follow(
    mut frame: Frame,
    lookup: &impl Fn(u64) -> Option<Lookup>,
    read: &mut impl FnMut(u64) -> Option<u64>,
    max_frames: usize,
    frames: &mut Vec<u64>,
) -> End {
    loop {
        if frames.len() >= max_frames {
            return End::Limit;
        }
        let slot = frame.sp.wrapping_sub(8);
        let Some(return_address) = read(slot) else {
            return End::Fault(slot);
        };
        if return_address == 0 {
            return End::NullReturnAddress;
        }
        frames.push(return_address);
        match step(return_address, frame, lookup, read) {
            Ok(caller) => frame = caller,
            Err(end) => return end,
        }
    }
}

/// Leaves the frame that goes on at `resume`, behind a call.
fn step(
    resume: u64,
    frame: Frame,
    lookup: &impl Fn(u64) -> Option<Lookup>,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Frame, End> {
    let address = resume.wrapping_sub(1);
    match lookup(address) {
        Some(Lookup::Row(row)) => leave(row, address, frame, read),
        Some(Lookup::FramePointers) => leave_by_frame_pointer(frame, read),
        Some(Lookup::NoTable) => Err(End::NoTable),
        None => Err(End::UnknownMapping),
    }
}

/// Leaves a frame by a row: what the caller's registers are.
pub(super) fn leave(
    row: UnwindRow,
    address: u64,
    frame: Frame,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Frame, End> {
    let (bp_operand, add) = row.operands();
    let offset = i64::from(row.cfa_offset);
    let at = |base: u64, slots: i64| base.wrapping_add_signed(slots * 8);
    let bp = || frame.bp.ok_or(End::FramePointerLost);
    let mut load = |address: u64| read(address).ok_or(End::Fault(address));

    const SP: u8 = CfaRule::Sp as u8;
    const BP: u8 = CfaRule::Bp as u8;
    const DEREF_SP: u8 = CfaRule::DerefSp as u8;
    const DEREF_BP: u8 = CfaRule::DerefBp as u8;
    const PLT: u8 = CfaRule::Plt as u8;
    const SP_FAR: u8 = CfaRule::SpFar as u8;
    const END: u8 = CfaRule::End as u8;
    const SIGNAL: u8 = CfaRule::Signal as u8;
    const NONE: u8 = CfaRule::None as u8;
    let cfa = match row.cfa {
        SP => at(frame.sp, offset),
        SP_FAR => frame.sp.wrapping_add(row.far_offset() * 8),
        BP => at(bp()?, offset),
        DEREF_SP => at(load(at(frame.sp, offset))?, add),
        DEREF_BP => at(load(at(bp()?, offset))?, add),
        PLT => at(frame.sp, offset + i64::from((address & 15) as i64 >= add)),
        END => return Err(End::Complete),
        SIGNAL => return Err(End::Signal),
        NONE => return Err(End::NoRule),
        _ => return Err(End::Unsupported),
    };
    if cfa <= frame.sp {
        return Err(End::NotAscending);
    }

    const SAME: u8 = BpRule::Same as u8;
    const AT_CFA: u8 = BpRule::AtCfa as u8;
    const AT_BP: u8 = BpRule::AtBp as u8;
    let bp = match (row.bp, frame.bp) {
        (SAME, bp) => bp,
        (AT_CFA, _) => Some(load(at(cfa, bp_operand))?),
        (AT_BP, Some(bp)) => Some(load(at(bp, bp_operand))?),
        _ => None,
    };
    Ok(Frame { sp: cfa, bp })
}

/// Leaves a frame that begins with `push rbp; mov rbp, rsp`: the caller's rbp lies at rbp, the return address above it.
fn leave_by_frame_pointer(
    frame: Frame,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Frame, End> {
    let bp = frame.bp.ok_or(End::FramePointerLost)?;
    if bp == 0 {
        return Err(End::Complete);
    }
    if bp < frame.sp || bp % 8 != 0 {
        return Err(End::FramePointerBroken);
    }
    let sp = bp.checked_add(16).ok_or(End::FramePointerBroken)?;
    let caller = read(bp).ok_or(End::Fault(bp))?;
    Ok(Frame {
        sp,
        bp: Some(caller),
    })
}
