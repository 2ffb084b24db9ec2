//! Whether a report is consistent in itself.
//!
//! Owns the rules that tie the figures of a report together; tests of everything that makes reports ask here, and so does each report in debug builds.
//!
//! What is in use is never more than the process's own memory. Which that is goes by how it is known:
//! - What was counted block by block, or mapping by mapping, is true whatever else is: a block that was allocated and never written to is in no page of
//!   memory, so that such sums may exceed resident memory. They lie in address space that the process has.
//! - What is estimated from some blocks for others is bounded by anonymous memory, resident and swapped out, of the same moment; or by what was counted,
//!   where that is more ([`crate::ledger::bound`]). That holds for the sum over a process's sites and for the upper end of each.

use std::collections::BTreeMap;

use super::model::{Lives, Process, ProcessKernel, Report, Site, Verdict};

impl Report {
    /// Where the report contradicts itself, a sentence each; empty when it does not.
    #[must_use]
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut larger = u64::MAX;
        for (place, site) in self.sites.iter().enumerate() {
            let name = format!("site {place} of process {}", site.pid);
            if site.inuse_bytes > larger {
                found.push(format!("{name} is larger than the one before it"));
            }
            larger = site.inuse_bytes;
            if !(site.inuse_bytes_low..=site.inuse_bytes_high).contains(&site.inuse_bytes) {
                found.push(format!("{name}: inuse_bytes is outside its interval"));
            }
            if site.inuse_bytes > site.alloc_bytes || site.inuse_objects > site.alloc_objects {
                found.push(format!("{name}: more survives than was allocated"));
            }
            if site.weight == 0 {
                found.push(format!("{name}: weight 0"));
            }
            if site.stack_complete && site.stack_incomplete_reason.is_some() {
                found.push(format!("{name}: a complete stack with a reason"));
            }
            if site.verdict == Verdict::Leaking && site.inuse_bytes == 0 {
                found.push(format!("{name}: it leaks, and nothing of it is in use"));
            }
            match self.process_of(site) {
                None => found.push(format!("{name}: the process is not listed")),
                Some(process)
                    if site.verdict == Verdict::Leaking && process.verdict != Verdict::Leaking =>
                {
                    found.push(format!("{name} leaks, and its process does not"));
                }
                Some(_) => {}
            }
        }
        for process in &self.processes {
            let leaks = |site: &Site| {
                site.verdict == Verdict::Leaking
                    && (site.pid, site.incarnation) == (process.pid, process.incarnation)
            };
            let all_there = self.omitted.sites == 0
                && self
                    .suppressed
                    .iter()
                    .all(|suppressed| suppressed.sites == 0);
            let in_kernel = process.kernel.as_ref().is_some_and(ProcessKernel::leaks);
            let held = process.held.as_ref().map(|held| held.verdict) == Some(Verdict::Leaking)
                || in_kernel;
            let unseen =
                process.unseen.as_ref().map(|unseen| unseen.verdict) == Some(Verdict::Leaking);
            if all_there
                && process.verdict == Verdict::Leaking
                && !held
                && !unseen
                && !self.sites.iter().any(leaks)
            {
                found.push(format!(
                    "process {} leaks, and none of its sites does",
                    process.pid
                ));
            }
            if process.exited && !in_kernel && process.verdict_reason.contains("at this rate") {
                found.push(format!(
                    "process {} has ended, and is said to run out of memory",
                    process.pid
                ));
            }
            let later = process
                .memory_series
                .iter()
                .any(|point| point.at_s > self.duration_s + 1.0);
            if later {
                found.push(format!(
                    "process {}: its memory is known for longer than the trace",
                    process.pid
                ));
            }
        }
        // Of several processes one may cost more than its budget and another less.
        let fraction = self.overhead.target_cpu_fraction;
        if self.processes.len() == 1
            && fraction > self.overhead.budget
            && self.tier_reason.contains("costs less than the budget")
        {
            found.push(format!(
                "the tier's reason says that tracing costs less than the budget, and it took {fraction} of the processor time"
            ));
        }
        for process in &self.processes {
            let bound = process.estimates_bound();
            let (mut bytes, mut high) = (0_u64, 0);
            let of_process = |site: &&Site| {
                site.sample.is_some()
                    && (site.pid, site.incarnation) == (process.pid, process.incarnation)
            };
            for site in self.sites.iter().filter(of_process) {
                bytes = bytes.saturating_add(site.inuse_bytes);
                high = site.inuse_bytes_high.max(high);
            }
            for (name, value) in [("in use", bytes), ("an upper end", high)] {
                if value > bound {
                    found.push(format!(
                        "process {}: {name} is estimated at {value}, its memory is {bound}",
                        process.pid
                    ));
                }
            }
        }
        self.check_counts(&mut found);
        self.check_lives(&mut found);
        let total = self.total();
        let sum = |part: fn(&Process) -> u64| {
            self.processes
                .iter()
                .fold(0_u64, |sum, process| sum.saturating_add(part(process)))
        };
        for (name, sites, processes) in [
            (
                "inuse_bytes",
                total.inuse_bytes,
                sum(|process| process.inuse_bytes),
            ),
            (
                "inuse_objects",
                total.inuse_objects,
                sum(|process| process.inuse_objects),
            ),
            (
                "alloc_bytes",
                total.alloc_bytes,
                sum(|process| process.alloc_bytes),
            ),
            (
                "alloc_objects",
                total.alloc_objects,
                sum(|process| process.alloc_objects),
            ),
        ] {
            if sites != processes {
                found.push(format!(
                    "{name}: {sites} over the sites, {processes} over the processes"
                ));
            }
        }
        found
    }
}

impl Report {
    /// Histograms hold no more blocks than there are, and peaks are no lower than what is in use.
    fn check_lives(&self, found: &mut Vec<String>) {
        for site in &self.sites {
            let name = format!("site {} of process {}", site.id, site.pid);
            if site.peak_bytes.is_some_and(|peak| peak < site.inuse_bytes) {
                found.push(format!("{name}: its peak is below what is in use"));
            }
            let Some(lives) = &site.lives else {
                continue;
            };
            let freed = if site.sample.is_none() {
                site.alloc_objects.saturating_sub(site.inuse_objects)
            } else {
                lives.followed_objects
            };
            lives.check(
                &name,
                (site.inuse_objects, site.alloc_objects, freed),
                found,
            );
        }
        for process in &self.processes {
            let name = format!("process {}", process.pid);
            if let Some(lives) = &process.lives {
                let most = (
                    process.inuse_objects,
                    process.alloc_objects,
                    process.alloc_objects,
                );
                lives.check(&name, most, found);
            }
            let peak = process.peak_inuse_bytes;
            if peak > 0 && peak < process.inuse_bytes {
                found.push(format!("{name}: its peak is below what is in use"));
            }
        }
    }

    /// Sites of one size hold no more blocks together than there are.
    fn check_counts(&self, found: &mut Vec<String>) {
        let mut sums: BTreeMap<(u32, u32, u64), (u64, u64)> = BTreeMap::new();
        for site in &self.sites {
            for size in site.counted.iter().flat_map(|counted| &counted.sizes) {
                let key = (site.pid, site.incarnation, size.block_bytes);
                let (sum, most) = sums.entry(key).or_default();
                *sum = sum.saturating_add(size.objects);
                *most = size.counted_objects.max(*most);
            }
        }
        for ((pid, _, size), (sum, most)) in sums {
            if sum > most {
                found.push(format!(
                    "process {pid}: sites hold {sum} blocks of {size} bytes, and {most} were counted"
                ));
            }
        }
    }
}

impl Lives {
    /// Holds the lists against the most blocks that can be in use, allocated and freed.
    fn check(
        &self,
        name: &str,
        (inuse, allocated, freed): (u64, u64, u64),
        found: &mut Vec<String>,
    ) {
        let [sizes, ages, ended] = self.sums();
        for (what, sum, most) in [
            ("its sizes", sizes, inuse),
            ("its ages", ages, inuse),
            ("what was followed", self.followed_objects, allocated),
            ("what was freed", ended, freed.min(self.followed_objects)),
            ("what was temporary", self.temporary_objects, ended),
        ] {
            if sum > most {
                found.push(format!("{name}: {what} come to {sum} blocks of {most}"));
            }
        }
    }
}

impl Process {
    /// The most that estimates of what it has in use may add up to.
    fn estimates_bound(&self) -> u64 {
        let memory = self.anonymous_bytes.saturating_add(self.swapped_bytes);
        memory.max(self.counted_bytes)
    }
}
