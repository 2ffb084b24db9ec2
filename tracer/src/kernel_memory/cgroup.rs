//! The kernel's memory of a control group: `memory.stat` of version 2, `memory.kmem.usage_in_bytes` of version 1.

use std::path::{Path, PathBuf};

use super::{lines, number, read_at_most};
use crate::process::procfs::CgroupMembership;

/// What a control group's processes, and those of the groups below it, make the kernel hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupMemory {
    /// All of it, bytes.
    pub kernel_bytes: u64,
    /// Parts of it by their names in `memory.stat`, bytes; empty where the kernel does not tell (version 1).
    pub parts: Vec<(&'static str, u64)>,
}

/// The parts that the kernel does not take back by itself (`Documentation/admin-guide/cgroup-v2.rst`).
const PARTS: [&str; 6] = [
    "slab_unreclaimable",
    "kernel_stack",
    "pagetables",
    "percpu",
    "sock",
    "vmalloc",
];

/// Reads `memory.stat`: `None` where it does not tell of the kernel's memory (before Linux 5.18).
#[must_use]
pub(super) fn parse_stat(text: &[u8]) -> Option<CgroupMemory> {
    let value = |key: &str| {
        lines(text).find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then(|| number(value.as_bytes()))?
        })
    };
    let kernel = value("kernel")?;
    // What the group may be asked to give back is a cache.
    let reclaimable = value("slab_reclaimable").unwrap_or(0);
    Some(CgroupMemory {
        kernel_bytes: kernel.saturating_sub(reclaimable),
        parts: PARTS
            .into_iter()
            .filter_map(|name| Some((name, value(name)?)))
            .collect(),
    })
}

/// The memory control group of a process: its path, and the file that tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryCgroup {
    /// The path below the hierarchy's root.
    pub path: String,
    file: PathBuf,
    is_v2: bool,
}

impl MemoryCgroup {
    /// The group among those of a process; `None` where the root group is all that it is in.
    #[must_use]
    pub fn of(cgroup_root: &Path, cgroups: &[CgroupMembership]) -> Option<Self> {
        let v1 = cgroups
            .iter()
            .find(|group| group.controllers.split(',').any(|name| name == "memory"));
        let v2 = cgroups.iter().find(|group| group.controllers.is_empty());
        let (group, is_v2) = match (v1, v2) {
            (Some(group), _) => (group, false),
            (None, Some(group)) => (group, true),
            (None, None) => return None,
        };
        let path = group.path.trim_start_matches('/');
        // A path out of our own namespace of control groups is not ours to follow.
        if path.is_empty() || path.split('/').any(|part| part == "..") {
            return None;
        }
        let (folder, file) = if is_v2 {
            (cgroup_root.to_owned(), "memory.stat")
        } else {
            (cgroup_root.join("memory"), "memory.kmem.usage_in_bytes")
        };
        Some(Self {
            path: group.path.clone(),
            file: folder.join(path).join(file),
            is_v2,
        })
    }

    /// Reads it; `None` where the group is gone or does not tell.
    #[must_use]
    pub fn read(&self) -> Option<CgroupMemory> {
        let text = read_at_most(&self.file, 1 << 16).ok()?;
        if self.is_v2 {
            return parse_stat(&text);
        }
        Some(CgroupMemory {
            kernel_bytes: number(&text)?,
            parts: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::path::Path;

    use super::{MemoryCgroup, parse_stat};
    use crate::process::procfs::CgroupMembership;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_part_is_told_without_caches() {
        let text = b"anon 500\nfile 900\nkernel 1000\nkernel_stack 100\npagetables 50\nsock 30\nslab_reclaimable 400\nslab_unreclaimable 300\n";
        let found = parse_stat(text).unwrap();
        assert_eq!(found.kernel_bytes, 600);
        assert_eq!(
            found.parts,
            [
                ("slab_unreclaimable", 300),
                ("kernel_stack", 100),
                ("pagetables", 50),
                ("sock", 30)
            ]
        );
        assert_eq!(parse_stat(b"anon 500\nkernel_stack 100\n"), None);
    }

    #[test]
    fn a_group_is_found_in_either_version() {
        let group = |controllers: &str, path: &str| CgroupMembership {
            controllers: controllers.to_owned(),
            path: path.to_owned(),
        };
        let root = Path::new("/sys/fs/cgroup");
        let v1 = [group("memory", "/a/b"), group("", "/")];
        let found = MemoryCgroup::of(root, &v1).unwrap();
        assert_eq!(
            found.file,
            Path::new("/sys/fs/cgroup/memory/a/b/memory.kmem.usage_in_bytes")
        );
        let v2 = [group("", "/system.slice/x.service")];
        let found = MemoryCgroup::of(root, &v2).unwrap();
        assert_eq!(
            found.file,
            Path::new("/sys/fs/cgroup/system.slice/x.service/memory.stat")
        );
        for none in ["/", "/../escape", ""] {
            assert_eq!(MemoryCgroup::of(root, &[group("", none)]), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_stat(&text);
        }
    }
}
