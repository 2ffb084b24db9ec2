//! Tables as files: the format, its checks, how they get there whole, and how many may stay.
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
//! | 8 x 5 | the fields of [`FileState`] |
//! | 8 | first page |
//! | 4 x 5, 8 | the fields of [`Stats`] |
//! | 4, 4 | number of page starts, number of rows |
//! | 4 each | page starts |
//! | 8 each | rows: address, CFA rule, bp rule, CFA offset, packed operands |

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use leakscope_common::{BpRule, CfaRule, UnwindRow};

use super::build::Kept;
use super::cache::{FileState, Key, MAX_BUILD_ID, Wanted};
use super::table::{Stats, Table};

const MAGIC: &[u8; 8] = b"LSUNWIND";
/// Other with every change of the code that makes the rows, so that no table of other rules is ever believed.
const VERSION: u32 = fingerprint(&[
    include_bytes!("build.rs"),
    include_bytes!("calls.rs"),
    include_bytes!("disk.rs"),
    include_bytes!("elf.rs"),
    include_bytes!("entry.rs"),
    include_bytes!("expression.rs"),
    include_bytes!("frame_info.rs"),
    include_bytes!("go.rs"),
    include_bytes!("rules.rs"),
    include_bytes!("table.rs"),
    include_bytes!("writes.rs"),
    &ROWS.to_le_bytes(),
]);
/// The fingerprint of `unwind.rs` of `leakscope-common`, which says what a row is: a packaged crate cannot reach another's sources.
const ROWS: u32 = 0xca6f_be9c;
/// A table file may not be larger than this; the largest seen is a few MiB, a full one of a GiB of text 200 MiB.
const MAX_BYTES: u64 = 1 << 30;
/// What all files may take together, bytes: tables of thousands of libraries.
const MOST_BYTES: u64 = 64 << 20;
/// All kinds of tables.
const KINDS: [Kept; 3] = [Kept::Calls, Kept::Writes, Kept::All];
/// How the name of one ends that is not whole yet.
const UNFINISHED: &str = ".tmp";

/// FNV-1a (Fowler, Noll, Vo) of some texts, at compile time.
const fn fingerprint(mut texts: &[&[u8]]) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    while let Some((text, others)) = texts.split_first() {
        let mut text = *text;
        while let Some((byte, rest)) = text.split_first() {
            hash = (hash ^ *byte as u32).wrapping_mul(0x0100_0193);
            text = rest;
        }
        texts = others;
    }
    hash
}

/// The file that a table is kept in.
pub(super) struct TableFile<'a> {
    build_id: &'a [u8],
    state: FileState,
    kept: Kept,
}

impl<'a> TableFile<'a> {
    /// `None` where a file's table is not kept.
    pub(super) fn new(wanted: &'a Wanted, kept: Kept) -> Option<Self> {
        match &wanted.key {
            Key::BuildId(id) if id.len() <= MAX_BUILD_ID => Some(Self {
                build_id: id,
                state: wanted.state?,
                kept,
            }),
            _ => None,
        }
    }

    /// Its name: pruned and full tables, and files that claim the same build-id, have different ones.
    fn path(&self, directory: &Path) -> PathBuf {
        let mut name = String::with_capacity(2 * self.build_id.len() + 24);
        for byte in self.build_id {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        let state = checksum(&state_bytes(&self.state));
        let _ = write!(name, "-{state:016x}{}", suffix(self.kept));
        directory.join(name)
    }

    /// Reads the table. `None` if it is not there, or is anything but what [`TableFile::write`] wrote for this file.
    pub(super) fn read(&self, directory: &Path) -> Option<Table> {
        let file = File::open(self.path(directory)).ok()?;
        let size = file.metadata().ok()?.len();
        if size > MAX_BYTES {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        let table = decode(&bytes, self.build_id, &self.state)?;
        (table.kept == self.kept).then_some(table)
    }

    /// Writes a table beside its place and renames it, so that a reader sees the old one, the new one, or none.
    pub(super) fn write(&self, directory: &Path, table: &Table) -> io::Result<()> {
        let bytes = encode(self.build_id, &self.state, table)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a table too large"))?;
        let path = self.path(directory);
        // Two processes, or two threads of one, may write the same table at once.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(
            ".{}-{:?}{UNFINISHED}",
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
}

/// Removes the tables that were written first, where they have become too many.
pub(super) fn tidy(directory: &Path) -> io::Result<()> {
    keep_small(directory, MOST_BYTES)
}

/// Removes the files that were written first until all together take at most so many bytes.
fn keep_small(directory: &Path, most: u64) -> io::Result<()> {
    let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = KINDS
            .map(suffix)
            .into_iter()
            .chain([UNFINISHED])
            .any(|end| name.as_encoded_bytes().ends_with(end.as_bytes()));
        // Others may have removed it by now.
        if let (true, Ok(metadata)) = (is_ours, entry.metadata()) {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    if bytes <= most {
        return Ok(());
    }
    files.sort_unstable();
    for (_, size, path) in files {
        if bytes <= most {
            break;
        }
        if fs::remove_file(path).is_ok() {
            bytes -= size;
        }
    }
    Ok(())
}

/// How the name of a table's file ends.
fn suffix(kept: Kept) -> &'static str {
    match kept {
        Kept::Calls => ".calls",
        Kept::Writes => ".writes",
        Kept::All => ".full",
    }
}

/// Of a table that is not kept.
const NOWHERE: FileState = FileState {
    device: 0,
    inode: 0,
    size: 0,
    modified: 0,
    changed: 0,
};

impl Table {
    /// The table as bytes; `None` where it is too large.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        encode(&[], &NOWHERE, self)
    }

    /// What [`Table::to_bytes`] made, if a walk can rely on it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        decode(bytes, &[], &NOWHERE)
    }
}

fn state_bytes(state: &FileState) -> Vec<u8> {
    let numbers = [state.device, state.inode, state.size].map(u64::to_le_bytes);
    let times = [state.modified, state.changed].map(i64::to_le_bytes);
    numbers.into_iter().chain(times).flatten().collect()
}

fn encode(id: &[u8], state: &FileState, table: &Table) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(64 + id.len() + table.bytes());
    body.extend(u32::try_from(id.len()).ok()?.to_le_bytes());
    body.extend_from_slice(id);
    body.extend(state_bytes(state));
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

fn decode(bytes: &[u8], build_id: &[u8], state: &FileState) -> Option<Table> {
    let mut input = Input(bytes);
    if input.take::<8>()? != MAGIC || input.u32()? != VERSION {
        return None;
    }
    let kept = input.u32()?;
    let kept = KINDS.into_iter().find(|one| number(*one) == kept)?;
    if input.u64()? != checksum(input.0) {
        return None;
    }
    let length = input.u32()? as usize;
    if input.slice(length)? != build_id {
        return None;
    }
    let expected = state_bytes(state);
    if input.slice(expected.len())? != expected {
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{ROWS, fingerprint, keep_small};
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_table_of_other_rows_is_not_believed() {
        let rows =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../probe-ebpf/common/src/unwind.rs");
        let now = fingerprint(&[&fs::read(rows).unwrap()]);
        assert_eq!(
            now, ROWS,
            "what a row is has changed: write {now:#x} as ROWS"
        );
    }

    #[test]
    fn the_oldest_tables_go_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        for (age, name) in ["d.calls", "c.full", "b.tmp", "a.writes", "notes.txt"]
            .iter()
            .enumerate()
        {
            let path = directory.path().join(name);
            fs::write(&path, [0; 100]).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age as u64 * 60);
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
        let names = || {
            let mut names: Vec<_> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        keep_small(directory.path(), 400).unwrap();
        assert_eq!(names().len(), 5);
        keep_small(directory.path(), 399).unwrap();
        assert_eq!(names(), ["b.tmp", "c.full", "d.calls", "notes.txt"]);
        keep_small(directory.path(), 100).unwrap();
        assert_eq!(names(), ["d.calls", "notes.txt"]);
        keep_small(directory.path(), 0).unwrap();
        assert_eq!(names(), ["notes.txt"]);
    }
}
