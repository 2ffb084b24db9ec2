//! Blocks that are all held by one container which shrinks, as evidence against a leak: who lets go of them is still there, and does it.

use super::verdict::{Judgement, Verdict};
use leakscope_model::units::{blocks, count};

/// A container that has let go of fewer than one in so many of its blocks may only have been tidied.
const LEAST_PART: u64 = 10;

/// Fewer blocks say nothing.
const LEAST_BLOCKS: u64 = 50;

/// What two looks at a heap, one after the other, found of a site all of whose blocks one container holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldByOne {
    /// Blocks in the earlier look.
    pub before: u64,
    /// Blocks in the later one.
    pub now: u64,
}

impl HeldByOne {
    /// Whether the container shrinks.
    #[must_use]
    pub fn shrinks(self) -> bool {
        let gone = self.before.saturating_sub(self.now);
        self.before >= LEAST_BLOCKS && gone >= self.before / LEAST_PART
    }

    /// What to make of a site of which this was found, where its flow was judged so. `container`: what holds its blocks.
    #[must_use]
    pub fn judge(self, by_flow: Judgement, container: &str) -> Judgement {
        if !self.shrinks() || by_flow.verdict != Verdict::Leaking {
            return by_flow;
        }
        let reason = format!(
            "all of it is held by {container}, which shrinks: from {} to {}; of growth: {}",
            blocks(self.before),
            count(self.now),
            by_flow.reason
        );
        Judgement {
            verdict: Verdict::Churn,
            reason,
            ..by_flow
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HeldByOne;
    use crate::verdict::{Judgement, Verdict};

    fn judged(before: u64, now: u64) -> Judgement {
        let leaks = Judgement {
            verdict: Verdict::Leaking,
            reason: "it grows".to_owned(),
            growth_bytes_per_s: 1.0,
        };
        HeldByOne { before, now }.judge(leaks, "std::map node")
    }

    #[test]
    fn a_site_whose_blocks_are_all_held_by_one_container_that_shrinks_was_called_a_leak() {
        let judged_so = judged(5000, 3000);
        assert_eq!(judged_so.verdict, Verdict::Churn);
        assert!(judged_so.reason.contains("std::map node, which shrinks"));
        for (before, now) in [(5000, 5000), (5000, 4900), (5000, 9000), (20, 1)] {
            assert_eq!(
                judged(before, now).verdict,
                Verdict::Leaking,
                "{before} {now}"
            );
        }
    }
}
