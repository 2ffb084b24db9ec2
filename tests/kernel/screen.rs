//! The live screen in a real terminal, on real processes: what its user sees, and that the terminal is given back.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use leakscope_tests::{
    Daemon, Terminal, answers, breakpoints, leakscope, leave_out, require_kernel, require_victim,
};

/// `demo`, which leaks until its standard input ends. Killed when dropped.
struct Demo(Child);

impl Demo {
    fn start(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().expect("the victim starts"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether there is no tmux, which the machines of `cargo xtask test vm` need not have; says so.
fn no_terminal() -> bool {
    let missing = !answers("tmux", "-V");
    if missing {
        leave_out("tmux is not installed (Debian: tmux)");
    }
    missing
}

/// Starts leakscope in a terminal. What is left of its modes is asked of the shell afterwards.
fn open(terminal: &Terminal, arguments: &str) {
    let program = leakscope().unwrap();
    terminal
        .line(&format!("stty -g > before; {} {arguments}; echo ended with $?; stty -g | cmp before - && echo modes 'as before'", program.display()))
        .unwrap();
}

/// The terminal is as it was: the shell's screen, its cursor, its modes.
#[track_caller]
fn assert_given_back(terminal: &Terminal, status: &str) {
    let screen = terminal.wait_for("modes as before").unwrap();
    assert!(screen.contains(&format!("ended with {status}")), "{screen}");
    assert!(!screen.contains("leakscope top:"), "{screen}");
    assert!(!screen.contains("panicked"), "{screen}");
    let state = terminal
        .state("#{alternate_on} #{cursor_flag} #{mouse_any_flag}")
        .unwrap();
    assert_eq!(state, "0 1 0", "{screen}");
}

#[test]
fn a_trace_is_looked_through_and_the_terminal_given_back() {
    let _turn = require_kernel!();
    let demo = Demo::start(&require_victim!("demo"));
    if no_terminal() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let terminal = Terminal::open(100, 30).unwrap();
    terminal
        .line(&format!("cd {}", folder.path().display()))
        .unwrap();
    open(&terminal, &format!("top -p {} --tier exact", demo.pid()));
    // One process: its sites are shown at once, and a list of one row is a step back.
    terminal.wait_for("ALLOCATED IN").unwrap();
    terminal.keys(&["Escape"]).unwrap();
    terminal.wait_for("OVER TIME").unwrap();
    terminal.keys(&["Enter"]).unwrap();
    terminal.wait_for("> warming").unwrap();
    terminal.wait_for("remember_session (demo.c:").unwrap();
    terminal.keys(&["/"]).unwrap();
    terminal.line("remember").unwrap();
    let screen = terminal.wait_for("/remember ").unwrap();
    assert!(screen.contains("1/1"), "{screen}");
    assert!(!screen.contains("cached_page"), "{screen}");
    terminal.keys(&["Enter"]).unwrap();
    let screen = terminal.wait_for("Stack").unwrap();
    assert!(screen.contains("  handle_request ("), "{screen}");
    terminal.keys(&["t"]).unwrap();
    terminal.wait_for("WHAT IT CALLS BELOW").unwrap();
    terminal.keys(&["?"]).unwrap();
    terminal.wait_for("any key goes back").unwrap();
    terminal.keys(&["x", "m", "b", "d"]).unwrap();
    terminal.wait_for("since the snapshot of").unwrap();
    terminal.keys(&["q"]).unwrap();
    assert_given_back(&terminal, "0");
    assert!(breakpoints(demo.pid()).unwrap().is_empty());
}

#[test]
fn a_daemon_is_watched_and_its_end_is_said() {
    let _turn = require_kernel!();
    let demo = Demo::start(&require_victim!("demo"));
    if no_terminal() {
        return;
    }
    let daemon = Daemon::start(&["-p", &demo.pid().to_string()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let terminal = Terminal::open(60, 20).unwrap();
    terminal
        .line(&format!("cd {}", folder.path().display()))
        .unwrap();
    open(
        &terminal,
        &format!("top --socket {}", daemon.socket().display()),
    );
    terminal.wait_for("> ").unwrap();
    terminal.wait_for("demo").unwrap();
    drop(daemon);
    terminal.wait_for("no daemon answers").unwrap();
    // What was seen stays.
    assert!(terminal.screen().unwrap().contains("demo"));
    terminal.keys(&["q"]).unwrap();
    assert_given_back(&terminal, "0");
}

#[test]
fn signals_and_a_pause_by_the_shell_give_the_terminal_back() {
    let _turn = require_kernel!();
    let demo = Demo::start(&require_victim!("demo"));
    if no_terminal() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let terminal = Terminal::open(80, 24).unwrap();
    terminal
        .line(&format!("cd {}; set -m", folder.path().display()))
        .unwrap();
    let arguments = format!("top -p {}", demo.pid());
    for signal in ["TERM", "INT", "HUP"] {
        terminal.line("clear").unwrap();
        open(&terminal, &arguments);
        terminal.wait_for("> ").unwrap();
        terminal.wait_for("leakscope top: pid").unwrap();
        let pid = terminal.state("#{pane_pid}").unwrap();
        let mut kill = Command::new("pkill");
        let sent = kill.args([&format!("-{signal}"), "-P", &pid, "leakscope"]);
        assert!(sent.status().unwrap().success());
        assert_given_back(&terminal, "0");
    }
    terminal.line("clear").unwrap();
    terminal
        .line(&format!("{} {arguments}", leakscope().unwrap().display()))
        .unwrap();
    terminal.wait_for("leakscope top: pid").unwrap();
    terminal.keys(&["C-z"]).unwrap();
    terminal.wait_for("ready$").unwrap();
    assert_eq!(terminal.state("#{alternate_on}").unwrap(), "0");
    terminal.line("fg").unwrap();
    terminal.wait_for("leakscope top: pid").unwrap();
    // It draws everything again without asking the terminal anything: keys are read by another thread.
    terminal.keys(&["C-l", "?"]).unwrap();
    terminal.wait_for("any key goes back").unwrap();
    terminal.keys(&["C-c"]).unwrap();
    terminal.wait_for("ready$").unwrap();
    assert_eq!(terminal.state("#{alternate_on}").unwrap(), "0");
}

#[test]
fn what_cannot_be_traced_is_said_before_a_screen_is_opened() {
    let _turn = require_kernel!();
    if no_terminal() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let terminal = Terminal::open(80, 24).unwrap();
    terminal
        .line(&format!("cd {}", folder.path().display()))
        .unwrap();
    open(&terminal, "top -p 4194303");
    let screen = terminal.wait_for("ended with 1").unwrap();
    assert!(screen.contains("4194303"), "{screen}");
    assert_given_back(&terminal, "1");
    terminal.line("clear; export TERM=dumb").unwrap();
    open(&terminal, "top -p 1");
    // Where a line is broken depends on what stands before it.
    let screen = terminal.wait_for("ended with 1").unwrap().replace('\n', "");
    assert!(screen.contains("TERM is dumb"), "{screen}");
}
