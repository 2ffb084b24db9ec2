//! The list of sites, of a process or of all.

use super::super::{
    curve::spark,
    detail::{per_second, signed},
    history::{ProcessKey, SiteKey},
    order::SiteSort,
    state::{COLUMNS, State},
};
use super::pen::{Ink, Pen, SHORT_VERDICT, VERDICT, verdict};
use super::{above, title};
use crate::report::{Report, SiteKind, why_empty};
use crate::units::{bytes, count, rate};

/// The sign of the chosen row.
const SIGN: usize = 2;

/// How wide each column is; 0 where it is not shown.
struct Layout {
    verdict: usize,
    inuse: usize,
    growth: usize,
    blocks: usize,
    allocates: usize,
    spark: usize,
    process: usize,
}

impl Layout {
    fn of(columns: usize, is_all: bool) -> Self {
        let at = |least: usize, width: usize| if columns >= least { width } else { 0 };
        Self {
            verdict: if columns >= 110 {
                VERDICT
            } else {
                SHORT_VERDICT
            },
            inuse: 9,
            growth: 13,
            blocks: at(84, 11),
            allocates: at(110, 12),
            spark: at(130, 16),
            process: if is_all { at(76, 15) } else { 0 },
        }
    }
}

/// Draws it.
pub(super) fn draw(state: &State, report: &Report, process: Option<ProcessKey>, pen: &mut Pen<'_>) {
    let layout = Layout::of(pen.columns(), process.is_none());
    let first = above(state, pen);
    titles(state, &layout, first, pen);
    let base = state.shown_base();
    for (line, (place, is_chosen)) in state.sites.visible(state.height()).enumerate() {
        let Some(site) = report.sites.get(place as usize) else {
            continue;
        };
        let line = first + COLUMNS + line;
        let mut at = SIGN;
        let said = if site.has_lost() {
            "lost"
        } else {
            verdict(site.verdict, layout.verdict)
        };
        let ink = if site.has_lost() {
            Ink::Leak
        } else {
            Ink::of(site.verdict)
        };
        pen.put(at, line, layout.verdict, said, ink);
        at += layout.verdict + 1;
        let (inuse, blocks) = match base {
            Some(base) => {
                let (inuse, blocks) = base.site(site);
                let sign = if blocks > 0 {
                    "+"
                } else if blocks < 0 {
                    "-"
                } else {
                    ""
                };
                (
                    signed(inuse),
                    format!("{sign}{}", count(blocks.unsigned_abs())),
                )
            }
            None => (bytes(site.inuse_bytes), count(site.inuse_objects)),
        };
        pen.put_right(at, line, layout.inuse, &inuse, Ink::Plain);
        at += layout.inuse + 1;
        let growth = rate(site.growth_bytes_per_s).unwrap_or_default();
        pen.put_right(at, line, layout.growth, &growth, Ink::Plain);
        at += layout.growth + 1;
        if layout.blocks > 0 {
            pen.put_right(at, line, layout.blocks, &blocks, Ink::Plain);
            at += layout.blocks + 1;
        }
        if layout.allocates > 0 {
            let (allocates, _) = state.history.allocates(report, site);
            let text = per_second(allocates).unwrap_or_default();
            pen.put_right(at, line, layout.allocates, &text, Ink::Dim);
            at += layout.allocates + 1;
        }
        if layout.spark > 0 {
            let series = state.history.series(&SiteKey::of(site));
            pen.put(
                at,
                line,
                layout.spark,
                &spark(&series, layout.spark),
                Ink::Dim,
            );
            at += layout.spark + 1;
        }
        if layout.process > 0 {
            let name = report
                .process_of(site)
                .map_or("", |process| process.comm.as_str());
            pen.put(at, line, layout.process, name, Ink::Plain);
            at += layout.process + 1;
        }
        let kind = match (site.kind, site.mapping) {
            (SiteKind::Pages, _) => "pages: ",
            (SiteKind::Goroutines, _) => "goroutines: ",
            (SiteKind::Mapping, _) => "mapping: ",
            (SiteKind::Heap | SiteKind::Go, _) => "",
        };
        let title = format!("{kind}{}", state.title(place));
        pen.put(at, line, pen.columns(), &title, ink);
        if is_chosen {
            pen.choose(line);
        }
    }
    rest(state, report, process, first, pen);
}

/// What is said below the last row: why there is none, and what is folded away.
fn rest(
    state: &State,
    report: &Report,
    process: Option<ProcessKey>,
    first: usize,
    pen: &mut Pen<'_>,
) {
    let shown = state.sites.rows.len();
    let line = first + COLUMNS + shown.saturating_sub(state.sites.top);
    if line >= first + COLUMNS + state.height() {
        return;
    }
    let columns = pen.columns();
    if state.sites.folded > 0 {
        let text = format!(
            "{} more where nothing survives (f)",
            count(state.sites.folded as u64)
        );
        pen.put(SIGN, line, columns, &text, Ink::Dim);
    } else if shown == 0 {
        let found = process.and_then(|key| state.process(key));
        let why = if !state.sites.filter.is_empty() {
            "nothing matches; / changes the filter, Esc takes it away".to_owned()
        } else if process.is_some() && found.is_none() {
            "the process is not in the report any more".to_owned()
        } else if let Some(found) = found.filter(|found| found.inuse_bytes == 0) {
            why_empty(found).into_owned()
        } else if report.sites.is_empty() {
            "no sites yet".to_owned()
        } else {
            "its sites are not among the first of this report; top -p asks for a process alone"
                .to_owned()
        };
        pen.put(SIGN, line, columns, &why, Ink::Dim);
    }
}

fn titles(state: &State, layout: &Layout, line: usize, pen: &mut Pen<'_>) {
    let is_change = state.shown_base().is_some();
    let list = &state.sites;
    let name = |of: SiteSort, text: &str| title(text, of == list.sort, list.is_reversed);
    let mut at = SIGN;
    pen.put(
        at,
        line,
        layout.verdict,
        &name(SiteSort::Verdict, "VERDICT"),
        Ink::Plain,
    );
    at += layout.verdict + 1;
    let inuse = if is_change { "IN USE±" } else { "IN USE" };
    pen.put_right(
        at,
        line,
        layout.inuse,
        &name(SiteSort::Inuse, inuse),
        Ink::Plain,
    );
    at += layout.inuse + 1;
    pen.put_right(
        at,
        line,
        layout.growth,
        &name(SiteSort::Growth, "GROWTH"),
        Ink::Plain,
    );
    at += layout.growth + 1;
    if layout.blocks > 0 {
        pen.put_right(
            at,
            line,
            layout.blocks,
            &name(SiteSort::Blocks, "BLOCKS"),
            Ink::Plain,
        );
        at += layout.blocks + 1;
    }
    if layout.allocates > 0 {
        pen.put_right(
            at,
            line,
            layout.allocates,
            &name(SiteSort::Allocates, "NEW"),
            Ink::Plain,
        );
        at += layout.allocates + 1;
    }
    if layout.spark > 0 {
        pen.put(at, line, layout.spark, "OVER TIME", Ink::Plain);
        at += layout.spark + 1;
    }
    if layout.process > 0 {
        pen.put(at, line, layout.process, "PROCESS", Ink::Plain);
        at += layout.process + 1;
    }
    pen.put(at, line, pen.columns(), "ALLOCATED IN", Ink::Plain);
    pen.underline(line);
}
