//! Complete stacks whatever way a program was linked or made: static, static-pie, not position-independent, musl, Rust,
//! a library that is loaded late, threads without a thread library, cold code; all without frame pointers.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use leakscope_tests::{
    Outcome, Report, Sum, Truth, by_any_frame, by_caller, require_kernel, require_victim,
};

/// Bytes and blocks are true, every stack reaches its true end, which is below one of `roots`, and nothing is lost.
#[track_caller]
fn assert_complete(
    path: &Path,
    roots: &[&str],
    found: impl Fn(&Report, u32, &Truth) -> Sum,
) -> Outcome {
    let outcome = Outcome::of(path).expect("traced");
    outcome.assert_true(found);
    outcome.assert_nothing_lost();
    outcome.assert_complete(roots);
    outcome
}

#[test]
fn not_position_independent() {
    let _alone = require_kernel!();
    assert_complete(&require_victim!("basic-omit-nopie"), &["main"], by_caller);
}

#[test]
fn statically_linked() {
    let _alone = require_kernel!();
    assert_complete(&require_victim!("basic-omit-static"), &["main"], by_caller);
}

#[test]
fn statically_linked_and_position_independent() {
    let _alone = require_kernel!();
    assert_complete(
        &require_victim!("basic-omit-static-pie"),
        &["main"],
        by_caller,
    );
}

/// Debian's musl has no call frame information at all. The program's own frames are there to the last, and that the
/// stack ends where the library called `main` is said.
#[track_caller]
fn assert_complete_to_main(path: &Path) {
    let outcome = Outcome::of(path).expect("traced");
    outcome.assert_true(by_caller);
    let report = outcome.report;
    let cut: u64 = report
        .sites
        .iter()
        .filter(|site| !site.stack_complete)
        .map(|site| site.alloc_objects)
        .sum();
    for (name, count) in &report.losses {
        let expected = if name == "unwind_no_rule" { cut } else { 0 };
        assert_eq!(*count, expected, "{name}");
    }
    assert!(report.sites.iter().all(|site| site.contains("main")));
}

#[test]
fn musl() {
    let _alone = require_kernel!();
    assert_complete_to_main(&require_victim!("basic-omit-musl"));
}

#[test]
fn musl_statically_linked() {
    let _alone = require_kernel!();
    assert_complete_to_main(&require_victim!("basic-omit-musl-static"));
}

#[test]
fn a_library_that_is_loaded_late() {
    let _alone = require_kernel!();
    let outcome = Outcome::of(&require_victim!("dlopen-omit")).expect("traced");
    outcome.assert_true(by_caller);
    let early: u64 = outcome
        .report
        .sites
        .iter()
        .filter(|site| !site.stack_complete)
        .map(|site| {
            assert!(site.contains("leak_plugin"), "{:?}", site.names());
            site.alloc_objects
        })
        .sum();
    for (name, count) in &outcome.report.losses {
        if name == "unwind_unknown_mapping" {
            // Those that joined the whole stack that they began are counted here, and are no site of their own.
            assert!(*count >= early, "{name}: {count} of {early}");
        } else {
            assert_eq!(*count, 0, "{name}");
        }
    }
    let site = outcome.site_of("leak_plugin_later").unwrap();
    assert!(
        site.stack_complete && site.contains("main"),
        "{:?}",
        site.names()
    );
    let module = site.caller().unwrap().module.as_deref().unwrap();
    assert!(module.ends_with("/libplugin-omit.so"), "{module}");
}

#[test]
fn threads_that_the_program_cloned_itself() {
    let _alone = require_kernel!();
    let outcome = assert_complete(
        &require_victim!("clone-omit"),
        &["main", "worker"],
        by_caller,
    );
    // A thread has a stack of its own: the one that made it is not in it.
    let site = outcome.site_of("leak_cloned").unwrap();
    assert!(
        site.contains("worker") && !site.contains("main"),
        "{site:?}"
    );
}

#[test]
fn handlers_of_exceptions_in_cold_code() {
    let _alone = require_kernel!();
    let outcome = assert_complete(
        &require_victim!("cold-omit"),
        &["main"],
        |report, pid, truth| {
            // The exception itself is allocated below throw_on.
            report.called_by(pid, &truth.function)
        },
    );
    // Called from the landing pad of the function that is unwound.
    let site = outcome.site_of("leak_in_cleanup").unwrap();
    assert!(site.contains("cleaned_up"), "{:?}", site.names());
}

#[test]
fn rust_with_debug_information() {
    let _alone = require_kernel!();
    let outcome = assert_complete(
        &require_victim!("rust"),
        &["main", "rust::leak_in_thread"],
        by_any_rust_frame,
    );
    let site = outcome.site_of("rust::leak_box").unwrap();
    let frame = site
        .frames
        .iter()
        .find(|frame| frame.is("rust::leak_box"))
        .unwrap();
    assert!(
        frame.file.as_deref().unwrap().ends_with("rust.rs"),
        "{frame:?}"
    );
    assert!(frame.line.is_some(), "{frame:?}");
}

#[test]
fn rust_with_symbols_of_the_second_mangling_alone() {
    let _alone = require_kernel!();
    assert_complete(
        &require_victim!("rust-v0-no-debug"),
        &["main", "rust::leak_in_thread"],
        by_any_rust_frame,
    );
}

/// Names of Rust: a generic function's name is followed by its arguments, a method may stand in angle brackets.
fn by_any_rust_frame(report: &Report, pid: u32, truth: &Truth) -> Sum {
    let plain = by_any_frame(report, pid, truth);
    let with_arguments = Truth {
        function: format!("{}::<u64>", truth.function),
        ..truth.clone()
    };
    let in_brackets = Truth {
        function: truth.function.replacen("rust::Holder", "<rust::Holder>", 1),
        ..truth.clone()
    };
    let mut sum = plain;
    for other in [with_arguments, in_brackets] {
        let found = if other.function == truth.function {
            Sum::default()
        } else {
            by_any_frame(report, pid, &other)
        };
        sum.sites += found.sites;
        sum.bytes += found.bytes;
        sum.objects += found.objects;
    }
    sum
}
