//! What keys cost while much is shown. Measured, not asserted: `cargo test --release -p leakscope --lib -- --ignored --nocapture
//! what_keys_cost`.

use std::{sync::Arc, time::Duration};

use ratatui::{Terminal, backend::TestBackend};

use super::super::{
    draw::draw,
    key::{Input, Key},
    state::State,
};
use super::{parts, press, process, site};
use crate::{
    kernel::thread_cpu_time,
    report::{Report, Verdict},
};

/// Processes, and sites of each.
const PROCESSES: u32 = 500;
const SITES: u64 = 20;

/// Keys a second, for so many seconds, with a report each second.
const KEYS: u32 = 60;
const SECONDS: u32 = 20;

fn large(at_s: f64) -> Arc<Report> {
    let mut large = parts(at_s);
    large.processes.clear();
    large.sites.clear();
    for pid in 1..=PROCESSES {
        let verdict = Verdict::ALL[pid as usize % 5];
        large
            .processes
            .push(process(pid, &format!("worker-{pid}"), verdict));
        for id in 0..SITES {
            let verdict = Verdict::ALL[id as usize % 5];
            let bytes = (id + 1) * u64::from(pid) * 64 + at_s as u64;
            let name = format!("handle_{}", id * 7 + u64::from(pid));
            large.sites.push(site(
                pid,
                u64::from(pid) * SITES + id,
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
    let reports: Vec<_> = (0..SECONDS)
        .map(|second| large(60.0 + f64::from(second)))
        .collect();
    for (what, keys) in [
        ("processes", ""),
        ("sites of all", "a"),
        ("a process", "\n"),
        ("tree of all", "at"),
    ] {
        let mut state = State::new("all processes".to_owned(), (200, 50));
        state.take(Arc::clone(&reports[0]));
        press(&mut state, keys);
        let mut terminal = Terminal::new(TestBackend::new(200, 50)).unwrap();
        let (mut keys, mut news, mut slowest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for report in &reports {
            let begun = thread_cpu_time();
            state.take(Arc::clone(report));
            news += thread_cpu_time() - begun;
            for press in 0..KEYS {
                let begun = thread_cpu_time();
                let key = if press % 20 == 19 {
                    Key::PageDown
                } else {
                    Key::Down
                };
                state.apply(Input::Key(key));
                terminal
                    .draw(|frame| {
                        let area = frame.area();
                        draw(&state, area, frame.buffer_mut(), true);
                    })
                    .unwrap();
                let took = thread_cpu_time() - begun;
                keys += took;
                slowest = slowest.max(took);
            }
        }
        let frames = KEYS * SECONDS;
        println!(
            "{what}: {:?} a frame, {slowest:?} the slowest; {:?} a report; {:.1} % of a core at {KEYS} keys and 1 report a second",
            keys / frames,
            news / SECONDS,
            100.0 * (keys + news).as_secs_f64() / f64::from(SECONDS)
        );
    }
}
