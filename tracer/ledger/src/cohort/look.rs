//! What looks from outside and later windows say of the watched blocks.

use hashbrown::HashSet;

use super::{
    Amount, Cohorts, Contradictions, Point, RECENT, Reading, Span, Watched, fate::Fate, seconds,
};
use crate::SiteId;

impl Cohorts {
    /// Drops the blocks that the window contradicts, and keeps count of those that looked as if nothing had happened.
    pub(super) fn contradict(&mut self, span: &Span, untouched: &HashSet<u64>) {
        let effective = span.effective_s();
        let mut all = std::mem::take(&mut self.watched);
        for watched in &all {
            let own_ns = self
                .cohorts
                .get(watched.cohort as usize)
                .map_or(span.closed_ns, |cohort| cohort.span.closed_ns);
            let age_s = seconds(own_ns, span.closed_ns);
            self.stays.entry(watched.survivor.site).or_default().note(
                untouched.contains(&watched.survivor.address),
                effective,
                age_s,
            );
            if let Some(counts) = self.contradictions_of(watched) {
                if untouched.contains(&watched.survivor.address) {
                    counts.window_exposure += effective;
                } else {
                    counts.in_windows += 1.0;
                    counts.window_exposure += effective / 2.0;
                }
            }
        }
        all.retain(|watched| untouched.contains(&watched.survivor.address));
        self.watched = all;
    }

    /// Where a block's contradictions are counted: blocks that look alike by site, those of a cohort that a later window has seen apart.
    fn contradictions_of(&mut self, watched: &Watched) -> Option<&mut Contradictions> {
        if watched.first.is_none() || watched.is_changed || !self.looks_alike(watched) {
            return None;
        }
        let seen_before = self
            .cohorts
            .get(watched.cohort as usize)
            .is_some_and(|cohort| cohort.later_windows > 0);
        self.contradictions
            .entry(watched.survivor.site)
            .or_default()
            .get_mut(usize::from(seen_before))
    }

    /// Whether a successor at the same address could not be told from the block: its bytes are all the same, or other
    /// blocks of its site have the same contents.
    pub(super) fn looks_alike(&self, watched: &Watched) -> bool {
        watched.first.is_none_or(|first| {
            first.is_constant
                || self
                    .looks
                    .get(&(watched.survivor.site, first.fingerprint))
                    .is_some_and(|count| *count > 2)
        })
    }

    /// Takes in a look at all watched blocks; `None` where the memory is not mapped any more.
    pub fn check(&mut self, now_ns: u64, readings: &[Option<Reading>]) {
        self.check_from(0, now_ns, readings);
    }

    /// Takes in a look at the blocks of the last window: see [`Cohorts::newest`].
    pub fn check_newest(&mut self, now_ns: u64, readings: &[Option<Reading>]) {
        self.check_from(self.newest_cohort(), now_ns, readings);
    }

    /// Takes in a look at the blocks of this cohort and of later ones.
    fn check_from(&mut self, first: u32, now_ns: u64, readings: &[Option<Reading>]) {
        let looked_at = self.watched.split_off(self.first_of(first));
        self.keys.learn(
            looked_at
                .iter()
                .zip(readings)
                .filter_map(|(watched, reading)| {
                    Some((watched.first?, reading.as_ref().copied()?))
                }),
        );
        let mut kept = Vec::with_capacity(looked_at.len());
        let mut gone = Vec::new();
        for (index, watched) in looked_at.iter().enumerate() {
            let mut watched = *watched;
            let reading = readings.get(index).copied().flatten();
            let fate = reading.map_or(Fate::Gone, |reading| {
                self.keys
                    .fate(&watched.survivor, watched.first.as_ref(), &reading)
            });
            if fate == Fate::Changed && !watched.is_changed {
                gone.push((watched, true));
            }
            match reading.filter(|_| fate != Fate::Gone) {
                Some(_) if watched.is_changed || fate == Fate::Changed => {
                    // Where windows see blocks of the site go, this one is taken to be gone, too.
                    if !self.frees(watched.survivor.site) {
                        watched.is_changed = true;
                        kept.push(watched);
                    }
                }
                Some(reading) => {
                    if watched.first.is_none() {
                        *self
                            .looks
                            .entry((watched.survivor.site, reading.fingerprint))
                            .or_default() += 1;
                        watched.first = Some(reading);
                    }
                    gone.push((watched, false));
                    kept.push(watched);
                }
                None => gone.push((watched, true)),
            }
        }
        for (watched, is_gone) in gone {
            let since = self
                .cohorts
                .get(watched.cohort as usize)
                .filter(|cohort| cohort.checked_ns != 0)
                .map_or(0.0, |cohort| seconds(cohort.checked_ns, now_ns));
            if let Some(counts) = self.contradictions_of(&watched) {
                counts.check_exposure += if is_gone { since / 2.0 } else { since };
                counts.by_checks += f64::from(u8::from(is_gone));
            }
        }
        self.watched.extend(kept);
        self.recount();
        let scale = self.weight() as f64;
        let recent = self
            .cohorts
            .len()
            .saturating_sub(RECENT)
            .max(first as usize);
        for cohort in self.cohorts.iter_mut().skip(recent) {
            let lag_s = seconds(cohort.span.closed_ns, now_ns);
            for site in cohort.sites.values_mut() {
                let point = Point {
                    lag_s,
                    alive: Amount::of(site.alive_objects, site.alive_bytes).times(scale),
                };
                // The first look has nothing to compare with: it is the blocks' own beginning.
                if cohort.checks == 0 {
                    continue;
                }
                match site.last {
                    None => site.history.push(point),
                    Some(last) if last.alive != point.alive => {
                        if site
                            .history
                            .last()
                            .is_none_or(|known| known.lag_s < last.lag_s)
                        {
                            site.history.push(last);
                        }
                        site.history.push(point);
                    }
                    Some(_) => {}
                }
                site.last = Some(point);
            }
        }
        for cohort in self.cohorts.iter_mut().skip(first as usize) {
            cohort.checked_ns = now_ns;
            if seconds(cohort.span.closed_ns, now_ns) > 0.0 {
                cohort.checks = cohort.checks.saturating_add(1);
            }
        }
    }

    /// Takes in which blocks a walk along the heap, begun at a time, found not in use, in order of their addresses. No other look tells of a block that was
    /// freed between free ones: nothing around it changes.
    pub fn drop_gone(&mut self, begun_ns: u64, gone: &[u64]) {
        let all = std::mem::take(&mut self.watched);
        let mut kept = Vec::with_capacity(all.len());
        for watched in all {
            let survivor = &watched.survivor;
            let is_gone =
                survivor.born_ns < begun_ns && gone.binary_search(&survivor.address).is_ok();
            if !is_gone {
                kept.push(watched);
            } else if let Some(counts) = self.contradictions_of(&watched) {
                counts.by_checks += 1.0;
            }
        }
        self.watched = kept;
        self.recount();
    }

    /// Takes in the bytes that a walk found to be taken for blocks, by address in order: more than their size says where they were to be aligned.
    pub fn note_taken(&mut self, taken: &[(u64, u64)]) {
        for watched in &mut self.watched {
            let found = taken.binary_search_by_key(&watched.survivor.address, |block| block.0);
            if let Some((_, bytes)) = found.ok().and_then(|place| taken.get(place)) {
                watched.taken = Some(*bytes);
            }
        }
    }

    /// Counts the watched blocks of each site and cohort anew.
    pub(super) fn recount(&mut self) {
        for cohort in &mut self.cohorts {
            for site in cohort.sites.values_mut() {
                site.alive_objects = 0;
                site.alive_bytes = 0;
            }
        }
        let counted: Vec<(u32, SiteId, u64)> = self
            .counted()
            .map(|watched| (watched.cohort, watched.survivor.site, watched.survivor.size))
            .collect();
        for (cohort, site, size) in counted {
            if let Some(site) = self
                .cohorts
                .get_mut(cohort as usize)
                .and_then(|cohort| cohort.sites.get_mut(&site))
            {
                site.alive_objects += 1;
                site.alive_bytes += size;
            }
        }
    }
}
