//! What is to be done, checked: arguments that contradict each other or cannot work are refused here, before anything is
//! loaded.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use super::args::{
    DaemonArguments, FormatChoice, TargetArguments, TierChoice, TopArguments, TraceArguments,
    TracingArguments, ViewArguments,
};
use super::places::{debuginfod, default_socket, unwind_cache};
use crate::{
    budget::Choice,
    daemon::DaemonOptions,
    kernel::ProbeOptions,
    process::select::{CgroupPath, Excluded, Selector},
    report::Suppressions,
    session::SessionOptions,
    unwind::{BuildOptions, Kept},
};

/// Room for rows of full unwind tables, which are some fifteen times the usual ones: 128 MiB.
const FULL_UNWIND_ROWS: u32 = 1 << 24;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Processes that run, by id, and those that a selector wants, which may start later: one of the two at least.
    Running {
        pids: Vec<u32>,
        selector: Option<Selector>,
    },
    /// A command: program and arguments, and whether its children are traced too.
    Command(OsString, Vec<OsString>, bool),
}

impl Target {
    /// Every process that is not excluded.
    fn all(excluded: Option<Excluded>) -> Self {
        Self::Running {
            pids: Vec::new(),
            selector: Some(Selector::all().without(excluded)),
        }
    }

    /// Whether it is the machine.
    fn is_all(&self) -> bool {
        let Self::Running { selector, .. } = self else {
            return false;
        };
        selector.as_ref().is_some_and(Selector::is_all)
    }
}

/// A validated `trace`.
#[derive(Clone, Debug)]
pub(super) struct TracePlan {
    pub(super) target: Target,
    pub(super) duration: Option<Duration>,
    pub(super) every: Option<Duration>,
    pub(super) top: usize,
    pub(super) view: ViewArguments,
    pub(super) format: FormatChoice,
    pub(super) output: Option<PathBuf>,
    pub(super) fail_on_leak: bool,
    pub(super) session: SessionOptions,
}

impl TracePlan {
    /// Checks the arguments against each other.
    pub(super) fn new(raw: TraceArguments) -> anyhow::Result<Self> {
        let target = match command(raw.command, !raw.no_follow) {
            Some(command) => command,
            None => running(raw.target)?.unwrap_or_else(|| {
                usage("trace", "name what to trace: -p/--pid PID, --comm GLOB, --cgroup PATH, --all or -- COMMAND")
            }),
        };
        let mut session = session(&raw.tracing, "trace")?;
        session.kernel |= target.is_all();
        let is_command = matches!(target, Target::Command(..));
        match raw.tracing.tier {
            TierChoice::Growth | TierChoice::Sampled if raw.at_exit => usage(
                "trace",
                "--at-exit needs --tier exact: who allocated a lost block is known where every call is seen",
            ),
            _ if raw.at_exit && !is_command => usage(
                "trace",
                "--at-exit needs a command (-- COMMAND ARGS...): it is held where it is about to end",
            ),
            TierChoice::Auto | TierChoice::Exact => {
                session.at_exit = is_command && (raw.at_exit || raw.fail_on_leak);
            }
            TierChoice::Growth | TierChoice::Sampled => {}
        }
        if session.at_exit {
            session.tier = Choice::Exact;
            session.probe.ends = true;
            if session.window.is_some() {
                usage(
                    "trace",
                    "--window has no meaning with --at-exit, which sees every call",
                );
            }
        }
        Ok(Self {
            target,
            duration: raw.duration,
            every: raw.every,
            // For programs as many as for people, unless more are asked for.
            top: raw.view.top(raw.top, FormatChoice::Text),
            view: raw.view,
            format: raw.format,
            output: raw.output,
            fail_on_leak: raw.fail_on_leak,
            session,
        })
    }
}

/// How to trace, checked.
fn session(raw: &TracingArguments, subcommand: &str) -> anyhow::Result<SessionOptions> {
    let sizes = (raw.min_size.unwrap_or(0), raw.max_size.unwrap_or(u64::MAX));
    if sizes.0 > sizes.1 {
        usage(
            subcommand,
            &format!(
                "--min-size {} is larger than --max-size {}: no allocation could pass",
                sizes.0, sizes.1
            ),
        );
    }
    let tier = match raw.tier {
        TierChoice::Auto => Choice::Auto,
        TierChoice::Sampled => Choice::Sampled,
        TierChoice::Exact | TierChoice::Growth => Choice::Exact,
    };
    if tier == Choice::Exact && raw.window.is_some() {
        usage(
            subcommand,
            "--window has no meaning with --tier exact, which sees every call",
        );
    }
    let page_faults = raw.tier == TierChoice::Growth;
    Ok(SessionOptions {
        probe: ProbeOptions {
            live_blocks: raw.max_blocks,
            stacks: raw.max_stacks,
            event_bytes: raw.event_bytes,
            sizes,
            frame_pointers_only: raw.frame_pointers,
            unwind_rows: if raw.full_unwind_tables {
                FULL_UNWIND_ROWS
            } else {
                ProbeOptions::default().unwind_rows
            },
            links: raw.links.map(Into::into),
            mapping_steps: true,
            page_faults,
            ..ProbeOptions::default()
        },
        unwind: BuildOptions {
            kept: if raw.full_unwind_tables {
                Kept::All
            } else if page_faults {
                Kept::Writes
            } else {
                Kept::Calls
            },
            ..BuildOptions::default()
        },
        unwind_cache: unwind_cache(raw.unwind_cache.as_deref())?,
        min_age: raw.min_age.unwrap_or_default(),
        budget: raw.budget / 100.0,
        tier,
        mappings_only: raw.tier == TierChoice::Growth,
        at_exit: false,
        native: raw.native,
        debuginfod: debuginfod(),
        kernel: raw.kernel,
        window: raw.window,
        suppressions: raw
            .suppress
            .as_deref()
            .map(Suppressions::read)
            .transpose()?
            .unwrap_or_default(),
    })
}

/// A validated `daemon`.
#[derive(Clone, Debug)]
pub(super) struct DaemonPlan {
    pub(super) target: Target,
    pub(super) daemon: DaemonOptions,
    /// What the target was made of, to be looked at again.
    pub(super) again: TargetArguments,
    /// The file of suppressions, to be read again.
    pub(super) suppress: Option<PathBuf>,
    pub(super) session: SessionOptions,
}

impl DaemonPlan {
    /// Checks the arguments against each other.
    pub(super) fn new(raw: DaemonArguments) -> anyhow::Result<Self> {
        let again = raw.target.clone();
        Ok(Self {
            target: running_or_all(raw.target)?,
            again,
            daemon: DaemonOptions {
                socket: raw.socket.unwrap_or_else(default_socket),
                listen: raw.listen,
                token_file: raw.auth_token_file,
            },
            suppress: raw.tracing.suppress.clone(),
            session: SessionOptions {
                kernel: true,
                ..session(&raw.tracing, "daemon")?
            },
        })
    }
}

/// A validated `top` of a trace of its own.
#[derive(Clone, Debug)]
pub(super) struct TopPlan {
    pub(super) target: Target,
    pub(super) session: SessionOptions,
}

impl TopPlan {
    /// Checks the arguments against each other.
    pub(super) fn new(raw: TopArguments) -> anyhow::Result<Self> {
        let target = match command(raw.command, !raw.no_follow) {
            Some(command) => command,
            None => running_or_all(raw.target)?,
        };
        let mut session = session(&raw.tracing, "top")?;
        session.kernel |= target.is_all();
        Ok(Self { target, session })
    }

    /// What is traced, for people.
    pub(super) fn describe(&self) -> String {
        match &self.target {
            Target::Command(program, ..) => program.to_string_lossy().into_owned(),
            Target::Running { pids, selector } => {
                let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
                let pids = (!pids.is_empty()).then(|| format!("pid {}", pids.join(", ")));
                let selector = selector.as_ref().map(|selector| {
                    if selector.is_all() {
                        "all processes".to_owned()
                    } else {
                        selector.to_string()
                    }
                });
                let said: Vec<String> = pids.into_iter().chain(selector).collect();
                said.join(", ")
            }
        }
    }
}

/// A command as a target.
fn command(words: Vec<OsString>, children: bool) -> Option<Target> {
    let mut words = words.into_iter();
    let program = words.next()?;
    Some(Target::Command(program, words.collect(), children))
}

/// Processes that run, and perhaps others that start later, as a target; `None` if nothing was named.
pub(super) fn running(raw: TargetArguments) -> anyhow::Result<Option<Target>> {
    let excluded = Excluded::read(&raw.exclude)?;
    if raw.all {
        return Ok(Some(Target::all(excluded)));
    }
    let mut pids = raw.pid;
    pids.sort_unstable();
    pids.dedup();
    let selector = if raw.comm.is_empty() && raw.cgroup.is_empty() {
        None
    } else {
        let groups = raw
            .cgroup
            .iter()
            .map(|path| CgroupPath::resolve(Path::new("/proc"), path))
            .collect::<Result<_, _>>()?;
        Some(Selector::new(&raw.comm, groups)?.without(excluded))
    };
    Ok((!pids.is_empty() || selector.is_some()).then_some(Target::Running { pids, selector }))
}

/// The same, and all processes if nothing was named.
pub(super) fn running_or_all(raw: TargetArguments) -> anyhow::Result<Target> {
    let excluded = Excluded::read(&raw.exclude)?;
    match running(raw)? {
        Some(target) => Ok(target),
        None => Ok(Target::all(excluded)),
    }
}

/// Ends with a usage error, as clap does.
fn usage(subcommand: &str, message: &str) -> ! {
    use clap::CommandFactory as _;
    let mut command = super::args::Arguments::command();
    command.build();
    command
        .find_subcommand_mut(subcommand)
        .cloned()
        .unwrap_or(command)
        .error(clap::error::ErrorKind::MissingRequiredArgument, message)
        .exit()
}
