//! Memory of a process that can be read without waiting for anybody: a page of a file on FUSE comes when the program behind it gives it,
//! and whoever reads it sleeps until then; not even SIGKILL ends that.

use std::{collections::HashMap, fs, ops::Range, path::Path};

use super::{Device, MemoryMap, ProcessError, read_maps};
use crate::process::open::{has_fuse_list, is_fuse};

/// `env_start` of `/proc/PID/stat`, before `env_end` (proc_pid_stat(5)).
const ENVIRONMENT_FIELD: usize = 50;

/// The readable memory of a process that answers, as it is mapped now: by address, joined.
///
/// # Errors
/// The process is gone, or may not be read.
pub fn answering_memory(proc_root: &Path, pid: u32) -> Result<Vec<Range<u64>>, ProcessError> {
    let maps = read_maps(proc_root, pid)?;
    let devices = Devices::of(proc_root, pid);
    Ok(joined(
        maps.iter()
            .filter(|map| map.readable && devices.answer(map)),
    ))
}

/// The environment that a program was started with, if it lies where it can be read: a process may map over it.
pub(crate) fn read_environment(proc_root: &Path, pid: u32) -> Option<Vec<u8>> {
    let folder = proc_root.join(pid.to_string());
    let stat = fs::read(folder.join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in parentheses may hold anything; `state` behind it is the third field.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace().skip(ENVIRONMENT_FIELD - 3);
    let start: u64 = fields.next()?.parse().ok()?;
    let end: u64 = fields.next()?.parse().ok()?;
    let memory = answering_memory(proc_root, pid).ok()?;
    lies_in(&memory, start, end)
        .then(|| fs::read(folder.join("environ")).ok())
        .flatten()
}

fn joined<'map>(maps: impl Iterator<Item = &'map MemoryMap>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for map in maps {
        match all.last_mut() {
            Some(last) if last.end == map.start => last.end = map.end,
            _ => all.push(map.start..map.end),
        }
    }
    all
}

/// Whether all of a range lies in one of these, which are sorted.
#[must_use]
pub fn lies_in(ranges: &[Range<u64>], start: u64, end: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= start);
    behind
        .checked_sub(1)
        .and_then(|place| ranges.get(place))
        .is_some_and(|range| end <= range.end)
}

/// What is known of devices without a disk, which FUSE mounts are.
enum Devices {
    /// The kernel lists those that are FUSE.
    Listed,
    /// From the process's mounts: whether they are FUSE. Others may be anything.
    Mounted(HashMap<Device, bool>),
}

impl Devices {
    fn of(proc_root: &Path, pid: u32) -> Self {
        if has_fuse_list() {
            return Self::Listed;
        }
        let path = proc_root.join(pid.to_string()).join("mountinfo");
        Self::Mounted(mounted(&fs::read(path).unwrap_or_default()))
    }

    fn answer(&self, map: &MemoryMap) -> bool {
        // Without a file, or on a disk. Devices (`/dev/…`) are files of a file system in memory, but their pages are a driver's.
        if map.inode == 0 {
            return true;
        }
        if map.path.starts_with("/dev") && !is_in_memory(&map.path) {
            return false;
        }
        if map.device.major != 0 {
            return true;
        }
        match self {
            Self::Listed => !is_fuse(map.device.minor),
            Self::Mounted(known) => match known.get(&map.device) {
                Some(is_fuse) => !is_fuse,
                // File systems of the kernel's own, mounted nowhere: shared and huge pages.
                None => is_in_memory(&map.path),
            },
        }
    }
}

/// Whether the kernel names memory so that has a file only in name.
fn is_in_memory(path: &Path) -> bool {
    const NAMES: [&[u8]; 5] = [
        b"/dev/zero",
        b"/dev/shm/",
        b"/memfd:",
        b"/SYSV",
        b"/anon_hugepage",
    ];
    let path = path.as_os_str().as_encoded_bytes();
    NAMES.iter().any(|name| path.starts_with(name))
}

/// `id parent major:minor root place options… - type source options` (proc_pid_mountinfo(5)).
fn mounted(text: &[u8]) -> HashMap<Device, bool> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let (major, minor) = head.split(' ').nth(2)?.split_once(':')?;
            let device = Device {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            };
            Some((device, tail.starts_with("fuse")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Device, Devices, joined, lies_in, mounted};
    use crate::process::procfs::parse_maps;

    #[test]
    fn memory_that_a_program_of_the_targets_serves_is_not_read() {
        let devices = Devices::Mounted(mounted(
            b"1 0 0:40 / / rw - overlay overlay rw\n2 1 0:77 / /mnt rw - fuse.sshfs x rw\n",
        ));
        let maps = parse_maps(
            b"1000-2000 rw-p 00000000 00:00 0\n\
              2000-3000 rw-p 00000000 00:00 0 [heap]\n\
              3000-4000 r--p 00000000 00:4d 2 /mnt/f\n\
              4000-5000 rw-p 00000000 00:28 5 /lib/ld-musl.so\n\
              5000-6000 r--p 00000000 00:99 5 /passed/by/somebody\n\
              6000-7000 rw-s 00000000 00:06 5 /dev/nvidia0\n\
              7000-8000 rw-p 00000000 00:11 5 /anon_hugepage (deleted)\n\
              8000-9000 r--p 00000000 08:01 5 /usr/lib/x.so\n\
              9000-a000 ---p 00000000 00:00 0\n",
        );
        let maps = maps.unwrap_or_default();
        let ranges = joined(
            maps.iter()
                .filter(|map| map.readable && devices.answer(map)),
        );
        assert_eq!(ranges, [0x1000..0x3000, 0x4000..0x5000, 0x7000..0x9000]);
        assert!(lies_in(&ranges, 0x1ff8, 0x2008));
        assert!(!lies_in(&ranges, 0x2ff8, 0x3008));
        assert!(!lies_in(&ranges, 0xfff, 0x1001));
        assert!(!lies_in(&ranges, 0x9000, 0x9001));
    }

    #[test]
    fn devices_are_read_from_mounts() {
        let known = mounted(b"garbage\n3 1 0:9 / /a\\040b rw,x shared:1 - fuseblk /dev/x rw\n");
        let device = Device { major: 0, minor: 9 };
        assert_eq!(known.get(&device), Some(&true));
        assert_eq!(known.len(), 1);
    }
}
