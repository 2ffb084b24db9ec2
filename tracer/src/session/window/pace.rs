//! The pace of what ends in windows, by which it is known how long they were for a process whose blocks go by the clock. Knows nothing of
//! processor time.

use super::{
    own_time::{Known, Used},
    ratio::Ratio,
};

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
pub(super) struct Pace(
    /// Time and allocations.
    Ratio,
);

impl Pace {
    /// Takes a window in.
    pub(super) fn note(&mut self, used: Used) {
        self.0.note(Self::of_window(used), used.allocations);
    }

    /// The time that a window was open for the process, if all went by the clock.
    pub(super) fn of_window(used: Used) -> f64 {
        if used.old_frees > used.survivors {
            used.time * used.survivors / used.old_frees
        } else {
            used.time.max(used.planned)
        }
    }

    /// The time from one allocation to the next at the most, if all went by the clock.
    pub(super) fn of_an_allocation(&self) -> Option<Known> {
        let time = self.0.value();
        if !time.is_finite() || time <= 0.0 {
            return None;
        }
        // What windows are off it, with one more that is off by as much as one may be.
        let one = PACE_OF_ONE_WINDOW * self.0.of / self.0.windows;
        let by_chance = (self.0.squares_off() + one * one).sqrt() / self.0.to;
        Some(Known {
            time,
            off: by_chance.hypot(PACE_UNCERTAINTY * time),
        })
    }
}
