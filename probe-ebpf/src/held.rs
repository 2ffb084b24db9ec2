//! What a process's open files hold and no mapping shows. The kernel walks over the process's descriptors (`iter/task_file`) while user
//! space reads, and runs the program for each: nothing is opened, no lock of the target's is waited for.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::seq_file,
    helpers::{bpf_probe_read_kernel, generated::bpf_seq_write},
};
use leakscope_common::{HELD_BY_PIPE, HELD_BY_SOCKET, HeldOffsets, HeldRecord};

use crate::maps::{HELD_DRAFT, HELD_OFFSETS};

/// `S_IFMT`, `S_IFIFO`, `S_IFSOCK` (include/uapi/linux/stat.h).
const TYPE: u16 = 0o170_000;
const PIPE: u16 = 0o010_000;
const SOCKET: u16 = 0o140_000;

/// A slot of a pipe holds a page.
const PAGE: u64 = 4096;

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c): each member takes eight bytes.
#[repr(C)]
struct Visit {
    meta: *const *mut seq_file,
    task: u64,
    descriptor: u32,
    pad: u32,
    file: u64,
}

/// Reads a member of a structure of the kernel; 0 where it cannot be read.
#[inline(always)]
fn member<T: Copy + Default>(structure: u64, offset: u32) -> T {
    let at = structure.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(at) }.unwrap_or_default()
}

/// An open file of the process.
#[inline(always)]
pub(crate) fn by_file(ctx: *mut c_void) -> u32 {
    let Some((offsets, draft)) = HELD_OFFSETS.get(0).zip(HELD_DRAFT.get_ptr_mut(0)) else {
        return 0;
    };
    let visit = ctx.cast::<Visit>();
    // SAFETY: the kernel hands over the visit, and the verifier knows its layout; `draft` comes from the map lookup and was checked, and one
    // thread of user space reads at a time.
    unsafe {
        let file = (*visit).file;
        if file == 0 {
            // The end.
            return 0;
        }
        // The verifier lets no number be made of the address but in a map's memory.
        core::ptr::write_volatile(&raw mut (*draft).object, file);
        let file = core::ptr::read_volatile(&raw const (*draft).object);
        let inode: u64 = member(file, offsets.file_inode);
        let mode: u16 = member(inode, offsets.inode_mode);
        let private: u64 = member(file, offsets.file_private);
        let (kind, object, bytes) = match mode & TYPE {
            PIPE => (HELD_BY_PIPE, private, in_pipe(offsets, private)),
            SOCKET => {
                let sock = member(private, offsets.socket_sock);
                (HELD_BY_SOCKET, sock, in_socket(offsets, sock))
            }
            _ => return 0,
        };
        if bytes == 0 || object == 0 {
            return 0;
        }
        let record = HeldRecord {
            object,
            bytes,
            kind,
            descriptor: (*visit).descriptor,
        };
        let to = core::ptr::read_volatile((*visit).meta);
        bpf_seq_write(
            to,
            (&raw const record).cast::<c_void>(),
            size_of::<HeldRecord>() as u32,
        );
    }
    0
}

/// `head` and `tail` stand before `max_usage`, `ring_size` behind it (include/linux/pipe_fs_i.h): slots that are used.
#[inline(always)]
fn in_pipe(offsets: &HeldOffsets, pipe: u64) -> u64 {
    let head: u32 = member(pipe, offsets.pipe_usage.wrapping_sub(8));
    let tail: u32 = member(pipe, offsets.pipe_usage.wrapping_sub(4));
    let size: u32 = member(pipe, offsets.pipe_usage.wrapping_add(4));
    let used = head.wrapping_sub(tail);
    if used <= size {
        u64::from(used) * PAGE
    } else {
        0
    }
}

/// What was received and not read, and what was sent and not taken: the latter is counted as a whole, or as parts of it are on their way.
#[inline(always)]
fn in_socket(offsets: &HeldOffsets, sock: u64) -> u64 {
    let received: u32 = member(sock, offsets.sock_received);
    let on_their_way = member::<u32>(sock, offsets.sock_sent).saturating_sub(1);
    let queued: u32 = member(sock, offsets.sock_queued);
    let limit = |bytes: u32| {
        if bytes >> 31 == 0 {
            u64::from(bytes)
        } else {
            0
        }
    };
    let sent = limit(on_their_way);
    let waits = limit(queued);
    limit(received) + if sent > waits { sent } else { waits }
}
