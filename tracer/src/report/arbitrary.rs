//! Arbitrary reports, for the properties that hold of every report.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Frame, FrameKind, Process, Report, ReportParts, Site, Verdict};

/// Floats that JSON writes and reads back exactly.
fn any_float() -> impl Strategy<Value = f64> {
    (-1_000_000_i32..1_000_000).prop_map(|eighths| f64::from(eighths) / 8.0)
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_:;<>&()\\[\\] 0-9.#\"]{0,12}",
        any::<String>(),
        Just("malloc".to_owned()),
    ]
}

fn any_frame() -> impl Strategy<Value = Arc<Frame>> {
    let place = (
        proptest::option::of(any_text()),
        proptest::option::of(any::<u64>()),
        proptest::option::of(any::<u64>()),
        proptest::option::of("[0-9a-f]{8}"),
        proptest::option::of(any::<u64>()),
    );
    let source = (
        proptest::option::of(any_text()),
        proptest::option::of(any::<u64>()),
        proptest::option::of(any_text()),
        proptest::option::of(any::<u32>()),
    );
    let kind = prop_oneof![
        Just(FrameKind::Native),
        Just(FrameKind::Jit),
        Just(FrameKind::Kernel),
        Just(FrameKind::Python),
    ];
    (place, source, any::<bool>(), kind).prop_map(|(place, source, inlined, kind)| {
        let (module, offset, address, build_id, file_offset) = place;
        let (function, function_offset, file, line) = source;
        Arc::new(Frame {
            function,
            function_offset,
            module,
            offset,
            file_offset,
            file,
            line,
            inlined,
            kind,
            address,
            build_id,
        })
    })
}

/// Sites of the processes 1 to 3; what survives is part of what was allocated.
fn any_site() -> impl Strategy<Value = Site> {
    let verdict = prop_oneof![
        Just(Verdict::Leaking),
        Just(Verdict::Plateau),
        Just(Verdict::Churn),
        Just(Verdict::WarmingUp),
        Just(Verdict::InsufficientData),
    ];
    let figures = (
        0..1_u64 << 50,
        0..1_u64 << 40,
        0..1_u64 << 50,
        0..1_u64 << 40,
    );
    let frames = proptest::collection::vec(any_frame(), 0..8);
    (
        1..4_u32,
        any::<u64>(),
        figures,
        verdict,
        (any_float(), any_float(), any_text()),
        frames,
        any::<bool>(),
        proptest::option::of(any_text()),
    )
        .prop_map(
            |(pid, id, figures, verdict, (age, growth, reason), frames, complete, why)| {
                let (inuse_bytes, inuse_objects, freed_bytes, freed_objects) = figures;
                Site {
                    pid,
                    id,
                    inuse_bytes,
                    inuse_objects,
                    alloc_bytes: inuse_bytes + freed_bytes,
                    alloc_objects: inuse_objects + freed_objects,
                    inuse_bytes_low: inuse_bytes / 2,
                    inuse_bytes_high: inuse_bytes * 2,
                    oldest_age_s: age.abs(),
                    growth_bytes_per_s: growth,
                    verdict,
                    verdict_reason: reason,
                    weight: 1,
                    stack_complete: complete,
                    stack_incomplete_reason: why.filter(|_| !complete),
                    frames,
                    ..Site::default()
                }
            },
        )
}

/// A process leaks where a site of it does, and what leaks is in use.
fn agree_on_leaks(parts: &mut ReportParts) {
    for site in &mut parts.sites {
        if site.verdict == Verdict::Leaking && site.inuse_bytes == 0 {
            site.verdict = Verdict::Churn;
        }
        let process = parts
            .processes
            .iter_mut()
            .find(|process| process.pid == site.pid && site.verdict == Verdict::Leaking);
        if let Some(process) = process {
            process.verdict = Verdict::Leaking;
        }
    }
}

/// Any report of up to ten sites, perhaps cut to fewer.
pub(super) fn any_report() -> impl Strategy<Value = Report> {
    let sites = proptest::collection::vec(any_site(), 0..10);
    let processes = [(); 3].map(|()| (any_text(), any_text(), any_float(), any::<bool>()));
    (sites, processes, any_float(), 0..12_usize, any_text()).prop_map(
        |(sites, processes, duration_s, top, tier_reason)| {
            let mut parts = ReportParts {
                duration_s: duration_s.abs(),
                tier_reason,
                processes: (1..)
                    .zip(processes)
                    .map(|(pid, (comm, cgroup, growth, exited))| Process {
                        pid,
                        comm,
                        cgroup,
                        rss_growth_bytes_per_s: growth,
                        exited,
                        ..Process::default()
                    })
                    .collect(),
                sites,
                ..ReportParts::default()
            };
            parts.add_up();
            agree_on_leaks(&mut parts);
            parts.keep_top(top);
            Report::new(parts)
        },
    )
}
