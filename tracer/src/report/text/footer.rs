//! What the figures rest on, below the sites: totals, losses, tier, overhead.

use std::io::{self, Write};

use leakscope_common::Loss;

use super::{BOLD, By, FEW_GOROUTINES, Text, is_few};
use crate::report::model::{Overhead, Process, Report, Site, Tier};
use crate::report::names::{FROM_PROFILE, clean, tier_name};
use crate::units::{blocks, bytes, count, percent, plural, probe_hits};

/// Where the text of the lines begins, columns.
pub(super) const HANG: usize = 10;

/// So long a reason for a tier is shown whole, bytes.
const REASON: usize = 320;

impl Text {
    pub(super) fn footer(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
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
        let few = report.sites.iter().filter(|site| is_few(site)).count() as u64;
        if few > 0 {
            let text = format!(
                "{} place{} where fewer than {FEW_GOROUTINES} goroutines each were started",
                count(few),
                plural(few)
            );
            self.line("Not shown", &text, out)?;
        }
        let is_freed = |site: &&Site| site.inuse_objects == 0 && site.inuse_bytes == 0;
        let freed = report.sites.iter().filter(is_freed).count() as u64;
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
        let mut tier = tier_name(report).to_owned();
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
        self.overhead(report, out)
    }

    fn overhead(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let overhead = &report.overhead;
        if *overhead == Overhead::default() {
            // A profile does not say what it took.
            return Ok(());
        }
        let is_unprobed = |process: &Process| process.probes.is_empty();
        let attached = if report.tier != Tier::Growth
            && overhead.probe_hits == 0
            && report.processes.iter().all(is_unprobed)
        {
            "no allocator is probed".to_owned()
        } else if overhead.duty >= 1.0 {
            "probes attached all the time".to_owned()
        } else {
            format!("probes attached {} of the time", percent(overhead.duty))
        };
        self.line(
            "Overhead",
            &format!(
                "{}, about {} of the traced CPU time (budget {}); {attached}; leakscope itself: {} of one CPU",
                probe_hits(overhead.probe_hits),
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
        if lost.is_empty() && report.tier_reason == FROM_PROFILE {
            return Ok(());
        }
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
