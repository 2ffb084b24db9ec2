//! A heap report as one HTML page that needs nothing else: what there is, what is lost, and who holds it, drawn.

use std::io::{self, Write};

use super::{HeapGroup, HeapReport, HeapStyle, label, lost, text::loss, text::signed, tree};
use crate::{
    report::html::{begin, text},
    units::{blocks, bytes, count, share},
};

/// What a heap's page has beside the pages of traces.
const STYLE: &str = "
#facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.8rem 0 0}#facts dt{color:var(--dim)}#facts dd{margin:0}
.bar{background:linear-gradient(var(--cold),var(--cold)) left/var(--w) 3px no-repeat;background-position:left bottom}
td.name{width:55%;font-family:ui-monospace,monospace;font-size:13px;overflow-wrap:anywhere}
.drawn{order:5}.drawn>figure{overflow-x:auto;border-top:1px solid var(--line);padding:.6rem 0;margin:0}
.tree{display:block;margin:.5rem 0 0;font:12px ui-monospace,monospace}
.tree path{fill:none;stroke:#a9b7c6}.tree .tip{fill:#7d8fa3;stroke:none}
.tree rect{fill:#fff;stroke:#a9b7c6}.tree .held rect{fill:#e8f0f8;stroke:var(--cold)}
.tree text{fill:var(--ink)}.tree .count{fill:var(--dim);font-size:11px}
";

/// Writes the report as a page.
///
/// # Errors
/// Those of `out`.
pub fn write_html(report: &HeapReport, style: HeapStyle, out: &mut dyn Write) -> io::Result<()> {
    begin("heap", out)?;
    writeln!(
        out,
        "<style>{STYLE}</style><header><h1>Heap of {} (pid {}): {} in {}</h1>\
         <p class=\"dim\">{}, read from outside in {:.1} s</p>",
        text(&report.comm),
        report.pid,
        bytes(report.heap.bytes),
        blocks(report.heap.blocks),
        text(&report.captured_at),
        report.heap.took_s
    )?;
    facts(report, out)?;
    writeln!(out, "</header>")?;
    if !style.unreachable_only {
        all(report, style.top, out)?;
    }
    unreachable(report, style.top, out)?;
    if !style.unreachable_only {
        drawn(report, style.top, out)?;
    }
    writeln!(out, "</body></html>")
}

fn facts(report: &HeapReport, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "<dl id=\"facts\">")?;
    for (name, told) in super::text::facts(report) {
        write!(out, "<dt>{name}</dt><dd>{}</dd>", text(&told))?;
    }
    for (name, lost) in &report.losses {
        write!(out, "<dt>loss</dt><dd>{}</dd>", text(&loss(name, *lost)))?;
    }
    writeln!(out, "</dl>")
}

fn all(report: &HeapReport, top: usize, out: &mut dyn Write) -> io::Result<()> {
    let has_change = report
        .groups
        .iter()
        .any(|group| group.bytes_change.is_some());
    let change = if has_change {
        "<th class=\"n\">change</th>"
    } else {
        ""
    };
    writeln!(
        out,
        "<section id=\"sites\"><h2>What it is full of</h2><table><thead><tr><th class=\"n\">bytes</th><th class=\"n\">share</th>\
         <th class=\"n\">blocks</th>{change}<th class=\"n\">unreachable</th><th>what</th></tr></thead><tbody>"
    )?;
    let most = report.groups.iter().map(|group| group.bytes).max();
    for group in report.groups.iter().take(top) {
        let part = group.bytes.saturating_mul(100) / most.unwrap_or(1).max(1);
        write!(
            out,
            "<tr><td class=\"n\" data-l=\"bytes\">{}</td><td class=\"n\" data-l=\"share\">{}</td><td class=\"n\" data-l=\"blocks\">{}</td>",
            bytes(group.bytes),
            share(group.bytes, report.heap.bytes),
            count(group.objects)
        )?;
        if has_change {
            let change = signed(group.bytes_change.unwrap_or(0));
            write!(out, "<td class=\"n\" data-l=\"change\">{change}</td>")?;
        }
        let lost = if group.unreachable_objects == 0 {
            String::new()
        } else {
            bytes(group.unreachable_bytes)
        };
        writeln!(
            out,
            "<td class=\"n\" data-l=\"unreachable\">{lost}</td><td class=\"name bar\" style=\"--w:{part}%\">{}</td></tr>",
            described(group)
        )?;
    }
    writeln!(out, "</tbody></table>")?;
    more(report.groups.len(), top, out)?;
    writeln!(out, "</section>")
}

fn unreachable(report: &HeapReport, top: usize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "<section style=\"order:4\"><h2>What nothing points to</h2>"
    )?;
    let lost = lost(report);
    if !report.reachability_checked {
        writeln!(
            out,
            "<p>Not known: there were more pointers than there is room for.</p>"
        )?;
    } else if lost.is_empty() {
        writeln!(out, "<p>Every block in use is reachable.</p>")?;
    } else {
        writeln!(
            out,
            "<p class=\"dim\">Direct: no other lost block points to it. Indirect: it hangs on another lost block.</p>\
             <table><thead><tr><th class=\"n\">direct</th><th class=\"n\">blocks</th><th class=\"n\">indirect</th>\
             <th class=\"n\">blocks</th><th>what</th></tr></thead><tbody>"
        )?;
        for group in lost.iter().take(top) {
            writeln!(
                out,
                "<tr><td class=\"n\" data-l=\"direct\">{}</td><td class=\"n\" data-l=\"blocks\">{}</td>\
                 <td class=\"n\" data-l=\"indirect\">{}</td><td class=\"n\" data-l=\"blocks\">{}</td><td class=\"name\">{}</td></tr>",
                bytes(group.direct_bytes),
                count(group.direct_objects),
                bytes(group.unreachable_bytes.saturating_sub(group.direct_bytes)),
                count(
                    group
                        .unreachable_objects
                        .saturating_sub(group.direct_objects)
                ),
                described(group)
            )?;
        }
        writeln!(out, "</tbody></table>")?;
        more(lost.len(), top, out)?;
    }
    writeln!(out, "</section>")
}

fn drawn(report: &HeapReport, top: usize, out: &mut dyn Write) -> io::Result<()> {
    let held: Vec<&HeapGroup> = report
        .groups
        .iter()
        .take(top)
        .filter(|group| super::notable(group).next().is_some())
        .collect();
    if held.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<section class=\"drawn\"><h2>Who holds it</h2><p class=\"dim\">By the shortest ways from what holds it in the end, on the \
         right; in each box, how many of the group's blocks are held through it.</p>"
    )?;
    for group in held {
        writeln!(
            out,
            "<figure><figcaption>{}: {} in {}</figcaption>",
            described(group),
            bytes(group.bytes),
            blocks(group.objects)
        )?;
        tree::write(group, out)?;
        writeln!(out, "</figure>")?;
    }
    writeln!(out, "</section>")
}

fn described(group: &HeapGroup) -> String {
    text(&label(group))
}

fn more(groups: usize, top: usize, out: &mut dyn Write) -> io::Result<()> {
    let left = groups.saturating_sub(top) as u64;
    if left == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "<p class=\"dim\">{} more groups are not shown</p>",
        count(left)
    )
}
