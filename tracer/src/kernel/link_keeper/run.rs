//! What the keeper does: it makes the links that it is asked for, and closes those whose time has come. A process of its own that was made by
//! clone(2) and runs no other program: it allocates nothing, takes no lock, and calls the system alone.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use super::{
    super::sys,
    page::{Asked, MOST_PROBES, Page, Place, place, request, timespec, wake},
};
use crate::kernel::monotonic_ns;

/// So many processes close links at the same time: each link waits out a grace period of the kernel, in which nothing is done.
const CLOSED_AT_ONCE: u32 = 64;

/// Longer nobody waits for the bell.
const LONGEST: Duration = Duration::from_secs(3600);

/// Whoever makes a link may be ended: it is looked so often whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What it is woken by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wakers {
    /// An eventfd(2): there is something to do.
    pub(super) bell: RawFd,
    /// A pidfd of leakscope.
    pub(super) parent: RawFd,
}

/// Runs until leakscope has ended, or needs it no more, and nothing is kept.
pub(super) fn run(page: &Page, wakers: Wakers) {
    let mut parent_lives = true;
    // Whoever kept before may have been ended between choosing what to close and closing it.
    for place in page.used_places() {
        if place.link.load(Ordering::SeqCst) >= 0 {
            change(place, place::CLOSING, place::KEPT);
        }
    }
    go_first();
    loop {
        if page.request.load(Ordering::SeqCst) == request::ASKED {
            have_answered(page, wakers);
        }
        reap();
        let is_under_way = look_after_maker(page);
        let is_over = !parent_lives || page.is_over.load(Ordering::SeqCst) != 0;
        let next_ns = close_due(page, is_over);
        if is_over {
            let is_empty = page.used_places().all(|place| {
                let state = place.state.load(Ordering::SeqCst);
                state == place::FREE || state == place::CLOSED
            });
            if is_empty && !is_under_way {
                return;
            }
            // Those that close are waited for.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let longest = if is_under_way { LOOK_EVERY } else { LONGEST };
        let wait = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns())).min(longest);
        parent_lives = !wait_for(wakers, wait);
    }
}

/// Waits for the bell, for a time, or for leakscope's end, which it tells of.
fn wait_for(wakers: Wakers, wait: Duration) -> bool {
    let poll = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls = [poll(wakers.bell), poll(wakers.parent)];
    let time = timespec(wait);
    // SAFETY: the array and the time live through the call; the length is the array's.
    let ready = unsafe { libc::ppoll(polls.as_mut_ptr(), 2, &raw const time, std::ptr::null()) };
    if ready <= 0 {
        return false;
    }
    let [bell, parent] = polls;
    if bell.revents != 0 {
        let mut count = 0_u64;
        // SAFETY: an eventfd is read into eight bytes of ours; it does not block.
        unsafe {
            libc::read(wakers.bell, (&raw mut count).cast(), size_of::<u64>());
        }
    }
    parent.revents != 0
}

/// Adds the processor time of this process since `since` to what was spent.
fn account(page: &Page, since: Duration) {
    let spent = sys::thread_cpu_time().saturating_sub(since);
    let spent = u64::try_from(spent.as_nanos()).unwrap_or(0);
    page.spent_ns.fetch_add(spent, Ordering::SeqCst);
}

/// Who closes links must not wait for others on a machine that is out of breath. Where we may not ask for that, it is as it was.
fn go_first() {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives through the call; the other call takes plain numbers.
    unsafe {
        if libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }
}

/// Has a link made by a process of its own: while the kernel sets its breakpoints, which may take seconds, others are due.
fn have_answered(page: &Page, wakers: Wakers) {
    page.maker.store(0, Ordering::SeqCst);
    page.request.store(request::UNDER_WAY, Ordering::SeqCst);
    // SAFETY: as in `sys::share_descriptors`; what follows only calls the system.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES, 0, 0, 0, 0) };
    if child > 0 {
        page.maker
            .store(i32::try_from(child).unwrap_or(0), Ordering::SeqCst);
        return;
    }
    // In the child; or no process could be made, and it is done here.
    answer(page);
    if child == 0 {
        // It may be due by now.
        // SAFETY: the bell is leakscope's, which keeps it open; a full counter rings as well. Ends the child at once.
        unsafe {
            let _ = sys::count_event(BorrowedFd::borrow_raw(wakers.bell));
            libc::_exit(0)
        }
    }
}

/// Whether a process is no more.
fn is_gone(pid: i32) -> bool {
    // SAFETY: plain numbers; no signal is sent.
    pid > 0 && unsafe { libc::kill(pid, 0) } != 0
}

/// Whether a link is being made. Where whoever made it was ended there is no answer.
fn look_after_maker(page: &Page) -> bool {
    let is_gone = is_gone(page.maker.load(Ordering::SeqCst));
    let is_under_way = page.request.load(Ordering::SeqCst) == request::UNDER_WAY;
    if is_under_way && is_gone {
        page.error.store(libc::EINTR, Ordering::SeqCst);
        page.request.store(request::ANSWERED, Ordering::SeqCst);
        wake(&page.request);
    }
    is_under_way && !is_gone
}

fn answer(page: &Page) {
    let begun = sys::thread_cpu_time();
    // SAFETY: the request is under way: it is ours until it is answered.
    let asked = unsafe { page.asked() };
    let error = match keep(page, asked) {
        Ok(number) => {
            page.answer.store(number, Ordering::SeqCst);
            0
        }
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    page.error.store(error, Ordering::SeqCst);
    account(page, begun);
    page.request.store(request::ANSWERED, Ordering::SeqCst);
    wake(&page.request);
}

/// Makes a link and keeps it; gives its place.
fn keep(page: &Page, asked: &Asked) -> io::Result<u32> {
    let (number, place) = (0_u32..)
        .zip(&page.places)
        .find(|(_, place)| place.state.load(Ordering::SeqCst) == place::FREE)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
    let path = CStr::from_bytes_until_nul(&asked.path)
        .map_err(|_| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?;
    let missing = || io::Error::from_raw_os_error(libc::EINVAL);
    let count = asked.probes.min(MOST_PROBES);
    let offsets = asked.offsets.get(..count).ok_or_else(missing)?;
    let cookies = asked.cookies.get(..count).ok_or_else(missing)?;
    // SAFETY: a program's descriptor of leakscope, which keeps it open while it waits for the answer.
    let program = unsafe { BorrowedFd::borrow_raw(asked.program) };
    let (link, event): (OwnedFd, RawFd) = if asked.is_tracepoint {
        (sys::open_raw_tracepoint(program, path)?, -1)
    } else if asked.is_perf {
        let (offset, cookie) = offsets.first().zip(cookies.first()).ok_or_else(missing)?;
        let pid = (asked.pid != 0).then_some(asked.pid);
        let event = sys::open_uprobe(asked.kind, path, *offset, asked.returns, pid)?;
        // SAFETY: the event's own descriptor, which is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        let link = sys::link_perf_event(program, borrowed, *cookie)?;
        (link, event.into_raw_fd())
    } else {
        let cookies = if asked.has_cookies { cookies } else { &[] };
        let link = sys::link_uprobe_multi(
            program,
            asked.kind,
            path,
            offsets,
            cookies,
            asked.pid,
            asked.flags,
        )?;
        (link, -1)
    };
    place.link.store(link.into_raw_fd(), Ordering::SeqCst);
    place.event.store(event, Ordering::SeqCst);
    place.forgotten.store(0, Ordering::SeqCst);
    place.overdue.store(0, Ordering::SeqCst);
    place.deadline_ns.store(asked.deadline_ns, Ordering::SeqCst);
    page.used
        .fetch_max(number.saturating_add(1), Ordering::SeqCst);
    place.state.store(place::KEPT, Ordering::SeqCst);
    Ok(number)
}

/// Begins to close what is due, or everything; gives when the next one is due.
fn close_due(page: &Page, all: bool) -> u64 {
    let begun = sys::thread_cpu_time();
    let now = monotonic_ns();
    let mut next = u64::MAX;
    let mut due = 0_u32;
    // Some that were due before may still be closed: nobody is to wait for those.
    let first = page.shares.load(Ordering::SeqCst);
    for place in page.used_places() {
        if place.state.load(Ordering::SeqCst) != place::KEPT {
            continue;
        }
        let deadline = place.deadline_ns.load(Ordering::SeqCst);
        if !all && deadline > now {
            next = next.min(deadline);
            continue;
        }
        if deadline != 0 {
            place.overdue.store(1, Ordering::SeqCst);
        }
        let share = first.wrapping_add(due % CLOSED_AT_ONCE);
        place.share.store(share, Ordering::SeqCst);
        if change(place, place::KEPT, place::CLOSING) {
            due = due.saturating_add(1);
        }
    }
    let shares = due.min(CLOSED_AT_ONCE);
    page.shares.fetch_add(shares, Ordering::SeqCst);
    for share in (0..shares).map(|share| first.wrapping_add(share)) {
        // SAFETY: as in `sys::share_descriptors`; what follows only calls the system.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES, 0, 0, 0, 0) };
        if child > 0 {
            continue;
        }
        // In the child; or no process could be made, and it is done here.
        for place in page.used_places() {
            if place.state.load(Ordering::SeqCst) == place::CLOSING
                && place.share.load(Ordering::SeqCst) == share
            {
                close(page, place);
            }
        }
        if child == 0 {
            account(page, Duration::ZERO);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
    }
    if due > 0 {
        account(page, begun);
    }
    next
}

/// Closes a link, which takes its breakpoints away, and its event. Two may be about to: the second leaves it to the first, for as soon as a
/// place says that it is closed another link may be kept there.
fn close(page: &Page, place: &Place) {
    let Some(link) = take(&place.link) else {
        return;
    };
    let event = take(&place.event);
    drop(link);
    drop(event);
    place.state.store(place::CLOSED, Ordering::SeqCst);
    forget(place);
    page.closings.fetch_add(1, Ordering::SeqCst);
    wake(&page.closings);
}

/// Takes a descriptor out of its place; whoever gets it closes it.
fn take(place: &AtomicI32) -> Option<OwnedFd> {
    let fd = place.swap(-1, Ordering::SeqCst);
    // SAFETY: the keeper made the descriptor, and nobody else has it any more.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes what is the matter with a place, where it was this; whether it was.
fn change(place: &Place, from: u32, to: u32) -> bool {
    place
        .state
        .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
}

/// Frees a place that is closed, if nobody waits for that any more.
pub(super) fn forget(place: &Place) {
    if place.forgotten.load(Ordering::SeqCst) != 0 {
        change(place, place::CLOSED, place::FREE);
    }
}

/// Children that have ended are not kept as zombies.
fn reap() {
    let mut status = 0;
    // SAFETY: waitpid(2) writes the status, which is ours. They end without a signal: `__WALL`.
    while unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) } > 0 {}
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{
        super::page::{SharedPage, place, request},
        change, close, close_due, look_after_maker,
    };
    use std::{
        fs::File,
        os::fd::IntoRawFd as _,
        sync::atomic::Ordering,
        time::{Duration, Instant},
    };

    #[test]
    fn a_link_was_called_closed_while_somebody_closed_it() {
        let page = SharedPage::new().unwrap();
        let place = page.place(0).unwrap();
        place.state.store(place::CLOSING, Ordering::SeqCst);
        // Another process has taken it out, and waits for the kernel.
        place.link.store(-1, Ordering::SeqCst);
        place.forgotten.store(1, Ordering::SeqCst);
        close(&page, place);
        assert_eq!(place.state.load(Ordering::SeqCst), place::CLOSING);
        place.state.store(place::CLOSED, Ordering::SeqCst);
        assert!(change(place, place::CLOSED, place::FREE));
    }

    #[test]
    fn whoever_asked_for_a_link_waited_for_one_who_was_ended() {
        let page = SharedPage::new().unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        page.request.store(request::UNDER_WAY, Ordering::SeqCst);
        assert!(look_after_maker(&page));
        let pid = i32::try_from(ended.id()).unwrap();
        page.maker.store(pid, Ordering::SeqCst);
        assert!(!look_after_maker(&page));
        assert_eq!(page.request.load(Ordering::SeqCst), request::ANSWERED);
        assert_eq!(page.error.load(Ordering::SeqCst), libc::EINTR);
    }

    #[test]
    fn what_is_closed_later_is_closed_by_others() {
        let page = SharedPage::new().unwrap();
        page.used.store(2, Ordering::SeqCst);
        let shares: Vec<u32> = (0..2)
            .map(|number| {
                let place = page.place(number).unwrap();
                let file = File::open("/dev/null").unwrap();
                place.event.store(-1, Ordering::SeqCst);
                place.link.store(file.into_raw_fd(), Ordering::SeqCst);
                place.state.store(place::KEPT, Ordering::SeqCst);
                close_due(&page, false);
                let begun = Instant::now();
                while place.state.load(Ordering::SeqCst) != place::CLOSED {
                    assert!(begun.elapsed() < Duration::from_secs(10));
                    std::thread::yield_now();
                }
                place.share.load(Ordering::SeqCst)
            })
            .collect();
        assert_eq!(shares, [0, 1]);
    }
}
