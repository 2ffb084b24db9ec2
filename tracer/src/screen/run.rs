//! The loop: waits for keys, reports and signals, has the state changed by them, and draws when something has changed.

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use ratatui::crossterm::event;
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};

use super::{
    draw::draw,
    feed::{Feed, Fetching},
    key::{Input, input},
    state::{Effect, News, State},
    terminal::{Taken, give_back_in_panics},
};
use crate::report::Report;

/// Something that happened.
pub(super) enum Event {
    Input(Input),
    Report(Box<News>),
    /// Why no report came.
    Trouble(String),
    /// None will come any more.
    Over(anyhow::Error),
    /// What would have been written to stderr.
    Said(String),
    /// A signal asks to end.
    End,
}

/// What the screen is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is watched, for people.
    pub source: String,
    /// How often a report is asked for.
    pub every: Duration,
    /// Whether colours may be used.
    pub color: bool,
    /// Whether one process is watched and no other can come: its sites are what is wanted, not a list of one row.
    pub is_single: bool,
}

/// Lines that are said while the screen is open: shown on it, and kept for when it is closed.
#[derive(Clone, Default)]
pub struct Messages(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    events: Option<Sender<Event>>,
}

/// So many lines are kept at most.
const LINES_KEPT: usize = 100;

impl Messages {
    /// Says a line.
    pub fn say(&self, line: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.lines.len() < LINES_KEPT {
            kept.lines.push(line.to_owned());
        }
        if let Some(events) = &kept.events {
            // The screen may be closing.
            let _ = events.send(Event::Said(line.to_owned()));
        }
    }

    /// What was said.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.events = None;
        std::mem::take(&mut kept.lines)
    }

    fn send_to(&self, events: Sender<Event>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in &kept.lines {
            let _ = events.send(Event::Said(line.clone()));
        }
        kept.events = Some(events);
    }
}

/// Shows what a feed hands out until the user quits. `first`: a report that is there already.
///
/// # Errors
/// The terminal cannot be used, or there are no more reports.
pub fn run(
    options: Options,
    feed: impl Feed,
    runtime: tokio::runtime::Runtime,
    messages: &Messages,
    first: Option<Arc<Report>>,
) -> anyhow::Result<()> {
    let (events, happened) = mpsc::channel();
    give_back_in_panics(thread::current().id(), {
        let messages = messages.clone();
        move |said| messages.say(said)
    });
    listen_for_signals(&events)?;
    let mut terminal = Taken::take().context("cannot use the terminal")?;
    listen_for_keys(events.clone())?;
    messages.send_to(events.clone());
    let mut state = State::new(options.source, terminal.size()?);
    state.is_single = options.is_single;
    if let Some(report) = first {
        state.take_news(News::of(report));
    }
    let mut fetching = Fetching::start(feed, options.every, events, runtime)?;
    let result = show(&mut terminal, &mut state, &happened, options.color);
    // The user has the terminal back while probes are taken away.
    drop(terminal);
    fetching.end();
    result
}

fn show(
    terminal: &mut Taken,
    state: &mut State,
    happened: &Receiver<Event>,
    color: bool,
) -> anyhow::Result<()> {
    let mut over = None;
    loop {
        terminal.draw(|area, buffer| draw(state, area, buffer, color))?;
        let mut next = Some(happened.recv()?);
        // All that has happened by now is in the next drawing.
        while let Some(event) = next {
            match event {
                Event::End => return Ok(()),
                Event::Report(news) => state.take_news(*news),
                Event::Trouble(why) => state.trouble = Some(why),
                Event::Over(error) => {
                    state.trouble = Some(format!("{error:#}; q quits"));
                    over = Some(error);
                }
                Event::Said(line) => state.note = Some(line),
                Event::Input(input) => match state.apply(input) {
                    Effect::None => {}
                    Effect::Quit => return over.map_or(Ok(()), Err),
                    Effect::Redraw => terminal.clear()?,
                    Effect::Mouse(is_mouse) => terminal.listen_to_mouse(is_mouse)?,
                    Effect::Suspend => {
                        terminal.give_back();
                        kill_process(getpid(), Signal::TSTP)?;
                        terminal.again()?;
                        let (columns, lines) = terminal.size()?;
                        state.resize(columns, lines);
                    }
                },
            }
            next = happened.try_recv().ok();
        }
    }
}

/// Keys wake the loop from a thread of their own, which ends with the process.
fn listen_for_keys(events: Sender<Event>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            while let Ok(event) = event::read() {
                if let Some(input) = input(&event)
                    && events.send(Event::Input(input)).is_err()
                {
                    return;
                }
            }
            // The terminal is gone.
            let _ = events.send(Event::End);
        })?;
    Ok(())
}

/// Signals that ask to end do so by the loop, which gives the terminal back.
fn listen_for_signals(events: &Sender<Event>) -> anyhow::Result<()> {
    let (mut woken, wake) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        pipe::register(signal, wake.try_clone()?).context("cannot listen for signals")?;
    }
    let events = events.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut byte = [0];
            while woken.read_exact(&mut byte).is_ok() {
                if events.send(Event::End).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
