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

/// What a process had lost where it ended: its whole heap, traced or not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LostAtExit {
    /// Blocks that no pointer led to and that hang on no other such block.
    pub direct_objects: u64,
    /// Bytes that the program asked for; of those that are not traced, bytes that it could use.
    pub direct_bytes: u64,
    /// Blocks that only lost blocks led to.
    pub indirect_objects: u64,
    /// Their bytes.
    pub indirect_bytes: u64,
    /// Of all lost blocks, those of which the trace does not know who allocated them: before it began, in a parent, by an allocator
    /// within the program, or filtered out.
    pub untraced_objects: u64,
    /// Their bytes.
    pub untraced_bytes: u64,
    /// What the lost blocks are, the most bytes first; the largest groups only.
    pub types: Vec<LostType>,
    /// Threads that ran then.
    pub threads: u64,
    /// Of them, those whose registers could not be read: what only these held counts as lost.
    pub unread_registers: u64,
    /// How long the process was held for the look, seconds.
    pub held_s: f64,
}

/// Lost blocks of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostType {
    /// The type, or the size where no type is known.
    pub name: String,
    /// Blocks.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl LostAtExit {
    /// Adds a lost block. `traced`: the trace knows who allocated it.
    pub fn add(&mut self, bytes: u64, is_direct: bool, traced: bool) {
        let (objects_sum, bytes_sum) = if is_direct {
            (&mut self.direct_objects, &mut self.direct_bytes)
        } else {
            (&mut self.indirect_objects, &mut self.indirect_bytes)
        };
        *objects_sum += 1;
        *bytes_sum = bytes_sum.saturating_add(bytes);
        if !traced {
            self.untraced_objects += 1;
            self.untraced_bytes = self.untraced_bytes.saturating_add(bytes);
        }
    }

    /// Lost blocks.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.direct_objects.saturating_add(self.indirect_objects)
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.direct_bytes.saturating_add(self.indirect_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{LostAtExit, Reachability};

    #[test]
    fn blocks_add_up() {
        let sum = [
            Reachability::of_block(10, None, 2),
            Reachability::of_block(20, Some(true), 2),
            Reachability::of_block(30, Some(false), 1),
        ]
        .into_iter()
        .fold(Reachability::default(), Reachability::and);
        let expected = Reachability {
            checked: 5,
            unreachable: 3,
            unreachable_bytes: 70,
            direct: 2,
            direct_bytes: 40,
        };
        assert_eq!(sum, expected);
        let mut lost = LostAtExit::default();
        lost.add(10, true, true);
        lost.add(20, false, false);
        assert_eq!((lost.objects(), lost.bytes()), (2, 30));
        assert_eq!((lost.untraced_objects, lost.untraced_bytes), (1, 20));
    }
}
