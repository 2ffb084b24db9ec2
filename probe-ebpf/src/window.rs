//! The piece of the stack that a walk has read last. Knows nothing of frames.
//!
//! The words stand on the BPF stack: what the kernel copies from user space is checked for where it goes (mm/usercopy.c), and of its own
//! stack that is known at once. Where the piece begins stands in the thread's record, as all of a walk's state that is told from other state.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::{bpf_probe_read_user, generated};

use crate::bounds::hide;

/// Words that are read at a time: a copy from user space costs about the same for one word and for some. As many as fit: a program, what it
/// calls and a callback have 512 bytes together (`MAX_BPF_STACK`, include/linux/filter.h).
const WORDS: u64 = 32;

/// An address that no word of a stack has: nothing was read.
pub(crate) const NO_WINDOW: u64 = 1;

/// The words.
pub(crate) struct Window {
    words: MaybeUninit<[u64; WORDS as usize]>,
}

impl Window {
    /// One to be filled by [`Window::refill`] before anything else.
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self {
            words: MaybeUninit::uninit(),
        }
    }

    /// Reads a word of the stack; what stands above it is read with it, for the next frames' words stand there. `base`: where the words
    /// begin.
    #[inline(always)]
    pub(crate) fn read(&mut self, base: &mut u64, address: u64) -> Result<u64, i32> {
        let offset = address.wrapping_sub(*base);
        // Hidden, or the compiler compares the offset instead, and the verifier does not see the bound.
        let index = hide(offset >> 3);
        if offset & 7 == 0 && index < WORDS {
            return Ok(self.word(index));
        }
        self.refill(base, address)
    }

    /// Reads a word and the one above it.
    #[inline(always)]
    pub(crate) fn read_pair(&mut self, base: &mut u64, address: u64) -> Result<[u64; 2], i32> {
        Ok([
            self.read(base, address)?,
            self.read(base, address.wrapping_add(8))?,
        ])
    }

    /// A word that was read, of which the index is below [`WORDS`].
    #[inline(always)]
    fn word(&self, index: u64) -> u64 {
        // SAFETY: the callers promise the index, and the verifier holds them to it; the first refill has filled the array.
        unsafe {
            self.words
                .as_ptr()
                .cast::<u64>()
                .add(index as usize)
                .read_volatile()
        }
    }

    /// Reads so many words, a constant below 16, from somewhere else; what was known of the stack is forgotten.
    #[inline(always)]
    pub(crate) fn read_elsewhere(&mut self, base: &mut u64, address: u64, words: u32) -> bool {
        *base = NO_WINDOW;
        // SAFETY: the callers keep to so many words, and the verifier holds them to it; the helper checks the address.
        let status = unsafe {
            generated::bpf_probe_read_user(
                self.words.as_mut_ptr().cast::<c_void>(),
                words * 8,
                address as *const c_void,
            )
        };
        status == 0
    }

    /// One of the words of [`Window::read_elsewhere`], by the lower four bits of its number. Beyond what was read stands what was read before.
    #[inline(always)]
    pub(crate) fn elsewhere(&self, number: u64) -> u64 {
        self.word(hide(number) & 15)
    }

    /// Reads the words anew, from one on; it alone where they would reach beyond what is mapped.
    #[inline(always)]
    pub(crate) fn refill(&mut self, base: &mut u64, address: u64) -> Result<u64, i32> {
        *base = NO_WINDOW;
        // SAFETY: the length is the array's, all of which the helper fills, with zeros where it fails; it checks the address.
        let status = unsafe {
            generated::bpf_probe_read_user(
                self.words.as_mut_ptr().cast::<c_void>(),
                WORDS as u32 * 8,
                address as *const c_void,
            )
        };
        if status == 0 {
            *base = address;
            return Ok(self.word(0));
        }
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_user(address as *const u64) }
    }
}
