//! `leakscope diff`: what changed between two saved files.

use std::{fs::File, io::Read as _, path::Path, process::ExitCode};

use anyhow::Context as _;

use super::{args::DiffArguments, output::Output};
use crate::report::{Difference, Report, pprof};

/// The largest file that is read, bytes.
const LARGEST: u64 = 1 << 30;

/// Stacks for people, where no number is given.
const TOP: usize = 20;

/// Reads both and writes the difference.
pub(super) fn run(raw: &DiffArguments) -> anyhow::Result<ExitCode> {
    let base = read(&raw.base)?;
    let new = read(&raw.new)?;
    let mut output = Output::open(raw.output.as_deref(), raw.format)?;
    let top = match raw.top {
        Some(top) => top,
        None if raw.format.is_for_people() => TOP,
        None => usize::MAX,
    };
    output.write_difference(&Difference::between(&base, &new).keep_top(top))?;
    Ok(ExitCode::SUCCESS)
}

/// A saved report, whether as JSON or as a profile.
fn read(path: &Path) -> anyhow::Result<Report> {
    let place = || {
        format!(
            "cannot use {}; save a report with --format json or --format pprof",
            path.display()
        )
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .with_context(place)?;
    if bytes.len() as u64 > LARGEST {
        return Err(anyhow::anyhow!("it has more than {} MiB", LARGEST >> 20)).with_context(place);
    }
    // No profile begins with a brace: in its encoding, that is the end of a group, which profiles do not have.
    if bytes.trim_ascii_start().starts_with(b"{") {
        Report::from_json(&bytes).with_context(place)
    } else {
        pprof::read(&bytes)
            .and_then(|profile| pprof::to_report(&profile))
            .with_context(place)
    }
}
