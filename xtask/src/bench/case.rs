//! The table of cases: which program, with which arguments, and what is measured on it.

/// What one operation of a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// A malloc and a free.
    Pair,
    /// A realloc.
    Realloc,
}

impl Operation {
    /// Probed calls in an operation.
    pub(super) fn calls(self) -> u64 {
        match self {
            Self::Pair => 2,
            Self::Realloc => 1,
        }
    }

    /// The function that allocates.
    pub(super) fn function(self) -> &'static str {
        match self {
            Self::Pair => "malloc",
            Self::Realloc => "realloc",
        }
    }
}

/// What leakscope's figure is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// Nothing was promised.
    None,
    /// At most so many times the floor.
    TimesFloor(f64),
    /// At most so many times the sum of the floor and so many nanoseconds for each return address of the stack.
    TimesFloorAndFrames(f64, f64),
}

/// A program in a loop, measured under every subject.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What it is, for the table.
    pub(super) what: &'static str,
    /// Source in `tests/programs`, without `.c`.
    pub(super) program: &'static str,
    pub(super) arguments: &'static [&'static str],
    pub(super) operation: Operation,
    /// Whether the program's live set is to be renewed before leakscope is measured, so that leakscope knows it.
    pub(super) fill: bool,
    /// Whether it runs only when it is asked for.
    pub(super) large: bool,
    /// Its worker threads.
    pub(super) threads: u32,
    pub(super) bar: Bar,
}

const fn pairs(name: &'static str, what: &'static str) -> Case {
    Case {
        name,
        what,
        program: "bench_pair",
        arguments: &["1"],
        operation: Operation::Pair,
        fill: false,
        large: false,
        threads: 1,
        bar: Bar::None,
    }
}

/// In the order in which they run.
pub(super) const CASES: [Case; 9] = [
    Case {
        bar: Bar::TimesFloor(1.25),
        ..pairs("pair", "malloc and free of 64 bytes, 3 frames")
    },
    Case {
        program: "bench_deep",
        arguments: &["10"],
        bar: Bar::TimesFloorAndFrames(1.25, 90.0),
        ..pairs("deep-10", "the same under 10 frames")
    },
    Case {
        program: "bench_deep",
        arguments: &["40"],
        bar: Bar::TimesFloorAndFrames(1.25, 90.0),
        ..pairs("deep-40", "under 40 frames")
    },
    Case {
        program: "bench_deep",
        arguments: &["100"],
        bar: Bar::TimesFloorAndFrames(1.25, 90.0),
        ..pairs("deep-100", "under 100 frames")
    },
    Case {
        program: "bench_mixed",
        arguments: &["1000000"],
        fill: true,
        ..pairs(
            "mixed",
            "a random block of 1,000,000 freed and another allocated, 16 to 1,039 bytes",
        )
    },
    Case {
        program: "bench_mixed",
        arguments: &["2500000"],
        fill: true,
        large: true,
        ..pairs(
            "full",
            "the same with 2,500,000 blocks, more than leakscope holds by default",
        )
    },
    Case {
        program: "bench_realloc",
        arguments: &[],
        operation: Operation::Realloc,
        ..pairs("realloc", "buffers that grow from 16 bytes to 64 KiB")
    },
    Case {
        arguments: &["8"],
        threads: 8,
        ..pairs("threads", "malloc and free of 64 bytes on 8 threads")
    },
    Case {
        arguments: &["2"],
        threads: 2,
        ..pairs(SCALING, "one thread against two, operations a second")
    },
];

/// The case whose rates with one and with two threads are compared.
pub(super) const SCALING: &str = "scaling";
/// At least so many times the rate of one thread.
pub(super) const SCALING_BAR: f64 = 1.8;
/// Attaching and detaching, as the target feels it.
pub(super) const ATTACH: &str = "attach";
/// The time from the question to the report.
pub(super) const REPORT: &str = "report";
/// The daemon and its readers.
pub(super) const DAEMON: &str = "daemon";
/// Many processes, and many that start.
pub(super) const PROCESSES: &str = "processes";
/// Where the time goes inside the programs.
pub(super) const PROFILE: &str = "profile";

/// What tracing within the default budget takes from servers.
pub(super) const BUDGET: &str = "budget";
/// The same of two loads side by side.
pub(super) const TWINS: &str = "twins";
/// The same program in C, Python and Go.
pub(super) const LANGUAGES: &str = "languages";
/// What following fresh pages takes from page faults.
pub(super) const FAULTS: &str = "faults";
/// What a window on the kernel's allocators takes from system calls.
pub(super) const KERNEL: &str = "kernel";
/// What looks at heaps take.
pub(super) const HEAP: &str = "heap";
/// Whether looks at heaps that change all the time are right.
pub(super) const LOOKS: &str = "looks";
/// How soon a server's leak is found.
pub(super) const LEAK: &str = "leak";
/// The same where blocks look alike, and with other allocators.
pub(super) const LEAK_OTHERS: &str = "leak-others";
/// What is said of real servers.
pub(super) const SERVERS: &str = "servers";
/// What is said of programs whose truth is known.
pub(super) const VERDICTS: &str = "verdicts";

/// Every name that can be asked for.
pub(super) fn names() -> Vec<&'static str> {
    CASES
        .iter()
        .map(|case| case.name)
        .chain([
            ATTACH,
            REPORT,
            DAEMON,
            PROCESSES,
            PROFILE,
            FAULTS,
            HEAP,
            KERNEL,
            LOOKS,
            BUDGET,
            TWINS,
            LANGUAGES,
            LEAK,
            LEAK_OTHERS,
            SERVERS,
            VERDICTS,
        ])
        .collect()
}
