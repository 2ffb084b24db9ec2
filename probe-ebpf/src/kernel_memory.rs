//! The kernel's own allocations: what is made in caches and sizes that user space watches, by which way and for whom, and what is freed of it.
//!
//! The programs run at every allocation of the machine's kernel while a window is open. What is cheapest to ask comes first: is the cache
//! watched, is the address among those that are followed. Only then stacks are taken. An address that is handed out though it is believed to
//! be in use was freed where no event tells of it (kfree_rcu, bulk frees, sheaves): that is a death, counted apart.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task, bpf_get_stack,
            bpf_probe_read_kernel as read_kernel, bpf_probe_read_kernel_str,
        },
    },
    programs::RawTracePointContext,
};
use leakscope_common::{
    CACHE_NAME_BYTES, CACHE_PROBES, CACHE_SLOTS, KERNEL_BUCKET_SLOTS, KERNEL_FRAMES,
    KERNEL_SITE_INTERRUPT, KERNEL_SITE_PROBES, KERNEL_SITE_SLOTS, KMALLOC_SIZE, KernelBucket,
    KernelCache, KernelSettings, KernelSite, UNKNOWN_SITE, WATCHED_SIZES, cache_slot,
    kernel_bucket, made_at, made_parts, thin_keeps,
};

use crate::{
    atomic, filter, growth,
    maps::{
        KERNEL_CACHES, KERNEL_CALLS, KERNEL_DRAFTS, KERNEL_LIVE, KERNEL_SETTINGS, KERNEL_SITES,
    },
    stack,
};

/// The programs' numbers in `KERNEL_CALLS`, and of the first two in `KERNEL_DRAFTS`.
const SIZED: u32 = 0;
const CACHED: u32 = 1;
const FREED: u32 = 2;
const UNCACHED: u32 = 3;

/// `__GFP_DIRECT_RECLAIM` (include/linux/gfp_types.h): who asks with it may sleep, and serves no interrupt.
const MAY_SLEEP: u64 = 1 << 10;

/// `THREAD_SIZE` (arch/x86/include/asm/page_64_types.h), bytes.
const STACK_BYTES: u64 = 16 << 10;

/// Pointers of the kernel from here on are errors or none (`ZERO_SIZE_PTR`, include/linux/slab.h).
const LEAST_ADDRESS: u64 = 4096;

/// The settings; the call of a program is counted.
#[inline(always)]
fn called(program: u32) -> Option<*mut KernelSettings> {
    let calls = KERNEL_CALLS.get_ptr_mut(program)?;
    // SAFETY: the pointer comes from the map lookup and was checked; the kernel runs no program inside of itself on a processor.
    unsafe { *calls += 1 };
    KERNEL_SETTINGS.get_ptr_mut(0)
}

/// `kmalloc`: arguments are where it was called, the object, bytes asked for, bytes allocated, flags (include/trace/events/kmem.h).
#[inline(always)]
pub(crate) fn sized(ctx: &RawTracePointContext) -> i32 {
    let Some(settings) = called(SIZED) else {
        return 0;
    };
    let bytes = ctx.arg::<u64>(3) as u32;
    let mut place = 0;
    while place < WATCHED_SIZES {
        // SAFETY: the pointer comes from the map lookup and was checked; user space may change the word.
        let watched = unsafe { core::ptr::read_volatile(&raw const (*settings).sizes[place]) };
        if watched == bytes {
            // SAFETY: as above.
            let shift = unsafe {
                atomic::add(&raw mut (*settings).births, 1);
                core::ptr::read_volatile(&raw const (*settings).shift)
            };
            if !is_followed(ctx, shift) {
                return 0;
            }
            let cache = KMALLOC_SIZE | u64::from(bytes);
            return made(
                ctx,
                settings,
                SIZED,
                Made {
                    cache,
                    bytes,
                    shift,
                },
                ctx.arg::<u64>(4),
            );
        }
        place += 1;
    }
    0
}

/// `kmem_cache_alloc`: where it was called, the object, its cache, flags.
#[inline(always)]
pub(crate) fn cached(ctx: &RawTracePointContext) -> i32 {
    let Some(settings) = called(CACHED) else {
        return 0;
    };
    let address = ctx.arg::<u64>(2);
    let Some(cache) = cache(settings, address) else {
        return 0;
    };
    // SAFETY: the pointer comes from the map lookup and was checked; user space may change the word.
    let (watched, bytes) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*cache).watched),
            (*cache).object_bytes,
        )
    };
    if watched == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { atomic::add(&raw mut (*cache).births, 1) };
    let shift = watched - 1;
    if !is_followed(ctx, shift) {
        return 0;
    }
    let of = Made {
        cache: address,
        bytes,
        shift,
    };
    made(ctx, settings, CACHED, of, ctx.arg::<u64>(3))
}

/// `kfree`: where it was called, the object.
#[inline(always)]
pub(crate) fn freed(ctx: &RawTracePointContext) -> i32 {
    if called(FREED).is_some() {
        gone(ctx.arg::<u64>(1));
    }
    0
}

/// `kmem_cache_free`: where it was called, the object, its cache.
#[inline(always)]
pub(crate) fn uncached(ctx: &RawTracePointContext) -> i32 {
    if called(UNCACHED).is_none() {
        return 0;
    }
    let Some(cache) = known_cache(ctx.arg::<u64>(2)) else {
        return 0;
    };
    // SAFETY: the pointer comes from the map lookup and was checked; user space may change the word.
    let watched = unsafe { core::ptr::read_volatile(&raw const (*cache).watched) };
    if watched != 0 {
        gone(ctx.arg::<u64>(1));
    }
    0
}

/// The record of a cache, if it has one.
#[inline(always)]
fn known_cache(address: u64) -> Option<*mut KernelCache> {
    let first = cache_slot(address);
    let mut probe = 0;
    while probe < CACHE_PROBES {
        let cache = KERNEL_CACHES.get_ptr_mut((first + probe) & (CACHE_SLOTS - 1))?;
        // SAFETY: the pointer comes from the map lookup and was checked.
        if unsafe { core::ptr::read_volatile(&raw const (*cache).cache) } == address {
            return Some(cache);
        }
        probe += 1;
    }
    None
}

/// The record of a cache; a new one with its name, where it has none and there is room.
#[inline(always)]
fn cache(settings: *mut KernelSettings, address: u64) -> Option<*mut KernelCache> {
    let first = cache_slot(address);
    let mut probe = 0;
    while probe < CACHE_PROBES {
        let slot = (first + probe) & (CACHE_SLOTS - 1);
        let cache = KERNEL_CACHES.get_ptr_mut(slot)?;
        // SAFETY: the pointer comes from the map lookup and was checked.
        let there = unsafe { core::ptr::read_volatile(&raw const (*cache).cache) };
        if there == address {
            return Some(cache);
        }
        // SAFETY: as above.
        if there == 0 && unsafe { atomic::replace(&raw mut (*cache).cache, 0, address) } {
            describe(settings, cache, address);
            return None;
        }
        probe += 1;
    }
    None
}

/// Notes name and size of a cache, for user space to say whether it is watched.
#[inline(always)]
fn describe(settings: *mut KernelSettings, cache: *mut KernelCache, address: u64) {
    // SAFETY: both pointers come from map lookups and were checked; the helpers check the kernel's addresses, and write no more than there
    // is room for.
    unsafe {
        let name = address.wrapping_add(u64::from((*settings).name_offset)) as *const u64;
        if let Ok(name) = bpf_probe_read_kernel(name) {
            let to = (&raw mut (*cache).name).cast::<c_void>();
            bpf_probe_read_kernel_str(to, CACHE_NAME_BYTES as u32, name as *const c_void);
        }
        let size = address.wrapping_add(u64::from((*settings).size_offset)) as *const u32;
        (*cache).object_bytes = bpf_probe_read_kernel(size).unwrap_or(0);
    }
}

/// Whether the kernel works for the current process, and serves no interrupt. Without an offset of the stack only who may sleep is known.
///
/// Interrupts that come while the kernel runs, and what they leave for later (softirqs), have stacks of their own. One that comes while the
/// program runs takes the process's, but the registers there are of no system call.
#[inline(always)]
fn works_for_process(
    ctx: &RawTracePointContext,
    settings: *mut KernelSettings,
    draft: *mut KernelSite,
    flags: u64,
) -> bool {
    if flags & MAY_SLEEP != 0 {
        return true;
    }
    // SAFETY: the pointer comes from the map lookup and was checked.
    let offset = unsafe { (*settings).stack_offset };
    if offset == 0 {
        return false;
    }
    // SAFETY: the helpers check the address; the registers are the kernel's, and the verifier knows their layout.
    let (base, call) = unsafe {
        let task = bpf_get_current_task().wrapping_add(u64::from(offset));
        (
            bpf_probe_read_kernel(task as *const u64).unwrap_or(0),
            (*growth::user_registers()).orig_rax as i64,
        )
    };
    // The arguments stand on the stack of whoever allocates. The verifier lets no number be made of their address but in a map's memory.
    // SAFETY: the pointer comes from the map lookup and was checked.
    let here = unsafe {
        core::ptr::write_volatile(&raw mut (*draft).tag, ctx.as_ptr() as u64);
        core::ptr::read_volatile(&raw const (*draft).tag)
    };
    here.wrapping_sub(base) < STACK_BYTES && call >= 0
}

/// Whether the address of an object that was made is among those that are followed.
#[inline(always)]
fn is_followed(ctx: &RawTracePointContext, shift: u32) -> bool {
    let address = ctx.arg::<u64>(1);
    address > LEAST_ADDRESS && thin_keeps(address, shift)
}

/// What was made, and that it stands for `2^shift`.
struct Made {
    cache: u64,
    bytes: u32,
    shift: u32,
}

/// An object that is to be followed was made.
#[inline(always)]
fn made(
    ctx: &RawTracePointContext,
    settings: *mut KernelSettings,
    program: u32,
    of: Made,
    flags: u64,
) -> i32 {
    let Some(draft) = KERNEL_DRAFTS.get_ptr_mut(program) else {
        return 0;
    };
    // SAFETY: the pointer comes from the map lookup and was checked; nobody else writes to the draft meanwhile (see the map). The helpers write
    // no more than there is room for.
    unsafe {
        atomic::add(&raw mut (*settings).stacks, 1);
        (*draft).cache = of.cache;
        (*draft).call_site = ctx.arg::<u64>(0);
        (*draft).object_bytes = of.bytes;
        (*draft).user_site = UNKNOWN_SITE;
        (*draft).incarnation = 0;
        let length = bpf_get_stack(
            ctx.as_ptr(),
            (&raw mut (*draft).frames).cast::<c_void>(),
            (KERNEL_FRAMES * 8) as u32,
            0,
        );
        (*draft).depth = if length > 0 { length as u32 / 8 } else { 0 };
        if works_for_process(ctx, settings, draft, flags) {
            (*draft).flags = 0;
            (*draft).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            (*draft).cgroup = bpf_get_current_cgroup_id();
            bpf_get_current_comm((&raw mut (*draft).comm).cast::<c_void>(), 16);
            if let Some(thread) = filter::current_thread() {
                let registers = growth::user_registers();
                let beginning = growth::beginning(registers);
                // A system call's instruction is over; one that faulted is still to be executed.
                let executed = u64::from((*registers).orig_rax as i64 >= 0);
                (*draft).incarnation = (*thread).incarnation;
                (*draft).user_site = stack::capture_within(
                    thread,
                    beginning.ip,
                    beginning.sp,
                    beginning.bp,
                    executed,
                );
            }
        } else {
            (*draft).flags = KERNEL_SITE_INTERRUPT;
            (*draft).tgid = 0;
            (*draft).cgroup = 0;
            (*draft).comm = [0; 16];
        }
    }
    kernel_keep(program, ctx.arg::<u64>(1), of.shift) as i32
}

/// Keeps an object at the site of the draft. A function that the verifier follows by itself, once for both programs.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn kernel_keep(program: u32, address: u64, shift: u32) -> u32 {
    let Some((draft, settings)) = KERNEL_DRAFTS
        .get_ptr_mut(program & 1)
        .zip(KERNEL_SETTINGS.get_ptr_mut(0))
    else {
        return 0;
    };
    let shift = shift & 15;
    let kept = site_of(draft).is_some_and(|site| {
        // One for which there is no room would be there for ever: its end is not seen.
        let is_there = put(address, made_at(site, shift));
        if is_there && let Some(counts) = KERNEL_SITES.get_ptr_mut(site) {
            // SAFETY: the pointer comes from the map lookup and was checked.
            unsafe { atomic::add(&raw mut (*counts).born, 1 << shift) };
        }
        is_there
    });
    if !kept {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*settings).refused, 1) };
    }
    0
}

/// Odd numbers without a pattern: the golden ratio's and the square root of two's first 64 bits.
const FIRST_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND_FACTOR: u64 = 0xb504_f333_f9de_6485;

/// Two hashes that take a word at a time.
struct Hashes(u64, u64);

impl Hashes {
    #[inline(always)]
    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(FIRST_FACTOR);
        self.0 ^= self.0 >> 32;
        self.1 = (self.1.rotate_left(23) ^ word).wrapping_mul(SECOND_FACTOR);
    }
}

/// The number of the draft's site: its slot, or one taken for it. Nothing where there is no room.
#[inline(always)]
fn site_of(draft: *mut KernelSite) -> Option<u32> {
    // SAFETY: the pointer comes from the map lookup and was checked; indices are inside the array.
    let (tag, check) = unsafe {
        let mut hashes = Hashes(1, 2);
        hashes.add((*draft).cache);
        hashes.add((*draft).call_site);
        hashes.add(u64::from((*draft).user_site) | u64::from((*draft).tgid) << 32);
        hashes.add(u64::from((*draft).incarnation) | u64::from((*draft).flags) << 32);
        let depth = (*draft).depth as usize;
        let mut frame = 0;
        while frame < KERNEL_FRAMES {
            if frame < depth {
                hashes.add((*draft).frames[frame]);
            } else {
                (*draft).frames[frame] = 0;
            }
            frame += 1;
        }
        (*draft).born = 0;
        (*draft).died = 0;
        (*draft).inferred = 0;
        // 0 means empty, and being filled.
        (hashes.0 | 1, hashes.1 | 1)
    };
    let first = (tag >> 40) as u32;
    let mut probe = 0;
    while probe < KERNEL_SITE_PROBES {
        let slot = first.wrapping_add(probe) & (KERNEL_SITE_SLOTS - 1);
        probe += 1;
        let site = KERNEL_SITES.get_ptr_mut(slot)?;
        // SAFETY: the pointer comes from the map lookup and was checked. A slot is ours from the claim of its tag on, and others wait for
        // `check`, which is written last.
        unsafe {
            let there = core::ptr::read_volatile(&raw const (*site).tag);
            if there == tag {
                if core::ptr::read_volatile(&raw const (*site).check) == check {
                    return Some(slot);
                }
                // Being filled by another processor, perhaps with the same: user space joins them.
            } else if there == 0 && atomic::replace(&raw mut (*site).tag, 0, tag) {
                let to = (&raw mut (*site).cache).cast::<c_void>();
                let from = (&raw const (*draft).cache).cast::<c_void>();
                read_kernel(to, (size_of::<KernelSite>() - 16) as u32, from);
                atomic::swap(&raw mut (*site).check, check);
                return Some(slot);
            }
        }
    }
    None
}

/// What stands in a slot of a bucket.
#[inline(always)]
fn key_in(bucket: *mut KernelBucket, slot: usize) -> u64 {
    // SAFETY: the pointer comes from a map lookup and was checked; callers keep to the array.
    unsafe { core::ptr::read_volatile(&raw const (*bucket).keys[slot]) }
}

/// Notes that an object is there.
#[inline(always)]
fn put(address: u64, made: u64) -> bool {
    let Some(bucket) = KERNEL_LIVE.get_ptr_mut(kernel_bucket(address)) else {
        return false;
    };
    let mut slot = 0;
    while slot < KERNEL_BUCKET_SLOTS {
        if key_in(bucket, slot) == address {
            // SAFETY: the pointer comes from the map lookup and was checked. Nobody else has the address.
            unsafe {
                let before = core::ptr::read_volatile(&raw const (*bucket).made[slot]);
                core::ptr::write_volatile(&raw mut (*bucket).made[slot], made);
                let (site, shift) = made_parts(before);
                if let Some(old) = KERNEL_SITES.get_ptr_mut(site) {
                    atomic::add(&raw mut (*old).inferred, 1 << shift);
                }
            }
            return true;
        }
        slot += 1;
    }
    slot = 0;
    while slot < KERNEL_BUCKET_SLOTS {
        // SAFETY: as above; the slot is ours from the claim on, and nobody frees the object before we are done.
        unsafe {
            if key_in(bucket, slot) == 0
                && atomic::replace(&raw mut (*bucket).keys[slot], 0, address)
            {
                core::ptr::write_volatile(&raw mut (*bucket).made[slot], made);
                return true;
            }
        }
        slot += 1;
    }
    false
}

/// An object is freed. `kfree` of nothing has an event too, and its address is that of an empty slot.
#[inline(always)]
fn gone(address: u64) {
    if address < LEAST_ADDRESS {
        return;
    }
    let Some(bucket) = KERNEL_LIVE.get_ptr_mut(kernel_bucket(address)) else {
        return;
    };
    let mut slot = 0;
    while slot < KERNEL_BUCKET_SLOTS {
        if key_in(bucket, slot) == address {
            // SAFETY: the pointers come from map lookups and were checked. Nobody else has the address.
            unsafe {
                let made = core::ptr::read_volatile(&raw const (*bucket).made[slot]);
                let (site, shift) = made_parts(made);
                if atomic::replace(&raw mut (*bucket).keys[slot], address, 0)
                    && let Some(site) = KERNEL_SITES.get_ptr_mut(site)
                {
                    atomic::add(&raw mut (*site).died, 1 << shift);
                }
            }
            return;
        }
        slot += 1;
    }
}
