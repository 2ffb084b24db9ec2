//! The files that run leakscope as a service fit the program: their commands are ones that it takes, and what keeps it small is
//! the same in both.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_tests::{
    Victim, answers, done, leakscope, leave_out, require_kernel, require_victim, run, run_command,
};

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tracer/deploy")
        .join(name)
}

fn deploy(name: &str) -> String {
    fs::read_to_string(place(name)).expect("a file of the folder `deploy`")
}

/// The words of the command in the unit.
fn unit_command() -> Vec<String> {
    let unit = deploy("leakscope.service");
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/leakscope "));
    // Without the options of the file that the packages install, which are none there.
    let options = deploy("leakscope.default");
    assert!(options.lines().any(|line| line == "LEAKSCOPE_OPTIONS=\"\""));
    let words = line.unwrap().strip_suffix(" $LEAKSCOPE_OPTIONS").unwrap();
    words.split(' ').map(str::to_owned).collect()
}

/// The words of the command in the manifest.
fn manifest_command() -> Vec<String> {
    deploy("kubernetes/daemonset.yaml")
        .lines()
        .skip_while(|line| line.trim() != "command:")
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- "))
        .skip(1)
        .map(str::to_owned)
        .collect()
}

/// The command with a mistake at its end is refused for that mistake alone: the rest is understood.
#[test]
fn the_commands_are_taken() {
    for mut command in [unit_command(), manifest_command()] {
        assert_eq!(command.first().map(String::as_str), Some("daemon"));
        command.push("--no-such-option".to_owned());
        let finished = run(&command).unwrap();
        assert_eq!(finished.code(), 2, "{command:?}: {finished:?}");
        assert!(
            finished.stderr.contains("'--no-such-option'"),
            "{command:?}: {finished:?}"
        );
    }
}

#[test]
fn both_ask_for_the_same_capabilities() {
    let unit = deploy("leakscope.service");
    let of_unit: BTreeSet<&str> = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap()
        .split(' ')
        .filter_map(|name| name.strip_prefix("CAP_"))
        .collect();
    let manifest = deploy("kubernetes/daemonset.yaml");
    let of_manifest: BTreeSet<&str> = manifest
        .lines()
        .find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'))
        .unwrap()
        .split(", ")
        .collect();
    assert_eq!(of_unit, of_manifest);
    assert!(of_unit.contains("BPF"));
}

#[test]
fn systemd_understands_the_unit() {
    if !answers("systemd-analyze", "--version") {
        leave_out("systemd-analyze is not installed (Debian: systemd)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("leakscope.service");
    let binary = leakscope().unwrap();
    let text = deploy("leakscope.service").replace("/usr/bin/leakscope", binary.to_str().unwrap());
    fs::write(&unit, text).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(&unit);
    let finished = run_command(command).unwrap();
    // It also complains about other units of the machine.
    let ours: Vec<&str> = finished
        .stderr
        .lines()
        .filter(|line| line.contains("leakscope"))
        .collect();
    assert_eq!(ours, Vec::<&str>::new(), "{finished:?}");
}

#[test]
fn the_image_is_of_this_version() {
    let wanted = format!("newTag: {}}}", env!("CARGO_PKG_VERSION"));
    let base = deploy("kubernetes/kustomization.yaml");
    assert!(base.contains(&wanted), "{wanted}: {base}");
}

#[test]
fn kustomize_puts_an_overlay_together() {
    if !answers("kubectl", "--help") {
        leave_out("kubectl is not installed: manifests were not put together");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(place("kubernetes")).arg(folder.path());
    done(run_command(copy).unwrap()).unwrap();
    fs::write(
        folder.path().join("kustomization.yaml"),
        "resources: [kubernetes]\nimages:\n  - {name: leakscope, newName: registry.example/leakscope}\n\
         components: [kubernetes/monitored, kubernetes/confined]\n",
    )
    .unwrap();
    let mut kustomize = Command::new("kubectl");
    kustomize.arg("kustomize").arg(folder.path());
    let whole = done(run_command(kustomize).unwrap()).unwrap();
    let image = format!(
        "image: registry.example/leakscope:{}",
        env!("CARGO_PKG_VERSION")
    );
    for part in [
        &image,
        "kind: DaemonSet",
        "kind: PodMonitor",
        "seccompProfile:",
        "appArmorProfile:",
        "path: /var/cache/leakscope",
    ] {
        assert!(whole.contains(part), "{part}: {whole}");
    }
}

#[test]
fn prometheus_takes_the_rules_and_the_scrape_configuration() {
    if !answers("promtool", "--version") {
        leave_out("promtool is not installed (Debian: prometheus)");
        return;
    }
    for (arguments, file) in [
        (&["check", "rules"][..], "prometheus/alerts.yaml"),
        (&["test", "rules"], "prometheus/alerts.test.yaml"),
        (
            &["check", "config", "--syntax-only"],
            "prometheus/scrape.yaml",
        ),
    ] {
        let mut promtool = Command::new("promtool");
        promtool.args(arguments).arg(place(file));
        let finished = run_command(promtool).unwrap();
        assert_eq!(finished.code(), 0, "{finished:?}");
    }
}

#[test]
fn apparmor_understands_its_profile() {
    if !answers("/usr/sbin/apparmor_parser", "--version") {
        leave_out("apparmor_parser is not installed (Debian: apparmor)");
        return;
    }
    let mut parser = Command::new("/usr/sbin/apparmor_parser");
    parser
        .args(["--skip-kernel-load", "--skip-cache"])
        .arg(place("confinement/apparmor"));
    let finished = run_command(parser).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
}

/// The sets of system calls that systemd knows, with what is in each.
fn systemd_sets() -> BTreeMap<String, Vec<String>> {
    let mut command = Command::new("systemd-analyze");
    command.args(["--no-pager", "syscall-filter"]);
    let listed = done(run_command(command).unwrap()).unwrap();
    let mut sets = BTreeMap::new();
    let mut name = String::new();
    for line in listed.lines() {
        if line.starts_with('@') {
            name = line.to_owned();
        } else if let Some(member) = line
            .strip_prefix("    ")
            .filter(|word| !word.starts_with('#'))
        {
            sets.entry(name.clone())
                .or_insert_with(Vec::new)
                .push(member.to_owned());
        }
    }
    sets
}

/// The system calls that the unit allows.
fn allowed_by_unit() -> BTreeSet<String> {
    let sets = systemd_sets();
    let unit = deploy("leakscope.service");
    let filter = unit
        .lines()
        .find_map(|line| line.strip_prefix("SystemCallFilter="))
        .unwrap();
    let mut left: Vec<String> = filter.split(' ').map(str::to_owned).collect();
    // Always allowed.
    left.push("@default".to_owned());
    let mut allowed = BTreeSet::new();
    while let Some(name) = left.pop() {
        if name.starts_with('@') {
            left.extend(sets.get(&name).into_iter().flatten().cloned());
        } else {
            allowed.insert(name);
        }
    }
    allowed
}

/// What the daemon asks of the kernel from its start to its end is what the profile of seccomp and the unit allow it.
#[test]
fn every_system_call_of_the_daemon_is_allowed() {
    let _turn = require_kernel!();
    let program = require_victim!("basic");
    if !answers("strace", "--version") || !answers("systemd-analyze", "--version") {
        leave_out("strace or systemd-analyze is not installed (Debian: strace, systemd)");
        return;
    }
    let victim = Victim::start(&program).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [calls, socket, cache] = ["calls", "socket", "cache"].map(|name| folder.path().join(name));
    let script = r#"
        strace -f -qq -o "$1" "$4" daemon -p "$5" --socket "$2" --listen 127.0.0.1:0 --unwind-cache "$3" & tracer=$!
        until curl -sf --unix-socket "$2" -o /dev/null http://localhost/healthz; do
            kill -0 $tracer || exit 1
            sleep 0.1
        done
        for path in / /metrics /debug/pprof/heap /flamegraph.svg /api/v1/report; do
            curl -sf --unix-socket "$2" -o /dev/null "http://localhost$path" || exit 1
        done
        daemon=$(cat /proc/$tracer/task/$tracer/children)
        kill -HUP $daemon
        sleep 0.3
        kill -TERM $daemon
        wait $tracer"#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]);
    shell.args([&calls, &socket, &cache]);
    shell
        .arg(leakscope().unwrap())
        .arg(victim.pid().to_string());
    let finished = run_command(shell).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");

    let profile: serde_json::Value =
        serde_json::from_str(&deploy("confinement/seccomp.json")).unwrap();
    let by_profile: BTreeSet<String> = profile
        .pointer("/syscalls/0/names")
        .and_then(|names| serde_json::from_value(names.clone()).ok())
        .unwrap();
    let by_unit = allowed_by_unit();
    let traced = fs::read_to_string(&calls).unwrap();
    let made: BTreeSet<&str> = traced
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('))
        .map(|(name, _)| name)
        // strace does not know all of the kernel's: of those the probes themselves make some (uretprobe).
        .filter(|name| !name.starts_with("syscall_") && !name.contains(['+', '-', '<']))
        // How a machine without a mounted tracefs gets one for itself. Where that is refused, it does without.
        .filter(|name| !["fsopen", "fsconfig", "fsmount"].contains(name))
        .collect();
    assert!(
        made.contains("bpf") && made.contains("epoll_wait"),
        "{made:?}"
    );
    let refused: Vec<&&str> = made
        .iter()
        .filter(|name| !by_profile.contains(**name) || !by_unit.contains(**name))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}
