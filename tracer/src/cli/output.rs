//! Where results and complaints go.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::args::FormatChoice;
use crate::report::{Difference, Format, Report, Style, Text};

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
        self.put(|out| view.write(report, out))
    }

    /// Writes what changed between two reports.
    pub(super) fn write_difference(&mut self, difference: &Difference) -> anyhow::Result<()> {
        let view = self.view()?;
        self.put(|out| view.write_difference(difference, out))
    }

    /// Writes a view that somebody else has made.
    pub(super) fn write_bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.put(|out| out.write_all(bytes))
    }

    fn put(
        &mut self,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        match &mut self.file {
            Some((path, file)) => {
                let place = path.display().to_string();
                replace(file, write).with_context(|| format!("cannot write to {place}"))
            }
            None => to_stdout(write).context("cannot write to stdout"),
        }
    }

    /// Whether colours can be shown.
    pub(super) fn takes_color(&self) -> bool {
        self.file.is_none()
            && io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    fn view(&self) -> anyhow::Result<Box<dyn Format>> {
        Ok(match self.format {
            FormatChoice::Text => Box::new(Text::new(Style {
                color: self.takes_color(),
            })),
            other => <dyn Format>::from_name(other.name())?,
        })
    }
}

/// Replaces a file's contents. A pipe or a device has no length to set.
fn replace(
    file: &mut File,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
        file.rewind()?;
    }
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    writer.flush()
}

/// Writes to stdout; `false` when nobody reads any more.
fn to_stdout(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::new(io::stdout().lock());
    match write(&mut writer).and_then(|()| writer.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A line on stderr.
#[expect(clippy::print_stderr, reason = "this is where complaints go")]
pub(super) fn complain(line: &str) {
    eprintln!("{line}");
}
