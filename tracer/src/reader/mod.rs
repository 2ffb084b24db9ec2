//! Reads the memory of a live process for the heap reader: which regions it has, their bytes, and what its variables are called.
//! Nothing is stopped and nothing is attached. Must not know what a heap looks like.

mod functions;
mod live;
mod memory;
mod names;
mod regions;
mod registers;
mod stacks;

pub(crate) use functions::{holds_rust, rust_functions};
pub(crate) use live::{Ground, LookTask, look_through};
pub use live::{LookWish, look_at};
pub(crate) use memory::Answering;
pub use memory::{Bounded, ProcessMemory};
pub use names::Names;
pub use regions::{AddressSpaceImage, read_address_space};
pub use registers::WithRegisters;

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{apart::Unread, process::procfs::ProcessError};

/// Why a process's memory cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The process is gone, or its description cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its memory cannot be opened.
    #[error(
        "process {pid}: cannot open {path}: {source}; reading another process's memory needs root or CAP_SYS_PTRACE"
    )]
    Memory {
        /// The process.
        pid: u32,
        /// The file that was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Who walks it for us has no answer.
    #[error("its heap was not walked: {0}")]
    Walk(#[from] Unread),
}
