//! A heap report for people.

use std::io::{self, Write};

use super::{HeapGroup, HeapReport, label, lost, notable};
use crate::{
    report::names::clean,
    units::{blocks, bytes, count, plural, share},
};

/// How the text is made.
#[derive(Clone, Copy, Debug)]
pub struct HeapStyle {
    /// At most so many groups.
    pub top: usize,
    /// Only what is unreachable, the most bytes first.
    pub unreachable_only: bool,
}

/// Writes a heap report as text.
///
/// # Errors
/// Those of `out`.
pub fn write_text(report: &HeapReport, style: HeapStyle, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "leakscope: heap of {} (pid {}), read from outside in {:.1} s  {}\n",
        clean(&report.comm),
        report.pid,
        report.heap.took_s,
        report.captured_at
    )?;
    for (name, told) in facts(report) {
        writeln!(out, "  {name:<12} {told}")?;
    }
    writeln!(out)?;
    if style.unreachable_only {
        unreachable(report, style.top, out)?;
    } else {
        all(report, style.top, out)?;
    }
    if report.losses.is_empty() {
        writeln!(out, "Losses    no losses")
    } else {
        for (name, lost) in &report.losses {
            writeln!(out, "Losses    {}", loss(name, *lost))?;
        }
        Ok(())
    }
}

/// What there is to say of the heap as a whole.
pub(super) fn facts(report: &HeapReport) -> [(&'static str, String); 5] {
    let reachable = if report.reachability_checked {
        format!(
            "{} in {} that no pointer in the process leads to ({} of the bytes in use), in two looks",
            bytes(report.unreachable_bytes),
            blocks(report.unreachable_objects),
            share(report.unreachable_bytes, report.heap.bytes)
        )
    } else {
        "not known: there were more pointers than there is room for".to_owned()
    };
    [
        ("allocator", report.allocators.join("; ")),
        (
            "in use",
            format!(
                "{} in {}",
                bytes(report.heap.bytes),
                blocks(report.heap.blocks)
            ),
        ),
        (
            "free inside",
            format!(
                "{} in {} piece{}; {} more at the end could be given back to the system",
                bytes(report.heap.free_bytes),
                count(report.heap.free_pieces),
                plural(report.heap.free_pieces),
                bytes(report.heap.top_bytes)
            ),
        ),
        (
            "anonymous",
            format!(
                "{} in the process; {} of it lies in no heap that was read (stacks, data, mappings, other allocators)",
                bytes(report.anonymous_bytes),
                bytes(report.unexplained_bytes)
            ),
        ),
        ("unreachable", reachable),
    ]
}

/// What was not seen, in a sentence.
pub(super) fn loss(name: &str, lost: u64) -> String {
    match name {
        "torn_bytes" => format!(
            "{} changed while they were read and were passed over",
            bytes(lost)
        ),
        "torn_pools" => format!(
            "{} pool{} changed while they were read: their free blocks count as in use",
            count(lost),
            plural(lost)
        ),
        "dropped_pointers" => format!("{} pointers between blocks were not kept", count(lost)),
        "thread_caches_unknown" => {
            "threads' caches were not recognised: blocks in them count as in use".to_owned()
        }
        "unread_mappings" => format!(
            "{} mapping{} of files on file systems that may not answer were not read",
            count(lost),
            plural(lost)
        ),
        other => format!("{other}: {}", count(lost)),
    }
}

fn all(report: &HeapReport, top: usize, out: &mut dyn Write) -> io::Result<()> {
    let is_difference = report
        .groups
        .iter()
        .any(|group| group.bytes_change.is_some());
    let change = if is_difference { "      change" } else { "" };
    writeln!(out, "      bytes     blocks{change}  unreachable  what")?;
    for group in report.groups.iter().take(top) {
        write!(
            out,
            "{:>11} {:>10}",
            bytes(group.bytes),
            count(group.objects)
        )?;
        if is_difference {
            write!(out, " {:>11}", signed(group.bytes_change.unwrap_or(0)))?;
        }
        let lost = if group.unreachable_objects == 0 {
            "-".to_owned()
        } else {
            bytes(group.unreachable_bytes)
        };
        writeln!(out, "  {lost:>11}  {}", label(group))?;
        holders(group, out)?;
    }
    rest(report.groups.get(top..).unwrap_or_default(), out)
}

fn unreachable(report: &HeapReport, top: usize, out: &mut dyn Write) -> io::Result<()> {
    let lost = lost(report);
    if lost.is_empty() {
        return writeln!(out, "Every block in use is reachable.\n");
    }
    writeln!(
        out,
        "     direct     blocks     indirect     blocks  what is lost (indirect: it hangs on another lost block)"
    )?;
    for group in lost.iter().take(top) {
        writeln!(
            out,
            "{:>11} {:>10}  {:>11} {:>10}  {}",
            bytes(group.direct_bytes),
            count(group.direct_objects),
            bytes(group.unreachable_bytes.saturating_sub(group.direct_bytes)),
            count(
                group
                    .unreachable_objects
                    .saturating_sub(group.direct_objects)
            ),
            label(group)
        )?;
    }
    writeln!(out)
}

fn holders(group: &HeapGroup, out: &mut dyn Write) -> io::Result<()> {
    for holder in notable(group) {
        let path: Vec<String> = holder
            .path
            .iter()
            .map(|step| clean(step).into_owned())
            .collect();
        writeln!(
            out,
            "{:38}{} <- {}",
            "",
            count(holder.objects),
            path.join(" <- ")
        )?;
    }
    Ok(())
}

fn rest(others: &[HeapGroup], out: &mut dyn Write) -> io::Result<()> {
    if !others.is_empty() {
        let sum =
            |part: fn(&HeapGroup) -> u64| others.iter().map(part).fold(0, u64::saturating_add);
        writeln!(
            out,
            "{:>11} {:>10}  {} more groups",
            bytes(sum(|group| group.bytes)),
            count(sum(|group| group.objects)),
            count(others.len() as u64)
        )?;
    }
    writeln!(out)
}

pub(super) fn signed(value: i64) -> String {
    let sign = if value < 0 { '-' } else { '+' };
    format!("{sign}{}", bytes(value.unsigned_abs()))
}
