//! Looks at what processes map: what was unmapped, or mapped at an address that the program chose, where only that is seen which the kernel
//! places; what kind of files' mappings are; what memory descriptors hold that nothing maps.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use bytesize::ByteSize;

use super::{Session, growth::Growth, process::Traced};
use crate::{
    kernel::{KernelError, MappingWay, monotonic_ns},
    ledger::{Area, LevelHistory, LevelRules, LookTimes, MappingKind, SiteId, Unit},
    process::procfs::{MemoryMap, read_maps},
    report::HeldMemory,
    units::{count, duration, plural},
};

/// How often a process is looked at that has run meanwhile. Sooner at first, each time after twice as long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_FIRST: Duration = Duration::from_millis(100);

/// A look takes at most one part in so many of a processor, but there is one this often.
const LOOK_SHARE: u32 = 1000;
const LOOK_AT_LEAST: Duration = Duration::from_secs(10);

/// A mapping that the probe told of by then is there when `maps` is read: it is made under a lock for which a thread may wait.
const SETTLES_IN_NS: u64 = 2_000_000;

/// Sites from here on have no stack. Beyond the slots of any stack table.
pub(super) const FIRST_STACKLESS: SiteId = 1 << 31;

/// Descriptors of a process that are looked at: to look at one takes some 2 µs.
const MOST_DESCRIPTORS: usize = 4096;

/// Of shared memory that only descriptors hold, less is not worth a word, bytes.
const LEAST_HELD: u64 = 1 << 20;

/// The looks at a process.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// When it was looked at last, CLOCK_MONOTONIC nanoseconds: what was made before is as it was then. 0: never.
    settled_ns: u64,
    /// When it is looked at next, and how long after the last.
    next: Option<Instant>,
    every: Duration,
    /// Sites without a stack, by what is mapped there.
    stackless: HashMap<MappingKind, SiteId>,
    /// What descriptors held at the first look, and when; and at the last.
    held_first: Option<(Instant, Held)>,
    held: Option<(Instant, Held)>,
    /// Those bytes over time, from the first look on.
    held_bytes: LevelHistory,
}

impl Looks {
    fn note_held(&mut self, at: Instant, held: Held) {
        let (began, _) = *self.held_first.get_or_insert((at, held));
        self.held = Some((at, held));
        let at_s = at.saturating_duration_since(began).as_secs_f64();
        self.held_bytes.observe(at_s, held.bytes as f64);
    }
}

/// Shared memory that is mapped nowhere and that open descriptors hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    files: u64,
    bytes: u64,
}

/// What lies there, as far as it counts.
fn area(map: &MemoryMap) -> Option<Area> {
    let name = map.path.as_os_str().as_encoded_bytes();
    let kind = if name == b"[heap]" {
        MappingKind::DataSegment
    } else if name.is_empty() || name.starts_with(b"[anon:") {
        MappingKind::Anonymous
    } else if name.starts_with(b"[anon_shmem:") || (map.shared && name == b"/dev/zero") {
        MappingKind::Shared
    } else if name.starts_with(b"[") {
        // The first thread's stack, the kernel's pages.
        return None;
    } else if name.starts_with(b"/memfd:") {
        MappingKind::Memfd
    } else if name.starts_with(b"/SYSV") {
        MappingKind::SysV
    } else {
        MappingKind::File
    };
    Some(Area {
        start: map.start,
        end: map.end,
        kind,
        accessible: map.readable || map.writable || map.executable,
        code: map.executable && kind == MappingKind::File,
    })
}

/// What a process maps; of neighbours that are alike one.
fn areas(maps: &[MemoryMap]) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::with_capacity(maps.len());
    for area in maps.iter().filter_map(area) {
        match areas.last_mut() {
            Some(last)
                if last.end == area.start
                    && (last.kind, last.accessible, last.code)
                        == (area.kind, area.accessible, area.code) =>
            {
                last.end = area.end;
            }
            _ => areas.push(area),
        }
    }
    areas
}

/// What a process's descriptors hold of memory without a name (memfd_create(2)) that it does not map. `None`: too many to be looked at.
fn held(proc_root: &Path, pid: u32, maps: &[MemoryMap]) -> Option<Held> {
    let mapped: HashSet<u64> = maps.iter().map(|map| map.inode).collect();
    let mut seen = HashSet::new();
    let mut held = Held::default();
    let folder = proc_root.join(pid.to_string()).join("fd");
    for (place, entry) in fs::read_dir(folder).ok()?.flatten().enumerate() {
        if place == MOST_DESCRIPTORS {
            return None;
        }
        let path = entry.path();
        let is_memory = fs::read_link(&path)
            .is_ok_and(|name| name.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"));
        if !is_memory {
            continue;
        }
        if let Ok(metadata) = fs::metadata(&path)
            && !mapped.contains(&metadata.ino())
            && seen.insert(metadata.ino())
        {
            held.files += 1;
            // `st_blocks` is in units of 512 bytes (stat(2)): what is there, not how long it is.
            held.bytes = held
                .bytes
                .saturating_add(metadata.blocks().saturating_mul(512));
        }
    }
    Some(held)
}

impl Growth {
    /// Looks at what a running process has mapped already. To be called just before it is followed, or when a program begins.
    pub(super) fn begin(&mut self, proc_root: &Path, pid: u32, incarnation: u32) {
        let growing = self.processes.entry(incarnation).or_default();
        let at_ns = monotonic_ns();
        // A process that cannot be read has ended.
        let Ok(maps) = read_maps(proc_root, pid) else {
            return;
        };
        for area in areas(&maps) {
            if area.kind == MappingKind::DataSegment {
                growing.mappings.set_data_end(area.end);
            }
            growing.mappings.note_old(&area);
        }
        let looks = &mut growing.looks;
        looks.settled_ns = at_ns;
        looks.every = LOOK_FIRST;
        looks.next = Some(Instant::now() + LOOK_FIRST);
        if let Some(held) = held(proc_root, pid, &maps) {
            looks.note_held(Instant::now(), held);
        }
    }

    /// Whether a site stands for anonymous memory that nobody told of.
    pub(super) fn is_anonymous_stackless(&self, incarnation: u32, site: SiteId) -> bool {
        self.processes.get(&incarnation).is_some_and(|growing| {
            growing.looks.stackless.get(&MappingKind::Anonymous) == Some(&site)
        })
    }

    /// The site of what a process maps that nobody told of.
    fn stackless(next: &mut u32, looks: &mut Looks, kind: MappingKind) -> SiteId {
        *looks.stackless.entry(kind).or_insert_with(|| {
            *next += 1;
            FIRST_STACKLESS | *next
        })
    }

    /// Deals with a look that began at this time. With `all_steps` each step was told of, and only files are looked at; else, with
    /// `shows_rest`, what nobody told of is shown.
    fn look(
        &mut self,
        incarnation: u32,
        areas: &[Area],
        at_ns: u64,
        all_steps: bool,
        shows_rest: bool,
    ) {
        let Self {
            processes,
            stackless,
        } = self;
        let Some(growing) = processes.get_mut(&incarnation) else {
            return;
        };
        let times = LookTimes {
            at_ns,
            settled_ns: at_ns.saturating_sub(SETTLES_IN_NS),
        };
        let looks = &mut growing.looks;
        if all_steps {
            growing.mappings.look_at_files(areas, times);
        } else {
            // What lies there at the first look was there before.
            let shows_rest = shows_rest && looks.settled_ns > 0;
            growing.mappings.look(areas, times, |kind| {
                shows_rest.then(|| Self::stackless(stackless, looks, kind))
            });
        }
        growing.looks.settled_ns = times.settled_ns;
    }

    /// Whether an incarnation is to be looked at now.
    fn is_due(&self, incarnation: u32, now: Instant, all_steps: bool) -> bool {
        self.processes.get(&incarnation).is_none_or(|growing| {
            !growing.given_up
                && growing.looks.next.is_none_or(|next| now >= next)
                && (!all_steps || growing.mappings.has_files())
        })
    }

    /// What an incarnation mapped so late that nobody has looked since: how many, how many bytes, and for how long until now.
    fn not_looked_at(&self, incarnation: u32) -> Option<(usize, u64, Duration)> {
        let growing = self.processes.get(&incarnation)?;
        let settled_ns = growing.looks.settled_ns;
        let (mappings, bytes) = growing.mappings.made_since(settled_ns);
        let age = Duration::from_nanos(monotonic_ns().saturating_sub(settled_ns));
        (mappings > 0 && settled_ns > 0).then_some((mappings, bytes, age))
    }

    /// What descriptors of a process alone hold, and whether it grows.
    pub(super) fn held(&self, incarnation: u32) -> Option<HeldMemory> {
        let looks = &self.processes.get(&incarnation)?.looks;
        let (_, held) = looks.held.filter(|(_, held)| held.bytes >= LEAST_HELD)?;
        let judged = looks.held_bytes.judge(&LevelRules {
            unit: Unit::Bytes,
            noise: LEAST_HELD as f64,
            noise_share: 0.02,
            after_s: 0.0,
            no_leak: None,
            limit: None,
        });
        Some(HeldMemory {
            files: held.files,
            bytes: held.bytes,
            growth_bytes_per_s: judged.growth_per_s,
            verdict: judged.verdict,
            verdict_reason: judged.reason,
        })
    }

    /// The same in words.
    pub(super) fn held_note(&self, incarnation: u32) -> Option<String> {
        let looks = &self.processes.get(&incarnation)?.looks;
        let ((began, first), (at, last)) = looks.held_first.zip(looks.held)?;
        if last.bytes < LEAST_HELD {
            return None;
        }
        let (files, bytes) = (last.files, ByteSize::b(last.bytes));
        let elapsed = at.saturating_duration_since(began).as_secs_f64();
        let grown = last.bytes.saturating_sub(first.bytes);
        let growth = if grown > 0 && elapsed > 1.0 {
            let rate = ByteSize::b((grown as f64 / elapsed) as u64);
            format!(
                ", {} in {} files more than {elapsed:.0} s before (+{rate}/s)",
                ByteSize::b(grown),
                last.files.saturating_sub(first.files)
            )
        } else {
            String::new()
        };
        Some(format!(
            "its open descriptors hold {bytes} of shared memory in {files} memfd files that it does not map{growth}, which is in no site"
        ))
    }
}

/// What was mapped so long before the end that no look came after it.
fn unseen_mappings(mappings: u64, bytes: u64, age: Duration) -> String {
    let were = if mappings == 1 { "was" } else { "were" };
    let they = if mappings == 1 { "it" } else { "they" };
    format!(
        "{} mapping{} ({}) {were} made in its last {}, after the last look at what it maps: {they} may have been unmapped",
        count(mappings),
        plural(mappings),
        ByteSize::b(bytes),
        duration(age.as_secs_f64())
    )
}

impl Session {
    /// Looks at those of these running processes that are due, or at `all`.
    pub(super) fn look_at_mapped(
        &mut self,
        ran: &HashSet<u32>,
        all: bool,
    ) -> Result<(), KernelError> {
        let all_steps = *self.probe.mapping_way() == MappingWay::Functions;
        let now = Instant::now();
        let due: Vec<(u32, u32)> = self
            .processes
            .values()
            .filter(|traced| {
                let incarnation = traced.incarnation;
                traced.ended.is_none()
                    && (all || ran.contains(&incarnation))
                    && (all || self.growth.is_due(incarnation, now, all_steps))
            })
            .map(|traced| (traced.pid, traced.incarnation))
            .collect();
        let mut read = Vec::new();
        for (pid, incarnation) in due {
            let begun = Instant::now();
            let at_ns = monotonic_ns();
            // A process that cannot be read has ended.
            let Ok(maps) = read_maps(&self.proc_root, pid) else {
                continue;
            };
            let held = held(&self.proc_root, pid, &maps);
            read.push((pid, incarnation, areas(&maps), at_ns));
            let looks = &mut self.growth.processes.entry(incarnation).or_default().looks;
            if let Some(held) = held {
                looks.note_held(begun, held);
            }
            looks.every = (looks.every * 2).clamp(LOOK_FIRST, LOOK_EVERY);
            let cost = begun.elapsed().saturating_mul(LOOK_SHARE);
            looks.next = Some(begun + cost.clamp(looks.every, LOOK_AT_LEAST));
        }
        // What was told of by then comes before what was found.
        self.drain()?;
        for (pid, incarnation, areas, at_ns) in read {
            // What an allocator maps for itself cannot be told from the program's where there is no stack.
            let has_allocator = self
                .processes
                .get(&pid)
                .is_some_and(|traced| !traced.sites.is_empty());
            self.growth
                .look(incarnation, &areas, at_ns, all_steps, !has_allocator);
        }
        Ok(())
    }

    /// Says of a process that has ended what was not looked at before.
    pub(super) fn note_unseen_mappings(&mut self, pid: u32) {
        let all_steps = *self.probe.mapping_way() == MappingWay::Functions;
        let Some(traced) = self.processes.get_mut(&pid).filter(|_| !all_steps) else {
            return;
        };
        if let Some((mappings, bytes, age)) = self.growth.not_looked_at(traced.incarnation) {
            traced.note(unseen_mappings(mappings as u64, bytes, age));
        }
    }

    /// How mappings are seen, where it is not each step.
    pub(super) fn mapping_note(&self) -> Option<&'static str> {
        let has_mapped = self
            .processes
            .values()
            .any(|traced: &Traced| self.growth.steps(traced.incarnation) > 0);
        (has_mapped && *self.probe.mapping_way() != MappingWay::Functions).then_some(PLACES)
    }
}

/// How mappings are seen where the kernel lets no functions be seen.
pub(super) const PLACES: &str =
    "new mappings are seen with their stacks, unmapping only by looking about once a second";

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "tests")]

    use super::{areas, held, unseen_mappings};
    use crate::{ledger::MappingKind, process::procfs::parse_maps};
    use std::time::Duration;

    #[test]
    fn one_mapping_was_made_in_the_plural_and_in_no_time() {
        let said = unseen_mappings(1, 1 << 20, Duration::from_millis(40));
        assert!(
            said.starts_with("1 mapping (1.0 MiB) was made in its last 40 ms"),
            "{said}"
        );
        let said = unseen_mappings(18, 3 << 20, Duration::from_secs(2));
        assert!(
            said.starts_with("18 mappings (3.0 MiB) were made in its last 2.0 s"),
            "{said}"
        );
    }

    const MAPS: &str = "\
10000000-10001000 r--p 00000000 08:01 77 /usr/bin/program
10001000-10002000 r-xp 00001000 08:01 77 /usr/bin/program
20000000-20021000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f0000001000-7f0000002000 rw-p 00000000 00:00 0 [anon:arena]
7f0000002000-7f0000003000 ---p 00000000 00:00 0
7f0000010000-7f0000020000 rw-s 00000000 00:01 8 /memfd:segment (deleted)
7f0000020000-7f0000030000 rw-s 00000000 00:01 9 /SYSV00000000 (deleted)
7f0000030000-7f0000040000 rw-s 00000000 00:01 10 /dev/zero (deleted)
7f0000050000-7f0000051000 rw-p 00000000 08:01 78 /var/tmp/segment (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
7ffd00030000-7ffd00031000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn each_kind_of_mapping_is_told_by_its_name() {
        let maps = parse_maps(MAPS.as_bytes()).expect("maps");
        let found: Vec<_> = areas(&maps)
            .into_iter()
            .map(|area| (area.start, area.kind, area.accessible, area.code))
            .collect();
        assert_eq!(
            found,
            [
                (0x1000_0000, MappingKind::File, true, false),
                (0x1000_1000, MappingKind::File, true, true),
                (0x2000_0000, MappingKind::DataSegment, true, false),
                (0x7f00_0000_0000, MappingKind::Anonymous, true, false),
                (0x7f00_0000_2000, MappingKind::Anonymous, false, false),
                (0x7f00_0001_0000, MappingKind::Memfd, true, false),
                (0x7f00_0002_0000, MappingKind::SysV, true, false),
                (0x7f00_0003_0000, MappingKind::Shared, true, false),
                (0x7f00_0005_0000, MappingKind::File, true, false),
            ]
        );
    }

    #[test]
    fn a_process_without_memory_behind_descriptors_holds_none() {
        let held = held(std::path::Path::new("/proc"), std::process::id(), &[]);
        assert!(held.is_some_and(|held| held.files == 0), "{held:?}");
    }
}
