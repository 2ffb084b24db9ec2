//! The live table at the ends of windows: emptied and filled by us; and the records of threads. Knows neither when a window ends nor what becomes of
//! its blocks.

use std::{mem::offset_of, sync::atomic::Ordering};

use leakscope_common::{
    Block, Bucket, HIT_SLOTS, LIVE_CLAIMED, WINDOW_BUCKETS, live_bucket_pair, live_key,
};

use super::{
    error::KernelError,
    maps::cannot_map,
    probe::Probe,
    read::{LiveBlock, each_block, key_at, remove_key, still_holds},
    shared::SharedArray,
    threads::thread_key,
};

/// A block of an earlier window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockToPut {
    /// Its address.
    pub address: u64,
    /// Its size, bytes.
    pub size: u64,
    /// The number of its site.
    pub site: u32,
}

/// A block with the bucket where it is to go, the other one where it may, and its key.
type Place = (usize, usize, u64, BlockToPut);

/// Puts a block into a bucket; `false` where that is full. In the same order as the probe: claim, fill, publish.
fn put(window: &SharedArray<Bucket>, index: usize, key: u64, block: &Block) -> bool {
    for slot in 0..leakscope_common::BUCKET_SLOTS {
        let keys = key_at(slot);
        let place = offset_of!(Bucket, blocks) + slot * size_of::<Block>();
        let Some(word) = window.word(index, keys) else {
            return false;
        };
        if word
            .compare_exchange(0, LIVE_CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            continue;
        }
        let identity = u64::from(block.site) | u64::from(block.incarnation) << 32;
        for (offset, value) in [
            (offset_of!(Block, size), block.size),
            (offset_of!(Block, born_ns), block.born_ns),
            (offset_of!(Block, site), identity),
        ] {
            if let Some(field) = window.word(index, place + offset) {
                field.store(value, Ordering::SeqCst);
            }
        }
        word.store(key, Ordering::SeqCst);
        return true;
    }
    false
}

impl Probe {
    /// Visits the live blocks of an incarnation. Blocks that come and go meanwhile may or may not be visited.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn visit_blocks_of(
        &self,
        incarnation: u32,
        mut visit: impl FnMut(LiveBlock),
    ) -> Result<(), KernelError> {
        self.each_block_of(incarnation, |_, _, _, live| visit(live))
    }

    /// Takes the live blocks of an incarnation out of the table. To be called while nothing is attached to it.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn take_blocks(
        &mut self,
        incarnation: u32,
        mut take: impl FnMut(LiveBlock),
    ) -> Result<(), KernelError> {
        self.each_block_of(incarnation, |window, index, slot, live| {
            if remove_key(window, index, slot, live_key(incarnation, live.address)) {
                take(live);
            }
        })
    }

    /// Calls back with window, bucket, slot and block.
    fn each_block_of(
        &self,
        incarnation: u32,
        mut visit: impl FnMut(&SharedArray<Bucket>, usize, usize, LiveBlock),
    ) -> Result<(), KernelError> {
        let mut visit_in = |buckets: &SharedArray<Bucket>| {
            each_block(buckets, |key, index, slot, block| {
                if block.incarnation == incarnation && still_holds(buckets, index, slot, key) {
                    let address = live_key(incarnation, key);
                    visit(buckets, index, slot, LiveBlock { address, block });
                }
            });
        };
        if self.is_windowed(incarnation) {
            visit_in(self.buckets_of_windows()?);
            return Ok(());
        }
        for window in self.live_windows() {
            visit_in(&window?);
        }
        Ok(())
    }

    /// The buckets in which the blocks of incarnations stand that are seen in windows.
    fn buckets_of_windows(&self) -> Result<&SharedArray<Bucket>, KernelError> {
        if let Some(buckets) = self.window_buckets.get() {
            return Ok(buckets);
        }
        let buckets = self
            .live
            .some(0..WINDOW_BUCKETS as usize)
            .map_err(|source| cannot_map("LIVE", source))?;
        Ok(self.window_buckets.get_or_init(|| buckets))
    }

    /// Puts blocks of earlier windows into the table, with 0 as their time of birth, so that the probe takes them out when they are freed and
    /// does not take them for ones whose free was missed. Gives those for which there is no room. To be called while nothing is attached to
    /// the incarnation.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn put_blocks(
        &mut self,
        incarnation: u32,
        blocks: impl IntoIterator<Item = BlockToPut>,
    ) -> Result<Vec<BlockToPut>, KernelError> {
        let Some(settings) = self.settings.read(0) else {
            return Ok(blocks.into_iter().collect());
        };
        let live_mask = if self.is_windowed(incarnation) {
            settings.window_mask
        } else {
            settings.live_mask
        };
        let mut refused = Vec::new();
        let mut places = Vec::new();
        for block in blocks {
            let key = live_key(incarnation, block.address);
            if leakscope_common::thin_keeps(key, settings.thin_shift) {
                let (first, second) = live_bucket_pair(key, live_mask);
                places.push((first as usize, second as usize, key, block));
            } else {
                refused.push(block);
            }
        }
        let again = self.put_sorted(incarnation, places)?;
        let second = again
            .into_iter()
            .map(|(first, second, key, block)| (second, first, key, block))
            .collect();
        let left = self.put_sorted(incarnation, second)?;
        refused.extend(left.into_iter().map(|(.., block)| block));
        Ok(refused)
    }

    /// Puts blocks into the first bucket of each, a window of the table after the other; gives those for which it is full.
    fn put_sorted(
        &self,
        incarnation: u32,
        mut places: Vec<Place>,
    ) -> Result<Vec<Place>, KernelError> {
        let mut full = Vec::new();
        let as_stored = |block: BlockToPut| Block {
            size: block.size,
            born_ns: 0,
            site: block.site,
            incarnation,
        };
        if self.is_windowed(incarnation) {
            let buckets = self.buckets_of_windows()?;
            for place in places {
                let (index, _, key, block) = place;
                if !put(buckets, index, key, &as_stored(block)) {
                    full.push(place);
                }
            }
            return Ok(full);
        }
        places.sort_unstable_by_key(|(bucket, ..)| *bucket);
        let mut window: Option<SharedArray<Bucket>> = None;
        for place in places {
            let (index, _, key, block) = place;
            let there = match window
                .take()
                .filter(|window| window.indices().contains(&index))
            {
                Some(there) => there,
                None => match self.live.window(index) {
                    Some(mapped) => mapped.map_err(|source| cannot_map("LIVE", source))?,
                    None => {
                        full.push(place);
                        continue;
                    }
                },
            };
            if !put(&there, index, key, &as_stored(block)) {
                full.push(place);
            }
            window = Some(there);
        }
        Ok(full)
    }

    /// Drops the records of these threads of a process and hands out their hits. Only once nothing is attached to it any more: a record that
    /// a program is using must not be given to another thread. A call that a detached probe saw begin and not end would hide later ones.
    pub fn take_thread_hits(&mut self, pid: u32, threads: &[u32]) -> [u64; HIT_SLOTS] {
        let mut sum = [0_u64; HIT_SLOTS];
        for thread in threads.iter().map(|thread| thread_key(pid, *thread)) {
            // One that ends meanwhile has left its hits to its process.
            if let Some(hits) = self.threads.take(thread) {
                for (to, from) in sum.iter_mut().zip(hits.counts.slots) {
                    *to += from;
                }
            }
        }
        sum
    }

    /// Calls seen of these threads of a process, by hit slot, and of its ended ones.
    #[must_use]
    pub fn hits_of(&self, pid: u32, threads: &[u32], incarnation: u32) -> [u64; HIT_SLOTS] {
        let mut sum = [0_u64; HIT_SLOTS];
        let mut add = |slots: &[u64; HIT_SLOTS]| {
            for (to, from) in sum.iter_mut().zip(slots) {
                *to += from;
            }
        };
        if let Ok(ended) = self.hits.get(&incarnation, 0) {
            add(&ended.0.slots);
        }
        // A thread that ends meanwhile can be missed; the next look has it.
        for thread in threads {
            if let Some(hits) = self.threads.hits_of(thread_key(pid, *thread))
                && hits.incarnation == incarnation
            {
                add(&hits.counts.slots);
            }
        }
        sum
    }
}
