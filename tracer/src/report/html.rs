//! The report as one HTML page that needs nothing else: memory over time, the sites, the flame graph.
//!
//! Everything that was traced is text to this page: a process cannot put markup into it.

mod chart;
mod kernel;

use std::io::{self, Write};

use super::difference::{ChangeKind, Difference};
use super::kernel_names::{descriptors, others};
use super::lives::lives;
use super::model::{Lives, Overhead, Process, Report, Site, SiteKind};
use super::names::{clean, go_use, heap_use, looked_at, peak, process_name, seen_by, why_empty};
use super::text::{Titles, marks, stack_lines};
use super::{Format, Svg};
use crate::units;

/// So many processes are described; of the others the number is given.
const PROCESSES_SHOWN: usize = 20;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Html;

/// The flame graph's script takes the first `svg` of the document for its own: it comes first, and is shown last.
const STYLE: &str = "
:root{color-scheme:light;--ink:#1c2430;--dim:#5d6875;--line:#d9dee5;--hot:#b3261e;--cold:#35618e;--warm:#9a5b00}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:1260px;display:flex;flex-direction:column;color:var(--ink);background:#fff;font:15px/1.5 system-ui,sans-serif}
header{order:1}#about{order:2}#processes{order:3}#sites{order:4}#kernel{order:5}#graph{order:6;overflow-x:auto}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
p{margin:.2rem 0}.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--dim)}.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
details summary{cursor:pointer;font-family:ui-monospace,monospace;font-size:13px;overflow-wrap:anywhere}
ol{margin:.3rem 0;padding-left:2.2rem;font-family:ui-monospace,monospace;font-size:13px;overflow-wrap:anywhere}
.v{border-radius:.6em;padding:0 .5em;border:1px solid var(--line);white-space:nowrap}.leaking,.new,.grown{color:#fff;background:var(--hot);border-color:var(--hot)}.warming-up{color:#fff;background:var(--warm);border-color:var(--warm)}
#graph>svg{width:100%;height:auto}
figure{margin:.6rem 0}figcaption{font-weight:600}
p,h1,figcaption,span.dim{overflow-wrap:anywhere}
.chart{display:block;width:100%;height:8rem;border:solid var(--line);border-width:0 0 1px 1px;overflow:visible}
.chart polyline{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.chart .before{stroke-dasharray:5 4;opacity:.75}
.chart .resident{stroke:var(--cold)}.chart .inuse{stroke:var(--hot)}
.axis{display:flex;flex-wrap:wrap;gap:0 1rem;justify-content:space-between;font-size:12px}
.axis .resident{color:var(--cold)}.axis .inuse{color:var(--hot)}
@media(max-width:720px){
body{padding:.8rem}thead{display:none}table,tbody,tr,td{display:block}
tr{border-bottom:1px solid var(--line);padding:.5rem 0}td{border:0;padding:.1rem 0}
td.n{display:inline-block;text-align:left;margin-right:1rem}td[data-l]::before{content:attr(data-l) ' ';color:var(--dim)}td:empty{display:none}
ol{padding-left:1.6rem}#graph>svg{min-width:700px}
}
";

impl Format for Html {
    fn name(&self) -> &'static str {
        "html"
    }

    fn media_type(&self) -> &'static str {
        "text/html; charset=utf-8"
    }

    fn write(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        begin("Surviving memory", out)?;
        let mut graph = Vec::new();
        Svg.write(report, &mut graph)?;
        embed(&graph, out)?;
        about(report, out)?;
        writeln!(out, "<section id=\"processes\"><h2>Processes</h2>")?;
        for process in report.processes.iter().take(PROCESSES_SHOWN) {
            describe(process, out)?;
        }
        let more = report.processes.len().saturating_sub(PROCESSES_SHOWN) as u64;
        if more > 0 {
            writeln!(out, "<p class=\"dim\">and {} more</p>", units::count(more))?;
        }
        writeln!(out, "</section>")?;
        sites(report, out)?;
        kernel::write(report, out)?;
        writeln!(out, "</body></html>")
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
        begin("What changed", out)?;
        let mut graph = Vec::new();
        Svg.write_difference(difference, &mut graph)?;
        embed(&graph, out)?;
        let total = difference.total;
        writeln!(
            out,
            "<header><h1>What changed</h1><p class=\"dim\">from {} to {}</p></header>\n\
             <section id=\"about\"><p><b>{}</b>: {} before, {} now</p></section>",
            difference.base.captured_at,
            difference.new.captured_at,
            change(total.inuse_bytes_change),
            units::bytes(difference.base.inuse_bytes),
            units::bytes(difference.new.inuse_bytes)
        )?;
        curves(difference, out)?;
        writeln!(
            out,
            "<section id=\"sites\"><h2>Stacks</h2><table><thead><tr><th class=\"n\">change</th><th class=\"n\">before</th>\
             <th class=\"n\">now</th><th></th><th>stack</th></tr></thead><tbody>"
        )?;
        let titles = Titles::new(difference.changes.iter().map(|one| &one.site));
        for (place, one) in difference.changes.iter().enumerate() {
            if one.change == ChangeKind::Churned {
                continue;
            }
            writeln!(
                out,
                "<tr><td class=\"n\" data-l=\"change\">{}</td><td class=\"n\" data-l=\"before\">{}</td>\
                 <td class=\"n\" data-l=\"now\">{}</td><td><span class=\"v {kind}\">{kind}</span></td><td>",
                change(one.by.inuse_bytes_change),
                units::bytes(one.inuse_bytes_base),
                units::bytes(one.site.inuse_bytes),
                kind = one.change.name()
            )?;
            writeln!(
                out,
                "<span class=\"dim\">{} (pid {})</span>",
                text(&one.comm),
                one.site.pid
            )?;
            stack(&one.site, &titles.text(place, &one.site), out)?;
            writeln!(out, "</td></tr>")?;
        }
        writeln!(out, "</tbody></table>")?;
        if difference.omitted.stacks > 0 {
            writeln!(
                out,
                "<p class=\"dim\">{} stacks with {} are not shown</p>",
                units::count(difference.omitted.stacks),
                change(difference.omitted.inuse_bytes_change)
            )?;
        }
        writeln!(out, "</section></body></html>")
    }
}

pub(super) fn begin(title: &str, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>leakscope: {title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{STYLE}</style></head><body>"
    )
}

/// Puts an SVG file into the page: without what only a file may begin with.
fn embed(svg: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let begin = svg
        .windows(4)
        .position(|window| window == b"<svg")
        .unwrap_or(0);
    writeln!(out, "<section id=\"graph\"><h2>Flame graph</h2>")?;
    out.write_all(svg.get(begin..).unwrap_or_default())?;
    writeln!(out, "</section>")
}

/// The memory of each process, before and now.
fn curves(difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
    let with_curves = difference
        .processes
        .iter()
        .map(|process| (process, difference.memory_before(process)))
        .filter(|(process, before)| before.len().max(process.memory_series.len()) > 1);
    writeln!(out, "<section id=\"processes\"><h2>Memory</h2>")?;
    for (process, before) in with_curves.take(PROCESSES_SHOWN) {
        writeln!(
            out,
            "<figure><figcaption>{}</figcaption>",
            text(&process_name(process))
        )?;
        chart::write_two(before, &process.memory_series, out)?;
        writeln!(out, "</figure>")?;
    }
    writeln!(out, "</section>")
}

fn about(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let total = report.total();
    writeln!(
        out,
        "<header><h1>Surviving memory: {} in {}</h1><p class=\"dim\">{}, traced for {}</p></header>",
        units::bytes(total.inuse_bytes),
        units::blocks(total.inuse_objects),
        report.captured_at,
        units::duration(report.duration_s)
    )?;
    writeln!(
        out,
        "<section id=\"about\"><p>{}: {}</p>",
        text(&seen_by(report)),
        text(&report.tier_reason),
    )?;
    if report.overhead != Overhead::default() {
        writeln!(
            out,
            "<p class=\"dim\">{}, about {} of the traced CPU time (budget {}); leakscope itself: {} of one CPU</p>",
            units::probe_hits(report.overhead.probe_hits),
            units::percent(report.overhead.target_cpu_fraction),
            units::percent(report.overhead.budget),
            units::percent(report.overhead.tracer_cores)
        )?;
    }
    let lost: Vec<String> = report
        .losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(cause, lost)| format!("{} {}", text(cause), units::count(*lost)))
        .collect();
    if !lost.is_empty() {
        writeln!(out, "<p>Lost: {}</p>", lost.join(", "))?;
    }
    writeln!(out, "</section>")
}

fn describe(process: &Process, out: &mut dyn Write) -> io::Result<()> {
    let surviving = if process.inuse_bytes > 0 {
        format!(
            "{} in {} survive",
            units::bytes(process.inuse_bytes),
            units::blocks(process.inuse_objects)
        )
    } else {
        text(&why_empty(process))
    };
    let trend = units::rate(process.rss_growth_bytes_per_s)
        .map(|rate| format!(", {rate}"))
        .unwrap_or_default();
    // 0 is not known.
    let resident = if process.rss_bytes > 0 {
        format!("; {} resident{trend}", units::bytes(process.rss_bytes))
    } else {
        String::new()
    };
    writeln!(
        out,
        "<figure><figcaption>{}</figcaption><p>{surviving}{resident}{}{}</p>",
        text(&process_name(process)),
        peak(process)
            .map(|peak| format!("; {peak}"))
            .unwrap_or_default(),
        if process.exited { "; it has ended" } else { "" }
    )?;
    if let Some(go) = &process.go {
        writeln!(out, "<p>{}</p>", text(&go_use(go)))?;
    }
    if let Some(heap) = process.notable_heap() {
        writeln!(out, "<p>{}</p>", text(&heap_use(heap)))?;
    }
    if let Some(kernel) = &process.kernel {
        let held = descriptors(kernel).map(|text| format!("descriptors {text}"));
        for line in held.into_iter().chain(others(kernel)) {
            writeln!(out, "<p>{}</p>", text(&line))?;
        }
        for held in kernel.holdings.iter().filter(|held| held.grows()) {
            writeln!(
                out,
                "<p class=\"dim\"><span class=\"v {verdict}\">{verdict}</span> {}: {}</p>",
                text(&held.kind),
                text(&held.verdict_reason),
                verdict = held.verdict.name()
            )?;
        }
    }
    spread(process.lives.as_ref(), out)?;
    chart::write(&process.memory_series, out)?;
    writeln!(out, "</figure>")
}

fn sites(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "<section id=\"sites\"><h2>Sites</h2><table><thead><tr><th class=\"n\">survives</th><th class=\"n\">blocks</th>\
         <th class=\"n\">allocated</th><th class=\"n\">growth</th><th>verdict</th><th>stack</th></tr></thead><tbody>"
    )?;
    let several = report.processes.len() > 1;
    let survive = |site: &&Site| site.inuse_bytes > 0 || site.inuse_objects > 0;
    let shown: Vec<&Site> = report.sites.iter().filter(survive).collect();
    let titles = Titles::new(shown.iter().copied());
    for (place, (site, mark)) in shown.iter().zip(marks(&shown)).enumerate() {
        writeln!(
            out,
            "<tr><td class=\"n\" data-l=\"survives\">{}</td><td class=\"n\" data-l=\"blocks\">{}</td>\
             <td class=\"n\" data-l=\"allocated\">{}</td><td class=\"n\" data-l=\"growth\">{}</td>\
             <td><span class=\"v {verdict}\">{verdict}</span></td><td>",
            units::bytes(site.inuse_bytes),
            units::count(site.inuse_objects),
            units::bytes(site.alloc_bytes),
            units::rate(site.growth_bytes_per_s).unwrap_or_default(),
            verdict = site.verdict.name()
        )?;
        if several {
            let name = report
                .process_of(site)
                .map_or_else(|| format!("pid {}", site.pid), process_name);
            writeln!(out, "<span class=\"dim\">{}</span>", text(&name))?;
        }
        if let Some(mark) = mark {
            writeln!(out, "<span class=\"dim\">{}</span>", text(&mark))?;
        }
        if !site.verdict_reason.is_empty() {
            writeln!(out, "<p class=\"dim\">{}</p>", text(&site.verdict_reason))?;
        }
        for line in looked_at(site) {
            writeln!(out, "<p class=\"dim\">{}</p>", text(&line))?;
        }
        stack(site, &titles.text(place, site), out)?;
        spread(site.lives.as_ref(), out)?;
        writeln!(out, "</td></tr>")?;
    }
    writeln!(out, "</tbody></table>")?;
    if report.omitted.sites > 0 {
        writeln!(
            out,
            "<p class=\"dim\">{} sites with {} are not shown</p>",
            units::count(report.omitted.sites),
            units::bytes(report.omitted.inuse_bytes)
        )?;
    }
    writeln!(out, "</section>")
}

/// Sizes and lives of blocks, which show when they are asked for.
fn spread(known: Option<&Lives>, out: &mut dyn Write) -> io::Result<()> {
    let Some(known) = known else {
        return Ok(());
    };
    write!(out, "<details><summary>sizes and lives</summary>")?;
    for (name, line) in lives(known) {
        write!(out, "<p class=\"dim\">{name}: {}</p>", text(&line))?;
    }
    writeln!(out, "</details>")
}

/// A stack, of which the title shows until it is opened.
fn stack(site: &Site, title: &str, out: &mut dyn Write) -> io::Result<()> {
    if site.kind == SiteKind::Pages {
        writeln!(
            out,
            "<span class=\"dim\">touched pages: mappings may hold the same bytes, so they are not in the sums</span>"
        )?;
    }
    let lines = stack_lines(site);
    write!(out, "<details><summary>{}</summary><ol>", text(title))?;
    for line in &lines {
        write!(out, "<li>{}</li>", text(line))?;
    }
    write!(out, "</ol></details>")
}

fn change(value: i64) -> String {
    let sign = match value {
        ..0 => "−",
        0 => "±",
        1.. => "+",
    };
    format!("{sign}{}", units::bytes(value.unsigned_abs()))
}

/// Text in HTML: no markup, nothing unfit.
pub(super) fn text(text: &str) -> String {
    clean(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
