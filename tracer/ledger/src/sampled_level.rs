//! How many sampled blocks of a stack each collection of a garbage-collected heap leaves, and whether there are ever more. Pure.

/// So many standard deviations are no chance.
const SURE: f64 = 2.9;

/// Of what it rose, the level may have fallen by this part in between, and a block: what falls by more comes and goes, however high it stands.
const MAY_FALL: f64 = 0.2;

/// Where more than this part of the births came with a death, fewer levels than this may stand high by when they were taken.
const MUCH_DIES: f64 = 0.25;
const LEVELS: u32 = 4;

/// What was sampled until a collection, and found free of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    allocs: u64,
    frees: u64,
}

impl Sums {
    fn alive(self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }
}

/// The level as of each collection, of blocks of all sizes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SampledLevel {
    /// At the first look: as of the collection before it, and what was sampled since.
    begun: Option<(Sums, u64)>,
    /// From where on it is known what was born since.
    first: Option<Sums>,
    last: Sums,
    /// How many levels are known, with that.
    levels: u32,
    /// The highest level since but for the last, of which not all may have been found free that is, and how far it fell at most below a higher
    /// one before.
    highest: u64,
    fall: u64,
}

impl SampledLevel {
    /// Of a stack at which nothing had been sampled at the look before.
    #[must_use]
    pub fn appeared() -> Self {
        Self {
            first: Some(Sums::default()),
            levels: 1,
            ..Self::default()
        }
    }

    /// Notes a look: what was sampled until the last collection and found free by it, and what was sampled since.
    pub fn observe(&mut self, allocs: u64, frees: u64, pending: u64) {
        let seen = Sums { allocs, frees };
        let (begun, there) = *self.begun.get_or_insert((seen, pending));
        if let Some(first) = self.first {
            if seen.allocs != self.last.allocs {
                // Of the collection before nothing more is found free.
                self.levels = self.levels.saturating_add(1);
                let level = self.last.alive();
                self.highest = self.highest.max(first.alive()).max(level);
                self.fall = self.fall.max(self.highest.saturating_sub(level));
            }
        } else if seen.allocs != begun.allocs {
            self.levels = 1;
            // What the first collection finds free may be of before the first look; where it finds nothing, all is there that was then.
            self.first = Some(if seen.frees == begun.frees {
                Sums {
                    allocs: begun.allocs.saturating_add(there),
                    ..begun
                }
            } else {
                seen
            });
        }
        self.last = seen;
    }

    /// Born and died since.
    #[must_use]
    pub fn births_and_deaths(&self) -> (u64, u64) {
        self.first.map_or((0, 0), |first| {
            (
                self.last.allocs.saturating_sub(first.allocs),
                self.last.frees.saturating_sub(first.frees),
            )
        })
    }

    /// Whether it rose, beyond chance. Each block of a heap is sampled by chance, so that a level that is the same to the block scatters like
    /// the number of samples: those of before and those of now. No more can it scatter than by births and deaths.
    #[must_use]
    pub fn rises(&self) -> bool {
        let (births, deaths) = self.births_and_deaths();
        let (births, deaths) = (births as f64, deaths as f64);
        let before = self.first.unwrap_or_default().alive() as f64;
        let rise = births - deaths;
        let scatter = (births + deaths).min(2.0 * before + rise).max(1.0);
        let fall = self.highest.saturating_sub(self.last.alive());
        let fall = fall.max(self.fall);
        let is_told = self.levels >= LEVELS || deaths <= MUCH_DIES * births;
        is_told && rise > SURE * scatter.sqrt() && fall as f64 <= MAY_FALL * rise + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::SampledLevel;

    /// The level after these looks.
    fn after(looks: &[(u64, u64, u64)]) -> SampledLevel {
        let mut level = SampledLevel::default();
        for (allocs, frees, pending) in looks {
            level.observe(*allocs, *frees, *pending);
        }
        level
    }

    #[test]
    fn chance_does_not_rise() {
        assert!(after(&[(0, 0, 0), (9, 0, 0)]).rises());
        assert!(!after(&[(0, 0, 0), (8, 0, 0)]).rises());
        assert!(!after(&[(5000, 0, 0), (5001, 1, 0), (6000, 900, 0)]).rises());
        assert!(!after(&[(10, 0, 0), (11, 1, 0), (15, 51, 0)]).rises());
    }

    #[test]
    fn a_leak_beside_much_that_came_and_went_seemed_to_be_chance() {
        // 50 of 540 stay: less than the scatter of births and deaths, but not of levels.
        let level = after(&[
            (100, 90, 0),
            (150, 140, 0),
            (300, 275, 0),
            (400, 360, 0),
            (690, 630, 0),
        ]);
        assert_eq!(level.births_and_deaths(), (540, 490));
        assert!(level.rises());
    }

    #[test]
    fn a_cache_that_was_filled_before_the_first_look_seemed_to_rise_by_the_first_collection() {
        // All of it was sampled since the collection before; then as many come as go.
        let looks = [(2, 0, 33), (2, 0, 50), (60, 27, 4), (90, 57, 0)];
        assert!(!after(&looks).rises());
        // The same where the first collection found none of it free.
        assert!(!after(&[(2, 0, 33), (2, 0, 36), (38, 0, 4), (44, 6, 0)]).rises());
    }

    #[test]
    fn a_ring_whose_blocks_no_collection_had_looked_at_since_tracing_began_is_no_leak() {
        assert!(!after(&[(100, 0, 0), (100, 0, 50), (100, 0, 500)]).rises());
    }

    #[test]
    fn a_batch_that_is_dropped_now_and_then_does_not_rise_where_it_stands_high() {
        let looks = [
            (40, 38, 0),
            (60, 40, 0),
            (90, 82, 0),
            (120, 90, 0),
            (150, 110, 0),
        ];
        assert!(!after(&looks).rises());
    }

    #[test]
    fn a_stack_that_appeared_while_it_was_looked_at_needs_no_collection_before() {
        let mut level = SampledLevel::appeared();
        level.observe(0, 0, 12);
        assert!(!level.rises());
        level.observe(12, 0, 3);
        assert!(level.rises());
    }
}
