//! What a session knows of blocks, site by site: sites with the same stack joined, live blocks counted, mappings and threads' stacks
//! among them. Names nothing.

use std::collections::{HashMap, HashSet};

use leakscope_common::UNKNOWN_SITE;

use crate::{
    kernel::KernelError,
    ledger::{Alive, BlockFilter, SiteId, SiteSurvey, Survey},
    session::{
        Session, SiteLevels, Stack, Wanted,
        growth::{self, MappedSites},
        looks::FIRST_STACKLESS,
        moment::Moment,
        process::Traced,
    },
};

impl Session {
    /// The site that stands for this one: the first with the same stack.
    pub(in crate::session) fn joined(&self, site: SiteId) -> SiteId {
        self.stacks.get(&site).map_or(site, |stack| stack.canonical)
    }

    /// Every site with its totals, sites with the same stack together; with the incarnation that each belongs to.
    pub(in crate::session) fn joined_sites(
        &mut self,
        wanted: &Wanted<'_>,
    ) -> Result<SiteLevels, KernelError> {
        let mut joined = self.heap_sites(wanted)?;
        for (site, (incarnation, survey)) in self.mapped_sites(u64::MAX) {
            joined.insert(site, (incarnation, growth::totals(&survey)));
        }
        Ok(joined)
    }

    /// Only blocks at least this old are reported, nanoseconds.
    pub(in crate::session) fn min_age_ns(&self) -> u64 {
        u64::try_from(self.options.min_age.as_nanos()).unwrap_or(u64::MAX)
    }

    /// What processes mapped by themselves, sites with the same stack together.
    pub(in crate::session) fn mapped_sites(&self, born_until_ns: u64) -> MappedSites {
        let hidden = self.mapped_for_others();
        self.growth
            .survey(|site| self.joined(site), &hidden, born_until_ns)
    }

    /// The sites at which allocators mapped for themselves, and the dynamic loader. Within calls that are seen the probe tells an
    /// allocator's apart; this is for the others, and for what `free` maps, whose return is not seen.
    pub(in crate::session) fn mapped_for_others(&self) -> HashSet<SiteId> {
        let by_incarnation: HashMap<u32, &Traced> = self
            .processes
            .values()
            .map(|traced| (traced.incarnation, traced))
            .collect();
        self.growth
            .sites()
            .filter(|(incarnation, site)| {
                if *site >= FIRST_STACKLESS {
                    // Go's heap lies at addresses that its runtime chooses.
                    return self.go.is_known(*incarnation)
                        && self.growth.is_anonymous_stackless(*incarnation, *site);
                }
                let traced = by_incarnation.get(incarnation);
                traced
                    .zip(self.stacks.get(site))
                    .is_some_and(|(traced, stack)| {
                        traced.is_mapped_for_others(&stack.frames)
                            || self.go.maps_for_itself(*incarnation, &stack.frames)
                            || self.is_arena(traced, *site, &stack.frames)
                    })
            })
            .map(|(_, site)| site)
            .collect()
    }

    /// The live blocks of the incarnations that are followed, by site. Blocks without a known stack are told apart by
    /// incarnation.
    pub(super) fn survey(
        &mut self,
        moment: &Moment,
    ) -> Result<(Survey, HashMap<u32, Survey>), KernelError> {
        let begun = crate::kernel::thread_cpu_time();
        // Blocks of a process that has ended are as old as they were then.
        let filters: HashMap<u32, BlockFilter> = self
            .processes
            .values()
            .map(|traced| {
                let filter = BlockFilter {
                    min_age_ns: self.min_age_ns(),
                    now_ns: moment.of(traced.ended).ns(),
                };
                (traced.incarnation, filter)
            })
            .collect();
        let hidden = self.mapped_for_others();
        let shift = self.probe.thin_shift();
        let mut known = Survey::new(shift);
        let mut unknown: HashMap<u32, Survey> = HashMap::new();
        // The ages in the same walk.
        let stacks = &self.stacks;
        let joined = |site| {
            stacks
                .get(&site)
                .map_or(site, |stack: &Stack| stack.canonical)
        };
        let mut ages =
            self.ledger
                .survey_ages(moment.ns(), 1 << shift, self.probe.site_slots(), joined);
        // By slot first: there are many more blocks than sites, and a slot's number is an index.
        let mut slots = vec![SiteSurvey::default(); self.probe.site_slots()];
        let mut spreads: Vec<Option<Box<Alive>>> = vec![None; self.probe.site_slots()];
        let mut last: (u32, Option<&BlockFilter>) = (0, None);
        self.probe.visit_blocks(|live| {
            let block = live.block;
            // A time of birth of 0: a watched block of an earlier window.
            if block.born_ns == 0 {
                return;
            }
            ages.note(&block);
            if last.0 != block.incarnation {
                last = (block.incarnation, filters.get(&block.incarnation));
            }
            let Some(filter) = last.1 else {
                return;
            };
            if block.site == UNKNOWN_SITE {
                unknown
                    .entry(block.incarnation)
                    .or_insert_with(|| Survey::new(shift))
                    .add(UNKNOWN_SITE, &block, filter);
            } else if let Some(slot) = slots.get_mut(block.site as usize) {
                slot.note(&block, filter);
                if let Some(spread) = spreads.get_mut(block.site as usize)
                    && filter.passes(&block)
                {
                    let age_ns = filter.now_ns.saturating_sub(block.born_ns);
                    let spread = spread.get_or_insert_default();
                    spread.note(block.size, age_ns, 1 << shift);
                }
            }
        })?;
        let used = |site| self.stack_use.share(joined(site));
        self.growth.note_ages(&mut ages, &hidden, used);
        self.pages.note_ages(&mut ages);
        ages.finish();
        for (slot, survey) in (0..).zip(&slots) {
            if survey.kept_objects > 0 {
                known.merge(joined(slot), survey);
            }
        }
        for (slot, spread) in (0..).zip(&spreads) {
            if let Some(spread) = spread {
                known.spread(joined(slot), spread);
            }
        }
        self.surveyed_since(begun);
        Ok((known, unknown))
    }
}
