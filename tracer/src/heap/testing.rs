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
const BYTES: u64 = 0x20000;
/// The main arena's place in the data.
pub(super) const ARENA: u64 = DATA + 0x640;

/// A glibc heap that grows chunk by chunk, as a program's would.
#[derive(Clone, Debug)]
pub(super) struct MadeUp {
    pub(super) image: Image,
    next: u64,
}

impl MadeUp {
    /// An empty heap, with the first thread's cache as its first chunk.
    pub(super) fn new() -> Self {
        let mut image = Image::default();
        for start in [DATA, HEAP, STACK] {
            image.0.insert(start, vec![0; BYTES as usize]);
        }
        for bin in 0..127 {
            let at = ARENA + 112 + bin * 16;
            image.put(at, at - 16);
            image.put(at + 8, at - 16);
        }
        image.put(ARENA + 2160, ARENA);
        image.put(ARENA + 2184, BYTES);
        image.put(ARENA + 2192, BYTES);
        let mut heap = Self { image, next: HEAP };
        heap.chunk(0x290, true);
        heap.put_top();
        heap
    }

    fn put_top(&mut self) {
        self.image.put(ARENA + 96, self.next);
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
        self.image.put(block, ARENA + 96);
        self.image.put(block + 8, ARENA + 96);
        block
    }

    /// Puts blocks of one size into the first thread's cache: the last is the first to be handed out.
    pub(super) fn cache(&mut self, size: u64, blocks: &[u64]) {
        let bin = (size - 32) / 16;
        let cache = HEAP + 16;
        let mut next = 0;
        for block in blocks {
            self.image.put(*block, next ^ (*block >> 12));
            next = *block;
        }
        self.image.put(cache + 128 + bin * 8, next);
        // Counts are of two bytes: four in a word.
        let at = cache + bin * 2 / 8 * 8;
        let word = self.image.word(at).unwrap_or(0);
        let shift = bin * 2 % 8 * 8;
        self.image.put(at, word | (blocks.len() as u64) << shift);
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
