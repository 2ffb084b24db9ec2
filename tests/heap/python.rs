//! `leakscope heap` on every CPython that there is: counts as the interpreter's own, and holders in the program's words.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "JSON: what is not there is null")]

mod waiting;

use std::process::Command;

use leakscope_tests::{pythons, skip};
use waiting::{Waiting, first_way, nearly_all, sum};

/// By whom each class of `objects.py` is held.
const WAYS: [(&str, &str); 8] = [
    (
        "InAttribute",
        "list <- Analyzer.metrics <- module __main__.analyzer",
    ),
    ("InDict", "list <- Odd.größe <- module __main__.odd"),
    (
        "InSlot",
        "list <- Slotted.entries <- module __main__.slotted",
    ),
    ("InModule", "tuple <- module __main__.table"),
    (
        "InClass",
        "list <- class Analyzer.registry <- module __main__.Analyzer",
    ),
    (
        "InKey",
        "list <- dict['daily'] <- dict['limits'] <- module __main__.settings",
    ),
    ("InList", "list <- dict <- module __main__.settings"),
    (
        "InCache",
        "dict <- functools._lru_cache_wrapper <- module __main__.remembered",
    ),
];

#[test]
fn objects_are_counted_as_the_interpreter_counts_them_and_their_holders_have_names() {
    let all = pythons();
    if all.is_empty() {
        skip("no CPython");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/objects.py");
    for python in all {
        let place = python.display();
        let victim = Waiting::start(Command::new(&python).arg(script));
        let report = victim.heap(&["--holders", "6"]);
        let mut others = Vec::new();
        for (name, expected) in WAYS {
            let (counted, known) = (sum(&report, name, "objects"), victim.truth(name));
            assert_eq!(counted, known, "{place}: {name}");
            let lost = sum(&report, name, "unreachable_objects");
            assert_eq!(lost, 0, "{place}: {name}");
            let way = first_way(&report, name).join(" <- ");
            if way != expected {
                others.push(format!("{name}: {way}"));
            }
        }
        assert!(others.is_empty(), "{place}: {others:?}");
        assert_eq!(sum(&report, "OnStack", "unreachable_objects"), 0, "{place}");
        for name in ["Parent", "Child"] {
            let known = victim.truth(name);
            assert_eq!(sum(&report, name, "objects"), known, "{place}: {name}");
            let lost = sum(&report, name, "unreachable_objects");
            assert!(nearly_all(lost, known), "{place}: {lost} of {known} {name}");
        }
        // Blocks of the raw domain are the interpreter's own, and are not among its.
        let counted = report["blocks"].as_u64().expect("a number");
        let known = victim.truth("blocks");
        assert!(
            counted.abs_diff(known) * 200 <= known,
            "{place}: {counted} of {known} blocks"
        );
    }
}
