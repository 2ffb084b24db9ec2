//! Who writes to a word of a process: by the processor's registers for breakpoints on data, of which each thread has four. Nothing is written to the
//! process, and nothing stays when the descriptors are closed. Knows nothing of what stands in the word.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya_obj::generated::bpf_prog_type;

use super::{
    load::LoadedObject,
    probe::Probe,
    sys::{self, Counter},
};

/// The program's name.
const PROGRAM: &str = "word_written";

/// Has writes told of as [`super::ProbeEvent::Written`].
#[derive(Clone, Debug)]
pub struct WriteWatcher {
    program: Arc<OwnedFd>,
}

/// Whose writes are seen.
#[derive(Clone, Copy, Debug)]
pub enum Writers<'a> {
    /// These threads'. Those that they make are not seen.
    Threads(&'a [u32]),
    /// Whoever runs on a processor: each traps that writes to this address, whatever it has there. Of processes that are not followed nothing is told.
    All,
}

/// A word that is watched, until this is dropped.
#[derive(Debug)]
pub struct WatchedWord {
    /// Of each thread or processor. Fields are dropped in this order: first nobody is told any more.
    links: Vec<OwnedFd>,
    events: Vec<Counter>,
}

impl WriteWatcher {
    /// Loads the program.
    fn load(object: &LoadedObject) -> Result<Self, String> {
        let kind = bpf_prog_type::BPF_PROG_TYPE_PERF_EVENT;
        let program = object
            .program(PROGRAM, kind, 0)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            program: Arc::new(program),
        })
    }

    /// Watches an aligned word. Of each thread, or on each processor, at most so many writes are seen; then it is left in peace.
    ///
    /// # Errors
    /// The kernel has no such breakpoints, or all of the thread's are taken. Threads that are gone are none.
    pub fn watch(&self, writers: Writers<'_>, address: u64, most: u32) -> io::Result<WatchedWord> {
        /// Any thread, on any processor (perf_event_open(2)).
        const ANY: i32 = -1;
        let mut watched = WatchedWord {
            links: Vec::new(),
            events: Vec::new(),
        };
        let places: Vec<(i32, i32)> = match writers {
            Writers::Threads(threads) => threads.iter().map(|id| (*id as i32, ANY)).collect(),
            Writers::All => aya::util::online_cpus()
                .map_err(|(_, error)| error)?
                .into_iter()
                .map(|cpu| (ANY, cpu as i32))
                .collect(),
        };
        for (thread, cpu) in places {
            let event = match sys::watch_word(thread, cpu, address) {
                Ok(event) => event,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(error) => return Err(error),
            };
            let link = sys::link_perf_event(self.program.as_fd(), event.as_fd(), 0)?;
            sys::let_overflow(event.as_fd(), most)?;
            watched.links.push(link);
            watched.events.push(Counter::from(event));
        }
        Ok(watched)
    }
}

impl WatchedWord {
    /// How often it was written to.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.events
            .iter()
            .map(|event| event.read().unwrap_or(0))
            .fold(0, u64::saturating_add)
    }
}

impl Probe {
    /// The program, if it is loaded.
    pub(super) fn write_program(&self) -> Option<(&'static str, BorrowedFd<'_>)> {
        let watcher = self.write_watcher.as_ref()?.as_ref().ok()?;
        Some((PROGRAM, watcher.program.as_fd()))
    }

    /// What watches words. The program is loaded when it is first asked for.
    ///
    /// # Errors
    /// The kernel refused the program; a sentence for people.
    pub fn write_watcher(&mut self) -> Result<WriteWatcher, String> {
        if let Some(known) = &self.write_watcher {
            return known.clone();
        }
        let loaded = WriteWatcher::load(&self.object);
        self.write_watcher = Some(loaded.clone());
        loaded
    }
}
