//! Where processes touch fresh memory: from the probe's page faults to the ledger of pages, by looking from outside at what lies at
//! their addresses, and from there to sites of the report. How many pages the probe tells of follows how fast they fault.

mod page_table;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use leakscope_common::{
    FAULT_ON_PRESENT, FaultRecord, MAX_PAGE_SHIFT, PAGE_BYTES, SiteTotals, UNKNOWN_SITE,
};

use super::{Session, SiteLevels, verdicts::Observed};
use crate::{
    kernel::monotonic_ns,
    ledger::{AgeSurvey, Expected, HUGE_PAGES, PageSurvey, Pages, Seen, SiteId, Touch},
    process::procfs::{
        pagemap::{FRAME, PRESENT, read_entries},
        read_maps,
    },
    report::{Site, SiteKind},
};

use page_table::{PageTable, is_huge, is_own};

/// How often the pages of the sample are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A look takes at most one part in so many of a processor: with many pages or processes looks are rarer.
const LOOK_SHARE: u32 = 1000;

/// But there is one at least this often.
const LOOK_AT_LEAST: Duration = Duration::from_secs(10);

/// So many faults are told of a second, of all processes together; a stack and its record take some 2 µs: 0.4 % of a processor.
const FAULTS_PER_SECOND: f64 = 2_000.0;

/// So many may come at once.
const BURST: f64 = 2_000.0;

/// More are told of when so many times fewer than may be came for some time.
const CALM_PART: f64 = 8.0;

/// For how long.
const CALM_FOR: Duration = Duration::from_secs(2);

/// Pages in the samples of all processes together: to look at them takes some 10 ms.
const LARGEST_SAMPLE: usize = 20_000;

/// Faults of a process that wait for a look; beyond, it comes at once.
const LONGEST_QUEUE: usize = 16_384;

/// What a fault takes longer that is not told of, nanoseconds: 40 of 1,620 measured, rounded up.
const FAULT_NS: u64 = 50;

/// `KPF_THP` (include/uapi/linux/kernel-page-flags.h), a bit of an entry of `/proc/kpageflags`.
const PART_OF_HUGE: u64 = 1 << 22;

/// A private or shared piece of a process's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    shared: bool,
    file: bool,
}

/// The page faults of all followed processes, by incarnation.
#[derive(Debug)]
pub(super) struct PageFaults {
    processes: HashMap<u32, Faulting>,
    /// One of `2^shift` pages is told of.
    shift: u32,
    /// How many faults may still come before fewer are told of, and since when that is known.
    credit: f64,
    credited: Instant,
    /// Faults since the credit was reckoned, and since it began to be calm.
    fresh: u64,
    calm: u64,
    calm_since: Instant,
    next_look: Instant,
    /// Frame numbers are not shown to us: huge pages cannot be told.
    frames_hidden: bool,
    /// Why the pages of some process could not be seen.
    unreadable: Option<String>,
}

/// The page faults of a process.
#[derive(Debug, Default)]
struct Faulting {
    /// Faults that were not looked at yet.
    queue: Vec<FaultRecord>,
    /// Its address space at the last look.
    areas: Vec<Area>,
    pages: Pages,
    /// Faults that were told of, and those that they stand for.
    records: u64,
    faults: u64,
}

/// What is estimated of each site, sites with the same stack together; with the incarnation that each belongs to.
pub(super) type PagedSites = BTreeMap<SiteId, (u32, PageSurvey)>;

impl Default for PageFaults {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            processes: HashMap::new(),
            shift: 0,
            credit: BURST,
            credited: now,
            fresh: 0,
            calm: 0,
            calm_since: now,
            next_look: now,
            frames_hidden: false,
            unreadable: None,
        }
    }
}

/// The area that an address lies in.
fn area(areas: &[Area], address: u64) -> Option<&Area> {
    let place = areas.partition_point(|area| area.end <= address);
    areas.get(place).filter(|area| area.start <= address)
}

/// A fault as the ledger takes it; `None` if it brought the process no memory of its own. `before` is what was mapped at the look before:
/// what is not mapped any more was given back.
fn touch(record: &FaultRecord, now: &[Area], before: &[Area]) -> Option<Touch> {
    let area = area(now, record.address).or_else(|| area(before, record.address));
    let is_file = area.is_some_and(|area| area.file);
    let copied = record.marks & FAULT_ON_PRESENT != 0;
    // A copy of a file's page is the process's own from then on. One of anonymous memory is of what it had already, and shared with a
    // child until then; or of the page of zeroes, which cannot be told from that.
    (area.is_none_or(|area| !area.shared) && (!copied || is_file)).then_some(Touch {
        address: record.address,
        site: record.site,
        at_ns: record.at_ns,
        shift: record.shift,
        copied,
    })
}

impl PageFaults {
    /// Deals with a record of the probe.
    pub(super) fn note(&mut self, record: FaultRecord) {
        let faulting = self.processes.entry(record.incarnation).or_default();
        faulting.records += 1;
        faulting.faults = faulting
            .faults
            .saturating_add(1 << record.shift.min(MAX_PAGE_SHIFT));
        faulting.queue.push(record);
        self.fresh += 1;
        if faulting.queue.len() >= LONGEST_QUEUE {
            self.next_look = Instant::now();
        }
    }

    /// Begins, with one of `2^shift` pages told of.
    fn begin(&mut self, shift: u32) {
        self.shift = shift;
    }

    /// How many pages are to be told of from now on, one of `2^shift`, where that changes.
    fn adapt(&mut self, now: Instant) -> Option<u32> {
        let fresh = std::mem::take(&mut self.fresh);
        self.calm += fresh;
        let passed = now.saturating_duration_since(self.credited);
        self.credited = now;
        let earned = passed.as_secs_f64() * FAULTS_PER_SECOND;
        self.credit = (self.credit + earned).min(BURST) - fresh as f64;
        let sample: usize = self
            .processes
            .values()
            .map(|faulting| faulting.pages.len())
            .sum();
        let shift = if self.credit < 0.0 || sample > LARGEST_SAMPLE {
            self.credit = BURST / 2.0;
            (self.shift + 1).min(MAX_PAGE_SHIFT)
        } else {
            let calm_for = now.saturating_duration_since(self.calm_since);
            if calm_for < CALM_FOR {
                return None;
            }
            let rate = self.calm as f64 / calm_for.as_secs_f64();
            self.calm = 0;
            self.calm_since = now;
            if rate > FAULTS_PER_SECOND / CALM_PART || sample > LARGEST_SAMPLE / 4 {
                return None;
            }
            self.shift.saturating_sub(1)
        };
        if shift == self.shift {
            return None;
        }
        self.calm = 0;
        self.calm_since = now;
        self.shift = shift;
        for faulting in self.processes.values_mut() {
            faulting.pages.set_shift(shift);
        }
        Some(shift)
    }

    /// Looks at the pages of these running processes, given with their incarnations.
    fn look(&mut self, proc_root: &Path, running: &[(u32, u32)]) {
        if self.processes.is_empty() {
            return;
        }
        let begun = Instant::now();
        let flags = File::open(proc_root.join("kpageflags")).ok();
        for (pid, incarnation) in running {
            let shift = self.shift;
            let Some(faulting) = self.processes.get_mut(incarnation) else {
                continue;
            };
            faulting.pages.set_shift(shift);
            if faulting.queue.is_empty() && faulting.pages.is_empty() {
                continue;
            }
            match PageTable::open(proc_root, *pid) {
                Ok(mut table) => {
                    if !faulting.queue.is_empty() {
                        // A process that cannot be read has ended: what was known stays.
                        let areas = read_areas(proc_root, *pid);
                        faulting.take_queue(areas);
                    }
                    let hidden = faulting.see(&mut table, flags.as_ref());
                    self.frames_hidden |= hidden;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.unreadable = Some(format!("/proc/{pid}/pagemap: {error}"));
                    faulting.queue.clear();
                }
            }
        }
        let cost = begun.elapsed();
        self.next_look =
            Instant::now() + (cost.saturating_mul(LOOK_SHARE)).clamp(LOOK_EVERY, LOOK_AT_LEAST);
    }

    /// What the faults of an incarnation cost: those that were told of, and the time that all took beside their stacks.
    pub(super) fn cost(&self, incarnation: u32) -> (u64, Duration) {
        self.processes
            .get(&incarnation)
            .map_or((0, Duration::ZERO), |faulting| {
                let all = Duration::from_nanos(faulting.faults.saturating_mul(FAULT_NS));
                (faulting.records, all)
            })
    }

    /// Shows each page of the samples that is there to an ages' survey.
    pub(super) fn note_ages(&self, ages: &mut AgeSurvey<'_>) {
        for faulting in self.processes.values() {
            faulting.pages.visit(|site, born_ns, pages, weight| {
                ages.note_pages(site, born_ns, pages, weight);
            });
        }
    }

    /// Drops what is known of other incarnations than these.
    pub(super) fn keep(&mut self, incarnations: &HashSet<u32>) {
        self.processes
            .retain(|incarnation, _| incarnations.contains(incarnation));
    }

    fn survey(&self, joined: impl Fn(SiteId) -> SiteId, born_until_ns: u64) -> PagedSites {
        let mut sites = PagedSites::new();
        for (incarnation, faulting) in &self.processes {
            for (site, survey) in faulting.pages.survey(&joined, born_until_ns) {
                if site != UNKNOWN_SITE {
                    sites.insert(site, (*incarnation, survey));
                }
            }
        }
        sites
    }
}

impl Faulting {
    /// Hands what faulted to the ledger. `areas` is what is mapped now.
    fn take_queue(&mut self, areas: Vec<Area>) {
        let before = if areas.is_empty() {
            std::mem::take(&mut self.areas)
        } else {
            std::mem::replace(&mut self.areas, areas)
        };
        for record in self.queue.drain(..) {
            if let Some(touch) = touch(&record, &self.areas, &before) {
                self.pages.touch(touch);
            }
        }
    }

    /// Looks at the pages of the sample. Whether frame numbers were wanted and are hidden.
    fn see(&mut self, table: &mut PageTable, flags: Option<&File>) -> bool {
        let begun_ns = monotonic_ns();
        let mut hidden = false;
        let mut look = |address, expected| {
            let entry = table.entry(address)?;
            if expected == Expected::Huge {
                let range = table.range(address);
                let own = range.iter().filter(|entry| is_own(**entry)).count();
                return Some(Seen::There(u32::try_from(own).unwrap_or(0)));
            }
            if !is_own(entry) {
                return Some(Seen::Gone);
            }
            if expected == Expected::Page || entry & PRESENT == 0 {
                return Some(Seen::There(1));
            }
            let huge = is_huge(&table.range(address));
            hidden |= huge.is_none();
            // Small pages may lie side by side by chance; where the kernel says of what kind a page is, it is asked.
            let is_part = flags.and_then(|flags| {
                let word = read_entries(flags, entry & FRAME, 1);
                word.first().map(|flags| flags & PART_OF_HUGE != 0)
            });
            let is_huge = huge == Some(true) && is_part.unwrap_or(true);
            Some(Seen::There(if is_huge { HUGE_PAGES } else { 1 }))
        };
        self.pages.look(begun_ns, &mut look);
        hidden
    }
}

/// A process's address space.
fn read_areas(proc_root: &Path, pid: u32) -> Vec<Area> {
    read_maps(proc_root, pid)
        .unwrap_or_default()
        .into_iter()
        .map(|map| Area {
            start: map.start,
            end: map.end,
            shared: map.shared,
            file: map.inode != 0,
        })
        .collect()
}

impl Session {
    /// Page faults are told of from now on, if they are wanted and can be seen.
    pub(super) fn begin_pages(&mut self) {
        if let Some(shift) = self.probe.page_shift() {
            self.pages.begin(shift);
        }
    }

    /// Looks at pages when it is time to, and lets as many faults be told of as may be.
    pub(super) fn step_pages(&mut self) {
        if self.probe.page_shift().is_none() {
            return;
        }
        let now = Instant::now();
        if let Some(shift) = self.pages.adapt(now) {
            self.probe.set_page_shift(shift);
        }
        if now >= self.pages.next_look {
            self.look_at_pages();
        }
    }

    /// Looks at what is there of the pages that faulted.
    pub(super) fn look_at_pages(&mut self) {
        let running: Vec<(u32, u32)> = self
            .processes
            .values()
            .filter(|traced| traced.ended.is_none())
            .map(|traced| (traced.pid, traced.incarnation))
            .collect();
        self.pages.look(&self.proc_root, &running);
    }

    /// What processes touched, sites with the same stack together.
    pub(super) fn paged_sites(&self, born_until_ns: u64) -> PagedSites {
        self.pages.survey(|site| self.joined(site), born_until_ns)
    }

    /// Tells the ledger what every site of pages has now, but for these others.
    pub(super) fn note_page_levels(&mut self, now: &Observed, others: &SiteLevels) {
        for (site, (incarnation, survey)) in self.paged_sites(u64::MAX) {
            if !others.contains_key(&site) {
                // It is estimated as a whole: the weight of each of its pages is in it.
                now.note(&mut self.ledger, site, incarnation, &totals(&survey), 1);
            }
        }
    }

    /// What is to be said of how pages are seen.
    pub(super) fn pages_note(&self) -> String {
        if let Some(why) = self.probe.page_faults_unseen() {
            return format!("where fresh pages are touched cannot be seen: {why}");
        }
        let mut note = "fresh pages are followed by a sample, with the stacks that wrote to them first: an estimate, in no sum, for mappings may hold \
             the same bytes"
            .to_owned();
        if let Some(why) = &self.pages.unreadable {
            note.push_str(&format!(
                "; what is there cannot be seen everywhere ({why})"
            ));
        }
        if self.pages.frames_hidden {
            note.push_str(
                "; huge pages are taken for small ones: frame numbers are shown with CAP_SYS_ADMIN only",
            );
        }
        let unseen: usize = self
            .processes
            .values()
            .filter(|traced| traced.ended.is_some())
            .filter_map(|traced| self.pages.processes.get(&traced.incarnation))
            .map(|faulting| faulting.pages.unseen() + faulting.queue.len())
            .sum();
        if unseen > 0 {
            note.push_str(&format!(
                "; {unseen} pages of the sample were of processes that ended before they were looked at, and are not counted as surviving"
            ));
        }
        note
    }
}

/// A site's pages as totals of blocks.
fn totals(survey: &PageSurvey) -> SiteTotals {
    let bytes = |pages: u64| pages.saturating_mul(PAGE_BYTES);
    let freed = survey.alloc_pages.saturating_sub(survey.inuse_pages);
    SiteTotals {
        alloc_objects: survey.alloc_pages,
        alloc_bytes: bytes(survey.alloc_pages),
        free_objects: freed,
        free_bytes: bytes(freed),
    }
}

/// Makes a site one of pages.
pub(super) fn describe(site: &mut Site, survey: &PageSurvey, now_ns: u64) {
    let bytes = |pages: u64| pages.saturating_mul(PAGE_BYTES);
    site.kind = SiteKind::Pages;
    site.inuse_bytes = bytes(survey.inuse_pages);
    site.inuse_objects = survey.inuse_pages;
    site.inuse_bytes_low = bytes(survey.inuse_pages_low);
    site.inuse_bytes_high = bytes(survey.inuse_pages_high);
    site.alloc_bytes = bytes(survey.alloc_pages);
    site.alloc_objects = survey.alloc_pages;
    site.weight = survey.weight;
    site.allocator = None;
    site.oldest_age_s = survey
        .oldest_born_ns
        .map_or(0.0, |born| now_ns.saturating_sub(born) as f64 / 1e9);
}

#[cfg(test)]
#[path = "pages/tests.rs"]
mod tests;
