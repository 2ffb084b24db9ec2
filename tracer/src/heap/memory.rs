//! The memory of a process as a heap reader sees it: regions, and bytes at addresses. Must not know where the bytes come from.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes of a pointer on the machines that are supported.
pub(super) const WORD: u64 = 8;

/// Somebody who reads the memory of a process.
pub trait Memory {
    /// Reads from an address on. Gives how many bytes were read from there: fewer than asked for where memory ends or cannot be
    /// read, none where nothing is.
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize;

    /// The word at an address.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(address, &mut bytes) == bytes.len()).then(|| u64::from_le_bytes(bytes))
    }

    /// The bytes before the first zero at an address; `None` where there is no zero within `most` bytes.
    fn string(&self, address: u64, most: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; most];
        let length = self.read(address, &mut bytes);
        bytes.truncate(length);
        let end = bytes.iter().position(|byte| *byte == 0)?;
        bytes.truncate(end);
        Some(bytes)
    }
}

/// What a region is to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionKind {
    /// The data segment that `brk` moves.
    Brk,
    /// Anonymous memory of no other kind.
    Anonymous,
    /// Memory of a mapped file that the process has or may have changed: `.data`, `.bss` behind it, relocated constants.
    Data,
    /// A thread's stack.
    Stack,
    /// Shared with others.
    Shared,
    /// Code and constants of a mapped file: no roots, but types are described there.
    Constant,
}

/// A range of addresses of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its addresses, whole pages.
    pub range: Range<u64>,
    /// Of them, what is in memory or swapped out, in order: what else there is was never written to.
    pub present: Vec<Range<u64>>,
    /// What it is.
    pub kind: RegionKind,
    /// The file's path, or what a person would call it.
    pub name: String,
}

impl Region {
    /// Bytes that are in memory or swapped out.
    #[must_use]
    pub fn present_bytes(&self) -> u64 {
        self.present
            .iter()
            .map(|range| range.end.saturating_sub(range.start))
            .fold(0, u64::saturating_add)
    }
}

/// The region that an address lies in; `regions` are in order.
#[must_use]
pub(super) fn region_of(regions: &[Region], address: u64) -> Option<&Region> {
    let behind = regions.partition_point(|region| region.range.start <= address);
    let region = regions.get(behind.checked_sub(1)?)?;
    region.range.contains(&address).then_some(region)
}

/// Reads bytes in pieces, one after the other, and hands each whole word to somebody with its address.
pub(super) fn each_word(memory: &dyn Memory, range: Range<u64>, mut visit: impl FnMut(u64, u64)) {
    let mut window = Window::new(memory, range.start, range.end);
    let mut address = range.start;
    while address < range.end {
        let Some(bytes) = window.from(address) else {
            // A page that is gone meanwhile; the next may be there.
            address = (address | (PAGE - 1)).saturating_add(1);
            continue;
        };
        let whole = bytes.len() / WORD as usize * WORD as usize;
        if whole == 0 {
            return;
        }
        for (place, word) in bytes.chunks_exact(WORD as usize).enumerate() {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            visit(address + place as u64 * WORD, word);
        }
        address += whole as u64;
    }
}

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// So many bytes are read at once: enough that the call costs little, few enough to stay in the processor's cache.
const PIECE: usize = 1 << 18;

/// A part of memory that moves forward: what a walk from low to high addresses looks through.
pub(super) struct Window<'memory> {
    memory: &'memory dyn Memory,
    bytes: Vec<u8>,
    start: u64,
    length: usize,
    end: u64,
}

impl<'memory> Window<'memory> {
    /// A window on the addresses of a range.
    pub(super) fn new(memory: &'memory dyn Memory, start: u64, end: u64) -> Self {
        let size = end.saturating_sub(start).min(PIECE as u64) as usize;
        Self {
            memory,
            bytes: vec![0; size],
            start,
            length: 0,
            end,
        }
    }

    /// What there is from an address on, at least a word; `None` where nothing can be read.
    pub(super) fn from(&mut self, address: u64) -> Option<&[u8]> {
        if !self.holds(address, WORD) {
            self.move_to(address);
        }
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes
            .get(offset..self.length)
            .filter(|bytes| bytes.len() >= WORD as usize)
    }

    /// The two words at an address.
    pub(super) fn pair(&mut self, address: u64) -> Option<(u64, u64)> {
        if !self.holds(address, 2 * WORD) {
            self.move_to(address);
        }
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let both = self.bytes.get(offset..self.length)?.first_chunk::<16>()?;
        let (one, other) = both.split_first_chunk::<8>()?;
        Some((
            u64::from_le_bytes(*one),
            u64::from_le_bytes(*other.first_chunk()?),
        ))
    }

    /// Moves to an address where not so many bytes from there are held.
    pub(super) fn hold(&mut self, address: u64, count: u64) {
        if !self.holds(address, count) {
            self.move_to(address);
        }
    }

    /// Reads again what stands at an address.
    pub(super) fn refresh(&mut self, address: u64) {
        self.move_to(address);
    }

    fn holds(&self, address: u64, count: u64) -> bool {
        address >= self.start
            && address
                .checked_add(count)
                .is_some_and(|end| end <= self.start.saturating_add(self.length as u64))
    }

    fn move_to(&mut self, address: u64) {
        let most = self
            .end
            .saturating_sub(address)
            .min(self.bytes.len() as u64) as usize;
        self.start = address;
        self.length = self
            .bytes
            .get_mut(..most)
            .map_or(0, |bytes| self.memory.read(address, bytes));
    }
}
