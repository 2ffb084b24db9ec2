//! Mappings against a model that keeps one entry for each page.

#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Area, LookTimes, MappingKind, MappingSurvey, Mappings, PAGE, Step};

const THREAD: u32 = 7;
const ALL: u64 = u64::MAX;

fn map(address: u64, length: u64, site: u32) -> Step {
    Step::Map {
        address,
        length,
        kind: MappingKind::Anonymous,
        accessible: true,
        site,
    }
}

fn unmap(address: u64, length: u64) -> Step {
    Step::Unmap { address, length }
}

fn remap(address: u64, length: u64, new_length: u64) -> Step {
    Step::Remap {
        address,
        length,
        new_length,
        keeps_old: false,
    }
}

fn after(steps: &[Step]) -> BTreeMap<u32, MappingSurvey> {
    let mut mappings = Mappings::default();
    for (at, step) in (1..).zip(steps) {
        mappings.apply(THREAD, at, step);
    }
    mappings.survey(|site| site, ALL)
}

fn inuse(steps: &[Step], site: u32) -> (u64, u64) {
    after(steps)
        .get(&site)
        .map_or((0, 0), |survey| (survey.inuse_bytes, survey.inuse_objects))
}

#[test]
fn a_part_unmapped_from_the_middle_leaves_two_pieces_of_one_mapping() {
    let steps = [
        map(0x10_0000, 10 * PAGE + 5, 1),
        unmap(0x10_0000 + 3 * PAGE, 2 * PAGE),
    ];
    assert_eq!(inuse(&steps, 1), (8 * PAGE + 5, 1));
    let survey = after(&steps);
    assert_eq!(survey.get(&1).unwrap().alloc_bytes, 10 * PAGE + 5);
    assert_eq!(survey.get(&1).unwrap().oldest_born_ns, Some(1));
}

#[test]
fn the_last_page_goes_as_a_whole() {
    let steps = [
        map(0x10_0000, 2 * PAGE + 100, 1),
        unmap(0x10_0000 + 2 * PAGE, 1),
    ];
    assert_eq!(inuse(&steps, 1), (2 * PAGE, 1));
}

#[test]
fn an_unmap_that_failed_took_nothing() {
    let steps = [
        map(0x10_0000, 4 * PAGE, 1),
        unmap(0x10_0000, PAGE),
        Step::Fail,
    ];
    assert_eq!(inuse(&steps, 1), (4 * PAGE, 1));
}

#[test]
fn what_grows_belongs_to_who_made_it_grow() {
    let steps = [
        map(0x10_0000, 4 * PAGE, 1),
        remap(0x10_0000, 4 * PAGE, 10 * PAGE),
        Step::Remapped {
            address: 0x80_0000,
            site: 2,
        },
    ];
    assert_eq!(inuse(&steps, 1), (4 * PAGE, 1));
    assert_eq!(inuse(&steps, 2), (6 * PAGE, 1));
    // The old place is free for others.
    let mut more = steps.to_vec();
    more.push(unmap(0x10_0000, 4 * PAGE));
    assert_eq!(inuse(&more, 1), (4 * PAGE, 1));
    more.push(unmap(0x80_0000, 10 * PAGE));
    assert_eq!(inuse(&more, 1), (0, 0));
    assert_eq!(inuse(&more, 2), (0, 0));
}

#[test]
fn another_thread_may_be_given_the_old_place_before_the_move_is_told() {
    let mut mappings = Mappings::default();
    mappings.apply(1, 1, &map(0x10_0000, PAGE, 1));
    mappings.apply(1, 2, &remap(0x10_0000, PAGE, PAGE));
    mappings.apply(2, 3, &map(0x10_0000, PAGE, 2));
    mappings.apply(
        1,
        4,
        &Step::Remapped {
            address: 0x20_0000,
            site: 3,
        },
    );
    let survey = mappings.survey(|site| site, ALL);
    assert_eq!(survey.get(&1).unwrap().inuse_bytes, PAGE);
    assert_eq!(survey.get(&2).unwrap().inuse_bytes, PAGE);
    assert!(!survey.contains_key(&3));
}

#[test]
fn shrinking_by_remap_frees_the_end() {
    let steps = [
        map(0x10_0000, 4 * PAGE, 1),
        remap(0x10_0000, 4 * PAGE, PAGE),
        Step::Remapped {
            address: 0x10_0000,
            site: 2,
        },
    ];
    assert_eq!(inuse(&steps, 1), (PAGE, 1));
    assert_eq!(inuse(&steps, 2), (0, 0));
}

#[test]
fn address_space_that_may_not_be_accessed_is_no_memory() {
    let reserve = Step::Map {
        address: 0x10_0000,
        length: 100 * PAGE,
        kind: MappingKind::ThreadStack,
        accessible: false,
        site: 1,
    };
    let open = Step::Protect {
        address: 0x10_0000 + PAGE,
        length: 99 * PAGE,
        accessible: true,
        site: 2,
    };
    let survey = after(&[reserve]);
    let one = survey.get(&1).unwrap();
    assert_eq!((one.inuse_bytes, one.alloc_bytes), (0, 0));
    assert_eq!(one.reserved_bytes, 100 * PAGE);
    let survey = after(&[reserve, open, open]);
    let one = survey.get(&1).unwrap();
    assert_eq!((one.inuse_bytes, one.alloc_bytes), (99 * PAGE, 99 * PAGE));
    assert_eq!((one.inuse_objects, one.reserved_bytes), (1, PAGE));
    assert_eq!(one.kind, MappingKind::ThreadStack);
}

#[test]
fn what_is_made_accessible_step_by_step_grows_by_whoever_does_it() {
    let mut mappings = Mappings::default();
    let reserve = Step::Map {
        address: 0x10_0000,
        length: 100 * PAGE,
        kind: MappingKind::Anonymous,
        accessible: false,
        site: 1,
    };
    mappings.apply(THREAD, 1, &reserve);
    mappings.note_old(&Area {
        accessible: false,
        ..area(0x90_0000, 100, MappingKind::Anonymous)
    });
    for number in 0..10 {
        for address in [0x10_0000, 0x90_0000] {
            mappings.apply(
                THREAD,
                10 + number,
                &Step::Protect {
                    address: address + number * PAGE,
                    length: PAGE,
                    accessible: true,
                    site: 2,
                },
            );
        }
    }
    let survey = mappings.survey(|site| site, ALL);
    let (one, two) = (survey.get(&1).unwrap(), survey.get(&2).unwrap());
    assert_eq!((one.alloc_objects, one.reserved_bytes), (0, 90 * PAGE));
    assert_eq!((two.inuse_objects, two.inuse_bytes), (20, 20 * PAGE));
    assert_eq!(two.oldest_born_ns, Some(10));
}

/// `mmap` with `MAP_FIXED` and without access, in the place of memory.
#[test]
fn what_was_decommitted_is_no_mapping_that_stays() {
    let piece = |accessible, site| Step::Map {
        address: 0x10_0000,
        length: PAGE,
        kind: MappingKind::Anonymous,
        accessible,
        site,
    };
    let mut mappings = Mappings::default();
    mappings.apply(THREAD, 1, &piece(true, 1));
    mappings.apply(THREAD, 2, &piece(false, 2));
    let survey = mappings.survey(|site| site, ALL);
    let (one, two) = (survey.get(&1).unwrap(), survey.get(&2).unwrap());
    assert_eq!((one.alloc_objects, one.inuse_objects), (1, 0));
    assert_eq!((two.alloc_objects, two.inuse_objects), (0, 0));
    assert_eq!(two.reserved_bytes, PAGE);
    let mut seen = 0;
    mappings.visit(|_, _, _| seen += 1);
    assert_eq!(seen, 0);
}

#[test]
fn the_data_segment_grows_and_shrinks() {
    let brk = |to, by_allocator| Step::Break {
        from: None,
        to,
        by_allocator,
        site: 1,
    };
    let mut mappings = Mappings::default();
    mappings.set_data_end(0x50_0000);
    mappings.apply(THREAD, 1, &brk(0x50_0100, false));
    mappings.apply(THREAD, 2, &brk(0x51_0000, true));
    mappings.apply(THREAD, 3, &brk(0x51_1000, false));
    mappings.apply(THREAD, 4, &brk(0x51_2000, false));
    let inuse = |mappings: &Mappings| {
        let survey = mappings.survey(|site| site, ALL);
        let one = *survey.get(&1).unwrap();
        (one.inuse_bytes, one.inuse_objects)
    };
    assert_eq!(inuse(&mappings), (0x2100, 3));
    let mut seen = Vec::new();
    mappings.visit(|site, born_ns, bytes| seen.push((site, born_ns, bytes)));
    seen.sort_unstable();
    assert_eq!(seen, [(1, 1, 0x100), (1, 3, 0x1000), (1, 4, 0x1000)]);
    mappings.apply(THREAD, 5, &brk(0x51_0800, false));
    assert_eq!(inuse(&mappings), (0x900, 2));
    mappings.apply(THREAD, 6, &brk(0x50_0000, false));
    assert_eq!(inuse(&mappings), (0, 0));
}

#[test]
fn what_was_there_before_counts_only_where_it_grows() {
    let mut mappings = Mappings::default();
    mappings.note_old(&area(0x10_0000, 4, MappingKind::Anonymous));
    mappings.apply(THREAD, 1, &remap(0x10_0000, 4 * PAGE, 6 * PAGE));
    mappings.apply(
        THREAD,
        2,
        &Step::Remapped {
            address: 0x10_0000,
            site: 5,
        },
    );
    let survey = mappings.survey(|site| site, ALL);
    assert_eq!(survey.len(), 1);
    assert_eq!(survey.get(&5).unwrap().inuse_bytes, 2 * PAGE);
}

fn area(start: u64, pages: u64, kind: MappingKind) -> Area {
    Area {
        start,
        end: start + pages * PAGE,
        kind,
        accessible: true,
        code: false,
    }
}

fn map_as(address: u64, length: u64, kind: MappingKind, site: u32) -> Step {
    Step::Map {
        address,
        length,
        kind,
        accessible: true,
        site,
    }
}

const TIMES: LookTimes = LookTimes {
    at_ns: 100,
    settled_ns: 90,
};

#[test]
fn what_a_look_does_not_find_has_ended_but_for_what_is_being_mapped() {
    let mut mappings = Mappings::default();
    let kind = MappingKind::Anonymous;
    // Not whole pages; one that is cut, one that is gone, one that was made during the look.
    mappings.apply(THREAD, 1, &map_as(0x10_0000, 3 * PAGE + 100, kind, 1));
    mappings.apply(THREAD, 2, &map_as(0x20_0000, 4 * PAGE, kind, 2));
    mappings.apply(THREAD, 3, &map_as(0x30_0000, PAGE, kind, 3));
    mappings.apply(THREAD, 95, &map_as(0x40_0000, PAGE, kind, 4));
    let areas = [area(0x10_0000, 4, kind), area(0x20_0000 + PAGE, 2, kind)];
    for _ in 0..2 {
        mappings.look(&areas, TIMES, |_| Some(9));
    }
    let survey = mappings.survey(|site| site, ALL);
    let inuse = |site| survey.get(&site).map(|survey| survey.inuse_bytes);
    assert_eq!(inuse(1), Some(3 * PAGE + 100));
    assert_eq!(inuse(2), Some(2 * PAGE));
    assert_eq!((inuse(3), inuse(4)), (Some(0), Some(PAGE)));
    // All that is there was told of.
    assert_eq!(inuse(9), None);
    assert_eq!(mappings.made_since(50), (1, PAGE));
}

#[test]
fn what_nobody_told_of_belongs_to_the_site_of_its_kind_or_counts_as_nothing() {
    let mut mappings = Mappings::default();
    mappings.apply(
        THREAD,
        1,
        &map_as(0x10_0000, 2 * PAGE, MappingKind::Anonymous, 1),
    );
    let code = Area {
        code: true,
        ..area(0x50_0000, 1, MappingKind::File)
    };
    let areas = [
        area(0x0f_f000, 4, MappingKind::Anonymous),
        area(0x20_0000, 3, MappingKind::DataSegment),
        area(0x30_0000, 5, MappingKind::Shared),
        code,
    ];
    mappings.look(&areas, TIMES, |kind| match kind {
        MappingKind::Anonymous => Some(7),
        MappingKind::DataSegment => Some(8),
        MappingKind::File => Some(9),
        _ => None,
    });
    let survey = mappings.survey(|site| site, ALL);
    let found: Vec<_> = survey
        .iter()
        .map(|(site, survey)| (*site, survey.inuse_bytes, survey.inuse_objects))
        .collect();
    assert_eq!(
        found,
        [(1, 2 * PAGE, 1), (7, 2 * PAGE, 2), (8, 3 * PAGE, 1)]
    );
}

#[test]
fn a_look_says_what_may_be_accessed_and_what_a_descriptor_was_of() {
    let mut mappings = Mappings::default();
    let reserve = Step::Map {
        address: 0x10_0000,
        length: 8 * PAGE,
        kind: MappingKind::Anonymous,
        accessible: false,
        site: 1,
    };
    mappings.apply(THREAD, 1, &reserve);
    mappings.apply(THREAD, 1, &map_as(0x20_0000, PAGE, MappingKind::File, 2));
    mappings.apply(THREAD, 1, &map_as(0x30_0000, PAGE, MappingKind::SysV, 3));
    let closed = Area {
        accessible: false,
        ..area(0x10_0000 + 3 * PAGE, 5, MappingKind::Anonymous)
    };
    let areas = [
        area(0x10_0000, 3, MappingKind::Anonymous),
        closed,
        area(0x20_0000, 1, MappingKind::Memfd),
    ];
    // Where each step is told of, only files are looked at.
    assert!(mappings.has_files());
    mappings.look_at_files(&areas, TIMES);
    let survey = mappings.survey(|site| site, ALL);
    assert_eq!(survey.get(&1).unwrap().inuse_bytes, 0);
    assert_eq!(survey.get(&2).unwrap().kind, MappingKind::Memfd);
    assert_eq!(survey.get(&3).unwrap().inuse_bytes, 0);
    mappings.look(&areas, TIMES, |_| Some(9));
    let survey = mappings.survey(|site| site, ALL);
    let reserved = survey.get(&1).unwrap();
    assert_eq!(
        (reserved.inuse_bytes, reserved.reserved_bytes),
        (3 * PAGE, 5 * PAGE)
    );
    assert_eq!(
        (reserved.alloc_bytes, reserved.inuse_objects),
        (3 * PAGE, 1)
    );
}

/// One entry for each page: who made it memory, which mapping, whether it is accessible, and whether it ever was.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, (u32, u64, bool, bool)>,
    mappings: u64,
}

impl Model {
    fn map(&mut self, first: u64, count: u64, site: u32, accessible: bool) {
        self.mappings += 1;
        for page in first..first + count {
            self.pages
                .insert(page, (site, self.mappings, accessible, accessible));
        }
    }

    fn unmap(&mut self, first: u64, count: u64) {
        for page in first..first + count {
            self.pages.remove(&page);
        }
    }

    fn protect(&mut self, first: u64, count: u64, accessible: bool, site: u32) {
        self.mappings += 1;
        for page in first..first + count {
            if let Some(entry) = self.pages.get_mut(&page) {
                entry.2 = accessible;
                if accessible && !entry.3 {
                    *entry = (site, self.mappings, true, true);
                }
            }
        }
    }

    fn remap(&mut self, from: u64, count: u64, to: u64, new_count: u64, site: u32) {
        let moved: Vec<_> = (from..from + count)
            .map(|page| self.pages.remove(&page))
            .collect();
        self.unmap(to, new_count);
        let mut last = None;
        for (offset, entry) in (0..).zip(&moved) {
            if offset < new_count {
                last = *entry;
                if let Some(entry) = entry {
                    self.pages.insert(to + offset, *entry);
                }
            }
        }
        if new_count > count
            && let Some((_, _, accessible, _)) = last
        {
            self.map(to + count, new_count - count, site, accessible);
        }
    }

    fn inuse(&self, site: u32) -> (u64, u64, u64) {
        let mine = || self.pages.values().filter(|entry| entry.0 == site);
        let mut mappings: Vec<u64> = mine()
            .filter(|entry| entry.2)
            .map(|entry| entry.1)
            .collect();
        mappings.sort_unstable();
        mappings.dedup();
        (
            mine().filter(|entry| entry.2).count() as u64 * PAGE,
            mine().filter(|entry| !entry.2).count() as u64 * PAGE,
            mappings.len() as u64,
        )
    }
}

const BASE: u64 = 1 << 20;

/// Operation, first page, pages, second first page, new pages, site, flag.
type Operation = (u8, u64, u64, u64, u64, u32, bool);

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(
        (
            0..5_u8,
            0..40_u64,
            1..12_u64,
            50..90_u64,
            1..16_u64,
            1..4_u32,
            any::<bool>(),
        ),
        0..60,
    )
}

proptest! {
    #[test]
    fn any_sequence_of_calls_leaves_what_the_pages_say(operations in operations()) {
        let at = |page: u64| (BASE + page) * PAGE;
        let mut mappings = Mappings::default();
        let mut model = Model::default();
        for (operation, page, count, to, new_count, site, flag) in operations {
            let (address, length) = (at(page), count * PAGE);
            match operation {
                0 | 1 => {
                    mappings.apply(THREAD, 1, &Step::Map {
                        address, length, kind: MappingKind::Anonymous, accessible: flag, site,
                    });
                    model.map(page, count, site, flag);
                }
                2 => {
                    mappings.apply(THREAD, 1, &unmap(address, length));
                    if flag {
                        mappings.apply(THREAD, 1, &Step::Fail);
                    } else {
                        model.unmap(page, count);
                    }
                }
                3 => {
                    mappings.apply(THREAD, 1, &remap(address, length, new_count * PAGE));
                    if flag {
                        mappings.apply(THREAD, 1, &Step::Fail);
                    } else {
                        mappings.apply(THREAD, 1, &Step::Remapped { address: at(to), site });
                        model.remap(page, count, to, new_count, site);
                    }
                }
                _ => {
                    mappings.apply(THREAD, 1, &Step::Protect { address, length, accessible: flag, site });
                    model.protect(page, count, flag, site);
                }
            }
        }
        let survey = mappings.survey(|site| site, ALL);
        for site in 1..4 {
            let found = survey.get(&site).copied().unwrap_or_default();
            let (bytes, reserved, objects) = model.inuse(site);
            prop_assert_eq!((found.inuse_bytes, found.reserved_bytes, found.inuse_objects), (bytes, reserved, objects));
            prop_assert!(found.inuse_bytes <= found.alloc_bytes);
            prop_assert!(found.inuse_objects <= found.alloc_objects);
        }
        for page in 0..120 {
            prop_assert_eq!(mappings.contains(at(page)), model.pages.contains_key(&page));
        }
    }
}
