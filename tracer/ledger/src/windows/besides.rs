//! What is known of a process beside its windows, and what that says of a site that windows saw few blocks of. Pure.

use super::super::steady::SURE;

/// The process's memory bears a leak out that grows by at least this share of what the leak takes.
const BORNE_OUT: f64 = 0.5;

/// The same where it has to decide alone: a site that windows saw few blocks of explains at least this share of what no other site does, and at most the
/// inverse of the other: three blocks of a steady flow may be three times as many as were to be expected.
const EXPLAINS: f64 = 0.25;

/// So much it must have grown then, in the second half of the time, bytes: four pages.
const GROWN_AT_LEAST: f64 = 16_384.0;

/// Where blocks from before the trace are freed, it must have grown by so much, bytes: where it does not grow at all, not a page comes.
const GROWN_BESIDE_FREES: f64 = 65_536.0;

/// Pages alone tell of growth from so many bytes on.
const GROWN_BY_PAGES: f64 = 1_048_576.0;

/// What takes the place of blocks from before the trace comes with a like number of their frees: at least this share.
const REPLACES: f64 = 0.4;

/// Memory that saturates grows by less than this share of what it grew by before, in two parts of the time one after the other; or by less than
/// that of the other at once.
const KEEPS: f64 = 0.98;
const KEEPS_AT_ONCE: f64 = 0.8;

/// Memory that has stopped grows by less than this share of it at the very end.
const KEEPS_LATELY: f64 = 0.3;

/// How far the growth of memory may be off what allocations alone add, as a part of it: pages, headers of blocks, what else a process touches.
const MEMORY_ERROR: f64 = 0.1;

/// How far the other sites' rates may be off.
const OTHERS_ERROR: f64 = 0.5;

/// So many standard deviations of what was counted are chance.
const CHANCE: f64 = 2.0;

/// What is known of a process beside its windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessBesides {
    /// Blocks from before the trace that windows saw freed, in as long a time as the site is watched; without as many as were born between windows,
    /// by those that outlived theirs and went later.
    pub frees: f64,
    /// The standard deviation of `frees`, a difference of numbers that may be much larger.
    pub frees_error: f64,
    /// How many of these were counted, in the second half of the time.
    pub counted: f64,
    /// How long that was, seconds.
    pub counted_over_s: f64,
    /// How fast its anonymous memory has grown in the second half of the time, bytes per second.
    pub memory_bytes_per_s: f64,
    /// The same in the two quarters of the time before that.
    pub memory_before_bytes_per_s: [f64; 2],
    /// The same in the last eighth of it.
    pub memory_last_bytes_per_s: f64,
    /// How sure it is that it rises there, in standard deviations (see [`super::super::trend::rise`]).
    pub memory_rise: f64,
    /// What the other sites take each second, as estimated, bytes.
    pub others_bytes_per_s: f64,
}

impl ProcessBesides {
    /// Whether its memory has grown, by at least so many bytes, as a leak of this rate would have it.
    pub(super) fn bears_out(&self, bytes_per_s: f64, watched_s: f64, least: f64) -> bool {
        self.memory_bytes_per_s >= BORNE_OUT * bytes_per_s
            && self.memory_bytes_per_s * watched_s / 2.0 >= least
    }

    /// Whether its memory shows by itself that something leaks, and what the other sites leave of that is about what this one takes.
    pub(super) fn shows(&self, bytes_per_s: f64, watched_s: f64) -> bool {
        let left = self.memory_bytes_per_s - self.others_bytes_per_s.max(0.0);
        self.memory_rise > SURE
            && !self.memory_slows()
            && self.memory_bytes_per_s * watched_s / 2.0 >= GROWN_AT_LEAST
            && left >= BORNE_OUT * bytes_per_s
            && bytes_per_s >= EXPLAINS * left
    }

    /// How fast its memory grows, bytes per second, where it does so to the end, without slowing and by more than chance and what pages come to; in so many
    /// seconds.
    pub(crate) fn grows_to_the_end(&self, watched_s: f64) -> Option<f64> {
        let grows = self.memory_rise > SURE
            && !self.memory_slows()
            && self.memory_bytes_per_s * watched_s / 2.0 >= GROWN_BY_PAGES;
        grows.then_some(self.memory_bytes_per_s)
    }

    /// The rate of a site of which so many blocks were seen to stay, bytes per second: what they say, and what the other sites leave of the process's growth,
    /// each by how far it may be off.
    pub(super) fn rate_with(&self, bytes_per_s: f64, blocks: f64) -> f64 {
        let left = self.memory_bytes_per_s - self.others_bytes_per_s.max(0.0);
        let by_blocks = bytes_per_s / blocks.max(1.0).sqrt();
        let by_memory = (MEMORY_ERROR * self.memory_bytes_per_s)
            .hypot(OTHERS_ERROR * self.others_bytes_per_s)
            .max(f64::MIN_POSITIVE);
        let weight = by_blocks.powi(2) / (by_blocks.powi(2) + by_memory.powi(2));
        bytes_per_s + weight * (left - bytes_per_s)
    }

    /// Whether memory grows less and less. In its first quarter it may do anything: there programs start up, and probes are attached.
    fn memory_slows(&self) -> bool {
        let [first, second] = self.memory_before_bytes_per_s;
        let late = self.memory_bytes_per_s;
        late < KEEPS * second && second < KEEPS * first
            || late < KEEPS_AT_ONCE * second
            || self.memory_last_bytes_per_s < KEEPS_LATELY * late
    }

    /// Whether what stays may take the place of as many blocks from before the trace.
    pub(super) fn may_replace(&self, stay: f64, bytes_per_s: f64, watched_s: f64) -> bool {
        if self.bears_out(bytes_per_s, watched_s, GROWN_BESIDE_FREES) {
            return false;
        }
        let replaces = REPLACES * stay;
        if self.frees - CHANCE * self.frees_error > replaces {
            return true;
        }
        // Chance explains it as well: then it counts whether memory grows at all.
        self.frees > replaces && self.memory_bytes_per_s < BORNE_OUT * bytes_per_s
    }
}
