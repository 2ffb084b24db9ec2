//! What a report tells of heaps that were read from outside.

use serde::{Deserialize, Serialize};

use super::Process;
use crate::ledger::Verdict;

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

/// Memory that a process holds by open descriptors alone: files without a name (memfd_create(2)) that it does not map. In no sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldMemory {
    /// How many files.
    pub files: u64,
    /// Bytes of them that are in memory.
    pub bytes: u64,
    /// Bytes a second.
    pub growth_bytes_per_s: f64,
    /// Whether that leaks.
    pub verdict: Verdict,
    /// The evidence, in a sentence.
    pub verdict_reason: String,
}

/// What a heap grows by, as its blocks were counted, of which no site here has a part. In no sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnseenGrowth {
    /// Bytes a second, as the allocator takes them.
    pub growth_bytes_per_s: f64,
    /// How often it was counted.
    pub looks: u64,
    /// Seconds from the first count to the last.
    pub over_s: f64,
    /// Whether that leaks.
    pub verdict: Verdict,
    /// The evidence, in a sentence.
    pub verdict_reason: String,
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

/// Blocks of a site that are of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteType {
    /// The class or type, or the size where only that is known.
    pub name: String,
    /// Blocks.
    pub objects: u64,
    /// Bytes that the program may use of them.
    pub bytes: u64,
}

/// One way by which blocks of a site are held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteHolder {
    /// From the block that holds them to the root.
    pub path: Vec<String>,
    /// Blocks.
    pub objects: u64,
}

/// Something that was counted and speaks for a verdict or against it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Evidence {
    /// No pointer in the process led to some of the site's surviving blocks, in two looks.
    Unreachable {
        /// So many blocks.
        objects: u64,
        /// Of so many that were looked at.
        of: u64,
        /// The process had been traced for so long, seconds.
        watched_s: f64,
    },
    /// Against a leak: one container holds all of the site's blocks, and held fewer of them in the later of two looks.
    Shrinks {
        /// From the container to its root.
        path: Vec<String>,
        /// Blocks in the earlier look.
        before: u64,
        /// Blocks in the later one.
        objects: u64,
    },
}

/// What counting the heap says of a site that was seen in windows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CountedGrowth {
    /// The size of most of its blocks, as the allocator takes it, bytes.
    pub block_bytes: u64,
    /// Bytes by which blocks of its sizes grow each second, as counted, times the site's share of them.
    pub growth_bytes_per_s: f64,
    /// How far that may be off, one standard deviation.
    pub growth_error_bytes_per_s: f64,
    /// Of the old blocks of that size that are still there, the share that is the site's.
    pub share: f64,
    /// How far that may be off, one standard deviation.
    pub share_error: f64,
    /// So often all blocks were counted.
    pub looks: u64,
    /// Seconds since that was done last.
    pub last_age_s: f64,
    /// The site's blocks by size.
    #[serde(default)]
    pub sizes: Vec<CountedSize>,
}

/// Blocks of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedSize {
    /// The size, as the allocator takes it, bytes.
    pub block_bytes: u64,
    /// The site's, of those in use.
    pub objects: u64,
    /// All that there are, whosever they are.
    pub counted_objects: u64,
}
