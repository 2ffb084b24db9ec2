//! Which processes are to be traced: what the probe compares a process with when it starts. Both sides use the same
//! comparison.

use crate::layout::layout;

/// Control groups that can be named at once; the array is walked for every process that starts.
pub const SELECTED_CGROUPS: usize = 8;

/// Bytes of a process's name, the closing zero included (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_BYTES: usize = 16;

/// Processes are selected as they start; without it the other fields mean nothing.
pub const SELECT_ACTIVE: u32 = 1;
/// Only those whose name matches.
pub const SELECT_COMM: u32 = 2;
/// Only those in one of the groups.
pub const SELECT_CGROUP: u32 = 4;
/// User space need not be woken for a process that starts: it looks by itself.
pub const SELECT_LATER: u32 = 8;

/// The criteria, the only entry of the `SELECTION` map. Name patterns are an automaton of at most 64 states, a bit each:
/// state `k` of a pattern means that its first `k` characters were found (Baeza-Yates and Gonnet 1992).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// By character: the states that it moves on to the next.
    pub advance: [u64; 256],
    /// The states before the first character.
    pub start: u64,
    /// The states that any character leaves as they are: those behind a `*`.
    pub stay: u64,
    /// The states in which a pattern was found whole.
    pub accept: u64,
    /// Identifiers of control groups (of cgroup v2: the inode number of the group's folder).
    pub cgroups: [u64; SELECTED_CGROUPS],
    /// How deep below the root of the hierarchy each lies.
    pub cgroup_levels: [u32; SELECTED_CGROUPS],
    /// How many there are.
    pub cgroup_count: u32,
    /// `SELECT_*` flags.
    pub flags: u32,
}

impl Selection {
    /// Nothing is selected.
    pub const NONE: Self = Self {
        advance: [0; 256],
        start: 0,
        stay: 0,
        accept: 0,
        cgroups: [0; SELECTED_CGROUPS],
        cgroup_levels: [0; SELECTED_CGROUPS],
        cgroup_count: 0,
        flags: 0,
    };

    /// Whether a name, which ends at its first zero, matches one of the patterns.
    #[inline(always)]
    #[must_use]
    pub fn matches_comm(&self, comm: &[u8; COMM_BYTES]) -> bool {
        let mut states = self.start;
        let mut index = 0;
        while index < COMM_BYTES && comm[index] != 0 {
            states = ((states & self.advance[comm[index] as usize]) << 1) | (states & self.stay);
            index += 1;
        }
        states & self.accept != 0
    }
}

layout! {
    Selection = 8 * 256 + 8 * 3 + 8 * SELECTED_CGROUPS + 4 * SELECTED_CGROUPS + 4 * 2;
}
