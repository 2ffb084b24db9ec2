//! `leakscope report`: a saved report in any format.

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::bail;

use super::{
    args::{FilterArguments, ReportArguments},
    output::{Output, complain},
    saved,
};
use crate::{
    process::select::Selector,
    report::{Filter, Report, process_name},
};

/// Where control groups are mounted, which is no part of a group's path.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Reads the report and writes what is wanted of it.
pub(super) fn run(raw: &ReportArguments) -> anyhow::Result<ExitCode> {
    let filter = filter(&raw.only)?;
    let report = saved::read(&raw.file)?;
    let mut output = Output::open(raw.output.as_deref(), raw.format)?.with_view(raw.view);
    let part = report.only(&filter, raw.view.top(raw.top, raw.format));
    if part.processes.is_empty() && !filter.is_empty() {
        bail!(
            "{}: none of its processes is one that was asked for; {}",
            raw.file.display(),
            listed(&report)
        );
    }
    let is_there = |pid: &u32| part.processes.iter().any(|process| process.pid == *pid);
    for pid in filter.pids.iter().filter(|pid| !is_there(pid)) {
        complain(&format!(
            "leakscope: process {pid} is not in {}; the others are shown",
            raw.file.display()
        ));
    }
    output.write(&part)?;
    Ok(ExitCode::SUCCESS)
}

/// So many processes of a report are named; of the others the number is given.
const LISTED: usize = 10;

/// The processes that a report is of, in words.
fn listed(report: &Report) -> String {
    let all = &report.processes;
    if all.is_empty() {
        return "it is of none".to_owned();
    }
    let mut named: Vec<String> = all.iter().take(LISTED).map(process_name).collect();
    let more = all.len().saturating_sub(LISTED);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    format!("it is of {}", named.join(", "))
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
