//! Registers of threads that are stopped or wait as a piece of memory, so that what only a register leads to is held like everything else. It lies where
//! no process has memory: in the kernel's half of the addresses.

use std::cell::RefCell;

use leakscope_common::PAGE_BYTES;

use super::ProcessMemory;
use crate::heap::{Memory, Region, RegionKind};

/// The first address of it.
const BASE: u64 = 0xffff_f000_0000_0000;

/// A process's memory, and behind it the registers of its threads.
#[derive(Debug)]
pub struct WithRegisters {
    memory: ProcessMemory,
    bytes: RefCell<Vec<u8>>,
}

impl WithRegisters {
    /// The memory of a process of whose registers nothing is known yet.
    #[must_use]
    pub fn new(memory: ProcessMemory) -> Self {
        Self {
            memory,
            bytes: RefCell::default(),
        }
    }

    /// The threads have these words in registers now. Gives the regions of the process with that of the registers, which comes behind
    /// all others.
    #[must_use]
    pub fn with_own(&self, mut regions: Vec<Region>, words: &[u64]) -> Vec<Region> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let length = bytes.len() as u64;
        self.bytes.replace(bytes);
        regions.push(Region {
            range: BASE..BASE + length.next_multiple_of(PAGE_BYTES),
            present: std::iter::once(BASE..BASE + length).collect(),
            kind: RegionKind::Stack,
            name: "registers".to_owned(),
        });
        regions
    }
}

impl Memory for WithRegisters {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let Some(offset) = address.checked_sub(BASE) else {
            return self.memory.read(address, buffer);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes.borrow();
        let bytes = bytes.get(from..).unwrap_or_default();
        let length = bytes.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), bytes.get(..length)) {
            to.copy_from_slice(from);
        }
        length
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::path::Path;

    use super::WithRegisters;
    use crate::{heap::Memory as _, reader::ProcessMemory};

    #[test]
    fn registers_are_read_like_memory() {
        let own = ProcessMemory::open(Path::new("/proc"), std::process::id()).unwrap();
        let memory = WithRegisters::new(own);
        let regions = memory.with_own(Vec::new(), &[7, 8, 9]);
        let region = regions.last().unwrap();
        assert_eq!(region.present_bytes(), 24);
        assert_eq!(memory.word(region.range.start + 16), Some(9));
        assert_eq!(memory.word(region.range.start + 24), None);
        let known = Box::new(0x1234_5678_9abc_u64);
        let address = std::ptr::from_ref(&*known) as u64;
        assert_eq!(memory.word(address), Some(*known));
    }
}
