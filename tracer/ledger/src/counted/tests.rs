//! Heaps that are counted, of sites whose truth is known.

#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Counted, CountedSite, Left, count};
use crate::{
    BlockSize, Estimate, Judgement, OfSize, ProcessBesides, SiteId, SizeCounts, ToldApart, Verdict,
    WindowOfSite, judge_windows,
};

const SECOND: u64 = 1_000_000_000;
const LEAK: SiteId = 1;
const CHURN: SiteId = 2;

/// Looks every eight seconds at a heap whose blocks of 112 bytes are as many as a function of the time says, and those of 128 always as many.
fn looks(until_s: u64, blocks: impl Fn(f64) -> f64) -> SizeCounts {
    let mut counts = SizeCounts::default();
    for at_s in (1..=until_s).step_by(8) {
        // A few come and go.
        let swing = at_s / 8 * 7 % 10;
        let now = blocks(at_s as f64) as u64 + swing;
        counts.note(at_s * SECOND, [(112, now), (128, 8_000 + swing)]);
    }
    counts
}

fn of(old: f64) -> OfSize {
    OfSize {
        watched: old,
        bytes: 96.0 * old,
        old,
        oldest: old / 2.0,
        windows: 20,
        ..OfSize::default()
    }
}

fn counted(counts: &SizeCounts, blocks: &[(SiteId, BlockSize, f64)], until_s: u64) -> Counted {
    let blocks: BTreeMap<_, _> = blocks
        .iter()
        .map(|(site, size, old)| ((*site, *size), of(*old)))
        .collect();
    count(counts, &blocks, 0, until_s * SECOND).unwrap()
}

/// A site that windows caught few blocks of, all of which stay, among a million others a second.
fn windows(of_each: f64, length_s: f64) -> Vec<WindowOfSite> {
    (0..30)
        .map(|number| {
            let alive = if number % 8 == 0 { of_each } else { 0.0 };
            WindowOfSite {
                closed_s: 2.0 * f64::from(number) + 1.0,
                effective_s: length_s,
                born: alive,
                survived: alive,
                alive,
                alive_bytes: 96.0 * alive,
                alive_before: Some(alive),
                ..WindowOfSite::default()
            }
        })
        .collect()
}

fn judge(windows: &[WindowOfSite], counted: Option<&CountedSite>) -> Verdict {
    let besides = ProcessBesides::default();
    judge_windows(windows, 75.0, ToldApart::ALL, &besides, counted).verdict
}

#[test]
fn a_queue_that_fills_up_was_called_churn_beside_its_counted_growth() {
    // Every block goes after some seconds, and there are more and more of them; those of the last windows are there.
    let rises = looks(75, |at| 8_000.0 + 160.0 * at);
    let young = OfSize {
        watched: 40.0,
        bytes: 96.0 * 40.0,
        ..OfSize::default()
    };
    let blocks = BTreeMap::from([((LEAK, 112), young)]);
    let queue: Vec<WindowOfSite> = (0..30)
        .map(|number| WindowOfSite {
            closed_s: 2.5 * f64::from(number) + 1.0,
            effective_s: 0.1,
            born: 20.0,
            survived: 20.0,
            alive: if number > 27 { 20.0 } else { 0.0 },
            ..WindowOfSite::default()
        })
        .collect();
    let found = count(&rises, &blocks, 0, 75 * SECOND).unwrap();
    let site = found.sites.get(&LEAK).unwrap();
    assert!(!site.is_divided && site.rises(), "{site:?}");
    assert_eq!(judge(&queue, Some(site)), Verdict::WarmingUp);
    // The process is told of it as before.
    assert!(found.unexplained.iter().any(|of| of.size == 112));
    let level = count(&looks(75, |_| 8_000.0), &blocks, 0, 75 * SECOND).unwrap();
    let site = level.sites.get(&LEAK).unwrap();
    assert_eq!(judge(&queue, Some(site)), Verdict::Churn);
}

#[test]
fn a_rate_was_off_by_as_much_as_the_time_that_windows_stand_for() {
    let counts = looks(75, |at| 8_000.0 + 1_600.0 * at);
    let found = counted(&counts, &[(LEAK, 112, 400.0), (CHURN, 112, 0.0)], 75);
    let leak = found.sites.get(&LEAK).unwrap();
    assert!(
        (leak.bytes_per_s / (1_600.0 * 96.0) - 1.0).abs() < 0.01,
        "{leak:?}"
    );
    assert!(leak.grows && leak.carries() && leak.error() < 0.02 * leak.bytes_per_s);
    let truth = 75.0 * 1_600.0 * 96.0;
    assert!((leak.grown_bytes / truth - 1.0).abs() < 0.02, "{leak:?}");
    let churn = found.sites.get(&CHURN).unwrap();
    assert!(!churn.grows && churn.bytes_per_s.abs() < 1e-9);
    assert!(found.unexplained.is_empty());
}

/// The first window's blocks are looked at when its probes are going.
#[test]
fn until_the_second_window_a_leak_was_the_few_blocks_of_the_first() {
    let counts = looks(41, |at| 8_000.0 + 1_600.0 * at);
    let doubtful = |number| OfSize {
        doubtful: number,
        old: 0.0,
        oldest: 0.0,
        ..of(number)
    };
    let blocks = [
        ((LEAK, 112), doubtful(40.0)),
        ((CHURN, 112), doubtful(10.0)),
    ];
    let found = count(&counts, &blocks.into(), 0, 41 * SECOND).unwrap();
    let leak = found.sites.get(&LEAK).unwrap();
    assert!((leak.bytes_per_s / (0.8 * 1_600.0 * 96.0) - 1.0).abs() < 0.05);
    assert!(!leak.carries());
}

#[test]
fn sites_of_one_size_share_its_growth() {
    let counts = looks(75, |at| 8_000.0 + 1_000.0 * at);
    let found = counted(&counts, &[(LEAK, 112, 300.0), (CHURN, 112, 100.0)], 75);
    let rate = |site| found.sites.get(&site).map_or(0.0, |site| site.bytes_per_s);
    assert!((rate(LEAK) / 72_000.0 - 1.0).abs() < 0.02);
    let sum = rate(LEAK) + rate(CHURN);
    assert!((sum / 96_000.0 - 1.0).abs() < 0.01, "{sum}");
    let leak = found.sites.get(&LEAK).unwrap();
    assert!(leak.share_error > 0.02 && leak.share_error < 0.05);
}

/// A request of 96 bytes takes a chunk of 112, or of 128 where too little would be left over.
#[test]
fn blocks_in_chunks_of_two_sizes_were_counted_by_one() {
    let mut counts = SizeCounts::default();
    for at_s in (1..=75_u64).step_by(8) {
        // What one size gains by chance the other loses.
        let drift = 40 * (at_s / 8 % 3);
        let (most, few) = (9_000 + 900 * at_s - drift, 5_000 + 100 * at_s + drift);
        counts.note(at_s * SECOND, [(112, most), (128, few)]);
    }
    let found = counted(&counts, &[(LEAK, 112, 360.0), (LEAK, 128, 40.0)], 75);
    let leak = found.sites.get(&LEAK).unwrap();
    assert!((leak.bytes_per_s / 96_000.0 - 1.0).abs() < 0.01, "{leak:?}");
    assert!(leak.grows);
    assert_eq!(leak.size, 112);
}

#[test]
fn thirty_blocks_a_second_beside_a_million_were_not_named() {
    let counts = looks(75, |at| 8_000.0 + 30.0 * at);
    let found = counted(&counts, &[(LEAK, 112, 4.0), (CHURN, 112, 0.0)], 75);
    let leak = found.sites.get(&LEAK).unwrap();
    let seen = windows(1.0, 0.004);
    assert_eq!(judge(&seen, None), Verdict::InsufficientData);
    assert_eq!(judge(&seen, Some(leak)), Verdict::Leaking);
    assert!((leak.bytes_per_s / 2_880.0 - 1.0).abs() < 0.05);
}

#[test]
fn what_no_window_caught_was_not_even_said_to_grow() {
    let counts = looks(75, |at| 8_000.0 + 30.0 * at);
    let found = counted(&counts, &[(CHURN, 112, 0.0)], 75);
    let [grown] = found.unexplained.as_slice() else {
        unreachable!("{:?}", found.unexplained)
    };
    assert_eq!(grown.size, 112);
    assert!((grown.objects_per_s - 30.0).abs() < 2.0);
}

#[test]
fn blocks_that_stay_where_as_many_go_were_called_a_leak() {
    let counts = looks(75, |_| 8_000.0);
    let found = counted(&counts, &[(LEAK, 112, 400.0)], 75);
    let cache = found.sites.get(&LEAK).unwrap();
    let mut seen = windows(0.0, 0.1);
    for window in &mut seen {
        let alive = 20.0;
        window.born = alive;
        window.survived = alive;
        window.alive = alive;
        window.alive_bytes = 96.0 * alive;
        window.alive_before = Some(alive);
    }
    assert_eq!(judge(&seen, None), Verdict::Leaking);
    assert_eq!(judge(&seen, Some(cache)), Verdict::Plateau);
}

#[test]
fn a_cache_that_has_filled_was_taken_to_grow_on() {
    let counts = looks(75, |at| 8_000.0 + 500.0 * at.min(30.0));
    let found = counted(&counts, &[(LEAK, 112, 400.0)], 75);
    assert!(!found.sites.get(&LEAK).unwrap().grows);
    let slows = looks(75, |at| 8_000.0 + 20_000.0 * (1.0 - (-at / 20.0).exp()));
    let found = counted(&slows, &[(LEAK, 112, 400.0)], 75);
    assert!(!found.sites.get(&LEAK).unwrap().grows);
}

#[test]
fn chunks_that_kept_a_remainder_were_a_leak_that_no_window_had_caught() {
    let found = |of_next: f64| {
        let mut counts = SizeCounts::default();
        for at_s in (1..=75).step_by(8) {
            let at = at_s as f64;
            let sizes = [
                (112, (8_000.0 + 200.0 * at) as u64),
                (128, (50.0 + of_next * at) as u64),
            ];
            counts.note(at_s * SECOND, sizes);
        }
        counted(&counts, &[(LEAK, 112, 400.0)], 75)
    };
    assert_eq!(found(10.0).unexplained, []);
    // So many are blocks of others.
    assert_eq!(found(100.0).unexplained.len(), 1);
}

#[test]
fn a_full_cache_of_blocks_that_look_alike_was_said_to_hold_what_the_windows_had_seen() {
    let counts = looks(75, |_| 20_000.0);
    let mut found = counted(&counts, &[(LEAK, 112, 178.0)], 75);
    let mut estimates = BTreeMap::from([(
        LEAK,
        Estimate {
            inuse_objects: 81,
            inuse_bytes: 16_281,
            inuse_bytes_low: 2_000,
            inuse_bytes_high: 11_400_000,
            counted_bytes: 16_281,
            observed_objects: 178,
            alike_objects: 178,
            ..Estimate::default()
        },
    )]);
    found.correct(&mut estimates, 75.0, |_| 1.0);
    found.bound(&mut estimates, |_, _| 1.0);
    let site = estimates.get(&LEAK).unwrap();
    // 20,000 blocks were counted, and it may be all of them.
    assert!(site.inuse_bytes_high >= 1_900_000, "{site:?}");
    assert!(site.inuse_bytes_high <= 20_000 * 112, "{site:?}");
}

#[test]
fn a_site_held_more_blocks_of_a_size_than_there_were() {
    let counts = looks(75, |at| 8_000.0 + 1_600.0 * at);
    let mut found = counted(&counts, &[(LEAK, 112, 400.0), (CHURN, 128, 5.0)], 75);
    let estimate = |bytes: u64| Estimate {
        inuse_objects: bytes / 96,
        inuse_bytes: bytes,
        inuse_bytes_low: bytes / 3,
        inuse_bytes_high: bytes * 3,
        counted_bytes: 480,
        alloc_bytes: bytes,
        alloc_objects: bytes / 96,
        growth_bytes_per_s: 100_000.0,
        ..Estimate::default()
    };
    // By the windows of a short trace, three times the leak.
    let mut estimates: BTreeMap<_, _> =
        [(LEAK, estimate(10_000_000)), (CHURN, estimate(30_000_000))].into();
    found.correct(
        &mut estimates,
        75.0,
        |site| {
            if site == LEAK { 1.0 } else { 0.0 }
        },
    );
    found.bound(&mut estimates, |_, _| 1.0);
    let (leak, churn) = (
        estimates.get(&LEAK).unwrap(),
        estimates.get(&CHURN).unwrap(),
    );
    let truth = 75.0 * 1_600.0 * 96.0;
    assert!(
        (leak.inuse_bytes as f64 / truth - 1.0).abs() < 0.03,
        "{leak:?}"
    );
    assert!(leak.inuse_bytes_high < leak.inuse_bytes + leak.inuse_bytes / 10);
    assert!(churn.inuse_bytes <= 8_010 * 96, "{churn:?}");
    assert!(leak.inuse_bytes > churn.inuse_bytes);
}

proptest! {
    #[test]
    fn sites_never_hold_more_blocks_of_a_size_than_are_counted(
        sites in prop::collection::vec((0..6_u32, 0..4_u64, 0.0..500.0_f64, 0..1_u64 << 30, 0..1_u64 << 20), 1..20),
        levels in prop::collection::vec((0..100_000_u64, 0..100_000_u64), 2..12),
    ) {
        let mut counts = SizeCounts::default();
        for (number, (small, large)) in (1..).zip(&levels) {
            counts.note(number * 8 * SECOND, [(32, *small), (48, *large), (64, 5)]);
        }
        let mut blocks = BTreeMap::new();
        let mut estimates = BTreeMap::new();
        for (site, size, old, bytes, seen) in &sites {
            blocks.insert((*site, 32 + 16 * size), of(*old));
            estimates.insert(*site, Estimate {
                inuse_objects: bytes / 24,
                inuse_bytes: *bytes,
                inuse_bytes_low: bytes / 2,
                inuse_bytes_high: bytes * 2,
                counted_bytes: (*seen).min(*bytes),
                growth_bytes_per_s: *bytes as f64 / 100.0,
                ..Estimate::default()
            });
        }
        let mut found = count(&counts, &blocks, 0, 120 * SECOND).unwrap();
        found.correct(&mut estimates, 100.0, |site| f64::from(site) / 5.0);
        found.bound(&mut estimates, |_, _| 1.0);
        let mut sums: BTreeMap<BlockSize, (u64, f64)> = BTreeMap::new();
        for of in found.sites.values().flat_map(|site| &site.sizes) {
            let (sum, most) = sums.entry(of.size).or_default();
            *sum += of.objects;
            *most = of.counted.max(*most);
        }
        for (sum, most) in sums.values() {
            prop_assert!(*sum as f64 <= *most);
        }
        for estimate in estimates.values() {
            prop_assert!(estimate.inuse_bytes_low <= estimate.inuse_bytes);
            prop_assert!(estimate.inuse_bytes <= estimate.inuse_bytes_high);
            prop_assert!(estimate.counted_bytes <= estimate.inuse_bytes);
        }
    }
}

#[test]
fn a_leak_of_a_hot_program_that_one_window_saw_was_never_named() {
    // One window at the start, whose blocks are all there; their size grows for two minutes.
    let window = WindowOfSite {
        closed_s: 1.0,
        effective_s: 1.0,
        born: 50.0,
        survived: 50.0,
        alive: 50.0,
        alive_bytes: 50.0 * 96.0,
        ..WindowOfSite::default()
    };
    let judged = |looked_s: u64| {
        let counts = looks(looked_s, |at| 100.0 + 50.0 * at);
        let found = counted(&counts, &[(LEAK, 112, 50.0), (CHURN, 112, 0.0)], looked_s);
        let site = found.sites.get(&LEAK).unwrap();
        let besides = ProcessBesides::default();
        judge_windows(
            &[window],
            looked_s as f64,
            ToldApart::ALL,
            &besides,
            Some(site),
        )
    };
    let judgement = judged(121);
    assert_eq!(judgement.verdict, Verdict::Leaking, "{}", judgement.reason);
    let early = judged(49);
    assert_eq!(early.verdict, Verdict::WarmingUp, "{}", early.reason);
    assert!(early.reason.ends_with("(1 of 2)"), "{}", early.reason);
}

/// Of 500 blocks a second, each filled with one byte, every third seems to stay; two windows of a third of a second see them, and so many more are
/// counted each second.
fn filled_with_one_byte(
    counted_per_s: f64,
    left: &[(SiteId, BlockSize, f64)],
    any: Option<(SiteId, f64)>,
) -> Judgement {
    let alive = 58.0;
    let counts = looks(60, |at| 100.0 + counted_per_s * at);
    let mut found = counted(&counts, &[(LEAK, 112, 2.0 * alive)], 60);
    let mut all = Left::default();
    for (site, size, blocks) in left {
        all.sizes.entry(*size).or_default().insert(*site, *blocks);
    }
    all.any.extend(any);
    found.note_left(&all, 0.7);
    let windows: Vec<WindowOfSite> = (0..2)
        .map(|number| WindowOfSite {
            closed_s: 1.0 + 20.0 * f64::from(number),
            effective_s: 0.35,
            born: 175.0,
            survived: 1.02 * alive,
            alive,
            alive_bytes: 96.0 * alive,
            ..WindowOfSite::default()
        })
        .collect();
    let told_apart = ToldApart {
        share: 0.0,
        unseen_per_s: 0.1,
    };
    let besides = ProcessBesides::default();
    judge_windows(&windows, 60.0, told_apart, &besides, found.sites.get(&LEAK))
}

#[test]
fn a_leak_was_not_named_whose_few_windows_could_not_tell_blocks_filled_with_one_byte() {
    let own = (LEAK, 112, 120.0);
    let alone = filled_with_one_byte(167.0, &[own, (CHURN, 32, 900.0)], None);
    assert_eq!(alone.verdict, Verdict::Leaking, "{}", alone.reason);
    assert!(alone.growth_bytes_per_s > 15_000.0);
    // A few blocks of the size that outlived a window are no more than what another site leaks.
    let few = filled_with_one_byte(167.0, &[own, (CHURN, 96, 10.0)], None);
    assert_eq!(few.verdict, Verdict::Leaking, "{}", few.reason);
}

#[test]
fn blocks_that_look_alike_may_lie_where_another_site_leaks() {
    let own = (LEAK, 112, 120.0);
    for (left, any) in [
        (&[own, (CHURN, 112, 60.0)][..], None),
        // A request for a little less may take such a chunk.
        (&[own, (CHURN, 96, 60.0)], None),
        // One whose blocks have any size.
        (&[own], Some((CHURN, 60.0))),
    ] {
        let said = filled_with_one_byte(167.0, left, any);
        assert_eq!(said.verdict, Verdict::InsufficientData, "{}", said.reason);
    }
    // As of a queue: where a block was, there is another of the site, and only a third as many were counted.
    let queue = filled_with_one_byte(55.0, &[own], None);
    assert_eq!(queue.verdict, Verdict::InsufficientData, "{}", queue.reason);
}

#[test]
fn of_one_window_that_was_read_late_nobody_was_accused_though_nobody_else_allocates_such() {
    let counts = looks(73, |at| 100.0 + 140.0 * at);
    let late = OfSize {
        old: 0.0,
        oldest: 0.0,
        windows: 0,
        doubtful: 350.0,
        ..of(350.0)
    };
    let judged = |of_others: f64| {
        let blocks = BTreeMap::from([((LEAK, 112), late)]);
        let mut found = count(&counts, &blocks, 0, 75 * SECOND).unwrap();
        let mut left = Left::default();
        let of_size = left.sizes.entry(112).or_default();
        of_size.extend([(LEAK, 360.0), (CHURN, of_others)]);
        found.note_left(&left, 2.2);
        let window = WindowOfSite {
            closed_s: 2.2,
            effective_s: 2.2,
            born: 1_055.0,
            survived: 352.0,
            alive: 352.0,
            alive_bytes: 352.0 * 96.0,
            ..WindowOfSite::default()
        };
        judge(&[window], found.sites.get(&LEAK))
    };
    assert_eq!(judged(0.0), Verdict::Leaking);
    assert_ne!(judged(200.0), Verdict::Leaking);
}

#[test]
fn growth_of_large_blocks_is_not_a_sites_of_many_small_ones_and_few_large_ones() {
    let mut counts = SizeCounts::default();
    for at_s in (1..=73_u64).step_by(8) {
        counts.note(at_s * SECOND, [(112, 8_000), (65_536, 20 * at_s)]);
    }
    let mixed = |size: BlockSize, old: f64| OfSize {
        bytes: (size - 16) as f64 * old,
        ..of(old)
    };
    let blocks = BTreeMap::from([
        ((CHURN, 112), mixed(112, 1_000.0)),
        ((CHURN, 65_536), mixed(65_536, 10.0)),
        ((LEAK, 65_536), mixed(65_536, 10.0)),
    ]);
    let mut found = count(&counts, &blocks, 0, 75 * SECOND).unwrap();
    let mut left = Left::default();
    left.sizes.insert(112, BTreeMap::from([(CHURN, 1_000.0)]));
    let large = BTreeMap::from([(CHURN, 10.0), (LEAK, 14.0)]);
    left.sizes.insert(65_536, large);
    found.note_left(&left, 0.7);
    let site = found.sites.get(&CHURN).unwrap();
    assert!(!site.is_nobody_elses(site.bytes_per_s), "{site:?}");
}
