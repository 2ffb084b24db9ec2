//! What a report does not show, said where the verdict is read: nothing could be attached, or memory grows and no site explains it. It
//! adds sentences to verdicts, and changes no figure.

use std::collections::BTreeMap;

use super::{
    Session, Traced, collector,
    counted::{self, Rates},
};
use crate::{
    ledger::LEAK_AFTER_S,
    process::procfs::list_children,
    report::{Process, ReportParts, Site, SiteKind, Verdict, leaks},
    units::{count, percent, rate},
};

/// Why there is nothing of a process.
pub(super) const NOTHING_ATTACHED: &str =
    "nothing could be attached: no known allocator was found in it";

/// What sees a process without its allocator.
const BY_GROWTH: &str =
    "`--tier growth` needs no allocator: it shows whether and where memory grows";

/// Sites that explain less than this share of what a process's memory grows by leave the growth unexplained.
const EXPLAINED: f64 = 0.5;

/// What fewer windows saw of a site is not judged yet.
const FEW_WINDOWS: u64 = 3;

/// Less than this share is none.
const NOTHING: f64 = 0.005;

/// The file name of a library or a program, and where its memory is when it is not in the allocator's blocks.
const RUNTIMES: [(&str, &str); 6] = [
    (
        "libpython",
        "CPython keeps small objects in arenas of its own (pymalloc)",
    ),
    (
        "python",
        "CPython keeps small objects in arenas of its own (pymalloc)",
    ),
    ("libjvm.so", "the JVM's heap is its own"),
    ("node", "V8's heap is its own"),
    ("libnode.so", "V8's heap is its own"),
    ("libmono", "Mono's heap is its own"),
];

/// Adds to the verdict of each process what is not seen of it. `suppressed`: bytes in use at sites that somebody knows and does not want to
/// see, by incarnation.
pub(super) fn tell(session: &Session, parts: &mut ReportParts, suppressed: &BTreeMap<u32, u64>) {
    let sites = std::mem::take(&mut parts.sites);
    for process in &mut parts.processes {
        let Some(traced) = session.processes.get(&process.pid) else {
            continue;
        };
        let mut said = Vec::new();
        if !session.options.mappings_only {
            said.extend(not_attached(session, traced));
            said.extend(children(session, process, traced));
        }
        process.held = session.growth.held(process.incarnation);
        let explained = explained(process, &sites, parts.duration_s);
        let known = suppressed
            .get(&process.incarnation)
            .copied()
            .unwrap_or_default();
        let known = known as f64 / parts.duration_s.max(1.0);
        let mut rates = rates(process, &sites);
        rates.judged += known;
        // What filters leave out may be what grows.
        process.unseen =
            counted::unseen(traced, rates).filter(|_| session.options.filters().is_none());
        let watched_s = session.ledger.watched_s(process.incarnation);
        if let Some(unseen) = &mut process.unseen
            && unseen.verdict == Verdict::Leaking
            && traced.waits_for_collector(watched_s)
        {
            unseen.verdict = Verdict::WarmingUp;
            unseen.verdict_reason = format!("{}; but {}", unseen.verdict_reason, collector::why());
        }
        let held = process.held.as_ref().map(|held| held.verdict);
        let unseen = process.unseen.as_ref().map(|unseen| unseen.verdict);
        let raised = [unseen, held]
            .into_iter()
            .flatten()
            .filter(|verdict| says_more(*verdict, process.verdict))
            .max_by_key(|verdict| *verdict == Verdict::Leaking);
        said.extend(
            process
                .unseen
                .as_ref()
                .map(|unseen| unseen.verdict_reason.clone()),
        );
        if let Some(note) = session.growth.held_note(process.incarnation) {
            said.push(match process.held.as_ref().filter(|_| raised.is_some()) {
                Some(held) => format!("{note}: {}", held.verdict_reason),
                None => note,
            });
        }
        let slope = session.ledger.anonymous_growth(process.incarnation);
        if let Some(slope) = slope.filter(|slope| is_known(*slope, explained, known))
            && session.ledger.watched_s(process.incarnation) >= LEAK_AFTER_S
        {
            // It grows, and by what was asked not to be told of.
            process.unjudged = None;
            said.push(format!(
                "its anonymous memory grows{}, as sites explain that are suppressed",
                rate(slope)
                    .map(|rate| format!(", {rate}"))
                    .unwrap_or_default()
            ));
        }
        let explained = explained + known;
        // A heap between two collections is larger than what is in use of it.
        let go = &session.go;
        let is_go = go.has_profile(traced.incarnation) || go.sees_blocks(traced.incarnation);
        if let Some(growth) = slope
            .filter(|_| process.unseen.is_none() && !is_go)
            .and_then(|slope| unexplained(slope, explained))
        {
            let why = where_it_may_be(session, traced);
            said.push(format!("{growth}: {why}"));
        }
        if said.is_empty() {
            continue;
        }
        let said = said.join("; ");
        let was_leaking = process.verdict == Verdict::Leaking;
        if let Some(verdict) = raised {
            process.verdict = verdict;
            process.unjudged = None;
        }
        process.verdict_reason = if was_leaking {
            format!("{}; {said}", process.verdict_reason)
        } else if process.verdict_reason.is_empty() || process.inuse_bytes == 0 {
            said
        } else {
            format!("{said}; of what is seen: {}", process.verdict_reason)
        };
    }
    parts.sites = sites;
}

/// Whether sites that are suppressed, and no others, explain how memory grows; bytes per second.
fn is_known(slope: f64, explained: f64, suppressed: f64) -> bool {
    unexplained(slope, explained).is_some() && unexplained(slope, explained + suppressed).is_none()
}

/// Gives a process the verdict of what it makes the kernel hold, where that leaks and its memory does not. To be called when both are known.
pub(super) fn tell_of_kernel(process: &mut Process) {
    let Some(kernel) = &process.kernel else {
        return;
    };
    let said = leaks(kernel);
    if said.is_empty() || process.verdict == Verdict::Leaking {
        return;
    }
    let mut reason = said.join("; ");
    if process.inuse_bytes > 0 && !process.verdict_reason.is_empty() {
        reason.push_str(&format!("; of its memory: {}", process.verdict_reason));
    }
    process.verdict = Verdict::Leaking;
    process.verdict_reason = reason;
    process.unjudged = None;
}

/// Whether growth that descriptors hold says more than a process's verdict: it is no less the process's than what an allocator hands
/// out.
fn says_more(held: Verdict, process: Verdict) -> bool {
    let grows = |verdict| match verdict {
        Verdict::Leaking => 2,
        Verdict::WarmingUp => 1,
        _ => 0,
    };
    grows(held) > grows(process)
}

/// What could not be attached to.
fn not_attached(session: &Session, traced: &Traced) -> Option<String> {
    if let Some(why) = session.go.unseen(traced.incarnation) {
        return Some(why);
    }
    let go = &session.go;
    if go.has_profile(traced.incarnation) || go.sees_blocks(traced.incarnation) {
        return None;
    }
    if traced.sites.is_empty() {
        let why = traced.why_empty.as_deref();
        let why = why.map_or_else(
            || NOTHING_ATTACHED.to_owned(),
            |why| format!("nothing could be attached: {why}"),
        );
        return Some(format!("{why}; {BY_GROWTH}"));
    }
    let blind = traced.blind.as_ref()?;
    Some(format!("not attached: {blind}"))
}

/// Of a process that does little by itself: that it has children, and that these are others. Who forks workers leaks in them.
fn children(session: &Session, process: &Process, traced: &Traced) -> Option<String> {
    if process.exited || process.verdict != Verdict::InsufficientData {
        return None;
    }
    let followed = |pid: &u32| session.processes.contains_key(pid);
    let others = list_children(&session.proc_root, traced.pid)
        .iter()
        .filter(|pid| !followed(pid))
        .count() as u64;
    let name = crate::report::clean(&process.comm).into_owned();
    (others > 0).then(|| {
        format!(
            "{} child process{} of it {} not traced: `--comm {name}` or `--cgroup` follows them too",
            count(others),
            if others == 1 { "" } else { "es" },
            if others == 1 { "is" } else { "are" },
        )
    })
}

/// How fast the sites of a process grow, bytes per second: by their own rates, or by all that was allocated and stayed.
fn explained(process: &Process, sites: &[Site], duration_s: f64) -> f64 {
    let of_process = |site: &&Site| {
        (site.pid, site.incarnation) == (process.pid, process.incarnation)
            && site.kind != SiteKind::Pages
    };
    let rates: f64 = sites
        .iter()
        .filter(of_process)
        .map(|site| site.growth_bytes_per_s.max(0.0))
        .sum();
    rates.max(process.inuse_bytes as f64 / duration_s.max(1.0))
}

/// How fast the sites of a process grow that could be judged, and the others.
fn rates(process: &Process, sites: &[Site]) -> Rates {
    let is_judged = |site: &Site| match site.verdict {
        Verdict::InsufficientData => false,
        Verdict::WarmingUp => site
            .sample
            .is_none_or(|sample| sample.windows >= FEW_WINDOWS),
        _ => true,
    };
    let of_process = |site: &&Site| {
        (site.pid, site.incarnation) == (process.pid, process.incarnation)
            && site.kind == SiteKind::Heap
    };
    let mut rates = Rates::default();
    for site in sites.iter().filter(of_process) {
        if is_judged(site) {
            rates.judged += site.growth_bytes_per_s.max(0.0);
        } else {
            let counted = site.counted.as_ref().filter(|counted| counted.share > 0.0);
            let rate = counted.map_or(0.0, |counted| counted.growth_bytes_per_s);
            rates.unjudged += rate.max(site.growth_bytes_per_s).max(0.0);
        }
    }
    rates
}

/// A sentence where memory grows, and the sites explain little of it; bytes per second.
fn unexplained(slope: f64, explained: f64) -> Option<String> {
    if slope.is_nan() || explained >= EXPLAINED * slope {
        return None;
    }
    let grows = rate(slope)?;
    let share = explained / slope;
    Some(if share < NOTHING {
        format!("its anonymous memory grows, {grows}, and no site here explains it")
    } else {
        format!(
            "its anonymous memory grows, {grows}, of which the sites here explain {}",
            percent(share)
        )
    })
}

/// Where memory may be that no site has, and what would see it.
fn where_it_may_be(session: &Session, traced: &Traced) -> String {
    let pid = traced.pid;
    let more = if session.options.mappings_only {
        String::new()
    } else {
        format!("; `leakscope trace -p {pid} --tier growth` shows where it is first written to")
    };
    if traced.holds_go() {
        return format!("Go's heap is its runtime's own{more}");
    }
    let names = traced.space.ranges().iter().filter_map(|range| {
        let path = &range.module.as_ref()?.path;
        Some(path.file_name()?.to_string_lossy())
    });
    for name in names {
        if let Some((_, what)) = RUNTIMES.iter().find(|(begin, _)| name.starts_with(begin)) {
            return format!("{what}{more}");
        }
    }
    if session.growth.is_given_up(traced.incarnation) {
        return format!(
            "its mappings are not followed any more, for that took too much of the budget{more}"
        );
    }
    format!("fragmentation, memory touched for the first time, or an allocator of its own{more}")
}

#[cfg(test)]
mod tests {
    use super::{explained, is_known, says_more, tell_of_kernel, unexplained};
    use crate::report::{Holding, Process, ProcessKernel, Site, SiteKind, Verdict};

    #[test]
    fn growth_of_suppressed_sites_was_said_to_be_explained_by_none() {
        assert!(is_known(108.0, 0.4, 84.0));
        assert!(!is_known(108.0, 0.4, 2.0));
        assert!(!is_known(108.0, 80.0, 84.0));
        assert!(!is_known(f64::NAN, 0.0, 1.0));
    }

    #[test]
    fn a_process_whose_descriptors_leaked_was_said_to_show_too_little() {
        let mut process = Process {
            verdict_reason: "no allocation was seen".to_owned(),
            unjudged: Some("too few".to_owned()),
            kernel: Some(ProcessKernel {
                holdings: vec![Holding {
                    kind: "descriptors".to_owned(),
                    verdict: Verdict::Leaking,
                    verdict_reason: "+24/s for 60.0 s".to_owned(),
                    ..Holding::default()
                }],
                ..ProcessKernel::default()
            }),
            ..Process::default()
        };
        tell_of_kernel(&mut process);
        assert_eq!(process.verdict, Verdict::Leaking);
        assert_eq!(process.verdict_reason, "descriptors: +24/s for 60.0 s");
        assert_eq!(process.unjudged, None);
    }

    #[test]
    fn a_process_whose_descriptors_held_ever_more_was_called_churn() {
        assert!(says_more(Verdict::Leaking, Verdict::Churn));
        assert!(says_more(Verdict::WarmingUp, Verdict::InsufficientData));
        assert!(!says_more(Verdict::Plateau, Verdict::Churn));
        assert!(!says_more(Verdict::WarmingUp, Verdict::Leaking));
    }

    #[test]
    fn growth_that_no_site_explains_is_told() {
        let process = Process {
            pid: 7,
            inuse_bytes: 600,
            ..Process::default()
        };
        let site = |kind, growth_bytes_per_s| Site {
            pid: 7,
            kind,
            growth_bytes_per_s,
            ..Site::default()
        };
        let sites = [
            site(SiteKind::Heap, 4.0),
            site(SiteKind::Heap, -100.0),
            // Pages hold what others have.
            site(SiteKind::Pages, 1e6),
        ];
        assert!((explained(&process, &sites, 60.0) - 10.0).abs() < 1e-9);
        assert!(unexplained(136.0 * 1024.0, 10.0).is_some_and(|said| said.contains("136 KiB/s")));
        assert_eq!(unexplained(15.0, 10.0), None);
        assert_eq!(unexplained(-5.0, 0.0), None);
        assert_eq!(unexplained(f64::NAN, 0.0), None);
    }
}
