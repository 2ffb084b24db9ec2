//! Support for the tests of the whole program: victims with a known truth, the leakscope binary, and its report.
//!
//! Owns how victims are built, started and spoken to, how leakscope is run beside them, and what its JSON must look
//! like (by the contract alone). It must not know the tracer's code: nothing here depends on the package `leakscope`.

mod binary;
mod container;
mod daemon;
mod faults;
mod lines;
mod links;
mod machine;
mod newer;
mod outcome;
mod process;
mod report;
mod shared;
mod stuck;
mod terminal;
mod text;
mod tracer;
mod truth;
mod victims;

pub use binary::{example, leakscope};
pub use container::{Container, Group, debian};
pub use daemon::{Daemon, done, go_pprof, in_browser};
pub use faults::{MemoryLimit, children, command_of, scripted, send, tampered, tampered_all};
pub use links::{DEGRADED, degraded, mappings_at_functions};
pub use machine::{answers, kernel_usable, leave_out, missing, prebuilt, skip, turn};
pub use newer::NewerLibc;
pub use outcome::{Found, Outcome, by_any_frame, by_caller};
pub use process::{Victim, preloading, python, pythons, script};
pub use report::{Frame, Overhead, Process, Report, Site, SiteType, Sum};
pub use shared::{NOBODY, Shared};
pub use terminal::Terminal;
pub use text::{breakpoints, wait_for_breakpoints};
pub use tracer::{ALL_SITES, Finished, Tracer, run, run_command};
pub use truth::Truth;
pub use victims::{Program, build_all, programs, victim};

/// How long anything that should happen at once may take before the test gives up. Generous: the machine may be
/// slow and busy, and the kernel waits out about 115 ms for each breakpoint that it removes.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Returns from the test, saying so on stderr, where this machine or user cannot load BPF programs; fails instead
/// when `LEAKSCOPE_REQUIRE_KERNEL=1`. Otherwise yields a guard
/// that keeps tests waiting that must not run at the same time.
#[macro_export]
macro_rules! require_kernel {
    () => {
        match $crate::kernel_usable() {
            Ok(()) => $crate::turn().expect("the lock between kernel tests"),
            Err(reason) => {
                $crate::skip(&reason);
                return;
            }
        }
    };
}

/// The path of a victim, built if need be. Returns from the test, saying so on stderr, where the compiler or headers
/// that this victim needs are missing; fails instead when `LEAKSCOPE_REQUIRE_KERNEL=1`.
#[macro_export]
macro_rules! require_victim {
    ($name:expr) => {
        match $crate::missing($name) {
            None => $crate::victim($name).expect("the victim"),
            Some(reason) => {
                $crate::skip(&reason);
                return;
            }
        }
    };
}
