//! Which processes are traced: by name, by control group, all of them, children of a command; those that run and those that
//! start later.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use leakscope_tests::{
    ALL_SITES, Group, Report, Tracer, Truth, Victim, children, leave_out, prebuilt, require_kernel,
    require_victim, run,
};

/// How long a process may take to call exec.
const READY: Duration = Duration::from_secs(20);

/// Traces a selection.
fn select(arguments: &[&str]) -> Tracer {
    let mut all = vec!["--tier", "exact"];
    all.extend(arguments);
    Tracer::start(&all).expect("leakscope starts")
}

/// A program under another name.
fn named(program: &Path, name: &str, folder: &Path) -> PathBuf {
    let path = folder.join(name);
    fs::copy(program, &path).unwrap();
    path
}

#[track_caller]
fn assert_truth(report: &Report, pid: u32, truths: &[Truth]) {
    let differences = report.differences(truths, |report, truth| {
        report.called_by(pid, &truth.function)
    });
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[track_caller]
fn assert_leaks(
    report: &Report,
    comm: &str,
    function: &str,
    bytes: u64,
    objects: u64,
    times: usize,
) {
    let found: Vec<_> = report
        .processes
        .iter()
        .filter(|process| process.comm == comm)
        .map(|process| report.called_by(process.pid, function))
        .filter(|sum| sum.sites > 0)
        .collect();
    assert_eq!(
        found.len(),
        times,
        "{comm} {function}: {:?}",
        report.processes
    );
    for sum in found {
        assert_eq!(
            (sum.bytes, sum.objects),
            (bytes, objects),
            "{comm} {function}"
        );
    }
}

/// Waits until a process has called exec.
#[track_caller]
fn wait_for_name(pid: u32, name: &str) {
    let begun = Instant::now();
    while fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap()
        .trim()
        != name
    {
        assert!(begun.elapsed() < READY, "no exec");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Traces the family as a command.
fn trace_family(arguments: &[&str]) -> Report {
    let path = leakscope_tests::victim("family").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("report.json");
    let mut all = vec![
        "trace", "--tier", "exact", "--top", ALL_SITES, "--format", "json", "-o",
    ];
    all.push(output.to_str().unwrap());
    all.extend(arguments);
    all.extend(["--", path.to_str().unwrap()]);
    let finished = run(&all).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert_eq!(finished.stdout, "family done\n");
    serde_json::from_str(&fs::read_to_string(&output).unwrap()).expect("by the contract")
}

#[test]
fn a_command_with_its_children_and_theirs() {
    let _alone = require_kernel!();
    require_victim!("family");
    let report = trace_family(&[]);
    assert_leaks(&report, "family", "leak_of_parent", 77, 1, 1);
    assert_leaks(&report, "family", "leak_of_worker", 20_000, 20, 4);
    assert_leaks(&report, "family", "leak_of_clone", 4_500, 9, 1);
    let shells = report
        .processes
        .iter()
        .filter(|process| process.comm == "sh")
        .count();
    assert_eq!(shells, 2, "{:?}", report.processes);
    assert_eq!(report.byte_losses(), []);
}

#[test]
fn a_process_by_its_id_beside_others_by_their_name() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let folder = tempfile::tempdir().unwrap();
    let other = named(&basic, "lsc-by-name", folder.path());
    let mut one = Victim::start(&basic).expect("started");
    let mut two = Victim::start(&other).expect("started");
    wait_for_name(two.pid(), "lsc-by-name");
    let pid = one.pid().to_string();
    let mut tracer = select(&["-p", &pid, "--comm", "lsc-by-*"]);
    tracer.wait_until_attached(one.pid()).expect("attached");
    tracer.wait_until_attached(two.pid()).expect("attached");
    let truths = (one.go().unwrap(), two.go().unwrap());
    let report = tracer.stop().expect("the report");
    assert_truth(&report, one.pid(), &truths.0);
    assert_truth(&report, two.pid(), &truths.1);
    assert_eq!(report.processes.len(), 2, "{:?}", report.processes);
    assert!(one.quit().unwrap().success());
    assert!(two.quit().unwrap().success());
}

#[test]
fn a_command_without_its_children() {
    let _alone = require_kernel!();
    require_victim!("family");
    let report = trace_family(&["--no-follow"]);
    assert_eq!(report.processes.len(), 1, "{:?}", report.processes);
    assert_leaks(&report, "family", "leak_of_parent", 77, 1, 1);
}

#[test]
fn by_name_those_that_run_and_those_that_start_later() {
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let basic = require_victim!("basic");
    let wanted = named(&basic, "lsc-wanted", folder.path());
    let other = named(&basic, "lsc-other", folder.path());
    let mut before = Victim::start(&wanted).unwrap();
    let mut unwanted = Victim::start(&other).unwrap();
    let mut tracer = select(&["--comm", "lsc-w*"]);
    tracer.wait_until_attached(before.pid()).unwrap();
    let mut after = Victim::start(&wanted).unwrap();
    tracer.wait_until_attached(after.pid()).unwrap();
    let first = before.go().unwrap();
    let second = after.go().unwrap();
    unwanted.go().unwrap();
    let report = tracer.stop().unwrap();
    assert_truth(&report, before.pid(), &first);
    assert_truth(&report, after.pid(), &second);
    assert!(
        report
            .processes
            .iter()
            .all(|process| process.comm == "lsc-wanted"),
        "{:?}",
        report.processes
    );
}

#[test]
fn a_process_that_changes_its_program_is_let_go_when_the_name_no_longer_matches() {
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let basic = require_victim!("basic");
    let wanted = named(&basic, "lsc-wanted", folder.path());
    let mut stays = Victim::start(&wanted).unwrap();
    // A shell of a matching name that gives way to another program.
    let shell = folder.path().join("lsc-wanted-sh");
    fs::copy("/bin/sh", &shell).unwrap();
    let mut goes = Command::new(&shell)
        .args(["-c", "read line; exec sleep 100"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tracer = select(&["--comm", "lsc-wanted*"]);
    tracer.wait_until_attached(stays.pid()).unwrap();
    tracer.wait_until_attached(goes.id()).unwrap();
    drop(goes.stdin.take());
    wait_for_name(goes.id(), "sleep");
    let truths = stays.go().unwrap();
    thread::sleep(Duration::from_millis(300));
    let report = tracer.stop().unwrap();
    let _ = goes.kill();
    let _ = goes.wait();
    assert_truth(&report, stays.pid(), &truths);
    assert_eq!(report.processes.len(), 1, "{:?}", report.processes);
}

#[test]
fn a_child_that_calls_exec_while_it_is_prepared_is_not_taken_for_its_parent() {
    const CHILDREN: usize = 40;
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let shell = named(Path::new("/bin/sh"), "lsc-wanted-sh", folder.path());
    let mut parent = Command::new(&shell)
        .args([
            "-c",
            &format!(
                "read line; i=0; while [ $i -lt {CHILDREN} ]; do sleep 2 & i=$((i+1)); done; wait"
            ),
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tracer = select(&["--comm", "lsc-wanted*"]);
    tracer.wait_until_attached(parent.id()).unwrap();
    drop(parent.stdin.take());
    thread::sleep(Duration::from_millis(1500));
    let report = tracer.stop().unwrap();
    parent.wait().unwrap();
    assert!(
        report
            .processes
            .iter()
            .all(|process| process.comm == "lsc-wanted-sh"),
        "{:?}",
        report.processes
    );
    assert_eq!(report.processes.len(), 1, "{:?}", report.processes);
}

/// Two victims in a group and below it, and one beside; a third that starts there later.
fn by_group(mount: &Path) {
    let Some(group) = Group::make(mount) else {
        leave_out("no control group can be made");
        return;
    };
    let basic = require_victim!("basic");
    let mut inside = Victim::start(&basic).unwrap();
    let mut below = Victim::start(&basic).unwrap();
    let mut beside = Victim::start(&basic).unwrap();
    group.take(inside.pid(), false).unwrap();
    group.take(below.pid(), true).unwrap();
    let mut tracer = select(&["--cgroup", group.path().to_str().unwrap()]);
    tracer.wait_until_attached(inside.pid()).unwrap();
    tracer.wait_until_attached(below.pid()).unwrap();
    // A shell that moves itself and then calls exec, as service managers do.
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec {} nap 4000",
        group.inner().display(),
        require_victim!("family").display()
    );
    let mut later = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    wait_for_name(later.id(), "family");
    tracer.wait_until_attached(later.id()).unwrap();
    let truths = [inside.go().unwrap(), below.go().unwrap()];
    beside.go().unwrap();
    later.wait().unwrap();
    let mut report = tracer.stop().unwrap();
    report.forget_earlier_calls();
    assert_truth(&report, inside.pid(), &truths[0]);
    assert_truth(&report, below.pid(), &truths[1]);
    let nap = report.called_by(later.id(), "leak_of_nap");
    assert!(nap.objects >= 4, "{nap:?} in {report:?}");
    assert_eq!(report.processes.len(), 3, "{:?}", report.processes);
    inside.quit().unwrap();
    below.quit().unwrap();
    beside.quit().unwrap();
}

#[test]
fn by_control_group() {
    let _alone = require_kernel!();
    let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|mount| Path::new(mount).join("cgroup.procs").exists());
    match mount {
        Some(mount) => by_group(Path::new(mount)),
        None => leave_out("no cgroup v2 hierarchy is mounted"),
    }
}

#[test]
fn by_control_group_of_the_first_version() {
    let _alone = require_kernel!();
    let mount = Path::new("/sys/fs/cgroup/memory");
    if mount.join("cgroup.procs").exists() {
        by_group(mount);
    } else {
        leave_out("no cgroup v1 memory hierarchy is mounted");
    }
}

#[test]
fn processes_as_fast_as_they_fork() {
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let bomb = named(&require_victim!("family"), "lsc-bomb", folder.path());
    let steady = named(&require_victim!("basic"), "lsc-bomb-not", folder.path());
    let mut steady = Victim::start(&steady).unwrap();
    let mut tracer = select(&["--comm", "lsc-bomb*"]);
    tracer.wait_until_attached(steady.pid()).unwrap();
    // 2,000 in all, at most some hundred at a time.
    let (batches, many) = if prebuilt() { (2, 20) } else { (10, 100) };
    let script = format!(
        "j=0; while [ $j -lt {batches} ]; do i=0; while [ $i -lt {many} ]; do {} nap 0 & i=$((i+1)); done; wait; j=$((j+1)); done",
        bomb.display()
    );
    let shells: Vec<Child> = (0..2)
        .map(|_| Command::new("sh").args(["-c", &script]).spawn().unwrap())
        .collect();
    let truths = steady.go().unwrap();
    for mut shell in shells {
        assert!(shell.wait().unwrap().success());
    }
    // It still answers, and knows what it has lost.
    let report = tracer.stop().unwrap();
    if report.byte_losses().is_empty() {
        assert_truth(&report, steady.pid(), &truths);
    }
    // Of those that ended the last 64 stay; the end of some may not have been noticed by the last moment.
    let alive = report
        .processes
        .iter()
        .filter(|process| Path::new(&format!("/proc/{}", process.pid)).exists())
        .count();
    assert_eq!(alive, 1, "{:?}", report.processes);
    assert!(
        report.processes.len() <= 100,
        "{} processes",
        report.processes.len()
    );
    // What was seen of one is what it did, or less: never a block of another that had its number before.
    for process in &report.processes {
        let nap = report.called_by(process.pid, "leak_of_nap");
        assert!(nap.objects <= 8, "{process:?}: {nap:?}");
    }
    assert!(steady.quit().unwrap().success());
}

#[test]
fn the_whole_machine() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let threads = require_victim!("threads");
    let stripped = require_victim!("basic-omit-static");
    let mut victims = vec![
        Victim::start(&basic).unwrap(),
        Victim::start(&threads).unwrap(),
        Victim::start(&stripped).unwrap(),
    ];
    let mut tracer = select(&["--all"]);
    for victim in &victims {
        tracer.wait_until_attached(victim.pid()).unwrap();
    }
    // Links are for all processes: that a later one is trapped does not mean yet that it is recorded.
    victims.push(Victim::start(&basic).unwrap());
    thread::sleep(Duration::from_secs(1));
    let truths: Vec<_> = victims
        .iter_mut()
        .map(|victim| victim.go().unwrap())
        .collect();
    // Another leakscope that runs beside is a process like any other.
    let mut own = children(tracer.pid()).unwrap();
    own.push(tracer.pid());
    let report = tracer.stop().unwrap();
    for (victim, truths) in victims.iter().zip(&truths) {
        assert_truth(&report, victim.pid(), truths);
    }
    assert!(
        !report
            .processes
            .iter()
            .any(|process| own.contains(&process.pid)),
        "{own:?}: {:?}",
        report.processes
    );
}

#[test]
fn processes_that_come_and_go_leave_no_stack_and_no_block_behind() {
    let _alone = require_kernel!();
    let family = require_victim!("family");
    let folder = tempfile::tempdir().unwrap();
    let nap = named(&family, "lsc-nap", folder.path());
    let tracer = select(&[
        "--comm",
        "lsc-nap",
        "--max-stacks",
        "512",
        "--max-blocks",
        "1024",
    ]);
    thread::sleep(Duration::from_secs(2));
    // 400 processes with 4 stacks each: more than the stack table's 1,024 slots.
    for _ in 0..20 {
        let children: Vec<Child> = (0..20)
            .map(|_| Command::new(&nap).args(["nap", "600"]).spawn().unwrap())
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
    }
    let report = tracer.stop().unwrap();
    // Were nothing given back, some 600 would not fit. An emulated machine may be late with a few.
    let full = report.losses.get("stack_table_full").copied();
    let late = if prebuilt() { 60 } else { 0 };
    assert!(
        full.is_some_and(|count| count <= late),
        "{:?}",
        report.losses
    );
    assert_eq!(
        report.losses.get("live_table_full"),
        Some(&0),
        "{:?}",
        report.losses
    );
    // The last ones stay in the report.
    assert!(
        (8..=64).contains(&report.processes.len()),
        "{} processes",
        report.processes.len()
    );
    let nap = report
        .processes
        .iter()
        .map(|process| report.called_by(process.pid, "leak_of_nap"))
        .max_by_key(|sum| sum.objects)
        .unwrap();
    assert!((4..=8).contains(&nap.objects), "{nap:?}");
}

/// A name that a process takes after it has started is one to be selected by.
#[test]
fn a_process_that_renames_itself_is_selected() {
    let _alone = require_kernel!();
    let program = require_victim!("renamed");
    let tracer = select(&["--comm", "other-name", "--for", "9s"]);
    thread::sleep(Duration::from_secs(1));
    let mut running = Command::new(program).spawn().expect("started");
    let report = tracer.report().expect("the report");
    let _ = running.kill();
    let _ = running.wait();
    assert_leaks(&report, "other-name", "leak_renamed", 4000, 40, 1);
}
