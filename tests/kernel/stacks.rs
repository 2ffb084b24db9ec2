//! Stacks to their true end, without frame pointers: against known depths and against glibc's own backtrace().

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use leakscope_tests::{Outcome, Site, Victim, by_any_frame, require_kernel, require_victim};

/// Every line of the truth is met by the stacks in which the function is the nearest of the program's own, and no stack
/// is cut.
#[track_caller]
fn assert_complete(path: &Path) {
    let outcome = Outcome::of(path).expect("traced");
    outcome.assert_true(by_any_frame);
    outcome.assert_complete(&["main", "worker"]);
}

#[test]
fn c_without_frame_pointers() {
    let _alone = require_kernel!();
    assert_complete(&require_victim!("kinds-omit"));
}

#[test]
fn threads_without_frame_pointers() {
    let _alone = require_kernel!();
    assert_complete(&require_victim!("threads-omit"));
}

#[test]
fn cpp_without_frame_pointers() {
    let _alone = require_kernel!();
    assert_complete(&require_victim!("cpp-omit"));
}

#[test]
fn cpp_through_a_library_without_frame_pointers() {
    let _alone = require_kernel!();
    assert_complete(&require_victim!("cpp"));
}

#[test]
fn through_libc_itself() {
    let _alone = require_kernel!();
    for name in ["library", "library-omit"] {
        assert_complete(&require_victim!(name));
    }
}

#[test]
fn by_the_tables_that_an_earlier_trace_kept() {
    let _alone = require_kernel!();
    let path = require_victim!("kinds-omit");
    let folder = tempfile::tempdir().unwrap();
    let kept = || -> BTreeMap<PathBuf, SystemTime> {
        let files = std::fs::read_dir(folder.path()).unwrap();
        files
            .map(|file| {
                let file = file.unwrap();
                (file.path(), file.metadata().unwrap().modified().unwrap())
            })
            .collect()
    };
    let mut before = BTreeMap::new();
    for _ in 0..2 {
        let arguments = ["--unwind-cache", folder.path().to_str().unwrap()];
        let outcome =
            Outcome::of_running(Victim::start(&path).unwrap(), &arguments).expect("traced");
        outcome.assert_true(by_any_frame);
        outcome.assert_complete(&["main", "worker"]);
        // The program's own, the C library's and more; nothing is written again.
        assert!(before.is_empty() || before == kept(), "{before:?}");
        before = kept();
        assert!(before.len() >= 2, "{before:?}");
    }
}

#[test]
fn known_depths_without_frame_pointers() {
    let _alone = require_kernel!();
    let path = require_victim!("deep-omit");
    let outcome = Outcome::of(&path).expect("traced");
    let (report, truths, pid) = (outcome.report, outcome.truths, outcome.pid);
    assert_eq!(truths.len(), 4);
    for truth in truths {
        let sites: Vec<&Site> = report
            .sites
            .iter()
            .filter(|site| site.pid == pid && site.contains(&truth.function))
            .collect();
        // The compiler may have unrolled the loop: a site for each call.
        assert!(!sites.is_empty(), "{truth:?}");
        let sum = |of: fn(&Site) -> u64| sites.iter().map(|site| of(site)).sum::<u64>();
        assert_eq!(
            (sum(|site| site.inuse_bytes), sum(|site| site.inuse_objects)),
            (truth.bytes, truth.objects)
        );
        let site = sites.first().unwrap();
        let depth = truth.recursions.unwrap();
        let recursions = site
            .frames
            .iter()
            .filter(|frame| frame.is("recurse"))
            .count();
        if depth < 120 {
            assert_eq!(recursions, depth, "{:?}", site.names());
            assert!(site.stack_complete);
        } else {
            assert!(recursions > 100 && recursions < depth, "{recursions}");
            assert!(!site.stack_complete);
        }
    }
}

/// The names of the program's own frames up to `main`, and the number of all frames behind the allocator's.
fn shape(site: &Site) -> (Vec<String>, usize) {
    let frames: Vec<&str> = site
        .frames
        .iter()
        .filter(|frame| !frame.inlined && !frame.is_allocator())
        .map(|frame| frame.function.as_deref().unwrap_or("?"))
        .collect();
    let own = frames
        .iter()
        .position(|name| *name == "main")
        .map_or(frames.len(), |place| place + 1);
    (
        frames
            .iter()
            .take(own)
            .map(|name| (*name).to_owned())
            .collect(),
        frames.len(),
    )
}

/// Every stack of the report against what backtrace() said inside the victim: names, number of frames, bytes.
#[track_caller]
fn assert_as_backtrace(path: &Path, walks: u64) {
    let outcome = Outcome::of(path).expect("traced");
    let (report, truths, pid) = (outcome.report, outcome.truths, outcome.pid);
    let mut expected: BTreeMap<(Vec<String>, usize), (u64, u64)> = BTreeMap::new();
    for truth in truths {
        let figures = expected
            .entry((truth.stack.unwrap(), truth.frames.unwrap()))
            .or_default();
        figures.0 += truth.bytes;
        figures.1 += truth.objects;
    }
    let total: u64 = expected.values().map(|(_, objects)| objects).sum();
    assert_eq!(total, walks);
    assert!(expected.len() > 500, "{} stacks", expected.len());
    let mut found: BTreeMap<(Vec<String>, usize), (u64, u64)> = BTreeMap::new();
    for site in report
        .sites
        .iter()
        .filter(|site| site.pid == pid && site.contains("leaf"))
    {
        let figures = found.entry(shape(site)).or_default();
        figures.0 += site.inuse_bytes;
        figures.1 += site.inuse_objects;
    }
    let missing: Vec<_> = expected
        .iter()
        .filter(|(stack, figures)| found.get(*stack) != Some(*figures))
        .collect();
    let invented: Vec<_> = found
        .keys()
        .filter(|stack| !expected.contains_key(*stack))
        .collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "of {} stacks {} are missing or wrong, {} invented; first {:?}; {:?}; {:?}",
        expected.len(),
        missing.len(),
        invented.len(),
        missing.first(),
        invented.first(),
        report.losses
    );
}

#[test]
fn the_same_stacks_as_glibc_sees_with_frame_pointers() {
    let _alone = require_kernel!();
    assert_as_backtrace(&require_victim!("backtrace"), 3000);
}

#[test]
fn the_same_stacks_as_glibc_sees_without_frame_pointers() {
    let _alone = require_kernel!();
    assert_as_backtrace(&require_victim!("backtrace-omit"), 3000);
}

#[test]
fn the_same_hundred_thousand_stacks_as_glibc_sees() {
    let _alone = require_kernel!();
    assert_as_backtrace(&require_victim!("backtrace-many"), 100_000);
}
