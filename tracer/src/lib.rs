//! leakscope: finds memory leaks in programs that are already running.
//!
//! The rooms, in the order in which data flows through them: [`kernel`] loads and attaches the probe and reads its
//! maps; [`ledger`] (a crate of its own) keeps the surviving blocks per site; [`budget`] says how much may be traced; [`symbol`] names addresses; [`report`] is the immutable result and its
//! views. [`apart`] has their files parsed in a process of its own; [`process`] knows processes and the files they map, [`unwind`] (a crate of its own) turns call frame information into tables,
//! [`kernel_memory`] reads what the kernel holds and for whom, [`heap`] says what a live heap holds, from what [`reader`]
//! reads of the process; [`runtime`] knows what runtimes such as Go's and CPython keep there of themselves; [`session`] is a running trace that ties these together; [`daemon`] answers HTTP with its reports; [`cli`] turns arguments into a plan and runs it.

pub mod apart;
pub mod budget;
pub mod cli;
pub mod daemon;
pub mod heap;
pub mod kernel;
pub mod kernel_memory;
pub mod process;
pub mod reader;
pub mod report;
pub mod runtime;
pub mod screen;
pub mod session;
pub mod symbol;
use leakscope_model::{duration, units};
pub use {leakscope_ledger as ledger, leakscope_unwind as unwind};
