//! From two readings of a block's memory to whether the block can still be the same.

use hashbrown::HashMap;

use super::Survivor;
use crate::sizes::chunk_for;

/// What was read of a block and around it, without its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The word before the block: in glibc the chunk's size and three flags (malloc/malloc.c, `struct malloc_chunk`).
    pub header: u64,
    /// The size word of the chunk behind it, where the header is plausible and it could be read.
    pub next_header: Option<u64>,
    /// A hash of the first 128 bytes, or fewer where the block is smaller.
    pub fingerprint: u64,
    /// All words of these bytes are the same.
    pub is_constant: bool,
    /// A hash of the second word.
    pub second_word: u64,
    /// The second word looks like a random number: neither text nor address nor a small or round number.
    pub second_is_random: bool,
}

/// `PREV_INUSE`: the chunk before this one is in use (malloc/malloc.c).
const PREV_INUSE: u64 = 1;
/// `IS_MMAPPED`: the chunk is a mapping of its own.
const IS_MMAPPED: u64 = 2;
/// `SIZE_BITS`: all flags.
const FLAGS: u64 = 7;
/// `MINSIZE`: the smallest chunk; a remainder below it stays part of the chunk.
const SMALLEST: u64 = 32;
/// How much larger than asked for a chunk with its own mapping can be: a page, and its header.
const MAPPED_SLACK: u64 = 4096 + 32;

/// The size of a block's chunk. `None` where nothing was read of it, or its allocator is another.
pub(super) fn chunk_of(survivor: &Survivor, first: Option<&Reading>) -> Option<u64> {
    first
        .filter(|first| survivor.has_header() && header_fits(survivor, first.header))
        .map(|first| first.header & !FLAGS)
}

/// The bytes that its allocator takes for a block: what its chunk says, which may be more than was needed, for a remainder too small to be a chunk
/// stays with it; else what it would need.
pub(super) fn taken_for(survivor: &Survivor, first: Option<&Reading>) -> u64 {
    chunk_of(survivor, first).unwrap_or_else(|| survivor.rounding.taken_for(survivor.size))
}

/// Whether the header is one of a chunk for the block.
fn header_fits(survivor: &Survivor, header: u64) -> bool {
    let size = header & !FLAGS;
    let least = chunk_for(survivor.size);
    let slack = if header & IS_MMAPPED != 0 {
        MAPPED_SLACK
    } else {
        SMALLEST
    };
    size.is_multiple_of(16) && size >= least && size <= least.saturating_add(slack)
}

/// How many freed blocks must hold the same word for it to be glibc's mark.
const LEAST_FOR_KEY: u32 = 4;

/// The numbers that glibc writes into blocks in its per-thread caches (`tcache_key`, malloc/malloc.c since 2.34: one
/// random number for the process), as hashes: found by being in many blocks whose contents changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    known: Vec<u64>,
}

impl Keys {
    /// Looks at blocks that have changed since the first look.
    pub(super) fn learn(&mut self, pairs: impl Iterator<Item = (Reading, Reading)>) {
        let mut seen: HashMap<u64, u32> = HashMap::new();
        for (first, now) in pairs {
            if now.second_is_random
                && now.second_word != first.second_word
                && now.fingerprint != first.fingerprint
            {
                *seen.entry(now.second_word).or_default() += 1;
            }
        }
        for (word, count) in seen {
            if count >= LEAST_FOR_KEY && !self.known.contains(&word) {
                self.known.push(word);
            }
        }
    }

    /// What a look says of a block.
    pub(super) fn fate(&self, survivor: &Survivor, first: Option<&Reading>, now: &Reading) -> Fate {
        if survivor.has_header() {
            if !header_fits(survivor, now.header) {
                return Fate::Gone;
            }
            if now.header & IS_MMAPPED == 0
                && now.next_header.is_some_and(|next| next & PREV_INUSE == 0)
            {
                return Fate::Gone;
            }
            if self.known.contains(&now.second_word) {
                return Fate::Gone;
            }
            if first.is_some_and(|first| first.header & !PREV_INUSE != now.header & !PREV_INUSE) {
                return Fate::Gone;
            }
        }
        if first.is_none_or(|first| first.fingerprint == now.fingerprint) {
            Fate::Same
        } else if survivor.has_header() {
            Fate::Changed
        } else {
            Fate::Gone
        }
    }
}

/// What becomes of a block, as far as its memory tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing says that it is gone.
    Same,
    /// A block of its size is there and in use, with other contents: the program wrote to it, or it was freed and its place taken.
    Changed,
    /// It cannot be there any more.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::{Fate, Keys, Reading, Survivor, taken_for};

    fn block(size: u64) -> Survivor {
        Survivor {
            address: 0x5555_0000_1010,
            size,
            born_ns: 0,
            site: 1,
            rounding: crate::Rounding::Glibc,
        }
    }

    fn reading(header: u64, next: u64, fingerprint: u64) -> Reading {
        Reading {
            header,
            next_header: Some(next),
            fingerprint,
            ..Reading::default()
        }
    }

    #[test]
    fn a_block_lives_while_its_chunk_is_in_use_and_its_contents_stay() {
        let keys = Keys::default();
        let first = reading(0x51, 0x21, 7);
        let fate = |now| keys.fate(&block(72), Some(&first), &now);
        assert_eq!(fate(first), Fate::Same);
        // Its predecessor was freed: nothing to it.
        assert_eq!(fate(reading(0x50, 0x21, 7)), Fate::Same);
        // The chunk behind says that it is free; contents changed; the chunk grew.
        assert_eq!(fate(reading(0x51, 0x20, 7)), Fate::Gone);
        assert_eq!(fate(reading(0x51, 0x21, 8)), Fate::Changed);
        assert_eq!(fate(reading(0x51, 0x20, 8)), Fate::Gone);
        assert_eq!(fate(reading(0x61, 0x21, 7)), Fate::Gone);
    }

    #[test]
    fn a_chunk_must_fit_the_block_at_the_first_look() {
        let keys = Keys::default();
        let fits =
            |size, header| keys.fate(&block(size), None, &reading(header, 1, 7)) == Fate::Same;
        assert!(fits(0, 0x21) && fits(24, 0x21) && fits(25, 0x31));
        // A remainder that is too small to be split off.
        assert!(fits(24, 0x31));
        assert!(!fits(25, 0x21) && !fits(24, 0x111) && !fits(24, 0));
        // A mapping of its own, by pages.
        assert!(fits(200_000, 0x31002));
        assert!(!fits(200_000, 0x91002));
    }

    #[test]
    fn a_chunk_that_kept_a_remainder_takes_more_than_was_asked_for() {
        assert_eq!(taken_for(&block(72), None), 80);
        assert_eq!(taken_for(&block(72), Some(&reading(0x61, 0x21, 7))), 96);
        assert_eq!(taken_for(&block(72), Some(&reading(0x1001, 0x21, 7))), 80);
    }

    #[test]
    fn the_mark_of_freed_blocks_is_found_and_used() {
        let mut keys = Keys::default();
        let first = reading(0x51, 0x21, 7);
        let freed = Reading {
            fingerprint: 8,
            second_word: 99,
            second_is_random: true,
            ..first
        };
        keys.learn([(first, freed); 3].into_iter());
        assert_eq!(keys.fate(&block(72), None, &freed), Fate::Same);
        keys.learn([(first, freed); 4].into_iter());
        assert_eq!(keys.fate(&block(72), None, &freed), Fate::Gone);
        assert_eq!(keys.fate(&block(72), None, &first), Fate::Same);
    }

    #[test]
    fn without_a_header_only_contents_count() {
        let keys = Keys::default();
        let other = Survivor {
            rounding: crate::Rounding::Unknown,
            ..block(72)
        };
        let first = reading(0, 0, 7);
        let fate = |before, now| keys.fate(&other, before, &now);
        assert_eq!(fate(None, first), Fate::Same);
        assert_eq!(fate(Some(&first), reading(5, 6, 7)), Fate::Same);
        assert_eq!(fate(Some(&first), reading(0, 0, 8)), Fate::Gone);
    }
}
