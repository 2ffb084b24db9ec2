//! The report as metrics, for Prometheus and whatever else reads its formats.
//!
//! Names and units follow Prometheus' conventions. The number of time series is bounded: [`TOP`] processes have series of their own,
//! all others together one, with `pid="others"`; of the sites the [`SITES`] first have some. They come in an order that does not change.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use hashbrown::HashMap;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::model::{KernelLevel, KernelLevelKind, Process, Report, Site, SiteKind, Verdict};
use super::names::clean;
use super::text::title_alone;

/// Processes with series of their own.
pub const TOP: usize = 500;

/// Sites with series of their own: those that leak, then the largest.
pub const SITES: usize = 20;

/// So many characters of a site's title are its label.
const TITLE: usize = 120;

/// The labels of a time series.
pub type Labels = Vec<(&'static str, String)>;

/// A gauge for each set of labels.
pub type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// A counter for each set of labels.
pub type Counters = Family<Labels, Counter>;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' own text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// What a client takes that sent this `Accept` header.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes metrics.
///
/// # Errors
/// None is known: text is written into memory.
pub fn write(registry: &Registry, exposition: Exposition) -> Result<String, std::fmt::Error> {
    let mut open = String::new();
    encode(&mut open, registry)?;
    let open = sorted(&open);
    if exposition == Exposition::OpenMetrics {
        return Ok(open);
    }
    // The formats differ in what a counter is called above its series, and the older one knows neither units nor an end.
    let mut text = String::with_capacity(open.len());
    let counters: Vec<&str> = open
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in open.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let named = ["# HELP ", "# TYPE "]
            .into_iter()
            .find_map(|key| Some((key, line.strip_prefix(key)?.split_once(' ')?)));
        match named {
            Some((key, (name, rest))) if counters.contains(&name) => {
                text.push_str(&format!("{key}{name}_total {rest}\n"));
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Ok(text)
}

/// The same with the series of each metric in order: the encoder has them as they lie in its tables.
fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    for series in lines.chunk_by_mut(|one, two| !one.starts_with('#') && !two.starts_with('#')) {
        series.sort_unstable();
    }
    let mut out = String::with_capacity(text.len());
    for line in lines {
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// What a process has series of.
#[derive(Clone, Copy, Default)]
struct Figures {
    resident: f64,
    anonymous: f64,
    growth: f64,
    leaking: f64,
    leak_rate: f64,
    inuse_bytes: f64,
    inuse_objects: f64,
    sites: [u64; Verdict::ALL.len()],
}

impl Figures {
    fn of(process: &Process, (sites, leak_rate): ([u64; Verdict::ALL.len()], f64)) -> Self {
        Self {
            leak_rate,
            resident: process.rss_bytes as f64,
            anonymous: process.anonymous_bytes as f64,
            leaking: f64::from(u8::from(process.verdict == Verdict::Leaking)),
            growth: process.rss_growth_bytes_per_s,
            inuse_bytes: process.inuse_bytes as f64,
            inuse_objects: process.inuse_objects as f64,
            sites,
        }
    }

    fn add(&mut self, other: &Self) {
        self.resident += other.resident;
        self.anonymous += other.anonymous;
        self.leaking += other.leaking;
        self.leak_rate += other.leak_rate;
        self.growth += other.growth;
        self.inuse_bytes += other.inuse_bytes;
        self.inuse_objects += other.inuse_objects;
        for (sum, part) in self.sites.iter_mut().zip(other.sites) {
            *sum += part;
        }
    }
}

/// The series of the processes.
#[derive(Default)]
struct ProcessSeries {
    resident: Gauges,
    anonymous: Gauges,
    growth: Gauges,
    leaking: Gauges,
    leak_rate: Gauges,
    inuse_bytes: Gauges,
    inuse_objects: Gauges,
    sites: Gauges,
}

impl ProcessSeries {
    fn set(&self, labels: &Labels, figures: &Figures) {
        self.resident.get_or_create(labels).set(figures.resident);
        self.anonymous.get_or_create(labels).set(figures.anonymous);
        self.leaking.get_or_create(labels).set(figures.leaking);
        self.growth.get_or_create(labels).set(figures.growth);
        self.leak_rate.get_or_create(labels).set(figures.leak_rate);
        self.inuse_bytes
            .get_or_create(labels)
            .set(figures.inuse_bytes);
        self.inuse_objects
            .get_or_create(labels)
            .set(figures.inuse_objects);
        for (verdict, count) in Verdict::ALL.into_iter().zip(figures.sites) {
            let mut labels = labels.clone();
            labels.push(("verdict", verdict.name().to_owned()));
            self.sites.get_or_create(&labels).set(count as f64);
        }
    }

    fn register(self, registry: &mut Registry) {
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory of a traced process",
            self.resident,
        );
        registry.register(
            "process_anonymous_memory_bytes",
            "Resident anonymous memory of a traced process: heaps, stacks, private copies",
            self.anonymous,
        );
        registry.register(
            "process_leaking",
            "Whether a traced process leaks; of the others together, how many do",
            self.leaking,
        );
        registry.register(
            "process_leak_bytes_per_second",
            "How fast the call stacks of a traced process that leak grow together; 0 where none does",
            self.leak_rate,
        );
        registry.register(
            "process_resident_memory_growth_bytes_per_second",
            "Trend of the resident memory of a traced process",
            self.growth,
        );
        registry.register(
            "process_inuse_bytes",
            "Bytes that were allocated while traced and not freed",
            self.inuse_bytes,
        );
        registry.register(
            "process_inuse_blocks",
            "Blocks that were allocated while traced and not freed",
            self.inuse_objects,
        );
        registry.register(
            "process_sites",
            "Call stacks that hold memory by what to make of them; those with the verdict leaking are leaks",
            self.sites,
        );
    }
}

/// Registers a report's metrics.
pub fn register(report: &Report, registry: &mut Registry) {
    let build = Gauges::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    build.get_or_create(&version).set(1.0);
    registry.register("build_info", "Which leakscope this is", build);
    processes(report, registry);
    sites(report, registry);
    kernel(report, registry);
    let losses = Counters::default();
    for (cause, count) in &report.losses {
        losses
            .get_or_create(&vec![("cause", cause.clone())])
            .inc_by(*count);
    }
    registry.register("events_lost", "Events that could not be recorded", losses);
    let hits: Counter = Counter::default();
    hits.inc_by(report.overhead.probe_hits);
    registry.register("probe_hits", "Calls of probed functions", hits);
    let total = report.total();
    let running = report
        .processes
        .iter()
        .filter(|process| !process.exited)
        .count();
    let overhead = &report.overhead;
    for (name, help, value) in [
        (
            "overhead_ratio",
            "Share of the traced processes' CPU time that the probes took",
            overhead.target_cpu_fraction,
        ),
        (
            "overhead_budget_ratio",
            "Share of the traced processes' CPU time that tracing may take",
            overhead.budget,
        ),
        (
            "probes_attached_ratio",
            "Share of the time during which probes were attached",
            overhead.duty,
        ),
        (
            "processes",
            "Processes that are traced and run",
            running as f64,
        ),
        (
            "sites",
            "Call stacks that allocated while traced",
            total.sites as f64,
        ),
        (
            "trace_duration_seconds",
            "How long has been traced",
            report.duration_s,
        ),
        (
            "report_timestamp_seconds",
            "When the figures were read, seconds since 1970",
            report.captured_at.unix_ms() as f64 / 1000.0,
        ),
    ] {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

/// What the kernel holds, where that is watched: on the machine, and for processes.
fn kernel(report: &Report, registry: &mut Registry) {
    let running = || report.processes.iter().filter(|process| !process.exited);
    let (open, limit, growth) = (Gauges::default(), Gauges::default(), Gauges::default());
    let mut held: Vec<(&Process, u64)> = running()
        .filter_map(|process| Some((process, process.kernel.as_ref()?.descriptors()?.objects?)))
        .collect();
    held.sort_by_key(|(process, open)| (std::cmp::Reverse(*open), process.pid));
    for (process, count) in held.iter().take(TOP) {
        let labels = labels(
            &process.pid.to_string(),
            &escape(&process.comm),
            &escape(&process.cgroup),
        );
        open.get_or_create(&labels).set(*count as f64);
        let descriptors = process
            .kernel
            .as_ref()
            .and_then(|kernel| kernel.descriptors());
        if let Some(descriptors) = descriptors {
            growth.get_or_create(&labels).set(descriptors.growth_per_s);
            if let Some(most) = descriptors.limit {
                limit.get_or_create(&labels).set(most as f64);
            }
        }
    }
    let Some(kernel) = &report.kernel else {
        return;
    };
    registry.register(
        "process_open_fds",
        "Descriptors of a traced process; of the processes with the most",
        open,
    );
    registry.register("process_max_fds", "Descriptors that it may have", limit);
    registry.register(
        "process_open_fds_growth_per_second",
        "Trend of the descriptors of a traced process",
        growth,
    );
    let (bytes, objects, leaking) = (Gauges::default(), Gauges::default(), Gauges::default());
    for level in &kernel.levels {
        let labels = level_labels(level);
        bytes.get_or_create(&labels).set(level.bytes as f64);
        if let (KernelLevelKind::Cache, Some(count)) = (level.kind, level.objects) {
            objects.get_or_create(&labels).set(count as f64);
        }
        if level.grows() {
            let leaks = level.verdict == Verdict::Leaking;
            leaking
                .get_or_create(&labels)
                .set(f64::from(u8::from(leaks)));
        }
    }
    registry.register(
        "kernel_memory_bytes",
        "What the kernel holds, by class, slab cache, line of its source and control group; they overlap",
        bytes,
    );
    registry.register("kernel_slab_objects", "Objects of a slab cache", objects);
    registry.register(
        "kernel_memory_leaking",
        "Whether what the kernel holds leaks, of what grows",
        leaking,
    );
}

fn level_labels(level: &KernelLevel) -> Labels {
    vec![
        ("kind", level.kind.name().to_owned()),
        ("name", escape(&level.name)),
    ]
}

fn processes(report: &Report, registry: &mut Registry) {
    let mut sites: HashMap<(u32, u32), ([u64; Verdict::ALL.len()], f64)> = HashMap::new();
    for site in &report.sites {
        let (counts, rate) = sites.entry((site.pid, site.incarnation)).or_default();
        if site.verdict == Verdict::Leaking {
            *rate += site.growth_bytes_per_s.max(0.0);
        }
        let place = Verdict::ALL
            .into_iter()
            .position(|verdict| verdict == site.verdict);
        if let Some(count) = place.and_then(|place| counts.get_mut(place))
            && site.inuse_objects > 0
        {
            *count += 1;
        }
    }
    let series = ProcessSeries::default();
    let info = Gauges::default();
    let mut others = Figures::default();
    let mut left = 0;
    let running = report.processes.iter().filter(|process| !process.exited);
    for (place, process) in running.enumerate() {
        let counts = sites
            .get(&(process.pid, process.incarnation))
            .copied()
            .unwrap_or_default();
        let figures = Figures::of(process, counts);
        if place < TOP {
            let mut told = labels(
                &process.pid.to_string(),
                &escape(&process.comm),
                &escape(&process.cgroup),
            );
            let container = process.container.as_ref();
            let text = |text: Option<&String>| text.map(|text| escape(text)).unwrap_or_default();
            told.extend([
                ("container", text(container.map(|one| &one.id))),
                (
                    "runtime",
                    text(container.and_then(|one| one.runtime.as_ref())),
                ),
                ("pod", text(container.and_then(|one| one.pod.as_ref()))),
                ("unit", text(process.unit.as_ref())),
            ]);
            info.get_or_create(&told).set(1.0);
            series.set(
                &labels(
                    &process.pid.to_string(),
                    &escape(&process.comm),
                    &escape(&process.cgroup),
                ),
                &figures,
            );
        } else {
            others.add(&figures);
            left += 1;
        }
    }
    if left > 0 {
        series.set(&labels("others", "", ""), &others);
    }
    series.register(registry);
    registry.register(
        "process_info",
        "In which container, pod and unit of systemd a traced process is; empty where in none",
        info,
    );
}

/// The first sites. Those of a process that have one title count together.
fn sites(report: &Report, registry: &mut Registry) {
    let mut first: Vec<&Site> = report
        .sites
        .iter()
        .filter(|site| site.inuse_objects > 0 && site.kind != SiteKind::Pages)
        .collect();
    // They come by their bytes.
    first.sort_by_key(|site| site.verdict != Verdict::Leaking);
    let mut sums: BTreeMap<Labels, (f64, f64)> = BTreeMap::new();
    for site in first.into_iter().take(SITES) {
        let comm = report
            .process_of(site)
            .map_or("", |process| process.comm.as_str());
        let title = title_alone(site, TITLE);
        let labels = vec![
            ("pid", site.pid.to_string()),
            ("comm", escape(comm)),
            ("site", escape(&title)),
            ("verdict", site.verdict.name().to_owned()),
        ];
        let (bytes, growth) = sums.entry(labels).or_default();
        *bytes += site.inuse_bytes as f64;
        *growth += site.growth_bytes_per_s;
    }
    let (bytes, growth) = (Gauges::default(), Gauges::default());
    for (labels, (held, rate)) in sums {
        bytes.get_or_create(&labels).set(held);
        growth.get_or_create(&labels).set(rate);
    }
    registry.register(
        "site_inuse_bytes",
        "Bytes that call stacks hold: those that leak, then the largest",
        bytes,
    );
    registry.register(
        "site_growth_bytes_per_second",
        "How fast these call stacks grow",
        growth,
    );
}

/// A label's value as both formats want it; the encoder writes it as it is. Line ends are among what is replaced.
fn escape(text: &str) -> String {
    clean(text).replace('\\', "\\\\").replace('"', "\\\"")
}

fn labels(pid: &str, comm: &str, cgroup: &str) -> Labels {
    vec![
        ("pid", pid.to_owned()),
        ("comm", comm.to_owned()),
        ("cgroup", cgroup.to_owned()),
    ]
}

#[cfg(test)]
mod tests;
