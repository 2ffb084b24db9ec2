//! Processes, the ELF files they map, allocator discovery and probe-site selection.
//!
//! The readers take the root of a proc file system (normally `/proc`) so that tests hand them a folder. This room
//! knows nothing of BPF: it says where a probe belongs and why, and leaves attaching it to [`crate::kernel`].

pub mod allocator;
mod by_number;
pub mod container_names;
pub mod discover;
pub mod elf;
mod flow;
pub mod loading;
pub mod open;
pub mod procfs;
pub mod select;
pub mod site;
#[cfg(test)]
mod testing;
