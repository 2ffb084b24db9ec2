//! What was asked for, and what a process has used: the figures that the budget is reckoned with.

use std::time::Duration;

/// How allocations are to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// All of them while that fits the budget, else in windows.
    #[default]
    Auto,
    /// In windows, as the budget allows.
    Sampled,
    /// All of them, whatever it costs.
    Exact,
}

/// How a process came to be traced, which decides what its beginning is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It is a command that was started to be traced: much of it, and all of a short one, is to be seen.
    Command,
    /// It was asked for.
    Named,
    /// With the whole machine: many start and end, and what each is granted adds up.
    OfMany,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The tier.
    pub choice: Choice,
    /// The share of the process's own processor time that its traps may take.
    pub budget: f64,
    /// The length of every window; as the budget allows when `None`.
    pub window: Option<Duration>,
    /// What its beginning is granted.
    pub beginning: Beginning,
}

impl Limits {
    /// All calls are to be seen, whatever it costs.
    #[must_use]
    pub const fn exact() -> Self {
        Self {
            choice: Choice::Exact,
            budget: 1.0,
            window: None,
            beginning: Beginning::OfMany,
        }
    }
}

/// What a process has used by a time; all since the trace of it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// The time.
    pub at: Duration,
    /// Processor time, with what the traps took.
    pub cpu: Duration,
    /// What the traps took.
    pub cost: Duration,
    /// Our own processor time that went into the process's windows.
    pub work: Duration,
}

/// What tracing a process has taken until a report, and of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Processor time of the process since its trace began, with what tracing took.
    pub cpu: Duration,
    /// What tracing took of it.
    pub cost: Duration,
}

impl Spent {
    /// The part of the processor time that tracing took.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        // It ran at least for as long as it was trapped.
        let cpu = self.cpu.max(self.cost).as_secs_f64();
        if cpu > 0.0 {
            self.cost.as_secs_f64() / cpu
        } else {
            0.0
        }
    }

    /// With what another process took.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_add(other.cpu.max(other.cost)),
            cost: self.cost.saturating_add(other.cost),
        }
    }
}
