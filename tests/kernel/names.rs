//! Names where they are hard to come by: stripped programs, separate debug files, processes that are gone.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use leakscope_tests::{
    ALL_SITES, Frame, Outcome, Report, Site, Tracer, Truth, Victim, by_any_frame, leakscope,
    leave_out, prebuilt, require_kernel, require_victim, run, run_command,
};
use tempfile::TempDir;

#[track_caller]
fn trace(path: &Path) -> Outcome {
    Outcome::of(path).expect("traced")
}

/// Nothing is lost and no stack is cut.
#[track_caller]
fn assert_whole(outcome: &Outcome) {
    outcome.assert_nothing_lost();
    let cut: Vec<Vec<&str>> = outcome
        .report
        .sites
        .iter()
        .filter(|site| !site.stack_complete)
        .map(Site::names)
        .collect();
    assert!(cut.is_empty(), "{cut:?}");
}

/// What survives at each place of the program itself: bytes, blocks, and the offsets of its own frames.
fn places(report: &Report, program: &Path) -> Vec<(u64, u64, Vec<u64>)> {
    let own = |frame: &&Frame| {
        !frame.inlined
            && frame
                .module
                .as_deref()
                .is_some_and(|module| Path::new(module) == program)
    };
    let mut places: Vec<_> = report
        .sites
        .iter()
        .filter(|site| site.inuse_objects > 0)
        .map(|site| {
            let offsets = site
                .frames
                .iter()
                .filter(own)
                .map(|frame| frame.offset.unwrap());
            (site.inuse_bytes, site.inuse_objects, offsets.collect())
        })
        .collect();
    places.sort();
    places
}

#[test]
fn a_stripped_program_has_the_same_places_without_names() {
    let _alone = require_kernel!();
    let path = require_victim!("basic-omit");
    let expected = places(&trace(&path).report, &path);
    assert!(
        expected.iter().all(|(.., offsets)| offsets.len() >= 2),
        "{expected:?}"
    );
    let stripped = require_victim!("basic-omit-stripped");
    let outcome = trace(&stripped);
    assert_whole(&outcome);
    assert_eq!(places(&outcome.report, &stripped), expected);
    let named: Vec<Vec<&str>> = outcome
        .report
        .sites
        .iter()
        .filter(|site| site.contains("leak_basic") || site.contains("main"))
        .map(Site::names)
        .collect();
    assert!(named.is_empty(), "it was not stripped: {named:?}");
}

#[test]
fn dynamic_symbols_of_a_stripped_program() {
    let _alone = require_kernel!();
    let outcome = trace(&require_victim!("cpp-omit-stripped"));
    outcome.assert_true(by_any_frame);
    assert_whole(&outcome);
    assert!(
        outcome
            .report
            .sites
            .iter()
            .any(|site| site.names().contains(&"operator new(unsigned long)")),
        "no demangled name"
    );
}

/// A stripped copy of a victim and its debug file, both in a folder of their own.
struct Split {
    folder: TempDir,
    program: PathBuf,
    debug: PathBuf,
}

fn tool(program: &str, arguments: &[&Path]) {
    let finished = Command::new(program).args(arguments).output().unwrap();
    assert!(finished.status.success(), "{program}: {finished:?}");
}

impl Split {
    fn of(victim: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("split");
        let debug = folder.path().join("split.debug");
        tool("objcopy", &["--only-keep-debug".as_ref(), victim, &debug]);
        tool("objcopy", &["--strip-all".as_ref(), victim, &program]);
        Self {
            folder,
            program,
            debug,
        }
    }

    /// Names the debug file, with its checksum, in the program.
    fn link(&self) {
        let option = format!("--add-gnu-debuglink={}", self.debug.display());
        tool("objcopy", &[option.as_ref(), &self.program]);
    }

    fn build_id(&self) -> String {
        let output = Command::new("readelf")
            .arg("-n")
            .arg(&self.program)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Build ID: ").map(str::to_owned))
            .expect("a build-id")
    }
}

#[track_caller]
fn assert_lines(program: &Path) {
    let outcome = trace(program);
    outcome.assert_true(by_any_frame);
    assert_whole(&outcome);
    let Outcome { report, truths, .. } = outcome;
    for site in report.sites.iter().filter(|site| site.inuse_objects > 0) {
        for name in [
            truths
                .iter()
                .map(|truth| truth.function.as_str())
                .find(|name| site.contains(name))
                .unwrap(),
            "main",
        ] {
            let frame = site.frames.iter().find(|frame| frame.is(name)).unwrap();
            assert!(
                frame
                    .file
                    .as_deref()
                    .is_some_and(|file| file.ends_with("basic.c")),
                "{frame:?}"
            );
            assert!(frame.line.is_some_and(|line| line > 0), "{frame:?}");
        }
    }
}

#[track_caller]
fn assert_no_lines(program: &Path) {
    let outcome = trace(program);
    assert_whole(&outcome);
    let named: Vec<&Frame> = outcome
        .report
        .sites
        .iter()
        .flat_map(|site| &site.frames)
        .filter(|frame| {
            frame
                .module
                .as_deref()
                .is_some_and(|module| Path::new(module) == program)
        })
        .filter(|frame| frame.file.is_some() || frame.is("leak_basic"))
        .collect();
    assert!(named.is_empty(), "{named:?}");
}

/// Says so and ends the test where the victims come without the tools that would split them.
macro_rules! require_tools {
    () => {
        if prebuilt() {
            leave_out("there is no objcopy where victims are prebuilt");
            return;
        }
    };
}

#[test]
fn a_debug_file_beside_the_program() {
    let _alone = require_kernel!();
    require_tools!();
    let split = Split::of(&require_victim!("basic-omit"));
    // The file is there, but nothing leads to it.
    assert_no_lines(&split.program);
    split.link();
    assert_lines(&split.program);
    let hidden = split.folder.path().join(".debug");
    fs::create_dir(&hidden).unwrap();
    fs::rename(&split.debug, hidden.join("split.debug")).unwrap();
    assert_lines(&split.program);
}

#[test]
fn a_debug_file_of_another_program_is_not_believed() {
    let _alone = require_kernel!();
    require_tools!();
    let split = Split::of(&require_victim!("basic-omit"));
    split.link();
    let other = Split::of(&require_victim!("kinds-omit"));
    fs::copy(&other.debug, &split.debug).unwrap();
    assert_no_lines(&split.program);
}

/// A file in the system's folder of debug files. Removed when dropped, with the folder if it was made for it.
struct Installed {
    file: PathBuf,
    folder_is_new: bool,
}

impl Installed {
    fn by_build_id(debug: &Path, build_id: &str) -> std::io::Result<Self> {
        let (first, rest) = build_id.split_at(2);
        let folder = Path::new("/usr/lib/debug/.build-id").join(first);
        let folder_is_new = !folder.exists();
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{rest}.debug"));
        let installed = Self {
            file,
            folder_is_new,
        };
        fs::copy(debug, &installed.file)?;
        Ok(installed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What cannot be removed is left: it says what it is by its name.
        let _ = fs::remove_file(&self.file);
        if self.folder_is_new
            && let Some(folder) = self.file.parent()
        {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[test]
fn a_debug_file_by_build_id() {
    let _alone = require_kernel!();
    require_tools!();
    let split = Split::of(&require_victim!("basic-omit"));
    assert_no_lines(&split.program);
    let installed = match Installed::by_build_id(&split.debug, &split.build_id()) {
        Ok(installed) => installed,
        Err(error) => {
            leave_out(&format!("/usr/lib/debug cannot be written: {error}"));
            return;
        }
    };
    assert_lines(&split.program);
    drop(installed);
}

/// A server of debug information on this machine, that has one file.
fn debuginfod(build_id: &str, debug: &Path) -> String {
    let path = format!("GET /buildid/{build_id}/debuginfo HTTP/1.1");
    let file = fs::read(debug).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let asked = lines.next().unwrap().unwrap();
            lines.find(|line| line.as_ref().unwrap().is_empty());
            let (status, body) = if asked == path {
                ("200 OK", file.as_slice())
            } else {
                ("404 Not Found", [].as_slice())
            };
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            stream.write_all(body).unwrap();
        }
    });
    url
}

/// Traces a command with servers of debug information; its report, and what leakscope says.
fn trace_with_servers(program: &Path, servers: &str, cache: &Path) -> (Report, String) {
    let output = cache.join("report.json");
    let mut command = Command::new(leakscope().unwrap());
    command
        .args(["trace", "--tier", "exact", "--top", ALL_SITES])
        .args(["--format", "json", "-o"])
        .args([&output, Path::new("--"), program, Path::new("now")])
        .env("DEBUGINFOD_URLS", servers)
        .env("DEBUGINFOD_TIMEOUT", "2")
        .env("DEBUGINFOD_CACHE_PATH", cache)
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("all_proxy")
        .env_remove("ALL_PROXY");
    let finished = run_command(command).unwrap();
    assert_eq!(finished.code(), 0, "{finished:?}");
    let report = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
    (report, finished.stderr)
}

fn has_lines(report: &Report) -> bool {
    let mut frames = report.sites.iter().flat_map(|site| &site.frames);
    frames.any(|frame| frame.is("leak_basic") && frame.line.is_some_and(|line| line > 0))
}

#[test]
fn a_debug_file_that_only_a_server_has() {
    let _alone = require_kernel!();
    require_tools!();
    let split = Split::of(&require_victim!("basic-omit"));
    let id = split.build_id();
    let server = debuginfod(&id, &split.debug);
    fs::remove_file(&split.debug).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let (report, said) = trace_with_servers(&split.program, "", cache.path());
    assert!(!has_lines(&report), "{said}");
    let (report, said) = trace_with_servers(&split.program, &server, cache.path());
    assert!(has_lines(&report), "{said}");
    assert!(!said.contains("debuginfod"), "{said}");
    // Other tools find it there, and it is not asked for again.
    assert!(cache.path().join(&id).join("debuginfo").is_file());
    let (report, said) = trace_with_servers(&split.program, "http://127.0.0.1:1", cache.path());
    assert!(has_lines(&report), "{said}");
}

#[test]
fn a_server_of_debug_information_that_says_nothing_costs_names_and_a_line() {
    let _alone = require_kernel!();
    require_tools!();
    let split = Split::of(&require_victim!("basic-omit"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let (report, said) = trace_with_servers(&split.program, &server, cache.path());
    assert!(!report.sites.is_empty());
    assert!(!has_lines(&report));
    let about: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("debuginfod"))
        .collect();
    assert_eq!(about.len(), 1, "{said}");
    assert!(said.contains(&server), "{said}");
}

#[test]
fn a_process_that_ended_before_the_report() {
    let _alone = require_kernel!();
    let path = require_victim!("basic-omit");
    let mut running = Victim::start(&path).expect("started");
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    let truths = running.go().expect("the victim's truth");
    assert!(running.quit().expect("the victim ends").success());
    // The target's end is the trace's.
    let report = tracer.report().expect("the report");
    let outcome = Outcome {
        report,
        truths,
        pid,
    };
    outcome.assert_true(by_any_frame);
    assert_whole(&outcome);
    for site in outcome
        .report
        .sites
        .iter()
        .filter(|site| site.inuse_objects > 0)
    {
        assert!(site.contains("main"), "{:?}", site.names());
        let lines = site.frames.iter().filter(|frame| {
            frame
                .file
                .as_deref()
                .is_some_and(|file| file.ends_with("basic.c"))
        });
        assert!(lines.count() >= 2, "{site:?}");
    }
}

#[test]
fn a_command_that_ended_before_the_report() {
    let _alone = require_kernel!();
    for name in ["clone-omit", "cold-omit", "cpp-omit-stripped"] {
        let path = require_victim!(name);
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("report.json");
        let arguments = [
            "trace", "--tier", "exact", "--top", ALL_SITES, "--format", "json", "-o",
        ];
        let mut arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
        arguments.extend([output.as_path(), "--".as_ref(), &path, "now".as_ref()]);
        let finished = run(&arguments).expect("leakscope runs");
        assert_eq!(finished.code(), 0, "{finished:?}");
        let report: Report =
            serde_json::from_str(&fs::read_to_string(&output).unwrap()).expect("by the contract");
        let truths: Vec<Truth> = finished
            .stdout
            .lines()
            .filter(|line| *line != "done")
            .map(|line| Truth::parse(line).unwrap())
            .collect();
        let pid = report.processes.first().unwrap().pid;
        assert!(!Path::new(&format!("/proc/{pid}/maps")).exists());
        let outcome = Outcome {
            report,
            truths,
            pid,
        };
        outcome.assert_true(by_any_frame);
        assert_whole(&outcome);
    }
}
