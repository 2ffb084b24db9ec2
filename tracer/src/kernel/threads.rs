//! The probe's records of threads, wherever they stand: in a seat or in the map. Knows nothing of what a thread did but its calls.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{HashMap as BpfHashMap, MapData};
use leakscope_common::{HitCounts, SEAT_CLAIMED, SEATS, ThreadRecord, seat_of};

use super::{
    error::KernelError,
    load::LoadedObject,
    maps::{hash, shared},
    probe::Value,
    shared::SharedArray,
};

/// Where the records stand.
pub(super) struct Threads {
    seated: SharedArray<ThreadRecord>,
    others: BpfHashMap<MapData, u64, Value<ThreadRecord>>,
}

/// Calls that a thread has seen.
pub(super) struct ThreadHits {
    /// The incarnation of its process.
    pub(super) incarnation: u32,
    /// By hit slot.
    pub(super) counts: HitCounts,
}

impl From<ThreadRecord> for ThreadHits {
    fn from(record: ThreadRecord) -> Self {
        Self {
            incarnation: record.incarnation,
            counts: record.hits,
        }
    }
}

impl Threads {
    /// Takes the maps out of the object.
    pub(super) fn new(object: &mut LoadedObject) -> Result<Self, KernelError> {
        Ok(Self {
            seated: shared(object, "SEATED", SEATS)?,
            others: hash(object.take_map("THREADS")?)?,
        })
    }

    /// The calls of a thread, if it has a record. `thread`: see [`thread_key`].
    pub(super) fn hits_of(&self, thread: u64) -> Option<ThreadHits> {
        let seat = seat_of(thread) as usize;
        if let Some(hits) = self.seated_hits(seat, thread) {
            return Some(hits);
        }
        Some(self.others.get(&thread, 0).ok()?.0.into())
    }

    /// Drops the record of a thread and hands out its calls. Nothing if it has none, or ends just now and leaves them to its process.
    pub(super) fn take(&mut self, thread: u64) -> Option<ThreadHits> {
        let seat = seat_of(thread) as usize;
        if let Some(owner) = self.owner(seat)
            && owner
                .compare_exchange(thread, SEAT_CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            let hits = self.counted(seat);
            owner.store(0, Ordering::SeqCst);
            return hits;
        }
        let record = self.others.get(&thread, 0).ok()?.0;
        self.others.remove(&thread).ok()?;
        Some(record.into())
    }

    /// The calls of each thread that has a record. One that ends meanwhile can be missed, or end this early.
    pub(super) fn each(&self) -> impl Iterator<Item = ThreadHits> {
        let seated = (0..self.seated.len()).filter_map(|seat| {
            let owner = self.owner(seat)?.load(Ordering::SeqCst);
            self.seated_hits(seat, owner)
        });
        let others = self.others.iter().flatten();
        let others = others.map(|(_, record)| record.0.into());
        seated.chain(others)
    }

    /// Whose a seat is.
    fn owner(&self, seat: usize) -> Option<&AtomicU64> {
        self.seated.word(seat, offset_of!(ThreadRecord, owner))
    }

    /// The calls of a seat's owner, if it is this one before and after they were read.
    fn seated_hits(&self, seat: usize, thread: u64) -> Option<ThreadHits> {
        let is_owner = || {
            thread > SEAT_CLAIMED
                && self
                    .owner(seat)
                    .is_some_and(|owner| owner.load(Ordering::SeqCst) == thread)
        };
        if !is_owner() {
            return None;
        }
        let hits = self.counted(seat);
        hits.filter(|_| is_owner())
    }

    /// What a seat has counted.
    fn counted(&self, seat: usize) -> Option<ThreadHits> {
        Some(ThreadHits {
            incarnation: self
                .seated
                .part(seat, offset_of!(ThreadRecord, incarnation))?,
            counts: self.seated.part(seat, offset_of!(ThreadRecord, hits))?,
        })
    }
}

/// What a thread is known by (`bpf_get_current_pid_tgid`).
pub(super) fn thread_key(pid: u32, thread: u32) -> u64 {
    u64::from(pid) << 32 | u64::from(thread)
}
