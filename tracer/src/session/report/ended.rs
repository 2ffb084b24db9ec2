//! What is to be said of a process beside its figures: how it ended.

use super::{Traced, lost};
use crate::{
    report::{Ended, MemoryLimit},
    units::count,
};

/// How the process, or its program, ended. `survives`: something of it is in use, for all that is known. `descriptors`: how many it has
/// open now, where that is not told elsewhere.
pub(super) fn note(
    traced: &Traced,
    at_exit: bool,
    survives: bool,
    descriptors: Option<u64>,
) -> Option<String> {
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
        notes.push(how);
        if survives {
            let left = if traced.windows.is_armed() {
                "the blocks below were live at exit"
            } else {
                "its calls were not seen then: what it freed in its last moments is still counted as in use"
            };
            notes.push(left.to_owned());
        }
        notes.extend(lost::note(traced, at_exit));
    }
    notes.extend(traced.notes.iter().cloned());
    notes.extend(
        traced
            .descriptors_first
            .zip(descriptors)
            .and_then(|(first, now)| opened(traced.pid, first, now)),
    );
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// From so many descriptors on, of which so many were opened while it was traced, a process is said to have many.
const MANY_DESCRIPTORS: u64 = 256;
const MANY_OPENED: u64 = 64;

/// What is to be said of a process's descriptors where nobody watches them: that they are many more than before, and what tells of them.
fn opened(pid: u32, first: u64, now: u64) -> Option<String> {
    let more = now.saturating_sub(first);
    (now >= MANY_DESCRIPTORS && more >= MANY_OPENED).then(|| {
        format!(
            "it has {} descriptors open, {} more than when tracing began: `leakscope trace -p {pid} --kernel` says of what kind, \
             and whether they leak",
            count(now),
            count(more)
        )
    })
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

#[cfg(test)]
mod tests {
    use super::opened;

    #[test]
    fn descriptors_that_leaked_were_not_mentioned_without_being_asked_for() {
        let said = opened(7, 120, 1635).unwrap_or_default();
        assert!(said.contains("1,635 descriptors"), "{said}");
        assert!(said.contains("trace -p 7 --kernel"), "{said}");
        assert_eq!(opened(7, 1600, 1635), None);
        assert_eq!(opened(7, 3, 90), None);
    }
}
