//! What the process has paid in and what the traps have taken out.

use std::{collections::VecDeque, time::Duration};

use super::{Beginning, Usage};

/// A process that uses less than this share of a core is treated as if it used that: a hundredth of it is 50 us a second.
pub(super) const LEAST_CORES: f64 = 0.005;

/// So much can be saved up, in budgets of one second.
const SAVINGS: f64 = 4.0;

/// The time over which the hard stop looks.
const SECOND: Duration = Duration::from_secs(1);

/// The balance, seconds of processor time.
#[derive(Clone, Debug)]
pub(super) struct Account {
    budget: f64,
    /// The first allowance, in budgets of one second: what it takes to find out what calls cost.
    allowance: f64,
    balance: f64,
    began: bool,
    last: Usage,
    /// Samples of the last second, and one from before it.
    recent: VecDeque<Usage>,
    /// Cores that the process uses by itself, smoothed over some seconds.
    cores: Option<f64>,
}

impl Account {
    pub(super) fn new(budget: f64, beginning: Beginning) -> Self {
        Self {
            budget,
            allowance: match beginning {
                Beginning::Command => 5.0,
                Beginning::Named => 1.0,
                Beginning::OfMany => 0.2,
            },
            balance: 0.0,
            began: false,
            last: Usage::default(),
            recent: VecDeque::new(),
            cores: None,
        }
    }

    /// Takes in newer figures.
    pub(super) fn note(&mut self, usage: Usage) {
        // What samples of a window cost is known sooner than what it is closed with.
        let usage = Usage {
            cost: usage.cost.max(self.last.cost),
            ..usage
        };
        let elapsed = usage.at.saturating_sub(self.last.at).as_secs_f64();
        let cost = usage.cost.saturating_sub(self.last.cost).as_secs_f64();
        // It ran at least for as long as it was trapped, even if its clock, which may go on by ticks, has not moved.
        let cpu = usage
            .cpu
            .saturating_sub(self.last.cpu)
            .as_secs_f64()
            .max(cost);
        if self.recent.back().is_none_or(|last| last.at < usage.at) {
            self.recent.push_back(usage);
        }
        while self
            .recent
            .get(1)
            .is_some_and(|second| usage.at.saturating_sub(second.at) >= SECOND)
        {
            self.recent.pop_front();
        }
        if elapsed > 0.0 {
            // What the traps took was not the process's own; but while it is trapped all the time, little else is left to see.
            let own = (cpu - cost).max(cpu * 0.25);
            let weight = 1.0 - (-elapsed / 2.0).exp();
            self.cores = Some(match self.cores {
                // Nothing is known of the time before the first look.
                None => cpu / elapsed,
                // What it does while it is being traced says less.
                Some(before) if cost > 0.2 * cpu => {
                    before + (cpu / elapsed - before) * weight * 0.2
                }
                Some(before) => before + (own / elapsed - before) * weight,
            });
        }
        if !self.began && self.cores.is_some() {
            self.began = true;
            self.balance += self.allowance * self.budget * self.cores();
        }
        self.balance += self.budget * (cpu - cost).max(LEAST_CORES * elapsed).max(0.0) - cost;
        let most = SAVINGS.max(self.allowance) * self.budget * self.cores();
        self.balance = self.balance.min(most);
        self.last = usage;
    }

    /// What may still be taken; negative: what is owed. Seconds.
    pub(super) fn balance(&self) -> f64 {
        // Until a first stretch of time has been seen, the allowance of a process at rest.
        if self.began {
            self.balance
        } else {
            self.allowance * self.budget * LEAST_CORES
        }
    }

    /// Cores that the process uses by itself.
    pub(super) fn cores(&self) -> f64 {
        self.cores.unwrap_or(LEAST_CORES).max(LEAST_CORES)
    }

    /// Whether it uses so little that more than its budget is granted.
    pub(super) fn is_at_rest(&self) -> bool {
        self.cores.is_some_and(|cores| cores < LEAST_CORES)
    }

    /// What the traps took in the last second, in budgets of one second.
    pub(super) fn last_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.recent.front(), self.recent.back()) else {
            return 0.0;
        };
        let cost = last.cost.saturating_sub(first.cost).as_secs_f64();
        cost / (self.budget * self.cores()).max(1e-9)
    }

    /// Seconds that the traps took in each second, over the last one.
    pub(super) fn recent_rate(&self) -> Option<f64> {
        let (first, last) = (self.recent.front()?, self.recent.back()?);
        let elapsed = last.at.saturating_sub(first.at).as_secs_f64();
        (elapsed > 0.0).then(|| last.cost.saturating_sub(first.cost).as_secs_f64() / elapsed)
    }
}
