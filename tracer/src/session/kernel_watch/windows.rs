//! Windows on the kernel's allocations: what is watched in them, how long they are open, and how many objects are followed. Knows nothing of
//! what the objects say.
//!
//! A window is open while something grows and the programs' cost stays within the budget, of which an account is kept: calls and stacks are
//! counted, and what each takes was measured. Who closes it if we do not is the keeper of links, at a deadline that is put off at each step.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use leakscope_common::{CACHE_NAME_BYTES, KMALLOC_SIZE, KernelCache, KernelSite, WATCHED_SIZES};

use crate::{
    kernel::{KernelAllocations, KernelCounts, Probe, monotonic_ns},
    kernel_memory::Slab,
};

/// What a call of the kernel's allocators takes longer while a window is open, and what an object that is followed does, seconds. Measured on
/// Linux 6.18: 23 ns for a program that does nothing, 12 ns for ours where the cache is another; 1.2 µs for the kernel's stack, as much for
/// the process's.
const CALL_S: f64 = 35e-9;
const STACK_S: f64 = 2.5e-6;

/// So much may be taken at once, seconds of a processor: windows begin with it.
const CREDIT_S: f64 = 0.2;

/// So long a window stays open if nobody puts that off.
const DEADLINE: Duration = Duration::from_secs(4);

/// How often an open window is looked after.
const STEP: Duration = Duration::from_millis(200);

/// What has grown is watched for so long after.
const WATCHED_FOR: Duration = Duration::from_secs(30);

/// So many caches are watched at the same time.
const MOST_WATCHED: usize = 12;

/// So many objects of a cache are followed a second: a leak is rarely faster, and is then counted object by object; of what comes and goes by the
/// thousands, some are enough. Twelve caches take some 18 ms of a processor.
const FOLLOWED_PER_S: f64 = 600.0;

/// More are followed when they would still be so many times fewer.
const CALM_PART: f64 = 2.2;

/// At first one of `2^shift` addresses is followed: how fast objects come is not known yet.
const FIRST_SHIFT: u32 = 3;

/// The most: see [`crate::kernel::KernelAllocations::watch`].
const MOST_SHIFT: u32 = 10;

/// Objects that are followed at the same time; beyond, every other one is forgotten.
const MOST_FOLLOWED: u64 = 32_768;

/// Of the room for places so much may be taken before those are given free of which nothing is there: those of processes that have ended,
/// those of all; and before a window begins anew.
const TAKEN_BY_ENDED: f64 = 0.2;
const TAKEN_BY_ALL: f64 = 0.4;
const CROWDED: f64 = 0.6;

/// How many objects of a cache are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pace {
    shift: u32,
    births: u64,
}

impl Pace {
    const FIRST: Self = Self {
        shift: FIRST_SHIFT,
        births: 0,
    };

    /// Takes note of the births until now, so many seconds after the last time.
    fn note(&mut self, births: u64, passed_s: f64) {
        let since = births.wrapping_sub(std::mem::replace(&mut self.births, births));
        let told = since as f64 / passed_s.max(0.05) / f64::from(1_u32 << self.shift.min(15));
        if told > FOLLOWED_PER_S {
            // At once: until then whoever allocates pays for each.
            let more = (told / FOLLOWED_PER_S).log2().ceil().max(1.0);
            self.shift = self.shift.saturating_add(more as u32).min(MOST_SHIFT);
        } else if told < FOLLOWED_PER_S / CALM_PART {
            self.shift = self.shift.saturating_sub(1);
        }
    }
}

/// A cache that grows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Growing {
    /// Its name in `/proc/slabinfo`.
    pub(super) name: String,
    pub(super) bytes_per_s: f64,
}

/// The last counts of a cache's objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    /// Seconds and objects, the oldest first.
    counts: Vec<(f64, u64)>,
    /// The same, some time ago.
    anchor: Option<(f64, u64)>,
}

/// So many counts tell whether a cache grows now.
const RECENT: usize = 4;

/// After so many seconds an anchor is set anew: what grows slowly is found by it.
const ANCHOR_S: f64 = 60.0;

/// Fewer objects, or bytes, may be what processors keep at hand.
const LEAST_OBJECTS: u64 = 32;
const LEAST_BYTES: u64 = 16 << 10;

impl Recent {
    /// Notes a count, and tells how fast the cache grows, bytes a second; `None` where it does not.
    pub(super) fn note(&mut self, at_s: f64, slab: &Slab) -> Option<f64> {
        let slow = match self.anchor {
            None => {
                self.anchor = Some((at_s, slab.objects));
                None
            }
            Some((from_s, _)) if at_s - from_s < ANCHOR_S => None,
            Some(anchor) => {
                self.anchor = Some((at_s, slab.objects));
                rate(anchor, (at_s, slab.objects), slab.object_bytes, 1)
            }
        };
        self.counts.push((at_s, slab.objects));
        if self.counts.len() > RECENT {
            self.counts.remove(0);
        }
        slow.or_else(|| self.fast(slab.object_bytes))
    }

    fn fast(&self, object_bytes: u64) -> Option<f64> {
        let (first, last) = self.counts.first().zip(self.counts.last())?;
        let rises = self
            .counts
            .windows(2)
            .filter(|pair| matches!(pair, [one, two] if two.1 > one.1))
            .count();
        let is_lowest = self.counts.iter().all(|count| count.1 >= first.1);
        // All but one of the intervals.
        let steady = self.counts.len() >= 3 && rises + 2 >= self.counts.len() && rises >= 2;
        (steady && is_lowest)
            .then(|| rate(*first, *last, object_bytes, LEAST_BYTES))
            .flatten()
    }
}

/// Bytes a second between two counts, where the growth is worth a window.
fn rate(from: (f64, u64), to: (f64, u64), object_bytes: u64, least_bytes: u64) -> Option<f64> {
    let grown = to.1.saturating_sub(from.1);
    let bytes = grown.saturating_mul(object_bytes);
    let is_enough = bytes >= least_bytes && (grown >= LEAST_OBJECTS || bytes >= 4 * LEAST_BYTES);
    (is_enough && to.0 > from.0).then(|| bytes as f64 / (to.0 - from.0))
}

/// How windows stand.
#[derive(Debug)]
pub(super) struct Windows {
    /// What is watched, how fast it grew when that was seen last, and until when.
    watched: BTreeMap<String, (f64, Instant)>,
    /// Why there can be none.
    refused: Option<String>,
    is_open: bool,
    stepped: Instant,
    /// Seconds of a processor that may still be taken.
    credit_s: f64,
    counts: KernelCounts,
    /// How long windows were open, in all, and how many there were.
    open_s: f64,
    opened: u32,
    /// What was taken in all, seconds of a processor.
    cost_s: f64,
    /// By the address of each cache that is watched, and of the sizes of kmalloc.
    paces: BTreeMap<u64, Pace>,
    of_sizes: Pace,
    /// Places that were given free since that was asked, as they were.
    gone: Vec<KernelSite>,
    /// Nothing is to be seen any more.
    is_over: bool,
}

/// What the windows were.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct WindowsSoFar {
    pub(super) opened: u32,
    pub(super) open_s: f64,
    pub(super) cost_s: f64,
    pub(super) counts: KernelCounts,
}

impl Windows {
    pub(super) fn new() -> Self {
        Self {
            watched: BTreeMap::new(),
            refused: None,
            is_open: false,
            stepped: Instant::now(),
            credit_s: CREDIT_S,
            counts: KernelCounts::default(),
            open_s: 0.0,
            opened: 0,
            cost_s: 0.0,
            paces: BTreeMap::new(),
            of_sizes: Pace::FIRST,
            gone: Vec::new(),
            is_over: false,
        }
    }

    /// The places that were given free since the last time.
    pub(super) fn take_gone(&mut self) -> Vec<KernelSite> {
        std::mem::take(&mut self.gone)
    }

    /// What windows were until now.
    pub(super) fn so_far(&self) -> WindowsSoFar {
        WindowsSoFar {
            opened: self.opened,
            open_s: self.open_s,
            cost_s: self.cost_s,
            counts: self.counts,
        }
    }

    /// Why there can be no windows, for people.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Whether an open window is to be looked after now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.is_open && now.saturating_duration_since(self.stepped) >= STEP
    }

    /// Takes note of what grows.
    pub(super) fn note(&mut self, growing: Vec<Growing>, now: Instant) {
        for one in growing {
            self.watched
                .insert(one.name, (one.bytes_per_s, now + WATCHED_FOR));
        }
        self.watched.retain(|_, (_, until)| *until > now);
        while self.watched.len() > MOST_WATCHED {
            let slowest = self
                .watched
                .iter()
                .min_by(|(_, one), (_, two)| one.0.total_cmp(&two.0))
                .map(|(name, _)| name.clone());
            let Some(slowest) = slowest else { break };
            self.watched.remove(&slowest);
        }
    }

    /// How many objects of a cache, or of a size of kmalloc, each one stands for that is followed now.
    pub(super) fn weight(&self, cache: u64) -> u64 {
        let pace = if is_size(cache) {
            Some(&self.of_sizes)
        } else {
            self.paces.get(&cache)
        };
        pace.map_or(1, |pace| 1 << pace.shift.min(63))
    }

    /// Opens a window, looks after the one that is open, or closes it. `allowed`: processors that windows may take in the mean. `ended`:
    /// whether the process has ended that a place belongs to.
    pub(super) fn step(
        &mut self,
        probe: &mut Probe,
        now: Instant,
        allowed: f64,
        ended: impl FnMut(&KernelSite) -> bool,
    ) {
        let passed = now.saturating_duration_since(self.stepped).as_secs_f64();
        self.stepped = now;
        self.credit_s = (self.credit_s + allowed * passed).min(CREDIT_S);
        if self.is_open {
            self.open_s += passed;
            self.account(probe);
        }
        let may_be_open = !self.watched.is_empty() && self.refused.is_none() && !self.is_over;
        // A window that has to close waits until there is something to begin with again.
        let least = if self.is_open { 0.0 } else { CREDIT_S / 2.0 };
        if !may_be_open || self.credit_s < least {
            self.close(probe);
            return;
        }
        let deadline_ns =
            monotonic_ns().saturating_add(u64::try_from(DEADLINE.as_nanos()).unwrap_or(u64::MAX));
        let is_crowded = |allocations: &mut KernelAllocations| allocations.taken() > CROWDED;
        if self.is_open && probe.kernel_allocations().is_some_and(is_crowded) {
            // Anew: most places are of processes that have ended.
            self.close(probe);
        }
        if !self.is_open {
            self.open(probe, deadline_ns);
        }
        if let Some(allocations) = probe.kernel_allocations().filter(|_| self.is_open) {
            if !allocations.is_open() {
                // The keeper closed it: we were late. What was freed since is not known.
                self.close(probe);
                return;
            }
            allocations.put_off(deadline_ns);
            let (watched, paces) = (&self.watched, &mut self.paces);
            allocations.watch(|cache| {
                if !watched.contains_key(&name(cache)) {
                    return None;
                }
                let pace = paces.entry(cache.cache).or_insert(Pace::FIRST);
                if cache.watched > 0 {
                    pace.note(cache.births, passed);
                }
                Some(pace.shift)
            });
            self.of_sizes.note(allocations.births_of_sizes(), passed);
            allocations.watch_sizes(sizes(self.watched.keys()), self.of_sizes.shift);
            let followed = allocations.followed();
            if followed.iter().copied().map(u64::from).sum::<u64>() > MOST_FOLLOWED {
                allocations.thin();
            }
            if passed * 2.0 >= STEP.as_secs_f64() {
                self.gone.extend(give_free(allocations, &followed, ended));
            }
        }
    }

    /// Takes all probes away, for good.
    pub(super) fn end(&mut self, probe: &mut Probe) {
        self.is_over = true;
        self.close(probe);
    }

    fn open(&mut self, probe: &mut Probe, deadline_ns: u64) {
        self.paces.clear();
        if let Some(allocations) = probe.kernel_allocations() {
            allocations.forget();
        }
        if let Err(error) = probe.open_kernel_window(deadline_ns) {
            self.refused = Some(format!(
                "who makes the kernel's memory grow is not seen: {error}"
            ));
            return;
        }
        if let Some(allocations) = probe.kernel_allocations() {
            self.counts = allocations.counts();
        }
        self.is_open = true;
        self.opened += 1;
    }

    /// Takes all probes of a window away.
    fn close(&mut self, probe: &mut Probe) {
        if std::mem::take(&mut self.is_open)
            && let Some(allocations) = probe.kernel_allocations()
        {
            allocations.close();
            self.counts = allocations.counts();
        }
    }

    /// Pays for what was seen since the last step.
    fn account(&mut self, probe: &mut Probe) {
        let Some(allocations) = probe.kernel_allocations() else {
            return;
        };
        let before = std::mem::replace(&mut self.counts, allocations.counts());
        let since = |now: u64, before: u64| now.wrapping_sub(before) as f64;
        let cost = CALL_S * since(self.counts.calls, before.calls)
            + STACK_S * since(self.counts.stacks, before.stacks);
        self.cost_s += cost;
        self.credit_s -= cost;
    }
}

/// Gives places free, as far as the room for them is needed.
fn give_free(
    allocations: &mut KernelAllocations,
    followed: &[u32],
    mut ended: impl FnMut(&KernelSite) -> bool,
) -> Vec<KernelSite> {
    let taken = allocations.taken();
    allocations.reclaim(followed, |site| {
        taken > TAKEN_BY_ALL || taken > TAKEN_BY_ENDED && ended(site)
    })
}

/// The name of a cache.
pub(super) fn name(cache: &KernelCache) -> String {
    let length = cache.name.iter().position(|byte| *byte == 0);
    let name = cache.name.get(..length.unwrap_or(CACHE_NAME_BYTES));
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

/// Whether what stands for a cache is a size of kmalloc.
pub(super) fn is_size(cache: u64) -> bool {
    cache & !u64::from(u32::MAX) == KMALLOC_SIZE
}

/// The sizes of kmalloc's caches among these names.
fn sizes<'a>(names: impl Iterator<Item = &'a String>) -> [u32; WATCHED_SIZES] {
    let mut sizes = [0; WATCHED_SIZES];
    let mut free = sizes.iter_mut();
    let mut known = Vec::new();
    for size in names.filter_map(|name| kmalloc_size(name)) {
        if !known.contains(&size)
            && let Some(place) = free.next()
        {
            known.push(size);
            *place = size;
        }
    }
    sizes
}

/// The size of one of kmalloc's caches: `kmalloc-96`, `kmalloc-cg-1k`, `kmalloc-rnd-03-64`.
pub(super) fn kmalloc_size(name: &str) -> Option<u32> {
    let size = name.strip_prefix("kmalloc-")?.rsplit('-').next()?;
    match size.strip_suffix('k') {
        Some(kib) => kib.parse::<u32>().ok()?.checked_mul(1024),
        None => size.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Growing, MOST_WATCHED, Pace, Recent, Windows, kmalloc_size, sizes};
    use crate::kernel_memory::Slab;

    fn grows(counts: &[u64]) -> bool {
        let mut recent = Recent::default();
        let mut grew = None;
        for (place, objects) in counts.iter().enumerate() {
            let slab = Slab {
                name: "filp".to_owned(),
                objects: *objects,
                object_bytes: 192,
            };
            grew = recent.note(place as f64 * 2.0, &slab);
        }
        grew.is_some()
    }

    #[test]
    fn what_comes_and_goes_opens_no_window() {
        assert!(grows(&[1000, 1400, 1800]));
        assert!(grows(&[1000, 1400, 1390, 1800]));
        assert!(!grows(&[1000, 1400]));
        assert!(!grows(&[1000, 900, 1400, 1100]));
        assert!(!grows(&[1000, 1001, 1002, 1003]));
    }

    #[test]
    fn what_grows_slowly_is_found_after_a_minute() {
        let counts: Vec<u64> = (0..32).map(|look| 1000 + look * 2).collect();
        assert!(grows(counts.get(..31).unwrap_or_default()));
    }

    #[test]
    fn the_sizes_of_kmalloc_are_known_by_their_names() {
        assert_eq!(kmalloc_size("kmalloc-96"), Some(96));
        assert_eq!(kmalloc_size("kmalloc-cg-1k"), Some(1024));
        assert_eq!(kmalloc_size("kmalloc-rnd-03-64"), Some(64));
        assert_eq!(kmalloc_size("filp"), None);
        let names = ["kmalloc-cg-192", "filp", "kmalloc-192"].map(str::to_owned);
        assert_eq!(
            sizes(names.iter())
                .iter()
                .filter(|size| **size != 0)
                .count(),
            1
        );
    }

    #[test]
    fn what_comes_by_the_thousands_is_followed_by_some_and_a_leak_by_each() {
        let paced = |per_step: u64| {
            let mut pace = Pace::FIRST;
            for step in 1..100 {
                pace.note(step * per_step, 0.2);
            }
            pace.shift
        };
        assert_eq!(paced(80), 0);
        assert!((3..=7).contains(&paced(5000)), "{}", paced(5000));
        assert_eq!(paced(u64::from(u32::MAX)), 10);
        // A loop of open and close slowed down by a third for a second, in which one more of two was left out five times.
        let mut pace = Pace::default();
        pace.note(50_000, 0.2);
        assert_eq!(pace.shift, 9);
    }

    #[test]
    fn what_grows_fastest_is_watched() {
        let mut windows = Windows::new();
        let now = Instant::now();
        let growing = (0_u32..20)
            .map(|number| Growing {
                name: format!("cache{number}"),
                bytes_per_s: f64::from(number),
            })
            .collect();
        windows.note(growing, now);
        assert_eq!(windows.watched.len(), MOST_WATCHED);
        assert!(windows.watched.contains_key("cache19"));
        windows.note(Vec::new(), now + Duration::from_secs(60));
        assert!(windows.watched.is_empty());
    }
}
