//! Allocators other than the C library's own, preloaded into programs that know nothing of it; and the C library of a container. The
//! truth is the same to the byte, whoever hands the memory out.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_tests::{
    Outcome, by_any_frame, leave_out, prebuilt, preloading, require_kernel, require_victim, script,
};

/// Traces victims with an allocator preloaded.
#[track_caller]
fn preloaded(library: &str, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    for victim in [
        "basic",
        "basic-omit",
        "threads-omit",
        "cpp-omit",
        "realloc_race",
    ] {
        let program = require_victim!(victim);
        let Some(start) = preloading(folder.path(), library, &program).unwrap() else {
            return;
        };
        let outcome = Outcome::of(&start).unwrap_or_else(|error| panic!("{victim}: {error:#}"));
        outcome.assert_true(by_any_frame);
        outcome.assert_nothing_lost();
        let allocators: Vec<&String> = outcome
            .report
            .processes
            .iter()
            .flat_map(|process| &process.allocators)
            .collect();
        assert!(
            allocators.iter().any(|label| label.starts_with(name)),
            "{victim}: {allocators:?}"
        );
    }
}

#[test]
fn jemalloc() {
    let _alone = require_kernel!();
    preloaded("libjemalloc.so.2", "jemalloc");
}

#[test]
fn tcmalloc() {
    let _alone = require_kernel!();
    preloaded("libtcmalloc.so.4", "tcmalloc");
}

#[test]
fn tcmalloc_minimal() {
    let _alone = require_kernel!();
    preloaded("libtcmalloc_minimal.so.4", "tcmalloc");
}

#[test]
fn mimalloc() {
    let _alone = require_kernel!();
    preloaded("libmimalloc.so.2", "mimalloc");
}

/// Copies a program and the libraries that it needs into a folder, by their names.
fn fill(root: &Path, program: &Path) {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    for file in files {
        let to = root.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fs::canonicalize(&file).unwrap(), &to).unwrap();
    }
    fs::copy(program, root.join("victim")).unwrap();
}

#[test]
fn a_container_has_its_own_files_under_the_same_names() {
    let _alone = require_kernel!();
    if prebuilt() {
        leave_out("there is no ldd where victims are prebuilt");
        return;
    }
    let program = require_victim!("basic-omit");
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(&root).unwrap();
    fill(&root, &program);
    let start = script(
        folder.path(),
        &format!(
            "exec unshare --mount --uts --ipc chroot {} /victim",
            root.display()
        ),
    )
    .unwrap();
    let outcome = Outcome::of(&start).expect("traced");
    outcome.assert_true(by_any_frame);
    outcome.assert_complete(&["main"]);
    outcome.assert_nothing_lost();
}
