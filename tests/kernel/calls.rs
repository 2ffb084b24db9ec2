//! A machine that makes many system calls: mappings were once given up there, and are seen all the same; new code is found.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{thread::sleep, time::Duration};

use leakscope_tests::{Report, Sum, Tracer, Victim, require_kernel, require_victim};

/// Longer than it takes until new code is looked for.
const LONG: Duration = Duration::from_secs(5);

/// A process that makes system calls as fast as it can.
struct Busy(Victim);

impl Busy {
    /// Starts it and has it traced; then it maps memory and is busy.
    fn traced(tier: &str) -> (Self, Tracer) {
        let path = leakscope_tests::victim("busy").expect("the victim");
        let mut running = Victim::start(&path).expect("started");
        let pid = running.pid().to_string();
        let mut tracer = Tracer::start(&["--tier", tier, "-p", &pid]).expect("leakscope starts");
        tracer.wait_until_attached(running.pid()).expect("attached");
        running.say("go").unwrap();
        assert_eq!(running.line().unwrap().as_deref(), Some("busy"));
        (Self(running), tracer)
    }

    fn loads_a_library(&mut self) {
        self.0.say("load").unwrap();
        assert_eq!(self.0.line().unwrap().as_deref(), Some("loaded"));
    }

    fn leaks(&mut self) {
        self.0.say("leak").unwrap();
        while let Some(line) = self.0.line().unwrap() {
            if line == "done" {
                return;
            }
        }
    }

    #[track_caller]
    fn quit(self) {
        assert!(self.0.quit().expect("the victim ends").success());
    }
}

/// What is mapped below a function.
fn mapped(report: &Report, function: &str) -> Sum {
    let mut sum = Sum::default();
    for site in &report.sites {
        if site.kind == "mapping" && site.contains(function) {
            sum.add(site);
        }
    }
    sum
}

#[test]
fn mappings_were_given_up_where_the_machine_makes_many_system_calls() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    for tier in ["auto", "exact", "growth"] {
        let path = leakscope_tests::victim("busy").expect("the victim");
        let mut running = Victim::start(&path).expect("started");
        let pid = running.pid().to_string();
        let mut tracer = Tracer::start(&["--tier", tier, "-p", &pid]).expect("leakscope starts");
        tracer.wait_until_following().expect("following");
        running.say("go").unwrap();
        assert_eq!(running.line().unwrap().as_deref(), Some("busy"));
        let mut busy = Busy(running);
        sleep(LONG);
        busy.loads_a_library();
        busy.leaks();
        let report = tracer.stop().expect("the report");
        busy.quit();
        let found = mapped(&report, "leak_mapped");
        assert_eq!((found.bytes, found.objects), (36864, 3), "{tier}");
        assert!(report.byte_losses().is_empty(), "{:?}", report.losses);
    }
}

#[test]
fn a_library_loaded_when_nobody_tells_of_it_is_known_before_its_first_call() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    // Every call is to be seen: a budget may keep some away.
    let (mut busy, tracer) = Busy::traced("exact");
    sleep(LONG);
    busy.loads_a_library();
    // The next look at what it maps, and the one after.
    sleep(LONG);
    busy.leaks();
    let report = tracer.stop().expect("the report");
    busy.quit();
    let mut found = Sum::default();
    for site in &report.sites {
        if site.kind == "heap" && site.contains("leak_plugin") {
            assert!(
                site.stack_complete && site.contains("main"),
                "{:?}",
                site.names()
            );
            found.add(site);
        }
    }
    assert_eq!((found.bytes, found.objects), (3900, 13), "{report:?}");
}

#[test]
fn a_program_that_begins_when_nobody_tells_of_its_libraries_is_traced() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    let endless = require_victim!("endless");
    let mut busy = Busy(Victim::start(&leakscope_tests::victim("busy").unwrap()).unwrap());
    busy.0.say("go").unwrap();
    assert_eq!(busy.0.line().unwrap().as_deref(), Some("busy"));
    let arguments = ["--tier", "auto", "--comm", "endless"];
    let tracer = Tracer::start(&arguments).expect("leakscope starts");
    sleep(LONG);
    let mut running = Victim::start(&endless).expect("started");
    running.say("go").unwrap();
    sleep(LONG / 2);
    let report = tracer.stop().expect("the report");
    running.kill().expect("killed");
    busy.loads_a_library();
    busy.leaks();
    busy.quit();
    let site = report
        .sites
        .iter()
        .find(|site| site.pid == running.pid() && site.contains("leak_endless"))
        .unwrap_or_else(|| panic!("{report:?}"));
    assert!(site.stack_complete, "{:?}", site.names());
}
