//! Control groups: where one lies in the mounted hierarchies, and which processes are in it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use super::SelectError;
use crate::process::procfs::CgroupMembership;

/// A control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    /// A v1 controller of the group's hierarchy; empty for v2.
    pub(super) controller: String,
    /// The path from the hierarchy's root, `/` first.
    pub(super) path: String,
    /// In v2: the group's number and how deep it lies.
    pub(super) unified: Option<(u64, u32)>,
}

/// A mounted cgroup hierarchy.
struct Hierarchy {
    mount: PathBuf,
    /// Which group is mounted there.
    root: String,
    /// Empty for v2.
    controllers: Vec<String>,
}

impl CgroupPath {
    /// Finds a group by its folder (`/sys/fs/cgroup/system.slice`) or its path from the hierarchy's root, as `/proc/PID/cgroup` gives
    /// it. A path that exists in several hierarchies is the one in v2, or else in v1's first that has it, `memory` first.
    ///
    /// # Errors
    /// There is no such group.
    pub fn resolve(proc_root: &Path, asked: &Path) -> Result<Self, SelectError> {
        let failed = |why: String| SelectError::NoGroup {
            path: asked.display().to_string(),
            why,
        };
        let mut hierarchies = hierarchies(proc_root).map_err(|error| failed(error.to_string()))?;
        hierarchies.sort_by_key(|hierarchy| {
            match hierarchy.controllers.iter().any(|name| name == "memory") {
                _ if hierarchy.controllers.is_empty() => 0,
                true => 1,
                false => 2,
            }
        });
        if asked.components().any(|part| part == Component::ParentDir) {
            return Err(failed("name it without '..'".to_owned()));
        }
        for hierarchy in &hierarchies {
            let Ok(below) = asked.strip_prefix(&hierarchy.mount) else {
                continue;
            };
            return hierarchy
                .group(below)
                .map_err(|error| failed(error.to_string()));
        }
        let below = asked.strip_prefix("/").unwrap_or(asked);
        for hierarchy in &hierarchies {
            let inside = Path::new(&hierarchy.root)
                .strip_prefix("/")
                .ok()
                .and_then(|root| below.strip_prefix(root).ok())
                .unwrap_or(below);
            if let Ok(group) = hierarchy.group(inside) {
                return Ok(group);
            }
        }
        let mut mounts: Vec<String> = Vec::new();
        for hierarchy in &hierarchies {
            let mount = hierarchy.mount.display().to_string();
            if !mounts.contains(&mount) {
                mounts.push(mount);
            }
        }
        Err(failed(if mounts.is_empty() {
            "no cgroup file system is mounted".to_owned()
        } else {
            format!(
                "looked for it below {}; `cat /proc/PID/cgroup` shows the groups of a process",
                mounts.join(", ")
            )
        }))
    }

    /// Whether a process with these memberships is in the group or below it.
    pub(super) fn holds(&self, memberships: &[CgroupMembership]) -> bool {
        memberships
            .iter()
            .filter(|one| {
                if self.controller.is_empty() {
                    one.controllers.is_empty()
                } else {
                    one.controllers
                        .split(',')
                        .any(|name| name == self.controller)
                }
            })
            .any(|one| {
                self.path == "/"
                    || one
                        .path
                        .strip_prefix(&self.path)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }
}

impl Hierarchy {
    /// The group at a path below the mount point.
    fn group(&self, below: &Path) -> io::Result<CgroupPath> {
        let metadata = fs::metadata(self.mount.join(below))?;
        if !metadata.is_dir() {
            return Err(io::Error::other("it is a file"));
        }
        let mut path = self.root.trim_end_matches('/').to_owned();
        for part in below.components() {
            if let Component::Normal(name) = part {
                path.push('/');
                path.push_str(&name.to_string_lossy());
            }
        }
        let level = path.matches('/').count();
        let unified = self
            .controllers
            .is_empty()
            .then(|| (metadata.ino(), u32::try_from(level).unwrap_or(u32::MAX)));
        if path.is_empty() {
            path.push('/');
        }
        Ok(CgroupPath {
            controller: self.controllers.first().cloned().unwrap_or_default(),
            path,
            unified,
        })
    }
}

/// The cgroup hierarchies in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn hierarchies(proc_root: &Path) -> io::Result<Vec<Hierarchy>> {
    let text = fs::read_to_string(proc_root.join("self/mountinfo"))?;
    Ok(text.lines().filter_map(hierarchy).collect())
}

/// A cgroup hierarchy from a line of mountinfo.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut kind = kind.split(' ');
    let controllers = match kind.next()? {
        "cgroup2" => Vec::new(),
        "cgroup" => kind
            .nth(1)?
            .split(',')
            .filter(|option| {
                !matches!(
                    *option,
                    "rw" | "ro" | "xattr" | "clone_children" | "noprefix"
                )
            })
            .map(str::to_owned)
            .collect(),
        _ => return None,
    };
    Some(Hierarchy {
        mount: PathBuf::from(point.replace("\\040", " ")),
        root: root.to_owned(),
        controllers,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::hierarchy;

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let v2 = hierarchy("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw");
        assert!(v2.is_some_and(|found| found.controllers.is_empty() && found.root == "/"));
        let v1 = hierarchy(
            "35 30 0:30 /docker/7 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct",
        )
        .unwrap();
        assert_eq!(v1.controllers, ["cpu", "cpuacct"]);
        assert_eq!(v1.root, "/docker/7");
        assert!(hierarchy("1 2 0:3 / / rw - ext4 /dev/sda rw").is_none());
    }
}
