//! The kernel's memory on the page: its levels, and where objects of caches that grow were made.

use std::io::{self, Write};

use super::super::kernel_names::{
    level_figures, level_name, made_for, own_line, site_figures, site_name,
};
use super::super::model::{KernelMemory, KernelObjects, Report};
use super::super::text::frames_lines;
use super::text;
use crate::units::{count, duration, plural};

/// So many levels are shown that do not grow.
const LEVELS_SHOWN: usize = 16;

/// So many sites.
const SITES_SHOWN: usize = 32;

/// The section; nothing where the kernel was not watched.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let Some(kernel) = &report.kernel else {
        return Ok(());
    };
    writeln!(
        out,
        "<section id=\"kernel\"><h2>Kernel memory of the machine</h2><p class=\"dim\">in no total; levels overlap</p>\
         <table><thead><tr><th>what</th><th>how much</th><th>verdict</th><th></th></tr></thead><tbody>"
    )?;
    for (place, level) in kernel.levels.iter().enumerate() {
        if place >= LEVELS_SHOWN && !level.grows() {
            continue;
        }
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td><span class=\"v {verdict}\">{verdict}</span></td><td class=\"dim\">{}</td></tr>",
            text(&level_name(level)),
            text(&level_figures(level)),
            text(&level.verdict_reason),
            verdict = level.verdict.name()
        )?;
    }
    writeln!(out, "</tbody></table>")?;
    sites(report, kernel, out)?;
    for note in &kernel.notes {
        writeln!(out, "<p>{}</p>", text(note))?;
    }
    writeln!(out, "</section>")
}

/// Where objects were made that stay.
fn sites(report: &Report, kernel: &KernelMemory, out: &mut dyn Write) -> io::Result<()> {
    let Some(windows) = &kernel.windows else {
        return Ok(());
    };
    let stays: Vec<&KernelObjects> = kernel.sites.iter().filter(|site| site.stays()).collect();
    writeln!(
        out,
        "<h2>Where objects of caches that grow were made</h2><p class=\"dim\">in {} window{} of {} in {}</p>",
        count(windows.opened),
        plural(windows.opened),
        duration(windows.open_s),
        duration(report.duration_s)
    )?;
    if stays.is_empty() {
        return writeln!(out, "<p>nothing that was made there stays</p>");
    }
    writeln!(
        out,
        "<table><thead><tr><th>what</th><th>how much</th><th>for</th><th>verdict</th><th>stack</th></tr></thead><tbody>"
    )?;
    for site in stays.iter().take(SITES_SHOWN) {
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td><span class=\"v {verdict}\">{verdict}</span> <span class=\"dim\">{}</span></td><td>",
            text(&site_name(site)),
            text(&site_figures(site)),
            text(&made_for(site)),
            text(&site.verdict_reason),
            verdict = site.verdict.name()
        )?;
        let lines = frames_lines(&site.frames);
        let own = own_line(site).map(|frame| frames_lines(std::slice::from_ref(frame)).concat());
        let title = own.or_else(|| lines.first().cloned()).unwrap_or_default();
        write!(out, "<details><summary>{}</summary><ol>", text(&title))?;
        for line in &lines {
            write!(out, "<li>{}</li>", text(line))?;
        }
        writeln!(out, "</ol></details></td></tr>")?;
    }
    writeln!(out, "</tbody></table>")?;
    let more = stays.len().saturating_sub(SITES_SHOWN) as u64;
    if more > 0 {
        writeln!(out, "<p class=\"dim\">and {} more</p>", count(more))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::super::fixtures::kernel_report;
    use super::write;

    #[test]
    fn the_line_that_makes_the_kernel_hold_more_is_not_on_the_page() {
        let mut page = Vec::new();
        write(&kernel_report(), &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for told in [
            "cache sock_inode_cache",
            "9,640 objects of 832 B",
            "/system.slice/server.service",
            "<summary>handle_request",
            "<li>sock_alloc_inode",
        ] {
            assert!(page.contains(told), "{told}: {page}");
        }
        // The process's name has an escape.
        assert!(!page.contains('\x1b'), "{page}");
    }
}
