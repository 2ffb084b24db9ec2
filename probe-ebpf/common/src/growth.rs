//! What the probe tells of mappings: one record for each step of a system call that changes them.

use crate::layout::layout;

/// A step of a system call that changes a process's mappings. The order of the records is the order of what happened: what takes
/// a mapping away is told before the kernel does it, what makes one afterwards, so that another thread that is given the same
/// addresses in between cannot be told of first.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingStep {
    /// mmap(2) has made a mapping of `length` bytes at `address`.
    Mapped = 1,
    /// munmap(2) of `length` bytes from `address` on begins.
    Unmapping = 2,
    /// munmap(2) of this thread has failed.
    UnmapFailed = 3,
    /// mremap(2) of `length` bytes from `address` on, to become `new_length` bytes, begins.
    Remapping = 4,
    /// mremap(2) of this thread has ended: the mapping is at `address` now; 0: it failed. Where it was not seen to end, it is about to
    /// move its `length` bytes to where the kernel found `new_length` free ones; otherwise both are 0.
    Remapped = 5,
    /// brk(2) has moved the end of the data segment from `address`, or from somewhere unknown if that is 0, to `address + length`.
    Broke = 6,
    /// mprotect(2) or pkey_mprotect(2) has changed what may be done with `length` bytes from `address` on; with the site where
    /// they may be accessed from then on.
    Protected = 7,
    /// mmap(2) or shmat(2) is about to map `length` bytes where the kernel found `new_length` free ones, from `address` on; `length` is 0
    /// for shmat(2), which takes its length from the segment. It may still fail.
    Placed = 8,
}

impl MappingStep {
    /// Every step.
    pub const ALL: [Self; 8] = [
        Self::Mapped,
        Self::Unmapping,
        Self::UnmapFailed,
        Self::Remapping,
        Self::Remapped,
        Self::Broke,
        Self::Protected,
        Self::Placed,
    ];

    /// The step of a number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u32 == number)
    }
}

/// An allocator did it for itself, within a call that the probe follows: what it handed out of it is counted as blocks.
pub const MAPPING_BY_ALLOCATOR: u32 = 1;

/// A [`MappingStep`] in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MappingRecord {
    /// [`crate::EventKind::Mapping`].
    pub kind: u32,
    /// Thread group id, in the kernel's initial PID namespace.
    pub tgid: u32,
    /// The process incarnation.
    pub incarnation: u32,
    /// Thread id.
    pub thread: u32,
    /// A [`MappingStep`] as a number.
    pub step: u32,
    /// The stack's site, where something was mapped or became accessible.
    pub site: u32,
    /// `PROT_*` of mmap(2) and mprotect(2).
    pub protection: u32,
    /// `MAP_*` of mmap(2), `MREMAP_*` of mremap(2).
    pub flags: u32,
    /// [`MAPPING_BY_ALLOCATOR`] or 0.
    pub marks: u32,
    /// [`MappingStep::Placed`]: where in the file, pages, cut off after 32 bits.
    pub page_offset: u32,
    /// See [`MappingStep`].
    pub address: u64,
    /// See [`MappingStep`]: bytes as they were asked for, which the kernel rounds up to pages.
    pub length: u64,
    /// See [`MappingStep`].
    pub new_length: u64,
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
}

layout! {
    MappingRecord = 4 * 10 + 8 * 4;
}

#[cfg(test)]
mod tests {
    use super::MappingStep;

    #[test]
    fn a_step_survives_its_number() {
        for step in MappingStep::ALL {
            assert_eq!(MappingStep::from_number(step as u32), Some(step));
        }
        assert_eq!(MappingStep::from_number(0), None);
    }
}
