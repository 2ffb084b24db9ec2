//! The sites' totals as last read from the probe. A look reads those that can have changed, one by one while they are few; a report reads all.
//! Knows nothing of what they mean.

use std::collections::{HashMap, HashSet};

use leakscope_common::{Loss, SiteTotals, UNKNOWN_SITE};

use super::{Session, SiteLevels};
use crate::{
    kernel::{KernelError, add_totals},
    ledger::SiteId,
};

/// With more known stacks than this the whole tables are read at once, which takes some milliseconds: to read one value takes a system call.
const FEW: usize = 4096;

/// Which sites are read.
pub(super) enum Wanted<'a> {
    /// All, also those whose stack is not known yet.
    All,
    /// Those of these incarnations.
    Of(&'a HashSet<u32>),
}

/// What was read last.
#[derive(Debug, Default)]
pub(super) struct Totals {
    sites: HashMap<SiteId, (u32, SiteTotals)>,
    /// Stacks that the probe could not hand over, by then: their sites are found in the tables alone.
    deferred: u64,
}

impl Totals {
    /// A site stands for another stack from now on.
    pub(super) fn forget(&mut self, site: SiteId) {
        self.sites.remove(&site);
    }
}

impl Session {
    /// The totals of all sites of blocks, sites with the same stack together, with the incarnation that each belongs to. Sites that
    /// are not wanted are as they were.
    pub(super) fn heap_sites(&mut self, wanted: &Wanted<'_>) -> Result<SiteLevels, KernelError> {
        self.read_totals(wanted)?;
        let mut joined = SiteLevels::new();
        for (site, (incarnation, totals)) in &self.totals.sites {
            let (owner, sum) = joined.entry(self.joined(*site)).or_default();
            *owner = *incarnation;
            add_totals(sum, totals);
        }
        Ok(joined)
    }

    /// The totals of a process's sites, each by itself: which of them are the same may be known later.
    pub(super) fn sites_of(
        &mut self,
        incarnation: u32,
    ) -> Result<impl Iterator<Item = (SiteId, &SiteTotals)>, KernelError> {
        self.read_totals(&Wanted::Of(&HashSet::from([incarnation])))?;
        let sites = self.totals.sites.iter();
        Ok(sites.filter_map(move |(site, (of, totals))| {
            (*of == incarnation).then_some((*site, totals))
        }))
    }

    fn read_totals(&mut self, wanted: &Wanted<'_>) -> Result<(), KernelError> {
        let deferred = self.deferred_stacks();
        let incarnations = match wanted {
            Wanted::Of(incarnations)
                if self.stacks.len() <= FEW && deferred == self.totals.deferred =>
            {
                *incarnations
            }
            Wanted::All | Wanted::Of(_) => {
                self.totals.sites = self
                    .probe
                    .sites()?
                    .into_iter()
                    .map(|count| (count.site, (count.incarnation, count.totals)))
                    .collect();
                self.totals.deferred = deferred;
                return Ok(());
            }
        };
        if incarnations.is_empty() {
            return Ok(());
        }
        let known = self
            .stacks
            .iter()
            .filter(|(_, stack)| incarnations.contains(&stack.incarnation))
            .map(|(site, stack)| (*site, stack.incarnation))
            .chain([(UNKNOWN_SITE, 0)]);
        for (site, incarnation) in known {
            let totals = self.probe.totals_of(site)?;
            if totals != SiteTotals::default() {
                self.totals.sites.insert(site, (incarnation, totals));
            }
        }
        Ok(())
    }

    fn deferred_stacks(&self) -> u64 {
        self.probe.loss(Loss::StackDeferred)
    }
}
