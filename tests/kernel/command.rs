//! A command that leakscope itself starts: seen from its first malloc to its end, and otherwise left alone.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_tests::{
    ALL_SITES, Finished, MemoryLimit, PATIENCE, Report, Tracer, Truth, children, command_of,
    leakscope, leave_out, prebuilt, require_kernel, require_victim, run, send,
};

/// Traces a command; what leakscope said, and the report.
fn trace(command: &[&str]) -> (Finished, Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut arguments = vec![
        "trace",
        "--top",
        ALL_SITES,
        "--tier",
        "exact",
        "--format",
        "json",
        "-o",
        path.to_str().unwrap(),
        "--",
    ];
    arguments.extend(command);
    let finished = run(&arguments).expect("leakscope runs");
    // Its status is the command's.
    assert!(!finished.stderr.contains("itself failed"), "{finished:?}");
    let text = fs::read_to_string(&path).expect("a report");
    let report = serde_json::from_str(&text).expect("by the contract");
    (finished, report)
}

#[test]
fn workers_that_a_command_forked_were_traced_without_any_budget() {
    require_kernel!();
    // Two workers without an exec that do little else than allocate, for eight seconds.
    let program = "import os, time\n\
        children = [os.fork() or 1 for _ in range(2)]\n\
        end = time.monotonic() + 8\n\
        while children and time.monotonic() < end: bytearray(4000)\n\
        time.sleep(0.5)";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let (out, python) = (path.to_str().unwrap(), "/usr/bin/python3");
    let arguments = [
        "trace", "--format", "json", "-o", out, "--", python, "-c", program,
    ];
    let finished = run(&arguments).expect("leakscope runs");
    assert!(path.exists(), "{finished:?}");
    let text = fs::read_to_string(&path).unwrap();
    let report: Report = serde_json::from_str(&text).expect("by the contract");
    assert!(report.processes.len() > 2, "{:?}", report.processes);
    assert_eq!(report.tier, "sampled", "{}", report.tier_reason);
    assert!(report.overhead.duty < 0.9, "{:?}", report.overhead);
}

/// The one process that a report speaks of.
#[track_caller]
fn only_pid(report: &Report) -> u32 {
    // A process that executed another program may be listed once for each.
    let pid = report.processes.first().expect("a process").pid;
    let others = report.processes.iter().filter(|process| process.pid != pid);
    assert_eq!(others.count(), 0, "{:?}", report.processes);
    pid
}

#[track_caller]
fn assert_figures(report: &Report, figures: &[(&str, u64, u64)]) {
    let pid = only_pid(report);
    let truths: Vec<Truth> = figures
        .iter()
        .map(|(function, bytes, objects)| {
            let line =
                serde_json::json!({ "function": function, "bytes": bytes, "objects": objects });
            Truth::parse(&line.to_string()).unwrap()
        })
        .collect();
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Runs a victim as a plain command; the report must meet the truth that it printed.
#[track_caller]
fn assert_truth(path: &Path) -> Report {
    let (finished, report) = trace(&[path.to_str().unwrap(), "now"]);
    let pid = only_pid(&report);
    let mut lines: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(lines.pop(), Some("done"), "{finished:?}");
    let truths: Vec<Truth> = lines
        .into_iter()
        .map(|line| Truth::parse(line).unwrap())
        .collect();
    let differences = report.differences(&truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    report
}

#[test]
fn a_command_that_is_over_at_once() {
    let _alone = require_kernel!();
    let path = require_victim!("short");
    let (finished, report) = trace(&[path.to_str().unwrap(), "one", "--for", "-- two"]);
    assert_eq!(
        finished.stdout,
        "short says hello\nargument one\nargument --for\nargument -- two\n"
    );
    assert_figures(
        &report,
        &[("leak_before_main", 55, 5), ("leak_short", 2091, 17)],
    );
}

#[test]
fn a_short_command_is_seen_from_its_first_malloc_every_time() {
    let _alone = require_kernel!();
    let path = require_victim!("short");
    for _ in 0..3 {
        let (_, report) = trace(&[path.to_str().unwrap()]);
        assert_figures(
            &report,
            &[("leak_before_main", 55, 5), ("leak_short", 2091, 17)],
        );
    }
}

#[test]
fn every_function_of_the_allocator() {
    let _alone = require_kernel!();
    let path = require_victim!("kinds");
    let report = assert_truth(&path);
    // All of these were freed or reallocated later, and this time their births were seen.
    let prepared = report.called_by(only_pid(&report), "prepare");
    assert_eq!((prepared.bytes, prepared.objects), (0, 0));
}

#[test]
fn threads() {
    let _alone = require_kernel!();
    assert_truth(&require_victim!("threads"));
}

#[test]
fn a_library_that_is_loaded_late_and_a_process_that_is_gone() {
    let _alone = require_kernel!();
    assert_truth(&require_victim!("dlopen"));
}

#[test]
fn a_command_that_becomes_another_program() {
    let _alone = require_kernel!();
    let path = require_victim!("exec");
    assert_truth(&path);
    // A shell that gives way to the command.
    let short = require_victim!("short");
    let script = format!("exec {}", short.display());
    let (finished, report) = trace(&["sh", "-c", &script]);
    assert_eq!(finished.stdout, "short says hello\n");
    assert_figures(
        &report,
        &[("leak_before_main", 55, 5), ("leak_short", 2091, 17)],
    );
}

#[test]
fn a_command_is_found_on_the_path_and_reads_our_input() {
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut child = Command::new(leakscope().unwrap())
        .args(["trace", "--format", "json", "-o"])
        .arg(&report)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"through and through\n").unwrap();
    drop(stdin);
    let finished = child.wait_with_output().unwrap();
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(finished.stdout, b"through and through\n");
    assert!(report.exists());
}

/// The processes whose command lines name something, and the state of each (proc_pid_stat(5)).
fn processes_that_name(text: &str) -> Vec<(u32, char)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may end meanwhile.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        if let Some(state) = state
            && String::from_utf8_lossy(&line).contains(text)
        {
            found.push((pid, state));
        }
    }
    found
}

/// A command that starts processes one after the other, each of which is held several times; they name the folder.
struct Breeder {
    folder: tempfile::TempDir,
    tracer: Tracer,
}

impl Breeder {
    fn start(victim: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lsc-held-")
            .tempdir()
            .unwrap();
        let path = folder.path().join("held");
        fs::copy(victim, &path).unwrap();
        let path = path.to_str().unwrap();
        // Of the children the shell waits for some and not for others; there are grandchildren too.
        let script = format!(
            "i=0; while [ $i -lt 12 ]; do {path} nap 1 & sh -c '{path} nap 1; :'; i=$((i+1)); done; wait"
        );
        let tracer = Tracer::start(&["--at-exit", "--", "sh", "-c", &script]).unwrap();
        Self { folder, tracer }
    }

    fn name(&self) -> &str {
        self.folder.path().file_name().unwrap().to_str().unwrap()
    }

    /// The command's processes, without leakscope, whose command line holds the script too.
    fn processes(&self) -> Vec<(u32, char)> {
        let mut found = processes_that_name(self.name());
        found.retain(|(pid, _)| *pid != self.tracer.pid());
        found
    }

    /// All come to their end by themselves: nobody is stopped.
    #[track_caller]
    fn assert_all_end(&self, after: &str) {
        let begun = Instant::now();
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{after}: {left:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn killed_while_it_holds_others_it_leaves_none_of_them_stopped() {
    let _alone = require_kernel!();
    let victim = require_victim!("family");
    let rounds = if prebuilt() { 2 } else { 6 };
    let mut held = 0;
    for round in 0..rounds {
        let breeder = Breeder::start(&victim);
        // When the shell has its first child, and later, among the grandchildren.
        let least = 2 + round % 3;
        // So many at once may never be seen: then the moment has passed when all have ended.
        let begun = Instant::now();
        let mut seen = 0;
        while seen < least && begun.elapsed() < PATIENCE {
            let now = breeder.processes().len();
            if now == 0 && seen > 0 {
                break;
            }
            seen = now;
            sleep(Duration::from_millis(1));
        }
        // While leakscope stands still, whoever is held next stays so.
        breeder.tracer.signal("STOP").unwrap();
        let begun = Instant::now();
        let mut stopped = 0;
        while stopped == 0 && begun.elapsed() < Duration::from_secs(3) {
            let states = breeder.processes();
            stopped = states.iter().filter(|(_, state)| *state == 'T').count();
            sleep(Duration::from_millis(1));
        }
        held += stopped;
        send("KILL", breeder.tracer.pid()).unwrap();
        breeder.assert_all_end(&format!("round {round}, {stopped} held"));
    }
    assert!(
        held >= rounds / 2,
        "only {held} were held in {rounds} rounds"
    );
}

#[test]
fn killed_at_any_moment_it_leaves_no_process_stopped() {
    let _alone = require_kernel!();
    let victim = require_victim!("family");
    for round in 0..if prebuilt() { 2 } else { 5_u64 } {
        let breeder = Breeder::start(&victim);
        sleep(Duration::from_millis(100 * round));
        // A second SIGINT quits at once.
        let signals: &[&str] = if round % 4 == 3 {
            &["INT", "INT"]
        } else {
            &["KILL"]
        };
        for signal in signals {
            send(signal, breeder.tracer.pid()).unwrap();
        }
        breeder.assert_all_end(&format!("{signals:?} in round {round}"));
    }
}

/// Whether a process has ended, reaped or not.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn whoever_watches_over_the_command_holds_none_of_its_files_and_ends_with_the_trace() {
    let _alone = require_kernel!();
    let victim = require_victim!("endless");
    let mut tracer =
        Tracer::start(&["--tier", "exact", "--", victim.to_str().unwrap(), "now"]).unwrap();
    let command_line = |pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let begun = Instant::now();
    let (guardian, command) = loop {
        let children = children(tracer.pid()).unwrap();
        // The keeper of its links has the same command line as the tracer, which ends as the command's does.
        let of = |wanted: &[u8]| {
            let mut children = children.iter().copied();
            children.find(|pid| command_line(*pid) == wanted)
        };
        let command = format!("{}\0now\0", victim.display());
        if let (Some(guardian), Some(command)) = (of(b"leakscope\0guard\0"), of(command.as_bytes()))
        {
            break (guardian, command);
        }
        assert!(begun.elapsed() < PATIENCE, "{children:?}");
        sleep(Duration::from_millis(5));
    };
    // Its loader has libraries open at first.
    let files = |pid: u32| -> Vec<String> {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .map(|file| file.to_string_lossy().into_owned())
            .collect()
    };
    let others = [files(command), files(tracer.pid())].concat();
    // In place of input and output it has a pipe that leads nowhere.
    let is_meant = |file: &String| {
        file.starts_with("anon_inode:") || file.starts_with("pipe:") && !others.contains(file)
    };
    while files(guardian).is_empty() || !files(guardian).iter().all(is_meant) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", files(guardian));
        sleep(Duration::from_millis(5));
    }
    let session = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.split(' ').nth(3).unwrap().to_owned()
    };
    assert_eq!(session(guardian), guardian.to_string());
    assert_ne!(session(command), guardian.to_string());
    tracer.signal("INT").unwrap();
    let begun = Instant::now();
    while Path::new(&format!("/proc/{guardian}")).exists() {
        assert!(begun.elapsed() < PATIENCE, "{guardian} is still there");
        sleep(Duration::from_millis(5));
    }
    // Killed before that, the command's end would be the trace's.
    while !has_ended(tracer.pid()) {
        assert!(begun.elapsed() < PATIENCE, "the trace goes on");
        sleep(Duration::from_millis(5));
    }
    // The command goes on, with the output that it shares with the tracer: that has no end before it is gone.
    send("KILL", command).unwrap();
    assert_eq!(tracer.end().unwrap().code(), 0);
}

#[test]
fn a_full_ring_buffer_leaves_nobody_held() {
    const CHILDREN: usize = 100;
    let _alone = require_kernel!();
    let script = format!(
        "i=0; while [ $i -lt {CHILDREN} ]; do {} nap 0 & i=$((i+1)); done; wait",
        require_victim!("family").display()
    );
    let arguments = ["--event-bytes", "4096", "--", "sh", "-c", &script];
    let mut tracer = Tracer::start(&arguments).expect("started");
    let begun = Instant::now();
    let shell = loop {
        if let Some(shell) = command_of(tracer.pid())
            && !children(shell).unwrap_or_default().is_empty()
        {
            break shell;
        }
        assert!(begun.elapsed() < PATIENCE, "the command does not begin");
        sleep(Duration::from_millis(1));
    };
    // While leakscope stands still nobody empties the buffer, and nobody lets those go on of whom it is told: the others go on by
    // themselves.
    tracer.signal("STOP").unwrap();
    while fs::read_to_string(format!("/proc/{shell}/stat"))
        .is_ok_and(|stat| !stat.contains(") S ") && !stat.contains(") T "))
    {
        assert!(begun.elapsed() < PATIENCE, "the shell does not wait");
        sleep(Duration::from_millis(10));
    }
    tracer.signal("CONT").unwrap();
    let finished = tracer.end().expect("it ends with its command");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let text = fs::read_to_string(tracer.report_path()).unwrap();
    let report: Report = serde_json::from_str(&text).unwrap();
    let lost = report.losses.get("event_lost").copied();
    assert!(lost.is_some_and(|count| count > 0), "{:?}", report.losses);
}

/// "Every allocator call was seen", where nothing was attached to.
#[test]
fn nothing_attached_is_not_every_call_seen() {
    let _alone = require_kernel!();
    let program = require_victim!("basic-stripped");
    let program = program.to_string_lossy();
    let finished = run(&["trace", "--format", "text", "--", &program]).expect("runs");
    let text = &finished.stdout;
    assert!(!text.contains("every allocator call was seen"), "{text}");
    assert!(text.contains("linked statically and stripped"), "{text}");
    assert!(text.contains("--tier growth"), "{text}");
}

/// "It ended", of a process that was killed.
#[test]
fn a_signal_that_kills_is_named() {
    let _alone = require_kernel!();
    let (_, report) = trace(&["sh", "-c", "kill -9 $$"]);
    let ended = report
        .processes
        .first()
        .and_then(|process| process.ended.clone())
        .expect("it is known how");
    assert_eq!(ended.signal.as_deref(), Some("SIGKILL"));
    assert_eq!((ended.exit_status, ended.out_of_memory), (None, None));
    let (_, report) = trace(&["sh", "-c", "exit 7"]);
    let ended = report
        .processes
        .first()
        .and_then(|process| process.ended.clone())
        .expect("it is known how");
    assert_eq!((ended.exit_status, ended.signal), (Some(7), None));
}

/// "It ended", of a process that grew until its cgroup's limit.
#[test]
fn a_kill_for_the_cgroups_limit_is_told() {
    let _alone = require_kernel!();
    let limit = match MemoryLimit::new(40 << 20) {
        Ok(limit) => limit,
        Err(error) => return leave_out(&format!("{error:#}")),
    };
    let program = require_victim!("fill_up");
    let script = format!(
        "echo $$ > '{}' && exec '{}'",
        limit.procs().display(),
        program.display()
    );
    let (_, report) = trace(&["sh", "-c", &script]);
    let ended = report
        .processes
        .first()
        .and_then(|process| process.ended.clone())
        .expect("it is known how");
    assert_eq!(ended.signal.as_deref(), Some("SIGKILL"), "{ended:?}");
    assert_eq!(ended.out_of_memory.as_deref(), Some("cgroup"), "{ended:?}");
    assert!(
        report.sites.iter().any(|site| site.contains("fill_up")),
        "{:?}",
        report.sites
    );
}

#[test]
fn a_command_ends_with_its_own_status() {
    let _alone = require_kernel!();
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15)] {
        let finished = run(&["trace", "--", "sh", "-c", script]).expect("leakscope runs");
        assert_eq!(finished.code(), status, "{script}: {finished:?}");
    }
}

#[test]
fn a_status_of_1_that_is_not_the_commands_is_said_to_be_ours() {
    let _alone = require_kernel!();
    let finished = run(&["trace", "-o", "/dev/full", "--", "sh", "-c", "exit 5"]);
    let finished = finished.expect("leakscope runs");
    assert_eq!(finished.code(), 1, "{finished:?}");
    for said in ["leakscope itself failed", "exit status: 5", "/dev/full"] {
        assert!(finished.stderr.contains(said), "{said}: {finished:?}");
    }
    let finished = run(&["trace", "--", "/nonexistent/program"]).expect("leakscope runs");
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("cannot run"), "{finished:?}");
}

#[test]
fn a_command_too_short_to_be_judged_is_not_green() {
    let _alone = require_kernel!();
    let path = require_victim!("short");
    let path = path.to_str().unwrap();
    // Without a look at its end.
    let asked = ["trace", "--tier", "sampled", "--fail-on-leak", "--"];
    let judge = |command: &[&str]| {
        let arguments: Vec<&str> = asked.iter().chain(command).copied().collect();
        run(&arguments).expect("leakscope runs")
    };
    let finished = judge(&[path]);
    assert_eq!(finished.code(), 4, "{finished:?}");
    assert!(
        finished.stderr.contains("nothing could be judged"),
        "{finished:?}"
    );
    // Without the question there is no answer.
    let finished = run(&["trace", "--", path]).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    // A command that failed by itself says more.
    let script = format!("{path}; exit 7");
    let finished = judge(&["sh", "-c", &script]);
    assert_eq!(finished.code(), 7, "{finished:?}");
}
