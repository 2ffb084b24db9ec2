//! The probe as the rest of the tracer sees it: loaded, attached, read.

use std::{
    collections::HashMap,
    io,
    mem::offset_of,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, RingBuf};
use aya_obj::generated::bpf_prog_type;
use leakscope_common::{
    Block, Bucket, Event, EventKind, HIT_SLOTS, HitCounts, LIVE_CLAIMED, Loss, Mapping,
    PROCESS_EXEC_PENDING, Plain, ProcessRecord, STACK_HEADER_BYTES, SLICE_SLOTS, Settings, SiteKey, SiteTotals, Slice,
    StackRecord, TOTALS_STRIPES, ThreadRecord, UnwindPage, UnwindRow, live_key, thin_keeps,
};

use super::{
    attach::{self, Attachment, HeapPrograms, Link, LinkMode},
    command,
    error::KernelError,
    load::{LoadedObject, MapMemory, io_error},
    shared::SharedArray,
    sys,
    tracefs::Tracefs,
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
    /// Smallest and largest allocation to record, bytes.
    pub sizes: (u64, u64),
    /// Walk by frame pointers only.
    pub frame_pointers_only: bool,
    /// Kind of link; the best that the kernel has when `None`.
    pub links: Option<LinkMode>,
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
            sizes: (0, u64::MAX),
            frame_pointers_only: false,
            links: None,
            empty: false,
        }
    }
}

/// What the probe says of itself, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeEvent {
    /// A stack seen for the first time.
    Stack {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
        /// The site's number.
        site: u32,
        /// `STACK_*` flags.
        flags: u16,
        /// The hit slot of the probe that saw it.
        hit_slot: u8,
        /// Function entry, then return addresses, leaf first.
        frames: Vec<u64>,
    },
    /// A process replaced its program.
    Exec {
        /// Thread group id.
        pid: u32,
        /// The incarnation that begins.
        incarnation: u32,
        /// The incarnation that ended; the same when the exec began the trace.
        ended: u32,
        /// Whether it was stopped and waits for [`Probe::resume`].
        held: bool,
    },
    /// A process mapped a file for execution.
    MappedCode {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
        /// Whether it was stopped and waits for [`Probe::resume`].
        held: bool,
    },
    /// The walk met an address in no known mapping.
    UnknownMapping {
        /// Thread group id.
        pid: u32,
        /// The process incarnation.
        incarnation: u32,
    },
}

/// A site's counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteCount {
    /// The site's number.
    pub site: u32,
    /// Whose it is.
    pub incarnation: u32,
    /// What was allocated and freed, all CPUs together.
    pub totals: SiteTotals,
}

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveBlock {
    /// Its address.
    pub address: u64,
    /// What is known of it.
    pub block: Block,
}

/// A value that aya may copy to and from a map.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);

// SAFETY: `Plain` promises that every bit pattern is valid and that there is no padding.
unsafe impl<T: Plain> aya::Pod for Value<T> {}

/// The loaded probe. Dropping it, or our death, takes everything back.
pub struct Probe {
    programs: HeapPrograms,
    lifecycle: Vec<OwnedFd>,
    memory: Vec<MapMemory>,
    settings: SharedArray<Settings>,
    losses: SharedArray<u64>,
    incarnations: SharedArray<u64>,
    live: SharedArray<Bucket>,
    sites: SharedArray<SiteKey>,
    totals: SharedArray<SiteTotals>,
    mappings: SharedArray<Mapping>,
    unwind_pages: SharedArray<UnwindPage>,
    unwind_rows: SharedArray<UnwindRow>,
    processes: BpfHashMap<MapData, u32, Value<ProcessRecord>>,
    holds: BpfHashMap<MapData, u32, u32>,
    hits: BpfHashMap<MapData, u32, Value<HitCounts>>,
    threads: BpfHashMap<MapData, u64, Value<ThreadRecord>>,
    slices: SharedArray<Slice>,
    events: RingBuf<MapData>,
    lifecycle_programs: Vec<(&'static str, OwnedFd)>,
}

/// The most that the live table is thinned to: one block in 1,024 ([`thin_keeps`] knows no more).
const MAX_THIN_SHIFT: u32 = 10;

/// `BPF_ANY` (include/uapi/linux/bpf.h).
const ANY: u64 = 0;
/// `BPF_EXIST`: only where there is an entry.
const EXIST: u64 = 2;

impl Probe {
    /// Loads the probe; nothing is attached yet.
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
        let capacities = HashMap::from([
            ("LIVE", buckets),
            ("SITES", slots),
            ("TOTALS", slots.saturating_mul(stripes)),
            ("MAPPINGS", options.mappings.max(64)),
            ("UNWIND_PAGES", options.unwind_pages.max(64)),
            ("UNWIND_ROWS", options.unwind_rows.max(64)),
        ]);
        let mut object = LoadedObject::new(&capacities)?;
        let mode = options.links.unwrap_or_else(attach::best_link_mode);
        let programs = HeapPrograms::load(&object, mode, options.empty)?;
        let raw = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;
        let tracepoint = bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT;
        let mut lifecycle_programs = Vec::new();
        for (name, kind) in [
            ("process_exec", raw),
            ("process_exit", raw),
            ("mmap_enter", tracepoint),
            ("mmap_return", tracepoint),
        ] {
            lifecycle_programs.push((name, object.program(name, kind, 0)?));
        }
        let probe = Self {
            programs,
            lifecycle: Vec::new(),
            settings: shared(&object, "SETTINGS", 1)?,
            losses: shared(&object, "LOSSES", Loss::COUNT)?,
            incarnations: shared(&object, "INCARNATIONS", 1)?,
            live: shared(&object, "LIVE", buckets)?,
            sites: shared(&object, "SITES", slots)?,
            totals: shared(&object, "TOTALS", slots.saturating_mul(stripes))?,
            mappings: shared(&object, "MAPPINGS", options.mappings.max(64))?,
            unwind_pages: shared(&object, "UNWIND_PAGES", options.unwind_pages.max(64))?,
            unwind_rows: shared(&object, "UNWIND_ROWS", options.unwind_rows.max(64))?,
            processes: hash(object.take_map("PROCESSES")?)?,
            holds: hash(object.take_map("HOLDS")?)?,
            hits: hash(object.take_map("HITS")?)?,
            threads: hash(object.take_map("THREADS")?)?,
            slices: shared(&object, "SLICES", SLICE_SLOTS)?,
            events: RingBuf::try_from(Map::RingBuf(object.take_map("EVENTS")?))
                .map_err(|error| map_error("EVENTS", &error))?,
            memory: std::mem::take(&mut object.memory),
            lifecycle_programs,
        };
        probe.settings.write(
            0,
            Settings {
                min_size: options.sizes.0,
                max_size: options.sizes.1,
                live_mask: buckets - 1,
                stack_mask: slots - 1,
                frame_pointers_only: u32::from(options.frame_pointers_only),
                stripe_mask: stripes - 1,
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

    /// Each program with the number of instructions that the verifier walked.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn verified_instructions(&self) -> Result<Vec<(&'static str, u32)>, KernelError> {
        self.programs
            .programs()
            .into_iter()
            .chain(
                self.lifecycle_programs
                    .iter()
                    .map(|(name, fd)| (*name, fd.as_fd())),
            )
            .map(|(name, fd)| {
                sys::verified_instructions(fd)
                    .map(|count| (name, count))
                    .map_err(|source| KernelError::call(format!("cannot ask for {name}"), source))
            })
            .collect()
    }

    /// Attaches to exec, thread exit and mapping events.
    ///
    /// # Errors
    /// A tracepoint was refused, or tracefs cannot be read.
    pub fn attach_lifecycle(&mut self) -> Result<(), KernelError> {
        let tracefs = Tracefs::open()?;
        for (name, program) in &self.lifecycle_programs {
            let failed = |source| KernelError::Attach {
                what: format!("the tracepoint of {name}"),
                source,
            };
            let (raw, event) = match *name {
                "process_exec" => (Some(c"sched_process_exec"), ""),
                "process_exit" => (Some(c"sched_process_exit"), ""),
                "mmap_enter" => (None, "syscalls/sys_enter_mmap"),
                _ => (None, "syscalls/sys_exit_mmap"),
            };
            if let Some(raw) = raw {
                let link = sys::open_raw_tracepoint(program.as_fd(), raw).map_err(failed)?;
                self.lifecycle.push(link);
            } else {
                let event = sys::open_tracepoint(tracefs.tracepoint_id(event)?).map_err(failed)?;
                let link =
                    sys::link_perf_event(program.as_fd(), event.as_fd(), 0).map_err(failed)?;
                self.lifecycle.push(link);
                self.lifecycle.push(event);
            }
        }
        Ok(())
    }

    /// A number for a process incarnation that has not been used yet.
    #[must_use]
    pub fn new_incarnation(&self) -> u32 {
        self.incarnations
            .word(0, 0)
            .map_or(1, |next| next.fetch_add(1, Ordering::SeqCst)) as u32
    }

    /// Begins to record a process. With `before_exec` it is a child that has not called exec yet: what it does until then is
    /// not recorded, and it is held whenever it maps code.
    ///
    /// # Errors
    /// The process table is full.
    pub fn follow(
        &mut self,
        pid: u32,
        incarnation: u32,
        before_exec: bool,
    ) -> Result<(), KernelError> {
        if before_exec {
            self.holds
                .insert(pid, 0, ANY)
                .map_err(|error| map_error("HOLDS", &error))?;
        }
        let record = ProcessRecord {
            incarnation,
            flags: if before_exec { PROCESS_EXEC_PENDING } else { 0 },
        };
        self.processes
            .insert(pid, Value(record), ANY)
            .map_err(|error| map_error("PROCESSES", &error))
    }

    /// Stops following a process.
    pub fn forget(&mut self, pid: u32) {
        // An entry that is gone already is what is wanted.
        let _ = self.processes.remove(&pid);
        let _ = self.holds.remove(&pid);
    }

    /// Drops the records of a process's threads. Only once nothing is attached to it any more: a record that a program is
    /// using must not be given to another thread.
    pub fn forget_threads(&mut self, pid: u32) {
        let threads: Vec<u64> = self
            .threads
            .keys()
            .flatten()
            .filter(|thread| thread >> 32 == u64::from(pid))
            .collect();
        for thread in threads {
            // The thread may have ended by itself.
            let _ = self.threads.remove(&thread);
        }
    }

    /// The incarnation of a followed process.
    #[must_use]
    pub fn incarnation(&self, pid: u32) -> Option<u32> {
        self.processes
            .get(&pid, 0)
            .ok()
            .map(|record| record.0.incarnation)
    }

    /// No longer holds a process when it maps code, until it runs another program than that of this incarnation.
    pub fn end_hold(&mut self, pid: u32, incarnation: u32) {
        // A process that is not held has no entry.
        let _ = self.holds.insert(pid, incarnation, EXIST);
    }

    /// Lets a held process run on.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resume(&self, pid: u32) -> Result<(), KernelError> {
        command::send_continue(pid)
            .map_err(|source| KernelError::call(format!("cannot continue process {pid}"), source))
    }

    /// Attaches probes in a file, which may be named by a link under /proc; to one process, or to all that map it.
    ///
    /// # Errors
    /// The kernel refused; nothing is left attached.
    pub fn attach(
        &self,
        file: &Path,
        pid: Option<u32>,
        probes: &[Attachment],
    ) -> Result<Link, KernelError> {
        self.programs
            .attach(&attach::kernel_path(file)?, pid, probes)
    }

    /// Waits for events or for one of the descriptors (such as pidfds) to become readable. Tells which of the descriptors
    /// are.
    ///
    /// # Errors
    /// poll(2) failed.
    pub fn wait(
        &self,
        others: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Vec<bool>, KernelError> {
        let ring = self.events.as_fd();
        let mut fds = vec![ring];
        fds.extend_from_slice(others);
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let mut ready = sys::poll_readable(&fds, timeout)
            .map_err(|source| KernelError::call("cannot wait for events", source))?;
        if !ready.is_empty() {
            ready.remove(0);
        }
        Ok(ready)
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

    /// Every loss with its count.
    #[must_use]
    pub fn losses(&self) -> Vec<(Loss, u64)> {
        Loss::ALL
            .into_iter()
            .map(|loss| (loss, self.losses.read(loss as usize).unwrap_or(0)))
            .collect()
    }

    /// Begins to count losses anew.
    pub fn reset_losses(&mut self) {
        for index in 0..self.losses.len() {
            self.losses.write(index, 0);
        }
    }

    /// Every site that has been used, with its counts.
    #[must_use]
    pub fn sites(&self) -> Vec<SiteCount> {
        let slots = self.sites.len();
        let stripes = self.totals.len() / slots.max(1);
        let mut found = Vec::new();
        for slot in 0..slots {
            let Some(key) = self.sites.read(slot) else {
                break;
            };
            if key.check == 0 && slot != 0 {
                continue;
            }
            let mut totals = SiteTotals::default();
            for stripe in 0..stripes {
                let Some(part) = self.totals.read(stripe * slots + slot) else {
                    break;
                };
                totals.alloc_objects = totals.alloc_objects.wrapping_add(part.alloc_objects);
                totals.alloc_bytes = totals.alloc_bytes.wrapping_add(part.alloc_bytes);
                totals.free_objects = totals.free_objects.wrapping_add(part.free_objects);
                totals.free_bytes = totals.free_bytes.wrapping_add(part.free_bytes);
            }
            if totals == SiteTotals::default() {
                continue;
            }
            found.push(SiteCount {
                site: slot as u32,
                incarnation: key.incarnation,
                totals,
            });
        }
        found
    }

    /// Visits every live block. Blocks that come and go meanwhile may or may not be visited; none is seen half written.
    pub fn visit_blocks(&self, mut visit: impl FnMut(LiveBlock)) {
        for index in 0..self.live.len() {
            let Some(bucket) = self.live.read(index) else {
                return;
            };
            for (slot, (key, block)) in bucket.keys.into_iter().zip(bucket.blocks).enumerate() {
                if key == 0 || key == LIVE_CLAIMED {
                    continue;
                }
                // The same key after the block was read: nobody replaced the block in between.
                let still = self
                    .live
                    .word(index, offset_of!(Bucket, keys) + slot * 8)
                    .is_some_and(|word| word.load(Ordering::SeqCst) == key);
                if still {
                    visit(LiveBlock {
                        address: live_key(block.incarnation, key),
                        block,
                    });
                }
            }
        }
    }

    /// How thin the live table is: one of `2^shift` blocks is kept.
    #[must_use]
    pub fn thin_shift(&self) -> u32 {
        self.settings
            .read(0)
            .map_or(0, |settings| settings.thin_shift)
    }

    /// Whether the live table holds more blocks than it was asked to, estimated from one bucket in 64 (standard error
    /// below 1 % with a full table of the default size).
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        const STRIDE: usize = 64;
        let mut seen = 0_usize;
        let mut used = 0_usize;
        for index in (0..self.live.len()).step_by(STRIDE) {
            let Some(bucket) = self.live.read(index) else {
                break;
            };
            seen += bucket.keys.len();
            used += bucket.keys.iter().filter(|key| **key != 0).count();
        }
        // The table has room for twice the blocks asked for, or more: see `live_buckets`.
        self.thin_shift() < MAX_THIN_SHIFT && seen > 0 && used.saturating_mul(2) > seen
    }

    /// Keeps half of the blocks from now on, and drops those that would not have been kept. The probe may remove a block
    /// at the same time; whoever replaces the key first wins.
    pub fn thin(&mut self) {
        let Some(mut settings) = self.settings.read(0) else {
            return;
        };
        settings.thin_shift += 1;
        self.settings.write(0, settings);
        for index in 0..self.live.len() {
            let Some(bucket) = self.live.read(index) else {
                return;
            };
            for (slot, key) in bucket.keys.into_iter().enumerate() {
                if key > LIVE_CLAIMED
                    && !thin_keeps(key, settings.thin_shift)
                    && let Some(word) = self.live.word(index, offset_of!(Bucket, keys) + slot * 8)
                {
                    let _ = word.compare_exchange(key, 0, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
        }
    }

    /// Drops the live blocks of an incarnation that has ended.
    pub fn drop_blocks(&mut self, incarnation: u32) {
        for index in 0..self.live.len() {
            let Some(bucket) = self.live.read(index) else {
                return;
            };
            for (slot, (key, block)) in bucket.keys.into_iter().zip(bucket.blocks).enumerate() {
                if key > LIVE_CLAIMED
                    && block.incarnation == incarnation
                    && let Some(word) = self.live.word(index, offset_of!(Bucket, keys) + slot * 8)
                {
                    let _ = word.compare_exchange(key, 0, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
        }
    }

    /// Calls seen of an incarnation, by hit slot: of living threads and of ended ones.
    #[must_use]
    pub fn hits(&self, incarnation: u32) -> [u64; HIT_SLOTS] {
        let mut sum = [0_u64; HIT_SLOTS];
        let mut add = |counts: &HitCounts| {
            for (to, from) in sum.iter_mut().zip(counts.slots) {
                *to += from;
            }
        };
        if let Ok(ended) = self.hits.get(&incarnation, 0) {
            add(&ended.0);
        }
        // A thread that ends during the iteration can be missed or end it early; the next look has it.
        for (_, thread) in self.threads.iter().flatten() {
            if thread.0.incarnation == incarnation {
                add(&thread.0.hits);
            }
        }
        sum
    }

    /// Tells the probe where a process's mappings stand.
    pub fn set_slice(&mut self, incarnation: u32, first: u32, count: u32) {
        let index = slice_index(incarnation);
        let range = u64::from(first) << 32 | u64::from(count);
        let Some(there) = self.slices.read(index) else {
            return;
        };
        if there.incarnation != incarnation {
            self.slices.write(index, Slice::default());
        }
        if let Some(word) = self.slices.word(index, offset_of!(Slice, range)) {
            word.store(range, Ordering::SeqCst);
        }
        self.slices.write(
            index,
            Slice {
                range,
                incarnation,
                reserved: 0,
            },
        );
    }

    /// The process's mappings are not to be used any more.
    pub fn clear_slice(&mut self, incarnation: u32) {
        let index = slice_index(incarnation);
        if self
            .slices
            .read(index)
            .is_some_and(|slice| slice.incarnation == incarnation)
        {
            self.slices.write(index, Slice::default());
        }
    }

    /// Writes an entry of the mappings table; `false` beyond its end.
    pub fn write_mapping(&mut self, index: usize, mapping: Mapping) -> bool {
        self.mappings.write(index, mapping)
    }

    /// Writes an entry of the unwind tables' page index; `false` beyond its end.
    pub fn write_unwind_page(&mut self, index: usize, page: UnwindPage) -> bool {
        self.unwind_pages.write(index, page)
    }

    /// Writes a row of the unwind tables; `false` beyond their end.
    pub fn write_unwind_row(&mut self, index: usize, row: UnwindRow) -> bool {
        self.unwind_rows.write(index, row)
    }

    /// Capacities of the unwind tables: rows, pages, mappings.
    #[must_use]
    pub fn unwind_capacity(&self) -> (usize, usize, usize) {
        (
            self.unwind_rows.len(),
            self.unwind_pages.len(),
            self.mappings.len(),
        )
    }
}

/// The slot of an incarnation's slice.
fn slice_index(incarnation: u32) -> usize {
    (incarnation & (SLICE_SLOTS - 1)) as usize
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

/// Maps an array.
fn shared<T: Plain>(
    object: &LoadedObject,
    name: &str,
    len: u32,
) -> Result<SharedArray<T>, KernelError> {
    SharedArray::map(object.map_fd(name)?, len as usize)
        .map_err(|source| KernelError::call(format!("cannot map the BPF array {name}"), source))
}

/// A hash map behind aya's typed interface.
fn hash<K: aya::Pod, V: aya::Pod>(data: MapData) -> Result<BpfHashMap<MapData, K, V>, KernelError> {
    BpfHashMap::try_from(Map::HashMap(data)).map_err(|error| map_error("a hash map", &error))
}

/// A failed map operation.
fn map_error(name: &str, error: &MapError) -> KernelError {
    let source = io_error(error);
    if source.raw_os_error() == Some(libc::E2BIG) {
        return KernelError::call(format!("the BPF map {name} is full"), source);
    }
    KernelError::call(format!("cannot use the BPF map {name}"), source)
}

/// Reads a number at an offset of a record.
fn number<const N: usize>(record: &[u8], offset: usize) -> Option<[u8; N]> {
    record.get(offset..offset + N)?.try_into().ok()
}

/// Reads a record of the ring buffer. One that is shorter than it should be is nothing.
fn parse_event(record: &[u8]) -> Option<ProbeEvent> {
    let word = |offset| number(record, offset).map(u32::from_ne_bytes);
    let half = |offset| number(record, offset).map(u16::from_ne_bytes);
    let kind = word(offset_of!(Event, kind))?;
    if kind == EventKind::Stack as u32 {
        let depth = usize::from(half(offset_of!(StackRecord, depth))?);
        let frames = record
            .get(STACK_HEADER_BYTES..)?
            .chunks_exact(8)
            .take(depth)
            .filter_map(|bytes| bytes.try_into().ok().map(u64::from_ne_bytes))
            .collect();
        return Some(ProbeEvent::Stack {
            pid: word(offset_of!(StackRecord, tgid))?,
            incarnation: word(offset_of!(StackRecord, incarnation))?,
            site: word(offset_of!(StackRecord, site))?,
            flags: half(offset_of!(StackRecord, flags))?,
            hit_slot: leakscope_common::ProbeCookie::from_bits(u64::from(word(offset_of!(
                StackRecord,
                cookie
            ))?))
            .hit_slot,
            frames,
        });
    }
    let pid = word(offset_of!(Event, tgid))?;
    let incarnation = word(offset_of!(Event, incarnation))?;
    let held = word(offset_of!(Event, held))? != 0;
    if kind == EventKind::Exec as u32 {
        Some(ProbeEvent::Exec {
            pid,
            incarnation,
            ended: word(offset_of!(Event, value))?,
            held,
        })
    } else if kind == EventKind::MappedCode as u32 {
        Some(ProbeEvent::MappedCode {
            pid,
            incarnation,
            held,
        })
    } else if kind == EventKind::UnknownMapping as u32 {
        Some(ProbeEvent::UnknownMapping { pid, incarnation })
    } else {
        None
    }
}

/// A pidfd for a process: readable when it has ended.
///
/// # Errors
/// There is no such process.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    command::open_pidfd(pid)
}
