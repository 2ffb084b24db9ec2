//! The pace of what ends in windows, by which it is known how long they were for a process whose blocks go by the clock. Knows nothing of
//! processor time.

use super::own_time::{Known, Used};

/// How far the pace of what ends may be off that of what begins without any traps, as a part of it: the process may fill or empty something. And how
/// far a single window may be off others.
const PACE_UNCERTAINTY: f64 = 0.1;
const PACE_OF_ONE_WINDOW: f64 = 0.5;

/// The time that windows were open for the process, by how fast in them blocks from before ended.
///
/// Of a process at rest in its size as many blocks from before a window end in it as survive it. In one that traps slow down, those end as fast as ever
/// whose time is measured by the clock (sessions that expire, buffers that are flushed each second), but fewer are born. The window's length divided by
/// the ratio of the two is the time that passed for the process, where all go by the clock; where they go by the process's own work the ratio is one
/// and that time too long. It is never too short.
#[derive(Debug, Default)]
pub(super) struct Pace {
    windows: f64,
    time: f64,
    allocations: f64,
    /// Sums of their squares, and of their products.
    time_time: f64,
    time_allocations: f64,
    allocations_allocations: f64,
}

impl Pace {
    /// Takes a window in.
    pub(super) fn note(&mut self, used: Used) {
        let time = Self::of_window(used);
        let allocations = used.allocations;
        self.windows += 1.0;
        self.time += time;
        self.allocations += allocations;
        self.time_time += time * time;
        self.time_allocations += time * allocations;
        self.allocations_allocations += allocations * allocations;
    }

    /// The time that a window was open for the process, if all went by the clock.
    pub(super) fn of_window(used: Used) -> f64 {
        if used.old_frees > used.survivors {
            used.time * used.survivors / used.old_frees
        } else {
            used.time
        }
    }

    /// The time from one allocation to the next at the most, if all went by the clock.
    pub(super) fn of_an_allocation(&self) -> Option<Known> {
        let time = self.time / self.allocations;
        if !time.is_finite() || time <= 0.0 {
            return None;
        }
        // What windows are off it (the variance of a ratio of sums), with one more that is off by as much as one may be.
        let off = self.time_time - 2.0 * time * self.time_allocations
            + time * time * self.allocations_allocations;
        let one = PACE_OF_ONE_WINDOW * self.time / self.windows;
        let by_chance = (off.max(0.0) + one * one).sqrt() / self.allocations;
        Some(Known {
            time,
            off: by_chance.hypot(PACE_UNCERTAINTY * time),
        })
    }
}
