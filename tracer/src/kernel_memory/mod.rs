//! What the kernel itself holds, and for whom, as far as `/proc`, `/sys` and control groups tell without a probe: slab
//! caches, stacks, page tables, and what each process makes it hold, its descriptors before all.
//!
//! Owns the text formats of these files; every read is bounded. Must not know what a growth of them means.

mod allocinfo;
mod cgroup;
mod descriptors;
mod holdings;
mod machine;
mod meminfo;
mod sampled;
mod slab;

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

pub use cgroup::{CgroupMemory, MemoryCgroup};
pub use descriptors::{DescriptorKinds, KindCount, count as count_descriptors, limit, read_kinds};
pub use holdings::{HoldingKind, Holdings, Zombies};
pub use machine::{Machine, MachineLook, read_machine_once};
pub use meminfo::{ClassKind, MemoryClass};
pub use slab::{Slab, SlabNames, makes_slabs};

/// Reads a file of the kernel, at most so many bytes of it: what is longer is cut off.
///
/// # Errors
/// It cannot be opened or read.
fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A whole number in text, spaces around it aside.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The lines of a text that are UTF-8; others, which no kernel writes, are passed over.
fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
}
