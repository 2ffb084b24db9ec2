//! The list of processes.

use super::super::{
    curve::spark,
    detail::signed,
    order::{ProcessSort, kernel_leaks},
    state::{COLUMNS, HEAD, State},
    text::cut_front,
};
use super::pen::{Ink, Pen, SHORT_VERDICT, VERDICT, verdict};
use super::title;
use crate::report::{MemoryPoint, Process, Report, Verdict};
use crate::units::{bytes, rate};

/// Where each column begins, and how wide it is; 0 where it is not shown.
struct Layout {
    name: usize,
    verdict: usize,
    memory: usize,
    growth: usize,
    spark: usize,
    inuse: usize,
    leaking: usize,
    cgroup: usize,
}

/// The sign of the chosen row, and the process id with a space.
const SIGN: usize = 2;
const PID: usize = 8;

impl Layout {
    fn of(columns: usize) -> Self {
        let mut layout = Self {
            name: 0,
            verdict: if columns >= 100 {
                VERDICT
            } else {
                SHORT_VERDICT
            },
            memory: 9,
            growth: 13,
            spark: if columns >= 120 { 24 } else { 12 },
            inuse: 10,
            leaking: 7,
            cgroup: 0,
        };
        if columns < 76 {
            layout.spark = 0;
        }
        if columns < 90 {
            layout.inuse = 0;
        }
        if columns < 110 {
            layout.leaking = 0;
        }
        let used = SIGN
            + PID
            + [
                layout.verdict,
                layout.memory,
                layout.growth,
                layout.spark,
                layout.inuse,
                layout.leaking,
            ]
            .iter()
            .map(|width| if *width > 0 { width + 1 } else { 0 })
            .sum::<usize>();
        let free = columns.saturating_sub(used);
        // A name has 15 bytes at most; what is left says where it runs.
        layout.name = free.min(if columns >= 130 { 17 } else { free });
        layout.cgroup = free.saturating_sub(layout.name + 2);
        layout
    }
}

/// Draws it.
pub(super) fn draw(state: &State, report: &Report, pen: &mut Pen<'_>) {
    let layout = Layout::of(pen.columns());
    let base = state.shown_base();
    titles(state, &layout, pen);
    for (line, (place, is_chosen)) in state.processes.visible(state.height()).enumerate() {
        let Some(process) = report.processes.get(place as usize) else {
            continue;
        };
        let line = HEAD + COLUMNS + line;
        let leaks = process.verdict == Verdict::Leaking || kernel_leaks(process);
        let ink = if leaks { Ink::Leak } else { Ink::Plain };
        let mut at = SIGN;
        pen.put_right(at, line, PID - 1, &process.pid.to_string(), Ink::Plain);
        at += PID;
        pen.put(at, line, layout.name, &process.comm, ink);
        at += layout.name + 1;
        let (said, ink) = judged(process, layout.verdict);
        pen.put(at, line, layout.verdict, said, ink);
        at += layout.verdict + 1;
        let (memory, inuse) = match base {
            Some(base) => {
                let (memory, inuse) = base.process(process);
                (signed(memory), signed(inuse))
            }
            None => (bytes(process.rss_bytes), bytes(process.inuse_bytes)),
        };
        pen.put_right(at, line, layout.memory, &memory, Ink::Plain);
        at += layout.memory + 1;
        let growth = rate(process.rss_growth_bytes_per_s).unwrap_or_default();
        pen.put_right(at, line, layout.growth, &growth, Ink::Plain);
        at += layout.growth + 1;
        if layout.spark > 0 {
            let series: Vec<(f64, u64)> = process.memory_series.iter().map(resident).collect();
            pen.put(
                at,
                line,
                layout.spark,
                &spark(&series, layout.spark),
                Ink::Dim,
            );
            at += layout.spark + 1;
        }
        if layout.inuse > 0 {
            pen.put_right(at, line, layout.inuse, &inuse, Ink::Plain);
            at += layout.inuse + 1;
        }
        if layout.leaking > 0 {
            let key = super::super::history::ProcessKey::of(process);
            let leaking = state.leaking.get(&key).copied().unwrap_or(0);
            let text = if leaking > 0 {
                leaking.to_string()
            } else {
                String::new()
            };
            pen.put_right(at, line, layout.leaking, &text, Ink::Leak);
            at += layout.leaking + 1;
        }
        if layout.cgroup > 0 {
            let group = cut_front(&process.cgroup, layout.cgroup);
            pen.put(at + 1, line, layout.cgroup, &group, Ink::Dim);
        }
        if is_chosen {
            pen.choose(line);
        }
    }
    if state.processes.rows.is_empty() {
        let why = if report.processes.is_empty() {
            "no process matches yet"
        } else {
            "nothing matches; / changes the filter, Esc takes it away, f shows what is folded"
        };
        pen.put(SIGN, HEAD + COLUMNS, pen.columns(), why, Ink::Dim);
    }
}

fn titles(state: &State, layout: &Layout, pen: &mut Pen<'_>) {
    let line = HEAD;
    let is_change = state.shown_base().is_some();
    let list = &state.processes;
    let name = |of: ProcessSort, text: &str| title(text, of == list.sort, list.is_reversed);
    let mut at = SIGN;
    pen.put_right(
        at,
        line,
        PID - 1,
        &name(ProcessSort::Pid, "PID"),
        Ink::Plain,
    );
    at += PID;
    pen.put(
        at,
        line,
        layout.name,
        &name(ProcessSort::Name, "NAME"),
        Ink::Plain,
    );
    at += layout.name + 1;
    pen.put(
        at,
        line,
        layout.verdict,
        &name(ProcessSort::Verdict, "VERDICT"),
        Ink::Plain,
    );
    at += layout.verdict + 1;
    let memory = if is_change { "MEMORY±" } else { "MEMORY" };
    pen.put_right(
        at,
        line,
        layout.memory,
        &name(ProcessSort::Memory, memory),
        Ink::Plain,
    );
    at += layout.memory + 1;
    pen.put_right(
        at,
        line,
        layout.growth,
        &name(ProcessSort::Growth, "GROWTH"),
        Ink::Plain,
    );
    at += layout.growth + 1;
    if layout.spark > 0 {
        pen.put(at, line, layout.spark, "OVER TIME", Ink::Plain);
        at += layout.spark + 1;
    }
    if layout.inuse > 0 {
        let inuse = if is_change { "IN USE±" } else { "IN USE" };
        pen.put_right(
            at,
            line,
            layout.inuse,
            &name(ProcessSort::Inuse, inuse),
            Ink::Plain,
        );
        at += layout.inuse + 1;
    }
    if layout.leaking > 0 {
        pen.put_right(at, line, layout.leaking, "LEAKS", Ink::Plain);
        at += layout.leaking + 1;
    }
    if layout.cgroup > 0 {
        pen.put(at + 1, line, layout.cgroup, "CONTROL GROUP", Ink::Plain);
    }
    pen.underline(line);
}

/// What to make of a process: `kernel` where it is what the kernel holds for it that leaks.
fn judged(process: &Process, columns: usize) -> (&'static str, Ink) {
    if process.verdict != Verdict::Leaking && kernel_leaks(process) {
        let said = if columns < VERDICT {
            "kernel"
        } else {
            "leaks in kernel"
        };
        return (said, Ink::Leak);
    }
    (verdict(process.verdict, columns), Ink::of(process.verdict))
}

fn resident(point: &MemoryPoint) -> (f64, u64) {
    (point.at_s, point.rss_bytes)
}
