//! The command line as it is typed: names, help, and the form of each value. Whether the values make sense together
//! is the plan's to say.

use std::{
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs as _},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

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

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Trace processes and show which call stacks hold the memory.
    Trace(Box<TraceArguments>),
    /// Trace continuously and serve results over HTTP: pprof, flame graph, JSON, metrics.
    Daemon(Box<DaemonArguments>),
    /// Show what a running daemon has traced.
    Dump(DumpArguments),
    /// Show what changed between two saved reports or profiles.
    Diff(DiffArguments),
    /// Check what this machine, this user and a process allow; exit with 1 if tracing cannot work.
    Doctor(DoctorArguments),
    /// Attach programs that do nothing where `trace` would attach its own: the least that a uprobe tracer costs.
    #[command(hide = true)]
    Floor(FloorArguments),
    /// Watch over a command's processes until `trace` has ended.
    #[command(hide = true)]
    Guard,
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

/// Which processes.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TargetArguments {
    /// Processes to trace.
    #[arg(short, long = "pid", value_name = "PID", value_delimiter = ',', value_parser = pid, allow_negative_numbers = true, conflicts_with_all = ["comm", "cgroup", "all"], help_heading = "Target")]
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
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope trace -p 1234 --for 30s          trace a running process
  leakscope trace -- ./server --port 80      trace a command from its first allocation
  leakscope trace --comm 'php-fpm*' --for 5m trace processes by name, also those that start later
  leakscope trace --cgroup /system.slice/redis.service
  leakscope trace --all --for 1m             trace the whole machine
  leakscope trace -p 1234 --format json -o report.json

Without --for, tracing goes on until Ctrl-C, which prints the result; a second Ctrl-C quits at once.
Exit status: 0 done, 1 could not do it, 2 usage, 3 with --fail-on-leak when something leaks.")]
pub(super) struct TraceArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// A command to run and trace, with its children.
    #[arg(
        last = true,
        value_name = "COMMAND",
        conflicts_with_all = ["pid", "comm", "cgroup", "all"],
        help_heading = "Target"
    )]
    pub(super) command: Vec<OsString>,
    /// Leave out the children of COMMAND.
    #[arg(long, requires = "command", help_heading = "Target")]
    pub(super) no_follow: bool,
    /// How long to trace, such as 30s or 5m; until Ctrl-C if it is not given.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(super) duration: Option<Duration>,
    /// Also print the result so far at this interval.
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(super) every: Option<Duration>,
    /// Show at most N call stacks and a total for the rest.
    #[arg(long, value_name = "N", default_value = "20", value_parser = top, allow_negative_numbers = true)]
    pub(super) top: usize,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: FormatChoice,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Exit with 3 when a site's verdict is `leaking`, which takes at least 45 s of tracing.
    #[arg(long)]
    pub(super) fail_on_leak: bool,
    #[command(flatten)]
    pub(super) tracing: TracingArguments,
}

/// How to trace, whoever asks for it.
#[derive(Debug, Args)]
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
    /// Do not report the sites that a file in the syntax of LeakSanitizer names: `leak:PATTERN` with a part of the name of a
    /// function, source file or module.
    #[arg(long, value_name = "FILE")]
    pub(super) suppress: Option<PathBuf>,
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

Paths: /debug/pprof/heap, /debug/pprof/allocs, /flamegraph.svg, /metrics, /healthz, /api/v1/report, /api/v1/processes,
/api/v1/snapshots, and / for a browser. Ctrl-C and SIGTERM end it; SIGHUP rereads the selection, the suppressions and the token.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(super) struct DaemonArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// The Unix socket to listen on; only its owner can connect. By default /run/leakscope.sock, or leakscope.sock in
    /// $XDG_RUNTIME_DIR for others than root.
    #[arg(long, value_name = "PATH", help_heading = "Listening")]
    pub(super) socket: Option<PathBuf>,
    /// Also listen on an address and port, such as 127.0.0.1:7117 or localhost:7117.
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

/// Which of the processes that a daemon traces.
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
    /// Show all processes that the daemon traces, which is the default.
    #[arg(long, help_heading = "Filter")]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  leakscope dump                             the largest call stacks, for people
  leakscope dump -p 1234 --format html -o leaks.html
  leakscope dump --snapshot monday           keep what there is under a name
  leakscope dump --base monday               what has grown since then

A difference shows growth and shrinkage by call stack.
Exit status: 0 done, 1 could not do it, 2 usage.")]
pub(super) struct DumpArguments {
    #[command(flatten)]
    pub(super) only: FilterArguments,
    /// The daemon's Unix socket.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "url",
        help_heading = "Daemon"
    )]
    pub(super) socket: Option<PathBuf>,
    /// The daemon's address, such as http://127.0.0.1:7117 or localhost:7117.
    #[arg(long, value_name = "URL", help_heading = "Daemon")]
    pub(super) url: Option<String>,
    /// File with the token to send to the daemon.
    #[arg(long, value_name = "FILE", requires = "url", help_heading = "Daemon")]
    pub(super) auth_token_file: Option<PathBuf>,
    /// Show at most N call stacks and a total for the rest; by default 20 in text, JSON and HTML, else all.
    #[arg(long, value_name = "N", value_parser = top, allow_negative_numbers = true)]
    pub(super) top: Option<usize>,
    /// Show what changed since a snapshot.
    #[arg(long, value_name = "SNAPSHOT")]
    pub(super) base: Option<String>,
    /// Show what changes during this time, in whole seconds.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, conflicts_with = "base", allow_hyphen_values = true)]
    pub(super) duration: Option<Duration>,
    /// Have the daemon store a snapshot under this name; print nothing.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["base", "duration", "top", "format", "output", "pid", "comm", "cgroup", "all"])]
    pub(super) snapshot: Option<String>,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: FormatChoice,
    /// Write the result to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
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

/// The longest duration that is taken: a clock cannot be set further ahead than some hundred years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Parses `30s`, `5m`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim();
    if !number.is_empty()
        && number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(format!("add a unit, e.g. {number}s"));
    }
    let parsed = humantime::parse_duration(text)
        .map_err(|_| "a duration is a number with a unit, e.g. 30s, 5m or 1h30m".to_owned())?;
    if parsed.is_zero() {
        return Err("a duration is longer than 0, e.g. 30s".to_owned());
    }
    if parsed > LONGEST {
        return Err("a duration is at most ten years, e.g. 30d".to_owned());
    }
    Ok(parsed)
}

/// Parses `1`, `0.5`, `2%`: percent.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    number
        .parse()
        .ok()
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(|| "a percentage is more than 0 and at most 100, e.g. 1 or 0.5".to_owned())
}

/// Parses `64KiB`, `1MB`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| {
            "a size is a number of bytes or has a unit, e.g. 4096, 64KiB or 1MB".to_owned()
        })
}

/// Parses a process id.
fn pid(text: &str) -> Result<u32, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| "a process id is a number from 1 on, e.g. 1234".to_owned())
}

/// Parses how many call stacks to show.
fn top(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|top| *top > 0)
        .ok_or_else(|| "a number of call stacks is at least 1, e.g. 20".to_owned())
}

/// Parses a whole number within bounds.
fn whole(text: &str, bounds: RangeInclusive<u32>) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| {
            let (least, most) = (bounds.start(), bounds.end());
            format!("a whole number from {least} to {most}, e.g. {least}")
        })
}

/// Parses `127.0.0.1:7117`, `[::1]:7117`, `localhost:7117`. Of a name with several addresses an IPv4 one is taken.
fn address(text: &str) -> Result<SocketAddr, String> {
    const EXAMPLE: &str = "an address has a port, e.g. 127.0.0.1:7117 or localhost:7117";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(EXAMPLE)?;
    let port: u16 = port.parse().map_err(|_| EXAMPLE)?;
    if host.is_empty() || host.contains([':', '/']) {
        return Err(EXAMPLE.to_owned());
    }
    let mut found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("no address of {host} is known ({error}); e.g. 127.0.0.1:7117"))?
        .collect();
    found.sort_by_key(|address| !address.is_ipv4());
    found
        .first()
        .copied()
        .ok_or_else(|| format!("no address of {host} is known; e.g. 127.0.0.1:7117"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{Arguments, address, duration, percent, size};
    use clap::CommandFactory as _;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        assert_eq!(duration("1h 30m").unwrap(), Duration::from_secs(5_400));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert!(duration("0s").is_err());
        assert!(duration("5").is_err());
        assert_eq!(size("64KiB").unwrap(), 65_536);
        assert_eq!(size("4096").unwrap(), 4_096);
        for (text, value) in [("1", 1.0), ("0.5", 0.5), ("2 %", 2.0), ("100%", 100.0)] {
            assert!((percent(text).unwrap() - value).abs() < 1e-9, "{text}");
        }
        for text in ["0", "-1", "101", "NaN", "inf", "", "%", "much"] {
            assert!(percent(text).is_err(), "{text}");
        }
        assert!(size("many").is_err());
    }

    #[test]
    fn a_duration_without_a_unit_is_told_what_to_add() {
        assert_eq!(duration("5").unwrap_err(), "add a unit, e.g. 5s");
        assert_eq!(duration("1.5").unwrap_err(), "add a unit, e.g. 1.5s");
        for text in ["-5s", "", "s", "5parsecs", "five"] {
            assert!(duration(text).unwrap_err().contains("e.g. 30s"), "{text}");
        }
        // Beyond what a clock can be set to.
        assert!(duration("584542046090years").is_err());
    }

    #[test]
    fn a_name_of_this_machine_is_an_address() {
        assert_eq!(
            address("localhost:7117").unwrap(),
            "127.0.0.1:7117".parse().unwrap()
        );
        assert_eq!(
            address("[::1]:7117").unwrap(),
            "[::1]:7117".parse().unwrap()
        );
        for text in [
            "localhost",
            ":7117",
            "7117",
            "::1:x",
            "localhost:99999",
            "http://a:1",
        ] {
            assert!(
                address(text).unwrap_err().contains("e.g. 127.0.0.1:7117"),
                "{text}"
            );
        }
    }
}
