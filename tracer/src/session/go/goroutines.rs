//! Goroutines as sites of a report: by where they were started; each is known by its number, so that births and ends are counted, not
//! estimated.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use leakscope_common::SiteTotals;

use super::{
    Names,
    site::{frame, is_of_runtime, is_the_end},
};
use crate::{
    ledger::{Judgement, Ledger, SiteId},
    report::{Frame, Site, SiteKind, SiteType},
    runtime::go::{GoroutineGroup, GoroutineKind, Goroutines, Waiting},
};

/// So many places that start goroutines are told apart.
const MOST_PLACES: usize = 1 << 14;

/// The goroutines of a program.
#[derive(Debug, Default)]
pub(super) struct GoroutineSites {
    sites: BTreeMap<SiteId, Started>,
    known: HashMap<GoroutineKind, SiteId>,
}

/// Those that were started at one place.
#[derive(Debug)]
struct Started {
    kind: GoroutineKind,
    /// By their numbers: since when each is known, CLOCK_MONOTONIC nanoseconds, and the bytes of its stack.
    alive: HashMap<u64, (u64, u64)>,
    /// Those that ended, and the bytes of their stacks.
    ended: u64,
    ended_bytes: u64,
    does: BTreeMap<String, Waiting>,
}

impl Started {
    fn new(kind: GoroutineKind) -> Self {
        Self {
            kind,
            alive: HashMap::new(),
            ended: 0,
            ended_bytes: 0,
            does: BTreeMap::new(),
        }
    }

    fn take(&mut self, group: Option<&GoroutineGroup>, now_ns: u64) {
        let members = group.map_or(&[][..], |group| group.members.as_slice());
        let there: HashSet<u64> = members.iter().map(|member| member.number).collect();
        let (ended, ended_bytes) = (&mut self.ended, &mut self.ended_bytes);
        self.alive.retain(|number, (_, bytes)| {
            let is_there = there.contains(number);
            if !is_there {
                *ended += 1;
                *ended_bytes = ended_bytes.saturating_add(*bytes);
            }
            is_there
        });
        for member in members {
            let (_, bytes) = self.alive.entry(member.number).or_insert((now_ns, 0));
            // Stacks grow.
            *bytes = member.stack_bytes;
        }
        self.does = group.map_or_else(BTreeMap::new, |group| group.does.clone());
    }

    fn stack_bytes(&self) -> u64 {
        self.alive
            .values()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    fn totals(&self) -> SiteTotals {
        SiteTotals {
            alloc_objects: self.ended.saturating_add(self.alive.len() as u64),
            alloc_bytes: self.ended_bytes.saturating_add(self.stack_bytes()),
            free_objects: self.ended,
            free_bytes: self.ended_bytes,
        }
    }

    /// What most of them do.
    fn most(&self) -> Option<(&String, &Waiting)> {
        self.does.iter().max_by_key(|(_, waiting)| waiting.count)
    }
}

impl GoroutineSites {
    /// Takes over a look.
    pub(super) fn take(&mut self, seen: &Goroutines, now_ns: u64, next: &mut SiteId) {
        for kind in seen.groups.keys() {
            if self.known.len() >= MOST_PLACES && !self.known.contains_key(kind) {
                continue;
            }
            let id = *self.known.entry(*kind).or_insert_with(|| {
                let id = *next;
                *next = next.saturating_add(1).min(SiteId::MAX - 1);
                id
            });
            self.sites.entry(id).or_insert_with(|| Started::new(*kind));
        }
        for started in self.sites.values_mut() {
            started.take(seen.groups.get(&started.kind), now_ns);
        }
    }

    /// Tells the ledger of it.
    pub(super) fn note(&self, ledger: &mut Ledger, now_ns: u64, is_first: bool) {
        for (id, started) in &self.sites {
            let totals = started.totals();
            if is_first {
                ledger.begin(now_ns, *id, &totals);
            } else {
                ledger.observe(now_ns, *id, &totals, 1);
            }
        }
    }

    /// Calls back with the site of each, since when it is known, and the bytes of its stack.
    pub(super) fn visit(&self, mut visit: impl FnMut(SiteId, u64, u64)) {
        for (id, started) in &self.sites {
            for (since_ns, bytes) in started.alive.values() {
                visit(*id, *since_ns, *bytes);
            }
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = SiteId> {
        self.sites.keys().copied()
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.sites
            .values()
            .map(|started| started.alive.len() as u64)
            .sum()
    }

    /// Bytes of their stacks.
    pub(super) fn stack_bytes(&self) -> u64 {
        self.sites.values().map(Started::stack_bytes).sum()
    }

    /// The sites without their process, frames and verdicts.
    pub(super) fn described(&self) -> impl Iterator<Item = Site> {
        let there = self
            .sites
            .iter()
            .filter(|(_, started)| !started.alive.is_empty());
        there.map(|(id, started)| {
            let totals = started.totals();
            let bytes = started.stack_bytes();
            let mut types: Vec<SiteType> = started
                .does
                .iter()
                .map(|(name, waiting)| SiteType {
                    name: name.clone(),
                    objects: waiting.count,
                    bytes: waiting.stack_bytes,
                })
                .collect();
            types.sort_by_key(|it| std::cmp::Reverse(it.objects));
            Site {
                id: u64::from(*id),
                kind: SiteKind::Goroutines,
                inuse_objects: started.alive.len() as u64,
                inuse_bytes: bytes,
                inuse_bytes_low: bytes,
                inuse_bytes_high: bytes,
                alloc_objects: totals.alloc_objects,
                alloc_bytes: totals.alloc_bytes,
                weight: 1,
                types,
                stack_complete: true,
                ..Site::default()
            }
        })
    }

    /// Where most of them stand, and where they were started.
    pub(super) fn frames(&self, id: SiteId, names: Names<'_>) -> Option<Vec<Arc<Frame>>> {
        let started = self.sites.get(&id)?;
        let stack = started
            .most()
            .map_or(&[][..], |(_, waiting)| &waiting.stack);
        let mut frames: Vec<Frame> = stack.iter().map(|it| frame(names, *it)).collect();
        let own = frames
            .iter()
            .take_while(|frame| is_of_runtime(frame))
            .count();
        if own < frames.len() {
            frames.drain(..own);
        }
        if frames.last().is_some_and(is_the_end) {
            frames.pop();
        }
        if frames.is_empty() {
            // Its first instruction, behind which the call would be looked for.
            frames.push(frame(names, started.kind.start.wrapping_add(1)));
        }
        if started.kind.creator != 0 {
            let creator = frame(names, started.kind.creator);
            let function = creator.function.map(|name| format!("created by {name}"));
            frames.push(Frame {
                function,
                ..creator
            });
        }
        Some(frames.into_iter().map(Arc::new).collect())
    }
}

/// What is said of blocks, said of goroutines.
pub(super) fn judged(judgement: &Judgement) -> Judgement {
    Judgement {
        reason: judgement
            .reason
            .replace("block", "goroutine")
            .replace("freed", "ended")
            .replace("allocated", "started"),
        verdict: judgement.verdict,
        growth_bytes_per_s: judgement.growth_bytes_per_s,
    }
}
