//! A table as a file: the format, its checks, and how it gets there whole.
//!
//! All numbers are little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | `LSUNWIND` |
//! | 4 | version of this format and of the rules that made the rows: [`VERSION`] |
//! | 4 | which rows are kept: 0 those at calls, 1 all, 2 also those at writes |
//! | 8 | checksum of all that follows |
//! | 4, n | length of the build-id, the build-id |
//! | 8 | first page |
//! | 4 x 5, 8 | the fields of [`Stats`] |
//! | 4, 4 | number of page starts, number of rows |
//! | 4 each | page starts |
//! | 8 each | rows: address, CFA rule, bp rule, CFA offset, packed operands |

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use leakscope_common::{BpRule, CfaRule, UnwindRow};

use super::build::Kept;
use super::cache::Key;
use super::table::{Stats, Table};

const MAGIC: &[u8; 8] = b"LSUNWIND";
/// To be raised with every change of the format, of the rows' meaning, or of which rows are kept.
const VERSION: u32 = 2;
/// A table file may not be larger than this; the largest seen is a few MiB, a full one of a GiB of text 200 MiB.
const MAX_BYTES: u64 = 1 << 30;

/// Reads a table. `None` if it is not there, or is anything but what [`write`] wrote for this key.
pub(super) fn read(path: &Path, key: &Key, kept: Kept) -> Option<Table> {
    let file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    if size > MAX_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let table = decode(&bytes, key)?;
    (table.kept == kept).then_some(table)
}

/// Writes a table beside its place and renames it, so that a reader sees the old one, the new one, or none.
pub(super) fn write(path: &Path, key: &Key, table: &Table) -> io::Result<()> {
    let bytes = encode(key, table)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a table without build-id"))?;
    // Two processes, or two threads of one, may write the same table at once.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(
        ".{}-{:?}.tmp",
        std::process::id(),
        std::thread::current().id()
    ));
    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn encode(key: &Key, table: &Table) -> Option<Vec<u8>> {
    let Key::BuildId(id) = key else {
        return None;
    };
    let mut body = Vec::with_capacity(64 + id.len() + table.bytes());
    body.extend(u32::try_from(id.len()).ok()?.to_le_bytes());
    body.extend_from_slice(id);
    body.extend(table.first_page.to_le_bytes());
    let stats = table.stats;
    for count in [
        stats.functions,
        stats.corrupt,
        stats.outside,
        stats.rows_full,
        stats.unsupported,
    ] {
        body.extend(count.to_le_bytes());
    }
    body.extend(stats.text_bytes.to_le_bytes());
    body.extend(u32::try_from(table.page_starts.len()).ok()?.to_le_bytes());
    body.extend(u32::try_from(table.rows.len()).ok()?.to_le_bytes());
    for start in &table.page_starts {
        body.extend(start.to_le_bytes());
    }
    for row in &table.rows {
        body.extend(row.address_low.to_le_bytes());
        body.extend([row.cfa, row.bp]);
        body.extend(row.cfa_offset.to_le_bytes());
        body.extend(row.packed.to_le_bytes());
    }

    let mut bytes = Vec::with_capacity(24 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(number(table.kept).to_le_bytes());
    bytes.extend(checksum(&body).to_le_bytes());
    bytes.append(&mut body);
    Some(bytes)
}

/// How it is written which rows are kept.
fn number(kept: Kept) -> u32 {
    match kept {
        Kept::Calls => 0,
        Kept::All => 1,
        Kept::Writes => 2,
    }
}

fn decode(bytes: &[u8], key: &Key) -> Option<Table> {
    let Key::BuildId(expected) = key else {
        return None;
    };
    let mut input = Input(bytes);
    if input.take::<8>()? != MAGIC || input.u32()? != VERSION {
        return None;
    }
    let kept = input.u32()?;
    let kept = [Kept::Calls, Kept::Writes, Kept::All]
        .into_iter()
        .find(|one| number(*one) == kept)?;
    if input.u64()? != checksum(input.0) {
        return None;
    }
    let length = input.u32()? as usize;
    if input.slice(length)? != &**expected {
        return None;
    }
    let first_page = input.u64()?;
    let stats = Stats {
        functions: input.u32()?,
        corrupt: input.u32()?,
        outside: input.u32()?,
        rows_full: input.u32()?,
        unsupported: input.u32()?,
        text_bytes: input.u64()?,
    };
    let (pages, rows) = (input.u32()? as usize, input.u32()? as usize);
    let page_starts = input.slice(pages.checked_mul(4)?)?;
    let row_bytes = input.slice(rows.checked_mul(8)?)?;
    if !input.0.is_empty() {
        return None;
    }
    let table = Table {
        rows: row_bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&[a, b, cfa, bp, c, d, e, f]| UnwindRow {
                address_low: u16::from_le_bytes([a, b]),
                cfa,
                bp,
                cfa_offset: i16::from_le_bytes([c, d]),
                packed: u16::from_le_bytes([e, f]),
            })
            .collect(),
        first_page,
        page_starts: page_starts
            .as_chunks::<4>()
            .0
            .iter()
            .map(|start| u32::from_le_bytes(*start))
            .collect(),
        kept,
        stats,
    };
    is_sound(&table).then_some(table)
}

/// Whether the index leads into the rows, the rows of each page ascend, and all rules are known: what the walk relies on.
fn is_sound(table: &Table) -> bool {
    let starts = &table.page_starts;
    let ends = starts.first().is_none_or(|first| *first == 0)
        && starts.last().map_or(0, |last| *last as usize) == table.rows.len();
    let ascend = starts.array_windows::<2>().all(|[from, to]| {
        table
            .rows
            .get(*from as usize..*to as usize)
            .is_some_and(|rows| rows.is_sorted_by(|a, b| a.address_low < b.address_low))
    });
    let known =
        |row: &UnwindRow| row.cfa <= CfaRule::SpFar as u8 && row.bp <= BpRule::Unknown as u8;
    let last_page = table.first_page.checked_add(starts.len() as u64);
    ends && ascend && table.rows.iter().all(known) && last_page.is_some_and(|page| page < 1 << 48)
}

/// 64 bits over all bytes, eight at a time. Against torn writes and failing disks, not against forgery.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut tail = [0; 8];
    for (to, from) in tail.iter_mut().zip(rest) {
        *to = *from;
    }
    let words = words.iter().copied().chain([tail]).map(u64::from_le_bytes);
    // Multiplication by an odd number and rotation are both reversible, so that one changed word always shows.
    words.fold(bytes.len() as u64 ^ 0x9E37_79B9_7F4A_7C15, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0xD6E8_FEB8_6659_FD93)
            .rotate_left(29)
    })
}

/// Reads from the front of a slice.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(|bytes| u64::from_le_bytes(*bytes))
    }
}
