//! The kernel's own allocations as the probe tells of them in windows: caches, the places where objects are made, objects that are there.
//! Knows neither when a window opens nor what its objects mean.

use std::{
    ffi::CStr,
    io,
    mem::offset_of,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use aya::maps::{Map, MapData, PerCpuArray};
use aya_obj::generated::bpf_prog_type;
use leakscope_common::{
    CACHE_SLOTS, KERNEL_BUCKET_SLOTS, KERNEL_BUCKETS, KERNEL_PROGRAMS, KERNEL_SITE_SLOTS,
    KernelBucket, KernelCache, KernelSettings, KernelSite, WATCHED_SIZES, made_at, made_parts,
    thin_keeps,
};

use super::{
    btf,
    error::KernelError,
    link_keeper::{self, Kind, LinkKeeper, Wanted},
    load::LoadedObject,
    maps::{map_error, shared},
    probe::Probe,
    shared::SharedArray,
    sys,
};

/// The programs with their raw tracepoints, in the order of their numbers.
const PROGRAMS: [(&str, &CStr); KERNEL_PROGRAMS as usize] = [
    ("kernel_sized", c"kmalloc"),
    ("kernel_cached", c"kmem_cache_alloc"),
    ("kernel_freed", c"kfree"),
    ("kernel_uncached", c"kmem_cache_free"),
];

/// The most that addresses are thinned to: see [`thin_keeps`].
const MAX_SHIFT: u32 = 10;

/// The maps and how large they are where the kernel is watched.
pub(super) const MAPS: [(&str, u32); 3] = [
    ("KERNEL_CACHES", CACHE_SLOTS),
    ("KERNEL_SITES", KERNEL_SITE_SLOTS),
    ("KERNEL_LIVE", KERNEL_BUCKETS),
];

/// What windows have counted until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Calls of the kernel's allocators, of any cache.
    pub calls: u64,
    /// Objects of which stacks were taken.
    pub stacks: u64,
    /// Those for which there was no room.
    pub refused: u64,
    /// Times that the kernel did not run a program, for it was running on that processor already.
    pub missed: u64,
}

/// The programs and what they write to.
pub struct KernelAllocations {
    programs: Vec<(&'static str, &'static CStr, OwnedFd)>,
    links: Vec<link_keeper::KeptLink>,
    settings: SharedArray<KernelSettings>,
    caches: SharedArray<KernelCache>,
    sites: SharedArray<KernelSite>,
    live: SharedArray<KernelBucket>,
    calls: PerCpuArray<MapData, u64>,
    /// Places that nobody finds any more, and that nobody may write to by the next time: index and `check`.
    leaving: Vec<(usize, u64)>,
}

impl KernelAllocations {
    /// Loads the programs.
    fn load(object: &mut LoadedObject) -> Result<Self, KernelError> {
        let offset = |structure: &str, member: &str| {
            btf::member_offset(structure, member)
                .map_err(|source| KernelError::call("cannot see the kernel's allocations", source))
        };
        let missing = || {
            KernelError::call(
                "cannot see the kernel's allocations: its BTF has no struct kmem_cache",
                io::ErrorKind::Unsupported.into(),
            )
        };
        let settings = KernelSettings {
            name_offset: offset("kmem_cache", "name")?.ok_or_else(missing)?,
            size_offset: offset("kmem_cache", "size")?.ok_or_else(missing)?,
            stack_offset: offset("task_struct", "stack")?.unwrap_or(0),
            ..KernelSettings::default()
        };
        let kind = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;
        let mut programs = Vec::new();
        for (name, tracepoint) in PROGRAMS {
            programs.push((name, tracepoint, object.program(name, kind, 0)?));
        }
        let calls = object.take_map("KERNEL_CALLS")?;
        let mut loaded = Self {
            programs,
            links: Vec::new(),
            settings: shared(object, "KERNEL_SETTINGS", 1)?,
            caches: shared(object, "KERNEL_CACHES", CACHE_SLOTS)?,
            sites: shared(object, "KERNEL_SITES", KERNEL_SITE_SLOTS)?,
            live: shared(object, "KERNEL_LIVE", KERNEL_BUCKETS)?,
            calls: PerCpuArray::try_from(Map::PerCpuArray(calls))
                .map_err(|error| map_error("KERNEL_CALLS", &error))?,
            leaving: Vec::new(),
        };
        loaded.settings.write(0, settings);
        loaded.forget();
        Ok(loaded)
    }

    /// Name and descriptor of each program.
    pub(super) fn programs(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.programs
            .iter()
            .map(|(name, _, fd)| (*name, fd.as_fd()))
    }

    /// Opens a window, which closes at the deadline, CLOCK_MONOTONIC nanoseconds, if that is not put off. What frees is seen before what makes.
    fn open(&mut self, keeper: &Arc<LinkKeeper>, deadline_ns: u64) -> Result<(), KernelError> {
        if self.is_open() {
            self.put_off(deadline_ns);
            return Ok(());
        }
        self.close();
        for (name, tracepoint, program) in self.programs.iter().rev() {
            let wanted = Wanted {
                program: program.as_fd(),
                path: tracepoint,
                pid: None,
                kind: Kind::RawTracepoint,
                probes: &[],
            };
            let link =
                keeper
                    .make(&wanted, Some(deadline_ns))
                    .map_err(|source| KernelError::Attach {
                        what: format!("the program {name}"),
                        source,
                    });
            match link {
                Ok(link) => self.links.push(link),
                Err(error) => {
                    self.close();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether a window is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.links.is_empty() && !self.links.iter().any(link_keeper::KeptLink::is_overdue)
    }

    /// Puts the end of a window off, CLOCK_MONOTONIC nanoseconds.
    pub fn put_off(&self, deadline_ns: u64) {
        for link in &self.links {
            link.set_deadline(Some(deadline_ns));
        }
    }

    /// Closes the window.
    pub fn close(&mut self) {
        link_keeper::close(&std::mem::take(&mut self.links));
    }

    /// Forgets objects, of which nothing is known any more when a window was closed, with their caches and places.
    pub fn forget(&mut self) {
        self.leaving.clear();
        for index in self.sites.indices() {
            self.sites.write(index, KernelSite::default());
        }
        for index in self.live.indices() {
            self.live.write(index, KernelBucket::default());
        }
        for index in self.caches.indices() {
            self.caches.write(index, KernelCache::default());
        }
    }

    /// The caches that are watched.
    pub fn watched(&self) -> impl Iterator<Item = KernelCache> {
        self.caches
            .indices()
            .filter_map(|index| self.caches.read(index))
            .filter(|cache| cache.watched != 0)
    }

    /// Says of each cache that was seen to be used whether it is watched: one of how many of its objects is followed, as the power of two; `None`:
    /// it is not.
    pub fn watch(&self, mut shift: impl FnMut(&KernelCache) -> Option<u32>) {
        for index in self.caches.indices() {
            let Some(cache) = self.caches.read(index).filter(|cache| cache.cache != 0) else {
                continue;
            };
            let watched = if cache.object_bytes == 0 {
                0
            } else {
                shift(&cache).map_or(0, |shift| 1 + shift.min(MAX_SHIFT))
            };
            if watched != cache.watched
                && let Some(word) = self
                    .caches
                    .word(index, offset_of!(KernelCache, object_bytes))
            {
                let value = u64::from(cache.object_bytes) | u64::from(watched) << 32;
                word.store(value, Ordering::SeqCst);
            }
        }
    }

    /// Watches these sizes of `kmalloc`, as allocated, and no others: one of `2^shift` of their objects is followed.
    pub fn watch_sizes(&self, sizes: [u32; WATCHED_SIZES], shift: u32) {
        let shift = shift.min(MAX_SHIFT);
        if let Some(mut settings) = self.settings.read(0)
            && (settings.sizes != sizes || settings.shift != shift)
        {
            settings.sizes = sizes;
            settings.shift = shift;
            self.write(settings);
        }
    }

    /// Objects of the sizes that are watched that were made.
    #[must_use]
    pub fn births_of_sizes(&self) -> u64 {
        self.settings.read(0).map_or(0, |settings| settings.births)
    }

    /// Forgets every other object that is followed, by its address; the rest stand for twice as many.
    pub fn thin(&self) {
        let place = |offset: usize, slot: usize| offset + slot * size_of::<u64>();
        self.each_object(|index, slot, address, made| {
            let (site, shift) = made_parts(made);
            if shift >= MAX_SHIFT {
                return;
            }
            let (offset, old, new) = if thin_keeps(address, shift + 1) {
                (
                    offset_of!(KernelBucket, made),
                    made,
                    made_at(site, shift + 1),
                )
            } else {
                (offset_of!(KernelBucket, keys), address, 0)
            };
            if let Some(word) = self.live.word(index, place(offset, slot)) {
                let _ = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
            }
        });
    }

    /// Objects that are followed now, by the number of the place where they were made.
    #[must_use]
    pub fn followed(&self) -> Vec<u32> {
        let mut followed = vec![0_u32; self.sites.len()];
        self.each_object(|_, _, _, made| {
            let (site, _) = made_parts(made);
            let count = usize::try_from(site)
                .ok()
                .and_then(|site| followed.get_mut(site));
            if let Some(count) = count {
                *count = count.saturating_add(1);
            }
        });
        followed
    }

    /// Gives places free where nothing that is followed was made and which are `over`, and tells what stood there. Without it every process
    /// that comes and goes would leave some behind. In two steps, which are to be 100 ms apart: a program that has found the place just
    /// before is done with it by then.
    pub fn reclaim(
        &mut self,
        followed: &[u32],
        mut over: impl FnMut(&KernelSite) -> bool,
    ) -> Vec<KernelSite> {
        let mut gone = Vec::new();
        let is_empty = |place: usize| followed.get(place) == Some(&0);
        let indices: Vec<usize> = self.sites.indices().collect();
        for (place, check) in std::mem::take(&mut self.leaving) {
            let Some(index) = indices.get(place).copied() else {
                continue;
            };
            let word = |offset| self.sites.word(index, offset);
            if is_empty(place) {
                gone.extend(self.sites.read(index));
                if let Some(tag) = word(offset_of!(KernelSite, tag)) {
                    tag.store(0, Ordering::SeqCst);
                }
            } else if let Some(found) = word(offset_of!(KernelSite, check)) {
                found.store(check, Ordering::SeqCst);
            }
        }
        for (place, index) in indices.into_iter().enumerate() {
            let Some(check) = self.sites.word(index, offset_of!(KernelSite, check)) else {
                continue;
            };
            let value = check.load(Ordering::SeqCst);
            if value != 0
                && is_empty(place)
                && self.sites.read(index).is_some_and(|site| over(&site))
            {
                check.store(0, Ordering::SeqCst);
                self.leaving.push((place, value));
            }
        }
        gone
    }

    /// Writes what user space says, and nothing of what the programs count.
    fn write(&self, settings: KernelSettings) {
        const WORDS: usize = offset_of!(KernelSettings, births) / 8;
        let mut words = [0_u64; WORDS];
        let numbers = settings.sizes.into_iter().chain([
            settings.name_offset,
            settings.size_offset,
            settings.stack_offset,
            settings.shift,
        ]);
        for (place, number) in numbers.enumerate() {
            if let Some(word) = words.get_mut(place / 2) {
                *word |= u64::from(number) << (32 * (place % 2));
            }
        }
        for (place, value) in words.into_iter().enumerate() {
            if let Some(word) = self.settings.word(0, place * 8) {
                word.store(value, Ordering::SeqCst);
            }
        }
    }

    /// What was counted until now.
    #[must_use]
    pub fn counts(&self) -> KernelCounts {
        let settings = self.settings.read(0).unwrap_or_default();
        let calls = (0..KERNEL_PROGRAMS)
            .filter_map(|program| self.calls.get(&program, 0).ok())
            .flat_map(|counts| counts.iter().copied().collect::<Vec<u64>>())
            .fold(0, u64::wrapping_add);
        let missed = self
            .programs()
            .filter_map(|(_, program)| sys::missed_runs(program).ok())
            .fold(0, u64::saturating_add);
        KernelCounts {
            calls,
            stacks: settings.stacks,
            refused: settings.refused,
            missed,
        }
    }

    /// The part of the room for places that is taken.
    #[must_use]
    pub fn taken(&self) -> f64 {
        let used = self
            .sites
            .indices()
            .filter_map(|index| self.sites.word(index, offset_of!(KernelSite, tag)))
            .filter(|tag| tag.load(Ordering::SeqCst) != 0)
            .count();
        used as f64 / self.sites.len().max(1) as f64
    }

    /// The places where objects were made, by number.
    pub fn sites(&self) -> impl Iterator<Item = (u32, KernelSite)> {
        (0_u32..)
            .zip(self.sites.indices())
            .filter_map(|(number, index)| {
                let check = self.sites.word(index, offset_of!(KernelSite, check))?;
                if check.load(Ordering::SeqCst) == 0 {
                    return None;
                }
                Some((number, self.sites.read(index)?))
            })
    }

    /// Calls back with bucket, slot, address and where and when the object was made.
    fn each_object(&self, mut visit: impl FnMut(usize, usize, u64, u64)) {
        const { assert!(KERNEL_BUCKET_SLOTS == 8) };
        for index in self.live.indices() {
            let Some(keys) = self.live.words(index, offset_of!(KernelBucket, keys)) else {
                return;
            };
            if keys.iter().fold(0, |any, key| any | key) == 0 {
                continue;
            }
            let made = self.live.words(index, offset_of!(KernelBucket, made));
            for (slot, (address, made)) in
                keys.into_iter().zip(made.unwrap_or_default()).enumerate()
            {
                if address != 0 {
                    visit(index, slot, address, made);
                }
            }
        }
    }
}

impl Probe {
    /// The kernel's allocations, once a window was open.
    pub fn kernel_allocations(&mut self) -> Option<&mut KernelAllocations> {
        self.kernel_allocations.as_mut()
    }

    /// Loads the programs that see the kernel's allocations, if they are not yet.
    ///
    /// # Errors
    /// The kernel refused a program, or does not tell how its caches are laid out.
    pub fn load_kernel_allocations(&mut self) -> Result<&mut KernelAllocations, KernelError> {
        match &mut self.kernel_allocations {
            Some(loaded) => Ok(loaded),
            none => Ok(none.insert(KernelAllocations::load(&mut self.object)?)),
        }
    }

    /// Opens a window on the kernel's allocations until a time, CLOCK_MONOTONIC nanoseconds. The programs are loaded at the first one.
    ///
    /// # Errors
    /// As for [`Probe::load_kernel_allocations`], and the kernel ties no program to a tracepoint.
    pub fn open_kernel_window(&mut self, deadline_ns: u64) -> Result<(), KernelError> {
        let keeper = Arc::clone(&self.keeper);
        self.load_kernel_allocations()?.open(&keeper, deadline_ns)
    }
}
