//! Growth by type, divided among sites: made-up looks and objects. Knows no process.

use proptest::prelude::*;

use super::{Born, Kind, TypedGrowth};
use crate::Verdict;

const SECOND: u64 = 1_000_000_000;
const METRIC: Kind = 1;
const DICT: Kind = 2;

/// Looks of 60 s at so many objects a kind, with this many bytes of the rest.
fn looked(level: impl Fn(Kind, u64) -> u64, rest: impl Fn(u64) -> u64) -> TypedGrowth {
    let mut typed = TypedGrowth::default();
    for second in [1, 5, 13, 21, 29, 37, 60] {
        let kinds = [METRIC, DICT].map(|kind| (kind, level(kind, second)));
        typed.note(second * SECOND, kinds, rest(second));
    }
    typed
}

fn watch(typed: &mut TypedGrowth, site: u32, kind: Kind, count: u64) {
    let from = typed.born().count() as u64;
    for number in from..from + count {
        let born = Born {
            site,
            kind,
            bytes: 64,
            at_ns: (number % 40) * SECOND,
            is_told_apart: true,
        };
        typed.add(0x7f00_0000_0000 + 64 * number, born);
    }
}

#[test]
fn growth_of_a_type_is_divided_among_the_lines_that_make_what_stays() {
    let mut typed = looked(
        |kind, second| if kind == METRIC { 1000 * second } else { 500 },
        |_| 0,
    );
    watch(&mut typed, 7, METRIC, 30);
    watch(&mut typed, 8, METRIC, 10);
    // Makes what comes and goes: there are ever as many.
    watch(&mut typed, 9, DICT, 40);
    let sites = typed.sites(|site| site, 60 * SECOND);
    let of = |id: u32| sites.get(&id).cloned().unwrap_or_default();
    let (first, second, third) = (of(7), of(8), of(9));
    assert!(
        (first.counted.bytes_per_s - 48_000.0).abs() < 1.0,
        "{first:?}"
    );
    assert!(
        (second.counted.bytes_per_s - 16_000.0).abs() < 1.0,
        "{second:?}"
    );
    let judged = |site: &super::TypedSite| site.judge(60.0, "+1,000 Metric/s").verdict;
    assert_eq!(judged(&first), Verdict::Leaking);
    assert_eq!(judged(&second), Verdict::Leaking);
    assert_eq!(judged(&third), Verdict::Plateau);
    assert!(
        first
            .kinds
            .first()
            .is_some_and(|of| (of.objects_per_s - 750.0).abs() < 1.0)
    );
}

#[test]
fn tables_of_objects_grow_where_their_objects_do() {
    let level = |kind, second| if kind == METRIC { 1000 * second } else { 0 };
    let mut typed = looked(level, |second| 160_000 * second);
    watch(&mut typed, 7, METRIC, 20);
    let sites = typed.sites(|site| site, 60 * SECOND);
    let rate = sites.get(&7).map_or(0.0, |site| site.counted.bytes_per_s);
    assert!((rate - 224_000.0).abs() < 10.0, "{rate}");
}

#[test]
fn a_line_is_not_accused_by_what_was_gone_later() {
    let level = |kind, second| if kind == METRIC { 1000 * second } else { 500 };
    let mut typed = looked(level, |_| 0);
    watch(&mut typed, 7, METRIC, 20);
    watch(&mut typed, 8, METRIC, 20);
    let of_second: Vec<u64> = typed
        .born()
        .filter(|(_, born)| born.site == 8)
        .map(|(address, _)| address)
        .collect();
    for address in of_second {
        typed.remove(address);
    }
    let sites = typed.sites(|site| site, 60 * SECOND);
    assert_eq!(sites.keys().copied().collect::<Vec<_>>(), [7]);
}

#[test]
fn what_was_watched_for_too_short_a_time_is_not_called_leaking() {
    let mut typed = TypedGrowth::default();
    for second in [1, 5, 13] {
        typed.note(second * SECOND, [(METRIC, 1000 * second)], 0);
    }
    watch(&mut typed, 7, METRIC, 20);
    let sites = typed.sites(|site| site, 13 * SECOND);
    let judged = sites.get(&7).map(|site| site.judge(13.0, "").verdict);
    assert_eq!(judged, Some(Verdict::WarmingUp));
}

/// A bounded deque of dictionaries: another is where one was, as nothing but a write tells. There were a few more in each look, for all were looked at
/// while they came and went.
#[test]
fn dictionaries_of_a_bounded_deque_were_taken_for_those_that_had_been_there() {
    let level = |kind, second| if kind == DICT { 2_000 + 3 * second } else { 0 };
    let judged = |replaced: u64, seconds: f64| {
        let mut typed = looked(level, |_| 0);
        for number in 0..6 {
            let born = Born {
                site: 7,
                kind: DICT,
                bytes: 64,
                at_ns: SECOND,
                is_told_apart: false,
            };
            typed.add(64 * number, born);
            typed.watched_again(64 * number, seconds, number < replaced);
        }
        let sites = typed.sites(|site| site, 60 * SECOND);
        sites.get(&7).map(|site| site.judge(60.0, "").verdict)
    };
    assert_eq!(judged(2, 4.0), Some(Verdict::WarmingUp));
    // Nothing is known so far.
    assert_eq!(judged(0, 2.0), Some(Verdict::WarmingUp));
    assert_eq!(judged(0, 4.0), Some(Verdict::Leaking));
}

/// It was filled between the first two looks; by chance, those that followed found a few more each.
#[test]
fn a_deque_that_was_full_at_the_second_look_was_called_a_leak() {
    let filled = |second: u64| match second {
        1 => 1_663,
        5 => 2_000,
        13 => 2_002,
        21 => 2_001,
        29 => 2_004,
        37 => 2_003,
        _ => 2_006,
    };
    let mut typed = looked(
        |kind, second| if kind == DICT { filled(second) } else { 0 },
        |_| 0,
    );
    watch(&mut typed, 7, DICT, 6);
    let sites = typed.sites(|site| site, 60 * SECOND);
    let grows = sites.get(&7).map(|site| site.counted.grows);
    assert_eq!(grows, Some(false));
}

proptest! {
    #[test]
    fn sites_grow_by_no_more_than_all_objects_do(
        rates in prop::collection::vec(0_u64..5000, 2),
        shares in prop::collection::vec((0_u32..5, 1_u16..3, 1_u64..20), 1..8),
        rest in 0_u64..1_000_000,
    ) {
        let level = |kind: Kind, second: u64| {
            100 + second * rates.get(usize::from(kind) - 1).copied().unwrap_or(0)
        };
        let mut typed = looked(level, |second| second * rest);
        for (site, kind, count) in shares {
            watch(&mut typed, site, kind, count);
        }
        let all = 64.0 * rates.iter().sum::<u64>() as f64 + rest as f64;
        let sum: f64 = typed
            .sites(|site| site, 60 * SECOND)
            .values()
            .map(|site| site.counted.bytes_per_s)
            .sum();
        prop_assert!(sum <= all * 1.001 + 20.0, "{sum} of {all}");
    }
}
