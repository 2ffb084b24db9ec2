//! The overhead budget: from the calls seen and what they cost to the tier, the windows' length and how often they come. Pure: it is told what a process used
//! and answers what to do. Knows neither processes nor probes.
//!
//! The promise: what tracing takes is at most `budget` of the processor time that the process itself takes, plus a first allowance; and never more
//! than five times that in a second without everything being detached at once. It is kept as an account: processor time of the process pays in,
//! hits take out, and a window is opened only while nothing is owed. Our own work counts too: on a machine under full load it is taken from the
//! target like the traps.

mod account;
mod limits;
mod reason;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

pub use limits::{Beginning, Choice, Limits, Spent, Usage};

use account::Account;
use reason::Reason;

use crate::duration::seconds;

/// The part of the budget that traps may take as measured. They also take from caches, which is not.
const TRAPS_PART: f64 = 0.6;
/// The part that our own work on windows may take; what is left is for looks that no window is the reason of.
const WORK_PART: f64 = 0.25;

/// Our work for a process that uses little is measured by so much of a processor all the same, or else its windows would be too rare to tell
/// anything; many such processes share some processors.
const LEAST_CORES_FOR_WORK: f64 = 0.5;
const SHARED_CORES_FOR_WORK: f64 = 2.0;

/// Whether all calls are seen, or those in windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The window that is open has no planned end.
    Exact,
    /// Windows.
    Sampled,
}

/// Why a window is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It was as long as planned, or has cost what it may.
    Planned,
    /// All calls together cost more than the budget.
    OverBudget,
    /// In one second more than five times the budget.
    HardStop,
}

/// The shortest and longest planned window.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_secs(1);
/// The shortest that is planned while rarer windows can pay for it: attaching itself takes some milliseconds.
const USEFUL: Duration = Duration::from_millis(5);
/// The first, while nothing is known.
const FIRST: Duration = Duration::from_millis(50);

/// Windows come so often if the budget allows, seconds.
const PERIOD_S: f64 = 2.0;

/// How much of the budget of one second a window is planned to cost at most: well below the hard stop.
const MOST_OF_A_SECOND: f64 = 2.5;
/// The hard stop, in budgets of one second.
const HARD_STOP: f64 = 5.0;
/// The share of the budget below which all calls are seen again.
const COMFORT: f64 = 0.7;
/// Windows in a row that must have been so cheap.
const CHEAP_WINDOWS: u32 = 3;

/// How soon the hits are looked at again while a window is open, if nothing tells that there are many: with a planned end and without one.
const LOOK_IN_WINDOW: Duration = Duration::from_millis(100);
const LOOK_IN_EXACT: Duration = Duration::from_secs(1);
/// While nobody knows what calls of the process cost: so soon at first, and then after twice as long each time.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// How long before its planned end the closing of a window is prepared: a grace period of the kernel's RCU, some 5 to 12 ms.
const PREPARE: Duration = Duration::from_millis(10);
/// With more processes that are seen in windows, one must not keep the others waiting; their windows' ends prepare each other.
const MOST_PREPARED: usize = 8;

/// An open window.
#[derive(Clone, Copy, Debug)]
struct Open {
    since: Usage,
    /// `None`: it has no planned end, all calls are seen.
    plan: Option<Plan>,
}

/// When a window is to end.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The time, since the trace began.
    end: Duration,
    /// What it may cost by then, seconds.
    most_s: f64,
}

/// Seconds of processor time that a second of tracing may cost for that: a window whose probes go half a second late then costs 5 ms more.
const SLOW_PROBES_RATE: f64 = 0.01;

/// Keeps one process within the budget.
#[derive(Clone, Debug)]
pub struct Controller {
    limits: Limits,
    mode: Mode,
    account: Account,
    open: Option<Open>,
    /// The window that is planned.
    length: Duration,
    next: Duration,
    open_time: Duration,
    /// What a second of tracing costs, seconds; from the last window.
    rate: Option<f64>,
    cheap: u32,
    hard_stops: u32,
    /// When the mode last changed, and why, for people.
    switched: Option<(Duration, Close)>,
    windows: u32,
    /// What was spent by the end of the first window, before anything was known.
    first_cost: Option<Duration>,
    /// Shrinks windows after a hard stop.
    shrink: f64,
    /// Our work when the last window was closed, and how much of it a window takes, seconds.
    worked: Duration,
    work_of_a_window: Option<f64>,
    /// Processes that are seen in windows, this one among them.
    peers: usize,
    random: u64,
}

impl Controller {
    /// For a process of which nothing is known yet. `seed` makes the windows' times differ from process to process.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        let mode = match limits.choice {
            Choice::Auto | Choice::Exact => Mode::Exact,
            Choice::Sampled => Mode::Sampled,
        };
        Self {
            limits,
            mode,
            account: Account::new(TRAPS_PART * limits.budget, limits.beginning),
            open: None,
            length: limits.window.unwrap_or(FIRST),
            next: Duration::ZERO,
            open_time: Duration::ZERO,
            rate: None,
            cheap: 0,
            hard_stops: 0,
            switched: None,
            windows: 0,
            first_cost: None,
            shrink: 1.0,
            worked: Duration::ZERO,
            work_of_a_window: None,
            peers: 1,
            random: seed | 1,
        }
    }

    /// How calls are seen now.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether probes that go away slowly may be used: where every call is seen, or so few are trapped that half a second more in each window
    /// costs next to nothing.
    #[must_use]
    pub fn allows_slow_probes(&self) -> bool {
        self.mode == Mode::Exact || self.rate.is_some_and(|rate| rate <= SLOW_PROBES_RATE)
    }

    /// When the next window is to be opened, since the trace began.
    #[must_use]
    pub fn next_opening(&self) -> Duration {
        self.next
    }

    /// How soon [`Controller::observe`] is to be called again while a window is open; `None` where nothing is enforced.
    #[must_use]
    pub fn look_again(&self, at: Duration) -> Option<Duration> {
        let open = self.open.as_ref()?;
        if self.limits.choice == Choice::Exact {
            return None;
        }
        let early = match self.rate {
            Some(_) => Duration::MAX,
            None => at.saturating_sub(open.since.at).max(FIRST_LOOK),
        };
        let Some(plan) = open.plan else {
            return Some(LOOK_IN_EXACT.min(early));
        };
        let left = plan.end.saturating_sub(at);
        let unprepared = left.saturating_sub(PREPARE);
        let wait = if unprepared.is_zero() {
            left
        } else {
            unprepared
        };
        Some(wait.min(LOOK_IN_WINDOW).min(early))
    }

    /// How long until the open window's planned end, where that is so near that its closing is to be prepared; which is waited for.
    #[must_use]
    pub fn about_to_close(&self, at: Duration) -> Option<Duration> {
        let plan = self.open.as_ref()?.plan?;
        let left = plan.end.saturating_sub(at);
        (left <= PREPARE && self.peers <= MOST_PREPARED).then_some(left)
    }

    /// How many times as long as it was by then the open window was to be; at least 1, which it is without a plan too.
    #[must_use]
    pub fn planned_times(&self, at: Duration) -> f64 {
        let planned = self.open.and_then(|open| {
            let whole = open.plan?.end.saturating_sub(open.since.at).as_secs_f64();
            let was = at.saturating_sub(open.since.at).as_secs_f64();
            (was > 0.0).then_some(whole / was)
        });
        planned.unwrap_or(1.0).max(1.0)
    }

    /// So many processes are seen in windows now.
    pub fn set_peers(&mut self, peers: usize) {
        self.peers = peers.max(1);
    }

    /// What traps may take before they need to be counted again; the process cannot be trapped for longer than it ran.
    #[must_use]
    pub fn slack(&self) -> Duration {
        let plan = self.open.as_ref().and_then(|open| open.plan);
        let left_s = plan.map_or_else(|| self.account.balance(), |plan| plan.most_s);
        seconds((left_s / 4.0).min(1.0))
    }

    /// What traps may take in a second, seconds.
    fn second(&self) -> f64 {
        (TRAPS_PART * self.limits.budget * self.account.cores()).max(1e-9)
    }

    /// Whether a window may be opened now: it is time, and nothing is owed. To be asked with fresh figures.
    pub fn may_open(&mut self, usage: Usage) -> bool {
        self.account.note(usage);
        if usage.at < self.next {
            return false;
        }
        let owed = -self.account.balance();
        if owed <= 0.0 || self.windows == 0 {
            return true;
        }
        // Until it is paid.
        let income = self.second().max(1e-6);
        self.next = usage
            .at
            .saturating_add(seconds((owed / income).clamp(0.01, 5.0)));
        false
    }

    /// A window was opened.
    pub fn opened(&mut self, usage: Usage) {
        self.account.note(usage);
        self.windows = self.windows.saturating_add(1);
        let plan = (self.mode == Mode::Sampled).then(|| {
            let second = self.second();
            let expected = self
                .rate
                .map_or(second, |rate| rate * self.length.as_secs_f64());
            Plan {
                end: usage.at.saturating_add(self.length),
                most_s: (2.0 * expected).max(second * 0.5),
            }
        });
        self.open = Some(Open { since: usage, plan });
    }

    /// Looks at what an open window has cost so far.
    pub fn observe(&mut self, usage: Usage) -> Option<Close> {
        self.account.note(usage);
        let open = self.open?;
        if self.limits.choice == Choice::Exact {
            return None;
        }
        if self.account.last_second() * TRAPS_PART > HARD_STOP {
            return Some(Close::HardStop);
        }
        let Some(plan) = open.plan else {
            return (self.account.balance() < 0.0).then_some(Close::OverBudget);
        };
        let cost = usage.cost.saturating_sub(open.since.cost).as_secs_f64();
        // A length that was asked for is kept; the next window waits until it is paid.
        let is_dear = cost > plan.most_s && self.limits.window.is_none();
        (usage.at >= plan.end || is_dear).then_some(Close::Planned)
    }

    /// The window was closed for this reason: it was decided at `decided`, and everything was detached at `usage`. Plans the next.
    pub fn closed(&mut self, reason: Close, decided: Usage, usage: Usage) {
        self.account.note(usage);
        let Some(open) = self.open.take() else {
            return;
        };
        self.first_cost.get_or_insert(usage.cost);
        // From then on the breakpoints are gone within milliseconds; what the kernel still waits for slows nobody.
        self.open_time = self
            .open_time
            .saturating_add(decided.at.saturating_sub(open.since.at));
        let length = decided.at.saturating_sub(open.since.at).as_secs_f64();
        let cost = decided.cost.saturating_sub(open.since.cost).as_secs_f64();
        let ending = usage.cost.saturating_sub(decided.cost).as_secs_f64();
        // Of a long window, what counts is what the process does now.
        let rate = if self.mode == Mode::Exact {
            self.account
                .recent_rate()
                .unwrap_or(cost / length.max(1e-6))
        } else {
            cost / length.max(1e-6)
        };
        self.rate = Some(rate);
        let work = usage.work.saturating_sub(self.worked).as_secs_f64();
        self.worked = usage.work;
        // Most of the first one's was to get to know the process.
        if self.windows > 1 {
            self.work_of_a_window = Some(
                self.work_of_a_window
                    .map_or(work, |before| (before + work) / 2.0),
            );
        }
        match reason {
            Close::HardStop => {
                self.hard_stops = self.hard_stops.saturating_add(1);
                self.shrink = (self.shrink / 2.0).max(1.0 / 64.0);
            }
            Close::Planned | Close::OverBudget => self.shrink = (self.shrink * 1.5).min(1.0),
        }
        if self.mode == Mode::Exact {
            self.mode = Mode::Sampled;
            self.cheap = 0;
            self.switched = Some((usage.at, reason));
        } else {
            self.rise(rate, usage.at);
        }
        self.plan(rate, ending, usage.at);
    }

    /// Goes back to all calls where they have fitted the budget for some windows.
    fn rise(&mut self, rate: f64, at: Duration) {
        let allowed = self.second();
        if rate > COMFORT * allowed {
            self.cheap = 0;
            return;
        }
        self.cheap = self.cheap.saturating_add(1);
        if self.limits.choice == Choice::Auto && self.cheap >= CHEAP_WINDOWS {
            self.mode = Mode::Exact;
            self.switched = Some((at, Close::Planned));
        }
    }

    /// Length and time of the next window, when a second of tracing costs `rate` seconds and a window's end `ending`.
    fn plan(&mut self, rate: f64, ending: f64, at: Duration) {
        let second = self.second();
        let rate = rate.max(1e-9);
        let spare = (SHARED_CORES_FOR_WORK / self.peers as f64).min(LEAST_CORES_FOR_WORK);
        let may_work = WORK_PART * self.limits.budget * self.account.cores().max(spare);
        let worked = self.work_of_a_window.unwrap_or(0.0);
        let mut period = PERIOD_S.max(worked / may_work.max(1e-9));
        let length = if let Some(window) = self.limits.window {
            let length = window.as_secs_f64();
            period = period.max((rate * length + ending) / second);
            length
        } else {
            let most = ((MOST_OF_A_SECOND * second - ending) / rate * self.shrink)
                .max(SHORTEST.as_secs_f64());
            let wanted = (second * period - ending) / rate;
            let length = wanted
                .clamp(USEFUL.as_secs_f64(), LONGEST.as_secs_f64())
                .min(most);
            period = period.max((rate * length + ending) / second);
            length
        };
        self.length = seconds(length);
        // At random times, so that they keep no step with what the process does.
        let gap = (period - length).max(0.05) * (0.5 + self.random());
        self.next = if self.mode == Mode::Exact {
            at
        } else {
            at.saturating_add(seconds(gap.min(3600.0)))
        };
    }

    /// A number between 0 and 1.
    fn random(&mut self) -> f64 {
        // xorshift64* (Vigna 2016).
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The share of the time in which calls were seen.
    #[must_use]
    pub fn duty(&self, at: Duration) -> f64 {
        let open = self
            .open
            .map_or(Duration::ZERO, |open| at.saturating_sub(open.since.at));
        let whole = at.as_secs_f64();
        if whole > 0.0 {
            ((self.open_time + open).as_secs_f64() / whole).min(1.0)
        } else {
            1.0
        }
    }

    /// Windows opened so far.
    #[must_use]
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// Why the tier is what it is, for people, when so much was spent on it, and so much `besides` its probes.
    #[must_use]
    pub fn reason(&self, spent: Spent, besides: Duration) -> impl fmt::Display + '_ {
        Reason {
            controller: self,
            spent,
            besides,
        }
    }
}
