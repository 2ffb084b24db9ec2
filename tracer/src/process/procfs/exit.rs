//! How a process ended: its exit code, and whether the kernel killed it for want of memory.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::{CgroupMembership, stat_fields};

/// The exit code of a process that has ended and was not reaped by its parent yet (field 52 of proc_pid_stat(5)), as wait(2) gives it.
/// The kernel says 0 to those who may not trace it, so that 0 is nothing here.
#[must_use]
pub fn zombie_exit_code(proc_root: &Path, pid: u32) -> Option<u32> {
    let fields = stat_fields(proc_root, pid).ok()?;
    (fields.first()? == "Z")
        .then(|| fields.get(52 - 3)?.parse().ok())
        .flatten()
        .filter(|code| *code != 0)
}

/// The name of a signal of signal(7) on x86 and ARM.
#[must_use]
pub fn signal_name(signal: u32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let index = usize::try_from(signal).unwrap_or(0).wrapping_sub(1);
    NAMES
        .get(index)
        .map_or_else(|| format!("signal {signal}"), |name| format!("SIG{name}"))
}

/// What memory ran out, where the kernel killed a process for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfMemory {
    /// That of its cgroup, or of one above it: a limit.
    Cgroup,
    /// The machine's.
    Machine,
    /// Its cgroup is gone and cannot say.
    Unknown,
}

/// What the kernel has counted in a cgroup, or in one above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Processes killed for want of memory.
    kills: u64,
    /// Times that memory was wanted beyond the limit.
    limit_met: u64,
}

/// A memory cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Group {
    folder: PathBuf,
    is_v2: bool,
}

/// Kills for want of memory so far: in the cgroups of a process, and on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OomKills {
    groups: Vec<(Group, Option<Counts>)>,
    machine: u64,
}

/// What one look at many processes has read: each count once, however many processes share it.
#[derive(Debug, Default)]
pub struct OomCounts {
    groups: HashMap<Group, Option<Counts>>,
    machine: Option<u64>,
}

impl OomCounts {
    fn of_group(&mut self, group: &Group) -> Option<Counts> {
        if let Some(known) = self.groups.get(group) {
            return *known;
        }
        let counts = group.counts();
        self.groups.insert(group.clone(), counts);
        counts
    }

    fn of_machine(&mut self, proc_root: &Path) -> u64 {
        *self.machine.get_or_insert_with(|| machine_kills(proc_root))
    }
}

/// Where memory cgroups are mounted, and whether these are of version 2.
const MOUNTS: [(&str, bool); 3] = [
    ("/sys/fs/cgroup", true),
    ("/sys/fs/cgroup/unified", true),
    ("/sys/fs/cgroup/memory", false),
];

impl OomKills {
    /// Reads the counts for a process that is in these cgroups.
    #[must_use]
    pub fn read(proc_root: &Path, cgroups: &[CgroupMembership]) -> Self {
        let groups = MOUNTS.iter().flat_map(|(mount, is_v2)| {
            let mount = Path::new(mount);
            let of_mount = move |group: &&CgroupMembership| {
                if *is_v2 {
                    group.controllers.is_empty()
                } else {
                    group.controllers.split(',').any(|name| name == "memory")
                }
            };
            let folder = cgroups.iter().find(of_mount).map_or_else(
                || mount.to_owned(),
                |group| mount.join(group.path.trim_start_matches('/')),
            );
            let folders: Vec<PathBuf> = folder
                .ancestors()
                .take_while(|folder| folder.starts_with(mount))
                .map(Path::to_owned)
                .collect();
            folders.into_iter().map(|folder| Group {
                folder,
                is_v2: *is_v2,
            })
        });
        Self {
            groups: groups
                .map(|group| (group.clone(), group.counts()))
                .filter(|(_, counts)| counts.is_some())
                .collect(),
            machine: machine_kills(proc_root),
        }
    }

    /// The same counts as this look has them.
    #[must_use]
    pub fn again(&self, proc_root: &Path, look: &mut OomCounts) -> Self {
        Self {
            groups: self
                .groups
                .iter()
                .map(|(group, _)| (group.clone(), look.of_group(group)))
                .collect(),
            machine: look.of_machine(proc_root),
        }
    }

    /// What ran out between these counts and later ones, for a process that was killed (SIGKILL) in that time; `None` where the kernel
    /// killed nobody for it.
    #[must_use]
    pub fn cause(&self, later: &Self) -> Option<OutOfMemory> {
        let grew = |of: fn(&Counts) -> u64| {
            self.groups
                .iter()
                .zip(&later.groups)
                .filter_map(|((_, before), (_, after))| before.as_ref().zip(after.as_ref()))
                .any(|(before, after)| of(after) > of(before))
        };
        if grew(|counts| counts.kills) {
            return Some(if grew(|counts| counts.limit_met) {
                OutOfMemory::Cgroup
            } else {
                OutOfMemory::Machine
            });
        }
        let is_gone = later.groups.iter().any(|(_, counts)| counts.is_none());
        (is_gone && later.machine > self.machine).then_some(OutOfMemory::Unknown)
    }
}

impl Group {
    /// What it says now; `None` where it is gone or has no such counts.
    fn counts(&self) -> Option<Counts> {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        if self.is_v2 {
            let events = read("memory.events")?;
            Some(Counts {
                kills: value(&events, "oom_kill")?,
                limit_met: value(&events, "oom")?,
            })
        } else {
            Some(Counts {
                kills: value(&read("memory.oom_control")?, "oom_kill")?,
                limit_met: read("memory.failcnt")?.trim().parse().ok()?,
            })
        }
    }
}

/// Processes that the kernel has killed for want of memory since it was started, for whatever limit (`/proc/vmstat`).
fn machine_kills(proc_root: &Path) -> u64 {
    fs::read_to_string(proc_root.join("vmstat"))
        .ok()
        .and_then(|text| value(&text, "oom_kill"))
        .unwrap_or(0)
}

/// A number behind its name, a line each.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{Counts, Group, OomKills, OutOfMemory, signal_name, value};
    use std::path::PathBuf;

    fn kills(counts: Option<(u64, u64)>, machine: u64) -> OomKills {
        let group = Group {
            folder: PathBuf::from("/sys/fs/cgroup/a"),
            is_v2: true,
        };
        let counts = counts.map(|(kills, limit_met)| Counts { kills, limit_met });
        OomKills {
            groups: vec![(group, counts)],
            machine,
        }
    }

    #[test]
    fn a_kill_for_the_limit_of_a_cgroup_is_told_from_one_for_the_machine() {
        let before = kills(Some((1, 4)), 9);
        let cause = |counts, machine| before.cause(&kills(counts, machine));
        assert_eq!(cause(Some((2, 5)), 10), Some(OutOfMemory::Cgroup));
        assert_eq!(cause(Some((2, 4)), 10), Some(OutOfMemory::Machine));
        // Somebody's `kill -9`, while the limit was met and others were killed.
        assert_eq!(cause(Some((1, 5)), 10), None);
        assert_eq!(cause(None, 10), Some(OutOfMemory::Unknown));
        assert_eq!(cause(None, 9), None);
    }

    #[test]
    fn counts_are_read_by_their_whole_names() {
        let text = "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(value(text, "oom"), Some(3));
        assert_eq!(value(text, "oom_kill"), Some(2));
        assert_eq!(value(text, "kill"), None);
    }

    #[test]
    fn signals_have_the_names_of_the_manual() {
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(11), "SIGSEGV");
        assert_eq!(signal_name(31), "SIGSYS");
        assert_eq!(signal_name(40), "signal 40");
        assert_eq!(signal_name(0), "signal 0");
    }
}
