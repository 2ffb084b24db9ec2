//! Names of code that a process generated: perf maps, which its runtime writes for profilers
//! (tools/perf/Documentation/jit-interface.txt in the kernel's source): lines of start, size (both hexadecimal) and name.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
};

/// The most that is read of a map, bytes: some million functions.
const MAX_BYTES: u64 = 256 << 20;

/// The functions of a perf map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    /// Start, end, name; sorted by start.
    functions: Vec<(u64, u64, String)>,
}

impl PerfMap {
    /// Whether a process has a perf map: its runtime wants its code to be profiled.
    #[must_use]
    pub fn exists(proc_root: &Path, pid: u32) -> bool {
        candidates(proc_root, pid).iter().any(|path| path.is_file())
    }

    /// Reads the perf map of a process; empty where it has none.
    #[must_use]
    pub fn of_process(proc_root: &Path, pid: u32) -> Self {
        candidates(proc_root, pid)
            .iter()
            .find_map(|path| {
                // A pipe or a device in a foreign root is never opened.
                if !path.is_file() {
                    return None;
                }
                File::open(path).ok()
            })
            .map(|file| {
                let mut functions = Vec::new();
                let reader = BufReader::new(file.take(MAX_BYTES));
                for line in reader.split(b'\n').map_while(Result::ok) {
                    if let Some(function) = parse(&String::from_utf8_lossy(&line)) {
                        functions.push(function);
                    }
                }
                Self::new(functions)
            })
            .unwrap_or_default()
    }

    /// Of functions that share an address, the last one written holds: the runtime has used the memory again.
    fn new(mut functions: Vec<(u64, u64, String)>) -> Self {
        functions.reverse();
        functions.sort_by_key(|(start, ..)| *start);
        functions.dedup_by_key(|(start, ..)| *start);
        Self { functions }
    }

    /// The function at an address: its name and start.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let behind = self
            .functions
            .partition_point(|(start, ..)| *start <= address);
        let (start, end, name) = self.functions.get(behind.checked_sub(1)?)?;
        (address < *end).then_some((name.as_str(), *start))
    }
}

/// Where the map of a process may be: in its own root under its id in its own PID namespace, or in ours.
fn candidates(proc_root: &Path, pid: u32) -> Vec<std::path::PathBuf> {
    let folder = proc_root.join(pid.to_string());
    let inner = std::fs::read_to_string(folder.join("status"))
        .ok()
        .and_then(|status| {
            status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))
                .and_then(|ids| ids.split_ascii_whitespace().last()?.parse::<u32>().ok())
        })
        .unwrap_or(pid);
    vec![
        folder.join(format!("root/tmp/perf-{inner}.map")),
        Path::new("/tmp").join(format!("perf-{pid}.map")),
    ]
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
    use super::{PerfMap, parse};

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
