//! Arguments (raw) to a plan (validated), and what each subcommand does with it. A file for each subcommand. The only
//! room that writes to stdout and stderr.

mod args;
mod doctor;
mod floor;
mod output;
mod plan;
mod progress;
mod stop;
mod trace;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};

/// Parses the arguments, runs the subcommand, and gives the exit code: 0 done, 1 could not do it, 2 usage.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Trace(raw) => plan::TracePlan::new(*raw).and_then(|plan| trace::run(&plan)),
        Command::Doctor(raw) => doctor::run(&raw),
        Command::Floor(raw) => floor::run(&raw),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::complain(&format!("leakscope: {error:#}"));
            ExitCode::from(1)
        }
    }
}
