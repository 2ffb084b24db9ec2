//! What the figures rest on, below the sites: totals, losses, tier, overhead.

use std::io::{self, Write};

use leakscope_common::Loss;

use super::{BOLD, By, Text};
use crate::report::model::Report;
use crate::report::names::clean;
use crate::units::{blocks, bytes, count, percent, plural};

/// Where the text of the lines begins, columns.
pub(super) const HANG: usize = 10;

/// So long a reason for a tier is shown whole, bytes.
const REASON: usize = 320;

impl Text {
    pub(super) fn footer(
        self,
        report: &Report,
        shown: usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let total = report.total();
        self.line(
            "Total",
            &format!(
                "{} in {} at {} site{}, of {} in {} allocated",
                bytes(total.inuse_bytes),
                blocks(total.inuse_objects),
                count(total.sites),
                plural(total.sites),
                bytes(total.alloc_bytes),
                blocks(total.alloc_objects)
            ),
            out,
        )?;
        let omitted = report.omitted;
        // Otherwise they are among those that the line below the sites sums up.
        if omitted.sites > 0 && (self.style.full || self.style.by == By::Tree) {
            self.line(
                "Not shown",
                &format!(
                    "{} site{} with {} in {}",
                    count(omitted.sites),
                    plural(omitted.sites),
                    bytes(omitted.inuse_bytes),
                    blocks(omitted.inuse_objects)
                ),
                out,
            )?;
        }
        let freed = report.sites.len().saturating_sub(shown) as u64;
        if freed > 0 {
            self.line(
                "Freed",
                &format!(
                    "{} site{} where no block survives",
                    count(freed),
                    plural(freed)
                ),
                out,
            )?;
        }
        for suppressed in &report.suppressed {
            let text = format!(
                "{} in {} at {} site{}: {}",
                bytes(suppressed.inuse_bytes),
                blocks(suppressed.inuse_objects),
                count(suppressed.sites),
                plural(suppressed.sites),
                clean(&suppressed.pattern)
            );
            self.line("Suppressed", &text, out)?;
        }
        self.losses(report, out)?;
        let mut tier = report.tier.name().to_owned();
        if !report.tier_reason.is_empty() {
            tier.push_str(": ");
            let reason = clean(&report.tier_reason);
            tier.push_str(if self.style.full {
                &reason
            } else {
                first_parts(&reason)
            });
        }
        self.line("Tier", &tier, out)?;
        let overhead = &report.overhead;
        let attached = if overhead.duty >= 1.0 {
            "all the time".to_owned()
        } else {
            format!("{} of the time", percent(overhead.duty))
        };
        self.line(
            "Overhead",
            &format!(
                "{} probe hits, about {} of the traced CPU time (budget {}); probes attached {attached}; leakscope itself: {} of one CPU",
                count(overhead.probe_hits),
                percent(overhead.target_cpu_fraction),
                percent(overhead.budget),
                percent(overhead.tracer_cores),
            ),
            out,
        )
    }

    /// A line of the footer.
    pub(super) fn line(self, key: &str, value: &str, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{} {value}", self.dress(BOLD, &format!("{key:<9}")))
    }

    fn losses(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let lost: Vec<(&String, u64)> = report
            .losses
            .iter()
            .filter(|&(_, &count)| count > 0)
            .map(|(name, &count)| (name, count))
            .collect();
        if lost.is_empty() {
            return self.line("Losses", "no losses", out);
        }
        let causes = lost.len() as u64;
        let heading = format!("{causes} cause{}", plural(causes));
        self.line("Losses", &heading, out)?;
        for (name, times) in lost {
            let known = Loss::ALL.into_iter().find(|loss| loss.name() == name);
            let sentence = known.map_or_else(|| clean(name), |loss| loss.sentence().into());
            let effect = match known {
                Some(loss) if loss.affects_bytes() => "; the figures may be off by as many blocks",
                _ => "",
            };
            writeln!(out, "  {:>9}  {sentence}{effect}", count(times))?;
        }
        Ok(())
    }
}

/// The first parts of a reason, which semicolons stand between, as far as they are short: of many processes it is long.
fn first_parts(reason: &str) -> &str {
    if reason.len() <= REASON {
        return reason;
    }
    let ends = reason.match_indices("; ").map(|(place, _)| place);
    let end = ends.take_while(|place| *place <= REASON).last();
    end.and_then(|end| reason.get(..end)).unwrap_or(reason)
}
