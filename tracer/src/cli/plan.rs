//! What is to be done, checked: arguments that contradict each other or cannot work are refused here, before anything is
//! loaded.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::args::{FormatChoice, TierChoice, TraceArguments};
use crate::{budget::Choice, kernel::ProbeOptions, session::SessionOptions, unwind::BuildOptions};

/// Room for rows of full unwind tables, which are some fifteen times the usual ones: 128 MiB.
const FULL_UNWIND_ROWS: u32 = 1 << 24;

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Running processes.
    Processes(Vec<u32>),
    /// A command: program and arguments.
    Command(OsString, Vec<OsString>),
}

/// A validated `trace`.
#[derive(Clone, Debug)]
pub(super) struct TracePlan {
    pub(super) target: Target,
    pub(super) duration: Option<Duration>,
    pub(super) every: Option<Duration>,
    pub(super) top: usize,
    pub(super) format: FormatChoice,
    pub(super) output: Option<PathBuf>,
    pub(super) session: SessionOptions,
}

impl TracePlan {
    /// Checks the arguments against each other.
    pub(super) fn new(raw: TraceArguments) -> anyhow::Result<Self> {
        let target = target(raw.pid, raw.command);
        let sizes = (raw.min_size.unwrap_or(0), raw.max_size.unwrap_or(u64::MAX));
        if sizes.0 > sizes.1 {
            usage(&format!(
                "--min-size {} is larger than --max-size {}: no allocation could pass",
                sizes.0, sizes.1
            ));
        }
        let tier = match raw.tier {
            TierChoice::Auto => Choice::Auto,
            TierChoice::Sampled => Choice::Sampled,
            TierChoice::Exact => Choice::Exact,
        };
        if tier == Choice::Exact && raw.window.is_some() {
            usage("--window has no meaning with --tier exact, which sees every call");
        }
        Ok(Self {
            target,
            duration: raw.duration,
            every: raw.every,
            top: raw.top,
            format: raw.format,
            output: raw.output,
            session: SessionOptions {
                probe: ProbeOptions {
                    live_blocks: raw.max_blocks,
                    stacks: raw.max_stacks,
                    sizes,
                    frame_pointers_only: raw.frame_pointers,
                    unwind_rows: if raw.full_unwind_tables {
                        FULL_UNWIND_ROWS
                    } else {
                        ProbeOptions::default().unwind_rows
                    },
                    links: raw.links.map(Into::into),
                    ..ProbeOptions::default()
                },
                unwind: BuildOptions {
                    full: raw.full_unwind_tables,
                    ..BuildOptions::default()
                },
                unwind_cache: raw.unwind_cache,
                min_age: raw.min_age.unwrap_or_default(),
                budget: raw.budget / 100.0,
                tier,
                window: raw.window,
            },
        })
    }
}

/// One kind of target; none is a usage error.
fn target(mut pids: Vec<u32>, command: Vec<OsString>) -> Target {
    let mut words = command.into_iter();
    if let Some(program) = words.next() {
        return Target::Command(program, words.collect());
    }
    if pids.is_empty() {
        usage("name what to trace: -p/--pid PID or -- COMMAND");
    }
    pids.sort_unstable();
    pids.dedup();
    Target::Processes(pids)
}

/// Ends with a usage error, as clap does.
fn usage(message: &str) -> ! {
    use clap::CommandFactory as _;
    let mut command = super::args::Arguments::command();
    command.build();
    command
        .find_subcommand_mut("trace")
        .cloned()
        .unwrap_or(command)
        .error(clap::error::ErrorKind::MissingRequiredArgument, message)
        .exit()
}
