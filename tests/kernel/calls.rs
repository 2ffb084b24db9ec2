//! What seeing mappings costs others: nothing where the kernel ties programs to its functions; where it does not, the tracepoints of system
//! calls go away when the machine makes many, and stay when it makes few or all mappings were asked for.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use leakscope_tests::{
    PATIENCE, Report, Sum, Tracer, Victim, mappings_at_functions, perf_events, require_kernel,
    require_victim,
};

const NOT_SHOWN: &str = "mmap tracking off";

/// Longer than mappings are kept where the machine makes many calls, however slow it is.
const LONG: Duration = Duration::from_secs(8);

/// The counter of processor time that a leakscope keeps, so that others begin at once; those of windows are gone after a second.
const CLOCK: usize = 1;

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

/// Waits until a leakscope holds so many perf events; gives how many it holds when the time is over.
fn perf_events_become(tracer: &Tracer, wanted: usize, within: Duration) -> usize {
    let begun = Instant::now();
    loop {
        let count = perf_events(tracer.pid()).expect("leakscope runs");
        if count == wanted || begun.elapsed() > within {
            return count;
        }
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn tracepoints_of_system_calls_go_away_where_there_are_many_calls() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    let at_functions = mappings_at_functions().expect("doctor");
    let (mut busy, tracer) = Busy::traced("auto");
    sleep(LONG);
    if !at_functions {
        // No probe is a perf event with the links that such a kernel has.
        assert_eq!(perf_events_become(&tracer, CLOCK, PATIENCE), CLOCK);
    }
    busy.loads_a_library();
    busy.leaks();
    let report = tracer.stop().expect("the report");
    busy.quit();
    let reason = &report.tier_reason;
    let found = mapped(&report, "leak_mapped");
    if at_functions {
        assert!(!reason.contains(NOT_SHOWN), "{reason}");
        assert_eq!((found.bytes, found.objects), (36864, 3));
    } else {
        assert!(reason.contains(NOT_SHOWN), "{reason}");
        assert!(reason.contains("--tier growth shows them"), "{reason}");
        assert_eq!(found, Sum::default());
    }
    assert!(report.byte_losses().is_empty(), "{:?}", report.losses);
}

#[test]
fn a_library_loaded_when_nobody_tells_of_it_is_known_before_its_first_call() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    let at_functions = mappings_at_functions().expect("doctor");
    let (mut busy, tracer) = Busy::traced("auto");
    sleep(LONG);
    if !at_functions {
        assert_eq!(perf_events_become(&tracer, CLOCK, PATIENCE), CLOCK);
    }
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
    assert_eq!((found.bytes, found.objects), (3900, 13));
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
    if !mappings_at_functions().expect("doctor") {
        // That processes are made is seen at a tracepoint too, which is no system call's.
        let left = CLOCK + 1;
        assert_eq!(perf_events_become(&tracer, left, PATIENCE), left);
    }
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

#[test]
fn who_asks_for_all_mappings_keeps_them_among_many_calls() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    let (mut busy, tracer) = Busy::traced("exact");
    sleep(LONG / 2);
    busy.loads_a_library();
    busy.leaks();
    let report = tracer.stop().expect("the report");
    busy.quit();
    let found = mapped(&report, "leak_mapped");
    assert_eq!((found.bytes, found.objects), (36864, 3));
    assert!(!report.tier_reason.contains(NOT_SHOWN));
}

#[test]
fn where_few_calls_are_made_mappings_stay() {
    let _alone = require_kernel!();
    let _built = require_victim!("busy");
    let (mut busy, tracer) = Busy::traced("auto");
    // From now on it waits. It has mapped so little that this alone is too dear on no machine.
    busy.loads_a_library();
    sleep(LONG / 2);
    busy.leaks();
    let report = tracer.stop().expect("the report");
    busy.quit();
    let reason = &report.tier_reason;
    assert!(!reason.contains(NOT_SHOWN), "{reason}");
    let found = mapped(&report, "leak_mapped");
    assert_eq!((found.bytes, found.objects), (36864, 3));
}
