//! Looks at the heap of a process that runs: one that says what there is, and others that confirm what that found unreachable. Must not
//! know who wants to know.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    AddressSpaceImage, Bounded, Names, ProcessMemory, ReadError, WithRegisters, read_address_space,
};
use crate::{
    heap::{self, Look, LookOptions, Owned},
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
}

/// Looks at a process. `owned`: blocks that are known otherwise, by address; `servers`: where symbols may be asked for.
///
/// Gives `None` where no allocator is known whose heap could be walked, or there was not time enough for one look.
///
/// # Errors
/// The process is gone, or we may not read it.
pub fn look_at(
    proc_root: &Path,
    pid: u32,
    wish: LookWish,
    owned: &[Owned],
    servers: Option<&Debuginfod>,
) -> Result<Option<(Look, AddressSpaceImage)>, ReadError> {
    let (begun, cpu) = (Instant::now(), cpu_time(proc_root, pid).ok());
    let image = read_address_space(proc_root, pid)?;
    let memory = WithRegisters::new(ProcessMemory::open(proc_root, pid)?);
    let regions = memory.with_own(image.regions.clone(), &image.registers);
    let options = LookOptions {
        is_stopped: false,
        is_python: image.is_python,
        levels: wish.levels,
        groups_with_holders: wish.groups_with_holders,
        by_size: wish.by_size,
        most_edges: LookOptions::edges_for(image.anonymous_bytes),
    };
    let bounded = || Bounded::new(&memory, wish.until, wish.most_bytes);
    let first = bounded();
    let mut names = Names::new(&image, proc_root, pid).with_servers(servers.cloned());
    let found = heap::look(&first, &regions, options, owned, &mut names);
    drop(names);
    let Some(mut found) = found.filter(|_| !first.is_over()) else {
        return Ok(None);
    };
    // Of a process that does nothing the first look is one of those that agree.
    let worked = cpu_time(proc_root, pid).ok().zip(cpu);
    let is_idle = worked.is_some_and(|(now, before)| {
        now.saturating_sub(before).as_secs_f64() <= IDLE * begun.elapsed().as_secs_f64()
    });
    let mut agreeing = if is_idle { CONFIRMING - 1 } else { 0 };
    for _ in 0..MOST_CONFIRMING {
        if found.lost.is_empty() {
            break;
        }
        thread::sleep(BETWEEN);
        let mut failed = None;
        let mut regions = || match read_address_space(proc_root, pid) {
            Ok(now) => Some(memory.with_own(now.regions, &now.registers)),
            Err(error) => {
                failed = Some(error);
                None
            }
        };
        let again = bounded();
        let before = found.lost.clone();
        let held = heap::confirm(&again, &mut regions, options, owned, &mut found);
        if let Some(error) = failed {
            return Err(error);
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
    Ok(Some((found, image)))
}
