//! The command line of what asks a daemon.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    super::values::{duration, top},
    FilterArguments, FormatChoice, ViewArguments,
};

/// Which daemon is asked.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct PlaceArguments {
    /// The daemon's Unix socket.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "url",
        help_heading = "Daemon",
        global = true
    )]
    pub(in crate::cli) socket: Option<PathBuf>,
    /// The daemon's address, such as http://127.0.0.1:7117 or localhost:7117.
    #[arg(long, value_name = "URL", help_heading = "Daemon", global = true)]
    pub(in crate::cli) url: Option<String>,
    /// File with the token to send to the daemon.
    #[arg(
        long,
        value_name = "FILE",
        requires = "url",
        help_heading = "Daemon",
        global = true
    )]
    pub(in crate::cli) auth_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope dump                             the largest call stacks, for people
  leakscope dump -p 1234 --format html -o leaks.html
  leakscope dump --snapshot monday           keep what there is under a name
  leakscope dump --base monday               what has grown since then
  leakscope dump --base monday --new friday  what had grown by then

A difference shows growth and shrinkage by call stack.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(in crate::cli) struct DumpArguments {
    #[command(flatten)]
    pub(in crate::cli) only: FilterArguments,
    #[command(flatten)]
    pub(in crate::cli) daemon: PlaceArguments,
    /// Show at most N call stacks and a total for the rest; by default 20 in text, JSON and HTML, else all.
    #[arg(long, value_name = "N", value_parser = top, allow_negative_numbers = true)]
    pub(in crate::cli) top: Option<usize>,
    /// Show what changed since a snapshot.
    #[arg(long, value_name = "SNAPSHOT")]
    pub(in crate::cli) base: Option<String>,
    /// Up to another snapshot, not to now.
    #[arg(long, value_name = "SNAPSHOT", requires = "base")]
    pub(in crate::cli) new: Option<String>,
    /// Show what changes during this time, in whole seconds.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, conflicts_with = "base", allow_hyphen_values = true)]
    pub(in crate::cli) duration: Option<Duration>,
    /// Have the daemon store a snapshot under this name; print nothing.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["base", "new", "duration", "top", "format", "output", "pid", "comm", "cgroup", "all"])]
    pub(in crate::cli) snapshot: Option<String>,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    pub(in crate::cli) format: FormatChoice,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) output: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) view: ViewArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope snapshot save monday
  leakscope snapshot list
  leakscope dump --base monday               what has grown since then
  leakscope dump --base monday --new friday  what had grown by then
  leakscope snapshot rm monday

Snapshots are kept in the daemon's memory, and are gone when it ends. `leakscope dump --snapshot NAME` saves one, too.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(in crate::cli) struct SnapshotArguments {
    #[command(subcommand)]
    pub(in crate::cli) what: SnapshotCommand,
    #[command(flatten)]
    pub(in crate::cli) daemon: PlaceArguments,
}

/// What is done with snapshots.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SnapshotCommand {
    /// List those that are kept.
    List {
        /// As the JSON that the daemon answers.
        #[arg(long)]
        json: bool,
    },
    /// Keep what there is now under a name.
    Save {
        /// Letters, digits, dots, dashes and underscores.
        name: String,
    },
    /// Delete one.
    Rm {
        /// Its name.
        name: String,
    },
}
