//! Memory that a process maps in several places is read in one: a page costs little to map once more, and nothing to read otherwise.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use crate::process::procfs::{Device, MemoryMap};

/// What was seen of files in memory: by device and inode, parts of each by their beginnings, apart from each other.
#[derive(Debug, Default)]
pub(super) struct SharedMemory {
    seen: HashMap<(Device, u64), BTreeMap<u64, u64>>,
}

impl SharedMemory {
    /// Of what is there of a mapping, what no other one before it shows.
    pub(super) fn only_new(
        &mut self,
        map: &MemoryMap,
        present: Vec<Range<u64>>,
    ) -> Vec<Range<u64>> {
        if map.inode == 0 {
            return present;
        }
        let seen = self.seen.entry((map.device, map.inode)).or_default();
        let mut new = Vec::new();
        for part in present {
            // Where in the file an address is, and the other way round.
            let place = |address: u64| {
                address
                    .checked_sub(map.start)
                    .and_then(|at| at.checked_add(map.offset))
            };
            let address = |place: u64| place.saturating_sub(map.offset).saturating_add(map.start);
            if let Some((start, end)) = place(part.start).zip(place(part.end)) {
                let gaps = add(seen, start..end).into_iter();
                new.extend(gaps.map(|gap| address(gap.start)..address(gap.end)));
            }
        }
        new
    }
}

/// Adds a part to those that were seen; gives what of it was not.
fn add(seen: &mut BTreeMap<u64, u64>, part: Range<u64>) -> Vec<Range<u64>> {
    let touching: Vec<(u64, u64)> = seen
        .range(..=part.end)
        .rev()
        .take_while(|(_, end)| **end >= part.start)
        .map(|(start, end)| (*start, *end))
        .collect();
    let (mut gaps, mut at, mut whole) = (Vec::new(), part.start, part.clone());
    for (start, end) in touching.into_iter().rev() {
        if start > at {
            gaps.push(at..start.min(part.end));
        }
        at = at.max(end);
        whole = whole.start.min(start)..whole.end.max(end);
        seen.remove(&start);
    }
    if at < part.end {
        gaps.push(at..part.end);
    }
    seen.insert(whole.start, whole.end);
    gaps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::add;

    #[test]
    fn memory_that_was_mapped_ten_thousand_times_was_read_as_often() {
        let mut seen = BTreeMap::new();
        let mut add = |start: u64, end: u64| -> Vec<(u64, u64)> {
            let gaps = add(&mut seen, start..end).into_iter();
            gaps.map(|gap| (gap.start, gap.end)).collect()
        };
        assert_eq!(add(10, 20), [(10, 20)]);
        assert_eq!(add(10, 20), []);
        assert_eq!(add(30, 40), [(30, 40)]);
        assert_eq!(add(15, 35), [(20, 30)]);
        assert_eq!(add(5, 50), [(5, 10), (40, 50)]);
        assert_eq!(add(50, 51), [(50, 51)]);
        assert_eq!(seen, BTreeMap::from([(5, 51)]));
    }
}
