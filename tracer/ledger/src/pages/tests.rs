//! The estimates against a simulated process whose every page is known.

#![expect(clippy::indexing_slicing, reason = "a failing test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use leakscope_common::{PAGE_BYTES, page_is_sampled};
use proptest::prelude::*;

use super::{Expected, HUGE_PAGES, PageSurvey, Pages, Seen, Touch};

const BASE: u64 = 0x7f00_0000_0000;

/// When everything that was touched has arrived.
const LATER: u64 = 1 << 40;

/// A process: the site of every page that is there. The probe tells of faults on chosen pages.
#[derive(Default)]
struct Process {
    there: BTreeMap<u64, u32>,
    pages: Pages,
    shift: u32,
    clock: u64,
}

impl Process {
    fn set_shift(&mut self, shift: u32) {
        self.shift = shift;
        self.pages.set_shift(shift);
    }

    fn touch(&mut self, page: u64, site: u32) {
        self.clock += 1;
        let address = BASE + page * PAGE_BYTES;
        if self.there.contains_key(&address) {
            return;
        }
        self.there.insert(address, site);
        if page_is_sampled(address, self.shift) {
            self.pages.touch(Touch {
                address: address + self.clock % PAGE_BYTES,
                site,
                at_ns: self.clock,
                shift: self.shift,
                copied: false,
            });
        }
    }

    fn give_back(&mut self, page: u64) {
        self.there.remove(&(BASE + page * PAGE_BYTES));
    }

    fn look(&mut self) {
        let there = &self.there;
        self.pages.look(LATER, |address, _| {
            Some(if there.contains_key(&address) {
                Seen::There(1)
            } else {
                Seen::Gone
            })
        });
    }

    fn truth(&self, site: u32) -> u64 {
        self.there.values().filter(|of| **of == site).count() as u64
    }

    fn survey(&self) -> BTreeMap<u32, PageSurvey> {
        self.pages.survey(|site| site, u64::MAX)
    }
}

/// A step of a process.
#[derive(Clone, Debug)]
enum Act {
    Touch(u64, u32),
    GiveBack(u64),
    Shift(u32),
    Look,
}

fn acts(shift: impl Strategy<Value = u32> + 'static) -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0..64_u64, 1..4_u32).prop_map(|(page, site)| Act::Touch(page, site)),
        4 => (0..64_u64).prop_map(Act::GiveBack),
        1 => shift.prop_map(Act::Shift),
        1 => Just(Act::Look),
    ];
    prop::collection::vec(act, 0..200)
}

fn run(acts: &[Act]) -> Process {
    let mut process = Process::default();
    for act in acts {
        match *act {
            Act::Touch(page, site) => process.touch(page, site),
            Act::GiveBack(page) => process.give_back(page),
            Act::Shift(shift) => process.set_shift(shift),
            Act::Look => process.look(),
        }
    }
    process.look();
    process
}

proptest! {
    /// Where every page is told of, nothing is estimated.
    #[test]
    fn without_thinning_it_is_exact(acts in acts(Just(0))) {
        let process = run(&acts);
        for (site, survey) in process.survey() {
            let truth = process.truth(site);
            prop_assert_eq!(survey.inuse_pages, truth);
            prop_assert_eq!((survey.inuse_pages_low, survey.inuse_pages_high), (truth, truth));
            prop_assert_eq!(survey.weight, 1);
        }
    }

    /// However the share changes on the way: an interval holds its estimate, nothing survives that was not touched, and what is in the
    /// sample is there and counts where it was touched last.
    #[test]
    fn whatever_the_shares_the_sample_is_true(acts in acts(0..4_u32)) {
        let process = run(&acts);
        for survey in process.survey().values() {
            prop_assert!(survey.inuse_pages_low <= survey.inuse_pages);
            prop_assert!(survey.inuse_pages <= survey.inuse_pages_high);
            prop_assert!(survey.inuse_pages <= survey.alloc_pages);
            prop_assert!(survey.weight >= 1);
        }
        let mut kept: BTreeMap<u32, u64> = BTreeMap::new();
        process.pages.visit(|site, _, pages, _| *kept.entry(site).or_default() += u64::from(pages));
        for (site, kept) in kept {
            prop_assert!(kept <= process.truth(site));
        }
        prop_assert_eq!(process.pages.unseen(), 0);
    }
}

/// The interval holds the truth at its rate, for few pages as for many, with a share that changes while they are touched.
#[test]
fn the_interval_holds_the_truth_at_its_rate() {
    for (size, shifts) in [
        (3_u64, [4, 4, 4]),
        (40, [3, 3, 3]),
        (2_000, [4, 4, 4]),
        (2_000, [2, 4, 3]),
        (2_000, [5, 3, 5]),
    ] {
        let rounds = 600;
        let mut held = 0;
        let mut estimates = 0;
        let mut all = 0;
        for round in 0..rounds {
            let mut process = Process::default();
            let first = round * 1_000_003;
            for page in 0..size {
                process.set_shift(shifts[(page * 3 / size) as usize]);
                process.touch(first + page, 1);
                // Beside what stays there is as much that does not.
                process.touch(first + size + page, 2);
                process.give_back(first + size + page);
            }
            process.look();
            let survey = process.survey().get(&1).copied().unwrap_or_default();
            let seen = survey.alloc_pages > 0;
            held += u32::from(
                !seen || (survey.inuse_pages_low..=survey.inuse_pages_high).contains(&size),
            );
            estimates += survey.inuse_pages;
            all += size;
            assert_eq!(
                process
                    .survey()
                    .get(&2)
                    .map_or(0, |survey| survey.inuse_pages),
                0
            );
        }
        // 570 of 600 are 95 %; 546 are 4.5 standard deviations less.
        assert!(held >= 546, "{size} {shifts:?}: {held}");
        // No bias: a deviation of a site is at most its size times the weight's root; here of 600 together.
        let deviation = (all as f64 * 32.0).sqrt();
        assert!(
            (estimates as f64 - all as f64).abs() < 5.0 * deviation,
            "{size} {shifts:?}: {estimates} of {all}"
        );
    }
}

/// A site of which nothing of the sample survives may still hold some: the interval says how many.
#[test]
fn nothing_left_of_a_sample_is_not_certainly_nothing() {
    let mut process = Process::default();
    process.set_shift(4);
    for page in 0..1_000 {
        process.touch(page, 1);
        process.give_back(page);
    }
    process.look();
    let survey = process.survey()[&1];
    assert_eq!((survey.inuse_pages, survey.inuse_pages_low), (0, 0));
    // z^2 (w - 1), which is 3.84 * 15.
    assert_eq!(survey.inuse_pages_high, 57);
    assert!(survey.alloc_pages > 500);
}

#[test]
fn a_page_that_is_touched_anew_counts_where_it_was_touched_last() {
    let mut process = Process::default();
    process.touch(1, 1);
    process.look();
    process.give_back(1);
    process.touch(1, 2);
    process.look();
    let survey = process.survey();
    assert_eq!(survey[&1].inuse_pages, 0);
    assert_eq!(survey[&2].inuse_pages, 1);
    assert_eq!(survey[&1].alloc_pages, 1);
}

fn touch(address: u64, copied: bool) -> Touch {
    Touch {
        address,
        site: if copied { 2 } else { 1 },
        at_ns: 5,
        shift: 0,
        copied,
    }
}

#[test]
fn a_copy_is_new_only_where_there_was_nothing() {
    let mut pages = Pages::default();
    pages.touch(touch(BASE, false));
    pages.touch(touch(BASE + 8, true));
    pages.touch(touch(BASE + PAGE_BYTES, true));
    pages.look(LATER, |_, _| Some(Seen::There(1)));
    let survey = pages.survey(|site| site, u64::MAX);
    assert_eq!(survey[&1].inuse_pages, 1);
    assert_eq!(survey[&2].inuse_pages, 1);
}

#[test]
fn huge_pages_weigh_what_they_bring_and_shrink_with_it() {
    let mut pages = Pages::default();
    pages.touch(touch(BASE + 17 * PAGE_BYTES, false));
    pages.look(LATER, |_, expected| {
        assert_eq!(expected, Expected::Either);
        Some(Seen::There(HUGE_PAGES))
    });
    let inuse = |pages: &Pages| {
        let survey = pages.survey(|site| site, u64::MAX)[&1];
        (survey.inuse_pages, survey.alloc_pages)
    };
    assert_eq!(inuse(&pages), (512, 512));
    pages.look(LATER, |_, expected| {
        assert_eq!(expected, Expected::Huge);
        Some(Seen::There(100))
    });
    assert_eq!(inuse(&pages), (100, 512));
    // What others bring into its place is not its own.
    pages.look(LATER, |_, _| Some(Seen::There(300)));
    assert_eq!(inuse(&pages), (100, 512));
    pages.look(LATER, |_, _| Some(Seen::There(0)));
    assert_eq!(inuse(&pages), (0, 512));
}

/// Two faults in the range of one huge page did not bring one: it was put together later.
#[test]
fn pages_with_neighbours_are_not_huge() {
    let mut pages = Pages::default();
    for page in [3, 4, 700] {
        pages.touch(touch(BASE + page * PAGE_BYTES, false));
    }
    let mut asked = BTreeSet::new();
    pages.look(LATER, |address, expected| {
        if expected != Expected::Page {
            asked.insert((address - BASE) / PAGE_BYTES);
        }
        Some(Seen::There(HUGE_PAGES))
    });
    assert_eq!(asked, BTreeSet::from([700]));
    let survey = pages.survey(|site| site, u64::MAX);
    assert_eq!(survey[&1].inuse_pages, 512 + 2);
}

#[test]
fn what_nobody_looked_at_is_not_said_to_be_there() {
    let mut pages = Pages::default();
    pages.touch(touch(BASE, false));
    pages.look(LATER, |_, _| None);
    assert_eq!(
        (pages.len(), pages.unseen(), pages.is_empty()),
        (1, 1, false)
    );
    let survey = pages.survey(|site| site, u64::MAX)[&1];
    assert_eq!((survey.inuse_pages, survey.alloc_pages), (0, 1));
}

#[test]
fn what_is_younger_than_asked_for_is_not_in_use() {
    let mut pages = Pages::default();
    pages.touch(touch(BASE, false));
    pages.look(LATER, |_, _| Some(Seen::There(1)));
    assert_eq!(pages.survey(|site| site, 4)[&1].inuse_pages, 0);
    let survey = pages.survey(|_| 9, 5)[&9];
    assert_eq!((survey.inuse_pages, survey.oldest_born_ns), (1, Some(5)));
}

#[test]
fn what_is_on_its_way_is_not_gone() {
    let mut pages = Pages::default();
    pages.touch(touch(BASE, false));
    pages.look(1_000, |_, _| Some(Seen::Gone));
    assert_eq!(pages.unseen(), 1);
    pages.look(2_000, |_, _| Some(Seen::There(1)));
    assert_eq!(pages.unseen(), 0);
    pages.look(3_000, |_, _| Some(Seen::Gone));
    assert!(pages.is_empty());
    pages.touch(touch(BASE, false));
    pages.look(LATER, |_, _| Some(Seen::Gone));
    assert!(pages.is_empty());
}
