//! The command line as it is typed: names, help, and the form of each value. Whether the values make sense together
//! is the plan's to say.

mod asked;
mod heap;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(super) use self::{
    asked::{DumpArguments, PlaceArguments, SnapshotArguments, SnapshotCommand},
    heap::{HeapArguments, HeapBy, HeapFormat},
};
use super::values::{address, duration, percent, pid, size, top, whole};
use crate::{kernel::LinkMode, session::DEFAULT_BUDGET};

/// What `--version` prints: the version and where the BPF object came from.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nBPF object: sha256 ",
    env!("LEAKSCOPE_BPF_OBJECT_SHA256"),
    " (",
    env!("LEAKSCOPE_BPF_OBJECT_SOURCE"),
    ")\nbuilt by: ",
    env!("LEAKSCOPE_BPF_OBJECT_TOOLCHAIN"),
);

/// Finds memory leaks in programs that are already running: names the call stacks whose memory survives.
#[derive(Debug, Parser)]
#[command(name = "leakscope", version = VERSION, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The command line without what is hidden from its help: what completions and manual pages are made from.
pub(super) fn visible_command() -> clap::Command {
    let whole = Arguments::command();
    let mut visible = clap::Command::new("leakscope")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true);
    if let Some(about) = whole.get_about() {
        visible = visible.about(about.clone());
    }
    visible.subcommands(
        whole
            .get_subcommands()
            .filter(|subcommand| !subcommand.is_hide_set())
            .cloned(),
    )
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Trace processes and show which call stacks hold the memory.
    Trace(Box<TraceArguments>),
    /// Trace continuously and serve results over HTTP: pprof, flame graph, JSON, metrics.
    Daemon(Box<DaemonArguments>),
    /// Watch processes and their call stacks live, on the terminal.
    Top(Box<TopArguments>),
    /// Show what a running daemon has traced.
    Dump(DumpArguments),
    /// Keep what a running daemon has traced under a name, list and delete what was kept.
    Snapshot(SnapshotArguments),
    /// Show what changed between two saved reports or profiles.
    Diff(DiffArguments),
    /// Show a saved report or profile, in any format.
    Report(ReportArguments),
    /// Show what a live heap holds, without a probe: by type, what is unreachable, who holds it.
    Heap(HeapArguments),
    /// Check what this machine, this user and a process allow; exit with 1 if tracing cannot work.
    Doctor(DoctorArguments),
    /// Print a script that lets a shell complete subcommands and options.
    Completions(CompletionsArguments),
    /// Print the JSON Schema of reports.
    Schema,
    /// Write manual pages.
    #[command(hide = true)]
    Manual(ManualArguments),
    /// Attach programs that do nothing where `trace` would attach its own: the least that a uprobe tracer costs.
    #[command(hide = true)]
    Floor(FloorArguments),
    /// Watch over a command's processes until `trace` has ended.
    #[command(hide = true)]
    Guard,
    /// Read files of processes for the leakscope that started it.
    #[command(hide = true)]
    Reader {
        /// The memory that it may write to, bytes.
        memory: u64,
    },
}

/// How allocations are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TierChoice {
    /// Every allocator call while that fits the budget, else samples in time windows.
    Auto,
    /// Memory mappings and page faults only, no allocator calls.
    Growth,
    /// Allocator calls in time windows, as the budget allows; surviving memory is estimated.
    Sampled,
    /// Every allocator call, all the time.
    Exact,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatChoice {
    /// Plain text.
    Text,
    /// JSON report (schema v1).
    Json,
    /// Folded stacks with bytes in use, for flame graph tools.
    Folded,
    /// Flame graph (SVG).
    Svg,
    /// Gzipped profile for `go tool pprof`.
    Pprof,
    /// Self-contained HTML page.
    Html,
}

impl FormatChoice {
    /// Whether people read it, who want the most important first and not everything.
    pub(super) fn is_for_people(self) -> bool {
        matches!(self, Self::Text | Self::Json | Self::Html)
    }

    /// How many call stacks are shown: as `asked` for, else few to people and all to programs.
    pub(super) fn top(self, asked: Option<usize>) -> usize {
        /// Call stacks for people.
        const TOP: usize = 20;
        match asked {
            Some(top) => top,
            None if self.is_for_people() => TOP,
            None => usize::MAX,
        }
    }

    /// The name that the report room knows.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Folded => "folded",
            Self::Svg => "svg",
            Self::Pprof => "pprof",
            Self::Html => "html",
        }
    }
}

/// What of a report is shown.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ViewArguments {
    /// Show everything, and all of it: in text all call stacks with all of their frames and whole paths.
    #[arg(long, help_heading = "View")]
    pub(super) full: bool,
    /// In what order text shows what survives.
    #[arg(long, value_enum, default_value = "site", help_heading = "View")]
    pub(super) by: ByChoice,
    /// Sum up in text what has less than PCT of the surviving bytes and does not leak; for --by tree 1 if not given.
    #[arg(long, value_name = "PCT", value_parser = percent, allow_hyphen_values = true, help_heading = "View")]
    pub(super) min_percent: Option<f64>,
}

/// In what order text shows what survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ByChoice {
    /// Call stacks: those that leak first, then the largest.
    Site,
    /// A tree of callers.
    Tree,
}

impl ViewArguments {
    /// The usual order, in full or not.
    pub(super) fn with_full(full: bool) -> Self {
        Self {
            full,
            by: ByChoice::Site,
            min_percent: None,
        }
    }

    /// How many call stacks are shown: as `asked` for; else all where all is, or a tree of them; few to people.
    pub(super) fn top(&self, asked: Option<usize>, format: FormatChoice) -> usize {
        let is_whole = format == FormatChoice::Text && (self.full || self.by == ByChoice::Tree);
        match asked {
            None if is_whole => usize::MAX,
            asked => format.top(asked),
        }
    }
}

/// Which processes.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TargetArguments {
    /// Processes to trace. -p, --comm and --cgroup can be given together: what any of them names.
    #[arg(short, long = "pid", value_name = "PID", value_delimiter = ',', value_parser = pid, allow_negative_numbers = true, conflicts_with = "all", help_heading = "Target")]
    pub(super) pid: Vec<u32>,
    /// Processes whose name matches, also those that start later; a shell pattern, such as 'redis*'.
    #[arg(
        long,
        value_name = "GLOB",
        conflicts_with = "all",
        help_heading = "Target"
    )]
    pub(super) comm: Vec<String>,
    /// Processes in this control group or below it, also those that start later.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "all",
        help_heading = "Target"
    )]
    pub(super) cgroup: Vec<PathBuf>,
    /// All processes of the machine, also those that start later.
    #[arg(long, help_heading = "Target")]
    pub(super) all: bool,
    /// Leave out of --all, --comm and --cgroup: a pattern of names, the path of a control group (with those below it) or a process
    /// id.
    #[arg(long, value_name = "WHAT", help_heading = "Target")]
    pub(super) exclude: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope trace -p 1234 --for 30s          trace a running process
  leakscope trace -- ./server --port 80      trace a command from its first allocation
  leakscope trace --at-exit -- ./tests       what a command has lost when it ends
  leakscope trace --comm 'php-fpm*' --for 5m trace processes by name, also those that start later
  leakscope trace --cgroup /system.slice/redis.service
  leakscope trace --all --for 1m             trace the whole machine
  leakscope trace --all --exclude 'postgres*' --exclude /user.slice
  leakscope trace -p 1234 --format json -o report.json

Without --for, tracing goes on until Ctrl-C, which prints the result; a second Ctrl-C quits at once. Where DEBUGINFOD_URLS names servers, they are asked for debug information that is not on this machine.
Exit status: 0 done, 1 could not do it, 2 usage. With --fail-on-leak: 3 when something leaks, 4 when nothing could be judged. With -- COMMAND: the command's own status (128 + the number of the signal that ended it), unless --fail-on-leak finds a leak or leakscope itself fails.")]
pub(super) struct TraceArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// A command to run and trace, with its children.
    #[arg(
        last = true,
        value_name = "COMMAND",
        conflicts_with_all = ["pid", "comm", "cgroup", "all", "exclude"],
        help_heading = "Target"
    )]
    pub(super) command: Vec<OsString>,
    /// Leave out the children of COMMAND.
    #[arg(long, requires = "command", help_heading = "Target")]
    pub(super) no_follow: bool,
    /// How long to trace, such as 30s or 5m; until Ctrl-C if it is not given. A command that still runs then goes on by itself, untraced.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(super) duration: Option<Duration>,
    /// Also print the result so far at this interval.
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(super) every: Option<Duration>,
    /// Show at most N call stacks and a total for the rest; 20 if not given, with --full and --by tree all.
    #[arg(long, value_name = "N", value_parser = top, allow_negative_numbers = true)]
    pub(super) top: Option<usize>,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: FormatChoice,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) view: ViewArguments,
    /// Exit with 3 when a site's verdict is `leaking`, which takes at least 45 s of tracing, and with 4 when nothing could
    /// be judged.
    #[arg(long)]
    pub(super) fail_on_leak: bool,
    /// Hold COMMAND, and its children, where they end, and report which blocks no pointer leads to then. Every allocator call is
    /// traced (--tier exact). On with --fail-on-leak, unless a tier is asked for.
    #[arg(long, requires = "command")]
    pub(super) at_exit: bool,
    #[command(flatten)]
    pub(super) tracing: TracingArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope top                              what the daemon of this machine traces, else the whole machine
  leakscope top -p 1234                      a running process
  leakscope top --comm 'php-fpm*'
  leakscope top --url http://127.0.0.1:7117  what another daemon traces
  leakscope top -- ./server --port 80        a command, which ends with the screen; what it prints is not shown

Enter goes into a process, its sites and one of them; / filters, s sorts, t shows the call tree, b takes a snapshot and d what changed since, p pauses, ? shows all keys, q quits. NO_COLOR is respected.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(super) struct TopArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// A command to run and trace, with its children.
    #[arg(
        last = true,
        value_name = "COMMAND",
        conflicts_with_all = ["pid", "comm", "cgroup", "all", "socket", "url"],
        help_heading = "Target"
    )]
    pub(super) command: Vec<OsString>,
    /// Leave out the children of COMMAND.
    #[arg(long, requires = "command", help_heading = "Target")]
    pub(super) no_follow: bool,
    /// Show what the daemon with this Unix socket traces.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["url", "TracingArguments"],
        help_heading = "Daemon"
    )]
    pub(super) socket: Option<PathBuf>,
    /// Show what the daemon at this address traces, such as http://127.0.0.1:7117 or localhost:7117.
    #[arg(
        long,
        value_name = "URL",
        conflicts_with = "TracingArguments",
        help_heading = "Daemon"
    )]
    pub(super) url: Option<String>,
    /// File with the token to send to the daemon.
    #[arg(long, value_name = "FILE", requires = "url", help_heading = "Daemon")]
    pub(super) auth_token_file: Option<PathBuf>,
    /// How often the figures are renewed; more rarely where that would take much time.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration, allow_hyphen_values = true)]
    pub(super) every: Duration,
    #[command(flatten)]
    pub(super) tracing: TracingArguments,
}

impl TopArguments {
    /// Whether it says what to trace, or how.
    pub(super) fn asks_for_a_trace(&self) -> bool {
        let target = &self.target;
        let usual = Arguments::try_parse_from(["leakscope", "top"]).map(|usual| usual.command);
        let is_usual = matches!(usual, Ok(Command::Top(usual)) if usual.tracing == self.tracing);
        !is_usual
            || target.all
            || !target.pid.is_empty()
            || !target.comm.is_empty()
            || !target.cgroup.is_empty()
            || !self.command.is_empty()
    }
}

/// How to trace, whoever asks for it.
#[derive(Debug, PartialEq, Args)]
pub(super) struct TracingArguments {
    /// How allocations are seen.
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) tier: TierChoice,
    /// CPU time that tracing may add, in percent of the target's own; with --tier exact it is only measured.
    #[arg(long, value_name = "PCT", default_value_t = DEFAULT_BUDGET * 100.0, value_parser = percent, allow_hyphen_values = true)]
    pub(super) budget: f64,
    /// Length of each time window, such as 200ms; chosen by the budget if not given.
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(super) window: Option<Duration>,
    /// Only count blocks at least this old.
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(super) min_age: Option<Duration>,
    /// Only record allocations of at least this size, such as 64KiB.
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    pub(super) min_size: Option<u64>,
    /// Only record allocations of at most this size.
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    pub(super) max_size: Option<u64>,
    /// Also watch what the kernel holds: slab caches and who fills them, page tables, descriptors of each process; on by default
    /// with --all and in the daemon.
    #[arg(long)]
    pub(super) kernel: bool,
    /// Do not report the sites that a file in the syntax of LeakSanitizer names: `leak:PATTERN` with a part of the name of a
    /// function, source file or module.
    #[arg(long, value_name = "FILE")]
    pub(super) suppress: Option<PathBuf>,

    /// Show an interpreter's own functions beside those of Python
    #[arg(long)]
    pub(super) native: bool,
    /// Maximum number of distinct call stacks.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = |text: &str| whole(text, 64..=4_194_304), allow_negative_numbers = true, help_heading = "Limits")]
    pub(super) max_stacks: u32,
    /// Maximum number of live blocks; beyond it one of 2, 4, ... is kept and figures become estimates.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = |text: &str| whole(text, 1_024..=100_000_000), allow_negative_numbers = true, help_heading = "Limits")]
    pub(super) max_blocks: u32,
    /// Bytes of the buffer in which the probe hands over new stacks and process events.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(4_096..=1 << 30), hide = true)]
    pub(super) event_bytes: u32,
    /// Walk stacks by frame pointers only.
    #[arg(long, help_heading = "Limits")]
    pub(super) frame_pointers: bool,
    /// Keep every row of the unwind tables, not only those that a return address can be in.
    #[arg(long, help_heading = "Limits")]
    pub(super) full_unwind_tables: bool,
    /// Keep unwind tables in this folder between runs, or nowhere if it is `none`; nobody else may be able to write to it. By
    /// default /var/cache/leakscope, or leakscope in $XDG_CACHE_HOME for others than root.
    #[arg(long, value_name = "DIR", help_heading = "Limits")]
    pub(super) unwind_cache: Option<PathBuf>,
    /// Kind of kernel link; by default the best that the kernel has.
    #[arg(long, value_enum, value_name = "KIND", help_heading = "Limits")]
    pub(super) links: Option<LinkChoice>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope daemon                           trace the whole machine
  leakscope daemon --cgroup /system.slice --listen 127.0.0.1:7117
  leakscope dump                             what holds the memory now
  go tool pprof http://127.0.0.1:7117/debug/pprof/heap
  curl --unix-socket /run/leakscope.sock http://localhost/metrics

Paths: /debug/pprof/heap, /debug/pprof/allocs, /debug/pprof/goroutine, /debug/pprof/kernel, /debug/pprof/symbol, /flamegraph.svg, /metrics, /healthz, /api/v1/report, /api/v1/processes, /api/v1/snapshots, and / for a browser. Ctrl-C and SIGTERM end it; SIGHUP rereads the selection, the suppressions and the token.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(super) struct DaemonArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// File with options, as TOML: the keys are those of the command line, which wins. By default /etc/leakscope/config.toml, where
    /// there is one.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub(super) config: Option<PathBuf>,
    /// Print the options that are in force, as such a file, and end.
    #[arg(long, help_heading = "Configuration")]
    pub(super) print_config: bool,
    /// The Unix socket to listen on; only its owner can connect. By default /run/leakscope.sock, or leakscope.sock in
    /// $XDG_RUNTIME_DIR for others than root.
    #[arg(long, value_name = "PATH", help_heading = "Listening")]
    pub(super) socket: Option<PathBuf>,
    /// Also listen on an address and port, such as 127.0.0.1:7117 or localhost:7117. Without a token every user and container
    /// of this machine that reaches it may read all results and take and delete snapshots.
    #[arg(long, value_name = "ADDRESS", value_parser = address, help_heading = "Listening")]
    pub(super) listen: Option<SocketAddr>,
    /// File with the token that TCP clients must send; required to listen on more than a loopback address.
    #[arg(
        long,
        value_name = "FILE",
        requires = "listen",
        help_heading = "Listening"
    )]
    pub(super) auth_token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) tracing: TracingArguments,
}

/// Which of the processes that were traced.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct FilterArguments {
    /// Show these processes only.
    #[arg(short, long = "pid", value_name = "PID", value_delimiter = ',', value_parser = pid, allow_negative_numbers = true, conflicts_with_all = ["comm", "cgroup", "all"], help_heading = "Filter")]
    pub(super) pid: Vec<u32>,
    /// Show processes with a matching name only; a shell pattern, such as 'redis*'.
    #[arg(
        long,
        value_name = "GLOB",
        conflicts_with = "all",
        help_heading = "Filter"
    )]
    pub(super) comm: Vec<String>,
    /// Show processes in this control group or below it only.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "all",
        help_heading = "Filter"
    )]
    pub(super) cgroup: Vec<PathBuf>,
    /// Show all processes that were traced, which is the default.
    #[arg(long, help_heading = "Filter")]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each file is a report (--format json) or a heap profile of pprof, compressed or not.
Exit status: 0 done, 1 could not do it, 2 usage."
)]
pub(super) struct DiffArguments {
    /// The earlier one.
    pub(super) base: PathBuf,
    /// The later one.
    pub(super) new: PathBuf,
    /// Show at most N call stacks and a total for the rest.
    #[arg(long, value_name = "N", value_parser = top, allow_negative_numbers = true)]
    pub(super) top: Option<usize>,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: FormatChoice,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Show everything, and all of it: all call stacks with all of their frames and whole paths.
    #[arg(long)]
    pub(super) full: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope trace -p 1234 --for 5m --top 1000 --format json -o monday.json
  leakscope report monday.json               read it
  leakscope report monday.json --comm 'redis*' --format html -o redis.html
  leakscope report heap.pb.gz                a heap profile of pprof, from whatever program

The file is a report (--format json) or a heap profile of pprof, compressed or not. What was not saved (--top) cannot be shown.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(super) struct ReportArguments {
    /// The saved report.
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) only: FilterArguments,
    /// Show at most N call stacks and a total for the rest; by default 20 in text, JSON and HTML, else all.
    #[arg(long, value_name = "N", value_parser = top, allow_negative_numbers = true)]
    pub(super) top: Option<usize>,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: FormatChoice,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) view: ViewArguments,
}

/// Kinds of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LinkChoice {
    /// One link for entries and returns (Linux 6.13).
    Session,
    /// Links for many probes at once (Linux 6.6).
    Multi,
    /// A perf event for each probe.
    Perf,
}

impl From<LinkChoice> for LinkMode {
    fn from(choice: LinkChoice) -> Self {
        match choice {
            LinkChoice::Session => Self::Session,
            LinkChoice::Multi => Self::Multi,
            LinkChoice::Perf => Self::Perf,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Also check a process: its allocators, probe sites and unwind tables.
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pub(super) pid: Option<u32>,
    /// Check as if the kernel supported no better kind of link than this.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) links: Option<LinkChoice>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope completions bash > /usr/share/bash-completion/completions/leakscope
  leakscope completions fish > ~/.config/fish/completions/leakscope.fish

Packages have those of bash, zsh and fish already.")]
pub(super) struct CompletionsArguments {
    /// The shell.
    #[arg(value_enum)]
    pub(super) shell: Shell,
}

/// For `cargo xtask dist`.
#[derive(Debug, Args)]
pub(super) struct ManualArguments {
    /// The folder to write them into.
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,
}

/// For `cargo xtask bench`.
#[derive(Debug, Args)]
pub(super) struct FloorArguments {
    /// The process.
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pub(super) pid: u32,
    /// Kind of kernel link; by default the best that the kernel has.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) links: Option<LinkChoice>,
}

#[cfg(test)]
mod tests {
    use super::Arguments;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
