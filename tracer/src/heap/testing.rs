//! Heaps that are made up, for tests: an image of memory, and a small glibc heap in it.

use std::collections::BTreeMap;

use super::memory::{Memory, Region, RegionKind};

/// Memory that is made up: pieces by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Image(pub(super) BTreeMap<u64, Vec<u8>>);

impl Image {
    /// Puts a word somewhere in a piece that there is.
    pub(super) fn put(&mut self, address: u64, word: u64) {
        if let Some((start, bytes)) = self.0.range_mut(..=address).next_back() {
            let at = (address - start) as usize;
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

impl Memory for Image {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let Some((start, bytes)) = self.0.range(..=address).next_back() else {
            return 0;
        };
        let at = usize::try_from(address - start).unwrap_or(usize::MAX);
        let from = bytes.get(at.min(bytes.len())..).unwrap_or_default();
        let length = from.len().min(buffer.len());
        buffer
            .iter_mut()
            .zip(from)
            .for_each(|(to, from)| *to = *from);
        length
    }
}

/// Where the made-up process has its libc's data, its heap and its stack.
pub(super) const DATA: u64 = 0x7f00_0000_0000;
pub(super) const HEAP: u64 = 0x5500_0000_0000;
pub(super) const STACK: u64 = 0x7fff_0000_0000;
pub(super) const BYTES: u64 = 0x20000;
/// The main arena's place in the data.
pub(super) const ARENA: u64 = DATA + 0x640;

/// What versions of glibc differ in, as `ptype /o` of their debug information shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Libc {
    /// The offset of `bins` in `struct malloc_state`.
    pub(super) bins: u64,
    /// Bins of a thread's cache.
    pub(super) cache_bins: u64,
    /// How many blocks there is room for in each: the numbers are what is left of it. `None`: the numbers are of blocks.
    pub(super) room: Option<u64>,
}

pub(super) const GLIBC_2_41: Libc = Libc {
    bins: 112,
    cache_bins: 64,
    room: None,
};
pub(super) const GLIBC_2_42: Libc = Libc {
    cache_bins: 76,
    room: Some(7),
    ..GLIBC_2_41
};
pub(super) const GLIBC_2_43: Libc = Libc {
    bins: 24,
    room: Some(16),
    ..GLIBC_2_42
};

/// A glibc heap that grows chunk by chunk, as a program's would.
#[derive(Clone, Debug)]
pub(super) struct MadeUp {
    pub(super) image: Image,
    libc: Libc,
    next: u64,
}

impl MadeUp {
    /// An empty heap, with the first thread's cache as its first chunk.
    pub(super) fn new() -> Self {
        Self::of(GLIBC_2_41)
    }

    /// The same of a version.
    pub(super) fn of(libc: Libc) -> Self {
        let mut heap = Self::without_cache(libc);
        heap.chunk((libc.cache_bins * 10 + 8).next_multiple_of(16), true);
        heap.begin_cache(HEAP + 16);
        heap
    }

    /// An empty heap.
    pub(super) fn without_cache(libc: Libc) -> Self {
        let mut image = Image::default();
        for start in [DATA, HEAP, STACK] {
            image.0.insert(start, vec![0; BYTES as usize]);
        }
        let bins = ARENA + libc.bins;
        for bin in 0..127 {
            let at = bins + bin * 16;
            image.put(at, at - 16);
            image.put(at + 8, at - 16);
        }
        image.put(bins + 2048, ARENA);
        image.put(bins + 2072, BYTES);
        image.put(bins + 2080, BYTES);
        let mut heap = Self {
            image,
            libc,
            next: HEAP,
        };
        heap.put_top();
        heap
    }

    /// Makes a block a thread's cache with nothing in it.
    pub(super) fn begin_cache(&mut self, cache: u64) {
        for bin in 0..self.libc.cache_bins {
            self.put_number(cache, bin, self.libc.room.unwrap_or(0));
        }
    }

    /// Numbers are of two bytes: four in a word.
    fn put_number(&mut self, cache: u64, bin: u64, number: u64) {
        let at = cache + bin * 2 / 8 * 8;
        let word = self.image.word(at).unwrap_or(0);
        let shift = bin * 2 % 8 * 8;
        let others = word & !(0xffff << shift);
        self.image.put(at, others | number << shift);
    }

    fn put_top(&mut self) {
        self.image.put(ARENA + self.libc.bins - 16, self.next);
        self.image
            .put(self.next + 8, (HEAP + BYTES - self.next) | 1);
    }

    fn chunk(&mut self, size: u64, is_used: bool) -> u64 {
        let chunk = self.next;
        let flags = self.image.word(chunk + 8).unwrap_or(1) & 1;
        let flags = if chunk == HEAP { 1 } else { flags };
        self.image.put(chunk + 8, size | flags);
        self.next += size;
        self.put_top();
        let top = HEAP + BYTES - self.next;
        self.image.put(self.next + 8, top | u64::from(is_used));
        if !is_used {
            self.image.put(self.next, size);
        }
        chunk + 16
    }

    /// A block in use, of a chunk of `size` bytes.
    pub(super) fn used(&mut self, size: u64) -> u64 {
        self.chunk(size, true)
    }

    /// A free chunk, as it stands in a bin.
    pub(super) fn free(&mut self, size: u64) -> u64 {
        let block = self.chunk(size, false);
        let unsorted = ARENA + self.libc.bins - 16;
        self.image.put(block, unsorted);
        self.image.put(block + 8, unsorted);
        block
    }

    /// Puts blocks of one size into the first thread's cache: the last is the first to be handed out.
    pub(super) fn cache(&mut self, size: u64, blocks: &[u64]) {
        self.cache_in(HEAP + 16, (size - 32) / 16, blocks);
    }

    /// Puts blocks into a bin of a cache.
    pub(super) fn cache_in(&mut self, cache: u64, bin: u64, blocks: &[u64]) {
        let mut next = 0;
        for block in blocks {
            self.image.put(*block, next ^ (*block >> 12));
            next = *block;
        }
        let heads = cache + 2 * self.libc.cache_bins;
        self.image.put(heads + bin * 8, next);
        let count = blocks.len() as u64;
        let number = self.libc.room.map_or(count, |room| room - count);
        self.put_number(cache, bin, number);
    }

    /// Puts blocks of one size into the arena's fastbin.
    pub(super) fn fastbin(&mut self, size: u64, blocks: &[u64]) {
        let mut next = 0;
        for block in blocks {
            self.image.put(*block, next ^ (*block >> 12));
            next = *block - 16;
        }
        self.image.put(ARENA + 16 + (size - 32) / 16 * 8, next);
    }

    /// The regions of the process.
    pub(super) fn regions(&self) -> Vec<Region> {
        [
            (HEAP, RegionKind::Brk, "[heap]"),
            (DATA, RegionKind::Data, "/lib/libc.so.6"),
            (STACK, RegionKind::Stack, "[stack]"),
        ]
        .into_iter()
        .map(|(start, kind, name)| Region {
            range: start..start + BYTES,
            present: std::iter::once(start..start + BYTES).collect(),
            kind,
            name: name.to_owned(),
        })
        .collect()
    }
}
