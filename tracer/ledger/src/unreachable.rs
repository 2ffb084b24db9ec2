//! Blocks that no pointer in a process leads to, as evidence: nobody can free them any more, whatever the flow of their site looks like.

use super::verdict::{Judgement, LOOK_FOR_S, Verdict};
use leakscope_model::units::{blocks, count};

/// How a verdict begins that rests on them.
pub const NO_POINTER: &str = "no pointer in the process leads to";

/// Fewer blocks may be on their way: a pointer that is only in the kernel, in a pipe or a wait queue.
const LEAST_BLOCKS: u64 = 10;

/// What two looks at a heap found of a site's surviving blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unreachable {
    /// Blocks that no pointer led to in both.
    pub objects: u64,
    /// Of so many.
    pub checked: u64,
    /// How long the process had been watched, seconds.
    pub watched_s: f64,
}

impl Unreachable {
    /// Whether that is a leak by itself.
    #[must_use]
    pub fn is_leak(&self) -> bool {
        self.watched_s >= LOOK_FOR_S && self.objects >= LEAST_BLOCKS
    }

    /// What to make of a site of which this was found, where its flow was judged so.
    #[must_use]
    pub fn judge(&self, by_flow: Judgement) -> Judgement {
        if !self.is_leak() || by_flow.verdict == Verdict::Leaking {
            return by_flow;
        }
        let reason = format!(
            "{NO_POINTER} {} of {}",
            if self.objects == self.checked {
                "any".to_owned()
            } else {
                count(self.objects)
            },
            blocks(self.checked)
        );
        Judgement {
            verdict: Verdict::Leaking,
            reason,
            ..by_flow
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Unreachable;
    use crate::verdict::{Judgement, Verdict};

    fn judged(objects: u64, watched_s: f64) -> Verdict {
        let found = Unreachable {
            objects,
            checked: 5000,
            watched_s,
        };
        found.judge(Judgement::default()).verdict
    }

    #[test]
    fn what_no_pointer_leads_to_leaks_from_the_tenth_second_on() {
        assert_eq!(judged(4000, 9.9), Verdict::InsufficientData);
        assert_eq!(judged(4000, 10.0), Verdict::Leaking);
        assert_eq!(judged(0, 100.0), Verdict::InsufficientData);
        assert_eq!(judged(3, 100.0), Verdict::InsufficientData);
    }
}
