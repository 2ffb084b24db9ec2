//! What `leakscope heap` shows: one look at a live heap, and its views. Whoever has a [`HeapReport`] has everything that a view
//! shows.

mod dot;
mod html;
mod text;
mod tree;

pub use dot::write_dot;
pub use html::write_html;
pub use text::{HeapStyle, write_text};

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{HeapUse, SCHEMA, Timestamp, names::clean};
use crate::heap::{Group, GroupKind, Look};

/// The result of looking at a heap. Fields may be added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeapReport {
    /// The version of this form.
    pub schema: u32,
    /// The process.
    pub pid: u32,
    /// Its name.
    #[serde(default)]
    pub comm: String,
    /// The allocators whose heaps were walked.
    pub allocators: Vec<String>,
    /// When the look ended, RFC 3339.
    pub captured_at: String,
    /// How full the heap is.
    #[serde(flatten)]
    pub heap: HeapUse,
    /// Anonymous memory of the process that is in memory or swapped out.
    pub anonymous_bytes: u64,
    /// Of it, what lies in no heap that was walked: stacks, data, mappings of its own, other allocators.
    pub unexplained_bytes: u64,
    /// Whether every pointer between blocks was followed, in two looks: else nothing is known to be unreachable.
    #[serde(default)]
    pub reachability_checked: bool,
    /// Bytes of blocks that no root reached in two looks.
    #[serde(default)]
    pub unreachable_bytes: u64,
    /// How many such blocks there are.
    #[serde(default)]
    pub unreachable_objects: u64,
    /// Blocks by type and size, the most bytes first.
    pub groups: Vec<HeapGroup>,
    /// What was not seen, by cause.
    pub losses: BTreeMap<String, u64>,
}

/// Blocks of one type and size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeapGroup {
    /// The class or type; what there is to say otherwise.
    pub name: String,
    /// How that is known: `c++`, `rust`, `python`, `text`, `zero`, `size`.
    pub kind: String,
    /// Bytes that the program may use of each; 0 where blocks of several sizes are together.
    pub block_bytes: u64,
    /// Blocks.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that no root reaches.
    pub unreachable_objects: u64,
    /// Their bytes.
    pub unreachable_bytes: u64,
    /// Of these, blocks that hang on no other unreachable one.
    #[serde(default)]
    pub direct_objects: u64,
    /// Bytes of those.
    #[serde(default)]
    pub direct_bytes: u64,
    /// Who holds the others.
    #[serde(default)]
    pub holders: Vec<HeapHolder>,
    /// How many more blocks than in the look that this one is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_change: Option<i64>,
    /// How many more bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_change: Option<i64>,
}

/// One way by which blocks are held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeapHolder {
    /// From the block that holds them to the root.
    pub path: Vec<String>,
    /// Blocks.
    pub objects: u64,
}

/// By what blocks are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// By type, and by size where no type is known.
    Type,
    /// By size alone.
    Size,
}

/// What is known of the process and the look, beside what it found.
#[derive(Clone, Debug)]
pub struct About {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// When the look ended.
    pub captured_at: Timestamp,
    /// How long it took, seconds.
    pub took_s: f64,
    /// Anonymous memory, in memory or swapped out, bytes.
    pub anonymous_bytes: u64,
    /// Of it, bytes in the heaps that were walked.
    pub heap_anonymous_bytes: u64,
    /// Mappings that were not read, for their file systems may never answer.
    pub unread_mappings: u64,
}

/// A saved look cannot be used.
#[derive(Debug, Error)]
pub enum HeapBaseError {
    /// It is no JSON of this form.
    #[error(
        "it is no heap report: {0}; save one with `leakscope heap -p PID --format json -o FILE`"
    )]
    Form(#[from] serde_json::Error),
    /// Its version is not known.
    #[error("its schema is {0}, and this leakscope knows {SCHEMA}")]
    Schema(u32),
}

impl HeapReport {
    /// Puts together what a look has found.
    #[must_use]
    pub fn new(look: &Look, about: &About, by: GroupBy) -> Self {
        let mut losses = BTreeMap::new();
        for (name, count) in [
            ("torn_bytes", look.torn_bytes),
            ("torn_pools", look.torn_pools),
            ("dropped_pointers", look.dropped_edges),
            (
                "thread_caches_unknown",
                u64::from(look.caches_unknown && look.has_glibc),
            ),
            ("unread_mappings", about.unread_mappings),
        ] {
            if count > 0 {
                losses.insert(name.to_owned(), count);
            }
        }
        let mut allocators = Vec::new();
        if look.has_glibc {
            let plural = if look.arenas == 1 { "" } else { "s" };
            allocators.push(format!("glibc, {} arena{plural}", look.arenas));
        }
        if look.has_pools {
            allocators.push("CPython's pools".to_owned());
        }
        let groups = together(&look.groups, by);
        let sum =
            |part: fn(&HeapGroup) -> u64| groups.iter().map(part).fold(0, u64::saturating_add);
        Self {
            schema: SCHEMA,
            pid: about.pid,
            comm: about.comm.clone(),
            allocators,
            captured_at: about.captured_at.to_string(),
            heap: HeapUse {
                took_s: about.took_s,
                blocks: look.blocks,
                bytes: look.bytes,
                free_bytes: look.free_bytes,
                free_pieces: look.free_pieces,
                top_bytes: look.top_bytes,
            },
            anonymous_bytes: about.anonymous_bytes,
            unexplained_bytes: about
                .anonymous_bytes
                .saturating_sub(about.heap_anonymous_bytes),
            reachability_checked: look.dropped_edges == 0,
            unreachable_bytes: sum(|group| group.unreachable_bytes),
            unreachable_objects: sum(|group| group.unreachable_objects),
            groups,
            losses,
        }
    }

    /// Reads a saved report.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn from_json(bytes: &[u8]) -> Result<Self, HeapBaseError> {
        let report: Self = serde_json::from_slice(bytes)?;
        if report.schema == SCHEMA {
            Ok(report)
        } else {
            Err(HeapBaseError::Schema(report.schema))
        }
    }

    /// Says of each group by how much it has grown since an earlier look; what grew most comes first.
    pub fn compare(&mut self, base: &Self) {
        // Of one type, blocks of another size may have come.
        let key = |group: &HeapGroup| {
            let bytes = if has_type(group) {
                0
            } else {
                group.block_bytes
            };
            (group.name.clone(), group.kind.clone(), bytes)
        };
        let mut before: HashMap<_, _> = base
            .groups
            .iter()
            .map(|group| (key(group), group.clone()))
            .collect();
        for group in &mut self.groups {
            let old = before.remove(&key(group)).unwrap_or_default();
            group.objects_change = Some(difference(group.objects, old.objects));
            group.bytes_change = Some(difference(group.bytes, old.bytes));
        }
        self.groups
            .extend(before.into_values().map(|old| HeapGroup {
                objects_change: Some(difference(0, old.objects)),
                bytes_change: Some(difference(0, old.bytes)),
                name: old.name,
                kind: old.kind,
                block_bytes: old.block_bytes,
                ..HeapGroup::default()
            }));
        self.groups.sort_by(|one, other| {
            (other.bytes_change, &one.name, one.block_bytes).cmp(&(
                one.bytes_change,
                &other.name,
                other.block_bytes,
            ))
        });
    }
}

/// Whether a group is of a type that has a name.
fn has_type(group: &HeapGroup) -> bool {
    matches!(group.kind.as_str(), "c++" | "rust" | "python")
}

/// A group as people read it: its type, and in which language and of which size where that says more.
fn label(group: &HeapGroup) -> String {
    let name = clean(&group.name);
    match (has_type(group), group.block_bytes) {
        (false, _) => name.into_owned(),
        (true, 0) => format!("{name} ({})", group.kind),
        (true, bytes) => format!("{name} ({}, {bytes} B)", group.kind),
    }
}

/// The holders of a group without those that hardly any block has: they tell nothing.
fn notable(group: &HeapGroup) -> impl Iterator<Item = &HeapHolder> {
    const PART: u64 = 50;
    let holders = group.holders.iter();
    holders.filter(|holder| holder.objects.saturating_mul(PART) >= group.objects)
}

/// The groups of which something is lost, the most bytes first.
fn lost(report: &HeapReport) -> Vec<&HeapGroup> {
    let mut lost: Vec<&HeapGroup> = report
        .groups
        .iter()
        .filter(|group| group.unreachable_objects > 0)
        .collect();
    lost.sort_by_key(|group| std::cmp::Reverse((group.direct_bytes, group.unreachable_bytes)));
    lost
}

fn difference(new: u64, old: u64) -> i64 {
    i64::try_from(i128::from(new) - i128::from(old)).unwrap_or(i64::MAX)
}

/// The look's groups, those of one name or size together.
fn together(groups: &[Group], by: GroupBy) -> Vec<HeapGroup> {
    let mut places: HashMap<(String, GroupKind, u64), usize> = HashMap::new();
    let mut all: Vec<HeapGroup> = Vec::new();
    for group in groups {
        let (name, kind, block_bytes) = match by {
            GroupBy::Size => (
                format!("size {}", group.block_bytes),
                GroupKind::Size,
                group.block_bytes,
            ),
            // Objects of one type are of several sizes: text, for one.
            GroupBy::Type if group.kind.has_name() => (group.label(), group.kind, 0),
            GroupBy::Type => (group.label(), group.kind, group.block_bytes),
        };
        let place = *places
            .entry((name.clone(), kind, block_bytes))
            .or_insert_with(|| {
                all.push(HeapGroup {
                    name,
                    kind: kind.name().to_owned(),
                    block_bytes: group.block_bytes,
                    ..HeapGroup::default()
                });
                all.len() - 1
            });
        let Some(sum) = all.get_mut(place) else {
            continue;
        };
        if sum.block_bytes != group.block_bytes {
            sum.block_bytes = 0;
        }
        sum.objects += group.objects;
        sum.bytes = sum.bytes.saturating_add(group.bytes);
        sum.unreachable_objects += group.unreachable_objects;
        sum.unreachable_bytes = sum
            .unreachable_bytes
            .saturating_add(group.unreachable_bytes);
        sum.direct_objects += group.lost_heads;
        sum.direct_bytes = sum.direct_bytes.saturating_add(group.lost_head_bytes);
        sum.holders
            .extend(group.holders.iter().map(|holder| HeapHolder {
                path: holder.path.clone(),
                objects: holder.objects,
            }));
    }
    for group in &mut all {
        group
            .holders
            .sort_by_key(|holder| std::cmp::Reverse(holder.objects));
    }
    all.sort_by(|one, other| {
        (other.bytes, &one.name, one.block_bytes).cmp(&(one.bytes, &other.name, other.block_bytes))
    });
    all
}
