//! The programs that are measured: built with `cc -O2`, asked over their standard input (tests/programs/bench.h).

use super::case::Case;
use super::child::Running;
use crate::shell::{self, root};
use anyhow::{Context as _, Result, bail};
use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How often it is asked for its pace, and the CPU time that a pace rests on: an answer takes some 10 µs.
const PACE_EVERY: Duration = Duration::from_millis(20);
const PACE_CPU_NS: u64 = 5_000_000;
/// How long renewing a live set of millions may take under the slowest tracer.
const FILL_WITHIN: Duration = Duration::from_secs(120);
/// How long it may take to start under Valgrind, with its live set.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Compiles a program as distributions do: optimized, no frame pointers.
///
/// # Errors
/// When there is no C compiler or it complains.
pub(super) fn compile(program: &str) -> Result<PathBuf> {
    compile_source(program, &format!("{program}.c"), "CC", "cc").context(
        "the benchmark's programs need a C compiler (Debian: apt-get install gcc libc6-dev)",
    )
}

/// The same of a program in C++.
///
/// # Errors
/// When there is no C++ compiler or it complains.
pub(super) fn compile_cpp(program: &str, source: &str) -> Result<PathBuf> {
    compile_source(program, source, "CXX", "c++")
        .context("it takes a C++ compiler (Debian: apt-get install g++)")
}

fn compile_source(program: &str, source: &str, variable: &str, usual: &str) -> Result<PathBuf> {
    let folder = shell::target_dir().join("bench");
    shell::make_dir(&folder)?;
    let path = folder.join(program);
    let compiler = std::env::var_os(variable).unwrap_or_else(|| usual.into());
    shell::run(
        shell::command(compiler)
            .args(["-O2", "-g", "-fomit-frame-pointer", "-pthread", "-o"])
            .arg(&path)
            .arg(root().join("tests/programs").join(source))
            .arg("-lm"),
    )?;
    Ok(path)
}

/// How far a program has come; the difference of two is a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) operations: u64,
    pub(super) wall_ns: u64,
    /// CPU time of the whole process.
    pub(super) cpu_ns: u64,
}

impl Sub for Progress {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            operations: self.operations.saturating_sub(earlier.operations),
            wall_ns: self.wall_ns.saturating_sub(earlier.wall_ns),
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
        }
    }
}

impl Progress {
    /// CPU time of an operation: other processes on the machine do not lengthen it.
    pub(super) fn cpu_ns_per_operation(&self) -> f64 {
        self.cpu_ns as f64 / self.operations.max(1) as f64
    }

    pub(super) fn operations_per_second(&self) -> f64 {
        self.operations as f64 * 1e9 / self.wall_ns.max(1) as f64
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            operations: next()?,
            wall_ns: next()?,
            cpu_ns: next()?,
        })
    }
}

/// What a program has leaked by its own count; the difference of two is a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaked {
    pub(super) bytes: u64,
    pub(super) wall_ns: u64,
}

impl Sub for Leaked {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            wall_ns: self.wall_ns.saturating_sub(earlier.wall_ns),
        }
    }
}

impl Leaked {
    pub(super) fn bytes_per_second(self) -> f64 {
        self.bytes as f64 * 1e9 / self.wall_ns.max(1) as f64
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(str::parse);
        // The number of blocks comes first.
        let mut next = || -> Option<u64> { numbers.next()?.ok() };
        next()?;
        Some(Self {
            bytes: next()?,
            wall_ns: next()?,
        })
    }
}

/// A running program.
pub(super) struct Victim {
    running: Running,
    pid: u32,
}

impl Victim {
    /// Starts the program of a case.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn of(case: &Case, program: &Path, folder: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(case.arguments);
        Self::start(&mut command, folder)
    }

    /// Starts it, perhaps through a tool's command; what the tool says on stdout before is skipped.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(command: &mut Command, folder: &Path) -> Result<Self> {
        let running = Running::start(command, &folder.join("victim.log"))?;
        loop {
            let (_, line) = running.line(READY_WITHIN)?;
            if let Some(pid) = line.strip_prefix("ready ") {
                let pid = pid.parse().context("the program's process id")?;
                return Ok(Self { running, pid });
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    fn ask(&mut self, question: &str, within: Duration) -> Result<String> {
        self.running.say(question)?;
        self.running
            .line(within)
            .map(|(_, line)| line)
            .with_context(|| format!("asked the program: {question}"))
    }

    /// How far it has come.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn progress(&mut self) -> Result<Progress> {
        let line = self.ask("?", ANSWER_WITHIN)?;
        Progress::parse(&line).with_context(|| format!("the program answered {line:?}"))
    }

    /// What it has leaked.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn leaked(&mut self) -> Result<Leaked> {
        let line = self.ask("leaked", ANSWER_WITHIN)?;
        Leaked::parse(&line).with_context(|| format!("the program answered {line:?}"))
    }

    /// Its longest operation since this was last asked, nanoseconds.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn gap(&mut self) -> Result<u64> {
        let line = self.ask("gap", ANSWER_WITHIN)?;
        line.parse()
            .with_context(|| format!("the program answered {line:?}"))
    }

    /// How far it comes in this time.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn measure(&mut self, time: Duration) -> Result<Progress> {
        let before = self.progress()?;
        thread::sleep(time);
        Ok(self.progress()? - before)
    }

    /// Its pace just now. On a busy machine a program may not run at all for a while: it is watched until it has had
    /// some CPU time, so that its operations can be told from its answers.
    ///
    /// # Errors
    /// When it does not answer, or gets no CPU time.
    pub(super) fn pace(&mut self) -> Result<Progress> {
        let before = self.progress()?;
        let begun = Instant::now();
        loop {
            thread::sleep(PACE_EVERY);
            let pace = self.progress()? - before;
            if pace.cpu_ns >= PACE_CPU_NS {
                return Ok(pace);
            }
            if begun.elapsed() > ANSWER_WITHIN {
                bail!("the program had no CPU time for {ANSWER_WITHIN:?}");
            }
        }
    }

    /// Lets only so many of its threads go on.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn activate(&mut self, threads: u32) -> Result<()> {
        let line = format!("active {threads}");
        let answer = self.ask(&line, ANSWER_WITHIN)?;
        if answer != line {
            bail!("the program answered {answer:?} to {line:?}");
        }
        Ok(())
    }

    /// Lets it renew all that it holds.
    ///
    /// # Errors
    /// When it does not come to an end.
    pub(super) fn fill(&mut self) -> Result<()> {
        let answer = self.ask("fill", FILL_WITHIN)?;
        if answer != "filled" {
            bail!("the program answered {answer:?} to \"fill\"");
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub(super) fn end(mut self) -> Result<()> {
        self.running.end(ANSWER_WITHIN).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::Progress;

    #[test]
    fn answers_are_read_and_subtracted() {
        let early = Progress::parse("10 1000 900").unwrap();
        let late = Progress::parse("30 3000 2000").unwrap();
        let between = late - early;
        assert_eq!(between.operations, 20);
        assert!((between.cpu_ns_per_operation() - 55.0).abs() < 1e-9);
        assert!((between.operations_per_second() - 1e7).abs() < 1e-3);
        assert_eq!(Progress::parse("10 1000"), None);
        assert_eq!(Progress::parse("filled"), None);
    }
}
