//! One line on a terminal while a trace runs.

use std::{io::IsTerminal as _, time::Duration};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::is_dumb_terminal;
use crate::{session::Progress, units};

/// The line; nothing where stderr is no terminal, or one that cannot write over a line.
#[derive(Debug)]
pub(super) struct ProgressLine(Option<ProgressBar>);

impl ProgressLine {
    /// Begins to show; with how long it will take, where that is known.
    pub(super) fn start(length: Option<Duration>) -> Self {
        if !std::io::stderr().is_terminal() || is_dumb_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        let of = length.map(|length| format!(" of {}", units::duration(length.as_secs_f64())));
        let template = format!("{{spinner}} {{elapsed}}{} {{msg}}", of.unwrap_or_default());
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(Some(bar))
    }

    /// Shows the state of the trace.
    pub(super) fn show(&self, progress: &Progress) {
        let Some(bar) = &self.0 else {
            return;
        };
        let bytes = ByteSize::b(progress.inuse_bytes.unsigned_abs());
        let sign = if progress.inuse_bytes < 0 { "-" } else { "" };
        let lost = if progress.lost > 0 {
            format!(", {} lost", progress.lost)
        } else {
            String::new()
        };
        bar.set_message(format!(
            "tracing: {} allocations, {sign}{bytes} in use, {} stacks{lost} (Ctrl-C shows the result)",
            progress.alloc_objects, progress.stacks
        ));
    }

    /// Clears the line, while something else is printed.
    pub(super) fn hide<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
