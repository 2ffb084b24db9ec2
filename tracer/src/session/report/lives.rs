//! Sizes and lives of a site's blocks, cut to the figures that the report has of it: what is alive is counted a moment after the totals.

use crate::{
    ledger::{Alive, Fates, Spread},
    report::{Lives, OfLife, OfSize, Site},
};

/// Gives a site what is known of its blocks.
pub(super) fn describe(site: &mut Site, mut alive: Alive, fates: Option<Fates>) {
    let mut fates = fates.unwrap_or_default();
    fates.followed = fates.followed.min(site.alloc_objects);
    let is_all = site.sample.is_none();
    let most = if is_all {
        site.alloc_objects.saturating_sub(site.inuse_objects)
    } else {
        fates.followed
    };
    alive.sizes.fit(site.inuse_objects);
    alive.ages.fit(site.inuse_objects);
    fates.freed.fit(most.min(fates.followed));
    let lives = Lives {
        sizes: alive
            .sizes
            .counts()
            .map(|(below_bytes, objects)| OfSize {
                below_bytes,
                objects,
            })
            .collect(),
        ages: of_lives(&alive.ages),
        followed_objects: fates.followed,
        freed: of_lives(&fates.freed),
        temporary_objects: fates.temporary.min(fates.freed.total()),
        temporary_below_s: fates.temporary_ns as f64 / 1e9,
    };
    site.lives = (lives != Lives::default()).then_some(lives);
}

fn of_lives(spread: &Spread) -> Vec<OfLife> {
    let lives = spread.lives();
    lives
        .map(|(below_s, objects)| OfLife { below_s, objects })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::describe;
    use crate::{
        ledger::{Alive, Fates},
        report::{Process, Report, ReportParts, Sample, Site},
    };

    proptest! {
        #[test]
        fn histograms_came_to_more_blocks_than_the_site_had(
            blocks in prop::collection::vec((0_u64..1 << 40, 0_u64..1 << 50, 1_u64..100), 0..20),
            freed in prop::collection::vec((0_u64..1 << 50, 1_u64..100), 0..10),
            (inuse_objects, more, followed, temporary) in (0_u64..500, 0_u64..500, 0_u64..2000, 0_u64..300),
            is_sampled in any::<bool>(),
        ) {
            let mut site = Site {
                pid: 1,
                weight: 1,
                inuse_objects,
                alloc_objects: inuse_objects + more,
                sample: is_sampled.then(Sample::default),
                ..Site::default()
            };
            let mut alive = Alive::default();
            for (bytes, age_ns, count) in blocks {
                alive.note(bytes, age_ns, count);
            }
            let mut fates = Fates { followed, temporary, temporary_ns: 5, ..Fates::default() };
            for (life_ns, count) in freed {
                fates.freed.note_life(life_ns, count);
            }
            describe(&mut site, alive, Some(fates));
            let mut parts = ReportParts {
                processes: vec![Process { pid: 1, ..Process::default() }],
                sites: vec![site],
                ..ReportParts::default()
            };
            parts.add_up();
            prop_assert_eq!(Report::new(parts).contradictions(), Vec::<String>::new());
        }
    }
}
