//! What is measured: nothing, the floor, leakscope, and other tools where they are installed.

use super::case::Case;
use super::child::Running;
use super::victim::Victim;
use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long a tracer may take until the target feels it.
const ATTACH_WITHIN: Duration = Duration::from_secs(20);
/// How long it may take to end after Ctrl-C.
const END_WITHIN: Duration = Duration::from_secs(30);
/// From the first probe that is felt until all are in place and the tracer records.
const SETTLE: Duration = Duration::from_millis(500);
/// What the cheapest probe adds to an operation at least, nanoseconds (a uprobe on a 5-byte nop takes 140 on x86 without
/// virtualization). A busy machine alone makes a short operation half as long again, but not this much longer.
const PROBE_NS: f64 = 100.0;

/// From this time on an operation that takes `untraced` nanoseconds by itself is traced.
pub(super) fn slowed_from(untraced: f64) -> f64 {
    (untraced * 1.5).max(untraced + PROBE_NS)
}

/// A way to watch a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The program alone.
    Nothing,
    /// Programs that do nothing at the sites where leakscope attaches.
    Floor,
    /// leakscope, every call.
    Exact,
    /// A command with `{pid}`.
    Peer {
        /// What the table calls it.
        name: String,
        /// For the shell.
        command: String,
    },
    /// A script for bpftrace that does what people write for it.
    Bpftrace,
    /// heaptrack, preloaded.
    Heaptrack,
    /// Valgrind's memcheck.
    Valgrind,
}

impl Subject {
    /// Everything that this machine has.
    pub(super) fn all(peers: &[(String, String)]) -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::Floor, Self::Exact];
        all.extend(peers.iter().map(|(name, command)| Self::Peer {
            name: name.clone(),
            command: command.clone(),
        }));
        for (subject, program) in [
            (Self::Bpftrace, "bpftrace"),
            (Self::Heaptrack, "heaptrack"),
            (Self::Valgrind, "valgrind"),
        ] {
            if shell::find_program(program).is_some() {
                all.push(subject);
            }
        }
        all
    }

    /// leakscope itself and what it is held against.
    pub(super) fn own() -> Vec<Self> {
        vec![Self::Nothing, Self::Floor, Self::Exact]
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Nothing => "nothing",
            Self::Floor => "floor",
            Self::Exact => "leakscope",
            Self::Peer { name, .. } => name,
            Self::Bpftrace => "bpftrace",
            Self::Heaptrack => "heaptrack",
            Self::Valgrind => "valgrind",
        }
    }

    /// Whether its failure is ours.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Nothing | Self::Floor | Self::Exact)
    }

    /// The command that runs a program under a tool that cannot attach; `None` for the others.
    pub(super) fn wrap(&self, case: &Case, program: &Path, folder: &Path) -> Option<Command> {
        let mut command = match self {
            Self::Heaptrack => {
                let mut command = Command::new("heaptrack");
                command.arg("-o").arg(folder.join("heaptrack"));
                command
            }
            Self::Valgrind => {
                let mut command = Command::new("valgrind");
                command.args(["--quiet", "--leak-check=no"]);
                command
            }
            _ => return None,
        };
        command.arg(program).args(case.arguments);
        Some(command)
    }

    /// The command that attaches to a process.
    fn attach(&self, leakscope: &Path, case: &Case, pid: u32, folder: &Path) -> Result<Command> {
        let pid = pid.to_string();
        Ok(match self {
            Self::Floor => {
                let mut command = Command::new(leakscope);
                command.args(["floor", "-p", &pid]);
                command
            }
            Self::Exact => {
                let mut command = Command::new(leakscope);
                command
                    .args(["trace", "--tier", "exact", "--format", "json", "-p", &pid])
                    .arg("-o")
                    .arg(folder.join("report.json"));
                command
            }
            Self::Peer { command, .. } => {
                let mut shell = Command::new("sh");
                let line = command.replace("{pid}", &pid);
                shell.args(["-c", &format!("exec {line}")]);
                shell
            }
            Self::Bpftrace => {
                let mut command = Command::new("bpftrace");
                command.env("BPFTRACE_MAP_KEYS_MAX", "4000000").args([
                    "-p",
                    &pid,
                    "-e",
                    &script(case, &libc(&pid)?),
                ]);
                command
            }
            Self::Nothing | Self::Heaptrack | Self::Valgrind => {
                bail!("{} does not attach", self.name())
            }
        })
    }
}

/// The C library that a process maps.
fn libc(pid: &str) -> Result<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("cannot read the mappings of process {pid}"))?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"))
        .map(PathBuf::from)
        .with_context(|| format!("process {pid} maps no libc.so.6"))
}

/// Sizes in flight and live blocks with their stacks.
fn script(case: &Case, libc: &Path) -> String {
    let libc = libc.display();
    let function = case.operation.function();
    let size = if function == "realloc" {
        "arg1"
    } else {
        "arg0"
    };
    let old = if function == "realloc" {
        "delete(@live[arg0]); "
    } else {
        ""
    };
    format!(
        "uprobe:{libc}:{function} {{ {old}@size[tid] = {size}; }} \
         uretprobe:{libc}:{function} /@size[tid]/ {{ @live[retval] = (@size[tid], ustack); delete(@size[tid]); }} \
         uprobe:{libc}:free {{ delete(@live[arg0]); }} END {{ clear(@live); clear(@size); }}"
    )
}

/// A tracer on a program.
pub(super) struct Attached {
    running: Running,
    folder: PathBuf,
    name: String,
}

impl Attached {
    /// Attaches and waits until the program feels it: an operation took `untraced` nanoseconds before.
    ///
    /// # Errors
    /// When the tracer fails, or the program is not slowed in time.
    pub(super) fn start(
        subject: &Subject,
        leakscope: &Path,
        case: &Case,
        victim: &mut Victim,
        untraced: f64,
        folder: &Path,
    ) -> Result<Self> {
        let mut command = subject.attach(leakscope, case, victim.pid(), folder)?;
        Self::start_command(&mut command, subject.name(), victim, untraced, folder)
    }

    /// The same with a command of one's own.
    ///
    /// # Errors
    /// See [`Attached::start`].
    pub(super) fn start_command(
        command: &mut Command,
        name: &str,
        victim: &mut Victim,
        untraced: f64,
        folder: &Path,
    ) -> Result<Self> {
        let mut attached = Self {
            running: Running::start(command, &folder.join("tracer.log"))?,
            folder: folder.to_owned(),
            name: name.to_owned(),
        };
        let begun = Instant::now();
        let mut slowed = 0;
        while slowed < 2 {
            let now = victim.pace()?;
            slowed = if now.cpu_ns_per_operation() > slowed_from(untraced) {
                slowed + 1
            } else {
                0
            };
            if let Some(status) = attached.running.ended()? {
                bail!("{name} ended with {status}: {}", attached.complaints());
            }
            if begun.elapsed() > ATTACH_WITHIN {
                bail!(
                    "{name} has not slowed the program within {ATTACH_WITHIN:?}: {}",
                    attached.complaints()
                );
            }
        }
        thread::sleep(SETTLE);
        Ok(attached)
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it wrote to stderr, the last lines of it.
    fn complaints(&self) -> String {
        let text = fs::read_to_string(self.folder.join("tracer.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(5);
        lines.into_iter().skip(last).collect::<Vec<_>>().join("; ")
    }

    /// Presses Ctrl-C and waits for its end and until the program runs as before.
    ///
    /// # Errors
    /// When it does not end, or leaves the program slowed.
    pub(super) fn stop(mut self, victim: &mut Victim, untraced: f64) -> Result<()> {
        self.running.interrupt()?;
        self.running.end(END_WITHIN)?;
        let begun = Instant::now();
        loop {
            let now = victim.pace()?;
            if now.cpu_ns_per_operation() < slowed_from(untraced) {
                return Ok(());
            }
            if begun.elapsed() > END_WITHIN {
                bail!("the program is still slowed after the end of {}", self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Subject, script};
    use crate::bench::case::CASES;
    use std::path::Path;

    #[test]
    fn a_peer_is_told_the_process() {
        let peer = Subject::Peer {
            name: "other".into(),
            command: "other --pid={pid} -v".into(),
        };
        let command = peer.attach(Path::new("leakscope"), &CASES[0], 42, Path::new("."));
        let words: Vec<_> = command
            .iter()
            .flat_map(std::process::Command::get_args)
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        assert_eq!(words, ["-c", "exec other --pid=42 -v"]);
    }

    #[test]
    fn the_script_probes_the_function_of_the_case() {
        for case in &CASES {
            let script = script(case, Path::new("/lib/libc.so.6"));
            let site = format!("uretprobe:/lib/libc.so.6:{} ", case.operation.function());
            assert!(script.contains(&site), "{script}");
        }
    }
}
