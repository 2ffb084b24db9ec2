//! Blocks by what they are: one group for each type and size. Knows neither addresses nor who holds them.

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::holders::Holder;

/// What tells that a block is of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GroupKind {
    /// A C++ class, by its vtable.
    Cpp,
    /// A type of Rust, by the vtable of a trait object that points to it.
    Rust,
    /// A type of CPython, by the object's type pointer.
    Python,
    /// Text: most bytes can be printed.
    Text,
    /// The beginning is zero throughout.
    Zero,
    /// Nothing but its size.
    Size,
}

impl GroupKind {
    /// Whether blocks are of a type that has a name.
    #[must_use]
    pub fn has_name(self) -> bool {
        matches!(self, Self::Cpp | Self::Rust | Self::Python)
    }

    /// The name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpp => "c++",
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Text => "text",
            Self::Zero => "zero",
            Self::Size => "size",
        }
    }
}

/// The number of a group.
pub(super) type GroupId = u16;

/// The group of blocks for which there was no number left.
pub(super) const OTHER: GroupId = 0;

/// Blocks that are of one type and size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The class or type; `text`, `zero`, or empty where only the size is known.
    pub name: String,
    /// How that is known.
    pub kind: GroupKind,
    /// Bytes that the program may use of each block.
    pub block_bytes: u64,
    /// Where in the block the object begins; what stands before it is the runtime's own.
    pub object_at: u64,
    /// Blocks.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that no root reaches, directly or through others, in two looks.
    pub unreachable_objects: u64,
    /// Their bytes.
    pub unreachable_bytes: u64,
    /// Of the unreachable blocks those that hang on no other unreachable block.
    pub lost_heads: u64,
    /// Bytes of [`Group::lost_heads`].
    pub lost_head_bytes: u64,
    /// Who holds the others, by the shortest paths to roots, the most first.
    pub holders: Vec<Holder>,
}

impl Group {
    fn new(name: String, kind: GroupKind, block_bytes: u64, object_at: u64) -> Self {
        Self {
            name,
            kind,
            block_bytes,
            object_at,
            objects: 0,
            bytes: 0,
            unreachable_objects: 0,
            unreachable_bytes: 0,
            lost_heads: 0,
            lost_head_bytes: 0,
            holders: Vec::new(),
        }
    }

    /// Whether its objects hold no others.
    pub(super) fn is_leaf(&self) -> bool {
        const LEAVES: [&str; 5] = ["str", "bytes", "int", "float", "complex"];
        self.kind == GroupKind::Python && LEAVES.contains(&self.name.as_str())
    }

    /// What a person would call it: the type, or the size where nothing else is known.
    #[must_use]
    pub fn label(&self) -> String {
        match self.kind {
            kind if kind.has_name() => self.name.clone(),
            GroupKind::Text => format!("text of {} B", self.block_bytes),
            GroupKind::Zero => format!("zeroed {} B", self.block_bytes),
            GroupKind::Size if self.block_bytes == 0 => "others".to_owned(),
            _ => format!("size {}", self.block_bytes),
        }
    }
}

/// The groups while blocks are counted.
#[derive(Debug)]
pub(super) struct Census {
    groups: Vec<Group>,
    known: HashMap<(GroupKind, u32, u64, u64), GroupId>,
}

impl Default for Census {
    fn default() -> Self {
        Self {
            groups: vec![Group::new(String::new(), GroupKind::Size, 0, 0)],
            known: HashMap::new(),
        }
    }
}

impl Census {
    /// Counts a block of a kind and type, in which the object begins there; `name` is asked for the group's name when the first of its kind, number and size is counted.
    pub(super) fn add(
        &mut self,
        (kind, type_number, object_at): (GroupKind, u32, u64),
        block_bytes: u64,
        name: impl FnOnce() -> String,
    ) -> GroupId {
        let groups = &mut self.groups;
        let id = *self
            .known
            .entry((kind, type_number, block_bytes, object_at))
            .or_insert_with(|| {
                let Ok(id) = GroupId::try_from(groups.len()) else {
                    return OTHER;
                };
                groups.push(Group::new(name(), kind, block_bytes, object_at));
                id
            });
        if let Some(group) = self.groups.get_mut(usize::from(id)) {
            group.objects += 1;
            group.bytes = group.bytes.saturating_add(block_bytes);
        }
        id
    }

    /// Whether a group is of this type.
    pub(super) fn is(&self, group: GroupId, kind: GroupKind, name: &str) -> bool {
        self.groups
            .get(usize::from(group))
            .is_some_and(|group| group.kind == kind && group.name == name)
    }

    /// The name of a group, if it is of this kind.
    pub(super) fn name(&self, group: GroupId, kind: GroupKind) -> Option<&str> {
        let group = self.groups.get(usize::from(group))?;
        (group.kind == kind).then_some(&group.name)
    }

    /// The groups, by number.
    pub(super) fn into_groups(self) -> Vec<Group> {
        self.groups
    }
}
