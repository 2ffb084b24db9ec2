//! A call stack as lines of text: the allocator and what languages put around functions folded away, recursion folded together.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::allocator::{entry_name, is_of_language};
use super::super::model::{Frame, FrameKind};
use super::super::names::{base_name, clean, function, unnamed};
use super::layout::{cut, link, short_path};

/// Function names longer than this many characters are cut in the middle.
const NAME_LENGTH: usize = 160;

/// So much is left of a name, however narrow the terminal is.
const NAME_SHORTEST: usize = 24;

/// Modules' names longer than this are cut where lines are to be short.
const MODULE_LENGTH: usize = 28;

/// The longest cycle of calls that is folded together.
const CYCLE_LENGTH: usize = 8;

/// How frames are written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Whether paths are shortened, and what a language puts around functions is folded.
    pub(super) short: bool,
    /// Whether sources are hyperlinks.
    pub(super) links: bool,
    /// Columns that a frame may take, where that is bounded.
    pub(super) width: Option<usize>,
}

/// A line of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// The stack, leaf first, with what repeats shown once.
pub(super) fn lines(frames: &[Arc<Frame>]) -> Vec<Line> {
    lines_in(frames, Look::default())
}

/// The same in a look.
pub(super) fn lines_in(frames: &[Arc<Frame>], look: Look) -> Vec<Line> {
    let all: Vec<Line> = if look.short {
        folded(frames, look)
    } else {
        frames.iter().map(|frame| written(frame, look)).collect()
    };
    let mut lines = Vec::with_capacity(all.len());
    let mut rest = all.as_slice();
    while let Some((first, others)) = rest.split_first() {
        let cycle = (1..=CYCLE_LENGTH)
            .map(|length| (length, repetitions(rest, length)))
            .find(|&(_, repeated)| repeated >= 2);
        let Some((length, repeated)) = cycle else {
            lines.push(first.clone());
            rest = others;
            continue;
        };
        let (once, _) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        lines.extend_from_slice(once);
        lines.push(Line::Remark(if length == 1 {
            format!("… repeated {repeated} times")
        } else {
            format!("… these {length} frames repeated {repeated} times")
        }));
        rest = rest.get(length * (repeated + 1)..).unwrap_or_default();
    }
    lines
}

fn written(frame: &Frame, look: Look) -> Line {
    Line::Frame(text_in(frame, look))
}

/// Frames without those of a language: the ones before `main` are left out, others are counted.
fn folded(frames: &[Arc<Frame>], look: Look) -> Vec<Line> {
    let mut lines = Vec::with_capacity(frames.len());
    let mut hidden = 0_u64;
    for frame in frames {
        if is_wrapper(frame) {
            hidden += 1;
            continue;
        }
        if hidden > 0 {
            let plural = crate::units::plural(hidden);
            lines.push(Line::Remark(format!(
                "… {hidden} frame{plural} of the language"
            )));
            hidden = 0;
        }
        lines.push(written(frame, look));
    }
    if lines.is_empty() {
        return frames.iter().map(|frame| written(frame, look)).collect();
    }
    lines
}

/// Whether a frame is of a language's own library or of what calls `main`, and says nothing of the program.
pub(super) fn is_wrapper(frame: &Frame) -> bool {
    function(frame).is_some_and(|function| is_of_language(function, frame.kind))
}

/// How many more times the first `length` lines follow directly.
fn repetitions(lines: &[Line], length: usize) -> usize {
    let mut chunks = lines.chunks_exact(length);
    let Some(first) = chunks.next() else {
        return 0;
    };
    chunks.take_while(|chunk| *chunk == first).count()
}

/// A frame in a look: `function (file:line)`, `function+0x1c [module]`, `[module+0x1234]`.
pub(super) fn text_in(frame: &Frame, look: Look) -> String {
    let mut end = String::new();
    if frame.inlined {
        end.push_str(" [inlined]");
    }
    end.push_str(match frame.kind {
        FrameKind::Native | FrameKind::Go => "",
        // Its file says it.
        FrameKind::Python if frame.file.is_some() => "",
        FrameKind::Jit => " [jit]",
        FrameKind::Kernel => " [kernel]",
        FrameKind::Python => " [python]",
    });
    match function(frame) {
        Some(function) => named(frame, function, look, &end),
        None => unnamed(frame) + &end,
    }
}

fn named(frame: &Frame, function: &str, look: Look, end: &str) -> String {
    let (place, source) = place(frame, look);
    let taken = place.chars().count() + end.chars().count();
    let room = look.width.map_or(NAME_LENGTH, |width| {
        width
            .saturating_sub(taken)
            .clamp(NAME_SHORTEST, NAME_LENGTH)
    });
    let name = clean(function);
    let name = cut(&name, room);
    match source.filter(|_| look.links) {
        Some(source) => format!("{name}{}{end}", link(source, &place)),
        None => format!("{name}{place}{end}"),
    }
}

/// Where a named frame's code is, and the path of its source.
fn place(frame: &Frame, look: Look) -> (String, Option<&str>) {
    if let Some(file) = &frame.file {
        let shown = clean(file);
        let shown = if look.short {
            short_path(&shown)
        } else {
            shown.as_ref().into()
        };
        let place = match frame.line {
            Some(line) => format!(" ({shown}:{line})"),
            None => format!(" ({shown})"),
        };
        return (place, Some(file));
    }
    let offset = frame
        .function_offset
        .filter(|_| !look.short || frame.module.is_none())
        .map(|offset| format!("+{offset:#x}"))
        .unwrap_or_default();
    let place = match &frame.module {
        Some(module) => {
            let module = clean(base_name(module));
            let most = if look.short {
                MODULE_LENGTH
            } else {
                usize::MAX
            };
            format!("{offset} [{}]", cut(&module, most))
        }
        None => offset,
    };
    (place, None)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{Line, Look, cut, is_wrapper, lines, lines_in, split, text_in, via};
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
            assert_eq!(text_in(frame, Look::default()), expected);
        }
    }

    #[test]
    fn long_names_lose_their_middle() {
        let name: String = "ä".repeat(100) + &"z".repeat(100);
        let short = cut(&name, super::NAME_LENGTH);
        assert_eq!(short.chars().count(), 160);
        assert!(short.starts_with(&"ä".repeat(80)));
        assert!(short.ends_with(&"z".repeat(79)));
        assert_eq!(cut("short", 160), "short");
    }

    #[test]
    fn what_a_language_puts_around_functions_is_folded() {
        let frames = stack(&[
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "alloc::vec::Vec<T,A>::push",
            "app::remember",
            "core::ops::function::FnOnce::call_once",
            "app::main",
            "std::rt::lang_start::{{closure}}",
            "__libc_start_call_main",
        ]);
        let look = Look {
            short: true,
            ..Look::default()
        };
        let lines: Vec<String> = lines_in(&frames, look)
            .into_iter()
            .map(|line| match line {
                Line::Frame(text) | Line::Remark(text) => text,
            })
            .collect();
        assert_eq!(
            lines,
            [
                "… 2 frames of the language",
                "app::remember",
                "… 1 frame of the language",
                "app::main"
            ]
        );
        // Where there is nothing else, it is shown.
        let frames = stack(&["std::thread::spawn", "start_thread"]);
        assert!(frames.iter().all(|frame| is_wrapper(frame)));
        assert_eq!(lines_in(&frames, look).len(), 2);
    }

    #[test]
    fn a_frame_fits_the_terminal_and_leads_to_its_source() {
        let frame = Frame {
            function: Some("a::very::long::name::".repeat(6)),
            file: Some("/srv/app/src/deep/file.rs".to_owned()),
            line: Some(7),
            ..Frame::default()
        };
        let look = Look {
            short: true,
            links: false,
            width: Some(60),
        };
        let plain = text_in(&frame, look);
        assert_eq!(plain.chars().count(), 60, "{plain}");
        assert!(plain.ends_with(" (…/src/deep/file.rs:7)"), "{plain}");
        let linked = text_in(
            &frame,
            Look {
                links: true,
                ..look
            },
        );
        assert_eq!(super::super::layout::columns(&linked), 60);
        assert!(linked.contains("file:///srv/app/src/deep/file.rs\x1b"));
    }
}
