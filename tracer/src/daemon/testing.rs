//! Made-up reports of any size, for tests.

use std::sync::Arc;

use crate::report::{Frame, Process, Report, ReportParts, Site, Verdict};

/// A report of so many sites with stacks of 20 frames, of which no two are the same; `seed` makes it another program's.
pub(super) fn large_report(sites: u64, seed: u64) -> Report {
    let frame = |depth: u64, which: u64| {
        Arc::new(Frame {
            function: Some(format!(
                "service::module_{depth}::Worker<{seed}>::handle_{which}"
            )),
            module: Some("/srv/service/bin/service".to_owned()),
            offset: Some(depth << 20 | which << 6),
            file_offset: Some(depth << 20 | which << 6),
            address: Some(0x5500_0000_0000 + (depth << 20 | which << 6)),
            file: Some(format!("/src/service/module_{depth}.rs")),
            line: Some(u32::try_from(which % 5000 + 1).unwrap_or(1)),
            build_id: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
            ..Frame::default()
        })
    };
    let shared: Vec<Vec<Arc<Frame>>> = (0..20)
        .map(|depth| (0..40).map(|which| frame(depth, which)).collect())
        .collect();
    let mut parts = ReportParts {
        duration_s: 60.0,
        processes: vec![Process {
            pid: 4242,
            comm: "service".to_owned(),
            rss_bytes: 1 << 30,
            ..Process::default()
        }],
        sites: (0..sites)
            .map(|id| {
                let mut rest = id;
                let frames = shared
                    .iter()
                    .filter_map(|level| {
                        let place = usize::try_from(rest % 40).unwrap_or(0);
                        rest = rest / 40 + id % 7;
                        level.get(place).cloned()
                    })
                    .collect();
                Site {
                    pid: 4242,
                    id,
                    inuse_bytes: (id + 1) * 100,
                    inuse_objects: 100,
                    alloc_bytes: (id + 1) * 300,
                    alloc_objects: 300,
                    inuse_bytes_low: (id + 1) * 100,
                    inuse_bytes_high: (id + 1) * 100,
                    verdict: Verdict::Leaking,
                    weight: 1,
                    stack_complete: true,
                    frames,
                    ..Site::default()
                }
            })
            .collect(),
        ..ReportParts::default()
    };
    parts.add_up();
    Report::new(parts)
}
