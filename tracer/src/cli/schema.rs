//! `leakscope schema`: the JSON Schema of reports, as `--format json` writes them.

use std::process::ExitCode;

use super::{args::FormatChoice, output::Output};
use crate::report::JSON_SCHEMA;

/// Writes it.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    Output::open(None, FormatChoice::Json)?.write_bytes(JSON_SCHEMA.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
