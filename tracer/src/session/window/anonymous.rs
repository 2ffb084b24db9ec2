//! How much anonymous memory a process holds, over the time that it is traced, and how fast that grows. Knows nothing of where it comes from.

use std::time::Duration;

use crate::ledger::trend::{Line, line};

/// Looks that are kept; of all pairs of them a slope is taken.
const MOST: usize = 64;

/// Between two looks that are kept there is at least this time, at first.
const SPACING: Duration = Duration::from_millis(500);

/// What the looks have shown.
#[derive(Debug)]
pub(super) struct AnonymousMemory {
    /// Seconds since the trace began, and bytes.
    looks: Vec<(f64, f64)>,
    spacing_s: f64,
    last_bytes: f64,
}

impl Default for AnonymousMemory {
    fn default() -> Self {
        Self {
            looks: Vec::new(),
            spacing_s: SPACING.as_secs_f64(),
            last_bytes: 0.0,
        }
    }
}

impl AnonymousMemory {
    /// Takes a look in.
    pub(super) fn note(&mut self, at: Duration, bytes: u64) {
        let at = at.as_secs_f64();
        self.last_bytes = bytes as f64;
        if self
            .looks
            .last()
            .is_some_and(|(last, _)| at < last + self.spacing_s)
        {
            return;
        }
        self.looks.push((at, self.last_bytes));
        if self.looks.len() > MOST {
            let mut place = 0_usize;
            self.looks.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.spacing_s *= 2.0;
        }
    }

    /// Bytes at the last look.
    pub(super) fn last_bytes(&self) -> f64 {
        self.last_bytes
    }

    /// How fast it grows, bytes a second, and how far the looks are off that. Not the difference between the first look and the last: a heap in
    /// which blocks come and go takes memory from the kernel and gives it back by many megabytes within seconds. `None` before there are two looks.
    pub(super) fn growth(&self) -> Option<Line> {
        line(&self.looks)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{AnonymousMemory, MOST};
    use std::time::Duration;

    #[test]
    fn a_jump_at_the_end_is_not_growth() {
        let mut memory = AnonymousMemory::default();
        for second in 0..60_u32 {
            let jump = if second > 55 { 50_000_000 } else { 0 };
            let bytes = 200_000_000 + 2_000_000 * u64::from(second) + jump;
            memory.note(Duration::from_secs(second.into()), bytes);
        }
        let growth = memory.growth().unwrap();
        assert!(
            (growth.slope / 2_000_000.0 - 1.0).abs() < 0.05,
            "{growth:?}"
        );
    }

    #[test]
    fn a_long_trace_keeps_as_many_looks_as_a_short_one() {
        let mut memory = AnonymousMemory::default();
        assert!(memory.growth().is_none());
        for tenth in 0..100_000_u32 {
            memory.note(Duration::from_millis(100) * tenth, 3 * u64::from(tenth));
        }
        assert!(memory.looks.len() <= MOST && memory.looks.len() > MOST / 4);
        let growth = memory.growth().unwrap();
        assert!((growth.slope - 30.0).abs() < 1e-6, "{growth:?}");
        assert!((memory.last_bytes() - 299_997.0).abs() < 0.5);
    }
}
