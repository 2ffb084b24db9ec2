//! Go: what its runtime keeps of a program's heap, goroutines and names, read from outside. Nothing is attached, and nothing runs in the
//! program. Must not know what becomes of it.

mod as_bytes;
mod bytes;
mod code;
mod functions;
mod goroutines;
mod pieces;
mod profile;
mod program;
mod spans;
mod types;
mod version;

pub use functions::{FunctionTable, GoFrame};
pub use goroutines::{GoroutineGroup, GoroutineKind, Goroutines, Member, Waiting};
pub use profile::{Bucket, HeapProfile, Swept, scaled};
pub use program::{GoError, Image, Places, Program};
pub use spans::{BlockCount, BlockFate, BlockKind, BlockPlace, SpanCounts};
pub use version::Version;
