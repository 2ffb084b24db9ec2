//! Where the stacks of a process's threads are, as the kernel tells it of threads that wait.

use std::{fs, path::Path};

use crate::target::process::list_threads;

/// A thread and its stack pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    /// Its id.
    pub(super) id: u32,
    /// Its name.
    pub(super) name: String,
    /// Its stack pointer; `None` while it runs.
    pub(super) stack_pointer: Option<u64>,
}

/// The threads of a process.
pub(super) fn threads(proc_root: &Path, pid: u32) -> Vec<Thread> {
    let folder = proc_root.join(pid.to_string()).join("task");
    let mut ids = list_threads(proc_root, pid).unwrap_or_default();
    ids.sort_unstable();
    ids.into_iter()
        .map(|id| {
            let folder = folder.join(id.to_string());
            let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
            Thread {
                id,
                name: text("comm").trim_end().to_owned(),
                stack_pointer: stack_pointer(&text("syscall")),
            }
        })
        .collect()
}

/// `number arguments… stack-pointer program-counter` (`proc_pid_syscall(5)`); `running` of a thread that runs.
fn stack_pointer(text: &str) -> Option<u64> {
    let mut fields = text.split_ascii_whitespace().rev();
    let _program_counter = fields.next()?;
    let pointer = fields.next()?.strip_prefix("0x")?;
    u64::from_str_radix(pointer, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::stack_pointer;

    #[test]
    fn a_thread_that_waits_has_a_stack_pointer() {
        let text = "230 0x0 0x0 0x7ffd 0x7ffd 0x0 0x0 0x7ffd88f45a08 0x7f1e3ba5b8f3\n";
        assert_eq!(stack_pointer(text), Some(0x7ffd_88f4_5a08));
        assert_eq!(
            stack_pointer("-1 0x7ffd88f45a08 0x7f1e3ba5b8f3"),
            Some(0x7ffd_88f4_5a08)
        );
        assert_eq!(stack_pointer("running\n"), None);
        assert_eq!(stack_pointer(""), None);
    }
}
