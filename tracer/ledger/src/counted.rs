//! How much a site grows, as counted. How many blocks there are of each size is known from the heap; whose those are that stay, from the windows' cohorts.
//! So the growth of a size is divided among the sites that allocate it by their shares of the old blocks that are still there. Pure.

mod lengthened;
mod levels;
mod others;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use lengthened::Lengthened;
pub use others::Left;

use super::{
    OfSize, SiteId,
    sizes::{self, BlockSize, SizeCounts},
    steady, trend,
};

/// Where so many of the oldest blocks of a size are there, they alone divide its growth: the older, the surer that they stay.
const ENOUGH_OLDEST: f64 = 5.0;

/// Growth is beyond chance from so many standard deviations on.
const SURE: f64 = 4.0;

/// Looks from which on it can be told whether growth is steady, and how sure it must be that the level rises, by Kendall's test on ranks. Four looks are too few
/// for that: each must be above the last.
const LOOKS: usize = 4;
const RISES: f64 = 1.96;

/// Between two looks so many blocks may come or go that are neither a leak nor measured by the looks' own scatter while there are few of them: this part of the
/// blocks that there are.
const SWING: f64 = 0.005;

/// Without the first look, growth is at least this part of what it is with it.
const KEEPS: f64 = 0.5;

/// The standard deviation by the median distance, of a normal distribution.
const BY_MEDIAN: f64 = 1.4826;

/// Of the blocks of a size, so many at most get the next larger chunk, for glibc leaves no remainder that could be no chunk (`_int_malloc`, `MINSIZE`).
const REMAINDERS: f64 = 0.25;

/// A site carries what grows if at least this share of what stays is its.
const MOST_OF_IT: f64 = 0.5;

/// Growth that is so much less than what windows tell, is none of it.
const FLAT: f64 = 0.3;

/// What is counted of the blocks of a site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CountedSite {
    /// The size that most of its old blocks have.
    pub size: BlockSize,
    /// Bytes by which it grows each second: what is counted, times its share.
    pub bytes_per_s: f64,
    /// How far that may be off by the looks, one standard deviation.
    pub counting_error: f64,
    /// How far by its share.
    pub share_error_bytes: f64,
    /// Its share of the old blocks of that size which are there still, and how far that may be off.
    pub share: f64,
    /// One standard deviation.
    pub share_error: f64,
    /// Old blocks of its that are there still, and how many windows they are from.
    pub stay: f64,
    /// See `stay`.
    pub windows: u32,
    /// Some of its sizes' growth is its.
    pub is_divided: bool,
    /// Whether what is counted grows beyond chance, and to the end as fast as before.
    pub grows: bool,
    /// Bytes by which it has grown since the first window.
    pub grown_bytes: f64,
    /// Its sizes.
    pub sizes: Vec<SizeOfSite>,
    /// What windows left of all other sites of its sizes, whatever became of it, as blocks of its largest; see [`Counted::note_left`].
    pub others: f64,
    /// What these windows should have caught of the growth that was counted of it, on average, in the same blocks.
    pub caught: f64,
    /// What of the heap's growth is its, for its blocks become longer.
    pub lengthens: Option<Lengthened>,
    /// Looks, and the seconds from the first to the last.
    pub looks: usize,
    /// See `looks`.
    pub over_s: f64,
}

impl CountedSite {
    /// How far its rate may be off, one standard deviation.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.counting_error.hypot(self.share_error_bytes)
    }

    /// Whether its rate is beyond chance.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.bytes_per_s > SURE * self.error()
    }

    /// Whether it alone explains the growth that is counted, for the most part at least.
    #[must_use]
    pub fn carries(&self) -> bool {
        self.grows && self.stay > 0.0 && self.is_mostly_its()
    }

    /// Whether its sizes become more, and are its own for the most part, whether or not any of its blocks stays.
    #[must_use]
    pub fn rises(&self) -> bool {
        self.grows && self.is_known() && self.is_mostly_its()
    }

    /// Whether for sure most of the blocks that divide the growth are its.
    fn is_mostly_its(&self) -> bool {
        self.share - 2.0 * self.share_error >= MOST_OF_IT
    }

    /// Whether there are fewer of its blocks' sizes than before, beyond chance: what leaks may hide behind that.
    #[must_use]
    pub fn falls(&self) -> bool {
        self.bytes_per_s < -2.0 * self.error()
    }

    /// Whether its blocks are not the reason of such a growth, bytes a second: those of their sizes do not become as many.
    #[must_use]
    pub fn is_flat_beside(&self, bytes_per_s: f64) -> bool {
        self.looks >= LOOKS && self.bytes_per_s + 2.0 * self.error() < FLAT * bytes_per_s
    }
}

/// A site's blocks of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SizeOfSite {
    /// The size.
    pub size: BlockSize,
    /// The part of the site's blocks that have it.
    pub part: f64,
    /// Bytes that were asked for of one, on average.
    pub bytes: f64,
    /// Blocks of this size in the heap now, whosever they are.
    pub counted: f64,
    /// Of these, the site's; see [`Counted::bound`].
    pub objects: u64,
}

/// What is counted in a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// The sites whose sizes are counted.
    pub sites: BTreeMap<SiteId, CountedSite>,
    /// Sizes that grow beyond chance and of which no window has caught a block that stays.
    pub unexplained: Vec<Unexplained>,
    /// The heap as a whole.
    pub heap: HeapGrowth,
    /// Looks that were taken.
    pub looks: u64,
    /// Seconds from the first look to the last.
    pub over_s: f64,
    /// Seconds since the last.
    pub last_s: f64,
}

/// How the blocks of a heap, whatever their size, become more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeapGrowth {
    /// Bytes in use now, as the allocator takes them, at the most: by the last two looks, and what it grew since.
    pub most: f64,
    /// Bytes more at the last look than at the first.
    pub bytes: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Beyond chance, and evenly.
    pub is_steady: bool,
}

impl HeapGrowth {
    fn of(counts: &SizeCounts, last_s: f64) -> Self {
        let begun = counts.first_ns().unwrap_or_default();
        let points: Vec<(f64, f64)> = counts
            .bytes()
            .map(|(at_ns, bytes)| (seconds(begun, at_ns), bytes))
            .collect();
        let (first, last) = (points.first(), points.last());
        let Some((first, last)) = first.zip(last).map(|(first, last)| (first.1, last.1)) else {
            return Self::default();
        };
        let lately = points.iter().rev().take(2).map(|(_, bytes)| *bytes);
        let level = lately.fold(0.0, f64::max);
        Growth::of(&points, last).map_or_else(Self::default, |growth| Self {
            most: level + growth.per_s.max(0.0) * last_s,
            bytes: last - first,
            bytes_per_s: growth.per_s,
            is_steady: growth.is_steady,
        })
    }
}

/// A size that grows and whose growth is no site's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unexplained {
    /// The size.
    pub size: BlockSize,
    /// By so many blocks since the first look.
    pub objects: f64,
    /// And each second.
    pub objects_per_s: f64,
}

impl Unexplained {
    /// Bytes of one, as the allocator takes them: of sizes that are counted together, the middle.
    fn bytes_of_one(&self) -> f64 {
        (self.size as f64 + self.smallest() as f64) / 2.0
    }

    /// Bytes since the first look.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        self.objects * self.bytes_of_one()
    }

    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        self.objects_per_s * self.bytes_of_one()
    }

    /// The smallest of the sizes that are counted together with this one.
    #[must_use]
    pub fn smallest(&self) -> u64 {
        sizes::smallest_of(self.size)
    }
}

/// Divides what looks have counted among the sites. `began_ns`: the first window. `None` before there are two looks.
#[must_use]
pub fn count(
    counts: &SizeCounts,
    blocks: &BTreeMap<(SiteId, BlockSize), OfSize>,
    began_ns: u64,
    now_ns: u64,
) -> Option<Counted> {
    if counts.kept() < 2 {
        return None;
    }
    let stayers = stayers(blocks);
    let mut of_sites: BTreeMap<SiteId, Vec<(BlockSize, OfSize)>> = BTreeMap::new();
    for ((site, size), of) in blocks {
        of_sites.entry(*site).or_default().push((*size, *of));
    }
    let last_s = seconds(counts.last_ns().unwrap_or(now_ns), now_ns);
    let sites = of_sites
        .into_iter()
        .map(|(site, sizes)| {
            let counted = of_site(counts, &sizes, &stayers, (began_ns, now_ns));
            (site, counted)
        })
        .collect();
    let stay = |size: &BlockSize| {
        stayers
            .get(size)
            .is_some_and(|(_, basis)| *basis != Basis::Young)
    };
    let grown: BTreeMap<BlockSize, u64> = counts.grown().collect();
    let is_remainder = |size: &BlockSize, more: u64| {
        let asked = size.saturating_sub(sizes::GRAIN);
        let of_asked = grown.get(&asked).copied().unwrap_or(0);
        stay(&asked) && more as f64 <= REMAINDERS * of_asked as f64
    };
    let unexplained = grown
        .iter()
        .map(|(size, more)| (*size, *more))
        .filter(|(size, more)| *more > 1 && !stay(size) && !is_remainder(size, *more))
        .filter_map(|(size, more)| {
            let points: Vec<(f64, f64)> = points(counts, size).collect();
            let found = Growth::of(&points, counts.now(size) as f64)?;
            found.is_steady.then_some(Unexplained {
                size,
                objects: more as f64,
                objects_per_s: found.per_s,
            })
        })
        .collect();
    Some(Counted {
        sites,
        unexplained,
        heap: HeapGrowth::of(counts, last_s),
        looks: counts.taken(),
        over_s: seconds(
            counts.first_ns().unwrap_or(now_ns),
            counts.last_ns().unwrap_or(now_ns),
        ),
        last_s,
    })
}

/// Which blocks divide the growth of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    /// The oldest.
    Oldest,
    /// All old ones, where those are few.
    Old,
    /// Those that may be others', where there are none else.
    Doubtful,
    /// Young ones, where no old one is left: as of a queue that grows. What they tell of is whose the size is, and not that any of it stays.
    Young,
}

impl Basis {
    fn of(self, blocks: &OfSize) -> f64 {
        match self {
            Self::Oldest => blocks.oldest,
            Self::Old => blocks.old,
            Self::Doubtful => blocks.doubtful,
            Self::Young => blocks.watched,
        }
    }
}

/// The blocks of each size that divide its growth: their number, and which.
fn stayers(blocks: &BTreeMap<(SiteId, BlockSize), OfSize>) -> BTreeMap<BlockSize, (f64, Basis)> {
    let mut sums: BTreeMap<BlockSize, OfSize> = BTreeMap::new();
    for ((_, size), of) in blocks {
        let sum = sums.entry(*size).or_default();
        sum.old += of.old;
        sum.oldest += of.oldest;
        sum.doubtful += of.doubtful;
        sum.watched += of.watched;
    }
    sums.into_iter()
        .filter_map(|(size, sum)| {
            let basis = if sum.oldest >= ENOUGH_OLDEST {
                Basis::Oldest
            } else if sum.old > 0.0 {
                Basis::Old
            } else if sum.doubtful > 0.0 {
                Basis::Doubtful
            } else {
                Basis::Young
            };
            let all = basis.of(&sum);
            (all > 0.0).then_some((size, (all, basis)))
        })
        .collect()
}

fn of_site(
    counts: &SizeCounts,
    sizes: &[(BlockSize, OfSize)],
    stayers: &BTreeMap<BlockSize, (f64, Basis)>,
    (began_ns, now_ns): (u64, u64),
) -> CountedSite {
    let mut site = CountedSite {
        looks: counts.kept(),
        over_s: seconds(
            counts.first_ns().unwrap_or(now_ns),
            counts.last_ns().unwrap_or(now_ns),
        ),
        ..CountedSite::default()
    };
    let watched: f64 = sizes.iter().map(|(_, of)| of.watched).sum();
    let number = sizes.len().max(1) as f64;
    let last_s = seconds(counts.last_ns().unwrap_or(now_ns), now_ns);
    let mut sum: Vec<(f64, f64)> = Vec::new();
    let (mut level, mut best) = (0.0, -1.0);
    for (size, of) in sizes {
        let mean = if of.watched > 0.0 {
            of.bytes / of.watched
        } else {
            size.saturating_sub(8) as f64
        };
        let series: Vec<(f64, f64)> = points(counts, *size).collect();
        let slope = trend::line(&series).map_or(0.0, |line| line.slope);
        let now = counts.now(*size) as f64;
        site.sizes.push(SizeOfSite {
            size: *size,
            part: if watched > 0.0 {
                of.watched / watched
            } else {
                1.0 / number
            },
            bytes: mean,
            counted: (now + slope.max(0.0) * last_s).ceil(),
            objects: 0,
        });
        site.stay += of.old;
        site.windows = site.windows.max(of.windows);
        let Some((all, basis)) = stayers.get(size).copied() else {
            continue;
        };
        let own = basis.of(of);
        if own <= 0.0 {
            continue;
        }
        site.is_divided |= basis != Basis::Young;
        let (share, error) = share(own, all);
        if own > best {
            best = own;
            (site.size, site.share, site.share_error) = (*size, share, error);
        }
        let first = series.first().map_or(0.0, |(_, blocks)| *blocks);
        level += share * mean * now;
        if sum.is_empty() {
            sum = series.iter().map(|(at, _)| (*at, 0.0)).collect();
        }
        for (total, (_, blocks)) in sum.iter_mut().zip(&series) {
            total.1 += share * mean * (blocks - first);
        }
        site.share_error_bytes = site.share_error_bytes.hypot(error * mean * slope);
    }
    if site.size == 0 {
        site.size = sizes.first().map_or(0, |(size, _)| *size);
    }
    let Some(growth) = Growth::of(&sum, level) else {
        return site;
    };
    site.bytes_per_s = growth.per_s;
    site.counting_error = growth.error;
    site.grows = growth.is_steady;
    let before_s = seconds(began_ns, counts.first_ns().unwrap_or(began_ns));
    let counted = sum.last().map_or(0.0, |(_, bytes)| *bytes);
    site.grown_bytes = (counted + growth.per_s * (before_s + last_s)).max(0.0);
    site
}

/// The share of some blocks among all, and how far it may be off (Agresti and Coull 1998).
fn share(own: f64, all: f64) -> (f64, f64) {
    let all = all.max(own);
    let near = (own + 1.0) / (all + 2.0);
    (own / all, (near * (1.0 - near) / (all + 2.0)).sqrt())
}

/// Blocks of a size by seconds since the first look.
fn points(counts: &SizeCounts, size: BlockSize) -> impl Iterator<Item = (f64, f64)> + '_ {
    let first_ns = counts.first_ns().unwrap_or(0);
    counts
        .levels(size)
        .map(move |(at_ns, blocks)| (seconds(first_ns, at_ns), blocks))
}

/// How fast a level that was looked at grows.
struct Growth {
    per_s: f64,
    /// One standard deviation.
    error: f64,
    is_steady: bool,
}

impl Growth {
    /// By points of seconds and level; `level`: of how much it is the change.
    fn of(points: &[(f64, f64)], level: f64) -> Option<Self> {
        let mut growth = Self::by(points, level)?;
        // A level that rose before the second look and never since does not grow.
        growth.is_steady &= points.len() >= LOOKS
            && Self::by(points.get(1..)?, level).is_some_and(|later| {
                later.per_s > SURE * later.error && later.per_s >= KEEPS * growth.per_s
            });
        Some(growth)
    }

    fn by(points: &[(f64, f64)], level: f64) -> Option<Self> {
        let line = trend::line(points)?;
        let count = points.len() as f64;
        let mean = points.iter().map(|(at, _)| at).sum::<f64>() / count;
        let spread: f64 = points.iter().map(|(at, _)| (at - mean).powi(2)).sum();
        // What the looks' scatter does not tell yet while there are few of them.
        let unknown = SWING * level / (count - 1.0).max(1.0);
        let error = (BY_MEDIAN * line.scatter).hypot(unknown) / spread.sqrt().max(1e-9);
        let values: Vec<f64> = points.iter().map(|(_, value)| *value).collect();
        let rates: Vec<f64> = points
            .windows(2)
            .filter_map(|pair| match pair {
                [(from, one), (to, other)] => Some((other - one) / (to - from).max(1e-9)),
                _ => None,
            })
            .collect();
        let is_steady = line.slope > SURE * error
            && (trend::rise(&values) > RISES || rates.iter().all(|rate| *rate > 0.0))
            && steady::even(&rates, 1.0).is_ok();
        Some(Self {
            per_s: line.slope,
            error,
            is_steady,
        })
    }
}

/// Seconds from one time to a later one; 0 the other way round.
fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}
