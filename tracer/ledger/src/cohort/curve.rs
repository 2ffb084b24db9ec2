//! How the blocks of a site that are born in a window disappear with their age: by the window itself, by the looks after it, and unseen. Knows
//! nothing of what is added up from it.

use super::{AGE_EDGES, Amount, Cohort, Contradictions, SiteCohort, pool::Pool};

/// How fast blocks that look alike are taken to disappear unseen, per second.
#[derive(Clone, Debug)]
pub(super) struct Hazard {
    /// Values, each with its probability.
    pub(super) likely: Vec<(f64, f64)>,
    pub(super) most: f64,
    /// Whether a window has seen what becomes of any such block.
    pub(super) is_known: bool,
}

impl Hazard {
    /// The mean of a factor that is 1 for blocks that can be told apart and falls for the others.
    pub(super) fn kept_share(&self, alike: f64, from_s: f64, to_s: f64) -> f64 {
        if alike <= 0.0 {
            return 1.0;
        }
        self.likely
            .iter()
            .map(|(hazard, share)| share * kept_share(alike, *hazard, from_s, to_s))
            .sum::<f64>()
            .min(1.0)
    }
}

/// The hazards of all sites' blocks that look alike: in the first window after their own, and in later ones.
pub(super) struct Pools([Pool; 2]);

impl Pools {
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a [Contradictions; 2]> + Clone) -> Self {
        let first = all.clone().map(|[first, _]| first.seen());
        let later = all.map(|[_, later]| later.seen());
        Self([Pool::of(first), Pool::of(later)])
    }

    /// The hazard of the blocks of a site in a cohort that look alike. `goes`: whether any block of the site was seen to go; of one of which none was, all
    /// stay, for all that is known.
    pub(super) fn hazard(
        &self,
        cohort: &Cohort,
        site: &SiteCohort,
        counts_of_site: [Contradictions; 2],
        goes: bool,
    ) -> Hazard {
        let (counts, number) = of_window(cohort, counts_of_site);
        let likely = match self.0.get(number) {
            Some(_) if counts.window_exposure > 0.0 && !goes => vec![(0.0, 1.0)],
            Some(pool) if counts.window_exposure > 0.0 => pool
                .hazards_of(counts.seen())
                .into_iter()
                .map(|(hazard, share)| ((hazard - counts.seen_by_checks()).max(0.0), share))
                .collect(),
            _ => vec![(decline(cohort, site), 1.0)],
        };
        Hazard {
            likely,
            most: most_unseen(cohort, counts_of_site),
            is_known: counts.window_exposure > 0.0,
        }
    }
}

/// What is known of a site's blocks that look alike in a cohort, and the number of the pool that it belongs to.
fn of_window(cohort: &Cohort, [first, later]: [Contradictions; 2]) -> (Contradictions, usize) {
    if cohort.later_windows > 0 && later.window_exposure > 0.0 {
        (later, 1)
    } else {
        (first, 0)
    }
}

/// How fast the blocks of a site that look alike go unseen at the most, per second, by what was seen of it alone.
pub(super) fn most_unseen(cohort: &Cohort, counts: [Contradictions; 2]) -> f64 {
    let (counts, _) = of_window(cohort, counts);
    if counts.window_exposure <= 0.0 {
        return f64::INFINITY;
    }
    let (count, time) = (counts.in_windows, counts.window_exposure);
    ((count + 2.0 + 2.0 * (count + 1.0).sqrt()) / time - counts.seen_by_checks()).max(0.0)
}

/// How fast the blocks of a site disappear at the ages that the window itself shows, per second; only what is beyond chance.
fn decline(cohort: &Cohort, site: &SiteCohort) -> f64 {
    let [_, young, middle, old] = site.ages;
    let younger = young.objects + middle.objects;
    if younger < 1.0 {
        return 0.0;
    }
    let length = cohort.span.length_s();
    // Classes of equal length would hold as many blocks if none disappeared: the older half against the quarters before.
    let edges = (AGE_EDGES[3] - AGE_EDGES[1], AGE_EDGES[4] - AGE_EDGES[3]);
    let (earlier, later) = (younger / edges.0, old.objects.max(0.5) / edges.1);
    let distance = length * ((AGE_EDGES[4] + AGE_EDGES[3]) - (AGE_EDGES[3] + AGE_EDGES[1])) / 2.0;
    let error = (1.0 / younger + 1.0 / old.objects.max(0.5)).sqrt();
    (((earlier / later).ln() - 2.0 * error) / distance.max(1e-9)).max(0.0)
}

/// How many blocks of a site reach the window's length each second, at the most: by those of its older half, with what chance allows. `scale`: how many a
/// block stands for at the most.
pub(super) fn reach_end(cohort: &Cohort, site: &SiteCohort, scale: f64) -> f64 {
    let [_, _, _, old] = site.ages;
    let count = old.objects / scale;
    let most = (count + 2.0 + 2.0 * (count + 1.0).sqrt()) * scale;
    most / (cohort.span.effective_s() * (AGE_EDGES[4] - AGE_EDGES[3]))
}

/// The mean of a factor that is 1 for blocks that can be told apart and falls for the others.
pub(super) fn kept_share(alike: f64, hazard: f64, from_s: f64, to_s: f64) -> f64 {
    if alike <= 0.0 || hazard <= 0.0 {
        return 1.0;
    }
    let falling = if hazard.is_infinite() {
        if to_s > 0.0 { 0.0 } else { 1.0 }
    } else if (to_s - from_s) * hazard < 1e-6 {
        (-hazard * from_s).exp()
    } else {
        ((-hazard * from_s).exp() - (-hazard * to_s).exp()) / (hazard * (to_s - from_s))
    };
    1.0 - alike + alike * falling
}

/// What was born between two windows and has reached an age in a range.
pub(super) struct Segment {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) amount: Amount,
    /// How far the bytes may be off for the curve's shape between two points, one standard deviation.
    pub(super) shape: f64,
}

/// Blocks born outside of the window that are alive at an age between `from` and `to` seconds, by the curve that the window and
/// the checks give.
pub(super) fn segments(cohort: &Cohort, site: &SiteCohort, from: f64, to: f64) -> Vec<Segment> {
    let mut found = Vec::new();
    if to <= from {
        return found;
    }
    let length = cohort.span.length_s();
    let effective = cohort.span.effective_s();
    let mut last = Amount::default();
    for (edges, class) in AGE_EDGES.windows(2).zip(&site.ages) {
        let &[start, end] = edges else { continue };
        last = class.times(1.0 / (effective * (end - start)));
        let (low, high) = (from.max(start * length), to.min(end * length));
        if high > low {
            found.push(Segment {
                from: low,
                to: high,
                amount: last.times(high - low),
                shape: 0.0,
            });
        }
    }
    let (mut age, mut density) = (length, last);
    let points = site.history.iter().chain(&site.last);
    let mut seen = false;
    for point in points {
        let next = point.alive.times(1.0 / effective);
        let at = (point.lag_s + length / 2.0).max(age);
        push(
            &mut found,
            (age, density),
            (at, next),
            (from, to),
            effective,
        );
        (age, density) = (at, next);
        seen = true;
    }
    if to > age {
        let end = if seen {
            density
        } else {
            // No check yet: as the window itself saw them disappear.
            density.times((-decline(cohort, site) * (to - age)).exp())
        };
        push(&mut found, (age, density), (to, end), (from, to), effective);
    }
    found
}

/// Adds the part of a curve from one point to another that lies in a range of ages.
fn push(
    found: &mut Vec<Segment>,
    (start, before): (f64, Amount),
    (end, after): (f64, Amount),
    (from, to): (f64, f64),
    effective: f64,
) {
    let (low, high) = (from.max(start), to.min(end));
    if high <= low || before.objects <= 0.0 {
        return;
    }
    // Where nothing is left, half a block is taken to be: the curve falls and does not jump.
    let floor = (0.5 / effective).min(before.objects);
    let ratio = (after.objects.max(floor) / before.objects).min(1.0);
    let rate = -ratio.ln() / (end - start).max(1e-9);
    let mean = if rate * (high - low) < 1e-6 {
        (-rate * (low - start)).exp()
    } else {
        ((-rate * (low - start)).exp() - (-rate * (high - start)).exp()) / (rate * (high - low))
    };
    let size = if before.objects > 0.0 {
        before.bytes / before.objects
    } else {
        0.0
    };
    let objects = before.objects * mean * (high - low);
    found.push(Segment {
        from: low,
        to: high,
        amount: Amount {
            objects,
            bytes: objects * size,
        },
        // It falls somewhere between the two points: at once, in the end, or in between; a standard deviation of the even distribution.
        shape: before.objects * (1.0 - ratio) * (high - low) * size / 12.0_f64.sqrt(),
    });
}
