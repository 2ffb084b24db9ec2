//! `test`: every test that this machine allows, and what was skipped.

use crate::shell::{self, cargo};
use crate::vm;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

/// What `test` is given.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    place: Option<Place>,
    /// Arguments for the test binaries, such as a filter
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Where else tests can run.
#[derive(Subcommand)]
enum Place {
    /// The kernel tests on other kernels, in QEMU
    Vm(vm::Arguments),
}

/// The variable by which skipped kernel tests are failures.
pub(crate) const REQUIRE_KERNEL: &str = "LEAKSCOPE_REQUIRE_KERNEL";

/// The variable that names the binary under test.
pub(crate) const BINARY: &str = "LEAKSCOPE_BIN";

/// With these words begins a line that a skipped test writes to stderr.
pub(crate) const SKIPPED: &str = "SKIPPED:";

/// Runs the tests.
///
/// # Errors
/// When something cannot be built, a test fails, or one was skipped although [`REQUIRE_KERNEL`] is set.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(Place::Vm(arguments)) = &arguments.place {
        return vm::perform(arguments);
    }
    let binary = shell::build_leakscope()?;
    let mut skipped = Vec::new();
    let mut failed = Vec::new();

    let mut pure = cargo();
    pure.args(["test", "--workspace", "--exclude", "leakscope-tests"])
        .args(["--no-fail-fast", "--"])
        .args(&arguments.rest);
    if !follow(&mut pure, &mut skipped)? {
        failed.push("cargo test --workspace --exclude leakscope-tests");
    }

    let mut whole = cargo();
    whole.env(BINARY, &binary);
    if !shell::is_root() {
        through_sudo(&mut whole);
    }
    whole
        .args(["test", "--package", "leakscope-tests", "--no-fail-fast"])
        .arg("--")
        .args(&arguments.rest);
    if !follow(&mut whole, &mut skipped)? {
        failed.push("cargo test --package leakscope-tests");
    }
    conclude(&failed, &skipped)
}

/// Says loudly what was skipped and what failed.
fn conclude(failed: &[&str], skipped: &[String]) -> Result<ExitCode> {
    if !skipped.is_empty() {
        println!(
            "\n=== {} SKIPPED, so nothing is known of them:",
            skipped.len()
        );
        for line in skipped {
            println!("    {line}");
        }
        if !shell::is_root() {
            println!("    (kernel tests need root: sudo -E env PATH=\"$PATH\" cargo xtask test)");
        }
    }
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join(", "));
    }
    if required() && !skipped.is_empty() {
        bail!("{REQUIRE_KERNEL}=1, and tests were skipped");
    }
    println!("\n=== all tests that ran passed; {} skipped", skipped.len());
    Ok(ExitCode::SUCCESS)
}

/// Whether skipping is failing.
pub(crate) fn required() -> bool {
    std::env::var(REQUIRE_KERNEL).is_ok_and(|value| value == "1")
}

/// Lets the command run test binaries through sudo where that asks for no password.
fn through_sudo(command: &mut Command) {
    let host = shell::ask(Command::new("rustc").arg("-vV")).and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("host: "))
            .map(|host| host.to_uppercase().replace('-', "_"))
    });
    let allowed = shell::ask(shell::command("sudo").args(["-n", "true"])).is_some();
    if let (Some(host), true) = (host, allowed) {
        command.env(format!("CARGO_TARGET_{host}_RUNNER"), "sudo -E");
    }
}

/// Runs the command, shows its output as it comes, and collects the lines about skipped tests. Gives whether it succeeded.
fn follow(command: &mut Command, skipped: &mut Vec<String>) -> Result<bool> {
    println!("\n=== {}", shell::describe(command));
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shell::describe(command)))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let other = thread::spawn(move || pass_on(stderr));
    skipped.extend(pass_on(stdout));
    if let Ok(lines) = other.join() {
        skipped.extend(lines);
    }
    Ok(child.wait()?.success())
}

/// Copies to our stdout line by line; gives the lines about skipped tests.
fn pass_on(stream: impl Read) -> Vec<String> {
    let mut skipped = Vec::new();
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { break };
        let mut out = std::io::stdout().lock();
        // A closed terminal is no reason to stop the tests.
        let _closed = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
        let text = String::from_utf8_lossy(&line);
        if let Some(at) = text.find(SKIPPED) {
            skipped.push(text.get(at..).unwrap_or_default().trim_end().to_owned());
        }
    }
    skipped
}
