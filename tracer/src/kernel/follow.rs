//! Which processes the probe records, and the events by which it learns of others.

use std::{
    ffi::CStr,
    io,
    mem::offset_of,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::Ordering,
};

use leakscope_common::{
    HOLD_CHILDREN, MAX_PAGE_SHIFT, PROCESS_EXEC_PENDING, ProcessRecord, SELECT_ACTIVE,
    SELECT_LATER, Selection,
};

use super::{
    command,
    error::KernelError,
    event::ProbeEvent,
    guardian::Guardian,
    link::{Link, close_links},
    maps::map_error,
    probe::{Probe, Value},
    sys,
    tracefs::Tracefs,
};

/// The tracepoints of page faults, in user mode and in the kernel's; each is also the name of a raw tracepoint.
pub(super) const PAGE_FAULTS: [(&str, &CStr); 2] = [
    ("exceptions/page_fault_user", c"page_fault_user"),
    ("exceptions/page_fault_kernel", c"page_fault_kernel"),
];

/// Every page is told of at first: whoever reads decides when they are too many.
const FIRST_PAGE_SHIFT: u32 = 0;

/// The tracepoint at which a process or thread is made.
const NEW_TASK: &str = "task/task_newtask";

/// Its record (include/trace/events/task.h) as `process_fork` reads it.
#[repr(C)]
struct NewTask {
    common: [u32; 2],
    pid: u32,
    comm: [u8; 16],
    padding: u32,
    clone_flags: u64,
}

/// `BPF_ANY` (include/uapi/linux/bpf.h).
const ANY: u64 = 0;

impl Probe {
    /// Attaches to exec and thread exit; also to page faults where they are wanted and the kernel has their tracepoints.
    ///
    /// # Errors
    /// A tracepoint was refused, or tracefs cannot be read.
    pub fn attach_lifecycle(&mut self) -> Result<(), KernelError> {
        self.attach_raw("process_exec", c"sched_process_exec")?;
        self.attach_raw("process_exit", c"sched_process_exit")?;
        // Without it, children that work in their parent's memory (vfork(2)) are not seen; who cannot do without says so itself.
        let _ = self.attach_forks();
        if self.wants_page_faults {
            match self.attach_page_faults() {
                Ok(()) => self.set_page_shift(FIRST_PAGE_SHIFT),
                Err((event, error)) => {
                    self.page_faults_unseen = Some(format!("the tracepoint {event}: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Attaches to both kinds of page faults or to none.
    fn attach_page_faults(&mut self) -> Result<(), (&'static str, io::Error)> {
        let Some(program) = self.lifecycle_program("page_fault") else {
            return Ok(());
        };
        let mut links = Vec::new();
        for (event, raw) in PAGE_FAULTS {
            links.push(sys::open_raw_tracepoint(program, raw).map_err(|error| (event, error))?);
        }
        self.mapping_links.links.extend(links);
        Ok(())
    }

    /// Why page faults are not seen although they are wanted; `None` where they are.
    #[must_use]
    pub fn page_faults_unseen(&self) -> Option<&str> {
        self.page_faults_unseen.as_deref()
    }

    /// Of `2^shift` pages one is told of when it faults; `None`: none is.
    #[must_use]
    pub fn page_shift(&self) -> Option<u32> {
        self.settings.read(0)?.page_faults.checked_sub(1)
    }

    /// From now on, one of `2^shift` pages is told of when it faults.
    pub fn set_page_shift(&mut self, shift: u32) {
        if let Some(mut settings) = self.settings.read(0) {
            settings.page_faults = 1 + shift.min(MAX_PAGE_SHIFT);
            self.settings.write(0, settings);
        }
    }

    /// Attaches to the making of processes, once.
    ///
    /// # Errors
    /// The tracepoint was refused, tracefs cannot be read, or the record is not what the program was made for.
    pub fn attach_forks(&mut self) -> Result<(), KernelError> {
        if self.sees_forks {
            return Ok(());
        }
        let tracefs = Tracefs::open()?;
        tracefs.expect_fields(
            NEW_TASK,
            &[
                ("pid", offset_of!(NewTask, pid), size_of::<u32>()),
                (
                    "clone_flags",
                    offset_of!(NewTask, clone_flags),
                    size_of::<u64>(),
                ),
            ],
        )?;
        let number = tracefs.tracepoint_id(NEW_TASK)?;
        let mut link = Link::default();
        if let Some(program) = self.lifecycle_program("process_fork") {
            link.add_tracepoint(program, NEW_TASK, number)?;
        }
        self.lifecycle.links.extend(link.links);
        self.lifecycle.events.extend(link.events);
        self.sees_forks = true;
        Ok(())
    }

    /// Ties a program to the raw tracepoint of this name.
    fn attach_raw(&mut self, program: &str, tracepoint: &CStr) -> Result<(), KernelError> {
        let link = self
            .lifecycle_program(program)
            .map(|program| sys::open_raw_tracepoint(program, tracepoint))
            .transpose()
            .map_err(|source| KernelError::Attach {
                what: format!("the tracepoint {}", tracepoint.to_string_lossy()),
                source,
            })?;
        self.lifecycle.links.extend(link);
        Ok(())
    }

    /// A program by its name.
    fn lifecycle_program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.lifecycle_programs
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, program)| program.as_fd())
    }

    /// A number for a process incarnation that has not been used yet.
    #[must_use]
    pub fn new_incarnation(&self) -> u32 {
        self.incarnations
            .word(0, 0)
            .map_or(1, |next| next.fetch_add(1, Ordering::SeqCst)) as u32
    }

    /// Begins to record a process.
    ///
    /// # Errors
    /// The process table is full.
    pub fn follow(&mut self, pid: u32, incarnation: u32) -> Result<(), KernelError> {
        self.record(pid, incarnation, 0)
    }

    /// Begins to record a child of ours that has not called exec yet: what it does until then is not recorded, and it is held
    /// whenever it maps code. With `children`, so are its children and theirs.
    ///
    /// # Errors
    /// The process table is full; or children are to be seen, and cannot be.
    pub fn follow_command(
        &mut self,
        pid: u32,
        incarnation: u32,
        children: bool,
    ) -> Result<(), KernelError> {
        if children {
            self.attach_forks()?;
        }
        if self.guardian.is_none() {
            let guardian = Guardian::start(self.holds_fd.as_fd()).map_err(|source| {
                KernelError::call(
                    "cannot start the process that watches over the command's",
                    source,
                )
            })?;
            self.guardian = Some(guardian);
        }
        self.holds
            .insert(pid, if children { HOLD_CHILDREN } else { 0 }, ANY)
            .map_err(|error| map_error("HOLDS", &error))?;
        self.record(pid, incarnation, PROCESS_EXEC_PENDING)
    }

    fn record(&mut self, pid: u32, incarnation: u32, flags: u32) -> Result<(), KernelError> {
        self.processes
            .insert(
                pid,
                Value(ProcessRecord {
                    incarnation,
                    flags,
                    ..ProcessRecord::default()
                }),
                ANY,
            )
            .map_err(|error| map_error("PROCESSES", &error))
    }

    /// Stops following a process, unless its number belongs to another by now.
    pub fn forget(&mut self, pid: u32, incarnation: u32) {
        if self.incarnation(pid) == Some(incarnation) {
            // An entry that is gone already is what is wanted.
            let _ = self.processes.remove(&pid);
            let _ = self.holds.remove(&pid);
        }
    }

    /// Which processes are to be told of as they start: [`ProbeEvent::Candidate`].
    ///
    /// # Errors
    /// The making of processes cannot be seen.
    pub fn select(&mut self, selection: &Selection) -> Result<(), KernelError> {
        if selection.flags & SELECT_ACTIVE != 0 {
            self.attach_forks()?;
        }
        // Nothing is selected while it is changed: the flags are written last, in one word with the number of groups.
        if let Some(flags) = self.selection.word(0, offset_of!(Selection, cgroup_count)) {
            flags.store(0, Ordering::SeqCst);
            self.selection.write(
                0,
                Selection {
                    cgroup_count: 0,
                    flags: 0,
                    ..*selection
                },
            );
            let word = u64::from(selection.flags) << 32 | u64::from(selection.cgroup_count);
            flags.store(word, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether the probe wakes us for a process that meets the selection.
    pub fn wake_for_candidates(&mut self, wakes: bool) {
        if let Some(flags) = self.selection.word(0, offset_of!(Selection, cgroup_count)) {
            let later = u64::from(SELECT_LATER) << 32;
            if wakes {
                flags.fetch_and(!later, Ordering::SeqCst);
            } else {
                flags.fetch_or(later, Ordering::SeqCst);
            }
        }
    }

    /// The incarnation of a followed process.
    #[must_use]
    pub fn incarnation(&self, pid: u32) -> Option<u32> {
        self.processes
            .get(&pid, 0)
            .ok()
            .map(|record| record.0.incarnation)
    }

    /// Tells of no step of a mapping and of no page fault any more, for good, and begins to take away what saw them, beside what goes on; done when the
    /// probe is dropped. The kernel waits out a grace period of some 30 ms for each tracepoint, one after the other.
    pub fn end_mappings(&mut self) {
        if let Some(mut settings) = self.settings.read(0) {
            // All at the same instant, whichever link goes first.
            settings.mappings = 0;
            settings.page_faults = 0;
            self.settings.write(0, settings);
        }
        let links = std::mem::take(&mut self.mapping_links);
        self.close_beside(links);
    }

    /// Begins to take away all that is tied to tracepoints, as [`Probe::end_mappings`] does: nothing is told of processes from now on.
    pub fn begin_detach(&mut self) {
        self.end_mappings();
        let links = std::mem::take(&mut self.lifecycle);
        self.close_beside(links);
    }

    /// Begins to close links, beside what goes on.
    pub(super) fn close_beside(&mut self, link: Link) {
        if link.links.is_empty() && link.events.is_empty() {
            return;
        }
        self.closing.retain(|closing| !closing.is_finished());
        // Where no thread can be made, the closure is dropped, and the links with it.
        self.closing.extend(
            std::thread::Builder::new()
                .name("detach".to_owned())
                .spawn(move || close_links([link])),
        );
    }

    /// Lets a held process run on.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resume(&self, pid: u32) -> Result<(), KernelError> {
        command::send_continue(pid)
            .map_err(|source| KernelError::call(format!("cannot continue process {pid}"), source))
    }
}

impl Drop for Probe {
    /// Nobody who is held stays so. When we are killed instead, the guardian sees to that.
    fn drop(&mut self) {
        self.begin_detach();
        for closing in self.closing.drain(..) {
            // It panics nowhere; and if it did, the links are closed.
            let _ = closing.join();
        }
        if self.guardian.is_none() {
            return;
        }
        // From here on nobody is stopped any more.
        while let Some(event) = self.next_event() {
            if let ProbeEvent::Exec {
                pid, held: true, ..
            }
            | ProbeEvent::MappedCode {
                pid, held: true, ..
            }
            | ProbeEvent::Ending {
                pid, held: true, ..
            } = event
            {
                // A signal that is still on its way is taken back by this one. The process may be gone.
                let _ = self.resume(pid);
            }
        }
        self.guardian = None;
    }
}

#[cfg(test)]
mod tests {
    use super::NewTask;
    use std::mem::offset_of;

    #[test]
    fn the_record_lies_as_the_probe_reads_it() {
        assert_eq!(offset_of!(NewTask, pid), 8);
        assert_eq!(offset_of!(NewTask, clone_flags), 32);
    }
}
