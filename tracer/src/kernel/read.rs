//! What the probe has found, read from the shared tables: losses, sites, live blocks, hits.

use std::{
    collections::{HashMap, HashSet},
    mem::offset_of,
    sync::atomic::Ordering,
};

use leakscope_common::{
    Block, Bucket, HIT_SLOTS, HitCounts, LIVE_CLAIMED, Loss, SiteKey, SiteTotals, live_key,
    thin_keeps,
};

use super::probe::Probe;

/// A site's counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteCount {
    /// The site's number.
    pub site: u32,
    /// Whose it is.
    pub incarnation: u32,
    /// What was allocated and freed, all CPUs together.
    pub totals: SiteTotals,
}

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveBlock {
    /// Its address.
    pub address: u64,
    /// What is known of it.
    pub block: Block,
}

/// The most that the live table is thinned to: one block in 1,024 ([`thin_keeps`] knows no more).
const MAX_THIN_SHIFT: u32 = 10;

impl Probe {
    /// Every loss with its count.
    #[must_use]
    pub fn losses(&self) -> Vec<(Loss, u64)> {
        Loss::ALL
            .into_iter()
            .map(|loss| (loss, self.losses.read(loss as usize).unwrap_or(0)))
            .collect()
    }

    /// Begins to count losses anew.
    pub fn reset_losses(&mut self) {
        for index in 0..self.losses.len() {
            self.losses.write(index, 0);
        }
    }

    /// Slots of the stack table: sites' numbers are smaller.
    #[must_use]
    pub fn site_slots(&self) -> usize {
        self.sites.len()
    }

    /// Every site that has been used, with its counts.
    #[must_use]
    pub fn sites(&self) -> Vec<SiteCount> {
        let slots = self.sites.len();
        let stripes = self.totals.len() / slots.max(1);
        let mut found = Vec::new();
        for slot in 0..slots {
            let Some(key) = self.sites.read(slot) else {
                break;
            };
            if key.check == 0 && slot != 0 {
                continue;
            }
            let mut totals = SiteTotals::default();
            for stripe in 0..stripes {
                let Some(part) = self.totals.read(stripe * slots + slot) else {
                    break;
                };
                totals.alloc_objects = totals.alloc_objects.wrapping_add(part.alloc_objects);
                totals.alloc_bytes = totals.alloc_bytes.wrapping_add(part.alloc_bytes);
                totals.free_objects = totals.free_objects.wrapping_add(part.free_objects);
                totals.free_bytes = totals.free_bytes.wrapping_add(part.free_bytes);
            }
            if totals == SiteTotals::default() {
                continue;
            }
            found.push(SiteCount {
                site: slot as u32,
                incarnation: key.incarnation,
                totals,
            });
        }
        found
    }

    /// Whether a slot of the live table holds a key; asked after its block was read: nobody replaced the block in between.
    pub(super) fn still_holds(&self, index: usize, slot: usize, key: u64) -> bool {
        self.live
            .word(index, offset_of!(Bucket, keys) + slot * 8)
            .is_some_and(|word| word.load(Ordering::SeqCst) == key)
    }

    /// Visits every live block. Blocks that come and go meanwhile may or may not be visited; none is seen half written.
    pub fn visit_blocks(&self, mut visit: impl FnMut(LiveBlock)) {
        for index in 0..self.live.len() {
            let Some(bucket) = self.live.read(index) else {
                return;
            };
            for (slot, (key, block)) in bucket.keys.into_iter().zip(bucket.blocks).enumerate() {
                if key == 0 || key == LIVE_CLAIMED {
                    continue;
                }
                if self.still_holds(index, slot, key) {
                    visit(LiveBlock {
                        address: live_key(block.incarnation, key),
                        block,
                    });
                }
            }
        }
    }

    /// How thin the live table is: one of `2^shift` blocks is kept.
    #[must_use]
    pub fn thin_shift(&self) -> u32 {
        self.settings
            .read(0)
            .map_or(0, |settings| settings.thin_shift)
    }

    /// Whether the live table holds more blocks than it was asked to, estimated from one bucket in 64 (standard error
    /// below 1 % with a full table of the default size).
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        const STRIDE: usize = 64;
        let mut seen = 0_usize;
        let mut used = 0_usize;
        for index in (0..self.live.len()).step_by(STRIDE) {
            let Some(bucket) = self.live.read(index) else {
                break;
            };
            seen += bucket.keys.len();
            used += bucket.keys.iter().filter(|key| **key != 0).count();
        }
        // The table has room for twice the blocks asked for, or more: see `live_buckets`.
        self.thin_shift() < MAX_THIN_SHIFT && seen > 0 && used.saturating_mul(2) > seen
    }

    /// Keeps half of the blocks from now on, and drops those that would not have been kept. The probe may remove a block
    /// at the same time; whoever replaces the key first wins.
    pub fn thin(&mut self) {
        let Some(mut settings) = self.settings.read(0) else {
            return;
        };
        settings.thin_shift += 1;
        self.settings.write(0, settings);
        for index in 0..self.live.len() {
            let Some(bucket) = self.live.read(index) else {
                return;
            };
            for (slot, key) in bucket.keys.into_iter().enumerate() {
                if key > LIVE_CLAIMED
                    && !thin_keeps(key, settings.thin_shift)
                    && let Some(word) = self.live.word(index, offset_of!(Bucket, keys) + slot * 8)
                {
                    let _ = word.compare_exchange(key, 0, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
        }
    }

    /// Drops the live blocks of incarnations that have ended.
    pub fn drop_blocks(&mut self, ended: &HashSet<u32>) {
        for index in 0..self.live.len() {
            let Some(bucket) = self.live.read(index) else {
                return;
            };
            for (slot, (key, block)) in bucket.keys.into_iter().zip(bucket.blocks).enumerate() {
                if key > LIVE_CLAIMED
                    && ended.contains(&block.incarnation)
                    && let Some(word) = self.live.word(index, offset_of!(Bucket, keys) + slot * 8)
                {
                    let _ = word.compare_exchange(key, 0, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
        }
    }

    /// Makes room for the sites of others: drops the blocks, stacks, totals and hits of incarnations that have ended. Gives the
    /// numbers of the sites, which may stand for other stacks from now on.
    ///
    /// A stack of a living process that stands behind an emptied slot is not found any more and gets a second site; the
    /// frames tell that both are one.
    pub fn drop_incarnations(&mut self, ended: &HashSet<u32>) -> Vec<u32> {
        self.drop_blocks(ended);
        let slots = self.sites.len();
        let stripes = self.totals.len() / slots.max(1);
        let mut dropped = Vec::new();
        for slot in 0..slots {
            let Some(key) = self.sites.read(slot) else {
                break;
            };
            if key.check == 0 || !ended.contains(&key.incarnation) {
                continue;
            }
            for stripe in 0..stripes {
                self.totals
                    .write(stripe * slots + slot, SiteTotals::default());
            }
            // The tag last: with it gone the slot may be taken.
            self.sites.write(
                slot,
                SiteKey {
                    tag: key.tag,
                    ..SiteKey::default()
                },
            );
            if let Some(tag) = self.sites.word(slot, offset_of!(SiteKey, tag)) {
                tag.store(0, Ordering::SeqCst);
            }
            dropped.extend(u32::try_from(slot).ok());
        }
        for incarnation in ended {
            // Without ended threads there is no entry.
            let _ = self.hits.remove(incarnation);
        }
        dropped
    }

    /// Calls seen, by incarnation and hit slot: of living threads and of ended ones.
    #[must_use]
    pub fn hits(&self) -> HashMap<u32, [u64; HIT_SLOTS]> {
        let mut sums: HashMap<u32, [u64; HIT_SLOTS]> = HashMap::new();
        let mut add = |incarnation: u32, counts: &HitCounts| {
            let sum = sums.entry(incarnation).or_insert([0; HIT_SLOTS]);
            for (to, from) in sum.iter_mut().zip(counts.slots) {
                *to += from;
            }
        };
        for (incarnation, ended) in self.hits.iter().flatten() {
            add(incarnation, &ended.0);
        }
        // A thread that ends during the iteration can be missed or end it early; the next look has it.
        for (_, thread) in self.threads.iter().flatten() {
            add(thread.0.incarnation, &thread.0.hits);
        }
        sums
    }
}
