//! Who owns the links that put breakpoints into other processes: a process of its own, the keeper, which closes them when their time has come,
//! when it is asked to, and when leakscope is gone. A leakscope that is stopped, hangs or is killed slows nobody for longer. Knows nothing of
//! what a link is for.
//!
//! The keeper is made by clone(2) with our table of descriptors (`CLONE_FILES`) and memory of its own: a descriptor that it closes is closed
//! for good. It makes the links, too, so that there is no moment at which only we could close one. Signals to our process group do not reach it.

mod page;
mod run;

use std::{
    ffi::CStr,
    fmt,
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{command::open_pidfd, sys};
use page::{Asked, MOST_PROBES, NEVER, Place, SharedPage, place, request, wait};

/// The control groups of the machine, or of the container: version 2, beside version 1, and the one of version 1 that freezes.
const ROOT_GROUPS: [&str; 3] = [
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/unified/cgroup.procs",
    "/sys/fs/cgroup/freezer/cgroup.procs",
];

/// The keeper is not to be frozen, nor ended, with the control group that we are in.
fn leave_group(pid: i32) {
    for procs in ROOT_GROUPS {
        // Where we may not, or there is none, it shares our fate.
        let _ = File::options()
            .write(true)
            .open(procs)
            .and_then(|mut procs| procs.write_all(pid.to_string().as_bytes()));
    }
}

/// Whoever waits looks so often whether the keeper is still there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A link that is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) program: BorrowedFd<'a>,
    /// The file: a `/proc/PID/fd` or `map_files` link, or any other path; or a tracepoint's name.
    pub(super) path: &'a CStr,
    /// `None`: all processes.
    pub(super) pid: Option<u32>,
    pub(super) kind: Kind,
    /// Where in the file, bytes, and what the program is told.
    pub(super) probes: &'a [(u64, u64)],
}

/// The kind of link.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// One for all probes, with an attach type and flags.
    Multi {
        attach_type: u32,
        flags: u32,
        has_cookies: bool,
    },
    /// A perf event for one probe, with the number of the PMU; at the return or at the entry.
    Perf { pmu: u32, returns: bool },
    /// One for a raw tracepoint, whose name stands in the place of the path.
    RawTracepoint,
}

/// The keeper.
pub(super) struct LinkKeeper {
    page: SharedPage,
    bell: OwnedFd,
    parent: OwnedFd,
    /// The process.
    pid: Mutex<i32>,
    /// Who may make a request.
    turn: Mutex<()>,
}

impl fmt::Debug for LinkKeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LinkKeeper").finish_non_exhaustive()
    }
}

impl LinkKeeper {
    /// Starts it.
    ///
    /// # Errors
    /// No memory, descriptor or process.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let keeper = Self {
            page: SharedPage::new()?,
            bell: sys::event_counter()?,
            parent: open_pidfd(std::process::id())?,
            pid: Mutex::new(0),
            turn: Mutex::new(()),
        };
        *keeper.pid() = keeper.run()?;
        Ok(Arc::new(keeper))
    }

    /// Makes the process; gives its number.
    fn run(&self) -> io::Result<i32> {
        let wakers = run::Wakers {
            bell: self.bell.as_raw_fd(),
            parent: self.parent.as_raw_fd(),
        };
        let pid = sys::share_descriptors(|| run::run(&self.page, wakers))?;
        leave_group(pid);
        Ok(pid)
    }

    fn pid(&self) -> MutexGuard<'_, i32> {
        self.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that the keeper runs: whoever ended it by mistake ended nothing that another could not go on with.
    fn keep_running(&self) -> io::Result<()> {
        let mut pid = self.pid();
        if sys::has_child_ended(*pid) {
            *pid = self.run()?;
        }
        Ok(())
    }

    /// Has a link made, which is closed at the deadline, CLOCK_MONOTONIC nanoseconds, if it is not put off before.
    ///
    /// # Errors
    /// What the kernel said; or there is no keeper.
    pub(super) fn make(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        deadline_ns: Option<u64>,
    ) -> io::Result<KeptLink> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.keep_running()?;
        // SAFETY: it is our turn, and nothing is asked for.
        let asked = unsafe { self.page.asked() };
        write_request(asked, wanted, deadline_ns.unwrap_or(NEVER))?;
        self.page.request.store(request::ASKED, Ordering::SeqCst);
        self.ring();
        loop {
            let far = self.page.request.load(Ordering::SeqCst);
            if far == request::ANSWERED {
                break;
            }
            wait(&self.page.request, far, LOOK_EVERY);
            self.keep_running()?;
        }
        self.page.request.store(request::NONE, Ordering::SeqCst);
        let error = self.page.error.load(Ordering::SeqCst);
        let number = self.page.answer.load(Ordering::SeqCst);
        drop(turn);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(KeptLink {
            keeper: Arc::clone(self),
            number,
        })
    }

    /// Wakes it.
    fn ring(&self) {
        // A counter that is full wakes as well.
        let _ = sys::count_event(self.bell.as_fd());
    }

    /// The processor time that it has taken.
    pub(super) fn spent(&self) -> Duration {
        Duration::from_nanos(self.page.spent_ns.load(Ordering::SeqCst))
    }
}

impl Drop for LinkKeeper {
    fn drop(&mut self) {
        self.page.is_over.store(1, Ordering::SeqCst);
        self.ring();
        sys::wait_for_child(*self.pid());
    }
}

fn write_request(asked: &mut Asked, wanted: &Wanted<'_>, deadline_ns: u64) -> io::Result<()> {
    let path = wanted.path.to_bytes_with_nul();
    let too_large = |error: i32| move || io::Error::from_raw_os_error(error);
    asked
        .path
        .get_mut(..path.len())
        .ok_or_else(too_large(libc::ENAMETOOLONG))?
        .copy_from_slice(path);
    if wanted.probes.len() > MOST_PROBES {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    for ((offset, cookie), probe) in asked
        .offsets
        .iter_mut()
        .zip(&mut asked.cookies)
        .zip(wanted.probes)
    {
        (*offset, *cookie) = *probe;
    }
    asked.probes = wanted.probes.len();
    asked.program = wanted.program.as_raw_fd();
    asked.pid = wanted.pid.unwrap_or(0);
    asked.deadline_ns = deadline_ns;
    asked.is_tracepoint = matches!(wanted.kind, Kind::RawTracepoint);
    (
        asked.is_perf,
        asked.kind,
        asked.flags,
        asked.has_cookies,
        asked.returns,
    ) = match wanted.kind {
        Kind::Multi {
            attach_type,
            flags,
            has_cookies,
        } => (false, attach_type, flags, has_cookies, false),
        Kind::Perf { pmu, returns } => (true, pmu, 0, true, returns),
        Kind::RawTracepoint => (false, 0, 0, false, false),
    };
    Ok(())
}

/// A link that the keeper keeps; dropping it has it closed, without a wait.
#[derive(Debug)]
pub(super) struct KeptLink {
    keeper: Arc<LinkKeeper>,
    number: u32,
}

impl KeptLink {
    fn place(&self) -> Option<&Place> {
        self.keeper.page.place(self.number)
    }

    /// When it is to be closed, CLOCK_MONOTONIC nanoseconds; `None`: only when it is asked for.
    pub(super) fn set_deadline(&self, at_ns: Option<u64>) {
        if let Some(place) = self.place() {
            let before = place
                .deadline_ns
                .swap(at_ns.unwrap_or(NEVER), Ordering::SeqCst);
            // It sleeps until the earliest that it knew of.
            if at_ns.is_some_and(|at| at < before) {
                self.keeper.ring();
            }
        }
    }

    /// Whether it was closed because its time had come.
    pub(super) fn is_overdue(&self) -> bool {
        self.place()
            .is_some_and(|place| place.overdue.load(Ordering::SeqCst) != 0)
    }

    fn is_closed(&self) -> bool {
        self.place()
            .is_none_or(|place| place.state.load(Ordering::SeqCst) == place::CLOSED)
    }
}

impl Drop for KeptLink {
    fn drop(&mut self) {
        let Some(place) = self.place() else {
            return;
        };
        place.forgotten.store(1, Ordering::SeqCst);
        if self.is_closed() {
            run::forget(place);
        } else {
            place.deadline_ns.store(0, Ordering::SeqCst);
            self.keeper.ring();
        }
    }
}

/// Nobody waits for longer than this for a link that is being closed.
const MOST_WAITED: Duration = Duration::from_secs(10);

/// Has links closed, all at the same time; returns when the kernel has forgotten them.
pub(super) fn close(links: &[KeptLink]) {
    let Some(first) = links.first() else {
        return;
    };
    let keeper = &first.keeper;
    for place in links.iter().filter_map(KeptLink::place) {
        place.deadline_ns.store(0, Ordering::SeqCst);
    }
    keeper.ring();
    let begun = Instant::now();
    let mut looked = begun;
    while begun.elapsed() < MOST_WAITED {
        let closings = keeper.page.closings.load(Ordering::SeqCst);
        if links.iter().all(KeptLink::is_closed) {
            return;
        }
        wait(&keeper.page.closings, closings, LOOK_EVERY);
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            if keeper.keep_running().is_err() {
                // Without a keeper they are closed when we end.
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{Kind, LinkKeeper, Wanted};
    use std::os::fd::AsFd as _;

    #[test]
    fn what_the_kernel_refuses_is_told_by_the_keeper() {
        let keeper = LinkKeeper::start().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let wanted = Wanted {
            program: file.as_fd(),
            path: c"/dev/null",
            pid: None,
            kind: Kind::Multi {
                attach_type: 48,
                flags: 0,
                has_cookies: true,
            },
            probes: &[(0, 0)],
        };
        let error = keeper.make(&wanted, None).unwrap_err();
        assert!(error.raw_os_error().is_some_and(|number| number > 0));
        // It answers again, and again after somebody ended it.
        keeper.make(&wanted, None).unwrap_err();
        let pid = *keeper.pid();
        kill(pid);
        keeper.make(&wanted, None).unwrap_err();
    }

    fn kill(pid: i32) {
        let status = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}
