//! What the heaps of traced processes hold, looked at from outside: on a thread of its own, so that no event waits for it, for a
//! limited time, the largest processes first. Knows no allocator and no view.

use std::{
    cmp::Reverse,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use super::{Session, process::Traced};
use crate::{
    heap::{self, Space},
    kernel::{KernelError, ordinary_priority},
    reader::{Bounded, ProcessMemory, ReadError, read_address_space},
    report::{HeapUse, Process},
    units::duration,
};

/// A report waits so long for looks: a gibibyte is walked in about a second.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// So many bytes of a process are read: more would take longer than there is time.
const MOST_BYTES: u64 = 8 << 30;

/// The heaps of so many processes are looked at, those with the most anonymous memory.
const MOST_PROCESSES: usize = 8;

/// Processes with less anonymous memory than this, bytes, have little to explain.
const LEAST_BYTES: u64 = 2 << 20;

/// While looks run, what happens is dealt with so often.
const STEP: Duration = Duration::from_millis(10);

/// What came of a look.
#[derive(Debug)]
enum Looked {
    /// The heap, and how long that took.
    At(Space, Duration),
    /// There is no heap of an allocator that is known.
    Nothing,
    /// Why not.
    Not(String),
}

/// What is known of the heaps, by incarnation.
#[derive(Debug, Default)]
pub(super) struct Heaps(HashMap<u32, Looked>);

impl Heaps {
    /// Tells of a process's heap, as it was when the report began.
    pub(super) fn describe(&self, incarnation: u32, process: &mut Process) {
        match self.0.get(&incarnation) {
            Some(Looked::At(space, took)) => {
                process.heap = Some(HeapUse {
                    took_s: took.as_secs_f64(),
                    blocks: space.blocks,
                    bytes: space.bytes,
                    free_bytes: space.free_bytes,
                    free_pieces: space.free_pieces,
                    top_bytes: space.top_bytes,
                });
            }
            Some(Looked::Not(why)) => process.heap_note = Some(why.clone()),
            Some(Looked::Nothing) | None => {}
        }
    }
}

/// A process that is to be looked at.
struct Wanted {
    pid: u32,
    incarnation: u32,
}

impl Session {
    /// Looks at the heaps of the processes that run, for a report that is to be made. The trace goes on meanwhile.
    ///
    /// # Errors
    /// Those of a step.
    pub(super) fn look_at_heaps(&mut self) -> Result<(), KernelError> {
        self.heaps = Heaps::default();
        for traced in self.processes.values_mut() {
            if traced.ended.is_none() {
                traced.measure(&self.proc_root);
            }
        }
        let mut wanted: Vec<&Traced> = self
            .processes
            .values()
            .filter(|traced| traced.ended.is_none() && memory(traced) >= LEAST_BYTES)
            .collect();
        wanted.sort_by_key(|traced| Reverse(memory(traced)));
        wanted.truncate(MOST_PROCESSES);
        let wanted: Vec<Wanted> = wanted
            .into_iter()
            .map(|traced| Wanted {
                pid: traced.pid,
                incarnation: traced.incarnation,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + LOOK_WITHIN;
        for wanted in &wanted {
            self.heaps
                .0
                .insert(wanted.incarnation, Looked::Not(too_long(wanted.pid)));
        }
        let results = begin(self.proc_root().to_owned(), wanted, until);
        loop {
            match results.try_recv() {
                Ok((incarnation, looked)) => {
                    self.heaps.0.insert(incarnation, looked);
                }
                Err(TryRecvError::Empty) if Instant::now() < until => self.step(STEP)?,
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Anonymous memory, bytes.
fn memory(traced: &Traced) -> u64 {
    traced.anonymous_bytes.saturating_add(traced.swapped_bytes)
}

fn too_long(pid: u32) -> String {
    format!(
        "not looked at: that takes longer than {}; `leakscope heap -p {pid}` does it",
        duration(LOOK_WITHIN.as_secs_f64())
    )
}

/// Looks at processes one after the other. Nobody waits for the thread: what it reads may hang.
fn begin(proc_root: PathBuf, wanted: Vec<Wanted>, until: Instant) -> Receiver<(u32, Looked)> {
    let (send, results) = channel();
    thread::spawn(move || {
        ordinary_priority();
        for wanted in wanted {
            let looked = look(&proc_root, wanted.pid, until)
                .unwrap_or_else(|error| Looked::Not(format!("not looked at: {error}")));
            if send.send((wanted.incarnation, looked)).is_err() {
                return;
            }
        }
    });
    results
}

fn look(proc_root: &Path, pid: u32, until: Instant) -> Result<Looked, ReadError> {
    let begun = Instant::now();
    let memory = ProcessMemory::open(proc_root, pid)?;
    let image = read_address_space(proc_root, pid)?;
    let memory = Bounded::new(&memory, until, MOST_BYTES);
    let space = heap::space(&memory, &image.regions, image.is_python);
    if memory.is_over() {
        return Ok(Looked::Not(too_long(pid)));
    }
    Ok(space.map_or(Looked::Nothing, |space| Looked::At(space, begun.elapsed())))
}
