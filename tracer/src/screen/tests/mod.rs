//! The screen as its user has it: keys go in, cells come out.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

mod cost;
mod golden;
mod machine;

use std::sync::Arc;

use crate::report::{
    CountedGrowth, Evidence, Frame, Holding, Lives, MemoryPoint, OfLife, OfSize, Process,
    ProcessKernel, Reachability, Report, ReportParts, Site, SiteHolder, SiteType, Tier, Timestamp,
    Verdict,
};

use super::{
    key::{Input, Key},
    state::{Effect, State},
};

/// Names that try to steer the terminal, or to break its columns.
const HOSTILE: &str = "\x1b[2J\x1b]0;owned\x07日本語\u{202e}\u{200d}e\u{301}\u{301}\u{301}\u{301}";

fn frame(function: &str, file: Option<&str>, line: u32) -> Arc<Frame> {
    Arc::new(Frame {
        function: Some(function.to_owned()),
        file: file.map(str::to_owned),
        line: file.map(|_| line),
        ..Frame::default()
    })
}

fn process(pid: u32, comm: &str, verdict: Verdict) -> Process {
    let grows = if verdict == Verdict::Leaking {
        512 * 1024
    } else {
        0
    };
    Process {
        pid,
        incarnation: 1,
        comm: comm.to_owned(),
        cgroup: format!("/system.slice/{comm}.service"),
        allocators: vec!["glibc /usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()],
        rss_bytes: (u64::from(pid) << 20) + grows * 10,
        rss_growth_bytes_per_s: grows as f64,
        anonymous_bytes: u64::from(pid) << 19,
        inuse_bytes: 1 << 20,
        inuse_objects: 4096,
        verdict,
        verdict_reason: match verdict {
            Verdict::Leaking => {
                "one site leaks, +512 KiB/s; at this rate memory runs out in about 27 h".to_owned()
            }
            _ => "nothing grows".to_owned(),
        },
        memory_series: (0_u32..20)
            .map(|at| MemoryPoint {
                at_s: f64::from(at),
                rss_bytes: (u64::from(pid) << 20) + grows * u64::from(at) / 2,
                ..MemoryPoint::default()
            })
            .collect(),
        ..Process::default()
    }
}

fn site(pid: u32, id: u64, function: &str, verdict: Verdict, bytes: u64) -> Site {
    Site {
        pid,
        incarnation: 1,
        id,
        inuse_bytes: bytes,
        inuse_objects: bytes / 256,
        alloc_bytes: bytes * 2,
        alloc_objects: bytes / 128,
        inuse_bytes_low: bytes,
        inuse_bytes_high: bytes,
        oldest_age_s: 61.0,
        growth_bytes_per_s: if verdict == Verdict::Leaking {
            524_288.0
        } else {
            0.0
        },
        verdict,
        verdict_reason: "as it should be".to_owned(),
        weight: 1,
        stack_complete: true,
        frames: vec![
            frame("malloc", None, 0),
            frame(function, Some("/srv/app/src/handlers/session.cpp"), 45),
            frame("serve", Some("src/main.cpp"), 120),
            frame("main", Some("src/main.cpp"), 12),
        ],
        ..Site::default()
    }
}

/// A leak below a large cache, one process that does not leak, one that leaks descriptors, and one with hostile names.
fn parts(at_s: f64) -> ReportParts {
    let mut leak = site(100, 1, "remember_session", Verdict::Leaking, 4 << 20);
    leak.types = vec![SiteType {
        name: "Session".to_owned(),
        objects: 16_384,
        bytes: 4 << 20,
    }];
    leak.holders = vec![SiteHolder {
        path: vec!["list".to_owned(), "Server.sessions".to_owned()],
        objects: 12,
    }];
    leak.evidence = vec![Evidence::Unreachable {
        objects: 16_000,
        of: 16_384,
        watched_s: 60.0,
    }];
    leak.peak_bytes = Some(5 << 20);
    leak.lives = Some(Lives {
        sizes: vec![OfSize {
            below_bytes: 512,
            objects: 16_384,
        }],
        ages: vec![OfLife {
            below_s: 64.0,
            objects: 16_384,
        }],
        followed_objects: 32_768,
        freed: vec![OfLife {
            below_s: 2.0,
            objects: 12_000,
        }],
        temporary_objects: 12_000,
        temporary_below_s: 1.01,
    });
    leak.reachability = Some(Reachability {
        checked: 16_384,
        ..Reachability::default()
    });
    leak.counted = Some(CountedGrowth {
        block_bytes: 256,
        growth_bytes_per_s: 520_000.0,
        share: 0.98,
        ..CountedGrowth::default()
    });
    let mut hostile = site(300, 4, HOSTILE, Verdict::Plateau, 2 << 10);
    hostile.verdict_reason = HOSTILE.to_owned();
    hostile
        .frames
        .push(frame(&"very_long_name_".repeat(40), Some(HOSTILE), 1));
    let mut descriptors = process(200, "leaky-fds", Verdict::Churn);
    descriptors.kernel = Some(ProcessKernel {
        holdings: vec![Holding {
            kind: "descriptors".to_owned(),
            objects: Some(5000),
            growth_per_s: 3.0,
            verdict: Verdict::Leaking,
            verdict_reason: "3 more each second".to_owned(),
            ..Holding::default()
        }],
        ..ProcessKernel::default()
    });
    let mut quiet = process(400, "quiet", Verdict::InsufficientData);
    (quiet.inuse_bytes, quiet.inuse_objects) = (0, 0);
    ReportParts {
        captured_at: Timestamp::from_unix_ms(1_790_000_000_000 + (at_s * 1000.0) as u64),
        duration_s: at_s,
        tier: Tier::Exact,
        processes: vec![
            process(100, "indexer", Verdict::Leaking),
            descriptors,
            process(300, HOSTILE, Verdict::Plateau),
            quiet,
        ],
        sites: vec![
            site(100, 2, "cached_page", Verdict::Plateau, 64 << 20),
            leak,
            site(100, 3, "reply", Verdict::Churn, 0),
            hostile,
        ],
        ..ReportParts::default()
    }
}

fn report(at_s: f64) -> Arc<Report> {
    Arc::new(Report::new(parts(at_s)))
}

/// A screen of a size that has two reports.
fn screen(columns: u16, lines: u16) -> State {
    let mut state = State::new("all processes".to_owned(), (columns, lines));
    state.take(report(60.0));
    state.take(report(70.0));
    state
}

/// Presses keys: characters, `\n` for Enter, `\x1b` for Esc.
fn press(state: &mut State, keys: &str) -> Effect {
    let mut effect = Effect::None;
    for key in keys.chars() {
        let key = match key {
            '\n' => Key::Enter,
            '\x1b' => Key::Escape,
            '↓' => Key::Down,
            '↑' => Key::Up,
            '→' => Key::Right,
            '←' => Key::Left,
            other => Key::Char(other),
        };
        effect = state.apply(Input::Key(key));
    }
    effect
}
