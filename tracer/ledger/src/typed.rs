//! Growth by type: how many objects of each kind there are is counted, look by look; at which site they are made is known of a sample of objects that were
//! watched from their birth on. The growth of a kind is divided among the sites by their shares of those objects that stay. Pure; a kind is a number.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    OfSize, SiteId,
    counted::{CountedSite, count},
    flow::{LEAK_AFTER_S, too_short},
    sizes::SizeCounts,
    trend,
    verdict::{Judgement, Verdict},
};
use leakscope_model::units::{duration, rate};

/// A kind of object: a number of the caller's, from [`FIRST_KIND`] on.
pub type Kind = u16;

/// What is no object (tables, items) is counted as one kind, in units of so many bytes, and is whose the objects are.
const REST: Kind = 0;
const REST_BYTES: u64 = 16;

/// See [`Kind`].
pub const FIRST_KIND: Kind = 1;

/// An object that has been there for so long counts before younger ones, nanoseconds: what stays is old.
const OLD_NS: u64 = 8_000_000_000;

/// A site is accused by so many objects at least that were seen to be made there and are still there.
const LEAST_OBJECTS: f64 = 3.0;

/// Where nothing tells objects from others that take their place, they are watched again for so long at least, seconds in all: of those that live five,
/// none is replaced in that time once in fifty times (e^-4).
const LEAST_AGAIN_S: f64 = 20.0;

/// Looks from which on it can be told whether growth is steady.
const LOOKS: usize = 4;

/// An object that was seen to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Born {
    /// Where in the program.
    pub site: SiteId,
    /// What it is.
    pub kind: Kind,
    /// Bytes of its block.
    pub bytes: u64,
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
    /// What it holds tells it from another of its kind in its place.
    pub is_told_apart: bool,
}

/// What is known of the objects of a process.
#[derive(Clone, Debug, Default)]
pub struct TypedGrowth {
    counts: SizeCounts,
    /// By address.
    born: BTreeMap<u64, Born>,
    /// Of each site, what was seen of objects that nothing tells apart, when they were watched again.
    again: BTreeMap<SiteId, Again>,
}

/// Objects that were watched again: for how long, and how many others took the place of one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Again {
    seconds: f64,
    replaced: f64,
}

impl Again {
    /// Whether objects live as long as they were watched for, in all that is known: others took the place of hardly any.
    fn shows_that_they_stay(&self, watched_s: f64) -> bool {
        self.seconds >= LEAST_AGAIN_S && self.seconds >= self.replaced * watched_s
    }
}

/// What a site grows by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TypedSite {
    /// All kinds together, and the rest.
    pub counted: CountedSite,
    /// Each kind that was seen there, the most bytes first.
    pub kinds: Vec<KindOfSite>,
    /// Objects that were seen to be made there and are still there.
    pub objects: u64,
    /// Of these, the ones that cannot be taken for others.
    pub told_apart: u64,
    /// What was seen of the others when they were watched again.
    pub again: Again,
    /// When the first of them was made, CLOCK_MONOTONIC nanoseconds.
    pub since_ns: u64,
}

/// Objects of one kind that a site grows by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KindOfSite {
    /// Which.
    pub kind: Kind,
    /// By so many each second.
    pub objects_per_s: f64,
    /// And since the first look.
    pub objects: f64,
    /// Bytes of a block.
    pub bytes: u64,
}

impl TypedGrowth {
    /// Takes a look in: objects of each kind, and bytes of what is no object.
    pub fn note(
        &mut self,
        at_ns: u64,
        kinds: impl IntoIterator<Item = (Kind, u64)>,
        rest_bytes: u64,
    ) {
        let kinds = kinds
            .into_iter()
            .filter(|(kind, _)| *kind >= FIRST_KIND)
            .map(|(kind, objects)| (u64::from(kind), objects));
        let rest = (u64::from(REST), rest_bytes / REST_BYTES);
        self.counts.note(at_ns, kinds.chain([rest]));
    }

    /// An object was made and has stayed for a while.
    pub fn add(&mut self, address: u64, born: Born) {
        self.born.insert(address, born);
    }

    /// An object is there no more.
    pub fn remove(&mut self, address: u64) {
        self.born.remove(&address);
    }

    /// An object was watched again for so many seconds; another took its place, or none.
    pub fn watched_again(&mut self, address: u64, seconds: f64, is_replaced: bool) {
        if let Some(born) = self.born.get(&address) {
            let again = self.again.entry(born.site).or_default();
            again.seconds += seconds;
            if is_replaced {
                again.replaced += 1.0;
                self.born.remove(&address);
            }
        }
    }

    /// Looks that were taken.
    #[must_use]
    pub fn looks(&self) -> usize {
        self.counts.kept()
    }

    /// Seconds since the first look.
    #[must_use]
    pub fn watched_s(&self, now_ns: u64) -> f64 {
        seconds(self.counts.first_ns().unwrap_or(now_ns), now_ns)
    }

    /// The objects that are there, by address.
    pub fn born(&self) -> impl Iterator<Item = (u64, &Born)> {
        self.born.iter().map(|(address, born)| (*address, born))
    }

    /// Kinds of which there are more by so many a second, the most bytes a second first; `bytes` of an object of a kind.
    #[must_use]
    pub fn growing(&self, bytes: impl Fn(Kind) -> u64) -> Vec<KindOfSite> {
        let mut growing: Vec<KindOfSite> = self
            .counts
            .grown()
            .filter_map(|(kind, objects)| {
                let kind = Kind::try_from(kind).ok().filter(|kind| *kind != REST)?;
                Some(KindOfSite {
                    kind,
                    objects_per_s: self.slope(kind).max(0.0),
                    objects: objects as f64,
                    bytes: bytes(kind),
                })
            })
            .collect();
        growing.sort_by(|one, other| other.bytes_per_s().total_cmp(&one.bytes_per_s()));
        growing
    }

    /// Bytes by which those kinds have grown since the first look of which objects were seen to be made that are still there.
    #[must_use]
    pub fn grown_bytes(&self, bytes: impl Fn(Kind) -> u64) -> u64 {
        let seen: BTreeSet<Kind> = self.born.values().map(|born| born.kind).collect();
        let grown = self.counts.grown().filter_map(|(kind, objects)| {
            let kind = Kind::try_from(kind).ok()?;
            seen.contains(&kind)
                .then(|| bytes(kind).saturating_mul(objects))
        });
        grown.fold(0, u64::saturating_add)
    }

    /// What each site grows by. `joined`: which site stands for one.
    #[must_use]
    pub fn sites(
        &self,
        joined: impl Fn(SiteId) -> SiteId,
        now_ns: u64,
    ) -> BTreeMap<SiteId, TypedSite> {
        let mut blocks: BTreeMap<(SiteId, u64), OfSize> = BTreeMap::new();
        let mut sites: BTreeMap<SiteId, TypedSite> = BTreeMap::new();
        for born in self.born.values() {
            let id = joined(born.site);
            let of = blocks.entry((id, u64::from(born.kind))).or_default();
            of.watched += 1.0;
            of.bytes += born.bytes as f64;
            of.old += 1.0;
            of.windows += 1;
            if now_ns.saturating_sub(born.at_ns) >= OLD_NS {
                of.oldest += 1.0;
            }
            let site = sites.entry(id).or_default();
            site.since_ns = match site.objects {
                0 => born.at_ns,
                _ => site.since_ns.min(born.at_ns),
            };
            site.objects += 1;
            site.told_apart += u64::from(born.is_told_apart);
        }
        for (id, seen) in &self.again {
            if let Some(site) = sites.get_mut(&joined(*id)) {
                site.again.seconds += seen.seconds;
                site.again.replaced += seen.replaced;
            }
        }
        let began_ns = self.counts.first_ns().unwrap_or(now_ns);
        let Some(alone) = count(&self.counts, &blocks, began_ns, now_ns) else {
            return BTreeMap::new();
        };
        self.divide_kinds(&blocks, &mut sites);
        // The rest is as much the sites' as their objects are.
        let rates: BTreeMap<SiteId, f64> = alone
            .sites
            .iter()
            .map(|(id, site)| (*id, site.bytes_per_s.max(0.0)))
            .collect();
        let all: f64 = rates.values().sum();
        for (id, rate) in rates {
            let weight = self.born.len() as f64 * rate / all.max(1e-9);
            if weight > 0.0 {
                let of = blocks.entry((id, u64::from(REST))).or_default();
                (of.watched, of.old, of.oldest) = (weight, weight, weight);
                of.bytes = weight * REST_BYTES as f64;
            }
        }
        let counted = count(&self.counts, &blocks, began_ns, now_ns).unwrap_or_default();
        for (id, mut found) in counted.sites {
            if let Some(site) = sites.get_mut(&id) {
                found.stay = site.objects as f64;
                site.counted = found;
            }
        }
        sites
    }

    /// Divides the growth of each kind among the sites that make such objects.
    fn divide_kinds(
        &self,
        blocks: &BTreeMap<(SiteId, u64), OfSize>,
        sites: &mut BTreeMap<SiteId, TypedSite>,
    ) {
        let mut all: BTreeMap<u64, f64> = BTreeMap::new();
        for ((_, kind), of) in blocks {
            *all.entry(*kind).or_default() += of.old;
        }
        for ((id, number), of) in blocks {
            let Ok(kind) = Kind::try_from(*number) else {
                continue;
            };
            let share = of.old / all.get(number).copied().unwrap_or(1.0).max(1.0);
            let first = self.counts.levels(*number).next();
            let more = self.counts.now(*number) as f64 - first.map_or(0.0, |(_, level)| level);
            let found = KindOfSite {
                kind,
                objects_per_s: share * self.slope(kind),
                objects: share * more,
                bytes: (of.bytes / of.watched.max(1.0)).round() as u64,
            };
            if let Some(site) = sites.get_mut(id) {
                site.kinds.push(found);
            }
        }
        for site in sites.values_mut() {
            site.kinds
                .sort_by(|one, other| other.bytes_per_s().total_cmp(&one.bytes_per_s()));
        }
    }

    /// By how many objects a kind grows each second.
    fn slope(&self, kind: Kind) -> f64 {
        let first_ns = self.counts.first_ns().unwrap_or(0);
        let points: Vec<(f64, f64)> = self
            .counts
            .levels(u64::from(kind))
            .map(|(at_ns, objects)| (seconds(first_ns, at_ns), objects))
            .collect();
        trend::line(&points).map_or(0.0, |line| line.slope)
    }
}

impl KindOfSite {
    /// Bytes by which it grows each second.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        self.objects_per_s * self.bytes as f64
    }
}

impl TypedSite {
    /// What to make of it, where its process was watched for so long. `types`: what it grows by, for people.
    #[must_use]
    pub fn judge(&self, watched_s: f64, types: &str) -> Judgement {
        let counted = &self.counted;
        let growth = counted.bytes_per_s;
        let (verdict, reason) = if growth <= 2.0 * counted.counting_error {
            let reason = format!(
                "as many objects of its types as before, in {} looks over {}",
                counted.looks,
                duration(counted.over_s)
            );
            (Verdict::Plateau, reason)
        } else if counted.looks < LOOKS || watched_s < LEAK_AFTER_S {
            (
                Verdict::WarmingUp,
                format!("{types}; {}", too_short(watched_s)),
            )
        } else if !counted.grows {
            (
                Verdict::WarmingUp,
                format!("{types}, but not steadily so far"),
            )
        } else if counted.stay < LEAST_OBJECTS || growth <= 2.0 * counted.error() {
            (
                Verdict::WarmingUp,
                format!("{types} in the process; few of them were seen to be made here"),
            )
        } else if (self.told_apart as f64) < LEAST_OBJECTS
            && !self.again.shows_that_they_stay(watched_s)
        {
            let reason = if self.again.replaced > 0.0 {
                format!(
                    "{types} in the process; of its objects that were watched again for {}, others took the place of {}",
                    duration(self.again.seconds),
                    self.again.replaced as u64
                )
            } else {
                format!("{types}; they were not watched for long enough to tell that they stay")
            };
            (Verdict::WarmingUp, reason)
        } else {
            let bytes = rate(growth).map_or_else(String::new, |rate| format!(", {rate}"));
            let reason = format!(
                "{types}{bytes}: counted in {} looks over {}; {} of these objects were watched as they were made here, and are still there",
                counted.looks,
                duration(counted.over_s),
                self.objects
            );
            (Verdict::Leaking, reason)
        };
        Judgement {
            verdict,
            reason,
            growth_bytes_per_s: growth.max(0.0),
        }
    }
}

fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

#[cfg(test)]
mod tests;
