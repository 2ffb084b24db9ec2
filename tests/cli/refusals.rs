//! What leakscope cannot do ends with 1 and one message that names the subject, and leaves nothing behind.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use leakscope_tests::{
    Finished, NOBODY, PATIENCE, Shared, Victim, breakpoints, leakscope, require_kernel,
    require_victim, run, run_command,
};

/// Exit code 1, nothing on stdout, a message on stderr that names each of `subjects` and is no panic.
#[track_caller]
fn assert_refused(finished: &Finished, subjects: &[&str]) {
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stdout.is_empty(), "{finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    for subject in subjects {
        assert!(
            finished.stderr.contains(subject),
            "to name {subject}: {finished:?}"
        );
    }
}

#[test]
fn a_screen_without_a_terminal() {
    assert_refused(
        &run(&["top", "-p", "1"]).unwrap(),
        &["needs a terminal", "leakscope trace"],
    );
}

fn trace(pid: u32) -> Finished {
    run(&["trace", "-p", &pid.to_string(), "--for", "1s"]).expect("leakscope runs")
}

#[test]
fn a_pid_that_does_not_exist() {
    let _alone = require_kernel!();
    // Process ids are smaller than pid_max (kernel/pid.c).
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let pid: u32 = limit.trim().parse().unwrap();
    assert_refused(&trace(pid), &[&pid.to_string()]);
}

/// The report was of no process, and said that every call had been seen.
#[test]
fn process_ids_of_a_container() {
    let _alone = require_kernel!();
    for arguments in [
        "trace -p 1 --for 1s",
        "trace --all --for 1s",
        "trace -- true",
    ] {
        let mut inside = Command::new("unshare");
        inside
            .args(["--pid", "--fork", "--mount-proc"])
            .arg(leakscope().unwrap())
            .args(arguments.split(' '));
        let finished = run_command(inside).unwrap();
        assert_refused(&finished, &["PID namespace", "pid:["]);
    }
}

#[test]
fn a_process_that_has_ended_but_was_not_waited_for() {
    let _alone = require_kernel!();
    let mut child = Command::new("true").spawn().unwrap();
    let start = Instant::now();
    let is_zombie = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z')
    };
    while !is_zombie() {
        assert!(start.elapsed() < PATIENCE, "`true` does not end");
        sleep(Duration::from_millis(5));
    }
    let finished = trace(child.id());
    child.wait().unwrap();
    assert_refused(&finished, &[&child.id().to_string()]);
}

#[test]
fn a_kernel_thread() {
    let _alone = require_kernel!();
    // The flags are the ninth field (proc_pid_stat(5)); PF_KTHREAD is 0x0020_0000 (include/linux/sched.h).
    let is_kernel_thread = |pid: u32| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(6))
                .and_then(|flags| flags.parse::<u64>().ok())
                .is_some_and(|flags| flags & 0x0020_0000 != 0)
        })
    };
    let Some(pid) = (2..1000).find(|pid| is_kernel_thread(*pid)) else {
        leakscope_tests::skip("this PID namespace shows no kernel thread");
        return;
    };
    assert_refused(&trace(pid), &[&pid.to_string(), "kernel thread"]);
}

#[test]
fn a_thread_that_is_no_process() {
    let _alone = require_kernel!();
    let (send_id, id) = channel();
    let (finish, wait) = channel::<()>();
    let thread = thread::spawn(move || {
        let path = fs::read_link("/proc/thread-self").unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        send_id.send(name.parse::<u32>().unwrap()).unwrap();
        // Ends with an error when the other side is dropped.
        let _ = wait.recv();
    });
    let id = id.recv().unwrap();
    let finished = trace(id);
    drop(finish);
    thread.join().unwrap();
    // The message names the process to which the thread belongs: this one.
    assert_refused(
        &finished,
        &[&id.to_string(), &std::process::id().to_string()],
    );
}

#[test]
fn a_process_without_an_allocator() {
    let _alone = require_kernel!();
    let bare = require_victim!("bare");
    let mut running = Victim::start(&bare).expect("started");
    let finished = trace(running.pid());
    assert_refused(&finished, &[&running.pid().to_string(), "allocator"]);
    running.say("end").expect("it still listens");
    assert!(running.end().expect("ends").success());
}

#[test]
fn an_output_that_cannot_be_written() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let mut running = Victim::start(&basic).expect("started");
    let pid = running.pid().to_string();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no-such-folder/report.json");
    for output in [
        missing.as_path(),
        folder.path(),
        Path::new("/proc/report.json"),
    ] {
        let output = output.to_str().unwrap();
        let finished = run(&["trace", "-p", &pid, "--for", "1s", "-o", output]).unwrap();
        assert_refused(&finished, &[output]);
        assert!(breakpoints(running.pid()).unwrap().is_empty(), "{output}");
    }
    running.go().expect("it runs as before");
    assert!(running.quit().expect("ends").success());
}

/// The standard library opens `/dev/null` in its place: all was written there, and the status was 0.
#[test]
fn what_was_written_to_a_closed_stdout_was_lost_in_silence() {
    for arguments in ["schema", "completions bash", "daemon --print-config"] {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("\"$0\" {arguments} >&-")])
            .arg(leakscope().unwrap());
        assert_refused(&run_command(shell).unwrap(), &["stdout"]);
    }
}

#[test]
fn a_process_that_is_not_in_a_saved_report_was_answered_with_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("saved.json");
    let json = r#"{"schema": 1, "captured_at": "2026-01-01T00:00:00Z", "duration_s": 1.0, "tier": "exact", "tier_reason": "",
        "processes": [{"pid": 7, "comm": "app", "cgroup": "/", "allocators": [], "rss_bytes": 0, "rss_growth_bytes_per_s": 0.0}],
        "sites": [], "losses": {},
        "overhead": {"probe_hits": 0, "duty": 1.0, "target_cpu_fraction": 0.0, "budget": 0.01}}"#;
    fs::write(&file, json).unwrap();
    let file = file.to_str().unwrap();
    assert_refused(
        &run(&["report", file, "-p", "9"]).unwrap(),
        &[file, "app (pid 7)"],
    );
    let some = run(&["report", file, "-p", "7,9"]).unwrap();
    assert_eq!(some.code(), 0, "{some:?}");
    assert!(some.stderr.contains("process 9 is not in"), "{some:?}");
}

#[test]
fn suppressions_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("known.supp");
    fs::write(&bad, "# known\nleak:fine\nrace:not_ours\n").unwrap();
    let missing = folder.path().join("no-such-file");
    for (file, subject) in [(&bad, "known.supp:3"), (&missing, "no-such-file")] {
        let file = file.to_str().unwrap();
        let finished = run(&["trace", "-p", "1", "--suppress", file]).unwrap();
        assert_refused(&finished, &[subject]);
    }
}

#[test]
fn a_folder_for_unwind_tables_that_others_can_write_to() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, reason) in [
        (folder.path(), "others may write"),
        (&file, "cannot be made"),
    ] {
        let path = path.to_str().unwrap();
        let finished = run(&["trace", "-p", "1", "--unwind-cache", path]).unwrap();
        assert_refused(&finished, &[path, reason]);
    }
}

#[test]
fn an_output_on_a_full_disk() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let running = Victim::start(&basic).expect("started");
    let pid = running.pid().to_string();
    let finished = run(&["trace", "-p", &pid, "--for", "1s", "-o", "/dev/full"]).unwrap();
    assert_refused(&finished, &["/dev/full"]);
    assert!(breakpoints(running.pid()).unwrap().is_empty());
}

#[test]
fn a_command_that_is_not_there() {
    let _alone = require_kernel!();
    let finished = run(&["trace", "--", "no-such-command-anywhere"]).unwrap();
    assert_refused(&finished, &["no-such-command-anywhere"]);
    let finished = run(&["trace", "--", "/etc/passwd"]).unwrap();
    assert_refused(&finished, &["/etc/passwd"]);
}

/// leakscope as `nobody`, without any capability.
fn as_nobody(program: &Shared, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program.path());
    command
        .args(arguments)
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/");
    run_command(command).expect("leakscope runs")
}

#[test]
fn a_user_without_capabilities() {
    let _alone = require_kernel!();
    let basic = Shared::copy(&require_victim!("basic")).unwrap();
    let program = Shared::copy(&leakscope().expect("the binary")).unwrap();
    let own = Victim::start_as(basic.path(), NOBODY).expect("started");
    let pid = own.pid().to_string();
    let finished = as_nobody(&program, &["trace", "-p", &pid, "--for", "1s"]);
    assert_refused(&finished, &["CAP_BPF", "CAP_PERFMON"]);
    drop(own);
}

#[test]
fn a_process_of_another_user() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let program = Shared::copy(&leakscope().expect("the binary")).unwrap();
    let mut other = Victim::start(&basic).expect("started");
    let pid = other.pid().to_string();
    let finished = as_nobody(&program, &["trace", "-p", &pid, "--for", "1s"]);
    assert_refused(&finished, &[]);
    let names_the_process = finished.stderr.contains(&pid);
    let names_the_want = finished.stderr.contains("CAP_");
    assert!(names_the_process || names_the_want, "{finished:?}");
    other.go().expect("it runs as before");
    assert!(other.quit().expect("ends").success());
}

/// leakscope as `nobody` with some capabilities, as `setpriv` of util-linux gives them.
fn as_nobody_with(program: &Shared, capabilities: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["--inh-caps", capabilities, "--ambient-caps", capabilities])
        .arg(program.path())
        .args(arguments)
        .current_dir("/");
    run_command(command).expect("leakscope runs")
}

/// With these two alone a process of the same user can be traced; what more is missing is permission, not a mount or a kernel.
#[test]
fn with_two_capabilities_alone_doctor_and_trace_agree_and_name_the_missing_permission() {
    let _alone = require_kernel!();
    const TWO: &str = "+bpf,+perfmon";
    let basic = Shared::copy(&require_victim!("basic")).unwrap();
    let program = Shared::copy(&leakscope().expect("the binary")).unwrap();
    let own = Victim::start_as(basic.path(), NOBODY).expect("started");
    let arguments = ["trace", "-p", &own.pid().to_string(), "--for", "1s"];
    let traced = as_nobody_with(&program, TWO, &arguments);
    let doctor = as_nobody_with(&program, TWO, &["doctor"]);
    assert_eq!(traced.code(), doctor.code(), "{traced:?}\n{doctor:?}");
    for finished in [&traced, &doctor] {
        let text = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!text.contains("CONFIG_FTRACE"), "{finished:?}");
        if text.contains("tracefs") {
            assert!(text.contains("run as root"), "{finished:?}");
        }
    }
    drop(own);
    // Another user's: what is missing is named.
    let other = Victim::start(&require_victim!("basic")).expect("started");
    let pid = other.pid().to_string();
    for arguments in [
        &["trace", "-p", &pid, "--for", "1s"][..],
        &["doctor", "-p", &pid],
    ] {
        let finished = as_nobody_with(&program, TWO, arguments);
        assert_eq!(finished.code(), 1, "{finished:?}");
        let text = format!("{}{}", finished.stdout, finished.stderr);
        assert!(
            text.contains("permission denied") || text.contains("Permission denied"),
            "{text}"
        );
        assert!(text.contains("CAP_SYS_PTRACE"), "{text}");
    }
}

#[test]
fn a_selection_that_matches_nobody_is_said_at_once() {
    let _alone = require_kernel!();
    let finished = run(&["trace", "--comm", "no-such-name", "--for", "1s"]).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(
        finished.stderr.contains("no process matches yet"),
        "{finished:?}"
    );
    assert!(finished.stderr.contains("no-such-name"), "{finished:?}");
}

#[test]
fn one_of_several_processes_that_cannot_be_traced_is_said_and_the_others_are_traced() {
    let _alone = require_kernel!();
    let running = Victim::start(&require_victim!("basic")).expect("started");
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let nobody: u32 = limit.trim().parse().unwrap();
    let both = format!("{nobody},{}", running.pid());
    let finished = run(&["trace", "-p", &both, "--for", "1s"]).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(
        finished.stderr.contains(&nobody.to_string()),
        "{finished:?}"
    );
    assert!(
        finished
            .stdout
            .contains(&format!("(pid {})", running.pid())),
        "{finished:?}"
    );
    let none = format!("{nobody},{}", nobody + 1);
    let finished = run(&["trace", "-p", &none, "--for", "1s"]).expect("leakscope runs");
    assert_refused(&finished, &[&nobody.to_string(), &(nobody + 1).to_string()]);
}

#[test]
fn where_nothing_could_be_judged_it_is_not_green() {
    let _alone = require_kernel!();
    let running = Victim::start(&require_victim!("basic")).expect("started");
    let pid = running.pid().to_string();
    for (target, why) in [
        (["-p", pid.as_str()], "too few to name a leak"),
        (["--comm", "no-such-process"], "no process matched"),
    ] {
        let mut arguments = vec!["trace", "--fail-on-leak", "--for", "1s"];
        arguments.extend(target);
        let finished = run(&arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 4, "{finished:?}");
        assert!(
            finished.stderr.contains("nothing could be judged"),
            "{finished:?}"
        );
        assert!(finished.stderr.contains(why), "{finished:?}");
    }
}

#[test]
fn the_doctor_tells_who_can_trace() {
    let _alone = require_kernel!();
    let healthy = run(&["doctor"]).unwrap();
    assert_eq!(healthy.code(), 0, "{healthy:?}");
    assert!(healthy.stdout.contains("BTF"), "{healthy:?}");
    let program = Shared::copy(&leakscope().expect("the binary")).unwrap();
    let ill = as_nobody(&program, &["doctor"]);
    assert_eq!(ill.code(), 1, "{ill:?}");
    assert!(ill.stdout.contains("CAP_BPF"), "{ill:?}");
}

#[test]
fn the_doctor_looks_at_a_process() {
    let _alone = require_kernel!();
    let basic = require_victim!("basic");
    let running = Victim::start(&basic).expect("started");
    let finished = run(&["doctor", "-p", &running.pid().to_string()]).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    assert!(finished.stdout.contains("libc.so.6"), "{finished:?}");
    assert!(breakpoints(running.pid()).unwrap().is_empty());
}

#[test]
fn nothing_runs_of_a_command_that_cannot_be_traced() {
    let _alone = require_kernel!();
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let program = Shared::copy(&leakscope().expect("the binary")).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let arguments = ["trace", "--", "touch", mark.to_str().unwrap()];
    let finished = as_nobody(&program, &arguments);
    assert_refused(&finished, &["CAP_BPF"]);
    assert!(
        !mark.exists(),
        "the command ran though it could not be traced"
    );
    let plain = Command::new("touch")
        .arg(&mark)
        .uid(NOBODY)
        .stdin(Stdio::null())
        .status();
    assert!(
        plain.unwrap().success() && mark.exists(),
        "nobody could not have touched it anyway"
    );
}

#[test]
fn what_only_leakscope_starts_says_so() {
    let finished = run(&["guard"]).expect("it runs");
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(
        finished.stderr.contains("leakscope starts this itself"),
        "{finished:?}"
    );
}
