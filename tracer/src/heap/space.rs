//! How full a heap is: what is in use, and what is free between that and cannot be given back. A walk along its blocks, without
//! types and pointers.

use serde::{Deserialize, Serialize};

use super::{
    look::walk,
    memory::{Memory, Region},
};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Blocks in use.
    pub blocks: u64,
    /// Bytes of them that the program may use.
    pub bytes: u64,
    /// Bytes free inside the heap, no more than are in memory or swapped out.
    pub free_bytes: u64,
    /// In how many pieces.
    pub free_pieces: u64,
    /// Bytes at the ends of the heaps.
    pub top_bytes: u64,
}

/// Walks the heap. `None` where no allocator is known whose heap could be walked.
#[must_use]
pub fn space(memory: &dyn Memory, regions: &[Region], is_python: bool) -> Option<Space> {
    let (found, blocks, _) = walk(memory, regions, is_python, &[])?;
    let mut space = Space {
        // A page that was given back (`malloc_trim`) is free, and no memory.
        free_bytes: found.free_bytes.min(found.present_bytes),
        free_pieces: found.free_pieces,
        top_bytes: found.top_bytes,
        ..Space::default()
    };
    for (.., length) in blocks.iter() {
        space.blocks += 1;
        space.bytes = space.bytes.saturating_add(length);
    }
    Some(space)
}
