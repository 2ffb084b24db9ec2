//! The controller against simulated processes: what it may cost is known, and what it costs is counted.

#![expect(clippy::indexing_slicing, reason = "tests say so by failing")]

use std::time::Duration;

use super::{Beginning, Choice, Close, Controller, Limits, Mode, Spent, Usage};
use proptest::prelude::*;

/// A process that uses `cores` by itself and whose traps would take `rate` seconds in each second of tracing.
#[derive(Clone, Copy)]
struct Load {
    cores: f64,
    rate: f64,
}

/// How long the ends of a window take, with what share of the traps still set.
const ATTACH: f64 = 0.008;
const DETACH: f64 = 0.020;

struct Run {
    controller: Controller,
    usage: Usage,
    is_open: bool,
    hard_stops: u32,
    windows: u32,
    /// Our own work while a window is being closed, seconds in each second.
    work: f64,
    /// Cost in each tenth of a second.
    tenths: Vec<f64>,
}

impl Run {
    fn new(limits: Limits, seed: u64) -> Self {
        let mut controller = Controller::new(limits, seed);
        controller.opened(Usage::default());
        Self {
            controller,
            usage: Usage::default(),
            is_open: true,
            hard_stops: 0,
            windows: 1,
            work: 0.0,
            tenths: Vec::new(),
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: f64, load: Load, traced: f64) {
        let cost = load.rate * time * traced;
        self.usage.at += Duration::from_secs_f64(time);
        // Traps first use what the process left idle, then take from what it uses.
        self.usage.cpu += Duration::from_secs_f64(load.cores * time + cost * 0.5);
        self.usage.cost += Duration::from_secs_f64(cost);
        let tenth = (self.usage.at.as_secs_f64() * 10.0) as usize;
        self.tenths.resize(self.tenths.len().max(tenth + 1), 0.0);
        self.tenths[tenth] += cost;
    }

    fn run(&mut self, until: f64, load: impl Fn(f64) -> Load) {
        while self.usage.at.as_secs_f64() < until {
            let now = load(self.usage.at.as_secs_f64());
            if self.is_open {
                let wait = self
                    .controller
                    .look_again(self.usage.at)
                    .unwrap_or(Duration::from_millis(100));
                // The probe tells when calls can have cost what is left, to a thousand of them: a millisecond.
                let told = (self.controller.slack().as_secs_f64() + 0.001) / now.rate.max(1e-9);
                self.pass(wait.as_secs_f64().min(told).max(0.001), now, 1.0);
                if let Some(reason) = self.controller.observe(self.usage) {
                    let decided = self.usage;
                    self.hard_stops += u32::from(reason == Close::HardStop);
                    // All traps stay for a few milliseconds, none for the rest.
                    self.pass(0.003, now, 1.0);
                    self.pass(DETACH, now, 0.0);
                    self.usage.work += Duration::from_secs_f64(self.work * DETACH);
                    self.controller.closed(reason, decided, self.usage);
                    self.is_open = false;
                }
            } else if self.controller.may_open(self.usage) {
                self.pass(ATTACH, now, 0.2);
                self.controller.opened(self.usage);
                self.is_open = true;
                self.windows += 1;
            } else {
                let wait = self
                    .controller
                    .next_opening()
                    .saturating_sub(self.usage.at)
                    .min(Duration::from_millis(100));
                self.pass(wait.as_secs_f64().max(0.001), now, 0.0);
            }
        }
    }

    /// The most that any second cost.
    fn worst_second(&self) -> f64 {
        self.tenths
            .windows(10)
            .map(|second| second.iter().sum())
            .fold(0.0, f64::max)
    }
}

fn limits(choice: Choice, budget: f64) -> Limits {
    Limits {
        choice,
        budget,
        window: None,
        beginning: Beginning::Named,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn over_a_minute_the_budget_is_kept(
        cores in 0.1_f64..4.0,
        intensity in 0.001_f64..3.0,
        budget in prop::sample::select(vec![0.005, 0.01, 0.05]),
        sampled in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let choice = if sampled { Choice::Sampled } else { Choice::Auto };
        let mut run = Run::new(limits(choice, budget), seed);
        let load = Load { cores, rate: cores * intensity };
        run.run(60.0, |_| load);
        let cost = run.usage.cost.as_secs_f64();
        let own = cores * run.usage.at.as_secs_f64();
        // The account, its first allowance, and a window that may run over.
        prop_assert!(
            cost <= budget * (own + 6.0 * cores) + 0.06 * load.rate,
            "cost {cost}, budget {}", budget * own
        );
        // And it is used: where all calls cost more than the budget, most of it goes into windows.
        if intensity > 2.0 * budget && load.rate * 0.02 < budget * cores {
            prop_assert!(cost > 0.4 * budget * own, "cost {cost}, budget {}", budget * own);
        }
        if sampled || intensity > 1.5 * budget {
            prop_assert!(run.controller.mode() == Mode::Sampled || !sampled);
            prop_assert!(run.windows >= 3, "{} windows", run.windows);
        }
    }

    #[test]
    fn a_thousandfold_jump_is_stopped_within_the_second(
        cores in 0.5_f64..2.0,
        at in 5.0_f64..15.0,
        seed in any::<u64>(),
    ) {
        let budget = 0.01;
        let slow = Load { cores, rate: cores * 0.002 };
        let fast = Load { cores, rate: cores * 2.0 };
        let mut run = Run::new(limits(Choice::Auto, budget), seed);
        run.run(at, |_| slow);
        prop_assert_eq!(run.controller.mode(), Mode::Exact);
        run.run(60.0, |now| if now < at { slow } else { fast });
        prop_assert_eq!(run.controller.mode(), Mode::Sampled);
        // Told of by the probe, the account stops it before the hard stop has to; what passes until everything is detached comes on top.
        let most = 5.0 * budget * cores + 0.06 * fast.rate;
        prop_assert!(run.worst_second() <= most, "{} of {most}", run.worst_second());
        let own = cores * 60.0;
        let cost = run.usage.cost.as_secs_f64();
        prop_assert!(cost <= budget * (own + 6.0 * cores) + 0.06 * fast.rate, "{cost}");
        // And back: all calls are seen again.
        run.run(100.0, |_| slow);
        prop_assert_eq!(run.controller.mode(), Mode::Exact);
    }
}

#[test]
fn cheap_processes_are_seen_all_the_time() {
    let mut run = Run::new(limits(Choice::Auto, 0.01), 7);
    run.run(120.0, |_| Load {
        cores: 0.3,
        rate: 0.001,
    });
    assert_eq!(run.controller.mode(), Mode::Exact);
    assert_eq!(run.windows, 1);
    assert!((run.controller.duty(run.usage.at) - 1.0).abs() < 1e-9);
    let spent = Spent {
        cpu: run.usage.cpu,
        cost: run.usage.cost,
    };
    let reason = run.controller.reason(spent, Duration::ZERO).to_string();
    assert!(reason.contains("less than"), "{reason}");
}

#[test]
fn less_than_the_budget_was_said_above_a_larger_figure() {
    let controller = Controller::new(limits(Choice::Auto, 0.01), 7);
    for (cost, says_less) in [
        (5, true),
        (10, true),
        (11, false),
        (390, false),
        (2000, false),
    ] {
        let spent = Spent {
            cpu: Duration::from_millis(1000),
            cost: Duration::from_millis(cost),
        };
        let reason = controller.reason(spent, Duration::ZERO).to_string();
        assert_eq!(reason.contains("less than"), says_less, "{reason}");
    }
}

#[test]
fn what_watching_objects_took_was_not_in_the_cost_that_is_said_to_be_small() {
    let controller = Controller::new(limits(Choice::Auto, 0.01), 7);
    let spent = Spent {
        cpu: Duration::from_millis(1000),
        cost: Duration::from_millis(6),
    };
    let reason = |besides| {
        controller
            .reason(spent, Duration::from_millis(besides))
            .to_string()
    };
    assert!(reason(2).contains("less than"), "{}", reason(2));
    let more = reason(10);
    assert!(more.contains("took 1.6 % of its CPU time"), "{more}");
    assert!(more.contains("watch objects"), "{more}");
}

/// The end of a window without a planned one was reckoned all the same, and was beyond what a duration holds.
#[test]
fn back_to_every_call_ended_the_trace_without_a_report() {
    let load = |cores, rate| move |_| Load { cores, rate };
    let mut run = Run::new(limits(Choice::Auto, 0.01), 7);
    run.run(5.0, load(1.0, 1.0));
    assert_eq!(run.controller.mode(), Mode::Sampled);
    run.run(60.0, load(1.0, 0.0));
    assert_eq!(run.controller.mode(), Mode::Exact);
    assert_eq!(run.controller.about_to_close(run.usage.at), None);
    assert!(run.controller.look_again(run.usage.at).is_some());
}

/// What a process may be seen to do from one look to the next, in any order: a clock that stands still or jumps is among it.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Pass {
        at: f64,
        cpu: f64,
        cost: f64,
        work: f64,
    },
    Observe,
    Open,
    Close(bool),
    Peers(usize),
    Begin,
}

fn happens() -> impl Strategy<Value = Happens> {
    let amount = || prop_oneof![Just(0.0), 0.0..0.01, 0.0..2.0, Just(1e9), Just(1e18)];
    prop_oneof![
        4 => (amount(), amount(), amount(), amount())
            .prop_map(|(at, cpu, cost, work)| Happens::Pass { at, cpu, cost, work }),
        3 => Just(Happens::Observe),
        2 => Just(Happens::Open),
        2 => any::<bool>().prop_map(Happens::Close),
        1 => (0_usize..10_000).prop_map(Happens::Peers),
        1 => Just(Happens::Begin),
    ]
}

proptest! {
    #[test]
    fn no_usage_at_any_time_makes_it_panic(
        choice in prop::sample::select(vec![Choice::Auto, Choice::Sampled, Choice::Exact]),
        budget in prop::sample::select(vec![1e-6, 0.01, 1.0]),
        window in prop::option::of(prop::sample::select(vec![
            Duration::from_nanos(1), Duration::from_millis(60), Duration::MAX,
        ])),
        seed in any::<u64>(),
        events in prop::collection::vec(happens(), 0..80),
    ) {
        let mut controller = Controller::new(Limits { window, ..limits(choice, budget) }, seed);
        let mut usage = Usage::default();
        let mut is_open = false;
        for event in events {
            match event {
                Happens::Pass { at, cpu, cost, work } => {
                    let more = |sum: Duration, by| sum.saturating_add(crate::duration::seconds(by));
                    usage = Usage {
                        at: more(usage.at, at),
                        cpu: more(usage.cpu, cpu),
                        cost: more(usage.cost, cost),
                        work: more(usage.work, work),
                    };
                }
                Happens::Observe => {
                    let close = controller.observe(usage);
                    prop_assert!(close.is_none() || is_open && choice != Choice::Exact);
                }
                Happens::Open => {
                    let may = controller.may_open(usage);
                    if may && !is_open {
                        controller.opened(usage);
                        is_open = true;
                    }
                }
                Happens::Close(hard) => {
                    let reason = if hard { Close::HardStop } else { Close::Planned };
                    controller.closed(reason, usage, usage);
                    is_open = false;
                    if choice == Choice::Exact {
                        // Nobody closes one then.
                        controller = Controller::new(limits(choice, budget), seed);
                    }
                }
                Happens::Peers(peers) => controller.set_peers(peers),
                // Another program: a window begins, whatever there was.
                Happens::Begin => {
                    controller.opened(usage);
                    is_open = true;
                }
            }
            let soon = controller.look_again(usage.at);
            prop_assert!(soon.is_none_or(|soon| soon <= Duration::from_secs(1)), "{:?}", soon);
            prop_assert!(soon.is_some() == (is_open && choice != Choice::Exact));
            let end = controller.about_to_close(usage.at);
            prop_assert!(end.is_none_or(|end| is_open && end <= Duration::from_millis(10)));
            prop_assert!(controller.slack() <= Duration::from_secs(1));
            prop_assert!((0.0..=1.0).contains(&controller.duty(usage.at)));
            if choice == Choice::Sampled {
                prop_assert_eq!(controller.mode(), Mode::Sampled);
            }
            let spent = Spent { cpu: usage.cpu, cost: usage.cost };
            prop_assert!((0.0..=1.0).contains(&spent.fraction()));
            prop_assert!(!controller.reason(spent, Duration::ZERO).to_string().contains("NaN"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// With the time from its beginning on, for a process that is attached to.
    #[test]
    fn over_any_thirty_seconds_the_budget_is_kept(
        cores in 0.005_f64..4.0,
        intensity in 0.001_f64..3.0,
        later in 0.001_f64..3.0,
        changes_at in 0.0_f64..60.0,
        seed in any::<u64>(),
    ) {
        let budget = 0.01;
        let mut run = Run::new(limits(Choice::Auto, budget), seed);
        run.run(90.0, |now| Load {
            cores,
            rate: cores * if now < changes_at { intensity } else { later },
        });
        let most = budget * cores * 30.0;
        for (begin, span) in run.tenths.windows(300).enumerate() {
            let cost: f64 = span.iter().sum();
            prop_assert!(cost <= most, "{cost} of {most} from {} s", begin as f64 / 10.0);
        }
    }
}

#[test]
fn more_than_five_budgets_in_a_second_end_a_window_whatever_was_planned() {
    let mut controller = Controller::new(limits(Choice::Auto, 0.01), 7);
    controller.opened(Usage::default());
    let usage = |at: f64, cost: f64| Usage {
        at: Duration::from_secs_f64(at),
        cpu: Duration::from_secs_f64(at),
        cost: Duration::from_secs_f64(cost),
        ..Usage::default()
    };
    assert_eq!(controller.observe(usage(0.5, 0.001)), None);
    assert_eq!(
        controller.observe(usage(1.0, 0.2)),
        Some(Close::HardStop),
        "0.2 s of traps in half a second"
    );
}

#[test]
fn our_own_work_makes_windows_rarer() {
    let windows = |work| {
        let mut run = Run::new(limits(Choice::Sampled, 0.01), 5);
        run.work = work;
        run.run(60.0, |_| Load {
            cores: 1.0,
            rate: 0.5,
        });
        (run.windows, run.usage.work.as_secs_f64())
    };
    let (free, _) = windows(0.0);
    // Half of the time at the ends of windows.
    let (dear, worked) = windows(0.5);
    assert!(dear < free, "{dear} of {free}");
    assert!(worked < 60.0 * 0.01 * 0.3, "{worked}");
}

#[test]
fn what_getting_to_know_one_of_many_took_kept_its_next_windows_away_for_minutes() {
    let mut run = Run::new(limits(Choice::Sampled, 0.01), 5);
    run.controller.set_peers(13);
    run.usage.work = Duration::from_millis(150);
    run.work = 0.3;
    run.run(60.0, |_| Load {
        cores: 0.2,
        rate: 0.05,
    });
    assert!(run.windows >= 4, "{}", run.windows);
}

#[test]
fn exact_is_kept_whatever_it_costs() {
    let mut run = Run::new(limits(Choice::Exact, 0.01), 7);
    run.run(5.0, |_| Load {
        cores: 1.0,
        rate: 5.0,
    });
    assert_eq!((run.controller.mode(), run.windows), (Mode::Exact, 1));
}

#[test]
fn a_short_command_is_granted_more_than_a_running_process() {
    let load = Load {
        cores: 1.0,
        rate: 1.0,
    };
    let seen = |beginning| {
        let mut run = Run::new(
            Limits {
                beginning,
                ..limits(Choice::Auto, 0.01)
            },
            7,
        );
        run.run(0.5, |_| load);
        run.usage.cost.as_secs_f64()
    };
    let (command, process) = (seen(Beginning::Command), seen(Beginning::Named));
    assert!(command > 2.0 * process, "{command} {process}");
    let of_many = seen(Beginning::OfMany);
    assert!(process > 2.0 * of_many, "{process} {of_many}");
    assert!(command < 0.12, "{command}");
}

#[test]
fn windows_come_at_different_times() {
    let mut run = Run::new(limits(Choice::Sampled, 0.01), 11);
    let mut gaps = Vec::new();
    let mut last = run.windows;
    let mut at = 0.0;
    for step in 1..600 {
        run.run(f64::from(step) * 0.1, |_| Load {
            cores: 1.0,
            rate: 1.0,
        });
        if run.windows > last {
            gaps.push(f64::from(step) * 0.1 - at);
            at = f64::from(step) * 0.1;
            last = run.windows;
        }
    }
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let spread = gaps.iter().map(|gap| (gap - mean).abs()).sum::<f64>() / gaps.len() as f64;
    assert!(gaps.len() > 10 && spread > 0.1 * mean, "{gaps:?}");
}

#[test]
fn a_length_that_was_asked_for_is_kept_and_paid_by_rarer_windows() {
    let load = Load {
        cores: 1.0,
        rate: 0.5,
    };
    let mut run = Run::new(
        Limits {
            window: Some(Duration::from_millis(60)),
            ..limits(Choice::Sampled, 0.01)
        },
        3,
    );
    run.run(100.0, |_| load);
    let each = run.usage.cost.as_secs_f64() / f64::from(run.windows);
    assert!((0.025..0.045).contains(&each), "{each}");
    assert!(run.usage.cost.as_secs_f64() < 0.01 * 100.0 + 0.05);
}

#[test]
fn the_end_of_a_window_is_prepared_where_nobody_else_waits_for_that() {
    let mut controller = Controller::new(limits(Choice::Sampled, 0.01), 7);
    controller.opened(Usage::default());
    let soon = Duration::from_millis(45);
    assert_eq!(controller.about_to_close(Duration::from_millis(20)), None);
    assert_eq!(
        controller.about_to_close(soon),
        Some(Duration::from_millis(5))
    );
    controller.set_peers(100);
    assert_eq!(controller.about_to_close(soon), None);
}

/// Within a tick of its clock, a busy process seems not to have run.
#[test]
fn a_clock_that_stood_still_at_the_first_look_kept_the_next_window_away() {
    let limits = Limits {
        choice: Choice::Sampled,
        budget: 0.01,
        window: None,
        beginning: Beginning::Named,
    };
    let mut controller = Controller::new(limits, 1);
    controller.opened(Usage::default());
    let usage = |at: u64, cpu: u64, cost: u64| Usage {
        at: Duration::from_millis(at),
        cpu: Duration::from_millis(cpu),
        cost: Duration::from_millis(cost),
        work: Duration::ZERO,
    };
    let decided = usage(3, 0, 2);
    assert_eq!(controller.observe(decided), Some(Close::Planned));
    controller.closed(Close::Planned, decided, usage(8, 8, 5));
    let next = controller.next_opening();
    assert!(next < Duration::from_secs(5), "{next:?}");
}
