//! What a report tells of heaps that were read from outside.

use serde::{Deserialize, Serialize};

use super::Process;

/// How full a heap is, read from outside: all of its blocks, those from before the trace too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeapUse {
    /// How long the look took, seconds.
    pub took_s: f64,
    /// Blocks in use.
    pub blocks: u64,
    /// Bytes of them that the program may use.
    pub bytes: u64,
    /// Bytes free inside the heap.
    pub free_bytes: u64,
    /// In how many pieces.
    pub free_pieces: u64,
    /// Bytes at the ends of the heaps, which `malloc_trim` could give back.
    #[serde(default)]
    pub top_bytes: u64,
}

/// What is free inside a heap is told where it is at least so many bytes, and one part in so many of the process's anonymous memory.
const NOTABLE_FREE: (u64, u64) = (1 << 20, 10);

impl Process {
    /// How full its heap is, where what is free inside explains a notable part of its memory.
    #[must_use]
    pub fn notable_heap(&self) -> Option<&HeapUse> {
        let memory = self.anonymous_bytes.saturating_add(self.swapped_bytes);
        let (least, part) = NOTABLE_FREE;
        self.heap
            .as_ref()
            .filter(|heap| heap.free_bytes >= least && heap.free_bytes >= memory / part)
    }
}
