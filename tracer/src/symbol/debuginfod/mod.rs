//! Debug information from servers of the network (debuginfod), asked for by build id: who waits for what, and for how long.
//!
//! Owns the queue, the threads that fetch, and which server is left alone for a while. Where files are kept is `cache`'s to know, what
//! is said over the wire `http`'s. Nothing is asked for unless somebody names servers.

mod cache;
mod http;
mod settings;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::units::{bytes, count, duration, plural};
use cache::{Cache, Kept};
use http::{Answer, Http};
pub use settings::DebuginfodSettings;

/// So many files are fetched at the same time.
const AT_ONCE: usize = 4;

/// A server that failed is not asked for so long.
const REST: Duration = Duration::from_secs(300);

/// Lengths of a build id, bytes: a short one says little (the shortest of linkers have 8), and a long one is none.
const BUILD_ID_BYTES: std::ops::RangeInclusive<usize> = 8..=64;

/// What is known of a file.
pub(super) enum Found {
    /// It is here.
    Here(File),
    /// It may come.
    Awaited,
    /// No server has it, or none can be asked now.
    Nowhere,
}

/// The same, as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Awaited,
    Cached,
    Absent,
    /// No server could be asked, by then.
    Failed(Instant),
}

/// Who asks servers for debug information. Clones share what is known; with the last of them fetching ends.
#[derive(Clone)]
pub struct Debuginfod(Arc<Ending>);

/// Ends what threads do that are not waited for.
struct Ending(Arc<Shared>);

type Say = dyn Fn(&str) + Send + Sync;

struct Shared {
    settings: DebuginfodSettings,
    cache: Cache,
    http: Http,
    say: Box<Say>,
    work: Mutex<Work>,
    changed: Condvar,
    /// How many answers have come.
    answers: AtomicU64,
}

#[derive(Default)]
struct Work {
    files: HashMap<String, State>,
    queue: VecDeque<String>,
    workers: usize,
    /// Servers that failed, by their place in the settings: when last.
    failed: HashMap<usize, Instant>,
    /// Files that are being written.
    partial: HashMap<String, PathBuf>,
    is_over: bool,
}

impl fmt::Debug for Debuginfod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared().settings.fmt(formatter)
    }
}

impl Debuginfod {
    /// Asks as the settings say, and keeps files in a folder. `say` is given what somebody should know, a line at a time.
    pub fn new(
        settings: DebuginfodSettings,
        folder: PathBuf,
        say: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Ending(Arc::new(Shared {
            http: Http::new(settings.timeout, settings.longest()),
            cache: Cache::new(folder),
            settings,
            say: Box::new(say),
            work: Mutex::default(),
            changed: Condvar::new(),
            answers: AtomicU64::new(0),
        }))))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// How long a result may wait for files, all in all.
    pub(super) fn patience(&self) -> Duration {
        self.shared().settings.patience()
    }

    /// How many answers have come: where it is the same, nothing is new.
    pub(super) fn answers(&self) -> u64 {
        self.shared().answers.load(Ordering::Acquire)
    }

    /// Where the debug information of a build id is; it is asked for if that is not known. Never waits for a server.
    pub(super) fn find(&self, build_id: &str) -> Found {
        let shared = self.shared();
        let digits = build_id.len();
        if !digits.is_multiple_of(2) || !BUILD_ID_BYTES.contains(&(digits / 2)) {
            return Found::Nowhere;
        }
        let mut work = shared.work();
        match work.files.get(build_id) {
            Some(State::Awaited) => return Found::Awaited,
            Some(State::Absent) => return Found::Nowhere,
            Some(State::Failed(at)) if at.elapsed() < REST => return Found::Nowhere,
            Some(State::Cached | State::Failed(_)) | None => {}
        }
        let state = match shared.cache.find(build_id) {
            Kept::File(file) => {
                work.files.insert(build_id.to_owned(), State::Cached);
                return Found::Here(file);
            }
            Kept::Absence => State::Absent,
            Kept::Nothing => State::Awaited,
        };
        work.files.insert(build_id.to_owned(), state);
        if state == State::Absent {
            return Found::Nowhere;
        }
        work.queue.push_back(build_id.to_owned());
        if work.workers < AT_ONCE {
            let worker = Arc::clone(shared);
            let begun = std::thread::Builder::new()
                .name("debuginfod".to_owned())
                .spawn(move || worker.serve());
            work.workers += usize::from(begun.is_ok());
            if work.workers == 0 {
                work.queue.clear();
                work.files
                    .insert(build_id.to_owned(), State::Failed(Instant::now()));
                return Found::Nowhere;
            }
        }
        Found::Awaited
    }

    /// Waits until a file has come or cannot come, or the patience is over, which is taken from.
    pub(super) fn wait(&self, build_id: &str, patience: &mut Duration) {
        if patience.is_zero() {
            return;
        }
        let shared = self.shared();
        let begun = Instant::now();
        let is_awaited = |work: &mut Work| work.files.get(build_id) == Some(&State::Awaited);
        let (work, result) = shared
            .changed
            .wait_timeout_while(shared.work(), *patience, is_awaited)
            .unwrap_or_else(PoisonError::into_inner);
        let states = work.files.values();
        let awaited = states.filter(|state| **state == State::Awaited).count() as u64;
        drop(work);
        *patience = patience.saturating_sub(begun.elapsed());
        if result.timed_out() {
            *patience = Duration::ZERO;
            shared.tell(&format!(
                "{} debug file{} had not come after {}: names of theirs may be missing (DEBUGINFOD_MAXTIME says how long to wait)",
                count(awaited),
                plural(awaited),
                duration(self.patience().as_secs_f64())
            ));
        }
    }
}

impl Drop for Ending {
    /// Nothing half fetched stays behind.
    fn drop(&mut self) {
        let mut work = self.0.work();
        work.is_over = true;
        work.queue.clear();
        for (_, path) in work.partial.drain() {
            // It is one that nobody will finish.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, line: &str) {
        (self.say)(&format!("debuginfod: {line}"));
    }

    /// A thread: fetches what is in the queue until there is nothing.
    fn serve(&self) {
        self.cache.clean();
        let mut work = self.work();
        while let Some(build_id) = work.queue.pop_front() {
            drop(work);
            // The libraries read what strangers send.
            let fetched = catch_unwind(AssertUnwindSafe(|| self.fetch(&build_id)));
            work = self.work();
            work.partial.remove(&build_id);
            work.files.insert(
                build_id,
                fetched.unwrap_or_else(|_| State::Failed(Instant::now())),
            );
            self.answers.fetch_add(1, Ordering::Release);
            self.changed.notify_all();
        }
        work.workers -= 1;
    }

    /// Asks one server after the other.
    fn fetch(&self, build_id: &str) -> State {
        let mut all_answered = true;
        for (place, url) in self.settings.urls.iter().enumerate() {
            if self.is_resting(place) {
                all_answered = false;
                continue;
            }
            match self.fetch_from(url, build_id) {
                Ok(Answer::Whole) => return State::Cached,
                Ok(Answer::Absent) => {}
                Ok(Answer::TooLarge) => {
                    self.tell(&format!(
                        "the debug file of build id {build_id} at {} is larger than {} and was left there (DEBUGINFOD_MAXSIZE)",
                        public(url),
                        bytes(self.settings.largest)
                    ));
                    return State::Absent;
                }
                Err(reason) => {
                    all_answered = false;
                    let mut work = self.work();
                    let is_over = work.is_over;
                    let is_first = work.failed.insert(place, Instant::now()).is_none();
                    drop(work);
                    if is_first && !is_over {
                        self.tell(&format!(
                            "{}: {reason}; it is left alone for {}",
                            public(url),
                            duration(REST.as_secs_f64())
                        ));
                    }
                }
            }
        }
        if !all_answered {
            self.cache.forget(build_id);
            return State::Failed(Instant::now());
        }
        self.cache.note_absence(build_id);
        State::Absent
    }

    fn is_resting(&self, server: usize) -> bool {
        let work = self.work();
        let failed = work.failed.get(&server);
        work.is_over || failed.is_some_and(|at| at.elapsed() < REST)
    }

    /// Fetches a file into the cache. What came is believed where it has the build id that was asked for.
    fn fetch_from(&self, url: &str, build_id: &str) -> Result<Answer, String> {
        let mut partial = self.cache.begin(build_id)?;
        {
            let mut work = self.work();
            if work.is_over {
                return Err("leakscope ends".to_owned());
            }
            work.partial
                .insert(build_id.to_owned(), partial.path().to_owned());
        }
        let url = format!("{url}/buildid/{build_id}/debuginfo");
        let answer = self
            .http
            .get(&url, self.settings.largest, partial.as_file_mut())?;
        if answer == Answer::Whole {
            self.cache.keep(build_id, partial)?;
        }
        Ok(answer)
    }
}

/// An address without the password that may stand in it.
fn public(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
