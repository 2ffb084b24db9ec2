//! What becomes of a trace where our own code panics: the process that was being dealt with is given up, with all that was seen of it until then, and the
//! others are traced on. What is said of it is for whoever runs the trace; this room prints nothing.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use super::{Session, process::Traced};
use crate::kernel::KernelError;

/// A fault that is made on purpose, for tests: `window:PID`, `report:PID`, `naming:PID` or `look`. An environment variable of ours, which no target can set.
const INJECT: &str = "LEAKSCOPE_INJECT_FAULT";

/// Where one can be made.
pub(super) mod place {
    /// In the step of a process's windows.
    pub(in crate::session) const WINDOW: &str = "window";
    /// Where its part of a report is made.
    pub(in crate::session) const REPORT: &str = "report";
    /// In a look at all processes.
    pub(in crate::session) const LOOK: &str = "look";
}

/// So many steps may fail for no process in particular before the trace is given up: each leaves something undone.
const MOST_FAILED_STEPS: u32 = 8;

/// What has failed so far.
#[derive(Default)]
pub(super) struct Faults {
    /// The process that is being dealt with.
    at_work: Cell<Option<u32>>,
    /// A sentence for each fault.
    said: Vec<String>,
    /// Steps that failed for no process in particular.
    failed_steps: u32,
    /// Processes whose part of a report cannot be made.
    pub(super) not_shown: Vec<Traced>,
    inject: Option<String>,
}

impl Faults {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            inject: std::env::var(INJECT).ok(),
            ..Self::default()
        }
    }

    /// From now on a process is dealt with, or all of them.
    pub(super) fn work_on(&self, pid: impl Into<Option<u32>>) {
        self.at_work.set(pid.into());
    }

    /// Panics where a test has asked for that.
    #[expect(clippy::panic, reason = "that is what it is for")]
    pub(super) fn inject(&self, place: &str, pid: Option<u32>) {
        let Some(inject) = &self.inject else {
            return;
        };
        let here = pid.map_or_else(|| place.to_owned(), |pid| format!("{place}:{pid}"));
        if *inject == here {
            panic!("a fault was asked for by {INJECT}={inject}");
        }
    }
}

impl Session {
    /// What has failed inside of leakscope since the trace began, a sentence each.
    #[must_use]
    pub fn faults(&self) -> &[String] {
        &self.faults.said
    }

    /// Whether something failed that was not the matter of a single process: what was seen may lack a part.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.faults.failed_steps > 0
    }

    /// Deals with a process, which is taken out of the others meanwhile. `None` where there is none, or where that panicked and it was given up.
    pub(super) fn deal_with<T>(
        &mut self,
        pid: u32,
        deal: impl FnOnce(&mut Self, &mut Traced) -> T,
    ) -> Option<T> {
        let mut traced = self.processes.remove(&pid)?;
        let dealt = catch_unwind(AssertUnwindSafe(|| deal(self, &mut traced)));
        self.processes.insert(pid, traced);
        if dealt.is_err() {
            self.give_up(pid);
        }
        dealt.ok()
    }

    /// Takes a step. If it panics, the process that was being dealt with is given up; what else was to be done is done at the next one.
    ///
    /// # Errors
    /// Those of the step; or too many failed.
    pub(super) fn guard_step(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        self.faults.work_on(None);
        if let Ok(result) = catch_unwind(AssertUnwindSafe(|| step(self))) {
            return result;
        }
        if let Some(pid) = self.faults.at_work.take() {
            self.give_up(pid);
            return Ok(());
        }
        self.faults.failed_steps = self.faults.failed_steps.saturating_add(1);
        self.faults
            .said
            .push("internal error while tracing; please report the backtrace above".to_owned());
        if self.faults.failed_steps > MOST_FAILED_STEPS {
            return Err(KernelError::Internal);
        }
        Ok(())
    }

    /// Makes a report. If that panics, the process whose part was being made is left out, and it is made again.
    ///
    /// # Errors
    /// Those of making it; or it cannot be made whatever is left out.
    pub(super) fn guard_report<T>(
        &mut self,
        mut make: impl FnMut(&mut Self) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        loop {
            self.faults.work_on(None);
            if let Ok(result) = catch_unwind(AssertUnwindSafe(|| make(self))) {
                return result;
            }
            let at_work = self.faults.at_work.take();
            let Some(pid) = at_work.filter(|pid| self.processes.contains_key(pid)) else {
                return Err(KernelError::Internal);
            };
            self.give_up(pid);
            self.faults.not_shown.extend(self.processes.remove(&pid));
        }
    }

    /// A process at which we failed is traced no more. What was seen of it until now stays.
    fn give_up(&mut self, pid: u32) {
        let after = self.started.elapsed().as_secs_f64();
        let Some(traced) = self.processes.get_mut(&pid) else {
            self.faults.said.push(format!(
                "internal error while tracing process {pid}, which is traced no more; please report the backtrace above"
            ));
            return;
        };
        if traced.failed {
            return;
        }
        let comm = &traced.comm;
        self.faults.said.push(format!(
            "internal error while tracing {comm} (pid {pid}), which is traced no more; please report the backtrace above"
        ));
        self.stop_tracing(
            pid,
            &format!(
                "internal error: leakscope stopped tracing it after {after:.1} s; what was seen until then is shown"
            ),
        );
    }

    /// A process is traced no more, for a reason. What was seen of it until now stays.
    pub(super) fn stop_tracing(&mut self, pid: u32, why: &str) {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return;
        };
        traced.failed = true;
        traced.ended.get_or_insert_with(Instant::now);
        traced.note(why.to_owned());
        let incarnation = traced.incarnation;
        let links = traced.take_links();
        self.tables.remove(&mut self.probe, incarnation);
        self.probe.forget(pid, incarnation);
        self.links.release(pid, links);
    }

    /// Whether it is one that was given up and still runs: it is not to be followed again.
    pub(super) fn was_given_up(&self, pid: u32) -> bool {
        let is_it = |traced: &Traced| traced.failed && traced.pid == pid && !traced.is_gone();
        self.processes.get(&pid).is_some_and(is_it) || self.faults.not_shown.iter().any(is_it)
    }
}
