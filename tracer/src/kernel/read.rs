//! What the probe has found, read from the shared tables: losses, sites, live blocks, hits.

use std::{
    collections::{HashMap, HashSet},
    mem::offset_of,
    sync::atomic::Ordering,
};

use leakscope_common::{
    BUCKET_SLOTS, Block, Bucket, HIT_SLOTS, HitCounts, LIVE_CLAIMED, Loss, SiteKey, SiteTotals,
    live_key, thin_keeps,
};

use super::{
    error::KernelError,
    maps::cannot_map,
    probe::{Probe, SAMPLED_BUCKETS},
    shared::SharedArray,
};

/// Buckets that tell whether a table is by far not half full: the standard error of the load that they show is below 2 %.
const FEW_BUCKETS: usize = 256;

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

/// Some slots of a stripe of the totals.
struct Stripe {
    /// The number of the stripe's first slot.
    first: usize,
    totals: SharedArray<SiteTotals>,
}

/// Calls back with key, bucket and slot of each block that is mapped, and the block.
pub(super) fn each_block(
    window: &SharedArray<Bucket>,
    mut visit: impl FnMut(u64, usize, usize, Block),
) {
    const { assert!(BUCKET_SLOTS == 8) };
    for index in window.indices() {
        let Some(keys) = window.words(index, offset_of!(Bucket, keys)) else {
            return;
        };
        // Most buckets and slots are empty: their blocks are not read.
        if keys.iter().fold(0, |any, key| any | key) == 0 {
            continue;
        }
        for (slot, key) in keys.into_iter().enumerate() {
            if key <= LIVE_CLAIMED {
                continue;
            }
            let place = offset_of!(Bucket, blocks) + slot * size_of::<Block>();
            if let Some(block) = window.part(index, place) {
                visit(key, index, slot, block);
            }
        }
    }
}

/// Whether more than half of the slots are in use, in the first buckets. The table has room for twice the blocks asked for, or more: see
/// `live_buckets`.
fn is_half_full(buckets: &SharedArray<Bucket>) -> bool {
    let mut seen = 0_usize;
    let mut used = 0_usize;
    for (number, index) in buckets.indices().take(SAMPLED_BUCKETS).enumerate() {
        if number == FEW_BUCKETS && used.saturating_mul(4) < seen {
            // By far not.
            return false;
        }
        let Some(keys) = buckets.words(index, offset_of!(Bucket, keys)) else {
            break;
        };
        seen += keys.len();
        used += keys.iter().filter(|key| **key != 0).count();
    }
    used.saturating_mul(2) > seen
}

/// Where the key of a slot lies in its bucket, bytes.
pub(super) const fn key_at(slot: usize) -> usize {
    offset_of!(Bucket, keys) + slot * size_of::<u64>()
}

/// Whether a slot of the live table holds a key; asked after its block was read: nobody replaced the block in between.
pub(super) fn still_holds(
    window: &SharedArray<Bucket>,
    index: usize,
    slot: usize,
    key: u64,
) -> bool {
    window
        .word(index, key_at(slot))
        .is_some_and(|word| word.load(Ordering::SeqCst) == key)
}

/// Takes a key out of its slot, if it is still there.
pub(super) fn remove_key(
    window: &SharedArray<Bucket>,
    index: usize,
    slot: usize,
    key: u64,
) -> bool {
    window.word(index, key_at(slot)).is_some_and(|word| {
        word.compare_exchange(key, 0, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    })
}

/// Adds a stripe's counts, or another site's.
pub(crate) fn add_totals(sum: &mut SiteTotals, part: &SiteTotals) {
    sum.alloc_objects = sum.alloc_objects.wrapping_add(part.alloc_objects);
    sum.alloc_bytes = sum.alloc_bytes.wrapping_add(part.alloc_bytes);
    sum.free_objects = sum.free_objects.wrapping_add(part.free_objects);
    sum.free_bytes = sum.free_bytes.wrapping_add(part.free_bytes);
}

impl Probe {
    /// Every loss with its count.
    #[must_use]
    pub fn losses(&self) -> Vec<(Loss, u64)> {
        Loss::ALL
            .into_iter()
            .map(|loss| (loss, self.loss(loss)))
            .collect()
    }

    /// How often something was lost for one cause.
    #[must_use]
    pub fn loss(&self, loss: Loss) -> u64 {
        self.losses.read(loss as usize).unwrap_or(0)
    }

    /// Begins to count losses anew.
    pub fn reset_losses(&mut self) {
        self.reset_missed_mappings();
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
    ///
    /// # Errors
    /// The tables cannot be mapped.
    pub fn sites(&self) -> Result<Vec<SiteCount>, KernelError> {
        let mut found = Vec::new();
        self.each_slots(|keys, stripes| found.extend(Self::counts(keys, stripes)))?;
        Ok(found)
    }

    /// Calls back with some slots of the stack table and the same slots of each stripe of the totals, until all were looked at.
    fn each_slots(
        &self,
        mut look: impl FnMut(&SharedArray<SiteKey>, &[Stripe]),
    ) -> Result<(), KernelError> {
        let slots = self.sites.len();
        for keys in self.sites.windows() {
            let keys = keys.map_err(|source| cannot_map("SITES", source))?;
            // Both are powers of two: the slots of a stripe lie in one window.
            let stripes = (0..self.totals.len())
                .step_by(slots.max(1))
                .filter_map(|first| {
                    let totals = self.totals.window(first + keys.indices().start)?;
                    Some(totals.map(|totals| Stripe { first, totals }))
                })
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| cannot_map("TOTALS", source))?;
            look(&keys, &stripes);
        }
        Ok(())
    }

    /// The sites of some slots.
    fn counts(keys: &SharedArray<SiteKey>, stripes: &[Stripe]) -> impl Iterator<Item = SiteCount> {
        keys.indices().filter_map(move |slot| {
            let key = keys.read(slot)?;
            if key.check == 0 && slot != 0 {
                return None;
            }
            let mut totals = SiteTotals::default();
            for stripe in stripes {
                add_totals(&mut totals, &stripe.totals.read(stripe.first + slot)?);
            }
            (totals != SiteTotals::default()).then_some(SiteCount {
                site: slot as u32,
                incarnation: key.incarnation,
                totals,
            })
        })
    }

    /// A site's counts, as [`Probe::sites`] has them.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn totals_of(&self, site: u32) -> Result<SiteTotals, KernelError> {
        let slots = self.sites.len();
        let mut sum = SiteTotals::default();
        for first in (0..self.totals.len()).step_by(slots.max(1)) {
            let part = self
                .totals
                .one(first + site as usize)
                .map_err(|source| KernelError::call("cannot read the BPF array TOTALS", source))?;
            add_totals(&mut sum, &part);
        }
        Ok(sum)
    }

    /// All buckets of the live table, some at a time.
    pub(super) fn live_windows(
        &self,
    ) -> impl Iterator<Item = Result<SharedArray<Bucket>, KernelError>> {
        self.live
            .windows()
            .map(|window| window.map_err(|source| cannot_map("LIVE", source)))
    }

    /// Visits every live block. Blocks that come and go meanwhile may or may not be visited; none is seen half written.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn visit_blocks(&self, mut visit: impl FnMut(LiveBlock)) -> Result<(), KernelError> {
        for window in self.live_windows() {
            let window = window?;
            each_block(&window, |key, index, slot, block| {
                if still_holds(&window, index, slot, key) {
                    visit(LiveBlock {
                        address: live_key(block.incarnation, key),
                        block,
                    });
                }
            });
        }
        Ok(())
    }

    /// How thin the live table is: one of `2^shift` blocks is kept.
    #[must_use]
    pub fn thin_shift(&self) -> u32 {
        self.settings
            .read(0)
            .map_or(0, |settings| settings.thin_shift)
    }

    /// Whether the live table holds more blocks than it was asked to, or the buckets of windows more than they are meant to, estimated from some
    /// buckets.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.thin_shift() < MAX_THIN_SHIFT
            && (is_half_full(&self.live_sample)
                || self.window_buckets.get().is_some_and(is_half_full))
    }

    /// Keeps half of the blocks from now on, and drops those that would not have been kept. The probe may remove a block
    /// at the same time; whoever replaces the key first wins.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn thin(&mut self) -> Result<(), KernelError> {
        let Some(mut settings) = self.settings.read(0) else {
            return Ok(());
        };
        settings.thin_shift += 1;
        self.settings.write(0, settings);
        self.drop_where(|key, _| !thin_keeps(key, settings.thin_shift))
    }

    /// Drops the live blocks of incarnations that have ended.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn drop_blocks(&mut self, ended: &HashSet<u32>) -> Result<(), KernelError> {
        self.drop_where(|_, block| ended.contains(&block.incarnation))
    }

    /// Drops the live blocks of which this is so.
    fn drop_where(&self, goes: impl Fn(u64, &Block) -> bool) -> Result<(), KernelError> {
        for window in self.live_windows() {
            let window = window?;
            each_block(&window, |key, index, slot, block| {
                if goes(key, &block) {
                    remove_key(&window, index, slot, key);
                }
            });
        }
        Ok(())
    }

    /// Makes room for the sites of others: drops the blocks, stacks, totals and hits of incarnations that have ended. Gives the
    /// numbers of the sites, which may stand for other stacks from now on.
    ///
    /// A stack of a living process that stands behind an emptied slot is not found any more and gets a second site; the
    /// frames tell that both are one.
    ///
    /// # Errors
    /// The tables cannot be mapped.
    pub fn drop_incarnations(&mut self, ended: &HashSet<u32>) -> Result<Vec<u32>, KernelError> {
        self.drop_blocks(ended)?;
        let mut dropped = Vec::new();
        self.each_slots(|keys, stripes| {
            for slot in keys.indices() {
                let Some(key) = keys.read(slot) else {
                    break;
                };
                if key.check == 0 || !ended.contains(&key.incarnation) {
                    continue;
                }
                for stripe in stripes {
                    stripe
                        .totals
                        .write(stripe.first + slot, SiteTotals::default());
                }
                // The tag last: with it gone the slot may be taken.
                keys.write(
                    slot,
                    SiteKey {
                        tag: key.tag,
                        ..SiteKey::default()
                    },
                );
                if let Some(tag) = keys.word(slot, offset_of!(SiteKey, tag)) {
                    tag.store(0, Ordering::SeqCst);
                }
                dropped.extend(u32::try_from(slot).ok());
            }
        })?;
        for incarnation in ended {
            // Without ended threads there is no entry.
            let _ = self.hits.remove(incarnation);
        }
        Ok(dropped)
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
        for thread in self.threads.each() {
            add(thread.incarnation, &thread.counts);
        }
        sums
    }
}
