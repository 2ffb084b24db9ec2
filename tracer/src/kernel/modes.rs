//! In which mode a process's threads run: samples of the processor's clock (`PERF_COUNT_SW_CPU_CLOCK`), of which the kernel says whether it
//! interrupted the program or itself. Traps are taken in the kernel, so that in a window this tells what a program does by itself from what is
//! done to it. Knows nothing of windows.

use std::{
    ops::AddAssign,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
    time::Duration,
};

use super::{clock::of_each, shared::SharedArray, sys};
use crate::duration::times;

/// Where `struct perf_event_mmap_page` holds how far samples have been written, and where they begin and end; in words of 8 bytes
/// (`data_head`, `data_offset`, `data_size`; include/uapi/linux/perf_event.h, the last two since Linux 4.1).
const DATA_HEAD: usize = 1024 / 8;
const DATA_OFFSET: usize = 1040 / 8;
const DATA_SIZE: usize = 1048 / 8;

/// `PERF_RECORD_SAMPLE`, and of `misc` the mode of a record and its value for a program (`PERF_RECORD_MISC_CPUMODE_MASK`,
/// `PERF_RECORD_MISC_USER`; same header).
const RECORD_SAMPLE: u32 = 9;
const MISC_MODE: u16 = 7;
const MISC_USER: u16 = 2;

/// Samples, by mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Those that interrupted the program.
    pub user: u64,
    /// All.
    pub all: u64,
}

impl Modes {
    /// The share that interrupted the program. `None` of none.
    #[must_use]
    pub fn user_share(self) -> Option<f64> {
        (self.all > 0).then(|| self.user as f64 / self.all as f64)
    }

    /// Those that were taken since there were so many.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            all: self.all.saturating_sub(before.all),
        }
    }
}

impl AddAssign for Modes {
    fn add_assign(&mut self, other: Self) {
        self.user += other.user;
        self.all += other.all;
    }
}

/// Samples some threads from when it is made, each until its page is full: 512 samples at the least.
pub struct ModeSamples {
    rings: Vec<Ring>,
    every: Duration,
}

impl ModeSamples {
    /// Begins to sample, each thread after so much processor time of its own. `None` where there are too many threads, or the kernel refuses it
    /// for one that is still there.
    #[must_use]
    pub fn start(threads: &[u32], every: Duration) -> Option<Self> {
        let rings = of_each(threads, |thread| Ring::start(thread, every))?;
        Some(Self { rings, every })
    }

    /// The samples so far.
    #[must_use]
    pub fn taken(&self) -> Modes {
        let mut modes = Modes::default();
        for ring in &self.rings {
            modes += ring.taken();
        }
        modes
    }

    /// The processor time that the threads can have had since. Where a virtual machine's host takes a processor away, its clocks go on, and the time counts for
    /// the thread that was on it; but the kernel takes one sample only for all that were due (`perf_swevent_hrtimer`, kernel/events/core.c).
    /// `None` where a page is full.
    #[must_use]
    pub fn most_time(&self) -> Option<Duration> {
        let mut periods = 0_u64;
        for ring in &self.rings {
            if ring.is_full() {
                return None;
            }
            // Until the next one is due.
            periods += ring.taken().all + 1;
        }
        Some(times(self.every, periods as f64))
    }
}

/// The samples of one thread: the event's own page, and one of records.
struct Ring {
    words: SharedArray<u64>,
    /// Ends with it.
    _event: OwnedFd,
}

impl Ring {
    fn start(thread: u32, every: Duration) -> std::io::Result<Self> {
        let event = sys::sample_modes(thread, every)?;
        let words = 2 * sys::page_size() / size_of::<u64>();
        Ok(Self {
            words: SharedArray::map(event.as_fd(), words)?,
            _event: event,
        })
    }

    /// Nothing is taken out: when the page is full, no more is written.
    fn taken(&self) -> Modes {
        let (begin, size) = (self.read(DATA_OFFSET), self.read(DATA_SIZE));
        count(self.written().min(size), |at| {
            self.read(((begin + at) / 8) as usize)
        })
    }

    fn is_full(&self) -> bool {
        self.written() >= self.read(DATA_SIZE)
    }

    /// Bytes. Records before the head are written before it is.
    fn written(&self) -> u64 {
        self.words
            .word(DATA_HEAD, 0)
            .map_or(0, |head| head.load(Ordering::Acquire))
    }

    fn read(&self, index: usize) -> u64 {
        self.words.read(index).unwrap_or(0)
    }
}

/// Counts the samples in so many bytes of records. Each begins with a `struct perf_event_header`: a type of 4 bytes, `misc` and the record's
/// size of 2 each.
fn count(bytes: u64, word: impl Fn(u64) -> u64) -> Modes {
    let mut modes = Modes::default();
    let mut at = 0;
    while at < bytes {
        let [a, b, c, d, e, f, g, h] = word(at).to_ne_bytes();
        let kind = u32::from_ne_bytes([a, b, c, d]);
        let misc = u16::from_ne_bytes([e, f]);
        let size = u16::from_ne_bytes([g, h]);
        if size == 0 || !size.is_multiple_of(8) {
            break;
        }
        if kind == RECORD_SAMPLE {
            modes.all += 1;
            modes.user += u64::from(misc & MISC_MODE == MISC_USER);
        }
        at += u64::from(size);
    }
    modes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{ModeSamples, Modes, count};
    use crate::kernel::clock::MOST_THREADS;
    use std::{
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    const EVERY: Duration = Duration::from_micros(241);

    /// The samples of a command while it runs, a hundred at least; `None` where the kernel has none to give.
    fn sample(program: &str, arguments: &[&str]) -> Option<Modes> {
        let mut process = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until the program runs that was asked for.
        std::thread::sleep(Duration::from_millis(100));
        let samples = ModeSamples::start(&[process.id()], EVERY);
        let begun = Instant::now();
        let modes = samples.map(|samples| {
            while samples.taken().all < 100 && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(10));
            }
            samples.taken()
        });
        process.kill().unwrap();
        process.wait().unwrap();
        modes
    }

    #[test]
    fn a_loop_runs_in_the_program_and_a_copy_of_nothing_in_the_kernel() {
        if let Some(modes) = sample("sh", &["-c", "while :; do :; done"]) {
            assert!(modes.all >= 100, "{modes:?}");
            assert!(modes.user_share().unwrap() > 0.9, "{modes:?}");
        }
        let copy = ["if=/dev/zero", "of=/dev/null", "bs=1M"];
        if let Some(modes) = sample("dd", &copy) {
            assert!(modes.all >= 100, "{modes:?}");
            assert!(modes.user_share().unwrap() < 0.2, "{modes:?}");
        }
    }

    #[test]
    fn a_page_that_is_full_takes_no_more() {
        let mut process = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        if let Some(samples) = ModeSamples::start(&[process.id()], Duration::from_micros(20)) {
            std::thread::sleep(Duration::from_millis(300));
            let full = samples.taken();
            std::thread::sleep(Duration::from_millis(100));
            assert!(full.all > 0);
            assert!(samples.taken().all <= 65_536 / 8, "{full:?}");
            // Either it is full, or there were as many as the host let be.
            let least = Duration::from_micros(20).mul_f64(full.all as f64);
            assert!(samples.most_time().is_none_or(|most| most > least));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn of_too_many_threads_there_is_none() {
        let threads: Vec<u32> = (0..=MOST_THREADS as u32).collect();
        assert!(ModeSamples::start(&threads, EVERY).is_none());
        assert!(ModeSamples::start(&[], EVERY).is_none());
        assert!(ModeSamples::start(&[u32::MAX >> 1], EVERY).is_none());
    }

    #[test]
    fn records_of_other_kinds_and_broken_ones_do_not_count() {
        let header = |kind: u32, misc: u16, size: u16| {
            let [a, b, c, d] = kind.to_ne_bytes();
            let [e, f] = misc.to_ne_bytes();
            let [g, h] = size.to_ne_bytes();
            u64::from_ne_bytes([a, b, c, d, e, f, g, h])
        };
        let records = [
            header(9, 2, 8),
            // PERF_RECORD_THROTTLE, which has three words more.
            header(5, 0, 32),
            header(9, 2, 8),
            header(9, 2, 8),
            header(9, 2, 8),
            header(9, 1, 8),
            header(0, 0, 0),
            header(9, 2, 8),
        ];
        let read = |at: u64| records.get((at / 8) as usize).copied().unwrap_or(0);
        assert_eq!(count(64, read), Modes { user: 1, all: 2 });
        assert_eq!(count(0, read), Modes::default());
        assert_eq!(Modes::default().user_share(), None);
    }
}
