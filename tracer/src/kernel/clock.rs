//! The processor time of another process, as it runs. The kernel brings the clock of a process (`CPUCLOCK_SCHED`) up to date for the process
//! itself only; for others it goes on by ticks of 1 to 10 ms (`thread_group_cputime`, kernel/sched/cputime.c), and a window may be shorter than
//! one. A counter of the software event `task-clock` is read on the processor that the thread is running on. Knows nothing of windows.

use std::{io, time::Duration};

use super::{error::KernelError, link::Link, sys};

/// Of a process with more threads the process's own clock is used: each has its own tick, and in their sum a tick is little. Opening a counter
/// takes some microseconds, and interrupts the thread if it runs.
pub(super) const MOST_THREADS: usize = 64;

/// Counts the processor time of some threads, and of those that they make, from when it is made.
#[derive(Debug)]
pub struct ThreadClocks(Vec<sys::Counter>);

impl ThreadClocks {
    /// Begins to count. `None` where there are too many threads, or the kernel refuses a counter to one that is still there.
    #[must_use]
    pub fn start(threads: &[u32]) -> Option<Self> {
        of_each(threads, sys::count_task_clock).map(Self)
    }

    /// The processor time that the threads have used since. `None` where a counter cannot be read.
    #[must_use]
    pub fn elapsed(&self) -> Option<Duration> {
        let mut sum = 0_u64;
        for counter in &self.0 {
            sum = sum.saturating_add(counter.read().ok()?);
        }
        Some(Duration::from_nanos(sum))
    }
}

/// Opens a perf event for each of some threads. `None` where there are too many, or the kernel refuses it to one that is still there.
pub(super) fn of_each<T>(threads: &[u32], open: impl Fn(u32) -> io::Result<T>) -> Option<Vec<T>> {
    if threads.len() > MOST_THREADS {
        return None;
    }
    let mut events = Vec::with_capacity(threads.len());
    for thread in threads {
        match open(*thread) {
            Ok(event) => events.push(event),
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(_) => return None,
        }
    }
    (!events.is_empty()).then_some(events)
}

/// When the kernel's next tick is, CLOCK_MONOTONIC nanoseconds: threads look at the clock once in each (`bpf_jiffies64`), so that of what the
/// probe saw before it nothing says when that was. `now_ns` where the clock of ticks cannot be read.
#[must_use]
pub fn next_tick_ns(now_ns: u64) -> u64 {
    let Ok((last, length)) = sys::last_tick() else {
        return now_ns;
    };
    let as_ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let length = as_ns(length).max(1);
    // On an idle machine ticks stop, and it may be long since the last.
    let since = now_ns.saturating_sub(as_ns(last));
    now_ns.saturating_add(length - since % length)
}

/// While it is held, making a [`ThreadClocks`] does not wait: the first counter of a machine switches on what the scheduler does for counters,
/// which takes a grace period of RCU (`account_event`, kernel/events/core.c).
///
/// # Errors
/// The kernel refuses counters.
pub fn keep_clocks_ready() -> Result<Link, KernelError> {
    sys::count_task_clock(0)
        .map(|counter| Link::of_event(counter.into()))
        .map_err(|source| KernelError::call("cannot count a thread's processor time", source))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use std::{
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use super::{MOST_THREADS, ThreadClocks, next_tick_ns};
    use crate::kernel::monotonic_ns;

    /// A process that runs all the time.
    fn busy() -> std::process::Child {
        Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn the_processor_time_within_a_tick_was_zero() {
        let mut process = busy();
        std::thread::sleep(Duration::from_millis(50));
        // On a machine under load the process may wait for some of these times; not for all.
        let is_seen = (0..200).any(|_| {
            let Some(clocks) = ThreadClocks::start(&[process.id()]) else {
                return false;
            };
            std::thread::sleep(Duration::from_micros(300));
            let Some(first) = clocks.elapsed() else {
                return false;
            };
            std::thread::sleep(Duration::from_micros(300));
            let second = clocks.elapsed().unwrap_or_default();
            !first.is_zero() && second > first
        });
        process.kill().unwrap();
        process.wait().unwrap();
        if ThreadClocks::start(&[std::process::id()]).is_some() {
            assert!(is_seen);
        }
    }

    #[test]
    fn it_counts_no_more_than_time_passes() {
        let mut process = busy();
        let begun = Instant::now();
        if let Some(clocks) = ThreadClocks::start(&[process.id()]) {
            std::thread::sleep(Duration::from_millis(20));
            let counted = clocks.elapsed().unwrap();
            assert!(counted <= begun.elapsed());
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn the_next_tick_is_within_ten_milliseconds() {
        for _ in 0..100 {
            let now = monotonic_ns();
            let next = next_tick_ns(now);
            assert!(next > now && next <= now + 10_000_000, "{now} {next}");
        }
        // A clock that is asked about a time before its last tick.
        assert!(next_tick_ns(1_000_000_000) <= 1_010_000_000);
    }

    #[test]
    fn of_too_many_threads_there_is_none() {
        let threads: Vec<u32> = (0..=MOST_THREADS as u32).collect();
        assert!(ThreadClocks::start(&threads).is_none());
        assert!(ThreadClocks::start(&[]).is_none());
    }

    #[test]
    fn a_thread_that_has_ended_is_left_out() {
        assert!(ThreadClocks::start(&[u32::MAX >> 1]).is_none());
        let us = std::process::id();
        assert_eq!(
            ThreadClocks::start(&[us, u32::MAX >> 1]).is_some(),
            ThreadClocks::start(&[us]).is_some()
        );
    }
}
