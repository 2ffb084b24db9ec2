//! A simulated program and its allocator: sites that allocate at random times, blocks that are freed when their time has come, chunks that are
//! reused, split and coalesced.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use super::super::{Reading, Survivor};

/// How long blocks live.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lifetime {
    /// So many seconds.
    Fixed(f64),
    /// With this mean.
    Exponential(f64),
    /// Most with a short mean, a share with a long one.
    Bimodal { short: f64, long: f64, share: f64 },
    /// Until so many younger ones are there.
    Cache(usize),
    /// For ever.
    Forever,
}

/// What the program writes into a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Contents {
    /// Something else into each.
    Distinct,
    /// Nothing but zeros.
    Zero,
    /// The same into all of a site.
    SameForSite,
}

/// When freed memory is given out again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reuse {
    /// The last freed first, as caches of a thread do.
    AtOnce,
    /// The first freed first, and only when a thousand others wait.
    Late,
    /// Never.
    Never,
}

/// A call stack that allocates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Blocks a second, at random times.
    pub(super) rate: f64,
    pub(super) size: u64,
    pub(super) lifetime: Lifetime,
    pub(super) contents: Contents,
}

/// What a probe would see.
pub(super) enum Event {
    Allocated {
        site: u32,
        address: u64,
        size: u64,
        at: f64,
    },
    Freed {
        address: u64,
    },
}

/// Numbers that look random (xorshift64*, Vigna 2016).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(leakscope_common::mix(seed.wrapping_add(0x9e37)) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Between 0 and 1.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }
}

/// A chunk as the allocator keeps it.
#[derive(Clone, Copy)]
struct Chunk {
    size: u64,
    in_use: bool,
    /// In a thread's cache: its neighbour is not told that it is free.
    is_cached: bool,
    /// A hash of what is in it.
    contents: u64,
    is_constant: bool,
    second: u64,
    site: u32,
    bytes: u64,
    counts: bool,
}

/// The program.
pub(super) struct Program {
    sites: Vec<Site>,
    reuse: Reuse,
    random: Random,
    now: f64,
    /// Times in nanoseconds; births by site, deaths by address and generation.
    births: BinaryHeap<Reverse<(u64, u32)>>,
    deaths: BinaryHeap<Reverse<(u64, u64)>>,
    caches: Vec<VecDeque<u64>>,
    chunks: BTreeMap<u64, Chunk>,
    free: BTreeMap<u64, VecDeque<u64>>,
    top: u64,
    counts: bool,
    tick: u64,
}

/// How long the program has run when the trace begins, seconds.
const BEFORE: f64 = 12.0;
const HEADER: u64 = 16;
/// The word that marks cached chunks.
const KEY: u64 = 0x9e37_79b9_7f4a_7c15;

fn time(seconds: f64) -> u64 {
    ((seconds + BEFORE) * 1e9).max(0.0) as u64
}

impl Program {
    pub(super) fn new(sites: Vec<Site>, reuse: Reuse, seed: u64) -> Self {
        let mut program = Self {
            caches: vec![VecDeque::new(); sites.len()],
            sites,
            reuse,
            random: Random::new(seed),
            now: -BEFORE,
            births: BinaryHeap::new(),
            deaths: BinaryHeap::new(),
            chunks: BTreeMap::new(),
            free: BTreeMap::new(),
            top: 0x5555_0000_0000,
            counts: false,
            tick: 0,
        };
        for site in 0..program.sites.len() {
            program.plan_birth(site as u32);
        }
        program
    }

    fn plan_birth(&mut self, site: u32) {
        let wait = self
            .random
            .exponential(1.0 / self.sites[site as usize].rate);
        self.births.push(Reverse((time(self.now + wait), site)));
    }

    /// Blocks count from now on.
    pub(super) fn begin_truth(&mut self) {
        self.counts = true;
    }

    /// Bytes of each site that were allocated since then and are in use.
    pub(super) fn truth(&self) -> Vec<u64> {
        let mut sums = vec![0; self.sites.len()];
        for chunk in self.chunks.values() {
            if chunk.in_use && chunk.counts {
                sums[chunk.site as usize] += chunk.bytes;
            }
        }
        sums
    }

    /// Lets it run, and tells what its allocator does.
    pub(super) fn run_until(&mut self, until: f64, tell: &mut dyn FnMut(Event)) {
        let end = time(until);
        loop {
            let birth = self.births.peek().map_or(u64::MAX, |next| next.0.0);
            let death = self.deaths.peek().map_or(u64::MAX, |next| next.0.0);
            let next = birth.min(death);
            if next >= end {
                break;
            }
            self.now = next as f64 / 1e9 - BEFORE;
            if death <= birth {
                if let Some(Reverse((_, address))) = self.deaths.pop() {
                    self.release(address, tell);
                }
            } else if let Some(Reverse((_, site))) = self.births.pop() {
                self.allocate(site, tell);
                self.plan_birth(site);
            }
        }
        self.now = until;
    }

    fn allocate(&mut self, site: u32, tell: &mut dyn FnMut(Event)) {
        let Site {
            size,
            lifetime,
            contents,
            ..
        } = self.sites[site as usize];
        let chunk_size = ((size + 8 + 15) & !15).max(32);
        let address = self.take(chunk_size);
        self.tick += 1;
        let (hash, second) = match contents {
            Contents::Distinct => (leakscope_common::mix(self.tick), self.tick),
            Contents::Zero => (0, 0),
            Contents::SameForSite => (u64::from(site) + 1, 7),
        };
        self.chunks.insert(
            address,
            Chunk {
                size: chunk_size,
                in_use: true,
                is_cached: false,
                contents: hash,
                is_constant: matches!(contents, Contents::Zero),
                second,
                site,
                bytes: size,
                counts: self.counts,
            },
        );
        tell(Event::Allocated {
            site,
            address,
            size,
            at: self.now,
        });
        let lives = match lifetime {
            Lifetime::Fixed(seconds) => seconds,
            Lifetime::Exponential(mean) => self.random.exponential(mean),
            Lifetime::Bimodal { short, long, share } => {
                let mean = if self.random.unit() < share {
                    long
                } else {
                    short
                };
                self.random.exponential(mean)
            }
            Lifetime::Cache(most) => {
                let cache = &mut self.caches[site as usize];
                cache.push_back(address);
                if cache.len() > most
                    && let Some(oldest) = cache.pop_front()
                {
                    self.release(oldest, tell);
                }
                return;
            }
            Lifetime::Forever => return,
        };
        if lives <= 0.0 {
            self.release(address, tell);
        } else {
            self.deaths.push(Reverse((time(self.now + lives), address)));
        }
    }

    /// A chunk of this size: a freed one, a part of a larger one that was coalesced, or a new one.
    fn take(&mut self, size: u64) -> u64 {
        let waiting = self.free.get_mut(&size).and_then(|free| match self.reuse {
            Reuse::AtOnce => free.pop_back(),
            Reuse::Late => (free.len() > 1_000).then(|| free.pop_front()).flatten(),
            Reuse::Never => None,
        });
        if let Some(address) = waiting {
            return address;
        }
        if !matches!(self.reuse, Reuse::Never) {
            let larger = self
                .free
                .range(size + 32..)
                .find(|(length, list)| **length >= 1_024 && !list.is_empty())
                .map(|(length, _)| *length);
            if let Some(length) = larger
                && let Some(address) = self.free.get_mut(&length).and_then(VecDeque::pop_front)
            {
                let rest = address + size;
                self.chunks.insert(rest, free_chunk(length - size, false));
                self.free.entry(length - size).or_default().push_back(rest);
                return address;
            }
        }
        let address = self.top + HEADER;
        self.top += size;
        address
    }

    fn release(&mut self, address: u64, tell: &mut dyn FnMut(Event)) {
        tell(Event::Freed { address });
        let Some(chunk) = self.chunks.get(&address).copied() else {
            return;
        };
        let cached = self.free.get(&chunk.size).map_or(0, VecDeque::len);
        let is_cached = chunk.size <= 1_040 && cached < 64;
        let mut freed = free_chunk(chunk.size, is_cached);
        // The first words hold the list and the mark; the rest is left as it was.
        freed.contents = leakscope_common::mix(chunk.contents ^ address);
        self.chunks.insert(address, freed);
        self.free.entry(chunk.size).or_default().push_back(address);
        if !is_cached && self.random.unit() < 0.1 {
            self.coalesce(address);
        }
    }

    /// Joins a free chunk with the one behind it, if that is free too.
    fn coalesce(&mut self, address: u64) {
        let Some(chunk) = self.chunks.get(&address).copied() else {
            return;
        };
        let behind = address + chunk.size;
        let Some(next) = self.chunks.get(&behind).copied() else {
            return;
        };
        if next.in_use || next.is_cached {
            return;
        }
        for (at, size) in [(address, chunk.size), (behind, next.size)] {
            if let Some(list) = self.free.get_mut(&size) {
                list.retain(|waiting| *waiting != at);
            }
        }
        self.chunks.remove(&behind);
        let size = chunk.size + next.size;
        self.chunks.insert(address, free_chunk(size, false));
        self.free.entry(size).or_default().push_back(address);
    }

    /// What a look from outside finds at an address.
    pub(super) fn read(&self, survivor: &Survivor) -> Option<Reading> {
        let address = survivor.address;
        let Some(chunk) = self.chunks.get(&address) else {
            // Inside of another chunk: whatever the program wrote there.
            let (_, around) = self.chunks.range(..=address).next_back()?;
            return Some(Reading {
                header: leakscope_common::mix(around.contents ^ address),
                next_header: None,
                fingerprint: leakscope_common::mix(around.contents.wrapping_add(address)),
                ..Reading::default()
            });
        };
        let in_use = chunk.in_use || chunk.is_cached;
        Some(Reading {
            header: chunk.size | 1,
            next_header: Some(0x20 | u64::from(in_use)),
            fingerprint: chunk.contents,
            is_constant: chunk.is_constant,
            second_word: leakscope_common::mix(chunk.second),
            second_is_random: chunk.second == KEY,
        })
    }
}

fn free_chunk(size: u64, is_cached: bool) -> Chunk {
    Chunk {
        size,
        in_use: false,
        is_cached,
        contents: 1,
        is_constant: false,
        second: if is_cached { KEY } else { 2 },
        site: 0,
        bytes: 0,
        counts: false,
    }
}
