//! `leakscope reader`: parses what processes can write, for the leakscope that started it. Not for users.

use std::process::ExitCode;

use anyhow::Context as _;

/// Answers until nobody asks.
pub(super) fn run(memory: u64) -> anyhow::Result<ExitCode> {
    crate::apart::serve(memory).context("cannot read for others: leakscope starts this itself")?;
    Ok(ExitCode::SUCCESS)
}
