//! The project's own chores: `cargo xtask bpf build|check`, `run`, `test [quick|vm]`, `bench`, `fuzz`, `dist`,
//! `lint`.
//!
//! This crate owns how things are built, started and checked. It must not know what the tracer computes: it only runs
//! the tracer's binary and the tests.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool for developers: its output is text on a terminal"
)]

mod bench;
mod bpf;
mod dist;
mod fuzz;
mod lint;
mod run;
mod shell;
mod test;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The command line.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run and check leakscope")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

/// What can be asked for.
#[derive(Subcommand)]
enum Chore {
    /// The BPF object: rebuild it, or check that the committed one is what the sources give
    Bpf {
        #[command(subcommand)]
        action: bpf::Action,
    },
    /// Build leakscope and run it as root; without arguments: trace the demonstration program for 2 minutes
    Run(run::Arguments),
    /// Run every test that this machine allows
    Test(test::Arguments),
    /// Measure what tracing costs, beside empty probes and other tools
    Bench(bench::Arguments),
    /// Feed the readers of untrusted input with damaged input, for a bounded time
    Fuzz(fuzz::Arguments),
    /// What is shipped: a static binary, packages, an image, what they are made of
    Dist(dist::Arguments),
    /// rustfmt, clippy with warnings denied, and the rules of the house
    Lint,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().chore {
        Chore::Bpf { action } => bpf::perform(&action),
        Chore::Run(arguments) => run::perform(&arguments),
        Chore::Test(arguments) => test::perform(&arguments),
        Chore::Bench(arguments) => bench::perform(&arguments),
        Chore::Fuzz(arguments) => fuzz::perform(&arguments),
        Chore::Dist(arguments) => dist::perform(&arguments),
        Chore::Lint => lint::perform(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
