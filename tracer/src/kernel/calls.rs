//! How many system calls each processor makes, counted by the kernel for a moment. Knows nothing of why that is asked.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use super::{attach::Link, error::KernelError, probe::Probe, sys, tracefs::Tracefs};

/// Every system call comes by here.
const EVENT: &str = "raw_syscalls/sys_enter";

/// Counters that are running, one for each processor.
#[derive(Debug)]
pub struct CallCounter {
    counters: Vec<sys::Counter>,
    begun: Instant,
}

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallCount {
    /// System calls of the processor that made most.
    pub most: u64,
    /// In this time.
    pub over: Duration,
}

impl CallCounter {
    /// Begins to count. While it does, each system call takes some 50 ns more.
    ///
    /// # Errors
    /// The kernel has no such counter, or refused it.
    pub fn start() -> Result<Self, KernelError> {
        let cannot = |source| KernelError::call("cannot count system calls", source);
        let number = Tracefs::open()?.tracepoint_id(EVENT)?;
        let processors =
            aya::util::online_cpus().map_err(|(what, source)| KernelError::call(what, source))?;
        let counters = processors
            .into_iter()
            .map(|processor| sys::count_tracepoint(number, processor))
            .collect::<io::Result<_>>()
            .map_err(cannot)?;
        Ok(Self {
            counters,
            begun: Instant::now(),
        })
    }

    /// When it began.
    #[must_use]
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// A counter cannot be read.
    pub fn read(&self) -> Result<CallCount, KernelError> {
        let mut most = 0;
        for counter in &self.counters {
            let count = counter
                .read()
                .map_err(|source| KernelError::call("cannot read a counter", source))?;
            most = most.max(count);
        }
        Ok(CallCount {
            most,
            over: self.begun.elapsed(),
        })
    }
}

/// How many processors are running; `None` where the kernel does not say.
#[must_use]
pub fn running_processors() -> Option<usize> {
    aya::util::online_cpus()
        .ok()
        .map(|processors| processors.len())
}

impl Probe {
    /// Takes counters away, beside what goes on: the kernel waits out a grace period.
    pub fn end_counter(&mut self, counter: CallCounter) {
        self.close_beside(Link {
            links: Vec::new(),
            events: counter.counters.into_iter().map(OwnedFd::from).collect(),
        });
    }
}
