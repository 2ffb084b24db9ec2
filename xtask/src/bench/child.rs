//! Processes that the benchmark starts: lines from them with a time limit, and an end on every path.

use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A started process. Killed and reaped when dropped.
pub(super) struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
}

impl Running {
    /// Starts it with its input and output held by us and its complaints in a file. It is killed when we are, where
    /// there is setpriv(1).
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(command: &mut Command, complaints: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut bound;
        let command = if let Some(setpriv) = shell::find_program("setpriv") {
            bound = Command::new(setpriv);
            bound
                .args(["--pdeathsig", "KILL", "--"])
                .arg(command.get_program())
                .args(command.get_args());
            for (name, value) in command.get_envs() {
                if let Some(value) = value {
                    bound.env(name, value);
                }
            }
            &mut bound
        } else {
            command
        };
        let log = File::create(complaints)
            .with_context(|| format!("cannot write {}", complaints.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let (sender, lines) = channel();
        thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            name,
            child,
            stdin,
            lines,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line.
    ///
    /// # Errors
    /// When it no longer listens.
    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} no longer listens", self.name))
    }

    /// The next line of its output, and when it came.
    ///
    /// # Errors
    /// When none comes in time or its output ended.
    pub(super) fn line(&self, within: Duration) -> Result<(Instant, String)> {
        self.line_if_any(within)?
            .with_context(|| format!("{} said nothing for {within:?}", self.name))
    }

    /// The next line, if one comes in time.
    ///
    /// # Errors
    /// When its output ended.
    pub(super) fn line_if_any(&self, within: Duration) -> Result<Option<(Instant, String)>> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the output of {} ended", self.name),
        }
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGINT, as Ctrl-C does.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn interrupt(&self) -> Result<()> {
        self.signal("INT")
    }

    /// Sends a signal by its short name, as `TERM`.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .stderr(Stdio::null())
            .status()
            .context("cannot run kill(1)")?;
        if !status.success() {
            bail!("{} (process {pid}) is gone", self.name);
        }
        Ok(())
    }

    /// Closes its input and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub(super) fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if begun.elapsed() > within {
                bail!("{} has not ended after {within:?}", self.name);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
