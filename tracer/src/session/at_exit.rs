//! Lost at exit: a command of ours is held where it is about to end, and its heap is looked at. What no pointer leads to then, nobody
//! can free any more; the live table says which stacks allocated it. Names nothing.

use std::{borrow::Cow, collections::HashMap, ops::Range, time::Instant};

use leakscope_common::UNKNOWN_SITE;

use super::{
    Session, TraceError,
    process::{Traced, wait_until_stopped},
};
use crate::{
    apart::{Place, walk_stopped},
    heap::{LookOptions, LostBlock},
    kernel::{LiveBlock, monotonic_ns, read_registers, shares_memory},
    ledger::SiteId,
    process::procfs::read_process,
    reader::{LookTask, ProcessMemory, read_address_space},
    report::{LostAtExit, LostType, Reachability, Site, SiteKind},
};

/// Of so many types at most is said how many blocks of them are lost.
const MOST_TYPES: usize = 20;

/// What a look at the end of a process has found.
#[derive(Debug)]
pub(super) struct EndLook {
    /// Blocks of each site, as the live table had them.
    sites: HashMap<SiteId, Reachability>,
    /// How many blocks that had.
    blocks: u64,
    /// The sums.
    pub(super) lost: LostAtExit,
}

impl EndLook {
    /// What is known of the blocks of a site, or of several with the same stack.
    pub(super) fn site(&self, mut is_of_it: impl FnMut(SiteId) -> bool) -> Option<Reachability> {
        self.sites
            .iter()
            .filter(|(site, _)| is_of_it(**site))
            .map(|(_, part)| *part)
            .reduce(Reachability::and)
    }
}

impl Session {
    /// A followed process is about to end, and was stopped for us.
    pub(super) fn note_ending(&mut self, pid: u32, thread: u32, held: bool) {
        let shares = read_process(&self.proc_root, thread)
            .is_ok_and(|process| shares_memory(pid, process.parent));
        // A child that has its parent's memory until it calls exec: that memory does not end.
        if !shares {
            self.deal_with(pid, |session, traced| {
                if traced.failed || traced.end_look.is_some() {
                    return;
                }
                let begun = Instant::now();
                let looked = session.look_at_end(traced, thread);
                traced.end_look = Some(looked.map(|mut look| {
                    look.lost.held_s = begun.elapsed().as_secs_f64();
                    look
                }));
            });
        }
        if held {
            // Whatever came of it. It may have been killed meanwhile.
            let _ = self.probe.resume(pid);
        }
    }

    /// Looks at the heap of a process that is stopped where it ends, or says why that cannot be.
    fn look_at_end(&mut self, traced: &Traced, thread: u32) -> Result<EndLook, String> {
        let threads = wait_until_stopped(&self.proc_root, thread);
        let registers = read_registers(&threads, thread);
        // Reading them has woken the threads.
        let threads = wait_until_stopped(&self.proc_root, thread);
        let unread_registers = registers.iter().filter(|words| words.is_none()).count();
        let words: Vec<u64> = registers.into_iter().flatten().flatten().collect();
        // By the thread that ends it: the first one may have ended long ago, and has no memory then.
        let memory =
            ProcessMemory::open(&self.proc_root, thread).map_err(|error| error.to_string())?;
        let image =
            read_address_space(&self.proc_root, thread).map_err(|error| error.to_string())?;
        let options = LookOptions {
            is_python: image.is_python,
            is_stopped: true,
            levels: 0,
            groups_with_holders: 0,
            by_size: false,
            most_edges: LookOptions::edges_for(image.anonymous_bytes),
        };
        let task = LookTask {
            options,
            owned: Cow::Borrowed(&[]),
            registers: Cow::Borrowed(&words),
            wants_blocks: true,
        };
        let place = Place {
            memory: &memory,
            regions: &image.regions,
            until: None,
            most_bytes: u64::MAX,
        };
        let walked = walk_stopped(place, task).map_err(|error| error.to_string())?;
        let Some(look) = walked else {
            // Before its first allocation a process has no heap.
            let found = self
                .whose(traced.incarnation, &[], &[])
                .map_err(|error| error.to_string())?;
            return if found.blocks == 0 {
                Ok(found)
            } else {
                Err("no heap that is known, neither glibc's nor CPython's".to_owned())
            };
        };
        if look.dropped_edges > 0 {
            return Err(
                "there are more pointers between its blocks than there is room for".to_owned(),
            );
        }
        let mut types: Vec<LostType> = look
            .groups
            .iter()
            .filter(|group| group.unreachable_objects > 0)
            .map(|group| LostType {
                name: group.label(),
                objects: group.unreachable_objects,
                bytes: group.unreachable_bytes,
            })
            .collect();
        types.sort_by_key(|lost| std::cmp::Reverse((lost.bytes, lost.objects)));
        types.truncate(MOST_TYPES);
        let mut found = self
            .whose(traced.incarnation, &look.lost, &look.ranges)
            .map_err(|error| error.to_string())?;
        found.lost.types = types;
        found.lost.threads = threads.len() as u64;
        found.lost.unread_registers = unread_registers as u64;
        Ok(found)
    }

    /// Which sites allocated the lost blocks. `walked`: where blocks were looked for.
    fn whose(
        &self,
        incarnation: u32,
        lost: &[LostBlock],
        walked: &[Range<u64>],
    ) -> Result<EndLook, TraceError> {
        let weight = 1_u64 << self.probe.thin_shift();
        let oldest_ns = monotonic_ns()
            .saturating_sub(u64::try_from(self.options.min_age.as_nanos()).unwrap_or(u64::MAX));
        let mut sites: HashMap<SiteId, Reachability> = HashMap::new();
        let mut blocks = 0;
        // What the program asked for, of blocks that are traced.
        let mut asked: Vec<Option<u64>> = vec![None; lost.len()];
        self.probe.visit_blocks(|LiveBlock { address, block }| {
            // A time of birth of 0: a watched block of an earlier window.
            if block.incarnation != incarnation || block.born_ns == 0 {
                return;
            }
            blocks += 1;
            let place = lost.binary_search_by_key(&address, |lost| lost.address);
            if let Some(asked) = place.ok().and_then(|place| asked.get_mut(place)) {
                *asked = Some(block.size);
            }
            let behind = walked.partition_point(|range| range.start <= address);
            let is_walked = behind
                .checked_sub(1)
                .and_then(|place| walked.get(place))
                .is_some_and(|range| range.contains(&address));
            if !is_walked || block.born_ns > oldest_ns {
                return;
            }
            let is_direct = place
                .ok()
                .and_then(|place| lost.get(place))
                .map(|lost| lost.is_direct);
            let site = sites.entry(block.site).or_default();
            *site = site.and(Reachability::of_block(block.size, is_direct, weight));
        })?;
        let mut sums = LostAtExit::default();
        for (lost, asked) in lost.iter().zip(asked) {
            sums.add(asked.unwrap_or(lost.bytes), lost.is_direct, asked.is_some());
        }
        Ok(EndLook {
            sites,
            blocks,
            lost: sums,
        })
    }

    /// Tells which blocks of a site were lost where its process ended: that counts, whatever was seen before.
    pub(super) fn describe_end(&self, id: SiteId, site: &mut Site) {
        let traced = self
            .processes
            .get(&site.pid)
            .filter(|traced| traced.incarnation == site.incarnation);
        let Some(Ok(look)) = traced.and_then(|traced| traced.end_look.as_ref()) else {
            return;
        };
        if site.kind != SiteKind::Heap {
            return;
        }
        site.reachability = look.site(|other| {
            if id == UNKNOWN_SITE || other == UNKNOWN_SITE {
                other == id
            } else {
                self.joined(other) == id
            }
        });
    }
}
