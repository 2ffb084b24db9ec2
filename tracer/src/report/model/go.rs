//! What a report says of a Go runtime.

use serde::{Deserialize, Serialize};

/// A process's Go runtime, as it is seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoUse {
    /// The version that built the program, as it says; `None` where it says none.
    #[serde(default)]
    pub version: Option<String>,
    /// The runtime samples one block for so many bytes in the mean; 0: none, so that there is no heap profile.
    #[serde(default)]
    pub profile_rate_bytes: u64,
    /// Collections since the program began.
    #[serde(default)]
    pub collections: u64,
    /// Those of them since tracing began.
    #[serde(default)]
    pub collections_seen: u64,
    /// How long ago the last of these was, seconds.
    #[serde(default)]
    pub last_collection_s: Option<f64>,
    /// Goroutines that have not ended.
    #[serde(default)]
    pub goroutines: u64,
    /// There were more entries in the profile than are read.
    #[serde(default)]
    pub is_cut: bool,
    /// Its heap, counted from outside, where there is no profile.
    #[serde(default)]
    pub heap: Option<GoHeapUse>,
}

/// The heap of a Go runtime, counted from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoHeapUse {
    /// Blocks in use as of the last collection, and their bytes.
    pub inuse_objects: u64,
    /// See above.
    pub inuse_bytes: u64,
    /// Bytes of blocks that were allocated since.
    pub allocated_since_bytes: u64,
    /// Bytes of all pages that blocks lie in.
    pub span_bytes: u64,
    /// The sizes with the most bytes, largest first.
    pub sizes: Vec<GoSize>,
    /// Blocks are seen where they are handed out.
    pub is_sampled: bool,
}

/// Blocks of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoSize {
    /// Bytes that the runtime takes for one.
    pub block_bytes: u64,
    /// They hold pointers.
    pub has_pointers: bool,
    /// How many there are.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}
