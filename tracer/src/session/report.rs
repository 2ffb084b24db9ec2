//! From a session to a report: sites joined, surveyed, named.

#[path = "report/collector.rs"]
pub(super) mod collector;
#[path = "report/counted.rs"]
mod counted;
#[path = "report/ended.rs"]
mod ended;
#[path = "report/lives.rs"]
mod lives;
#[path = "report/lost.rs"]
mod lost;
#[path = "report/probes.rs"]
mod probes;
#[path = "report/sampled.rs"]
mod sampled;
#[path = "report/survey.rs"]
mod survey;
#[path = "report/unseen.rs"]
mod unseen;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use leakscope_common::{
    HIT_SLOTS, STACK_COMPLETE, STACK_FAULT, STACK_LIMIT, STACK_NO_RULE, STACK_UNKNOWN_MAPPING,
    SiteTotals, UNKNOWN_FREE_SLOT, UNKNOWN_SITE,
};

use super::{
    Session, SiteLevels,
    fault::place,
    growth::{self, MappedSites},
    looks::{self, FIRST_STACKLESS},
    moment::Moment,
    pages, pooled,
    process::Traced,
};
use crate::{
    budget::Spent,
    duration::times,
    kernel::{KernelError, MappingWay},
    kernel_memory::count_descriptors,
    ledger::{SiteHistory, SiteId, Survey},
    report::{
        Frame, FrameKind, Overhead, Process, Report, ReportParts, Site, Tier, Timestamp, Verdict,
    },
    symbol::AddressSpace,
};

/// Makes the report, of a look's totals. Only the `top` sites with the most bytes are named; the others are summed up.
pub(super) fn make(
    session: &mut Session,
    levels: SiteLevels,
    top: usize,
    moment: &Moment,
) -> Result<Report, KernelError> {
    let duration_s = moment.since(session.started).as_secs_f64();
    let (survey, unknown) = session.survey(moment)?;
    // Its process, and its now, CLOCK_MONOTONIC nanoseconds.
    let by_incarnation: HashMap<u32, (u32, u64)> = session
        .processes
        .values()
        .map(|traced| {
            let now_ns = moment.of(traced.ended).ns();
            (traced.incarnation, (traced.pid, now_ns))
        })
        .collect();
    let filtered = !session.options.min_age.is_zero();
    let born_until_ns = if filtered {
        moment.ns().saturating_sub(session.min_age_ns())
    } else {
        // What a look just found is as old as that look.
        u64::MAX
    };
    let mapped = session.mapped_sites(born_until_ns);
    let mut sites = Vec::new();
    for traced in session.processes.values() {
        session.faults.work_on(traced.pid);
        session.faults.inject(place::REPORT, Some(traced.pid));
        sampled::add(
            session, traced, &survey, &levels, &mapped, moment, &mut sites,
        );
    }
    for (id, (incarnation, totals)) in levels {
        let Some((pid, now_ns)) = by_incarnation.get(&incarnation) else {
            continue;
        };
        session.faults.work_on(*pid);
        let mapping = mapped.get(&id).map(|(_, survey)| survey);
        if mapping.is_some_and(|survey| survey.alloc_objects == 0) {
            // Address space that was never made memory.
            continue;
        }
        if session.is_sampled(*pid) && mapping.is_none() {
            continue;
        }
        let survives = survey.site(id).kept_objects > 0
            || mapping.is_some_and(|survey| survey.inuse_objects > 0);
        if filtered && !survives {
            continue;
        }
        let mut made = site(session, &survey, id, *pid, incarnation, &totals, *now_ns);
        if mapping.is_none() {
            let known = session.ledger.site(id);
            let fates = known.and_then(SiteHistory::fates);
            lives::describe(
                &mut made,
                survey.alive(id).cloned().unwrap_or_default(),
                fates,
            );
            let most = known.map_or(0, |known| known.most_bytes.max(0.0) as u64);
            made.peak_bytes = Some(most.max(made.inuse_bytes));
        }
        if let Some(survey) = mapping {
            growth::describe(&mut made, survey, session.stack_use.touched(id), *now_ns);
        }
        sites.push(made);
    }
    for (id, (incarnation, survey)) in session.paged_sites(born_until_ns) {
        let process = by_incarnation.get(&incarnation);
        // A stack that maps and touches in the same system call is one of mappings.
        let is_shown = !mapped.contains_key(&id) && (!filtered || survey.inuse_pages > 0);
        if let Some((pid, now_ns)) = process.filter(|_| is_shown) {
            let mut site = identity(session, id, *pid, incarnation);
            pages::describe(&mut site, &survey, *now_ns);
            sites.push(site);
        }
    }
    session.add_go_sites(&mut sites);
    session.add_object_sites(moment, &mut sites);
    session.add_go_blocks(moment, &mut sites);
    for (incarnation, survey) in &unknown {
        let Some((pid, now_ns)) = by_incarnation.get(incarnation) else {
            continue;
        };
        if session.is_sampled(*pid) {
            continue;
        }
        // What was freed of them is not known by process: what survives is what can be said.
        let (objects, bytes) = survey.inuse(UNKNOWN_SITE);
        let totals = SiteTotals {
            alloc_objects: objects,
            alloc_bytes: bytes,
            ..SiteTotals::default()
        };
        sites.push(site(
            session,
            survey,
            UNKNOWN_SITE,
            *pid,
            *incarnation,
            &totals,
            *now_ns,
        ));
    }
    for site in &mut sites {
        if let Ok(id) = SiteId::try_from(site.id) {
            session.heaps.describe_site(id, site);
            session.describe_end(id, site);
        }
    }
    let mut hits_total = 0_u64;
    let mut duty = 0.0;
    let mut spent = BTreeMap::new();
    let mut processes = Vec::new();
    let pids: Vec<u32> = session.processes.keys().copied().collect();
    let hits_of = session.probe.hits();
    let proc_root = session.proc_root().to_owned();
    for pid in pids {
        session.faults.work_on(pid);
        if let Some(traced) = session.processes.get_mut(&pid)
            && traced.ended.is_some()
            && !traced.failed
        {
            traced.measure_end(&proc_root);
        }
        let Some(traced) = session.processes.get(&pid) else {
            continue;
        };
        let mut hits = hits_of
            .get(&traced.incarnation)
            .copied()
            .unwrap_or([0; HIT_SLOTS]);
        for (sum, before) in hits.iter_mut().zip(traced.windows.hits_before()) {
            *sum += before;
        }
        duty +=
            traced.windows.duty(&moment.of(traced.ended)) / session.processes.len().max(1) as f64;
        let calls = hits
            .iter()
            .take(UNKNOWN_FREE_SLOT)
            .fold(0_u64, |sum, hits| sum.saturating_add(*hits));
        let of_go = session.go.hits(traced.incarnation);
        hits_total = hits_total.saturating_add(calls).saturating_add(of_go);
        spent.insert(pid, spent_on(session, traced, calls));
        let mut told = process(traced, &hits);
        if traced.ended.is_none() {
            session.heaps.describe(traced, &hits, &mut told);
        }
        session.go.describe(traced.incarnation, &mut told);
        if let Some(python) = &traced.python {
            let release = format!("CPython {}", python.python.release());
            session
                .objects
                .describe(traced.incarnation, &release, &mut told);
        }
        processes.push(told);
    }
    session.faults.work_on(None);
    for traced in &session.faults.not_shown {
        processes.push(not_shown(traced));
    }
    let mut all = spent
        .values()
        .fold(Spent::default(), |sum, spent| sum.and(*spent));
    // What windows took is told apart from it.
    for traced in session.processes.values() {
        all.cost = all
            .cost
            .saturating_add(session.objects.cost(traced.incarnation));
    }
    let mut parts = ReportParts {
        captured_at: Timestamp::from(moment.wall()),
        duration_s,
        tier: if session.options.mappings_only {
            Tier::Growth
        } else {
            sampled::tier(session)
        },
        tier_reason: if session.options.mappings_only {
            mappings_only(session)
        } else {
            sampled::tier_reason(session, &spent)
        },
        processes,
        sites,
        losses: session
            .losses()
            .into_iter()
            .map(|(loss, count)| (loss.name().to_owned(), count))
            .collect(),
        overhead: Overhead {
            probe_hits: hits_total,
            duty,
            target_cpu_fraction: all.fraction(),
            budget: session.options.budget,
            tracer_cores: session.own_cores(moment),
        },
        ..ReportParts::default()
    };
    let mut suppressed = BTreeMap::new();
    let suppressions = session.options.suppressions.clone();
    if !suppressions.is_empty() {
        name(session, &mut parts.sites);
        suppressed = suppressions.apply(&mut parts);
    }
    parts.add_up();
    parts.processes.iter_mut().for_each(forget_stale_memory);
    let filters = session.options.filters();
    for process in &mut parts.processes {
        if process.empty_reason.is_some() {
            // Suppressed.
            continue;
        }
        process.empty_reason = if session.options.mappings_only {
            (process.alloc_objects == 0).then(|| nothing_mapped(filters.as_deref()))
        } else {
            empty_reason(process, filters.as_deref())
        };
    }
    session.judge(&mut parts, moment);
    lost::judge(session, &mut parts);
    unseen::tell(session, &mut parts, &suppressed);
    session.describe_kernel(&mut parts, moment);
    parts.processes.iter_mut().for_each(unseen::tell_of_kernel);
    parts.keep_top(top);
    name(session, &mut parts.sites);
    // Some is known only now: of which files there are no names.
    for process in &mut parts.processes {
        let traced = session.processes.get(&process.pid);
        if let Some(traced) = traced.filter(|traced| traced.incarnation == process.incarnation) {
            let survives = process.inuse_objects > 0 || process.inuse_bytes > 0;
            let is_told = traced.ended.is_some() || process.kernel.is_some();
            let descriptors = (!is_told).then(|| count_descriptors(&proc_root, traced.pid));
            let at_exit = session.options.at_exit;
            process.exit_note = ended::note(traced, at_exit, survives, descriptors.flatten());
        }
    }
    let report = Report::new(parts);
    if cfg!(debug_assertions) {
        let found = report.contradictions();
        assert!(found.is_empty(), "a report contradicts itself: {found:?}");
    }
    Ok(report)
}

/// A site without its frames: only those that are shown are named.
fn site(
    session: &Session,
    survey: &Survey,
    id: SiteId,
    pid: u32,
    incarnation: u32,
    totals: &SiteTotals,
    now_ns: u64,
) -> Site {
    // The totals are of one moment; the live table is walked for some milliseconds, in which a busy process goes on. They
    // know neither ages nor, once frees of thinned blocks cannot be told, what survives.
    let from_totals =
        survey.weight() == 1 && session.options.min_age.is_zero() && id != UNKNOWN_SITE;
    let (inuse_objects, inuse_bytes) = if from_totals {
        (
            balance(totals.alloc_objects, totals.free_objects),
            balance(totals.alloc_bytes, totals.free_bytes),
        )
    } else {
        survey.inuse(id)
    };
    let (low, high) = if from_totals {
        (inuse_bytes, inuse_bytes)
    } else {
        survey.interval(id)
    };
    // No more can survive than was allocated, which is counted exactly however thin the live table is. Where it is not thinned, a
    // block may have been stored between the two looks.
    let (alloc_objects, alloc_bytes) = if survey.weight() == 1 {
        (
            totals.alloc_objects.max(inuse_objects),
            totals.alloc_bytes.max(inuse_bytes),
        )
    } else {
        (totals.alloc_objects, totals.alloc_bytes)
    };
    Site {
        inuse_bytes: inuse_bytes.min(alloc_bytes),
        inuse_objects: inuse_objects.min(alloc_objects),
        alloc_bytes,
        alloc_objects,
        inuse_bytes_low: low.min(alloc_bytes),
        inuse_bytes_high: high.min(alloc_bytes),
        oldest_age_s: survey
            .site(id)
            .oldest_born_ns
            .map_or(0.0, |born| now_ns.saturating_sub(born) as f64 / 1e9),
        growth_bytes_per_s: 0.0,
        verdict: Verdict::InsufficientData,
        verdict_reason: String::new(),
        weight: survey.weight(),
        ..identity(session, id, pid, incarnation)
    }
}

/// A site without figures and frames.
fn identity(session: &Session, id: SiteId, pid: u32, incarnation: u32) -> Site {
    identity_of(session, id, id, pid, incarnation)
}

/// The same, with the stack of another site.
pub(super) fn identity_of(
    session: &Session,
    stack: SiteId,
    id: SiteId,
    pid: u32,
    incarnation: u32,
) -> Site {
    let stack = session.stacks.get(&stack).filter(|_| id != UNKNOWN_SITE);
    let flags = stack.map_or(0, |stack| stack.flags);
    let allocator = stack.and_then(|stack| {
        let sites = &session.processes.get(&pid)?.sites;
        let mut called = sites
            .iter()
            .filter(|site| site.hit_slot == stack.hit_slot)
            .map(|site| &site.allocator);
        let first = called.next()?;
        // Functions of several allocators may share a counter.
        called.all(|other| other == first).then(|| first.clone())
    });
    Site {
        pid,
        incarnation,
        id: u64::from(id),
        allocator,
        stack_complete: flags & STACK_COMPLETE != 0,
        stack_incomplete_reason: incomplete_reason(stack.is_some(), flags, id),
        ..Site::default()
    }
}

/// What was allocated less what was freed; a free may be counted between the two looks.
fn balance(allocated: u64, freed: u64) -> u64 {
    let difference = allocated.wrapping_sub(freed);
    if difference > u64::MAX / 2 {
        0
    } else {
        difference
    }
}

/// Why a stack was not walked to its end.
fn incomplete_reason(known: bool, flags: u16, id: SiteId) -> Option<String> {
    let reason = if id == UNKNOWN_SITE {
        "the stack table was full"
    } else if id >= FIRST_STACKLESS {
        "mapped at an address that the program chose, or by brk: seen by looking, without a stack"
    } else if !known {
        "it has not been handed over by the kernel yet"
    } else if flags & STACK_COMPLETE != 0 {
        return None;
    } else if flags & STACK_LIMIT != 0 {
        "it has more than 127 frames"
    } else if flags & STACK_FAULT != 0 {
        "stack memory could not be read"
    } else if flags & STACK_UNKNOWN_MAPPING != 0 {
        "an address lies in no known mapping"
    } else if flags & STACK_NO_RULE != 0 {
        "the file of the last frame does not say how to leave it"
    } else {
        "the walk was cut short"
    };
    Some(reason.to_owned())
}

/// Of a program that generates code and does not say what.
const NO_PERF_MAP: &str = "functions that it generated as it ran have no names: a perf map gives them (`node --perf-basic-prof`; for Java an agent such as perf-map-agent)";

/// Names the frames of the sites that are shown.
fn name(session: &mut Session, sites: &mut [Site]) {
    let proc_root = session.proc_root().to_owned();
    for traced in session.processes.values_mut() {
        let stacks = sites.iter().filter_map(|site| {
            let id = pooled::stack_of(SiteId::try_from(site.id).ok()?);
            let stack = session.stacks.get(&id).filter(|_| id != UNKNOWN_SITE)?;
            let is_wanted = site.frames.is_empty()
                && site.pid == traced.pid
                && stack.incarnation == traced.incarnation;
            is_wanted.then_some(&stack.frames[..])
        });
        let read = traced.space.read_perf_map(&proc_root, traced.pid, stacks);
        if let Err(why) = read {
            traced.note(format!(
                "the functions that it generated have no names: {why}"
            ));
        }
    }
    let nothing = AddressSpace::default();
    let mut generating = BTreeSet::new();
    for site in sites {
        let Ok(id) = SiteId::try_from(site.id) else {
            continue;
        };
        if !site.frames.is_empty() {
            continue;
        }
        if let Some(frames) = session.go.frames(site.incarnation, id) {
            site.frames = frames;
            continue;
        }
        let is_of_objects = pooled::is_of_objects(id);
        let id = pooled::stack_of(id);
        let Some(stack) = session.stacks.get(&id).filter(|_| id != UNKNOWN_SITE) else {
            continue;
        };
        let space = session
            .processes
            .get(&site.pid)
            .filter(|traced| traced.incarnation == stack.incarnation)
            .map_or(&nothing, |traced| &traced.space);
        let frames = if is_of_objects {
            pooled::from_the_interpreter(space, &stack.frames)
        } else {
            &stack.frames
        };
        site.frames = session.resolver.stack(space, frames);
        session.go.name(site.incarnation, &mut site.frames);
        let is_nameless = |frame: &Frame| frame.kind == FrameKind::Jit && frame.function.is_none();
        if site.frames.iter().any(|frame| is_nameless(frame)) {
            generating.insert(site.pid);
        }
    }
    for pid in generating {
        if let Some(traced) = session.processes.get_mut(&pid) {
            traced.note(NO_PERF_MAP.to_owned());
        }
    }
    if session.modules.refused() > 0 {
        for traced in session.processes.values_mut() {
            traced.note_not_opened();
        }
    }
    for (module, why) in session.resolver.refused() {
        for traced in session.processes.values_mut() {
            traced.note_nameless(module, &why);
        }
    }
}

/// What tracing a process has taken. Of one that has ended, processor time is known up to the last look.
fn spent_on(session: &Session, traced: &Traced, calls: u64) -> Spent {
    let (faults, fault_time) = session.pages.cost(traced.incarnation);
    let steps = session
        .growth
        .steps(traced.incarnation)
        .saturating_add(faults);
    let of_go = session.go.hits(traced.incarnation);
    let all_hits = calls.saturating_add(steps).saturating_add(of_go);
    let cpu = traced.cpu_first.zip(traced.cpu_last);
    Spent {
        cpu: cpu.map_or(Duration::ZERO, |(before, after)| {
            after.saturating_sub(before)
        }),
        cost: times(session.costs.hit, all_hits as f64)
            .saturating_add(fault_time)
            .saturating_add(traced.windows.sampling())
            .saturating_add(traced.windows.spent()),
    }
}

/// A process of which nothing can be shown.
fn not_shown(traced: &Traced) -> Process {
    Process {
        pid: traced.pid,
        incarnation: traced.incarnation,
        comm: traced.comm.clone(),
        cgroup: traced.cgroup.clone(),
        container: traced.container.clone(),
        empty_reason: Some(NOT_SHOWN.to_owned()),
        ..Process::default()
    }
}

/// A process, without sums.
fn process(traced: &Traced, hits: &[u64; HIT_SLOTS]) -> Process {
    let mut allocators: Vec<String> = Vec::new();
    for site in &traced.sites {
        if !allocators.contains(&site.allocator) {
            allocators.push(site.allocator.clone());
        }
    }
    let growth = match (traced.rss_first, traced.rss_last) {
        (Some((from, before)), Some((to, after))) if to > from => {
            (after as f64 - before as f64) / (to - from).as_secs_f64()
        }
        _ => 0.0,
    };
    // Of one that has ended, the look at its beginning says nothing of what it came to.
    let is_stale = traced.ended.is_some() && traced.rss_first == traced.rss_last;
    let resident = traced.rss_last.filter(|_| !is_stale);
    Process {
        pid: traced.pid,
        incarnation: traced.incarnation,
        comm: traced.comm.clone(),
        program: traced.program.clone(),
        cgroup: traced.cgroup.clone(),
        container: traced.container.clone(),
        allocators,
        rss_bytes: resident.map_or(0, |(_, bytes)| bytes),
        rss_growth_bytes_per_s: growth,
        anonymous_bytes: traced.anonymous_bytes,
        swapped_bytes: traced.swapped_bytes,
        frees_of_unknown_blocks: hits.get(UNKNOWN_FREE_SLOT).copied().unwrap_or(0),
        probes: probes::told(&traced.sites, hits),
        exited: traced.ended.is_some() && !traced.failed,
        ended: traced.ended.and_then(|_| traced.end.told()),
        ..Process::default()
    }
}

/// Leaves out the memory of a process that has ended where more survives of it: it was looked at long before.
fn forget_stale_memory(process: &mut Process) {
    if process.exited && process.rss_bytes < process.inuse_bytes {
        process.rss_bytes = 0;
        process.rss_growth_bytes_per_s = 0.0;
    }
}

/// Why there is nothing to show of a process.
fn empty_reason(process: &Process, filters: Option<&str>) -> Option<String> {
    if process.alloc_objects > 0 {
        return None;
    }
    let hits: u64 = process.probes.iter().map(|probe| probe.hits).sum();
    Some(if process.probes.is_empty() {
        unseen::NOTHING_ATTACHED.to_owned()
    } else if hits == 0 {
        format!(
            "no allocator calls while it was traced ({} functions probed)",
            process.probes.len()
        )
    } else if let Some(filters) = filters {
        format!("{hits} allocator calls, and no surviving block that passes {filters}")
    } else {
        format!("{hits} allocator calls, none of which allocated")
    })
}

/// What is said of a process whose part of the report failed.
const NOT_SHOWN: &str =
    "internal error: leakscope stopped tracing it, and cannot show what was seen";

/// Why there is nothing to show of a process of which only mappings are seen.
fn nothing_mapped(filters: Option<&str>) -> String {
    let what = match filters {
        None => "it mapped no memory while it was traced".to_owned(),
        Some(filters) => format!("no mapping that is left passes {filters}"),
    };
    format!("{what}; no allocator is probed in this tier")
}

/// Why it is the tier of mappings.
fn mappings_only(session: &Session) -> String {
    let seen = if *session.probe.mapping_way() == MappingWay::Functions {
        "mappings are seen exactly, with the stacks that made them"
    } else {
        looks::PLACES
    };
    format!(
        "asked for: the anonymous memory of each process is read over time, and {seen}; no allocator is probed; {}",
        session.pages_note()
    )
}

#[cfg(test)]
mod tests {
    use super::forget_stale_memory;
    use crate::report::Process;

    #[test]
    fn a_command_that_ended_had_less_memory_than_survived_of_it() {
        let memory = |exited, rss_bytes| {
            let mut process = Process {
                exited,
                rss_bytes,
                inuse_bytes: 566 << 10,
                ..Process::default()
            };
            forget_stale_memory(&mut process);
            process.rss_bytes
        };
        assert_eq!(memory(true, 16 << 10), 0);
        assert_eq!(memory(true, 1 << 20), 1 << 20);
        // Blocks that were never written to are in no memory.
        assert_eq!(memory(false, 16 << 10), 16 << 10);
    }
}
