//! Why the tier is what it is, for people.

use std::fmt;

use super::{Choice, Close, Controller, Mode};

/// See [`Controller::reason`].
pub(super) struct Reason<'a>(pub(super) &'a Controller);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = self.0;
        let limits = &controller.limits;
        let budget = limits.budget * 100.0;
        let cores = controller.account.cores();
        let full = controller.rate.map(|rate| rate / cores.max(1e-6) * 100.0);
        match (limits.choice, controller.mode) {
            (Choice::Exact, _) => write!(formatter, "every allocator call was seen, as asked for"),
            (_, Mode::Exact) => match controller.switched {
                None => write!(
                    formatter,
                    "every allocator call was seen: that costs less than the budget of {budget} %"
                ),
                Some((at, _)) => write!(
                    formatter,
                    "every allocator call has been seen since {:.1} s, for that costs less than the budget of {budget} % again; before that, calls were seen in windows",
                    at.as_secs_f64()
                ),
            },
            (choice, Mode::Sampled) => {
                match (choice, controller.switched) {
                    (Choice::Auto, Some((at, reason))) => {
                        let why = if reason == Close::HardStop {
                            "they had cost more than five times the budget within a second"
                        } else {
                            "all of them would cost more than the budget"
                        };
                        write!(
                            formatter,
                            "calls have been seen in windows since {:.1} s: {why}",
                            at.as_secs_f64()
                        )?;
                    }
                    _ => write!(formatter, "calls were seen in windows, as asked for")?,
                }
                if let Some(full) = full {
                    write!(
                        formatter,
                        " (all calls: {full:.0} % of the process's CPU time; budget {budget} %)"
                    )?;
                }
                write!(formatter, "; {} windows", controller.windows)?;
                if controller.hard_stops > 0 {
                    write!(
                        formatter,
                        ", {} cut off at five times the budget",
                        controller.hard_stops
                    )?;
                }
                Ok(())
            }
        }
    }
}
