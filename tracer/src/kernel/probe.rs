//! The probe as the rest of the tracer sees it: loaded, attached, read.

use std::{
    cell::OnceCell,
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, RingBuf};
use aya_obj::generated::bpf_prog_type;
use leakscope_common::{
    Bucket, HitCounts, Loss, Mapping, Plain, ProcessRecord, PythonTable, SLICE_SLOTS, Selection,
    Settings, SiteKey, SiteTotals, Slice, TELL_PLACES, TELL_STEPS, TOTALS_STRIPES, UnwindPage,
    UnwindRow, WINDOW_BUCKETS,
};

use super::{
    allocations::{self, KernelAllocations},
    attach::{self, HeapPrograms},
    blocks::BlockWatcher,
    command,
    error::KernelError,
    event::{ProbeEvent, parse_event},
    guardian::Guardian,
    held::FileWalk,
    link::{Attachment, Link, LinkMode},
    link_keeper::LinkKeeper,
    load::{LoadedObject, MapMemory},
    mappings::MappingPrograms,
    maps::{cannot_map, hash, large, map_error, shared},
    shared::{LargeArray, SharedArray},
    sys::{self, Counts, Waiting},
    threads::Threads,
    writes::WriteWatcher,
};

/// How to load the probe.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Live blocks to hold before thinning sets in.
    pub live_blocks: u32,
    /// Distinct stacks to hold.
    pub stacks: u32,
    /// Rows of unwind tables to hold.
    pub unwind_rows: u32,
    /// 64 KiB pages of text in the unwind tables' index.
    pub unwind_pages: u32,
    /// Executable mappings of all processes together.
    pub mappings: u32,
    /// Bytes of the ring buffer in which the probe hands over stacks and process events: a power of two, a page at least.
    pub event_bytes: u32,
    /// Smallest and largest allocation to record, bytes.
    pub sizes: (u64, u64),
    /// Walk by frame pointers only.
    pub frame_pointers_only: bool,
    /// Kind of link; the best that the kernel has when `None`.
    pub links: Option<LinkMode>,
    /// Tell of every step of a mapping ([`ProbeEvent::Mapping`]).
    pub mapping_steps: bool,
    /// Tell of page faults ([`ProbeEvent::PageFault`]), where the kernel lets them be seen.
    pub page_faults: bool,
    /// Hold commands of ours where they are about to end ([`ProbeEvent::Ending`]).
    pub ends: bool,
    /// What the kernel allocates for itself is to be seen in windows ([`Probe::open_kernel_window`]).
    pub kernel_allocations: bool,
    /// Attach programs that do nothing in the place of the real ones: what is left is the cost of the probes
    /// themselves, the floor of any tracer that uses them. Nothing is recorded.
    pub empty: bool,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            live_blocks: 1_000_000,
            stacks: 65_536,
            unwind_rows: 1 << 20,
            unwind_pages: 1 << 18,
            mappings: 1 << 16,
            event_bytes: 4 << 20,
            sizes: (0, u64::MAX),
            frame_pointers_only: false,
            links: None,
            mapping_steps: false,
            page_faults: false,
            ends: false,
            kernel_allocations: false,
            empty: false,
        }
    }
}

/// User space is woken for what it need not know at once when this part of the ring buffer is full.
const WAKE_PART: u32 = 4;

/// What is waited for beside the ends of processes, whose numbers are below these.
const EVENTS_CAME: u64 = 1 << 32;
const WOKEN: u64 = 2 << 32;

/// A value that aya may copy to and from a map.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Value<T>(pub(super) T);

// SAFETY: `Plain` promises that every bit pattern is valid and that there is no padding.
unsafe impl<T: Plain> aya::Pod for Value<T> {}

/// Buckets that stand for all: the standard error of the load that they show is below 1 % at half load.
pub(super) const SAMPLED_BUCKETS: usize = 4096;

/// The loaded probe. Dropping it, or our death, takes everything back.
pub struct Probe {
    pub(super) programs: HeapPrograms,
    /// The same for children that work in their parent's memory, where they are wanted; and what they are loaded from.
    programs_for_children: Option<HeapPrograms>,
    pub(super) object: LoadedObject,
    /// What watches words, once that was asked for.
    pub(super) write_watcher: Option<Result<WriteWatcher, String>>,
    /// What tells of Go's blocks, likewise.
    pub(super) block_watcher: Option<Result<BlockWatcher, String>>,
    pub(super) lifecycle: Link,
    pub(super) mapping_programs: MappingPrograms,
    pub(super) mapping_links: Link,
    /// Page faults are to be seen.
    pub(super) wants_page_faults: bool,
    /// Why none can be.
    pub(super) page_faults_unseen: Option<String>,
    /// What closes links.
    pub(super) closing: Vec<JoinHandle<()>>,
    waiting: Waiting,
    pub(super) memory: Vec<MapMemory>,
    pub(super) settings: SharedArray<Settings>,
    pub(super) losses: SharedArray<u64>,
    pub(super) selection: SharedArray<Selection>,
    pub(super) incarnations: SharedArray<u64>,
    pub(super) live: LargeArray<Bucket>,
    /// Some buckets, which stand for all of them: a block's bucket is a hash. None of those of windows, where the table has others.
    pub(super) live_sample: SharedArray<Bucket>,
    /// The buckets of windows, once there has been one.
    pub(super) window_buckets: OnceCell<SharedArray<Bucket>>,
    pub(super) sites: LargeArray<SiteKey>,
    pub(super) totals: LargeArray<SiteTotals>,
    pub(super) mappings: SharedArray<Mapping>,
    pub(super) unwind_pages: SharedArray<UnwindPage>,
    pub(super) unwind_rows: SharedArray<UnwindRow>,
    pub(super) processes: BpfHashMap<MapData, u32, Value<ProcessRecord>>,
    pub(super) holds: BpfHashMap<MapData, u32, u32>,
    /// The same map, for the guardian.
    pub(super) holds_fd: OwnedFd,
    pub(super) hits: BpfHashMap<MapData, u32, Value<HitCounts>>,
    pub(super) threads: Threads,
    pub(super) slices: SharedArray<Slice>,
    pub(super) pythons: BpfHashMap<MapData, u32, Value<PythonTable>>,
    /// Why no Python frames can be seen; `None` until it is known.
    pub(super) thread_pointer: Option<Result<(), String>>,
    /// Slices written so far.
    pub(super) slice_generation: u32,
    pub(super) events: RingBuf<MapData>,
    pub(super) lifecycle_programs: Vec<(&'static str, OwnedFd)>,
    /// Whether the making of processes is seen.
    pub(super) sees_forks: bool,
    /// Whoever lets held processes run on if we are killed; there when there can be any.
    pub(super) guardian: Option<Guardian>,
    /// What the kernel allocates for itself, once a window was open.
    pub(super) kernel_allocations: Option<KernelAllocations>,
    /// What walks over open files, once that was asked for.
    pub(super) file_walk: Option<Result<FileWalk, String>>,
    /// Who owns the links with breakpoints.
    pub(super) keeper: Arc<LinkKeeper>,
}

impl Probe {
    /// Loads the probe. What sees mappings stands there from now on; nothing else is attached yet.
    ///
    /// # Errors
    /// The kernel refused a map or a program: the error says which and what to do.
    pub fn load(options: &ProbeOptions) -> Result<Self, KernelError> {
        let buckets = live_buckets(options.live_blocks);
        let slots = options
            .stacks
            .saturating_mul(2)
            .clamp(64, 1 << 24)
            .next_power_of_two();
        let stripes = TOTALS_STRIPES.min(cpus().next_power_of_two());
        let mappings = options.mappings.clamp(64, Slice::MAX_FIRST);
        let mut capacities = HashMap::from([
            ("LIVE", buckets),
            ("SITES", slots),
            ("TOTALS", slots.saturating_mul(stripes)),
            ("MAPPINGS", mappings),
            (
                "EVENTS",
                options.event_bytes.clamp(4096, 1 << 30).next_power_of_two(),
            ),
            ("UNWIND_PAGES", options.unwind_pages.max(64)),
            ("UNWIND_ROWS", options.unwind_rows.max(64)),
        ]);
        let watches_kernel = options.kernel_allocations;
        capacities.extend(
            allocations::MAPS
                .map(|(name, entries)| (name, if watches_kernel { entries } else { 1 })),
        );
        // Before our memory is large, of which it has a copy.
        let keeper = LinkKeeper::start().map_err(|source| {
            KernelError::call("cannot start the process that keeps probes", source)
        })?;
        let mut object = LoadedObject::new(&capacities)?;
        let mode = options.links.unwrap_or_else(attach::best_link_mode);
        let programs = HeapPrograms::load(&object, &keeper, mode, options.empty, options.ends)?;
        let raw = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;
        let tracepoint = bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT;
        let mut lifecycle_programs = Vec::new();
        for (name, kind) in [
            ("process_exec", raw),
            ("process_exit", raw),
            ("process_fork", tracepoint),
        ] {
            lifecycle_programs.push((name, object.program(name, kind, 0)?));
        }
        let wants_page_faults = options.page_faults && !options.empty;
        if wants_page_faults {
            // Only then: what the verifier walks for each program is taken from whoever runs meanwhile.
            lifecycle_programs.push(("page_fault", object.program("page_fault", raw, 0)?));
        }
        let steps = options.mapping_steps && !options.empty;
        let only_places = options.links == Some(LinkMode::Perf);
        let (mapping_programs, mapping_links) = MappingPrograms::load(&object, steps, only_places)?;
        let mut told = 0;
        if steps {
            told |= TELL_STEPS;
        }
        if mapping_programs.sees_places_only() {
            told |= TELL_PLACES;
        }
        let live = large(&object, "LIVE", buckets)?;
        let behind_windows = if buckets > 2 * WINDOW_BUCKETS {
            WINDOW_BUCKETS as usize
        } else {
            0
        };
        let live_sample = live
            .some(behind_windows..behind_windows + SAMPLED_BUCKETS)
            .map_err(|source| cannot_map("LIVE", source))?;
        let events = RingBuf::try_from(Map::RingBuf(object.take_map("EVENTS")?))
            .map_err(|error| map_error("EVENTS", &error))?;
        let waiting = Waiting::new()
            .and_then(|waiting| {
                waiting.add(events.as_fd(), EVENTS_CAME, Counts::WhenWoken)?;
                Ok(waiting)
            })
            .map_err(|source| KernelError::call("cannot watch the ring buffer", source))?;
        let probe = Self {
            programs,
            lifecycle: Link::default(),
            mapping_programs,
            mapping_links,
            wants_page_faults,
            page_faults_unseen: None,
            closing: Vec::new(),
            waiting,
            settings: shared(&object, "SETTINGS", 1)?,
            losses: shared(&object, "LOSSES", Loss::COUNT)?,
            selection: shared(&object, "SELECTION", 1)?,
            incarnations: shared(&object, "INCARNATIONS", 1)?,
            live,
            live_sample,
            window_buckets: OnceCell::new(),
            sites: large(&object, "SITES", slots)?,
            totals: large(&object, "TOTALS", slots.saturating_mul(stripes))?,
            mappings: shared(&object, "MAPPINGS", mappings)?,
            unwind_pages: shared(&object, "UNWIND_PAGES", options.unwind_pages.max(64))?,
            unwind_rows: shared(&object, "UNWIND_ROWS", options.unwind_rows.max(64))?,
            processes: hash(object.take_map("PROCESSES")?)?,
            holds_fd: object
                .map_fd("HOLDS")?
                .try_clone_to_owned()
                .map_err(|source| KernelError::call("cannot duplicate a descriptor", source))?,
            holds: hash(object.take_map("HOLDS")?)?,
            hits: hash(object.take_map("HITS")?)?,
            threads: Threads::new(&mut object)?,
            slices: shared(&object, "SLICES", SLICE_SLOTS)?,
            pythons: hash(object.take_map("PYTHONS")?)?,
            thread_pointer: None,
            slice_generation: 0,
            events,
            memory: std::mem::take(&mut object.memory),
            programs_for_children: None,
            write_watcher: None,
            block_watcher: None,
            object,
            lifecycle_programs,
            sees_forks: false,
            kernel_allocations: None,
            file_walk: None,
            keeper,
            guardian: None,
        };
        probe.settings.write(
            0,
            Settings {
                min_size: options.sizes.0,
                max_size: options.sizes.1,
                live_mask: buckets - 1,
                window_mask: buckets.min(WINDOW_BUCKETS) - 1,
                look_after: u32::MAX,
                stack_mask: slots - 1,
                frame_pointers_only: u32::from(options.frame_pointers_only),
                stripe_mask: stripes - 1,
                mappings: told,
                wake_bytes: options.event_bytes / WAKE_PART,
                ..Settings::default()
            },
        );
        // 0 is no incarnation.
        probe.incarnations.write(0, 1);
        Ok(probe)
    }
}

impl Probe {
    /// The kind of link in use.
    #[must_use]
    pub fn link_mode(&self) -> LinkMode {
        self.programs.mode()
    }

    /// The maps and what they take.
    #[must_use]
    pub fn memory(&self) -> &[MapMemory] {
        &self.memory
    }

    /// Each program with the number of instructions that the verifier walked; the most of those that are loaded several times.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn verified_instructions(&self) -> Result<Vec<(&'static str, u32)>, KernelError> {
        let mut most: Vec<(&'static str, u32)> = Vec::new();
        let lifecycle = self.lifecycle_programs.iter();
        for (name, fd) in self
            .programs
            .programs()
            .into_iter()
            .chain(lifecycle.map(|(name, fd)| (*name, fd.as_fd())))
            .chain(self.mapping_programs.programs())
            .chain(self.write_program())
            .chain(self.block_program())
            .chain(
                self.kernel_allocations
                    .iter()
                    .flat_map(KernelAllocations::programs),
            )
            .chain(self.file_walk.iter().flatten().map(FileWalk::program))
        {
            let count = sys::verified_instructions(fd)
                .map_err(|source| KernelError::call(format!("cannot ask for {name}"), source))?;
            match most.iter_mut().find(|(other, _)| *other == name) {
                Some((_, before)) => *before = count.max(*before),
                None => most.push((name, count)),
            }
        }
        Ok(most)
    }

    /// The processor time that was spent on making and closing links, by a process of its own.
    #[must_use]
    pub fn spent_on_links(&self) -> Duration {
        self.keeper.spent()
    }

    /// Attaches probes in a file, which may be opened through a link under /proc, and is called `name` in messages; to one process, or to
    /// all that map it; they are taken away at the deadline (see [`Link::set_deadline`]).
    ///
    /// # Errors
    /// The kernel refused; nothing is left attached.
    pub fn attach(
        &self,
        file: &Path,
        name: &Path,
        pid: Option<u32>,
        probes: &[Attachment],
        deadline_ns: Option<u64>,
    ) -> Result<Link, KernelError> {
        self.programs
            .attach(&attach::kernel_path(file)?, name, pid, probes, deadline_ns)
    }

    /// Attaches the same probes once more for children of the process that work in its memory (vfork(2)). A perf event's program runs for
    /// whoever runs in that memory. `None` where those that are attached see such children too.
    ///
    /// # Errors
    /// The kernel refused; nothing is left attached.
    pub fn attach_for_children(
        &mut self,
        file: &Path,
        name: &Path,
        pid: u32,
        probes: &[Attachment],
        deadline_ns: Option<u64>,
    ) -> Result<Option<Link>, KernelError> {
        if self.link_mode() == LinkMode::Perf {
            return Ok(None);
        }
        let programs = match &mut self.programs_for_children {
            Some(programs) => programs,
            none => {
                self.object.renew_tables()?;
                none.insert(HeapPrograms::load(
                    &self.object,
                    &self.keeper,
                    LinkMode::Perf,
                    false,
                    false,
                )?)
            }
        };
        let probes: Vec<Attachment> = probes.iter().map(Attachment::for_children).collect();
        let path = attach::kernel_path(file)?;
        programs
            .attach(&path, name, Some(pid), &probes, deadline_ns)
            .map(Some)
    }

    /// Attaches to the `_exit` at an offset of a file, for one process.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach_end(
        &self,
        file: &Path,
        name: &Path,
        pid: u32,
        offset: u64,
    ) -> Result<Link, KernelError> {
        self.programs
            .attach_end(&attach::kernel_path(file)?, name, pid, offset)
    }

    /// Waits until probes can be taken away at once, which holds for some milliseconds; the link is to be closed after them.
    #[must_use]
    pub fn ready_to_detach(&self) -> Option<Link> {
        self.programs.ready_to_detach()
    }

    /// From now on [`Probe::wait`] ends too when there is something to read here.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn wake_by(&self, source: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.waiting
            .add(source, WOKEN, Counts::WhileReadable)
            .map_err(|source| KernelError::call("cannot wait for what is to wake us", source))
    }

    /// From now on [`Probe::wait`] tells once of the end of a pidfd's process, for as long as the pidfd is open.
    ///
    /// # Errors
    /// The pidfd cannot be waited for.
    pub fn await_end(&self, pidfd: BorrowedFd<'_>, pid: u32) -> io::Result<()> {
        self.waiting.add(pidfd, u64::from(pid), Counts::Once)
    }

    /// Waits for events, for the end of processes and for whatever else is to wake us. Tells which processes have ended; of very many,
    /// the others the next time.
    ///
    /// # Errors
    /// epoll_wait(2) failed.
    pub fn wait(&self, timeout: Duration) -> Result<Vec<u32>, KernelError> {
        // Rounded up: with less than a millisecond left we would ask again and again.
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
        let timeout = i32::try_from(milliseconds).unwrap_or(i32::MAX);
        let ready = self
            .waiting
            .wait(timeout)
            .map_err(|source| KernelError::call("cannot wait for events", source))?;
        // Numbers of processes are below those of the others.
        Ok(ready
            .filter_map(|number| u32::try_from(number).ok())
            .collect())
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<ProbeEvent> {
        while let Some(record) = self.events.next() {
            if let Some(event) = parse_event(&record) {
                return Some(event);
            }
        }
        None
    }

    /// From now on a process that was trapped so many times more is told of: [`ProbeEvent::ManyHits`].
    pub fn tell_after(&mut self, hits: u32) {
        if let Some(mut settings) = self.settings.read(0) {
            settings.look_after = hits;
            self.settings.write(0, settings);
        }
    }
}

/// Buckets of the live table for this many blocks: twice as many slots, a power of two.
fn live_buckets(blocks: u32) -> u32 {
    let slots = u64::from(blocks.max(1024)) * 2;
    u32::try_from(slots.next_power_of_two() / leakscope_common::BUCKET_SLOTS as u64)
        .unwrap_or(1 << 28)
        .min(1 << 25)
}

/// Processors that may run the probe.
fn cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// A pidfd for a process: readable when it has ended.
///
/// # Errors
/// There is no such process.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    command::open_pidfd(pid)
}

/// Whether the process of a pidfd has ended.
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    sys::poll_readable(&[pidfd], 0).is_ok_and(|ready| ready.contains(&true))
}
