//! What differs between glibc's versions of what the walks read: `struct malloc_state` of `malloc/malloc.c`, and the headers of chunks that
//! have a mapping of their own.

use super::HEADER;
use crate::heap::memory::WORD;

/// The versions whose heaps are known, for people.
pub const GLIBC_VERSIONS: &str = "2.30 to 2.43";

/// `NBINS - 1`: bin 0 is not used.
pub(super) const BIN_COUNT: u64 = 127;

/// Of `struct malloc_state`, from `bins` on: `top` two words before, then `bins`, `binmap` (16 bytes), `next`, `next_free`,
/// `attached_threads`, `system_mem`, `max_system_mem`.
const TOP_BEFORE_BINS: u64 = 16;
const NEXT_AFTER_BINS: u64 = BIN_COUNT * 2 * WORD + 16;
const SYSTEM_MEM_AFTER_BINS: u64 = NEXT_AFTER_BINS + 3 * WORD;
const END_AFTER_BINS: u64 = SYSTEM_MEM_AFTER_BINS + 2 * WORD;

/// `fastbinsY` in `struct malloc_state`, where it is.
const FASTBINS: u64 = 16;

/// Since 2.43 the first word of a chunk with its own mapping has this bit where its pages are huge (`MMAP_HP`), beside the distance from the
/// beginning of the mapping.
const HUGE: u64 = 1;

/// How some versions lay out their books.
#[derive(Debug)]
pub(super) struct Form {
    /// The offset of `bins` in `struct malloc_state`.
    bins: u64,
    has_fastbins: bool,
    /// A chunk with its own mapping ends so many bytes before the mapping: since 2.43 like any other, before the header of the next.
    behind_mapped: u64,
}

/// 2.30 to 2.42, and 2.43, which has no fastbins.
pub(super) const FORMS: [Form; 2] = [
    Form {
        bins: 112,
        has_fastbins: true,
        behind_mapped: 0,
    },
    Form {
        bins: 24,
        has_fastbins: false,
        behind_mapped: HEADER,
    },
];

impl Form {
    /// Offsets in `struct malloc_state`: of a bin, of `top`, `next` and `system_mem`.
    pub(super) fn bin(&self, number: u64) -> u64 {
        self.bins + number * 2 * WORD
    }

    pub(super) fn top(&self) -> u64 {
        self.bins - TOP_BEFORE_BINS
    }

    pub(super) fn next(&self) -> u64 {
        self.bins + NEXT_AFTER_BINS
    }

    pub(super) fn system_mem(&self) -> u64 {
        self.bins + SYSTEM_MEM_AFTER_BINS
    }

    /// `sizeof (struct malloc_state)`.
    pub(super) fn state_bytes(&self) -> u64 {
        self.bins + END_AFTER_BINS
    }

    /// Where an arena's fastbins are.
    pub(super) fn fastbins(&self, state: u64) -> Option<u64> {
        self.has_fastbins
            .then(|| state.checked_add(FASTBINS))
            .flatten()
    }

    /// Whether a thread has a cache only when it frees something (until 2.42, from its first allocation on).
    pub(super) fn caches_with_first_free(&self) -> bool {
        !self.has_fastbins
    }

    /// Of a mapping that is one chunk, the bytes that its size does not count.
    pub(super) fn behind_mapped(&self) -> u64 {
        self.behind_mapped
    }

    /// Of these, the bytes that the block may not use: like any other it may use the first word behind its chunk.
    pub(super) fn mapped_tail(&self) -> u64 {
        self.behind_mapped.saturating_sub(WORD)
    }

    /// Whether the first word of a chunk is one of a mapping that begins with it.
    pub(super) fn begins_mapping(&self, first: u64) -> bool {
        first == 0 || self.behind_mapped > 0 && first == HUGE
    }
}
