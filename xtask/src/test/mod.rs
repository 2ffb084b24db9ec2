//! `test`: every test that this machine allows, and what was skipped.
//!
//! Owns how tests are built, in which order they run and which at the same time, and the lists that say so: `tests/alone.txt`,
//! `tests/guests.txt` and `tests/quick.txt`.

mod lists;
mod pool;
mod suite;

use crate::shell;
use crate::vm;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use pool::{Done, Job};
use std::fs::File;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

pub(crate) use lists::List;
pub(crate) use suite::{Suite, Test};

/// What `test` is given.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    place: Option<Place>,
    /// Words: only tests with one of them in their names
    #[arg(last = true)]
    words: Vec<String>,
}

/// Which tests, and where.
#[derive(Subcommand)]
enum Place {
    /// The unit tests and a handful of kernel tests, in less than 2 minutes
    Quick,
    /// The tests that depend on the kernel, on other kernels, in QEMU
    Vm(vm::Arguments),
}

/// The variable by which skipped kernel tests are failures.
pub(crate) const REQUIRE_KERNEL: &str = "LEAKSCOPE_REQUIRE_KERNEL";

/// The variable that names the binary under test.
pub(crate) const BINARY: &str = "LEAKSCOPE_BIN";

/// With these words begins a line that a skipped test writes to stderr.
pub(crate) const SKIPPED: &str = "SKIPPED:";

/// With these words begins the name of what is run once in any case.
const UNITS: &str = "unit tests";

/// So many of the slowest tests are named.
const SLOWEST: usize = 10;

/// Runs the tests.
///
/// # Errors
/// When something cannot be built, a test fails, or one was skipped although [`REQUIRE_KERNEL`] is set.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    let quick = match &arguments.place {
        Some(Place::Vm(arguments)) => return vm::perform(arguments),
        Some(Place::Quick) => true,
        None => false,
    };
    let suite = Suite::build()?;
    let mut tests = suite.tests(&arguments.words)?;
    let alone = List::read("alone")?;
    if arguments.words.is_empty() {
        alone.check(&tests)?;
    }
    if quick {
        let list = List::read("quick")?;
        list.check(&tests)?;
        tests.retain(|test| list.has(test));
    }
    let (alone, shared): (Vec<Test>, Vec<Test>) =
        tests.into_iter().partition(|test| alone.has(test));

    let mut results = Results::default();
    let runner = Runner::choose();
    let mut jobs: Vec<Job> = units(&suite, &arguments.words);
    jobs.extend(shared.iter().map(|test| runner.job(test, &suite)));
    // Kernel tests wait more than they work, most of all for the kernel to remove breakpoints.
    let processors = thread::available_parallelism().map_or(2, usize::from);
    println!("\n=== {} at the same time", 2 * processors);
    pool::run(jobs, 2 * processors, |done| results.heed(done));
    if !alone.is_empty() {
        println!("\n=== one after the other, alone on the machine");
        let jobs = alone.iter().map(|test| runner.job(test, &suite)).collect();
        pool::run(jobs, 1, |done| results.heed(done));
    }
    let again: Vec<Job> = shared
        .iter()
        .chain(&alone)
        .map(|test| runner.job(test, &suite))
        .filter(|job| results.failed.contains(&job.name))
        .collect();
    if !again.is_empty() {
        println!("\n=== what failed, once more, alone on the machine");
        results.try_again();
        pool::run(again, 1, |done| results.heed(done));
    }
    results.conclude()
}

/// The unit tests, package by package.
fn units(suite: &Suite, words: &[String]) -> Vec<Job> {
    suite
        .units
        .iter()
        .map(|unit| {
            let mut command = Command::new(&unit.path);
            command
                .args(words)
                .current_dir(&unit.package)
                .env("CARGO_MANIFEST_DIR", &unit.package);
            Job {
                name: format!("{UNITS} of {}", unit.name),
                command,
            }
        })
        .collect()
}

/// How tests of the whole program are started: kernel tests need root.
struct Runner {
    sudo: bool,
}

impl Runner {
    /// Through sudo where we are not root and that asks for no password.
    fn choose() -> Self {
        let sudo =
            !shell::is_root() && shell::ask(shell::command("sudo").args(["-n", "true"])).is_some();
        Self { sudo }
    }

    fn job(&self, test: &Test, suite: &Suite) -> Job {
        let mut command = if self.sudo {
            let mut command = shell::command("sudo");
            command.arg("-E").arg(&test.path);
            command
        } else {
            shell::command(&test.path)
        };
        command
            .args(["--exact", &test.name])
            .current_dir(&test.dir)
            .env(BINARY, &suite.leakscope);
        Job {
            name: format!("{} {}", test.binary, test.name),
            command,
        }
    }
}

/// What came of the tests.
#[derive(Default)]
struct Results {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    /// What failed and is run a second time. A test of the whole program goes by real time on a machine that others use.
    again: Vec<String>,
    times: Vec<(Duration, String)>,
}

impl Results {
    /// Takes and shows one.
    fn heed(&mut self, done: Done) {
        println!(
            "{} {:>6.1} s  {}",
            if done.passed { "ok    " } else { "FAILED" },
            done.time.as_secs_f64(),
            done.name
        );
        for line in done.remarks.lines() {
            println!("{:17}{line}", "");
            if let Some(at) = line.find(SKIPPED) {
                self.skipped
                    .push(line.get(at..).unwrap_or_default().trim_end().to_owned());
            }
        }
        if done.passed {
            self.passed += 1;
            for line in done.results.lines() {
                // Of a program with one test nothing more is to be said.
                if line.starts_with("test result:") && !line.contains(" 1 passed") {
                    println!("{:17}{line}", "");
                }
            }
        } else {
            print!("{}", done.results);
            self.failed.push(done.name.clone());
        }
        self.times.push((done.time, done.name));
    }

    /// Forgets what failed: it is about to be run again.
    fn try_again(&mut self) {
        let whole = |name: &String| !name.starts_with(UNITS);
        self.again = self.failed.extract_if(.., |name| whole(name)).collect();
    }

    /// Says loudly what was skipped, what failed, and what passed only when it was tried again.
    fn conclude(mut self) -> Result<ExitCode> {
        self.times.sort();
        println!("\n=== the slowest");
        for (time, name) in self.times.iter().rev().take(SLOWEST) {
            println!("{:>6.1} s  {name}", time.as_secs_f64());
        }
        if !self.skipped.is_empty() {
            println!(
                "\n=== {} SKIPPED, so nothing is known of them:",
                self.skipped.len()
            );
            for line in &self.skipped {
                println!("    {line}");
            }
            if !shell::is_root() {
                println!(
                    "    (kernel tests need root: sudo -E env PATH=\"$PATH\" cargo xtask test)"
                );
            }
        }
        let unsteady: Vec<&String> = self
            .again
            .iter()
            .filter(|name| !self.failed.contains(name))
            .collect();
        if !unsteady.is_empty() {
            println!(
                "\n=== {} FAILED ONCE and passed when tried again:",
                unsteady.len()
            );
            for name in unsteady {
                println!("    {name}");
            }
        }
        if !self.failed.is_empty() {
            bail!("tests failed:\n  {}", self.failed.join("\n  "));
        }
        if required() && !self.skipped.is_empty() {
            bail!("{REQUIRE_KERNEL}=1, and tests were skipped");
        }
        println!(
            "\n=== all {} that ran passed; {} skipped",
            self.passed,
            self.skipped.len()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether skipping is failing.
pub(crate) fn required() -> bool {
    std::env::var(REQUIRE_KERNEL).is_ok_and(|value| value == "1")
}

/// Keeps tests waiting that must have the machine to themselves, as the kernel tests do among each other.
///
/// # Errors
/// When the file between them cannot be locked.
pub(crate) fn share_machine() -> Result<File> {
    let path = std::env::temp_dir().join("leakscope-kernel-tests.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock_shared()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
