//! `leakscope trace`: follow the target, wait, show.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    output::{Output, complain},
    plan::{Target, TracePlan},
    progress::ProgressLine,
    stop::Stop,
};
use crate::{
    kernel::{
        HeldCommand, KernelError, RunningCommand, require_address_space, require_capabilities,
        require_pids_of_the_machine,
    },
    report::Report,
    session::{Session, SessionOptions, TraceError, check_target},
};

/// How long a command's process may take to be reaped after its pidfd said that it ended.
const REAP_WITHIN: Duration = Duration::from_secs(1);

/// The exit status with `--fail-on-leak` where something leaks.
const LEAKING: u8 = 3;

/// The exit status with `--fail-on-leak` where nothing could be judged.
const UNJUDGED: u8 = 4;

/// What is added to the number of the signal that ended a command, as shells do.
const BY_SIGNAL: i32 = 128;

/// Runs the plan.
pub(super) fn run(plan: &TracePlan) -> anyhow::Result<ExitCode> {
    let mut child = None;
    let traced = trace(plan, &mut child);
    let status = child
        .as_mut()
        .and_then(|(child, is_over)| reap(child, *is_over));
    match traced {
        // What it was has been said.
        Ok((_, true)) => Ok(ExitCode::FAILURE),
        Ok((report, false)) => Ok(ExitCode::from(code(plan.fail_on_leak, &report, status))),
        // Whose status the 1 is has to be said.
        Err(error) if child.is_some() => Err(error.context(match status {
            Some(status) => format!("leakscope itself failed; the command ended with {status}"),
            None => "leakscope itself failed; the command goes on".to_owned(),
        })),
        Err(error) => Err(error),
    }
}

/// The exit status. `status`: how the command ended, if there was one and it did.
fn code(fail_on_leak: bool, report: &Report, status: Option<ExitStatus>) -> u8 {
    let own = status.map_or(0, |status| {
        let code = status
            .code()
            .or_else(|| Some(BY_SIGNAL + status.signal()?))
            .unwrap_or(1);
        u8::try_from(code).unwrap_or(u8::MAX)
    });
    if !fail_on_leak {
        return own;
    }
    if report.leaks() {
        return LEAKING;
    }
    match report.unjudged() {
        Some(why) => {
            complain(&format!("leakscope: nothing could be judged: {why}"));
            // A command that failed by itself says more.
            if own == 0 { UNJUDGED } else { own }
        }
        None => own,
    }
}

/// Traces, and writes the result; with whether our own code failed at some of it. `child` is the command, where there is one, and whether it is over with all of its children.
fn trace(
    plan: &TracePlan,
    child: &mut Option<(RunningCommand, bool)>,
) -> anyhow::Result<(Report, bool)> {
    require_pids_of_the_machine()?;
    require_capabilities()?;
    require_address_space()?;
    let mut output = Output::open(plan.output.as_deref(), plan.format)?.with_view(plan.view);
    let stop = Stop::listen()?;
    let mut session = match &plan.target {
        Target::Running { .. } => begin(&plan.target, plan.session.clone())?,
        Target::Command(program, arguments, children) => {
            let mut session = Session::new(plan.session.clone())?;
            let mut command = Command::new(program);
            command.args(arguments);
            let name = program.to_string_lossy();
            let failed = || format!("cannot run {name}");
            let held = HeldCommand::start(command).with_context(failed)?;
            session.follow_command(held.pid(), *children)?;
            // The child stops at its exec, which is dealt with in `watch`.
            *child = Some((held.release().with_context(failed)?, false));
            session
        }
    };
    let result = watch(plan, &mut session, &stop, &mut output);
    if let Some((_, is_over)) = child {
        *is_over = session.running() == 0;
    }
    result?;
    if plan.session.at_exit && session.running() > 0 {
        complain(
            "leakscope: the command has not ended: what it loses is seen where it ends, so that was not looked at; give it longer (--for)",
        );
    }
    let report = session.last_report(plan.top)?;
    let failed = report_faults(&session, 0) > 0;
    if output.is_regular_file() {
        // Nobody can make us wait: the result first, then the probes, which take some 300 ms.
        let written = output.write(&report);
        session.detach_all();
        return written.map(|()| (report, failed));
    }
    // Before the result is written: whoever reads it may take their time, and the target would be trapped meanwhile. And to the
    // end: a kill in the middle, such as a second Ctrl-C, can leave a breakpoint behind.
    session.detach_all();
    output.write(&report).map(|()| (report, failed))
}

/// Begins to trace processes that run. One that cannot be traced is said, and the others are, if there are any.
pub(super) fn begin(target: &Target, options: SessionOptions) -> anyhow::Result<Session> {
    let Target::Running { pids, selector } = target else {
        return Ok(Session::new(options)?);
    };
    let mut refused = Vec::new();
    // Wrong ids are said before the kernel is asked for anything.
    let mut wanted = Vec::new();
    for pid in pids {
        match check_target(*pid) {
            Ok(()) => wanted.push(*pid),
            Err(error) => refused.push(error),
        }
    }
    if wanted.is_empty() && selector.is_none() {
        return none_traced(&refused);
    }
    let mut session = Session::new(options)?;
    if let Some(selector) = selector {
        let found = session.select(selector.clone())?;
        if found == 0 && wanted.is_empty() && !selector.is_all() {
            complain(&format!(
                "leakscope: no process matches yet ({selector}); waiting until one starts"
            ));
        }
    }
    let mut followed = 0;
    for pid in wanted {
        match session.follow(pid) {
            Ok(()) => followed += 1,
            // It would be the same for any process.
            Err(TraceError::Kernel(error)) if !matches!(error, KernelError::Attach { .. }) => {
                return Err(error.into());
            }
            Err(error) => refused.push(error),
        }
    }
    if followed == 0 && selector.is_none() {
        return none_traced(&refused);
    }
    for error in refused {
        complain(&format!("leakscope: {error}; the others are traced"));
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

/// The error of processes none of which can be traced.
fn none_traced<T>(refused: &[TraceError]) -> anyhow::Result<T> {
    let said: Vec<String> = refused.iter().map(ToString::to_string).collect();
    bail!("{}", said.join("\nleakscope: "))
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

/// How a command has ended; `None` if it still runs, which it does without us. `is_over`: the kernel said that it ended.
fn reap(child: &mut RunningCommand, is_over: bool) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if is_over && begun.elapsed() < REAP_WITHIN => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}
