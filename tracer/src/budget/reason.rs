//! Why the tier is what it is, for people.

use std::fmt;

use super::{Choice, Close, Controller, Mode};
use crate::units::plural;

/// See [`Controller::reason`].
pub(super) struct Reason<'a>(pub(super) &'a Controller);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = self.0;
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
                None => write!(
                    formatter,
                    "every allocator call was seen: that costs less than the budget of {budget} %"
                ),
                Some((at, _)) => write!(
                    formatter,
                    "every allocator call since {:.1} s, which costs less than the budget of {budget} % again; in windows before",
                    at.as_secs_f64()
                ),
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
                    write!(
                        formatter,
                        "; tracing every call would cost about {full:.0} % CPU (budget {budget} %)"
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
                Ok(())
            }
        }
    }
}
