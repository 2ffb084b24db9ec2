//! What a look at all that a process maps adds to what its system calls told: what is there no more, and what nobody told of. Pure.

use std::collections::HashSet;

use super::{MappingKind, Mappings, OLD, Piece, SiteId, page_up};

/// What lies at some addresses of a process, by a look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What it is for.
    pub kind: MappingKind,
    /// Whether it may be read, written or executed.
    pub accessible: bool,
    /// A program's or a library's code.
    pub code: bool,
}

/// When a process was looked at, CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookTimes {
    /// When the look began.
    pub at_ns: u64,
    /// What was being mapped since then may not have been there yet.
    pub settled_ns: u64,
}

impl Mappings {
    /// Deals with a look at all that the process maps, by address: what is there no more has ended, and what is there that nobody told of
    /// belongs to the site that `found` gives for its kind; to none, and counts as nothing, where it gives none.
    pub fn look(
        &mut self,
        areas: &[Area],
        times: LookTimes,
        mut found: impl FnMut(MappingKind) -> Option<SiteId>,
    ) {
        for (start, piece) in std::mem::take(&mut self.pieces) {
            if piece.born_ns > times.settled_ns {
                self.pieces.insert(start, piece);
            } else {
                self.see(start, &piece, areas, times);
            }
        }
        for area in areas {
            for (from, to) in self.gaps(area) {
                let gap = Area {
                    start: from,
                    end: to,
                    ..*area
                };
                match found(area.kind).filter(|_| !area.code) {
                    Some(site) => self.add(
                        from,
                        to - from,
                        area.kind,
                        area.accessible,
                        site,
                        times.at_ns,
                    ),
                    None => self.note_old(&gap),
                }
            }
        }
    }

    /// Keeps of a piece what is still there, as what it is now.
    fn see(&mut self, start: u64, piece: &Piece, areas: &[Area], times: LookTimes) {
        let first = areas.partition_point(|area| area.end <= start);
        let there = areas.iter().skip(first);
        for area in there.take_while(|area| area.start < piece.end) {
            let from = start.max(area.start);
            let mut part = Piece {
                end: piece.end.min(area.end),
                accessible: area.accessible,
                ..*piece
            };
            if part.kind == MappingKind::File && area.kind != MappingKind::Anonymous {
                // Only its name says what a descriptor was of.
                part.kind = area.kind;
            }
            if piece.site != OLD {
                self.made.entry(piece.site).or_default().kind = part.kind;
            }
            if part.accessible && !part.counted {
                self.next_mapping += 1;
                let first = (self.next_mapping, true);
                part.becomes_memory(from, &mut self.made, first, times.at_ns);
                if part.site != OLD {
                    self.made.entry(part.site).or_default().by_looks = true;
                }
            }
            self.pieces.insert(from, part);
        }
    }

    /// The address ranges of an area of which nothing is known.
    fn gaps(&self, area: &Area) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = self
            .pieces
            .range(..area.start)
            .next_back()
            .map_or(area.start, |(_, piece)| page_up(piece.end).max(area.start));
        for (start, piece) in self.pieces.range(area.start..area.end) {
            if *start > at {
                gaps.push((at, *start));
            }
            at = at.max(page_up(piece.end));
        }
        if at < area.end {
            gaps.push((at, area.end));
        }
        gaps
    }

    /// Takes over from a look what kind of files' mappings are, and which segments of System V shared memory are there no more: all
    /// other steps were told of.
    pub fn look_at_files(&mut self, areas: &[Area], times: LookTimes) {
        let is_asked = |piece: &Piece| matches!(piece.kind, MappingKind::File | MappingKind::SysV);
        let asked: Vec<(u64, Piece)> = self
            .pieces
            .iter()
            .filter(|(_, piece)| is_asked(piece) && piece.born_ns <= times.settled_ns)
            .map(|(start, piece)| (*start, *piece))
            .collect();
        for (start, piece) in asked {
            self.pieces.remove(&start);
            self.see(start, &piece, areas, times);
        }
    }

    /// Whether a look can tell more of files' mappings.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.pieces.values().any(|piece| {
            piece.site != OLD && matches!(piece.kind, MappingKind::File | MappingKind::SysV)
        })
    }

    /// Mappings that are left of those made since some time, and their bytes.
    #[must_use]
    pub fn made_since(&self, born_ns: u64) -> (usize, u64) {
        let mut mappings = HashSet::new();
        let mut bytes = 0_u64;
        for (start, piece) in &self.pieces {
            if piece.site != OLD && piece.born_ns > born_ns {
                mappings.insert(piece.mapping);
                bytes = bytes.saturating_add(piece.end - start);
            }
        }
        (mappings.len(), bytes)
    }
}
