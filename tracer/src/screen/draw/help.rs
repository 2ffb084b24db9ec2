//! The keys.

use super::super::{keys::KEYS, state::HEAD};
use super::pen::{Ink, Pen};

/// Columns of the keys' names.
const NAMES: usize = 13;

/// Draws them; in two halves where they would be higher than the terminal.
pub(super) fn draw(pen: &mut Pen<'_>) {
    let room = pen.lines().saturating_sub(HEAD + 1);
    let is_split = KEYS.len() > room && pen.columns() >= 100;
    let half = if is_split {
        KEYS.len().div_ceil(2)
    } else {
        KEYS.len()
    };
    let columns = if is_split {
        pen.columns() / 2
    } else {
        pen.columns()
    };
    for (place, (key, what)) in KEYS.iter().enumerate() {
        let (side, line) = (place / half, HEAD + place % half);
        if line + 1 >= pen.lines() {
            continue;
        }
        let at = side * columns;
        pen.put(at, line, NAMES, key, Ink::Title);
        pen.put(
            at + NAMES,
            line,
            columns.saturating_sub(NAMES + 1),
            what,
            Ink::Plain,
        );
    }
}
