//! A large array that is filled: one that is given twice the room when it is full is made more and more rarely, and no flow of blocks shows that it grows. The
//! process's memory does, for its pages are touched as it is filled. Pure.

use super::{
    flow::{LEAK_AFTER_S, rate_of},
    verdict::{Judgement, Verdict},
    windows::ProcessBesides,
};
use leakscope_model::units::{bytes, duration};

/// The blocks before were so much smaller in the mean, as a part of those that are there.
const SMALLER: f64 = 0.75;

/// Blocks made for each that is there, at least.
const MADE: u64 = 2;

/// Sites that leak leave so much of the growth unexplained at least.
const LEFT: f64 = 0.75;

/// Others that could be it hold so much of what it holds at the most.
const OTHERS: f64 = 0.5;

/// A site whose every call was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ArraySite {
    /// What was made of it.
    pub verdict: Verdict,
    /// How fast it grows by what was asked for, bytes a second.
    pub growth_bytes_per_s: f64,
    /// Blocks in use.
    pub inuse_objects: u64,
    /// Their bytes.
    pub inuse_bytes: u64,
    /// Blocks allocated since tracing began.
    pub alloc_objects: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// How old the oldest is, seconds.
    pub oldest_age_s: f64,
}

impl ArraySite {
    /// Whether its blocks were replaced by larger ones, with room for what memory has grown by since.
    fn has_room_for(&self, bytes_per_s: f64) -> bool {
        let mean = |bytes: u64, objects: u64| bytes as f64 / objects.max(1) as f64;
        let before = self.alloc_objects.saturating_sub(self.inuse_objects);
        let before = mean(self.alloc_bytes.saturating_sub(self.inuse_bytes), before);
        matches!(self.verdict, Verdict::WarmingUp | Verdict::Plateau)
            && self.inuse_objects > 0
            && self.alloc_objects >= MADE.saturating_mul(self.inuse_objects)
            && before > 0.0
            && before <= SMALLER * mean(self.inuse_bytes, self.inuse_objects)
            && self.inuse_bytes as f64 >= bytes_per_s * self.oldest_age_s
    }
}

/// Which of a process's sites is the array that its memory grows by, and what to make of it.
#[must_use]
pub fn filled(
    sites: &[ArraySite],
    memory: &ProcessBesides,
    watched_s: f64,
) -> Option<(usize, Judgement)> {
    let grows = memory.grows_to_the_end(watched_s)?;
    let leaks = sites
        .iter()
        .filter(|site| site.verdict == Verdict::Leaking)
        .map(|site| site.growth_bytes_per_s.max(0.0));
    let left = grows - leaks.sum::<f64>();
    if watched_s < LEAK_AFTER_S || left < LEFT * grows {
        return None;
    }
    let candidates = || {
        let all = sites.iter().enumerate();
        all.filter(|(_, site)| site.has_room_for(left))
    };
    let (place, site) = candidates().max_by_key(|(_, site)| site.inuse_bytes)?;
    let all: u64 = candidates().map(|(_, site)| site.inuse_bytes).sum();
    let others = all.saturating_sub(site.inuse_bytes);
    (others as f64 <= OTHERS * site.inuse_bytes as f64).then(|| {
        let reason = format!(
            "its block is replaced by ever larger ones, now of {}, and filled: the process's memory grows {}, for {}, no sign of levelling off",
            bytes(site.inuse_bytes / site.inuse_objects.max(1)),
            rate_of(left),
            duration(watched_s)
        );
        let judgement = Judgement {
            verdict: Verdict::Leaking,
            reason,
            growth_bytes_per_s: left,
        };
        (place, judgement)
    })
}

#[cfg(test)]
mod tests {
    use super::{ArraySite, ProcessBesides, Verdict, filled};

    const RATE: f64 = 160_000.0;
    const ARRAY: ArraySite = ArraySite {
        verdict: Verdict::WarmingUp,
        growth_bytes_per_s: RATE,
        inuse_objects: 1,
        inuse_bytes: 16 << 20,
        alloc_objects: 6,
        alloc_bytes: 31 << 20,
        oldest_age_s: 51.0,
    };

    fn memory(late: f64, last: f64) -> ProcessBesides {
        ProcessBesides {
            memory_bytes_per_s: late,
            memory_before_bytes_per_s: [RATE, RATE],
            memory_last_bytes_per_s: last,
            memory_rise: 8.0,
            ..ProcessBesides::default()
        }
    }

    #[test]
    fn a_vector_that_doubles_was_said_to_have_stopped() {
        let found = filled(&[ArraySite::default(), ARRAY], &memory(RATE, RATE), 100.0);
        let found = found.map(|(place, it)| (place, it.verdict, it.growth_bytes_per_s));
        assert_eq!(found, Some((1, Verdict::Leaking, RATE)));
    }

    #[test]
    fn a_vector_that_is_full_or_whose_memory_others_take_is_no_leak() {
        assert_eq!(filled(&[ARRAY], &memory(RATE, 0.0), 100.0), None);
        assert_eq!(filled(&[ARRAY], &memory(0.2 * RATE, RATE), 100.0), None);
        assert_eq!(filled(&[ARRAY], &memory(RATE, RATE), 20.0), None);
        let leak = ArraySite {
            verdict: Verdict::Leaking,
            growth_bytes_per_s: 0.9 * RATE,
            ..ArraySite::default()
        };
        assert_eq!(filled(&[ARRAY, leak], &memory(RATE, RATE), 100.0), None);
        let same = ArraySite {
            alloc_bytes: 6 * ARRAY.inuse_bytes,
            ..ARRAY
        };
        assert_eq!(filled(&[same], &memory(RATE, RATE), 100.0), None);
        // It has no room for that.
        let small = ArraySite {
            inuse_bytes: 1 << 20,
            alloc_bytes: 2 << 20,
            ..ARRAY
        };
        assert_eq!(filled(&[small], &memory(RATE, RATE), 100.0), None);
    }
}
