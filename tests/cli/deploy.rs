//! The files that run leakscope as a service fit the program: their commands are ones that it takes, and what keeps it small is
//! the same in both.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_tests::{answers, leakscope, leave_out, run, run_command};

fn deploy(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tracer/deploy")
        .join(name);
    fs::read_to_string(path).expect("a file of the folder `deploy`")
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
    deploy("daemonset.yaml")
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
    let manifest = deploy("daemonset.yaml");
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
