//! A terminal with leakscope in it: tmux, of which the screen is read and to which keys are sent.

use std::ffi::OsStr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::daemon::done;
use crate::tracer::run_command;

/// A terminal of a size with a shell in it. Ended when dropped.
pub struct Terminal {
    /// Its server's socket is in a folder of its own: other servers are not to be touched.
    folder: TempDir,
}

impl Terminal {
    /// Opens one of so many columns and lines.
    ///
    /// # Errors
    /// When tmux cannot be run.
    pub fn open(columns: u16, lines: u16) -> Result<Self> {
        let terminal = Self {
            folder: tempfile::tempdir()?,
        };
        let size = ["-x", &columns.to_string(), "-y", &lines.to_string()];
        let mut arguments = vec!["-f", "/dev/null", "new-session", "-d"];
        arguments.extend(size);
        // Without what the user's shell would say.
        arguments.push("env PS1='ready$ ' sh");
        terminal.tmux(&arguments)?;
        terminal.wait_for("ready$")?;
        Ok(terminal)
    }

    fn tmux<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let mut command = Command::new("tmux");
        command
            .arg("-S")
            .arg(self.folder.path().join("socket"))
            .args(arguments)
            .env_remove("TMUX");
        done(run_command(command)?)
    }

    /// Types a line.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn line(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text])?;
        self.keys(&["Enter"])
    }

    /// Presses keys by tmux's names of them.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        let mut arguments = vec!["send-keys"];
        arguments.extend(keys);
        self.tmux(&arguments).map(|_| ())
    }

    /// What it shows.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// What tmux knows of it, such as `#{alternate_on}`.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn state(&self, format: &str) -> Result<String> {
        Ok(self
            .tmux(&["display-message", "-p", format])?
            .trim()
            .to_owned())
    }

    /// Waits until it shows a text.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait_until(text, |screen| screen.contains(text))
    }

    /// Waits until what it shows is as wished; `what` is told where it never is.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<String> {
        let begun = Instant::now();
        loop {
            let screen = self.screen()?;
            if is_so(&screen) {
                return Ok(screen);
            }
            if begun.elapsed() > PATIENCE {
                bail!("not shown: {what}\n{screen}");
            }
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.tmux(&["kill-server"]);
    }
}
