//! Where results and complaints go.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufWriter, IsTerminal as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use tempfile::NamedTempFile;

use super::args::{ByChoice, FormatChoice, ViewArguments};
use crate::kernel::stdout_was_closed;
use crate::report::{By, Difference, Format, Report, Style, Text, clean};
use crate::screen::Messages;

/// A place for results: stdout, or a file that was found to be writable before the trace began.
#[derive(Debug)]
pub(super) struct Output {
    place: Place,
    format: FormatChoice,
    view: Option<ViewArguments>,
}

#[derive(Debug)]
enum Place {
    Stdout,
    /// A pipe or a device, or a file in a folder where no other can be made.
    Open(PathBuf, File),
    /// A regular file, which is there only when all of a result is in it.
    Whole(PathBuf),
}

impl Output {
    /// Finds a mistake in the file's name before anything is traced.
    pub(super) fn open(path: Option<&Path>, format: FormatChoice) -> anyhow::Result<Self> {
        let place = match path {
            Some(path) => place(path).with_context(|| {
                format!(
                    "cannot write to {}; name another file with -o",
                    path.display()
                )
            })?,
            None if format == FormatChoice::Pprof && io::stdout().is_terminal() => anyhow::bail!(
                "a pprof profile is binary and stdout is a terminal; name a file with -o"
            ),
            None if stdout_was_closed() => {
                anyhow::bail!("stdout is closed; name a file with -o")
            }
            None => Place::Stdout,
        };
        Ok(Self {
            place,
            format,
            view: None,
        })
    }

    /// With what of a report is to be shown.
    pub(super) fn with_view(mut self, view: ViewArguments) -> Self {
        self.view = Some(view);
        self
    }

    /// Whether results go to a regular file, which takes them at once.
    pub(super) fn is_regular_file(&self) -> bool {
        let metadata = match &self.place {
            Place::Whole(_) => return true,
            Place::Open(_, file) => file.metadata(),
            Place::Stdout => fs::metadata("/proc/self/fd/1"),
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
        let failed = |path: &Path| format!("cannot write to {}", path.display());
        match &mut self.place {
            Place::Open(path, file) => rewrite(file, write).with_context(|| failed(path)),
            Place::Whole(path) => replace(path, write).with_context(|| failed(path)),
            Place::Stdout => to_stdout(write).context("cannot write to stdout"),
        }
    }

    /// How text is to be dressed, and how much of it there is to be.
    pub(super) fn style(&self) -> Style {
        let stdout = io::stdout();
        let is_terminal = matches!(self.place, Place::Stdout) && stdout.is_terminal();
        let knows_escapes = is_terminal && !is_dumb_terminal();
        let size = is_terminal
            .then(|| rustix::termios::tcgetwinsize(stdout).ok())
            .flatten();
        let lines = |number: u16| (number > 0).then_some(usize::from(number));
        let mut style = Style {
            color: is_terminal && stdout_takes_color(),
            links: knows_escapes && takes_links(),
            width: size.and_then(|size| lines(size.ws_col)),
            // The prompt comes below.
            height: size.and_then(|size| lines(size.ws_row.saturating_sub(1))),
            ..Style::default()
        };
        if let Some(view) = &self.view {
            style.full = view.full;
            style.min_percent = view.min_percent.unwrap_or_default();
            style.by = match view.by {
                ByChoice::Site => By::Site,
                ByChoice::Tree => By::Tree,
            };
        }
        style
    }

    fn view(&self) -> anyhow::Result<Box<dyn Format>> {
        Ok(match self.format {
            FormatChoice::Text => Box::new(Text::new(self.style())),
            other => <dyn Format>::from_name(other.name())?,
        })
    }
}

/// Whether stdout is a terminal that can show colours, and nobody asked for none.
pub(super) fn stdout_takes_color() -> bool {
    io::stdout().is_terminal()
        && !is_dumb_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether the terminal says that it knows no escape sequences (`TERM=dumb`), such as an editor's.
pub(super) fn is_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Whether the terminal is not one of those that show a hyperlink's address as text: the kernel's own, and GNU screen.
fn takes_links() -> bool {
    match std::env::var("FORCE_HYPERLINK").as_deref() {
        Ok("0") => false,
        Ok(wanted) if !wanted.is_empty() => true,
        _ => {
            let term = std::env::var("TERM").unwrap_or_default();
            let is_multiplexed = std::env::var_os("TMUX").is_some();
            !(term == "linux" || term.starts_with("vt") || term.starts_with("screen"))
                || is_multiplexed
        }
    }
}

/// How a file is to be written.
fn place(path: &Path) -> io::Result<Place> {
    let is_of_kernel = ["/dev", "/proc"]
        .iter()
        .any(|folder| path.starts_with(folder));
    let whole = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() || is_of_kernel => None,
        // Where a link leads to, not the link, is replaced.
        Ok(_) => Some(path.canonicalize()?),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            Some(path.to_owned())
        }
        Err(_) => None,
    };
    if let Some(whole) = whole {
        let found = if whole.exists() {
            OpenOptions::new().write(true).open(&whole).map(Some)?
        } else {
            None
        };
        match (beside(&whole), found) {
            (Ok(_), _) => return Ok(Place::Whole(whole)),
            (Err(_), Some(file)) => return Ok(Place::Open(path.to_owned(), file)),
            (Err(error), None) => return Err(error),
        }
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    Ok(Place::Open(path.to_owned(), file))
}

/// A file in the same folder, which is removed unless it takes the place of the one beside it.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .prefix(".leakscope-")
        // As any new file: the user's mask takes away from it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        // The error's own text names a file that nobody asked for.
        .map_err(|error| {
            let is_there = folder.is_dir();
            let folder = folder.display();
            let why = match error.kind() {
                io::ErrorKind::NotFound if !is_there => format!("there is no folder {folder}"),
                // So says a file system that makes files by itself.
                io::ErrorKind::NotFound => format!("no file can be made in {folder}"),
                kind => format!("no file can be made in {folder}: {kind}"),
            };
            io::Error::new(error.kind(), why)
        })
}

/// Puts a file in the place of another as soon as it is complete.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    let file = beside(path)?;
    if let Ok(before) = fs::metadata(path) {
        file.as_file().set_permissions(before.permissions())?;
        // Only root can give files away; for others it is theirs already.
        let _ = fchown(file.as_file(), Some(before.uid()), Some(before.gid()));
    }
    let mut writer = BufWriter::new(file.as_file());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.persist(path)?;
    Ok(())
}

/// Writes what was opened anew. A pipe or a device has no length to set.
fn rewrite(
    file: &mut File,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    let is_file = file.metadata()?.is_file();
    if is_file {
        file.set_len(0)?;
        file.rewind()?;
    }
    let mut writer = BufWriter::new(&mut *file);
    let written = write(&mut writer).and_then(|()| writer.flush());
    // What did not get through is not to follow.
    drop(writer.into_parts());
    if is_file && written.is_err() {
        // A part of a result is worse than none.
        file.set_len(0)?;
    }
    written
}

/// Writes to stdout. That nobody reads any more is no error; that it was closed from the beginning is one.
pub(super) fn to_stdout(
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    if stdout_was_closed() {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut writer = BufWriter::new(io::stdout().lock());
    match write(&mut writer).and_then(|()| writer.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Who is told of complaints instead of stderr, while the terminal shows something else.
static HOLDER: Mutex<Option<Messages>> = Mutex::new(None);

/// A text on stdout. A reader that went away is no error.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    to_stdout(|out| out.write_all(text.as_bytes())).context("cannot write to stdout")
}

/// A line on stderr.
#[expect(clippy::print_stderr, reason = "this is where complaints go")]
pub(super) fn complain(text: &str) {
    let holder = HOLDER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for line in text.split('\n') {
        match &holder {
            Some(holder) => holder.say(line),
            None => eprintln!("{}", clean(line)),
        }
    }
}

/// Has complaints kept until [`let_complaints_go`].
pub(super) fn hold_complaints(messages: &Messages) {
    *HOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(messages.clone());
}

/// Complains of all that was kept.
pub(super) fn let_complaints_go() {
    let holder = HOLDER.lock().unwrap_or_else(PoisonError::into_inner).take();
    for line in holder.iter().flat_map(Messages::lines) {
        complain(&line);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

    use super::{FormatChoice, Output};

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_result_that_cannot_be_finished_leaves_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let mut output = Output::open(Some(&path), FormatChoice::Json).unwrap();
        assert_eq!(names(folder.path()).len(), 0);
        let full = |out: &mut dyn io::Write| {
            out.write_all(&[b'x'; 100_000])?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert!(output.put(full).is_err());
        assert_eq!(names(folder.path()).len(), 0);
        output.write_bytes(b"{}").unwrap();
        assert!(output.put(full).is_err());
        assert_eq!(names(folder.path()), ["report.json"]);
        assert_eq!(fs::read(&path).unwrap(), b"{}");
    }

    #[test]
    fn a_folder_in_which_nothing_can_be_made_was_said_not_to_be_there() {
        let said = |path: &str| {
            let opened = Output::open(Some(path.as_ref()), FormatChoice::Text);
            format!("{:#}", opened.unwrap_err())
        };
        let closed = said("/proc/x");
        assert!(closed.contains("no file can be made in /proc"), "{closed}");
        assert!(!closed.contains("there is no folder"), "{closed}");
        assert!(said("/no/such/x").contains("there is no folder /no/such"));
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode_and_the_links_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&path, "older and longer").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut output = Output::open(Some(&link), FormatChoice::Text).unwrap();
        output.write_bytes(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }
}
