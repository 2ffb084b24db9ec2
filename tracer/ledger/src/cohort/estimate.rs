//! From cohorts to what is in use.
//!
//! A window at a random time stands for the time until the next one is opened, and for that before it where the one before it was at no random time. Of each site it says how many blocks a second are born and reach an age: up to the
//! window's length from the ages of the blocks alive at its end, beyond it from the checks. What was born between two windows and is alive now is the
//! integral of that over the ages that such blocks have now; what was born in the window is counted.

mod sums;

use std::collections::{BTreeMap, HashMap};

use super::{
    Cohort, Cohorts, Contradictions, Occasion, RECENT, SiteCohort, curve::Pools, heirs::Heirs,
    interval, seconds,
};
use crate::SiteId;
use sums::{Part, Sums};

/// One or two blocks say nothing of others: what rests on so few is counted, and only the interval's upper end says what there may be besides.
const FEW: f64 = 2.0;

/// What is known of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Blocks in use.
    pub inuse_objects: u64,
    /// Their bytes.
    pub inuse_bytes: u64,
    /// The 95 % interval of the bytes.
    pub inuse_bytes_low: u64,
    /// Its upper end.
    pub inuse_bytes_high: u64,
    /// The watched blocks' own bytes: those that none but themselves stand for.
    pub counted_bytes: u64,
    /// Blocks allocated since the first window.
    pub alloc_objects: u64,
    /// Their bytes.
    pub alloc_bytes: u64,
    /// Bytes that are allocated each second and outlive half of the time watched.
    pub growth_bytes_per_s: f64,
    /// Bytes that the allocator takes for each byte in use; 1 where none is.
    pub taken_per_byte: f64,
    /// When the oldest block that is in use was allocated, CLOCK_MONOTONIC nanoseconds.
    pub oldest_born_ns: Option<u64>,
    /// The watched blocks that it rests on.
    pub observed_objects: u64,
    /// Of these, the ones that a successor with the same contents could not be told from.
    pub alike_objects: u64,
    /// Windows in which the site allocated.
    pub windows: u64,
    /// Looks at its oldest watched block that could have found it gone.
    pub checks: u64,
}

impl Cohorts {
    /// Every site's estimate at a time, of blocks at least `min_age_s` old. The last window stands for the time until `covered_until_ns`: now, or when the
    /// one that is open was opened.
    #[must_use]
    pub fn estimates(
        &self,
        now_ns: u64,
        covered_until_ns: u64,
        min_age_s: f64,
    ) -> BTreeMap<SiteId, Estimate> {
        let parts = self.parts(now_ns, min_age_s);
        let pools = Pools::of(self.contradictions.values());
        let recent = self.cohorts.len().saturating_sub(RECENT);
        let mut sites: BTreeMap<SiteId, ()> = BTreeMap::new();
        for cohort in self.cohorts.iter().skip(recent) {
            sites.extend(cohort.sites.keys().map(|site| (*site, ())));
        }
        sites.extend(self.settled_births.keys().map(|site| (*site, ())));
        sites
            .into_keys()
            .map(|site| {
                (
                    site,
                    self.estimate(site, &parts, &pools, (now_ns, covered_until_ns), min_age_s),
                )
            })
            .collect()
    }

    /// The watched blocks by site and cohort.
    fn parts(&self, now_ns: u64, min_age_s: f64) -> HashMap<(SiteId, u32), Part> {
        let mut parts: HashMap<(SiteId, u32), Part> = HashMap::new();
        let heirs = Heirs::of(self);
        for watched in self.counted() {
            let survivor = &watched.survivor;
            if seconds(survivor.born_ns, now_ns) < min_age_s {
                continue;
            }
            let part = parts.entry((survivor.site, watched.cohort)).or_default();
            let size = survivor.size as f64;
            part.objects += 1.0;
            part.bytes += size;
            part.squares += size * size;
            part.taken += watched.taken() as f64;
            if self.looks_alike(watched) {
                part.alike += 1.0;
                if heirs.have(watched) {
                    part.inherited += 1.0;
                }
            }
            part.oldest_ns = Some(
                part.oldest_ns
                    .map_or(survivor.born_ns, |oldest| oldest.min(survivor.born_ns)),
            );
        }
        parts
    }

    fn estimate(
        &self,
        site: SiteId,
        parts: &HashMap<(SiteId, u32), Part>,
        pools: &Pools,
        (now_ns, covered_until_ns): (u64, u64),
        min_age_s: f64,
    ) -> Estimate {
        let mut result = Estimate::default();
        let mut sums = Sums::default();
        let mut births = self.settled_births.get(&site).copied().unwrap_or_default();
        result.windows = u64::from(self.settled_windows.get(&site).copied().unwrap_or(0));
        let (mut watched_bytes, mut taken, mut counted) = (0.0, 0.0, 0.0);
        let began_ns = self.began_ns().unwrap_or(now_ns);
        let half = seconds(began_ns, now_ns) / 2.0;
        // Bytes of old windows and of young ones that are alive, and the time that they stand for.
        let (mut lasting, mut lasting_time) = (0.0, 0.0);
        let (mut young, mut young_time) = (0.0, 0.0);
        // The same of the windows whose births are known, with these.
        let (mut old_stay, mut young_stay) = (Stay::default(), Stay::default());
        let scale = self.weight() as f64;
        let counts = self.contradictions.get(&site).copied().unwrap_or_default();
        let nothing = SiteCohort::default();
        // Of blocks that are seen to go, those that look alike may have gone unseen, and others may stand in their places.
        let goes = self.ends_young(site) || counts.iter().any(|counts| counts.in_windows > 0.0);
        let is_seen_to_go = self.is_seen_to_go(site);
        // Such blocks of the site were looked at.
        let gone_alike = f64::from(u8::from(self.contradictions.contains_key(&site)));
        for (number, cohort) in (0_u32..).zip(&self.cohorts) {
            let gaps = self.gaps(number as usize, covered_until_ns);
            let part = Part {
                gone_alike,
                ..parts.get(&(site, number)).copied().unwrap_or_default()
            };
            let is_old = self.cohorts.len() - number as usize > RECENT;
            let there = cohort.sites.get(&site);
            if part.objects > 0.0 {
                result.observed_objects += part.objects as u64;
                result.alike_objects += part.alike as u64;
                watched_bytes += part.bytes;
                taken += part.taken;
                result.oldest_born_ns = match (result.oldest_born_ns, part.oldest_ns) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
                result.checks = result
                    .checks
                    .max(u64::from(cohort.checks.saturating_sub(1)));
            }
            if let Some(there) = there {
                births.add(there.births.times(cohort.span.weight(&gaps)));
                result.windows += 1;
            }
            let mut hazard = pools.hazard(cohort, there.unwrap_or(&nothing), counts, is_seen_to_go);
            if goes {
                hazard.most = f64::INFINITY;
            }
            let seconds_watched = seconds(cohort.span.closed_ns, now_ns);
            let share = part.likely_share(&hazard, seconds_watched, seconds_watched);
            let alike = if hazard.is_known {
                0.0
            } else {
                part.alike_share()
            };
            let alive = part.bytes * scale * share * (1.0 - alike);
            counted += part.bytes * share;
            let is_lasting = seconds_watched >= half;
            if cohort.span.occasion == Occasion::Start {
                // What a program does at its start says nothing of how fast it grows.
            } else if is_lasting {
                lasting += alive;
                lasting_time += cohort.span.effective_s();
            } else {
                young += alive;
                young_time += cohort.span.effective_s();
            }
            if let Some(there) = there
                && cohort.span.occasion != Occasion::Start
            {
                let stay = if is_lasting {
                    &mut old_stay
                } else {
                    &mut young_stay
                };
                stay.born += there.births.bytes;
                stay.alive += alive;
            }
            if there.is_none() && part.objects <= 0.0 {
                continue;
            }
            if is_old {
                sums.add_settled(cohort, &part, &hazard, now_ns, &gaps, scale);
            } else {
                let site = there.unwrap_or(&nothing);
                let ages = gaps.map(|(from, to)| {
                    let youngest = seconds(to, now_ns).max(min_age_s);
                    (youngest, seconds(from, now_ns).max(youngest))
                });
                sums.add_recent(cohort, site, &part, &hazard, (ages, seconds_watched), scale);
            }
        }
        // A site that is rarely used is not rare by chance alone.
        let dispersion = self.dispersion(site, parts, scale);
        let by_count = sums.counted_variance + sums.unseen_variance * dispersion;
        let by_value = sums.shape_variance + sums.uncertain * sums.uncertain;
        let variance = by_count + by_value;
        result.inuse_objects = sums.likely.objects.round() as u64;
        result.inuse_bytes = sums.likely.bytes.round() as u64;
        result.counted_bytes = (counted.round() as u64).min(result.inuse_bytes);
        if sums.evidence <= FEW {
            result.inuse_bytes = result.counted_bytes;
            result.inuse_objects = result.inuse_objects.min(result.observed_objects);
        }
        // That of a part: chance counts for more in few blocks.
        let relative = |value: f64| {
            let part = (value / sums.most.max(1.0)).min(1.0);
            by_count * part + by_value * part * part
        };
        result.inuse_bytes_low =
            (interval::low(sums.least, relative(sums.least)) as u64).min(result.inuse_bytes);
        result.inuse_bytes_high = (interval::high(sums.most, variance, sums.largest_weight) as u64)
            .max(result.inuse_bytes);
        if self.saw_only_a_start(covered_until_ns) {
            // Of what came after it nothing is known but the memory of the process, which is the caller's to know.
            result.inuse_bytes_high = u64::MAX;
        }
        result.taken_per_byte = if watched_bytes > 0.0 {
            taken / watched_bytes
        } else {
            1.0
        };
        result.alloc_objects = births.objects.round() as u64;
        result.alloc_bytes = births.bytes.round() as u64;
        result.growth_bytes_per_s = if old_stay.is_as_long_as(&young_stay) {
            // Nothing goes with age: the young ones will stay too, and the more windows, the less is chance.
            (lasting + young) / (lasting_time + young_time)
        } else if lasting_time > 0.0 {
            lasting / lasting_time
        } else if young_time > 0.0 {
            young / young_time
        } else {
            0.0
        };
        result
    }

    /// Whether all windows were at a program's start, and it went on long after them: it does other things then.
    fn saw_only_a_start(&self, now_ns: u64) -> bool {
        let ended_ns = self
            .cohorts
            .last()
            .map_or(now_ns, |last| last.span.closed_ns);
        let is_start = |cohort: &Cohort| cohort.span.occasion == Occasion::Start;
        self.cohorts.iter().all(is_start)
            && seconds(ended_ns, now_ns) > seconds(self.began_ns().unwrap_or(ended_ns), ended_ns)
    }

    /// Whether any block of the site was seen to go, in its own window, by a look, or in a later window.
    pub(super) fn is_seen_to_go(&self, site: SiteId) -> bool {
        let went = |counts: &Contradictions| counts.in_windows > 0.0 || counts.by_checks > 0.0;
        self.ends_young(site)
            || self
                .contradictions
                .get(&site)
                .is_some_and(|counts| counts.iter().any(went))
    }

    /// Blocks of the site that were born in windows.
    pub(super) fn born_in_windows(&self, site: SiteId) -> f64 {
        let there = self
            .cohorts
            .iter()
            .filter_map(|cohort| cohort.sites.get(&site));
        there.map(|site| site.births.objects).sum()
    }

    /// Whether blocks of the site that were born in a window were freed in it, beyond what thinning explains.
    pub(super) fn ends_young(&self, site: SiteId) -> bool {
        let (mut born, mut alive, mut variance) = (0.0, 0.0, 0.0);
        for there in self
            .cohorts
            .iter()
            .filter_map(|cohort| cohort.sites.get(&site))
        {
            let alive_here: f64 = there.ages.iter().map(|class| class.objects).sum();
            born += there.births.objects;
            alive += alive_here;
            // One of `scale` of them is counted.
            variance += alive_here * (self.weight() as f64 - 1.0);
        }
        born - alive > 2.0 * f64::sqrt(variance) + 0.5
    }

    /// By how much the numbers of a site vary more from window to window than chance explains, from the differences between neighbours (Wolter 2007,
    /// chapter 8), with the factor for how few they are. At least 1.
    fn dispersion(&self, site: SiteId, parts: &HashMap<(SiteId, u32), Part>, scale: f64) -> f64 {
        let recent = self.cohorts.len().saturating_sub(RECENT);
        let counts: Vec<(f64, f64)> = (0_u32..)
            .zip(&self.cohorts)
            .skip(recent)
            .filter(|(_, cohort)| cohort.span.is_random())
            .map(|(number, cohort)| {
                (
                    parts.get(&(site, number)).map_or(0.0, |part| part.objects),
                    cohort.span.effective_s() / scale,
                )
            })
            .collect();
        let degrees = counts.len().saturating_sub(1);
        let factor = interval::student_factor(degrees).powi(2);
        let (count, time) = counts
            .iter()
            .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        if degrees == 0 || count <= 0.0 {
            return factor;
        }
        let rate = count / time;
        let sum: f64 = counts
            .windows(2)
            .filter_map(|pair| match pair {
                [one, other] => {
                    let difference = one.0 / one.1 - other.0 / other.1;
                    Some(difference * difference / (rate * (1.0 / one.1 + 1.0 / other.1)))
                }
                _ => None,
            })
            .sum();
        (sum / degrees as f64).max(1.0) * factor
    }
}

/// What is left of what was born in some windows, bytes.
#[derive(Default)]
struct Stay {
    born: f64,
    alive: f64,
}

impl Stay {
    /// Whether as much of this is left as of those, which are younger.
    fn is_as_long_as(&self, younger: &Self) -> bool {
        self.born > 0.0
            && younger.born > 0.0
            && self.alive / self.born >= AS_MUCH * younger.alive / younger.born
    }
}

/// Shares of blocks that differ by less are the same: one of some is watched.
const AS_MUCH: f64 = 0.9;
