//! What the probe tells of: stacks, programs that begin, mappings, processes that start. Each event is handed to the room that it concerns.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use leakscope_common::{PYTHON_FRAME, STACK_UNKNOWN_MAPPING};

use super::{
    Session, Stack,
    process::{Traced, wait_until_stopped},
};
use crate::{
    kernel::{KernelError, ProbeEvent},
    ledger::SiteId,
    process::procfs::{Device, MemoryMap},
    symbol::AddressSpace,
};

/// So many events are dealt with before anything else has its turn, and for so long: those of a process that maps code without end come
/// as fast as they can be dealt with.
const EVENTS_AT_ONCE: usize = 100_000;
const EVENTS_WITHIN: Duration = Duration::from_millis(50);

impl Session {
    /// Deals with what the probe has said so far; with more at the next step, should it come faster than it can be dealt with.
    pub(super) fn drain(&mut self) -> Result<(), KernelError> {
        let begun = Instant::now();
        // However often a process maps code, one look at what it maps sees all of it.
        let mut mapped = BTreeSet::new();
        for _ in 0..EVENTS_AT_ONCE {
            if begun.elapsed() > EVENTS_WITHIN {
                break;
            }
            let Some(event) = self.probe.next_event() else {
                break;
            };
            if !matches!(
                event,
                ProbeEvent::Mapping(_) | ProbeEvent::PageFault(_) | ProbeEvent::Written(_)
            ) {
                self.last_busy = Instant::now();
            }
            self.faults.work_on(event.pid());
            match event {
                ProbeEvent::Stack {
                    pid,
                    incarnation,
                    site,
                    flags,
                    hit_slot,
                    frames,
                } => {
                    let pid = self.memory_of(pid, incarnation);
                    self.note_stack(pid, incarnation, site, flags, hit_slot, frames);
                }
                ProbeEvent::Exec {
                    pid,
                    incarnation,
                    ended,
                    held,
                } => self.note_exec(pid, incarnation, ended, held)?,
                ProbeEvent::MappedCode {
                    pid,
                    incarnation,
                    held,
                } => {
                    let owner = self.memory_of(pid, incarnation);
                    if !held {
                        mapped.insert(owner);
                        continue;
                    }
                    self.note_mapping(owner, owner == pid)?;
                    if owner != pid {
                        let _ = self.probe.resume(pid);
                    }
                }
                ProbeEvent::Mapping(record) => self.growth.note(&record),
                ProbeEvent::PageFault(record) => self.pages.note(record),
                ProbeEvent::Written(record) => self.objects.note(&record),
                ProbeEvent::GoBlock(record) => self.note_go_block(record),
                ProbeEvent::Candidate { pid } => self.note_candidate(pid),
                ProbeEvent::ManyHits {
                    pid,
                    incarnation,
                    hits,
                } => self.note_hits(self.memory_of(pid, incarnation), incarnation, hits),
                ProbeEvent::UnseenChild { pid, incarnation } => {
                    if let Some(traced) = self.processes.get_mut(&pid)
                        && traced.incarnation == incarnation
                        && traced.ended.is_none()
                    {
                        traced.lend(&mut self.probe);
                    }
                }
                ProbeEvent::Fork { pid, incarnation } => self.note_fork(pid, incarnation),
                ProbeEvent::Ending {
                    pid, thread, held, ..
                } => self.note_ending(pid, thread, held),
                ProbeEvent::UnknownMapping { pid, incarnation } => {
                    let pid = self.memory_of(pid, incarnation);
                    let due = self
                        .processes
                        .get_mut(&pid)
                        .is_some_and(Traced::may_refresh);
                    if due {
                        self.note_mapping(pid, false)?;
                    }
                }
            }
            self.faults.work_on(None);
        }
        for pid in mapped {
            self.faults.work_on(pid);
            self.note_mapping(pid, false)?;
            self.faults.work_on(None);
        }
        Ok(())
    }

    /// The followed process in whose memory one works: itself, but for the children of vfork(2).
    fn memory_of(&self, pid: u32, incarnation: u32) -> u32 {
        if self.processes.contains_key(&pid) {
            return pid;
        }
        let mut others = self.processes.values();
        others
            .find(|traced| traced.incarnation == incarnation)
            .map_or(pid, |traced| traced.pid)
    }

    /// Takes note of the code that followed processes have mapped, also of what they unmapped again before anybody could look.
    fn note_code_maps(&mut self) {
        let Some(maps) = &mut self.code_maps else {
            return;
        };
        for file in maps.take() {
            let Some(traced) = self.processes.get_mut(&file.pid) else {
                continue;
            };
            let map = MemoryMap {
                start: file.start,
                end: file.start.saturating_add(file.length),
                offset: file.offset,
                readable: true,
                writable: false,
                executable: true,
                shared: false,
                device: Device {
                    major: file.device.0,
                    minor: file.device.1,
                },
                inode: file.inode,
                path: PathBuf::from(OsString::from_vec(file.path)),
                deleted: false,
            };
            if map.is_file() {
                traced.has_new_code |=
                    traced
                        .space
                        .note_mapped(&self.proc_root, file.pid, &map, &mut self.modules);
            }
        }
    }

    fn note_stack(
        &mut self,
        pid: u32,
        incarnation: u32,
        site: SiteId,
        flags: u16,
        hit_slot: u8,
        mut frames: Vec<u64>,
    ) {
        self.note_code_maps();
        if let Some(traced) = self.processes.get_mut(&pid) {
            // While the process lives: a library that was loaded without an event (before the attach to it) is found now.
            if traced.incarnation == incarnation
                && frames
                    .iter()
                    .any(|frame| frame & PYTHON_FRAME == 0 && traced.space.find(*frame).is_none())
                && traced.may_refresh()
            {
                // A process that is gone keeps what was known.
                traced.has_new_code |= traced
                    .space
                    .refresh(&self.proc_root, pid, &mut self.modules)
                    .unwrap_or(false);
            }
            if traced.incarnation == incarnation {
                frames = traced.name_python(&self.proc_root, frames);
            }
        }
        let identity = self
            .processes
            .get(&pid)
            .filter(|traced| traced.incarnation == incarnation)
            .map_or_else(
                || AddressSpace::default().identity(&frames),
                |traced| traced.space.identity(&frames),
            );
        let is_cut = flags & STACK_UNKNOWN_MAPPING != 0;
        let (canonical, moved) = self
            .joined_stacks
            .note(site, (incarnation, identity), is_cut);
        for (site, now) in moved {
            if let Some(stack) = self.stacks.get_mut(&site) {
                stack.canonical = now;
            }
            if site != now {
                // What was seen of it is the other's.
                self.ledger.forget(site);
                let traced = self.processes.get_mut(&pid);
                if let Some(traced) = traced.filter(|traced| traced.incarnation == incarnation) {
                    traced.windows.join(site, now);
                }
            }
        }
        self.stacks.insert(
            site,
            Stack {
                incarnation,
                frames,
                flags,
                hit_slot,
                canonical,
            },
        );
        self.progress.stacks = self.joined_stacks.len();
    }

    /// A followed process runs another program now.
    fn note_exec(
        &mut self,
        pid: u32,
        incarnation: u32,
        ended: u32,
        held: bool,
    ) -> Result<(), KernelError> {
        let begun = self.begin_after_exec(pid, incarnation, ended);
        if !matches!(begun, Ok(true)) {
            if held {
                let _ = self.probe.resume(pid);
            }
            return begun.map(|_| ());
        }
        self.note_mapping(pid, held)
    }

    /// Whether the process is still to be followed with its new program.
    fn begin_after_exec(
        &mut self,
        pid: u32,
        incarnation: u32,
        ended: u32,
    ) -> Result<bool, KernelError> {
        let Some(mut traced) = self.processes.remove(&pid) else {
            return Ok(false);
        };
        if ended != incarnation {
            self.drop_incarnation(ended);
            self.tables.remove(&mut self.probe, ended);
            // A child of a command usually calls exec first of all: that begins its program.
            traced.execs += u32::from(!traced.space.ranges().is_empty());
        }
        if !self.is_kept_after_exec(pid) {
            traced.incarnation = incarnation;
            self.processes.insert(pid, traced);
            self.let_go(pid);
            return Ok(false);
        }
        self.processes.insert(pid, traced);
        let begun = self.deal_with(pid, |session, traced| {
            traced.begin_program(&session.proc_root, incarnation);
            session.begin_windows(traced);
            session.growth.begin(&session.proc_root, pid, incarnation);
        });
        Ok(begun.is_some())
    }

    /// A followed process may have mapped new code: look for allocators, unwind tables and names in it.
    pub(super) fn note_mapping(&mut self, pid: u32, held: bool) -> Result<(), KernelError> {
        let looked = self.look_at_mappings(pid, held);
        if held {
            // Whatever came of it. It may have been killed meanwhile.
            let _ = self.probe.resume(pid);
        }
        looked
    }

    pub(super) fn look_at_mappings(&mut self, pid: u32, held: bool) -> Result<(), KernelError> {
        let looked = self.deal_with(pid, |session, traced| {
            if traced.failed {
                return Ok(());
            }
            if held {
                wait_until_stopped(&session.proc_root, traced.pid);
            }
            // A process that is gone by now has nothing more to be found.
            if traced
                .space
                .refresh(&session.proc_root, pid, &mut session.modules)
                .is_ok()
            {
                session.install_tables(traced)?;
                if let Err(error) = session.attach(traced) {
                    traced.note(error.to_string());
                }
            }
            Ok(())
        });
        looked.unwrap_or(Ok(()))
    }
}
