//! What the kernel holds on the machine, as lines.

use super::detail::{Dress, INDENT, Line, Lines, SHOWN, judged};
use crate::report::{
    KernelLevel, KernelMemory, KernelObjects, clean, function, kernel_path, level_figures,
    level_name, made_for, own_line, site_figures, site_name, unnamed,
};
use crate::units::{duration, plural};

/// So many levels of the kernel's memory that do not grow are shown where they are folded.
const LEVELS_SHOWN: usize = 16;

/// What the kernel holds on the machine: what grows first.
pub(super) fn lines(kernel: Option<&KernelMemory>, is_folded: bool, columns: usize) -> Vec<Line> {
    let mut lines = Lines::new(columns);
    lines.put(Dress::Title, 0, "Kernel memory of the machine");
    let Some(kernel) = kernel else {
        let why = "not watched: with --all and by the daemon it is, else with --kernel";
        lines.put(Dress::Dim, 0, why);
        return lines.lines;
    };
    lines.put(Dress::Dim, 0, "in no total; levels overlap");
    let (growing, others): (Vec<&KernelLevel>, Vec<&KernelLevel>) =
        kernel.levels.iter().partition(|level| level.grows());
    for level in &growing {
        let name = level_name(level);
        let verdict = Dress::Verdict(level.verdict);
        lines.put(verdict, 0, &judged(level.verdict, &level.verdict_reason));
        lines.put(
            Dress::Plain,
            INDENT,
            &format!("{name}  {}", level_figures(level)),
        );
    }
    if growing.is_empty() {
        lines.put(Dress::Plain, 0, "nothing grows beyond noise");
    }
    made(&mut lines, kernel, is_folded);
    lines.title("Others");
    let shown = if is_folded { LEVELS_SHOWN } else { usize::MAX };
    lines.entries(&others, shown, |level| {
        format!("{}  {}", level_name(level), level_figures(level))
    });
    for note in &kernel.notes {
        lines.put(Dress::Dim, 0, &clean(note));
    }
    lines.lines
}

/// Where objects of caches that grow were made.
fn made(lines: &mut Lines, kernel: &KernelMemory, is_folded: bool) {
    let Some(windows) = &kernel.windows else {
        return;
    };
    let title = format!(
        "Where they were made, in windows of {}",
        duration(windows.open_s)
    );
    lines.title(&title);
    let staying: Vec<&KernelObjects> = kernel.sites.iter().filter(|site| site.stays()).collect();
    if staying.is_empty() {
        lines.put(Dress::Plain, INDENT, "nothing that was made there stays");
    }
    let shown = if is_folded { SHOWN } else { usize::MAX };
    for site in staying.iter().take(shown) {
        let text = format!("{}  {}", site_name(site), site_figures(site));
        lines.put(Dress::Plain, INDENT, &text);
        let at = own_line(site).map(|frame| match (function(frame), frame.file.as_deref()) {
            (Some(name), Some(file)) => {
                let line = frame
                    .line
                    .map_or_else(String::new, |line| format!(":{line}"));
                format!(" at {} ({}{line})", clean(name), clean(file))
            }
            (Some(name), None) => format!(" at {}", clean(name)),
            (None, _) => format!(" at {}", unnamed(frame)),
        });
        let text = format!("for {}{}", made_for(site), at.unwrap_or_default());
        lines.put(Dress::Verdict(site.verdict), 2 * INDENT, &text);
        lines.put(
            Dress::Verdict(site.verdict),
            2 * INDENT,
            &judged(site.verdict, &site.verdict_reason),
        );
        lines.put(Dress::Dim, 2 * INDENT, &kernel_path(site));
    }
    let more = staying.len().saturating_sub(shown);
    if more > 0 {
        let text = format!("and {more} more place{}", plural(more as u64));
        lines.put(Dress::Dim, INDENT, &text);
    }
}
