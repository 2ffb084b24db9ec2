//! The readers from the tracer's side: they are started, asked, given up when they take too long or end, and started anew. Knows nothing
//! of what they are asked.

use std::{
    cell::Cell,
    collections::HashMap,
    fs::{File, Metadata},
    io,
    num::NonZeroUsize,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    SUBCOMMAND, Unread,
    wire::{self, Heard},
};
use crate::kernel::{is_readable, nowhere, ordinary_priority, own_memory, spent_by};

/// The time for an answer about a small file. What is damaged on purpose takes no longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// For each so many bytes that a file has on its disk there is a second more.
const BYTES_IN_A_SECOND: u64 = 8 << 20;
/// On a busy machine it may take so many times as long, if the reader has not had that much processor time.
const MOST_TIMES: u32 = 3;
/// Of a processor, a reader may take so many times as long over files that only root can write: it is the machine that is slow.
const TRUSTED_TIMES: u32 = 10;
/// `S_IWGRP | S_IWOTH`.
const OTHERS_WRITE: u32 = 0o022;
/// However large the files are.
const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// So many files of a user may end or hang a reader; then nothing of his is read for a while.
const MOST_STRIKES: u32 = 8;
const PAUSE: Duration = Duration::from_secs(60);

/// So many readers read files at the same time, at most, where there are as many processors.
const MOST_AT_ONCE: usize = 4;

/// So many heaps are walked at the same time: each is asked for by a thread of its own, and a process that is held where it ends waits
/// for none of the others.
const WALKS_AT_ONCE: usize = 4;

/// So many runtimes are looked at at the same time.
const RUNTIMES_AT_ONCE: usize = 4;

/// A reader that may write to less memory than this, bytes, is not started: the largest file that is read at once (1.5 GiB, most of
/// which is a hole and takes none), and what is made of it.
const LEAST_MEMORY: u64 = 2 << 30;

/// A reader that has taken more memory of its own than this, bytes, and keeps it when it has answered is ended; the next question starts
/// another.
const MOST_AT_REST: u64 = 128 << 20;

/// Nothing is asked back more often for one question.
const MOST_CALLS: u32 = 1 << 22;

thread_local! {
    static SPENT_HERE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The processor time that readers have taken for this thread.
pub(super) fn spent_here() -> Duration {
    SPENT_HERE.get()
}

/// On what terms something is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The longest answer that is believed, bytes.
    pub(super) most: usize,
    /// How long a piece of work may take, up to the answer or what is asked back; `None`: by the files.
    pub(super) patience: Option<Duration>,
    /// The memory that it may take, bytes, where that is more than usual.
    pub(super) memory: u64,
}

/// What a reader is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// What is in files: asked by the tracing thread, which waits for no names.
    Files,
    /// Names, for reports. There is one, which remembers what it has read.
    Names,
    /// What is in the memory of processes.
    Memory,
    /// What runtimes keep there: answers come soon, and the tracing thread waits for some.
    Runtimes,
}

/// All readers.
#[derive(Debug)]
pub(super) struct Readers {
    program: PathBuf,
    files: Vec<Mutex<Slot>>,
    names: Mutex<Slot>,
    memory: [Mutex<Slot>; WALKS_AT_ONCE],
    runtimes: [Mutex<Slot>; RUNTIMES_AT_ONCE],
    /// By user: files that ended or hung a reader, and when one did last.
    strikes: Mutex<HashMap<u32, (u32, Instant)>>,
    /// The processor time of all, up to their last answers, nanoseconds.
    spent: AtomicU64,
    /// Readers that were given up.
    given_up: AtomicU64,
}

/// The place of a reader.
#[derive(Debug, Default)]
struct Slot {
    running: Option<Running>,
    /// Those that were killed and have not ended yet: what waits for a disk does so uninterruptibly.
    ending: Vec<Child>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    socket: UnixStream,
    /// It has answered before: whether it is the question that it ends over is not certain.
    has_answered: bool,
    /// Its processor time up to its last answer.
    spent: Duration,
    /// The memory that it may write to, bytes.
    memory: u64,
}

impl Readers {
    /// Those that this program is; none runs yet.
    pub(super) fn new(program: PathBuf) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            program,
            files: (0..processors.min(MOST_AT_ONCE))
                .map(|_| Mutex::default())
                .collect(),
            names: Mutex::default(),
            memory: Default::default(),
            runtimes: Default::default(),
            strikes: Mutex::default(),
            spent: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
        }
    }

    /// The answer of a reader; `reply` gives what it asks back.
    pub(super) fn ask(
        &self,
        role: Role,
        question: &[u8],
        files: &[&File],
        terms: Terms,
        reply: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Result<Vec<u8>, Unread> {
        let owner = files.first().and_then(|file| file.metadata().ok());
        let owner = owner.map_or(0, |metadata| metadata.uid());
        if self.is_on_pause(owner) {
            return Err(Unread::Paused);
        }
        let patience = terms.patience.map_or_else(|| patience(files), Patience::of);
        let terms = (terms, patience);
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        let mut slot = self.slot(role);
        let mut answer = self.ask_one(&mut slot, question, &fds, terms, reply);
        if let Err((Unread::Ended, true)) = answer {
            // One that had read much before may have had no memory left: another gets the same question.
            answer = self.ask_one(&mut slot, question, &fds, terms, reply);
        }
        drop(slot);
        answer.map_err(|(why, _)| {
            if owner != 0 && matches!(why, Unread::Ended | Unread::Late(_)) {
                let mut strikes = lock(&self.strikes);
                let (count, at) = strikes.entry(owner).or_insert((0, Instant::now()));
                *count = count.saturating_add(1);
                *at = Instant::now();
            }
            why
        })
    }

    /// The answer of the reader in a slot; or why there is none, and whether it had answered before.
    fn ask_one(
        &self,
        slot: &mut Slot,
        question: &[u8],
        files: &[BorrowedFd<'_>],
        (terms, patience): (Terms, Patience),
        reply: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Result<Vec<u8>, (Unread, bool)> {
        if slot
            .running
            .as_ref()
            .is_some_and(|running| running.memory < terms.memory)
        {
            self.end(slot);
        }
        let running = match &mut slot.running {
            Some(running) => running,
            none => {
                let started = start_for_good(&self.program, terms.memory.max(LEAST_MEMORY));
                none.insert(
                    started.map_err(|error| (Unread::NotStarted(error.to_string()), false))?,
                )
            }
        };
        let has_answered = std::mem::replace(&mut running.has_answered, true);
        let deadline = Instant::now() + patience.usual;
        // The reader ends itself where nobody is left to do it.
        let seconds = u32::try_from(patience.most.as_secs()).unwrap_or(u32::MAX);
        let answer = wire::ask(
            &running.socket,
            question,
            files,
            seconds.saturating_mul(MOST_TIMES).saturating_add(2),
            deadline,
        )
        .and_then(|()| self.hear_out(running, terms.most, patience, reply));
        self.count_time(running);
        if answer.is_ok() && own_memory(running.child.id()) > MOST_AT_REST {
            // What it remembers is read again when it is asked for.
            self.end(slot);
        }
        answer.map_err(|error| {
            self.give_up(slot);
            let why = match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unread::Late(patience.usual),
                io::ErrorKind::InvalidData => Unread::TooLong,
                _ => Unread::Ended,
            };
            (why, has_answered)
        })
    }

    /// Replies to what a reader asks back until it answers.
    fn hear_out(
        &self,
        running: &mut Running,
        most: usize,
        patience: Patience,
        reply: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> io::Result<Vec<u8>> {
        for _ in 0..MOST_CALLS {
            wait(running, patience)?;
            let call = match wire::hear(&running.socket, most, Instant::now() + patience.usual)? {
                Heard::Answer(answer) => return Ok(answer),
                Heard::Call(call) => call,
            };
            self.count_time(running);
            let replied = reply(&call);
            wire::reply(&running.socket, &replied, Instant::now() + patience.usual)?;
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Ends the reader in a slot over what it was asked; the next question starts another.
    fn give_up(&self, slot: &mut Slot) {
        if slot.running.is_some() {
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
        self.end(slot);
    }

    fn end(&self, slot: &mut Slot) {
        if let Some(mut running) = slot.running.take() {
            self.count_time(&mut running);
            // It may have ended by itself.
            let _ = running.child.kill();
            slot.ending.push(running.child);
        }
        slot.ending
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// A slot for a role: one that nobody asks now, if there is one.
    fn slot(&self, role: Role) -> MutexGuard<'_, Slot> {
        let slots = match role {
            Role::Names => return lock(&self.names),
            Role::Files => self.files.as_slice(),
            Role::Memory => &self.memory,
            Role::Runtimes => &self.runtimes,
        };
        let free = slots.iter().find_map(|slot| match slot.try_lock() {
            Ok(slot) => Some(slot),
            Err(TryLockError::Poisoned(slot)) => Some(slot.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        free.unwrap_or_else(|| lock(slots.first().unwrap_or(&self.names)))
    }

    fn is_on_pause(&self, owner: u32) -> bool {
        let mut strikes = lock(&self.strikes);
        let Some((count, at)) = strikes.get(&owner) else {
            return false;
        };
        if at.elapsed() >= PAUSE {
            strikes.remove(&owner);
            return false;
        }
        *count >= MOST_STRIKES
    }

    /// Adds what a reader has taken since its last answer.
    fn count_time(&self, running: &mut Running) {
        let now = spent_by(running.child.id());
        let since = now.saturating_sub(running.spent);
        running.spent = now.max(running.spent);
        SPENT_HERE.set(SPENT_HERE.get().saturating_add(since));
        let since = u64::try_from(since.as_nanos()).unwrap_or(0);
        self.spent.fetch_add(since, Ordering::Relaxed);
    }

    /// The processor time of all readers.
    pub(super) fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    /// How many readers were given up.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A slot whose user ended in the middle of a question has an answer that nobody waits for: it is too short, or of another form, and
    // the reader is given up over it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a reader answers, or has had its time: so much of a processor, or a while in which it got little of one.
fn wait(running: &Running, patience: Patience) -> io::Result<()> {
    let begun = Instant::now();
    let mut pause = patience.usual;
    while !is_readable(running.socket.as_fd(), pause)? {
        let spent = spent_by(running.child.id()).saturating_sub(running.spent);
        let waited = begun.elapsed();
        let is_idle = waited >= patience.usual.saturating_mul(MOST_TIMES)
            && spent.saturating_mul(MOST_TIMES) <= waited;
        if waited >= patience.usual && (spent >= patience.most || is_idle) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        pause = patience.usual / 8;
    }
    Ok(())
}

/// How long a reader may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patience {
    /// On a machine of today.
    usual: Duration,
    /// Of a processor, at the most.
    most: Duration,
}

impl Patience {
    /// For what takes no longer on any machine.
    fn of(usual: Duration) -> Self {
        Self { usual, most: usual }
    }
}

/// The time for an answer about some files, by what they take on their disks: holes take nobody's time. Files that only root can write are as they should be,
/// and slow machines may take longer over them.
fn patience(files: &[&File]) -> Patience {
    let found: Vec<Metadata> = files
        .iter()
        .filter_map(|file| file.metadata().ok())
        .collect();
    let bytes = found
        .iter()
        .map(|metadata| metadata.blocks().saturating_mul(512))
        .fold(0, u64::saturating_add);
    let usual = PATIENCE
        .saturating_add(Duration::from_secs(bytes / BYTES_IN_A_SECOND))
        .min(MOST_PATIENCE);
    let is_roots = |metadata: &Metadata| metadata.uid() == 0 && metadata.mode() & OTHERS_WRITE == 0;
    let are_trusted = !found.is_empty() && found.len() == files.len() && found.iter().all(is_roots);
    let times = if are_trusted { TRUSTED_TIMES } else { 1 };
    Patience {
        usual,
        most: usual.saturating_mul(times).min(MOST_PATIENCE),
    }
}

/// A reader that is to be started, and to whom.
type Order = (PathBuf, u64, Sender<io::Result<Running>>);

/// Has a reader started by a thread that lives as long as we do: a reader ends with the thread that started it, even one that is stopped.
fn start_for_good(program: &Path, memory: u64) -> io::Result<Running> {
    static ORDERS: OnceLock<Option<Mutex<Sender<Order>>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, ordered) = channel::<Order>();
        let work = move || {
            ordinary_priority();
            for (program, memory, to) in ordered {
                // Whoever wanted it may be gone.
                let _ = to.send(start(&program, memory));
            }
        };
        let thread = thread::Builder::new().name("readers".to_owned());
        thread.spawn(work).ok().map(|_| Mutex::new(orders))
    });
    let gone = || io::Error::other("no thread can be made");
    let (to, started) = channel();
    let order = (program.to_owned(), memory, to);
    lock(orders.as_ref().ok_or_else(gone)?)
        .send(order)
        .map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

/// Starts a reader. It closes the descriptors that it has of us itself: they are few, and marked to be closed anyway.
fn start(program: &Path, memory: u64) -> io::Result<Running> {
    let (socket, its) = UnixStream::pair()?;
    let child = Command::new(program)
        .arg0("leakscope")
        .args([SUBCOMMAND, &memory.to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(its))
        .stdout(nowhere()?)
        .stderr(nowhere()?)
        .spawn()?;
    Ok(Running {
        child,
        socket,
        has_answered: false,
        spent: Duration::ZERO,
        memory,
    })
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{MOST_STRIKES, PATIENCE, Readers, Role, Terms, patience};
    use crate::apart::Unread;
    use std::{fs::File, os::unix::fs::PermissionsExt as _, path::PathBuf};

    fn ask(readers: &Readers, role: Role, files: &[&File]) -> Result<Vec<u8>, Unread> {
        let terms = Terms {
            most: 100,
            patience: None,
            memory: 0,
        };
        readers.ask(role, b"?", files, terms, &mut |_| Vec::new())
    }

    /// A program in a reader's place.
    fn readers(script: &str) -> (Readers, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reader");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (Readers::new(path), folder)
    }

    #[test]
    fn a_reader_that_ends_is_another_the_next_time() {
        let (readers, _folder) = readers("exit 3");
        for asked in 1..=3 {
            let answer = ask(&readers, Role::Files, &[]);
            assert!(matches!(answer, Err(Unread::Ended)), "{answer:?}");
            assert_eq!(readers.given_up(), asked);
        }
    }

    #[test]
    fn a_reader_that_hangs_is_given_up() {
        let (readers, _folder) = readers("exec sleep 1000");
        let answer = ask(&readers, Role::Names, &[]);
        assert!(matches!(answer, Err(Unread::Late(PATIENCE))), "{answer:?}");
    }

    #[test]
    fn who_cannot_be_started_reads_nothing() {
        let readers = Readers::new(PathBuf::from("/nowhere"));
        let answer = ask(&readers, Role::Files, &[]);
        assert!(matches!(answer, Err(Unread::NotStarted(_))), "{answer:?}");
    }

    #[test]
    fn a_user_whose_files_end_readers_is_not_read_for_a_while() {
        let (readers, folder) = readers("exit 3");
        let path = folder.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let is_root = std::os::unix::fs::chown(&path, Some(65534), None).is_ok();
        let file = File::open(&path).unwrap();
        let mut last = None;
        for _ in 0..=MOST_STRIKES {
            last = ask(&readers, Role::Files, &[&file]).err();
        }
        if is_root {
            assert!(matches!(last, Some(Unread::Paused)), "{last:?}");
        }
        // Others' files are read on.
        let answer = ask(&readers, Role::Files, &[]);
        assert!(matches!(answer, Err(Unread::Ended)), "{answer:?}");
    }

    #[test]
    fn holes_give_no_time() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(patience(&[&file, &file]).usual, PATIENCE);
    }

    #[test]
    fn on_a_slow_machine_the_c_library_was_given_up() {
        let libc = File::open("/etc/passwd").unwrap();
        assert_eq!(patience(&[&libc]).most, PATIENCE * super::TRUSTED_TIMES);
        let file = tempfile::tempfile().unwrap();
        let open_to_all = std::fs::Permissions::from_mode(0o666);
        file.set_permissions(open_to_all).unwrap();
        assert_eq!(patience(&[&file]).most, PATIENCE);
        assert_eq!(patience(&[&libc, &file]).most, PATIENCE);
        assert_eq!(patience(&[]).most, PATIENCE);
    }
}
