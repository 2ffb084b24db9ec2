//! What the heaps of traced processes hold, looked at from outside: on a thread of its own, so that no event waits for it, for a
//! limited time, the largest processes first. Before the last report, and now and then while tracing. Knows no allocator and no view.

mod look;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

use leakscope_common::{HIT_SLOTS, UNKNOWN_SITE};

use super::{Session, pooled::is_of_objects, process::Traced};
use crate::{
    heap::{GLIBC_VERSIONS, Look, Owned, OwnerLook},
    kernel::{KernelError, monotonic_ns},
    ledger::{HeldByOne, SiteId},
    process::procfs::OomCounts,
    report::{HeapUse, Process, Reachability, Site, SiteHolder, SiteKind, SiteType},
};
use look::{Found, Job, Outcome};

/// A report waits so long for looks: a gibibyte is walked in about a second.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// The heaps of so many processes are looked at, those with the most anonymous memory.
const MOST_PROCESSES: usize = 8;

/// Processes with less anonymous memory than this, bytes, are not looked at while tracing.
const LEAST_BYTES: u64 = 2 << 20;

/// So many blocks of a process are given to a look; of more, some of them.
const MOST_BLOCKS: usize = 1 << 21;

/// While the last report waits for looks, what happens is dealt with so often.
const STEP: Duration = Duration::from_millis(10);

/// While tracing, looks are this far apart at least, and the first comes so long after the beginning.
const EVERY: Duration = Duration::from_secs(30);

/// A block of a site, as the trace knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    address: u64,
    born_ns: u64,
    bytes: u64,
    site: SiteId,
    /// No other site's block has taken its place, for certain.
    is_own: bool,
}

/// What is known of the heaps, by incarnation.
#[derive(Debug, Default)]
pub(super) struct Heaps {
    found: HashMap<u32, Looked>,
    /// Of the look before, by incarnation and site: how many blocks one container held, where it held all.
    held: HashMap<(u32, SiteId), SiteHolder>,
    running: Option<Running>,
    /// Looks that took longer than anybody waits, until they have ended: there are none beside them.
    late: Option<look::Late>,
    /// When the next looks may begin; `None` before the first.
    next: Option<Instant>,
}

/// Looks under way.
#[derive(Debug)]
struct Running {
    results: Receiver<(u32, Outcome)>,
    until: Instant,
    /// What was known of the processes' blocks when they began.
    known: HashMap<u32, Vec<Known>>,
    /// Processor time that they took.
    spent: Duration,
}

/// What came of a look at a process.
#[derive(Debug, Default)]
struct Looked {
    heap: Option<HeapUse>,
    note: Option<String>,
    /// There was no heap of a form that is known.
    found_no_heap: bool,
    sites: HashMap<SiteId, SiteLook>,
}

/// What a look found of a site's blocks.
#[derive(Debug, Default)]
struct SiteLook {
    reachability: Option<Reachability>,
    types: Vec<SiteType>,
    holders: Vec<SiteHolder>,
    /// Blocks that were found.
    checked: u64,
    /// One container holds all blocks, and held so many in the look before.
    before: Option<u64>,
}

impl SiteLook {
    /// What holds all of the blocks, where that is one container.
    fn one_holder(&self) -> Option<&SiteHolder> {
        match self.holders.as_slice() {
            [one] if one.objects == self.checked => Some(one),
            _ => None,
        }
    }
}

impl Heaps {
    /// Tells of a process's heap, as it was at the last look. `hits`: how often it was seen to call its functions.
    pub(super) fn describe(&self, traced: &Traced, hits: &[u64; HIT_SLOTS], process: &mut Process) {
        let looked = self.found.get(&traced.incarnation);
        if let Some(looked) = looked {
            process.heap = looked.heap;
            process.heap_note.clone_from(&looked.note);
        }
        let found_none = looked.is_some_and(|looked| looked.found_no_heap);
        // Without a call it has no heap yet, or another allocator's.
        let calls_glibc = || {
            let mut sites = traced.sites.iter();
            sites.any(|site| {
                let hits = hits.get(usize::from(site.hit_slot));
                site.allocator.starts_with("glibc") && hits.is_some_and(|hits| *hits > 0)
            })
        };
        if (found_none || traced.windows.found_no_heap()) && calls_glibc() {
            process.heap_note.get_or_insert_with(|| {
                format!(
                    "blocks in use are not counted: its C library's heap is of no known form (glibc {GLIBC_VERSIONS}, without `hugetlb`)"
                )
            });
        }
    }

    /// The container that holds all blocks of a site, and how many it held in the look before and in the last one.
    pub(super) fn held_by_one(
        &self,
        incarnation: u32,
        id: SiteId,
    ) -> Option<(&[String], HeldByOne)> {
        let look = self.found.get(&incarnation)?.sites.get(&id)?;
        let (before, holder) = (look.before?, look.holders.first()?);
        let now = holder.objects;
        Some((&holder.path, HeldByOne { before, now }))
    }

    /// Tells of the blocks of a site that are in use.
    pub(super) fn describe_site(&self, id: SiteId, site: &mut Site) {
        let Some(look) = self
            .found
            .get(&site.incarnation)
            .and_then(|looked| looked.sites.get(&id))
            .filter(|_| site.kind == SiteKind::Heap && site.inuse_bytes > 0)
        else {
            return;
        };
        site.reachability = look.reachability;
        // Of objects that are counted the types are known of all.
        if site.types.is_empty() {
            site.types.clone_from(&look.types);
        }
        site.holders.clone_from(&look.holders);
    }
}

impl Session {
    /// Looks at the heaps of the processes that run, for a report that is to be made. The trace goes on meanwhile.
    ///
    /// # Errors
    /// Those of a step.
    pub(super) fn look_at_heaps(&mut self) -> Result<(), KernelError> {
        self.heaps = Heaps {
            held: std::mem::take(&mut self.heaps.held),
            late: self.heaps.late.take(),
            ..Heaps::default()
        };
        let mut counts = OomCounts::default();
        for traced in self.processes.values_mut() {
            if traced.ended.is_none() {
                traced.measure(&self.proc_root, &mut counts);
            }
        }
        self.begin_looks()?;
        while self.heaps.running.is_some() {
            self.step(STEP)?;
        }
        Ok(())
    }

    /// Takes in what looks have found, and begins others where the budget has room for them: they take no more than that part of a
    /// processor.
    pub(super) fn step_heaps(&mut self) -> Result<(), KernelError> {
        let now = Instant::now();
        if let Some(mut running) = self.heaps.running.take() {
            loop {
                match running.results.try_recv() {
                    Ok((incarnation, outcome)) => {
                        running.spent = running.spent.saturating_add(outcome.spent);
                        // What has given its place to another meanwhile is told by its contents.
                        self.check_watched(true);
                        let known = running.known.get(&incarnation);
                        let known = known.map_or(&[][..], Vec::as_slice);
                        let mut looked = self.take_in(incarnation, outcome, known)?;
                        // Of samples and of parts the number says nothing.
                        let is_whole = known.len() < MOST_BLOCKS / 2 && !self.sampled(incarnation);
                        if is_whole {
                            compare(&mut self.heaps.held, incarnation, &mut looked.sites);
                        }
                        self.heaps.found.insert(incarnation, looked);
                    }
                    Err(TryRecvError::Empty) if now < running.until => {
                        self.heaps.running = Some(running);
                        return Ok(());
                    }
                    Err(TryRecvError::Empty) => {
                        self.heaps.late = Some(look::Late::new(running.results, running.spent));
                        return Ok(());
                    }
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            self.pause_looks(running.spent);
            return Ok(());
        }
        if let Some(late) = &mut self.heaps.late {
            if let Some(spent) = late.ended() {
                self.heaps.late = None;
                self.pause_looks(spent);
            }
            return Ok(());
        }
        let next = *self.heaps.next.get_or_insert(self.started + EVERY);
        if now >= next {
            self.begin_looks()?;
        }
        Ok(())
    }

    /// The next looks come after looks that took so much processor time, when that is no more than the budget's part of the time.
    fn pause_looks(&mut self, spent: Duration) {
        let pause = spent.div_f64(self.options.budget.max(1e-3));
        self.heaps.next = Instant::now().checked_add(pause.max(EVERY));
    }

    /// Begins looks, if none from before goes on.
    fn begin_looks(&mut self) -> Result<(), KernelError> {
        let now = Instant::now();
        self.check_watched(true);
        self.heaps.next = now.checked_add(EVERY);
        let mut wanted: Vec<&Traced> = self
            .processes
            .values()
            .filter(|traced| traced.ended.is_none() && memory(traced) >= LEAST_BYTES)
            .collect();
        wanted.sort_by_key(|traced| Reverse(memory(traced)));
        wanted.truncate(MOST_PROCESSES);
        if let Some(late) = &mut self.heaps.late
            && late.ended().is_none()
        {
            for traced in wanted {
                let looked = self.heaps.found.entry(traced.incarnation).or_default();
                let note = || look::too_long(traced.pid, LOOK_WITHIN);
                looked.note.get_or_insert_with(note);
            }
            return Ok(());
        }
        self.heaps.late = None;
        let mut known = HashMap::new();
        let mut jobs = Vec::new();
        for traced in wanted {
            let mut blocks = self.known_blocks(traced)?;
            let every = blocks.len().div_ceil(MOST_BLOCKS).max(1);
            if every > 1 {
                blocks = blocks.into_iter().step_by(every).collect();
            }
            let owned = blocks.iter().map(|block| Owned {
                address: block.address,
                bytes: block.bytes,
                owner: block.site,
            });
            jobs.push(Job {
                pid: traced.pid,
                incarnation: traced.incarnation,
                owned: owned.collect(),
            });
            known.insert(traced.incarnation, blocks);
        }
        if jobs.is_empty() {
            return Ok(());
        }
        let until = now + LOOK_WITHIN;
        self.heaps.found.retain(|incarnation, _| {
            self.processes
                .values()
                .any(|traced| traced.incarnation == *incarnation)
        });
        for job in &jobs {
            let looked = self.heaps.found.entry(job.incarnation).or_default();
            looked.note = looked
                .heap
                .is_none()
                .then(|| look::too_long(job.pid, LOOK_WITHIN));
        }
        self.heaps.running = Some(Running {
            results: look::begin(self.proc_root().to_owned(), jobs, until),
            until,
            known,
            spent: Duration::ZERO,
        });
        Ok(())
    }

    /// Whether of the blocks of a program only samples are known.
    fn sampled(&self, incarnation: u32) -> bool {
        self.processes
            .values()
            .any(|traced| traced.incarnation == incarnation && self.is_sampled(traced.pid))
    }

    /// The blocks of a process of which it is known where they were allocated, by address: all that survive, or the samples of them.
    fn known_blocks(&self, traced: &Traced) -> Result<Vec<Known>, KernelError> {
        let mut blocks = Vec::new();
        if self.is_sampled(traced.pid) {
            let cohorts = &traced.windows.cohorts;
            let own = cohorts.own_blocks();
            blocks.extend(cohorts.watched().map(|block| Known {
                address: block.address,
                born_ns: block.born_ns,
                bytes: block.size,
                site: self.joined(block.site),
                is_own: own.contains(&block.address),
            }));
        } else {
            let until_ns = monotonic_ns().saturating_sub(self.min_age_ns());
            self.probe.visit_blocks_of(traced.incarnation, |live| {
                // A time of birth of 0: a watched block of an earlier window.
                let block = live.block;
                if (1..=until_ns).contains(&block.born_ns) && block.site != UNKNOWN_SITE {
                    blocks.push(Known {
                        address: live.address,
                        born_ns: block.born_ns,
                        bytes: block.size,
                        site: self.joined(block.site),
                        is_own: true,
                    });
                }
            })?;
        }
        let objects = self.object_sites(traced.incarnation);
        blocks.extend(objects.into_iter().map(|(address, born)| Known {
            address,
            born_ns: born.at_ns,
            bytes: born.bytes,
            site: born.site,
            is_own: true,
        }));
        blocks.sort_unstable();
        Ok(blocks)
    }

    /// What a look says, of blocks that were there before it and are there still.
    fn take_in(
        &self,
        incarnation: u32,
        outcome: Outcome,
        known: &[Known],
    ) -> Result<Looked, KernelError> {
        let mut looked = Looked {
            note: outcome.note,
            ..Looked::default()
        };
        let Some(Found { space, took, look }) = outcome.found else {
            return Ok(looked);
        };
        looked.found_no_heap = space.is_none();
        looked.heap = space.map(|space| HeapUse {
            took_s: took.as_secs_f64(),
            blocks: space.blocks,
            bytes: space.bytes,
            free_bytes: space.free_bytes,
            free_pieces: space.free_pieces,
            top_bytes: space.top_bytes,
        });
        let traced = self
            .processes
            .values()
            .find(|traced| traced.incarnation == incarnation);
        if let (Some(look), Some(traced)) = (look, traced) {
            let still = self.known_blocks(traced)?;
            looked.sites = sites(&look, known, &still);
        }
        Ok(looked)
    }
}

/// Notes of each site whose blocks one container holds how many it held in the look before, and keeps how many it holds now.
fn compare(
    held: &mut HashMap<(u32, SiteId), SiteHolder>,
    incarnation: u32,
    sites: &mut HashMap<SiteId, SiteLook>,
) {
    // How full a heap is, is told first, without sites.
    if sites.is_empty() {
        return;
    }
    let before = std::mem::take(held);
    held.extend(
        before
            .iter()
            .filter(|((of, _), _)| *of != incarnation)
            .map(|(key, holder)| (*key, holder.clone())),
    );
    for (site, look) in sites {
        let Some(now) = look.one_holder().cloned() else {
            continue;
        };
        let key = (incarnation, *site);
        look.before = before
            .get(&key)
            .filter(|before| before.path == now.path)
            .map(|before| before.objects);
        held.insert(key, now);
    }
}

/// What a look found of each site. `known` are the blocks that it was given, `still` those that there were after it.
fn sites(look: &Look, known: &[Known], still: &[Known]) -> HashMap<SiteId, SiteLook> {
    let mut sites: HashMap<SiteId, SiteLook> = look
        .owners
        .iter()
        .map(|(site, found)| (*site, described(found)))
        .collect();
    // Where pointers were left out, anything may be held by them. What could not be walked counts as roots.
    if look.dropped_edges > 0 {
        return sites;
    }
    let lost: BTreeMap<u64, bool> = look
        .lost
        .iter()
        .map(|block| (block.address, block.is_direct))
        .collect();
    // Objects wait for their collector: that no root leads to them says of what kind a leak is, not that there is one.
    let doubtful: HashSet<u64> = look.doubtful.iter().map(|block| block.address).collect();
    for block in known {
        // What was freed meanwhile was not lost; and what is lost may be another site's.
        if !block.is_own || still.binary_search(block).is_err() {
            continue;
        }
        let Some(site) = sites.get_mut(&block.site) else {
            continue;
        };
        let is_doubtful = is_of_objects(block.site) && doubtful.contains(&block.address);
        let is_lost = lost
            .get(&block.address)
            .copied()
            .or(is_doubtful.then_some(true));
        let found = Reachability::of_block(block.bytes, is_lost, 1);
        let sum = site.reachability.unwrap_or_default().and(found);
        site.reachability = Some(sum);
    }
    sites
}

fn described(found: &OwnerLook) -> SiteLook {
    SiteLook {
        reachability: None,
        checked: found.checked,
        before: None,
        types: found
            .types
            .iter()
            .map(|of| SiteType {
                name: of.name.clone(),
                objects: of.objects,
                bytes: of.bytes,
            })
            .collect(),
        holders: found
            .holders
            .iter()
            .map(|holder| SiteHolder {
                path: holder.path.clone(),
                objects: holder.objects,
            })
            .collect(),
    }
}

/// Anonymous memory, bytes.
fn memory(traced: &Traced) -> u64 {
    traced.anonymous_bytes.saturating_add(traced.swapped_bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Known, SiteLook, compare, sites};
    use crate::{
        heap::{Look, LostBlock, OwnerLook},
        ledger::SiteId,
        report::{Reachability, SiteHolder},
    };

    fn known(address: u64, born_ns: u64) -> Known {
        Known {
            address,
            born_ns,
            bytes: 10,
            site: 3,
            is_own: true,
        }
    }

    fn look() -> Look {
        Look {
            owners: [(3, OwnerLook::default())].into(),
            lost: [16, 32]
                .map(|address| LostBlock::direct(address, 24))
                .into(),
            ..Look::default()
        }
    }

    #[test]
    fn what_was_freed_while_it_was_looked_at_was_not_lost() {
        let before = [known(16, 1), known(32, 1), known(48, 1)];
        // The second has given its place to another block.
        let after = [known(16, 1), known(32, 9), known(48, 1)];
        let found = sites(&look(), &before, &after);
        let found = found.get(&3).and_then(|site| site.reachability);
        let expected = Reachability {
            checked: 2,
            unreachable: 1,
            unreachable_bytes: 10,
            direct: 1,
            direct_bytes: 10,
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn blocks_that_may_be_of_another_site_by_now_do_not_make_theirs_leak() {
        let all = [known(16, 1), known(32, 1)].map(|block| Known {
            is_own: false,
            ..block
        });
        let found = sites(&look(), &all, &all);
        assert!(
            found
                .get(&3)
                .is_some_and(|site| site.reachability.is_none())
        );
    }

    #[test]
    fn where_pointers_were_left_out_nothing_is_said_to_be_lost() {
        let left_out = Look {
            dropped_edges: 1,
            ..look()
        };
        let all = [known(16, 1), known(32, 1)];
        let found = sites(&left_out, &all, &all);
        assert!(
            found
                .get(&3)
                .is_some_and(|site| site.reachability.is_none())
        );
    }

    #[test]
    fn lost_blocks_of_a_heap_of_which_a_part_was_torn_were_kept_quiet() {
        let torn = Look {
            torn_bytes: 64,
            ..look()
        };
        let all = [known(16, 1), known(32, 1)];
        let found = sites(&torn, &all, &all);
        let found = found.get(&3).and_then(|site| site.reachability);
        assert_eq!(found.map(|found| found.unreachable), Some(2));
    }

    #[test]
    fn a_container_that_holds_all_blocks_of_a_site_is_compared_with_itself() {
        let at = |path: &str, objects: u64, checked: u64| -> HashMap<SiteId, SiteLook> {
            let look = SiteLook {
                checked,
                holders: vec![SiteHolder {
                    path: vec![path.to_owned()],
                    objects,
                }],
                ..SiteLook::default()
            };
            [(3, look)].into()
        };
        let mut held = HashMap::new();
        let mut looked = |mut sites: HashMap<SiteId, SiteLook>| {
            compare(&mut held, 1, &mut sites);
            sites.get(&3).and_then(|site| site.before)
        };
        assert_eq!(looked(at("map", 100, 100)), None);
        assert_eq!(looked(at("map", 60, 60)), Some(100));
        assert_eq!(looked(at("map", 50, 60)), None, "others are held elsewhere");
        assert_eq!(looked(at("map", 50, 50)), None);
        assert_eq!(looked(at("list", 40, 40)), None);
    }
}
