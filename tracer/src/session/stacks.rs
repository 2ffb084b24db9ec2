//! How much of the stacks of threads is in memory, by the site that mapped them: of what is mapped for one, hardly anything is ever
//! used. Bytes, rates and forecasts of such a site are all of this measure.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
};

use super::Session;
use crate::{ledger::SiteId, process::procfs::pagemap::bytes_in_memory};

/// The stacks of a site.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    incarnation: u32,
    /// Bytes in memory, at the last look.
    touched: u64,
    /// Bytes mapped by then.
    mapped: u64,
}

/// What is known of the stacks of all followed processes. Of one that has ended the last look stays.
#[derive(Debug, Default)]
pub(super) struct StackUse {
    sites: HashMap<SiteId, Used>,
}

impl StackUse {
    /// How many bytes of a site's stacks are in memory; `None` of a site that maps none.
    pub(super) fn touched(&self, site: SiteId) -> Option<u64> {
        self.sites.get(&site).map(|used| used.touched)
    }

    /// The share of what is mapped at a site that is in use: all, but of stacks.
    pub(super) fn share(&self, site: SiteId) -> f64 {
        self.sites.get(&site).map_or(1.0, |used| {
            used.touched.min(used.mapped) as f64 / used.mapped.max(1) as f64
        })
    }

    /// Drops what is known of other incarnations than these.
    pub(super) fn keep(&mut self, incarnations: &HashSet<u32>) {
        self.sites
            .retain(|_, used| incarnations.contains(&used.incarnation));
    }

    /// There is a site of stacks, of which nothing is in memory as far as is known.
    fn begin(&mut self, site: SiteId, incarnation: u32) {
        self.sites.entry(site).or_insert(Used {
            incarnation,
            ..Used::default()
        });
    }

    /// Takes over a look at a process.
    fn replace(&mut self, incarnation: u32, sites: HashMap<SiteId, Used>) {
        for (site, used) in &mut self.sites {
            if used.incarnation == incarnation && !sites.contains_key(site) {
                (used.touched, used.mapped) = (0, 0);
            }
        }
        self.sites.extend(sites);
    }
}

impl Session {
    /// Takes note of sites that map stacks and were not looked at yet.
    pub(super) fn note_stacks(&mut self) {
        let found: Vec<(SiteId, u32)> = self
            .processes
            .values()
            .flat_map(|traced| {
                let stacks = self.growth.thread_stacks(traced.incarnation);
                stacks.map(|(site, _)| (self.joined(site), traced.incarnation))
            })
            .collect();
        for (site, incarnation) in found {
            self.stack_use.begin(site, incarnation);
        }
    }

    /// Looks at how much of the stacks of running processes is in memory.
    pub(super) fn look_at_stacks(&mut self) {
        let mut seen = Vec::new();
        for traced in self.processes.values() {
            if traced.ended.is_some() {
                continue;
            }
            let mut stacks = self.growth.thread_stacks(traced.incarnation).peekable();
            if stacks.peek().is_none() {
                seen.push((traced.incarnation, HashMap::new()));
                continue;
            }
            let path = self.proc_root.join(traced.pid.to_string()).join("pagemap");
            // A process that cannot be read has ended.
            let Ok(pagemap) = File::open(path) else {
                continue;
            };
            let mut sites: HashMap<SiteId, Used> = HashMap::new();
            for (site, range) in stacks {
                let used = sites.entry(self.joined(site)).or_default();
                used.incarnation = traced.incarnation;
                used.touched += bytes_in_memory(&pagemap, &range);
                used.mapped += range.end.saturating_sub(range.start);
            }
            // On its way out it has no memory any more, which is nothing that it did.
            if !traced.is_over() {
                seen.push((traced.incarnation, sites));
            }
        }
        for (incarnation, sites) in seen {
            self.stack_use.replace(incarnation, sites);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{StackUse, Used};
    use std::collections::HashMap;

    #[test]
    fn stacks_count_by_what_is_touched_and_other_mappings_in_whole() {
        let mut stacks = StackUse::default();
        let used = |touched| {
            HashMap::from([(
                3,
                Used {
                    incarnation: 1,
                    touched,
                    mapped: 8 << 20,
                },
            )])
        };
        stacks.replace(1, used(24 << 10));
        assert_eq!(stacks.touched(3), Some(24 << 10));
        assert!((stacks.share(3) - 24.0 / 8192.0).abs() < 1e-9);
        assert_eq!(stacks.touched(4), None);
        assert!((stacks.share(4) - 1.0).abs() < f64::EPSILON);
        stacks.replace(2, HashMap::new());
        assert_eq!(stacks.touched(3), Some(24 << 10));
        stacks.replace(1, HashMap::new());
        assert_eq!(stacks.touched(3), Some(0));
    }
}
