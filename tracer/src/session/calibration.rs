//! What a probe hit costs on this machine, measured: our own process allocates some hundred times with the probes on it
//! and without.

use std::{collections::HashSet, hint::black_box, thread, time::Duration};

use super::{Session, process::Traced};
use crate::{
    budget::Limits,
    kernel::{KernelError, close_links, process_cpu_time},
    target::process::list_threads,
};

/// Pairs of malloc and free to time. At some microseconds each, about a millisecond.
const PAIRS: u32 = 300;

/// Times that the pairs are timed; the median counts.
const ROUNDS: usize = 5;

/// A hit in a program that does something else between two calls costs so much more than one in our loop: it finds less in the caches, and its
/// own work finds less there afterwards. Measured with programs of 200 sites and of a large live set: 1.1 to 2.4 µs, where the loop took 1.0 to
/// 1.6 (medians 1.75 and 1.4).
const ELSEWHERE: f64 = 1.25;

impl Session {
    /// Measures the mean cost of a hit in another process, from half of what a traced pair in ours takes more than an untraced one. Zero where
    /// our own allocator has no probes to offer.
    ///
    /// # Errors
    /// The kernel refused something.
    pub(super) fn calibrate(&mut self) -> Result<Duration, KernelError> {
        let pid = std::process::id();
        let Ok(mut ourselves) = Traced::open(&self.probe, &self.proc_root, pid, Limits::exact())
        else {
            return Ok(Duration::ZERO);
        };
        let untraced = median(time_pairs);
        let readable = ourselves
            .space
            .refresh(&self.proc_root, pid, &mut self.modules)
            .is_ok();
        let attached = ourselves.attach(&self.probe, &mut self.links, &self.files, &self.proc_root);
        if !readable || attached.is_err() || ourselves.sites.is_empty() {
            return Ok(Duration::ZERO);
        }
        ourselves.incarnation = self.probe.new_incarnation();
        self.install_tables(&mut ourselves)?;
        self.probe.follow(pid, ourselves.incarnation)?;
        let traced = median(time_pairs);
        // Waits out a grace period of the kernel.
        close_links(ourselves.links.into_values());
        self.probe.forget(pid, ourselves.incarnation);
        let threads = list_threads(&self.proc_root, pid).unwrap_or_default();
        self.probe.take_thread_hits(pid, &threads);
        self.probe
            .drop_incarnations(&HashSet::from([ourselves.incarnation]))?;
        self.tables.remove(&mut self.probe, ourselves.incarnation);
        // What our own process lost is nobody's loss.
        self.probe.reset_losses();
        let of_ours = traced.saturating_sub(untraced) / (2 * PAIRS);
        Ok(of_ours.mul_f64(ELSEWHERE))
    }
}

/// The processor time that the pairs take: on a machine under load, others run in between.
fn time_pairs() -> Duration {
    let pid = std::process::id();
    let begun = process_cpu_time(pid).unwrap_or_default();
    for size in 0..PAIRS {
        drop(black_box(Vec::<u8>::with_capacity(
            64 + (size & 31) as usize,
        )));
    }
    process_cpu_time(pid)
        .unwrap_or_default()
        .saturating_sub(begun)
}

/// The median of some rounds, on a thread of its own: a hit costs more the deeper the stack is, and ours is deeper here than that of
/// most calls that are traced.
fn median(measure: impl Fn() -> Duration + Send + Sync) -> Duration {
    let rounds = || {
        let mut rounds: Vec<Duration> = (0..ROUNDS).map(|_| measure()).collect();
        rounds.sort_unstable();
        rounds.get(ROUNDS / 2).copied().unwrap_or_default()
    };
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, rounds)
            .ok()
            .and_then(|thread| thread.join().ok())
    })
    .unwrap_or_else(rounds)
}
