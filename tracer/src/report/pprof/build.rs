//! From the report to the tables of a profile.

use std::sync::Arc;

use hashbrown::HashMap;

use super::proto::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};
use crate::report::allocator::DROP_FRAMES;
use crate::report::difference::{Change, Difference};
use crate::report::model::{Frame, FrameKind, Omitted, Report, Site, SiteKind};
use crate::report::names::{
    TOUCHED_PAGES, UNKNOWN_STACK, base_name, clean, function, heap_use, incomplete, omitted,
    process_name, unnamed,
};

/// The sample types of pages.
pub(super) const PAGES_SPACE: &str = "pages_space";
pub(super) const PAGES_OBJECTS: &str = "pages_objects";

/// The label of a sample that is in no sum of the profile, with its values in labels that are called as the sample types are.
pub(super) const KIND: &str = "kind";
pub(super) const KINDS: [(&str, SiteKind); 2] = [
    ("goroutines", SiteKind::Goroutines),
    ("mapping", SiteKind::Mapping),
];

/// The sample types of a heap profile, in the order of [`Site`]'s fields.
pub(super) const VALUES: [&str; 4] = [
    "inuse_space",
    "inuse_objects",
    "alloc_space",
    "alloc_objects",
];

/// How the comments begin that tell of the tier, and of what was lost.
pub(super) const TIER: &str = "leakscope, tier ";
pub(super) const LOST: &str = "lost: ";

/// Mappings end at the next page.
const PAGE: u64 = 4096;

/// A file mapped in some process. The same file, or another segment of it, at another place is another mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct MappingKey<'a> {
    module: &'a str,
    build_id: Option<&'a str>,
    /// Address less file offset.
    bias: u64,
}

#[derive(PartialEq, Eq, Hash)]
struct LocationKey {
    mapping_id: u64,
    address: u64,
    lines: Vec<Line>,
}

/// The tables in the making; each with an index by what makes an entry distinct.
struct Builder<'a> {
    profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    mappings: HashMap<MappingKey<'a>, Mapping>,
    locations: HashMap<LocationKey, u64>,
}

pub(super) fn build(report: &Report) -> Profile {
    let mut builder = Builder {
        profile: Profile::default(),
        strings: HashMap::new(),
        functions: HashMap::new(),
        mappings: HashMap::new(),
        locations: HashMap::new(),
    };
    builder.string("");
    builder.header(report);
    builder.mappings(report);
    for site in &report.sites {
        builder.site(report, site);
    }
    builder.omitted(report.omitted);
    builder.profile
}

/// The stacks that changed, with by how much they did.
pub(super) fn build_difference(difference: &Difference) -> Profile {
    let report = difference.as_report();
    let mut profile = build(&report);
    // A sample for each site, in their order, and no site left out.
    let changes: HashMap<u64, &Change> = (0..).zip(&difference.changes).collect();
    let types = profile.sample_type.len();
    for (sample, site) in profile.sample.iter_mut().zip(&report.sites) {
        if let Some(change) = changes.get(&site.id) {
            let by = change.by;
            let mut value = vec![
                by.inuse_bytes_change,
                by.inuse_objects_change,
                by.alloc_bytes_change,
                by.alloc_objects_change,
            ];
            if site.kind == SiteKind::Pages {
                value = vec![0, 0, 0, 0, by.inuse_bytes_change, by.inuse_objects_change];
            }
            value.resize(types, 0);
            sample.value = value;
        }
    }
    let left_out = difference.omitted;
    if left_out.stacks > 0 {
        let mut builder = Builder::resume(profile);
        let location = builder.pseudo(&omitted(left_out.stacks));
        let mut value = vec![
            left_out.inuse_bytes_change,
            left_out.inuse_objects_change,
            left_out.alloc_bytes_change,
            left_out.alloc_objects_change,
        ];
        value.resize(types, 0);
        builder.profile.sample.push(Sample {
            location_id: vec![location],
            value,
            label: Vec::new(),
        });
        profile = builder.profile;
    }
    profile
}

impl<'a> Builder<'a> {
    /// Goes on with a finished profile: only pseudo frames can be added, as the tables' indexes are gone.
    fn resume(profile: Profile) -> Self {
        let strings = profile.string_table.iter().cloned().zip(0..).collect();
        Self {
            profile,
            strings,
            functions: HashMap::new(),
            mappings: HashMap::new(),
            locations: HashMap::new(),
        }
    }

    fn header(&mut self, report: &Report) {
        let space = self.value_type("inuse_space", "bytes");
        let mut sample_type = vec![
            space,
            self.value_type("inuse_objects", "count"),
            self.value_type("alloc_space", "bytes"),
            self.value_type("alloc_objects", "count"),
        ];
        if has_pages(report) {
            // Mappings hold the same bytes: pages have sums of their own.
            sample_type.push(self.value_type(PAGES_SPACE, "bytes"));
            sample_type.push(self.value_type(PAGES_OBJECTS, "count"));
        }
        let mut comments = vec![format!(
            "{TIER}{}: {}",
            report.tier.name(),
            report.tier_reason
        )];
        comments.extend(
            report
                .losses
                .iter()
                .filter(|&(_, &count)| count > 0)
                .map(|(cause, count)| format!("{LOST}{cause} {count}")),
        );
        comments.extend(report.processes.iter().filter_map(|process| {
            let heap = process.notable_heap()?;
            Some(format!("{}: {}", process_name(process), heap_use(heap)))
        }));
        let comment = comments
            .iter()
            .map(|text| self.string(&clean(text)))
            .collect();
        let period_type = Some(self.value_type("space", "bytes"));
        let drop_frames = self.string(DROP_FRAMES);
        let profile = &mut self.profile;
        profile.sample_type = sample_type;
        profile.default_sample_type = space.r#type;
        profile.comment = comment;
        profile.period_type = period_type;
        profile.period = 1;
        profile.drop_frames = drop_frames;
        profile.time_nanos = signed(report.captured_at.unix_ms().saturating_mul(1_000_000));
        profile.duration_nanos = (report.duration_s * 1e9) as i64;
    }

    /// All mappings first, for the first of them has to be the main program: that of the process which holds most.
    fn mappings(&mut self, report: &'a Report) {
        let program = report
            .processes
            .iter()
            .filter(|process| process.program.is_some())
            .max_by_key(|process| process.inuse_bytes)
            .and_then(|process| process.program.as_deref());
        let mut mappings: HashMap<MappingKey<'a>, Mapping> = HashMap::new();
        for frame in report.sites.iter().flat_map(|site| &site.frames) {
            let Some(key) = mapping_key(frame) else {
                continue;
            };
            // As narrow as the addresses allow: a mapping that began before the code's segment would be taken
            // for the segment before it.
            let mapping = mappings.entry(key).or_insert(Mapping {
                memory_start: u64::MAX,
                ..Mapping::default()
            });
            let address = address(frame);
            let start = address.saturating_sub(1) / PAGE * PAGE;
            let end = address.saturating_add(1).checked_next_multiple_of(PAGE);
            mapping.memory_start = mapping.memory_start.min(start).max(key.bias);
            mapping.memory_limit = mapping.memory_limit.max(end.unwrap_or(u64::MAX));
            mapping.file_offset = mapping.memory_start - key.bias;
            mapping.has_functions |= function(frame).is_some();
            mapping.has_filenames |= frame.file.is_some();
            mapping.has_line_numbers |= frame.line.is_some();
            mapping.has_inline_frames |= frame.inlined;
        }
        if let Some(module) = program
            && !mappings.keys().any(|key| key.module == module)
        {
            // No stack passes through it, or none gets that far.
            let key = MappingKey {
                module,
                build_id: None,
                bias: 0,
            };
            mappings.insert(key, Mapping::default());
        }
        let mut mappings: Vec<_> = mappings.into_iter().collect();
        mappings.sort_unstable_by_key(|(key, _)| {
            (Some(key.module) != program, is_library(key.module), *key)
        });
        for (place, (key, mut mapping)) in mappings.into_iter().enumerate() {
            mapping.id = place as u64 + 1;
            mapping.filename = self.string(key.module);
            mapping.build_id = self.string(key.build_id.unwrap_or_default());
            self.profile.mapping.push(mapping);
            self.mappings.insert(key, mapping);
        }
    }

    fn site(&mut self, report: &'a Report, site: &'a Site) {
        let mut location_id = Vec::with_capacity(site.frames.len());
        // Inlined frames share the address of the frame that they were inlined into, which follows them.
        for (place, frames) in site
            .frames
            .chunk_by(|inlined, holder| is_inlined_into(inlined, holder))
            .enumerate()
        {
            let is_call = place > 0 || frames.iter().any(|frame| frame.kind == FrameKind::Go);
            location_id.push(self.location(frames, is_call));
        }
        if site.frames.is_empty() {
            location_id.push(self.pseudo(UNKNOWN_STACK));
        }
        if let Some(root) = incomplete(site) {
            location_id.push(self.pseudo(&root));
        }
        if site.kind == SiteKind::Pages {
            location_id.push(self.pseudo(TOUCHED_PAGES));
        }
        let process = report.process_of(site);
        let unreachable = site.reachability.map_or(0, |found| found.unreachable);
        let unreachable = (unreachable > 0).then(|| unreachable.to_string());
        let mut label: Vec<Label> = [
            ("pid", site.pid.to_string().as_str()),
            ("comm", process.map_or("", |process| &process.comm)),
            ("cgroup", process.map_or("", |process| &process.cgroup)),
            ("allocator", site.allocator.as_deref().unwrap_or_default()),
            ("verdict", site.verdict.name()),
            ("type", site.types.first().map_or("", |of| &of.name)),
            ("unreachable_objects", unreachable.as_deref().unwrap_or("")),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| Label {
            key: self.string(key),
            str: self.string(value),
            ..Label::default()
        })
        .collect();
        let mut value = values(
            site.inuse_bytes,
            site.inuse_objects,
            site.alloc_bytes,
            site.alloc_objects,
        );
        let has_profile = process
            .and_then(|process| process.go.as_ref())
            .is_some_and(|go| go.profile_rate_bytes > 0);
        if site.kind == SiteKind::Goroutines || site.kind == SiteKind::Mapping && has_profile {
            // Goroutines have a profile of their own, and a Go program's own knows no mappings.
            self.beside_the_sums(site.kind, &mut value, &mut label);
        }
        if has_pages(report) {
            value.resize(6, 0);
            if site.kind == SiteKind::Pages {
                let pages = [signed(site.inuse_bytes), signed(site.inuse_objects)];
                value = [&[0; 4][..], &pages].concat();
            }
        }
        self.profile.sample.push(Sample {
            location_id,
            value,
            label,
        });
    }

    /// Puts values into labels, where who reads the profile again finds them.
    fn beside_the_sums(&mut self, kind: SiteKind, value: &mut [i64], label: &mut Vec<Label>) {
        for (name, _) in KINDS.into_iter().filter(|(_, of)| *of == kind) {
            label.push(Label {
                key: self.string(KIND),
                str: self.string(name),
                ..Label::default()
            });
        }
        for (key, value) in VALUES.into_iter().zip(value) {
            label.push(Label {
                key: self.string(key),
                num: std::mem::take(value),
                ..Label::default()
            });
        }
    }

    fn omitted(&mut self, sum: Omitted) {
        if sum.sites == 0 {
            return;
        }
        let location = self.pseudo(&omitted(sum.sites));
        let mut value = values(
            sum.inuse_bytes,
            sum.inuse_objects,
            sum.alloc_bytes,
            sum.alloc_objects,
        );
        value.resize(self.profile.sample_type.len(), 0);
        self.profile.sample.push(Sample {
            location_id: vec![location],
            value,
            label: Vec::new(),
        });
    }

    /// The location of one address: the frames inlined there, and the one that holds them.
    fn location(&mut self, frames: &[Arc<Frame>], is_caller: bool) -> u64 {
        let Some(frame) = frames.last() else {
            return self.pseudo(UNKNOWN_STACK);
        };
        let mapping = mapping_key(frame).and_then(|key| self.mappings.get(&key).copied());
        // pprof names the addresses itself where a mapping has no names at all; among named ones it would show no
        // more than the module.
        let leave_to_pprof = mapping.is_some_and(|mapping| !mapping.has_functions);
        let lines = if leave_to_pprof {
            Vec::new()
        } else {
            frames.iter().map(|frame| self.line(frame)).collect()
        };
        // A return address may already belong to the next function; the call before it does not.
        let back = u64::from(is_caller && frame.kind != FrameKind::Python);
        let mapping_id = mapping.map_or(0, |mapping| mapping.id);
        let start = mapping.map_or(0, |mapping| mapping.memory_start);
        self.intern_location(LocationKey {
            mapping_id,
            address: address(frame).saturating_sub(back).max(start),
            lines,
        })
    }

    /// A location that is no code: a name in brackets.
    fn pseudo(&mut self, name: &str) -> u64 {
        let function_id = self.function(name, "");
        self.intern_location(LocationKey {
            mapping_id: 0,
            address: 0,
            lines: vec![Line {
                function_id,
                line: 0,
            }],
        })
    }

    fn intern_location(&mut self, key: LocationKey) -> u64 {
        if let Some(&id) = self.locations.get(&key) {
            return id;
        }
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location {
            id,
            mapping_id: key.mapping_id,
            address: key.address,
            line: key.lines.clone(),
        });
        self.locations.insert(key, id);
        id
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let file = frame.file.as_deref().unwrap_or_default();
        let function_id = match function(frame) {
            // Where the two names are the same, pprof takes `<module>` for the parameters of a template, and drops it.
            Some(function) if frame.kind == FrameKind::Python => {
                self.function_of(function, &format!("python {function}"), file)
            }
            Some(function) => self.function(function, file),
            None => self.function(&unnamed(frame), file),
        };
        Line {
            function_id,
            line: i64::from(frame.line.unwrap_or_default()),
        }
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        self.function_of(name, name, file)
    }

    /// A function that its runtime calls otherwise.
    fn function_of(&mut self, name: &str, system_name: &str, file: &str) -> u64 {
        let system_name = self.string(system_name);
        let key = (self.string(name), self.string(file));
        if let Some(&id) = self.functions.get(&key) {
            return id;
        }
        let id = self.profile.function.len() as u64 + 1;
        self.profile.function.push(Function {
            id,
            name: key.0,
            system_name,
            filename: key.1,
            start_line: 0,
        });
        self.functions.insert(key, id);
        id
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            r#type: self.string(kind),
            unit: self.string(unit),
        }
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.strings.get(text) {
            return index;
        }
        let index = signed(self.profile.string_table.len() as u64);
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }
}

fn is_inlined_into(frame: &Frame, next: &Frame) -> bool {
    let elsewhere =
        frame.address.is_some() && next.address.is_some() && frame.address != next.address;
    frame.inlined && !elsewhere
}

fn mapping_key(frame: &Frame) -> Option<MappingKey<'_>> {
    let bias = match (frame.address, frame.file_offset.or(frame.offset)) {
        (Some(address), Some(offset)) => address.saturating_sub(offset),
        _ => 0,
    };
    Some(MappingKey {
        module: frame.module.as_deref()?,
        build_id: frame.build_id.as_deref(),
        bias,
    })
}

fn address(frame: &Frame) -> u64 {
    frame.address.or(frame.offset).unwrap_or_default()
}

fn is_library(module: &str) -> bool {
    let name = base_name(module);
    name.contains(".so") || name.starts_with('[')
}

/// Whether there are sites of pages.
fn has_pages(report: &Report) -> bool {
    report.sites.iter().any(|site| site.kind == SiteKind::Pages)
}

fn values(inuse_bytes: u64, inuse_objects: u64, alloc_bytes: u64, alloc_objects: u64) -> Vec<i64> {
    [inuse_bytes, inuse_objects, alloc_bytes, alloc_objects]
        .map(signed)
        .to_vec()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
