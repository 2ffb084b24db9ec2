//! Room in a shared array, given out and back. Knows nothing of what is written there.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long room that was given up is left alone. A walk takes microseconds; a preempted one some milliseconds.
const GRACE: Duration = Duration::from_secs(1);

/// Hands out ranges of an array, first fit.
#[derive(Debug)]
pub(super) struct Room {
    /// Free ranges by start.
    free: BTreeMap<usize, usize>,
    /// Given up, free from this time on.
    retired: Vec<(Instant, usize, usize)>,
}

impl Room {
    pub(super) fn new(len: usize) -> Self {
        Self {
            free: BTreeMap::from([(0, len)]),
            retired: Vec::new(),
        }
    }

    /// Takes a range.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        self.collect();
        let (start, room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= len)
            .map(|(start, room)| (*start, *room))?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        Some(start)
    }

    /// Gives a range up.
    pub(super) fn retire(&mut self, start: usize, len: usize) {
        if len > 0 {
            self.retired.push((Instant::now() + GRACE, start, len));
        }
    }

    /// Frees what was retired long enough ago, and joins neighbours.
    fn collect(&mut self) {
        let now = Instant::now();
        let (over, waiting): (Vec<_>, Vec<_>) = self
            .retired
            .drain(..)
            .partition(|(free_at, ..)| *free_at <= now);
        self.retired = waiting;
        for (_, mut start, mut len) in over {
            if let Some((before, room)) = self.free.range(..start).next_back()
                && before + room == start
            {
                let (before, room) = (*before, *room);
                self.free.remove(&before);
                start = before;
                len += room;
            }
            if let Some(room) = self.free.remove(&(start + len)) {
                len += room;
            }
            self.free.insert(start, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Room;
    use std::time::{Duration, Instant};

    fn age(room: &mut Room) {
        for (free_at, ..) in &mut room.retired {
            *free_at = Instant::now() - Duration::from_millis(1);
        }
    }

    #[test]
    fn room_that_was_given_up_is_not_used_at_once() {
        let mut room = Room::new(10);
        assert_eq!(room.take(6), Some(0));
        room.retire(0, 6);
        assert_eq!(room.take(6), None);
        age(&mut room);
        assert_eq!(room.take(6), Some(0));
    }

    #[test]
    fn neighbours_are_joined() {
        let mut room = Room::new(10);
        let places: Vec<_> = (0..5).filter_map(|_| room.take(2)).collect();
        assert_eq!(places, [0, 2, 4, 6, 8]);
        for place in [4, 0, 8, 2, 6] {
            room.retire(place, 2);
        }
        age(&mut room);
        assert_eq!(room.take(10), Some(0));
        assert_eq!(room.take(1), None);
    }
}
