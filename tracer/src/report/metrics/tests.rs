//! Metrics as their readers read them.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failing test may panic"
)]

use std::collections::BTreeMap;

use prometheus_client::registry::Registry;
use proptest::prelude::*;

use super::super::arbitrary::any_report;
use super::super::fixtures::{exact_report, hostile_report, kernel_report, machine_report};
use super::super::{Process, Report, ReportParts};
use super::{Exposition, SITES, TOP, register, write};

fn text(report: &Report) -> String {
    let mut registry = Registry::with_prefix("leakscope");
    register(report, &mut registry);
    write(&registry, Exposition::Text).unwrap()
}

/// Reads the text format as strictly as its description has it: every series has a HELP and a TYPE of its name above
/// it, and no series comes twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    let mut helped = Vec::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped.push(rest.split_once(' ').unwrap().0);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helped.contains(&name), "{line}");
            assert!(kinds.insert(name, kind).is_none(), "{line}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let kind = kinds.get(name).unwrap_or_else(|| panic!("no type: {line}"));
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            if let Some(labels) = series.strip_prefix(name).filter(|rest| !rest.is_empty()) {
                check_labels(labels);
            }
            assert!(
                values
                    .insert(series.to_owned(), value.parse().unwrap())
                    .is_none(),
                "{line}"
            );
        }
    }
    values
}

fn check_labels(labels: &str) {
    let mut rest = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
            "{labels}"
        );
        let mut escaped = false;
        let end = after
            .char_indices()
            .find(|(_, c)| {
                let is_end = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                is_end
            })
            .unwrap_or_else(|| panic!("{labels}"))
            .0;
        rest = after.get(end + 1..).unwrap();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn series_are_well_formed_whatever_a_process_calls_itself() {
    for report in [exact_report(), hostile_report()] {
        let values = parse(&text(&report));
        assert!(
            values.contains_key("leakscope_events_lost_total{cause=\"stack_table_full\"}")
                || values
                    .keys()
                    .any(|key| key.starts_with("leakscope_events_lost_total"))
        );
        let first = report.processes.iter().find(|process| !process.exited);
        if let Some(process) = first {
            let start = format!("leakscope_process_inuse_bytes{{pid=\"{}\"", process.pid);
            let (_, value) = values
                .iter()
                .find(|(key, _)| key.starts_with(&start))
                .unwrap();
            assert!((value - process.inuse_bytes as f64).abs() < 0.5);
        }
    }
}

#[test]
fn what_the_kernel_holds_has_series() {
    let values = parse(&text(&kernel_report()));
    let value = |start: &str| {
        let found = values.iter().find(|(key, _)| key.starts_with(start));
        *found.unwrap_or_else(|| panic!("{start}: {values:?}")).1 as u64
    };
    assert_eq!(value("leakscope_process_open_fds{pid=\"4321\""), 16_514);
    assert_eq!(value("leakscope_process_max_fds{pid=\"4321\""), 65_536);
    let cache = "{kind=\"cache\",name=\"sock_inode_cache\"}";
    assert_eq!(
        value(&format!("leakscope_kernel_slab_objects{cache}")),
        8258
    );
    assert_eq!(value(&format!("leakscope_kernel_memory_leaking{cache}")), 1);
    assert_eq!(
        value("leakscope_kernel_memory_bytes{kind=\"class\",name=\"kernel stacks\"}"),
        3 << 20
    );
    assert!(!text(&exact_report()).contains("leakscope_kernel"));
}

#[test]
fn many_processes_are_summed_up() {
    let report = Report::new(ReportParts {
        processes: (1..=u32::try_from(2 * TOP).unwrap())
            .map(|pid| Process {
                pid,
                comm: format!("p\"{pid}\\"),
                inuse_bytes: 1000,
                ..Process::default()
            })
            .collect(),
        ..ReportParts::default()
    });
    let values = parse(&text(&report));
    assert!(values.len() < 16 * (TOP + 1) + 60, "{}", values.len());
    let sum: f64 = values
        .iter()
        .filter(|(key, _)| key.starts_with("leakscope_process_inuse_bytes"))
        .map(|(_, value)| value)
        .sum();
    assert!((sum - 2000.0 * TOP as f64).abs() < 0.5);
}

#[test]
fn what_leaks_has_a_rate_and_the_first_sites_have_series() {
    let report = machine_report();
    let values = parse(&text(&report));
    let value = |start: &str| {
        let found = values.iter().find(|(key, _)| key.starts_with(start));
        *found.unwrap_or_else(|| panic!("{start}: {values:?}")).1 as u64
    };
    assert_eq!(
        value("leakscope_process_leak_bytes_per_second{pid=\"107\""),
        7168
    );
    assert_eq!(value("leakscope_build_info{version="), 1);
    let sites = values
        .keys()
        .filter(|key| key.starts_with("leakscope_site_inuse_bytes"));
    assert_eq!(sites.count(), SITES);
    let leak = values.iter().find(|(key, _)| {
        key.starts_with("leakscope_site_growth") && key.contains("verdict=\"leaking\"")
    });
    assert_eq!(*leak.unwrap().1 as u64, 7168);
    let info = values
        .keys()
        .find(|key| key.starts_with("leakscope_process_info{pid=\"105\""))
        .unwrap();
    assert!(info.contains("unit=\"worker@5.service\""), "{info}");
}

#[test]
fn series_come_in_one_order() {
    let report = machine_report();
    let first = text(&report);
    assert_eq!(first, text(&report));
    let pids: Vec<&str> = first
        .lines()
        .filter(|line| line.starts_with("leakscope_process_leaking{"))
        .collect();
    assert!(pids.len() == 30 && pids.is_sorted(), "{pids:?}");
}

/// Every metric that a file of `deploy` names.
fn named(text: &str) -> Vec<&str> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .filter(|word| word.starts_with("leakscope_"))
        .collect()
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_there_are() {
    let there: String = [exact_report(), kernel_report(), machine_report()]
        .iter()
        .map(text)
        .collect();
    for file in [
        include_str!("../../../deploy/grafana/leakscope.json"),
        include_str!("../../../deploy/prometheus/alerts.yaml"),
    ] {
        let names = named(file);
        assert!(names.len() > 6);
        for name in names {
            let line = format!("# TYPE {name} ");
            assert!(there.contains(&line), "{name}");
        }
    }
}

#[test]
fn the_format_is_what_the_client_takes() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
    assert_eq!(Exposition::accepted(prometheus), Exposition::OpenMetrics);
    assert_eq!(Exposition::accepted("*/*"), Exposition::Text);
    let mut registry = Registry::with_prefix("leakscope");
    register(&exact_report(), &mut registry);
    let open = write(&registry, Exposition::OpenMetrics).unwrap();
    assert!(open.ends_with("# EOF\n"));
}

proptest! {
    #[test]
    fn any_report_has_metrics(report in any_report()) {
        parse(&text(&report));
    }
}
