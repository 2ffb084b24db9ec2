//! The part of a report that comes from windows: estimates from cohorts, and what the window that is open has seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{MappedSites, Moment, Session, SiteLevels, Traced, identity, lives, unseen};
use crate::{
    budget::{Choice, Mode, Spent},
    kernel::LinkMode,
    ledger::{Counted, Held, SiteId, Survey, bound},
    report::{CountedGrowth, CountedSize, Sample, Site, Tier},
    session::pooled::FIRST_WRITES,
    units::duration,
};

impl Session {
    /// Whether calls of a process were not seen all the time.
    pub(in crate::session) fn is_sampled(&self, pid: u32) -> bool {
        self.processes
            .get(&pid)
            .is_some_and(|traced| traced.windows.cohorts.windows() > 0)
    }
}

/// Adds the sites of a process whose calls were seen in windows. `totals` are of all sites, by [`Session::joined_sites`]; those that
/// are `mapped` are not among what was seen in windows.
pub(super) fn add(
    session: &Session,
    traced: &Traced,
    survey: &Survey,
    totals: &SiteLevels,
    mapped: &MappedSites,
    moment: &Moment,
    sites: &mut Vec<Site>,
) {
    if !session.is_sampled(traced.pid) {
        return;
    }
    let windows = &traced.windows;
    let moment = moment.of(traced.ended);
    let now_ns = moment.ns();
    let covered_until_ns = windows.opened_ns().unwrap_or(now_ns);
    let min_age = session.options.min_age;
    let (estimates, known) = windows.estimates(&moment, covered_until_ns, min_age.as_secs_f64());
    let mut fates = windows.cohorts.fates();
    let mut alive = windows.cohorts.alive(now_ns, min_age.as_secs_f64());
    let mut found = Vec::new();
    // Seconds of windows, and since when every call is seen again.
    let exact = windows.exact_since_ns().map(|since_ns| {
        let since = now_ns.saturating_sub(since_ns) as f64 / 1e9;
        let before = windows.weighed(&moment, covered_until_ns).cohorts;
        (before.effective_s(), since.max(1e-9))
    });
    let mut ids: BTreeSet<SiteId> = estimates.keys().copied().collect();
    if windows.is_open() {
        ids.extend(
            totals
                .iter()
                .filter(|(site, (incarnation, _))| {
                    *incarnation == traced.incarnation && !mapped.contains_key(site)
                })
                .map(|(site, _)| *site),
        );
    }
    let before = windows.births_before(|site| session.joined(site));
    for id in ids {
        let estimate = estimates.get(&id).copied().unwrap_or_default();
        let (mut objects, mut bytes) = (estimate.inuse_objects, estimate.inuse_bytes);
        let (mut low, mut high) = (estimate.inuse_bytes_low, estimate.inuse_bytes_high);
        let (mut alloc_objects, mut alloc_bytes) = (estimate.alloc_objects, estimate.alloc_bytes);
        let mut oldest_ns = estimate.oldest_born_ns;
        let mut counted = estimate.counted_bytes;
        if windows.is_open() {
            // All that the open window saw is counted, not estimated.
            let (open_objects, open_bytes) = survey.inuse(id);
            let (open_low, open_high) = survey.interval(id);
            objects += open_objects;
            bytes += open_bytes;
            low += open_low;
            high = high.saturating_add(open_high);
            counted += open_bytes;
            let (objects_before, bytes_before) = before.get(&id).copied().unwrap_or_default();
            if let Some((_, totals)) = totals.get(&id) {
                alloc_objects += totals.alloc_objects.saturating_sub(objects_before);
                alloc_bytes += totals.alloc_bytes.saturating_sub(bytes_before);
            }
            oldest_ns = oldest_ns.or(survey.site(id).oldest_born_ns);
        }
        if objects == 0 && !min_age.is_zero() {
            continue;
        }
        found.push((
            Held {
                bytes,
                low: low.min(bytes),
                high: high.max(bytes),
                counted,
            },
            Site {
                inuse_objects: objects,
                alloc_bytes,
                alloc_objects,
                oldest_age_s: oldest_ns
                    .map_or(0.0, |born| now_ns.saturating_sub(born) as f64 / 1e9),
                growth_bytes_per_s: exact.map_or(estimate.growth_bytes_per_s, |(before, since)| {
                    let (_, born) = survey.inuse(id);
                    (estimate.growth_bytes_per_s * before + born as f64) / (before + since)
                }),
                weight: windows.cohorts.weight().max(survey.weight()),
                sample: Some(Sample {
                    objects: estimate.observed_objects,
                    alike_objects: estimate.alike_objects,
                    windows: estimate.windows,
                    checks: estimate.checks,
                    counted_bytes: 0,
                }),
                counted: known.as_ref().and_then(|known| counted_growth(known, id)),
                ..identity(session, id, traced.pid, traced.incarnation)
            },
        ));
    }
    let (mut held, found): (Vec<Held>, Vec<Site>) = found.into_iter().unzip();
    let before = held.clone();
    bound(
        &mut held,
        traced.anonymous_bytes.saturating_add(traced.swapped_bytes),
    );
    for ((mut site, held), before) in found.into_iter().zip(held).zip(before) {
        site.inuse_bytes = held.bytes;
        site.inuse_bytes_low = held.low;
        site.inuse_bytes_high = held.high;
        let left = held.bytes as f64 / before.bytes.max(1) as f64;
        site.inuse_objects = (site.inuse_objects as f64 * left).round() as u64;
        site.alloc_bytes = site.alloc_bytes.max(site.inuse_bytes);
        site.alloc_objects = site.alloc_objects.max(site.inuse_objects);
        if let Some(sample) = &mut site.sample {
            sample.counted_bytes = held.counted;
        }
        if let Ok(id) = SiteId::try_from(site.id) {
            let is_counted = |known: &Counted| known.sites.get(&id).is_some_and(|of| of.is_divided);
            let untouched = before.bytes.saturating_sub(held.bytes);
            if untouched > before.bytes / 20 && known.as_ref().is_some_and(is_counted) {
                site.reserved_bytes = untouched;
            }
            let mut there = alive.remove(&id).unwrap_or_default();
            if let Some(open) = survey.alive(id).filter(|_| windows.is_open()) {
                there.add(open);
            }
            lives::describe(&mut site, there, fates.remove(&id));
        }
        sites.push(site);
    }
}

/// What was counted of a site's blocks.
fn counted_growth(known: &Counted, id: SiteId) -> Option<CountedGrowth> {
    let site = known.sites.get(&id)?;
    // Of one whose blocks become longer no size tells.
    if site.lengthens.is_some() {
        return None;
    }
    Some(CountedGrowth {
        block_bytes: site.size,
        growth_bytes_per_s: site.bytes_per_s,
        growth_error_bytes_per_s: site.error(),
        // Of those that stay: where none does, none is anybody's.
        share: if site.is_divided { site.share } else { 0.0 },
        share_error: site.share_error,
        looks: known.looks,
        last_age_s: known.last_s,
        sizes: site
            .sizes
            .iter()
            .filter(|of| of.objects > 0)
            .map(|of| CountedSize {
                block_bytes: of.size,
                objects: of.objects,
                counted_objects: of.counted as u64,
            })
            .collect(),
    })
}

/// The tier of the whole report: of its processes, the one of which least was seen.
pub(super) fn tier(session: &Session) -> Tier {
    let sampled = session.processes.values().any(|traced| {
        session.is_sampled(traced.pid) || traced.windows.controller.mode() == Mode::Sampled
    });
    if sampled { Tier::Sampled } else { Tier::Exact }
}

/// Why the tier was taken.
pub(super) fn tier_reason(session: &Session, spent: &BTreeMap<u32, Spent>) -> String {
    let shift = session.probe.thin_shift();
    let thinned = if shift == 0 {
        String::new()
    } else {
        format!(
            "; the live table was full, so that one of {} blocks is kept and figures are estimates",
            1_u64 << shift
        )
    };
    let mode = session.probe.link_mode();
    let links = if session
        .processes
        .values()
        .all(|traced| traced.sites.is_empty())
    {
        String::new()
    } else {
        format!("; through {} links", mode.name())
    };
    let rarer = if mode == LinkMode::Perf && tier(session) == Tier::Sampled {
        ", with which a window takes a second or more to end, so that there are fewer windows"
    } else {
        ""
    };
    let others = if session.traps_others() {
        "; so many processes were selected that the probes are in their files for all processes: others that map them are slowed too, and not recorded"
    } else {
        ""
    };
    let reasons = reasons(session, spent);
    let mappings = session
        .mapping_note()
        .map(|note| format!("; {note}"))
        .unwrap_or_default();
    let objects = objects(session, spent);
    format!("{reasons}{links}{rarer}{others}{thinned}{mappings}{objects}")
}

/// What is told of objects of interpreters.
fn objects(session: &Session, spent: &BTreeMap<u32, Spent>) -> String {
    if !session.objects.are_looked_at() {
        return String::new();
    }
    let took = session
        .processes
        .values()
        .map(|traced| session.objects.cost(traced.incarnation))
        .fold(Duration::ZERO, Duration::saturating_add);
    let probes = (spent.values()).fold(Spent::default(), |sum, spent| sum.and(*spent));
    let all = Spent {
        cost: probes.cost.saturating_add(took),
        ..probes
    };
    let beside = if all.fraction() > session.options.budget && !took.is_zero() {
        let first = duration(FIRST_WRITES.as_secs_f64());
        format!(
            ", which took {}: the first {first} of each process are beside the budget",
            duration(took.as_secs_f64())
        )
    } else {
        String::new()
    };
    format!(
        "; CPython's objects are counted by type, and some are watched as they are made{beside}"
    )
}

/// Of so many processes it is said for each why its calls were seen as they were; of more, how many were seen how.
const FEW: usize = 5;

/// What stands for the calls of a Go program: those of its runtime are not seen, and need not be.
const BY_PROFILE: &str =
    "Go's own heap profile is read, a sample of its allocations; no probe is attached";

/// The same of one without a profile.
const BY_BLOCKS: &str = "Go's blocks in use are counted by size as of its collections, and some are seen where they are allocated, by one probe in windows, of which the first 10 ms are beside the budget";

/// What is seen of a Go program without a probe at an allocator's functions.
fn by_go(session: &Session, traced: &Traced) -> Option<&'static str> {
    if !traced.sites.is_empty() {
        None
    } else if session.go.has_profile(traced.incarnation) {
        Some(BY_PROFILE)
    } else {
        session
            .go
            .sees_blocks(traced.incarnation)
            .then_some(BY_BLOCKS)
    }
}

/// Why calls were seen as they were, by process.
fn reasons(session: &Session, spent: &BTreeMap<u32, Spent>) -> String {
    let reason = |traced: &Traced| {
        if let Some(seen) = by_go(session, traced) {
            return seen.to_owned();
        }
        if traced.sites.is_empty() {
            return unseen::NOTHING_ATTACHED.to_owned();
        }
        let spent = spent.get(&traced.pid).copied().unwrap_or_default();
        let besides = session.objects.cost(traced.incarnation);
        let reason = traced.windows.controller.reason(spent, besides).to_string();
        let is_exact = traced.windows.controller.mode() == Mode::Exact;
        if is_exact && traced.ended.is_some() && !traced.windows.is_armed() {
            format!(
                "{reason}; but only until that cost too much: none of the last ones before it ended"
            )
        } else {
            reason
        }
    };
    let named = |traced: &Traced| {
        let (comm, pid) = (&traced.comm, traced.pid);
        format!("{comm} (pid {pid}): {}", reason(traced))
    };
    let is_blind = |traced: &&Traced| traced.sites.is_empty() && by_go(session, traced).is_none();
    let mut all = session.processes.values();
    let count = all.len();
    let probed = session
        .processes
        .values()
        .find(|traced| !traced.sites.is_empty());
    match all.next() {
        None => "no process matched".to_owned(),
        Some(first) if count == 1 || probed.is_none() => reason(first),
        Some(first) if session.options.tier == Choice::Exact => {
            let blind = session.processes.values();
            let blind = blind.filter(is_blind).count();
            let but = match blind {
                0 => String::new(),
                blind => format!("; but to {} nothing could be attached", processes(blind)),
            };
            format!("{}{but}", reason(probed.unwrap_or(first)))
        }
        Some(_) => {
            let (blind, others): (Vec<&Traced>, Vec<&Traced>) =
                session.processes.values().partition(is_blind);
            let (probed, of_go): (Vec<&Traced>, Vec<&Traced>) = others
                .into_iter()
                .partition(|traced| !traced.sites.is_empty());
            let (exact, sampled): (Vec<&Traced>, Vec<&Traced>) = probed
                .into_iter()
                .partition(|traced| traced.windows.controller.mode() == Mode::Exact);
            let mut said = Vec::new();
            if count > FEW {
                said.push(format!(
                    "every allocator call was seen in {}, calls in windows in {}",
                    processes(exact.len()),
                    processes(sampled.len()),
                ));
                if !blind.is_empty() {
                    said.push(format!(
                        "to {} nothing could be attached",
                        processes(blind.len())
                    ));
                }
                if !of_go.is_empty() {
                    said.push(format!(
                        "Go's own heap is read in {}",
                        processes(of_go.len())
                    ));
                }
            } else {
                said.extend(of_go.into_iter().map(named));
                said.extend(blind.into_iter().map(named));
                said.extend(exact.into_iter().map(named));
            }
            // Those that cost most are the ones that somebody asks about.
            said.extend(sampled.into_iter().take(FEW).map(named));
            said.join("; ")
        }
    }
}

fn processes(count: usize) -> String {
    let plural = if count == 1 { "" } else { "es" };
    format!("{count} process{plural}")
}
