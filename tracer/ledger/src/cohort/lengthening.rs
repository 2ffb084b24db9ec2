//! Sites whose blocks become longer: a block that `realloc` lengthens is a new one each time, which no window finds again, and no size becomes more. What windows
//! see of it is that what such a site leaves behind is longer each time.

use std::collections::BTreeMap;

use super::{Amount, Cohorts, seconds};
use crate::{SiteId, trend};

/// Windows that left blocks of the site, from which on something can be told.
const LEAST: usize = 3;

/// It leaves blocks behind in so many of the windows in which it allocates: what is freed within them holds nothing.
const LEAVES: f64 = 0.75;

/// In the second half of the windows they do so this fast, as a part of how fast they do in all.
const KEEPS: f64 = 0.5;

/// What windows left of a site.
#[derive(Default)]
struct Left {
    /// In which it allocates.
    windows: f64,
    /// See [`Lengthening::points`].
    points: Vec<(f64, f64)>,
    objects: f64,
}

/// How blocks that a site leaves behind become longer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lengthening {
    /// Bytes of a block in the mean, window by window, by seconds since the first window was opened.
    pub points: Vec<(f64, f64)>,
    /// By so many bytes each second.
    pub per_s: f64,
    /// How sure it is that they do, in standard deviations (see [`trend::rise`]).
    pub rise: f64,
    /// Blocks that were left behind, in the mean of these windows.
    pub left: f64,
}

impl Lengthening {
    /// By points as above and blocks left; `None` where blocks do not become longer to the end.
    pub(crate) fn of(points: Vec<(f64, f64)>, left: f64) -> Option<Self> {
        if points.len() < LEAST {
            return None;
        }
        let values: Vec<f64> = points.iter().map(|(_, bytes)| *bytes).collect();
        let per_s = trend::line(&points)?.slope;
        let later = points.get((values.len() - 1) / 2..).unwrap_or_default();
        let lately = trend::line(later).map_or(0.0, |line| line.slope);
        (per_s > 0.0 && lately >= KEEPS * per_s).then(|| Self {
            rise: trend::rise(&values),
            left: left / points.len() as f64,
            points,
            per_s,
        })
    }

    /// What a block has in the end, at so many seconds since the first window.
    #[must_use]
    pub fn bytes_at(&self, at_s: f64) -> f64 {
        self.points.last().map_or(0.0, |(last_s, bytes)| {
            bytes + self.per_s * (at_s - last_s).max(0.0)
        })
    }
}

impl Cohorts {
    /// The sites whose blocks become longer.
    #[must_use]
    pub fn lengthening(&self) -> BTreeMap<SiteId, Lengthening> {
        let began_ns = self.began_ns().unwrap_or_default();
        let mut sites: BTreeMap<SiteId, Left> = BTreeMap::new();
        for cohort in &self.cohorts {
            let at_s = seconds(began_ns, cohort.span.closed_ns);
            for (id, there) in &cohort.sites {
                if there.births.objects <= 0.0 {
                    continue;
                }
                let mut left = Amount::default();
                for class in &there.ages {
                    left.add(*class);
                }
                let site = sites.entry(*id).or_default();
                site.windows += 1.0;
                if left.objects > 0.0 {
                    site.points.push((at_s, left.bytes / left.objects));
                    site.objects += left.objects;
                }
            }
        }
        sites
            .into_iter()
            .filter(|(_, site)| site.points.len() as f64 >= LEAVES * site.windows)
            .filter_map(|(id, site)| Some((id, Lengthening::of(site.points, site.objects)?)))
            .collect()
    }
}
