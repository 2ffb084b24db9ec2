//! Until when probes may stay if we do not come back: a leakscope that is stopped, hangs or comes late slows nobody for longer. Those of a
//! window go shortly after it should have ended; where every call is seen, what was seen is lost with them, and they stay for a while.

use std::time::{Duration, Instant};

use super::{
    super::{Session, process::Traced},
    Windows,
};
use crate::{
    budget::Mode,
    kernel::{Link, LinkMode, monotonic_ns},
};

/// A window that is being opened may take so long until everything is attached; with a perf event for each probe, so long.
const OPENS_WITHIN: Duration = Duration::from_millis(500);
const OPENS_SLOWLY_WITHIN: Duration = Duration::from_secs(3);

/// On a machine under load we come so much later than we meant to.
const LATE: Duration = Duration::from_millis(100);

/// Where every call is seen we come back so much sooner, but for a machine that is out of breath.
const STOPPED: Duration = Duration::from_secs(30);
/// The deadline is put off so often: it costs a word for each link.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// For probes that see every call.
pub(in crate::session) fn exact_deadline() -> u64 {
    after(STOPPED)
}

/// So long from now, CLOCK_MONOTONIC nanoseconds.
fn after(wait: Duration) -> u64 {
    monotonic_ns().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

impl Windows {
    /// For probes that are being attached.
    pub(in crate::session) fn arming_deadline(&self, links: LinkMode) -> u64 {
        let within = match links {
            LinkMode::Session | LinkMode::Multi => OPENS_WITHIN,
            LinkMode::Perf => OPENS_SLOWLY_WITHIN,
        };
        if self.sees_every_call() {
            exact_deadline()
        } else {
            after(within)
        }
    }
}

impl Windows {
    fn sees_every_call(&self) -> bool {
        !self.is_enforced || self.controller.mode() != Mode::Sampled
    }
}

impl Session {
    /// We are there: probes that see every call stay. Where they had to be taken away, for we were not, what was freed meanwhile is not
    /// known, and the process is traced no more.
    pub(in crate::session) fn beat(&mut self) {
        if self.last_beat.elapsed() < BEAT_EVERY {
            return;
        }
        self.last_beat = Instant::now();
        let at_ns = exact_deadline();
        let mut overdue = self.links.put_off_deadline(at_ns);
        for traced in self.processes.values() {
            if traced.ended.is_some() || !traced.windows.sees_every_call() {
                continue;
            }
            if traced.is_overdue() {
                overdue.push(traced.pid);
            } else {
                for link in traced.links.values() {
                    link.set_deadline(Some(at_ns));
                }
            }
        }
        for pid in overdue {
            self.stop_tracing(
                pid,
                &format!(
                    "leakscope was stopped for more than {} s, and its probes were taken away: it is traced no more, and what is shown \
                     is of before",
                    STOPPED.as_secs()
                ),
            );
        }
    }
}

impl Traced {
    /// The window stays open until it is looked at again, and a moment longer.
    pub(super) fn put_off_deadline(&self) {
        let windows = &self.windows;
        if !windows.is_armed() {
            return;
        }
        let wait = windows
            .next_observe
            .saturating_duration_since(Instant::now());
        let at_ns = if windows.sees_every_call() {
            exact_deadline()
        } else {
            after(wait.saturating_add(LATE))
        };
        for link in self.links.values() {
            link.set_deadline(Some(at_ns));
        }
    }

    /// Whether probes were taken away because we did not come back.
    pub(super) fn is_overdue(&self) -> bool {
        self.links.values().any(Link::is_overdue)
    }
}
