//! Names of code that a process generated: perf maps, which its runtime writes for profilers
//! (tools/perf/Documentation/jit-interface.txt in the kernel's source): lines of start, size (both hexadecimal) and name.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use crate::process::open::open_below;

/// The most that is read of a map, bytes. Names that are no UTF-8 take three times as much.
const MAX_BYTES: u64 = 64 << 20;
/// The most functions that are kept: with names of usual length, some 100 MB. A large program of node has some ten thousand.
const MAX_FUNCTIONS: usize = 1 << 20;
/// The most that is read of a line, bytes.
const MAX_LINE: u64 = 4096;

/// A generated function: start, end, name.
pub(crate) type Generated = (u64, u64, String);

/// The functions of a perf map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    /// Sorted by start.
    functions: Vec<Generated>,
}

impl PerfMap {
    /// Opens the perf map of a process, if there is one: its runtime wants its code to be profiled. It has the process's id in its own PID
    /// namespace or in ours, and is a file of its owner's (or of root) in its own root: anybody may write to `/tmp`.
    pub(super) fn open(proc_root: &Path, pid: u32) -> Option<File> {
        open_map(proc_root, pid)
    }

    /// Reads a perf map, as far as it can be read and no further than the limits of memory allow: the process that is named by
    /// it wrote it.
    #[must_use]
    pub fn read(source: impl Read) -> Self {
        let mut functions = Vec::new();
        let mut reader = BufReader::new(source.take(MAX_BYTES));
        let mut line = Vec::new();
        while functions.len() < MAX_FUNCTIONS {
            line.clear();
            let Ok(1..) = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) else {
                break;
            };
            if line.last() != Some(&b'\n') && line.len() as u64 == MAX_LINE {
                // Longer than any name: what is left of it is no line of its own.
                if skip_line(&mut reader).is_err() {
                    break;
                }
            }
            if let Some(function) = parse(&String::from_utf8_lossy(&line)) {
                functions.push(function);
            }
        }
        Self::new(functions)
    }

    /// Of functions that share an address, the last one written holds: the runtime has used the memory again.
    fn new(mut functions: Vec<Generated>) -> Self {
        functions.reverse();
        functions.sort_by_key(|(start, ..)| *start);
        functions.dedup_by_key(|(start, ..)| *start);
        Self { functions }
    }

    /// The functions at some addresses, each once.
    pub(crate) fn at(&self, addresses: &[u64]) -> Vec<Generated> {
        let mut found: Vec<Generated> = addresses
            .iter()
            .filter_map(|address| self.entry(*address).cloned())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Takes functions over in the place of those at the same addresses.
    pub(super) fn learn(&mut self, new: Vec<Generated>) {
        let mut all = std::mem::take(&mut self.functions);
        all.retain(|(start, end, _)| !new.iter().any(|(from, to, _)| from < end && start < to));
        all.extend(new);
        *self = Self::new(all);
    }

    fn entry(&self, address: u64) -> Option<&Generated> {
        let behind = self
            .functions
            .partition_point(|(start, ..)| *start <= address);
        let function = self.functions.get(behind.checked_sub(1)?)?;
        (address < function.1).then_some(function)
    }

    /// The function at an address: its name and start.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let (start, _, name) = self.entry(address)?;
        Some((name.as_str(), *start))
    }
}

/// Reads up to the end of a line, and keeps nothing of it.
fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        let (used, ended) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (bytes.len(), bytes.is_empty()),
        };
        reader.consume(used);
        if ended {
            return Ok(());
        }
    }
}

fn open_map(proc_root: &Path, pid: u32) -> Option<File> {
    let folder = proc_root.join(pid.to_string());
    let root = folder.join("root");
    let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
    let last_of = |field: &str| -> Option<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_ascii_whitespace().last()?.parse().ok()
    };
    let inner = last_of("NSpid:").unwrap_or(pid);
    // Real, effective, saved and of the file system: the last owns what it creates.
    let owner = last_of("Uid:")?;
    [inner, pid].into_iter().find_map(|id| {
        let file = open_below(&root, Path::new(&format!("/tmp/perf-{id}.map"))).ok()?;
        let uid = file.metadata().ok()?.uid();
        (uid == owner || uid == 0).then_some(file)
    })
}

/// Parses a line.
fn parse(line: &str) -> Option<(u64, u64, String)> {
    let (start, rest) = line.trim_end().split_once(' ')?;
    let (size, name) = rest.split_once(' ')?;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let start = number(start)?;
    Some((start, start.checked_add(number(size)?)?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINE, PerfMap, parse};
    use std::io::Read as _;

    #[test]
    fn lines_are_read_and_others_passed_over() {
        assert_eq!(
            parse("3ef414c0 398 LazyCompile:~one two file.js:1"),
            Some((
                0x3ef4_14c0,
                0x3ef4_1858,
                "LazyCompile:~one two file.js:1".to_owned()
            ))
        );
        for bad in ["", "1", "1 2", "x y z", "ffffffffffffffff 10 wraps"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_hides_no_other() {
        // A name of 8 MiB, made as it is read.
        let endless = std::io::repeat(b'x').take(8 << 20);
        let text = (&b"1000 10 first\n2000 10 "[..])
            .chain(endless)
            .chain(&b"\n3000 10 last\n"[..]);
        let map = PerfMap::read(text);
        assert_eq!(map.find(0x1000), Some(("first", 0x1000)));
        assert_eq!(map.find(0x3000), Some(("last", 0x3000)));
        let (name, _) = map.find(0x2000).unwrap_or_default();
        assert_eq!(name.len() as u64, MAX_LINE - "2000 10 ".len() as u64);
    }

    #[test]
    fn the_last_function_at_an_address_holds() {
        let map = PerfMap::new(vec![
            (0x1000, 0x1100, "old".to_owned()),
            (0x2000, 0x2010, "other".to_owned()),
            (0x1000, 0x1080, "new".to_owned()),
        ]);
        assert_eq!(map.find(0x1040), Some(("new", 0x1000)));
        assert_eq!(map.find(0x1090), None);
        assert_eq!(map.find(0x200f), Some(("other", 0x2000)));
        assert_eq!(map.find(0xfff), None);
    }
}
