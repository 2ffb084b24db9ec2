//! A process's mappings: who mapped which addresses, what of it is left. Pure: steps of system calls and looks at what is mapped in, sums
//! out. Knows neither where they come from nor what a site's stack looks like.
//!
//! A mapping's length is what was asked for; the kernel gives and takes whole pages. So a piece ends where the request ended, and
//! what is taken away is rounded up to pages.

mod look;
mod protect;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::SiteId;
pub use look::{Area, LookTimes};
pub use survey::MappingSurvey;

/// A page, bytes (x86_64).
pub const PAGE: u64 = 4096;

/// What a mapping is for, as far as the call that made it says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum MappingKind {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// Anonymous memory that processes share (`MAP_SHARED`).
    Shared,
    /// The stack of a thread (`MAP_STACK`, `MAP_GROWSDOWN`).
    ThreadStack,
    /// The data segment, moved by brk(2).
    DataSegment,
    /// A file, privately or shared.
    File,
    /// Memory behind a descriptor (memfd_create(2)).
    Memfd,
    /// A segment of System V shared memory (shmat(2)).
    #[serde(rename = "sysv")]
    SysV,
}

/// A step of a system call that changes the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A mapping was made, in the place of whatever was there.
    Map {
        /// First address.
        address: u64,
        /// Bytes asked for.
        length: u64,
        /// What it is for.
        kind: MappingKind,
        /// Whether it may be read, written or executed: one that may not is address space, not memory.
        accessible: bool,
        /// Who did it.
        site: SiteId,
    },
    /// A range is being unmapped.
    Unmap {
        /// First address.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// A range is being moved or resized.
    Remap {
        /// First address.
        address: u64,
        /// Bytes, old; 0: a shared mapping is doubled, and nothing goes away.
        length: u64,
        /// Bytes, new.
        new_length: u64,
        /// The old range stays mapped, empty (`MREMAP_DONTUNMAP`).
        keeps_old: bool,
    },
    /// What the thread was doing last has not been done.
    Fail,
    /// The thread's [`Step::Remap`] was done.
    Remapped {
        /// The first address now.
        address: u64,
        /// Who did it: what it grew by is theirs.
        site: SiteId,
    },
    /// The end of the data segment moved.
    Break {
        /// Where it was; the end that was last known if `None`.
        from: Option<u64>,
        /// Where it is.
        to: u64,
        /// An allocator did it for itself: what it gained is not counted here.
        by_allocator: bool,
        /// Who did it.
        site: SiteId,
    },
    /// A range may be accessed from now on, or not.
    Protect {
        /// First address.
        address: u64,
        /// Bytes.
        length: u64,
        /// Whether it may be read, written or executed.
        accessible: bool,
        /// Who did it: what becomes memory by it is theirs. Unknown: of whoever mapped it.
        site: SiteId,
    },
}

impl MappingKind {
    /// For people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Anonymous => "mapping",
            Self::Shared => "shared mapping",
            Self::ThreadStack => "thread stack",
            Self::DataSegment => "data segment (brk)",
            Self::File => "file mapping",
            Self::Memfd => "memfd mapping",
            Self::SysV => "SysV shared memory",
        }
    }
}

/// What a piece of a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// First address behind it; not rounded.
    end: u64,
    /// The mapping that it belongs to.
    mapping: u64,
    site: SiteId,
    kind: MappingKind,
    accessible: bool,
    /// It was accessible at some time: its bytes are among those allocated.
    counted: bool,
    born_ns: u64,
}

/// Pieces that a thread's call has taken out, by their first addresses.
#[derive(Clone, Debug, Default)]
struct Taken {
    pieces: Vec<(u64, Piece)>,
    /// The remap's old address and lengths; `None` for an unmap.
    remap: Option<(u64, u64, u64)>,
}

/// What was ever mapped at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Made {
    objects: u64,
    bytes: u64,
    kind: MappingKind,
    /// Some of it was found by looks, as memory that had been address space.
    by_looks: bool,
}

/// The mappings of one process incarnation.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    /// Disjoint, by first address.
    pieces: BTreeMap<u64, Piece>,
    made: HashMap<SiteId, Made>,
    /// By thread: what its last call took out, to be put elsewhere, or back.
    taken: HashMap<u32, Taken>,
    /// The end of the data segment, where it is known.
    data_end: Option<u64>,
    next_mapping: u64,
}

/// Rounds up to a page.
fn page_up(address: u64) -> u64 {
    address.saturating_add(PAGE - 1) & !(PAGE - 1)
}

impl Mappings {
    /// Where the data segment ends at first.
    pub fn set_data_end(&mut self, end: u64) {
        self.data_end = Some(end);
    }

    /// Notes what was mapped before anybody looked: it counts as nothing, but is known when it grows.
    pub fn note_old(&mut self, area: &Area) {
        self.insert(
            area.start,
            Piece {
                end: area.end,
                mapping: 0,
                site: OLD,
                kind: area.kind,
                accessible: area.accessible,
                counted: area.accessible,
                born_ns: 0,
            },
        );
    }

    /// Deals with a step of a thread's system call.
    pub fn apply(&mut self, thread: u32, at_ns: u64, step: &Step) {
        match *step {
            Step::Map {
                address,
                length,
                kind,
                accessible,
                site,
            } => {
                self.take(address, length);
                self.add(address, length, kind, accessible, site, at_ns);
            }
            Step::Unmap { address, length } => {
                let taken = Taken {
                    pieces: self.take(address, length),
                    remap: None,
                };
                self.keep(thread, taken);
            }
            Step::Remap {
                address,
                length,
                new_length,
                keeps_old,
            } => {
                let mut pieces = self.take(address, length);
                if keeps_old {
                    for (start, piece) in &pieces {
                        // What stays is empty, and becomes memory only when it is written again.
                        let empty = Piece {
                            site: OLD,
                            ..*piece
                        };
                        self.insert(*start, empty);
                    }
                }
                if length == 0 {
                    pieces.clear();
                }
                let remap = Some((address, length, new_length));
                self.keep(thread, Taken { pieces, remap });
            }
            Step::Fail => {
                for (start, piece) in self.taken.remove(&thread).unwrap_or_default().pieces {
                    self.insert(start, piece);
                }
            }
            Step::Remapped { address, site } => self.remapped(thread, address, site, at_ns),
            Step::Break {
                from,
                to,
                by_allocator,
                site,
            } => {
                let from = from.or(self.data_end);
                self.data_end = Some(to);
                match from {
                    Some(from) if to > from && !by_allocator => {
                        // Each step is a mapping of its own, as old as itself: a heap that grows is judged by them.
                        self.take_exactly(from, to);
                        let kind = MappingKind::DataSegment;
                        self.add(from, to - from, kind, true, site, at_ns);
                    }
                    Some(from) if to < from => drop(self.take_exactly(to, page_up(from))),
                    _ => {}
                }
            }
            Step::Protect {
                address,
                length,
                accessible,
                site,
            } => self.protect(address, length, accessible, site, at_ns),
        }
    }

    /// Keeps what a thread's call took out until its next call.
    fn keep(&mut self, thread: u32, taken: Taken) {
        if taken.pieces.is_empty() && taken.remap.is_none() {
            self.taken.remove(&thread);
        } else {
            self.taken.insert(thread, taken);
        }
    }

    /// Counts and stores a new mapping.
    fn add(
        &mut self,
        address: u64,
        length: u64,
        kind: MappingKind,
        accessible: bool,
        site: SiteId,
        born_ns: u64,
    ) {
        if length == 0 {
            return;
        }
        self.next_mapping += 1;
        let made = self.made.entry(site).or_default();
        made.kind = kind;
        // A thread's stack is opened as soon as it is mapped.
        made.objects += u64::from(accessible || kind == MappingKind::ThreadStack);
        if accessible {
            made.bytes = made.bytes.saturating_add(length);
        }
        self.insert(
            address,
            Piece {
                end: address.saturating_add(length),
                mapping: self.next_mapping,
                site,
                kind,
                accessible,
                counted: accessible,
                born_ns,
            },
        );
    }

    /// Stores a piece, in the place of whatever was there.
    fn insert(&mut self, start: u64, piece: Piece) {
        if piece.end > start {
            self.take(start, piece.end - start);
            self.pieces.insert(start, piece);
        }
    }

    /// Takes out what lies in a range of whole pages.
    fn take(&mut self, address: u64, length: u64) -> Vec<(u64, Piece)> {
        if length == 0 {
            return Vec::new();
        }
        self.take_exactly(address, page_up(address.saturating_add(length)))
    }

    /// Takes out what lies in `[from, to)`; what is cut off on either side stays.
    fn take_exactly(&mut self, from: u64, to: u64) -> Vec<(u64, Piece)> {
        let mut taken = Vec::new();
        if from >= to {
            return taken;
        }
        let first = self
            .pieces
            .range(..from)
            .next_back()
            .filter(|(_, piece)| piece.end > from)
            .map_or(from, |(start, _)| *start);
        let starts: Vec<u64> = self
            .pieces
            .range(first..to)
            .map(|(start, _)| *start)
            .collect();
        for start in starts {
            let Some(piece) = self.pieces.remove(&start) else {
                continue;
            };
            if start < from {
                self.pieces.insert(start, Piece { end: from, ..piece });
            }
            if piece.end > to {
                self.pieces.insert(to, piece);
            }
            let inside = (start.max(from), piece.end.min(to));
            taken.push((
                inside.0,
                Piece {
                    end: inside.1,
                    ..piece
                },
            ));
        }
        taken
    }

    /// Puts what a remap took out where it is now.
    fn remapped(&mut self, thread: u32, address: u64, site: SiteId, at_ns: u64) {
        let Some(Taken {
            pieces,
            remap: Some((old, length, new_length)),
        }) = self.taken.remove(&thread)
        else {
            return;
        };
        self.take(address, new_length);
        if length == 0 {
            self.add(address, new_length, MappingKind::Shared, true, site, at_ns);
            return;
        }
        let limit = address.saturating_add(new_length);
        let mut last: Option<(u64, Piece)> = None;
        for (start, piece) in pieces {
            let start = start.wrapping_sub(old).wrapping_add(address);
            let end = piece.end.wrapping_sub(old).wrapping_add(address).min(limit);
            if start < end {
                self.insert(start, Piece { end, ..piece });
                last = Some((start, Piece { end, ..piece }));
            }
        }
        // It grows at its end: what was mapped there says what kind of memory it is.
        let old_end = address.saturating_add(page_up(length));
        if let Some((_, piece)) = last
            && page_up(piece.end) == old_end.min(page_up(limit))
            && limit > piece.end
        {
            self.add(
                piece.end,
                limit - piece.end,
                piece.kind,
                piece.accessible,
                site,
                at_ns,
            );
        }
    }

    /// How long the mappings of a site were in the mean, bytes.
    #[must_use]
    pub fn mean_bytes(&self, site: SiteId) -> u64 {
        let made = self.made.get(&site).copied().unwrap_or_default();
        made.bytes.checked_div(made.objects).unwrap_or(0)
    }

    /// Whether an address lies in a mapping that is known.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.pieces
            .range(..=address)
            .next_back()
            .is_some_and(|(_, piece)| piece.end > address)
    }
}

/// The site of what was mapped before anybody looked. No slot of the stack table has this number.
const OLD: SiteId = SiteId::MAX;
