//! A followed process: its program, its mappings, what is attached to it.

mod attached;

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use leakscope_common::HIT_SLOTS;

use super::{
    at_exit::EndLook,
    code::CodeLook,
    ended::End,
    kernel_watch::CGROUPS,
    links::{FileId, Planned},
    python::PythonProcess,
    window::Windows,
};
use crate::{
    budget::Limits,
    kernel::{
        KernelError, Link, Probe, has_ended, missing_to_read_files, open_pidfd, process_cpu_time,
    },
    kernel_memory::{MemoryCgroup, count_descriptors},
    process::{
        container_names::names,
        discover::{DiscoverError, Discovery},
        elf::is_go,
        open::most_held,
        procfs::{
            CgroupMembership, OomCounts, Process, ProcessError, cpu_time, exact_anonymous_bytes,
            list_threads, read_memory, read_process, thread_state,
        },
    },
    report::Container,
    symbol::AddressSpace,
};

/// How often a process's mappings are read for a stack that they do not explain.
const REFRESH_EVERY: Duration = Duration::from_millis(200);

/// How long to wait until all threads of a held process have stopped; the signal is pending already, so that this takes microseconds.
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It runs no program.
    #[error(
        "process {pid} ({comm}) is a kernel thread: it has no user memory to trace; name a process of a program"
    )]
    KernelThread {
        /// Its id.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// It has ended.
    #[error(
        "process {pid} ({comm}) has ended and waits to be reaped by its parent; name a running process"
    )]
    Zombie {
        /// Its id.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// It cannot be watched.
    #[error("cannot watch process {pid}: {source}")]
    Watch {
        /// Its id.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Its files cannot be looked through.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// No allocator was found in it.
    #[error(
        "cannot attach to process {pid} ({comm}): {why}; with `--tier growth`, which needs no allocator, leakscope sees whether and where its memory grows"
    )]
    NoAllocator {
        /// Its id.
        pid: u32,
        /// Its name.
        comm: String,
        /// What was found instead.
        why: String,
    },
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// An attached probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// The function's symbol.
    pub name: String,
    /// The file.
    pub module: PathBuf,
    /// Family and file of the allocator.
    pub allocator: String,
    /// Where in the file, bytes.
    pub offset: u64,
    /// The hit counter.
    pub hit_slot: u8,
    /// Whether a call gives a block out; otherwise it only takes one back.
    pub allocates: bool,
}

/// The code of an allocator in a file.
struct AllocatorCode {
    /// Offsets in the file.
    ranges: Arc<[Range<u64>]>,
    /// All of the file is the allocator's.
    whole: bool,
    /// The hit counters of its functions.
    slots: Vec<u8>,
}

/// A followed process.
pub(super) struct Traced {
    pub(super) pid: u32,
    pub(super) comm: String,
    /// The program's file, as the process sees its path.
    pub(super) program: Option<String>,
    pub(super) cgroup: String,
    /// The container that it is in, with its names.
    pub(super) container: Option<Container>,
    /// The group that its memory counts in; `None` where that is the root.
    pub(super) memory_cgroup: Option<MemoryCgroup>,
    pub(super) incarnation: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) space: AddressSpace,
    /// The process's own links, by file.
    pub(super) links: HashMap<FileId, Link>,
    /// The files that are attached to, by links of its own or for all processes.
    pub(super) attached: HashSet<FileId>,
    /// Where the code of its allocators lies, by file.
    allocators: HashMap<FileId, Vec<AllocatorCode>>,
    /// Where the dynamic loader begins.
    loader_base: Option<u64>,
    /// What is attached, in windows or all the time.
    pub(super) planned: Vec<Planned>,
    /// Children work in its memory (vfork(2)).
    lends: bool,
    /// The files of which the link sees those too.
    lent: HashSet<FileId>,
    /// The Python in it.
    pub(super) python: Option<PythonProcess>,
    /// Its windows.
    pub(super) windows: Windows,
    pub(super) sites: Vec<ProbeSite>,
    pub(super) execs: u32,
    pub(super) ended: Option<Instant>,
    /// Our own code failed at it: it was given up when it `ended`, and may run on.
    pub(super) failed: bool,
    /// How it ended.
    pub(super) end: End,
    /// The ledger knows what it ended with.
    pub(super) is_closed: bool,
    /// What its heap held where it ended, or why that is not known; `None` where it has not come to that.
    pub(super) end_look: Option<Result<EndLook, String>>,
    /// Where its end is seen, by file.
    ends: HashSet<FileId>,
    /// What sees it.
    pub(super) end_links: Vec<Link>,
    /// Why no allocator was found, where none was.
    pub(super) why_empty: Option<String>,
    /// Where allocators may be that could not be found, beside those that were.
    pub(super) blind: Option<String>,
    /// Lines for people: what could not be done for this process.
    pub(super) notes: Vec<String>,
    /// How many descriptors it had open when the trace began.
    pub(super) descriptors_first: Option<u64>,
    /// Resident memory when the trace began, and when.
    pub(super) rss_first: Option<(Instant, u64)>,
    pub(super) rss_last: Option<(Instant, u64)>,
    /// Anonymous memory at the last look, resident and swapped out, bytes.
    pub(super) anonymous_bytes: u64,
    pub(super) swapped_bytes: u64,
    /// Processor time when the trace began, and at the last look.
    pub(super) cpu_first: Option<Duration>,
    pub(super) cpu_last: Option<Duration>,
    /// Frees of blocks that are not in the live table, at the last look.
    pub(super) unknown_frees: u64,
    /// Calls seen, by hit slot, as of the last look.
    pub(super) hits: [u64; HIT_SLOTS],
    /// Processor time at the last look; `None` once it had ended by then.
    seen_cpu: Option<Duration>,
    refreshed: Option<Instant>,
    /// When it was last looked at for code that nobody told of.
    pub(super) code_look: Option<CodeLook>,
    /// Code was found by chance, of which no more is known than its file.
    pub(super) has_new_code: bool,
}

/// Whether a process can be traced at all, as far as `/proc` says.
///
/// # Errors
/// There is no such process, or it runs no program.
pub fn check_target(pid: u32) -> Result<(), TraceError> {
    readable(Path::new(super::PROC), pid).map(|_| ())
}

/// Reads a process that runs a program.
pub(super) fn readable(proc_root: &Path, pid: u32) -> Result<Process, TraceError> {
    let process = read_process(proc_root, pid)?;
    if process.is_kernel_thread {
        return Err(TraceError::KernelThread {
            pid,
            comm: process.comm,
        });
    }
    if process.is_zombie {
        return Err(TraceError::Zombie {
            pid,
            comm: process.comm,
        });
    }
    Ok(process)
}

impl Traced {
    /// Looks at a process and opens a descriptor that tells when it ends.
    pub(super) fn open(
        probe: &Probe,
        proc_root: &Path,
        pid: u32,
        limits: Limits,
    ) -> Result<Self, TraceError> {
        let process = readable(proc_root, pid)?;
        let pidfd = open_pidfd(pid)
            .and_then(|pidfd| {
                probe.await_end(pidfd.as_fd(), pid)?;
                Ok(pidfd)
            })
            .map_err(|source| TraceError::Watch { pid, source })?;
        let mut traced = Self {
            pid,
            comm: process.comm,
            program: program(proc_root, pid),
            container: container(proc_root, pid, &process.cgroup),
            cgroup: process.cgroup,
            memory_cgroup: memory_cgroup(&process.cgroups),
            incarnation: 0,
            pidfd,
            space: AddressSpace::default(),
            links: HashMap::new(),
            attached: HashSet::new(),
            allocators: HashMap::new(),
            loader_base: None,
            planned: Vec::new(),
            lends: false,
            lent: HashSet::new(),
            python: None,
            windows: Windows::new(limits, pid),
            sites: Vec::new(),
            execs: 0,
            ended: None,
            failed: false,
            end: End::new(proc_root, &process.cgroups),
            is_closed: false,
            end_look: None,
            ends: HashSet::new(),
            end_links: Vec::new(),
            why_empty: None,
            blind: None,
            notes: Vec::new(),
            descriptors_first: count_descriptors(proc_root, pid),
            rss_first: None,
            rss_last: None,
            anonymous_bytes: 0,
            swapped_bytes: 0,
            cpu_first: None,
            cpu_last: None,
            unknown_frees: 0,
            hits: [0; HIT_SLOTS],
            seen_cpu: Some(Duration::MAX),
            refreshed: None,
            code_look: None,
            has_new_code: false,
        };
        traced.measure(proc_root, &mut OomCounts::default());
        Ok(traced)
    }

    /// All links of its own.
    pub(super) fn take_links(&mut self) -> Vec<Link> {
        let links = self.links.drain().map(|(_, link)| link);
        links.chain(self.end_links.drain(..)).collect()
    }

    /// Whether its end is seen, if it ends by itself.
    pub(super) fn sees_end(&self) -> bool {
        !self.ends.is_empty()
    }

    /// The process runs another program now; probes in files that it still maps stay attached.
    pub(super) fn begin_program(&mut self, proc_root: &Path, incarnation: u32) {
        self.incarnation = incarnation;
        self.space = AddressSpace::default();
        self.python = None;
        self.lends = false;
        self.code_look = None;
        self.has_new_code = false;
        self.rss_first = None;
        self.hits = [0; HIT_SLOTS];
        self.descriptors_first = count_descriptors(proc_root, self.pid);
        if let Ok(process) = read_process(proc_root, self.pid) {
            self.end = End::new(proc_root, &process.cgroups);
            self.comm = process.comm;
            self.program = program(proc_root, self.pid);
            self.container = container(proc_root, self.pid, &process.cgroup);
            self.cgroup = process.cgroup;
            self.memory_cgroup = memory_cgroup(&process.cgroups);
        }
        self.measure(proc_root, &mut OomCounts::default());
    }

    /// Reads how much memory the process has and how much processor time it has used. Of a process that is gone, the last
    /// values stay. `counts`: what this look at processes has read of what they share.
    pub(super) fn measure(&mut self, proc_root: &Path, counts: &mut OomCounts) {
        self.measure_cpu(proc_root);
        if let Ok(memory) = read_memory(proc_root, self.pid) {
            let now = (Instant::now(), memory.resident_bytes);
            self.rss_first.get_or_insert(now);
            self.rss_last = Some(now);
            self.anonymous_bytes = memory.anonymous_bytes;
            self.swapped_bytes = memory.swapped_bytes;
            self.end.look(proc_root, counts);
        }
    }

    /// Counts how much anonymous memory it has, page by page: what its blocks may hold is bounded by it.
    pub(super) fn measure_exactly(&mut self, proc_root: &Path) {
        if let Ok((resident, swapped)) = exact_anonymous_bytes(proc_root, self.pid) {
            self.anonymous_bytes = resident;
            self.swapped_bytes = swapped;
            self.windows.note_memory(resident.saturating_add(swapped));
        }
    }

    /// Reads how much processor time it has used. A process that has ended and was not reaped by its parent still says it.
    pub(super) fn measure_cpu(&mut self, proc_root: &Path) {
        // By its clock, which is exact; in ticks of 10 ms a process that hardly runs seems to have used nothing.
        let exact = process_cpu_time(self.pid).ok();
        if let Some(cpu) = exact.or_else(|| cpu_time(proc_root, self.pid).ok()) {
            self.cpu_first.get_or_insert(cpu);
            self.cpu_last = Some(cpu);
        }
    }

    /// Asks how it ended, once it has.
    pub(super) fn measure_end(&mut self, proc_root: &Path) {
        self.end.ask(proc_root, self.pid, self.pidfd.as_fd());
    }

    /// Whether it has run since this was asked last; a process that has ended did once more.
    pub(super) fn has_run(&mut self) -> bool {
        let seen = if self.ended.is_some() {
            None
        } else {
            process_cpu_time(self.pid).ok()
        };
        let ran = seen != self.seen_cpu;
        self.seen_cpu = seen;
        ran
    }

    /// Whether the mappings may be read again now.
    pub(super) fn may_refresh(&mut self) -> bool {
        let may = self
            .refreshed
            .is_none_or(|last| last.elapsed() >= REFRESH_EVERY);
        if may {
            self.refreshed = Some(Instant::now());
        }
        may
    }

    /// Whether its program is one of Go.
    pub(super) fn holds_go(&self) -> bool {
        self.space.ranges().iter().any(|range| {
            let elf = range.module.as_ref().and_then(|module| module.elf.as_ref());
            elf.is_some_and(is_go)
        })
    }

    /// Whether the process has ended.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() || self.is_gone()
    }

    /// The same, whatever we know of it.
    pub(super) fn is_gone(&self) -> bool {
        has_ended(self.pidfd.as_fd())
    }

    /// Says of a file that it maps, by the number of its module, why there are not all names of it.
    pub(super) fn note_nameless(&mut self, module: u64, why: &str) {
        let found = self.space.ranges().iter().find_map(|range| {
            let found = range.module.as_ref()?;
            (found.number == module).then(|| found.path.display().to_string())
        });
        if let Some(path) = found {
            self.note(format!("{path}: {why}"));
        }
    }

    /// Says that files that it maps are not open, for too many are.
    pub(super) fn note_not_opened(&mut self) {
        let is_file = |label: &String| label.starts_with('/');
        if self
            .space
            .ranges()
            .iter()
            .any(|range| range.module.is_none() && range.label.as_ref().is_some_and(is_file))
        {
            self.note(format!(
                "not all files that it maps are read, and functions in them have no names: {} are held open",
                most_held()
            ));
        }
    }

    /// Keeps a line for people, once.
    pub(super) fn note(&mut self, line: String) {
        if !self.notes.contains(&line) {
            self.notes.push(line);
        }
    }
}

/// The container of a cgroup, with the names that its runtime's files and its own have for it.
fn container(proc_root: &Path, pid: u32, cgroup: &str) -> Option<Container> {
    let mut container = Container::of_cgroup(cgroup)?;
    // In a container of our own, other files lie at these paths: those of the first process are the machine's.
    let root = |pid: u32| proc_root.join(pid.to_string()).join("root");
    let names = names(&root(1), &container.id, &root(pid));
    container.name = names.name;
    container.pod_name = names.pod.map(|pod| match names.namespace {
        Some(namespace) => format!("{namespace}/{pod}"),
        None => pod,
    });
    container.hostname = names.host;
    Some(container)
}

fn memory_cgroup(cgroups: &[CgroupMembership]) -> Option<MemoryCgroup> {
    MemoryCgroup::of(Path::new(CGROUPS), cgroups)
}

/// Waits until all threads of a held process have stopped, so that what it was doing is done; gives those that have memory. `thread`: one
/// of them.
pub(super) fn wait_until_stopped(proc_root: &Path, thread: u32) -> Vec<u32> {
    let begun = Instant::now();
    loop {
        let mut threads = list_threads(proc_root, thread).unwrap_or_default();
        threads.sort_unstable();
        let state = |thread: &u32| thread_state(proc_root, *thread).unwrap_or('X');
        threads.retain(|thread| !matches!(state(thread), 'Z' | 'X' | 'x'));
        if threads.iter().all(|thread| state(thread) == 'T') || begun.elapsed() >= STOP_WITHIN {
            return threads;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The program's file. The mark of one that was removed since is no part of its name (`d_path`, fs/d_path.c).
fn program(proc_root: &Path, pid: u32) -> Option<String> {
    let path = std::fs::read_link(proc_root.join(pid.to_string()).join("exe")).ok()?;
    let path = path.to_string_lossy();
    Some(path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned())
}

/// Why nothing can be traced in a process, and what is missing where files could not be read.
pub(super) fn why_empty(discovery: &Discovery) -> Option<String> {
    let why = discovery.why_empty()?;
    match missing_to_read_files().filter(|_| discovery.denied > 0) {
        Some(missing) => Some(format!("{why}; {missing}")),
        None => Some(why),
    }
}
