//! `leakscope diff`: what changed between two saved files.

use std::process::ExitCode;

use super::{args::DiffArguments, output::Output, saved};
use crate::report::Difference;

/// Reads both and writes the difference.
pub(super) fn run(raw: &DiffArguments) -> anyhow::Result<ExitCode> {
    let base = saved::read(&raw.base)?;
    let new = saved::read(&raw.new)?;
    let mut output = Output::open(raw.output.as_deref(), raw.format)?;
    let top = raw.format.top(raw.top);
    output.write_difference(&Difference::between(&base, &new).keep_top(top))?;
    Ok(ExitCode::SUCCESS)
}
