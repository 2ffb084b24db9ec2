//! How a process ended, in words.

use super::{Traced, lost};
use crate::report::{Ended, MemoryLimit};

/// How the process, or its program, ended.
pub(super) fn note(traced: &Traced, at_exit: bool) -> Option<String> {
    let mut notes = Vec::new();
    if traced.execs > 0 {
        notes.push(format!(
            "it replaced its program {} while it was traced; what is shown is of the last one",
            if traced.execs == 1 {
                "once".to_owned()
            } else {
                format!("{} times", traced.execs)
            }
        ));
    }
    if traced.ended.is_some() && !traced.failed {
        let how = traced
            .end
            .told()
            .map_or("it ended while it was traced".to_owned(), how_it_ended);
        let left = if traced.windows.is_armed() {
            "the blocks below were live at exit"
        } else {
            "its calls were not seen then: what it freed in its last moments is still counted as in use"
        };
        notes.push(format!("{how}; {left}"));
        notes.extend(lost::note(traced, at_exit));
    }
    notes.extend(traced.notes.iter().cloned());
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// How a process ended, in words.
fn how_it_ended(ended: Ended) -> String {
    let Some(signal) = ended.signal else {
        return match ended.exit_status {
            Some(status) => format!("exited (status {status})"),
            None => "exited".to_owned(),
        };
    };
    let why = match ended.out_of_memory {
        None => "",
        Some(MemoryLimit::Cgroup) => " for its cgroup's memory limit",
        Some(MemoryLimit::Machine) => " because the machine's memory ran out",
        Some(MemoryLimit::Unknown) => " by the kernel, for want of memory",
    };
    format!("killed by {signal}{why}")
}
