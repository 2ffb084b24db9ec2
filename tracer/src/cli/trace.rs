//! `leakscope trace`: follow the target, wait, show.

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    output::{Output, complain},
    plan::{Target, TracePlan},
    progress::ProgressLine,
    stop::Stop,
};
use crate::{
    kernel::{HeldCommand, RunningCommand, require_address_space, require_capabilities},
    session::{Session, SessionOptions},
};

/// How long a command's process may take to be reaped after its pidfd said that it ended.
const REAP_WITHIN: Duration = Duration::from_secs(1);

/// The exit status that `--fail-on-leak` asks for.
const LEAKING: u8 = 3;

/// Runs the plan.
pub(super) fn run(plan: &TracePlan) -> anyhow::Result<ExitCode> {
    require_capabilities()?;
    require_address_space()?;
    let mut output = Output::open(plan.output.as_deref(), plan.format)?;
    let stop = Stop::listen()?;
    let mut child = None;
    let mut session = match &plan.target {
        Target::Processes(_) | Target::Selected(_) => begin(&plan.target, plan.session.clone())?,
        Target::Command(program, arguments, children) => {
            let mut session = Session::new(plan.session.clone())?;
            let mut command = Command::new(program);
            command.args(arguments);
            let name = program.to_string_lossy();
            let failed = || format!("cannot run {name}");
            let held = HeldCommand::start(command).with_context(failed)?;
            session.follow_command(held.pid(), *children)?;
            // The child stops at its exec, which is dealt with in `watch`.
            child = Some(held.release().with_context(failed)?);
            session
        }
    };
    let result = watch(plan, &mut session, &stop, &mut output);
    if let Some(child) = &mut child
        && session.running() == 0
    {
        reap(child);
    }
    result?;
    let report = session.last_report(plan.top)?;
    let failed = report_faults(&session, 0) > 0;
    let code = if failed {
        ExitCode::FAILURE
    } else if plan.fail_on_leak && report.leaks() {
        ExitCode::from(LEAKING)
    } else {
        ExitCode::SUCCESS
    };
    if output.is_regular_file() {
        // Nobody can make us wait: the result first, then the probes, which take some 300 ms.
        let written = output.write(&report);
        session.detach_all();
        return written.map(|()| code);
    }
    // Before the result is written: whoever reads it may take their time, and the target would be trapped meanwhile. And to the
    // end: a kill in the middle, such as a second Ctrl-C, can leave a breakpoint behind.
    session.detach_all();
    output.write(&report).map(|()| code)
}

/// Begins to trace processes that run.
pub(super) fn begin(target: &Target, options: SessionOptions) -> anyhow::Result<Session> {
    if let Target::Processes(pids) = target {
        // Wrong ids are said before the kernel is asked for anything.
        for pid in pids {
            crate::session::check_target(*pid)?;
        }
    }
    let mut session = Session::new(options)?;
    match target {
        Target::Processes(pids) => {
            for pid in pids {
                session.follow(*pid)?;
            }
        }
        Target::Selected(selector) => {
            if session.select(selector.clone())? == 0 && !selector.is_all() {
                complain(&format!(
                    "leakscope: no process matches yet ({selector}); waiting until one starts"
                ));
            }
        }
        Target::Command(..) => {}
    }
    Ok(session)
}

/// Says what failed inside of leakscope but for the first so many that were said already; how many there are.
pub(super) fn report_faults(session: &Session, said: usize) -> usize {
    let faults = session.faults();
    for fault in faults.iter().skip(said) {
        complain(&format!("leakscope: {fault}"));
    }
    faults.len()
}

/// Lets the trace go on until its time is over, its targets have ended or somebody asks to stop.
fn watch(
    plan: &TracePlan,
    session: &mut Session,
    stop: &Stop,
    output: &mut Output,
) -> anyhow::Result<()> {
    let progress = ProgressLine::start(plan.duration);
    // Never, where the clock does not go so far.
    let end = plan
        .duration
        .and_then(|duration| session.started().checked_add(duration));
    let mut next_report = plan
        .every
        .and_then(|every| session.started().checked_add(every));
    while !stop.is_asked()
        && !session.has_failed()
        && (session.running() > 0 || session.selector().is_some())
    {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            break;
        }
        let mut wait = Duration::MAX;
        for at in [end, next_report].into_iter().flatten() {
            wait = wait.min(at.saturating_duration_since(now));
        }
        session.step(wait)?;
        progress.show(&session.progress());
        if let (Some(at), Some(every)) = (next_report, plan.every)
            && Instant::now() >= at
        {
            let report = session.report(plan.top)?;
            progress.hide(|| output.write(&report))?;
            next_report = at.checked_add(every);
        }
    }
    progress.finish();
    Ok(())
}

/// Reaps a command that has ended. One that still runs goes on without us.
fn reap(child: &mut RunningCommand) {
    let begun = Instant::now();
    while begun.elapsed() < REAP_WITHIN {
        match child.has_ended() {
            Ok(false) => std::thread::sleep(Duration::from_millis(1)),
            Ok(true) | Err(_) => return,
        }
    }
}
