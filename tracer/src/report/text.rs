//! The report for people, in a terminal or a mail.
//!
//! One screen, unless all is asked for: the processes first, then the sites, those that leak before the large ones, then what
//! the figures rest on: totals, losses, tier, overhead. What has no room is summed up in a line.

mod chart;
mod difference;
mod footer;
mod kernel;
mod layout;
mod process;
mod site;
mod stack;
mod title;
mod tree;

use std::io::{self, Write};
use std::sync::Arc;

use super::model::{Frame, Omitted, Process, Report, Site, SiteKind, Verdict};
use super::names::{UNKNOWN_STACK, incomplete, why_all_empty};
use super::{Difference, Format};
use crate::units::{blocks, bytes, count, plural};
use stack::Line;
pub(crate) use title::{Titles, marks, title_alone};

/// Of so many processes it is said why nothing of theirs survives.
const EMPTY_SHOWN: usize = 20;

/// Lines of a screen whose height is not known.
const SCREEN: usize = 50;

/// Lines for sites, however much there is to say of processes.
const LEAST_ROOM: usize = 10;

/// So many sites that leak have a line, however little room there is.
const LEAKS_SHOWN: usize = 20;

/// So many of the first sites have their stacks, beside those that leak.
const SITES_IN_FULL: usize = 3;

/// Pages take at most so many lines of a screen where other sites have something to show.
const PAGES_ROOM: usize = 14;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text {
    style: Style,
}

/// How the text is dressed, and how much of it there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Style {
    /// Whether to use ANSI colours: headings bold, leaks red, secondary lines dim.
    pub color: bool,
    /// Whether source files are hyperlinks (OSC 8).
    pub links: bool,
    /// Columns of the terminal, which lines are wrapped to; lines are as long as they are where that is `None`.
    pub width: Option<usize>,
    /// Lines of the terminal.
    pub height: Option<usize>,
    /// Whether all is shown, and in full, however long it is.
    pub full: bool,
    /// In what order.
    pub by: By,
    /// Sites, and branches of the tree, with less than this share of the surviving bytes are summed up, percent. Those that
    /// leak are shown.
    pub min_percent: f64,
}

/// In what order surviving memory is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// By site: those that leak first, then the largest.
    #[default]
    Site,
    /// As a tree of callers, from the root.
    Tree,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const YELLOW: &str = "33";

impl Text {
    /// The view in a style.
    #[must_use]
    pub const fn new(style: Style) -> Self {
        Self { style }
    }

    /// Text in one of the colours above (a parameter of ANSI's "select graphic rendition").
    fn dress(self, color: &str, text: &str) -> String {
        if self.style.color {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// What `write` writes, wrapped; lines that are wrapped go on at column `hang`, or below their beginning.
    fn wrapped(
        self,
        hang: Option<usize>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<String> {
        let mut bytes = Vec::new();
        write(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(match self.style.width {
            Some(width) => layout::wrap(&text, width, hang),
            None => text.into_owned(),
        })
    }
}

impl Format for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn media_type(&self) -> &'static str {
        "text/plain; charset=utf-8"
    }

    fn write(&self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let total = report.total();
        let nothing = total.inuse_bytes == 0 && total.inuse_objects == 0;
        let head = self.head(report, nothing)?;
        out.write_all(head.as_bytes())?;
        if nothing {
            let why = self.wrapped(None, |out| self.nothing(report, out))?;
            out.write_all(why.as_bytes())?;
        }
        let mut body = Vec::new();
        if self.style.by == By::Tree {
            let tree = self.wrapped(None, |out| tree::write(*self, report, out))?;
            body.extend_from_slice(tree.as_bytes());
        }
        let kernel_first = process::is_a_machine(report);
        let kernel = if kernel_first {
            String::new()
        } else {
            self.wrapped(None, |out| self.kernel(report, out))?
        };
        if self.style.by == By::Site {
            let foot = self.wrapped(Some(footer::HANG), |out| self.footer(report, out))?;
            let taken = [&head, &kernel, &foot].map(|part| part.lines().count());
            let room = self
                .style
                .height
                .unwrap_or(SCREEN)
                .saturating_sub(taken.iter().sum::<usize>() + 2)
                .max(LEAST_ROOM);
            self.sites(report, room, &mut body)?;
        }
        out.write_all(&body)?;
        out.write_all(kernel.as_bytes())?;
        let foot = self.wrapped(Some(footer::HANG), |out| self.footer(report, out))?;
        out.write_all(foot.as_bytes())
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
        let text = self.wrapped(None, |out| difference::write(*self, difference, out))?;
        out.write_all(text.as_bytes())
    }
}

/// The frames that called the allocator, innermost first.
pub(crate) fn callers(site: &Site) -> &[Arc<Frame>] {
    stack::split(&site.frames).1
}

/// What is there of a site beside what is in use; `None` where that is nothing.
pub(crate) fn reserved(site: &Site) -> Option<String> {
    let more = bytes(site.reserved_bytes);
    let is_untouched = site.kind == SiteKind::Heap;
    (site.reserved_bytes > 0).then(|| {
        if is_untouched {
            format!("{more} more never written to")
        } else {
            format!("{more} more reserved")
        }
    })
}

/// A site's stack without the allocator's own frames, a line each.
pub(crate) fn stack_lines(site: &Site) -> Vec<String> {
    let (own, callers) = stack::split(&site.frames);
    let mut lines: Vec<String> = stack::lines(callers)
        .into_iter()
        .map(|line| match line {
            Line::Frame(text) | Line::Remark(text) => text,
        })
        .collect();
    if lines.is_empty() {
        lines.push(missing(own.is_empty()).to_owned());
    }
    lines.extend(incomplete(site));
    lines
}

/// All frames of a stack of the kernel and a process, a line each.
pub(super) fn frames_lines(frames: &[Arc<Frame>]) -> Vec<String> {
    let line = |frame: &Arc<Frame>| stack::text_in(frame, stack::Look::default());
    frames.iter().map(line).collect()
}

/// What stands where no caller does.
fn missing(no_allocator: bool) -> &'static str {
    if no_allocator {
        UNKNOWN_STACK
    } else {
        "[no caller recorded]"
    }
}

/// Fewer goroutines of a place than this are counted, not listed: every program has some.
const FEW_GOROUTINES: u64 = 8;

/// Sites whose blocks are all freed are counted, not listed.
fn survives(site: &Site) -> bool {
    !is_few(site) && (site.inuse_objects > 0 || site.inuse_bytes > 0)
}

/// Whether it is a place of a few goroutines.
fn is_few(site: &Site) -> bool {
    site.kind == SiteKind::Goroutines && (1..FEW_GOROUTINES).contains(&site.inuse_objects)
}

/// Sites that are shown apart from others, and what they are shares of.
struct Group<'a> {
    sites: Vec<&'a Site>,
    total: u64,
    heading: Option<(&'a str, &'a str)>,
}

impl<'a> Group<'a> {
    /// Those that leak first; of the others the largest, as they come.
    fn new(
        sites: impl Iterator<Item = &'a Site>,
        lost_first: bool,
        total: u64,
        heading: Option<(&'a str, &'a str)>,
    ) -> Self {
        let mut sites: Vec<&Site> = sites.filter(|site| survives(site)).collect();
        sites.sort_by_key(|site| {
            let is_lost = lost_first && site.has_lost();
            (!is_lost, site.verdict != Verdict::Leaking)
        });
        Self {
            sites,
            total,
            heading,
        }
    }
}

impl Text {
    /// What comes before the sites.
    fn head(self, report: &Report, nothing: bool) -> io::Result<String> {
        let mut head = self.wrapped(None, |out| {
            self.heading(report, out)?;
            if process::is_a_machine(report) {
                self.kernel(report, out)?;
                self.rows(report, out)?;
            }
            Ok(())
        })?;
        if self.style.full || !process::is_a_machine(report) {
            head.push_str(&self.wrapped(Some(process::HANG), |out| {
                self.processes(report, nothing, out)
            })?);
        }
        Ok(head)
    }

    fn nothing(self, report: &Report, out: &mut dyn Write) -> io::Result<()> {
        let is_in_use = |process: &Process| process.inuse_objects > 0;
        if report.processes.iter().any(is_in_use) {
            // A report was saved with the largest sites of all processes, and these are others'.
            writeln!(out, "{}", self.dress(BOLD, "None of the sites is here"))?;
            writeln!(
                out,
                "  a report holds as many as `--top` says, the largest of all processes: save it with more"
            )?;
            return writeln!(out);
        }
        writeln!(out, "{}", self.dress(BOLD, "No surviving blocks"))?;
        for why in why_all_empty(&report.processes).iter().take(EMPTY_SHOWN) {
            writeln!(out, "  {why}")?;
        }
        writeln!(out)
    }

    /// The sites, as far as `room` lines go, and a line for the others.
    fn sites(self, report: &Report, room: usize, out: &mut dyn Write) -> io::Result<()> {
        let is_pages = |site: &&Site| site.kind == SiteKind::Pages;
        let held = Group::new(
            report.sites.iter().filter(|site| !is_pages(site)),
            report.lost_at_exit,
            report.total().inuse_bytes,
            None,
        );
        let of_pages = || report.sites.iter().filter(is_pages);
        let touched = Group::new(
            of_pages(),
            false,
            of_pages().fold(0, |sum: u64, site| sum.saturating_add(site.inuse_bytes)),
            Some((
                "Pages, by where they were first written to",
                "an estimate; mappings may hold the same bytes, so they are not in the total",
            )),
        );
        let for_pages = if touched.sites.is_empty() {
            0
        } else if held.sites.is_empty() {
            room
        } else {
            (room / 2).min(PAGES_ROOM)
        };
        let mut rank = 0;
        // What is left out of the report is never pages.
        self.group(
            report,
            &held,
            report.omitted,
            room.saturating_sub(for_pages),
            &mut rank,
            out,
        )?;
        self.group(
            report,
            &touched,
            Omitted::default(),
            for_pages,
            &mut rank,
            out,
        )
    }

    fn group(
        self,
        report: &Report,
        group: &Group<'_>,
        omitted: Omitted,
        room: usize,
        rank: &mut usize,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        if let (Some((title, of)), false) = (group.heading, group.sites.is_empty()) {
            let text = self.wrapped(None, |out| {
                writeln!(out, "{} ({of})\n", self.dress(BOLD, title))
            })?;
            out.write_all(text.as_bytes())?;
        }
        let titles = Titles::new(group.sites.iter().copied());
        let marks = marks(&group.sites);
        // A line for the others, and an empty one.
        let mut room = room.saturating_sub(2);
        let mut rest = omitted;
        let mut is_full = false;
        let mut rows = false;
        let first = *rank;
        let leaks_at = |site: &Site| {
            site.verdict == Verdict::Leaking || (report.lost_at_exit && site.has_lost())
        };
        let mut owed = group.sites.iter().filter(|site| leaks_at(site)).count();
        owed = owed.min(LEAKS_SHOWN);
        for (place, site) in group.sites.iter().enumerate() {
            let leaks = leaks_at(site);
            let share = 100.0 * site.inuse_bytes as f64 / group.total.max(1) as f64;
            // Those that leak come first.
            let is_owed = leaks && owed > 0;
            owed = owed.saturating_sub(usize::from(leaks));
            if (is_full && !is_owed) || (!leaks && share < self.style.min_percent) {
                rest.add(site);
                // Pages are in no sum but in that of what is not shown.
                if site.kind == SiteKind::Pages {
                    rest.inuse_bytes = rest.inuse_bytes.saturating_add(site.inuse_bytes);
                    rest.inuse_objects = rest.inuse_objects.saturating_add(site.inuse_objects);
                }
                continue;
            }
            let shown = site::Shown {
                report,
                site,
                rank: *rank + 1,
                total: group.total,
                title: titles.of(place, site),
                mark: marks.get(place).and_then(Option::as_deref),
            };
            let is_first = *rank - first < SITES_IN_FULL && !process::is_a_machine(report);
            let in_full = self.style.full || leaks || is_first;
            let mut text = self.wrapped(None, |out| self.site(&shown, in_full, out))?;
            let mut lines = text.lines().count();
            if in_full && !self.style.full && *rank > first && lines + owed > room {
                text = self.site_row(&shown);
                lines = 1;
            }
            if !self.style.full && *rank > first && lines > room && !is_owed {
                is_full = true;
                rest.add(site);
                continue;
            }
            rows = lines == 1;
            room = room.saturating_sub(lines);
            *rank += 1;
            out.write_all(text.as_bytes())?;
        }
        if rows {
            writeln!(out)?;
        }
        if rest.sites > omitted.sites || (rest.sites > 0 && !self.style.full) {
            self.rest(rest, group.heading.is_some(), out)?;
        }
        Ok(())
    }

    /// A line for the sites that have none.
    fn rest(self, rest: Omitted, is_of_pages: bool, out: &mut dyn Write) -> io::Result<()> {
        if rest.inuse_bytes == 0 && rest.inuse_objects == 0 {
            return Ok(());
        }
        let how = if self.style.full {
            ""
        } else {
            " (--full shows all that there is)"
        };
        let what = if is_of_pages {
            crate::units::pages(rest.inuse_objects)
        } else {
            blocks(rest.inuse_objects)
        };
        let line = format!(
            "and {} more site{} with {} in {what}{how}",
            count(rest.sites),
            plural(rest.sites),
            bytes(rest.inuse_bytes),
        );
        let line = self.wrapped(None, |out| writeln!(out, "{}\n", self.dress(DIM, &line)))?;
        out.write_all(line.as_bytes())
    }
}

fn verdict_color(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Leaking => RED,
        Verdict::WarmingUp => YELLOW,
        Verdict::Plateau | Verdict::Churn | Verdict::InsufficientData => BOLD,
    }
}
