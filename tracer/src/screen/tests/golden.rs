//! Cells as they were looked at and found good, at widths that terminals have.

use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::Buffer,
    style::{Color, Modifier},
};

use super::super::{draw::draw, state::State};
use super::{press, screen};
use crate::report::{
    Frame, FrameKind, KernelLevel, KernelLevelKind, KernelMemory, KernelObjects, KernelWindows,
    Verdict,
};

fn drawn(state: &State, color: bool) -> Buffer {
    let (columns, lines) = state.size;
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal
        .draw(|frame| {
            let area = frame.area();
            draw(state, area, frame.buffer_mut(), color);
        })
        .unwrap();
    terminal.backend().buffer().clone()
}

/// The text of all cells, without what is empty at the ends of lines.
fn text(state: &State) -> String {
    let buffer = drawn(state, false);
    let columns = usize::from(buffer.area.width);
    let mut lines = Vec::new();
    for row in buffer.content().chunks(columns) {
        let mut line = String::new();
        let mut skip = 0;
        for cell in row {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            line.push_str(cell.symbol());
            // The cells behind a wide character are its own.
            skip = super::super::text::width(cell.symbol()).saturating_sub(1);
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

#[test]
fn processes() {
    for columns in [60, 80, 120, 200] {
        insta::assert_snapshot!(format!("processes_{columns}"), text(&screen(columns, 12)));
    }
}

#[test]
fn sites() {
    for columns in [60, 80, 120, 200] {
        let mut state = screen(columns, 16);
        press(&mut state, "\n");
        insta::assert_snapshot!(format!("sites_{columns}"), text(&state));
    }
}

#[test]
fn sites_of_all() {
    for columns in [60, 120] {
        let mut state = screen(columns, 12);
        press(&mut state, "a");
        insta::assert_snapshot!(format!("all_sites_{columns}"), text(&state));
    }
}

#[test]
fn a_site() {
    for columns in [60, 80, 120, 200] {
        let mut state = screen(columns, 40);
        press(&mut state, "\n\n");
        insta::assert_snapshot!(format!("site_{columns}"), text(&state));
    }
}

#[test]
fn a_hostile_site() {
    let mut state = screen(60, 40);
    press(&mut state, "a/japan\x1bG\nf");
    insta::assert_snapshot!("site_hostile_60", text(&state));
}

#[test]
fn a_tree() {
    for columns in [60, 120] {
        let mut state = screen(columns, 16);
        press(&mut state, "\nt");
        insta::assert_snapshot!(format!("tree_{columns}"), text(&state));
    }
}

#[test]
fn a_difference() {
    let mut state = screen(120, 12);
    press(&mut state, "bd");
    let mut later = super::parts(95.0);
    later.processes[0].rss_bytes += 9 << 20;
    later.processes[0].inuse_bytes += 8 << 20;
    later.sites[1].inuse_bytes += 8 << 20;
    state.take(std::sync::Arc::new(crate::report::Report::new(later)));
    insta::assert_snapshot!("difference_120", text(&state));
    press(&mut state, "\n");
    insta::assert_snapshot!("difference_sites_120", text(&state));
}

/// Sockets that a server does not close.
fn made() -> KernelObjects {
    let frame = |name: &str, kind, line: Option<u32>| {
        std::sync::Arc::new(Frame {
            function: Some(name.to_owned()),
            file: line.map(|_| "/src/server.c".to_owned()),
            line,
            kind,
            ..Frame::default()
        })
    };
    KernelObjects {
        pid: 4290,
        comm: super::HOSTILE.to_owned(),
        cache: "sock_inode_cache".to_owned(),
        object_bytes: 832,
        inuse_bytes: 9640 * 832,
        inuse_objects: 9640,
        growth_objects_per_s: 400.0,
        verdict: Verdict::Leaking,
        verdict_reason: "+400/s for 52.0 s, no sign of levelling off".to_owned(),
        frames: vec![
            frame("sock_alloc_inode", FrameKind::Kernel, None),
            frame("__sys_socketpair", FrameKind::Kernel, None),
            frame("handle_request", FrameKind::Native, Some(88)),
        ],
        ..KernelObjects::default()
    }
}

/// A cache that leaks, a line that grows for some other reason, and one that does not.
fn kernel() -> KernelMemory {
    let level = |kind, name: &str, bytes, verdict, reason: &str| KernelLevel {
        kind,
        name: name.to_owned(),
        bytes,
        verdict,
        verdict_reason: reason.to_owned(),
        growth_bytes_per_s: 2048.0,
        ..KernelLevel::default()
    };
    let (cache, line) = (KernelLevelKind::Cache, KernelLevelKind::Line);
    KernelMemory {
        levels: vec![
            level(
                cache,
                "dentry",
                300 << 20,
                Verdict::Leaking,
                "+2 KiB/s for 60 s, no sign of levelling off",
            ),
            level(
                line,
                super::HOSTILE,
                9 << 20,
                Verdict::WarmingUp,
                "more of late",
            ),
            level(line, "page tables", 4 << 20, Verdict::Plateau, ""),
        ],
        notes: vec!["slab caches cannot be read here".to_owned()],
        windows: Some(KernelWindows {
            opened: 2,
            open_s: 31.0,
            ..KernelWindows::default()
        }),
        sites: vec![made()],
        ..KernelMemory::default()
    }
}

#[test]
fn the_kernel() {
    for columns in [60, 120] {
        let mut state = screen(columns, 24);
        press(&mut state, "K");
        assert!(text(&state).contains("not watched"));
        let mut watched = super::parts(80.0);
        watched.kernel = Some(kernel());
        state.take(std::sync::Arc::new(crate::report::Report::new(watched)));
        insta::assert_snapshot!(format!("kernel_{columns}"), text(&state));
        press(&mut state, "\x1b");
        assert!(text(&state).contains("MEMORY"));
    }
}

#[test]
fn help() {
    let mut state = screen(60, 24);
    press(&mut state, "?");
    insta::assert_snapshot!("help_60", text(&state));
}

#[test]
fn trouble_is_told_where_figures_would_be() {
    let mut state = screen(80, 8);
    state.trouble = Some("no daemon answers at /run/leakscope.sock".to_owned());
    assert!(text(&state).contains("\nno daemon answers at /run/leakscope.sock\n"));
    state.take(super::report(80.0));
    assert!(!text(&state).contains("no daemon"));
}

#[test]
fn a_window_that_is_too_small_says_so() {
    assert_eq!(text(&screen(30, 3)), "too small a window\n\n");
}

#[test]
fn without_colours_a_leak_is_bold_and_the_chosen_row_turned_round() {
    let state = screen(80, 12);
    let (plain, colored) = (drawn(&state, false), drawn(&state, true));
    assert!(plain.content().iter().all(|cell| cell.fg == Color::Reset));
    assert!(colored.content().iter().any(|cell| cell.fg == Color::Red));
    let row = &plain.content()[80 * 3..80 * 4];
    assert!(
        row.iter()
            .all(|cell| cell.modifier.contains(Modifier::REVERSED))
    );
    assert_eq!(row[0].symbol(), ">");
    let is_bold = |cell: &&ratatui::buffer::Cell| cell.modifier.contains(Modifier::BOLD);
    let bold: String = row
        .iter()
        .filter(is_bold)
        .map(|cell| cell.symbol())
        .collect();
    assert!(
        bold.contains("indexer") && bold.contains("leaking"),
        "{bold}"
    );
}
