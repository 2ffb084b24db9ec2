//! Bytes of a live process, through `/proc/PID/mem` (`proc_pid_mem(5)`).

use std::{
    cell::Cell, fs::File, ops::Range, os::unix::fs::FileExt as _, path::Path, time::Instant,
};

use super::ReadError;
use crate::heap::Memory;

/// The memory of a live process. It is held by the address space: a process that calls exec, or ends, reads as nothing.
#[derive(Debug)]
pub struct ProcessMemory {
    file: File,
}

impl From<File> for ProcessMemory {
    /// An open `/proc/PID/mem`.
    fn from(file: File) -> Self {
        Self { file }
    }
}

impl ProcessMemory {
    /// Opens a process's memory.
    ///
    /// # Errors
    /// There is no such process, or we may not read it.
    pub fn open(proc_root: &Path, pid: u32) -> Result<Self, ReadError> {
        let path = proc_root.join(pid.to_string()).join("mem");
        match File::open(&path) {
            Ok(file) => Ok(Self { file }),
            Err(source) => Err(ReadError::Memory { pid, path, source }),
        }
    }

    /// Through which it is read.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        // An address beyond what a file offset holds is the kernel's.
        if i64::try_from(address).is_err() {
            return 0;
        }
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, address.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Nothing is mapped there.
                Err(_) => break,
            }
        }
        done
    }
}

/// What of a process's memory answers, as it was mapped a moment ago: a page of FUSE may never come.
pub(crate) struct Answering<'a> {
    memory: &'a ProcessMemory,
    ranges: &'a [Range<u64>],
}

impl<'a> Answering<'a> {
    /// Nothing else is read than what lies in these ranges, which are in order.
    pub(crate) fn new(memory: &'a ProcessMemory, ranges: &'a [Range<u64>]) -> Self {
        Self { memory, ranges }
    }
}

impl Memory for Answering<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let behind = self.ranges.partition_point(|range| range.start <= address);
        let range = behind
            .checked_sub(1)
            .and_then(|place| self.ranges.get(place));
        let there = range.map_or(0, |range| range.end.saturating_sub(address));
        let most = usize::try_from(there)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        buffer
            .get_mut(..most)
            .map_or(0, |buffer| self.memory.read(address, buffer))
    }
}

/// Memory that is read until a moment, and so many bytes of it: whoever reads on finds nothing, as if it were not mapped.
pub struct Bounded<'memory> {
    memory: &'memory dyn Memory,
    until: Option<Instant>,
    left: Cell<u64>,
    is_over: Cell<bool>,
}

impl<'memory> Bounded<'memory> {
    /// Bounds the reading of some memory; without a moment only by bytes.
    #[must_use]
    pub fn new(memory: &'memory dyn Memory, until: Option<Instant>, most_bytes: u64) -> Self {
        Self {
            memory,
            until,
            left: Cell::new(most_bytes),
            is_over: Cell::new(false),
        }
    }

    /// Whether more was asked for than there was time or room for: what was made of it is worth nothing.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.get() || self.is_late()
    }

    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

impl Memory for Bounded<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        if self.left.get() == 0 || self.is_late() {
            self.is_over.set(true);
        }
        if self.is_over.get() {
            return 0;
        }
        let read = self.memory.read(address, buffer);
        self.left.set(self.left.get().saturating_sub(read as u64));
        read
    }
}

#[cfg(test)]
mod tests {
    use super::Bounded;
    use crate::heap::Memory;
    use std::time::{Duration, Instant};

    struct Endless;

    impl Memory for Endless {
        fn read(&self, _: u64, buffer: &mut [u8]) -> usize {
            buffer.len()
        }
    }

    #[test]
    fn what_is_read_is_bounded_by_bytes_and_by_time() {
        let later = Instant::now() + Duration::from_secs(3600);
        let few = Bounded::new(&Endless, Some(later), 100);
        assert_eq!(few.read(0, &mut [0; 64]), 64);
        assert_eq!(few.read(0, &mut [0; 64]), 64);
        assert!(!few.is_over());
        assert_eq!(few.read(0, &mut [0; 64]), 0);
        assert!(few.is_over());
        let late = Bounded::new(&Endless, Some(Instant::now()), 100);
        assert_eq!(late.read(0, &mut [0; 64]), 0);
        assert!(late.is_over());
    }
}
