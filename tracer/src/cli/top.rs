//! `leakscope top`: the live screen of a trace of its own, or of what a daemon traces.

use std::{
    io::{IsTerminal as _, stdout},
    os::unix::net::UnixStream,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};

use super::{
    args::{TargetArguments, TopArguments},
    daemon::Traced,
    dump::{Place, ask, authority, selection},
    output::{hold_complaints, is_dumb_terminal, let_complaints_go, stdout_takes_color},
    places::daemon_socket,
    plan::{Target, TopPlan},
    trace::begin,
};
use crate::{
    daemon::{Source, Watched, read_token},
    kernel::{
        HeldCommand, RunningCommand, require_address_space, require_capabilities,
        require_pids_of_the_machine, thread_cpu_time,
    },
    report::Report,
    screen::{Feed, Messages, Options, Trouble, run as show},
    session::{Session, SessionOptions},
};

/// Sites that a daemon is asked for, leaking ones first: some 2 MB, which take a hundredth of a second to read. What is not among them is
/// said, and `-p` asks for the sites of a process alone.
const SITES: u32 = 1000;

/// Opens the screen.
pub(super) fn run(raw: TopArguments) -> anyhow::Result<ExitCode> {
    if !stdout().is_terminal() {
        bail!(
            "top needs a terminal, and stdout is none; `leakscope trace` and `leakscope dump` write to files and pipes"
        );
    }
    if is_dumb_terminal() {
        bail!(
            "top needs a terminal that can move its cursor, and TERM is dumb; use `leakscope trace --every 10s`"
        );
    }
    let mut options = Options {
        source: String::new(),
        every: raw.every,
        color: stdout_takes_color(),
        is_single: raw.target.pid.len() == 1
            && raw.target.comm.is_empty()
            && raw.target.cgroup.is_empty(),
    };
    // One thread is enough: it waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let messages = Messages::default();
    let socket = raw.socket.clone().or_else(|| {
        // Who names nothing is shown what the machine's daemon traces, where there is one.
        let socket = daemon_socket();
        let is_named = raw.url.is_some() || raw.asks_for_a_trace();
        (!is_named && UnixStream::connect(&socket).is_ok()).then_some(socket)
    });
    let place = match (&raw.url, socket) {
        (Some(url), _) => Some(Place::Tcp(authority(url)?)),
        (None, socket) => socket.map(Place::Socket),
    };
    if let Some(place) = place {
        options.source = place.to_string();
        let token = raw.auth_token_file.as_deref().map(read_token).transpose()?;
        let asked = Asked::new(place, token, &raw.target);
        // What is wrong with it is said before the screen is opened.
        let first = runtime.block_on(asked.report())?.0;
        hold_complaints(&messages);
        let shown = show(options, asked, runtime, &messages, Some(first));
        let_complaints_go();
        return shown.map(|()| ExitCode::SUCCESS);
    }
    let plan = TopPlan::new(raw)?;
    require_pids_of_the_machine()?;
    require_capabilities()?;
    require_address_space()?;
    options.source = plan.describe();
    let make = move || OwnTrace::begin(&plan.target, plan.session);
    hold_complaints(&messages);
    let shown = runtime
        .block_on(Watched::start(make))
        .and_then(|watched| show(options, Own(watched), runtime, &messages, None));
    let_complaints_go();
    shown.map(|()| ExitCode::SUCCESS)
}

/// A daemon that is asked.
struct Asked {
    place: Place,
    path: String,
    token: Option<String>,
}

impl Asked {
    fn new(place: Place, token: Option<String>, only: &TargetArguments) -> Self {
        let mut query = vec!["format=json".to_owned(), format!("top={SITES}")];
        query.extend(selection(&only.pid, &only.comm, &only.cgroup));
        Self {
            place,
            path: format!("/api/v1/report?{}", query.join("&")),
            token,
        }
    }

    /// A report, and the processor time that it took to read.
    async fn report(&self) -> anyhow::Result<(Arc<Report>, Duration)> {
        let token = self.token.as_deref();
        let begun = thread_cpu_time();
        let body = ask(&self.place, Method::GET, &self.path, token, Duration::ZERO).await?;
        let report = Report::from_json(&body).context("reading what the daemon answers")?;
        let took = thread_cpu_time().saturating_sub(begun);
        Ok((Arc::new(report), took))
    }
}

impl Feed for Asked {
    async fn next(&mut self) -> Result<(Arc<Report>, Duration), Trouble> {
        // It may come back.
        self.report().await.map_err(Trouble::Passing)
    }

    async fn end(self) {}
}

/// A trace of ours.
struct Own(Watched);

impl Feed for Own {
    async fn next(&mut self) -> Result<(Arc<Report>, Duration), Trouble> {
        self.0.report().await.map_err(Trouble::Final)
    }

    async fn end(mut self) {
        self.0.end();
    }
}

/// A trace, with the command that was started for it.
struct OwnTrace {
    traced: Traced,
    command: Option<(u32, RunningCommand)>,
}

impl OwnTrace {
    fn begin(target: &Target, options: SessionOptions) -> anyhow::Result<Self> {
        let Target::Command(program, arguments, children) = target else {
            return Ok(Self {
                traced: Traced::of(begin(target, options)?),
                command: None,
            });
        };
        let mut session = Session::new(options)?;
        let mut command = Command::new(program);
        // The screen has the terminal.
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let failed = || format!("cannot run {}", program.to_string_lossy());
        let held = HeldCommand::start(command).with_context(failed)?;
        let pid = held.pid();
        session.follow_command(pid, *children)?;
        let running = held.release().with_context(failed)?;
        Ok(Self {
            traced: Traced::of(session),
            command: Some((pid, running)),
        })
    }
}

impl Source for OwnTrace {
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()> {
        self.traced.step(at_most)
    }

    fn report(&mut self) -> anyhow::Result<Report> {
        self.traced.report()
    }

    fn select_again(&mut self) -> anyhow::Result<()> {
        self.traced.select_again()
    }

    fn detach(&mut self) {
        self.traced.detach();
        if let Some((pid, running)) = &mut self.command
            && matches!(running.try_wait(), Ok(None))
            && let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw)
        {
            // It may end just now.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn wake_by(&mut self, wake: UnixStream) {
        self.traced.wake_by(wake);
    }
}
