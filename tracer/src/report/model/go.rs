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
}
