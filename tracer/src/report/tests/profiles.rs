//! Profiles as `go tool pprof` and `diff` take them.

use std::sync::Arc;

use super::text;
use crate::report::fixtures::{exact_report, sampled_report};
use crate::report::{Difference, Format as _, Frame, Report, ReportParts, Text, pprof};

/// A report with one stack, leaf first.
fn with_stack(program: &str, frames: Vec<Frame>) -> Report {
    let mut parts: ReportParts = exact_report().into_parts();
    parts.processes[0].program = Some(program.to_owned());
    parts.sites.truncate(1);
    parts.sites[0].frames = frames.into_iter().map(Arc::new).collect();
    parts.add_up();
    Report::new(parts)
}

fn frame(module: &str, address: u64, function: Option<&str>) -> Frame {
    Frame {
        function: function.map(str::to_owned),
        module: Some(module.to_owned()),
        // The linker gave the segment another address than file offset.
        offset: Some(address - 0x40_0000 + 0x1000),
        file_offset: Some(address - 0x40_0000),
        address: Some(address),
        ..Frame::default()
    }
}

/// `go tool pprof` takes the first mapping for the program, and shows its name as `File:`.
#[test]
fn the_first_mapping_is_the_program_whatever_else_looks_like_one() {
    let first = |program: &str, frames: Vec<Frame>| {
        let profile = pprof::profile(&with_stack(program, frames));
        let mapping = profile.mapping.first().copied().unwrap_or_default();
        assert_eq!(mapping.id, 1);
        profile.string(mapping.filename).to_owned()
    };
    let plugin = || frame("/opt/app/plugin.node", 0x40_1000, Some("parse"));
    let libc = || frame("/usr/lib/libc.so.6", 0x40_2000, Some("malloc"));
    let program = || frame("/usr/bin/node", 0x40_3000, Some("main"));
    let node = "/usr/bin/node";
    assert_eq!(first(node, vec![libc(), plugin(), program()]), node);
    // No stack gets that far.
    assert_eq!(first(node, vec![libc(), plugin()]), node);
    assert_eq!(
        first("/srv/worker.so.1", vec![libc(), plugin()]),
        "/srv/worker.so.1"
    );
}

/// The name that stands for none came back as a name, and the module was written behind it once more.
#[test]
fn frames_without_a_name_are_not_doubled_by_a_profile() {
    let module = "/usr/lib/libstripped.so.1";
    let report = with_stack(
        "/usr/bin/app",
        vec![
            frame(module, 0x40_1234, None),
            frame(module, 0x40_2345, Some("exported")),
            frame(module, 0x40_3456, None),
        ],
    );
    let direct = text(&report, "text");
    let read = pprof::to_report(&pprof::profile(&report)).unwrap();
    let mut out = Vec::new();
    Text::default().write(&read, &mut out).unwrap();
    let back = String::from_utf8(out).unwrap();
    for line in [
        "      [libstripped.so.1+0x2234]\n",
        "      [libstripped.so.1+0x4456]\n",
    ] {
        assert!(direct.contains(line), "{direct}");
        assert!(back.contains(line), "{back}");
    }
    let same = Difference::between(&report, &read);
    assert!(same.changes.is_empty(), "{:?}", same.changes);
}

/// A sampled trace came back as an exact one, with blocks 0 ms old and no probe hit.
#[test]
fn a_profile_was_shown_with_figures_that_are_not_in_it() {
    let report = sampled_report();
    let back = pprof::to_report(&pprof::profile(&report)).unwrap();
    assert_eq!(
        (back.tier, &back.tier_reason),
        (report.tier, &report.tier_reason)
    );
    let shown = text(&back, "text");
    assert!(shown.contains("leakscope: sampled tier"), "{shown}");
    for wrong in ["oldest", "probe hits", "read from"] {
        assert!(!shown.contains(wrong), "{wrong}: {shown}");
    }
    let mut foreign = pprof::profile(&report);
    foreign.comment.clear();
    foreign.duration_nanos = 0;
    let back = pprof::to_report(&foreign).unwrap();
    let shown = text(&back, "text");
    assert!(shown.starts_with("leakscope: a pprof profile  "), "{shown}");
    for wrong in ["exact", "no losses", "none found"] {
        assert!(!shown.contains(wrong), "{wrong}: {shown}");
    }
}

/// A reader of two files has no other place to learn whose stack it is.
#[test]
fn a_difference_names_the_process_of_every_stack() {
    let base = exact_report();
    let mut parts = base.clone().into_parts();
    for site in &mut parts.sites {
        site.inuse_bytes += 1;
        site.alloc_bytes += 1;
        site.inuse_bytes_high += 1;
    }
    let difference = Difference::between(&base, &Report::new(parts));
    let mut out = Vec::new();
    Text::default()
        .write_difference(&difference, &mut out)
        .unwrap();
    let text = String::from_utf8(out).unwrap();
    let stacks = text.lines().filter(|line| line.starts_with('#'));
    assert!(stacks.clone().count() > 1, "{text}");
    for line in stacks {
        assert!(line.contains("indexer (pid 4321)"), "{line}");
    }
}
