//! Programs with a runtime of their own between C and the kernel: Go that calls C.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use leakscope_tests::{Tracer, Victim, leave_out, missing, require_kernel, require_victim};

/// The C part is seen to the byte, each function below the runtime's switch to the C stack. Whether the walk gets through the
/// switch to Go's own stack is not asserted: the figures are.
#[test]
fn c_that_go_calls() {
    let _alone = require_kernel!();
    if let Some(reason) = missing("cgo") {
        leave_out(&reason);
        return;
    }
    let mut running = Victim::start(&require_victim!("cgo")).expect("started");
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("ends").success());
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for site in report
        .sites
        .iter()
        .filter(|site| site.contains("leak_in_c"))
    {
        let above = site.names().contains(&"runtime.asmcgocall");
        assert!(above, "{:?}", site.names());
    }
}
