//! What is attached to a process: the allocators that are found in it, children that work in its memory, and whose a mapping is by the stack
//! that made it. Knows nothing of what is recorded.

use std::{path::Path, sync::Arc};

use super::{AllocatorCode, TraceError, Traced, why_empty};
use crate::{
    kernel::{LinkMode, Probe},
    process::{
        discover::{Files, discover},
        procfs::{Device, interpreter_base, read_process},
    },
    session::links::{FileId, Links, Planned, file_id, first_slot},
    symbol::Range as AddressRange,
};

impl Traced {
    /// Finds the allocators that the process maps now, and attaches to them while a window is open. Probes in files that it maps no more stay: they cost
    /// nothing, and hold when another program of the same process maps the file.
    pub(in crate::session) fn attach(
        &mut self,
        probe: &Probe,
        links: &mut Links,
        files: &Files,
        proc_root: &Path,
        at_exit: bool,
    ) -> Result<(), TraceError> {
        let discovery = discover(files, proc_root, self.pid)?;
        self.loader_base = interpreter_base(proc_root, self.pid).ok().flatten();
        self.why_empty = why_empty(&discovery);
        self.blind = discovery.partly_blind();
        let mut problems = discovery.problems.clone();
        if self.attached.is_empty() && !links.is_machine() {
            // Later, ours would be among them.
            problems.extend(discovery.foreign_breakpoints());
        }
        // A process that is gone by now could not be read; that says nothing of its files.
        if read_process(proc_root, self.pid).is_ok_and(|process| !process.is_zombie) {
            for problem in problems {
                self.note(format!("{}: {}", problem.path.display(), problem.what));
            }
        }
        for found in &discovery.allocators {
            let file = file_id(&found.file.device, found.file.inode);
            if at_exit
                && let Some(offset) = found.ends
                && self.ends.insert(file)
            {
                let path = found.file.attach_path();
                let link = probe.attach_end(&path, &found.file.path, self.pid, offset)?;
                self.end_links.push(link);
            }
            if !self.attached.insert(file) {
                continue;
            }
            let first = self.sites.len();
            let slot = first_slot(found.kind, &self.sites);
            let planned = Planned::new(found, slot);
            if self.windows.is_enforced() {
                if self.windows.is_armed() {
                    let deadline_ns = self.windows.arming_deadline(probe.link_mode());
                    let link = planned.attach(probe, self.pid, Some(deadline_ns))?;
                    self.links.extend(link.map(|link| (file, link)));
                }
                self.sites.extend(planned.sites().iter().cloned());
            } else {
                let (sites, link) = links.attach(probe, found, self.pid, slot)?;
                self.links.extend(link.map(|link| (file, link)));
                self.sites.extend(sites);
            }
            self.planned.push(planned);
            let slots = self.sites.iter().skip(first).map(|site| site.hit_slot);
            self.allocators
                .entry(file)
                .or_default()
                .push(AllocatorCode {
                    ranges: Arc::clone(&found.code),
                    whole: found.fills_its_file(),
                    slots: slots.collect(),
                });
        }
        Ok(())
    }

    /// Whether what was mapped at a stack is not the program's own: the stack runs through an allocator, or the dynamic loader has mapped
    /// for itself and for the libraries that it loads. The first frame is the system call's.
    pub(in crate::session) fn is_mapped_for_others(&self, frames: &[u64]) -> bool {
        let by_loader = frames.first().is_some_and(|address| {
            let file = self.space.find(*address).and_then(file_of);
            file.is_some() && file == self.loader()
        });
        by_loader
            || frames.iter().skip(1).any(|address| {
                // A return address may be that of the next function.
                let caller = address.saturating_sub(1);
                let Some(range) = self.space.find(caller) else {
                    return false;
                };
                let offset = (caller - range.start).saturating_add(range.offset);
                file_of(range)
                    .and_then(|file| self.allocators.get(&file))
                    .is_some_and(|allocators| {
                        allocators.iter().any(|allocator| {
                            self.goes_through(allocator)
                                && (allocator.whole
                                    || allocator.ranges.iter().any(|range| range.contains(&offset)))
                        })
                    })
            })
    }

    /// Whether calls go through the allocator, for all that is known: where calls of others were seen and none of its own, it is linked
    /// in and not used (CPython 3.13's mimalloc), maps nothing, and its neighbours in the file do so for themselves.
    fn goes_through(&self, allocator: &AllocatorCode) -> bool {
        let was_called = |slot: &u8| {
            self.hits
                .get(usize::from(*slot))
                .is_some_and(|hits| *hits > 0)
        };
        allocator.slots.iter().any(was_called) || self.hits.iter().all(|hits| *hits == 0)
    }

    /// The file of the dynamic loader, where it is one by itself: musl's is its C library, whose calls are the program's.
    fn loader(&self) -> Option<FileId> {
        let base = self.loader_base?;
        // Its code is the first behind its headers.
        let ranges = self.space.ranges();
        let code = ranges.get(ranges.partition_point(|range| range.start < base))?;
        file_of(code).filter(|file| !self.allocators.contains_key(file))
    }

    /// Attaches to everything that is known of: a window begins.
    pub(in crate::session) fn arm(&mut self, probe: &mut Probe) {
        let mut problems = Vec::new();
        let deadline_ns = self.windows.arming_deadline(probe.link_mode());
        for planned in &self.planned {
            if self.links.contains_key(&planned.file()) {
                continue;
            }
            self.lent.remove(&planned.file());
            match planned.attach(probe, self.pid, Some(deadline_ns)) {
                Ok(link) => self.links.extend(link.map(|link| (planned.file(), link))),
                // The process may be on its way out; else the next window may do better.
                Err(error) => problems.push(error.to_string()),
            }
        }
        for problem in problems {
            self.note(problem);
        }
        if self.lends {
            self.lend(probe);
        }
    }

    /// Children work in its memory: from now on they are attached to as well.
    pub(in crate::session) fn lend(&mut self, probe: &mut Probe) {
        self.lends = true;
        if self.windows.controller.allows_slow_probes() {
            self.attach_for_children(probe);
        }
    }

    fn attach_for_children(&mut self, probe: &mut Probe) {
        let mut problems = Vec::new();
        let deadline_ns = self.windows.arming_deadline(LinkMode::Perf);
        for planned in &self.planned {
            let file = planned.file();
            // Where there is none, nothing is attached now, or the link is one for all processes, and sees children too.
            let Some(link) = self.links.get_mut(&file) else {
                continue;
            };
            if !self.lent.insert(file) {
                continue;
            }
            match planned.attach_for_children(probe, self.pid, Some(deadline_ns)) {
                Ok(Some(more)) => link.take_over(more),
                Ok(None) => return,
                Err(error) => problems.push(format!(
                    "children that work in its memory (vfork) are not seen: {error}"
                )),
            }
        }
        if problems.is_empty() && !self.lent.is_empty() {
            probe.lend(self.incarnation);
        }
        for problem in problems {
            self.note(problem);
        }
    }
}

/// The file that an address range is mapped from.
fn file_of(range: &AddressRange) -> Option<FileId> {
    let (device, inode, ..) = range.module.as_ref()?.identity;
    Some(file_id(&Device::from_stat(device), inode))
}
