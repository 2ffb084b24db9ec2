//! Where objects of the kernel are made, as windows saw it: over time, judged, and as they stand in a report.

use std::{collections::BTreeMap, path::Path};

use leakscope_common::{KERNEL_SITE_INTERRUPT, KernelSite, UNKNOWN_SITE};

use super::windows::{self, WindowsSoFar};
use crate::{
    kernel::KernelAllocations,
    ledger::{LevelHistory, LevelJudgement, LevelRules, SiteId, Unit},
    report::{KernelObjects, Verdict},
    units::count,
};

/// So many sites are reported at most.
const MOST_REPORTED: usize = 64;

/// Objects that a site has to have made to be reported.
const LEAST_MADE: u64 = 16;

/// Without other evidence a leak is named after so many seconds in windows.
const JUDGED_AFTER_S: f64 = 120.0;

/// One part in so many of what is made goes where things come and go: of a leak hardly any does.
const GONE_PART: u64 = 4;

/// Why what the slab allocator makes for itself is no leak.
const WITH_SLABS: &str = "the slab allocator keeps it beside a slab and frees it with the slab, whose objects are judged where they are made";

/// A change below this says nothing, objects.
const NOISE: f64 = 64.0;

/// What tells a site apart; several of the probe's numbers may stand for one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    cache: u64,
    /// The kernel's stack from where the allocator was called on.
    path: Vec<u64>,
    user_site: SiteId,
    tgid: u32,
    incarnation: u32,
    interrupt: bool,
}

impl Key {
    fn of(site: &KernelSite, joined: impl Fn(SiteId) -> SiteId) -> Self {
        Self {
            cache: site.cache,
            path: path(site),
            user_site: joined(site.user_site),
            tgid: site.tgid,
            incarnation: site.incarnation,
            interrupt: site.flags & KERNEL_SITE_INTERRUPT != 0,
        }
    }
}

/// What was counted at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    born: u64,
    died: u64,
    inferred: u64,
}

impl Counted {
    fn of(site: &KernelSite) -> Self {
        Self {
            born: site.born,
            died: site.died,
            inferred: site.inferred,
        }
    }

    /// Of a place where nothing is left: what was thinned out meanwhile is gone with the rest.
    fn without_live(self) -> Self {
        Self {
            died: self.died.saturating_add(self.live()),
            ..self
        }
    }

    fn add(&mut self, other: Self) {
        self.born = self.born.saturating_add(other.born);
        self.died = self.died.saturating_add(other.died);
        self.inferred = self.inferred.saturating_add(other.inferred);
    }

    /// Whether most of its frees have no event: what is left of them is known only where its address comes again.
    fn is_freed_unseen(self) -> bool {
        let is_much = self.inferred.saturating_mul(10) > self.born;
        self.inferred > 0 && (self.died == 0 || (is_much && self.inferred > self.died))
    }

    /// What is known of it when objects are forgotten. Where objects come and go, those that were there go unseen; elsewhere they stay.
    fn carried(self) -> Self {
        let gone = self.died.saturating_add(self.inferred);
        if gone.saturating_mul(2) < self.born && !self.is_freed_unseen() {
            return self;
        }
        Self {
            died: self.born.saturating_sub(self.inferred),
            ..self
        }
    }

    /// Whether much of what is made goes again: what of it went between windows is not seen.
    fn comes_and_goes(self) -> bool {
        let gone = self.died.saturating_add(self.inferred);
        gone.saturating_mul(GONE_PART) > self.born
    }

    fn live(self) -> u64 {
        self.born
            .saturating_sub(self.died)
            .saturating_sub(self.inferred)
    }
}

/// A site over time.
#[derive(Debug)]
struct Followed {
    object_bytes: u32,
    comm: String,
    cgroup: String,
    counted: Counted,
    /// What of it was counted in windows before.
    before: Counted,
    /// Objects that are there, over the time in windows.
    history: LevelHistory,
}

/// So many sites are followed at most.
const MOST_SITES: usize = 8192;

/// The sites.
#[derive(Debug, Default)]
pub(super) struct Sites {
    followed: BTreeMap<Key, Followed>,
    /// The names of caches by their addresses.
    caches: BTreeMap<u64, String>,
    /// For how long windows had been open at the last note, and how many there had been.
    noted_s: f64,
    opened: u32,
}

/// What is known of the caches in which a site's objects are, without windows.
#[derive(Clone, Debug)]
pub(super) struct CacheFacts {
    /// Their other names.
    pub(super) shared_with: Vec<String>,
    /// Why it is no leak that they grow.
    pub(super) no_leak: Option<&'static str>,
    /// Whether any of them grows, by the kernel's own count of its objects.
    pub(super) grows: bool,
    /// The objects in all of them.
    pub(super) objects: u64,
}

impl CacheFacts {
    /// The same of what the slab allocator keeps beside a slab: it goes with the slab.
    fn with_slabs(&self) -> Self {
        Self {
            no_leak: Some(WITH_SLABS),
            ..self.clone()
        }
    }
}

/// A site that is to be reported, without the names of its frames.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) told: KernelObjects,
    pub(super) path: Vec<u64>,
    pub(super) user_site: SiteId,
    growth: f64,
}

/// The kernel's stack from where the allocator was called on: what stands before are the programs and the allocator.
fn path(site: &KernelSite) -> Vec<u64> {
    let depth = usize::try_from(site.depth).unwrap_or(0);
    let frames = site.frames.get(..depth).unwrap_or(&site.frames);
    let begins = frames
        .iter()
        .position(|frame| *frame == site.call_site)
        .unwrap_or(0);
    frames.get(begins..).unwrap_or_default().to_vec()
}

/// The control group of a process, as `/proc` shows it; empty where that is not known.
fn cgroup(proc_root: &Path, tgid: u32) -> String {
    let text = std::fs::read_to_string(proc_root.join(tgid.to_string()).join("cgroup"));
    let text = text.unwrap_or_default();
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified.unwrap_or_default().to_owned()
}

impl Sites {
    /// Objects were forgotten: a window was opened anew.
    fn carry(&mut self) {
        self.followed
            .retain(|_, followed| followed.counted.carried().live() >= LEAST_MADE);
        for followed in self.followed.values_mut() {
            followed.counted = followed.counted.carried();
            followed.before = followed.counted;
        }
    }

    /// Takes note of what windows have seen by now. `joined`: the user site that stands for one.
    pub(super) fn note(
        &mut self,
        allocations: &KernelAllocations,
        so_far: &WindowsSoFar,
        proc_root: &Path,
        joined: impl Fn(SiteId) -> SiteId,
    ) {
        let open_s = so_far.open_s;
        if std::mem::replace(&mut self.opened, so_far.opened) != so_far.opened {
            self.carry();
        }
        for cache in allocations.watched() {
            self.caches.insert(cache.cache, windows::name(&cache));
        }
        let mut now: BTreeMap<Key, (Counted, KernelSite)> = BTreeMap::new();
        let own = std::process::id();
        for (_, site) in allocations.sites().filter(|(_, site)| site.tgid != own) {
            let key = Key::of(&site, &joined);
            let (counted, _) = now.entry(key).or_insert((Counted::default(), site));
            counted.add(Counted::of(&site));
        }
        let noted_s = std::mem::replace(&mut self.noted_s, open_s);
        for (key, (counted, site)) in now {
            let followed = self.followed.entry(key).or_insert_with_key(|key| {
                let length = site.comm.iter().position(|byte| *byte == 0);
                let comm = site.comm.get(..length.unwrap_or(site.comm.len()));
                let mut history = LevelHistory::default();
                // There was nothing before.
                history.observe(noted_s, 0.0);
                Followed {
                    object_bytes: site.object_bytes,
                    comm: String::from_utf8_lossy(comm.unwrap_or_default()).into_owned(),
                    cgroup: if key.tgid == 0 {
                        String::new()
                    } else {
                        cgroup(proc_root, key.tgid)
                    },
                    counted: Counted::default(),
                    before: Counted::default(),
                    history,
                }
            });
            followed.counted = followed.before;
            followed.counted.add(counted);
        }
        for followed in self.followed.values_mut() {
            let live = followed.counted.live() as f64;
            followed.history.observe(open_s, live);
        }
        self.bound();
    }

    /// Takes note of places that the probe's table has no more: nothing that was made there is left. `ended`: whether its process has.
    pub(super) fn let_go(
        &mut self,
        gone: &[KernelSite],
        mut ended: impl FnMut(&KernelSite) -> bool,
        joined: impl Fn(SiteId) -> SiteId,
    ) {
        for site in gone {
            let key = Key::of(site, &joined);
            let Some(followed) = self.followed.get_mut(&key) else {
                continue;
            };
            followed.before.add(Counted::of(site).without_live());
            followed.counted = followed.before;
            if followed.counted.live() < LEAST_MADE && ended(site) {
                self.followed.remove(&key);
            }
        }
    }

    /// Forgets sites where there are too many: those of which the least is there.
    fn bound(&mut self) {
        if self.followed.len() <= MOST_SITES {
            return;
        }
        let mut live: Vec<u64> = self
            .followed
            .values()
            .map(|one| one.counted.live())
            .collect();
        live.sort_unstable_by(|one, two| two.cmp(one));
        let least = live.get(MOST_SITES / 2).copied().unwrap_or(0);
        self.followed.retain(|_, one| one.counted.live() > least);
    }

    /// Those that have made enough to be reported.
    fn worth_a_line(&self) -> impl Iterator<Item = (&Key, &Followed)> {
        self.followed
            .iter()
            .filter(|(_, followed)| followed.counted.born >= LEAST_MADE)
    }

    /// The kernel's addresses on the way to them.
    pub(super) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.worth_a_line()
            .flat_map(|(key, _)| key.path.iter().copied())
    }

    /// The sites that are worth a line, what grows fastest first. `weight`: how many objects of a cache one stands for.
    /// `cache`: of the name of a cache, or of a size of kmalloc, what is known of it.
    /// `holds`: whether a process makes the kernel hold more and more by other evidence.
    /// `is_of_slabs`: whether the slab allocator made what a path leads to, for a slab of another cache.
    pub(super) fn told(
        &self,
        weight: impl Fn(u64) -> u64,
        cache: impl Fn(&str) -> CacheFacts,
        holds: impl Fn(u32, u32) -> bool,
        is_of_slabs: impl Fn(&[u64]) -> bool,
    ) -> Vec<Told> {
        let mut all = Vec::new();
        let mut known: BTreeMap<String, CacheFacts> = BTreeMap::new();
        for (key, followed) in self.worth_a_line() {
            let name = if windows::is_size(key.cache) {
                format!("kmalloc-{}", followed.object_bytes)
            } else {
                self.caches.get(&key.cache).cloned().unwrap_or_default()
            };
            let facts = known.entry(name.clone()).or_insert_with(|| cache(&name));
            let holds = holds(key.tgid, key.incarnation);
            let judged = if is_of_slabs(&key.path) {
                judge(key, followed, &facts.with_slabs(), holds)
            } else {
                judge(key, followed, facts, holds)
            };
            let size = u64::from(followed.object_bytes);
            // Of what was freed between windows nothing is known: there are no more than the kernel counts.
            let objects = followed.counted.live().min(facts.objects);
            // What rises by chance or not at all is shown as it is, without a rate.
            let growth = judged.growth_per_s.max(0.0);
            all.push(Told {
                told: KernelObjects {
                    pid: key.tgid,
                    incarnation: key.incarnation,
                    comm: followed.comm.clone(),
                    cgroup: followed.cgroup.clone(),
                    interrupt: key.interrupt,
                    cache: name,
                    shared_with: facts.shared_with.clone(),
                    object_bytes: size,
                    inuse_bytes: objects.saturating_mul(size),
                    inuse_objects: objects,
                    alloc_bytes: followed.counted.born.saturating_mul(size),
                    alloc_objects: followed.counted.born,
                    freed_objects: followed.counted.died,
                    inferred_frees: followed.counted.inferred,
                    weight: weight(key.cache),
                    growth_objects_per_s: judged.growth_per_s,
                    growth_objects_per_s_low: judged.growth_low_per_s,
                    growth_objects_per_s_high: judged.growth_high_per_s,
                    growth_bytes_per_s: judged.growth_per_s * size as f64,
                    verdict: judged.verdict,
                    verdict_reason: judged.reason,
                    ..KernelObjects::default()
                },
                path: key.path.clone(),
                user_site: key.user_site,
                growth: growth * size as f64,
            });
        }
        all.sort_by(|one, two| {
            let class = |told: &Told| {
                (
                    told.told.verdict != Verdict::Leaking,
                    told.user_site == UNKNOWN_SITE,
                )
            };
            class(one)
                .cmp(&class(two))
                .then(two.growth.total_cmp(&one.growth))
                .then(two.told.inuse_bytes.cmp(&one.told.inuse_bytes))
        });
        all.truncate(MOST_REPORTED);
        all
    }
}

/// Judges a site.
fn judge(key: &Key, followed: &Followed, cache: &CacheFacts, holds: bool) -> LevelJudgement {
    let no_leak = if key.interrupt {
        Some("made while interrupts were served: for whom is not known")
    } else {
        cache.no_leak
    };
    let mut judged = followed.history.judge(&LevelRules {
        unit: Unit::Objects,
        noise: NOISE,
        noise_share: 0.05,
        after_s: if holds { 0.0 } else { JUDGED_AFTER_S },
        no_leak,
        limit: None,
    });
    let counted = followed.counted;
    if counted.is_freed_unseen() {
        if matches!(judged.verdict, Verdict::Leaking | Verdict::WarmingUp) {
            judged.verdict = Verdict::InsufficientData;
        }
        let most = if counted.died == 0 { "none" } else { "few" };
        judged.reason = format!(
            "{most} of its frees are seen: {} of its addresses were handed out again",
            count(counted.inferred)
        );
    } else if judged.verdict == Verdict::Leaking
        && !holds
        && followed.before.live() > 0
        && counted.comes_and_goes()
    {
        judged = LevelJudgement {
            verdict: Verdict::InsufficientData,
            reason:
                "much of what is made here is freed again, and frees between windows are not seen"
                    .to_owned(),
            ..LevelJudgement::default()
        };
    } else if judged.verdict == Verdict::Leaking && !cache.grows && !holds {
        judged = LevelJudgement {
            verdict: Verdict::InsufficientData,
            reason: "its cache does not grow: what is made here is freed between windows"
                .to_owned(),
            ..LevelJudgement::default()
        };
    }
    judged
}

#[cfg(test)]
mod tests {
    use super::{CacheFacts, Counted, Followed, Key, judge, path};
    use crate::{ledger::LevelHistory, report::Verdict};
    use leakscope_common::KernelSite;

    fn growing(counted: Counted, interrupt: bool) -> (Key, Followed) {
        let mut history = LevelHistory::default();
        for second in 0..200 {
            history.observe(f64::from(second), f64::from(second) * 100.0);
        }
        let key = Key {
            cache: 1,
            path: Vec::new(),
            user_site: 1,
            tgid: 1,
            incarnation: 1,
            interrupt,
        };
        let followed = Followed {
            object_bytes: 256,
            comm: String::new(),
            cgroup: String::new(),
            counted,
            before: Counted::default(),
            history,
        };
        (key, followed)
    }

    const GROWS: CacheFacts = CacheFacts {
        shared_with: Vec::new(),
        no_leak: None,
        grows: true,
        objects: u64::MAX,
    };

    #[test]
    fn what_is_freed_between_windows_was_called_leaking() {
        // Descriptors of processes that live longer than a window.
        let (key, held) = growing(
            Counted {
                born: 2609,
                died: 452,
                inferred: 8,
            },
            false,
        );
        let steady = CacheFacts {
            grows: false,
            ..GROWS
        };
        let judged = judge(&key, &held, &steady, false);
        assert_eq!(judged.verdict, Verdict::InsufficientData);
        assert!(judged.growth_per_s.abs() < f64::EPSILON);
        assert_eq!(judge(&key, &held, &steady, true).verdict, Verdict::Leaking);
        assert_eq!(judge(&key, &held, &GROWS, false).verdict, Verdict::Leaking);
    }

    #[test]
    fn descriptors_of_processes_that_run_for_minutes_made_a_leak() {
        // A machine that compiles: a third was seen to be freed, more in between windows.
        let counted = Counted {
            born: 473,
            died: 166,
            inferred: 0,
        };
        let (key, mut held) = growing(counted, false);
        held.before = counted.carried();
        let judged = judge(&key, &held, &GROWS, false);
        assert_eq!(judged.verdict, Verdict::InsufficientData);
        assert_eq!(judge(&key, &held, &GROWS, true).verdict, Verdict::Leaking);
    }

    #[test]
    fn what_was_thinned_out_is_gone_with_the_place() {
        let counted = Counted {
            born: 1000,
            died: 700,
            inferred: 100,
        };
        assert_eq!(counted.without_live().live(), 0);
    }

    #[test]
    fn objects_whose_frees_are_hardly_seen_made_a_leak() {
        // kernfs_open_node: kfree_rcu frees them.
        let counted = Counted {
            born: 67_403,
            died: 1775,
            inferred: 25_638,
        };
        let (key, opened) = growing(counted, false);
        let judged = judge(&key, &opened, &GROWS, false);
        assert_eq!(judged.verdict, Verdict::InsufficientData);
        assert_eq!(counted.carried().live(), 0);
    }

    #[test]
    fn objects_whose_frees_are_not_seen_made_a_leak() {
        let (key, maple) = growing(
            Counted {
                born: 30_000,
                died: 0,
                inferred: 9_000,
            },
            false,
        );
        assert_eq!(
            judge(&key, &maple, &GROWS, true).verdict,
            Verdict::InsufficientData
        );
        let (key, leak) = growing(
            Counted {
                born: 20_000,
                died: 0,
                inferred: 0,
            },
            false,
        );
        assert_eq!(judge(&key, &leak, &GROWS, false).verdict, Verdict::Leaking);
        let cached = CacheFacts {
            no_leak: Some("it is a cache"),
            ..GROWS
        };
        assert_ne!(judge(&key, &leak, &cached, false).verdict, Verdict::Leaking);
        let (key, leak) = growing(leak.counted, true);
        assert_ne!(judge(&key, &leak, &GROWS, false).verdict, Verdict::Leaking);
    }

    #[test]
    fn what_the_slab_allocator_keeps_beside_cached_names_was_called_leaking() {
        let counted = Counted {
            born: 2330,
            died: 0,
            inferred: 0,
        };
        let (key, held) = growing(counted, false);
        assert_eq!(judge(&key, &held, &GROWS, false).verdict, Verdict::Leaking);
        let judged = judge(&key, &held, &GROWS.with_slabs(), true);
        assert_ne!(judged.verdict, Verdict::Leaking);
        assert!(
            judged.reason.contains("slab allocator"),
            "{}",
            judged.reason
        );
    }

    #[test]
    fn what_came_and_went_is_not_held_when_a_window_is_opened_anew() {
        let churn = Counted {
            born: 1000,
            died: 900,
            inferred: 50,
        };
        assert_eq!(churn.carried().live(), 0);
        let leak = Counted {
            born: 1000,
            died: 10,
            inferred: 0,
        };
        assert_eq!(leak.carried().live(), 990);
    }

    #[test]
    fn the_path_begins_where_the_allocator_was_called() {
        let mut site = KernelSite {
            call_site: 30,
            depth: 5,
            ..KernelSite::default()
        };
        for (frame, address) in site.frames.iter_mut().zip([10, 20, 30, 40, 50]) {
            *frame = address;
        }
        assert_eq!(path(&site), [30, 40, 50]);
        site.call_site = 7;
        assert_eq!(path(&site).len(), 5);
        site.depth = 99;
        assert_eq!(path(&site).len(), site.frames.len());
    }
}
