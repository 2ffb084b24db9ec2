//! Whether a report is consistent in itself.
//!
//! Owns the rules that tie the figures of a report together; tests of everything that makes reports ask here.

use super::model::{Process, Report};

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
            if self.process_of(site).is_none() {
                found.push(format!("{name}: the process is not listed"));
            }
        }
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
