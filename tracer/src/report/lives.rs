//! Sizes and lives of blocks, in words.

use super::model::{Lives, OfLife};
use crate::units::{blocks, bytes, count, duration, share};

/// What is known of them, a name and a line each: every number is of those below its bound that are in none before it.
pub(crate) fn lives(lives: &Lives) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if lives.temporary_objects > 0 {
        let temporary = format!(
            "{} of {} followed ({}) were freed within {}",
            count(lives.temporary_objects),
            blocks(lives.followed_objects),
            share(lives.temporary_objects, lives.followed_objects),
            duration(lives.temporary_below_s)
        );
        lines.push(("temporary", temporary));
    }
    if !lives.sizes.is_empty() {
        let sizes = lives
            .sizes
            .iter()
            .map(|of| (bytes(of.below_bytes), of.objects));
        lines.push(("sizes", joined(sizes)));
    }
    for (what, all) in [("ages", &lives.ages), ("freed at", &lives.freed)] {
        if !all.is_empty() {
            lines.push((what, spans(all)));
        }
    }
    lines
}

fn spans(all: &[OfLife]) -> String {
    joined(all.iter().map(|of| (duration(of.below_s), of.objects)))
}

/// `1,200 <128 B · 12 <1.00 KiB`.
fn joined(all: impl Iterator<Item = (String, u64)>) -> String {
    let all: Vec<String> = all
        .map(|(below, objects)| format!("{} <{below}", count(objects)))
        .collect();
    all.join(" · ")
}
