//! What keys cost while much is shown. Measured, not asserted: `cargo test --release -p leakscope --lib -- --ignored --nocapture
//! what_keys_cost`.

use std::{sync::Arc, time::Duration};

use ratatui::{Terminal, backend::TestBackend};

use super::super::{
    draw::draw,
    key::{Input, Key},
    state::{News, State},
};
use super::{parts, press, process, site};
use crate::{
    kernel::thread_cpu_time,
    report::{Report, Verdict},
};

/// Processes, and sites of each: what is promised, and a whole machine.
const PROCESSES: u32 = 500;
const SITES: [u64; 2] = [20, 160];

/// Keys a second, for so many seconds, with a report each second.
const KEYS: u32 = 60;
const SECONDS: u32 = 20;

fn large(at_s: f64, sites: u64) -> Arc<Report> {
    let mut large = parts(at_s);
    large.processes.clear();
    large.sites.clear();
    for pid in 1..=PROCESSES {
        let verdict = Verdict::ALL[pid as usize % 5];
        large
            .processes
            .push(process(pid, &format!("worker-{pid}"), verdict));
        for id in 0..sites {
            let verdict = Verdict::ALL[id as usize % 5];
            let bytes = (id + 1) * u64::from(pid) * 64 + at_s as u64;
            let name = format!("handle_{}", id * 7 + u64::from(pid));
            large.sites.push(site(
                pid,
                u64::from(pid) * sites + id,
                &name,
                verdict,
                bytes,
            ));
        }
    }
    Arc::new(Report::new(large))
}

#[test]
#[ignore = "measures"]
#[expect(clippy::print_stdout, reason = "what was measured")]
fn what_keys_cost() {
    for sites in SITES {
        let reports: Vec<_> = (0..SECONDS)
            .map(|second| large(60.0 + f64::from(second), sites))
            .collect();
        println!("{PROCESSES} processes, {} sites", reports[0].sites.len());
        for (what, keys) in [
            ("processes", ""),
            ("sites of all", "a"),
            ("a process", "\n"),
            ("tree of all", "at"),
        ] {
            println!("  {what}: {}", cost(&reports, keys));
        }
    }
}

/// What drawing and reports cost where these keys lead.
fn cost(reports: &[Arc<Report>], keys: &str) -> String {
    let mut state = State::new("all processes".to_owned(), (200, 50));
    state.take(Arc::clone(&reports[0]));
    press(&mut state, keys);
    let mut terminal = Terminal::new(TestBackend::new(200, 50)).unwrap();
    let [mut keys, mut ready, mut news, mut slowest] = [Duration::ZERO; 4];
    let timed = |sum: &mut Duration, work: &mut dyn FnMut()| {
        let begun = thread_cpu_time();
        work();
        let took = thread_cpu_time() - begun;
        *sum += took;
        took
    };
    for report in reports {
        let mut made = None;
        timed(&mut ready, &mut || {
            made = Some(News::of(Arc::clone(report)));
        });
        timed(&mut news, &mut || state.take_news(made.take().unwrap()));
        for press in 0..KEYS {
            let key = if press % 20 == 19 {
                Key::PageDown
            } else {
                Key::Down
            };
            let took = timed(&mut keys, &mut || {
                state.apply(Input::Key(key));
                terminal
                    .draw(|frame| {
                        let area = frame.area();
                        draw(&state, area, frame.buffer_mut(), true);
                    })
                    .unwrap();
            });
            slowest = slowest.max(took);
        }
    }
    format!(
        "{:?} a frame, {slowest:?} the slowest; {:?} a report, and {:?} beside the screen; {:.1} % of a core at {KEYS} keys and 1 report a second",
        keys / (KEYS * SECONDS),
        news / SECONDS,
        ready / SECONDS,
        100.0 * (keys + news).as_secs_f64() / f64::from(SECONDS)
    )
}
