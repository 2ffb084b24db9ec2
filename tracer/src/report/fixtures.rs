//! Reports made by hand, for the tests of the views.

mod kernel;
mod machine;

use std::sync::Arc;

use super::{
    CountedGrowth, CountedSize, DescriptorKind, Frame, FrameKind, Holding, KernelLevel,
    KernelLevelKind, KernelMemory, KernelObjects, KernelPart, KernelWindows, Lives, MappingKind,
    MemoryPoint, OfLife, OfSize, Overhead, Probe, Process, ProcessKernel, Report, ReportParts,
    Sample, Site, SiteKind, Suppressed, Tier, Timestamp, Verdict,
};

pub(super) use kernel::kernel_site;
pub(super) use machine::machine_report;

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
const PROGRAM: &str = "/srv/app/bin/indexer";
const LIBC_BASE: u64 = 0x7f10_2000_0000;
const PROGRAM_BASE: u64 = 0x55d0_4000_0000;

/// A frame in libc, which has symbols and no line tables.
fn libc(function: &str, offset: u64) -> Arc<Frame> {
    Arc::new(Frame {
        function: Some(function.to_owned()),
        function_offset: Some(0x1c),
        module: Some(LIBC.to_owned()),
        offset: Some(offset),
        address: Some(LIBC_BASE + offset),
        build_id: Some("c047672cae7964324658491e7dee26748ae5d2f8".to_owned()),
        ..Frame::default()
    })
}

/// A frame in the program, which has line tables.
fn program(function: &str, offset: u64, file: &str, line: u32, inlined: bool) -> Arc<Frame> {
    Arc::new(Frame {
        function: Some(function.to_owned()),
        function_offset: Some(0x10),
        module: Some(PROGRAM.to_owned()),
        offset: Some(offset),
        file: Some(file.to_owned()),
        line: Some(line),
        inlined,
        address: Some(PROGRAM_BASE + offset),
        // The program is laid out by a linker that moves the code's segment by a page.
        file_offset: Some(offset - 0x1000),
        build_id: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        ..Frame::default()
    })
}

/// A frame in a file without symbols.
fn stripped(module: &str, offset: u64) -> Arc<Frame> {
    Arc::new(Frame {
        module: Some(module.to_owned()),
        offset: Some(offset),
        address: Some(0x7f22_0000_0000 + offset),
        ..Frame::default()
    })
}

fn named(function: &str, kind: FrameKind) -> Arc<Frame> {
    Arc::new(Frame {
        function: Some(function.to_owned()),
        kind,
        ..Frame::default()
    })
}

fn end_of_main() -> [Arc<Frame>; 2] {
    [
        program("main", 0x1180, "src/main.cpp", 41, false),
        libc("__libc_start_call_main", 0x27249),
    ]
}

fn with_end(frames: Vec<Arc<Frame>>) -> Vec<Arc<Frame>> {
    frames.into_iter().chain(end_of_main()).collect()
}

fn indexer() -> Process {
    Process {
        pid: 4321,
        incarnation: 1,
        comm: "indexer".to_owned(),
        cgroup: "/system.slice/indexer.service".to_owned(),
        allocators: vec![format!("glibc {LIBC}")],
        rss_bytes: 87 * MIB,
        rss_growth_bytes_per_s: 104_857.6,
        verdict: Verdict::Leaking,
        verdict_reason: "one site leaks, +102 KiB/s; at this rate memory runs out in about 27 h"
            .to_owned(),
        memory_series: (0_u32..11)
            .map(|second| MemoryPoint {
                at_s: f64::from(second),
                inuse_bytes: u64::from(second) * 100 * KIB,
                rss_bytes: 86 * MIB + u64::from(second) * 100 * KIB,
                anonymous_bytes: 60 * MIB + u64::from(second) * 100 * KIB,
            })
            .collect(),
        frees_of_unknown_blocks: 17,
        peak_inuse_bytes: 80 * MIB,
        peak_rss_bytes: 87 * MIB,
        probes: [
            ("malloc", 0x9_8f00, 24_345),
            ("free", 0x9_9500, 22_000),
            ("calloc", 0x9_9d00, 0),
        ]
        .map(|(name, site_offset, hits)| Probe {
            name: name.to_owned(),
            module: Some(LIBC.to_owned()),
            site_offset,
            hits,
            ..Probe::default()
        })
        .to_vec(),
        ..Process::default()
    }
}

/// Blocks of these sizes, most of which came some seconds ago; of those followed, so many were freed, most of them at once.
fn lives(sizes: &[(u64, u64)], followed_objects: u64, freed: u64) -> Lives {
    let alive: u64 = sizes.iter().map(|(_, objects)| objects).sum();
    let of = |below_s, objects| OfLife { below_s, objects };
    Lives {
        sizes: sizes
            .iter()
            .map(|(below_bytes, objects)| OfSize {
                below_bytes: *below_bytes,
                objects: *objects,
            })
            .collect(),
        ages: vec![of(0.0625, 1), of(8.0, alive - 1)],
        followed_objects,
        freed: vec![of(2.0, freed - 20), of(16.0, 20)],
        temporary_objects: freed - 20,
        temporary_below_s: 1.02,
    }
}

fn exact(mut site: Site) -> Site {
    site.weight = 1;
    site.inuse_bytes_low = site.inuse_bytes;
    site.inuse_bytes_high = site.inuse_bytes;
    site.allocator = Some(format!("glibc {LIBC}"));
    site
}

/// One process, traced exactly: a leak through an inlined function, a recursion, code without symbols, a stack that
/// breaks off, one that was not stored, and one whose blocks are all freed.
pub(super) fn exact_report() -> Report {
    let leak = Site {
        id: 3,
        inuse_bytes: MIB,
        inuse_objects: 1024,
        alloc_bytes: 2 * MIB,
        alloc_objects: 2048,
        oldest_age_s: 9.53,
        growth_bytes_per_s: 104_857.6,
        verdict: Verdict::Leaking,
        verdict_reason: "every one of 1,024 blocks born more than 5 s ago is alive".to_owned(),
        peak_bytes: Some(MIB + 64 * KIB),
        lives: Some(lives(&[(64, 24), (2048, 1000)], 2048, 1000)),
        stack_complete: true,
        frames: with_end(vec![
            libc("malloc", 0x98f00),
            libc("operator new(unsigned long)", 0xae98c),
            program(
                "Index::entry(std::string_view)",
                0x1444,
                "src/index.hpp",
                88,
                true,
            ),
            program(
                "Index::add(Document const&)",
                0x1444,
                "src/index.cpp",
                132,
                false,
            ),
        ]),
        ..Site::default()
    };
    let recursion = Site {
        id: 9,
        inuse_bytes: 300 * KIB,
        inuse_objects: 39,
        alloc_bytes: 300 * KIB,
        alloc_objects: 39,
        oldest_age_s: 131.0,
        verdict: Verdict::Plateau,
        verdict_reason: "no growth for 2 min".to_owned(),
        stack_complete: true,
        frames: with_end(
            std::iter::once(libc("calloc", 0x99d00))
                .chain(std::iter::repeat_n(
                    program(
                        "Tree::grow(unsigned int)",
                        0x1999,
                        "src/tree.cpp",
                        20,
                        false,
                    ),
                    38,
                ))
                .collect(),
        ),
        ..Site::default()
    };
    let no_symbols = Site {
        id: 12,
        inuse_bytes: 4096,
        inuse_objects: 1,
        alloc_bytes: 8192,
        alloc_objects: 2,
        oldest_age_s: 0.25,
        stack_complete: false,
        stack_incomplete_reason: Some("frame-pointer chain broken".to_owned()),
        frames: vec![
            libc("realloc", 0x99a00),
            stripped("/opt/vendor/libcodec.so.2", 0x1_2345),
            stripped("/opt/vendor/libcodec.so.2", 0x1_0000),
        ],
        ..Site::default()
    };
    let unknown = Site {
        inuse_bytes: 10,
        inuse_objects: 1,
        alloc_bytes: 10,
        alloc_objects: 1,
        oldest_age_s: 3.0,
        ..Site::default()
    };
    let freed = Site {
        id: 13,
        alloc_bytes: 640,
        alloc_objects: 10,
        verdict: Verdict::Churn,
        stack_complete: true,
        frames: with_end(vec![libc("malloc", 0x98f00)]),
        ..Site::default()
    };
    let sites = [unknown, freed, no_symbols, leak, recursion].map(|site| {
        exact(Site {
            pid: 4321,
            incarnation: 1,
            ..site
        })
    });
    let mut parts = ReportParts {
        suppressed: vec![Suppressed {
            pattern: "libcrypto.so*".to_owned(),
            sites: 2,
            inuse_bytes: 3 * KIB,
            inuse_objects: 12,
        }],
        captured_at: Timestamp::from_unix_ms(1_767_225_600_000),
        duration_s: 10.02,
        tier: Tier::Exact,
        tier_reason: "asked for".to_owned(),
        processes: vec![indexer()],
        sites: sites.to_vec(),
        losses: [
            ("stack_table_full".to_owned(), 1),
            ("call_never_returned".to_owned(), 2),
        ]
        .into(),
        overhead: Overhead {
            probe_hits: 46_345,
            duty: 1.0,
            target_cpu_fraction: 0.0042,
            budget: 0.01,
            tracer_cores: 0.0034,
        },
        ..ReportParts::default()
    };
    parts.add_up();
    Report::new(parts)
}

/// Three processes, sampled, cut to the two largest sites: thinned blocks, intervals, Python and generated code.
pub(super) fn sampled_report() -> Report {
    let web = Process {
        pid: 77,
        incarnation: 2,
        comm: "gunicorn: worker".to_owned(),
        cgroup: "/kubepods/pod1/abc".to_owned(),
        allocators: vec![
            format!("glibc {LIBC}"),
            "jemalloc /opt/lib/libjemalloc.so.2".to_owned(),
        ],
        rss_bytes: 2 * 1024 * MIB,
        swapped_bytes: 200 * MIB,
        rss_growth_bytes_per_s: -12.0,
        probes: vec![
            Probe {
                name: "malloc".to_owned(),
                module: Some(LIBC.to_owned()),
                site_offset: 0x98f00,
                hits: 5_000_000,
                ..Probe::default()
            },
            Probe {
                name: "malloc".to_owned(),
                module: Some("/opt/lib/libjemalloc.so.2".to_owned()),
                site_offset: 0x8000,
                hits: 12,
                ..Probe::default()
            },
        ],
        exited: true,
        exit_note: Some("killed by signal 9 after 31 s".to_owned()),
        ..Process::default()
    };
    let site = |id: u64, mib: u64, frames: Vec<Arc<Frame>>| Site {
        pid: 77,
        incarnation: 2,
        id,
        inuse_bytes: mib * MIB,
        inuse_objects: mib * 2048,
        alloc_bytes: mib * 10 * MIB,
        alloc_objects: mib * 20_480,
        inuse_bytes_low: mib * MIB * 3 / 4,
        inuse_bytes_high: mib * MIB * 3 / 2,
        oldest_age_s: 4000.0,
        growth_bytes_per_s: 0.25,
        verdict: Verdict::WarmingUp,
        weight: 8,
        sample: Some(Sample {
            objects: 600,
            alike_objects: 40,
            windows: 12,
            checks: 300,
            counted_bytes: mib * MIB / 4,
        }),
        lives: Some(lives(&[(32, 100), (1024, 500)], 4000, 3000)),
        counted: Some(CountedGrowth {
            block_bytes: 64,
            growth_bytes_per_s: 157_696.0,
            growth_error_bytes_per_s: 1_500.0,
            share: 0.98,
            share_error: 0.01,
            looks: 9,
            last_age_s: 4.0,
            sizes: vec![CountedSize {
                block_bytes: 64,
                objects: mib * 16_384,
                counted_objects: 2_000_000,
            }],
        }),
        allocator: Some(format!("glibc {LIBC}")),
        stack_complete: true,
        frames,
        ..Site::default()
    };
    let mut parts = ReportParts {
        captured_at: Timestamp::from_unix_ms(1_767_225_600_123),
        duration_s: 7_300.0,
        tier: Tier::Sampled,
        tier_reason: "exact would take 9 % of the CPU time".to_owned(),
        processes: vec![
            Process {
                pid: 1,
                comm: "systemd".to_owned(),
                cgroup: "/init.scope".to_owned(),
                allocators: vec![format!("glibc {LIBC}")],
                ..Process::default()
            },
            web,
            Process {
                pid: 90,
                comm: "statically".to_owned(),
                empty_reason: Some("no allocator was found in /srv/statically".to_owned()),
                ..Process::default()
            },
        ],
        sites: vec![
            site(
                1,
                96,
                vec![
                    libc("malloc", 0x98f00),
                    named("load_model", FrameKind::Python),
                    named("handler~", FrameKind::Jit),
                    named("entry_SYSCALL_64", FrameKind::Kernel),
                ],
            ),
            site(2, 2, vec![libc("malloc", 0x98f00)]),
            site(3, 1, vec![libc("malloc", 0x98f00), libc("strdup", 0x9abc0)]),
        ],
        overhead: Overhead {
            probe_hits: 5_000_012,
            duty: 0.083,
            target_cpu_fraction: 0.0097,
            budget: 0.01,
            tracer_cores: 0.0034,
        },
        ..ReportParts::default()
    };
    parts.add_up();
    parts.keep_top(2);
    Report::new(parts)
}

/// Nothing found, and why.
pub(super) fn empty_report() -> Report {
    Report::new(ReportParts {
        captured_at: Timestamp::from_unix_ms(1_767_225_600_000),
        duration_s: 0.5,
        tier_reason: "asked for".to_owned(),
        processes: vec![
            Process {
                pid: 5,
                comm: "idle".to_owned(),
                allocators: vec![format!("glibc {LIBC}")],
                probes: vec![Probe {
                    name: "malloc".to_owned(),
                    ..Probe::default()
                }],
                ..Process::default()
            },
            Process {
                pid: 6,
                comm: "<go>".to_owned(),
                empty_reason: Some(
                    "no allocator was found: the program is static & stripped".to_owned(),
                ),
                ..Process::default()
            },
        ],
        ..ReportParts::default()
    })
}

/// Names chosen to break a terminal or a file format.
pub(super) fn hostile_report() -> Report {
    let long = format!(
        "std::map<{}>::insert()",
        "std::pair<int, long>, ".repeat(20)
    );
    let mut parts = ReportParts {
        tier_reason: "line\nbreak".to_owned(),
        processes: vec![Process {
            pid: 8,
            comm: "# \x1b[2J;e\nvil".to_owned(),
            cgroup: "/a b;c".to_owned(),
            allocators: vec!["glibc /tmp/\x07bell".to_owned()],
            ..Process::default()
        }],
        sites: vec![exact(Site {
            pid: 8,
            inuse_bytes: 5,
            inuse_objects: 1,
            alloc_bytes: 5,
            alloc_objects: 1,
            stack_complete: false,
            frames: vec![
                named("operator\"\" 12", FrameKind::Native),
                named("<[u8; 4] as T<'a>>::f & co", FrameKind::Native),
                named("", FrameKind::Native),
                named(&long, FrameKind::Native),
            ],
            ..Site::default()
        })],
        ..ReportParts::default()
    };
    parts.add_up();
    Report::new(parts)
}

/// One process of whose allocator nothing is seen: a mapping, and where its pages and those of another were first written to.
pub(super) fn growth_report() -> Report {
    let pages = |id, count, alloc, margin, function: &str| Site {
        pid: 4321,
        incarnation: 1,
        id,
        kind: SiteKind::Pages,
        inuse_bytes: count * 4 * KIB,
        inuse_objects: count,
        alloc_bytes: alloc * 4 * KIB,
        alloc_objects: alloc,
        inuse_bytes_low: (count - margin) * 4 * KIB,
        inuse_bytes_high: (count + margin) * 4 * KIB,
        oldest_age_s: 8.0,
        weight: 16,
        stack_complete: true,
        frames: with_end(vec![program(function, 0x1a10, "src/index.cpp", 77, false)]),
        ..Site::default()
    };
    let mapping = Site {
        pid: 4321,
        incarnation: 1,
        id: 5,
        kind: SiteKind::Mapping,
        mapping: Some(MappingKind::Anonymous),
        inuse_bytes: 16 * MIB,
        inuse_bytes_low: 16 * MIB,
        inuse_bytes_high: 16 * MIB,
        inuse_objects: 2,
        alloc_bytes: 24 * MIB,
        alloc_objects: 3,
        oldest_age_s: 9.0,
        weight: 1,
        stack_complete: true,
        frames: with_end(vec![libc("mmap", 0xff8a0)]),
        ..Site::default()
    };
    let mut parts = ReportParts {
        captured_at: Timestamp::from_unix_ms(1_700_000_000_000),
        duration_s: 10.0,
        tier: Tier::Growth,
        tier_reason: "asked for".to_owned(),
        processes: vec![Process {
            allocators: Vec::new(),
            probes: Vec::new(),
            frees_of_unknown_blocks: 0,
            verdict: Verdict::WarmingUp,
            ..indexer()
        }],
        sites: vec![
            pages(8, 3072, 4096, 300, "Index::fill(unsigned long)"),
            mapping,
            pages(9, 512, 512, 128, "Cache::fill()"),
        ],
        overhead: Overhead {
            probe_hits: 0,
            duty: 1.0,
            target_cpu_fraction: 0.002,
            budget: 0.01,
            tracer_cores: 0.0034,
        },
        ..ReportParts::default()
    };
    parts.add_up();
    Report::new(parts)
}

/// A server that opens sockets and closes none, and what the kernel holds meanwhile.
pub(super) fn kernel_report() -> Report {
    let cache = |name: &str, objects: u64, object_bytes: u64, growth: f64| KernelLevel {
        kind: KernelLevelKind::Cache,
        name: name.to_owned(),
        objects: Some(objects),
        object_bytes: Some(object_bytes),
        bytes: objects * object_bytes,
        growth_objects_per_s: Some(growth),
        growth_bytes_per_s: growth * object_bytes as f64,
        growth_bytes_per_s_low: 0.9 * growth * object_bytes as f64,
        growth_bytes_per_s_high: 1.1 * growth * object_bytes as f64,
        verdict: Verdict::Plateau,
        verdict_reason: "it has not grown for 60.0 s".to_owned(),
        ..KernelLevel::default()
    };
    let class = |name: &str, bytes| KernelLevel {
        kind: KernelLevelKind::Class,
        name: name.to_owned(),
        bytes,
        ..KernelLevel::default()
    };
    let held = |kind: &str, objects, growth_per_s: f64| Holding {
        kind: kind.to_owned(),
        objects: Some(objects),
        growth_per_s,
        growth_per_s_low: 0.99 * growth_per_s,
        growth_per_s_high: 1.01 * growth_per_s,
        verdict: Verdict::Plateau,
        ..Holding::default()
    };
    let kind = |kind: &str, open, growth_per_s| DescriptorKind {
        kind: kind.to_owned(),
        open,
        growth_per_s,
        ..DescriptorKind::default()
    };
    let server = ProcessKernel {
        holdings: vec![
            Holding {
                limit: Some(65_536),
                verdict: Verdict::Leaking,
                verdict_reason: "+800/s for 60.0 s, no sign of levelling off; at this rate its limit of 65,536 is reached in about 61 s"
                    .to_owned(),
                ..held("descriptors", 16_514, 800.0)
            },
            held("threads", 4, 0.0),
            held("zombies", 2, 0.0),
            Holding {
                objects: None,
                bytes: Some(204_800),
                ..held("page-tables", 0, 0.0)
            },
        ],
        descriptor_kinds: vec![
            kind("socket", 16_500, Some(799.0)),
            DescriptorKind {
                entries: 16_480,
                ..kind("eventpoll", 8, Some(0.0))
            },
            DescriptorKind {
                held_bytes: 3 * MIB,
                ..kind("memfd", 3, None)
            },
            kind("file", 3, Some(0.0)),
        ],
    };
    let mut parts = ReportParts {
        captured_at: Timestamp::from_unix_ms(1_700_000_000_000),
        duration_s: 60.0,
        tier_reason: "asked for".to_owned(),
        processes: vec![Process {
            kernel: Some(server),
            ..indexer()
        }],
        kernel: Some(KernelMemory {
            levels: vec![
                KernelLevel {
                    verdict: Verdict::Leaking,
                    verdict_reason: "+400/s for 2 min 0 s, no sign of levelling off".to_owned(),
                    ..cache("sock_inode_cache", 8258, 832, 400.0)
                },
                KernelLevel {
                    shared_with: ["UNIX", "\x1b[2Jevil", "a", "b", "c", "d"]
                        .map(str::to_owned)
                        .to_vec(),
                    verdict: Verdict::WarmingUp,
                    verdict_reason: "60.0 s is too short for a verdict (120 s)".to_owned(),
                    ..cache("signal_cache", 8600, 1152, 400.0)
                },
                KernelLevel {
                    reclaimable: true,
                    verdict: Verdict::WarmingUp,
                    verdict_reason: "it grows, but the kernel frees it when memory is short"
                        .to_owned(),
                    ..cache("dentry", 1_250_000, 192, 400.0)
                },
                class("unreclaimable slabs", 104 * MIB),
                class("kernel stacks", 3 * MIB),
                KernelLevel {
                    kind: KernelLevelKind::Cgroup,
                    name: "/system.slice/indexer.service".to_owned(),
                    bytes: 40 * MIB,
                    growth_bytes_per_s: 900_000.0,
                    verdict: Verdict::WarmingUp,
                    parts: vec![KernelPart {
                        name: "slab_unreclaimable".to_owned(),
                        bytes: 39 * MIB,
                    }],
                    ..KernelLevel::default()
                },
            ],
            omitted: 12,
            notes: vec!["/proc/slabinfo cannot be read: permission denied".to_owned()],
            sites: vec![
                kernel_site(),
                KernelObjects {
                    pid: 0,
                    comm: String::new(),
                    interrupt: true,
                    cache: "skbuff_head_cache".to_owned(),
                    weight: 4,
                    inferred_frees: 3,
                    verdict: Verdict::WarmingUp,
                    growth_objects_per_s: 2.0,
                    frames: Vec::new(),
                    ..kernel_site()
                },
            ],
            windows: Some(KernelWindows {
                opened: 1,
                open_s: 52.0,
                calls: 4_000_000,
                followed: 9000,
                cores: 0.003,
            }),
        }),
        ..ReportParts::default()
    };
    for process in &mut parts.processes {
        process.verdict = Verdict::InsufficientData;
    }
    parts.add_up();
    Report::new(parts)
}
