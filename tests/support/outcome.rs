//! A victim traced from "go" to "done", and what most tests ask of the report then.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process::Victim;
use crate::report::{Report, Site, Sum};
use crate::tracer::Tracer;
use crate::truth::Truth;

/// How a line of the truth is found in a report.
pub type Found = fn(&Report, u32, &Truth) -> Sum;

/// The sites whose nearest frame outside the allocator is the function of the truth.
#[must_use]
pub fn by_caller(report: &Report, pid: u32, truth: &Truth) -> Sum {
    report.called_by(pid, &truth.function)
}

/// The sites with the function of the truth anywhere in the stack.
#[must_use]
pub fn by_any_frame(report: &Report, pid: u32, truth: &Truth) -> Sum {
    report.below(pid, &truth.function)
}

/// What leakscope said of a victim, and what the victim said of itself.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// leakscope's report.
    pub report: Report,
    /// The victim's truth.
    pub truths: Vec<Truth>,
    /// The victim.
    pub pid: u32,
}

impl Outcome {
    /// Starts a victim and traces all that it does.
    ///
    /// # Errors
    /// When the victim or leakscope fails.
    pub fn of(program: &Path) -> Result<Self> {
        Self::of_running(Victim::start(program)?, &[])
    }

    /// The same with a victim that was started, and further arguments for leakscope.
    ///
    /// # Errors
    /// See [`Outcome::of`].
    pub fn of_running(mut running: Victim, arguments: &[&str]) -> Result<Self> {
        let pid = running.pid();
        let tracer = Tracer::attach(&running, arguments).context("attaching")?;
        let truths = running.go().context("the victim's truth")?;
        let report = tracer.stop().context("the report")?;
        let status = running.quit().context("the victim's end")?;
        ensure!(status.success(), "the victim ended with {status}");
        Ok(Self {
            report,
            truths,
            pid,
        })
    }

    /// Every line of the truth is met to the byte, and nothing was lost that concerns bytes.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_true(&self, found: impl Fn(&Report, u32, &Truth) -> Sum) {
        let differences = self
            .report
            .differences(&self.truths, |report, truth| found(report, self.pid, truth));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    /// Nothing at all was lost.
    ///
    /// # Panics
    /// When something was.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        let lost: Vec<_> = self
            .report
            .losses
            .iter()
            .filter(|(_, count)| **count > 0)
            .collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    /// Every stack reaches its true end, and where blocks survive it is below one of `roots`.
    ///
    /// # Panics
    /// When one does not.
    #[track_caller]
    pub fn assert_complete(&self, roots: &[&str]) {
        let rootless: Vec<Vec<&str>> = self
            .report
            .sites
            .iter()
            .filter(|site| {
                !site.stack_complete
                    || site.inuse_objects > 0 && !roots.iter().any(|root| site.contains(root))
            })
            .map(Site::names)
            .collect();
        assert!(
            rootless.is_empty(),
            "{rootless:?}; {:?}",
            self.report.losses
        );
    }

    /// The first site with this function in its stack.
    #[must_use]
    pub fn site_of(&self, function: &str) -> Option<&Site> {
        self.report
            .sites
            .iter()
            .find(|site| site.contains(function))
    }
}
