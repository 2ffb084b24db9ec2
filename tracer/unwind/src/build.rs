//! Makes a file's [`Table`]: puts together what the other parts of the room know, in parallel, and prunes.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use leakscope_common::{CfaRule, UnwindRow};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::calls;
use super::elf::{Elf, Text};
use super::entry;
use super::frame_info::{self, Entry, FrameInfo, Function};
use super::rules::plain;
use super::table::{Stats, Table, index_pages};
use super::writes;

/// Functions that one thread takes at a time. Libraries with fewer are done in some milliseconds, without threads.
const BATCH: usize = 4096;

/// Which rows of a table are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kept {
    /// Those that can hold a return address, or where a system call leaves a thread.
    #[default]
    Calls,
    /// Also those with an instruction that writes to memory, but for pushes: where a page fault may find a thread.
    Writes,
    /// Every row.
    All,
}

/// How a table is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BuildOptions {
    /// Which rows are kept.
    pub kept: Kept,
    /// Threads to use for one file; as many as there are processors if `None`.
    pub threads: Option<NonZeroUsize>,
}

/// Why there is no table for a file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UnwindError {
    /// No ELF magic number.
    #[error("not an ELF file; only ELF files have unwind tables")]
    NotElf,
    /// The headers contradict themselves or the file's size.
    #[error("malformed ELF file ({0}); it cannot be unwound")]
    Malformed(String),
    /// A file for another architecture or data model.
    #[error(
        "ELF file for machine {machine} with {bits} bits; stacks are walked on x86_64 (machine 62, 64 bits) only"
    )]
    WrongMachine {
        /// `e_machine`.
        machine: u16,
        /// 32 or 64, by `e_ident[EI_CLASS]`.
        bits: u8,
    },
    /// Neither an executable nor a shared object.
    #[error(
        "ELF file of type {0}; only executables (2) and shared objects (3) are mapped and can be unwound"
    )]
    WrongType(u16),
    /// No loadable executable segment with contents, as in separate debug files.
    #[error(
        "ELF file without executable bytes; a separate debug file? The file that is mapped is needed"
    )]
    NoText,
    /// Neither `.eh_frame` nor `.debug_frame` describes a function.
    #[error(
        "no call frame information: no entry of .eh_frame or .debug_frame describes its code \
         ({corrupt} corrupt, {outside} that cover no code); stacks end where they reach this file"
    )]
    NoCallFrameInformation {
        /// Entries that could not be read.
        corrupt: u32,
        /// Entries that cover no executable byte of the file.
        outside: u32,
    },
    /// Whoever was to read the file says why there is no table.
    #[error("{0}")]
    Unread(String),
    /// A size that no real file has; refused so that memory stays bounded.
    #[error("ELF file with {value} {what}; the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        value: u64,
        /// How large it may be.
        limit: u64,
    },
}

/// Builds the unwind table of an x86_64 ELF executable or shared object.
///
/// `file` is the whole file, or the image of the vDSO. Corrupt call frame information costs the functions that it describes and is
/// counted in [`Stats`]; memory is bounded by about 40 times the size of the call frame information, and is a few times that as a rule.
///
/// # Errors
/// [`UnwindError`] if the file is not of the kind, has no call frame information, or claims absurd sizes.
pub fn build(file: &[u8], options: &BuildOptions) -> Result<Table, UnwindError> {
    let elf = Elf::parse(file)?;
    let (info, mut functions, found) = FrameInfo::index(&elf);
    add_ends(&elf, &mut functions);
    if functions.is_empty() {
        return Err(UnwindError::NoCallFrameInformation {
            corrupt: found.corrupt,
            outside: found.outside,
        });
    }
    add_entry(&elf, &mut functions);

    let pieces = in_parallel(&elf.text, &info, &functions, options);
    let mut all: Vec<(u64, UnwindRow)> =
        Vec::with_capacity(pieces.iter().map(|piece| piece.rows.len()).sum::<usize>() + 1);
    let mut stats = Stats {
        functions: found.used,
        corrupt: found.corrupt,
        outside: found.outside,
        text_bytes: elf.text.len(),
        ..Stats::default()
    };
    let mut previous: Option<UnwindRow> = None;
    for piece in pieces {
        stats.corrupt = stats.corrupt.saturating_add(piece.corrupt);
        stats.rows_full = stats.rows_full.saturating_add(piece.transitions);
        if let Some((first, last)) = piece.first_and_last {
            // Pieces count their own first row; where it goes on from the previous piece it is none.
            stats.rows_full -= u32::from(previous == Some(first));
            previous = Some(last);
        }
        let repeats = match (all.last(), piece.rows.first()) {
            (Some((_, last)), Some((_, first))) => usize::from(last == first),
            _ => 0,
        };
        all.extend(piece.rows.into_iter().skip(repeats));
    }
    if let Some(last) = functions.last() {
        // Behind the last function there is no rule.
        all.push((last.end, plain(CfaRule::None)));
        stats.rows_full = stats.rows_full.saturating_add(1);
    }
    let unsupported = |row: &&(u64, UnwindRow)| row.1.cfa == CfaRule::Unsupported as u8;
    stats.unsupported = all.iter().filter(unsupported).count() as u32;

    let (first_page, page_starts) = index_pages(&all).ok_or(UnwindError::TooLarge {
        what: "rows in its unwind table",
        value: all.len() as u64,
        limit: u64::from(u32::MAX),
    })?;
    let rows = all
        .into_iter()
        .map(|(address, row)| UnwindRow {
            address_low: address as u16,
            ..row
        })
        .collect();
    Ok(Table {
        rows,
        first_page,
        page_starts,
        kept: options.kept,
        stats,
    })
}

/// Adds the functions above which there is no caller as outermost, whatever call frame information says of them.
fn add_ends(elf: &Elf<'_>, functions: &mut Vec<Function>) {
    for (start, end) in elf.ends.iter().copied() {
        functions.retain(|function| function.end <= start || function.start >= end);
        functions.push(Function {
            start,
            end,
            entry: Entry::Outermost,
        });
    }
    frame_info::clip(functions);
}

/// Adds the code at the entry point as outermost, as far as no FDE covers it.
fn add_entry(elf: &Elf<'_>, functions: &mut Vec<Function>) {
    let Some((start, end)) = entry::straight_line(elf) else {
        return;
    };
    let next = functions.partition_point(|function| function.end <= start);
    let end = functions
        .get(next)
        .map_or(end, |function| end.min(function.start));
    if start < end && frame_info::is_free(functions, start, end) {
        let function = Function {
            start,
            end,
            entry: Entry::Outermost,
        };
        functions.insert(next, function);
    }
}

/// What became of one batch of functions.
#[derive(Default)]
struct Piece {
    /// Rows that are kept; their `address_low` is 0.
    rows: Vec<(u64, UnwindRow)>,
    /// Rows of the full table.
    transitions: u32,
    /// The first and the last row of the full table.
    first_and_last: Option<(UnwindRow, UnwindRow)>,
    /// Functions with corrupt instructions.
    corrupt: u32,
}

fn in_parallel(
    text: &Text<'_>,
    info: &FrameInfo<'_>,
    functions: &[Function],
    options: &BuildOptions,
) -> Vec<Piece> {
    let batches: Vec<&[Function]> = functions.chunks(BATCH).collect();
    let threads = options
        .threads
        .or_else(|| thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
        .min(batches.len());
    // Where each batch begins, so that it knows the gap before its first function.
    let before = |index: usize| {
        let previous = index.checked_sub(1).and_then(|index| batches.get(index));
        previous.and_then(|batch| batch.last()).map(|last| last.end)
    };
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Piece)>> = Mutex::new(Vec::with_capacity(batches.len()));
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(batch) = batches.get(index) else {
                return;
            };
            let piece = Pruner::new(text, options.kept).run(info, batch, before(index));
            // A poisoned lock still guards whole pieces.
            done.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((index, piece));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where no thread can be started, this one does the work.
            let _ = thread::Builder::new()
                .name("unwind-table".to_owned())
                .spawn_scoped(scope, work);
        }
        work();
    });
    let mut done = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, piece)| piece).collect()
}

/// Decides which rows are kept.
struct Pruner<'t> {
    text: &'t Text<'t>,
    kept: Kept,
    piece: Piece,
}

impl<'t> Pruner<'t> {
    fn new(text: &'t Text<'t>, kept: Kept) -> Self {
        Self {
            text,
            kept,
            piece: Piece::default(),
        }
    }

    /// `previous_end` is where the function before the first one ends.
    fn run(
        mut self,
        info: &FrameInfo<'_>,
        functions: &[Function],
        mut previous_end: Option<u64>,
    ) -> Piece {
        let mut rows: Vec<(u64, UnwindRow)> = Vec::new();
        for function in functions {
            if let Some(gap) = previous_end.filter(|end| *end < function.start) {
                self.row(gap, function.start, plain(CfaRule::None));
            }
            previous_end = Some(function.end);

            rows.clear();
            if info
                .rows(function, |address, row| rows.push((address, row)))
                .is_err()
            {
                self.piece.corrupt += 1;
                rows.clear();
                rows.push((function.start, plain(CfaRule::Unsupported)));
            }
            for (index, (from, row)) in rows.iter().enumerate() {
                let to = rows.get(index + 1).map_or(function.end, |next| next.0);
                if *from < to {
                    self.row(*from, to, *row);
                }
            }
        }
        self.piece
    }

    /// Takes the next row of the full table.
    fn row(&mut self, from: u64, to: u64, row: UnwindRow) {
        let piece = &mut self.piece;
        match &mut piece.first_and_last {
            Some((_, last)) if *last == row => {}
            Some((_, last)) => {
                *last = row;
                piece.transitions += 1;
            }
            none => {
                *none = Some((row, row));
                piece.transitions += 1;
            }
        }
        if piece.rows.last().is_some_and(|(_, last)| *last == row) {
            return;
        }
        let planted = row.cfa == CfaRule::End as u8 || row.cfa == CfaRule::Signal as u8;
        if self.kept == Kept::All || planted || self.is_asked_for(from, to) {
            self.piece.rows.push((from, row));
        }
    }

    /// Whether the last byte of a call or system call may lie in `[from, to)`, or an instruction that writes where that matters. A gap may
    /// begin in one segment and end in another.
    fn is_asked_for(&self, from: u64, to: u64) -> bool {
        let segments = self.text.segments();
        let first = segments.partition_point(|segment| segment.end() <= from);
        segments
            .iter()
            .skip(first)
            .take_while(|segment| segment.start < to)
            .any(|segment| {
                let (from, to) = (from.max(segment.start), to.min(segment.end()));
                calls::may_end_in(self.text, segment, from, to)
                    || self.kept == Kept::Writes && writes::are_in(segment, from, to)
            })
    }
}
