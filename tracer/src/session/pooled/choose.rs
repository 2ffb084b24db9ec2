//! Which word of a process is watched next: one in a block that will soon be handed out, and will then be an object of a kind that grows. Pure.

use std::collections::HashMap;

use crate::heap::{Container, ObjectKind, YoungPool};

/// Of the blocks of a pool that were never handed out one of the next so many is taken, or it might ever be the same object that follows when we look.
const AHEAD: u64 = 8;

/// A word to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The block that it lies in.
    pub(super) block: u64,
    pub(super) word: u64,
    /// What the block will hold, if it becomes what it was chosen for.
    pub(super) kind: ObjectKind,
    /// The container of which the word will be an entry, if it is one; then nothing else is known.
    pub(super) kept_in: Option<Container>,
    /// An object that has settled is there, and is watched again.
    pub(super) is_again: bool,
}

/// Numbers that look random (Marsaglia 2003, xorshift64).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 up to 1.
    pub(super) fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What changes in a pool whenever a block of it is handed out or given back.
pub(super) fn state_of(pool: &YoungPool) -> (u64, u64, u32) {
    (pool.next, pool.free, pool.count)
}

/// Chooses a word. `wanted`: kinds with the bytes by which they grow; `before`: how each pool was when they were looked at before.
pub(super) fn choose(
    pools: &[YoungPool],
    before: &HashMap<u64, (u64, u64, u32)>,
    wanted: &[(ObjectKind, f64)],
    random: &mut Random,
) -> Option<Choice> {
    let total: f64 = wanted.iter().map(|(_, weight)| weight.max(0.0)).sum();
    let mut at = random.part() * total;
    let (kind, _) = wanted.iter().find(|(_, weight)| {
        at -= weight.max(0.0);
        at < 0.0
    })?;
    let of_size = || {
        pools
            .iter()
            .filter(|pool| pool.block_bytes == kind.block_bytes)
    };
    let moves = |pool: &&YoungPool| before.get(&pool.start) != Some(&state_of(pool));
    let moving = of_size().filter(moves).count() as u64;
    // Blocks are handed out of one pool of a size until it is full.
    let pool = match moving {
        0 => {
            let all = of_size().count() as u64;
            of_size().nth(usize::try_from(random.next().checked_rem(all)?).ok()?)
        }
        _ => {
            let place = random.next().checked_rem(moving)?;
            of_size().filter(moves).nth(usize::try_from(place).ok()?)
        }
    }?;
    // What was given back is handed out first; who takes what was never handed out may be others.
    let takes_free = pool.free != 0 && (pool.left == 0 || random.next().is_multiple_of(2));
    let block = if takes_free {
        pool.free
    } else {
        let ahead = random.next().checked_rem(pool.left.clamp(1, AHEAD))?;
        pool.next.checked_add(ahead * pool.block_bytes)?
    };
    // A word that tells of another kind too, if there is one: what the block will be is not known.
    let shared: Vec<u64> = wanted
        .iter()
        .filter(|(other, _)| other != kind && other.block_bytes == kind.block_bytes)
        .filter_map(|(other, _)| other.word_at().filter(|at| kind.tells_at(*at)))
        .collect();
    let place = random.next().checked_rem(shared.len() as u64).unwrap_or(0);
    let shared = shared.get(usize::try_from(place).ok()?);
    let at = shared.copied().or_else(|| kind.word_at())?;
    Some(Choice {
        block,
        word: block.checked_add(at)?,
        kind: kind.clone(),
        kept_in: None,
        is_again: false,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Random, choose, state_of};
    use crate::heap::{ObjectKind, YoungPool};

    const START: u64 = 0x7f00_0000_0000;

    fn pool(number: u64, block_bytes: u64, left: u64) -> YoungPool {
        let start = START + number * 0x4000;
        YoungPool {
            start,
            block_bytes,
            count: 3,
            free: 0,
            next: start + 48 + 5 * block_bytes,
            left,
        }
    }

    fn kind(name: &str, block_bytes: u64) -> ObjectKind {
        ObjectKind {
            name: name.to_owned(),
            block_bytes,
            object_at: 16,
        }
    }

    #[test]
    fn blocks_that_were_given_back_were_never_watched() {
        let mut random = Random::new(3);
        let full = YoungPool {
            free: START + 48 + 64,
            left: 0,
            ..pool(0, 64, 0)
        };
        let wanted = [(kind("dict", 64), 1.0)];
        let found = choose(&[full], &HashMap::new(), &wanted, &mut random);
        assert_eq!(found.map(|found| found.block), Some(START + 48 + 64));
        let both = [YoungPool { left: 4, ..full }];
        let blocks: Vec<u64> = (0..50)
            .filter_map(|_| choose(&both, &HashMap::new(), &wanted, &mut random))
            .map(|found| found.block)
            .collect();
        assert!(blocks.contains(&full.free) && blocks.contains(&full.next));
    }

    #[test]
    fn a_block_that_is_handed_out_next_is_watched_in_the_pool_that_moves() {
        let pools = [pool(0, 64, 9), pool(1, 64, 9), pool(2, 48, 9)];
        let before: HashMap<u64, _> = pools
            .iter()
            .map(|pool| (pool.start, state_of(pool)))
            .collect();
        let mut moved = pools;
        if let Some(pool) = moved.get_mut(1) {
            pool.next += 64;
            pool.left -= 1;
        }
        let mut random = Random::new(7);
        for _ in 0..100 {
            let wanted = [(kind("Metric", 64), 5.0), (kind("never", 48), 0.0)];
            let found = choose(&moved, &before, &wanted, &mut random);
            let block = found.as_ref().map_or(0, |found| found.block);
            let next = START + 0x4000 + 48 + 6 * 64;
            assert!((next..next + 8 * 64).contains(&block), "{block:x}");
            assert_eq!(found.map(|found| found.word), Some(block + 16 + 8));
        }
    }

    #[test]
    fn blocks_lie_in_their_pool() {
        let mut random = Random::new(9);
        let pools = [pool(0, 512, 2)];
        for _ in 0..100 {
            let found = choose(
                &pools,
                &HashMap::new(),
                &[(kind("str", 512), 1.0)],
                &mut random,
            );
            let first = START + 48 + 5 * 512;
            assert!(found.is_some_and(|found| found.block == first || found.block == first + 512));
        }
        assert_eq!(choose(&pools, &HashMap::new(), &[], &mut random), None);
        let other = [(kind("str", 64), 1.0)];
        assert_eq!(choose(&pools, &HashMap::new(), &other, &mut random), None);
    }

    /// Half of what was watched was a string where an instance was expected, and the other way round.
    #[test]
    fn of_two_kinds_in_blocks_of_one_size_one_word_tells() {
        let mut random = Random::new(5);
        let mut visit = kind("Visit", 64);
        visit.object_at = 32;
        let mut text = kind("str", 64);
        text.object_at = 0;
        let chosen = |wanted: &[(ObjectKind, f64)], random: &mut Random| {
            let found = choose(&[pool(0, 64, 9)], &HashMap::new(), wanted, random);
            found.map(|found| found.word - found.block)
        };
        for _ in 0..20 {
            let both = [(visit.clone(), 1.0), (text.clone(), 1.0)];
            assert_eq!(chosen(&both, &mut random), Some(40));
            let with_dict = [(kind("dict", 64), 0.0), (text.clone(), 1.0)];
            assert_eq!(chosen(&with_dict, &mut random), Some(48));
            assert_eq!(chosen(&[(text.clone(), 1.0)], &mut random), Some(8));
        }
        assert!(text.tells_at(8) && text.tells_at(40) && text.tells_at(48));
        assert!(!text.tells_at(0) && !text.tells_at(24) && !text.tells_at(64));
        assert!(visit.tells_at(40) && !visit.tells_at(48));
    }

    #[test]
    fn the_word_is_one_that_is_written_when_an_object_is_used_again() {
        assert_eq!(kind("Metric", 64).word_at(), Some(24));
        assert_eq!(kind("dict", 64).word_at(), Some(48));
        assert_eq!(kind("list", 48).word_at(), Some(40));
        assert_eq!(kind("list", 32).word_at(), None);
        assert_eq!(kind("", 32).word_at(), None);
    }
}
