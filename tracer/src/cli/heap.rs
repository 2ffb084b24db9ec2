//! `leakscope heap`: what a live heap holds, without a probe.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
    time::{Instant, SystemTime},
};

use anyhow::Context as _;

use super::{
    args::{FormatChoice, HeapArguments, HeapBy, HeapFormat},
    output::Output,
    places::debuginfod,
};
use crate::{
    heap::GLIBC_VERSIONS,
    process::procfs::read_process,
    reader::{LookWish, look_at},
    report::{
        Timestamp,
        heap::{About, GroupBy, HeapReport, HeapStyle, write_dot, write_html, write_text},
    },
    session::check_target,
};

/// Where the kernel shows its processes.
const PROC: &str = "/proc";
/// The largest report that is read, bytes.
const LARGEST: u64 = 1 << 30;
/// Of so many groups the holders are told.
const GROUPS_WITH_HOLDERS: usize = 20;
/// Looks at the heap twice and writes what it found.
pub(super) fn run(raw: &HeapArguments) -> anyhow::Result<ExitCode> {
    // Before anything is read, so that a mistake is found first.
    let mut output = Output::open(raw.output.as_deref(), FormatChoice::Text)?;
    let base = raw.base.as_deref().map(read_base).transpose()?;
    let begun = Instant::now();
    check_target(raw.pid)?;
    let process = read_process(Path::new(PROC), raw.pid)?;
    let servers = debuginfod();
    let wish = LookWish {
        levels: raw.holders as usize,
        groups_with_holders: GROUPS_WITH_HOLDERS,
        by_size: raw.by == HeapBy::Size,
        until: None,
        most_bytes: u64::MAX,
        wants_blocks: false,
    };
    let Some((look, image)) = look_at(Path::new(PROC), raw.pid, wish, &[], servers.as_ref())?
    else {
        // It may have ended meanwhile.
        read_process(Path::new(PROC), raw.pid)?;
        anyhow::bail!(
            "process {}: no heap that is known: neither glibc's ({GLIBC_VERSIONS}) nor CPython's; `leakscope doctor -p {}` says \
             which allocators it uses, and `leakscope trace -p {}` sees what they hand out",
            raw.pid,
            raw.pid,
            raw.pid
        );
    };
    let about = About {
        pid: raw.pid,
        comm: process.comm,
        captured_at: Timestamp::from(SystemTime::now()),
        took_s: begun.elapsed().as_secs_f64(),
        anonymous_bytes: image.anonymous_bytes,
        heap_anonymous_bytes: look.present_bytes,
        unread_mappings: image.unread_mappings as u64,
    };
    let by = match raw.by {
        HeapBy::Type => GroupBy::Type,
        HeapBy::Size => GroupBy::Size,
    };
    let mut report = HeapReport::new(&look, &about, by);
    if let Some(base) = base {
        report.compare(&base);
    }
    let mut bytes = Vec::new();
    let style = HeapStyle {
        top: raw.top,
        unreachable_only: raw.unreachable,
    };
    match raw.format {
        HeapFormat::Text => write_text(&report, style, &mut bytes),
        HeapFormat::Html => write_html(&report, style, &mut bytes),
        HeapFormat::Json => serde_json::to_writer(&mut bytes, &report)
            .map_err(io::Error::from)
            .and_then(|()| bytes.write_all(b"\n")),
        HeapFormat::Dot => write_dot(&report, &mut bytes),
    }?;
    output.write_bytes(&bytes)?;
    Ok(ExitCode::SUCCESS)
}

/// A saved report to compare with.
fn read_base(path: &Path) -> anyhow::Result<HeapReport> {
    let place = || format!("cannot use {}", path.display());
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST).read_to_end(&mut bytes))
        .with_context(place)?;
    HeapReport::from_json(&bytes).with_context(place)
}
