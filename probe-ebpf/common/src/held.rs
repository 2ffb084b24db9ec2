//! What the probe tells of memory that open files hold and no mapping shows: pages of pipes, what waits in sockets.

use crate::layout::layout;

/// Where members of the kernel's structures lie that are read, bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeldOffsets {
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `file.private_data`: of a pipe its `pipe_inode_info`, of a socket its `socket`.
    pub file_private: u32,
    /// `inode.i_mode`.
    pub inode_mode: u32,
    /// `pipe_inode_info.max_usage`, which stands behind `head` and `tail`, and before `ring_size`.
    pub pipe_usage: u32,
    /// `socket.sk`.
    pub socket_sock: u32,
    /// `sock.sk_backlog`, which begins with the bytes that were received and not read.
    pub sock_received: u32,
    /// `sock.sk_wmem_alloc`: one more than the bytes that are on their way.
    pub sock_sent: u32,
    /// `sock.sk_wmem_queued`: bytes that wait to be sent.
    pub sock_queued: u32,
}

/// What an open file holds, as the program writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeldRecord {
    /// The address of the pipe or socket: several descriptors may be of one.
    pub object: u64,
    /// Bytes that it holds.
    pub bytes: u64,
    /// [`HELD_BY_PIPE`] or [`HELD_BY_SOCKET`].
    pub kind: u32,
    /// The descriptor.
    pub descriptor: u32,
}

/// Pages of a pipe.
pub const HELD_BY_PIPE: u32 = 1;
/// What waits in a socket, as the kernel charges for it: packets with what they need.
pub const HELD_BY_SOCKET: u32 = 2;

layout! {
    HeldOffsets = 8 * 4;
    HeldRecord = 8 * 2 + 4 * 2;
}
