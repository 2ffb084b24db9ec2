//! Where programs touch fresh memory: the estimates of the report against the victim's truth.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{process::Command, thread::sleep, time::Duration};

use leakscope_tests::{
    Report, Site, Tracer, Truth, Victim, answers, leakscope, leave_out, require_kernel,
    require_victim, run_command, tampered,
};

const PAGE: u64 = 4096;

/// The figures of all sites of pages below a function.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    sites: usize,
    bytes: u64,
    objects: u64,
    low: u64,
    high: u64,
    alloc_bytes: u64,
}

fn pages(report: &Report, pid: u32) -> impl Iterator<Item = &Site> {
    report
        .sites
        .iter()
        .filter(move |site| site.pid == pid && site.kind == "pages")
}

fn below(report: &Report, pid: u32, function: &str) -> Estimate {
    let mut sum = Estimate::default();
    for site in pages(report, pid).filter(|site| site.contains(function)) {
        sum.sites += 1;
        sum.bytes += site.inuse_bytes;
        sum.objects += site.inuse_objects;
        sum.low += site.inuse_bytes_low;
        sum.high += site.inuse_bytes_high;
        sum.alloc_bytes += site.alloc_bytes;
    }
    sum
}

/// Traces a victim with the tier `growth`. `looks`: it waits for a look from outside between what it did and the end.
fn traced(victim: &str, looks: bool) -> Option<(u32, Vec<Truth>, Report)> {
    let mut running = Victim::start(&leakscope_tests::victim(victim).expect("built")).unwrap();
    let pid = running.pid();
    let number = pid.to_string();
    let mut tracer = Tracer::start(&["--tier", "growth", "-p", &number]).expect("started");
    tracer.wait_until_following().expect("followed");
    let truths = running.go().expect("the victim's truth");
    if looks {
        // A second and more: what is asserted holds with one look and with several.
        sleep(Duration::from_millis(1500));
    }
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    assert_eq!(report.tier, "growth");
    if report.tier_reason.contains("cannot be seen") {
        leave_out(&report.tier_reason);
        return None;
    }
    Some((pid, truths, report))
}

fn assert_estimates(victim: &str, looks: bool) {
    let Some((pid, truths, report)) = traced(victim, looks) else {
        return;
    };
    assert_eq!(report.byte_losses(), []);
    assert!(truths.len() >= 6);
    for truth in truths {
        let found = below(&report, pid, &truth.function);
        let context = format!("{truth:?}: {found:?}");
        if truth.bytes == 0 {
            assert_eq!(found.bytes, 0, "{context}");
            // Of 2048 pages, of which one of 64 is followed, none survives.
            assert!(found.high < 2048 * PAGE, "{context}");
        } else {
            assert!((found.low..=found.high).contains(&found.bytes), "{context}");
            // Twice as far as the interval of 95 % reaches: 3.9 standard deviations.
            let below = found.bytes.saturating_sub(2 * (found.bytes - found.low));
            let above = found.bytes + 2 * (found.high - found.bytes);
            assert!((below..=above).contains(&truth.bytes), "{context}");
            assert_eq!(found.objects * PAGE, found.bytes, "{context}");
        }
        // What was ever touched is estimated by the same sample, at least as well as to half.
        if let Some(all) = truth.alloc_bytes.filter(|all| *all >= 4 << 20) {
            assert!(found.alloc_bytes > all / 2, "{context}");
            assert!(found.alloc_bytes < 2 * all, "{context}");
        } else if truth.alloc_bytes == Some(0) {
            assert_eq!(found.sites, 0, "{context}");
        }
    }
    // The largest of them is found well, and first.
    let first = pages(&report, pid).next().expect("a site");
    assert!(first.contains("touch_kept"), "{:?}", first.names());
    let kept = below(&report, pid, "touch_kept");
    assert!(kept.low > 8 << 20 && kept.high < 32 << 20, "{kept:?}");
    for site in pages(&report, pid) {
        assert!(site.stack_complete, "{:?}", site.names());
    }
    // The same bytes are those of mappings, or of none that was made while it was watched: they are in no sum.
    let process = report.processes.first().expect("the process");
    let mapped: u64 = report
        .sites
        .iter()
        .filter(|site| site.kind != "pages")
        .map(|site| site.inuse_bytes)
        .sum();
    assert_eq!(process.inuse_bytes, mapped);
    assert!(report.overhead.target_cpu_fraction > 0.0);
}

#[test]
fn fresh_pages_are_found_where_they_were_touched() {
    let _alone = require_kernel!();
    let _ = require_victim!("pages");
    assert_estimates("pages", false);
}

#[test]
fn looks_in_between_change_nothing_and_no_frame_pointers_are_needed() {
    let _alone = require_kernel!();
    let _ = require_victim!("pages-omit");
    assert_estimates("pages-omit", true);
}

/// So few faults that each is told of: exact, to the page.
#[test]
fn huge_pages_count_as_what_they_are() {
    let _alone = require_kernel!();
    let _ = require_victim!("hugepages");
    let Some((pid, truths, report)) = traced("hugepages", true) else {
        return;
    };
    if truths.iter().all(|truth| truth.bytes == 0) {
        return leave_out("this kernel gives no huge pages");
    }
    for truth in truths {
        let found = below(&report, pid, &truth.function);
        let context = format!("{truth:?}: {found:?}");
        assert_eq!(
            (found.bytes, found.objects),
            (truth.bytes, truth.objects),
            "{context}"
        );
        assert_eq!(
            (found.low, found.high),
            (truth.bytes, truth.bytes),
            "{context}"
        );
        assert!(found.alloc_bytes >= truth.bytes, "{context}");
    }
}

/// The tables have no rule for pushes: where one makes the stack grow, the report knows the function and says that it does not know more.
#[test]
fn stacks_that_grow_are_seen_and_a_push_is_not_walked_from() {
    let _alone = require_kernel!();
    let _ = require_victim!("stackpages");
    let Some((pid, truths, report)) = traced("stackpages", true) else {
        return;
    };
    assert_eq!(truths.len(), 2);
    for truth in truths {
        let found = below(&report, pid, &truth.function);
        let missing = truth.bytes.saturating_sub(found.bytes);
        assert!(missing <= 64 << 10, "{truth:?}: {found:?}");
        assert!(
            found.bytes <= truth.bytes + (64 << 10),
            "{truth:?}: {found:?}"
        );
    }
    for site in pages(&report, pid) {
        let is_push = site
            .frames
            .first()
            .is_some_and(|leaf| leaf.is("grow_by_push"));
        let is_whole = site.contains("main");
        assert_eq!(is_whole, !is_push, "{:?}", site.names());
        assert_eq!(site.stack_complete, !is_push, "{:?}", site.names());
    }
}

/// Where allocators are probed, or nothing but mappings is to be seen, no page fault is: they would cost for nothing.
#[test]
fn other_tiers_see_no_page_faults() {
    let _alone = require_kernel!();
    let mut running = Victim::start(&require_victim!("pages")).expect("started");
    let pid = running.pid();
    let tracer = Tracer::attach(&running, &[]).expect("attached");
    running.go().expect("the victim's truth");
    let report = tracer.stop().expect("the report");
    assert!(running.quit().expect("the victim ends").success());
    assert_eq!(pages(&report, pid).count(), 0);
}

/// A kernel without the tracepoint: all else is as ever, and why there are no pages is said.
#[test]
fn without_the_tracepoint_it_says_so() {
    let _alone = require_kernel!();
    if !answers("strace", "-V") {
        return leave_out("there is no strace");
    }
    let running = Victim::start(&require_victim!("pages")).expect("started");
    let pid = running.pid().to_string();
    let arguments = [
        "trace", "--tier", "growth", "--format", "json", "--for", "50ms", "-p", &pid,
    ];
    // Which of the calls it is, an untampered run tells.
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("calls");
    let mut command = Command::new("strace");
    command
        .args(["-f", "--seccomp-bpf", "-qq", "-e", "trace=bpf", "-o"])
        .arg(&log);
    command.arg(leakscope().unwrap()).args(arguments);
    let finished = run_command(command).expect("it runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let calls = std::fs::read_to_string(&log).unwrap();
    let place = calls
        .lines()
        .filter(|line| line.contains("bpf("))
        .position(|line| line.contains("page_fault_kernel"))
        .expect("it attaches to the second tracepoint");
    let how = format!("error=ENOENT:when={}", place + 1);
    let finished = run_command(tampered("bpf", &how, &arguments).unwrap()).expect("it runs");
    assert_eq!(finished.code(), 0, "{finished:?}");
    let report: Report = serde_json::from_str(&finished.stdout).unwrap();
    let words =
        "where fresh pages are touched cannot be seen: the tracepoint exceptions/page_fault_kernel";
    assert!(report.tier_reason.contains(words), "{}", report.tier_reason);
}
