//! What the kernel can refuse, and what can happen in the middle: no panic, a clear message or a counted loss, and a target
//! that goes on as if nothing had been.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_tests::{
    Daemon, Finished, MemoryLimit, Tracer, Truth, Victim, answers, breakpoints, command_of,
    leave_out, prebuilt, require_kernel, require_victim, run, run_command, scripted, send, skip,
    tampered, tampered_all, wait_for_breakpoints,
};

/// Ends the test where there is no strace.
macro_rules! require_strace {
    () => {
        if !answers("strace", "-V") {
            if prebuilt() {
                leave_out("there is no strace where the guest was made");
            } else {
                skip("strace is not installed (Debian: strace)");
            }
            return;
        }
    };
}

/// The endless victim, running.
struct Target(Victim);

impl Target {
    fn start(program: &Path) -> Self {
        let mut victim = Victim::start(program).expect("started");
        victim.say("go").unwrap();
        victim.line().unwrap().expect("a round");
        Self(victim)
    }

    fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// The arguments that trace it for a moment.
    fn traced(&self, more: &[&str]) -> Vec<String> {
        let mut arguments = vec!["trace".to_owned()];
        arguments.extend(["--format", "json"].map(str::to_owned));
        arguments.extend(self.watched(more));
        arguments
    }

    /// The same for a [`Tracer`], which brings the rest.
    fn watched(&self, more: &[&str]) -> Vec<String> {
        let pid = self.pid().to_string();
        let mut arguments = vec!["-p", &pid, "--for", "50ms"];
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// No breakpoint is left in its code, and it runs.
    #[track_caller]
    fn assert_unharmed(&mut self, after: &str) {
        wait_for_breakpoints(self.pid(), false, || Ok(()))
            .unwrap_or_else(|error| panic!("{after}: {error:#}"));
        drop(self.0.pending_lines());
        let line = self
            .0
            .line()
            .unwrap_or_else(|error| panic!("{after}: {error:#}"));
        assert!(line.is_some(), "{after}: the target has ended");
    }

    /// The same after a signal to the tracer. A kernel that is writing to a process's code for a task killed by SIGKILL gives up
    /// (`uprobe_unregister` of kernel/events/uprobes.c: "failed to unregister, leaking uprobe"), and the breakpoints stay: nobody's, and
    /// harmless but for their time. The next trace then takes them over and away.
    #[track_caller]
    fn assert_unharmed_by(&mut self, signal: &str, after: &str) {
        let start = Instant::now();
        while signal.ends_with("KILL") && !breakpoints(self.pid()).unwrap().is_empty() {
            if start.elapsed() > Duration::from_secs(5) {
                let tracer = Tracer::start(&self.watched(&[])).expect("started");
                tracer.report().expect("a report");
                break;
            }
            sleep(Duration::from_millis(20));
        }
        self.assert_unharmed(after);
    }

    /// It ends as it should, with its own count of what it did.
    #[track_caller]
    fn quit(mut self) {
        self.0.say("quit").unwrap();
        while let Some(line) = self.0.line().unwrap() {
            if line.starts_with('{') {
                assert!(Truth::parse(&line).unwrap().objects > 0);
            }
        }
        assert!(self.0.end().unwrap().success());
    }
}

/// Ended by itself, with 0, or with 1 and one message; no panic.
#[track_caller]
fn assert_orderly(finished: &Finished, after: &str) {
    assert!(
        matches!(finished.code(), 0 | 1),
        "{after}: {} {finished:?}",
        finished.status
    );
    assert!(
        !finished.stderr.contains("panicked"),
        "{after}: {finished:?}"
    );
    if finished.code() == 1 {
        assert!(
            finished.stderr.starts_with("leakscope: "),
            "{after}: {finished:?}"
        );
    }
}

/// Ended with 1, and said each of these.
#[track_caller]
fn assert_refused(finished: &Finished, words: &[&str], after: &str) {
    assert_orderly(finished, after);
    assert_eq!(finished.code(), 1, "{after}: {finished:?}");
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "{after}, to say {word}: {finished:?}"
        );
    }
    // The cause is said once.
    assert!(
        finished.stderr.matches("os error").count() <= 1,
        "{after}: {finished:?}"
    );
}

/// Steps through the calls of a run: finer on a machine than under emulation.
fn every(step: usize, range: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
    range.step_by(if prebuilt() { step * 8 } else { step })
}

#[test]
fn a_map_is_refused() {
    let _alone = require_kernel!();
    require_strace!();
    let mut target = Target::start(&require_victim!("endless"));
    // The first call loads the BTF, the next sixteen create the maps.
    for number in every(7, 3..17) {
        for (error, hint) in [("ENOMEM", "--max-blocks"), ("EPERM", "CAP_BPF")] {
            // The loader tries again after EPERM, with a larger RLIMIT_MEMLOCK.
            let how = format!("error={error}:when={number}+");
            let command = tampered("bpf", &how, &target.traced(&[])).unwrap();
            let finished = run_command(command).expect("strace runs");
            assert_refused(&finished, &["cannot create the BPF map", hint], &how);
        }
    }
    target.assert_unharmed("refused maps");
    target.quit();
}

#[test]
fn any_call_to_bpf_is_refused() {
    let _alone = require_kernel!();
    require_strace!();
    let mut target = Target::start(&require_victim!("endless"));
    let mut refused = 0;
    for number in every(3, 17..50) {
        let how = format!("error=ENOMEM:when={number}");
        let command = tampered("bpf", &how, &target.traced(&[])).unwrap();
        let finished = run_command(command).expect("strace runs");
        assert_orderly(&finished, &how);
        refused += u32::from(finished.code() == 1);
        target.assert_unharmed(&how);
    }
    assert!(refused > 0, "none of the calls mattered");
    target.quit();
}

#[test]
fn a_probe_is_refused_when_others_are_attached() {
    let _alone = require_kernel!();
    require_strace!();
    let mut target = Target::start(&require_victim!("endless"));
    // Each probe is an event of its own with these links. Our own process's probes come first, for the cost of a hit: a trace does
    // without that. glibc has fifteen. Each link is made by a process of its own, whose calls strace counts apart: where no more processes
    // can be made, the keeper of links makes them itself.
    let others = ("clone", "error=EAGAIN:when=8+");
    for number in [10, 20, 27] {
        let how = format!("error=EACCES:when={}+", number - 7);
        let arguments = target.traced(&["--links", "perf", "--tier", "exact"]);
        let calls = [others, ("perf_event_open", &how)];
        let command = tampered_all(&calls, &arguments).unwrap();
        let finished = run_command(command).expect("strace runs");
        assert_refused(&finished, &["cannot attach to", "perf-event"], &how);
        target.assert_unharmed(&how);
    }
    target.quit();
}

#[test]
fn a_signal_in_the_middle_of_a_call() {
    let _alone = require_kernel!();
    require_strace!();
    let mut target = Target::start(&require_victim!("endless"));
    for (signal, number) in ["SIGINT", "SIGTERM", "SIGALRM", "SIGKILL"]
        .into_iter()
        .cycle()
        .zip(every(3, 1..50))
    {
        let how = format!("signal={signal}:when={number}");
        let command = tampered("bpf", &how, &target.traced(&[])).unwrap();
        let finished = run_command(command).expect("strace runs");
        assert!(!finished.stderr.contains("panicked"), "{how}: {finished:?}");
        if matches!(signal, "SIGINT" | "SIGTERM") {
            // Asked to stop, it stops with what was seen.
            assert_eq!(finished.code(), 0, "{how}: {finished:?}");
            assert!(finished.stdout.starts_with('{'), "{how}: {finished:?}");
        }
        target.assert_unharmed_by(signal, &how);
    }
    target.quit();
}

/// How long it takes until the probes are there.
fn time_to_attach(target: &Target) -> Duration {
    let start = Instant::now();
    let tracer = Tracer::start(&target.watched(&[])).expect("started");
    while breakpoints(target.pid()).unwrap().is_empty() && start.elapsed() < Duration::from_secs(60)
    {
        sleep(Duration::from_millis(2));
    }
    let time = start.elapsed();
    tracer.report().expect("a report");
    time
}

/// Moments from the start of leakscope until shortly after the probes are there.
fn moments(whole: Duration, count: u32) -> impl Iterator<Item = Duration> {
    let count = if prebuilt() { count / 4 } else { count };
    (0..count).map(move |number| whole * 5 * number / (4 * count))
}

#[test]
fn ctrl_c_at_any_moment() {
    let _alone = require_kernel!();
    let mut target = Target::start(&require_victim!("endless"));
    let whole = time_to_attach(&target);
    for (number, moment) in moments(whole, 12).enumerate() {
        let signal = if number % 3 == 2 { "KILL" } else { "INT" };
        let after = format!("SIG{signal} after {moment:?} of {whole:?}");
        let mut tracer = Tracer::start(&target.watched(&[])).expect("started");
        sleep(moment);
        send(signal, tracer.pid()).unwrap();
        let finished = tracer.end().expect("it ends");
        assert!(
            !finished.stderr.contains("panicked"),
            "{after}: {finished:?}"
        );
        if let Some(code) = finished.status.code() {
            assert_eq!(code, 0, "{after}: {finished:?}");
            let text = fs::read_to_string(tracer.report_path()).unwrap();
            assert!(text.starts_with('{'), "{after}: {text}");
        }
        target.assert_unharmed_by(signal, &after);
    }
    target.quit();
}

#[test]
fn a_target_that_dies_at_any_moment() {
    let _alone = require_kernel!();
    let path = require_victim!("endless");
    let target = Target::start(&path);
    let whole = time_to_attach(&target);
    target.quit();
    for moment in moments(whole, 12) {
        let after = format!("the target's death after {moment:?} of {whole:?}");
        let mut target = Target::start(&path);
        let arguments = ["--tier", "exact", "-p", &target.pid().to_string()];
        let mut tracer = Tracer::start(&arguments).expect("started");
        sleep(moment);
        target.0.kill().unwrap();
        let finished = tracer.end().expect("it ends with its target");
        assert_orderly(&finished, &after);
        if finished.code() == 1 {
            let pid = target.pid().to_string();
            assert!(finished.stderr.contains(&pid), "{after}: {finished:?}");
        }
    }
}

#[test]
fn a_command_that_dies_at_any_moment() {
    let _alone = require_kernel!();
    let path = require_victim!("endless");
    let path = path.to_str().unwrap();
    let mut died = 0;
    for moment in moments(Duration::from_millis(300), 8) {
        let after = format!("the command's death after {moment:?}");
        let mut tracer = Tracer::start(&["--", path, "now"]).expect("started");
        let found = loop {
            if let Some(child) = command_of(tracer.pid()) {
                break Some(child);
            }
            if !Path::new(&format!("/proc/{}/maps", tracer.pid())).exists() {
                break None;
            }
            sleep(Duration::from_millis(1));
        };
        if let Some(child) = found {
            sleep(moment);
            send("KILL", child).unwrap();
            died += 1;
        }
        let finished = tracer.end().expect("it ends with its command");
        // A command's own end is that of the trace: 128 and the signal.
        if finished.code() != 128 + 9 {
            assert_orderly(&finished, &after);
        }
        assert!(
            !finished.stderr.contains("panicked"),
            "{after}: {finished:?}"
        );
    }
    assert!(died > 0, "no command was found to kill");
}

#[test]
fn no_memory_for_the_tables() {
    let _alone = require_kernel!();
    let mut target = Target::start(&require_victim!("endless"));
    let limit = match MemoryLimit::new(160 << 20) {
        Ok(limit) => limit,
        Err(error) => {
            leave_out(&format!("no cgroup can be limited here: {error:#}"));
            return;
        }
    };
    let large = target.traced(&["--max-blocks", "10000000"]);
    // Where the limit is reached by a page of the program before a map is refused, the kernel ends it.
    let finished = (0..5)
        .map(|_| run_command(limit.run(&large).unwrap()).expect("it runs"))
        .find(|finished| finished.status.signal() != Some(9))
        .expect("killed each time");
    let words = [
        "cannot create the BPF map",
        "Cannot allocate memory",
        "--max-blocks",
    ];
    assert_refused(&finished, &words, "160 MiB");
    // What the message says helps.
    let smaller = target.traced(&["--max-blocks", "10000", "--max-stacks", "1000"]);
    let finished = run_command(limit.run(&smaller).unwrap()).expect("it runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    target.assert_unharmed("160 MiB");
    target.quit();
}

/// A fault of our own, made on purpose, where leakscope deals with one of two processes.
#[test]
fn a_panic_at_one_process_ended_the_trace_of_all() {
    let _alone = require_kernel!();
    let program = require_victim!("endless");
    let (mut bad, mut good) = (Target::start(&program), Target::start(&program));
    let both = format!("{},{}", bad.pid(), good.pid());
    for place in ["window", "report"] {
        let script = format!("LEAKSCOPE_INJECT_FAULT={place}:{} exec \"$@\"", bad.pid());
        let arguments = ["trace", "-p", &both, "--for", "2s", "--format", "json"];
        let finished = run_command(scripted(&script, &arguments).unwrap()).expect("it runs");
        assert_eq!(finished.code(), 1, "{place}: {finished:?}");
        for words in [
            "panicked at",
            "internal error",
            "report the backtrace above",
        ] {
            assert!(finished.stderr.contains(words), "{words}: {finished:?}");
        }
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        let process = |pid: u32| {
            let all = report["processes"].as_array().unwrap();
            let found = all.iter().find(|process| process["pid"] == pid);
            found.unwrap_or_else(|| panic!("{place}: {report}")).clone()
        };
        assert!(
            process(bad.pid()).to_string().contains("internal error"),
            "{place}: {report}"
        );
        assert!(
            process(good.pid())["alloc_objects"].as_u64() > Some(0),
            "{place}: {report}"
        );
        bad.assert_unharmed(place);
        good.assert_unharmed(place);
    }
    // Nobody's fault in particular, at each step: there is a message, and no probe is left.
    let script = "LEAKSCOPE_INJECT_FAULT=look exec \"$@\"";
    let finished = run_command(scripted(script, &good.traced(&[])).unwrap()).expect("it runs");
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(
        finished
            .stderr
            .contains("internal error in the tracing thread"),
        "{finished:?}"
    );
    good.assert_unharmed("a fault in each look");
    bad.quit();
    good.quit();
}

#[test]
fn a_panic_at_one_process_ended_the_daemon() {
    let _alone = require_kernel!();
    let program = require_victim!("endless");
    let (mut bad, mut good) = (Target::start(&program), Target::start(&program));
    let fault = format!("report:{}", bad.pid());
    let both = format!("{},{}", bad.pid(), good.pid());
    let daemon = Daemon::start_with(&[("LEAKSCOPE_INJECT_FAULT", &fault)], &["-p", &both]).unwrap();
    let start = Instant::now();
    let (mut before, mut is_said) = (None, false);
    loop {
        sleep(Duration::from_millis(200));
        let answer = daemon.curl(&[], "/api/v1/report").unwrap();
        let report: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let all = report["processes"].as_array().unwrap().clone();
        let of = |pid: u32| all.iter().find(|process| process["pid"] == pid);
        is_said |= of(bad.pid()).is_some_and(|bad| bad.to_string().contains("internal error"));
        let seen = of(good.pid()).and_then(|good| good["alloc_objects"].as_u64());
        // What the other does goes on to be seen.
        if is_said && before.is_some() && seen > before {
            break;
        }
        before = seen;
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{is_said} {seen:?}"
        );
    }
    drop(daemon);
    bad.assert_unharmed("the daemon's fault");
    good.assert_unharmed("the daemon's fault");
    bad.quit();
    good.quit();
}

#[test]
fn limits_of_the_process() {
    let _alone = require_kernel!();
    let mut target = Target::start(&require_victim!("endless"));
    for (limit, words) in [
        ("ulimit -n 12", ["Too many open files", "ulimit -n"]),
        ("ulimit -n 24", ["Too many open files", "ulimit -n"]),
    ] {
        let script = format!("{limit}; exec \"$@\"");
        let command = scripted(&script, &target.traced(&[])).unwrap();
        let finished = run_command(command).expect("it runs");
        assert_refused(&finished, &words, limit);
        target.assert_unharmed(limit);
    }
    // With little more than the program itself takes, memory would run out at any moment of the trace, and a thread that cannot be begun
    // or a small allocation that fails ends a process: that is refused before anything is attached.
    for kib in [30_000, 55_000, 1_040_000] {
        let script = format!("ulimit -v {kib}; exec \"$@\"");
        let command = scripted(&script, &target.traced(&[])).unwrap();
        let finished = run_command(command).expect("it runs");
        assert_refused(&finished, &["address space", "ulimit -v"], &script);
        target.assert_unharmed(&script);
    }
    // What the message asks for is enough.
    let script = "ulimit -v 1048576; exec \"$@\"";
    let finished = run_command(scripted(script, &target.traced(&[])).unwrap()).expect("it runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    target.assert_unharmed(script);
    target.quit();
}

/// Hides a directory of sysfs from a command.
fn hiding(folders: &[&str]) -> String {
    let mounts: String = folders
        .iter()
        .map(|folder| format!("[ ! -d {folder} ] || mount -t tmpfs none {folder} || exit 99; "))
        .collect();
    format!("exec unshare -m sh -c '{mounts} exec \"$@\"' sh \"$@\"")
}

const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug"];

#[test]
fn without_a_mounted_tracefs() {
    let _alone = require_kernel!();
    let mut target = Target::start(&require_victim!("endless"));
    let command = scripted(&hiding(&TRACEFS), &target.traced(&[])).unwrap();
    let finished = run_command(command).expect("it runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    target.assert_unharmed("a hidden tracefs");
    target.quit();
}

#[test]
fn without_any_tracefs() {
    let _alone = require_kernel!();
    require_strace!();
    let mut target = Target::start(&require_victim!("endless"));
    // Neither mounted nor to be opened, as where CAP_SYS_ADMIN is missing: nothing of a trace needs it.
    for tier in ["exact", "auto"] {
        let arguments = target.traced(&["--links", "perf", "--tier", tier]);
        let inner = tampered("fsopen", "error=EPERM", &arguments).unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &hiding(&TRACEFS), "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        let finished = run_command(command).expect("it runs");
        assert_eq!(finished.code(), 0, "{tier}: {finished:?}");
        assert!(
            finished.stdout.contains("leak_endless"),
            "{tier}: {finished:?}"
        );
    }
    target.assert_unharmed("no tracefs");
    target.quit();
}

#[test]
fn without_btf() {
    let _alone = require_kernel!();
    let mut target = Target::start(&require_victim!("endless"));
    let hidden = hiding(&["/sys/kernel/btf"]);
    let traced = run_command(scripted(&hidden, &target.traced(&[])).unwrap()).expect("it runs");
    let doctor = run_command(scripted(&hidden, &["doctor"]).unwrap()).expect("it runs");
    // Nothing of it is needed, and doctor says so.
    assert_eq!(traced.code(), 0, "{traced:?}");
    assert_eq!(doctor.code(), 0, "{doctor:?}");
    let line = doctor.stdout.lines().find(|line| line.contains(" BTF "));
    let line = line.unwrap_or_else(|| panic!("{doctor:?}"));
    assert!(
        line.contains("/sys/kernel/btf/vmlinux") && line.contains("not needed"),
        "{line}"
    );
    target.assert_unharmed("a hidden BTF");
    target.quit();
}

#[test]
fn the_probes_own_btf_is_refused() {
    let _alone = require_kernel!();
    require_strace!();
    let mut target = Target::start(&require_victim!("endless"));
    // It is loaded first of all.
    for error in ["EINVAL", "EPERM", "ENOMEM"] {
        let how = format!("error={error}:when=1");
        let command = tampered("bpf", &how, &target.traced(&[])).unwrap();
        let finished = run_command(command).expect("strace runs");
        assert_refused(&finished, &["cannot load the probe's BTF"], &how);
        target.assert_unharmed(&how);
    }
    target.quit();
}

#[test]
fn a_full_ring_buffer_costs_stacks_and_no_byte() {
    let _alone = require_kernel!();
    let path = require_victim!("backtrace");
    let mut running = Victim::start(&path).expect("started");
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &["--event-bytes", "4096"]).expect("attached");
    // While leakscope stands still nobody empties the buffer.
    tracer.signal("STOP").unwrap();
    let truths = running.go().expect("the victim's truth");
    tracer.signal("CONT").unwrap();
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    let deferred = report.losses.get("stack_deferred").copied();
    assert!(
        deferred.is_some_and(|count| count > 0),
        "{:?}",
        report.losses
    );
    // Of blocks nothing goes through the buffer. The steps of mappings do: what is lost of them is counted.
    let mut of_blocks = report.byte_losses();
    of_blocks.retain(|(name, _)| *name != "mapping_lost");
    assert!(of_blocks.is_empty(), "{:?}", report.losses);
    let of_truth = |of: fn(&Truth) -> u64| truths.iter().map(of).sum::<u64>();
    let mut found = (0, 0);
    for site in report.sites.iter().filter(|site| site.pid == pid) {
        // The victim itself leaks blocks of this size only.
        if site.inuse_objects > 0 && site.inuse_bytes == 48 * site.inuse_objects {
            found.0 += site.inuse_bytes;
            found.1 += site.inuse_objects;
        }
    }
    let truth = (
        of_truth(|truth| truth.bytes),
        of_truth(|truth| truth.objects),
    );
    assert_eq!(found, truth, "{:?}", report.losses);
}

#[test]
fn a_process_that_cannot_be_followed_leaves_the_others_alone() {
    let _alone = require_kernel!();
    let path = require_victim!("endless");
    let mut first = Target::start(&path);
    let mut second = Target::start(&path);
    second.0.kill().unwrap();
    let pids = format!("{},{}", first.pid(), second.pid());
    let finished = run(&["trace", "-p", &pids, "--for", "50ms"]).expect("it runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let dead = second.pid().to_string();
    assert!(finished.stderr.contains(&dead), "{finished:?}");
    assert!(finished.stdout.contains("leak_endless"), "{finished:?}");
    first.assert_unharmed("a dead neighbour");
    first.quit();
}
