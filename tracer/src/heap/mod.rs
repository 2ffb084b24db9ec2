//! What a live heap holds, read from outside: which blocks are in use, what they are, which of them nothing points to, and who
//! holds the others.
//!
//! Pure: it works on a list of [`Region`]s and on bytes that a [`Memory`] hands it, so that it is tested on heaps that are made up. A
//! target writes its own heap, and goes on writing while it is read: no size, link or count in it is believed, and every walk is
//! bounded by the memory that there is. Must not know processes, probes or views.

mod blocks;
mod boxed;
mod cells;
mod census;
mod containers;
mod counts;
mod cpython;
mod glibc;
mod graph;
mod holders;
mod jemalloc;
mod look;
mod memory;
mod mimalloc;
mod modules;
mod naming;
mod objects;
mod owners;
mod pooled;
mod space;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;

pub use blocks::{BlockId, Blocks, Segment};
pub use census::{Group, GroupKind};
pub use containers::{Container, Shape, kept, next_words};
pub use counts::{Allocator, Counts, counts_of};
pub use glibc::GLIBC_VERSIONS;
pub(crate) use holders::OTHER_ROOTS;
pub use holders::{Holder, RootName};
pub use look::{Look, LookOptions, LostBlock, confirm, look};
pub use memory::{Memory, Region, RegionKind};
pub use owners::{Owned, OwnerLook, TypeCount};
pub use pooled::{
    BlockObject, ObjectKind, PooledCounts, YoungPool, object_in, pooled, young_pools,
};
pub use space::{Space, space};
