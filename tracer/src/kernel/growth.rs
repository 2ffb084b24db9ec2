//! Links of the programs that see mappings.

use std::os::fd::AsFd as _;

use super::{error::KernelError, probe::Probe, sys, tracefs::Tracefs};

/// Each program with the tracepoint that it is tied to. They are those of system calls: functions of the kernel could be tied to only
/// where it has kprobes or ftrace, and the program that sees new code stands at one of these already, so that more of them slow no
/// other call.
const TRACEPOINTS: [(&str, &str); 8] = [
    ("mapping_enter", "syscalls/sys_enter_munmap"),
    ("mapping_enter", "syscalls/sys_enter_mremap"),
    ("mapping_return", "syscalls/sys_exit_mmap"),
    ("mapping_return", "syscalls/sys_exit_munmap"),
    ("mapping_return", "syscalls/sys_exit_mremap"),
    ("mapping_return", "syscalls/sys_exit_brk"),
    ("mapping_return", "syscalls/sys_exit_mprotect"),
    ("mapping_return", "syscalls/sys_exit_pkey_mprotect"),
];

/// A tracepoint that a kernel need not have: without protection keys there is no such call.
const OPTIONAL: &str = "syscalls/sys_exit_pkey_mprotect";

impl Probe {
    /// Attaches to the system calls that change mappings.
    ///
    /// # Errors
    /// A tracepoint was refused, or tracefs cannot be read.
    pub fn attach_mappings(&mut self) -> Result<(), KernelError> {
        let tracefs = Tracefs::open()?;
        for (name, event) in TRACEPOINTS {
            let Some((_, program)) = self
                .lifecycle_programs
                .iter()
                .find(|(other, _)| *other == name)
            else {
                continue;
            };
            let number = match tracefs.tracepoint_id(event) {
                Err(_) if event == OPTIONAL => continue,
                number => number?,
            };
            let failed = |source| KernelError::Attach {
                what: format!("the tracepoint {event}"),
                source,
            };
            let event = sys::open_tracepoint(number).map_err(failed)?;
            let link = sys::link_perf_event(program.as_fd(), event.as_fd(), 0).map_err(failed)?;
            self.lifecycle.push(link);
            self.lifecycle.push(event);
        }
        Ok(())
    }
}
