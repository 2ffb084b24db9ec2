//! The descriptors of a process: how many, of which kinds, and what those hold that no mapping shows.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::{lines, number, read_at_most, sampled::Sampled};

/// To look at one takes some 2 µs; of more, so many are taken at random.
const MOST_LOOKED_AT: usize = 16_384;

/// Numbers of descriptors that are listed at most: the kernel's own limit, `fs.nr_open`, is 1,048,576 unless raised.
const MOST_LISTED: usize = 1 << 20;

/// Of so many descriptors of a kind `fdinfo` is read, some 10 µs each.
const MOST_TOLD_OF: usize = 256;

/// Of an `fdinfo` so many bytes are read: a line for each watch.
const FDINFO_BYTES: u64 = 4 << 20;

/// Kinds that are told apart; others together are `other`.
const MOST_KINDS: usize = 32;

/// How many descriptors a process has; `None` where it is gone or may not be looked at. By the size of its `fd` folder
/// (Linux 6.2 and later), else counted.
#[must_use]
pub fn count(proc_root: &Path, pid: u32) -> Option<u64> {
    let folder = proc_root.join(pid.to_string()).join("fd");
    match fs::metadata(&folder).ok()?.len() {
        0 => {
            let listed = fs::read_dir(folder).ok()?.take(MOST_LISTED).count();
            u64::try_from(listed).ok()
        }
        told => Some(told),
    }
}

/// How many descriptors a process may have (`RLIMIT_NOFILE`, the soft limit).
#[must_use]
pub fn limit(proc_root: &Path, pid: u32) -> Option<u64> {
    let file = proc_root.join(pid.to_string()).join("limits");
    parse_limit(&read_at_most(&file, 1 << 14).ok()?)
}

fn parse_limit(text: &[u8]) -> Option<u64> {
    lines(text).find_map(|line| {
        let soft = line.strip_prefix("Max open files")?;
        number(soft.split_ascii_whitespace().next()?.as_bytes())
    })
}

/// What a descriptor is, by what its link says (proc_pid_fd(5)).
fn kind(link: &str) -> &str {
    const NAMESPACES: [&str; 9] = [
        "net",
        "mnt",
        "pid",
        "user",
        "ipc",
        "uts",
        "cgroup",
        "time",
        "pid_for_children",
    ];
    if let Some(name) = link.strip_prefix("anon_inode:") {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        return if name.is_empty() { "other" } else { name };
    }
    if link.starts_with("/memfd:") {
        return "memfd";
    }
    if link.starts_with("/dev/") && !link.starts_with("/dev/shm/") {
        return "device";
    }
    if link.starts_with('/') {
        return if link.ends_with(" (deleted)") {
            "deleted file"
        } else {
            "file"
        };
    }
    match link.split_once(":[") {
        Some((name, _)) if NAMESPACES.contains(&name) => "namespace",
        Some((name @ ("socket" | "pipe" | "pidfd"), _)) => name,
        _ => "other",
    }
}

/// The descriptors of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindCount {
    /// How many, estimated where not all were looked at.
    pub open: u64,
    /// Memory that they hold by what the kernel says of them (memfd, BPF maps, rings of io_uring, pipes, sockets), bytes.
    pub held_bytes: u64,
    /// What they hold that is counted: watches of inotify, entries of epoll, file locks.
    pub entries: u64,
}

/// The kinds of a process's descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescriptorKinds {
    /// By name.
    pub kinds: BTreeMap<String, KindCount>,
    /// Of so many descriptors, these were looked at.
    pub looked_at: u64,
    /// So many there were.
    pub open: u64,
}

impl DescriptorKinds {
    /// Says what those of a kind hold, where there are any.
    pub fn set_held(&mut self, kind: &str, bytes: u64) {
        if let Some(count) = self.kinds.get_mut(kind) {
            count.held_bytes = bytes;
        }
    }
}

/// Looks at a process's descriptors; with `entries`, at what those hold that say so. `None` where it is gone or may not be
/// looked at.
#[must_use]
pub fn read_kinds(proc_root: &Path, pid: u32, entries: bool) -> Option<DescriptorKinds> {
    let process = proc_root.join(pid.to_string());
    let numbers: Vec<u32> = fs::read_dir(process.join("fd"))
        .ok()?
        .flatten()
        .take(MOST_LISTED)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let open = numbers.len() as u64;
    let sampled = Sampled::new(numbers, MOST_LOOKED_AT);
    let mut found = DescriptorKinds {
        open,
        ..DescriptorKinds::default()
    };
    let mut seen = HashSet::new();
    let mut told_of: BTreeMap<String, usize> = BTreeMap::new();
    for number in sampled.chosen() {
        let path = process.join("fd").join(number.to_string());
        // One that was closed meanwhile is none.
        let Ok(link) = fs::read_link(&path) else {
            continue;
        };
        let link = link.to_string_lossy();
        let name = kind(&link);
        let name = if found.kinds.len() >= MOST_KINDS && !found.kinds.contains_key(name) {
            "other"
        } else {
            name
        };
        found.looked_at += 1;
        let count = found.kinds.entry(name.to_owned()).or_default();
        count.open += 1;
        if !entries {
            continue;
        }
        if name == "memfd" {
            if let Ok(metadata) = fs::metadata(&path)
                && seen.insert(metadata.ino())
            {
                // `st_blocks` is in units of 512 bytes (stat(2)): what is there, not how long it is.
                let bytes = metadata.blocks().saturating_mul(512);
                count.held_bytes = count.held_bytes.saturating_add(bytes);
            }
            continue;
        }
        let told = told_of.entry(name.to_owned()).or_default();
        if *told < MOST_TOLD_OF && tells(name) {
            *told += 1;
            let info = process.join("fdinfo").join(number.to_string());
            let text = read_at_most(&info, FDINFO_BYTES).unwrap_or_default();
            let (bytes, entries) = parse_fdinfo(&text);
            count.held_bytes = count.held_bytes.saturating_add(bytes);
            count.entries = count.entries.saturating_add(entries);
        }
    }
    for count in found.kinds.values_mut() {
        count.open = sampled.scaled(count.open);
        count.held_bytes = sampled.scaled(count.held_bytes);
    }
    Some(found)
}

/// Whether `fdinfo` of a kind says what it holds.
fn tells(kind: &str) -> bool {
    matches!(
        kind,
        "inotify" | "eventpoll" | "fanotify" | "bpf-map" | "io_uring" | "file" | "deleted file"
    )
}

/// Bytes and entries that a descriptor holds by its `fdinfo` (proc_pid_fdinfo(5)).
fn parse_fdinfo(text: &[u8]) -> (u64, u64) {
    let mut bytes = 0_u64;
    let mut entries = 0_u64;
    for line in lines(text) {
        if let Some(value) = line.strip_prefix("memlock:") {
            bytes = bytes.saturating_add(number(value.as_bytes()).unwrap_or(0));
        } else if let Some((_, slot)) = RINGS.iter().find(|(key, _)| line.starts_with(key)) {
            let mask = ring_mask(line).unwrap_or(0);
            let entries = mask.saturating_add(1).min(MOST_IN_RING);
            bytes = bytes.saturating_add(entries.saturating_mul(*slot));
        } else if ["inotify wd:", "tfd:", "fanotify ino:", "lock:"]
            .iter()
            .any(|start| line.starts_with(start))
        {
            entries = entries.saturating_add(1);
        }
    }
    (bytes, entries)
}

/// The rings of io_uring by the lines that tell their masks, and bytes for each entry: what is to be done takes 64, and 4 for its number;
/// what was done 16 (include/uapi/linux/io_uring.h).
const RINGS: [(&str, u64); 2] = [("SqMask:", 68), ("CqMask:", 16)];

/// `IORING_MAX_CQ_ENTRIES` (io_uring/io_uring.h).
const MOST_IN_RING: u64 = 65_536;

/// The number in a line like `SqMask: 0x7f`.
fn ring_mask(line: &str) -> Option<u64> {
    let (_, value) = line.split_once(':')?;
    u64::from_str_radix(value.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::path::Path;

    use super::{count, kind, limit, parse_fdinfo, parse_limit, read_kinds};
    use proptest::prelude::*;

    #[test]
    fn each_link_tells_its_kind() {
        for (link, expected) in [
            ("socket:[8123]", "socket"),
            ("pipe:[77]", "pipe"),
            ("anon_inode:[eventfd]", "eventfd"),
            ("anon_inode:inotify", "inotify"),
            ("anon_inode:bpf-map", "bpf-map"),
            ("anon_inode:[]", "other"),
            ("net:[4026531840]", "namespace"),
            ("mnt:[4026531841]", "namespace"),
            ("/memfd:frames (deleted)", "memfd"),
            ("/dev/null", "device"),
            ("/dev/shm/segment", "file"),
            ("/var/log/a", "file"),
            ("/tmp/a (deleted)", "deleted file"),
            ("", "other"),
            ("\u{1b}[2J", "other"),
        ] {
            assert_eq!(kind(link), expected, "{link:?}");
        }
    }

    #[test]
    fn what_a_descriptor_holds_is_counted() {
        let inotify =
            b"pos:\t0\nflags:\t00\ninotify wd:2 ino:7 sdev:3\ninotify wd:1 ino:6 sdev:3\n";
        assert_eq!(parse_fdinfo(inotify), (0, 2));
        assert_eq!(
            parse_fdinfo(b"pos:\t0\nSqMask:\t0x7f\nCqMask:\t0xff\n"),
            (128 * 68 + 256 * 16, 0)
        );
        assert_eq!(parse_fdinfo(b"map_type:\t1\nmemlock:\t4096\n"), (4096, 0));
        assert_eq!(
            parse_fdinfo(b"lock:\t1: OFDLCK  ADVISORY  READ -1\n"),
            (0, 1)
        );
    }

    #[test]
    fn the_soft_limit_is_the_one_that_counts() {
        let text = b"Limit     Soft Limit   Hard Limit   Units\nMax open files            1024                 524288               files\n";
        assert_eq!(parse_limit(text), Some(1024));
        assert_eq!(parse_limit(b"Max open files unlimited"), None);
    }

    #[test]
    fn our_own_descriptors_are_found() {
        let proc_root = Path::new("/proc");
        let own = std::process::id();
        let files: Vec<_> = (0..100)
            .map(|_| std::fs::File::open("/proc/self/status").unwrap())
            .collect();
        let sockets: Vec<_> = (0..50)
            .map(|_| std::os::unix::net::UnixDatagram::unbound().unwrap())
            .collect();
        let counted = count(proc_root, own).unwrap();
        let found = read_kinds(proc_root, own, true).unwrap();
        assert!(counted >= (files.len() + sockets.len()) as u64);
        assert!(found.kinds.get("socket").unwrap().open >= 50, "{found:?}");
        assert!(found.kinds.get("file").unwrap().open >= 100, "{found:?}");
        assert!(limit(proc_root, own).is_some());
        assert_eq!(count(proc_root, u32::MAX), None);
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_files_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_limit(&text);
            let _ = parse_fdinfo(&text);
        }

        #[test]
        fn every_link_has_a_kind(link: String) {
            prop_assert!(!kind(&link).is_empty());
        }
    }
}
