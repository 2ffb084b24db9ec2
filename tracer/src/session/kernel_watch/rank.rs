//! Which of the machine's levels come first in a report, and which are left out. Pure.

use std::cmp::Ordering;

use crate::report::{KernelLevel, KernelLevelKind, Verdict};

/// So many levels of each kind are reported at most.
const MOST_OF_A_KIND: usize = 40;

/// Sorts levels, and leaves out the last of a kind of which there are too many; how many.
pub(super) fn ranked(mut levels: Vec<KernelLevel>) -> (Vec<KernelLevel>, u64) {
    levels.retain(|level| level.bytes > 0 || level.grows());
    levels.sort_by(compare);
    let mut seen = [0_usize; 4];
    let before = levels.len();
    levels.retain(|level| {
        let place = match level.kind {
            KernelLevelKind::Cache => 0,
            KernelLevelKind::Class => 1,
            KernelLevelKind::Line => 2,
            KernelLevelKind::Cgroup => 3,
        };
        let Some(seen) = seen.get_mut(place) else {
            return false;
        };
        *seen += 1;
        *seen <= MOST_OF_A_KIND
    });
    let omitted = before.saturating_sub(levels.len());
    (levels, u64::try_from(omitted).unwrap_or(u64::MAX))
}

fn compare(one: &KernelLevel, two: &KernelLevel) -> Ordering {
    let class = |level: &KernelLevel| match (level.verdict, level.reclaimable) {
        (Verdict::Leaking, _) => 0,
        (_, false) if level.grows() => 1,
        (_, true) if level.grows() => 2,
        _ => 3,
    };
    let growth = |level: &KernelLevel| {
        if level.grows() {
            // By what is sure: what jumps about does not come before what rises.
            level.growth_bytes_per_s_low
        } else {
            0.0
        }
    };
    class(one)
        .cmp(&class(two))
        .then_with(|| growth(two).total_cmp(&growth(one)))
        .then_with(|| two.bytes.cmp(&one.bytes))
        .then_with(|| (one.kind, &one.name).cmp(&(two.kind, &two.name)))
}

#[cfg(test)]
mod tests {
    use super::ranked;
    use crate::report::{KernelLevel, Verdict};

    fn level(name: &str, verdict: Verdict, reclaimable: bool, growth: f64) -> KernelLevel {
        KernelLevel {
            name: name.to_owned(),
            verdict,
            reclaimable,
            bytes: 1000,
            growth_bytes_per_s_low: growth,
            ..KernelLevel::default()
        }
    }

    #[test]
    fn a_leak_comes_before_what_grows_and_that_before_a_cache() {
        let (levels, omitted) = ranked(vec![
            level("still", Verdict::Plateau, false, 9e9),
            level("dentry", Verdict::WarmingUp, true, 5000.0),
            level("slow", Verdict::WarmingUp, false, 10.0),
            level("fast", Verdict::WarmingUp, false, 500.0),
            level("leak", Verdict::Leaking, false, 1.0),
        ]);
        let names: Vec<&str> = levels.iter().map(|level| level.name.as_str()).collect();
        assert_eq!(names, ["leak", "fast", "slow", "dentry", "still"]);
        assert_eq!(omitted, 0);
    }

    #[test]
    fn of_many_the_last_are_left_out() {
        let many = (0..100).map(|number| level(&number.to_string(), Verdict::Plateau, false, 0.0));
        let (levels, omitted) = ranked(many.collect());
        assert_eq!((levels.len(), omitted), (40, 60));
    }
}
