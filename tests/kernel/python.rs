//! Python functions in stacks, on every CPython that there is: as the interpreter itself says.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use leakscope_tests::{Report, Site, Tracer, Truth, Victim, pythons, require_kernel, skip};

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

/// Whether these are the functions. Code that is gone may have no names, but none of others.
fn is_same_stack(found: &[String], expected: &[String], truth: &Truth) -> bool {
    let is_gone = |name: &String, known: &String| {
        truth.function == "gone"
            && name == "?:0"
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
