//! What the probe tells of the kernel's own allocations: its caches, where objects were made, and which are still there. All stands in arrays
//! that both sides map; nothing goes through the ring buffer but user stacks.

use crate::{layout::layout, site::mix};

/// Bytes of a cache's name that are kept, with a zero behind it.
pub const CACHE_NAME_BYTES: usize = 32;

/// Slots for caches. A machine has 200 to 400.
pub const CACHE_SLOTS: u32 = 1024;

/// Slots in a row that a cache may stand in.
pub const CACHE_PROBES: u32 = 4;

/// Slots for places where objects are made.
pub const KERNEL_SITE_SLOTS: u32 = 4096;

/// Slots in a row that a place may stand in.
pub const KERNEL_SITE_PROBES: u32 = 8;

/// Buckets for objects that are there: 2 MiB; at a quarter of their slots 32,768 objects.
pub const KERNEL_BUCKETS: u32 = 16_384;

/// Slots of a bucket: a cache line of keys.
pub const KERNEL_BUCKET_SLOTS: usize = 8;

/// Sizes of `kmalloc` that can be watched at the same time.
pub const WATCHED_SIZES: usize = 8;

/// The object was made while an interrupt was served: whoever ran then had nothing to do with it.
pub const KERNEL_SITE_INTERRUPT: u32 = 1;

/// Marks the cache of a site that is a size of `kmalloc`, in the lower 32 bits. No address of the kernel has the upper bit cleared.
pub const KMALLOC_SIZE: u64 = 1 << 32;

/// Frames of the kernel's stack that are kept, leaf first; the programs' own and the allocator's among them.
pub const KERNEL_FRAMES: usize = 32;

/// What user space tells the programs, and what they count for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelSettings {
    /// Sizes of `kmalloc` that are watched, as allocated, bytes; 0: none.
    pub sizes: [u32; WATCHED_SIZES],
    /// Where `struct kmem_cache` has its name, bytes.
    pub name_offset: u32,
    /// Where it has the size of its objects.
    pub size_offset: u32,
    /// Where `struct task_struct` has the address of its stack; 0: not known.
    pub stack_offset: u32,
    /// Of the sizes one of `2^shift` addresses is followed.
    pub shift: u32,
    /// Objects of these sizes that were made, followed or not.
    pub births: u64,
    /// Objects of which stacks were taken.
    pub stacks: u64,
    /// Objects that could not be followed: there was no room.
    pub refused: u64,
    /// Nothing.
    pub pad: u64,
}

/// The programs, each of which counts its calls on each processor: `kmalloc`, `kmem_cache_alloc`, `kfree`, `kmem_cache_free`.
pub const KERNEL_PROGRAMS: u32 = 4;

/// A cache of the slab allocator.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelCache {
    /// The address of its `struct kmem_cache`; 0: nothing is here.
    pub cache: u64,
    /// Its name, with a zero behind it.
    pub name: [u8; CACHE_NAME_BYTES],
    /// Bytes of an object.
    pub object_bytes: u32,
    /// 0: user space does not want to be told of its objects; else one of `2^(watched - 1)` is followed.
    pub watched: u32,
    /// Objects that were made while it was watched, followed or not.
    pub births: u64,
}

/// A place where objects of the kernel are made: what of, by which way through the kernel, by whom.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelSite {
    /// Hash of what tells it apart; 0: nothing is here.
    pub tag: u64,
    /// Another hash: not 0 when the rest is there.
    pub check: u64,
    /// The address of the cache, or [`KMALLOC_SIZE`] and a size.
    pub cache: u64,
    /// Where the allocator's function returns to.
    pub call_site: u64,
    /// The control group (version 2) of whoever ran.
    pub cgroup: u64,
    /// The site of the user stack, or [`crate::UNKNOWN_SITE`].
    pub user_site: u32,
    /// Thread group id of whoever ran; 0 in an interrupt.
    pub tgid: u32,
    /// The process incarnation; 0 of a process that is not followed.
    pub incarnation: u32,
    /// Bytes of an object.
    pub object_bytes: u32,
    /// [`KERNEL_SITE_INTERRUPT`] or 0.
    pub flags: u32,
    /// Frames of the kernel's stack that are there.
    pub depth: u32,
    /// The command name of whoever ran.
    pub comm: [u8; 16],
    /// Objects made, those that stand for others counted as many times.
    pub born: u64,
    /// Objects seen to be freed.
    pub died: u64,
    /// Objects whose address was handed out again: they were freed, and that was not seen.
    pub inferred: u64,
    /// The kernel's stack, leaf first.
    pub frames: [u64; KERNEL_FRAMES],
}

/// A bucket of objects that are there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelBucket {
    /// Addresses; 0: nothing is here.
    pub keys: [u64; KERNEL_BUCKET_SLOTS],
    /// Where each was made: [`made_at`].
    pub made: [u64; KERNEL_BUCKET_SLOTS],
}

/// Where an object was made, by the site's number, and that it stands for `2^shift`, in a word.
#[inline(always)]
#[must_use]
pub const fn made_at(site: u32, shift: u32) -> u64 {
    site as u64 | (shift as u64 & 15) << 32
}

/// What [`made_at`] was given.
#[inline(always)]
#[must_use]
pub const fn made_parts(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32 & 15)
}

/// The first slot in which a cache may stand.
#[inline(always)]
#[must_use]
pub const fn cache_slot(cache: u64) -> u32 {
    (mix(cache) >> 40) as u32 & (CACHE_SLOTS - 1)
}

/// The bucket of an object.
#[inline(always)]
#[must_use]
pub const fn kernel_bucket(address: u64) -> u32 {
    mix(address) as u32 & (KERNEL_BUCKETS - 1)
}

layout! {
    KernelSettings = 4 * WATCHED_SIZES + 4 * 4 + 8 * 4;
    KernelCache = 8 + CACHE_NAME_BYTES + 4 * 2 + 8;
    KernelSite = 8 * 5 + 4 * 6 + 16 + 8 * 3 + 8 * KERNEL_FRAMES;
    KernelBucket = 128;
}

#[cfg(test)]
mod tests {
    use super::{KERNEL_BUCKETS, kernel_bucket, made_at, made_parts};

    #[test]
    fn an_object_stands_for_as_many_as_when_it_was_made() {
        assert_eq!(made_parts(made_at(4095, 10)), (4095, 10));
        assert_eq!(made_parts(made_at(1, 0)), (1, 0));
    }

    #[test]
    fn objects_of_a_slab_spread_over_the_buckets() {
        let mut load = [0_u32; KERNEL_BUCKETS as usize];
        for object in 0..u64::from(KERNEL_BUCKETS) * 2 {
            load[kernel_bucket(0xffff_8881_0000_0000 + object * 192) as usize] += 1;
        }
        assert!(load.iter().all(|count| *count <= 12));
    }
}
