//! What two reports have in common and what not.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

use proptest::prelude::*;

use super::super::arbitrary::any_report;
use super::super::fixtures::exact_report;
use super::super::{FORMAT_NAMES, Format, Pprof, Report, ReportParts, pprof};
use super::{ChangeKind, Difference};

fn through_pprof(report: &Report) -> Report {
    let mut bytes = Vec::new();
    Pprof.write(report, &mut bytes).unwrap();
    pprof::to_report(&pprof::read(&bytes).unwrap()).unwrap()
}

#[test]
fn figures_that_do_not_fit_contradict_nothing() {
    let mut parts = exact_report().into_parts();
    let mut site = parts.sites.remove(0);
    for figure in [
        &mut site.inuse_bytes,
        &mut site.inuse_objects,
        &mut site.alloc_bytes,
        &mut site.alloc_objects,
    ] {
        *figure = u64::MAX;
    }
    site.growth_bytes_per_s = f64::MAX;
    // The same stack three times, and one that is wide enough to be drawn beside it.
    let mut other = parts.sites.remove(0);
    other.inuse_bytes = u64::MAX / 16;
    parts.sites = vec![site.clone(), site.clone(), site, other];
    let report = Report::new(parts);
    assert_eq!(Difference::between(&report, &report).changes, []);
    let empty = Report::new(ReportParts::default());
    let grown = Difference::between(&empty, &report);
    assert_eq!(grown.total.inuse_bytes_change, i64::MAX);
    let json = serde_json::to_vec(&grown).unwrap();
    assert_eq!(serde_json::from_slice::<Difference>(&json).unwrap(), grown);
    let gone = Difference::between(&report, &empty);
    assert_eq!(gone.total.inuse_bytes_change, i64::MIN);
    for difference in [grown, gone] {
        for name in FORMAT_NAMES {
            let view = <dyn Format>::from_name(name).unwrap();
            let mut shown = Vec::new();
            view.write_difference(&difference, &mut shown).unwrap();
            assert!(!shown.is_empty(), "{name}");
        }
    }
}

#[test]
fn growth_shrinkage_and_what_is_new_or_gone() {
    let base = exact_report();
    let mut parts = base.clone().into_parts();
    let sites = &mut parts.sites;
    let grown = sites[0].frames.clone();
    sites[0].inuse_bytes += 1000;
    sites[0].alloc_bytes += 1000;
    let gone = sites.remove(1);
    let mut new = sites[0].clone();
    new.frames.remove(0);
    new.id = 999;
    new.inuse_bytes = 77;
    sites.push(new);
    let after = Report::new(parts);
    let difference = Difference::between(&base, &after);
    let of = |kind| {
        difference
            .changes
            .iter()
            .find(|change| change.change == kind)
            .unwrap()
    };
    assert_eq!(difference.changes.len(), 3, "{difference:#?}");
    assert_eq!(of(ChangeKind::Grown).by.inuse_bytes_change, 1000);
    assert_eq!(of(ChangeKind::Grown).site.frames, grown);
    assert_eq!(of(ChangeKind::New).by.inuse_bytes_change, 77);
    let was = i64::try_from(gone.inuse_bytes).unwrap();
    assert_eq!(of(ChangeKind::Gone).by.inuse_bytes_change, -was);
    assert_eq!(of(ChangeKind::Gone).site.frames, gone.frames);
    assert_eq!(difference.total.inuse_bytes_change, 1000 + 77 - was);
    let sizes: Vec<u64> = difference
        .changes
        .iter()
        .map(|change| change.by.inuse_bytes_change.unsigned_abs())
        .collect();
    assert!(sizes.is_sorted_by(|one, other| one >= other), "{sizes:?}");
}

#[test]
fn a_program_that_was_started_anew_is_compared_with_itself() {
    let base = exact_report();
    let mut parts = base.clone().into_parts();
    for process in &mut parts.processes {
        process.pid += 1000;
    }
    for site in &mut parts.sites {
        site.pid += 1000;
    }
    let difference = Difference::between(&base, &Report::new(parts));
    assert_eq!(difference.changes, []);
}

proptest! {
    #[test]
    fn nothing_differs_from_itself(report in any_report()) {
        let difference = Difference::between(&report, &report);
        prop_assert_eq!(difference.changes, vec![]);
    }

    #[test]
    fn changes_add_up(base in any_report(), new in any_report(), top in 0..12_usize) {
        let difference = Difference::between(&base, &new).keep_top(top);
        prop_assert!(difference.changes.len() <= top);
        let sum: i64 = difference.changes.iter().map(|change| change.by.inuse_bytes_change).sum();
        let sites = |report: &Report| report.sites.iter().map(|site| site.inuse_bytes).sum::<u64>();
        prop_assert_eq!(
            sum + difference.omitted.inuse_bytes_change,
            i64::try_from(sites(&new)).unwrap() - i64::try_from(sites(&base)).unwrap()
        );
    }

    #[test]
    fn json_of_a_difference_is_read_back(base in any_report(), new in any_report()) {
        let difference = Difference::between(&base, &new);
        let json = serde_json::to_vec(&difference).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Difference>(&json).unwrap(), difference);
    }

    #[test]
    fn a_profile_read_back_has_the_same_sums(report in any_report()) {
        let back = through_pprof(&report);
        prop_assert_eq!(back.total(), report.total());
    }
}

#[test]
fn a_report_does_not_differ_from_its_own_profile() {
    for report in [
        exact_report(),
        super::super::fixtures::sampled_report(),
        super::super::fixtures::hostile_report(),
    ] {
        let back = through_pprof(&report);
        let difference = Difference::between(&back, &report);
        assert_eq!(difference.changes, [], "{:#?}", report.sites);
        assert_eq!(back.sites.len(), report.sites.len());
        assert_eq!(back.omitted, report.omitted);
    }
}
