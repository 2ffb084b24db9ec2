//! Processes in containers: roots, PID and mount namespaces of their own, with their own files at the same paths.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use leakscope_tests::{
    Container, Group, Process, Report, Tracer, debian, leave_out, prebuilt, require_kernel,
    require_victim, skip,
};

fn trace(arguments: &[&str]) -> Tracer {
    let mut all = vec!["--tier", "exact"];
    all.extend(arguments);
    Tracer::start(&all).expect("leakscope starts")
}

#[track_caller]
fn of(report: &Report, pid: u32) -> &Process {
    report
        .processes
        .iter()
        .find(|process| process.pid == pid)
        .expect("the process in the report")
}

/// The file of a process's allocator, its path as it is seen inside.
#[track_caller]
fn library(process: &Process) -> &str {
    let allocator = process.allocators.first().expect("an allocator");
    allocator.split_once(' ').expect("its file").1
}

/// Two containers with other files at the same paths.
fn in_containers(group: Option<&Group>) {
    let basic = require_victim!("basic");
    let musl = require_victim!("basic-musl");
    if !Container::can_be_made() {
        leave_out("no process can be given a root of its own here");
        return;
    }
    let mut containers = [
        Container::of_victim(&basic).unwrap(),
        Container::of_victim(&musl).unwrap(),
        Container::of_victim(&basic).unwrap(),
    ];
    let pids: Vec<String> = containers.iter().map(|one| one.pid().to_string()).collect();
    let mut tracer = match group {
        Some(group) => {
            for container in &containers {
                group.take(container.pid(), true).unwrap();
            }
            trace(&["--cgroup", group.path().to_str().unwrap()])
        }
        None => trace(&["-p", &pids.join(",")]),
    };
    for container in &containers {
        tracer.wait_until_attached(container.pid()).unwrap();
    }
    let truths: Vec<_> = containers.iter_mut().map(|one| one.go().unwrap()).collect();
    let report = tracer.stop().unwrap();
    assert_eq!(report.processes.len(), 3, "{:?}", report.processes);
    let mut libraries = Vec::new();
    for (container, truths) in containers.iter().zip(&truths) {
        let differences = report.differences(truths, |report, truth| {
            report.called_by(container.pid(), &truth.function)
        });
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        let path = library(of(&report, container.pid()));
        let inside = container.outside(path);
        libraries.push((path, fs::metadata(&inside).unwrap().ino()));
        for site in report
            .sites
            .iter()
            .filter(|site| site.pid == container.pid())
        {
            // Debian's musl has no call frame information: there its own first frame is the last that is seen.
            assert!(
                site.stack_complete || path.contains("musl") && site.contains("main"),
                "{site:?}"
            );
            let caller = site.frames.get(1).unwrap();
            assert_eq!(caller.module.as_deref(), Some("/program"), "{site:?}");
        }
    }
    let [(first, one), (_, _), (third, other)] = libraries[..] else {
        panic!("{libraries:?}");
    };
    assert_eq!(first, third);
    assert_ne!(one, other);
}

#[test]
fn containers_by_process_id() {
    let _alone = require_kernel!();
    in_containers(None);
}

#[test]
fn containers_by_control_group() {
    let _alone = require_kernel!();
    let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|mount| Path::new(mount).join("cgroup.procs").exists());
    match mount.and_then(|mount| Group::make(Path::new(mount))) {
        Some(group) => in_containers(Some(&group)),
        None => leave_out("no control group can be made"),
    }
}

/// Keeps 2,000 strings, as it says itself; `@` is where it does so.
const PERL: &str = r#"
$| = 1; my @kept;
print "ready $$\n"; <STDIN>;
for my $number (1 .. 2000) { push @kept, "x" x (3000 + $number % 2); }
print "{\"function\":\"perl\",\"bytes\":6000000,\"objects\":2000}\ndone\n"; <STDIN>;
"#;

#[test]
fn a_program_of_a_debian_made_with_debootstrap() {
    let _alone = require_kernel!();
    if prebuilt() {
        leave_out("there is no Debian beside the victims");
        return;
    }
    let Some(root) = debian() else {
        skip(
            "no Debian in target/debian: `debootstrap --variant=minbase bookworm target/debian`, or name one with LEAKSCOPE_DEBIAN",
        );
        return;
    };
    if !Container::can_be_made() {
        leave_out("no process can be given a root of its own here");
        return;
    }
    let script = PERL.replace('\n', " ");
    let mut container =
        Container::in_root(&root, &format!("exec /usr/bin/perl -e '{script}'")).unwrap();
    // By its name as the kernel knows it: the selection sees into every namespace.
    let arguments = ["--tier", "exact", "--comm", "perl"];
    let mut tracer = Tracer::start(&arguments).expect("leakscope starts");
    tracer.wait_until_attached(container.pid()).unwrap();
    let truths = container.go().unwrap();
    let report = tracer.stop().unwrap();
    let truth = truths.first().unwrap();
    let process = of(&report, container.pid());
    assert_eq!(
        fs::metadata(container.outside(library(process)))
            .unwrap()
            .dev(),
        fs::metadata(&root).unwrap().dev()
    );
    let strings: Vec<_> = report
        .sites
        .iter()
        .filter(|site| site.pid == container.pid() && site.inuse_objects >= 1000)
        .collect();
    let [site] = strings[..] else {
        panic!("{strings:?}");
    };
    // A string takes a little more than its characters, and no block beside it.
    assert!(site.inuse_objects.abs_diff(truth.objects) <= 1, "{site:?}");
    let each = site.inuse_bytes / site.inuse_objects;
    assert!((3000..3100).contains(&each), "{site:?}");
    assert!(site.stack_complete, "{site:?}");
    let perl = site
        .frames
        .iter()
        .filter(|frame| frame.module.as_deref() == Some("/usr/bin/perl"));
    assert!(perl.count() > 3, "{site:?}");
}
