//! A daemon of made-up reports, to look at its page without tracing anything: `cargo run -p leakscope --example page -- PORT SITES`.
//! Its names are the worst that a process could choose.

#![allow(clippy::print_stderr, reason = "an example")]

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leakscope::{
    daemon::{self, DaemonOptions, Source},
    report::{
        DescriptorKind, Evidence, Frame, FrameKind, Holding, KernelLevel, KernelMemory, Lives,
        MemoryPoint, OfLife, OfSize, Process, ProcessKernel, Reachability, Report, ReportParts,
        Sample, Site, SiteHolder, SiteKind, SiteType, Tier, Timestamp, Verdict,
    },
};

/// Names that try to be markup, to leave their line, and to be no name.
const HOSTILE: [&str; 6] = [
    "<img src=x onerror=alert(1)>",
    "</script><script>document.title='owned'</script>",
    "\u{202e}gnp.exe\u{2066}",
    "a\nb\tc\u{1b}[2J",
    "javascript:alert(1)//\"'&lt;&amp;",
    "ﷺ𒐫𒐫𒐫 a very long name that goes on and on without an end that anybody could see, and then some, so that no column holds it",
];

const VERDICTS: [Verdict; 5] = [
    Verdict::Leaking,
    Verdict::Plateau,
    Verdict::Churn,
    Verdict::WarmingUp,
    Verdict::InsufficientData,
];

/// Numbers without an order, the same every time.
fn noise(seed: u64) -> u64 {
    let mut value = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value ^= value >> 29;
    value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^ (value >> 32)
}

struct MadeUp {
    sites: u64,
    looks: u64,
    begun: SystemTime,
    frames: Vec<Vec<Arc<Frame>>>,
}

impl MadeUp {
    fn new(sites: u64) -> Self {
        let frame = |depth: u64, which: u64| {
            let hostile = (which == 7).then(|| pick(&HOSTILE, depth)).flatten();
            let name = hostile.map_or_else(
                || format!("service::module_{depth}::Worker<State>::handle_{which}"),
                |name| (*name).to_owned(),
            );
            Arc::new(Frame {
                function: (which != 5).then_some(name),
                module: Some(if depth > 14 {
                    "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()
                } else {
                    "/srv/service/bin/service".to_owned()
                }),
                offset: Some(depth << 20 | which << 6),
                address: Some(0x5500_0000_0000 + (depth << 20 | which << 6)),
                file: (!which.is_multiple_of(3)).then(|| format!("/src/service/module_{depth}.rs")),
                line: u32::try_from(which * 13 + depth).ok(),
                kind: if which == 3 {
                    FrameKind::Python
                } else {
                    FrameKind::Native
                },
                inlined: which == 2,
                ..Frame::default()
            })
        };
        Self {
            sites,
            looks: 0,
            begun: SystemTime::now(),
            frames: (0..20)
                .map(|depth| {
                    // A tree has few ways at its root and many at its leaves.
                    (0..(22 - depth).min(40))
                        .map(|which| frame(depth, which))
                        .collect()
                })
                .collect(),
        }
    }

    fn stack(&self, id: u64) -> Vec<Arc<Frame>> {
        let malloc = Arc::new(Frame {
            function: Some("malloc".to_owned()),
            module: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()),
            ..Frame::default()
        });
        let depth = 8 + noise(id) % 12;
        // Leaf first; the nearer to the root, the fewer ways there are.
        let calls = (0..depth).rev().filter_map(|deep| {
            let level = self.frames.get(usize::try_from(deep).ok()?)?;
            let way = noise(id % (1 + deep * deep * 3) + deep * 1000) % (1 + deep);
            pick(level, way)
        });
        std::iter::once(malloc).chain(calls.cloned()).collect()
    }

    fn site(&self, id: u64, at_s: f64) -> Site {
        let verdict = if id < 3 {
            Verdict::Leaking
        } else {
            pick(&VERDICTS, 1 + noise(id) % 4)
                .copied()
                .unwrap_or_default()
        };
        let base = (noise(id ^ 77) % 4_000_000) / (1 + id / 8) + 64;
        let growth = match verdict {
            Verdict::Leaking => 40_000.0 / (1 + id) as f64,
            Verdict::WarmingUp => 900.0,
            _ => 0.0,
        };
        let wobble = if verdict == Verdict::Churn {
            noise(id ^ self.looks) % (base / 8 + 1)
        } else {
            0
        };
        let inuse_bytes = base + wobble + (growth * at_s) as u64;
        let is_exact = !id.is_multiple_of(3);
        let away = if is_exact { 0 } else { inuse_bytes / 9 };
        let objects = inuse_bytes / 96 + 1;
        let name = pick(&HOSTILE, id).copied().unwrap_or_default();
        Site {
            pid: pid_of(id),
            id,
            inuse_bytes,
            inuse_objects: objects,
            alloc_bytes: inuse_bytes * 3,
            alloc_objects: objects * 3,
            inuse_bytes_low: inuse_bytes - away,
            inuse_bytes_high: inuse_bytes + away,
            oldest_age_s: at_s,
            growth_bytes_per_s: growth,
            verdict,
            verdict_reason: match verdict {
                Verdict::Leaking => format!(
                    "all {objects} blocks of more than 15.0 s ago are still live; no sign of levelling off ({name})"
                ),
                _ => "what survives has stayed the same".to_owned(),
            },
            weight: 1,
            sample: (!is_exact).then_some(Sample {
                objects: 2800,
                windows: 20,
                checks: 52,
                counted_bytes: inuse_bytes / 4,
                ..Sample::default()
            }),
            kind: match id % 40 {
                39 => SiteKind::Pages,
                38 => SiteKind::Mapping,
                _ => SiteKind::Heap,
            },
            peak_bytes: is_exact.then_some(inuse_bytes + base / 4),
            lives: Some(Lives {
                sizes: (5..9)
                    .map(|power| OfSize {
                        below_bytes: 1 << power,
                        objects: objects / (12 - power),
                    })
                    .collect(),
                ages: [(0.25, 9), (8.0, 4), (64.0, 2)]
                    .map(|(below_s, part)| OfLife {
                        below_s,
                        objects: objects / part,
                    })
                    .to_vec(),
                followed_objects: objects * 3,
                freed: [(2.0, 1), (16.0, 5)]
                    .map(|(below_s, part)| OfLife {
                        below_s,
                        objects: objects / part,
                    })
                    .to_vec(),
                temporary_objects: objects,
                temporary_below_s: 1.03,
            }),
            reachability: (id < 20).then_some(Reachability {
                checked: objects,
                unreachable: if id == 1 { objects / 2 } else { 0 },
                ..Reachability::default()
            }),
            types: if id < 40 {
                ["Session", "std::string", name]
                    .into_iter()
                    .zip([2, 3, 7])
                    .map(|(name, part)| SiteType {
                        name: name.to_owned(),
                        objects: objects / part,
                        bytes: inuse_bytes / part,
                    })
                    .collect()
            } else {
                Vec::new()
            },
            holders: if id < 20 {
                [
                    (
                        &["std::map", "Registry.sessions", "registry [service]"][..],
                        3,
                    ),
                    (&["std::map", name][..], 2),
                    (&["list", "Analyzer.metrics", "module app"][..], 6),
                ]
                .into_iter()
                .map(|(path, part)| SiteHolder {
                    path: path.iter().map(|step| (*step).to_owned()).collect(),
                    objects: objects / part,
                })
                .collect()
            } else {
                Vec::new()
            },
            evidence: if id == 1 {
                vec![Evidence::Unreachable {
                    objects: objects / 2,
                    of: objects,
                    watched_s: at_s,
                }]
            } else {
                Vec::new()
            },
            stack_complete: !id.is_multiple_of(11),
            frames: self.stack(id),
            ..Site::default()
        }
    }

    fn process(&self, number: u64, at_s: f64) -> Process {
        let hostile = (number % 4 == 3)
            .then(|| pick(&HOSTILE, number / 4))
            .flatten();
        let rss = (noise(number) % 900 + 40) << 20;
        let slope = if number == 0 {
            40_000.0
        } else {
            (noise(number ^ 5) % 300) as f64
        };
        Process {
            pid: pid_of(number),
            comm: hostile.map_or_else(|| format!("service-{number}"), |name| (*name).to_owned()),
            cgroup: format!("/system.slice/service-{number}.service"),
            allocators: vec!["glibc /usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()],
            rss_bytes: rss + (slope * at_s) as u64,
            rss_growth_bytes_per_s: slope,
            verdict: match number {
                0 => Verdict::Leaking,
                1 | 2 => Verdict::Plateau,
                _ => Verdict::InsufficientData,
            },
            verdict_reason: match number {
                0 => "three sites leak, +73 KiB/s; at this rate memory runs out in about 13 h"
                    .to_owned(),
                _ => "nothing of it grows".to_owned(),
            },
            exited: number == 9,
            memory_series: (0..60)
                .map(|step| {
                    let at_s = at_s * f64::from(step) / 59.0;
                    MemoryPoint {
                        at_s,
                        inuse_bytes: (slope * at_s * 0.9) as u64 + (rss >> 3),
                        rss_bytes: rss
                            + (slope * at_s) as u64
                            + noise(number ^ u64::from(step as u32)) % (1 << 20),
                        anonymous_bytes: rss / 2 + (slope * at_s) as u64,
                    }
                })
                .collect(),
            kernel: Some(ProcessKernel {
                holdings: vec![Holding {
                    kind: "descriptors".to_owned(),
                    objects: Some(40 + number),
                    limit: Some(1024),
                    growth_per_s: 0.5,
                    verdict: Verdict::Leaking,
                    verdict_reason: "it has grown in every look".to_owned(),
                    ..Holding::default()
                }],
                descriptor_kinds: vec![DescriptorKind {
                    kind: "socket".to_owned(),
                    open: 30,
                    growth_per_s: Some(0.5),
                    ..DescriptorKind::default()
                }],
            }),
            ..Process::default()
        }
    }
}

/// Most sites are of the first process.
fn pid_of(id: u64) -> u32 {
    4000 + u32::try_from(if id.is_multiple_of(5) { id / 5 % 60 } else { 0 }).unwrap_or(0)
}

fn pick<T>(all: &[T], place: u64) -> Option<&T> {
    all.get(usize::try_from(place).ok()? % all.len().max(1))
}

impl Source for MadeUp {
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()> {
        std::thread::sleep(at_most.min(Duration::from_millis(100)));
        Ok(())
    }

    fn report(&mut self) -> anyhow::Result<Report> {
        self.looks += 1;
        let at_s = self.begun.elapsed()?.as_secs_f64() + 120.0;
        let unix = SystemTime::UNIX_EPOCH.elapsed()?;
        let mut parts = ReportParts {
            captured_at: Timestamp::from_unix_ms(u64::try_from(unix.as_millis())?),
            duration_s: at_s,
            tier: Tier::Sampled,
            tier_reason: "tracing every call would take about 25 % of its CPU time (budget 1 %)"
                .to_owned(),
            processes: (0..300)
                .step_by(5)
                .map(|number| self.process(number / 5, at_s))
                .collect(),
            sites: (0..self.sites).map(|id| self.site(id, at_s)).collect(),
            kernel: Some(KernelMemory {
                levels: (0..12)
                    .map(|number| KernelLevel {
                        name: pick(&HOSTILE, number)
                            .map_or_else(String::new, |name| (*name).to_owned()),
                        bytes: (noise(number) % 90) << 20,
                        objects: Some(noise(number) % 10_000),
                        verdict: pick(&VERDICTS, number).copied().unwrap_or_default(),
                        ..KernelLevel::default()
                    })
                    .collect(),
                ..KernelMemory::default()
            }),
            ..ReportParts::default()
        };
        for (number, process) in (0..).zip(&mut parts.processes) {
            process.pid = 4000 + number;
        }
        parts.losses.insert("a full table".to_owned(), 3);
        parts.add_up();
        parts.sort();
        Ok(Report::new(parts))
    }

    fn select_again(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn detach(&mut self) {}
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().as_deref().unwrap_or("7118").parse()?;
    let sites: u64 = arguments.next().as_deref().unwrap_or("10000").parse()?;
    let socket: PathBuf =
        std::env::temp_dir().join(format!("leakscope-page-{}.sock", std::process::id()));
    let options = DaemonOptions {
        socket,
        listen: Some(([127, 0, 0, 1], port).into()),
        token_file: None,
    };
    daemon::block_on(daemon::run(
        &options,
        move || Ok(MadeUp::new(sites)),
        |line| eprintln!("{line}"),
    ))
}
