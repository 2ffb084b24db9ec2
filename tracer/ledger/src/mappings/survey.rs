//! What is left of what a process mapped, site by site. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::{MappingKind, Mappings, OLD};
use crate::SiteId;

/// What is mapped of a site, and was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingSurvey {
    /// Mappings of which a part is left that may be accessed.
    pub inuse_objects: u64,
    /// Bytes of it that may be accessed.
    pub inuse_bytes: u64,
    /// Bytes that are reserved and may not be accessed.
    pub reserved_bytes: u64,
    /// Mappings made that could be accessed at some time.
    pub alloc_objects: u64,
    /// Bytes mapped that could be accessed at some time.
    pub alloc_bytes: u64,
    /// When the oldest of those that are left was made, CLOCK_MONOTONIC nanoseconds.
    pub oldest_born_ns: Option<u64>,
    /// What it is for.
    pub kind: MappingKind,
    /// Looks found that it grew: each what there was more since the last one, in however many calls.
    pub by_looks: bool,
}

impl Mappings {
    /// The sites that ever mapped something.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> {
        self.made.keys().copied()
    }

    /// What is left of each site that ever mapped something. `join` tells which site stands for one; only mappings made at
    /// `born_until_ns` or before count as in use.
    pub fn survey(
        &self,
        mut join: impl FnMut(SiteId) -> SiteId,
        born_until_ns: u64,
    ) -> BTreeMap<SiteId, MappingSurvey> {
        let mut surveys: BTreeMap<SiteId, MappingSurvey> = BTreeMap::new();
        for (site, made) in &self.made {
            let survey = surveys.entry(join(*site)).or_default();
            survey.alloc_objects += made.objects;
            survey.alloc_bytes = survey.alloc_bytes.saturating_add(made.bytes);
            survey.kind = made.kind;
            survey.by_looks |= made.by_looks;
        }
        let mut seen: HashSet<u64> = HashSet::new();
        for (start, piece) in &self.pieces {
            if piece.site == OLD || piece.born_ns > born_until_ns {
                continue;
            }
            let survey = surveys.entry(join(piece.site)).or_default();
            let bytes = piece.end - start;
            if !piece.accessible {
                // Address space, of which there is enough.
                survey.reserved_bytes = survey.reserved_bytes.saturating_add(bytes);
                if piece.kind != MappingKind::ThreadStack {
                    continue;
                }
            } else {
                survey.inuse_bytes = survey.inuse_bytes.saturating_add(bytes);
            }
            if seen.insert(piece.mapping) {
                survey.inuse_objects += 1;
            }
            survey.oldest_born_ns = Some(
                survey
                    .oldest_born_ns
                    .map_or(piece.born_ns, |oldest| oldest.min(piece.born_ns)),
            );
        }
        surveys
    }

    /// The address ranges of the stacks of threads that are left, each with its site.
    pub fn thread_stacks(&self) -> impl Iterator<Item = (SiteId, Range<u64>)> {
        self.pieces
            .iter()
            .filter(|(_, piece)| piece.kind == MappingKind::ThreadStack && piece.site != OLD)
            .map(|(start, piece)| (piece.site, *start..piece.end))
    }

    /// Shows each mapping of which something is left that may be accessed: its site, when it was made (CLOCK_MONOTONIC nanoseconds), and the bytes of it that
    /// may be accessed.
    pub fn visit(&self, mut visitor: impl FnMut(SiteId, u64, u64)) {
        let mut left: HashMap<u64, (SiteId, u64, u64)> = HashMap::new();
        for (start, piece) in &self.pieces {
            if piece.site != OLD && piece.accessible {
                let (.., bytes) =
                    left.entry(piece.mapping)
                        .or_insert((piece.site, piece.born_ns, 0));
                *bytes = bytes.saturating_add(piece.end - start);
            }
        }
        for (site, born_ns, bytes) in left.into_values() {
            visitor(site, born_ns, bytes);
        }
    }
}
