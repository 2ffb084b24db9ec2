//! Every way in which the probe can lose something, numbered, with one sentence each.

/// Why the probe dropped or degraded something. The value is the index into the `LOSSES` map; new causes are added
/// at the end.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// An allocation could not be stored: both candidate buckets of the live table were full.
    LiveTableFull = 0,
    /// An allocation's stack was not stored: the stack table was full. The block is counted under `[unknown stack]`.
    StackTableFull = 1,
    /// A thread's calls were not seen: no room for its in-flight record.
    ThreadTableFull = 2,
    /// An allocation call never returned (longjmp, a killed thread, a switched stack); its block is unknown.
    CallNeverReturned = 3,
    /// The out-pointer of a `posix_memalign` could not be read on return.
    ResultUnreadable = 4,
    /// A new stack could not be handed over because the ring buffer was full; it is tried again with the next call.
    StackDeferred = 5,
    /// A process event (exec, exit, new mapping) could not be handed over because the ring buffer was full.
    EventLost = 6,
    /// Two different stacks had the same 64-bit hash; they were kept apart.
    StackHashCollision = 7,
    /// A return was seen whose call was not (attached in the middle of it); its block is unknown.
    ReturnWithoutCall = 8,
    /// An argument register or the stack pointer could not be read.
    ArgumentUnreadable = 9,
    /// An address was returned that was still recorded as live: its free was missed. The stale block was dropped.
    StaleBlock = 10,
    /// A process could not be followed: no room in the process table.
    ProcessTableFull = 11,
    /// A stack ended early: an address lies in no known mapping.
    UnwindUnknownMapping = 12,
    /// A stack ended early: the mapped file has no unwind rule for the address.
    UnwindNoRule = 13,
    /// A stack ended early: the rule is of a kind that the probe cannot evaluate.
    UnwindUnsupportedRule = 14,
    /// A stack ended early: stack memory could not be read.
    UnwindFault = 15,
    /// A stack ended early: it passes through a signal handler.
    UnwindSignalFrame = 16,
    /// A stack ended early: it has more frames than the probe records.
    UnwindTooDeep = 17,
    /// A stack ended early: the frame-pointer chain broke in code for which there are no unwind tables.
    UnwindFramePointers = 18,
    /// A change of a process's mappings could not be handed over because the ring buffer was full.
    MappingLost = 19,
    /// A page fault could not be handed over because the ring buffer was full.
    PageFaultLost = 20,
    /// The kernel skipped a program at a call that changes mappings, for it was interrupted in the same program on that processor. Counted by
    /// the kernel, for all processes of the machine.
    MappingMissed = 21,
    /// A stack has no Python frames: the interpreter's state of the thread was not found.
    PythonThreadUnknown = 22,
    /// The Python frames of a stack end early: one could not be read.
    PythonFrameUnreadable = 23,
    /// A block that Go's runtime handed out could not be told of because the ring buffer was full.
    GoBlockLost = 24,
    /// The kernel skipped a program at one of its own allocations or frees, for it was interrupted in the same program on that processor. Counted
    /// by the kernel.
    KernelAllocationMissed = 25,
    /// An object of the kernel was not followed: no room for it or for its stack. Counted beside its allocation.
    KernelTableFull = 26,
}

impl Loss {
    /// Every cause, in the order of its number.
    pub const ALL: [Self; 27] = [
        Self::LiveTableFull,
        Self::StackTableFull,
        Self::ThreadTableFull,
        Self::CallNeverReturned,
        Self::ResultUnreadable,
        Self::StackDeferred,
        Self::EventLost,
        Self::StackHashCollision,
        Self::ReturnWithoutCall,
        Self::ArgumentUnreadable,
        Self::StaleBlock,
        Self::ProcessTableFull,
        Self::UnwindUnknownMapping,
        Self::UnwindNoRule,
        Self::UnwindUnsupportedRule,
        Self::UnwindFault,
        Self::UnwindSignalFrame,
        Self::UnwindTooDeep,
        Self::UnwindFramePointers,
        Self::MappingLost,
        Self::PageFaultLost,
        Self::MappingMissed,
        Self::PythonThreadUnknown,
        Self::PythonFrameUnreadable,
        Self::GoBlockLost,
        Self::KernelAllocationMissed,
        Self::KernelTableFull,
    ];

    /// The number of causes: the size of the `LOSSES` map.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The cause's name in the JSON report's `losses` and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LiveTableFull => "live_table_full",
            Self::StackTableFull => "stack_table_full",
            Self::ThreadTableFull => "thread_table_full",
            Self::CallNeverReturned => "call_never_returned",
            Self::ResultUnreadable => "result_unreadable",
            Self::StackDeferred => "stack_deferred",
            Self::EventLost => "event_lost",
            Self::StackHashCollision => "stack_hash_collision",
            Self::ReturnWithoutCall => "return_without_call",
            Self::ArgumentUnreadable => "argument_unreadable",
            Self::StaleBlock => "stale_block",
            Self::ProcessTableFull => "process_table_full",
            Self::UnwindUnknownMapping => "unwind_unknown_mapping",
            Self::UnwindNoRule => "unwind_no_rule",
            Self::UnwindUnsupportedRule => "unwind_unsupported_rule",
            Self::UnwindFault => "unwind_fault",
            Self::UnwindSignalFrame => "unwind_signal_frame",
            Self::UnwindTooDeep => "unwind_too_deep",
            Self::UnwindFramePointers => "unwind_frame_pointers",
            Self::MappingLost => "mapping_lost",
            Self::PageFaultLost => "page_fault_lost",
            Self::MappingMissed => "mapping_missed",
            Self::PythonThreadUnknown => "python_thread_unknown",
            Self::PythonFrameUnreadable => "python_frame_unreadable",
            Self::GoBlockLost => "go_block_lost",
            Self::KernelAllocationMissed => "kernel_allocation_missed",
            Self::KernelTableFull => "kernel_table_full",
        }
    }

    /// One sentence for people.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::LiveTableFull => "allocations not stored: the live table was full",
            Self::StackTableFull => {
                "allocations counted under [unknown stack]: the stack table was full"
            }
            Self::ThreadTableFull => "calls not seen: no room for the thread's record",
            Self::CallNeverReturned => "allocation calls that never returned",
            Self::ResultUnreadable => "results of posix_memalign that could not be read",
            Self::StackDeferred => "new stacks handed over late: the ring buffer was full",
            Self::EventLost => "process events lost: the ring buffer was full",
            Self::StackHashCollision => "stack hash collisions (kept apart)",
            Self::ReturnWithoutCall => "returns from calls that began before the attach",
            Self::ArgumentUnreadable => "calls whose arguments could not be read",
            Self::StaleBlock => "blocks whose free was missed",
            Self::ProcessTableFull => "processes not followed: the process table was full",
            Self::UnwindUnknownMapping => "stacks cut short: address in no known mapping",
            Self::UnwindNoRule => "stacks cut short: no unwind rule for the address",
            Self::UnwindUnsupportedRule => "stacks cut short: unwind rule not supported",
            Self::UnwindFault => "stacks cut short: stack memory unreadable",
            Self::UnwindSignalFrame => "stacks cut short: signal handler",
            Self::UnwindTooDeep => "stacks cut short: too many frames",
            Self::UnwindFramePointers => "stacks cut short: frame-pointer chain broken",
            Self::MappingLost => "changes of mappings lost: the ring buffer was full",
            Self::PageFaultLost => "page faults lost: the ring buffer was full",
            Self::MappingMissed => {
                "calls of mmap and the like, of any process, at which the kernel skipped the program"
            }
            Self::PythonThreadUnknown => {
                "stacks without Python frames: the thread's Python state was not found"
            }
            Self::PythonFrameUnreadable => "stacks with Python frames missing: memory unreadable",
            Self::GoBlockLost => "blocks of Go not told of: the ring buffer was full",
            Self::KernelAllocationMissed => {
                "allocations and frees of the kernel at which it skipped the program"
            }
            Self::KernelTableFull => "objects of the kernel not followed: no room for them",
        }
    }

    /// Whether the loss concerns the accounting of bytes (as opposed to the completeness of stacks).
    #[must_use]
    pub const fn affects_bytes(self) -> bool {
        matches!(
            self,
            Self::LiveTableFull
                | Self::ThreadTableFull
                | Self::CallNeverReturned
                | Self::ResultUnreadable
                | Self::ReturnWithoutCall
                | Self::ArgumentUnreadable
                | Self::StaleBlock
                | Self::ProcessTableFull
                | Self::MappingLost
                | Self::PageFaultLost
                | Self::MappingMissed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Loss;

    #[test]
    fn the_number_of_a_loss_is_its_place() {
        for (place, loss) in Loss::ALL.into_iter().enumerate() {
            assert_eq!(loss as usize, place);
        }
    }

    #[test]
    fn names_are_distinct() {
        for (place, loss) in Loss::ALL.into_iter().enumerate() {
            for other in Loss::ALL.into_iter().skip(place + 1) {
                assert_ne!(loss.name(), other.name());
            }
        }
    }
}
