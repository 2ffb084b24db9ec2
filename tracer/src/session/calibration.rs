//! What a probe hit costs on this machine, measured: our own process allocates some hundred times with the probes on it
//! and without. And how much of that passes for the program's own time in samples of modes.

use std::{collections::HashSet, hint::black_box, thread, time::Duration};

use super::{Session, process::Traced};
use crate::{
    budget::{Choice, Limits},
    kernel::{KernelError, ModeSamples, close_links, process_cpu_time},
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

/// Samples of modes that are waited for: how much passes for the program's is known from them to a fifth, for it is a sixth of what they show.
const SAMPLES: u64 = 200;

/// Time between two of them; and pairs that are made for them at most, of a clock that is much slower.
const SAMPLE_EVERY: Duration = Duration::from_micros(47);
const MOST_SAMPLED_ROUNDS: u32 = 50;

/// What takes of a process's time because it is traced.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// A hit.
    pub(super) hit: Duration,
    /// What of a hit samples take for the program's: on the way back to it interrupts wait, and are let in when it runs again.
    pub(super) unmasked: Duration,
    /// A sample of its mode.
    pub(super) sample: Duration,
}

impl Session {
    /// Measures the mean cost of a hit in another process, from half of what a traced pair in ours takes more than an untraced one. Zero where
    /// our own allocator has no probes to offer.
    ///
    /// # Errors
    /// The kernel refused something.
    pub(super) fn calibrate(&mut self) -> Result<Costs, KernelError> {
        let pid = std::process::id();
        let Ok(mut ourselves) = Traced::open(&self.probe, &self.proc_root, pid, Limits::exact())
        else {
            return Ok(Costs::default());
        };
        let untraced = on_a_thread(median);
        let readable = ourselves
            .space
            .refresh(&self.proc_root, pid, &mut self.modules)
            .is_ok();
        let attached = ourselves.attach(&self.probe, &mut self.links, &self.files, &self.proc_root);
        if !readable || attached.is_err() || ourselves.sites.is_empty() {
            return Ok(Costs::default());
        }
        ourselves.incarnation = self.probe.new_incarnation();
        self.install_tables(&mut ourselves)?;
        self.probe.follow(pid, ourselves.incarnation)?;
        let traced = on_a_thread(median);
        let sampled = (self.options.tier != Choice::Exact)
            .then(|| on_a_thread(sample_pairs))
            .flatten();
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
        let (share, sampled, samples) = sampled.unwrap_or_default();
        let in_program = traced.mul_f64(share).saturating_sub(untraced);
        Ok(Costs {
            hit: of_ours.mul_f64(ELSEWHERE),
            unmasked: in_program / (2 * PAIRS),
            sample: sampled.saturating_sub(traced).div_f64(samples.max(1.0)),
        })
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

/// The median of some rounds.
fn median() -> Duration {
    let mut rounds: Vec<Duration> = (0..ROUNDS).map(|_| time_pairs()).collect();
    rounds.sort_unstable();
    rounds.get(ROUNDS / 2).copied().unwrap_or_default()
}

/// Samples of modes while pairs are made: the share that the program has, the processor time of a round, and how many samples were taken in
/// one. `None` where the kernel does not sample.
fn sample_pairs() -> Option<(f64, Duration, f64)> {
    /// The calling thread, for perf_event_open(2).
    const OURS: u32 = 0;
    let samples = ModeSamples::start(&[OURS], SAMPLE_EVERY)?;
    let (mut time, mut rounds) = (Duration::ZERO, 0);
    while rounds < MOST_SAMPLED_ROUNDS && samples.taken().all < SAMPLES {
        time += time_pairs();
        rounds += 1;
    }
    let taken = samples.taken();
    let rounds = rounds.max(1);
    let in_a_round = taken.all as f64 / f64::from(rounds);
    Some((taken.user_share()?, time / rounds, in_a_round))
}

/// Measures on a thread of its own: a hit costs more the deeper the stack is, and ours is deeper here than that of most calls that are traced.
fn on_a_thread<T: Send>(measure: impl Fn() -> T + Send + Sync) -> T {
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, &measure)
            .ok()
            .and_then(|thread| thread.join().ok())
    })
    .unwrap_or_else(measure)
}
