//! `run`: leakscope as root, and the demonstration.

use crate::shell::{self, root};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// What `run` is given.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Arguments for leakscope; none: the demonstration
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds leakscope and runs it.
///
/// # Errors
/// When something cannot be built or started; leakscope's own failures are its exit code.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    let binary = shell::build_leakscope()?;
    if arguments.arguments.is_empty() {
        return demonstrate(&binary);
    }
    let mut command = as_root(&binary)?;
    command.args(&arguments.arguments);
    // Replaced, not waited for: signals and the exit code are leakscope's own.
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", shell::describe(&command)))
}

/// The command that runs the binary as root, in the directory where we are.
fn as_root(binary: &Path) -> Result<Command> {
    let mut command = if shell::is_root() {
        shell::command(binary)
    } else if let Some(sudo) = shell::find_program("sudo") {
        let mut command = shell::command(sudo);
        command.arg("--").arg(binary);
        command
    } else {
        bail!(
            "tracing takes root, and there is no sudo: run `cargo xtask run` as root, or {} itself with CAP_BPF and CAP_PERFMON",
            binary.display()
        );
    };
    if let Ok(here) = std::env::current_dir() {
        command.current_dir(here);
    }
    Ok(command)
}

/// How long the demonstration is traced. A leak is named after 45 s at the earliest, for a cache that fills looks the same until
/// then; seen in windows, by which the budget is kept, it takes somewhat longer.
const DEMONSTRATED_FOR: &str = "2m";

fn demonstrate(binary: &Path) -> Result<ExitCode> {
    let mut victim = Victim::start(&compile_victim()?)?;
    let pid = victim.child.id().to_string();
    println!(
        "The demonstration program runs as process {pid}: {}",
        victim.greeting
    );
    println!("It takes {DEMONSTRATED_FOR} to tell a leak from a cache that fills:");
    println!("leakscope trace -p {pid} --for {DEMONSTRATED_FOR}\n");
    let status = as_root(binary)?
        .args(["trace", "-p", &pid, "--for", DEMONSTRATED_FOR])
        .status()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let farewell = victim.stop()?;
    println!("\nThe program itself counted, from its start to its end: {farewell}");
    println!("Your own: cargo xtask run -- trace -p PID --for 2m");
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        None => bail!("leakscope was killed ({status})"),
    })
}

/// Compiles the demonstration program with the C compiler that Rust links with anyway.
fn compile_victim() -> Result<PathBuf> {
    let source = root().join("tests/programs/demo.c");
    let program = shell::target_dir().join("demo");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    shell::run(
        shell::command(compiler)
            .args(["-g", "-O1", "-fno-omit-frame-pointer"])
            .args(["-fno-optimize-sibling-calls", "-o"])
            .arg(&program)
            .arg(&source),
    )
    .context(
        "the demonstration program needs a C compiler (Debian: apt-get install gcc libc6-dev)",
    )?;
    Ok(program)
}

/// The running demonstration program. It ends when its standard input does, so that it never outlives us.
struct Victim {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    greeting: String,
}

impl Victim {
    fn start(program: &Path) -> Result<Self> {
        let mut child = shell::command(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("it has no standard output")?;
        let mut output = BufReader::new(output);
        let mut greeting = String::new();
        output.read_line(&mut greeting)?;
        Ok(Self {
            child,
            output,
            greeting: greeting.trim_end().to_owned(),
        })
    }

    /// Ends it and gives its last words.
    fn stop(&mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut farewell = String::new();
        self.output.read_to_string(&mut farewell)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!(
                "the demonstration program ended with {status}: it must not notice that it is traced"
            );
        }
        Ok(farewell.trim_end().to_owned())
    }
}
