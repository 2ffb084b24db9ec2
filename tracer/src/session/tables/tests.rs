//! Room in the tables, given out and back.

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
