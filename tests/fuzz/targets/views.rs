//! What `diff` does with a report that was read: whatever its figures are, every view of it and of its changes is written.

use std::io;

use leakscope::report::{Difference, FORMAT_NAMES, Format, Report, ReportParts};

/// Goes through all that is made of a saved report.
pub fn show(report: &Report) {
    let empty = Report::new(ReportParts::default());
    let same = Difference::between(report, report);
    assert!(same.changes.is_empty(), "a report differs from itself");
    let grown = Difference::between(&empty, report);
    let gone = Difference::between(report, &empty);
    for name in FORMAT_NAMES {
        let view = <dyn Format>::from_name(name).expect("it is listed");
        view.write(report, &mut io::sink())
            .expect("a sink takes all");
        for difference in [&same, &grown, &gone] {
            view.write_difference(difference, &mut io::sink())
                .expect("a sink takes all");
        }
    }
    // What was read can be saved again, and so can what changed.
    let json = serde_json::to_vec(report).expect("a report");
    let again = Report::from_json(&json).expect("it was written as JSON");
    assert_eq!(again.total(), report.total());
    for difference in [grown, gone] {
        let json = serde_json::to_vec(&difference).expect("a difference");
        let again: Difference = serde_json::from_slice(&json).expect("it was written as JSON");
        assert_eq!(again.total, difference.total);
        let top = difference.clone().keep_top(1);
        assert_eq!(top.total, difference.total);
    }
}
