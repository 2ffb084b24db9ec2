//! The thread that looks at heaps. It knows processes by their ids, and nothing of the trace.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use crate::{
    apart::{Place, spent_here, walk_space},
    heap::{Look, Owned, Space},
    kernel::{ordinary_priority, thread_cpu_time},
    reader::{LookWish, ProcessMemory, ReadError, look_at, read_address_space},
    units::duration,
};

/// So many bytes of a process are read in each walk: more would take longer than there is time.
const MOST_BYTES: u64 = 8 << 30;

/// In a heap of more blocks pointers are not followed: that takes longer than there is time, and much memory of ours.
const MOST_BLOCKS: u64 = 8 << 20;

/// So long before nobody waits any more what was found is to be told.
const MARGIN: Duration = Duration::from_millis(500);

/// Holders are followed so many steps up.
const LEVELS: usize = 5;

/// A process that is to be looked at.
pub(super) struct Job {
    pub(super) pid: u32,
    pub(super) incarnation: u32,
    /// Its blocks that are known, by address; the owner is the site.
    pub(super) owned: Vec<Owned>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) found: Option<Found>,
    /// Why it was not looked at.
    pub(super) note: Option<String>,
    /// Processor time that it took.
    pub(super) spent: Duration,
}

/// A heap.
#[derive(Debug)]
pub(super) struct Found {
    /// `None` where no allocator is known whose heap could be walked.
    pub(super) space: Option<Space>,
    pub(super) took: Duration,
    /// What its blocks are, where that was to be known and there was time for it.
    pub(super) look: Option<Look>,
}

/// Looks that nobody waits for any more.
#[derive(Debug)]
pub(super) struct Late {
    results: Receiver<(u32, Outcome)>,
    /// Processor time that they took.
    spent: Duration,
}

impl Late {
    pub(super) fn new(results: Receiver<(u32, Outcome)>, spent: Duration) -> Self {
        Self { results, spent }
    }

    /// What they took in all, once they have ended.
    pub(super) fn ended(&mut self) -> Option<Duration> {
        loop {
            match self.results.try_recv() {
                Ok((_, outcome)) => self.spent = self.spent.saturating_add(outcome.spent),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(self.spent),
            }
        }
    }
}

/// What is said where there was not time enough.
pub(super) fn too_long(pid: u32, time: Duration) -> String {
    format!(
        "not looked at: that takes longer than {}; `leakscope heap -p {pid}` does it",
        duration(time.as_secs_f64())
    )
}

/// Looks at processes one after the other. Nobody waits for the thread: what it reads may hang.
pub(super) fn begin(
    proc_root: PathBuf,
    jobs: Vec<Job>,
    until: Instant,
) -> Receiver<(u32, Outcome)> {
    let (send, results) = channel();
    thread::spawn(move || {
        ordinary_priority();
        let spent_so_far = || thread_cpu_time().saturating_add(spent_here());
        let mut begun = spent_so_far();
        let mut tell = |incarnation: u32, outcome: Outcome| {
            let spent = spent_so_far().saturating_sub(begun);
            begun += spent;
            // Nobody may wait for it any more.
            send.send((incarnation, Outcome { spent, ..outcome }))
                .is_ok()
        };
        for job in jobs {
            let outcome = look(&proc_root, &job, until, |outcome| {
                tell(job.incarnation, outcome);
            });
            let outcome = outcome.unwrap_or_else(|error| Outcome {
                note: Some(format!("not looked at: {error}")),
                ..Outcome::default()
            });
            if !tell(job.incarnation, outcome) {
                return;
            }
        }
    });
    results
}

/// Looks at a process; how full its heap is, is told `first`.
fn look(
    proc_root: &Path,
    job: &Job,
    until: Instant,
    first: impl FnOnce(Outcome),
) -> Result<Outcome, ReadError> {
    let begun = Instant::now();
    let memory = ProcessMemory::open(proc_root, job.pid)?;
    let image = read_address_space(proc_root, job.pid)?;
    let place = Place {
        memory: &memory,
        regions: &image.regions,
        until: Some(until),
        most_bytes: MOST_BYTES,
    };
    let (space, is_over) = walk_space(place, image.is_python)?;
    if is_over {
        return Ok(Outcome {
            note: Some(too_long(job.pid, begun.elapsed())),
            ..Outcome::default()
        });
    }
    let took = begun.elapsed();
    let found = |look| Outcome {
        found: Some(Found { space, took, look }),
        ..Outcome::default()
    };
    first(found(None));
    let is_small = space.is_none_or(|space| space.blocks <= MOST_BLOCKS);
    // What lies in memory that cannot be read may point anywhere.
    if job.owned.is_empty() || !is_small || image.unread_mappings > 0 {
        return Ok(found(None));
    }
    let wish = LookWish {
        levels: LEVELS,
        groups_with_holders: 0,
        by_size: false,
        until: Some(until.checked_sub(MARGIN).unwrap_or(until)),
        most_bytes: MOST_BYTES,
        wants_blocks: true,
    };
    let (look, note) = match look_at(proc_root, job.pid, wish, &job.owned, None) {
        Ok(look) => (look.map(|(look, _)| look), None),
        Err(error @ ReadError::Walk(_)) => (None, Some(error.to_string())),
        // It is gone.
        Err(_) => (None, None),
    };
    Ok(Outcome {
        note,
        ..found(look)
    })
}
