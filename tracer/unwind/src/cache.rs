//! Tables by file identity: in memory, shared, and optionally in a directory that is passed in. Knows no processes; the only
//! I/O of this room, and all of it in that directory.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use hashbrown::HashMap;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};

use super::build::{BuildOptions, UnwindError};
use super::disk;
use super::elf::header;
use super::table::Table;

/// The longest build-id that is taken for one, in bytes. Linkers write 8 to 20; 64 would be a SHA-512.
pub(super) const MAX_BUILD_ID: usize = 64;

/// What identifies a file's contents.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The descriptor of its `NT_GNU_BUILD_ID` note; see [`build_id`].
    BuildId(Box<[u8]>),
    /// A file without build-id, as `stat(2)` tells it. Not kept on disk: another boot may give the numbers to another file.
    File {
        /// `st_dev`.
        device: u64,
        /// `st_ino`.
        inode: u64,
        /// `st_size` in bytes.
        size: u64,
        /// `st_mtim` in nanoseconds since the epoch.
        modified: i64,
    },
}

/// Which file it is and when anything about it last changed, as `stat(2)` tells it. Between runs, a table is believed only of a file
/// for which all of it is as it was: a build-id is whatever the file claims, and who may write one file could speak for another
/// with it. Nobody can set a file's change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileState {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_size` in bytes.
    pub size: u64,
    /// `st_mtim` in nanoseconds since the epoch.
    pub modified: i64,
    /// `st_ctim` in nanoseconds since the epoch.
    pub changed: i64,
}

/// A file whose table is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What identifies its contents in this run.
    pub key: Key,
    /// What identifies it between runs, as it was before it was read; `None` where that is not known, and nothing is kept on disk.
    pub state: Option<FileState>,
}

/// The build-id of a 64-bit x86_64 ELF file: the descriptor of the first `NT_GNU_BUILD_ID` note in its `PT_NOTE` segments.
/// `None` if it has none, or one that is empty or longer than 64 bytes.
#[must_use]
pub fn build_id(file: &[u8]) -> Option<&[u8]> {
    let (header, endian) = header(file).ok()?;
    let programs = header.program_headers(endian, file).ok()?;
    programs.iter().find_map(|program| {
        let mut notes = program.notes(endian, file).ok()??;
        while let Ok(Some(note)) = notes.next() {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
                let id = note.desc();
                return (1..=MAX_BUILD_ID).contains(&id.len()).then_some(id);
            }
        }
        None
    })
}

/// What is known of a file: its table, or why it has none.
type Outcome = Result<Arc<Table>, UnwindError>;

/// Unwind tables, shared by key.
///
/// A file that cannot be unwound is remembered as well, so that it is read once. Tables stay until
/// [`Cache::release_unused`] is called.
#[derive(Debug)]
pub struct Cache {
    options: BuildOptions,
    directory: Option<PathBuf>,
    /// Whether something was written there since it was last tidied.
    has_written: AtomicBool,
    tables: Mutex<HashMap<Key, Outcome>>,
}

impl Cache {
    /// An empty cache in memory only.
    #[must_use]
    pub fn new(options: BuildOptions) -> Self {
        Self {
            options,
            directory: None,
            has_written: AtomicBool::new(false),
            tables: Mutex::new(HashMap::new()),
        }
    }

    /// Also keeps tables of files with a build-id in `directory`, which must exist. Files in it are believed if they are well
    /// formed: it must not be writable by others. A file that cannot be read, is corrupt or of another version is ignored and
    /// replaced; one that cannot be written is not there, nothing more. When they take more than 64 MiB together, the oldest go.
    #[must_use]
    pub fn with_directory(mut self, directory: PathBuf) -> Self {
        self.directory = Some(directory);
        self
    }

    /// What is in memory for a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Result<Arc<Table>, UnwindError>> {
        self.tables().get(key).cloned()
    }

    /// A file's table: from memory, from the directory, or made by `make`, which is called only if it is needed.
    ///
    /// Two threads that ask for the same new file at once may both build it; both get the same table.
    ///
    /// # Errors
    /// Why `make` could not be done, or why the file has no table ([`UnwindError`]); the latter is remembered.
    pub fn get_or_build<E: From<UnwindError>>(
        &self,
        wanted: &Wanted,
        make: impl FnOnce(&BuildOptions) -> Result<Result<Table, UnwindError>, E>,
    ) -> Result<Arc<Table>, E> {
        let outcome = self.get_or_build_with(wanted, make, self.options);
        self.tidy();
        outcome
    }

    /// Keeps the directory small: once after all that was written, for it is listed as a whole.
    fn tidy(&self) {
        if let Some(directory) = &self.directory
            && self.has_written.swap(false, Ordering::Relaxed)
        {
            // What cannot be removed stays, and is met again.
            let _ = disk::tidy(directory);
        }
    }

    fn get_or_build_with<E: From<UnwindError>>(
        &self,
        wanted: &Wanted,
        make: impl FnOnce(&BuildOptions) -> Result<Result<Table, UnwindError>, E>,
        options: BuildOptions,
    ) -> Result<Arc<Table>, E> {
        if let Some(known) = self.get(&wanted.key) {
            return known.map_err(E::from);
        }
        let kept = self.directory.as_deref().and_then(|directory| {
            let file = disk::TableFile::new(wanted, options.kept)?;
            Some((directory, file))
        });
        let stored = kept
            .as_ref()
            .and_then(|(directory, file)| file.read(directory));
        let outcome = match stored {
            Some(table) => Ok(Arc::new(table)),
            None => {
                let built = make(&options)?.map(Arc::new);
                // A full or read-only disk costs the next start some time, nothing more.
                if let (Ok(table), Some((directory, file))) = (&built, &kept)
                    && file.write(directory, table).is_ok()
                {
                    self.has_written.store(true, Ordering::Relaxed);
                }
                built
            }
        };
        self.tables()
            .entry(wanted.key.clone())
            .or_insert(outcome)
            .clone()
            .map_err(E::from)
    }

    /// [`Cache::get_or_build`] for many files at once, on at most `threads` threads; the results are in the order of `requests`.
    /// At most `threads` files are held in memory at a time.
    pub fn build_many<R: Sync, E: From<UnwindError> + Send>(
        &self,
        requests: &[(Wanted, R)],
        make: impl Fn(&R, &BuildOptions) -> Result<Result<Table, UnwindError>, E> + Sync,
        threads: NonZeroUsize,
    ) -> Vec<Result<Arc<Table>, E>> {
        let threads = threads.get().min(requests.len());
        // The processors are shared between the files; only the last few large ones could use more.
        let options = BuildOptions {
            threads: match self.options.threads {
                None if threads > 1 => Some(NonZeroUsize::MIN),
                chosen => chosen,
            },
            ..self.options
        };
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(requests.len()));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((wanted, request)) = requests.get(index) else {
                    return;
                };
                let make = |options: &BuildOptions| make(request, options);
                let result = self.get_or_build_with(wanted, make, options);
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((index, result));
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // Where no thread can be started, this one does the work.
                let _ = thread::Builder::new()
                    .name("unwind-tables".to_owned())
                    .spawn_scoped(scope, work);
            }
            work();
        });
        self.tidy();
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    /// Forgets the tables that nobody else holds, and the files that have none. Returns how many tables were forgotten.
    pub fn release_unused(&self) -> usize {
        let mut released = 0;
        self.tables().retain(|_, outcome| match outcome {
            Ok(table) => {
                let used = Arc::strong_count(table) > 1;
                released += usize::from(!used);
                used
            }
            Err(_) => false,
        });
        released
    }

    /// Number and bytes of the tables in memory.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        let tables = self.tables();
        let built = tables.values().flatten();
        built.fold((0, 0), |(count, bytes), table| {
            (count + 1, bytes + table.bytes())
        })
    }

    fn tables(&self) -> MutexGuard<'_, HashMap<Key, Outcome>> {
        // The map is whole between any two statements of ours.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
