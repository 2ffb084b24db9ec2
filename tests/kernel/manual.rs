//! What the manual tells people to type works: each block for a shell is run as it stands, beside programs in C++, Python and Go and
//! a daemon. Only times, addresses and paths of this machine are others. What installs, enables or removes something (`console`) is
//! run by `cargo xtask dist --try`; that leakscope takes its commands is a unit test.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use leakscope_tests::{Daemon, leakscope, require_kernel, require_victim, run_command, victim};

/// A program that is killed when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("a program of the tests starts"),
        )
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The blocks of a file that are run.
fn blocks(text: &str) -> Vec<String> {
    text.split("\n```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
        .map(str::to_owned)
        .collect()
}

/// The same with two seconds in place of what people wait for.
fn hurried(block: &str) -> String {
    let mut words = Vec::new();
    let mut is_time = false;
    for word in block.split(' ') {
        let (first, rest) = word.split_once('\n').unwrap_or((word, ""));
        words.push(match (is_time, rest) {
            (true, "") => "2s".to_owned(),
            (true, rest) => format!("2s\n{rest}"),
            (false, _) => word.to_owned(),
        });
        is_time = if rest.is_empty() {
            first == "--for"
        } else {
            rest == "--for"
        };
    }
    words.join(" ")
}

/// What a block is run as: daemons answer before they are asked, and end with it.
fn prepared(block: &str, socket: &str) -> String {
    const PORT: &str = "17117";
    let asked = format!("leakscope dump --socket {socket}");
    let ready = format!(
        "&\ncurl --silent --output /dev/null --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:{PORT}/metrics\n"
    );
    let mut script = hurried(block)
        .replace("/run/leakscope/leakscope.sock", socket)
        .replace("leakscope dump", &asked)
        .replace(&format!("{asked} --url"), "leakscope dump --url")
        .replace(
            "leakscope snapshot",
            &format!("leakscope snapshot --socket {socket}"),
        )
        .replace("https://debuginfod.elfutils.org/", "http://127.0.0.1:9/")
        .replace("192.0.2.7", "127.0.0.1")
        .replace("/etc/leakscope.token", "leakscope.token")
        .replace("7117", PORT)
        .replace("&\n", &ready);
    if script.contains(&ready) {
        script.push_str("\nkill $!\nwait $! || true\n");
    }
    script
}

/// Runs the blocks of the manual that `chosen` chooses; returns how many there were.
fn run_blocks(folder: &Path, chosen: impl Fn(&str) -> bool) -> usize {
    let program = victim("sessions").expect("the victim");
    let sessions = Running::start(Command::new(program));
    let mut python = Command::new("/usr/bin/python3");
    python.args([
        "-c",
        "import time\nkept = []\nwhile True:\n    kept.append(bytearray(2000)); time.sleep(0.01)",
    ]);
    let python = Running::start(python);
    let hoard = Running::start(Command::new(victim("hoard").expect("the victim")));
    let daemon = Daemon::start(&["-p", &sessions.pid()]).unwrap();
    let socket = daemon.socket();
    // The daemon here is none of the machine's.
    let socket = socket.to_str().expect("a path of the test");
    let programs = folder.join("bin");
    fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(leakscope().unwrap(), programs.join("leakscope")).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let group = groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .max_by_key(|group| group.len())
        .unwrap();

    let mut ran = 0;
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tracer/docs");
    for entry in fs::read_dir(manual).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|kind| kind != "md") {
            continue;
        }
        for block in blocks(&fs::read_to_string(&file).unwrap()) {
            if !chosen(&block) {
                continue;
            }
            let script = prepared(&block, socket);
            let mut shell = Command::new("sh");
            shell
                .args(["-e", "-c", &script])
                .current_dir(folder)
                .env("PATH", &path)
                .env("CGROUP", group)
                .env("PID", sessions.pid())
                .env("PYTHON", python.pid())
                .env("GO", hoard.pid());
            let finished = run_command(shell).unwrap();
            assert_eq!(
                finished.code(),
                0,
                "{}: {script}\n{finished:?}",
                file.display()
            );
            ran += 1;
        }
    }
    ran
}

/// Other processes than the test's own would be traced.
fn wants_the_machine(block: &str) -> bool {
    block.contains("--all") || block.contains("$CGROUP")
}

#[test]
fn what_the_manual_tells_to_type_works() {
    let _turn = require_kernel!();
    let _ = (require_victim!("sessions"), require_victim!("hoard"));
    let folder = tempfile::tempdir().unwrap();
    let ran = run_blocks(folder.path(), |block| !wants_the_machine(block));
    assert!(ran > 15, "only {ran} blocks were found");
    for written in ["leaks.svg", "leaks.html", "leaks.pb.gz", "heap.pb.gz"] {
        let size = fs::metadata(folder.path().join(written)).unwrap().len();
        assert!(size > 0, "{written}");
    }
    // The chapter on Go says that this is where it is found.
    let go = fs::read_to_string(folder.path().join("go.json")).unwrap();
    assert!(go.contains("\"main.remember\""), "{go}");
    let metrics = fs::read_to_string(folder.path().join("metrics.txt")).unwrap();
    for series in ["leakscope_process_leaking", "leakscope_overhead_ratio"] {
        assert!(metrics.contains(series), "{series}: {metrics}");
    }
}

#[test]
fn what_the_manual_tells_to_type_for_a_whole_machine_works() {
    let _alone = require_kernel!();
    let _ = (require_victim!("sessions"), require_victim!("hoard"));
    let folder = tempfile::tempdir().unwrap();
    let ran = run_blocks(folder.path(), wants_the_machine);
    assert!(ran > 4, "only {ran} blocks were found");
}

#[test]
fn only_times_are_shortened() {
    assert_eq!(
        hurried("leakscope trace --for 2m\nleakscope trace --for 1m -- ls"),
        "leakscope trace --for 2s\nleakscope trace --for 2s -- ls"
    );
}
