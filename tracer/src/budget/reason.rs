//! Why the tier is what it is, for people.

use std::{fmt, time::Duration};

use super::{Choice, Close, Controller, Mode, Spent, account::LEAST_CORES};
use crate::units::plural;

/// See [`Controller::reason`].
pub(super) struct Reason<'a> {
    pub(super) controller: &'a Controller,
    pub(super) spent: Spent,
    /// What was spent beside the probes: to watch objects of an interpreter.
    pub(super) besides: Duration,
}

/// A cost, percent of the processor time that the process itself takes: not of a processor, as the sign alone would be read.
fn of_its_time(percent: f64) -> String {
    if percent < 99.5 {
        format!("{percent:.0} % of its CPU time")
    } else if percent < 9_950.0 {
        format!("{:.1} times its CPU time", percent / 100.0)
    } else {
        format!("{:.0} times its CPU time", percent / 100.0)
    }
}

impl Reason<'_> {
    /// What every call costs, of a process of which all are seen. Nothing is said to cost less than the budget beside a figure that is more.
    fn say_cost(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = 100.0 * self.controller.limits.budget;
        let all = Spent {
            cost: self.spent.cost.saturating_add(self.besides),
            ..self.spent
        };
        let fraction = all.fraction();
        if fraction <= self.controller.limits.budget {
            return write!(formatter, "which costs less than the budget of {budget} %");
        }
        let why = if self.spent.fraction() <= self.controller.limits.budget {
            "to watch objects as they are made is in it"
        } else if self.controller.account.is_at_rest() {
            "it uses hardly any"
        } else {
            "too short to be paid back yet"
        };
        write!(
            formatter,
            "which took {:.1} % of its CPU time so far (budget {budget} %; {why})",
            100.0 * fraction
        )
    }

    /// What was spent on what, of a process that is seen in windows, where it is more than the budget.
    fn say_spent(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = self.spent.fraction();
        if fraction <= self.controller.limits.budget {
            return Ok(());
        }
        let first = self.controller.first_cost.unwrap_or(self.spent.cost);
        let of_first = fraction * (first.as_secs_f64() / self.spent.cost.as_secs_f64()).min(1.0);
        write!(
            formatter,
            "; the probes took {:.1} % of its CPU time so far: {:.1} % before the cost was known, {:.1} % in later windows",
            100.0 * fraction,
            100.0 * of_first,
            100.0 * (fraction - of_first)
        )?;
        // What is more than the budget and was spent later was spent on a process that has little to measure it by.
        if self.controller.account.is_at_rest() {
            write!(
                formatter,
                " (it uses hardly any: windows are measured by {} % of one CPU)",
                100.0 * LEAST_CORES
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = self.controller;
        let limits = &controller.limits;
        let budget = limits.budget * 100.0;
        let cores = controller.account.cores();
        // What is known of the last windows can be less than the budget; then it is no reason.
        let full = controller
            .rate
            .map(|rate| rate / cores.max(1e-6) * 100.0)
            .filter(|full| *full > budget);
        match (limits.choice, controller.mode) {
            (Choice::Exact, _) => write!(formatter, "every allocator call was seen, as asked for"),
            (_, Mode::Exact) => match controller.switched {
                None => {
                    write!(formatter, "every allocator call was seen, ")?;
                    self.say_cost(formatter)
                }
                Some((at, _)) => {
                    write!(
                        formatter,
                        "in windows until {:.1} s, since then every allocator call, ",
                        at.as_secs_f64()
                    )?;
                    self.say_cost(formatter)
                }
            },
            (choice, Mode::Sampled) => {
                write!(
                    formatter,
                    "{} window{}",
                    controller.windows,
                    plural(controller.windows.into())
                )?;
                match (choice, controller.switched) {
                    (Choice::Auto, Some((at, _))) => {
                        write!(formatter, " since {:.1} s", at.as_secs_f64())?;
                    }
                    _ => write!(formatter, ", as asked for")?,
                }
                if let Some(full) = full {
                    let full = of_its_time(full);
                    write!(
                        formatter,
                        "; tracing every call would take about {full} (budget {budget} %)"
                    )?;
                } else if let (Choice::Auto, Some((_, Close::HardStop))) =
                    (choice, controller.switched)
                {
                    write!(
                        formatter,
                        "; every call cost more than five times the budget of {budget} %"
                    )?;
                }
                if controller.hard_stops > 0 {
                    write!(
                        formatter,
                        ", {} cut off at five times the budget",
                        controller.hard_stops
                    )?;
                }
                self.say_spent(formatter)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::of_its_time;

    #[test]
    fn a_share_of_the_targets_own_time_was_read_as_one_of_a_processor() {
        assert_eq!(of_its_time(1074.0), "10.7 times its CPU time");
        assert_eq!(of_its_time(20.4), "20 % of its CPU time");
        assert_eq!(of_its_time(99.7), "1.0 times its CPU time");
        assert_eq!(of_its_time(31_415.0), "314 times its CPU time");
    }
}
