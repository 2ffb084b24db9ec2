//! What keys do to the state.

use std::sync::Arc;

use super::super::{
    history::{ProcessKey, SiteKey},
    key::{Input, Key},
    order::SiteSort,
    state::{Effect, Place, State},
};
use super::{parts, press, report, screen, site};
use crate::report::{Report, SiteKind, Verdict};

/// The names of the processes that are listed, in order.
fn processes(state: &State) -> Vec<u32> {
    let report = state.report.as_ref().unwrap();
    let pid = |row: &u32| report.processes[*row as usize].pid;
    state.processes.rows.iter().map(pid).collect()
}

/// The numbers of the sites that are listed, in order.
fn sites(state: &State) -> Vec<u64> {
    let report = state.report.as_ref().unwrap();
    let id = |row: &u32| report.sites[*row as usize].id;
    state.sites.rows.iter().map(id).collect()
}

#[test]
fn what_leaks_stands_first_in_the_kernel_too() {
    let state = screen(80, 24);
    assert_eq!(processes(&state), [100, 200, 300, 400]);
}

#[test]
fn a_small_leak_stands_before_a_large_cache() {
    let mut state = screen(80, 24);
    press(&mut state, "\n");
    assert_eq!(sites(&state), [1, 2]);
    assert_eq!(state.sites.folded, 1);
    press(&mut state, "f");
    assert_eq!(sites(&state), [1, 2, 3]);
    press(&mut state, "s");
    assert_eq!(
        (sites(&state), state.sites.sort),
        (vec![2, 1, 3], SiteSort::Inuse)
    );
    press(&mut state, "r");
    assert_eq!(sites(&state), [3, 1, 2]);
}

#[test]
fn in_and_back() {
    let mut state = screen(80, 24);
    let key = ProcessKey {
        pid: 100,
        incarnation: 1,
    };
    press(&mut state, "\n");
    assert_eq!(state.place(), Place::Sites(Some(key)));
    press(&mut state, "\n");
    let of_leak = SiteKey::of(&site(100, 1, "", Verdict::Leaking, 1));
    assert_eq!(state.place(), Place::Site(of_leak));
    press(&mut state, "t");
    assert_eq!(state.place(), Place::Tree(Some(key)));
    press(&mut state, "\x1b\x1b\x1b");
    assert_eq!(state.place(), Place::Processes);
    assert_eq!(press(&mut state, "\x1b"), Effect::None);
    assert!(state.note.is_some());
    assert_eq!(press(&mut state, "q"), Effect::Quit);
    press(&mut state, "a");
    assert_eq!(state.place(), Place::Sites(None));
    assert_eq!(sites(&state), [1, 2, 4]);
}

#[test]
fn one_process_is_gone_into_at_once() {
    let mut state = State::new("pid 100".to_owned(), (80, 24));
    state.is_single = true;
    state.take(report(60.0));
    assert!(matches!(state.place(), Place::Sites(Some(key)) if key.pid == 100));
    press(&mut state, "\x1b");
    state.take(report(70.0));
    assert_eq!(state.place(), Place::Processes);
}

#[test]
fn a_filter_is_typed_kept_and_taken_away() {
    let mut state = screen(80, 24);
    press(&mut state, "a/SESSION");
    assert_eq!(sites(&state), [1, 2, 4], "the file's name has it, too");
    press(&mut state, "\x1b/REMEMBER");
    assert_eq!(sites(&state), [1]);
    // Keys that mean something else are letters here.
    press(&mut state, "q");
    assert!(sites(&state).is_empty());
    state.apply(Input::Key(Key::Backspace));
    press(&mut state, "\n");
    assert_eq!((sites(&state), state.typing.is_some()), (vec![1], false));
    press(&mut state, "/x\x1b");
    assert_eq!(
        (sites(&state), state.sites.filter.as_str()),
        (vec![1], "remember")
    );
    press(&mut state, "\x1b");
    assert_eq!(sites(&state), [1, 2, 4]);
    assert_eq!(state.place(), Place::Sites(None));
    press(&mut state, "\x1b");
    assert_eq!(state.place(), Place::Processes);
}

#[test]
fn what_is_chosen_stays_chosen_when_the_order_changes() {
    let mut state = screen(80, 24);
    press(&mut state, "↓");
    let chosen = state.processes.chosen();
    assert_eq!(chosen.unwrap().pid, 200);
    let mut changed = parts(80.0);
    changed.processes[2].verdict = Verdict::Leaking;
    changed.processes[2].rss_growth_bytes_per_s = 1e9;
    state.take(Arc::new(Report::new(changed)));
    assert_eq!(processes(&state), [300, 100, 200, 400]);
    assert_eq!(
        (state.processes.chosen(), state.processes.cursor),
        (chosen, 2)
    );
}

#[test]
fn while_it_is_paused_nothing_changes() {
    let mut state = screen(80, 24);
    press(&mut state, "p");
    state.take(report(80.0));
    assert!((state.report.as_ref().unwrap().duration_s - 70.0).abs() < 1e-9);
    press(&mut state, "p");
    assert!((state.report.as_ref().unwrap().duration_s - 80.0).abs() < 1e-9);
}

#[test]
fn a_snapshot_is_compared_with_what_comes_after_it() {
    let mut state = screen(80, 24);
    press(&mut state, "d");
    assert!(!state.is_difference, "there is none yet");
    press(&mut state, "\nbd");
    let mut later = parts(80.0);
    // The leak, and a site that is new.
    later.sites[1].inuse_bytes += 1000;
    later
        .sites
        .push(site(100, 9, "new_one", Verdict::WarmingUp, 512));
    state.take(Arc::new(Report::new(later)));
    press(&mut state, "s");
    assert_eq!(sites(&state), [1, 9, 2]);
    let report = state.report.clone().unwrap();
    let base = state.shown_base().unwrap();
    let change = |id| {
        let of_id = report.sites.iter().find(|site| site.id == id);
        base.site(of_id.unwrap()).0
    };
    assert_eq!((change(1), change(9), change(2)), (1000, 512, 0));
}

#[test]
fn a_daemon_that_was_started_anew_is_not_compared_with_the_one_before() {
    let mut state = screen(80, 24);
    press(&mut state, "bd");
    let mut other = parts(1.0);
    other.captured_at = parts(90.0).captured_at;
    state.take(Arc::new(Report::new(other)));
    assert!(state.base.is_none() && !state.is_difference);
    assert!(state.note.as_deref().unwrap().contains("another trace"));
}

#[test]
fn new_blocks_a_second_are_of_now() {
    let mut state = screen(80, 24);
    let mut later = parts(80.0);
    later.sites[1].alloc_bytes += 50_000;
    state.take(Arc::new(Report::new(later)));
    let report = state.report.clone().unwrap();
    let leak = report.sites.iter().find(|site| site.id == 1).unwrap();
    // From the mark at 70 s, for that at 60 s is two back.
    let (bytes, _) = state.history.allocates(&report, leak);
    assert!((bytes - 5000.0).abs() < 1.0, "{bytes}");
    let series = state.history.series(&SiteKey::of(leak));
    assert_eq!(
        series.iter().map(|(at, _)| *at as u32).collect::<Vec<_>>(),
        [60, 70, 80]
    );
}

#[test]
fn the_tree_grows_from_both_ends_and_opens_by_itself_where_most_is() {
    let mut state = screen(120, 24);
    press(&mut state, "\nt");
    let names = |state: &State| -> Vec<String> {
        let rows = state.tree.visible(20);
        rows.map(|(row, _)| format!("{}{}", " ".repeat(row.depth), row.name))
            .collect()
    };
    assert_eq!(
        names(&state),
        ["main", "serve", " cached_page", " remember_session"]
    );
    assert_eq!(state.tree.total, 68 << 20);
    // Closed, and the cursor stays.
    press(&mut state, "↓\n");
    assert_eq!(names(&state), ["main", "serve"]);
    press(&mut state, "→");
    assert_eq!(names(&state).len(), 4);
    press(&mut state, "c");
    assert_eq!(
        names(&state),
        ["cached_page", " serve", " main", "remember_session"]
    );
    press(&mut state, "f");
    assert_eq!(names(&state).len(), 6);
}

#[test]
fn pages_are_in_no_sum_of_the_tree() {
    let mut state = screen(120, 24);
    let mut with_pages = parts(80.0);
    let mut pages = site(100, 7, "touch", Verdict::Plateau, 1 << 30);
    pages.kind = SiteKind::Pages;
    with_pages.sites.push(pages);
    state.take(Arc::new(Report::new(with_pages)));
    press(&mut state, "t");
    assert_eq!(state.tree.total, 68 << 20);
}

#[test]
fn a_click_chooses_and_another_goes_in() {
    let mut state = screen(80, 24);
    state.apply(Input::Key(Key::Click(4)));
    assert_eq!(state.processes.chosen().unwrap().pid, 200);
    state.apply(Input::Key(Key::Click(20)));
    assert_eq!(state.place(), Place::Processes);
    state.apply(Input::Key(Key::Click(4)));
    assert!(matches!(state.place(), Place::Sites(Some(key)) if key.pid == 200));
    assert_eq!(press(&mut state, "m"), Effect::Mouse(true));
}

#[test]
fn a_process_that_is_gone_leaves_a_place_to_go_back_from() {
    let mut state = screen(80, 24);
    press(&mut state, "\n");
    let mut less = parts(80.0);
    less.processes.remove(0);
    less.sites.clear();
    state.take(Arc::new(Report::new(less)));
    assert!(state.sites.rows.is_empty());
    press(&mut state, "\n↓G\x1b");
    assert_eq!(state.place(), Place::Processes);
}

#[test]
fn any_keys_in_any_window_leave_something_to_draw() {
    use proptest::prelude::*;
    use ratatui::{buffer::Buffer, layout::Rect};
    let keys = "\n\x1b/sSrfatcpbdm?q ↓↑→←kjgGhlx日";
    let run = proptest::test_runner::Config::with_cases(200);
    let mut runner = proptest::test_runner::TestRunner::new(run);
    let choices: Vec<char> = keys.chars().collect();
    let any = proptest::collection::vec(proptest::sample::select(choices), 0..40);
    runner
        .run(&(any, 1..220_u16, 1..70_u16), |(keys, columns, lines)| {
            let mut state = screen(columns, lines);
            for (place, key) in keys.into_iter().enumerate() {
                press(&mut state, &key.to_string());
                if place % 7 == 6 {
                    state.take(report(80.0 + place as f64));
                }
                let area = Rect::new(0, 0, columns, lines);
                let mut buffer = Buffer::empty(area);
                super::super::draw::draw(&state, area, &mut buffer, true);
                let is_clean = buffer
                    .content()
                    .iter()
                    .all(|cell| !cell.symbol().chars().any(char::is_control));
                prop_assert!(is_clean);
            }
            Ok(())
        })
        .unwrap();
}
