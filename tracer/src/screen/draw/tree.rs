//! The call tree.

use super::super::{
    state::{COLUMNS, State},
    tree::Direction,
};
use super::above;
use super::pen::{Ink, Pen};
use crate::units::{bytes, count, share};

/// The sign of the chosen row, bytes, the share and blocks.
const SIGN: usize = 2;
const BYTES: usize = 9;
const SHARE: usize = 7;
const BLOCKS: usize = 11;

/// Draws it.
pub(super) fn draw(state: &State, pen: &mut Pen<'_>) {
    let tree = &state.tree;
    let first = above(state, pen);
    let has_blocks = pen.columns() >= 90;
    let mut at = SIGN;
    pen.put_right(at, first, BYTES, "IN USE", Ink::Plain);
    at += BYTES + 1;
    pen.put_right(at, first, SHARE, "SHARE", Ink::Plain);
    at += SHARE + 1;
    if has_blocks {
        pen.put_right(at, first, BLOCKS, "BLOCKS", Ink::Plain);
        at += BLOCKS + 1;
    }
    let title = match tree.direction {
        Direction::Callees => "FUNCTION, AND WHAT IT CALLS BELOW",
        Direction::Callers => "WHO ALLOCATES, AND ITS CALLERS BELOW",
    };
    pen.put(at, first, pen.columns(), title, Ink::Plain);
    pen.underline(first);
    for (line, (row, is_chosen)) in tree.visible(state.height()).enumerate() {
        let line = first + COLUMNS + line;
        let ink = if row.is_leaking {
            Ink::Leak
        } else {
            Ink::Plain
        };
        let mut at = SIGN;
        pen.put_right(at, line, BYTES, &bytes(row.bytes), Ink::Plain);
        at += BYTES + 1;
        pen.put_right(at, line, SHARE, &share(row.bytes, tree.total), Ink::Dim);
        at += SHARE + 1;
        if has_blocks {
            pen.put_right(at, line, BLOCKS, &count(row.objects), Ink::Dim);
            at += BLOCKS + 1;
        }
        // Deep branches keep room for their names.
        at += row.depth.min(pen.columns().saturating_sub(at) / 2);
        let sign = match row.is_open {
            Some(true) => "▾ ",
            Some(false) => "▸ ",
            None => "  ",
        };
        at = pen.put(at, line, 2, sign, Ink::Dim);
        // A sign that ends in a space is as wide as the others.
        pen.put(at, line, pen.columns(), row.name, ink);
        if is_chosen {
            pen.choose(line);
        }
    }
    if tree.len() == 0 {
        pen.put(
            SIGN,
            first + COLUMNS,
            pen.columns(),
            "nothing survives",
            Ink::Dim,
        );
    }
}
