//! Folded stacks: `comm-pid;main;parse 1024`, root first, a line per distinct stack with its surviving bytes. What
//! `flamegraph.pl`, inferno and speedscope read.
//!
//! Stacks that touched pages stand apart below a frame of that name: other stacks hold the same bytes as mappings.
//!
//! Functions of Python carry their file and line. Frames carry the annotations of `stackcollapse-perf`: `_[i]` inlined, `_[j]` generated code, `_[k]` kernel.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use super::model::{Frame, FrameKind, Report, Site, SiteKind};
use super::names::{
    TOUCHED_PAGES, UNKNOWN_STACK, base_name, clean, function, incomplete, omitted, unnamed,
};
use super::{Difference, Format};

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Folded;

impl Format for Folded {
    fn name(&self) -> &'static str {
        "folded"
    }

    fn media_type(&self) -> &'static str {
        "text/plain; charset=utf-8"
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        for (stack, bytes) in stacks(report) {
            writeln!(out, "{stack} {bytes}")?;
        }
        Ok(())
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()> {
        for (stack, (before, after)) in changed_stacks(difference) {
            writeln!(out, "{stack} {before} {after}")?;
        }
        Ok(())
    }
}

/// Every distinct stack whose surviving bytes changed: before and after, as `difffolded.pl` writes them.
pub(super) fn changed_stacks(difference: &Difference) -> BTreeMap<String, (u64, u64)> {
    let mut stacks: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for change in &difference.changes {
        if change.by.inuse_bytes_change != 0 {
            let sum = stacks.entry(stack(&change.comm, &change.site)).or_default();
            sum.0 = sum.0.saturating_add(change.inuse_bytes_base);
            sum.1 = sum.1.saturating_add(change.site.inuse_bytes);
        }
    }
    stacks
}

/// Every distinct stack that holds memory, and how many bytes.
pub(super) fn stacks(report: &Report) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::new();
    let mut add = |stack: String, bytes: u64| {
        let sum: &mut u64 = stacks.entry(stack).or_default();
        *sum = sum.saturating_add(bytes);
    };
    for site in &report.sites {
        if site.inuse_bytes > 0 {
            let comm = report
                .process_of(site)
                .map_or("", |process| process.comm.as_str());
            add(stack(comm, site), site.inuse_bytes);
        }
    }
    if report.omitted.inuse_bytes > 0 {
        add(omitted(report.omitted.sites), report.omitted.inuse_bytes);
    }
    stacks
}

fn stack(comm: &str, site: &Site) -> String {
    let comm = if comm.is_empty() { "pid" } else { comm };
    // A line that begins with `#` is a comment.
    let comm = comm.trim_start_matches('#');
    let mut stack = format!("{}-{}", field(comm), site.pid);
    if site.kind == SiteKind::Pages {
        stack.push(';');
        stack.push_str(TOUCHED_PAGES);
    }
    if site.frames.is_empty() {
        stack.push(';');
        stack.push_str(UNKNOWN_STACK);
        return stack;
    }
    if let Some(root) = incomplete(site) {
        stack.push(';');
        stack.push_str(&field(&root));
    }
    for frame in site.frames.iter().rev() {
        stack.push(';');
        push_frame(&mut stack, frame);
    }
    // A last word that is a number would be read as a second value.
    if let Some((rest, word)) = stack.rsplit_once(' ')
        && word
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        stack = format!("{rest}_{word}");
    }
    stack
}

fn push_frame(stack: &mut String, frame: &Frame) {
    match function(frame).map(field) {
        Some(function) if !function.is_empty() => stack.push_str(&function),
        _ => stack.push_str(&field(&unnamed(frame))),
    }
    if frame.kind == FrameKind::Python
        && let (Some(file), Some(line)) = (&frame.file, frame.line)
    {
        // Python's functions are often called alike, `<lambda>` or `<module>`.
        stack.push_str(&format!(" ({}:{line})", field(base_name(file))));
    }
    match frame.kind {
        FrameKind::Jit => stack.push_str("_[j]"),
        FrameKind::Kernel => stack.push_str("_[k]"),
        FrameKind::Native | FrameKind::Python | FrameKind::Go if frame.inlined => {
            stack.push_str("_[i]");
        }
        FrameKind::Native | FrameKind::Python | FrameKind::Go => {}
    }
}

/// A name without the separator.
fn field(name: &str) -> Cow<'_, str> {
    match clean(name.trim()) {
        name if name.contains(';') => Cow::Owned(name.replace(';', ":")),
        name => name,
    }
}
