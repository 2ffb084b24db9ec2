//! Array maps in our own memory: read and written without a system call.

use std::{
    io,
    marker::PhantomData,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic,
};

use leakscope_common::Plain;

use super::sys;

/// An array map with `BPF_F_MMAPABLE`, mapped: whole, or some of its values. The kernel rounds values up to 8 bytes; all of
/// ours are multiples of it.
pub(crate) struct SharedArray<T> {
    base: NonNull<T>,
    /// The number of the first value that is mapped.
    first: usize,
    len: usize,
}

// SAFETY: the mapping is shared memory that is valid in every thread, and all access goes through volatile or atomic operations on `Plain` values.
unsafe impl<T: Plain + Send> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Plain + Sync> Sync for SharedArray<T> {}

impl<T: Plain> SharedArray<T> {
    /// Maps the `len` values of an array map.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::map_some(fd, 0..len)
    }

    /// Maps some values of an array map, the first of which begins a page.
    fn map_some(fd: BorrowedFd<'_>, indices: Range<usize>) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let (first, len) = (indices.start, indices.len());
        let offset = libc::off_t::try_from(first * size_of::<T>()).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the kernel checks the length against the map's.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast::<T>()).ok_or_else(|| io::Error::other("mmap returned 0"))?;
        Ok(Self { base, first, len })
    }

    /// The numbers of the values that are mapped.
    pub(crate) fn indices(&self) -> Range<usize> {
        self.first..self.first + self.len
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of a value.
    fn at(&self, index: usize) -> Option<*mut T> {
        let index = index.checked_sub(self.first)?;
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

    /// Reads a part of a value, at a byte offset inside it.
    pub(crate) fn part<P: Plain>(&self, index: usize, byte_offset: usize) -> Option<P> {
        const { assert!(align_of::<P>() <= 8) };
        if !byte_offset.is_multiple_of(8) || byte_offset + size_of::<P>() > size_of::<T>() {
            return None;
        }
        let at = self.at(index)?;
        // SAFETY: the part is inside the value, and 8-byte aligned; every bit pattern is a `Plain` value.
        Some(unsafe { at.byte_add(byte_offset).cast::<P>().read_volatile() })
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

/// Values that are mapped at a time: of 256 bytes each, 4 MiB.
const WINDOW: usize = 16_384;

/// Pages have at most so many bytes (64 KiB on some arm64 kernels), and mappings begin at pages.
const LARGEST_PAGE: usize = 65_536;

/// A large array map, of which only a window is mapped while it is looked at. The kernel enters all pages of a mapping at once,
/// and what is mapped counts as resident memory of ours, although it is the kernel's.
pub(crate) struct LargeArray<T> {
    fd: OwnedFd,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> LargeArray<T> {
    /// An array map of `len` values; nothing is mapped yet.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        const { assert!((WINDOW * size_of::<T>()).is_multiple_of(LARGEST_PAGE)) };
        Ok(Self {
            fd: fd.try_clone_to_owned()?,
            len,
            values: PhantomData,
        })
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Maps some values, the first of which begins a page; fewer where the array ends.
    pub(crate) fn some(&self, indices: Range<usize>) -> io::Result<SharedArray<T>> {
        SharedArray::map_some(
            self.fd.as_fd(),
            indices.start.min(self.len)..indices.end.min(self.len),
        )
    }

    /// One value, without a mapping: for few of very many.
    pub(crate) fn one(&self, index: usize) -> io::Result<T> {
        let index = u32::try_from(index).map_err(io::Error::other)?;
        sys::array_element(self.fd.as_fd(), index)
    }

    /// Maps the window with a value; `None` beyond the end.
    pub(crate) fn window(&self, index: usize) -> Option<io::Result<SharedArray<T>>> {
        let first = index - index % WINDOW;
        (index < self.len).then(|| {
            SharedArray::map_some(
                self.fd.as_fd(),
                first..first.saturating_add(WINDOW).min(self.len),
            )
        })
    }

    /// All windows in turn, each mapped while it is held.
    pub(crate) fn windows(&self) -> impl Iterator<Item = io::Result<SharedArray<T>>> {
        (0..self.len)
            .step_by(WINDOW)
            .filter_map(|first| self.window(first))
    }
}
