//! Files that processes map for execution, as the kernel's performance events tell of them (`PERF_RECORD_MMAP2`): what, where and by whom.
//! They are there when somebody looks, also of what was unmapped long before. Knows nothing of who is traced.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
};

use super::{shared::SharedArray, sys};

/// Where `struct perf_event_mmap_page` holds how far records have been written and read, and where they begin and end; in words of
/// 8 bytes (`data_head`, `data_tail`, `data_offset`, `data_size`; include/uapi/linux/perf_event.h).
const DATA_HEAD: usize = 1024 / 8;
const DATA_TAIL: usize = 1032 / 8;
const DATA_OFFSET: usize = 1040 / 8;
const DATA_SIZE: usize = 1048 / 8;

/// `PERF_RECORD_MMAP2` (same header).
const RECORD_MMAP2: u32 = 10;

/// Bytes of a record before the file's name (same header).
const FIXED: usize = 72;

/// Pages of records for each processor, a power of two: of some 130 bytes each, two thousand.
const PAGES: usize = 64;

/// Of a file that is mapped for execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// Who maps it.
    pub pid: u32,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// The file's device: major and minor number.
    pub device: (u32, u32),
    /// The file's inode.
    pub inode: u64,
    /// The file's name in the process's mount namespace.
    pub path: Vec<u8>,
}

/// The records of all processors.
pub struct CodeMaps {
    rings: Vec<Ring>,
}

impl CodeMaps {
    /// They are written from now on. `None` where the kernel refuses it.
    #[must_use]
    pub fn start() -> Option<Self> {
        let processors = aya::util::online_cpus().ok()?;
        let rings: Option<Vec<Ring>> = processors.into_iter().map(Ring::start).collect();
        Some(Self { rings: rings? })
    }

    /// Takes what has been written since the last time.
    pub fn take(&mut self) -> Vec<MappedFile> {
        let mut found = Vec::new();
        for ring in &mut self.rings {
            ring.take(&mut found);
        }
        found
    }
}

/// The records of one processor.
struct Ring {
    words: SharedArray<u64>,
    /// Ends with it.
    _event: OwnedFd,
}

impl Ring {
    fn start(processor: u32) -> Option<Self> {
        let event = sys::watch_mapped_code(processor).ok()?;
        let words = (1 + PAGES) * sys::page_size() / size_of::<u64>();
        Some(Self {
            words: SharedArray::map(event.as_fd(), words).ok()?,
            _event: event,
        })
    }

    fn take(&mut self, found: &mut Vec<MappedFile>) {
        let read = |index: usize| self.words.read(index).unwrap_or(0);
        let (begin, size) = (read(DATA_OFFSET), read(DATA_SIZE));
        let Some(head) = self.words.word(DATA_HEAD, 0) else {
            return;
        };
        let Some(tail) = self.words.word(DATA_TAIL, 0) else {
            return;
        };
        // Records before the head are written before it is.
        let head = head.load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        while size > 0 && at < head {
            let word = |at: u64| read(((begin + at % size) / 8) as usize);
            let header = word(at).to_ne_bytes();
            let length = u64::from(u16::from_ne_bytes([header[6], header[7]]));
            if length < 8 || !length.is_multiple_of(8) || at.saturating_add(length) > head {
                break;
            }
            let record: Vec<u8> = (0..length / 8)
                .flat_map(|number| word(at + 8 * number).to_ne_bytes())
                .collect();
            found.extend(mapped_file(&record));
            at += length;
        }
        // What lies before it may be written over.
        tail.store(head, Ordering::Release);
    }
}

/// The file of a record; `None` of another kind of record.
fn mapped_file(record: &[u8]) -> Option<MappedFile> {
    let u32_at = |at: usize| -> Option<u32> {
        let bytes = record.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let u64_at = |at: usize| -> Option<u64> {
        let bytes = record.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    if u32_at(0)? != RECORD_MMAP2 {
        return None;
    }
    let name = record.get(FIXED..)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(MappedFile {
        pid: u32_at(8)?,
        start: u64_at(16)?,
        length: u64_at(24)?,
        offset: u64_at(32)?,
        device: (u32_at(40)?, u32_at(44)?),
        inode: u64_at(48)?,
        path: name.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{CodeMaps, mapped_file};
    use std::process::Command;

    #[test]
    fn what_a_process_mapped_that_is_gone_is_known() {
        let Some(mut maps) = CodeMaps::start() else {
            // Not allowed here.
            return;
        };
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let found = maps.take();
        let named = found
            .iter()
            .any(|file| file.pid == pid && file.inode != 0 && file.path.starts_with(b"/"));
        assert!(named, "{found:?}");
    }

    #[test]
    fn a_record_that_is_cut_short_is_none() {
        let mut record = vec![0_u8; 88];
        *record.first_mut().unwrap() = 10;
        assert!(mapped_file(&record).is_some());
        for length in 0..72 {
            assert_eq!(mapped_file(record.get(..length).unwrap()), None);
        }
    }
}
