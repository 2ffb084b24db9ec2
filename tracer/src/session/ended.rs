//! How a followed process ended: asked when it has, and what the kernel had counted until then. Knows no words.

use std::{os::fd::BorrowedFd, path::Path};

use crate::{
    kernel::{child_exit_code, exit_code},
    process::procfs::{
        CgroupMembership, OomCounts, OomKills, OutOfMemory, signal_name, zombie_exit_code,
    },
    report::{Ended, MemoryLimit},
};

/// The signal in an exit code of wait(2) (`WTERMSIG`), and the one that nobody can catch.
const SIGNAL: u32 = 0x7f;
const SIGKILL: u32 = 9;

/// See the module.
#[derive(Debug)]
pub(super) struct End {
    /// How, as wait(2) gives it, where that is known.
    code: Option<u32>,
    /// What memory ran out, where the kernel killed it for that.
    out_of_memory: Option<OutOfMemory>,
    /// Kills for want of memory by the last two looks while it ran: one may fall between a kill and its end.
    kills: (OomKills, OomKills),
}

impl End {
    /// Of a process that runs, in these cgroups.
    pub(super) fn new(proc_root: &Path, cgroups: &[CgroupMembership]) -> Self {
        let kills = OomKills::read(proc_root, cgroups);
        Self {
            code: None,
            out_of_memory: None,
            kills: (kills.clone(), kills),
        }
    }

    /// Looks at what the kernel counts, while the process runs.
    pub(super) fn look(&mut self, proc_root: &Path, counts: &mut OomCounts) {
        let now = self.kills.1.again(proc_root, counts);
        self.kills.0 = std::mem::replace(&mut self.kills.1, now);
    }

    /// Asks how it ended, once it has. What is not known by then may be later: the kernel says one thing until its parent has reaped it,
    /// and another from then on.
    pub(super) fn ask(&mut self, proc_root: &Path, pid: u32, pidfd: BorrowedFd<'_>) {
        if self.code.is_some() {
            return;
        }
        self.code = zombie_exit_code(proc_root, pid)
            .or_else(|| child_exit_code(pidfd))
            .or_else(|| exit_code(pidfd).ok().flatten());
        if self.code.is_some_and(|code| code & SIGNAL == SIGKILL) {
            let before = &self.kills.0;
            self.out_of_memory = before.cause(&before.again(proc_root, &mut OomCounts::default()));
        }
    }

    /// How it ended, for the report.
    pub(super) fn told(&self) -> Option<Ended> {
        let code = self.code?;
        let signal = code & SIGNAL;
        Some(Ended {
            exit_status: (signal == 0).then_some(code >> 8 & 0xff),
            signal: (signal != 0).then(|| signal_name(signal)),
            out_of_memory: self.out_of_memory.map(|what| match what {
                OutOfMemory::Cgroup => MemoryLimit::Cgroup,
                OutOfMemory::Machine => MemoryLimit::Machine,
                OutOfMemory::Unknown => MemoryLimit::Unknown,
            }),
        })
    }
}
