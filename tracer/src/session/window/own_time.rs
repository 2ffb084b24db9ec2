//! What a process does by itself, in processor time: between windows, where that is all that it does, and in windows that traps fill, where it has
//! to be told from what they take. Knows nothing of blocks.

use super::{pace::Pace, ratio::Ratio};
use crate::{kernel::Modes, session::calibration::HitCost};

/// How far the cost of a hit in the process may differ from that of one in our own (deeper stacks cost more), as a part of it.
const COST_UNCERTAINTY: f64 = 0.25;

/// How far the time of a hit that passes for the program's may differ from that in our own, as a part of it.
const UNMASKED_UNCERTAINTY: f64 = 0.25;

/// A program that is trapped all the time finds less of its own in the caches, and takes longer for the same: by about this part of what it takes, and
/// after each trap by up to this part of what that took.
const SLOWER: f64 = 0.05;
const SLOWER_AFTER_A_TRAP: f64 = 0.1;

/// The share of a window's processor time that traps may take for what is left to be taken as measured, window by window; and for samples of modes
/// to say less than they cost.
const SMALL_SHARE: f64 = 0.1;
const SHARE_FOR_MODES: f64 = 0.3;

/// What is left to the process itself is at least this share, and at most so uncertain; and at least so.
const LEAST_OWN_SHARE: f64 = 0.02;
const MOST_UNCERTAIN: f64 = 3.0;
pub(super) const LEAST_UNCERTAIN: f64 = 0.02;

/// Ticks between windows by which the kernel's own part of a process's time is known; before, those of its whole life have to do.
const ENOUGH_TICKS: f64 = 50.0;

/// What a window has used and seen until it was to be closed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Its length, seconds.
    pub(super) time: f64,
    /// How long it was to be, if that was longer.
    pub(super) planned: f64,
    /// Processor time, of which traps took `cost`, seconds.
    pub(super) cpu: f64,
    pub(super) cost: f64,
    /// Calls that were seen.
    pub(super) hits: f64,
    /// Samples of the mode in which it ran; none where the kernel has none.
    pub(super) modes: Modes,
    /// Those of the calls that gave a block out.
    pub(super) allocations: f64,
    /// Blocks from before it that were freed, and blocks that were born in it and are alive.
    pub(super) old_frees: f64,
    pub(super) survivors: f64,
}

impl Used {
    /// For how much of a window of this length, seconds, it stands at the least: of a thread that runs all the time traps take what they cost, of one that
    /// waits they take nothing; and of several threads together no more than their part of what these used.
    pub(super) fn least(self, length: f64) -> f64 {
        let most = (1.0 + COST_UNCERTAINTY) * self.cost;
        let of_cpu = if self.cpu > 0.0 {
            (1.0 - most / self.cpu) * length
        } else {
            0.0
        };
        (length - most).max(of_cpu).clamp(0.0, length)
    }

    /// The same for the last `time` of the window alone, in which the survivors were born.
    pub(super) fn part(self, time: f64) -> Self {
        let part = (time / self.time.max(1e-9)).min(1.0);
        Self {
            time,
            planned: self.planned * part,
            cpu: self.cpu * part,
            cost: self.cost * part,
            hits: self.hits * part,
            allocations: self.allocations * part,
            old_frees: self.old_frees * part,
            ..self
        }
    }

    fn add(&mut self, other: Self) {
        self.time += other.time;
        self.cpu += other.cpu;
        self.cost += other.cost;
        self.hits += other.hits;
        self.modes += other.modes;
        self.allocations += other.allocations;
        self.old_frees += other.old_frees;
        self.survivors += other.survivors;
    }
}

/// How far what traps leave of a window may be off, as a part of it, where they do not fill it.
pub(super) fn of_what_is_left(used: Used) -> f64 {
    let left = (used.cpu - used.cost).max(1e-9);
    (COST_UNCERTAINTY * used.cost / left).clamp(LEAST_UNCERTAIN, MOST_UNCERTAIN)
}

/// A time, and how far it may be off (one standard deviation), in the same unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) time: f64,
    pub(super) off: f64,
}

impl Known {
    /// The mean of two that have nothing to do with each other, each by how sure it is.
    fn and(self, other: Self) -> Self {
        let (a, b) = (self.off.powi(-2), other.off.powi(-2));
        if !a.is_finite() || !b.is_finite() {
            return if self.off <= other.off { self } else { other };
        }
        Self {
            time: (self.time * a + other.time * b) / (a + b),
            off: (a + b).sqrt().recip(),
        }
    }
}

/// Sums over windows in which traps took a good part of the time.
#[derive(Debug, Default)]
struct Trapped {
    all: Used,
    /// Of those of which there are samples.
    sampled: Used,
    pace: Pace,
    /// Processor time and hits.
    of_a_hit: Ratio,
}

impl Trapped {
    fn note(&mut self, used: Used) {
        self.all.add(used);
        self.pace.note(used);
        if used.modes.all > 0 {
            self.sampled.add(used);
        }
        self.of_a_hit.note(used.cpu, used.hits);
    }

    /// How far the processor time of a hit may be off, as a part of it, by how much it differs from window to window: the machine's host may take some of it, which it says nothing of.
    fn scatter(&self) -> f64 {
        let windows = self.of_a_hit.windows;
        let degrees = windows - 1.0;
        if degrees < 1.0 {
            return 0.0;
        }
        (self.of_a_hit.squares_off() * windows / degrees).sqrt() / self.of_a_hit.of
    }
}

/// What is known of a process's own processor time.
#[derive(Debug, Default)]
pub(super) struct OwnTime {
    /// Processor time and time between windows, seconds.
    between: (f64, f64),
    /// Processor time in user and in system mode by the process's own account, in ticks: before it was traced, and between windows.
    before: (f64, f64),
    ticks: (f64, f64),
    trapped: Trapped,
    /// The share of the last window that traps took.
    last_share: f64,
    hit: HitCost,
}

impl OwnTime {
    /// Nothing is known but the ticks of its life so far, and what a hit costs.
    pub(super) fn new(before: (u64, u64), hit: HitCost) -> Self {
        Self {
            before: (before.0 as f64, before.1 as f64),
            hit,
            ..Self::default()
        }
    }

    /// The process used so much between two windows, in which so much time went by, seconds.
    pub(super) fn note_between(&mut self, cpu: f64, time: f64) {
        self.between.0 += cpu;
        self.between.1 += time;
        // What it did long ago says less.
        if self.between.1 > 30.0 {
            self.between = (self.between.0 / 2.0, self.between.1 / 2.0);
        }
    }

    /// Ticks of its account between two windows: user and system.
    pub(super) fn note_ticks(&mut self, (user, system): (u64, u64)) {
        self.ticks.0 += user as f64;
        self.ticks.1 += system as f64;
        if self.ticks.0 + self.ticks.1 > 100.0 * ENOUGH_TICKS {
            self.ticks = (self.ticks.0 / 2.0, self.ticks.1 / 2.0);
        }
    }

    /// Cores that the process uses by itself, from the times between windows.
    pub(super) fn cores(&self) -> Option<f64> {
        (self.between.1 > 0.05 && self.between.0 > 0.0).then(|| self.between.0 / self.between.1)
    }

    /// Whether a window of this is one of which traps took a good part. It is remembered if so.
    pub(super) fn note_window(&mut self, used: Used) -> bool {
        let is_trapped = used.hits > 0.0
            && used.cost > SMALL_SHARE * used.cpu
            && used.least(used.time) < (1.0 - SMALL_SHARE) * used.time;
        self.last_share = used.cost / used.cpu.max(1e-9);
        if is_trapped {
            self.trapped.note(used);
        }
        is_trapped
    }

    /// Whether there were such windows.
    pub(super) fn is_trapped(&self) -> bool {
        self.trapped.all.hits > 0.0
    }

    /// Whether it is worth while to sample its modes.
    pub(super) fn wants_modes(&self) -> bool {
        self.last_share > SHARE_FOR_MODES
    }

    /// The time that the process, untraced, takes from one allocation to the next, seconds, from all windows of which traps took a good part;
    /// and how far that may be off, as a part of it. Its own processor time in them is known in two ways, which have nothing to do with
    /// each other: as what is left when the cost of the traps is taken off, and by how much of it was in user mode. What the pace of
    /// what ends says, where that is less, is a third.
    pub(super) fn of_an_allocation(&self) -> Option<(f64, f64)> {
        let all = self.trapped.all;
        if all.hits <= 0.0 || all.allocations <= 0.0 {
            return None;
        }
        let of_a_hit = self.by_cost();
        let of_a_hit = self
            .by_modes()
            .map_or(of_a_hit, |other| of_a_hit.and(other));
        let least = LEAST_OWN_SHARE * all.cpu / all.hits;
        // Frees that go by the clock while the rest is slow are more than go with so many allocations. How long they take compared to other calls is
        // not known; they may be nothing, or most of it.
        let beyond = ((all.old_frees - all.survivors) / all.hits).clamp(0.0, 0.5);
        let cores = self.cores().unwrap_or(1.0);
        let hits = all.hits / all.allocations / cores;
        let most = of_a_hit.time.max(least) * hits;
        let own = Known {
            time: most * (1.0 - beyond),
            off: (of_a_hit.off * hits).hypot(most * beyond),
        };
        let known = match self.trapped.pace.of_an_allocation() {
            Some(pace) if pace.time < most => own.and(pace),
            _ => own,
        };
        let uncertainty = (known.off / known.time).clamp(LEAST_UNCERTAIN, MOST_UNCERTAIN);
        Some((known.time, uncertainty))
    }

    /// The processor time from call to call by the cost of the traps.
    fn by_cost(&self) -> Known {
        let all = self.trapped.all;
        Known {
            time: (all.cpu - all.cost) / all.hits,
            off: (COST_UNCERTAINTY * all.cost).hypot(self.trapped.scatter() * all.cpu) / all.hits,
        }
    }

    /// The same by the samples of modes.
    fn by_modes(&self) -> Option<Known> {
        let sampled = self.trapped.sampled;
        let user = sampled.modes.user_share()?;
        let of_a_hit = sampled.cpu / sampled.hits;
        let unmasked = self.hit.unmasked(of_a_hit);
        // The mode of a time that the program spends in the kernel by itself is that of the traps; its share does not change by them.
        let with_system = 1.0 + self.system_by_user();
        let own = (user * of_a_hit - unmasked).max(0.0) * with_system;
        let samples = sampled.modes.all as f64;
        // As if there were two more of each mode (Agresti and Coull 1998): few samples that agree say little.
        let center = (user * samples + 2.0) / (samples + 4.0);
        let chance = (center * (1.0 - center) / (samples + 4.0)).sqrt() * of_a_hit;
        let parts = [
            chance * with_system,
            UNMASKED_UNCERTAINTY * unmasked * with_system,
            SLOWER * own,
            self.trapped.scatter() * own,
            SLOWER_AFTER_A_TRAP * sampled.cost / sampled.hits * with_system,
        ];
        Some(Known {
            time: own,
            off: parts.iter().map(|part| part * part).sum::<f64>().sqrt(),
        })
    }

    /// The time that the process spends in the kernel by itself, as a multiple of that in its program.
    fn system_by_user(&self) -> f64 {
        let (user, system) = if self.ticks.0 + self.ticks.1 > ENOUGH_TICKS {
            self.ticks
        } else {
            self.before
        };
        // A tick more: a process that is new has none.
        (system + 0.1) / (user + 1.0)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{HitCost, OwnTime, Used};
    use crate::kernel::Modes;

    const MICROSECOND: f64 = 1e-6;

    /// 0.2 us of a hit pass for the program's.
    fn hit() -> HitCost {
        HitCost::always(MICROSECOND, 0.2)
    }

    /// A window in which each call takes `own` microseconds of the program and the same again by `system` times in the kernel, and `hit` of a trap, of which
    /// `unmasked` pass for the program's; the tracer believes that a trap takes `believed`. Every other call is an allocation.
    fn window(own: f64, system: f64, hit: f64, unmasked: f64, believed: f64) -> Used {
        let hits = 10_000.0;
        let cycle = own * (1.0 + system) + hit;
        let all = 4_000;
        Used {
            time: hits * cycle * MICROSECOND,
            planned: 0.0,
            cpu: hits * cycle * MICROSECOND,
            cost: hits * believed * MICROSECOND,
            hits,
            modes: Modes {
                user: (f64::from(all) * (own + unmasked) / cycle) as u64,
                all: all as u64,
            },
            allocations: hits / 2.0,
            old_frees: 400.0,
            survivors: 400.0,
        }
    }

    /// Microseconds from one allocation to the next, and how unsure that is.
    fn found(own: &OwnTime) -> (f64, f64) {
        let (time, uncertainty) = own.of_an_allocation().unwrap();
        (time / MICROSECOND, uncertainty)
    }

    #[test]
    fn a_hit_that_costs_more_than_in_our_process_took_its_part_from_the_program() {
        // By the cost alone 0.6 us were left of 1.0.
        let mut own = OwnTime::new((100, 0), hit());
        own.note_between(1.0, 1.0);
        assert!(own.note_window(window(1.0, 0.0, 1.5, 0.2, 1.9)));
        let (time, uncertainty) = found(&own);
        assert!((time - 2.0).abs() < 0.2, "{time}");
        assert!(uncertainty < 0.2, "{uncertainty}");
    }

    #[test]
    fn what_the_program_does_in_the_kernel_is_its_own() {
        let mut own = OwnTime::new((10, 0), hit());
        own.note_between(1.0, 1.0);
        own.note_ticks((1000, 2000));
        assert!(own.note_window(window(0.5, 2.0, 1.5, 0.2, 1.5)));
        let (time, _) = found(&own);
        assert!((time - 3.0).abs() < 0.2, "{time}");
    }

    #[test]
    fn without_samples_the_cost_alone_decides() {
        let mut own = OwnTime::new((100, 0), hit());
        own.note_between(1.0, 1.0);
        let mut used = window(1.0, 0.0, 1.0, 0.2, 1.0);
        used.modes = Modes::default();
        assert!(own.note_window(used));
        let (time, uncertainty) = found(&own);
        assert!((time - 2.0).abs() < 1e-6, "{time}");
        assert!((uncertainty - 0.25).abs() < 1e-6, "{uncertainty}");
    }

    #[test]
    fn a_loop_of_nothing_but_calls_has_little_of_its_own_and_says_how_unsure_that_is() {
        let mut own = OwnTime::new((100, 0), hit());
        own.note_between(1.0, 1.0);
        assert!(own.note_window(window(0.01, 0.0, 1.2, 0.2, 1.25)));
        let (time, uncertainty) = found(&own);
        assert!(time < 0.2, "{time}");
        assert!(uncertainty > 1.0, "{uncertainty}");
    }

    #[test]
    fn a_window_that_traps_do_not_fill_is_not_one_of_them() {
        let mut own = OwnTime::default();
        assert!(!own.note_window(window(10.0, 0.0, 1.0, 0.2, 1.0)));
        assert!(!own.note_window(Used::default()));
        assert!(!own.is_trapped());
        assert!(own.of_an_allocation().is_none());
        assert!(own.cores().is_none());
    }

    #[test]
    fn modes_are_sampled_where_traps_take_more_than_samples() {
        let mut own = OwnTime::new((100, 0), hit());
        assert!(own.note_window(window(4.0, 0.0, 1.0, 0.2, 1.0)));
        assert!(own.is_trapped() && !own.wants_modes());
        assert!(own.note_window(window(0.5, 0.0, 1.0, 0.2, 1.0)));
        assert!(own.wants_modes());
    }

    #[test]
    fn a_process_on_two_cores_takes_half_the_time_from_call_to_call() {
        let mut own = OwnTime::new((100, 0), hit());
        own.note_between(60.0, 30.0);
        // What it did long ago says less, and as much.
        own.note_between(20.0, 10.0);
        assert!((own.cores().unwrap() - 2.0).abs() < 1e-9);
        assert!(own.note_window(window(1.0, 0.0, 1.5, 0.2, 1.5)));
        let (time, _) = found(&own);
        assert!((time - 1.0).abs() < 0.06, "{time}");
    }

    /// Windows of a program whose blocks end by the clock, three times as many as survive in it; each free takes as long as the rest from one
    /// allocation to the next.
    fn by_the_clock(own: &mut OwnTime, windows: u32) {
        own.note_between(1.0, 1.0);
        for _ in 0..windows {
            let used = window(1.0, 0.0, 1.0, 0.2, 1.0);
            own.note_window(Used {
                // It would make one allocation in two microseconds, and is slowed down to a third of that.
                allocations: used.time / MICROSECOND / 6.0,
                old_frees: 1_500.0,
                survivors: 500.0,
                ..used
            });
        }
    }

    #[test]
    fn a_program_that_frees_by_the_clock_seemed_to_allocate_more_slowly_than_it_does() {
        let mut own = OwnTime::new((100, 0), hit());
        by_the_clock(&mut own, 8);
        // Its own time alone would say 3.
        let (time, uncertainty) = found(&own);
        assert!((time - 2.0).abs() < 0.25, "{time}");
        assert!(uncertainty < 0.2, "{uncertainty}");
    }

    #[test]
    fn one_window_says_little_of_the_pace() {
        let (mut one, mut eight) = (OwnTime::default(), OwnTime::default());
        by_the_clock(&mut one, 1);
        by_the_clock(&mut eight, 8);
        assert!(found(&one).1 > found(&eight).1);
    }

    #[test]
    fn where_nothing_ends_the_pace_says_nothing() {
        let mut own = OwnTime::new((100, 0), hit());
        own.note_between(1.0, 1.0);
        let used = window(1.0, 0.0, 1.5, 0.2, 1.5);
        own.note_window(Used {
            old_frees: 0.0,
            ..used
        });
        let (time, uncertainty) = found(&own);
        assert!((time - 2.0).abs() < 0.2, "{time}");
        assert!(uncertainty < 0.2, "{uncertainty}");
    }

    #[test]
    fn a_part_of_a_window_is_that_part_of_all_that_it_used() {
        let used = Used {
            time: 0.02,
            ..window(1.0, 0.0, 1.0, 0.2, 1.0)
        };
        let part = used.part(0.015);
        assert!((part.hits - 7_500.0).abs() < 1e-6 && (part.old_frees - 300.0).abs() < 1e-6);
        assert!((part.survivors - 400.0).abs() < 1e-9 && (part.time - 0.015).abs() < 1e-9);
        // Clocks that do not agree do not make it longer.
        assert!((used.part(0.03).hits - used.hits).abs() < 1e-6);
    }
}
