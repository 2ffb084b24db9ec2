//! What was found in a process: allocators with the functions to probe, and what stands in the way, in words. Knows nothing of how it is
//! found.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leakscope_common::{Function, ProbeCookie};
use serde::{Deserialize, Serialize};

use crate::process::allocator::AllocatorKind;
use crate::process::by_number;
use crate::process::procfs::{Device, Process};
use crate::process::site::ProbeSite;

use super::files::wants_return;

/// How an allocator came into the process. In the order in which the dynamic loader looks a symbol up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placement {
    /// Linked into the program.
    Executable,
    /// Named in `LD_PRELOAD`.
    Preloaded,
    /// A library.
    Library,
    /// The C library: what is called where nobody else defines the function.
    CLibrary,
}

impl fmt::Display for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Executable => "in the program",
            Self::Preloaded => "preloaded",
            Self::Library => "library",
            Self::CLibrary => "C library",
        })
    }
}

/// A mapped file, open.
#[derive(Clone, Debug)]
pub struct MappedFile {
    /// Its name in the process's mount namespace.
    pub path: PathBuf,
    /// Its device as stat(2) gives it. With the inode it tells two containers' files of one name apart.
    pub device: Device,
    /// Its inode.
    pub inode: u64,
    pub(super) file: Arc<File>,
}

impl MappedFile {
    /// A path that leads to this very file from any mount namespace, for as long as this value or a clone of it lives.
    #[must_use]
    pub fn attach_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A function to put a probe on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundFunction {
    /// What it is.
    #[serde(with = "by_number::function")]
    pub function: Function,
    /// Its name.
    pub name: String,
    /// Its other names at the same address.
    pub aliases: Vec<String>,
    /// Offset of its first byte in the file.
    pub file_offset: u64,
    /// Address of its first byte in the file's own terms, before relocation.
    pub vaddr: u64,
    /// Where the probe goes.
    pub site: ProbeSite,
    /// The cookie of the probe at the site. The hit slots are handed out for this process alone.
    #[serde(with = "by_number::cookie")]
    pub cookie: ProbeCookie,
    /// A breakpoint stands in its code in memory, this many bytes from its first: see [`Discovery::foreign_breakpoints`].
    pub breakpoint: Option<u64>,
}

impl FoundFunction {
    /// Offset of the site in the file: what a uprobe wants.
    #[must_use]
    pub fn probe_offset(&self) -> u64 {
        self.file_offset.saturating_add(self.site.offset_from_entry)
    }

    /// Whether the probe is to see the function's return as well.
    #[must_use]
    pub fn wants_return(&self) -> bool {
        wants_return(self.function)
    }

    /// The cookie of the probe at the return, where the stack pointer is back where it was.
    #[must_use]
    pub fn return_cookie(&self) -> ProbeCookie {
        ProbeCookie {
            stack_moved: 0,
            ..self.cookie
        }
    }
}

/// An allocator that a process has mapped.
#[derive(Clone, Debug)]
pub struct FoundAllocator {
    /// Whose it is.
    pub kind: AllocatorKind,
    /// How it came there.
    pub placement: Placement,
    /// The file that holds it.
    pub file: MappedFile,
    /// The functions to put probes on, most called first.
    pub functions: Vec<FoundFunction>,
    /// The functions that are seen without a probe, as they go through others.
    pub covered: Vec<String>,
    /// Where its code lies in the file, offsets, sorted: its functions and what they jump to.
    pub code: Arc<[Range<u64>]>,
    /// Where `_exit` begins, if the file is a C library or has one linked in: an offset of the file.
    pub ends: Option<u64>,
}

impl FoundAllocator {
    /// Whether the whole file is the allocator's: a library that is named after it. Others have one built in (CPython's has mimalloc).
    #[must_use]
    pub fn fills_its_file(&self) -> bool {
        let name = match self.kind {
            AllocatorKind::Jemalloc => "jemalloc",
            AllocatorKind::Tcmalloc => "tcmalloc",
            AllocatorKind::Mimalloc => "mimalloc",
            _ => return false,
        };
        let file = self.file.path.file_name().unwrap_or_default();
        self.placement != Placement::Executable && file.to_string_lossy().contains(name)
    }
}

/// Something that a report has to say about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// The file, as the process names it.
    pub path: PathBuf,
    /// What is the matter.
    pub what: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.what)
    }
}

/// What was found in a process.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// The process, as it was when the search began.
    pub process: Process,
    /// Its allocators, in the order in which the dynamic loader looks symbols up.
    pub allocators: Vec<FoundAllocator>,
    /// What stood in the way, and what was passed over.
    pub problems: Vec<FileProblem>,
    /// Those of the problems for which an allocator would not be found even if there is one.
    pub blind: Vec<FileProblem>,
    /// The files with code that it maps.
    pub files: usize,
    /// Those among them that this user may not open.
    pub denied: usize,
}

impl Discovery {
    /// Why there is nothing to trace, where there is nothing.
    #[must_use]
    pub fn why_empty(&self) -> Option<String> {
        if !self.allocators.is_empty() {
            return None;
        }
        let comm = &self.process.comm;
        if self.denied > 0 {
            let which = if self.denied == self.files {
                "the files".to_owned()
            } else {
                format!("{} of the {} files", self.denied, self.files)
            };
            return Some(format!(
                "cannot read {which} that {comm} maps: permission denied"
            ));
        }
        // The program itself is mapped first.
        if let Some(first) = self.blind.first() {
            return Some(first.to_string());
        }
        Some(match self.files {
            1 => "the file with code that it maps holds no allocator that is known".to_owned(),
            files => format!(
                "none of the {files} files with code that it maps holds an allocator that is known"
            ),
        })
    }

    /// What was not attached to although there may be something, where something else was.
    #[must_use]
    pub fn partly_blind(&self) -> Option<String> {
        let first = self.blind.first().filter(|_| !self.allocators.is_empty())?;
        let more = match self.blind.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        Some(format!("{first}{more}"))
    }
}

impl Discovery {
    /// The breakpoints that others have put into the functions found. To be asked before one's own probes are attached: afterwards
    /// they are among them.
    #[must_use]
    pub fn foreign_breakpoints(&self) -> Vec<FileProblem> {
        let problem = |allocator: &FoundAllocator| {
            let places: Vec<String> = allocator
                .functions
                .iter()
                .filter_map(|function| Some(format!("{}+{}", function.name, function.breakpoint?)))
                .collect();
            (!places.is_empty()).then(|| FileProblem {
                path: allocator.file.path.clone(),
                what: format!(
                    "breakpoints of another tracer or debugger stand at {}; what they cost is not leakscope's",
                    places.join(", ")
                ),
            })
        };
        self.allocators.iter().filter_map(problem).collect()
    }
}

impl Discovery {
    pub(super) fn problem(&mut self, path: &Path, what: String) {
        let problem = FileProblem {
            path: path.to_owned(),
            what,
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// A problem for which an allocator in the file would not be found.
    pub(super) fn blind(&mut self, path: &Path, what: String) {
        let problem = FileProblem {
            path: path.to_owned(),
            what: what.clone(),
        };
        if !self.blind.contains(&problem) {
            self.blind.push(problem);
        }
        self.problem(path, what);
    }
}
