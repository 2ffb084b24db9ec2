//! Python functions in stacks, on every CPython that there is: as the interpreter itself says.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{
    collections::HashMap,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use leakscope_tests::{
    Report, Site, Tracer, Truth, Victim, leave_out, prebuilt, python, pythons, require_kernel, skip,
};
use serde_json::Value;

/// The Python functions of a stack with their lines.
fn functions(site: &Site) -> Vec<String> {
    let python = site.frames.iter().filter(|frame| frame.kind == "python");
    python
        .map(|frame| {
            format!(
                "{}:{}",
                frame.function.as_deref().unwrap_or("?"),
                frame.line.unwrap_or_default()
            )
        })
        .collect()
}

/// The sites at which blocks of one size were allocated.
fn of_size(report: &Report, size: u64) -> Vec<&Site> {
    report
        .sites
        .iter()
        .filter(|site| {
            site.alloc_objects > 0 && site.alloc_bytes == size.saturating_mul(site.alloc_objects)
        })
        .collect()
}

/// Whether these are the functions. Code that is gone may have no names, or that of the code that took its place.
fn is_same_stack(found: &[String], expected: &[String], truth: &Truth) -> bool {
    let is_gone = |name: &String, known: &String| {
        truth.function == "gone"
            && (name == "?:0" || name.starts_with("made"))
            && (known.starts_with("made") || known == "<module>:5")
    };
    found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(name, known)| name == known || is_gone(name, known))
}

/// What a truth says that the report does not.
fn difference(report: &Report, truth: &Truth) -> Option<String> {
    let size = truth.bytes.checked_div(truth.objects)?;
    let sites = of_size(report, size);
    let objects: u64 = sites.iter().map(|site| site.inuse_objects).sum();
    let found: Vec<_> = sites.iter().map(|site| functions(site)).collect();
    let expected = truth.stack.clone().unwrap_or_default();
    let is_same = objects == truth.objects
        && sites.iter().all(|site| site.stack_complete)
        && found
            .iter()
            .all(|stack| is_same_stack(stack, &expected, truth));
    (!is_same).then(|| {
        format!(
            "{} ({size} bytes, {objects} of {}): {found:?}, not {expected:?}",
            truth.function, truth.objects
        )
    })
}

#[test]
fn functions_and_lines_are_those_of_the_interpreter() {
    let _alone = require_kernel!();
    let all = pythons();
    if all.is_empty() {
        skip("no CPython");
        return;
    }
    let mut wrong = Vec::new();
    for python in all {
        let mut running = Victim::start_script(&python, "pyframes.py").expect("started");
        let tracer = Tracer::attach(&running, &[]).expect("attached");
        let truths = running.go().expect("the victim's truth");
        let report = tracer.stop().expect("the report");
        assert!(running.quit().expect("ends").success());
        assert!(truths.len() > 40, "{}", python.display());
        let differences = truths.iter().filter_map(|truth| difference(&report, truth));
        wrong.extend(differences.map(|what| format!("{}: {what}", python.display())));
        for loss in ["python_thread_unknown", "python_frame_unreadable"] {
            let lost = report.losses.get(loss).copied();
            assert_eq!(lost, Some(0), "{}: {loss}", python.display());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Scripts that have programs.
const LEAKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/pyleaks.py");
const THREADS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/pythreads.py");

/// A program of a script under way. Ends with its standard input.
struct Program(Child);

impl Program {
    fn start(python: &Path, script: &str, name: &str) -> Self {
        let mut command = Command::new(python);
        command
            .args([script, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        Self(command.spawn().expect("started"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that leak, program by program, as the script says; none of those that do not.
fn lines_that_leak(python: &Path, script: &str) -> HashMap<String, Vec<u32>> {
    let listed = Command::new(python).args([script, "list"]).output();
    let listed = String::from_utf8(listed.expect("lists").stdout).expect("text");
    let programs = listed.lines().filter_map(|line| {
        let mut parts = line.split('\t');
        let (name, _, lines) = (parts.next()?, parts.next()?, parts.next()?);
        let lines = lines.split(',').filter_map(|line| line.parse().ok());
        Some((name.to_owned(), lines.collect()))
    });
    programs.collect()
}

/// Programs, and a type that each grows by.
const PROGRAMS: [(&str, Option<&str>); 2] = [("lists", Some("Metric")), ("bounded_cache", None)];

/// The same of threads that live shortly, and of a pool of threads.
const WITH_THREADS: [(&str, Option<&str>); 3] = [
    ("requests", Some("dict")),
    ("pool", Some("Visit")),
    ("last_requests", None),
];

/// How often they are traced: which objects are seen as they are made is chance, on a busy machine the more.
const TRACES: usize = 4;

/// In the default tier arenas were sites, at whichever line needed one.
#[test]
fn objects_that_pile_up_have_their_line_and_type_and_a_full_cache_is_not_accused() {
    let _turn = require_kernel!();
    judge(LEAKS, &PROGRAMS);
}

/// A thread that was made while a word was watched was not seen to write to it: what it made was another line's. Of a pool that uses little of the processor,
/// nothing was learnt in time; and where a hundred are dropped for each object that is kept.
#[test]
fn what_threads_that_live_shortly_keep_was_said_to_be_of_other_lines() {
    let _turn = require_kernel!();
    judge(THREADS, &WITH_THREADS);
}

fn judge(script: &str, programs: &[(&str, Option<&str>)]) {
    if prebuilt() {
        leave_out(
            "how many objects are seen as they are made says nothing where the machine is emulated",
        );
        return;
    }
    let Some(python) = python().ok().map(|found| found.executable) else {
        skip("no CPython");
        return;
    };
    let lines = lines_that_leak(&python, script);
    let running: Vec<Program> = programs
        .iter()
        .map(|(name, _)| Program::start(&python, script, name))
        .collect();
    // Caches are filled by then.
    sleep(Duration::from_secs(5));
    let mut seen = Vec::new();
    for _ in 0..TRACES {
        seen = missing(programs, &running, &lines);
        if seen.is_empty() {
            break;
        }
    }
    assert!(seen.is_empty(), "{}", seen.join("\n"));
}

/// Traces the programs; says which have no leaking site of the right type at a line that leaks.
///
/// # Panics
/// When a healthy program is accused, or a line that is none of those.
fn missing(
    programs: &[(&str, Option<&str>)],
    running: &[Program],
    lines: &HashMap<String, Vec<u32>>,
) -> Vec<String> {
    let pids: Vec<String> = running
        .iter()
        .map(|program| program.0.id().to_string())
        .collect();
    let mut tracer = Tracer::start(&["--for", "60s", "-p", &pids.join(",")]).expect("started");
    tracer.end().expect("ends");
    let text = std::fs::read(tracer.report_path()).expect("a report");
    let report: Value = serde_json::from_slice(&text).expect("JSON");
    let sites = report.get("sites").and_then(Value::as_array).unwrap();
    let of = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_default();
    let list = |value: &Value, name: &str| of(value, name).as_array().cloned().unwrap_or_default();
    let mut missing = Vec::new();
    for ((name, grows), program) in programs.iter().zip(running) {
        let leaking = sites
            .iter()
            .filter(|site| of(site, "pid") == program.0.id() && of(site, "verdict") == "leaking");
        let Some(grows) = grows else {
            let accused: Vec<&Value> = leaking.collect();
            assert!(accused.is_empty(), "{name}: {accused:?}");
            continue;
        };
        let known = lines.get(*name).cloned().unwrap_or_default();
        let mut is_there = false;
        for site in leaking {
            let frames = list(site, "frames");
            let line = frames.iter().find(|frame| of(frame, "kind") == "python");
            let line = line.and_then(|frame| of(frame, "line").as_u64());
            let is_known = known.iter().any(|known| Some(u64::from(*known)) == line);
            let is_of_objects = of(site, "allocator") == "pymalloc";
            assert!(
                is_known || !is_of_objects,
                "{name}: not {known:?}: {site:?}"
            );
            let types = list(site, "types");
            is_there |= is_known
                && is_of_objects
                && types.iter().any(|of_type| of(of_type, "name") == *grows);
        }
        if !is_there {
            missing.push(format!("{name}: no {grows} at {known:?}: {sites:?}"));
        }
    }
    missing
}
