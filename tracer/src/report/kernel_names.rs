//! What the kernel holds, in words: the lines that text and HTML share.

use std::sync::Arc;

use super::allocator::is_of_language;
use super::model::{
    DESCRIPTORS, DescriptorKind, Frame, FrameKind, Holding, KernelLevel, KernelLevelKind,
    KernelObjects, ProcessKernel, Verdict,
};
use super::names::{clean, function, is_of_runtime, unnamed};
use crate::units::{bytes, count, count_rate, percent, plural, rate};

/// So many kinds of descriptors are named; the others are summed up.
const KINDS_NAMED: usize = 6;

/// So many of the other names of a cache are named.
const NAMES_NAMED: usize = 5;

/// `16,514, +800/s: socket 16,500, file 8`; `None` where they are not known.
pub(crate) fn descriptors(kernel: &ProcessKernel) -> Option<String> {
    let held = kernel.descriptors()?;
    let mut line = amount(held);
    if kernel.descriptor_kinds.is_empty() {
        return Some(line);
    }
    let kinds: Vec<String> = kernel
        .descriptor_kinds
        .iter()
        .take(KINDS_NAMED)
        .map(|kind| of_kind(kind, held.grows()))
        .collect();
    line.push_str(": ");
    line.push_str(&kinds.join(", "));
    let others = kernel
        .descriptor_kinds
        .iter()
        .skip(KINDS_NAMED)
        .fold(0_u64, |sum, kind| sum.saturating_add(kind.open));
    if others > 0 {
        line.push_str(&format!(", others {}", count(others)));
    }
    Some(line)
}

fn of_kind(kind: &DescriptorKind, grows: bool) -> String {
    let about = if kind.estimated { "about " } else { "" };
    let mut more = Vec::new();
    more.extend(kind.growth_per_s.filter(|_| grows).and_then(count_rate));
    if kind.held_bytes > 0 {
        more.push(format!("{} held", bytes(kind.held_bytes)));
    }
    if kind.entries > 0 {
        let (one, several) = match kind.kind.as_str() {
            "inotify" | "fanotify" => ("watch", "watches"),
            "eventpoll" => ("entry", "entries"),
            _ => ("lock", "locks"),
        };
        let what = if kind.entries == 1 { one } else { several };
        more.push(format!("{} {what}", count(kind.entries)));
    }
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(" ({})", more.join(", "))
    };
    format!("{} {about}{}{more}", clean(&kind.kind), count(kind.open))
}

/// `16,514, +800/s`, `3.20 MiB`.
fn amount(held: &Holding) -> String {
    let (level, rate) = match held.bytes {
        Some(held_bytes) => (bytes(held_bytes), rate(held.growth_per_s)),
        None => (
            count(held.objects.unwrap_or_default()),
            count_rate(held.growth_per_s),
        ),
    };
    match rate.filter(|_| held.grows()) {
        Some(rate) => format!("{level}, {rate}"),
        None => level,
    }
}

/// Of a kind of holding fewer are usual, and not worth a word: things, bytes.
fn notable(kind: &str) -> u64 {
    match kind {
        "zombies" => 1,
        "timers" => 16,
        "threads" | "queued-signals" => 64,
        _ => 16 << 20,
    }
}

/// What a process makes the kernel hold besides descriptors, where it grows or is worth a word: `zombies 120, +4/s`.
pub(crate) fn others(kernel: &ProcessKernel) -> Option<String> {
    let told: Vec<String> = kernel
        .holdings
        .iter()
        .filter(|held| held.kind != DESCRIPTORS)
        .filter(|held| {
            let size = held.objects.or(held.bytes).unwrap_or_default();
            held.grows() || size >= notable(&held.kind)
        })
        .map(|held| format!("{} {}", holding_name(held), amount(held)))
        .collect();
    (!told.is_empty()).then(|| told.join(" · "))
}

/// `queued signals`.
fn holding_name(held: &Holding) -> String {
    clean(&held.kind).replace('-', " ")
}

/// Why something that a process makes the kernel hold leaks, a line each.
pub(crate) fn leaks(kernel: &ProcessKernel) -> Vec<String> {
    kernel
        .growing()
        .filter(|held| held.verdict == Verdict::Leaking)
        .map(|held| format!("{}: {}", holding_name(held), clean(&held.verdict_reason)))
        .collect()
}

/// `cache filp (shared with UNIX, signal_cache)`.
pub(crate) fn level_name(level: &KernelLevel) -> String {
    let name = clean(&level.name);
    let mut text = match level.kind {
        KernelLevelKind::Cache => format!("cache {name}"),
        KernelLevelKind::Class | KernelLevelKind::Line => name.into_owned(),
        KernelLevelKind::Cgroup => format!("cgroup {name}"),
    };
    text.push_str(&other_names(&level.shared_with));
    text
}

fn other_names(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let named: Vec<_> = names
        .iter()
        .take(NAMES_NAMED)
        .map(|name| clean(name))
        .collect();
    let more = names.len().saturating_sub(NAMES_NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!(" (shared with {}{more})", named.join(", "))
}

/// So many of the kernel's functions are named.
const PATH_NAMED: usize = 7;

/// `cache filp (shared with UNIX)`.
pub(crate) fn site_name(site: &KernelObjects) -> String {
    format!(
        "cache {}{}",
        clean(&site.cache),
        other_names(&site.shared_with)
    )
}

/// `+800/s, 16,514 objects of 256 B in 4.03 MiB, 12 freed`.
pub(crate) fn site_figures(site: &KernelObjects) -> String {
    let mut parts = Vec::new();
    parts.extend(count_rate(site.growth_objects_per_s));
    parts.push(format!(
        "{} object{} of {} in {}",
        count(site.inuse_objects),
        plural(site.inuse_objects),
        bytes(site.object_bytes),
        bytes(site.inuse_bytes)
    ));
    let freed = site.freed_objects;
    if freed > 0 {
        parts.push(format!("{} freed", count(freed)));
    }
    if site.inferred_frees > 0 {
        parts.push(format!("{} more by inference", count(site.inferred_frees)));
    }
    if site.weight > 1 {
        parts.push(format!("one of {} followed", count(site.weight)));
    }
    parts.join(", ")
}

/// On whose behalf: `server (pid 42, /system.slice/server.service)`.
pub(crate) fn made_for(site: &KernelObjects) -> String {
    if site.interrupt {
        return "nobody that is known: in interrupts".to_owned();
    }
    let cgroup = if site.cgroup.is_empty() {
        String::new()
    } else {
        format!(", {}", clean(&site.cgroup))
    };
    format!("{} (pid {}{cgroup})", clean(&site.comm), site.pid)
}

/// The line of the process that made the kernel do it: the first that is neither of the C library nor of a language.
pub(crate) fn own_line(site: &KernelObjects) -> Option<&Arc<Frame>> {
    let of_process = || {
        site.frames
            .iter()
            .filter(|frame| frame.kind != FrameKind::Kernel)
    };
    let is_own = |frame: &&Arc<Frame>| {
        !is_of_runtime(frame)
            && !function(frame).is_some_and(|name| is_of_language(name, frame.kind))
    };
    let python = of_process().find(|frame| frame.kind == FrameKind::Python);
    python
        .or_else(|| of_process().find(is_own))
        .or_else(|| of_process().next())
}

/// The way through the kernel, the function that called the allocator first.
pub(crate) fn kernel_path(site: &KernelObjects) -> String {
    let names: Vec<String> = site
        .frames
        .iter()
        .filter(|frame| frame.kind == FrameKind::Kernel)
        .take(PATH_NAMED)
        .map(|frame| match function(frame) {
            Some(name) => clean(name).into_owned(),
            None => unnamed(frame),
        })
        .collect();
    names.join(" < ")
}

/// `16,514 objects of 256 B, 4.03 MiB, +800/s, +200 KiB/s`.
pub(crate) fn level_figures(level: &KernelLevel) -> String {
    let mut parts = Vec::new();
    if let Some(objects) = level.objects {
        let what = if level.kind == KernelLevelKind::Cache {
            "object"
        } else {
            "allocation"
        };
        let of = level
            .object_bytes
            .map(|size| format!(" of {}", bytes(size)))
            .unwrap_or_default();
        parts.push(format!("{} {what}{}{of}", count(objects), plural(objects)));
    }
    parts.push(bytes(level.bytes));
    if level.grows() {
        parts.extend(level.growth_objects_per_s.and_then(count_rate));
        parts.extend(rate(level.growth_bytes_per_s));
    }
    if level.kind == KernelLevelKind::Cgroup && level.bytes > 0 {
        let largest = level.parts.iter().max_by_key(|part| part.bytes);
        if let Some(part) = largest.filter(|part| part.bytes > 0) {
            let share = part.bytes as f64 / level.bytes as f64;
            parts.push(format!(
                "{} of it {}",
                percent(share.min(1.0)),
                clean(&part.name)
            ));
        }
    }
    parts.join(", ")
}
