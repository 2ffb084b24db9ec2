//! What every room may know: numbers and times as people read them, and times from figures that nothing here believes. No I/O;
//! depends on nothing of ours.

pub mod duration;
pub mod units;
