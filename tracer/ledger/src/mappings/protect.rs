//! Address space that becomes memory: what could not be accessed and now can, by mprotect(2) or as a look finds it. It counts as a mapping
//! made then, so that a heap that grows by it is judged by its steps.

use std::collections::HashMap;

use leakscope_common::UNKNOWN_SITE;

use super::{Made, MappingKind, Mappings, OLD, Piece, SiteId};

impl Piece {
    /// It was address space only, and is memory from now on: a part of this mapping, whose first it may be.
    pub(super) fn becomes_memory(
        &mut self,
        start: u64,
        made: &mut HashMap<SiteId, Made>,
        (mapping, is_first): (u64, bool),
        at_ns: u64,
    ) {
        self.counted = true;
        if self.site != OLD {
            let made = made.entry(self.site).or_default();
            made.kind = self.kind;
            // A stack counted when it was mapped.
            made.objects += u64::from(is_first && self.kind != MappingKind::ThreadStack);
            made.bytes = made.bytes.saturating_add(self.end.saturating_sub(start));
        }
        // A thread's stack is mapped as one, guard and all.
        if self.kind != MappingKind::ThreadStack {
            self.born_ns = at_ns;
            self.mapping = mapping;
        }
    }
}

impl Mappings {
    /// A range may be accessed from now on, or not; `site`: who did it, where that is known.
    pub(super) fn protect(
        &mut self,
        address: u64,
        length: u64,
        accessible: bool,
        site: SiteId,
        at_ns: u64,
    ) {
        // All that one call makes memory at a site is one mapping.
        let mut last: Option<(SiteId, u64)> = None;
        for (start, mut piece) in self.take(address, length) {
            piece.accessible = accessible;
            if accessible && !piece.counted {
                if site != UNKNOWN_SITE && piece.kind != MappingKind::ThreadStack {
                    piece.site = site;
                }
                let known = last.filter(|(of, _)| *of == piece.site);
                let mapping = known.map_or_else(
                    || {
                        self.next_mapping += 1;
                        self.next_mapping
                    },
                    |(_, mapping)| mapping,
                );
                let part = (mapping, known.is_none());
                piece.becomes_memory(start, &mut self.made, part, at_ns);
                last = Some((piece.site, mapping));
            }
            self.pieces.insert(start, piece);
        }
    }
}
