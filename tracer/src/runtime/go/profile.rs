//! The heap profile that Go's runtime keeps of itself (src/runtime/mprof.go): of each stack and size how many of the blocks that were
//! sampled there were allocated and freed, as of the last collection. Scaled as runtime/pprof does.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{bytes::word, pieces::Pieces, program::Places};
use crate::heap::Memory;

/// `bucket`: `next`, `allnext`, `typ`, `hash`, `size`, `nstk`; then the stack and the record.
const NEXT: usize = 8;
const KIND: usize = 16;
const SIZE: usize = 32;
const DEPTH: usize = 40;
const STACK: usize = 48;
/// `memProfile`.
const OF_MEMORY: u64 = 1;
/// Cycles of `memRecord` that are not published, in turn.
const FUTURE: usize = 3;

/// The most buckets that are read: real programs have some thousands.
const MOST_BUCKETS: usize = 1 << 16;
/// No block is larger, bytes.
const LARGEST: u64 = 1 << 47;
/// The largest rate that is taken for one, bytes.
const LARGEST_RATE: u64 = 1 << 31;
/// How often a profile is read anew that was published meanwhile.
const TRIES: usize = 3;

/// What was sampled of a stack and a size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Where it lies, which tells it from others: it stays until the process ends.
    pub address: u64,
    /// Bytes of each of its blocks.
    pub size: u64,
    /// Where calls return to, leaf first; an entry for each inlined call.
    pub stack: Vec<u64>,
    /// Blocks sampled, as of the last collection.
    pub allocs: u64,
    /// Those of them that it found free.
    pub frees: u64,
    /// Blocks sampled since.
    pub pending: u64,
    /// Of these, those that were sampled before the collection that is not published yet, as the next is to be over before; and what it has found
    /// free so far: what it finds is complete when all is swept.
    pub swept: Swept,
}

/// What a collection makes of blocks that are not published yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// Blocks sampled before it, and after the one before.
    pub allocs: u64,
    /// Blocks of any age that it found free.
    pub frees: u64,
}

/// The profile at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapProfile {
    /// One block is sampled for so many bytes in the mean; 0: none is.
    pub rate: u64,
    /// How many collections there have been, modulo a large number.
    pub cycle: u32,
    /// The newest first.
    pub buckets: Vec<Bucket>,
    /// There were more buckets than are read.
    pub is_cut: bool,
}

impl Places {
    /// How many collections the profile knows of, modulo a large number; and whether the last of them is in it.
    #[must_use]
    pub fn cycle(&self, memory: &dyn Memory, bias: u64) -> Option<(u32, bool)> {
        let mut bytes = [0; 4];
        let read = memory.read(self.cycle.wrapping_add(bias), &mut bytes);
        let value = (read == bytes.len()).then(|| u32::from_le_bytes(bytes))?;
        Some((value >> 1, value & 1 != 0))
    }

    /// The rate at which blocks are sampled, bytes; 0: none is.
    #[must_use]
    pub fn rate(&self, memory: &dyn Memory, bias: u64) -> Option<u64> {
        // The other variables of that function are addresses.
        let read = |at: &u64| memory.word(at.wrapping_add(bias));
        let rates = self.rates.iter().filter_map(read);
        rates.filter(|rate| *rate < LARGEST_RATE).max()
    }

    /// Reads the profile as it is now; `None` where the process is gone, or what is there is none.
    #[must_use]
    pub fn heap_profile(&self, memory: &dyn Memory, bias: u64) -> Option<HeapProfile> {
        for _ in 0..TRIES {
            let before = self.cycle(memory, bias)?;
            let (buckets, is_cut) = self.read_buckets(memory, bias, before.0)?;
            // Published meanwhile, half of it would be of before.
            if self.cycle(memory, bias)? == before {
                return Some(HeapProfile {
                    rate: self.rate(memory, bias)?,
                    cycle: before.0,
                    buckets,
                    is_cut,
                });
            }
        }
        None
    }

    fn read_buckets(
        &self,
        memory: &dyn Memory,
        bias: u64,
        cycle: u32,
    ) -> Option<(Vec<Bucket>, bool)> {
        let pieces = Pieces::new(memory);
        let mut buckets = Vec::new();
        let mut seen = HashSet::new();
        let mut next = memory.word(self.buckets.wrapping_add(bias))?;
        while next != 0 {
            if !seen.insert(next) {
                // No list of the runtime's leads back.
                return None;
            }
            if buckets.len() == MOST_BUCKETS {
                return Some((buckets, true));
            }
            let (bucket, following) = self.read_bucket(&pieces, next, cycle)?;
            buckets.push(bucket);
            next = following;
        }
        if has_no_collection(&buckets) {
            // As runtime.MemProfile does: with none so far, all that was sampled is in use.
            for bucket in &mut buckets {
                bucket.allocs = std::mem::take(&mut bucket.pending);
                bucket.swept = Swept::default();
            }
        }
        Some((buckets, false))
    }

    fn read_bucket(&self, pieces: &Pieces<'_>, address: u64, cycle: u32) -> Option<(Bucket, u64)> {
        let head = pieces.read(address, STACK)?;
        let depth = word(&head, DEPTH).filter(|depth| *depth <= self.layout.deepest)?;
        let size = word(&head, SIZE).filter(|size| *size < LARGEST)?;
        if word(&head, KIND)? != OF_MEMORY {
            return None;
        }
        let depth = usize::try_from(depth).ok()?;
        let record_words = self.layout.cycle_words * (1 + FUTURE);
        let rest = address.checked_add(STACK as u64)?;
        let rest = pieces.read(rest, 8 * (depth + record_words))?;
        let (words, _) = rest.as_chunks::<8>();
        let stack = words.iter().take(depth).map(|it| u64::from_le_bytes(*it));
        let record = rest.get(8 * depth..)?;
        let (allocs, frees, pending, swept) = counts(record, self.layout.cycle_words, cycle)?;
        let bucket = Bucket {
            address,
            size,
            stack: stack.collect(),
            allocs,
            frees: frees.min(allocs),
            pending,
            swept,
        };
        Some((bucket, word(&head, NEXT)?))
    }
}

/// What a `memRecord` says after so many collections: sampled and found free as of the last that is published, sampled since, and what of that
/// the last has looked at.
fn counts(record: &[u8], cycle_words: usize, cycle: u32) -> Option<(u64, u64, u64, Swept)> {
    // The cycle that is being published belongs to what is.
    let flushed = usize::try_from(cycle).ok()? % FUTURE;
    // `mProf_Free` puts there what the last collection finds free, and `mProf_Malloc` what was born before it.
    let next = (flushed + 1) % FUTURE;
    let mut swept = Swept::default();
    let (mut allocs, mut frees, mut pending) = (0_u64, 0_u64, 0_u64);
    for part in 0..=FUTURE {
        let at = 8 * part * cycle_words;
        let (born, gone) = (word(record, at)?, word(record, at + 8)?);
        if part == 0 || part - 1 == flushed {
            allocs = allocs.checked_add(born)?;
            frees = frees.checked_add(gone)?;
        } else {
            pending = pending.checked_add(born)?;
            if part - 1 == next {
                swept = Swept {
                    allocs: born,
                    frees: gone,
                };
            }
        }
    }
    Some((allocs, frees, pending, swept))
}

/// Whether nothing was published so far.
fn has_no_collection(buckets: &[Bucket]) -> bool {
    buckets.iter().all(|it| it.allocs == 0 && it.frees == 0)
}

/// So many blocks that were sampled stand for this many, with these bytes (`scaleHeapSample` of runtime/pprof).
#[must_use]
pub fn scaled(sampled: u64, size: u64, rate: u64) -> (u64, u64) {
    if sampled == 0 || size == 0 {
        return (0, 0);
    }
    let bytes = sampled.saturating_mul(size);
    if rate <= 1 {
        return (sampled, bytes);
    }
    let scale = 1.0 / (1.0 - (-(size as f64) / rate as f64).exp());
    (
        (sampled as f64 * scale) as u64,
        (bytes as f64 * scale) as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::{Swept, counts};

    #[test]
    fn what_the_last_collection_had_found_free_was_known_with_the_next_only() {
        // Published, and three cycles in turn: allocated and freed.
        let record: Vec<u8> = [(100_u64, 60_u64), (7, 3), (20, 5), (9, 0)]
            .iter()
            .flat_map(|(allocs, frees)| [*allocs, *frees])
            .flat_map(u64::to_le_bytes)
            .collect();
        // In cycle 3 the first of them is what is published; the second waits for the next collection, and the third is of now.
        let swept = Swept {
            allocs: 20,
            frees: 5,
        };
        assert_eq!(counts(&record, 2, 3), Some((107, 63, 29, swept)));
        let swept = Swept {
            allocs: 9,
            frees: 0,
        };
        assert_eq!(counts(&record, 2, 4), Some((120, 65, 16, swept)));
        assert_eq!(counts(record.get(..40).unwrap_or_default(), 2, 3), None);
    }
}
