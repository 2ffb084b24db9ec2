//! Which processes the probe records, and the events by which it learns of others.

use std::{ffi::CStr, io, mem::offset_of, os::fd::AsFd as _, sync::atomic::Ordering};

use leakscope_common::{
    HOLD_CHILDREN, MAX_PAGE_SHIFT, PROCESS_EXEC_PENDING, ProcessRecord, SELECT_ACTIVE,
    SELECT_LATER, Selection,
};

use super::{
    command,
    error::KernelError,
    event::ProbeEvent,
    guardian::Guardian,
    probe::{Probe, Value, map_error},
    sys,
    tracefs::Tracefs,
};

/// Each program with the tracepoints that it is tied to.
const TRACEPOINTS: [(&str, &str); 11] = [
    ("process_exec", "sched/sched_process_exec"),
    ("process_exit", "sched/sched_process_exit"),
    ("process_fork", NEW_TASK),
    ("mapping_enter", "syscalls/sys_enter_munmap"),
    ("mapping_enter", "syscalls/sys_enter_mremap"),
    ("mapping_return", NEW_CODE),
    ("mapping_return", "syscalls/sys_exit_munmap"),
    ("mapping_return", "syscalls/sys_exit_mremap"),
    ("mapping_return", "syscalls/sys_exit_brk"),
    ("mapping_return", "syscalls/sys_exit_mprotect"),
    ("mapping_return", OPTIONAL),
];

/// Where code is mapped, which is always seen; the others only where the steps of mappings are asked for.
const NEW_CODE: &str = "syscalls/sys_exit_mmap";

/// Whether a program is one that sees mappings.
fn is_mapping(name: &str) -> bool {
    matches!(name, "mapping_enter" | "mapping_return")
}

/// A tracepoint that a kernel need not have: without protection keys there is no such call.
const OPTIONAL: &str = "syscalls/sys_exit_pkey_mprotect";

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
    /// Attaches to exec, thread exit and the system calls that change mappings; also to page faults where they are wanted and the
    /// kernel has their tracepoints.
    ///
    /// # Errors
    /// A tracepoint was refused, or tracefs cannot be read.
    pub fn attach_lifecycle(&mut self) -> Result<(), KernelError> {
        self.attach_tracepoints(&[
            "process_exec",
            "process_exit",
            "mapping_enter",
            "mapping_return",
        ])?;
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
        let Some((_, program)) = self
            .lifecycle_programs
            .iter()
            .find(|(name, _)| *name == "page_fault")
        else {
            return Ok(());
        };
        let mut links = Vec::new();
        for (event, raw) in PAGE_FAULTS {
            links.push(
                sys::open_raw_tracepoint(program.as_fd(), raw).map_err(|error| (event, error))?,
            );
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
        Tracefs::open()?.expect_fields(
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
        self.attach_tracepoints(&["process_fork"])?;
        self.sees_forks = true;
        Ok(())
    }

    fn attach_tracepoints(&mut self, names: &[&str]) -> Result<(), KernelError> {
        let steps = self
            .settings
            .read(0)
            .is_some_and(|settings| settings.mappings != 0);
        let mut tracefs = None;
        for (name, event) in TRACEPOINTS {
            if !names.contains(&name) || (event != NEW_CODE && is_mapping(name) && !steps) {
                continue;
            }
            let Some((_, program)) = self
                .lifecycle_programs
                .iter()
                .find(|(other, _)| *other == name)
            else {
                continue;
            };
            let failed = |source| KernelError::Attach {
                what: format!("the tracepoint {event}"),
                source,
            };
            let raw = match name {
                "process_exec" => Some(c"sched_process_exec"),
                "process_exit" => Some(c"sched_process_exit"),
                _ => None,
            };
            if let Some(raw) = raw {
                let link = sys::open_raw_tracepoint(program.as_fd(), raw).map_err(failed)?;
                self.lifecycle.links.push(link);
                continue;
            }
            let tracefs = match &mut tracefs {
                Some(tracefs) => tracefs,
                none => none.insert(Tracefs::open()?),
            };
            let number = match tracefs.tracepoint_id(event) {
                Err(_) if event == OPTIONAL => continue,
                number => number?,
            };
            let event = sys::open_tracepoint(number).map_err(failed)?;
            let link = sys::link_perf_event(program.as_fd(), event.as_fd(), 0).map_err(failed)?;
            let kept = if is_mapping(name) {
                &mut self.mapping_links
            } else {
                &mut self.lifecycle
            };
            kept.links.push(link);
            kept.events.push(event);
        }
        Ok(())
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
            .insert(pid, Value(ProcessRecord { incarnation, flags }), ANY)
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
