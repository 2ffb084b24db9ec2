//! `leakscope daemon`: a trace that goes on, for whoever asks.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use super::{
    output::complain,
    plan::{DaemonPlan, Target},
    trace::begin,
};
use crate::{
    daemon::{self, Source},
    kernel::require_capabilities,
    report::{Report, Suppressions},
    session::Session,
};

/// A running trace and what it is of.
struct Traced {
    session: Session,
    target: Target,
    suppress: Option<PathBuf>,
}

impl Source for Traced {
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()> {
        Ok(self.session.step(at_most)?)
    }

    fn report(&mut self) -> anyhow::Result<Report> {
        Ok(self.session.report(usize::MAX)?)
    }

    fn select_again(&mut self) -> anyhow::Result<()> {
        if let Some(path) = &self.suppress {
            // A mistake in the file does not end a trace that goes on: the old ones stay.
            match Suppressions::read(path) {
                Ok(suppressions) => self.session.suppress(suppressions),
                Err(error) => complain(&format!("leakscope: {error}")),
            }
        }
        if let Target::Selected(selector) = &self.target {
            self.session.select(selector.clone())?;
        }
        Ok(())
    }

    fn detach(&mut self) {
        self.session.detach_all();
    }
}

/// Runs the plan.
pub(super) fn run(plan: DaemonPlan) -> anyhow::Result<ExitCode> {
    require_capabilities()?;
    let DaemonPlan {
        target,
        daemon: options,
        suppress,
        session,
    } = plan;
    let make = move || {
        Ok(Traced {
            session: begin(&target, session)?,
            target,
            suppress,
        })
    };
    daemon::block_on(daemon::run(&options, make, |line| {
        complain(&format!("leakscope: {line}"));
    }))?;
    Ok(ExitCode::SUCCESS)
}
