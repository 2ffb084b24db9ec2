//! A call stack as lines of text: the allocator folded away, recursion folded together.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::allocator::entry_name;
use super::super::model::{Frame, FrameKind};
use super::super::names::{base_name, clean, function, unnamed};

/// Function names longer than this many characters are cut in the middle.
const NAME_LENGTH: usize = 160;

/// The longest cycle of calls that is folded together.
const CYCLE_LENGTH: usize = 8;

/// A line of a stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A frame.
    Frame(String),
    /// A remark on the frames before it.
    Remark(String),
}

/// Splits a stack into the allocator's own frames and the caller's.
pub(super) fn split(frames: &[Arc<Frame>]) -> (&[Arc<Frame>], &[Arc<Frame>]) {
    let own = frames
        .iter()
        .take_while(|frame| own_name(frame).is_some())
        .count();
    frames.split_at_checked(own).unwrap_or((&[], frames))
}

fn own_name(frame: &Frame) -> Option<Cow<'_, str>> {
    entry_name(function(frame)?)
}

/// How the allocator was entered: `operator new ← malloc`. Of more than three functions, the first and the last.
pub(super) fn via(own: &[Arc<Frame>]) -> Option<String> {
    let mut names: Vec<Cow<'_, str>> = own
        .iter()
        .rev()
        .filter_map(|frame| own_name(frame))
        .collect();
    names.dedup();
    match names.as_slice() {
        [] => None,
        [first, _, _, .., last] => Some(format!("{} ← … ← {}", clean(first), clean(last))),
        names => Some(clean(&names.join(" ← ")).into_owned()),
    }
}

/// The line of Python that a programmer looks for: the innermost, where other code stands before it.
pub(super) fn python_line(callers: &[Arc<Frame>]) -> Option<String> {
    let place = callers
        .iter()
        .position(|frame| frame.kind == FrameKind::Python)?;
    (place > 0).then(|| callers.get(place).map(|frame| text(frame)))?
}

/// The stack, leaf first, with what repeats shown once.
pub(super) fn lines(frames: &[Arc<Frame>]) -> Vec<Line> {
    let frames: Vec<String> = frames.iter().map(|frame| text(frame)).collect();
    let mut lines = Vec::with_capacity(frames.len());
    let mut rest = frames.as_slice();
    while let Some((first, others)) = rest.split_first() {
        let cycle = (1..=CYCLE_LENGTH)
            .map(|length| (length, repetitions(rest, length)))
            .find(|&(_, repeated)| repeated >= 2);
        let Some((length, repeated)) = cycle else {
            lines.push(Line::Frame(first.clone()));
            rest = others;
            continue;
        };
        let (once, _) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        lines.extend(once.iter().cloned().map(Line::Frame));
        lines.push(Line::Remark(if length == 1 {
            format!("… repeated {repeated} times")
        } else {
            format!("… these {length} frames repeated {repeated} times")
        }));
        rest = rest.get(length * (repeated + 1)..).unwrap_or_default();
    }
    lines
}

/// How many more times the first `length` lines follow directly.
fn repetitions(lines: &[String], length: usize) -> usize {
    let mut chunks = lines.chunks_exact(length);
    let Some(first) = chunks.next() else {
        return 0;
    };
    chunks.take_while(|chunk| *chunk == first).count()
}

/// A frame: `function (file:line)`, `function+0x1c [module]`, `[module+0x1234]`.
fn text(frame: &Frame) -> String {
    let mut text = match function(frame) {
        Some(function) => named(frame, function),
        None => unnamed(frame),
    };
    if frame.inlined {
        text.push_str(" [inlined]");
    }
    match frame.kind {
        FrameKind::Native | FrameKind::Go => {}
        // Its file says it.
        FrameKind::Python if frame.file.is_some() => {}
        FrameKind::Jit => text.push_str(" [jit]"),
        FrameKind::Kernel => text.push_str(" [kernel]"),
        FrameKind::Python => text.push_str(" [python]"),
    }
    text
}

fn named(frame: &Frame, function: &str) -> String {
    let name = clean(function);
    let name = cut(&name);
    if let Some(file) = &frame.file {
        let file = clean(file);
        return match frame.line {
            Some(line) => format!("{name} ({file}:{line})"),
            None => format!("{name} ({file})"),
        };
    }
    let offset = frame
        .function_offset
        .map(|offset| format!("+{offset:#x}"))
        .unwrap_or_default();
    match &frame.module {
        Some(module) => format!("{name}{offset} [{}]", clean(base_name(module))),
        None => format!("{name}{offset}"),
    }
}

/// A long name without its middle, for both ends tell most.
fn cut(name: &str) -> Cow<'_, str> {
    let length = name.chars().count();
    if length <= NAME_LENGTH {
        return Cow::Borrowed(name);
    }
    let head = NAME_LENGTH / 2;
    let tail = NAME_LENGTH - head - 1;
    let mut text: String = name.chars().take(head).collect();
    text.push('…');
    text.extend(name.chars().skip(length - tail));
    text.into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{Line, cut, lines, python_line, split, text, via};
    use crate::report::model::{Frame, FrameKind};
    use std::sync::Arc;

    fn stack(functions: &[&str]) -> Vec<Arc<Frame>> {
        functions
            .iter()
            .map(|function| {
                Arc::new(Frame {
                    function: Some((*function).to_owned()),
                    ..Frame::default()
                })
            })
            .collect()
    }

    fn rendered(functions: &[&str]) -> Vec<String> {
        lines(&stack(functions))
            .into_iter()
            .map(|line| match line {
                Line::Frame(text) | Line::Remark(text) => text,
            })
            .collect()
    }

    #[test]
    fn the_allocator_is_folded_away() {
        let frames = stack(&[
            "malloc",
            "operator new(unsigned long)",
            "make",
            "malloc",
            "main",
        ]);
        let (own, callers) = split(&frames);
        assert_eq!(via(own).unwrap(), "operator new ← malloc");
        assert_eq!(callers, frames.get(2..).unwrap());

        let frames = stack(&["malloc"]);
        assert_eq!(split(&frames), (frames.as_slice(), [].as_slice()));
        assert_eq!(via(&[]), None);

        let frames = stack(&[
            "malloc",
            "__rdl_alloc",
            "__rust_alloc",
            "alloc::alloc::alloc",
        ]);
        assert_eq!(via(&frames).unwrap(), "alloc::alloc::alloc ← … ← malloc");
    }

    #[test]
    fn the_line_of_python_is_told_where_other_code_stands_before_it() {
        let python = Arc::new(Frame {
            function: Some("serve".to_owned()),
            file: Some("/srv/app.py".to_owned()),
            line: Some(12),
            kind: FrameKind::Python,
            ..Frame::default()
        });
        let mut frames = stack(&["ffi_call"]);
        assert_eq!(python_line(&frames), None);
        frames.push(python);
        assert_eq!(python_line(&frames).unwrap(), "serve (/srv/app.py:12)");
        frames.remove(0);
        assert_eq!(python_line(&frames), None);
    }

    #[test]
    fn recursion_is_folded() {
        assert_eq!(rendered(&["f", "f", "main"]), ["f", "f", "main"]);
        assert_eq!(
            rendered(&["f", "f", "f", "main"]),
            ["f", "… repeated 2 times", "main"]
        );
        assert_eq!(
            rendered(&["x", "f", "g", "f", "g", "f", "g", "f", "main"]),
            [
                "x",
                "f",
                "g",
                "… these 2 frames repeated 2 times",
                "f",
                "main"
            ]
        );
        assert_eq!(rendered(&[]), [""; 0]);
    }

    #[test]
    fn every_degree_of_knowledge_has_its_form() {
        let full = Frame {
            function: Some("parse".to_owned()),
            function_offset: Some(0x1c),
            module: Some("/usr/lib/libx.so.1".to_owned()),
            offset: Some(0x1234),
            file: Some("src/parse.c".to_owned()),
            line: Some(7),
            address: Some(0x7f00_0000_1234),
            ..Frame::default()
        };
        let no_line = Frame {
            line: None,
            ..full.clone()
        };
        let no_file = Frame {
            file: None,
            ..full.clone()
        };
        let no_name = Frame {
            function: None,
            ..no_file.clone()
        };
        let no_offset = Frame {
            offset: None,
            ..no_name.clone()
        };
        let jit = Frame {
            module: None,
            kind: FrameKind::Jit,
            ..no_offset.clone()
        };
        let inlined = Frame {
            inlined: true,
            ..full.clone()
        };
        for (frame, expected) in [
            (&full, "parse (src/parse.c:7)"),
            (&no_line, "parse (src/parse.c)"),
            (&no_file, "parse+0x1c [libx.so.1]"),
            (&no_name, "[libx.so.1+0x1234]"),
            (&no_offset, "[libx.so.1 0x7f0000001234]"),
            (&jit, "[0x7f0000001234] [jit]"),
            (&inlined, "parse (src/parse.c:7) [inlined]"),
            (&Frame::default(), "[unknown]"),
        ] {
            assert_eq!(text(frame), expected);
        }
    }

    #[test]
    fn long_names_lose_their_middle() {
        let name: String = "ä".repeat(100) + &"z".repeat(100);
        let short = cut(&name);
        assert_eq!(short.chars().count(), 160);
        assert!(short.starts_with(&"ä".repeat(80)));
        assert!(short.ends_with(&"z".repeat(79)));
        assert_eq!(cut("short"), "short");
    }
}
