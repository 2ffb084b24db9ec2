//! What a probe hit costs on this machine, measured: our own process allocates some hundred times with the probes on it
//! and without, in a loop of nothing else and among other work. And how much of that passes for the program's own time in samples of modes.

use std::{array, collections::HashSet, hint::black_box, thread, time::Duration};

use super::{Session, process::Traced};
use crate::{
    budget::{Choice, Limits},
    duration::{seconds, times},
    kernel::{KernelError, ModeSamples, close_links, process_cpu_time},
    process::procfs::list_threads,
};

/// Pairs of malloc and free to time. At some microseconds each, about a millisecond.
const PAIRS: u32 = 200;

/// Times that the pairs are timed; the median counts, for the machine's host gives now more, now less.
const ROUNDS: usize = 15;

/// Hits in a round.
const HITS: u32 = 2 * PAIRS;

/// What our program does beside its calls, where it does something: it keeps so many blocks, from stacks of up to so many frames more, and changes so many
/// bytes in a buffer of such a length (more than the first-level cache has) for each pair. It is one to two microseconds of work.
const KEPT: usize = 4096;
const DEEPEST: usize = 16;
const CHANGES: usize = 256;
const BUFFER: usize = 512 << 10;

/// Samples of modes that are waited for: how much passes for the program's is known from them to a fifth, for it is a sixth of what they show.
const SAMPLES: u64 = 200;

/// Time between two of them; and pairs that are made for them at most, of a clock that is much slower.
const SAMPLE_EVERY: Duration = Duration::from_micros(47);
const MOST_SAMPLED_ROUNDS: u32 = 50;

/// A hit's cost grows with the work between two up to so many times ours, about a microsecond; ours is less to keep the start short. Programs of 200 sites, with up to 200,000
/// blocks, with system calls and without, on one thread and two, took 1.3 to 1.5 times as much as pairs alone for a hit with 0.5 us of work, and
/// 1.5 to 1.8 times with 1 to 3 us.
const GROWS_UP_TO: f64 = 2.5;

/// What a hit costs, seconds of processor time. In a program that does something else between two calls it is more than in a loop of nothing but
/// calls: it finds less in the caches, and its own work finds less there afterwards.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HitCost {
    /// In a loop of nothing else.
    alone_s: f64,
    /// Among other work, and how much of that there was for each hit.
    among_work_s: f64,
    work_s: f64,
    /// The part of it that samples take for the program's: on the way back to it interrupts wait, and are let in when it runs again.
    unmasked: f64,
}

impl HitCost {
    /// A hit costs the same, whatever is done between two.
    #[cfg(test)]
    pub(super) fn always(seconds: f64, unmasked: f64) -> Self {
        Self {
            alone_s: seconds,
            among_work_s: seconds,
            work_s: 0.0,
            unmasked,
        }
    }

    /// In a process that takes so long from hit to hit while it is traced, seconds of processor time.
    pub(super) fn in_a_process(&self, from_hit_to_hit_s: f64) -> f64 {
        let more = (self.among_work_s - self.alone_s).max(0.0);
        if self.work_s <= 0.0 || more <= 0.0 {
            return self.among_work_s.max(self.alone_s);
        }
        // It grows in proportion to the work: what is left after the one is the other.
        let work = (from_hit_to_hit_s - self.alone_s) / (1.0 + more / self.work_s);
        self.alone_s + more * (work / self.work_s).clamp(0.0, GROWS_UP_TO)
    }

    /// What of it passes for the program's, seconds.
    pub(super) fn unmasked(&self, from_hit_to_hit_s: f64) -> f64 {
        self.unmasked * self.in_a_process(from_hit_to_hit_s)
    }
}

/// What takes of a process's time because it is traced.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// A hit, for all that is known of a process that was not seen yet: among other work.
    pub(super) hit: Duration,
    /// The same, by what a process does.
    pub(super) by_work: HitCost,
    /// A sample of its mode.
    pub(super) sample: Duration,
}

impl Costs {
    /// Where our own allocator has no probes to offer (a static program without symbols) nothing is measured: what the dearest of the machines took
    /// that were measured, so that no budget is overdrawn.
    fn assumed() -> Self {
        Self {
            hit: Duration::from_nanos(2_600),
            by_work: HitCost {
                alone_s: 1.7e-6,
                among_work_s: 2.6e-6,
                work_s: 1e-6,
                unmasked: 0.2,
            },
            sample: Duration::from_micros(2),
        }
    }
}

impl Session {
    /// Measures the mean cost of a hit, from half of what a traced pair in our process takes more than an untraced one.
    ///
    /// # Errors
    /// The kernel refused something.
    pub(super) fn calibrate(&mut self) -> Result<Costs, KernelError> {
        let pid = std::process::id();
        let Ok(mut ourselves) = Traced::open(&self.probe, &self.proc_root, pid, Limits::exact())
        else {
            return Ok(Costs::assumed());
        };
        let (untraced, working) = on_a_thread(time_both);
        let readable = ourselves
            .space
            .refresh(&self.proc_root, pid, &mut self.modules)
            .is_ok();
        let attached = ourselves.attach(
            &self.probe,
            &mut self.links,
            &self.files,
            &self.proc_root,
            false,
        );
        if !readable || attached.is_err() || ourselves.sites.is_empty() {
            return Ok(Costs::assumed());
        }
        ourselves.incarnation = self.probe.new_incarnation();
        self.install_tables(&mut ourselves)?;
        self.probe.follow(pid, ourselves.incarnation)?;
        let (traced, traced_working) = on_a_thread(time_both);
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
        let of_a_hit = |round: Duration| round.as_secs_f64() / f64::from(HITS);
        let alone = of_a_hit(traced.saturating_sub(untraced));
        let among_work = of_a_hit(traced_working.saturating_sub(working));
        let (share, sampled, samples) = sampled.unwrap_or_default();
        let in_program = of_a_hit(times(traced, share).saturating_sub(untraced));
        Ok(Costs {
            hit: seconds(among_work),
            by_work: HitCost {
                alone_s: alone,
                among_work_s: among_work,
                work_s: of_a_hit(working),
                unmasked: (in_program / alone.max(1e-12)).min(1.0),
            },
            sample: times(sampled.saturating_sub(traced), samples.max(1.0).recip()),
        })
    }
}

/// The processor time that something takes: on a machine under load, others run in between.
fn time(work: impl FnOnce()) -> Duration {
    let pid = std::process::id();
    let begun = process_cpu_time(pid).unwrap_or_default();
    work();
    process_cpu_time(pid)
        .unwrap_or_default()
        .saturating_sub(begun)
}

/// That of the pairs by themselves.
fn time_pairs() -> Duration {
    time(|| {
        for number in 0..PAIRS {
            drop(allocate(number, 0));
        }
    })
}

/// A program that does more than to call: it keeps blocks for a while, that come from many stacks, and between two calls it changes memory and calls the kernel.
struct Work {
    kept: Vec<Vec<u8>>,
    buffer: Vec<u8>,
    random: u64,
}

impl Work {
    fn new() -> Self {
        Self {
            kept: vec![Vec::new(); KEPT],
            buffer: vec![0; BUFFER],
            random: 1,
        }
    }

    fn next(&mut self, below: usize) -> usize {
        // The numbers of Knuth's MMIX; any that scatter would do.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }

    /// The processor time of pairs among this.
    fn time_pairs(&mut self) -> Duration {
        time(|| {
            for number in 0..PAIRS {
                let block = allocate(number, self.next(DEEPEST));
                let place = self.next(KEPT);
                if let Some(place) = self.kept.get_mut(place) {
                    *place = block;
                }
                for _ in 0..CHANGES {
                    let place = self.next(BUFFER);
                    if let Some(byte) = self.buffer.get_mut(place) {
                        *byte = byte.wrapping_add(1);
                    }
                }
                black_box(std::os::unix::process::parent_id());
            }
        })
    }
}

/// Rounds of pairs by themselves and among other work, in turn: what the machine's host gives changes from one millisecond to the next. The
/// medians.
fn time_both() -> (Duration, Duration) {
    let mut work = Work::new();
    let (alone, among_work) = array::from_fn::<_, ROUNDS, _>(|_| (time_pairs(), work.time_pairs()))
        .into_iter()
        .unzip();
    (median(alone), median(among_work))
}

/// A block, allocated at a stack that has so many frames more than ours.
#[inline(never)]
fn allocate(number: u32, deeper: usize) -> Vec<u8> {
    if deeper > 0 {
        // Not a tail call, which would leave no frame.
        return black_box(allocate(number, deeper - 1));
    }
    black_box(Vec::with_capacity(64 + (number & 31) as usize))
}

/// The median of some rounds.
fn median(mut rounds: Vec<Duration>) -> Duration {
    rounds.sort_unstable();
    rounds.get(rounds.len() / 2).copied().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::HitCost;

    #[test]
    fn a_hit_costs_the_more_the_more_is_done_between_two() {
        let cost = HitCost {
            alone_s: 1.0,
            among_work_s: 1.6,
            work_s: 0.8,
            unmasked: 0.2,
        };
        for (work, hit) in [(0.0, 1.0), (0.4, 1.3), (0.8, 1.6), (2.0, 2.5), (10.0, 2.5)] {
            let found = cost.in_a_process(work + hit);
            assert!((found - hit).abs() < 1e-9, "{work}: {found}");
            assert!((cost.unmasked(work + hit) - 0.2 * hit).abs() < 1e-9);
        }
        // Less than a hit takes: a clock that is late.
        assert!((cost.in_a_process(0.5) - 1.0).abs() < 1e-9);
        // The host was slower for the loop of nothing else.
        let odd = HitCost {
            alone_s: 2.0,
            ..cost
        };
        assert!((odd.in_a_process(5.0) - 2.0).abs() < 1e-9);
    }
}
