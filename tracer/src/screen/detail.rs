//! What is told of one site and of one process, as lines: made once for a report, not for a frame.

use super::{
    curve,
    history::{Base, History, SiteKey},
    order::kernel_leaks,
    text::{safe, wrap},
};
use crate::report::{
    Evidence, Process, Report, Site, SiteKind, Tier, Verdict, descriptors, leaks, lives, others,
    peak, process_name, reserved, stack_lines, why_empty,
};
use crate::units::{blocks, bytes, count, duration, pages, plural, rate};

/// How a line is dressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dress {
    Plain,
    Title,
    Dim,
    Verdict(Verdict),
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) dress: Dress,
    pub(super) text: String,
}

/// Lines in the making, of so many columns.
pub(super) struct Lines {
    pub(super) columns: usize,
    pub(super) lines: Vec<Line>,
}

/// So many columns an entry is indented below its title, and its further lines more.
pub(super) const INDENT: usize = 2;

/// Lines of a curve.
const CURVE_LINES: usize = 5;

/// Types, holders and the lines of a stack beyond so many are counted where they are folded.
pub(super) const SHOWN: usize = 8;

/// So many lines of a stack are shown where it is folded.
const STACK_SHOWN: usize = 12;

impl Lines {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            columns,
            lines: Vec::new(),
        }
    }

    pub(super) fn put(&mut self, dress: Dress, indent: usize, text: &str) {
        let room = self.columns.saturating_sub(indent);
        for line in wrap(text, room, INDENT) {
            let text = format!("{:indent$}{line}", "");
            self.lines.push(Line { dress, text });
        }
    }

    pub(super) fn title(&mut self, text: &str) {
        if !self.lines.is_empty() {
            self.put(Dress::Plain, 0, "");
        }
        self.put(Dress::Title, 0, text);
    }

    pub(super) fn entries<T>(&mut self, all: &[T], shown: usize, text: impl Fn(&T) -> String) {
        for entry in all.iter().take(shown) {
            self.put(Dress::Plain, INDENT, &text(entry));
        }
        let more = all.len().saturating_sub(shown);
        if more > 0 {
            let text = format!("and {} more (f)", count(more as u64));
            self.put(Dress::Dim, INDENT, &text);
        }
    }
}

/// A verdict with why.
pub(super) fn judged(verdict: Verdict, reason: &str) -> String {
    if reason.is_empty() {
        verdict.name().to_owned()
    } else {
        format!("{}: {reason}", verdict.name())
    }
}

/// The lines above a process's sites.
pub(super) fn process(report: &Report, process: &Process, columns: usize) -> Vec<Line> {
    let mut lines = Lines::new(columns);
    let mut name = process_name(process);
    if !process.cgroup.is_empty() && process.cgroup != "/" {
        name = format!("{name}  {}", process.cgroup);
    }
    lines.put(Dress::Title, 0, &name);
    lines.put(
        Dress::Verdict(process.verdict),
        0,
        &judged(process.verdict, &process.verdict_reason),
    );
    if process.exited {
        let note = process.exit_note.as_deref();
        lines.put(
            Dress::Plain,
            0,
            &format!("ended: {}", note.unwrap_or("while it was traced")),
        );
    }
    let mut memory = vec![format!("{} resident", bytes(process.rss_bytes))];
    memory.extend(rate(process.rss_growth_bytes_per_s));
    memory.push(format!("{} anonymous", bytes(process.anonymous_bytes)));
    if process.inuse_objects > 0 || process.inuse_bytes > 0 {
        memory.push(format!(
            "{} in use in {}",
            bytes(process.inuse_bytes),
            blocks(process.inuse_objects)
        ));
    } else {
        memory.push(format!("nothing in use: {}", why_empty(process)));
    }
    memory.extend(peak(process));
    lines.put(Dress::Plain, 0, &memory.join(" · "));
    if let Some(kernel) = &process.kernel {
        let held = [
            descriptors(kernel).map(|text| format!("descriptors {text}")),
            others(kernel),
        ];
        let held: Vec<String> = held.into_iter().flatten().collect();
        if !held.is_empty() {
            lines.put(Dress::Dim, 0, &held.join(" · "));
        }
        if kernel_leaks(process) {
            for reason in leaks(kernel) {
                let text = judged(Verdict::Leaking, &reason);
                lines.put(Dress::Verdict(Verdict::Leaking), 0, &text);
            }
        }
    }
    if process.allocators.is_empty() && report.tier != Tier::Growth && process.go.is_none() {
        lines.put(Dress::Dim, 0, "no allocator was found in it");
    }
    lines.lines
}

/// A site in one line of a list: its file without the folders, which would leave no room for anything else.
pub(super) fn short_title(title: String) -> String {
    let Some((name, place)) = title.rsplit_once(" (") else {
        return title;
    };
    match place.rsplit_once('/') {
        Some((_, file)) => format!("{name} ({file}"),
        None => title,
    }
}

/// So many of what a site consists of.
fn objects(site: &Site, number: u64) -> String {
    match site.kind {
        SiteKind::Pages => pages(number),
        SiteKind::Goroutines => format!("{} goroutine{}", count(number), plural(number)),
        SiteKind::Heap | SiteKind::Mapping | SiteKind::Go => blocks(number),
    }
}

/// What a view of a site rests on.
#[derive(Clone)]
pub(super) struct About<'a> {
    pub(super) report: &'a Report,
    pub(super) site: &'a Site,
    pub(super) title: String,
    pub(super) history: &'a History,
    pub(super) base: Option<&'a Base>,
    pub(super) is_folded: bool,
}

/// All that is told of a site.
pub(super) fn site(about: &About<'_>, columns: usize) -> Vec<Line> {
    let &About {
        report,
        site,
        history,
        is_folded,
        ..
    } = about;
    let mut lines = Lines::new(columns);
    lines.put(Dress::Title, 0, &about.title);
    let process = report.process_of(site).map(process_name);
    lines.put(Dress::Dim, 0, &process.unwrap_or_default());
    lines.put(
        Dress::Verdict(site.verdict),
        0,
        &judged(site.verdict, &site.verdict_reason),
    );
    figures(&mut lines, about);
    let shown = |few: usize| if is_folded { few } else { usize::MAX };
    lines.title("Stack");
    lines.entries(&stack_lines(site), shown(STACK_SHOWN), Clone::clone);
    if !site.types.is_empty() {
        lines.title(if site.kind == SiteKind::Goroutines {
            "They are in"
        } else {
            "Types"
        });
        lines.entries(&site.types, shown(SHOWN), |of| {
            format!(
                "{} × {}  {}",
                count(of.objects),
                safe(&of.name),
                bytes(of.bytes)
            )
        });
    }
    if !site.holders.is_empty() {
        lines.title("Held by");
        lines.entries(&site.holders, shown(SHOWN), |holder| {
            format!("{} × {}", count(holder.objects), holder.path.join(" ← "))
        });
    }
    let spread: Vec<_> = site.lives.iter().flat_map(lives).collect();
    if !spread.is_empty() {
        lines.title("Sizes and lives");
        lines.entries(&spread, usize::MAX, |(name, text)| {
            format!("{name}: {text}")
        });
    }
    evidence(&mut lines, site);
    let series = history.series(&SiteKey::of(site));
    let drawn = curve::chart(&series, columns.saturating_sub(INDENT), CURVE_LINES);
    lines.title("In use, since this screen was opened");
    if drawn.is_empty() {
        lines.put(Dress::Dim, INDENT, "nothing to draw yet");
    }
    for text in drawn {
        lines.lines.push(Line {
            dress: Dress::Plain,
            text: format!("{:INDENT$}{text}", ""),
        });
    }
    lines.lines
}

/// A site's numbers.
fn figures(lines: &mut Lines, about: &About<'_>) {
    let &About {
        report,
        site,
        history,
        ..
    } = about;
    let mut inuse = format!(
        "{} in use in {}",
        bytes(site.inuse_bytes),
        objects(site, site.inuse_objects)
    );
    if (site.inuse_bytes_low, site.inuse_bytes_high) != (site.inuse_bytes, site.inuse_bytes) {
        inuse.push_str(&format!(
            ", between {} and {} with 95 % confidence",
            bytes(site.inuse_bytes_low),
            bytes(site.inuse_bytes_high)
        ));
    }
    lines.put(Dress::Plain, 0, &inuse);
    if let Some(base) = about.base {
        let (more, objects) = base.site(site);
        let text = format!(
            "{} in {} since the snapshot of {}",
            signed(more),
            signed_count(objects),
            clock(&base.at.to_string())
        );
        lines.put(Dress::Plain, 0, &text);
    }
    let mut facts = vec![format!(
        "{} {} in {}",
        match site.kind {
            SiteKind::Pages => "touched",
            SiteKind::Goroutines => "started",
            SiteKind::Heap | SiteKind::Mapping | SiteKind::Go => "allocated",
        },
        bytes(site.alloc_bytes),
        objects(site, site.alloc_objects)
    )];
    let (new_bytes, new_objects) = history.allocates(report, site);
    if let Some(new) = per_second(new_bytes) {
        facts.push(format!("{new} in {}", objects_per_second(new_objects)));
    }
    if site.inuse_objects > 0 && !matches!(site.kind, SiteKind::Go | SiteKind::Goroutines) {
        facts.push(format!("oldest {}", duration(site.oldest_age_s)));
    }
    if let Some(growth) = rate(site.growth_bytes_per_s) {
        facts.push(format!("grows {growth}"));
    }
    facts.extend(reserved(site));
    if let Some(peak) = site.peak_bytes.filter(|peak| *peak > site.inuse_bytes) {
        facts.push(format!("peak {}", bytes(peak)));
    }
    if let Some(allocator) = &site.allocator {
        facts.push(allocator.clone());
    }
    lines.put(Dress::Dim, 0, &facts.join(" · "));
}

/// What speaks for the verdict.
fn evidence(lines: &mut Lines, site: &Site) {
    let mut told: Vec<String> = site
        .evidence
        .iter()
        .map(|evidence| match evidence {
            Evidence::Unreachable {
                objects,
                of,
                watched_s,
            } => format!(
                "no pointer leads to {} of {}, traced for {}",
                count(*objects),
                blocks(*of),
                duration(*watched_s)
            ),
            Evidence::Shrinks {
                path,
                before,
                objects,
            } => format!(
                "against a leak: {} holds all of them, {} before and {} now",
                path.join(" ← "),
                count(*before),
                count(*objects)
            ),
        })
        .collect();
    if let Some(found) = site.reachability {
        told.push(format!(
            "{} looked at, {} of them unreachable",
            blocks(found.checked),
            count(found.unreachable)
        ));
    }
    if let Some(sample) = site.sample {
        told.push(format!(
            "estimated from {} sampled in {} window{}, rechecked {} time{}",
            blocks(sample.objects),
            count(sample.windows),
            plural(sample.windows),
            count(sample.checks),
            plural(sample.checks)
        ));
    }
    if let Some(counted) = site.counted.as_ref().filter(|counted| counted.share > 0.0) {
        told.push(format!(
            "{} counted in blocks of {}; {:.0} % of those that stay are this site's",
            rate(counted.growth_bytes_per_s).unwrap_or_else(|| "no growth".to_owned()),
            bytes(counted.block_bytes),
            100.0 * counted.share
        ));
    }
    if site.weight > 1 {
        told.push(format!("one of {} blocks is recorded", count(site.weight)));
    }
    if !told.is_empty() {
        lines.title("Evidence");
        lines.entries(&told, usize::MAX, Clone::clone);
    }
}

/// `+1.20 MiB`, `-30 B`, `0 B`.
pub(super) fn signed(change: i64) -> String {
    let sign = match change {
        0 => "",
        1.. => "+",
        _ => "-",
    };
    format!("{sign}{}", bytes(change.unsigned_abs()))
}

/// `+12 blocks`.
fn signed_count(change: i64) -> String {
    let sign = if change < 0 { "-" } else { "+" };
    format!("{sign}{}", blocks(change.unsigned_abs()))
}

/// `1.20 MiB/s`: what a rate is without a sign.
pub(super) fn per_second(bytes_per_s: f64) -> Option<String> {
    rate(bytes_per_s).map(|rate| rate.trim_start_matches('+').to_owned())
}

/// `800 blocks/s`.
fn objects_per_second(per_s: f64) -> String {
    if per_s >= 10.0 {
        format!("{} blocks/s", count(per_s.round() as u64))
    } else {
        format!("{per_s:.1} blocks/s")
    }
}

/// The time of day of `2026-11-29T18:11:56.597Z`.
pub(super) fn clock(timestamp: &str) -> &str {
    timestamp.get(11..19).unwrap_or(timestamp)
}
