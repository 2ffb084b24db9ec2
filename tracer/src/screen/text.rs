//! Text as a terminal may be given it: what a column holds, how wide it is, where a long line is broken.
//!
//! Owns the rule that nothing which a traced process chose reaches the terminal as it is. Knows nothing of reports.

use unicode_width::UnicodeWidthChar as _;

use crate::report::clean;

/// So many accents may stand on one character: more is meant to disturb the lines above.
const ACCENTS: usize = 2;

/// Marks that stand on the character before them, of width 0 (Unicode's combining diacritical marks).
const COMBINING: std::ops::RangeInclusive<char> = '\u{300}'..='\u{36f}';

/// The text without control characters, and without invisible ones: those of width 0 hide what stands there, and terminals
/// differ in how wide they take them to be.
pub(super) fn safe(text: &str) -> String {
    let mut accents = 0;
    clean(text)
        .chars()
        .filter(|character| {
            if width_of(*character) > 0 {
                accents = 0;
                return true;
            }
            accents += 1;
            COMBINING.contains(character) && accents <= ACCENTS
        })
        .collect()
}

/// Columns that a character takes.
fn width_of(character: char) -> usize {
    character.width().unwrap_or(0)
}

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

/// The text made safe and cut to so many columns, with `…` where something is missing at the end.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let text = safe(text);
    if width(&text) <= columns {
        return text;
    }
    let mut kept = head(&text, columns.saturating_sub(1)).to_owned();
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// The same with what is missing at the beginning, for paths: their ends tell them apart.
pub(super) fn cut_front(text: &str, columns: usize) -> String {
    let text = safe(text);
    let mut over = width(&text).saturating_sub(columns);
    if over == 0 {
        return text;
    }
    // And the mark itself.
    over += 1;
    let mut rest = text.chars();
    while over > 0 {
        let Some(character) = rest.next() else {
            break;
        };
        over = over.saturating_sub(width_of(character));
    }
    if columns == 0 {
        String::new()
    } else {
        format!("…{}", rest.as_str())
    }
}

/// As much of the beginning as so many columns hold.
fn head(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find_map(|(place, character)| {
        used += width_of(character);
        (used > columns).then_some(place)
    });
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

/// The text made safe, in lines of so many columns, broken between words where that is possible. Later lines are indented.
pub(super) fn wrap(text: &str, columns: usize, indent: usize) -> Vec<String> {
    let text = safe(text);
    let mut rest = text.trim_end();
    let mut lines = Vec::new();
    let mut lead = 0;
    loop {
        let room = columns.saturating_sub(lead).max(1);
        let fits = head(rest, room);
        let line = if fits.len() == rest.len() {
            fits
        } else {
            let space = fits.rfind(' ').filter(|space| {
                fits.get(..*space)
                    .is_some_and(|line| !line.trim().is_empty())
            });
            let end = space.map_or(fits.len(), |space| space + 1);
            // A character that is wider than the room: it stands alone.
            let end = end.max(rest.chars().next().map_or(0, char::len_utf8));
            rest.get(..end).unwrap_or(rest)
        };
        lines.push(format!("{:lead$}{}", "", line.trim_end()));
        rest = rest.get(line.len()..).unwrap_or_default();
        if rest.is_empty() {
            return lines;
        }
        lead = indent.min(columns / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::{cut, cut_front, safe, width, wrap};
    use proptest::prelude::*;

    #[test]
    fn what_a_process_chose_does_not_steer_the_terminal() {
        assert_eq!(safe("a\x1b[2Jb\u{7}\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
        assert_eq!(safe("x\u{200b}\u{200d}\u{feff}\u{200f}y"), "xy");
        // Accents stay, a tower of them does not.
        assert_eq!(safe("e\u{301}"), "e\u{301}");
        let tower = format!("e{}f", "\u{301}".repeat(500));
        assert_eq!(safe(&tower), "e\u{301}\u{301}f");
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut_front("/srv/日本語", 6), "…本語");
        assert_eq!(cut("name", 0), "");
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(
            wrap("one site leaks, and how", 10, 2),
            ["one site", "  leaks,", "  and how"]
        );
        assert_eq!(wrap("", 10, 2), [""]);
        assert_eq!(wrap("abcdefgh", 3, 1), ["abc", " de", " fg", " h"]);
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_its_column(text in any::<String>(), columns in 2..40_usize) {
            prop_assert!(width(&cut(&text, columns)) <= columns);
            prop_assert!(width(&cut_front(&text, columns)) <= columns);
            for line in wrap(&text, columns, 1) {
                prop_assert!(width(&line) <= columns.max(3), "{line:?}");
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
