//! Call frame information of ELF files to compact rows; pure.
//!
//! This room owns the way from `.eh_frame` and `.debug_frame` to the rows that the probe walks ([`Table`]), the
//! reference for that walk ([`walk()`]), and the tables that are kept by build-id ([`Cache`]). It must not know
//! processes, mappings, BPF maps, or where files lie: it is given bytes and gives tables. Only [`Cache`] does I/O, in a
//! directory that is passed in.
//!
//! # The table
//! Rows are sorted by ELF virtual address and keep its low 16 bits; an index by 64 KiB page says where each page's rows
//! begin ([`Table::lookup`] is the reference for the search). A row holds from its address to the next row's. Gaps between
//! functions are rows with [`CfaRule::None`](leakscope_common::CfaRule::None).
//!
//! # Which rows are kept, and why
//! A stack is walked from the entry of a function (an allocator's), where CFA = sp + 8 without any look-up. Every
//! other frame stands behind a call instruction, and is looked up at return address - 1: the last byte of that
//! instruction. (The return address itself may belong to the next function, where the call was the last
//! instruction of one that does not return.) So only rows that hold the last byte of a call instruction are ever
//! found, and by default all others are left out. What remains is merged where neighbours say the same: 6 to 14 % of all rows.
//!
//! The same holds for a thread that is in a system call: its instruction pointer lies behind the `syscall` instruction,
//! whose rows are kept too, so that stacks of mmap and munmap can be walked ([`walk_from_system_call`]).
//!
//! A byte pattern decides what a call instruction is (`calls.rs`): it finds every near call, and
//! sometimes one where there is none, which costs a row (3 to 6 % more than a disassembler would keep) and is harmless. Rows that are kept without a call:
//! - ends (undefined return address) and signal trampolines: their return addresses may have been planted by the
//!   kernel or a runtime (`__restore_rt`, Go's `goexit`) rather than pushed by a call;
//! - the row that marks the end of the last function.
//!
//! A pruned table must only be asked for return address - 1: for any other address it answers with the rule of
//! another place. Where page faults of writes are to be walked from, [`Kept::Writes`] keeps also the rows of instructions that write
//! (`writes.rs`; 10 to 18 % more rows); only pushes are left out, and must not be asked for. [`Kept::All`] keeps every row.

mod build;
mod cache;
mod calls;
mod disk;
mod elf;
mod entry;
mod expression;
mod frame_info;
mod go;
mod rules;
mod table;
mod walk;
mod writes;

#[cfg(test)]
mod tests;

pub use build::{BuildOptions, Kept, UnwindError, build};
pub use cache::{Cache, FileState, Key, Wanted, build_id};
pub use table::{Stats, Table};
pub use walk::{End, Lookup, Registers, Walk, walk, walk_from_system_call};
