//! `leakscope daemon`: a trace that goes on, for whoever asks.

use std::{os::unix::net::UnixStream, path::PathBuf, process::ExitCode, time::Duration};

use super::{
    args::TargetArguments,
    output::complain,
    plan::{DaemonPlan, Target, running_or_all},
    trace::{begin, report_faults},
};
use crate::{
    daemon::{self, Source},
    kernel::{require_address_space, require_capabilities, require_pids_of_the_machine},
    report::{Report, Suppressions},
    session::Session,
};

/// A running trace, and what it was asked for with.
pub(super) struct Traced {
    session: Session,
    again: TargetArguments,
    suppress: Option<PathBuf>,
    /// What failed inside of leakscope and was said.
    said: usize,
}

impl Traced {
    /// One that looks for nothing again.
    pub(super) fn of(session: Session) -> Self {
        Self {
            session,
            again: TargetArguments::default(),
            suppress: None,
            said: 0,
        }
    }

    fn report_faults(&mut self) {
        self.said = report_faults(&self.session, self.said);
    }
}

impl Source for Traced {
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()> {
        let stepped = self.session.step(at_most);
        self.report_faults();
        Ok(stepped?)
    }

    fn report(&mut self) -> anyhow::Result<Report> {
        let report = self.session.report(usize::MAX);
        self.report_faults();
        Ok(report?)
    }

    fn select_again(&mut self) -> anyhow::Result<()> {
        if let Some(path) = &self.suppress {
            // A mistake in the file does not end a trace that goes on: the old ones stay.
            match Suppressions::read(path) {
                Ok(suppressions) => self.session.suppress(suppressions),
                Err(error) => complain(&format!("leakscope: {error}")),
            }
        }
        // A control group may have been made anew since, or be gone.
        match running_or_all(self.again.clone()) {
            Ok(Target::Running {
                selector: Some(selector),
                ..
            }) => {
                self.session.select(selector)?;
            }
            Ok(Target::Running { selector: None, .. } | Target::Command(..)) => {}
            Err(error) => complain(&format!("leakscope: {error:#}")),
        }
        Ok(())
    }

    fn detach(&mut self) {
        self.session.detach_all();
    }

    fn wake_by(&mut self, wake: UnixStream) {
        if let Err(error) = self.session.wake_by(wake) {
            complain(&format!("leakscope: {error:#}; requests may wait a little"));
        }
    }
}

/// Runs the plan.
pub(super) fn run(plan: DaemonPlan) -> anyhow::Result<ExitCode> {
    require_pids_of_the_machine()?;
    require_capabilities()?;
    require_address_space()?;
    let DaemonPlan {
        target,
        again,
        daemon: options,
        suppress,
        session,
    } = plan;
    let make = move || {
        Ok(Traced {
            session: begin(&target, session)?,
            again,
            suppress,
            said: 0,
        })
    };
    daemon::block_on(daemon::run(&options, make, |line| {
        complain(&format!("leakscope: {line}"));
    }))?;
    Ok(ExitCode::SUCCESS)
}
