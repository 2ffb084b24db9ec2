//! The kernel's memory for people: what grows on the machine, for whom, and how much there is of each class.

use std::io::{self, Write};

use super::stack::text_in;
use super::{BOLD, DIM, RED, Text, verdict_color};
use crate::report::kernel_names::{
    descriptors, kernel_path, leaks, level_figures, level_name, made_for, others, own_line,
    site_figures, site_name,
};
use crate::report::model::{
    KernelLevel, KernelLevelKind, KernelMemory, KernelObjects, Process, ProcessKernel, Report,
    Verdict,
};
use crate::report::names::{clean, process_name};
use crate::units::{bytes, duration, rate};

/// So many levels that grow are shown, and so many of them that the kernel frees when memory is short.
const GROWING_SHOWN: usize = 8;
const RECLAIMABLE_SHOWN: usize = 3;

/// So many control groups, classes and lines.
const OTHERS_SHOWN: usize = 5;

/// So many sites.
const SITES_SHOWN: usize = 12;

/// So many of each of them on one screen.
const SHORT: usize = 2;

/// Columns before the line of a site, and what stands before its function.
const INDENT: usize = 60;

/// So many processes are named that make the kernel hold more and more.
const PROCESSES_NAMED: usize = 8;

impl Text {
    /// A process's lines, without what its verdict says.
    pub(super) fn process_kernel(
        self,
        kernel: &ProcessKernel,
        verdict: &str,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if let Some(text) = descriptors(kernel) {
            writeln!(out, "  descriptors  {text}")?;
        }
        if let Some(text) = others(kernel) {
            writeln!(out, "  {:<11}{text}", "kernel")?;
        }
        let verdict = clean(verdict);
        for reason in leaks(kernel).iter().filter(|said| !verdict.contains(*said)) {
            writeln!(out, "  {:<11}{}: {reason}", "", self.dress(RED, "leaking"))?;
        }
        Ok(())
    }

    /// The machine's part of a report.
    pub(super) fn kernel(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let Some(kernel) = &report.kernel else {
            return Ok(());
        };
        let title = self.dress(BOLD, "Kernel memory of the machine");
        writeln!(out, "{title} (in no total)\n")?;
        self.growing(kernel, out)?;
        self.made(report, kernel, out)?;
        self.holders(report, out)?;
        let classes: Vec<String> = kernel
            .levels
            .iter()
            .filter(|level| level.kind == KernelLevelKind::Class)
            .map(|level| {
                let trend = rate(level.growth_bytes_per_s).filter(|_| level.grows());
                let trend = trend.map(|rate| format!(" ({rate})")).unwrap_or_default();
                format!("{} {}{trend}", clean(&level.name), bytes(level.bytes))
            })
            .collect();
        if !classes.is_empty() {
            writeln!(out, "  {}", self.dress(DIM, &classes.join(" · ")))?;
        }
        for note in &kernel.notes {
            writeln!(out, "  note: {}", clean(note))?;
        }
        writeln!(out)
    }

    fn growing(self, kernel: &KernelMemory, out: &mut dyn Write) -> io::Result<()> {
        // Slabs are told of by cache.
        let is_told = |level: &&KernelLevel| {
            level.grows()
                && (level.kind != KernelLevelKind::Class || level.verdict == Verdict::Leaking)
        };
        let of = |is_cache: bool, reclaimable: bool| {
            kernel.levels.iter().filter(is_told).filter(move |level| {
                (level.kind == KernelLevelKind::Cache) == is_cache
                    && level.reclaimable == reclaimable
            })
        };
        let most = |all: usize| if self.style.full { all } else { SHORT.min(all) };
        let shown: Vec<&KernelLevel> = of(true, false)
            .take(most(GROWING_SHOWN))
            .chain(of(true, true).take(most(RECLAIMABLE_SHOWN)))
            .chain(of(false, false).take(most(OTHERS_SHOWN)))
            .collect();
        let mut said = "";
        for level in &shown {
            self.level(level, said, out)?;
            said = &level.verdict_reason;
        }
        let all = kernel.levels.iter().filter(is_told).count();
        if all > shown.len() {
            writeln!(out, "  and {} more that grow", all - shown.len())?;
        } else if all == 0 {
            writeln!(out, "  nothing grows beyond noise")?;
        }
        Ok(())
    }

    /// A level; its reason where it is not the one that was `said` just before.
    fn level(self, level: &KernelLevel, said: &str, out: &mut dyn Write) -> io::Result<()> {
        let verdict = self.dress(verdict_color(level.verdict), level.verdict.name());
        let reason = &level.verdict_reason;
        if reason.is_empty() {
            writeln!(out, "  {verdict}")?;
        } else if reason != said {
            writeln!(out, "  {verdict}: {}", clean(reason))?;
        }
        writeln!(
            out,
            "      {}  {}",
            self.dress(BOLD, &level_name(level)),
            level_figures(level)
        )
    }

    /// Where objects of caches that grow are made.
    fn made(self, report: &Report, kernel: &KernelMemory, out: &mut dyn Write) -> io::Result<()> {
        let Some(windows) = &kernel.windows else {
            return Ok(());
        };
        let of = duration(report.duration_s);
        writeln!(
            out,
            "  where objects of caches that grow were made, in windows of {} in {of}:",
            duration(windows.open_s)
        )?;
        let grows = |site: &&KernelObjects| site.stays();
        let most = if self.style.full { SITES_SHOWN } else { SHORT };
        for site in kernel.sites.iter().filter(grows).take(most) {
            self.kernel_site(site, out)?;
        }
        let all = kernel.sites.iter().filter(grows).count();
        match all {
            0 => writeln!(out, "      nothing that was made there stays"),
            _ if all > most => writeln!(out, "      and {} more places", all - most),
            _ => Ok(()),
        }
    }

    fn kernel_site(self, site: &KernelObjects, out: &mut dyn Write) -> io::Result<()> {
        let verdict = self.dress(verdict_color(site.verdict), site.verdict.name());
        writeln!(
            out,
            "      {}  {}  {verdict}",
            self.dress(BOLD, &site_name(site)),
            site_figures(site)
        )?;
        let at = own_line(site).map(|frame| format!(" at {}", text_in(frame, self.look(INDENT))));
        writeln!(
            out,
            "        for {}{}",
            made_for(site),
            self.dress(BOLD, &at.unwrap_or_default())
        )?;
        let path = kernel_path(site);
        if !path.is_empty() {
            writeln!(out, "        {}", self.dress(DIM, &path))?;
        }
        if !site.verdict_reason.is_empty() {
            writeln!(out, "        {}", clean(&site.verdict_reason))?;
        }
        Ok(())
    }

    /// Which processes make the kernel hold more and more.
    fn holders(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let mut holders: Vec<(&Process, &ProcessKernel, bool, f64)> = report
            .processes
            .iter()
            .filter_map(|process| {
                let kernel = process.kernel.as_ref()?;
                let things = kernel.growing().filter(|held| held.bytes.is_none());
                let fastest = things
                    .map(|held| held.growth_per_s_low)
                    .fold(f64::NEG_INFINITY, f64::max);
                fastest
                    .is_finite()
                    .then(|| (process, kernel, kernel.leaks(), fastest))
            })
            .collect();
        let named = if self.style.full {
            PROCESSES_NAMED
        } else {
            SHORT
        };
        holders.sort_by(|one, two| two.2.cmp(&one.2).then(two.3.total_cmp(&one.3)));
        for (place, (process, kernel, leaks, _)) in holders.iter().take(named).enumerate() {
            if place == 0 {
                writeln!(out, "  for these processes:")?;
            }
            let mut told = Vec::new();
            if kernel.descriptors().is_some_and(|held| held.grows()) {
                told.extend(descriptors(kernel).map(|text| format!("descriptors {text}")));
            }
            told.extend(others(kernel));
            let verdict = if *leaks {
                format!("  {}", self.dress(RED, "leaking"))
            } else {
                String::new()
            };
            writeln!(
                out,
                "      {}  {}{verdict}",
                self.dress(BOLD, &process_name(process)),
                told.join(" · ")
            )?;
        }
        Ok(())
    }
}
