//! What each key does. [`KEYS`] is what the help tells of them.

use super::{
    history::Base,
    key::{Input, Key},
    order::{self, ProcessSort, SiteSort},
    state::{COLUMNS, Effect, HEAD, Place, State, process_key, site_key},
};

/// Keys and what they do, for the help.
pub(super) const KEYS: [(&str, &str); 19] = [
    ("↑ ↓  j k", "move; PgUp, PgDn, Home, End too"),
    ("Enter  → l", "into a process, a site; open a branch"),
    ("Esc  ← h", "back; close a branch"),
    ("/", "show what has this in its name or stack"),
    ("s  S", "sort by the next column, the one before"),
    ("r", "turn the order round"),
    ("f", "fold what holds nothing, or show it"),
    ("a", "the sites of all processes"),
    ("t", "the call tree, by bytes in use"),
    ("c", "in the tree: callers or callees"),
    ("K", "what the kernel holds on the machine"),
    ("p  Space", "pause, and go on"),
    ("b", "take a snapshot"),
    ("d", "what changed since the snapshot, or all"),
    ("m", "the mouse: click a row, turn the wheel"),
    ("Ctrl-L", "draw everything again"),
    ("Ctrl-Z", "suspend; fg comes back"),
    ("?", "this help"),
    ("q  Ctrl-C", "quit"),
];

/// Lines that the wheel of a mouse moves.
const WHEEL: isize = 3;

/// The longest filter, characters.
const LONGEST_FILTER: usize = 80;

impl State {
    /// Does what was asked for.
    pub(super) fn apply(&mut self, input: Input) -> Effect {
        match input {
            Input::Resize(columns, lines) => {
                self.resize(columns, lines);
                Effect::None
            }
            Input::Key(key) => {
                self.note = None;
                let effect = self.press(key);
                self.settle();
                effect
            }
        }
    }

    fn press(&mut self, key: Key) -> Effect {
        match key {
            Key::Ctrl('c') => return Effect::Quit,
            Key::Ctrl('z') => return Effect::Suspend,
            Key::Ctrl('l') => return Effect::Redraw,
            _ => {}
        }
        if self.is_help {
            self.is_help = false;
            return if key == Key::Char('q') {
                Effect::Quit
            } else {
                Effect::None
            };
        }
        if self.typing.is_some() && self.typed(key) {
            return Effect::None;
        }
        match key {
            Key::Char('q') => return Effect::Quit,
            Key::Char('?') => self.is_help = true,
            Key::Char('m') => {
                self.is_mouse = !self.is_mouse;
                return Effect::Mouse(self.is_mouse);
            }
            Key::Char('p' | ' ') => self.pause(),
            Key::Char('b') => self.snapshot(),
            Key::Char('d') => self.difference(),
            Key::Char('/') => self.begin_filter(),
            Key::Char('s') => self.sort(false),
            Key::Char('S') => self.sort(true),
            Key::Char('r') => self.reverse(),
            Key::Char('f') => self.fold(),
            Key::Char('a') if self.place() == Place::Processes => self.enter(Place::Sites(None)),
            Key::Char('K') if self.place() != Place::Kernel => self.enter(Place::Kernel),
            Key::Char('t') => self.grow(),
            Key::Char('c') if matches!(self.place(), Place::Tree(_)) => {
                self.tree.turn_round();
                self.renew();
            }
            Key::Enter | Key::Right | Key::Char('l') => self.go_in(key),
            Key::Escape | Key::Left | Key::Backspace | Key::Char('h') => self.go_back(key),
            _ => self.travel(key),
        }
        Effect::None
    }

    fn pause(&mut self) {
        self.is_paused = !self.is_paused;
        if let Some(report) = self.waiting.take() {
            self.put(report);
        }
    }

    fn snapshot(&mut self) {
        let Some(report) = &self.report else {
            return;
        };
        self.base = Some(Base::of(report));
        self.note = Some("snapshot taken; d shows what changes from here on".to_owned());
        self.renew();
    }

    fn difference(&mut self) {
        if self.base.is_none() {
            self.note = Some("there is no snapshot yet; b takes one".to_owned());
        } else {
            self.is_difference = !self.is_difference;
            self.renew();
        }
    }

    fn sort(&mut self, back: bool) {
        match self.place() {
            Place::Processes => {
                self.processes.sort = order::next(&ProcessSort::ALL, self.processes.sort, back);
                self.note = Some(format!("sorted by {}", self.processes.sort.name()));
            }
            Place::Sites(_) => {
                self.sites.sort = order::next(&SiteSort::ALL, self.sites.sort, back);
                self.note = Some(format!("sorted by {}", self.sites.sort.name()));
            }
            Place::Site(_) | Place::Kernel | Place::Tree(_) => return,
        }
        self.renew();
    }

    fn reverse(&mut self) {
        match self.place() {
            Place::Processes => self.processes.is_reversed = !self.processes.is_reversed,
            Place::Sites(_) => self.sites.is_reversed = !self.sites.is_reversed,
            Place::Site(_) | Place::Kernel | Place::Tree(_) => return,
        }
        self.renew();
    }

    fn fold(&mut self) {
        match self.place() {
            Place::Processes => self.processes.is_folded = !self.processes.is_folded,
            Place::Sites(_) => self.sites.is_folded = !self.sites.is_folded,
            Place::Site(_) | Place::Kernel => self.is_site_folded = !self.is_site_folded,
            Place::Tree(_) => self.tree.fold(),
        }
        self.renew();
    }

    /// The tree of what is looked at.
    fn grow(&mut self) {
        match self.place() {
            Place::Processes => {
                if let Some(process) = self.processes.chosen() {
                    self.enter(Place::Tree(Some(process)));
                }
            }
            Place::Sites(process) => self.enter(Place::Tree(process)),
            Place::Site(site) => self.enter(Place::Tree(Some(site.process))),
            Place::Tree(_) => {
                self.leave();
            }
            Place::Kernel => {}
        }
    }

    fn go_in(&mut self, key: Key) {
        match self.place() {
            Place::Processes => {
                if let Some(process) = self.processes.chosen() {
                    self.enter(Place::Sites(Some(process)));
                }
            }
            Place::Sites(_) => {
                if let Some(site) = self.sites.chosen() {
                    self.enter(Place::Site(site));
                }
            }
            Place::Tree(_) => self.tree.turn((key != Key::Enter).then_some(true)),
            Place::Site(_) | Place::Kernel => {}
        }
    }

    fn go_back(&mut self, key: Key) {
        let is_sideways = matches!(key, Key::Left | Key::Char('h'));
        if is_sideways && matches!(self.place(), Place::Tree(_)) {
            let before = self.tree.len();
            self.tree.turn(Some(false));
            if self.tree.len() == before
                && let Some(parent) = self.tree.parent()
            {
                self.tree.go(parent);
            }
            return;
        }
        if let Some(filter) = self.filter().filter(|filter| !filter.is_empty())
            && key == Key::Escape
        {
            filter.clear();
            self.renew();
        } else if !self.leave() && key == Key::Escape {
            self.note = Some("q quits".to_owned());
        }
    }

    /// The filter of the list that is shown.
    fn filter(&mut self) -> Option<&mut String> {
        match self.place() {
            Place::Processes => Some(&mut self.processes.filter),
            Place::Sites(_) => Some(&mut self.sites.filter),
            Place::Site(_) | Place::Kernel | Place::Tree(_) => None,
        }
    }

    fn begin_filter(&mut self) {
        self.typing = self.filter().cloned();
        if self.typing.is_none() {
            self.note = Some("lists can be filtered; Esc goes back to one".to_owned());
        }
    }

    /// A key while a filter is typed; whether it was for that.
    fn typed(&mut self, key: Key) -> bool {
        let before = self.typing.clone().unwrap_or_default();
        let Some(filter) = self.filter() else {
            return false;
        };
        match key {
            Key::Char(letter) => {
                if filter.chars().count() < LONGEST_FILTER {
                    filter.extend(letter.to_lowercase());
                }
            }
            Key::Backspace => {
                filter.pop();
            }
            Key::Ctrl('u') => filter.clear(),
            Key::Enter => self.typing = None,
            Key::Escape => {
                *filter = before;
                self.typing = None;
            }
            // The list moves meanwhile.
            _ => return false,
        }
        self.renew();
        true
    }

    /// Moves in what is shown.
    fn travel(&mut self, key: Key) {
        let page = isize::try_from(self.height().max(2) - 1).unwrap_or(1);
        let by = match key {
            Key::Up | Key::Char('k') => -1,
            Key::Down | Key::Char('j') => 1,
            Key::PageUp | Key::Ctrl('b') => -page,
            Key::PageDown | Key::Ctrl('f') => page,
            Key::WheelUp => -WHEEL,
            Key::WheelDown => WHEEL,
            Key::Home | Key::Char('g') => isize::MIN,
            Key::End | Key::Char('G') => isize::MAX,
            Key::Click(line) => {
                self.click(usize::from(line));
                return;
            }
            _ => return,
        };
        let Some(report) = self.report.clone() else {
            return;
        };
        match self.place() {
            Place::Processes => self.processes.step(by, process_key(&report)),
            Place::Sites(_) => self.sites.step(by, site_key(&report)),
            Place::Site(_) | Place::Kernel => {
                self.lines_top = self.lines_top.saturating_add_signed(by);
            }
            Place::Tree(_) => self.tree.go(self.tree.cursor.saturating_add_signed(by)),
        }
    }

    /// Chooses the row on a line of the screen; goes into it where it was chosen.
    fn click(&mut self, line: usize) {
        let first = HEAD + COLUMNS + self.lines.len();
        let Some(row) = line.checked_sub(first).filter(|row| *row < self.height()) else {
            return;
        };
        let Some(report) = self.report.clone() else {
            return;
        };
        let (top, cursor, rows) = match self.place() {
            Place::Processes => (
                self.processes.top,
                self.processes.cursor,
                self.processes.rows.len(),
            ),
            Place::Sites(_) => (self.sites.top, self.sites.cursor, self.sites.rows.len()),
            Place::Tree(_) => (self.tree.top, self.tree.cursor, self.tree.len()),
            Place::Site(_) | Place::Kernel => return,
        };
        let to = top + row;
        if to >= rows {
            return;
        }
        if to == cursor {
            self.go_in(Key::Enter);
            return;
        }
        match self.place() {
            Place::Processes => self.processes.go(to, process_key(&report)),
            Place::Sites(_) => self.sites.go(to, site_key(&report)),
            Place::Tree(_) => self.tree.go(to),
            Place::Site(_) | Place::Kernel => {}
        }
    }
}
