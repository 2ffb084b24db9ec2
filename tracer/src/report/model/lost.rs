//! What a look at a heap says of a report's sites: which of their blocks no pointer led to.

use serde::{Deserialize, Serialize};

/// Of a site's surviving blocks, those that a look at the heap found, and those that no pointer led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// Blocks that were looked at.
    pub checked: u64,
    /// Of them, those that no pointer in the process leads to, directly or through other blocks.
    pub unreachable: u64,
    /// Their bytes.
    #[serde(default)]
    pub unreachable_bytes: u64,
    /// Of the unreachable ones, those that hang on no other unreachable block.
    #[serde(default)]
    pub direct: u64,
    /// Their bytes.
    #[serde(default)]
    pub direct_bytes: u64,
}

impl Reachability {
    /// Of one block that stands for `weight` of them. `lost`: whether it hangs on no other, if it is unreachable.
    #[must_use]
    pub fn of_block(bytes: u64, lost: Option<bool>, weight: u64) -> Self {
        let blocks = |is: bool| if is { weight } else { 0 };
        let is_direct = lost == Some(true);
        Self {
            checked: weight,
            unreachable: blocks(lost.is_some()),
            unreachable_bytes: bytes.saturating_mul(blocks(lost.is_some())),
            direct: blocks(is_direct),
            direct_bytes: bytes.saturating_mul(blocks(is_direct)),
        }
    }

    /// The sum of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            checked: self.checked.saturating_add(other.checked),
            unreachable: self.unreachable.saturating_add(other.unreachable),
            unreachable_bytes: self
                .unreachable_bytes
                .saturating_add(other.unreachable_bytes),
            direct: self.direct.saturating_add(other.direct),
            direct_bytes: self.direct_bytes.saturating_add(other.direct_bytes),
        }
    }
}
