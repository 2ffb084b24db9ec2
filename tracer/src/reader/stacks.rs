//! Where the stacks of a process's threads are and what their registers hold, as the kernel tells it of threads that wait.

use std::{fs, path::Path, thread::sleep, time::Duration};

use crate::process::procfs::{is_stopped, list_threads};

/// A thread that stops is said to run for a moment: it is asked for again so often, so long after.
const TRIES: u32 = 40;
const AGAIN_AFTER: Duration = Duration::from_micros(250);

/// A thread and its stack pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    /// Its id.
    pub(super) id: u32,
    /// Its name.
    pub(super) name: String,
    /// Its stack pointer; `None` while it runs.
    pub(super) stack_pointer: Option<u64>,
    /// The arguments of the system call in which it waits: what it was given to wait for or to fill.
    pub(super) arguments: Vec<u64>,
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
            let (mut arguments, mut stack_pointer) = waiting(&text("syscall"));
            // Without its stack pointer what is left of calls that have returned would look as if it were held.
            for _ in 0..TRIES {
                if stack_pointer.is_some() || !is_stopped(proc_root, id).unwrap_or(false) {
                    break;
                }
                sleep(AGAIN_AFTER);
                (arguments, stack_pointer) = waiting(&text("syscall"));
            }
            Thread {
                id,
                name: text("comm").trim_end().to_owned(),
                stack_pointer,
                arguments,
            }
        })
        .collect()
}

/// `number arguments… stack-pointer program-counter` (`proc_pid_syscall(5)`); `running` of a thread that runs. Gives the arguments and
/// the stack pointer.
fn waiting(text: &str) -> (Vec<u64>, Option<u64>) {
    let number = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    // The number of the call is a decimal one.
    let mut words: Vec<u64> = text.split_ascii_whitespace().filter_map(number).collect();
    let _program_counter = words.pop();
    let stack_pointer = words.pop();
    (words, stack_pointer)
}

#[cfg(test)]
mod tests {
    use super::waiting;

    #[test]
    fn a_thread_that_waits_has_a_stack_pointer_and_arguments() {
        let text = "230 0x0 0x0 0x7ffd 0x7ffe 0x0 0x0 0x7ffd88f45a08 0x7f1e3ba5b8f3\n";
        assert_eq!(
            waiting(text),
            (vec![0, 0, 0x7ffd, 0x7ffe, 0, 0], Some(0x7ffd_88f4_5a08))
        );
        assert_eq!(
            waiting("-1 0x7ffd88f45a08 0x7f1e3ba5b8f3"),
            (vec![], Some(0x7ffd_88f4_5a08))
        );
        assert_eq!(waiting("running\n"), (vec![], None));
        assert_eq!(waiting(""), (vec![], None));
    }
}
