//! Where in CPython's structures stands what is read of them, by version. Up to 3.12 as its own headers say (`offsetof`, x86_64, release
//! builds); from 3.13 on the process says it itself: `_Py_DebugOffsets`, `Include/internal/pycore_runtime.h`.

use serde::{Deserialize, Serialize};

use leakscope_common::{NO_CFRAME, PythonEnd, PythonShape};

/// A version of CPython.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The 3 of 3.11.
    pub major: u8,
    /// The 11.
    pub minor: u8,
}

/// How a code object says which lines its instructions are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineTable {
    /// `co_lnotab`, up to 3.9.
    Lnotab,
    /// `co_linetable` of 3.10.
    Ranges,
    /// `co_linetable` since 3.11.
    Locations,
}

/// Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// `_PyRuntimeState.interpreters.head`.
    pub(super) first_interpreter: u64,
    /// `PyInterpreterState`: the first thread's state, and the next interpreter.
    pub(super) first_thread: u64,
    pub(super) next_interpreter: u64,
    /// `PyThreadState`: `next`, `thread_id`.
    pub(super) next_thread: u64,
    pub(super) thread_id: u64,
    /// See [`leakscope_common::PythonTable::thread_frame`] and `cframe`.
    pub(super) thread_frame: u32,
    pub(super) cframe: u32,
    pub(super) shape: PythonShape,
    pub(super) code: CodeLayout,
}

/// Of `PyCodeObject`, and of the strings that it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeLayout {
    pub(super) filename: usize,
    /// `co_qualname`, or `co_name` where there is none.
    pub(super) name: usize,
    pub(super) first_line: usize,
    pub(super) lines: usize,
    pub(super) line_table: LineTable,
    /// `co_code_adaptive`: the first instruction; 0 where frames hold an index.
    pub(super) first_instruction: u64,
    /// Bytes of the largest of these and what it takes.
    pub(super) size: usize,
    /// Where the letters of a string stand, ASCII and other.
    pub(super) text: [u64; 2],
    /// Bytes that an index of an instruction counts.
    pub(super) index_bytes: u64,
}

/// `Include/cpython/unicodeobject.h`: 3.12 left out `wstr` and `wstr_length`.
const TEXT_BEFORE_3_12: [u64; 2] = [48, 72];
const TEXT_SINCE_3_12: [u64; 2] = [40, 56];

/// `FRAME_OWNED_BY_CSTACK` (`Include/internal/pycore_frame.h`).
const OWNED_BY_C_STACK: u8 = 3;

impl Layout {
    /// The layout of a version up to 3.12.
    pub(super) fn of(version: Version) -> Option<Self> {
        match (version.major, version.minor) {
            (3, 8 | 9) => Some(before_3_11(104, LineTable::Lnotab, 1)),
            (3, 10) => Some(before_3_11(96, LineTable::Ranges, 2)),
            (3, 11) => Some(Self {
                first_interpreter: 40,
                first_thread: 16,
                next_interpreter: 0,
                next_thread: 8,
                thread_id: 152,
                thread_frame: 56,
                cframe: 8,
                shape: shape(32, 48, 56, 68, 1, PythonEnd::Marked)?,
                code: CodeLayout {
                    filename: 112,
                    name: 128,
                    first_line: 72,
                    lines: 136,
                    line_table: LineTable::Locations,
                    first_instruction: 184,
                    size: 184,
                    text: TEXT_BEFORE_3_12,
                    index_bytes: 2,
                },
            }),
            (3, 12) => Some(Self {
                first_interpreter: 40,
                first_thread: 72,
                next_interpreter: 0,
                next_thread: 8,
                thread_id: 136,
                thread_frame: 56,
                cframe: 0,
                shape: shape(0, 8, 56, 70, OWNED_BY_C_STACK, PythonEnd::BeforeMarked)?,
                code: CodeLayout {
                    filename: 112,
                    name: 128,
                    first_line: 68,
                    lines: 136,
                    line_table: LineTable::Locations,
                    first_instruction: 192,
                    size: 192,
                    text: TEXT_SINCE_3_12,
                    index_bytes: 2,
                },
            }),
            _ => None,
        }
    }

    /// The layout that a process tells, from the beginning of its `_PyRuntime`. `None` where it is of no version that is known.
    pub(super) fn told(bytes: &[u8]) -> Option<(Version, bool, Self)> {
        let word = |index: usize| {
            let part = bytes.get(index.checked_mul(8)?..)?.get(..8)?;
            Some(u64::from_le_bytes(part.try_into().ok()?))
        };
        // An offset is one inside of a structure.
        let offset = |index: usize| word(index).filter(|offset| *offset < 1 << 20);
        let near = |index: usize| usize::try_from(offset(index)?).ok();
        if bytes.get(..COOKIE.len()) != Some(COOKIE) {
            return None;
        }
        let version = word(1)?;
        let version = Version {
            major: (version >> 24) as u8,
            minor: (version >> 16) as u8,
        };
        let is_free_threaded = word(2)? != 0;
        if (version.major, version.minor) != (3, 13) {
            return None;
        }
        // Words of `struct _Py_DebugOffsets` of 3.13, in its order.
        let first_instruction = offset(43)?;
        let layout = Self {
            first_interpreter: offset(5)?,
            next_interpreter: offset(8)?,
            first_thread: offset(9)?,
            next_thread: offset(21)?,
            thread_frame: u32::try_from(offset(23)?).ok()?,
            thread_id: offset(24)?,
            cframe: NO_CFRAME,
            shape: shape(
                offset(30)?,
                offset(29)?,
                offset(31)?,
                offset(33)?,
                OWNED_BY_C_STACK,
                PythonEnd::BeforeMarked,
            )?,
            code: CodeLayout {
                filename: near(35)?,
                name: near(37)?,
                lines: near(38)?,
                first_line: near(39)?,
                line_table: LineTable::Locations,
                first_instruction,
                size: usize::try_from(first_instruction).ok()?.min(4096),
                text: TEXT_SINCE_3_12,
                index_bytes: 2,
            },
        };
        Some((version, is_free_threaded, layout))
    }
}

/// `_Py_Debug_Cookie`.
const COOKIE: &[u8] = b"xdebugpy";
/// Bytes of `_PyRuntime` that [`Layout::told`] reads.
pub(super) const TOLD_BYTES: u64 = 44 * 8;

/// 3.8 to 3.10, which differ in `PyFrameObject.f_lasti` and what it counts.
fn before_3_11(last_instruction: u8, line_table: LineTable, index_bytes: u64) -> Layout {
    Layout {
        first_interpreter: 32,
        first_thread: 8,
        next_interpreter: 0,
        next_thread: 8,
        thread_id: 176,
        thread_frame: 24,
        cframe: NO_CFRAME,
        shape: PythonShape {
            code: 4,
            previous: 3,
            instruction: last_instruction / 8,
            is_index: true,
            mark: 0,
            mark_shift: 0,
            mark_value: 0,
            end: PythonEnd::Each,
        },
        code: CodeLayout {
            filename: 104,
            name: 112,
            first_line: 40,
            lines: 120,
            line_table,
            first_instruction: 0,
            size: 128,
            text: TEXT_BEFORE_3_12,
            index_bytes,
        },
    }
}

/// The shape of a `_PyInterpreterFrame`, from offsets in bytes; `None` where the probe would not read that far.
fn shape(
    code: u64,
    previous: u64,
    instruction: u64,
    mark: u64,
    mark_value: u8,
    end: PythonEnd,
) -> Option<PythonShape> {
    /// `FRAME_WORDS` of the probe.
    const WORDS: u64 = 10;
    let word = |offset: u64| {
        let index = offset / 8;
        (index < WORDS).then_some(index as u8)
    };
    let aligned = |offset: u64| word(offset).filter(|_| offset.is_multiple_of(8));
    Some(PythonShape {
        code: aligned(code)?,
        previous: aligned(previous)?,
        instruction: aligned(instruction)?,
        is_index: false,
        mark: word(mark)?,
        mark_shift: (mark % 8 * 8) as u8,
        mark_value,
        end,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{COOKIE, Layout, Version};
    use leakscope_common::PythonEnd;

    /// What 3.13.0 says, as far as it is read.
    fn offsets_of_3_13() -> Vec<u8> {
        let mut words = vec![0_u64; 44];
        let told = [
            (1, 0x030d_00f0),
            (5, 632),
            (8, 7264),
            (9, 7344),
            (21, 8),
            (23, 72),
            (24, 152),
            (29, 8),
            (30, 0),
            (31, 56),
            (33, 70),
            (35, 112),
            (36, 120),
            (37, 128),
            (38, 136),
            (39, 68),
            (43, 200),
        ];
        for (place, value) in told {
            *words.get_mut(place).unwrap() = value;
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.splice(..8, COOKIE.iter().copied());
        bytes
    }

    #[test]
    fn what_the_process_says_is_taken_over() {
        let (version, is_free_threaded, layout) = Layout::told(&offsets_of_3_13()).unwrap();
        assert_eq!((version.major, version.minor), (3, 13));
        assert!(!is_free_threaded);
        assert_eq!((layout.first_thread, layout.thread_frame), (7344, 72));
        let shape = layout.shape;
        assert_eq!((shape.mark, shape.mark_shift, shape.mark_value), (8, 48, 3));
        assert_eq!(shape.end, PythonEnd::BeforeMarked);
        assert_eq!(layout.code.first_instruction, 200);
    }

    #[test]
    fn what_is_not_known_has_no_layout() {
        let mut later = offsets_of_3_13();
        later.splice(8..16, 0x030f_0000_u64.to_le_bytes());
        assert!(Layout::told(&later).is_none());
        let mut far = offsets_of_3_13();
        far.splice(30 * 8..31 * 8, 4096_u64.to_le_bytes());
        assert!(Layout::told(&far).is_none());
        assert!(Layout::told(&[]).is_none());
        for minor in [7, 13, 14] {
            assert!(Layout::of(Version { major: 3, minor }).is_none());
        }
        assert!(
            Layout::of(Version {
                major: 2,
                minor: 11
            })
            .is_none()
        );
    }
}
