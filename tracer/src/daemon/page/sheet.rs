//! What the page shows at a glance, as JSON: the report's own figures under the report's own names, with each frame once and without
//! what only a closer look needs. 10,000 sites are 2 MB instead of 60.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashMap;
use serde::Serialize;

use crate::report::{
    Change, ChangeKind, Changed, Difference, Figures, Frame, FrameKind, KernelMemory, Moment,
    Omitted, Overhead, Process, Report, Site, SiteKind, SiteType, Suppressed, Tier, Timestamp,
    Titles, Verdict, is_allocator,
};

/// Points of a process's memory that are told at a glance.
const POINTS: usize = 30;

/// See the module.
#[derive(Serialize)]
pub(super) struct Sheet<'a> {
    number: u64,
    captured_at: Timestamp,
    duration_s: f64,
    tier: Tier,
    tier_reason: &'a str,
    total: Omitted,
    omitted: Omitted,
    suppressed: &'a [Suppressed],
    losses: &'a BTreeMap<String, u64>,
    overhead: Overhead,
    kernel: Option<&'a KernelMemory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Span>,
    processes: Vec<ProcessRow<'a>>,
    frames: Vec<FrameRow<'a>>,
    sites: Vec<SiteRow<'a>>,
}

/// What a difference is of.
#[derive(Serialize)]
struct Span {
    base: Moment,
    new: Moment,
    total: Changed,
    omitted: Changed,
}

/// A process.
#[derive(Serialize)]
struct ProcessRow<'a> {
    pid: u32,
    incarnation: u32,
    comm: &'a str,
    cgroup: &'a str,
    rss_bytes: u64,
    rss_growth_bytes_per_s: f64,
    inuse_bytes: u64,
    inuse_objects: u64,
    verdict: Verdict,
    verdict_reason: &'a str,
    exited: bool,
    /// Of some of the points of its series, resident bytes.
    rss_series: Vec<u64>,
}

/// A frame.
#[derive(Serialize)]
struct FrameRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    /// Where in the module, for what has no name; in hexadecimal, for numbers of JavaScript have 53 bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    inlined: bool,
    #[serde(skip_serializing_if = "is_default")]
    kind: FrameKind,
    /// It is the allocator's own, where it stands at a stack's leaf.
    #[serde(skip_serializing_if = "is_default")]
    allocator: bool,
}

/// A site. What is as it is in most is left out.
#[derive(Serialize)]
struct SiteRow<'a> {
    pid: u32,
    incarnation: u32,
    id: u64,
    #[serde(skip_serializing_if = "is_default")]
    kind: SiteKind,
    inuse_bytes: u64,
    inuse_objects: u64,
    /// Left out where it is exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    inuse_bytes_low: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inuse_bytes_high: Option<u64>,
    alloc_bytes: u64,
    alloc_objects: u64,
    #[serde(skip_serializing_if = "is_default")]
    oldest_age_s: f64,
    #[serde(skip_serializing_if = "is_default")]
    growth_bytes_per_s: f64,
    verdict: Verdict,
    #[serde(skip_serializing_if = "is_default")]
    unreachable: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    types: &'a [SiteType],
    #[serde(skip_serializing_if = "is_default")]
    stack_incomplete: bool,
    /// Places in the list of frames, leaf first.
    frames: Vec<usize>,
    /// Which of these is its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<usize>,
    /// Frames that could be one stand before that.
    #[serde(skip_serializing_if = "is_default")]
    further_out: bool,
    #[serde(flatten)]
    change: Option<ChangeRow>,
}

/// How a site changed.
#[derive(Serialize)]
struct ChangeRow {
    change: ChangeKind,
    inuse_bytes_base: u64,
    #[serde(flatten)]
    by: Figures,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<'a> Sheet<'a> {
    /// Of a report.
    pub(super) fn of_report(number: u64, report: &'a Report) -> Self {
        let mut frames = Frames::default();
        let titles = Titles::new(&report.sites);
        let sites = (0..)
            .zip(&report.sites)
            .map(|(place, site)| frames.row(site, titles.place(place), None))
            .collect();
        Self::new(number, report, &report.processes, frames, sites)
    }

    /// Of what changed up to a report.
    pub(super) fn of_difference(
        number: u64,
        report: &'a Report,
        difference: &'a Difference,
    ) -> Self {
        let mut frames = Frames::default();
        let titles = Titles::new(difference.changes.iter().map(|change| &change.site));
        let sites = (0..)
            .zip(&difference.changes)
            .map(|(place, change)| frames.row(&change.site, titles.place(place), Some(change)))
            .collect();
        Self {
            difference: Some(Span {
                base: difference.base,
                new: difference.new,
                total: difference.total,
                omitted: difference.omitted,
            }),
            ..Self::new(number, report, &difference.processes, frames, sites)
        }
    }

    fn new(
        number: u64,
        report: &'a Report,
        processes: &'a [Process],
        frames: Frames<'a>,
        sites: Vec<SiteRow<'a>>,
    ) -> Self {
        Self {
            number,
            captured_at: report.captured_at,
            duration_s: report.duration_s,
            tier: report.tier,
            tier_reason: &report.tier_reason,
            total: report.total(),
            omitted: report.omitted,
            suppressed: &report.suppressed,
            losses: &report.losses,
            overhead: report.overhead,
            kernel: report.kernel.as_ref(),
            difference: None,
            processes: processes.iter().map(ProcessRow::of).collect(),
            frames: frames.rows,
            sites,
        }
    }
}

impl<'a> ProcessRow<'a> {
    fn of(process: &'a Process) -> Self {
        let points = &process.memory_series;
        let step = points.len().div_ceil(POINTS).max(1);
        let mut rss_series: Vec<u64> = points
            .iter()
            .rev()
            .step_by(step)
            .map(|point| point.rss_bytes)
            .collect();
        rss_series.reverse();
        Self {
            pid: process.pid,
            incarnation: process.incarnation,
            comm: &process.comm,
            cgroup: &process.cgroup,
            rss_bytes: process.rss_bytes,
            rss_growth_bytes_per_s: process.rss_growth_bytes_per_s,
            inuse_bytes: process.inuse_bytes,
            inuse_objects: process.inuse_objects,
            verdict: process.verdict,
            verdict_reason: &process.verdict_reason,
            exited: process.exited,
            rss_series,
        }
    }
}

/// The frames that have occurred, each once.
#[derive(Default)]
struct Frames<'a> {
    rows: Vec<FrameRow<'a>>,
    /// By where they are in memory: most are shared.
    shared: HashMap<*const Frame, usize>,
    known: HashMap<FrameKey<'a>, usize>,
}

type FrameKey<'a> = (
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<u32>,
    Option<u64>,
    bool,
    FrameKind,
);

impl<'a> Frames<'a> {
    fn place(&mut self, frame: &'a Arc<Frame>) -> usize {
        if let Some(place) = self.shared.get(&Arc::as_ptr(frame)) {
            return *place;
        }
        let is_named = frame
            .function
            .as_deref()
            .is_some_and(|name| !name.is_empty());
        let function = frame.function.as_deref().filter(|_| is_named);
        let offset = frame.offset.filter(|_| !is_named);
        let address = frame
            .address
            .filter(|_| !is_named && frame.offset.is_none());
        let (module, file) = (frame.module.as_deref(), frame.file.as_deref());
        let key = (
            function,
            module,
            file,
            frame.line,
            offset.or(address),
            frame.inlined,
            frame.kind,
        );
        let next = self.rows.len();
        let place = *self.known.entry(key).or_insert(next);
        if place == next {
            self.rows.push(FrameRow {
                function,
                module,
                file,
                line: frame.line,
                offset: offset.map(|offset| format!("{offset:#x}")),
                address: address.map(|address| format!("{address:#x}")),
                inlined: frame.inlined,
                kind: frame.kind,
                allocator: is_allocator(frame),
            });
        }
        self.shared.insert(Arc::as_ptr(frame), place);
        place
    }

    fn row(
        &mut self,
        site: &'a Site,
        title: Option<(usize, bool)>,
        change: Option<&Change>,
    ) -> SiteRow<'a> {
        let is_exact =
            site.inuse_bytes_low == site.inuse_bytes && site.inuse_bytes_high == site.inuse_bytes;
        SiteRow {
            pid: site.pid,
            incarnation: site.incarnation,
            id: site.id,
            kind: site.kind,
            inuse_bytes: site.inuse_bytes,
            inuse_objects: site.inuse_objects,
            inuse_bytes_low: (!is_exact).then_some(site.inuse_bytes_low),
            inuse_bytes_high: (!is_exact).then_some(site.inuse_bytes_high),
            alloc_bytes: site.alloc_bytes,
            alloc_objects: site.alloc_objects,
            oldest_age_s: site.oldest_age_s,
            growth_bytes_per_s: site.growth_bytes_per_s,
            verdict: site.verdict,
            unreachable: site.reachability.map_or(0, |found| found.unreachable),
            types: &site.types,
            stack_incomplete: !site.stack_complete,
            frames: site.frames.iter().map(|frame| self.place(frame)).collect(),
            title: title.map(|(place, _)| place),
            further_out: title.is_some_and(|(_, is_further_out)| is_further_out),
            change: change.map(|change| ChangeRow {
                change: change.change,
                inuse_bytes_base: change.inuse_bytes_base,
                by: change.by,
            }),
        }
    }
}
