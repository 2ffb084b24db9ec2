//! What memory is left for a process: what the limits of its control groups leave, or what the machine has. Knows nothing of its sites.

use std::{fs, path::Path};

use crate::ledger::{Limit, Room};

/// Where cgroups are mounted: version 2, and version 1's memory controller.
const CGROUPS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    ),
];

/// What a process of a cgroup may still take: what the nearest limit of the cgroup and those above it leaves, or what the machine
/// has.
pub(super) fn room(proc_root: &Path, cgroup: &str) -> Option<Room> {
    let machine = fs::read_to_string(proc_root.join("meminfo"))
        .ok()
        .and_then(|text| available(&text))
        .map(|bytes| Room {
            bytes,
            limit: Limit::Machine,
        });
    let mut rooms: Vec<Room> = machine.into_iter().collect();
    for (root, limit, usage) in CGROUPS {
        let root = Path::new(root);
        let folder = root.join(cgroup.trim_start_matches('/'));
        for folder in folder
            .ancestors()
            .take_while(|folder| folder.starts_with(root))
        {
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(folder.join(name))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            // `max`, which is no number, is no limit.
            if let (Some(limit), Some(usage)) = (number(limit), number(usage)) {
                rooms.push(Room {
                    bytes: limit.saturating_sub(usage),
                    limit: Limit::Cgroup,
                });
            }
        }
    }
    // Version 1 writes a limit that is beyond any machine for none.
    rooms.into_iter().min_by_key(|room| room.bytes)
}

/// `MemAvailable` of `/proc/meminfo` (`proc_meminfo(5)`), bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::available;

    #[test]
    fn the_machine_says_what_it_has() {
        let text = "MemTotal:       16316412 kB\nMemFree:  1 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(available(text), Some(12_345_678 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB"), None);
    }
}
