//! Where results and complaints go.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::args::FormatChoice;
use crate::report::{Format, Report, Style, Text};

/// A place for results: stdout, or a file that was opened before the trace began.
#[derive(Debug)]
pub(super) struct Output {
    file: Option<(PathBuf, File)>,
    format: FormatChoice,
}

impl Output {
    /// Opens the file, so that a mistake is found before anything is traced.
    pub(super) fn open(path: Option<&Path>, format: FormatChoice) -> anyhow::Result<Self> {
        let file = path
            .map(|path| {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .with_context(|| {
                        format!(
                            "cannot write to {}; name another file with -o",
                            path.display()
                        )
                    })?;
                anyhow::Ok((path.to_owned(), file))
            })
            .transpose()?;
        if file.is_none() && format == FormatChoice::Pprof && io::stdout().is_terminal() {
            anyhow::bail!(
                "a pprof profile is binary and stdout is a terminal; name a file with -o"
            );
        }
        Ok(Self { file, format })
    }

    /// Whether results go to a regular file, which takes them at once.
    pub(super) fn is_regular_file(&self) -> bool {
        let metadata = match &self.file {
            Some((_, file)) => file.metadata(),
            None => std::fs::metadata("/proc/self/fd/1"),
        };
        metadata.is_ok_and(|metadata| metadata.is_file())
    }

    /// Writes a report. A reader that went away is no error.
    pub(super) fn write(&mut self, report: &Report) -> anyhow::Result<()> {
        let view = self.view()?;
        let result = match &mut self.file {
            Some((path, file)) => {
                let place = path.display().to_string();
                replace(file, view.as_ref(), report)
                    .with_context(|| format!("cannot write to {place}"))
                    .map(|()| true)
            }
            None => to_stdout(view.as_ref(), report).context("cannot write to stdout"),
        };
        result.map(|_| ())
    }

    fn view(&self) -> anyhow::Result<Box<dyn Format>> {
        let color = self.file.is_none()
            && io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(match self.format {
            FormatChoice::Text => Box::new(Text::new(Style { color })),
            other => <dyn Format>::from_name(other.name())?,
        })
    }
}

/// Replaces a file's contents. A pipe or a device has no length to set.
fn replace(file: &mut File, view: &dyn Format, report: &Report) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
        file.rewind()?;
    }
    let mut writer = BufWriter::new(file);
    view.write(report, &mut writer)?;
    writer.flush()
}

/// Writes to stdout; `false` when nobody reads any more.
fn to_stdout(view: &dyn Format, report: &Report) -> io::Result<bool> {
    let mut writer = BufWriter::new(io::stdout().lock());
    match view
        .write(report, &mut writer)
        .and_then(|()| writer.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// A line on stderr.
#[expect(clippy::print_stderr, reason = "this is where complaints go")]
pub(super) fn complain(line: &str) {
    eprintln!("{line}");
}
