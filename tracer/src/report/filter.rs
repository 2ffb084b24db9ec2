//! Part of a report: some of its processes, and their sites.

use std::collections::HashSet;
use std::sync::Arc;

use leakscope_common::{COMM_BYTES, Selection};

use super::model::{Process, Report, Site, Verdict};

/// Which processes are wanted: those for which one of the conditions that are given holds; all where none is given.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Process ids.
    pub pids: Vec<u32>,
    /// Patterns of names, of which one matches.
    pub comms: Option<Arc<Selection>>,
    /// Paths of cgroups, of which one holds it, or a group below.
    pub cgroups: Vec<String>,
}

impl Filter {
    /// Whether a process is wanted.
    #[must_use]
    pub fn wants(&self, process: &Process) -> bool {
        self.is_empty()
            || self.pids.contains(&process.pid)
            || self
                .comms
                .as_ref()
                .is_some_and(|patterns| patterns.matches_comm(&padded(&process.comm)))
            || self
                .cgroups
                .iter()
                .any(|path| is_within(path, &process.cgroup))
    }

    /// Whether every process is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pids.is_empty() && self.comms.is_none() && self.cgroups.is_empty()
    }
}

/// A name as the kernel keeps it.
fn padded(comm: &str) -> [u8; COMM_BYTES] {
    let mut bytes = [0; COMM_BYTES];
    // The last byte stays zero.
    for (byte, character) in bytes.iter_mut().zip(comm.bytes()).take(COMM_BYTES - 1) {
        *byte = character;
    }
    bytes
}

/// Whether a cgroup is the one of this path or below it.
fn is_within(path: &str, cgroup: &str) -> bool {
    let path = path.trim_matches('/');
    let cgroup = cgroup.trim_matches('/');
    path.is_empty()
        || cgroup
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Report {
    /// The report of the processes that are wanted, with the `top` largest sites, those that leak before others; the others of
    /// theirs are summed up.
    /// Sites that the report itself leaves out belong to no process, and stay left out only where nothing is filtered.
    #[must_use]
    pub fn only(&self, filter: &Filter, top: usize) -> Self {
        let mut parts = self.without_lists();
        parts.processes = self
            .processes
            .iter()
            .filter(|process| filter.wants(process))
            .cloned()
            .collect();
        let wanted: HashSet<(u32, u32)> = parts
            .processes
            .iter()
            .map(|process| (process.pid, process.incarnation))
            .collect();
        if !filter.is_empty() {
            parts.omitted = super::Omitted::default();
            // The machine's memory is not that of the processes that are wanted.
            parts.kernel = None;
        }
        let leaks = |site: &Site| site.verdict == Verdict::Leaking;
        let is_wanted = |site: &&Site| wanted.contains(&(site.pid, site.incarnation));
        let leaking = self
            .sites
            .iter()
            .filter(is_wanted)
            .filter(|site| leaks(site));
        let others_kept = top.saturating_sub(leaking.count());
        // They are sorted already: only those that are kept are copied.
        let (mut leaking, mut others) = (0, 0);
        for site in self.sites.iter().filter(is_wanted) {
            let (kept, most) = if leaks(site) {
                (&mut leaking, top)
            } else {
                (&mut others, others_kept)
            };
            if *kept < most {
                *kept += 1;
                parts.sites.push(site.clone());
            } else {
                parts.omitted.add(site);
            }
        }
        Self::new(parts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::arbitrary::any_report;
    use super::super::fixtures::exact_report;
    use super::{Filter, is_within};

    #[test]
    fn a_cgroup_holds_those_below_it() {
        assert!(is_within("/system.slice", "/system.slice/cron.service"));
        assert!(is_within("system.slice/", "/system.slice"));
        assert!(!is_within("/system", "/system.slice"));
        assert!(is_within("/", "/anything"));
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_all_there_and_nothing_else(report in any_report(), pid in 1..5_u32, top in 0..12_usize) {
            let filter = Filter { pids: vec![pid], ..Filter::default() };
            let part = report.only(&filter, top);
            prop_assert!(part.processes.iter().all(|process| process.pid == pid));
            prop_assert!(part.sites.len() <= top);
            prop_assert!(part.sites.iter().all(|site| site.pid == pid));
            let of_it = report.sites.iter().filter(|site| site.pid == pid);
            prop_assert_eq!(part.total().inuse_bytes, of_it.map(|site| site.inuse_bytes).sum::<u64>());
        }

        #[test]
        fn no_filter_loses_nothing(report in any_report(), top in 0..12_usize) {
            let all = report.only(&Filter::default(), top);
            prop_assert_eq!(all.total(), report.total());
        }
    }

    #[test]
    fn without_a_filter_it_is_the_same_report() {
        let report = exact_report();
        assert_eq!(report.only(&Filter::default(), usize::MAX), report);
    }
}
