//! What a process that is seen in windows has in use over time: estimated at looks, for the series. Knows nothing of single sites.

use std::time::{Duration, Instant};

use super::Windows;
use crate::{
    ledger::{Held, bound},
    session::moment::Moment,
};

/// For the series of what is in use over time, it is estimated so often: a good deal dearer than to look at the blocks.
const ESTIMATE_EVERY: Duration = Duration::from_secs(5);

/// The bytes in use of a process, estimated at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimated {
    at: Instant,
    bytes: u64,
    /// Those of blocks that were seen themselves.
    counted: u64,
}

/// What the sites' totals came to, bytes, when every call had just been seen again, and when that was.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenAgain {
    since_ns: u64,
    balance: f64,
}

impl Windows {
    /// Estimates what is in use, for the series over time, where the last estimate is not of just now. `memory`: anonymous memory, bytes.
    pub(super) fn note_inuse(&mut self, memory: u64) {
        if self
            .inuse
            .is_some_and(|last| last.at.elapsed() < ESTIMATE_EVERY)
        {
            return;
        }
        let now = Moment::now();
        let covered_until_ns = self.opened_ns().unwrap_or(now.ns());
        let (estimates, _) = self.estimates(&now, covered_until_ns, 0.0);
        let mut held: Vec<Held> = estimates.values().map(Held::from).collect();
        bound(&mut held, memory);
        let sum = |part: fn(&Held) -> u64| held.iter().map(part).fold(0, u64::saturating_add);
        self.inuse = Some(Estimated {
            at: Instant::now(),
            bytes: sum(|site| site.bytes),
            counted: sum(|site| site.counted),
        });
    }

    /// Whether what is in use is estimated: it is not where every call was seen so far.
    pub(in crate::session) fn is_estimated(&self) -> bool {
        self.inuse.is_some()
    }

    /// What is in use by the last estimate, bytes, with what has come since every call is seen again: `balance` is what the sites' totals come to now. No more
    /// than this memory can hold.
    pub(in crate::session) fn inuse(&mut self, memory: u64, balance: f64) -> u64 {
        let Some(last) = self.inuse else {
            return 0;
        };
        let seen_again = self.exact_since_ns().map(|since_ns| {
            let before = self.seen_again.filter(|seen| seen.since_ns == since_ns);
            before.unwrap_or(SeenAgain { since_ns, balance })
        });
        self.seen_again = seen_again;
        let come = seen_again.map_or(0.0, |seen| (balance - seen.balance).max(0.0)) as u64;
        let counted = last.counted.saturating_add(come);
        last.bytes.saturating_add(come).min(memory.max(counted))
    }
}
