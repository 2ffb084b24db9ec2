//! What targets can write is parsed in a process apart, the reader: this program once more (`leakscope reader`), without a way to open
//! a file, a socket or a process, with bounded memory and a time for each answer. A file that ends it costs that file's answer. Owns the
//! questions and how they are asked. Knows nothing of what answers are for.
//!
//! Where no process was asked for, as in unit tests and in the reader itself, answers are made here.

mod go;
mod keep;
mod serve;
mod walk;
mod wire;

pub(crate) use go::GoMemory;
pub use serve::serve;
pub use walk::walk_all;
pub(crate) use walk::{
    Place, objects_in, walk_counts, walk_kept, walk_look, walk_next_words, walk_pools, walk_space,
    walk_stopped, walk_young_pools,
};

use std::{
    fs::File,
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    process::{discover::Facts, elf::ElfFile},
    runtime::cpython,
    symbol::{Answered, Generated, Identity, nanoseconds},
    unwind::{Kept, Table},
};
use go::GoQuestion;
use keep::{Readers, Role, Terms};
use walk::Walk;

/// The subcommand that a reader is started with.
pub(crate) const SUBCOMMAND: &str = "reader";

/// This program, even when its file has been replaced.
const OURSELVES: &str = "/proc/self/exe";

/// How an ELF file begins.
const MAGIC: &[u8; 4] = b"\x7fELF";

static READERS: OnceLock<Readers> = OnceLock::new();

/// From now on questions are asked of processes that this program is started as, when they are first needed.
pub fn use_processes() {
    use_program(PathBuf::from(OURSELVES));
}

/// The same with another program: one that tests have built.
pub fn use_program(program: PathBuf) {
    // Those that were chosen first stay.
    let _ = READERS.set(Readers::new(program));
}

/// The processor time that readers have taken for what this thread asked.
pub(crate) fn spent_here() -> Duration {
    keep::spent_here()
}

/// The processor time that readers have taken.
pub(crate) fn spent() -> Duration {
    READERS.get().map_or(Duration::ZERO, Readers::spent)
}

/// How many readers ended or were ended over what they were asked.
#[must_use]
pub fn given_up() -> u64 {
    READERS.get().map_or(0, Readers::given_up)
}

/// Why a file was not read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unread {
    /// The reader ended.
    #[error("the process that reads it for us ended over it")]
    Ended,
    /// It did not answer in this time.
    #[error("reading it takes longer than {} s", .0.as_secs())]
    Late(Duration),
    /// The answer is longer than any honest file's.
    #[error("there is absurdly much in it")]
    TooLong,
    /// A parser failed.
    #[error("it is damaged")]
    Damaged,
    /// No reader can be started.
    #[error("the process that reads it for us cannot be started: {0}")]
    NotStarted(String),
    /// What its owner has has ended too many readers.
    #[error("too much else of its owner could not be read; it is tried again in a minute")]
    Paused,
    /// What the reader said.
    #[error("{0}")]
    Said(String),
}

impl Unread {
    /// Whether it may be read the next time.
    pub(crate) fn is_for_now(&self) -> bool {
        matches!(self, Self::NotStarted(_) | Self::Paused)
    }
}

/// What is asked about a file, or about a file and its separate debug file.
#[derive(Debug, Serialize, Deserialize)]
enum Question<'a> {
    /// What its headers say.
    Headers,
    /// The allocators in it, and where probes go. The path is as the process names it.
    Allocators(Vec<u8>),
    /// Its unwind table.
    Unwinding(Kept),
    /// Whether V8's builtins are in it.
    HoldsV8,
    /// Whether rustc compiled a part of it.
    HoldsRust,
    /// The CPython in it.
    Interpreter,
    /// Functions of Rust whose names have types in them.
    RustFunctions,
    /// The functions at these ELF virtual addresses of a file that had this identity when it was first seen: what was read of it then
    /// holds, whatever became of it. A second file has the debug information.
    Names(Identity, Vec<u64>),
    /// Of a perf map: the functions at these addresses.
    PerfMap(Vec<u64>),
    /// What is in a process's memory, instead of a file.
    #[serde(borrow)]
    Walk(Walk<'a>),
    /// The same of Go's runtime.
    #[serde(borrow)]
    Go(Box<GoQuestion<'a>>),
}

impl Question<'_> {
    fn role(&self) -> Role {
        match self {
            Self::Names(..) | Self::PerfMap(_) | Self::RustFunctions => Role::Names,
            Self::Walk(_) => Role::Memory,
            Self::Go(_) => Role::Runtimes,
            _ => Role::Files,
        }
    }

    /// The longest answer that is believed, bytes. The tracer keeps it.
    fn most(&self) -> usize {
        match self {
            // There is room for why not.
            Self::HoldsV8 | Self::HoldsRust => 4096,
            Self::Headers | Self::Interpreter => 256 << 10,
            Self::Allocators(_) => 1 << 20,
            Self::Names(..) | Self::PerfMap(_) => 8 << 20,
            // 65,536 names of some hundred bytes.
            Self::RustFunctions | Self::Walk(_) | Self::Go(_) => 32 << 20,
            // 12 million rows: three times as many as the largest programs have.
            Self::Unwinding(_) => 96 << 20,
        }
    }
}

/// What the headers of a file say.
///
/// # Errors
/// Why they say nothing.
pub(crate) fn headers(file: &File) -> Result<ElfFile, Unread> {
    if !is_elf(file) {
        return Err(Unread::Said("is not an ELF file".to_owned()));
    }
    ask(&Question::Headers, &[file])
}

/// Whether it begins as ELF files do: most of what is mapped and is none is told apart without a question.
pub(crate) fn is_elf(file: &File) -> bool {
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *MAGIC
}

/// The allocators of a file.
pub(crate) fn allocators(file: &File, path: &Path) -> Result<Facts, Unread> {
    let path = path.as_os_str().as_bytes().to_vec();
    ask(&Question::Allocators(path), &[file])
}

/// The unwind table of a file.
pub(crate) fn unwinding(file: &File, kept: Kept) -> Result<Table, Unread> {
    let bytes: Vec<u8> = ask(&Question::Unwinding(kept), &[file])?;
    Table::from_bytes(&bytes).ok_or(Unread::Damaged)
}

/// Whether V8's builtins are in a file; not, where that cannot be told.
pub(crate) fn holds_v8(file: &File) -> bool {
    ask(&Question::HoldsV8, &[file]).unwrap_or(false)
}

/// Whether rustc compiled a part of a file; not, where that cannot be told.
pub(crate) fn holds_rust(file: &File) -> bool {
    ask(&Question::HoldsRust, &[file]).unwrap_or(false)
}

/// What a file says of the CPython in it; nothing, where that cannot be told.
pub(crate) fn interpreter(file: &File) -> Option<cpython::Facts> {
    ask(&Question::Interpreter, &[file]).ok().flatten()
}

/// Functions of Rust by their addresses.
pub(crate) fn rust_functions(file: &File) -> Result<Vec<(u64, String)>, Unread> {
    ask(&Question::RustFunctions, &[file])
}

/// The functions at some addresses of a file.
pub(crate) fn names(
    (identity, file): (Identity, &File),
    debug: Option<&File>,
    addresses: &[u64],
) -> Result<Answered, Unread> {
    let files: Vec<&File> = [file].into_iter().chain(debug).collect();
    ask(&Question::Names(identity, addresses.to_vec()), &files)
}

/// The functions of a perf map at some addresses.
pub(crate) fn generated(map: &File, addresses: &[u64]) -> Result<Vec<Generated>, Unread> {
    ask(&Question::PerfMap(addresses.to_vec()), &[map])
}

/// A question that was asked to see what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// What was asked for.
    pub what: &'static str,
    /// Whether there was an answer.
    pub is_answered: bool,
    /// How long it took until then.
    pub took: Duration,
    /// The processor time of the reader.
    pub spent: Duration,
}

impl Trial {
    fn of(what: &'static str, ask: impl FnOnce() -> bool) -> Self {
        let (begun, spent) = (Instant::now(), spent_here());
        Self {
            what,
            is_answered: ask(),
            took: begun.elapsed(),
            spent: spent_here().saturating_sub(spent),
        }
    }
}

/// Asks all that is ever asked of a file, for trials.
pub fn ask_all(file: &File, path: &Path) -> Vec<Trial> {
    let places = |elf: &ElfFile| -> Vec<u64> {
        let segments = elf.segments.iter().filter(|segment| segment.executable);
        // The entry, and some in each piece of code.
        let inside = segments.flat_map(|segment| {
            let part = segment.memory_size / 8;
            (0..8).map(move |number| segment.vaddr.wrapping_add(part.wrapping_mul(number)))
        });
        [elf.entry].into_iter().chain(inside).take(64).collect()
    };
    let Ok(metadata) = file.metadata() else {
        return Vec::new();
    };
    let modified = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
    let identity = (metadata.dev(), metadata.ino(), metadata.len(), modified);
    let mut elf = None;
    let first = Trial::of("headers", || {
        elf = headers(file).ok();
        elf.is_some()
    });
    let addresses = elf.as_ref().map(places).unwrap_or_default();
    vec![
        first,
        Trial::of("allocators", || allocators(file, path).is_ok()),
        Trial::of("unwinding", || unwinding(file, Kept::Calls).is_ok()),
        Trial::of("V8", || ask::<bool>(&Question::HoldsV8, &[file]).is_ok()),
        Trial::of("Rust", || {
            ask::<bool>(&Question::HoldsRust, &[file]).is_ok()
        }),
        Trial::of("CPython", || {
            ask::<Option<cpython::Facts>>(&Question::Interpreter, &[file]).is_ok()
        }),
        Trial::of("Rust's functions", || rust_functions(file).is_ok()),
        Trial::of("names", || {
            names((identity, file), None, &addresses).is_ok()
        }),
        Trial::of("perf map", || generated(file, &addresses).is_ok()),
    ]
}

/// Asks about files.
fn ask<A: DeserializeOwned>(question: &Question<'_>, files: &[&File]) -> Result<A, Unread> {
    let terms = Terms {
        most: question.most(),
        patience: None,
        memory: 0,
    };
    ask_about(question, files, terms, &mut |_| Vec::new())
}

/// Asks; `reply` answers what is asked back.
fn ask_about<A: DeserializeOwned>(
    question: &Question<'_>,
    files: &[&File],
    terms: Terms,
    reply: &mut dyn FnMut(&[u8]) -> Vec<u8>,
) -> Result<A, Unread> {
    let said = |error: postcard::Error| Unread::Said(error.to_string());
    let answer = match READERS.get() {
        Some(readers) => {
            let bytes = postcard::to_stdvec(question).map_err(said)?;
            readers.ask(question.role(), &bytes, files, terms, reply)?
        }
        None => {
            let copies: io::Result<Vec<File>> = files.iter().map(|file| file.try_clone()).collect();
            let copies = copies.map_err(|error| Unread::Said(error.to_string()))?;
            serve::answer_here(question, copies, reply)
        }
    };
    let answer: Result<A, String> = postcard::from_bytes(&answer).map_err(|_| Unread::Damaged)?;
    answer.map_err(Unread::Said)
}
