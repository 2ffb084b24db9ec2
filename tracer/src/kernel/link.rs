//! A link: what ties programs to functions and tracepoints, for as long as it is held. Knows neither which programs nor why.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use leakscope_common::ProbeCookie;

use super::{
    error::KernelError,
    link_keeper::{self, KeptLink},
    sys,
};
/// The kinds of link, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMode {
    /// Linux 6.13: one link for all entries and returns; a rejected call costs no return trap.
    Session,
    /// Linux 6.6: one link for all entries, one for all returns.
    Multi,
    /// A perf event for each probe.
    Perf,
}

impl LinkMode {
    /// The name in messages and options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "uprobe-session",
            Self::Multi => "uprobe-multi",
            Self::Perf => "perf-event",
        }
    }

    /// Whether a kernel whose best kind this is has the other too: each came when the ones below it were there.
    pub(crate) const fn includes(self, other: Self) -> bool {
        self as u8 <= other as u8
    }
}

/// One probe to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Where in the file, bytes.
    pub offset: u64,
    /// What the program is told.
    pub cookie: ProbeCookie,
    /// The function's entry in the file, where the return probe is set if the return is wanted. A return probe traps the
    /// instruction at which it is set, like any other: it is set at the same site.
    pub wants_return: bool,
}

impl Attachment {
    /// The same probe for children that work in their parent's memory alone.
    pub(super) fn for_children(&self) -> Self {
        let mut probe = *self;
        probe.cookie.for_children = 1;
        probe
    }
}

/// Attached probes; dropping it detaches them.
#[derive(Debug, Default)]
pub struct Link {
    /// Those with breakpoints.
    pub(super) kept: Vec<KeptLink>,
    pub(super) links: Vec<OwnedFd>,
    pub(super) events: Vec<OwnedFd>,
}

impl Link {
    /// Holds an event that needs no program.
    pub(super) fn of_event(event: OwnedFd) -> Self {
        Self {
            events: vec![event],
            ..Self::default()
        }
    }

    /// Takes over what another link holds.
    pub fn take_over(&mut self, other: Self) {
        self.kept.extend(other.kept);
        self.links.extend(other.links);
        self.events.extend(other.events);
    }

    /// When its breakpoints are to go if nobody puts that off or takes them away before, CLOCK_MONOTONIC nanoseconds; `None`: never.
    pub fn set_deadline(&self, at_ns: Option<u64>) {
        for kept in &self.kept {
            kept.set_deadline(at_ns);
        }
    }

    /// Whether breakpoints have gone because of that.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.kept.iter().any(KeptLink::is_overdue)
    }

    /// Ties a program to a tracepoint, whose number this is.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn add_tracepoint(
        &mut self,
        program: BorrowedFd<'_>,
        event: &str,
        number: u64,
    ) -> Result<(), KernelError> {
        let failed = |source| KernelError::Attach {
            what: format!("the tracepoint {event}"),
            source,
        };
        let opened = sys::open_tracepoint(number).map_err(failed)?;
        let link = sys::link_perf_event(program, opened.as_fd(), 0).map_err(failed)?;
        self.links.push(link);
        self.events.push(opened);
        Ok(())
    }
}

/// Links that are closed at the same time: each waits out a grace period of the kernel, in which nothing is done.
const CLOSED_AT_ONCE: usize = 64;

/// Takes probes away, all at the same time: the targets are free as soon as the breakpoints are gone, and each descriptor then waits out
/// a grace period of its own, some 20 to 40 ms. Returns when the kernel has forgotten them all.
pub fn close_links(links: impl IntoIterator<Item = Link>) {
    let mut kept = Vec::new();
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let mut events = Vec::new();
    for link in links {
        kept.extend(link.kept);
        descriptors.extend(link.links);
        events.extend(link.events);
    }
    link_keeper::close(&kept);
    // The links before the perf events that they hold on to.
    for group in [descriptors, events] {
        let share = group.len().div_ceil(CLOSED_AT_ONCE).max(1);
        let mut group = group.into_iter();
        std::thread::scope(|scope| {
            loop {
                let some: Vec<OwnedFd> = group.by_ref().take(share).collect();
                if some.is_empty() {
                    break;
                }
                if group.len() == 0 {
                    // The last, often the only one, needs no thread.
                    drop(some);
                    break;
                }
                // Where no thread can be made, the descriptors are closed one after the other: the closure is dropped.
                let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(some));
            }
        });
    }
}
