//! A word that is watched, and when what was written to it has settled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::choose::Choice;
use crate::kernel::WatchedWord;

/// What was written to and then not for so long has settled: it is an object, and who wrote last made it.
const SETTLES: Duration = Duration::from_secs(1);

/// What was not written to for so long is given up, for what will be handed out is elsewhere by now.
const PATIENCE: Duration = Duration::from_secs(2);

/// An object that had settled is watched again for so long.
const AGAIN: Duration = Duration::from_secs(2);

/// So many writes to one word are seen: of one that is used again all the time nothing is learnt.
pub(super) const MOST_WRITES: u32 = 24;

/// See the module.
#[derive(Debug)]
pub(super) struct Armed {
    pub(super) choice: Choice,
    watched: WatchedWord,
    /// Whose writes are seen, where it is not whoever runs.
    pub(super) threads: Option<Arc<[u32]>>,
    since: Instant,
    /// The same, CLOCK_MONOTONIC nanoseconds, before it was watched.
    pub(super) since_ns: u64,
    writes: u64,
    written: Option<Instant>,
}

/// What has become of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is watched further.
    Waits,
    /// What was written last is there still.
    Settled,
    /// An object that had settled and was watched again was written to: another one has its place.
    Replaced,
    /// It was not, for as long as it was watched again.
    Stayed,
    /// Nothing is learnt of it.
    GivenUp,
}

impl Armed {
    pub(super) fn new(
        choice: Choice,
        watched: WatchedWord,
        threads: Option<Arc<[u32]>>,
        since_ns: u64,
    ) -> Self {
        Self {
            choice,
            watched,
            threads,
            since: Instant::now(),
            since_ns,
            writes: 0,
            written: None,
        }
    }

    /// How long it was watched, seconds.
    pub(super) fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.since).as_secs_f64()
    }

    /// What has become of it, and writes since it was asked before.
    pub(super) fn look(&mut self, now: Instant) -> (State, u64) {
        let count = self.watched.writes();
        let more = count.saturating_sub(self.writes);
        if more > 0 {
            self.writes = count;
            self.written = Some(now);
        }
        let waits_for =
            |since: Instant, most: Duration| now.saturating_duration_since(since) < most;
        let state = match self.written {
            Some(_) if self.choice.is_again => State::Replaced,
            None if self.choice.is_again && !waits_for(self.since, AGAIN) => State::Stayed,
            None if self.choice.is_again => State::Waits,
            _ if count >= u64::from(MOST_WRITES) => State::GivenUp,
            None if waits_for(self.since, PATIENCE) => State::Waits,
            None => State::GivenUp,
            Some(written) if waits_for(written, SETTLES) => State::Waits,
            Some(_) => State::Settled,
        };
        (state, more)
    }
}
