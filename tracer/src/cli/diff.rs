//! `leakscope diff`: what changed between two saved files.

use std::process::ExitCode;

use super::{
    args::{DiffArguments, ViewArguments},
    output::Output,
    saved,
};
use crate::report::Difference;

/// Reads both and writes the difference.
pub(super) fn run(raw: &DiffArguments) -> anyhow::Result<ExitCode> {
    let base = saved::read(&raw.base)?;
    let new = saved::read(&raw.new)?;
    let view = ViewArguments::with_full(raw.full);
    let mut output = Output::open(raw.output.as_deref(), raw.format)?.with_view(view);
    let top = view.top(raw.top, raw.format);
    output.write_difference(&Difference::between(&base, &new).keep_top(top))?;
    Ok(ExitCode::SUCCESS)
}
