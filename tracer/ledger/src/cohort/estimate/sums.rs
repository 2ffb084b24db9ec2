//! What the windows of a site add up to: three values that an interval is made from, and its variance. Knows one cohort at a time.

use super::super::{
    Amount, Cohort, SiteCohort,
    curve::{Hazard, kept_share, reach_end, segments},
    gaps::Gaps,
    seconds,
};

/// Of a site's watched blocks in one cohort, what the estimate needs beside their number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    pub(super) objects: f64,
    pub(super) alike: f64,
    pub(super) bytes: f64,
    pub(super) squares: f64,
    /// Bytes that the allocator takes for them.
    pub(super) taken: f64,
    pub(super) oldest_ns: Option<u64>,
    /// Of blocks of which none is left, what is taken for their share that looked alike.
    pub(super) gone_alike: f64,
    /// Blocks whose chunks have most likely become another site's.
    pub(super) inherited: f64,
}

impl Part {
    /// The share of the blocks that a successor could not be told from.
    pub(super) fn alike_share(&self) -> f64 {
        if self.objects > 0.0 {
            self.alike / self.objects
        } else {
            self.gone_alike
        }
    }

    /// The share of what was there that is there still, for all that is known, after so many seconds unseen.
    pub(super) fn likely_share(&self, hazard: &Hazard, from_s: f64, to_s: f64) -> f64 {
        // At the window's end they are known to be there.
        let own = if self.objects > 0.0 && to_s > 0.0 {
            1.0 - self.inherited / self.objects
        } else {
            1.0
        };
        own * hazard.kept_share(self.alike_share(), from_s, to_s)
    }
}

/// The three values of a site that the interval is made from, and its variance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) likely: Amount,
    pub(super) least: f64,
    pub(super) most: f64,
    /// From what was counted in windows, and thinned.
    pub(super) counted_variance: f64,
    /// From what was not seen.
    pub(super) unseen_variance: f64,
    pub(super) uncertain: f64,
    /// From how a site's blocks disappear between two looks.
    pub(super) shape_variance: f64,
    pub(super) largest_weight: f64,
    /// The blocks that it rests on.
    pub(super) evidence: f64,
}

impl Sums {
    /// Adds an old window's watched blocks, each with the window's weight.
    pub(super) fn add_settled(
        &mut self,
        cohort: &Cohort,
        part: &Part,
        hazard: &Hazard,
        now_ns: u64,
        gaps: &Gaps,
        scale: f64,
    ) {
        if part.objects <= 0.0 {
            return;
        }
        let weight = cohort.span.weight(gaps) * scale;
        let lag = seconds(cohort.span.closed_ns, now_ns);
        self.evidence += part.objects;
        let alike = part.alike_share();
        let all = Amount {
            objects: part.objects,
            bytes: part.bytes,
        }
        .times(weight);
        self.likely
            .add(all.times(part.likely_share(hazard, lag, lag)));
        self.least += all.bytes * kept_share(alike, hazard.most, lag, lag);
        self.most += all.bytes;
        self.counted_variance += scale * (scale - 1.0) * part.squares;
        self.unseen_variance += (weight - scale).max(0.0) * weight * part.squares;
        self.uncertain += (all.bytes - part.bytes * scale) * cohort.span.uncertainty;
        self.largest_weight = self
            .largest_weight
            .max((weight - scale).max(0.0) * part.bytes / part.objects);
    }

    /// Adds a window's blocks, and what was born in the times that it stands for, between so many seconds ago and so many. It was closed `lag` seconds ago.
    pub(super) fn add_recent(
        &mut self,
        cohort: &Cohort,
        site: &SiteCohort,
        part: &Part,
        hazard: &Hazard,
        (ages, lag): ([(f64, f64); 2], f64),
        scale: f64,
    ) {
        let length = cohort.span.length_s();
        let alike = part.alike_share();
        let counted = Amount {
            objects: part.objects,
            bytes: part.bytes,
        }
        .times(scale);
        let mut likely = counted.times(part.likely_share(hazard, lag, lag));
        let mut least = counted.bytes * kept_share(alike, hazard.most, lag, lag);
        let mut unseen = Amount::default();
        // Looks cannot tell that blocks that look alike have gone; by how few reach the window's end, it tells itself.
        // Before any window has seen what becomes of them, they stand for no others.
        let reach_end = if hazard.is_known {
            reach_end(cohort, site, scale)
        } else {
            0.0
        };
        for segment in ages
            .into_iter()
            .flat_map(|(from, to)| segments(cohort, site, from, to))
        {
            unseen.add(segment.amount);
            self.shape_variance += segment.shape * segment.shape;
            let (start, end) = (
                (segment.from - length).max(0.0),
                (segment.to - length).max(0.0),
            );
            let most = reach_end * (segment.to - segment.from);
            let there = if segment.from >= length && segment.amount.objects > most {
                1.0 - alike + alike * most / segment.amount.objects
            } else {
                1.0
            };
            let amount = segment.amount.times(there);
            likely.add(amount.times(part.likely_share(hazard, start, end)));
            least += amount.bytes * kept_share(alike, hazard.most, start, end);
        }
        self.likely.add(likely);
        self.least += least;
        self.most += counted.bytes + unseen.bytes;
        self.counted_variance += scale * (scale - 1.0) * part.squares;
        // The relative variance of a sum of so many blocks of such sizes; and chance in what was not seen.
        let census: Amount = site.ages.iter().fold(Amount::default(), |mut sum, class| {
            sum.add(*class);
            sum
        });
        let basis = part
            .objects
            .max(if ages.iter().any(|(from, _)| *from < length) {
                census.objects
            } else {
                1.0
            })
            .max(1.0);
        let spread = if part.bytes > 0.0 {
            (part.squares * part.objects / (part.bytes * part.bytes)).max(1.0)
        } else {
            1.0
        };
        let mean = if part.objects > 0.0 {
            part.bytes / part.objects
        } else if census.objects > 0.0 {
            census.bytes / census.objects
        } else if site.births.objects > 0.0 {
            site.births.bytes / site.births.objects
        } else {
            0.0
        };
        self.evidence += if unseen.objects > 0.0 {
            basis
        } else {
            part.objects
        };
        self.unseen_variance +=
            spread * (unseen.bytes * unseen.bytes / basis + unseen.bytes * mean);
        self.uncertain += unseen.bytes * cohort.span.uncertainty;
        let gap: f64 = ages.iter().map(|(from, to)| to - from).sum();
        self.largest_weight = self
            .largest_weight
            .max(gap / cohort.span.effective_s() * mean * scale);
    }
}
