//! The views of a difference against golden files, and the HTML page.

use super::{bytes, text};
use crate::report::fixtures::{empty_report, exact_report, hostile_report};
use crate::report::{Difference, Format, Report, Timestamp, Verdict, pprof};

/// A minute later: the first site has grown, the second is gone, the third is new, the last has shrunk.
fn difference() -> Difference {
    let base = exact_report();
    let mut parts = base.clone().into_parts();
    parts.captured_at = Timestamp::from_unix_ms(parts.captured_at.unix_ms() + 60_000);
    parts.duration_s += 60.0;
    let grown = &mut parts.sites[0];
    grown.inuse_bytes += 4096;
    grown.inuse_objects += 1;
    grown.alloc_bytes += 8192;
    grown.alloc_objects += 2;
    let last = parts.sites.len() - 1;
    parts.sites[last].inuse_bytes /= 2;
    let gone = parts.sites.remove(1);
    let mut new = gone;
    new.frames.remove(0);
    new.inuse_bytes = 777;
    new.inuse_objects = 7;
    parts.sites.push(new);
    Difference::between(&base, &Report::new(parts))
}

fn view(difference: &Difference, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    <dyn Format>::from_name(name)
        .unwrap()
        .write_difference(difference, &mut out)
        .unwrap();
    out
}

fn view_text(difference: &Difference, name: &str) -> String {
    String::from_utf8(view(difference, name)).unwrap()
}

#[test]
fn golden_differences() {
    let difference = difference();
    for name in ["text", "folded"] {
        insta::assert_snapshot!(format!("difference_{name}"), view_text(&difference, name));
    }
    insta::assert_snapshot!(
        "difference_text_top",
        view_text(&difference.keep_top(1), "text")
    );
}

#[test]
fn profiles_of_differences_hold_negative_values_and_all_sums() {
    let all = difference();
    for top in [usize::MAX, 2, 0] {
        let difference = all.clone().keep_top(top);
        let profile = pprof::read(&view(&difference, "pprof")).unwrap();
        let totals = profile.totals();
        assert_eq!(totals["inuse_space"], all.total.inuse_bytes_change);
        assert_eq!(totals["alloc_objects"], all.total.alloc_objects_change);
        if top > 0 {
            assert!(profile.sample.iter().any(|sample| sample.value[0] < 0));
        }
    }
}

/// Survivors of a second trace were more than "allocated meanwhile", which was the difference of two sums from two starts.
#[test]
fn of_two_traces_nothing_is_said_to_be_allocated_meanwhile() {
    let base = exact_report();
    let mut parts = base.clone().into_parts();
    parts.captured_at = Timestamp::from_unix_ms(parts.captured_at.unix_ms() + 600_000);
    parts.sites[0].inuse_bytes += 4096;
    parts.sites[0].alloc_objects += 1;
    parts.sites[0].alloc_bytes += 1;
    let said = view_text(&Difference::between(&base, &Report::new(parts)), "text");
    assert!(said.contains("Two traces"), "{said}");
    assert!(!said.contains("meanwhile"), "{said}");
}

#[test]
fn nothing_changed_is_said_in_every_view() {
    let report = exact_report();
    let same = Difference::between(&report, &report);
    assert!(view_text(&same, "text").contains("No stack holds more or less than before"));
    assert!(view_text(&same, "svg").contains("No change of surviving memory"));
    assert!(view_text(&same, "html").contains("No change of surviving memory"));
    assert_eq!(view_text(&same, "folded"), "");
}

#[test]
fn a_page_has_every_part() {
    let page = text(&exact_report(), "html");
    for part in [
        "<!DOCTYPE html>",
        "<figure>",
        "class=\"chart\"",
        "<details><summary>",
        "id=\"frames\"",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(page.trim_end().ends_with("</html>"));
    assert!(page.find("id=\"frames\"") < page.find("class=\"chart\""));
    // It says why there is nothing.
    assert!(text(&empty_report(), "html").contains("no allocator was found"));
}

#[test]
fn a_page_of_a_difference_has_both_curves() {
    let page = view_text(&difference(), "html");
    for line in ["resident before", "inuse before", "resident", "inuse"] {
        let drawn = format!("<polyline class=\"{line}\"");
        assert!(page.contains(&drawn), "{line}");
    }
    // Profiles tell no series: then the later curve stands alone.
    let mut profile = Vec::new();
    pprof_of(&exact_report(), &mut profile);
    let base = pprof::to_report(&pprof::read(&profile).unwrap()).unwrap();
    let page = view_text(&Difference::between(&base, &exact_report()), "html");
    assert!(page.contains("<polyline class=\"inuse\""));
    assert!(!page.contains("<polyline class=\"inuse before\""));
}

fn pprof_of(report: &Report, out: &mut Vec<u8>) {
    crate::report::Pprof.write(report, out).unwrap();
}

#[test]
fn curves_of_another_trace_are_those_of_the_only_process_of_that_name() {
    let base = exact_report();
    let mut parts = base.clone().into_parts();
    for process in &mut parts.processes {
        process.pid += 1000;
    }
    for site in &mut parts.sites {
        site.pid += 1000;
    }
    let new = Report::new(parts);
    let difference = Difference::between(&base, &new);
    for (before, process) in base.processes.iter().zip(&new.processes) {
        let namesakes = base
            .processes
            .iter()
            .filter(|other| other.comm == process.comm)
            .count();
        let wanted: &[_] = if namesakes == 1 {
            &before.memory_series
        } else {
            &[]
        };
        assert_eq!(difference.memory_before(process), wanted);
    }
}

/// What a traced process chose to be called is text to the page, and nothing else.
#[test]
fn nobody_puts_markup_into_a_page() {
    const EVIL: &str = "<img src=x onerror=alert(1)>\"'&";
    let mut parts = hostile_report().into_parts();
    for process in &mut parts.processes {
        EVIL.clone_into(&mut process.comm);
        process.empty_reason = Some(EVIL.to_owned());
    }
    for site in &mut parts.sites {
        EVIL.clone_into(&mut site.verdict_reason);
        site.verdict = Verdict::Leaking;
        site.stack_incomplete_reason = Some(EVIL.to_owned());
        for frame in &mut site.frames {
            let frame = std::sync::Arc::make_mut(frame);
            frame.function = Some(EVIL.to_owned());
            frame.file = Some(EVIL.to_owned());
        }
    }
    EVIL.clone_into(&mut parts.tier_reason);
    let report = Report::new(parts);
    let gone = Difference::between(&report, &empty_report());
    for page in [
        String::from_utf8(bytes(&report, "html")).unwrap(),
        view_text(&gone, "html"),
        view_text(&gone, "svg"),
    ] {
        assert!(page.contains("&lt;img src"), "{page}");
        assert!(!page.contains("<img"), "{page}");
    }
}
