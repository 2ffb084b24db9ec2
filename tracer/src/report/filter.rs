//! Part of a report: some of its processes, and their sites.

use std::collections::HashSet;

use super::model::{Process, Report};

/// Which processes are wanted; each condition that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Process ids; empty for all.
    pub pids: Vec<u32>,
    /// A pattern for the whole of `comm`, in which `*` stands for any characters and `?` for one.
    pub comm: Option<String>,
    /// A cgroup's path; those below it are in it.
    pub cgroup: Option<String>,
}

impl Filter {
    /// Whether a process is wanted.
    #[must_use]
    pub fn wants(&self, process: &Process) -> bool {
        (self.pids.is_empty() || self.pids.contains(&process.pid))
            && self
                .comm
                .as_deref()
                .is_none_or(|pattern| matches(pattern.as_bytes(), process.comm.as_bytes()))
            && self
                .cgroup
                .as_deref()
                .is_none_or(|path| is_within(path, &process.cgroup))
    }

    /// Whether every process is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the text matches a pattern of `*` and `?`. After a mismatch, only the last `*` has to be tried with one more
/// character: time is bounded by the product of the lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                last_star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == text.get(seen) => {
                at += 1;
                seen += 1;
            }
            _ => match last_star {
                Some((star, taken)) => {
                    last_star = Some((star, taken + 1));
                    at = star + 1;
                    seen = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(at..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
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
    /// The report of the processes that are wanted, with the `top` largest sites; the others of theirs are summed up.
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
        }
        // They are sorted already: only those that are kept are copied.
        for site in &self.sites {
            if !wanted.contains(&(site.pid, site.incarnation)) {
                continue;
            }
            if parts.sites.len() < top {
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
    use super::{Filter, is_within, matches};

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("nginx", "nginx", true),
            ("nginx", "nginx2", false),
            ("ngin?", "nginx", true),
            ("*x", "nginx", true),
            ("n*i*x", "nginx", true),
            ("n*i*y", "nginx", false),
            ("*a*b*", "xxaxxbxx", true),
            ("a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

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
