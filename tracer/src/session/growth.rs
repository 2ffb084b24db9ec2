//! What processes map by themselves: from the probe's records to the ledger of mappings, and from there to sites of the report.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use leakscope_common::{
    MAPPING_BY_ALLOCATOR, MappingRecord, MappingStep, SiteTotals, UNKNOWN_SITE,
};

use super::{Session, looks::Looks};
use crate::{
    ledger::{AgeSurvey, MappingKind, MappingSurvey, Mappings, PAGE, SiteId, Step},
    report::{Site, SiteKind},
};

/// `PROT_READ | PROT_WRITE | PROT_EXEC` (asm-generic/mman-common.h).
const ANY_ACCESS: u32 = 7;
/// `MAP_SHARED`, `MAP_ANONYMOUS`, `MAP_GROWSDOWN`, `MAP_STACK` (asm-generic/mman-common.h, asm-generic/mman.h).
const MAP_SHARED: u32 = 1;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
const MAP_STACK: u32 = 0x2_0000;
const MAP_HUGETLB: u32 = 0x4_0000;
/// `MREMAP_DONTUNMAP` (include/uapi/linux/mman.h).
const MREMAP_DONTUNMAP: u32 = 4;

/// The share of the budget that a process's mappings may take by themselves, and the cost below which that is not asked, seconds of
/// processor time: some thousand calls.
const MAPPINGS_PART: f64 = 0.5;
const LEAST_MAPPINGS_COST: f64 = 0.005;

/// The mappings of all followed processes, by incarnation.
#[derive(Debug, Default)]
pub(super) struct Growth {
    pub(super) processes: HashMap<u32, Growing>,
    /// Sites without a stack so far.
    pub(super) stackless: u32,
}

/// The mappings of a process.
#[derive(Debug, Default)]
pub(super) struct Growing {
    pub(super) mappings: Mappings,
    /// Steps that were told of.
    steps: u64,
    /// No more is wanted.
    pub(super) given_up: bool,
    pub(super) looks: Looks,
}

/// What is mapped at each site, sites with the same stack together; and by whom.
pub(super) type MappedSites = BTreeMap<SiteId, (u32, MappingSurvey)>;

/// A record as the ledger takes it.
fn step(record: &MappingRecord) -> Option<Step> {
    let &MappingRecord {
        address,
        length,
        new_length,
        flags,
        site,
        ..
    } = record;
    let accessible = record.protection & ANY_ACCESS != 0;
    Some(match MappingStep::from_number(record.step)? {
        MappingStep::Mapped => Step::Map {
            address,
            length,
            kind: kind(flags),
            accessible,
            site,
        },
        // Of a segment of System V shared memory the length is not asked for.
        MappingStep::Placed if length == 0 => Step::Map {
            address,
            length: new_length,
            kind: MappingKind::SysV,
            accessible: true,
            site,
        },
        MappingStep::Placed => Step::Map {
            address: placed(record),
            length,
            kind: kind(flags),
            accessible,
            site,
        },
        MappingStep::Unmapping => Step::Unmap { address, length },
        MappingStep::Remapping => Step::Remap {
            address,
            length,
            new_length,
            keeps_old: flags & MREMAP_DONTUNMAP != 0,
        },
        MappingStep::Remapped if address != 0 => Step::Remapped {
            address: placed(record),
            site,
        },
        MappingStep::UnmapFailed | MappingStep::Remapped => Step::Fail,
        MappingStep::Broke => Step::Break {
            from: (address != 0).then_some(address),
            to: address.wrapping_add(length),
            by_allocator: record.marks & MAPPING_BY_ALLOCATOR != 0,
            site,
        },
        MappingStep::Protected => Step::Protect {
            address,
            length,
            accessible,
            site,
        },
    })
}

/// What a mapping is for, by the flags of mmap(2).
fn kind(flags: u32) -> MappingKind {
    if flags & MAP_ANONYMOUS == 0 {
        MappingKind::File
    } else if flags & (MAP_STACK | MAP_GROWSDOWN) != 0 {
        MappingKind::ThreadStack
    } else if flags & MAP_SHARED != 0 {
        MappingKind::Shared
    } else {
        MappingKind::Anonymous
    }
}

/// Where a mapping begins for which the kernel found room. For one that is to lie at the beginning of a huge page it asks for more than it
/// needs, and takes the first that lies there as the bytes of the file do; with a huge page more, never the first byte of the room
/// (`__thp_get_unmapped_area`, mm/huge_memory.c, for addresses from the top down; `shmem_get_unmapped_area`, mm/shmem.c, asks for a page less).
fn placed(record: &MappingRecord) -> u64 {
    let asked = record.length.saturating_add(PAGE - 1) & !(PAGE - 1);
    let spare = record.new_length.saturating_sub(asked);
    if record.length == 0 || record.flags & MAP_HUGETLB != 0 || spare == 0 {
        return record.address;
    }
    let Some(huge) = spare.checked_next_power_of_two() else {
        return record.address;
    };
    let in_file = u64::from(record.page_offset).wrapping_mul(PAGE);
    let is_anonymous = record.flags & MAP_ANONYMOUS != 0 || record.page_offset == 0;
    let wanted = if is_anonymous { 0 } else { in_file };
    match wanted.wrapping_sub(record.address) & (huge - 1) {
        0 if spare == huge => record.address.saturating_add(huge),
        distance => record.address.saturating_add(distance),
    }
}

impl Growth {
    /// Deals with a record of the probe.
    pub(super) fn note(&mut self, record: &MappingRecord) {
        if let Some(step) = step(record) {
            let growing = self.processes.entry(record.incarnation).or_default();
            growing.steps += 1;
            if !growing.given_up {
                growing.mappings.apply(record.thread, record.at_ns, &step);
            }
        }
    }

    /// How many steps of an incarnation were told of. Each costs its process about what a probe's hit does: there is no trap, and the
    /// record is handed over by itself.
    pub(super) fn steps(&self, incarnation: u32) -> u64 {
        self.processes
            .get(&incarnation)
            .map_or(0, |growing| growing.steps)
    }

    /// The sites that ever mapped something, with the incarnation that each belongs to.
    pub(super) fn sites(&self) -> impl Iterator<Item = (u32, SiteId)> {
        self.processes.iter().flat_map(|(incarnation, growing)| {
            let sites = growing.mappings.sites();
            sites.map(|site| (*incarnation, site))
        })
    }

    /// Shows each mapping that is there to an ages' survey, but for those of these sites. `used` is the share of a site's bytes
    /// that counts as in use.
    pub(super) fn note_ages(
        &self,
        ages: &mut AgeSurvey<'_>,
        hidden: &HashSet<SiteId>,
        used: impl Fn(SiteId) -> f64,
    ) {
        for growing in self.processes.values() {
            growing.mappings.visit(|site, born_ns, bytes| {
                if site != UNKNOWN_SITE && !hidden.contains(&site) {
                    ages.note_mapping(site, born_ns, (bytes as f64 * used(site)) as u64);
                }
            });
        }
    }

    /// The same, of an incarnation that was not given up.
    pub(super) fn steps_going_on(&self, incarnation: u32) -> Option<u64> {
        let growing = self.processes.get(&incarnation)?;
        (!growing.given_up).then_some(growing.steps)
    }

    /// How long the mappings of a site were in the mean, bytes.
    pub(super) fn mean_bytes(&self, incarnation: u32, site: SiteId) -> u64 {
        self.processes
            .get(&incarnation)
            .map_or(0, |growing| growing.mappings.mean_bytes(site))
    }

    /// Whether an incarnation's mappings were given up.
    pub(super) fn is_given_up(&self, incarnation: u32) -> bool {
        self.processes
            .get(&incarnation)
            .is_some_and(|growing| growing.given_up)
    }

    /// Drops what is known of an incarnation of which no more is to be told, but for what it cost.
    pub(super) fn give_up(&mut self, incarnation: u32) {
        if let Some(growing) = self.processes.get_mut(&incarnation) {
            growing.mappings = Mappings::default();
            growing.given_up = true;
        }
    }

    /// The address ranges of an incarnation's thread stacks, each with its site.
    pub(super) fn thread_stacks(
        &self,
        incarnation: u32,
    ) -> impl Iterator<Item = (SiteId, Range<u64>)> {
        self.processes
            .get(&incarnation)
            .into_iter()
            .flat_map(|growing| growing.mappings.thread_stacks())
    }

    /// Drops what is known of other incarnations than these.
    pub(super) fn keep(&mut self, incarnations: &HashSet<u32>) {
        self.processes
            .retain(|incarnation, _| incarnations.contains(incarnation));
    }

    /// What is mapped at each site but for the hidden ones. `joined` tells which site stands for one, and whose stack is the same: one
    /// is hidden where the other is. Only what was made by then counts as in use.
    pub(super) fn survey(
        &self,
        joined: impl Fn(SiteId) -> SiteId,
        hidden: &HashSet<SiteId>,
        born_until_ns: u64,
    ) -> MappedSites {
        let mut sites = MappedSites::new();
        for (incarnation, growing) in &self.processes {
            for (site, survey) in growing.mappings.survey(&joined, born_until_ns) {
                if site != UNKNOWN_SITE && !hidden.contains(&site) {
                    sites.insert(site, (*incarnation, survey));
                }
            }
        }
        sites
    }
}

impl Session {
    /// Gives up on the mappings of processes where they alone take a good part of the budget: they are seen whether a window is open or
    /// not.
    pub(super) fn bound_mappings(&mut self) {
        let hit = self.costs.hit.as_secs_f64();
        let costly: Vec<(u32, u64, f64)> = self
            .processes
            .values()
            .filter(|traced| traced.ended.is_none() && traced.windows.is_enforced())
            .filter_map(|traced| {
                let steps = self.growth.steps_going_on(traced.incarnation)?;
                let cost = hit * steps as f64;
                (cost > LEAST_MAPPINGS_COST).then_some((traced.pid, steps, cost))
            })
            .collect();
        for (pid, steps, cost) in costly {
            let Some(mut traced) = self.processes.remove(&pid) else {
                continue;
            };
            let may_cost =
                self.usage(&traced).cpu.as_secs_f64() * self.options.budget * MAPPINGS_PART;
            if cost > may_cost {
                self.probe.ignore_mappings(traced.incarnation);
                self.growth.give_up(traced.incarnation);
                traced.note(format!(
                    "mmap tracking off: after {steps} of its calls of mmap and the like it takes too much of the budget"
                ));
            }
            self.processes.insert(pid, traced);
        }
    }
}

/// A site's mappings as totals of blocks.
pub(super) fn totals(survey: &MappingSurvey) -> SiteTotals {
    SiteTotals {
        alloc_objects: survey.alloc_objects,
        alloc_bytes: survey.alloc_bytes,
        free_objects: survey.alloc_objects.saturating_sub(survey.inuse_objects),
        free_bytes: survey.alloc_bytes.saturating_sub(survey.inuse_bytes),
    }
}

/// Makes a site one of mappings, all of whose figures are exact. Of what is mapped as the stack of a thread hardly anything is ever used:
/// what was `touched` of it counts as in use, and the rest as reserved.
pub(super) fn describe(site: &mut Site, survey: &MappingSurvey, touched: Option<u64>, now_ns: u64) {
    let inuse_bytes = match (survey.kind, touched) {
        (MappingKind::ThreadStack, touched) => touched.unwrap_or(0).min(survey.inuse_bytes),
        _ => survey.inuse_bytes,
    };
    site.kind = SiteKind::Mapping;
    site.mapping = Some(survey.kind);
    site.reserved_bytes = survey.reserved_bytes + (survey.inuse_bytes - inuse_bytes);
    site.inuse_bytes = inuse_bytes;
    site.inuse_objects = survey.inuse_objects;
    site.inuse_bytes_low = inuse_bytes;
    site.inuse_bytes_high = inuse_bytes;
    site.alloc_bytes = survey.alloc_bytes;
    site.alloc_objects = survey.alloc_objects;
    site.weight = 1;
    site.allocator = None;
    site.oldest_age_s = survey
        .oldest_born_ns
        .map_or(0.0, |born| now_ns.saturating_sub(born) as f64 / 1e9);
}

#[cfg(test)]
mod tests {
    use super::{kind, placed, step};
    use crate::ledger::{MappingKind, Step};
    use leakscope_common::{MappingRecord, MappingStep};

    #[test]
    fn flags_say_what_a_mapping_is_for() {
        assert_eq!(kind(0x22), MappingKind::Anonymous);
        assert_eq!(kind(0x21), MappingKind::Shared);
        assert_eq!(kind(0x2_0022), MappingKind::ThreadStack);
        assert_eq!(kind(0x12), MappingKind::File);
    }

    #[test]
    fn a_mapping_of_huge_pages_lies_where_the_kernel_puts_it_in_its_room() {
        const HUGE: u64 = 2 << 20;
        let of = |address, length, new_length, flags, page_offset| {
            placed(&MappingRecord {
                address,
                length,
                new_length,
                flags,
                page_offset,
                ..MappingRecord::default()
            })
        };
        let anonymous = 0x22;
        assert_eq!(
            of(0x7f00_0012_3000, 100, 4096, anonymous, 0),
            0x7f00_0012_3000
        );
        // As found on Linux 6.18.
        assert_eq!(
            of(0x7f00_0012_3000, HUGE, 2 * HUGE, anonymous, 0),
            0x7f00_0020_0000
        );
        assert_eq!(
            of(0x7f00_0020_0000, HUGE, 2 * HUGE, anonymous, 0),
            0x7f00_0040_0000
        );
        // A file's bytes lie in huge pages as they do in the file.
        assert_eq!(of(0x7f00_0012_3000, HUGE, 2 * HUGE, 2, 3), 0x7f00_0020_3000);
        assert_eq!(
            of(0x7f00_0020_0000, HUGE, 2 * HUGE - 4096, 1, 0),
            0x7f00_0020_0000
        );
        // Of huge pages themselves whole ones are taken.
        assert_eq!(
            of(0x7f00_0020_0000, 100, HUGE, anonymous | 0x4_0000, 0),
            0x7f00_0020_0000
        );
    }

    #[test]
    fn a_remap_without_an_address_failed() {
        let record = |address| MappingRecord {
            step: MappingStep::Remapped as u32,
            address,
            site: 3,
            ..MappingRecord::default()
        };
        assert_eq!(step(&record(0)), Some(Step::Fail));
        assert_eq!(
            step(&record(4096)),
            Some(Step::Remapped {
                address: 4096,
                site: 3
            })
        );
        assert_eq!(step(&MappingRecord::default()), None);
    }
}
