//! Looks at the heap of a process that runs: one that says what there is, and others that confirm what that found unreachable. Must not
//! know who wants to know.

use std::{
    borrow::Cow,
    ops::Range,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    AddressSpaceImage, Bounded, Names, ProcessMemory, ReadError, WithRegisters, read_address_space,
};
use crate::{
    apart::{Place, walk_look},
    heap::{self, Look, LookOptions, Owned, Region, RootName},
    process::procfs::cpu_time,
    symbol::Debuginfod,
};

/// Between two looks: a block that is only held by a register in one is held by memory in the other.
const BETWEEN: Duration = Duration::from_millis(300);

/// A look that found blocks held which another one had not is followed by others, until so many in a row find none, at most so many.
const CONFIRMING: usize = 2;
const MOST_CONFIRMING: usize = 10;

/// A process that takes a smaller part of a processor hardly changes while it is looked at.
const IDLE: f64 = 0.02;

/// How much is wanted of a look, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct LookWish {
    /// How many steps up holders are followed; 0: not at all.
    pub levels: usize,
    /// Of so many groups, the largest ones.
    pub groups_with_holders: usize,
    /// Groups of one size instead of one type.
    pub by_size: bool,
    /// Until when it is to be done; `None`: whenever it is.
    pub until: Option<Instant>,
    /// So many bytes are read in each look at most.
    pub most_bytes: u64,
    /// Whether lost blocks are wanted one by one.
    pub wants_blocks: bool,
}

/// What is to be looked for; the looks themselves know no process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LookTask<'a> {
    pub(crate) options: LookOptions,
    /// Blocks that are known otherwise, by address.
    pub(crate) owned: Cow<'a, [Owned]>,
    /// Words that are in registers now.
    pub(crate) registers: Cow<'a, [u64]>,
    /// Whether lost blocks are wanted one by one.
    pub(crate) wants_blocks: bool,
}

/// What looks have to know of a process that runs.
pub(crate) trait Ground: RootName {
    /// Its regions now, and what its registers hold.
    fn regions(&mut self) -> Option<(Vec<Region>, Vec<u64>)>;

    /// Whether it has done nothing since the first look began.
    fn is_idle(&mut self) -> bool;
}

/// Looks at a process. `owned`: blocks that are known otherwise, by address; `servers`: where symbols may be asked for.
///
/// Gives `None` where no allocator is known whose heap could be walked, or there was not time enough for one look.
///
/// # Errors
/// The process is gone, or we may not read it, or who reads it ended over it.
pub fn look_at(
    proc_root: &Path,
    pid: u32,
    wish: LookWish,
    owned: &[Owned],
    servers: Option<&Debuginfod>,
) -> Result<Option<(Look, AddressSpaceImage)>, ReadError> {
    let (begun, cpu) = (Instant::now(), cpu_time(proc_root, pid).ok());
    let image = read_address_space(proc_root, pid)?;
    let memory = ProcessMemory::open(proc_root, pid)?;
    let task = LookTask {
        options: LookOptions {
            is_stopped: false,
            is_python: image.is_python,
            levels: wish.levels,
            groups_with_holders: wish.groups_with_holders,
            by_size: wish.by_size,
            most_edges: LookOptions::edges_for(image.anonymous_bytes),
        },
        owned: Cow::Borrowed(owned),
        registers: Cow::Borrowed(&image.registers),
        wants_blocks: wish.wants_blocks,
    };
    let place = Place {
        memory: &memory,
        regions: &image.regions,
        until: wish.until,
        most_bytes: wish.most_bytes,
    };
    let mut process = Process {
        proc_root,
        pid,
        names: Names::new(&image, proc_root, pid).with_servers(servers.cloned()),
        begun,
        cpu,
        failed: None,
    };
    let found = walk_look(place, task, &mut process);
    let failed = process.failed.take();
    drop(process);
    match failed {
        Some(error) => Err(error),
        None => Ok(found?.map(|found| (found, image))),
    }
}

/// A process that is looked at.
struct Process<'a> {
    proc_root: &'a Path,
    pid: u32,
    names: Names<'a>,
    begun: Instant,
    /// Its processor time when that began.
    cpu: Option<Duration>,
    failed: Option<ReadError>,
}

impl RootName for Process<'_> {
    fn name(&mut self, address: u64) -> String {
        self.names.name(address)
    }

    fn whole(&mut self, address: u64) -> (String, Range<u64>) {
        self.names.whole(address)
    }

    fn has_rust(&mut self) -> bool {
        self.names.has_rust()
    }

    fn functions(&mut self, address: u64) -> Option<Vec<String>> {
        self.names.functions(address)
    }

    fn has_function(&mut self, address: u64, name: &str) -> bool {
        self.names.has_function(address, name)
    }
}

impl Ground for Process<'_> {
    fn regions(&mut self) -> Option<(Vec<Region>, Vec<u64>)> {
        match read_address_space(self.proc_root, self.pid) {
            Ok(now) => Some((now.regions, now.registers)),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    fn is_idle(&mut self) -> bool {
        let worked = cpu_time(self.proc_root, self.pid).ok().zip(self.cpu);
        worked.is_some_and(|(now, before)| {
            now.saturating_sub(before).as_secs_f64() <= IDLE * self.begun.elapsed().as_secs_f64()
        })
    }
}

/// Looks until a moment, of so many bytes each; of a process that is stopped, once. `None` as above.
pub(crate) fn look_through(
    memory: ProcessMemory,
    regions: &[Region],
    (until, most_bytes): (Option<Instant>, u64),
    task: &LookTask<'_>,
    ground: &mut dyn Ground,
) -> Option<Look> {
    let (options, owned) = (task.options, task.owned.as_ref());
    let memory = WithRegisters::new(memory);
    let regions = memory.with_own(regions.to_vec(), &task.registers);
    let bounded = || Bounded::new(&memory, until, most_bytes);
    let first = bounded();
    let found = heap::look(&first, &regions, options, owned, &mut *ground);
    drop(regions);
    let mut found = found.filter(|_| !first.is_over())?;
    if !options.is_stopped {
        confirm(&memory, &bounded, task, ground, &mut found)?;
    }
    if !task.wants_blocks {
        found.lost.clear();
        found.doubtful.clear();
    }
    Some(found)
}

/// Looks on until looks agree on what is lost. `None`: the process is gone.
fn confirm<'memory>(
    memory: &'memory WithRegisters,
    bounded: &dyn Fn() -> Bounded<'memory>,
    task: &LookTask<'_>,
    ground: &mut dyn Ground,
    found: &mut Look,
) -> Option<()> {
    // Of a process that does nothing the first look is one of those that agree.
    let mut agreeing = if ground.is_idle() { CONFIRMING - 1 } else { 0 };
    for _ in 0..MOST_CONFIRMING {
        if found.lost.is_empty() {
            break;
        }
        thread::sleep(BETWEEN);
        let mut is_gone = false;
        let mut regions = || {
            let now = ground.regions();
            is_gone |= now.is_none();
            now.map(|(regions, registers)| memory.with_own(regions, &registers))
        };
        let again = bounded();
        let before = found.lost.clone();
        let held = heap::confirm(&again, &mut regions, task.options, &task.owned, found);
        if is_gone {
            return None;
        }
        if again.is_over() {
            // What the blocks are and who holds them is known all the same.
            found.forget_lost(before);
            break;
        }
        agreeing = if held == 0 { agreeing + 1 } else { 0 };
        if agreeing >= CONFIRMING {
            break;
        }
    }
    Some(())
}
