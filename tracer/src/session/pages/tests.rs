//! What counts as fresh memory, what is a huge page, and how many faults are told of.

#![expect(clippy::indexing_slicing, reason = "a failing test may panic")]

use std::time::{Duration, Instant};

use leakscope_common::{FAULT_ON_PRESENT, FaultRecord, MAX_PAGE_SHIFT};

use super::{Area, FAULTS_PER_SECOND, PRESENT, PageFaults, is_huge, is_own, touch};
use crate::process::procfs::pagemap::{FILE_OR_SHARED, SWAPPED};

fn area(start: u64, shared: bool, file: bool) -> Area {
    Area {
        start,
        end: start + 0x1000,
        shared,
        file,
    }
}

fn fault(address: u64, marks: u32) -> FaultRecord {
    FaultRecord {
        address,
        marks,
        ..FaultRecord::default()
    }
}

#[test]
fn memory_of_its_own_is_fresh_and_what_others_see_is_not() {
    let now = [
        area(0x1000, false, false),
        area(0x3000, true, false),
        area(0x4000, true, true),
        area(0x5000, false, true),
    ];
    let before = [area(0x8000, true, false)];
    let is_fresh = |address, marks| touch(&fault(address, marks), &now, &before).is_some();
    assert!(is_fresh(0x1fff, 0));
    assert!(!is_fresh(0x3000, 0));
    assert!(!is_fresh(0x4000, 0));
    assert!(is_fresh(0x5000, 0));
    // Unmapped by now: it was private, or nobody knows; or it was shared.
    assert!(is_fresh(0x2000, 0));
    assert!(!is_fresh(0x8000, 0));
    // A copy is new where it is of a file.
    assert!(!is_fresh(0x1000, FAULT_ON_PRESENT));
    assert!(is_fresh(0x5000, FAULT_ON_PRESENT));
    assert!(!is_fresh(0x4000, FAULT_ON_PRESENT));
}

#[test]
fn a_huge_page_is_whole_aligned_and_in_one_piece() {
    let entries =
        |first: u64| -> Vec<u64> { (first..first + 512).map(|frame| PRESENT | frame).collect() };
    assert_eq!(is_huge(&entries(512 * 77)), Some(true));
    assert_eq!(is_huge(&entries(512 * 77 + 1)), Some(false));
    let mut other = entries(512);
    other[400] = PRESENT | 5;
    assert_eq!(is_huge(&other), Some(false));
    let mut absent = entries(512);
    absent[511] = 0;
    assert_eq!(is_huge(&absent), Some(false));
    let mut of_file = entries(512);
    of_file[3] |= FILE_OR_SHARED;
    assert_eq!(is_huge(&of_file), Some(false));
    assert_eq!(is_huge(&[PRESENT; 512]), None);
    assert_eq!(is_huge(&entries(512)[..511]), Some(false));
    assert_eq!(is_huge(&[]), None);
}

#[test]
fn swapped_pages_are_still_there() {
    assert!(is_own(PRESENT | 7));
    assert!(is_own(SWAPPED | 7));
    assert!(!is_own(0));
    assert!(!is_own(PRESENT | FILE_OR_SHARED | 7));
}

/// Runs a second in which so many pages fault, in steps of a hundredth.
fn second(faults: &mut PageFaults, now: &mut Instant, pages_per_second: f64) -> u64 {
    let mut told = 0;
    for _ in 0..100 {
        *now += Duration::from_millis(10);
        let fresh = (pages_per_second / 100.0 / f64::from(1_u32 << faults.shift)) as u64;
        faults.fresh += fresh;
        told += fresh;
        let before = faults.shift;
        let after = faults.adapt(*now);
        assert_eq!(after.unwrap_or(before), faults.shift);
    }
    told
}

#[test]
fn as_many_faults_are_told_of_as_may_be() {
    let mut faults = PageFaults::default();
    let mut now = Instant::now();
    faults.begin(4);
    for _ in 0..30 {
        second(&mut faults, &mut now, 100.0);
    }
    assert_eq!(faults.shift, 0);
    // A thousandfold and more: it is kept within bounds from the second second on, and in the first it is not out of all bounds.
    let first = second(&mut faults, &mut now, 1e6);
    assert!((first as f64) < 20.0 * FAULTS_PER_SECOND, "{first}");
    for _ in 0..30 {
        let told = second(&mut faults, &mut now, 1e6);
        assert!((told as f64) < 2.0 * FAULTS_PER_SECOND, "{told}");
    }
    // Not so few that little is known.
    assert!(faults.shift <= MAX_PAGE_SHIFT);
    let told = second(&mut faults, &mut now, 1e6);
    assert!((told as f64) > FAULTS_PER_SECOND / 16.0, "{told}");
    for _ in 0..40 {
        second(&mut faults, &mut now, 100.0);
    }
    assert_eq!(faults.shift, 0);
}
