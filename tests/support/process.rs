//! A running victim and the protocol spoken with it (see programs/victim.h).

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::PATIENCE;
use crate::lines::Lines;
use crate::machine::leave_out;
use crate::stuck;
use crate::truth::Truth;
use crate::victims::programs_folder;

/// A victim that was started and waits to be told "go". Killed when dropped.
pub struct Victim {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
}

impl Victim {
    /// Starts a program that speaks the protocol and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start or does not say that it is ready.
    pub fn start(program: &Path) -> Result<Self> {
        Self::launch(Command::new(program))
    }

    /// The same, as another user.
    ///
    /// # Errors
    /// See [`Victim::start`].
    pub fn start_as(program: &Path, user: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.uid(user).gid(user);
        Self::launch(command)
    }

    /// Starts the interpreter with the extension module that `leakext` names.
    ///
    /// # Errors
    /// See [`Victim::start`]; when there is no interpreter.
    pub fn start_python(leakext: &Path) -> Result<Self> {
        let folder = leakext.parent().context("the extension's folder")?;
        let mut command = Command::new(python()?.executable);
        command.arg(programs_folder().join("pyext.py")).arg(folder);
        Self::launch(command)
    }

    /// Starts an interpreter with a script of the programs' folder.
    ///
    /// # Errors
    /// See [`Victim::start`].
    pub fn start_script(python: &Path, script: &str) -> Result<Self> {
        let mut command = Command::new(python);
        command.arg(programs_folder().join(script));
        Self::launch(command)
    }

    /// Starts node with its victim, its generated code named for profilers in a perf map.
    ///
    /// # Errors
    /// See [`Victim::start`].
    pub fn start_node(program: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command
            // Code is compiled before it is called for the first time, for code that is interpreted has no name.
            .args(["--perf-basic-prof", "--always-sparkplug", "--expose-gc"])
            .arg(programs_folder().join("node.js"))
            // It leaves a log beside the perf map, in the folder where it runs.
            .current_dir(env::temp_dir());
        Self::launch(command)
    }

    fn launch(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdin = child.stdin.take();
        let lines = Lines::of(child.stdout.take().context("the victim's stdout")?);
        let victim = Self {
            child,
            stdin,
            lines,
        };
        let ready = victim.line()?;
        if ready.as_deref() != Some(&format!("ready {}", victim.pid())) {
            bail!(
                "{command:?} said {ready:?} where `ready {}` was due",
                victim.pid()
            );
        }
        Ok(victim)
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output, none at the end.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn line(&self) -> Result<Option<String>> {
        self.lines.next(PATIENCE)
    }

    /// All lines of its output that came so far and were not read.
    #[must_use]
    pub fn pending_lines(&self) -> Vec<String> {
        self.lines.pending()
    }

    /// Tells it a word.
    ///
    /// # Errors
    /// When it no longer listens.
    pub fn say(&mut self, word: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the victim's stdin is closed")?;
        // In one piece: a victim may end with the first byte that it reads.
        stdin
            .write_all(format!("{word}\n").as_bytes())
            .with_context(|| format!("saying {word} to the victim"))
    }

    /// Lets it run, and waits for its truth. It then waits, alive, for [`Victim::quit`].
    ///
    /// # Errors
    /// When it ends or falls silent before it is done.
    pub fn go(&mut self) -> Result<Vec<Truth>> {
        self.say("go")?;
        let mut truths = Vec::new();
        loop {
            match self.line()? {
                None => bail!("the victim ended before it was done"),
                Some(line) if line == "done" => return Ok(truths),
                Some(line) => truths.push(Truth::parse(&line)?),
            }
        }
    }

    /// Lets it end.
    ///
    /// # Errors
    /// When it does not.
    pub fn quit(mut self) -> Result<ExitStatus> {
        self.say("quit")?;
        self.end()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&mut self) -> Result<ExitStatus> {
        wait(&mut self.child, PATIENCE).context("waiting for the victim's end")
    }

    /// Whether it is alive.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        self.end()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end, no longer than `patience`.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > patience {
            let state = stuck::describe(child.id());
            bail!(
                "process {} still runs after {patience:?}:{state}",
                child.id()
            );
        }
        sleep(Duration::from_millis(5));
    }
}

/// The python interpreter on PATH.
#[derive(Clone, Debug)]
pub struct Python {
    /// The interpreter's own file (not a script that starts it).
    pub executable: PathBuf,
    /// The folder of its C headers.
    pub include: PathBuf,
}

/// Every interpreter that is installed of the versions whose heaps are known: the one on PATH, and those of pyenv.
#[must_use]
pub fn pythons() -> Vec<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".pyenv"))
    });
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let mut all: Vec<PathBuf> = python().map(|found| found.executable).into_iter().collect();
    all.extend(
        versions
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| fs::canonicalize(entry.path().join("bin/python3")).ok()),
    );
    all.retain(|python| {
        let known = "import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 14))";
        let status = Command::new(python).args(["-c", known]).status();
        status.is_ok_and(|status| status.success())
    });
    all.sort();
    all.dedup();
    all
}

/// Finds the interpreter.
///
/// # Errors
/// When there is none, or it does not say where it is.
pub fn python() -> Result<Python> {
    let name = env::var_os("LEAKSCOPE_PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let output = Command::new(&name)
        .args([
            "-c",
            "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('include'))",
        ])
        .output()
        .with_context(|| format!("running {}", name.display()))?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines();
    let (Some(executable), Some(include)) = (lines.next(), lines.next()) else {
        bail!("{} does not say where it is", name.display());
    };
    Ok(Python {
        executable: fs::canonicalize(executable)
            .with_context(|| format!("looking for {executable}"))?,
        include: PathBuf::from(include),
    })
}

/// Where Debian keeps libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// A script that gives way to a command: a victim in other surroundings, with the same process id.
///
/// # Errors
/// When it cannot be written.
pub fn script(folder: &Path, command: &str) -> Result<PathBuf> {
    let path = folder.join("start");
    fs::write(&path, format!("#!/bin/sh\n{command}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The same of a program before which a library is loaded; `None`, which is said, where that is not installed.
///
/// # Errors
/// When it cannot be written.
pub fn preloading(folder: &Path, library: &str, program: &Path) -> Result<Option<PathBuf>> {
    let library = Path::new(LIBRARIES).join(library);
    if !library.exists() {
        leave_out(&format!("{} is not installed", library.display()));
        return Ok(None);
    }
    let (library, program) = (library.display(), program.display());
    let command = format!("export LD_PRELOAD={library}; exec {program}");
    script(folder, &command).map(Some)
}
