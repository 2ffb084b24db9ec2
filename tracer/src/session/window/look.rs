//! Looks at the blocks that survived windows, from outside: which are still there. When, and of which; the ledger makes of it what it can.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use super::super::{Session, process::Traced};
use crate::{
    kernel::{BlockReading, BlockToRead, monotonic_ns, read_blocks, thread_cpu_time},
    ledger::{Reading, Survivor},
    process::procfs::{answering_memory, lies_in},
};

/// Looks at the last window's survivors after its end: most blocks that do not last go soon.
const NEWEST_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// All are looked at before each window, and so often where windows are rarer.
const ALL_EVERY: Duration = Duration::from_secs(5);

/// A look that is not older than this is fresh.
const FRESH: Duration = Duration::from_millis(200);

/// When a process's survivors were looked at.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// At all of them.
    looked: Option<Instant>,
    /// Looks at the last window's since its end.
    newest: usize,
    next: Option<Instant>,
}

impl Looks {
    /// A window was closed.
    pub(super) fn begin(&mut self) {
        self.newest = 0;
    }

    /// Nothing is watched any more.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }
}

impl Session {
    /// Looks at watched blocks where it is time; at all of them when `now` is set.
    pub(in crate::session) fn check_watched(&mut self, now: bool) {
        let at = Instant::now();
        for traced in self.processes.values_mut() {
            if traced.ended.is_some() {
                continue;
            }
            let looks = &traced.windows.looks;
            let is_due = looks.next.is_some_and(|next| now || at >= next);
            if !is_due {
                continue;
            }
            self.faults.work_on(traced.pid);
            let begun = thread_cpu_time();
            if now || looks.newest >= NEWEST_AFTER.len() {
                look_at_all(traced);
                traced.windows.note_inuse(memory(traced));
            } else {
                look_at_newest(traced);
            }
            let worked = thread_cpu_time().saturating_sub(begun);
            traced.windows.work = traced.windows.work.saturating_add(worked);
        }
        self.faults.work_on(None);
    }
}

/// Before a window: what it contradicts is compared with what is there now.
pub(super) fn look_before_window(traced: &mut Traced) {
    if traced
        .windows
        .looks
        .looked
        .is_none_or(|looked| looked.elapsed() > FRESH)
    {
        look_at_all(traced);
    }
    traced.windows.note_inuse(memory(traced));
}

/// Anonymous memory at the last look, bytes.
fn memory(traced: &Traced) -> u64 {
    traced.anonymous_bytes.saturating_add(traced.swapped_bytes)
}

/// Looks at blocks, but for those that lie where reading may wait for somebody. Where the next one begins a block says itself, and with it
/// who writes it.
pub(super) fn read_answering(
    pid: u32,
    blocks: &[BlockToRead],
) -> io::Result<Vec<Option<BlockReading>>> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let memory = answering_memory(Path::new("/proc"), pid).map_err(io::Error::other)?;
    read_blocks(pid, blocks, &|start, end| lies_in(&memory, start, end))
}

/// Looks at the blocks that survived the last window.
pub(super) fn look_at_newest(traced: &mut Traced) {
    let blocks: Vec<BlockToRead> = traced.windows.cohorts.newest().map(to_read).collect();
    // A process that is gone, or has just replaced its program, holds nothing that could be contradicted.
    if let Ok(readings) = read_answering(traced.pid, &blocks) {
        let readings = as_readings(&readings);
        traced
            .windows
            .cohorts
            .check_newest(monotonic_ns(), &readings);
    }
    let looks = &mut traced.windows.looks;
    let wait = NEWEST_AFTER.get(looks.newest).copied().unwrap_or(ALL_EVERY);
    looks.newest += 1;
    looks.next = Some(Instant::now() + wait);
}

/// Looks at all watched blocks of a process.
fn look_at_all(traced: &mut Traced) {
    let blocks: Vec<BlockToRead> = traced.windows.cohorts.watched().map(to_read).collect();
    // As above.
    if let Ok(readings) = read_answering(traced.pid, &blocks) {
        let readings = as_readings(&readings);
        traced.windows.cohorts.check(monotonic_ns(), &readings);
    }
    let now = Instant::now();
    let looks = &mut traced.windows.looks;
    looks.newest = NEWEST_AFTER.len();
    looks.looked = Some(now);
    looks.next = Some(now + ALL_EVERY);
}

fn to_read(block: &Survivor) -> BlockToRead {
    BlockToRead {
        address: block.address,
        size: block.size,
        has_header: block.has_header(),
    }
}

fn as_readings(readings: &[Option<BlockReading>]) -> Vec<Option<Reading>> {
    readings
        .iter()
        .map(|reading| reading.as_ref().map(as_reading))
        .collect()
}

/// The same in the ledger's terms.
pub(super) fn as_reading(reading: &BlockReading) -> Reading {
    Reading {
        header: reading.header,
        next_header: reading.next_header,
        fingerprint: reading.fingerprint,
        is_constant: reading.is_constant,
        second_word: reading.second_word,
        second_is_random: reading.second_is_random,
    }
}
