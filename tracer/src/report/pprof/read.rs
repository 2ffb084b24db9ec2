//! From a profile back to a report: what `diff` and snapshots compare.
//!
//! A profile knows less than the report it was made from (no ages, no growth, no intervals); what it does know comes back,
//! so that the profile of the result has the same stacks and sums. Heap profiles of other programs are read too.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

use super::PprofError;
use super::build::{KIND, KINDS, LOST, PAGES_OBJECTS, PAGES_SPACE, TIER, VALUES};
use super::proto::{Function, Location, Mapping, Profile};
use crate::report::names::{
    FROM_PROFILE, INCOMPLETE, OMITTED, TOUCHED_PAGES, UNKNOWN_STACK, unnamed,
};
use crate::report::{
    Frame, Omitted, Process, Report, ReportParts, Site, SiteKind, Tier, Timestamp, Verdict,
};

/// The report that a profile tells of.
pub(super) fn report(profile: &Profile) -> Result<Report, PprofError> {
    let place_of = |wanted: &str| {
        profile
            .sample_type
            .iter()
            .position(|kind| profile.string(kind.r#type) == wanted)
    };
    let places = VALUES.map(place_of);
    let pages = [PAGES_SPACE, PAGES_OBJECTS].map(place_of);
    if places.iter().take(2).any(Option::is_none) {
        return Err(PprofError::NoHeap);
    }
    let frames = frames(profile);
    let mut parts = ReportParts {
        captured_at: Timestamp::from_unix_ms(
            u64::try_from(profile.time_nanos / 1_000_000).unwrap_or(0),
        ),
        duration_s: profile.duration_nanos as f64 / 1e9,
        tier_reason: FROM_PROFILE.to_owned(),
        ..ReportParts::default()
    };
    for comment in &profile.comment {
        take_comment(profile.string(*comment), &mut parts);
    }
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    for (place, sample) in profile.sample.iter().enumerate() {
        let value_at = |place: Option<usize>| {
            place
                .and_then(|place| sample.value.get(place))
                .map_or(0, |value| u64::try_from(*value).unwrap_or(0))
        };
        let labelled = |wanted: &str| {
            let mut labels = sample.label.iter();
            labels.find(|label| profile.string(label.key) == wanted)
        };
        let label = |wanted: &str| labelled(wanted).map(|label| profile.string(label.str));
        let beside = label(KIND).and_then(|kind| KINDS.into_iter().find(|(name, _)| *name == kind));
        let [inuse_bytes, inuse_objects, alloc_bytes, alloc_objects] = match beside {
            Some(_) => VALUES.map(|value| {
                labelled(value).map_or(0, |label| u64::try_from(label.num).unwrap_or(0))
            }),
            None => places.map(value_at),
        };
        let mut site = Site {
            pid: label("pid").and_then(|pid| pid.parse().ok()).unwrap_or(0),
            kind: beside.map_or(SiteKind::Heap, |(_, kind)| kind),
            id: place as u64,
            inuse_bytes,
            inuse_objects,
            alloc_bytes: alloc_bytes.max(inuse_bytes),
            alloc_objects: alloc_objects.max(inuse_objects),
            inuse_bytes_low: inuse_bytes,
            inuse_bytes_high: inuse_bytes,
            verdict: label("verdict").map_or_else(Verdict::default, verdict),
            weight: 1,
            allocator: label("allocator").map(str::to_owned),
            stack_complete: true,
            ..Site::default()
        };
        for (depth, id) in sample.location_id.iter().enumerate() {
            for frame in frames.get(id).into_iter().flatten() {
                // Only callers' addresses were put back by one.
                let mut frame = match (depth, frame.address) {
                    (1.., Some(address)) => Arc::new(Frame {
                        address: Some(address.saturating_add(1)),
                        offset: frame.offset.map(|offset| offset.saturating_add(1)),
                        file_offset: frame.file_offset.map(|offset| offset.saturating_add(1)),
                        ..Frame::clone(frame)
                    }),
                    _ => Arc::clone(frame),
                };
                if let Some(offset) = offset_as_name(&frame) {
                    let frame = Arc::make_mut(&mut frame);
                    frame.function = None;
                    frame.offset = Some(offset);
                }
                site.frames.push(frame);
            }
        }
        if take_pseudo_frames(&mut site, &mut parts.omitted) {
            continue;
        }
        if site.kind == SiteKind::Pages {
            let [bytes, objects] = pages.map(value_at);
            site.inuse_bytes = bytes.max(site.inuse_bytes);
            site.inuse_objects = objects.max(site.inuse_objects);
            site.alloc_bytes = site.alloc_bytes.max(site.inuse_bytes);
            site.alloc_objects = site.alloc_objects.max(site.inuse_objects);
            site.inuse_bytes_low = site.inuse_bytes;
            site.inuse_bytes_high = site.inuse_bytes;
        }
        let process = processes.entry(site.pid).or_insert_with(|| Process {
            pid: site.pid,
            comm: label("comm").unwrap_or_default().to_owned(),
            cgroup: label("cgroup").unwrap_or_default().to_owned(),
            ..Process::default()
        });
        if site.verdict == Verdict::Leaking {
            process.verdict = Verdict::Leaking;
        }
        if let Some(allocator) = &site.allocator
            && !process.allocators.contains(allocator)
        {
            process.allocators.push(allocator.clone());
        }
        parts.sites.push(site);
    }
    parts.processes = processes.into_values().collect();
    parts.add_up();
    Ok(Report::new(parts))
}

/// Takes in what [`super::build`] wrote into a comment: the tier with its reason, and what was lost.
fn take_comment(comment: &str, parts: &mut ReportParts) {
    if let Some((name, reason)) = comment
        .strip_prefix(TIER)
        .and_then(|rest| rest.split_once(": "))
        && let Some(tier) = Tier::ALL.into_iter().find(|tier| tier.name() == name)
    {
        parts.tier = tier;
        reason.clone_into(&mut parts.tier_reason);
    } else if let Some((cause, count)) = comment
        .strip_prefix(LOST)
        .and_then(|rest| rest.rsplit_once(' '))
        && let Ok(count) = count.parse()
    {
        parts.losses.insert(cause.to_owned(), count);
    }
}

/// The offset of a frame whose name is what [`super::build`] writes for none, `[module+0x1234]`.
fn offset_as_name(frame: &Frame) -> Option<u64> {
    let name = frame.function.as_deref()?.strip_suffix(']')?;
    let (_, digits) = name.rsplit_once("+0x")?;
    let offset = u64::from_str_radix(digits, 16).ok()?;
    let nameless = Frame {
        function: None,
        offset: Some(offset),
        ..frame.clone()
    };
    (frame.module.is_some() && frame.function.as_ref() == Some(&unnamed(&nameless)))
        .then_some(offset)
}

/// Takes off what [`super::build`] put in that is no code. Whether the sample was no site, but the sum of those left out.
fn take_pseudo_frames(site: &mut Site, omitted: &mut Omitted) -> bool {
    let pseudo = |frame: &Arc<Frame>| {
        frame
            .function
            .clone()
            .filter(|_| frame.module.is_none() && frame.address.is_none())
    };
    let last = |site: &Site| site.frames.last().and_then(pseudo);
    if site.frames.len() > 1 && last(site).as_deref() == Some(TOUCHED_PAGES) {
        site.kind = SiteKind::Pages;
        site.frames.pop();
    }
    let Some(root) = last(site) else {
        return false;
    };
    if let Some(count) = inner(&root, OMITTED)
        .filter(|_| site.frames.len() == 1 && site.pid == 0)
        .and_then(|count| count.parse::<u64>().ok())
    {
        omitted.add(site);
        omitted.sites = omitted.sites.saturating_add(count.saturating_sub(1));
        return true;
    }
    if root == UNKNOWN_STACK && site.frames.len() == 1 {
        site.stack_complete = false;
        site.frames.clear();
    } else if let Some(reason) = inner(&root, INCOMPLETE)
        && site.frames.len() > 1
    {
        site.stack_complete = false;
        site.stack_incomplete_reason = (!reason.is_empty()).then(|| reason.to_owned());
        site.frames.pop();
    }
    false
}

/// The text after `[NAME: ` and before `]`; empty for `[NAME]`.
fn inner<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.strip_prefix('[')?.strip_prefix(name)?;
    let rest = rest.strip_suffix(']')?;
    if rest.is_empty() {
        return Some("");
    }
    rest.strip_prefix(": ")
}

fn verdict(name: &str) -> Verdict {
    Verdict::ALL
        .into_iter()
        .find(|verdict| verdict.name() == name)
        .unwrap_or_default()
}

/// The frames of every location, inlined ones first.
fn frames(profile: &Profile) -> HashMap<u64, Vec<Arc<Frame>>> {
    let mappings: HashMap<u64, &Mapping> = profile
        .mapping
        .iter()
        .map(|mapping| (mapping.id, mapping))
        .collect();
    let functions: HashMap<u64, &Function> = profile
        .function
        .iter()
        .map(|function| (function.id, function))
        .collect();
    profile
        .location
        .iter()
        .map(|location| {
            let mapping = mappings.get(&location.mapping_id).copied();
            (
                location.id,
                location_frames(profile, location, mapping, &functions),
            )
        })
        .collect()
}

fn location_frames(
    profile: &Profile,
    location: &Location,
    mapping: Option<&Mapping>,
    functions: &HashMap<u64, &Function>,
) -> Vec<Arc<Frame>> {
    let text = |index: i64| Some(profile.string(index).to_owned()).filter(|text| !text.is_empty());
    let file_offset = mapping.map(|mapping| {
        location
            .address
            .wrapping_sub(mapping.memory_start)
            .wrapping_add(mapping.file_offset)
    });
    let place = Frame {
        module: mapping.and_then(|mapping| text(mapping.filename)),
        build_id: mapping.and_then(|mapping| text(mapping.build_id)),
        offset: file_offset,
        file_offset,
        address: Some(location.address).filter(|address| *address != 0 || mapping.is_some()),
        ..Frame::default()
    };
    if location.line.is_empty() {
        return vec![Arc::new(place)];
    }
    let last = location.line.len() - 1;
    location
        .line
        .iter()
        .enumerate()
        .map(|(depth, line)| {
            let function = functions.get(&line.function_id);
            Arc::new(Frame {
                function: function.and_then(|function| text(function.name)),
                file: function.and_then(|function| text(function.filename)),
                line: u32::try_from(line.line).ok().filter(|line| *line > 0),
                inlined: depth < last,
                ..place.clone()
            })
        })
        .collect()
}
