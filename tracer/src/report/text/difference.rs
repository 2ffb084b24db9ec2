//! What changed between two reports, for people.

use std::io::{self, Write};

use super::stack;
use super::{BOLD, DIM, RED, Text};
use crate::report::SiteKind;
use crate::report::difference::{Change, ChangeKind, Changed, Difference};
use crate::report::names::clean;
use crate::units::{blocks, bytes, count, duration, plural};

/// `+1.50 KiB`, `-3 B`, `±0 B`.
fn signed_bytes(value: i64) -> String {
    format!("{}{}", sign(value), bytes(value.unsigned_abs()))
}

fn signed_blocks(value: i64) -> String {
    format!("{}{}", sign(value), blocks(value.unsigned_abs()))
}

fn sign(value: i64) -> char {
    match value {
        ..0 => '-',
        0 => '±',
        1.. => '+',
    }
}

pub(super) fn write(text: Text, difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
    let (base, new) = (&difference.base, &difference.new);
    let between_ms = new.captured_at.unix_ms() as f64 - base.captured_at.unix_ms() as f64;
    let title = format!(
        "leakscope: what changed in {}",
        duration(between_ms.abs() / 1000.0)
    );
    writeln!(
        out,
        "{}  {}\n",
        text.dress(BOLD, &title),
        text.dress(
            DIM,
            &format!("from {} to {}", base.captured_at, new.captured_at)
        )
    )?;
    if between_ms < 0.0 {
        writeln!(out, "The base is the later of the two.\n")?;
    }
    let two_traces = difference.of_two_traces();
    if two_traces {
        writeln!(
            out,
            "Two traces: each counts what was allocated in it and survives, for {} and for {}.\n",
            duration(base.duration_s),
            duration(new.duration_s)
        )?;
    }
    let mut rank = 0_u64;
    let mut churned = Changed::default();
    for change in &difference.changes {
        if change.change == ChangeKind::Churned {
            churned.add(&change.by);
            continue;
        }
        rank += 1;
        one(text, change, rank, two_traces, out)?;
    }
    if rank == 0 {
        writeln!(
            out,
            "{}\n",
            text.dress(BOLD, "No stack holds more or less than before")
        )?;
    }
    let total = difference.total;
    text.line(
        "Change",
        &format!(
            "{} in {}: {} before, {} now",
            signed_bytes(total.inuse_bytes_change),
            signed_blocks(total.inuse_objects_change),
            bytes(base.inuse_bytes),
            bytes(new.inuse_bytes),
        ),
        out,
    )?;
    // The sums of two traces are of different times.
    if !two_traces {
        text.line(
            "Allocated",
            &format!(
                "{} in {} meanwhile",
                signed_bytes(total.alloc_bytes_change),
                signed_blocks(total.alloc_objects_change)
            ),
            out,
        )?;
    }
    if churned.stacks > 0 {
        text.line(
            "Churned",
            &format!(
                "{} stack{} that allocated and hold{} as much as before",
                count(churned.stacks),
                plural(churned.stacks),
                if churned.stacks == 1 { "s" } else { "" }
            ),
            out,
        )?;
    }
    let omitted = difference.omitted;
    if omitted.stacks > 0 {
        text.line(
            "Not shown",
            &format!(
                "{} stack{} with {} in {}",
                count(omitted.stacks),
                plural(omitted.stacks),
                signed_bytes(omitted.inuse_bytes_change),
                signed_blocks(omitted.inuse_objects_change)
            ),
            out,
        )?;
    }
    Ok(())
}

fn one(
    text: Text,
    change: &Change,
    rank: u64,
    two_traces: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let site = &change.site;
    let head = format!(
        "#{rank}  {} in {}",
        signed_bytes(change.by.inuse_bytes_change),
        signed_blocks(change.by.inuse_objects_change)
    );
    let color = match change.change {
        ChangeKind::New | ChangeKind::Grown => RED,
        _ => BOLD,
    };
    write!(
        out,
        "{}  {}",
        text.dress(BOLD, &head),
        text.dress(color, change.change.name())
    )?;
    if site.kind == SiteKind::Pages {
        write!(out, "  touched pages, not in the sums")?;
    }
    // Profiles of other programs do not say whose they are.
    if !change.comm.is_empty() || site.pid != 0 {
        write!(out, "  {} (pid {})", clean(&change.comm), site.pid)?;
    }
    writeln!(out)?;
    let (own, callers) = stack::split(&site.frames);
    let mut facts = format!(
        "{} before, {} now",
        bytes(change.inuse_bytes_base),
        bytes(site.inuse_bytes)
    );
    // Of a stack that the later report does not have, nothing is known of what it allocated.
    if change.by.alloc_objects_change > 0 && !two_traces {
        facts.push_str(&format!(
            " · {} allocated meanwhile",
            blocks(change.by.alloc_objects_change.unsigned_abs())
        ));
    }
    if let Some(via) = stack::via(own) {
        facts.push_str(&format!(" · via {via}"));
    }
    writeln!(out, "    {}", text.dress(DIM, &facts))?;
    text.stack(site, own.is_empty(), callers, out)?;
    writeln!(out)
}
