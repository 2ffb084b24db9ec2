//! What a process makes the kernel hold, besides descriptors: by `/proc/PID/status` (proc_pid_status(5)), its timers, and
//! children that it has not reaped.

use std::{collections::HashMap, fs, path::Path};

use super::{lines, number, read_at_most};

/// Of `timers` so many bytes are read: four lines for each, some 60 bytes.
const TIMERS_BYTES: u64 = 4 << 20;

/// Processes that are looked at for zombies: 2^22 is the kernel's own limit, this is what is read at most.
const MOST_PROCESSES: usize = 65_536;

/// What a process makes the kernel hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HoldingKind {
    /// Descriptors.
    Descriptors,
    /// Threads: stacks in the kernel and their bookkeeping.
    Threads,
    /// Children that have ended and were not waited for.
    Zombies,
    /// Timers of timer_create(2).
    Timers,
    /// Signals that are queued for its user, whoever sent them.
    QueuedSignals,
    /// Page tables, bytes.
    PageTables,
    /// Memory that it has locked, bytes.
    LockedMemory,
    /// Resident shared memory: tmpfs, memfd, System V, bytes.
    SharedMemory,
    /// Huge pages of hugetlbfs, bytes.
    HugePages,
    /// Pages of pipes, bytes.
    PipeBuffers,
    /// What waits in sockets, bytes.
    SocketQueues,
}

impl HoldingKind {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Threads => "threads",
            Self::Zombies => "zombies",
            Self::Timers => "timers",
            Self::QueuedSignals => "queued-signals",
            Self::PageTables => "page-tables",
            Self::LockedMemory => "locked-memory",
            Self::SharedMemory => "shared-memory",
            Self::HugePages => "huge-pages",
            Self::PipeBuffers => "pipe-buffers",
            Self::SocketQueues => "socket-queues",
        }
    }

    /// Whether it is measured in bytes.
    #[must_use]
    pub const fn is_bytes(self) -> bool {
        matches!(
            self,
            Self::PageTables
                | Self::LockedMemory
                | Self::SharedMemory
                | Self::HugePages
                | Self::PipeBuffers
                | Self::SocketQueues
        )
    }
}

/// What `status` tells of, by its keys.
const KEYS: [(&str, HoldingKind); 6] = [
    ("Threads", HoldingKind::Threads),
    ("SigQ", HoldingKind::QueuedSignals),
    ("VmPTE", HoldingKind::PageTables),
    ("VmLck", HoldingKind::LockedMemory),
    ("RssShmem", HoldingKind::SharedMemory),
    ("HugetlbPages", HoldingKind::HugePages),
];

/// How much a process makes the kernel hold, of each kind that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(pub Vec<(HoldingKind, u64)>);

impl Holdings {
    /// Reads what `status` tells; nothing of a process that is gone.
    #[must_use]
    pub fn read(proc_root: &Path, pid: u32) -> Self {
        let file = proc_root.join(pid.to_string()).join("status");
        read_at_most(&file, 1 << 16).map_or_else(|_| Self::default(), |text| parse_status(&text))
    }

    /// How many timers a process has; `None` where the kernel does not tell.
    #[must_use]
    pub fn timers(proc_root: &Path, pid: u32) -> Option<u64> {
        let file = proc_root.join(pid.to_string()).join("timers");
        let text = read_at_most(&file, TIMERS_BYTES).ok()?;
        let count = lines(&text).filter(|line| line.starts_with("ID: ")).count();
        u64::try_from(count).ok()
    }
}

fn parse_status(text: &[u8]) -> Holdings {
    let found = KEYS.into_iter().filter_map(|(key, kind)| {
        let value = lines(text).find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let value = value.trim();
        let number = match value.strip_suffix("kB") {
            Some(kib) => number(kib.as_bytes())?.checked_mul(1024)?,
            // `SigQ:` has a limit behind a stroke.
            None => number(value.split('/').next()?.as_bytes())?,
        };
        Some((kind, number))
    });
    Holdings(found.collect())
}

/// Children that have ended and were not waited for, by parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zombies(HashMap<u32, u64>);

impl Zombies {
    /// Looks at every process of the machine, some 10 µs each.
    #[must_use]
    pub fn read(proc_root: &Path) -> Self {
        let mut found = HashMap::new();
        let Ok(entries) = fs::read_dir(proc_root) else {
            return Self::default();
        };
        for entry in entries.flatten().take(MOST_PROCESSES) {
            let is_process = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
            if !is_process {
                continue;
            }
            let parent = read_at_most(&entry.path().join("stat"), 4096)
                .ok()
                .and_then(|text| parent_of_zombie(&text));
            if let Some(parent) = parent {
                *found.entry(parent).or_default() += 1;
            }
        }
        Self(found)
    }

    /// How many a process has.
    #[must_use]
    pub fn of(&self, pid: u32) -> u64 {
        self.0.get(&pid).copied().unwrap_or(0)
    }
}

/// The parent, if it is of a process that has ended: `pid (name) Z parent …`, of which the name may hold anything.
fn parent_of_zombie(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end.checked_add(1)?..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    (fields.next()? == "Z").then(|| fields.next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{HoldingKind, Holdings, Zombies, parent_of_zombie, parse_status};
    use proptest::prelude::*;

    #[test]
    fn the_status_tells_what_is_held() {
        let text = b"Name:\tserver\nVmLck:\t      64 kB\nRssShmem:\t   128 kB\nVmPTE:\t  52 kB\nThreads:\t7\nSigQ:\t3/96365\n";
        assert_eq!(
            parse_status(text),
            Holdings(vec![
                (HoldingKind::Threads, 7),
                (HoldingKind::QueuedSignals, 3),
                (HoldingKind::PageTables, 52 * 1024),
                (HoldingKind::LockedMemory, 64 * 1024),
                (HoldingKind::SharedMemory, 128 * 1024),
            ])
        );
    }

    #[test]
    fn a_zombie_is_told_by_its_state_whatever_its_name() {
        assert_eq!(parent_of_zombie(b"7 (a) S 1) Z 42 7 7 0"), Some(42));
        assert_eq!(parent_of_zombie(b"7 (Z 3) S 42 7 7 0"), None);
        assert_eq!(parent_of_zombie(b"7 (truncated"), None);
    }

    #[test]
    fn our_own_holdings_are_found() {
        let held = Holdings::read(Path::new("/proc"), std::process::id());
        let threads = held
            .0
            .iter()
            .find(|(kind, _)| *kind == HoldingKind::Threads);
        assert!(threads.is_some_and(|(_, count)| *count >= 1), "{held:?}");
        assert_eq!(
            Holdings::read(Path::new("/proc"), u32::MAX),
            Holdings::default()
        );
        assert_eq!(Zombies::read(Path::new("/nowhere")).of(1), 0);
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_files_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_status(&text);
            let _ = parent_of_zombie(&text);
        }
    }
}
