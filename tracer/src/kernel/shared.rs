//! Array maps in our own memory: read and written without a system call.

use std::{io, os::fd::AsRawFd, os::fd::BorrowedFd, ptr::NonNull, sync::atomic};

use leakscope_common::Plain;

/// An array map with `BPF_F_MMAPABLE`, mapped. The kernel rounds values up to 8 bytes; all of ours are multiples of it.
pub(crate) struct SharedArray<T> {
    base: NonNull<T>,
    len: usize,
}

// SAFETY: the mapping is shared memory that is valid in every thread, and all access goes through volatile or atomic operations on `Plain` values.
unsafe impl<T: Plain + Send> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Plain + Sync> Sync for SharedArray<T> {}

impl<T: Plain> SharedArray<T> {
    /// Maps the `len` values of an array map.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        // SAFETY: a fresh mapping at an address of the kernel's choice; the kernel checks the length against the map's.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast::<T>()).ok_or_else(|| io::Error::other("mmap returned 0"))?;
        Ok(Self { base, len })
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of a value.
    fn at(&self, index: usize) -> Option<*mut T> {
        (index < self.len).then(|| {
            // SAFETY: the index is inside the mapping.
            unsafe { self.base.as_ptr().add(index) }
        })
    }

    /// Reads a value. The probe may be writing to it: the fields need not belong together.
    pub(crate) fn read(&self, index: usize) -> Option<T> {
        let at = self.at(index)?;
        // SAFETY: `at` is inside the mapping and aligned (the mapping starts on a page, values are multiples of their
        // alignment); every bit pattern is a `Plain` value.
        Some(unsafe { at.read_volatile() })
    }

    /// Reads the eight words at a byte offset inside a value, one after the other.
    pub(crate) fn words(&self, index: usize, byte_offset: usize) -> Option<[u64; 8]> {
        if !byte_offset.is_multiple_of(8) || byte_offset + 64 > size_of::<T>() {
            return None;
        }
        let at = self.at(index)?;
        // SAFETY: the words are inside the value, and 8-byte aligned.
        Some(unsafe { at.byte_add(byte_offset).cast::<[u64; 8]>().read_volatile() })
    }

    /// Writes a value; `false` beyond the end.
    pub(crate) fn write(&self, index: usize, value: T) -> bool {
        let Some(at) = self.at(index) else {
            return false;
        };
        // SAFETY: as for `read`.
        unsafe { at.write_volatile(value) };
        true
    }

    /// The 64-bit word at a byte offset inside a value, for atomic access.
    pub(crate) fn word(&self, index: usize, byte_offset: usize) -> Option<&atomic::AtomicU64> {
        if !byte_offset.is_multiple_of(8) || byte_offset + 8 > size_of::<T>() {
            return None;
        }
        let at = self.at(index)?;
        // SAFETY: the word is inside the value, 8-byte aligned, and lives as long as the mapping, which `self` holds.
        Some(unsafe { atomic::AtomicU64::from_ptr(at.byte_add(byte_offset).cast::<u64>()) })
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nobody borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
