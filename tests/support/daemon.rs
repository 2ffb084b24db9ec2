//! A running `leakscope daemon` and the clients that people use on it: curl, `go tool pprof`, a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::binary::leakscope;
use crate::lines::collect;
use crate::process::wait;
use crate::tracer::{Finished, run_command};

/// A daemon with a socket of its own. Killed when dropped.
pub struct Daemon {
    child: Child,
    stderr: Option<JoinHandle<Vec<u8>>>,
    folder: TempDir,
}

impl Daemon {
    /// Starts `leakscope daemon --socket SOCKET ARGUMENTS` and waits until it answers.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_with(&[], arguments)
    }

    /// The same with these variables in its environment.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_with(environment: &[(&str, &str)], arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the socket")?;
        Self::start_in(folder, environment, arguments)
    }

    /// Starts another on the same socket, whose file is as the first one left it.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_again(mut self, arguments: &[&str]) -> Result<Self> {
        let elsewhere = tempfile::tempdir().context("a folder for the socket")?;
        let folder = std::mem::replace(&mut self.folder, elsewhere);
        Self::start_in(folder, &[], arguments)
    }

    fn start_in(folder: TempDir, environment: &[(&str, &str)], arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(leakscope()?);
        command
            // Sums are compared with what the victim says: no estimates.
            .args(["daemon", "--tier", "exact", "--socket"])
            .arg(folder.path().join("socket"))
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stderr = child.stderr.take().map(collect);
        let mut daemon = Self {
            child,
            stderr,
            folder,
        };
        let start = Instant::now();
        while daemon.curl(&["--fail"], "/healthz").is_err() {
            if daemon.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let _ = daemon.child.kill();
                bail!("the daemon does not answer: {:?}", daemon.end()?);
            }
            sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A path for a file of the test, in a folder that is removed.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What curl gets from a path over the socket, with further arguments for curl.
    ///
    /// # Errors
    /// When curl fails.
    pub fn curl(&self, arguments: &[&str], path: &str) -> Result<String> {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--path-as-is", "--unix-socket"])
            .arg(self.socket())
            .args(arguments)
            .arg(format!("http://localhost{path}"));
        done(run_command(command)?)
    }

    /// Saves what a path answers.
    ///
    /// # Errors
    /// When curl fails or the answer is none.
    pub fn save(&self, path: &str, name: &str) -> Result<PathBuf> {
        let file = self.file(name);
        let text = file.to_string_lossy().into_owned();
        self.curl(&["--fail", "--output", &text], path)?;
        Ok(file)
    }

    /// Runs `leakscope dump --socket SOCKET ARGUMENTS`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn dump(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new(leakscope()?);
        command
            .args(["dump", "--socket"])
            .arg(self.socket())
            .args(arguments);
        run_command(command)
    }

    /// Sends it a signal by its short name, as `HUP`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().to_string();
        let mut command = Command::new("kill");
        command.args(["-s", name, &pid]);
        done(run_command(command)?).map(|_| ())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&mut self) -> Result<Finished> {
        let status = wait(&mut self.child, PATIENCE).context("waiting for the daemon's end")?;
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok());
        Ok(Finished {
            status,
            stdout: String::new(),
            stderr: String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned(),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program printed that ended well.
///
/// # Errors
/// When it did not.
pub fn done(finished: Finished) -> Result<String> {
    if finished.code() == 0 {
        Ok(finished.stdout)
    } else {
        bail!("{finished:?}")
    }
}

/// What `go tool pprof` prints.
///
/// # Errors
/// When it fails.
pub fn go_pprof(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("go");
    // It keeps what it fetches in the home folder.
    let home = tempfile::tempdir()?;
    command
        .env("HOME", home.path())
        .env("PPROF_TMPDIR", home.path())
        .args(["tool", "pprof"])
        .args(arguments);
    done(run_command(command)?)
}

/// The document as a browser has it after its scripts have run, with `script` put at its end. The document is an HTML page or
/// an SVG file.
///
/// # Errors
/// When the browser fails.
pub fn in_browser(document: &Path, script: &str) -> Result<String> {
    let text = fs::read_to_string(document)?;
    let end = if text.contains("</body>") {
        "</body>"
    } else {
        "</svg>"
    };
    let (before, after) = text
        .rsplit_once(end)
        .with_context(|| format!("{} has no {end}", document.display()))?;
    let copy = document.with_file_name(format!(
        "tried-{}",
        document.file_name().unwrap_or_default().to_string_lossy()
    ));
    fs::write(
        &copy,
        format!("{before}<script>{script}</script>{end}{after}"),
    )?;
    let home = tempfile::tempdir()?;
    let mut command = Command::new("chromium");
    command
        .env("HOME", home.path())
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=5000",
            "--dump-dom",
        ])
        .arg(format!("file://{}", copy.display()));
    done(run_command(command)?)
}
