//! Lines that fit a terminal, hyperlinks, and paths that are short. Knows nothing of reports.

use std::borrow::Cow;

/// Narrower than this nothing is wrapped to.
const NARROWEST: usize = 40;

/// Of the paths of sources so many parts are shown.
const PARTS: usize = 3;

/// Columns that a text takes: its characters without escape sequences (ECMA-48 CSI, and OSC up to its terminator).
pub(super) fn columns(text: &str) -> usize {
    let mut characters = text.chars();
    let mut columns = 0;
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            skip_escape(&mut characters);
        } else {
            columns += 1;
        }
    }
    columns
}

/// Passes over the rest of an escape sequence of ours.
fn skip_escape(characters: &mut std::str::Chars<'_>) {
    match characters.next() {
        Some('[') => {
            for character in characters.by_ref() {
                if ('@'..='~').contains(&character) {
                    break;
                }
            }
        }
        Some(']') => {
            let mut before = ' ';
            for character in characters.by_ref() {
                if before == '\x1b' && character == '\\' {
                    break;
                }
                before = character;
            }
        }
        _ => {}
    }
}

/// Every line in at most so many columns, where its words allow. What goes on is set in to column `hang`, or to two columns beyond
/// the beginning of its line.
pub(super) fn wrap(text: &str, width: usize, hang: Option<usize>) -> String {
    let width = width.max(NARROWEST);
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    for line in text.lines() {
        if columns(line) <= width {
            out.push_str(line);
        } else {
            wrap_line(line, width, hang, &mut out);
        }
        out.push('\n');
    }
    out
}

fn wrap_line(line: &str, width: usize, hang: Option<usize>, out: &mut String) {
    let indent = line
        .chars()
        .take_while(|character| *character == ' ')
        .count();
    let hang = hang.unwrap_or(indent + 2).min(width / 2);
    let mut column = 0;
    let mut has_word = false;
    for (place, word) in line.split(' ').enumerate() {
        let length = columns(word);
        let gap = usize::from(place > 0);
        // A word that is longer than a line is on one by itself, and is not cut.
        if has_word && length > 0 && column + gap + length > width {
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', hang));
            column = hang;
        } else if place > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
        has_word |= length > 0;
    }
}

/// A text that leads to a file where one clicks at it (OSC 8); a relative path leads nowhere.
pub(super) fn link(path: &str, text: &str) -> String {
    if !path.starts_with('/') {
        return text.to_owned();
    }
    let mut url = String::with_capacity(path.len() + 8);
    for byte in path.bytes() {
        // RFC 3986, 2.3, and the separator.
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("\x1b]8;;file://{url}\x1b\\{text}\x1b]8;;\x1b\\")
}

/// A path of a source without what says where a toolchain or a package lies.
pub(super) fn short_path(path: &str) -> Cow<'_, str> {
    for (marker, skipped) in [
        // Rust's own sources carry the hash of a commit, those of crates the name of a registry.
        ("/rustc/", 2),
        ("/registry/src/", 1),
        ("/site-packages/", 0),
        ("/dist-packages/", 0),
        ("/usr/include/", 0),
    ] {
        if let Some((_, rest)) = path.split_once(marker) {
            let rest = rest.splitn(skipped + 1, '/').nth(skipped).unwrap_or(rest);
            return last_parts(rest, path.starts_with('/'));
        }
    }
    last_parts(path, path.starts_with('/'))
}

/// The last parts of a path, after an ellipsis where others were before them.
fn last_parts(path: &str, is_absolute: bool) -> Cow<'_, str> {
    let parts = path.split('/').filter(|part| !part.is_empty()).count();
    if parts <= PARTS {
        return Cow::Borrowed(path);
    }
    let from = path
        .rmatch_indices('/')
        .nth(PARTS - 1)
        .map_or(0, |(place, _)| place);
    let rest = path.get(from + 1..).unwrap_or(path);
    if is_absolute || from > 0 {
        format!("…/{rest}").into()
    } else {
        Cow::Borrowed(path)
    }
}

/// A text in at most so many columns, without its middle: both ends tell most. It has no escape sequences.
pub(super) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= most {
        return Cow::Borrowed(text);
    }
    let head = most / 2;
    let tail = most.saturating_sub(head + 1);
    let mut short: String = text.chars().take(head).collect();
    short.push('…');
    short.extend(text.chars().skip(length - tail));
    short.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{columns, cut, link, short_path, wrap};

    #[test]
    fn long_lines_go_on_below_their_text() {
        let line =
            "  verdict    leaking: one site leaks, and at this rate memory runs out in about 27 h";
        assert_eq!(
            wrap(line, 50, Some(13)),
            "  verdict    leaking: one site leaks, and at this\n             rate memory runs out in about 27 h\n"
        );
        assert_eq!(
            wrap(
                "    a word and another one that is not in the first line",
                40,
                None
            ),
            "    a word and another one that is not\n      in the first line\n"
        );
    }

    #[test]
    fn escape_sequences_take_no_columns() {
        assert_eq!(columns("\x1b[1;31mred\x1b[0m"), 3);
        assert_eq!(columns(&link("/a b/c.rs", "c.rs:3")), 6);
        assert_eq!(
            link("/a b/c.rs", "x"),
            "\x1b]8;;file:///a%20b/c.rs\x1b\\x\x1b]8;;\x1b\\"
        );
        assert_eq!(link("src/c.rs", "x"), "x");
    }

    #[test]
    fn paths_lose_what_says_where_a_toolchain_lies() {
        for (path, short) in [
            ("src/index.hpp", "src/index.hpp"),
            ("/srv/app.py", "/srv/app.py"),
            (
                "/rustc/0123abcd/library/alloc/src/raw_vec/mod.rs",
                "…/src/raw_vec/mod.rs",
            ),
            (
                "/home/a/.cargo/registry/src/index.crates.io-1/tokio-1.2/src/lib.rs",
                "tokio-1.2/src/lib.rs",
            ),
            (
                "/usr/lib/python3/dist-packages/flask/app.py",
                "flask/app.py",
            ),
            (
                "/home/someone/code/server/src/deep/er/handler.c",
                "…/deep/er/handler.c",
            ),
            ("a/b/c/d/e.c", "…/c/d/e.c"),
        ] {
            assert_eq!(short_path(path), short);
        }
        assert_eq!(cut("abcdefghij", 5), "ab…ij");
    }

    proptest! {
        #[test]
        fn wrapping_loses_no_word_and_keeps_to_the_width(words in proptest::collection::vec("[a-zä]{1,12}", 1..40), width in 40..120_usize) {
            let line = format!("  {}", words.join(" "));
            let wrapped = wrap(&line, width, None);
            prop_assert!(wrapped.lines().all(|line| columns(line) <= width));
            let back: Vec<&str> = wrapped.split_whitespace().collect();
            prop_assert_eq!(back, words);
        }

        #[test]
        fn no_path_breaks_the_shortening(path in ".{0,60}") {
            prop_assert!(short_path(&path).chars().count() <= path.chars().count() + 2);
        }
    }
}
