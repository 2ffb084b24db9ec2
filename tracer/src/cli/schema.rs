//! `leakscope schema`: the JSON Schema of reports, as `--format json` writes them.

use std::process::ExitCode;

use super::{args::FormatChoice, output::Output};
use crate::report::json_schema;

/// Writes it.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    Output::open(None, FormatChoice::Json)?.write_bytes(json_schema()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
