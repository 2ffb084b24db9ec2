//! `leakscope report`: a saved report in any format.

use std::{path::Path, process::ExitCode, sync::Arc};

use super::{args::FilterArguments, args::ReportArguments, output::Output, saved};
use crate::{process::select::Selector, report::Filter};

/// Where control groups are mounted, which is no part of a group's path.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Reads the report and writes what is wanted of it.
pub(super) fn run(raw: &ReportArguments) -> anyhow::Result<ExitCode> {
    let filter = filter(&raw.only)?;
    let report = saved::read(&raw.file)?;
    let mut output = Output::open(raw.output.as_deref(), raw.format)?.with_view(raw.view);
    output.write(&report.only(&filter, raw.view.top(raw.top, raw.format)))?;
    Ok(ExitCode::SUCCESS)
}

/// Which processes of a report are wanted.
fn filter(raw: &FilterArguments) -> anyhow::Result<Filter> {
    let comms = if raw.comm.is_empty() {
        None
    } else {
        Some(Arc::new(*Selector::new(&raw.comm, Vec::new())?.selection()))
    };
    let path = |path: &Path| {
        let path = path.to_string_lossy();
        path.strip_prefix(CGROUPS).unwrap_or(&path).to_owned()
    };
    Ok(Filter {
        pids: raw.pid.clone(),
        comms,
        cgroups: raw.cgroup.iter().map(|group| path(group)).collect(),
    })
}
