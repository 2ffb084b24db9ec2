//! When blocks of a Go program are told of where they are handed out: in windows at random times that become longer where few are, as often as
//! what they cost is earned.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::watcher::Shared;
use crate::{
    kernel::{BlockWatcher, Link, close_links, monotonic_ns},
    symbol::Module,
};

/// The first window, and the longest. A window that is not shorter than the least is waited out at once.
const FIRST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(1);
const WAITED_OUT: Duration = Duration::from_millis(20);

/// A window is made longer until it sees so many blocks, and shorter where it sees more than so many.
const WANTED_HITS: u64 = 200;
const MOST_HITS: u64 = 1000;

/// What a window saw is known when what the probe tells was dealt with so often since its end: once whole.
const DRAINS: u64 = 2;

/// The time between two windows, on average; more where their blocks are dealt with later.
const PAUSE: Duration = Duration::from_millis(300);

/// Probes that nobody takes away go so long after the window's end.
const LATE: Duration = Duration::from_millis(100);

/// What a budget may have saved, seconds of the process's time: for a window of the most blocks, about.
const MOST_SAVED_S: f64 = 0.005;

/// What the first windows of a kind may take beside the budget, seconds of the process's time: of one that hardly runs nothing could be learnt else.
/// There are two kinds, and the tier line says it.
const FIRST_S: f64 = 0.005;

/// Where blocks are seen.
#[derive(Debug)]
pub(super) struct WindowsTask {
    pub(super) watcher: BlockWatcher,
    /// The file, and the instructions' places in it.
    pub(super) module: Arc<Module>,
    pub(super) offsets: Vec<u64>,
    /// What records of it carry.
    pub(super) marks: u32,
    /// Which counter of blocks is its.
    pub(super) number: usize,
}

/// The windows of one kind of block.
#[derive(Debug)]
pub(super) struct Windows {
    task: WindowsTask,
    length: Duration,
    open: Option<(Link, Instant)>,
    next: Instant,
    /// Seconds of the process's time that may still be taken; and the blocks that were paid for.
    credit: f64,
    paid: u64,
    /// Blocks by the last window's beginning; `None` once it was learnt from. And how often they had been dealt with by its end.
    before: Option<u64>,
    closed_at: u64,
    random: u64,
}

impl Windows {
    pub(super) fn new(task: WindowsTask) -> Self {
        Self {
            task,
            length: FIRST,
            open: None,
            next: Instant::now(),
            credit: FIRST_S,
            paid: 0,
            before: None,
            closed_at: 0,
            random: monotonic_ns() | 1,
        }
    }

    /// Takes in what was earned, and pays for all blocks so far.
    pub(super) fn earn(&mut self, earned_s: f64, hit: Duration, hits: u64) {
        let new = hits.saturating_sub(self.paid);
        self.paid = hits;
        self.credit += earned_s - hit.as_secs_f64() * new as f64;
        self.credit = self.credit.min(MOST_SAVED_S);
    }

    /// Opens and closes what is due. An error says why none can be opened.
    pub(super) fn step(&mut self, pid: u32, shared: &Shared) -> Result<(), String> {
        let now = Instant::now();
        let hits = shared.hits(self.task.number);
        if let Some((_, until)) = &self.open {
            let seen = hits.saturating_sub(self.before.unwrap_or(hits));
            if now >= *until || seen > MOST_HITS || shared.is_stopped() {
                self.close(shared);
            }
            return Ok(());
        }
        let is_known = shared.drains() >= self.closed_at.saturating_add(DRAINS);
        if now < self.next || !is_known {
            return Ok(());
        }
        if let Some(before) = self.before.take() {
            self.learn(hits.saturating_sub(before));
        }
        if self.credit <= 0.0 {
            return Ok(());
        }
        self.before = Some(hits);
        let deadline = self.length.saturating_add(LATE);
        let deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        let module = &self.task.module;
        let link = self.task.watcher.watch(
            &module.open_path(),
            &module.path,
            pid,
            (&self.task.offsets, self.task.marks),
            monotonic_ns().saturating_add(deadline_ns),
        );
        let link = link.map_err(|error| error.to_string())?;
        self.open = Some((link, Instant::now() + self.length));
        if self.length <= WAITED_OUT {
            thread::sleep(self.length);
            self.close(shared);
        }
        Ok(())
    }

    fn close(&mut self, shared: &Shared) {
        if let Some((link, _)) = self.open.take() {
            let ready = self.task.watcher.ready_to_detach();
            close_links([link].into_iter().chain(ready));
        }
        self.closed_at = shared.drains();
        // Not in step with what the program does.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let part = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        self.next = Instant::now() + PAUSE.mul_f64(2.0 * part);
    }

    /// Sets the next window's length by how many blocks the last one saw.
    fn learn(&mut self, hits: u64) {
        if hits < WANTED_HITS {
            self.length = self.length.saturating_mul(2).min(LONGEST);
        } else if hits > MOST_HITS {
            self.length = (self.length / 2).max(SHORTEST);
        }
    }
}
