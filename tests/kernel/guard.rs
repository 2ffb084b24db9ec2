//! A leakscope that does not come back slows nobody: who owns its breakpoints takes them away, and readers end with whoever asks them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use leakscope_tests::{
    PATIENCE, Tracer, breakpoints, children, require_kernel, require_victim, scripted, send,
    wait_for_breakpoints,
};

/// A program that allocates all the time. Killed when dropped.
struct Target(Child);

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Target {
    fn start(program: &Path) -> Self {
        let started = Command::new(program)
            .arg("now")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(started.expect("started"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until a window is open.
    fn wait_for_window(&self) {
        let begun = Instant::now();
        while breakpoints(self.pid()).unwrap().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "no window");
        }
    }

    fn is_free(&self) {
        wait_for_breakpoints(self.pid(), false, || Ok(())).expect("no breakpoint stays");
    }
}

#[test]
fn a_leakscope_that_is_stopped_in_a_window_leaves_no_breakpoint() {
    let _turn = require_kernel!();
    let target = Target::start(&require_victim!("endless"));
    let pid = target.pid().to_string();
    let mut tracer =
        Tracer::start(&["--tier", "sampled", "--budget", "5%", "-p", &pid]).expect("started");
    tracer.wait_until_following().expect("following");
    for _ in 0..10 {
        target.wait_for_window();
        tracer.signal("STOP").unwrap();
        target.is_free();
        tracer.signal("CONT").unwrap();
    }
    tracer.stop().expect("a report");
}

#[test]
fn a_leakscope_that_is_killed_in_a_window_leaves_no_breakpoint() {
    let _turn = require_kernel!();
    let target = Target::start(&require_victim!("endless"));
    let pid = target.pid().to_string();
    for number in 0..10 {
        let mut tracer =
            Tracer::start(&["--tier", "sampled", "--budget", "5%", "-p", &pid]).expect("started");
        tracer.wait_until_following().expect("following");
        target.wait_for_window();
        if number % 2 == 1 {
            // At its end, while breakpoints are being taken away.
            let first = breakpoints(target.pid()).unwrap();
            while breakpoints(target.pid()).unwrap() == first {}
        }
        tracer.kill().expect("killed");
        target.is_free();
    }
}

/// How a leakscope is killed: after some while, whatever it does then, or where a window begins or ends.
#[derive(Clone, Copy, Debug)]
enum Kill {
    AtRandom,
    InWindow,
    AtItsEnd,
}

/// Half of them at random, the others where windows begin and end.
#[test]
#[ignore = "takes ten minutes"]
#[expect(clippy::print_stderr, reason = "what it is asked for by hand")]
fn three_hundred_kills_leave_no_breakpoint() {
    const KILLS: u32 = 300;
    let _turn = require_kernel!();
    let target = Target::start(&require_victim!("endless"));
    let pid = target.pid().to_string();
    let tiers: [&[&str]; 4] = [
        &["--tier", "sampled", "--budget", "5%"],
        &["--tier", "exact"],
        &["--budget", "10%"],
        &["--tier", "sampled", "--budget", "10%"],
    ];
    // The same numbers each time (Knuth's MMIX generator); what the machine does is not.
    let mut state = 26_u64;
    let mut below = |most: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    let (mut caught, mut longest) = (0, Duration::ZERO);
    for (_, tier) in (0..KILLS).zip(tiers.iter().cycle()) {
        let kill = match below(4) {
            0 => Kill::InWindow,
            1 => Kill::AtItsEnd,
            _ => Kill::AtRandom,
        };
        let arguments = [*tier, &["-p", &pid]].concat();
        let tracer = Tracer::start(&arguments).expect("started");
        match kill {
            Kill::AtRandom => sleep(Duration::from_millis(20 + below(1500))),
            Kill::InWindow | Kill::AtItsEnd => {
                target.wait_for_window();
                let first = breakpoints(target.pid()).unwrap().len();
                let begun = Instant::now();
                while matches!(kill, Kill::AtItsEnd)
                    && begun.elapsed() < Duration::from_secs(2)
                    && breakpoints(target.pid()).unwrap().len() >= first
                {}
            }
        }
        caught += u32::from(!breakpoints(target.pid()).unwrap().is_empty());
        let begun = Instant::now();
        tracer.kill().expect("killed");
        target.is_free();
        longest = longest.max(begun.elapsed());
        // What was under way when it was killed is taken away, too.
        sleep(Duration::from_millis(100));
        target.is_free();
    }
    // Most of them while there was something to take away.
    assert!(caught > KILLS / 3, "{caught}");
    eprintln!(
        "{KILLS} kills, {caught} of them with breakpoints set; the last one was gone after {longest:?} at most"
    );
}

#[test]
fn a_leakscope_that_is_stopped_while_it_sees_every_call_left_its_breakpoints() {
    let _turn = require_kernel!();
    let target = Target::start(&require_victim!("endless"));
    let pid = target.pid().to_string();
    let mut tracer = Tracer::start(&["--tier", "exact", "-p", &pid]).expect("started");
    tracer.wait_until_attached(target.pid()).expect("attached");
    tracer.signal("STOP").unwrap();
    target.is_free();
    tracer.signal("CONT").unwrap();
    // It sees that before it is asked for a report.
    sleep(Duration::from_secs(3));
    let report = tracer.stop().expect("a report");
    let process = report.processes.first().expect("a process");
    let note = process.exit_note.as_deref().unwrap_or_default();
    assert!(note.contains("leakscope was stopped"), "{note}");
    assert!(report.sites.iter().any(|site| site.inuse_bytes > 0));
}

/// A control group that can be frozen. Removed when dropped.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Option<Self> {
        let name = format!("leakscope-guard-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/freezer");
        let parent = if first.is_dir() {
            first
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let folder = parent.join(name);
        fs::create_dir(&folder).ok()?;
        Some(Self(folder))
    }

    fn freeze(&self, is_frozen: bool) {
        let (file, word) = match (self.0.join("freezer.state").exists(), is_frozen) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        fs::write(self.0.join(file), word).expect("it may be frozen");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.freeze(false);
        // What was in it ends, or the test has failed anyhow.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                break;
            }
            sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_leakscope_whose_control_group_was_frozen_left_its_breakpoints() {
    let _turn = require_kernel!();
    let target = Target::start(&require_victim!("endless"));
    let Some(freezer) = Freezer::new() else {
        leakscope_tests::skip("no control group can be made");
        return;
    };
    let script = format!(
        "echo $$ > '{}' && exec \"$@\"",
        freezer.0.join("cgroup.procs").display()
    );
    let pid = target.pid().to_string();
    let mut command = scripted(
        &script,
        &["trace", "--tier", "sampled", "--budget", "5%", "-p", &pid],
    )
    .expect("leakscope");
    let started = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let tracer = Target(started.expect("started"));
    for _ in 0..3 {
        target.wait_for_window();
        freezer.freeze(true);
        target.is_free();
        freezer.freeze(false);
    }
    send("INT", tracer.pid()).expect("asked to stop");
    target.is_free();
}

#[test]
fn a_reader_that_is_stopped_outlived_leakscope() {
    let _turn = require_kernel!();
    let target = Target::start(&require_victim!("endless"));
    let pid = target.pid().to_string();
    for is_killed in [true, false] {
        let mut tracer = Tracer::start(&["--tier", "exact", "-p", &pid]).expect("started");
        tracer.wait_until_attached(target.pid()).expect("attached");
        let is_reader = |pid: &u32| {
            // The kernel keeps 15 bytes of a name.
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.starts_with("leakscope-reade"))
        };
        let all = children(tracer.pid()).expect("its children");
        let readers: Vec<u32> = all.into_iter().filter(is_reader).collect();
        assert!(!readers.is_empty());
        for reader in &readers {
            send("STOP", *reader).expect("stopped");
        }
        if is_killed {
            tracer.kill().expect("killed");
        } else {
            tracer.stop().expect("a report");
        }
        let begun = Instant::now();
        while readers.iter().any(is_reader) {
            assert!(begun.elapsed() < PATIENCE, "{readers:?}");
            sleep(Duration::from_millis(10));
        }
    }
}
