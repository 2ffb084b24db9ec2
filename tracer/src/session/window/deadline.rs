//! Until when a window's probes may stay if we do not come back: a leakscope that is stopped, hangs or comes late slows nobody for longer.

use std::time::{Duration, Instant};

use super::{super::process::Traced, Windows};
use crate::{
    budget::Mode,
    kernel::{Link, LinkMode, monotonic_ns},
};

/// A window that is being opened may take so long until everything is attached; with a perf event for each probe, so long.
const OPENS_WITHIN: Duration = Duration::from_millis(500);
const OPENS_SLOWLY_WITHIN: Duration = Duration::from_secs(3);

/// On a machine under load we come so much later than we meant to.
const LATE: Duration = Duration::from_millis(100);

/// So long from now, CLOCK_MONOTONIC nanoseconds.
fn after(wait: Duration) -> u64 {
    monotonic_ns().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

impl Windows {
    /// For probes that are being attached. Where every call is seen, there is no time at which they would have to go.
    pub(in crate::session) fn arming_deadline(&self, links: LinkMode) -> Option<u64> {
        let within = match links {
            LinkMode::Session | LinkMode::Multi => OPENS_WITHIN,
            LinkMode::Perf => OPENS_SLOWLY_WITHIN,
        };
        (self.controller.mode() == Mode::Sampled).then(|| after(within))
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
        let at_ns =
            (windows.controller.mode() == Mode::Sampled).then(|| after(wait.saturating_add(LATE)));
        for link in self.links.values() {
            link.set_deadline(at_ns);
        }
    }

    /// Whether probes were taken away because we did not come back.
    pub(super) fn is_overdue(&self) -> bool {
        self.links.values().any(Link::is_overdue)
    }
}
