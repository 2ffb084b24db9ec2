//! Running leakscope: beside a victim, with a command of its own, or just to hear what it says.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::binary::leakscope;
use crate::lines::collect;
use crate::process::{Victim, wait};
use crate::report::Report;
use crate::text::breakpoints;

/// The value of `--top` with which no site is left out.
pub const ALL_SITES: &str = "1000000";

/// The variable that names the kind of kernel links to trace with: `session`, `multi` or `perf`.
const LINKS: &str = "LEAKSCOPE_LINKS";

/// A leakscope that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
}

impl Finished {
    /// The exit code; -1 for a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// A running `leakscope trace`, writing its report into a file of its own. Killed when dropped.
pub struct Tracer {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    folder: TempDir,
}

impl Tracer {
    /// Starts `leakscope trace --format json -o FILE ARGUMENTS` with all sites and does not wait for anything.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start<A: AsRef<OsStr>>(arguments: &[A]) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the report")?;
        let mut command = Command::new(leakscope()?);
        command
            .args(["trace", "--top", ALL_SITES, "--format", "json", "-o"])
            .arg(folder.path().join("report.json"))
            // Forces what older kernels have, on a kernel that has more; a test that does so itself comes first.
            .args(
                std::env::var(LINKS)
                    .ok()
                    .filter(|_| !arguments.iter().any(|word| word.as_ref() == "--links"))
                    .map(|kind| format!("--links={kind}")),
            )
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Ok(Self {
            child,
            stdout,
            stderr,
            folder,
        })
    }

    /// Traces a victim exactly, with further arguments, until told to stop; returns when its probes are in place.
    ///
    /// # Errors
    /// When leakscope ends at once or sets no breakpoint.
    pub fn attach(victim: &Victim, arguments: &[&str]) -> Result<Self> {
        Self::attach_all(&[victim], arguments)
    }

    /// The same for several victims at once.
    ///
    /// # Errors
    /// See [`Tracer::attach`].
    pub fn attach_all(victims: &[&Victim], arguments: &[&str]) -> Result<Self> {
        let pids: Vec<String> = victims
            .iter()
            .map(|victim| victim.pid().to_string())
            .collect();
        let pids = pids.join(",");
        let mut all = vec!["--tier", "exact", "-p", &pids];
        all.extend(arguments);
        let mut tracer = Self::start(&all)?;
        for victim in victims {
            tracer.wait_until_attached(victim.pid())?;
        }
        Ok(tracer)
    }

    /// Waits until this tracer's probes are in place in a process.
    ///
    /// # Errors
    /// When leakscope ends before that or sets no breakpoint.
    pub fn wait_until_attached(&mut self, pid: u32) -> Result<()> {
        let waited = self.await_probes(pid);
        if let Err(error) = waited {
            // Whatever it said is worth more than how it ended.
            let _ = self.child.kill();
            let finished = self.end();
            bail!("{error:#}: {finished:?}");
        }
        Ok(())
    }

    /// Waits until this tracer follows what it was told to, where no probe tells: it waits for events then.
    ///
    /// # Errors
    /// When leakscope ends before that.
    pub fn wait_until_following(&mut self) -> Result<()> {
        let start = Instant::now();
        while !waits_for_events(self.child.id()) {
            if let Some(status) = self.child.try_wait()? {
                bail!("leakscope ended with {status} before it followed anything");
            }
            if start.elapsed() > PATIENCE {
                bail!("leakscope does not wait for events after {PATIENCE:?}");
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Breakpoints alone do not tell: with links of their own for entries and returns the last ones come where breakpoints are
    /// already, and calls are recorded only after that. When it waits for events, everything is in place.
    fn await_probes(&mut self, pid: u32) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("leakscope ended with {status} before it had attached");
            }
            // In the middle of an exec a process has its new name and maps nothing.
            let found = breakpoints(pid);
            if waits_for_events(self.child.id()) && found.as_ref().is_ok_and(|all| !all.is_empty())
            {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let found = found?;
                bail!("no breakpoint in process {pid} after {PATIENCE:?}: {found:?}");
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> Result<Finished> {
        self.child.kill()?;
        self.end()
    }

    /// leakscope's own process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where the report goes.
    #[must_use]
    pub fn report_path(&self) -> PathBuf {
        self.folder.path().join("report.json")
    }

    /// Sends it a signal by its short name, as `INT`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status()?;
        if !status.success() {
            bail!("kill -s {name} {pid} ended with {status}");
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&mut self) -> Result<Finished> {
        let status = wait(&mut self.child, PATIENCE).context("waiting for leakscope's end")?;
        let read = |thread: &mut Option<JoinHandle<Vec<u8>>>| {
            let bytes = thread.take().and_then(|thread| thread.join().ok());
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        Ok(Finished {
            status,
            stdout: read(&mut self.stdout),
            stderr: read(&mut self.stderr),
        })
    }

    /// Waits for its end and reads its report; it must have ended with 0.
    ///
    /// # Errors
    /// When it failed or its report is not by the contract.
    pub fn report(mut self) -> Result<Report> {
        let finished = self.end()?;
        if finished.code() != 0 {
            bail!(
                "leakscope ended with {}: {}",
                finished.status,
                finished.stderr
            );
        }
        let text = fs::read_to_string(self.report_path())
            .with_context(|| format!("leakscope wrote no report: {}", finished.stderr))?;
        serde_json::from_str(&text)
            .with_context(|| format!("the report is not by the contract: {text}"))
    }

    /// Presses Ctrl-C and reads the report.
    ///
    /// # Errors
    /// See [`Tracer::report`].
    pub fn stop(self) -> Result<Report> {
        self.signal("INT")?;
        self.report()
    }
}

/// Whether a process's main thread is in poll(2), by `/proc/PID/syscall`: the call's number, or `running` (proc(5)).
fn waits_for_events(pid: u32) -> bool {
    /// `__NR_epoll_wait` and `__NR_epoll_pwait` of x86_64; aarch64 has but the latter.
    const WAITS: [&str; 2] = if cfg!(target_arch = "x86_64") {
        ["232", "281"]
    } else {
        ["22", "22"]
    };
    fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|text| {
        text.split_whitespace()
            .next()
            .is_some_and(|number| WAITS.contains(&number))
    })
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs leakscope with these arguments to its end.
///
/// # Errors
/// When it does not start or does not end in time.
pub fn run<A: AsRef<OsStr>>(arguments: &[A]) -> Result<Finished> {
    let mut command = Command::new(leakscope()?);
    command.args(arguments);
    run_command(command)
}

/// Runs a command to its end, its input empty.
///
/// # Errors
/// See [`run`].
pub fn run_command(mut command: Command) -> Result<Finished> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let waited = wait(&mut child, PATIENCE).with_context(|| format!("running {command:?}"));
    if waited.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let read = |thread: Option<JoinHandle<Vec<u8>>>| {
        let bytes = thread.and_then(|thread| thread.join().ok());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    };
    Ok(Finished {
        status: waited?,
        stdout: read(stdout),
        stderr: read(stderr),
    })
}
