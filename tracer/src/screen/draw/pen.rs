//! What writes into cells: cut to the column, made safe, dressed with or without colours.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use super::super::text::{cut, width};
use crate::report::Verdict;

/// How a text is dressed. Without colours it still differs by weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Title,
    Dim,
    Leak,
    Warning,
}

impl Ink {
    pub(super) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Leaking => Self::Leak,
            Verdict::WarmingUp => Self::Warning,
            Verdict::Plateau | Verdict::Churn => Self::Plain,
            Verdict::InsufficientData => Self::Dim,
        }
    }

    fn style(self, color: bool) -> Style {
        let plain = Style::new();
        let colored = |style: Style, hue: Color| if color { style.fg(hue) } else { style };
        match self {
            Self::Plain => plain,
            Self::Title => plain.add_modifier(Modifier::BOLD),
            Self::Dim => plain.add_modifier(Modifier::DIM),
            Self::Leak => colored(plain.add_modifier(Modifier::BOLD), Color::Red),
            Self::Warning => colored(plain, Color::Yellow),
        }
    }
}

/// Whether each character is a cell of its own, and none of them steers the terminal: ASCII that is printed, lines and blocks.
fn is_simple(text: &str) -> bool {
    text.chars()
        .all(|character| matches!(character, ' '..='~' | '\u{2500}'..='\u{259f}'))
}

/// See the module.
pub(super) struct Pen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    color: bool,
}

impl<'a> Pen<'a> {
    pub(super) fn new(buffer: &'a mut Buffer, area: Rect, color: bool) -> Self {
        Self {
            buffer,
            area,
            color,
        }
    }

    pub(super) fn columns(&self) -> usize {
        usize::from(self.area.width)
    }

    pub(super) fn lines(&self) -> usize {
        usize::from(self.area.height)
    }

    /// Writes a text at a column and a line, in at most so many columns; the column after it.
    pub(super) fn put(
        &mut self,
        column: usize,
        line: usize,
        columns: usize,
        text: &str,
        ink: Ink,
    ) -> usize {
        let room = columns.min(self.columns().saturating_sub(column));
        if room == 0 || line >= self.lines() {
            return column;
        }
        let style = ink.style(self.color);
        let (x, y) = self.cell(column, line);
        if is_simple(text) && text.chars().count() <= room {
            return column + self.put_simple(x, y, text, style);
        }
        let text = cut(text, room);
        self.buffer.set_string(x, y, &text, style);
        column + width(&text)
    }

    /// Writes a text that [`is_simple`] and fits; how many cells. Nearly all texts are that, and looking for what belongs together in
    /// them would be most of what a drawing costs.
    fn put_simple(&mut self, x: u16, y: u16, text: &str, style: Style) -> usize {
        let mut cells = 0;
        for (x, character) in (x..).zip(text.chars()) {
            if let Some(cell) = self.buffer.cell_mut((x, y)) {
                cell.set_char(character).set_style(style);
            }
            cells += 1;
        }
        cells
    }

    /// The same at the right end of a column.
    pub(super) fn put_right(
        &mut self,
        column: usize,
        line: usize,
        columns: usize,
        text: &str,
        ink: Ink,
    ) {
        let free = columns.saturating_sub(width(text));
        self.put(column + free, line, columns - free, text, ink);
    }

    /// Marks a line as the chosen one: with a sign, and turned round as far as the terminal can.
    pub(super) fn choose(&mut self, line: usize) {
        if line >= self.lines() {
            return;
        }
        let (x, y) = self.cell(0, line);
        self.buffer.set_string(x, y, ">", Style::new());
        let row = Rect::new(x, y, self.area.width, 1);
        self.buffer
            .set_style(row, Style::new().add_modifier(Modifier::REVERSED));
    }

    /// Has a line look like the title of columns.
    pub(super) fn underline(&mut self, line: usize) {
        if line < self.lines() {
            let (x, y) = self.cell(0, line);
            let row = Rect::new(x, y, self.area.width, 1);
            let style = Style::new().add_modifier(Modifier::UNDERLINED | Modifier::DIM);
            self.buffer.set_style(row, style);
        }
    }

    fn cell(&self, column: usize, line: usize) -> (u16, u16) {
        let within = |place: usize| u16::try_from(place).unwrap_or(u16::MAX);
        (
            self.area.x.saturating_add(within(column)),
            self.area.y.saturating_add(within(line)),
        )
    }
}

/// A verdict in a column of [`VERDICT`] columns, or of [`SHORT_VERDICT`].
pub(super) fn verdict(verdict: Verdict, columns: usize) -> &'static str {
    match verdict {
        Verdict::InsufficientData if columns < SHORT_VERDICT + 1 => "too few",
        Verdict::InsufficientData if columns < VERDICT => "insufficient",
        Verdict::WarmingUp if columns < SHORT_VERDICT + 1 => "warming",
        other => other.name(),
    }
}

/// The longest name of a verdict, columns.
pub(super) const VERDICT: usize = 17;

/// What is left of it where there is no room.
pub(super) const SHORT_VERDICT: usize = 8;
