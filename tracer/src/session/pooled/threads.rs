//! Whose writes to a process's words are to be seen: those of the threads that it has, or, where threads come and go, of whoever runs: a thread that is made
//! while a word is watched is not among those that are watched, and what it makes would be taken for what an older one had made there before.

use std::{fs, path::Path, sync::Arc, time::Duration};

/// A thread's processor time is known up to the last tick: of as many as run at once, so much may seem to be that of threads that are gone.
const TICK: Duration = Duration::from_millis(10);

/// So many threads that are made while we watch are more than a pool's that begins.
const MANY: usize = 8;

/// Of more threads than this a process's words are not watched one by one: each has to be told of each word, in some 30 µs.
const MOST_THREADS: usize = 64;

/// Words that are watched at once. The processor has four registers for that, and a debugger may want one; where each thread of the machine takes part, any
/// debugger.
const WORDS: usize = 3;
const WORDS_OF_ALL: usize = 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// Those there are.
    pub(super) now: Arc<[u32]>,
    /// The least processor time that was of none of the threads there were.
    least_gone: Option<Duration>,
    /// How many have been made since the first look, as far as they were met.
    made: usize,
    come_and_go: bool,
    /// The kernel does not let us watch whoever runs.
    is_refused: bool,
}

impl Threads {
    /// Takes in which threads there are, their processor time by then, and that of the process soon after, on so many processors.
    pub(super) fn note(&mut self, now: Arc<[u32]>, of_these: Duration, all: Duration, cpus: u32) {
        let gone = all.saturating_sub(of_these);
        let least = self.least_gone.map_or(gone, |least| least.min(gone));
        self.least_gone = Some(least);
        if !self.now.is_empty() {
            self.made += now.iter().filter(|id| !self.now.contains(id)).count();
        }
        self.come_and_go |= self.made >= MANY;
        self.come_and_go |= gone.saturating_sub(least) > TICK.saturating_mul(cpus.max(1));
        self.now = now;
    }

    /// Whether whoever runs is watched.
    pub(super) fn are_all(&self) -> bool {
        !self.is_refused && (self.come_and_go || self.now.len() > MOST_THREADS)
    }

    /// Words that may be watched at once.
    pub(super) fn words(&self) -> usize {
        if self.are_all() { WORDS_OF_ALL } else { WORDS }
    }

    /// The kernel does not let us watch whoever runs; whether the threads there are may be watched one by one instead.
    pub(super) fn refused(&mut self) -> bool {
        self.is_refused = true;
        self.now.len() <= MOST_THREADS
    }
}

/// The processor time of some threads, of each up to when it last ran or the last tick (`/proc/PID/task/TID/schedstat`, the first number, nanoseconds).
pub(super) fn time_of(proc_root: &Path, pid: u32, threads: &[u32]) -> Duration {
    let folder = proc_root.join(pid.to_string()).join("task");
    let of_thread = |thread: &u32| -> Option<u64> {
        let text = fs::read_to_string(folder.join(thread.to_string()).join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse().ok()
    };
    let all = threads.iter().take(2 * MOST_THREADS).filter_map(of_thread);
    Duration::from_nanos(all.fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{MOST_THREADS, Threads, WORDS, WORDS_OF_ALL};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// What a thread for each request made was said to be made where an older one had made something in the same place.
    #[test]
    fn threads_that_came_after_a_word_was_watched_were_not_seen() {
        let mut threads = Threads::default();
        for second in 0..10 {
            // Up to a tick is missing of the one that runs.
            let all = 5000 + second * 100;
            let missing = second * 3 % 10;
            threads.note([1, 2].into(), MS(all - missing - 40), MS(all), 2);
            assert!(!threads.are_all());
        }
        assert_eq!(threads.words(), WORDS);
        threads.note([1, 9].into(), MS(5860), MS(6000), 2);
        assert!(threads.are_all());
        assert_eq!(threads.words(), WORDS_OF_ALL);
        assert!(threads.refused() && !threads.are_all());
    }

    #[test]
    fn threads_that_are_made_and_stay_were_not_seen_either() {
        let mut threads = Threads::default();
        for last in 4..20 {
            threads.note((1..=last).collect(), MS(40), MS(40), 2);
            assert_eq!(threads.are_all(), last >= 4 + 8);
        }
    }

    #[test]
    fn of_many_threads_no_word_was_watched() {
        let mut threads = Threads::default();
        let many = (0..=MOST_THREADS as u32).collect();
        threads.note(many, MS(5), MS(5), 1);
        assert!(threads.are_all());
        assert!(!threads.refused());
    }
}
