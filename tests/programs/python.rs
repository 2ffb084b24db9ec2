//! CPython with a native extension: the victim by itself, and under the tracer. Apart from the other kernel tests, for it
//! needs an interpreter where it runs.

#![allow(clippy::expect_used, reason = "tests")]

use leakscope_tests::{Report, Tracer, Truth, Victim, require_kernel, require_victim};

fn trace(mut running: Victim, options: &[&str]) -> (Report, Vec<Truth>, u32) {
    let pid = running.pid();
    let tracer = Tracer::attach(&running, options).expect("attached");
    let truths = running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    (report, truths, pid)
}

#[test]
fn the_extension_speaks_through_an_interpreter() {
    let leakext = require_victim!("leakext.so");
    let mut running = Victim::start_python(&leakext).expect("started");
    let truths = running.go().expect("done");
    assert_eq!(truths.len(), 2);
    assert!(running.quit().expect("ends").success());
}

#[test]
fn a_leak_in_an_extension_is_exact() {
    let _alone = require_kernel!();
    let leakext = require_victim!("leakext.so");
    let (report, truths, pid) = trace(Victim::start_python(&leakext).expect("started"), &[]);
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn the_stack_of_an_extension_reaches_the_interpreters_main() {
    let _alone = require_kernel!();
    let leakext = require_victim!("leakext.so");
    // With the interpreter's own frames, which are left out otherwise.
    let (report, _, pid) = trace(
        Victim::start_python(&leakext).expect("started"),
        &["--native"],
    );
    let mut sites = report
        .sites
        .iter()
        .filter(|site| site.pid == pid && site.contains("leak_in_extension"))
        .peekable();
    assert!(sites.peek().is_some(), "the extension is in no stack");
    for site in sites {
        assert!(
            site.stack_complete,
            "{:?} {:?}",
            site.names(),
            report.losses
        );
        assert!(
            site.contains("main") || site.contains("_start"),
            "{:?}",
            site.names()
        );
    }
}
