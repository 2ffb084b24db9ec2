//! Lives of simulated blocks: at which pace they are born, how long they stay. Knows no ledger.

use leakscope_common::mix;

/// A block's life, seconds since its program began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) born: f64,
    pub(crate) size: u64,
    pub(crate) dies: f64,
}

pub(crate) const FOREVER: f64 = f64::INFINITY;

/// Everything is simulated for so long, seconds.
pub(crate) const END: f64 = 620.0;

/// Numbers that look random, the same for the same seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponentially distributed.
    pub(crate) fn wait(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }
}

/// Births at a steady pace, a little irregular as sleeping programs are, until `until`.
pub(crate) fn pace(
    chance: &mut Chance,
    from: f64,
    until: f64,
    per_s: f64,
    mut life: impl FnMut(&mut Chance, f64) -> Option<Life>,
) -> Vec<Life> {
    let mut lives = Vec::new();
    let mut at = from;
    while at < until {
        lives.extend(life(chance, at));
        at += (0.9 + 0.2 * chance.share()) / per_s;
    }
    lives
}

pub(crate) fn stays(born: f64, size: u64) -> Option<Life> {
    Some(Life {
        born,
        size,
        dies: FOREVER,
    })
}

pub(crate) fn lives_for(born: f64, size: u64, age: f64) -> Option<Life> {
    Some(Life {
        born,
        size,
        dies: born + age,
    })
}

/// Births of which every one dies when as many as `capacity` came after it.
pub(crate) fn fifo(mut births: Vec<Life>, capacity: usize) -> Vec<Life> {
    let born: Vec<f64> = births.iter().map(|life| life.born).collect();
    for (life, successor) in births.iter_mut().zip(born.iter().skip(capacity)) {
        life.dies = *successor;
    }
    births
}

/// Blocks collected until the end of each period, then freed at once.
pub(crate) fn flushed(births: Vec<Life>, period: f64) -> Vec<Life> {
    births
        .into_iter()
        .map(|life| Life {
            dies: (life.born / period).floor() * period + period,
            ..life
        })
        .collect()
}

/// One block that is replaced by a larger one at each of the times.
pub(crate) fn replaced(times: &[(f64, u64)]) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    for (at, size) in times {
        if let Some(last) = lives.last_mut() {
            last.dies = *at;
        }
        lives.extend(stays(*at, *size));
    }
    lives
}

/// A slot for each key; a request for a key that is not there fills its slot.
pub(crate) fn keyed(chance: &mut Chance, keys: u64, per_s: f64) -> Vec<Life> {
    let mut there = vec![false; keys as usize];
    pace(chance, 0.0, END, per_s, |chance, at| {
        // Cubed: some keys are asked for much more often than others.
        let key = (chance.share().powi(3) * keys as f64) as usize;
        let slot = there.get_mut(key)?;
        let miss = !*slot;
        *slot = true;
        miss.then(|| stays(at, 200)).flatten()
    })
}
