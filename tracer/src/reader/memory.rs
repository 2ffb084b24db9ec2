//! Bytes of a live process, through `/proc/PID/mem` (`proc_pid_mem(5)`).

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use super::ReadError;
use crate::heap::Memory;

/// The memory of a live process. It is held by the address space: a process that calls exec, or ends, reads as nothing.
#[derive(Debug)]
pub struct ProcessMemory {
    file: File,
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
