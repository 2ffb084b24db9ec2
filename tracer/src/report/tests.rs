//! The views against golden files, the JSON against its schema, and properties that hold of every report.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing test may panic"
)]

mod difference;
mod profiles;
mod schema;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::arbitrary::any_report;
use super::fixtures::{
    empty_report, exact_report, growth_report, hostile_report, kernel_report, machine_report,
    sampled_report,
};
use super::pprof::proto::{Location, Profile};
use super::{
    By, Difference, FORMAT_NAMES, Format, HeapUse, Process, ReadError, Report, ReportParts, Site,
    SiteKind, Style, Text, Verdict, pprof,
};

fn bytes(report: &Report, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    <dyn Format>::from_name(name)
        .unwrap()
        .write(report, &mut out)
        .unwrap();
    out
}

fn text(report: &Report, name: &str) -> String {
    String::from_utf8(bytes(report, name)).unwrap()
}

fn all_reports() -> [(&'static str, Report); 6] {
    [
        ("exact", exact_report()),
        ("sampled", sampled_report()),
        ("growth", growth_report()),
        ("empty", empty_report()),
        ("hostile", hostile_report()),
        ("kernel", kernel_report()),
    ]
}

#[test]
fn golden_text() {
    for (name, report) in all_reports() {
        insta::assert_snapshot!(format!("text_{name}"), text(&report, "text"));
    }
}

#[test]
fn golden_text_in_color() {
    let mut out = Vec::new();
    let style = Style {
        color: true,
        links: true,
        ..Style::default()
    };
    Text::new(style).write(&exact_report(), &mut out).unwrap();
    let out = String::from_utf8(out).unwrap().replace('\x1b', "␛");
    insta::assert_snapshot!("text_color", out);
}

/// In a style, and without trailing spaces, which editors take away.
fn styled(report: &Report, style: Style) -> String {
    let mut out = Vec::new();
    Text::new(style).write(report, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn golden_text_in_full() {
    let full = Style {
        full: true,
        ..Style::default()
    };
    for (name, report) in all_reports() {
        insta::assert_snapshot!(format!("text_full_{name}"), styled(&report, full));
    }
}

#[test]
fn golden_text_as_a_tree() {
    let tree = Style {
        by: By::Tree,
        ..Style::default()
    };
    for (name, report) in [
        ("exact", exact_report()),
        ("growth", growth_report()),
        ("machine", machine_report()),
    ] {
        insta::assert_snapshot!(format!("text_tree_{name}"), styled(&report, tree));
    }
}

#[test]
fn golden_text_on_narrow_and_wide_terminals() {
    for (name, report) in [("exact", exact_report()), ("machine", machine_report())] {
        for width in [60, 80, 160] {
            let style = Style {
                width: Some(width),
                height: Some(40),
                ..Style::default()
            };
            let text = styled(&report, style);
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            insta::assert_snapshot!(format!("text_{width}_{name}"), text);
        }
    }
}

/// Two of twenty sites were shown and three that leak were not, for there was much to say of processes and of the kernel.
#[test]
fn every_leak_has_a_line_however_little_room_there_is() {
    let mut parts = exact_report().into_parts();
    let like = parts.sites.first().cloned().unwrap();
    parts.sites = (1..=12)
        .map(|id| Site {
            id,
            verdict: if id > 8 {
                Verdict::Leaking
            } else {
                Verdict::Plateau
            },
            inuse_bytes: 4096 * id,
            ..like.clone()
        })
        .collect();
    let style = Style {
        width: Some(80),
        height: Some(12),
        ..Style::default()
    };
    let text = styled(&Report::new(parts), style);
    for rank in 1..=4 {
        let head = format!("#{rank}  leaking");
        assert!(text.lines().any(|line| line.starts_with(&head)), "{text}");
    }
    assert!(text.contains("and 8 more sites with"), "{text}");
}

/// A site that leaks came on line 205, below all that were larger.
#[test]
fn what_leaks_stands_on_the_first_screen_however_small_it_is() {
    let report = machine_report();
    let style = Style {
        width: Some(80),
        height: Some(40),
        ..Style::default()
    };
    let text = styled(&report, style);
    assert!(text.lines().count() <= 40, "{text}");
    let place = |what: &str| text.lines().position(|line| line.contains(what));
    let leak = place("#1  leaking").unwrap();
    assert!(leak < place("#2  ").unwrap(), "{text}");
    assert!(text.contains("more sites with"), "{text}");
    // Nothing is lost of the sums.
    let shown = report.only(&Default::default(), 1);
    assert_eq!(shown.sites[0].verdict, Verdict::Leaking);
    assert_eq!(shown.total(), report.total());
}

#[test]
fn small_sites_are_summed_up_where_that_is_asked_for() {
    let style = Style {
        min_percent: 10.0,
        ..Style::default()
    };
    let text = styled(&exact_report(), style);
    assert!(text.contains("#2  ") && !text.contains("#3  "), "{text}");
    assert!(
        text.contains("and 2 more sites with 4.01 KiB in 2 blocks"),
        "{text}"
    );
}

#[test]
fn golden_json() {
    for (name, report) in all_reports() {
        let json = text(&report, "json");
        assert_eq!(json.matches('\n').count(), 1, "one line");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        insta::assert_snapshot!(
            format!("json_{name}"),
            serde_json::to_string_pretty(&value).unwrap()
        );
    }
}

#[test]
fn golden_folded() {
    for (name, report) in all_reports() {
        insta::assert_snapshot!(format!("folded_{name}"), text(&report, "folded"));
    }
}

#[test]
fn golden_pprof() {
    for (name, report) in all_reports() {
        let profile = pprof::read(&bytes(&report, "pprof")).unwrap();
        insta::assert_snapshot!(format!("pprof_{name}"), dump(&profile));
    }
}

/// The frames of the flame graph, as their tooltips say them: the rest of the file is inferno's.
#[test]
fn golden_flame_graph() {
    for (name, report) in all_reports() {
        let svg = text(&report, "svg");
        let titles: Vec<&str> = svg
            .split("<title>")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once("</title>")?.0))
            .collect();
        insta::assert_snapshot!(format!("svg_{name}"), titles.join("\n"));
    }
}

/// Mappings hold the same bytes: pages are in no sum, in whatever form the report comes back.
#[test]
fn pages_are_in_no_sum() {
    let report = growth_report();
    assert_eq!(report.contradictions(), [""; 0]);
    let mapping = report
        .sites
        .iter()
        .find(|site| site.kind == SiteKind::Mapping)
        .unwrap();
    let is_only_the_mapping = |report: &Report| {
        let total = report.total();
        assert_eq!(total.inuse_bytes, mapping.inuse_bytes);
        assert_eq!(total.alloc_objects, mapping.alloc_objects);
        assert_eq!(total.sites, 3);
        assert_eq!(report.processes[0].inuse_bytes, mapping.inuse_bytes);
    };
    is_only_the_mapping(&report);
    let mut parts = report.clone().into_parts();
    parts.keep_top(0);
    is_only_the_mapping(&Report::new(parts));
    let profile = pprof::to_report(&pprof::profile(&report)).unwrap();
    is_only_the_mapping(&profile);
    for (site, back) in report.sites.iter().zip(&profile.sites) {
        let is_pages = |site: &Site| site.kind == SiteKind::Pages;
        assert_eq!(is_pages(site), is_pages(back));
        assert_eq!(site.frames.len(), back.frames.len());
    }
    let of_pages: u64 = report
        .sites
        .iter()
        .filter(|site| site.kind == SiteKind::Pages)
        .map(|site| site.inuse_bytes)
        .sum();
    let totals = pprof::profile(&report).totals();
    let total = |name: &str| totals.get(name).copied();
    let signed = |bytes: u64| i64::try_from(bytes).ok();
    assert_eq!(total("inuse_space"), signed(mapping.inuse_bytes));
    assert_eq!(total("alloc_objects"), signed(mapping.alloc_objects));
    assert_eq!(total("pages_space"), signed(of_pages));
    assert!(of_pages > 0);
    let since_nothing = Difference::between(&empty_report(), &report);
    let change = i64::try_from(mapping.inuse_bytes).unwrap();
    assert_eq!(since_nothing.total.inuse_bytes_change, change);
    assert_eq!(since_nothing.total.stacks, 3);
    assert_eq!(since_nothing.keep_top(0).omitted.inuse_bytes_change, change);
}

#[test]
fn an_empty_flame_graph_says_why() {
    let svg = text(&empty_report(), "svg");
    assert!(svg.contains(
        "&lt;go&gt; (pid 6): no allocator was found: the program is static &amp; stripped"
    ));
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn nothing_reaches_the_terminal_that_moves_the_cursor() {
    for name in ["text", "folded", "svg"] {
        let text = text(&hostile_report(), name);
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{name}");
    }
}

#[test]
fn formats_have_the_names_they_answer_to() {
    for name in FORMAT_NAMES {
        assert_eq!(<dyn Format>::from_name(name).unwrap().name(), name);
    }
    let Err(error) = <dyn Format>::from_name("yaml") else {
        panic!("there is no such format");
    };
    for name in FORMAT_NAMES {
        assert!(error.to_string().contains(name));
    }
}

#[test]
fn reports_made_by_hand_do_not_contradict_themselves() {
    for (name, report) in all_reports() {
        assert_eq!(report.contradictions(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn contradictions_are_found() {
    let mut parts = exact_report().into_parts();
    parts.sites[0].inuse_bytes_high = 0;
    parts.sites[1].alloc_objects = 0;
    parts.sites[2].pid = 1;
    parts.processes[0].inuse_bytes += 1;
    let found = Report::new(parts).contradictions().join("\n");
    for what in [
        "site 0 of process 4321: inuse_bytes is outside its interval",
        "site 1 of process 4321: more survives than was allocated",
        "site 2 of process 1: the process is not listed",
        "inuse_bytes: 1359882 over the sites, 1359883 over the processes",
    ] {
        assert!(found.contains(what), "{what} is not in\n{found}");
    }
}

#[test]
fn numbers_that_json_cannot_write_become_zero() {
    let report = Report::new(ReportParts {
        duration_s: f64::NAN,
        sites: vec![Site {
            growth_bytes_per_s: f64::INFINITY,
            ..Site::default()
        }],
        ..ReportParts::default()
    });
    let back = Report::from_json(&bytes(&report, "json")).unwrap();
    assert_eq!(back.sites[0].growth_bytes_per_s.to_bits(), 0);
    assert_eq!(back.duration_s.to_bits(), 0);
}

/// What the contract names is required; what was added later is not, and what is added in future is passed over.
#[test]
fn a_report_of_the_bare_contract_is_read() {
    let json = r#"{ "schema": 1, "captured_at": "2026-01-01T00:00:00Z", "duration_s": 5, "tier": "exact",
        "tier_reason": "", "colour": "blue",
        "processes": [ { "pid": 1, "comm": "a", "cgroup": "/", "allocators": [], "rss_bytes": 0,
            "rss_growth_bytes_per_s": 0.0, "mood": [1] } ],
        "sites": [ { "pid": 1, "inuse_bytes": 1, "inuse_objects": 1, "alloc_bytes": 1, "alloc_objects": 1,
            "inuse_bytes_low": 1, "inuse_bytes_high": 1, "oldest_age_s": 0.5, "growth_bytes_per_s": 0,
            "verdict": "warming-up", "verdict_reason": "", "stack_complete": true,
            "frames": [ { "function": null, "module": "/m", "offset": 1, "file": null, "line": null,
                "inlined": false, "kind": "native", "column": 3 } ] } ],
        "losses": { "a_later_cause": 3 },
        "overhead": { "probe_hits": 0, "duty": 1, "target_cpu_fraction": 0, "budget": 0.01 } }"#;
    let report = Report::from_json(json.as_bytes()).unwrap();
    assert_eq!(report.sites[0].verdict, Verdict::WarmingUp);
    assert_eq!(report.sites[0].weight, 1);
    assert_eq!(report.losses["a_later_cause"], 3);
    assert_eq!(report.losses["event_lost"], 0);
    assert!(text(&report, "text").contains("3  a_later_cause"));
}

#[test]
fn what_is_no_report_is_refused() {
    assert!(matches!(Report::from_json(b"{"), Err(ReadError::Json(_))));
    assert!(matches!(Report::from_json(b"{}"), Err(ReadError::Json(_))));
    assert!(matches!(
        Report::from_json(br#"{"schema": 1}"#),
        Err(ReadError::Json(_))
    ));
    assert!(matches!(
        Report::from_json(br#"{"schema": 2}"#),
        Err(ReadError::Schema { found: 2 })
    ));
}

#[test]
fn damaged_profiles_are_refused() {
    let good = bytes(&exact_report(), "pprof");
    assert!(pprof::read(&good[..good.len() / 2]).is_err());
    assert!(pprof::read(b"\x1f\x8bnonsense").is_err());
    assert!(pprof::read(b"plain text").is_err());
}

#[test]
fn sums_are_per_incarnation() {
    let site = |incarnation, inuse_bytes| Site {
        pid: 1,
        incarnation,
        inuse_bytes,
        ..Site::default()
    };
    let process = |incarnation| Process {
        pid: 1,
        incarnation,
        ..Process::default()
    };
    let mut parts = ReportParts {
        processes: vec![process(1), process(2)],
        sites: vec![site(1, 10), site(2, 1), site(1, 5)],
        ..ReportParts::default()
    };
    parts.add_up();
    assert_eq!(parts.processes[0].inuse_bytes, 15);
    assert_eq!(parts.processes[1].inuse_bytes, 1);
}

/// The order does not depend on the order in which the sites came.
#[test]
fn ties_are_broken() {
    let site = |pid, id| Site {
        pid,
        id,
        inuse_bytes: 7,
        ..Site::default()
    };
    let sites = [site(2, 1), site(1, 9), site(1, 2)];
    let order = |sites: Vec<Site>| {
        let report = Report::new(ReportParts {
            sites,
            ..ReportParts::default()
        });
        let order: Vec<_> = report
            .sites
            .iter()
            .map(|site| (site.pid, site.id))
            .collect();
        order
    };
    let expected = [(1, 2), (1, 9), (2, 1)];
    assert_eq!(order(sites.to_vec()), expected);
    assert_eq!(order(sites.into_iter().rev().collect()), expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_report_has_every_view(report in any_report()) {
        prop_assert_eq!(report.contradictions(), Vec::<String>::new());
        let total = report.total();

        prop_assert_eq!(&Report::from_json(&bytes(&report, "json")).unwrap(), &report);
        schema::check(&serde_json::to_value(&report).unwrap()).map_err(TestCaseError::fail)?;

        let profile = pprof::read(&bytes(&report, "pprof")).unwrap();
        check_references(&profile).map_err(TestCaseError::fail)?;
        let expected: BTreeMap<String, i64> = [
            ("inuse_space", total.inuse_bytes),
            ("inuse_objects", total.inuse_objects),
            ("alloc_space", total.alloc_bytes),
            ("alloc_objects", total.alloc_objects),
        ]
        .map(|(name, sum)| (name.to_owned(), i64::try_from(sum).unwrap()))
        .into();
        let mut totals = profile.totals();
        // Pages have sums of their own.
        totals.retain(|name, _| !name.starts_with("pages_"));
        prop_assert_eq!(totals, expected);

        let folded = text(&report, "folded");
        let sum: u64 = folded
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum();
        prop_assert_eq!(sum, total.inuse_bytes);

        let full = Style { full: true, ..Style::default() };
        let view = styled(&report, full);
        let surviving = report.sites.iter().filter(|site| site.inuse_bytes + site.inuse_objects > 0);
        for rank in 1..=surviving.count() {
            let head = format!("#{rank}  ");
            prop_assert!(view.lines().any(|line| line.starts_with(&head)), "{}", head);
        }

        for by in [By::Site, By::Tree] {
            let narrow = Style { by, width: Some(60), height: Some(24), links: true, color: true, ..Style::default() };
            prop_assert!(styled(&report, narrow).contains("Total"));
        }

        prop_assert!(text(&report, "svg").trim_end().ends_with("</svg>"));
    }

    /// The largest numbers of all neither overflow nor fail.
    #[test]
    fn no_number_is_too_large(sites in 0..4_usize) {
        let site = Site {
            pid: 1,
            inuse_bytes: u64::MAX,
            inuse_objects: u64::MAX,
            alloc_bytes: u64::MAX,
            alloc_objects: u64::MAX,
            weight: u64::MAX,
            oldest_age_s: f64::MAX,
            growth_bytes_per_s: f64::MIN,
            ..Site::default()
        };
        let mut parts = ReportParts {
            duration_s: f64::MAX,
            sites: vec![site; sites],
            ..ReportParts::default()
        };
        parts.keep_top(2);
        let report = Report::new(parts);
        for name in FORMAT_NAMES {
            prop_assert!(sites == 0 || !bytes(&report, name).is_empty());
        }
    }

    #[test]
    fn no_bytes_break_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(pprof::read(&bytes));
        drop(Report::from_json(&bytes));
    }
}

/// That every id and every index of a profile leads somewhere, as pprof itself checks when it reads one.
fn check_references(profile: &Profile) -> Result<(), String> {
    let strings = profile.string_table.len();
    let is_string = |index: i64| usize::try_from(index).is_ok_and(|index| index < strings);
    let expect = |holds: bool, what: &str| holds.then_some(()).ok_or_else(|| what.to_owned());
    expect(
        profile.string_table.first().is_some_and(String::is_empty),
        "string 0",
    )?;
    for (place, mapping) in profile.mapping.iter().enumerate() {
        expect(mapping.id == place as u64 + 1, "mapping id")?;
        expect(
            is_string(mapping.filename) && is_string(mapping.build_id),
            "mapping name",
        )?;
    }
    for (place, function) in profile.function.iter().enumerate() {
        expect(function.id == place as u64 + 1, "function id")?;
        expect(
            is_string(function.name) && is_string(function.filename),
            "function name",
        )?;
    }
    for (place, location) in profile.location.iter().enumerate() {
        expect(location.id == place as u64 + 1, "location id")?;
        expect(
            location.mapping_id as usize <= profile.mapping.len(),
            "location's mapping",
        )?;
        if let Some(mapping) = (location.mapping_id as usize)
            .checked_sub(1)
            .and_then(|place| profile.mapping.get(place))
        {
            expect(
                (mapping.memory_start..=mapping.memory_limit).contains(&location.address),
                "address outside its mapping",
            )?;
        }
        for line in &location.line {
            let known = (1..=profile.function.len()).contains(&(line.function_id as usize));
            expect(known, "line's function")?;
        }
    }
    for sample in &profile.sample {
        expect(sample.value.len() == profile.sample_type.len(), "values")?;
        expect(!sample.location_id.is_empty(), "a sample without a stack")?;
        for &id in &sample.location_id {
            expect(
                (1..=profile.location.len()).contains(&(id as usize)),
                "location",
            )?;
        }
        for label in &sample.label {
            expect(is_string(label.key) && is_string(label.str), "label")?;
        }
    }
    Ok(())
}

/// A profile as text.
fn dump(profile: &Profile) -> String {
    let string = |index| profile.string(index);
    let mut lines = vec![format!(
        "time {} duration {} default {}",
        profile.time_nanos,
        profile.duration_nanos,
        string(profile.default_sample_type)
    )];
    for &comment in &profile.comment {
        lines.push(format!("comment {}", string(comment)));
    }
    for kind in &profile.sample_type {
        lines.push(format!(
            "type {}/{}",
            string(kind.r#type),
            string(kind.unit)
        ));
    }
    for mapping in &profile.mapping {
        lines.push(format!(
            "mapping {} {:#x}-{:#x} at {:#x} of {} {} functions={} files={} lines={} inlined={}",
            mapping.id,
            mapping.memory_start,
            mapping.memory_limit,
            mapping.file_offset,
            string(mapping.filename),
            string(mapping.build_id),
            mapping.has_functions,
            mapping.has_filenames,
            mapping.has_line_numbers,
            mapping.has_inline_frames
        ));
    }
    for sample in &profile.sample {
        lines.push(format!("sample {:?}", sample.value));
        for label in &sample.label {
            lines.push(format!("  {} = {}", string(label.key), string(label.str)));
        }
        for &id in &sample.location_id {
            lines.push(place(profile, &profile.location[id as usize - 1]));
        }
    }
    lines.join("\n")
}

fn place(profile: &Profile, location: &Location) -> String {
    let functions: Vec<String> = location
        .line
        .iter()
        .map(|line| {
            let function = &profile.function[line.function_id as usize - 1];
            let (name, file) = (
                profile.string(function.name),
                profile.string(function.filename),
            );
            format!("{name} {file}:{}", line.line)
        })
        .collect();
    format!(
        "  {:#x} in {}: {}",
        location.address,
        location.mapping_id,
        functions.join(" < ")
    )
}

#[test]
fn holes_in_a_heap_are_told_where_they_explain_its_memory() {
    let told = |free_bytes: u64| {
        let mut parts = exact_report().into_parts();
        for process in &mut parts.processes {
            process.anonymous_bytes = 100 << 20;
            process.heap = Some(HeapUse {
                bytes: 20 << 20,
                blocks: 1000,
                free_bytes,
                free_pieces: 12_345,
                ..HeapUse::default()
            });
        }
        let mut text = Vec::new();
        Text::default()
            .write(&Report::new(parts), &mut text)
            .unwrap();
        String::from_utf8(text).unwrap()
    };
    let line = "free inside the heap: 70.0 MiB in 12,345 pieces, beside 20.0 MiB in use";
    assert!(told(70 << 20).contains(line), "{}", told(70 << 20));
    assert!(!told(5 << 20).contains("free inside"));
}
