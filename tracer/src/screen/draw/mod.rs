//! A state as cells of a terminal. Pure: the same state gives the same cells. Only rows in view are written, and every text passes
//! through [`Pen::put`], which lets nothing through that steers a terminal.

mod help;
mod pen;
mod processes;
mod sites;
mod tree;

use ratatui::{buffer::Buffer, layout::Rect};

use super::{
    detail::{Dress, clock, signed},
    state::{FOOT, HEAD, Place, State},
    text::width,
};
use crate::report::{Report, Verdict};
use crate::units::{bytes, count, duration, percent, plural};
use pen::{Ink, Pen};

/// Narrower than this, and lower, is said instead of drawn.
const LEAST: (u16, u16) = (40, 8);

/// Draws a state; in colours if `color`.
pub(super) fn draw(state: &State, area: Rect, buffer: &mut Buffer, color: bool) {
    let mut pen = Pen::new(buffer, area, color);
    if area.width < LEAST.0 || area.height < LEAST.1 {
        pen.put(0, 0, pen.columns(), "too small a window", Ink::Plain);
        return;
    }
    head(state, &mut pen);
    match (&state.report, state.is_help) {
        (_, true) => help::draw(&mut pen),
        (None, false) => {
            pen.put(
                2,
                HEAD + 1,
                pen.columns(),
                "waiting for the first report: names are looked up once, which can take some seconds",
                Ink::Dim,
            );
        }
        (Some(report), false) => match state.place() {
            Place::Processes => processes::draw(state, report, &mut pen),
            Place::Sites(process) => sites::draw(state, report, process, &mut pen),
            Place::Site(_) | Place::Kernel => lines(state, &mut pen),
            Place::Tree(_) => tree::draw(state, &mut pen),
        },
    }
    foot(state, &mut pen);
}

/// The title of a column, with the sign of the order if the list is sorted by it.
fn title(text: &str, is_sorted: bool, is_reversed: bool) -> String {
    match (is_sorted, is_reversed) {
        (false, _) => text.to_owned(),
        (true, false) => format!("{text}▾"),
        (true, true) => format!("{text}▴"),
    }
}

/// What is watched, and what it comes to.
fn head(state: &State, pen: &mut Pen<'_>) {
    let columns = pen.columns();
    let report = state.report.as_deref();
    let right = match report {
        Some(_) if state.is_paused => "PAUSED".to_owned(),
        Some(report) => clock(&report.captured_at.to_string()).to_owned(),
        None => String::new(),
    };
    let room = columns.saturating_sub(width(&right) + 2);
    let mut title = format!("leakscope top: {}", state.source);
    if let Some(report) = report {
        let traced = format!(
            "  {} tier, traced for {}",
            report.tier.name(),
            duration(report.duration_s)
        );
        if width(&title) + width(&traced) <= room {
            title.push_str(&traced);
        }
    }
    pen.put(0, 0, room, &title, Ink::Title);
    let ink = if state.is_paused {
        Ink::Warning
    } else {
        Ink::Dim
    };
    pen.put(
        columns.saturating_sub(width(&right)),
        0,
        columns,
        &right,
        ink,
    );
    if let Some(trouble) = &state.trouble {
        pen.put(0, 1, columns, trouble, Ink::Leak);
    } else if let Some(report) = report {
        let (text, ink) = totals(state, report);
        pen.put(0, 1, columns, &text, ink);
    }
}

/// The second line.
fn totals(state: &State, report: &Report) -> (String, Ink) {
    if let Some(base) = state.shown_base() {
        let more = super::history::change(base.inuse_bytes, state.sums.total.inuse_bytes);
        let text = format!(
            "since the snapshot of {}, {} ago: {} in use",
            clock(&base.at.to_string()),
            duration(report.duration_s - base.at_s),
            signed(more)
        );
        return (text, Ink::Warning);
    }
    let super::state::Sums {
        total,
        leaking,
        lost,
    } = state.sums;
    let processes = report.processes.len() as u64;
    let ending = if processes == 1 { "" } else { "es" };
    let mut parts = vec![format!("{} process{ending}", count(processes))];
    if leaking > 0 {
        parts.push(format!("{} leaking", count(leaking)));
    }
    parts.push(format!(
        "{} in use at {} site{}",
        bytes(total.inuse_bytes),
        count(total.sites),
        plural(total.sites)
    ));
    if total.sites > report.sites.len() as u64 {
        parts.push(format!("{} not shown", count(report.omitted.sites)));
    }
    let leaks = report.kernel.iter().any(|kernel| {
        let mut levels = kernel.levels.iter().map(|level| level.verdict);
        let mut sites = kernel.sites.iter().map(|site| site.verdict);
        levels.any(|verdict| verdict == Verdict::Leaking)
            || sites.any(|verdict| verdict == Verdict::Leaking)
    });
    if leaks {
        parts.push("the kernel leaks (K)".to_owned());
    }
    if lost > 0 {
        parts.push(format!("{} events lost", count(lost)));
    }
    let overhead = &report.overhead;
    parts.push(format!(
        "overhead {}",
        percent(overhead.target_cpu_fraction)
    ));
    (
        parts.join(" · "),
        if leaking > 0 { Ink::Leak } else { Ink::Plain },
    )
}

/// All of one site.
fn lines(state: &State, pen: &mut Pen<'_>) {
    for (place, line) in state
        .lines
        .iter()
        .skip(state.lines_top)
        .take(state.height())
        .enumerate()
    {
        pen.put(0, HEAD + place, pen.columns(), &line.text, ink(line.dress));
    }
}

/// The lines above a process's sites; the line after them.
fn above(state: &State, pen: &mut Pen<'_>) -> usize {
    for (place, line) in state.lines.iter().enumerate() {
        pen.put(0, HEAD + place, pen.columns(), &line.text, ink(line.dress));
    }
    HEAD + state.lines.len()
}

fn ink(dress: Dress) -> Ink {
    match dress {
        Dress::Plain => Ink::Plain,
        Dress::Title => Ink::Title,
        Dress::Dim => Ink::Dim,
        Dress::Verdict(verdict) => Ink::of(verdict),
    }
}

/// What can be done, what is typed, or what was said.
fn foot(state: &State, pen: &mut Pen<'_>) {
    let line = pen.lines().saturating_sub(FOOT);
    let columns = pen.columns();
    if state.is_help {
        pen.put(0, line, columns, "any key goes back", Ink::Dim);
        return;
    }
    let filter = match state.place() {
        Place::Processes => state.processes.filter.as_str(),
        Place::Sites(_) => state.sites.filter.as_str(),
        Place::Site(_) | Place::Kernel | Place::Tree(_) => "",
    };
    if state.typing.is_some() {
        pen.put(
            0,
            line,
            columns,
            &format!("/{filter}_   Enter keeps it, Esc does not"),
            Ink::Title,
        );
        return;
    }
    if let Some(note) = &state.note {
        pen.put(0, line, columns, note, Ink::Warning);
        return;
    }
    let (cursor, rows) = match state.place() {
        Place::Processes => (state.processes.cursor, state.processes.rows.len()),
        Place::Sites(_) => (state.sites.cursor, state.sites.rows.len()),
        Place::Tree(_) => (state.tree.cursor, state.tree.len()),
        Place::Site(_) | Place::Kernel => (
            (state.lines_top + state.height())
                .min(state.lines.len())
                .saturating_sub(1),
            state.lines.len(),
        ),
    };
    let place = if rows == 0 {
        String::new()
    } else {
        format!("{}/{rows}", cursor + 1)
    };
    let room = columns.saturating_sub(place.len() + 2);
    let mut used = 0;
    if !filter.is_empty() {
        used = pen.put(0, line, room, &format!("/{filter}"), Ink::Title) + 2;
    }
    pen.put(
        used,
        line,
        room.saturating_sub(used),
        hint(state.place()),
        Ink::Dim,
    );
    pen.put(
        columns.saturating_sub(place.len()),
        line,
        columns,
        &place,
        Ink::Dim,
    );
}

/// The keys that matter most where the user is.
fn hint(place: Place) -> &'static str {
    match place {
        Place::Processes => {
            "? help  Enter sites  / filter  s sort  t tree  a all sites  b snapshot  d difference  p pause  q quit"
        }
        Place::Sites(_) => {
            "? help  Enter site  Esc back  / filter  s sort  f fold  t tree  b snapshot  d difference  q quit"
        }
        Place::Site(_) => "? help  Esc back  ↑↓ scroll  f unfold  t tree  q quit",
        Place::Kernel => "? help  Esc back  ↑↓ scroll  f unfold  q quit",
        Place::Tree(_) => "? help  Esc back  Enter open  c callers  f unfold  q quit",
    }
}
