//! Looking at blocks without a trap: another process's memory, read from outside. Contents are reduced to hashes here and go no further.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    sync::OnceLock,
    time::Duration,
};

use leakscope_common::mix;

use super::sys;

/// Bytes of a block that the fingerprint covers.
const FINGERPRINT_BYTES: u64 = 128;

/// glibc's header of a chunk: the previous chunk's size and its own (malloc/malloc.c, `struct malloc_chunk`), bytes.
const HEADER_BYTES: u64 = 16;

/// Ranges that one call reads; `IOV_MAX` (include/uapi/linux/uio.h, `UIO_MAXIOV`) is 1,024.
const RANGES: usize = 512;

/// A block to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockToRead {
    /// Its address.
    pub address: u64,
    /// Its size, bytes.
    pub size: u64,
    /// Whether 16 bytes before it are glibc's and may be read.
    pub has_header: bool,
}

/// What was read of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockReading {
    /// The word before the block; 0 where it has no header.
    pub header: u64,
    /// The size word of the chunk behind it, where the header says where that is.
    pub next_header: Option<u64>,
    /// A hash of the first 128 bytes.
    pub fingerprint: u64,
    /// All words of these bytes are the same.
    pub is_constant: bool,
    /// A hash of the second word.
    pub second_word: u64,
    /// The second word looks random.
    pub second_is_random: bool,
}

/// A secret of this run, so that hashes say nothing to anybody else.
fn secret() -> u64 {
    static SECRET: OnceLock<u64> = OnceLock::new();
    *SECRET.get_or_init(|| RandomState::new().hash_one(0_u8))
}

/// Flags in a chunk's size word (`SIZE_BITS`), and the one for a chunk that is its own mapping.
const FLAGS: u64 = 7;
const IS_MMAPPED: u64 = 2;
/// No chunk is larger than user memory.
const LARGEST_CHUNK: u64 = 1 << 47;

/// Where the next chunk's size word is, if the block's header can be true.
fn next_header_address(block: &BlockToRead, header: u64) -> Option<u64> {
    let size = header & !FLAGS;
    let plausible = header & IS_MMAPPED == 0
        && size.is_multiple_of(HEADER_BYTES)
        && size >= block.size.saturating_add(8)
        && size < LARGEST_CHUNK;
    plausible
        .then(|| block.address.checked_add(size))
        .flatten()
        .and_then(|behind| behind.checked_sub(8))
}

/// Whether a word is neither text, nor an address, nor a small number, nor a usual floating-point one.
fn looks_random(word: u64) -> bool {
    let [first, ..] = word.to_be_bytes();
    let upper = word >> 48;
    (16..=48).contains(&word.count_ones())
        && word & 0x8080_8080_8080_8080 != 0
        && upper != 0
        && upper != 0xffff
        && !matches!(first, 0x3f | 0x40 | 0xbf | 0xc0)
}

/// A block's contents as hashes.
fn digest(contents: &[u8]) -> BlockReading {
    let mut reading = BlockReading {
        is_constant: true,
        ..BlockReading::default()
    };
    let mut hash = secret() ^ contents.len() as u64;
    let mut first = None;
    for (index, piece) in contents.chunks(8).enumerate() {
        let mut bytes = [0_u8; 8];
        for (to, from) in bytes.iter_mut().zip(piece) {
            *to = *from;
        }
        let word = u64::from_le_bytes(bytes);
        hash = mix(hash ^ word);
        if index == 1 && piece.len() == 8 {
            reading.second_word = mix(word ^ secret());
            reading.second_is_random = looks_random(word);
        }
        if piece.len() == 8 && *first.get_or_insert(word) != word {
            reading.is_constant = false;
        }
    }
    reading.fingerprint = hash;
    reading
}

/// Looks at blocks of a process, where `may_read` allows the range of addresses: reading what others serve may never end. `None` where
/// the memory is not there, or may not be read.
///
/// # Errors
/// The process is gone, or may not be read.
pub fn read_blocks(
    pid: u32,
    blocks: &[BlockToRead],
    may_read: &dyn Fn(u64, u64) -> bool,
) -> io::Result<Vec<Option<BlockReading>>> {
    let mut readings = Vec::with_capacity(blocks.len());
    let mut buffer = Vec::new();
    for some in blocks.chunks(RANGES) {
        let ranges: Vec<(u64, usize)> = some
            .iter()
            .map(|block| {
                let before = if block.has_header { HEADER_BYTES } else { 0 };
                let length = before + block.size.min(FINGERPRINT_BYTES);
                (block.address.saturating_sub(before), length as usize)
            })
            .collect();
        let there = read_ranges(pid, &ranges, may_read, &mut buffer)?;
        let mut offset = 0;
        let first = readings.len();
        let mut behind = Vec::new();
        for ((block, (_, length)), there) in some.iter().zip(&ranges).zip(there) {
            let bytes = buffer.get(offset..offset + length).unwrap_or_default();
            offset += length;
            if !there {
                readings.push(None);
                continue;
            }
            let (header, contents) = if block.has_header {
                bytes
                    .split_at_checked(HEADER_BYTES as usize)
                    .unwrap_or_default()
            } else {
                (&[][..], bytes)
            };
            let mut reading = digest(contents);
            if let Some(word) = header.last_chunk::<8>() {
                reading.header = u64::from_ne_bytes(*word);
                if let Some(address) = next_header_address(block, reading.header) {
                    behind.push((readings.len(), (address, 8)));
                }
            }
            readings.push(Some(reading));
        }
        let ranges: Vec<(u64, usize)> = behind.iter().map(|(_, range)| *range).collect();
        let there = read_ranges(pid, &ranges, may_read, &mut buffer)?;
        for (((index, _), word), there) in behind.iter().zip(buffer.chunks_exact(8)).zip(there) {
            if let (Some(Some(reading)), Ok(word)) =
                (readings.get_mut(first.max(*index)), word.try_into())
            {
                reading.next_header = there.then(|| u64::from_ne_bytes(word));
            }
        }
    }
    Ok(readings)
}

/// Reads ranges one after the other into the buffer, and says which could be read.
fn read_ranges(
    pid: u32,
    ranges: &[(u64, usize)],
    may_read: &dyn Fn(u64, u64) -> bool,
    buffer: &mut Vec<u8>,
) -> io::Result<Vec<bool>> {
    let total: usize = ranges.iter().map(|(_, length)| length).sum();
    buffer.clear();
    buffer.resize(total, 0);
    let mut there = vec![false; ranges.len()];
    let mut next = 0;
    let mut offset = 0;
    let allowed = |range: &(u64, usize)| may_read(range.0, range.0.saturating_add(range.1 as u64));
    while let Some(rest) = ranges.get(next..).filter(|rest| !rest.is_empty()) {
        let row = rest.iter().take_while(|range| allowed(range)).count();
        let rest = rest.get(..row).unwrap_or_default();
        let room = buffer.get_mut(offset..).unwrap_or_default();
        let length: usize = rest.iter().map(|(_, length)| length).sum();
        let room = room.get_mut(..length).unwrap_or_default();
        let mut read = match sys::read_process_memory(pid, rest, room) {
            _ if rest.is_empty() => 0,
            Ok(read) => read,
            // The first of them is not there.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => 0,
            Err(error) => return Err(error),
        };
        for (_, length) in rest {
            if *length > read {
                break;
            }
            read -= length;
            offset += length;
            if let Some(flag) = there.get_mut(next) {
                *flag = true;
            }
            next += 1;
        }
        // The range at which it stopped.
        if let Some((_, length)) = ranges.get(next) {
            offset += length;
            next += 1;
        }
    }
    Ok(there)
}

/// Processor time of a process, all threads, to the nanosecond; of ended threads too.
///
/// # Errors
/// The process is gone.
pub fn process_cpu_time(pid: u32) -> io::Result<Duration> {
    sys::process_cpu_time(pid)
}

/// Processor time of the calling thread.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    sys::thread_cpu_time()
}

/// Lets the calling thread, and threads that it makes from now on, run before others: a window that is to be closed must not wait for a
/// processor on a machine under full load. Without the privilege nothing changes.
pub fn raise_priority() {
    sys::set_nice(-15);
}

/// Lets the calling thread run as any other: threads inherit what [`raise_priority`] set.
pub fn ordinary_priority() {
    sys::set_nice(0);
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "tests say so by failing"
    )]

    use super::{BlockToRead, digest, looks_random, process_cpu_time, read_blocks};
    use std::time::Duration;

    #[test]
    fn blocks_of_a_process_are_read_and_only_hashed() {
        let mut first = vec![7_u64; 40];
        let second = [1_u64, 2, 3, 4];
        let block = |at: *const u64, size| BlockToRead {
            address: at as u64,
            size,
            has_header: false,
        };
        let ask = [
            block(first.as_ptr(), 320),
            // Nothing is mapped there.
            BlockToRead {
                address: 4096,
                size: 64,
                has_header: false,
            },
            block(second.as_ptr(), 32),
        ];
        let pid = std::process::id();
        let before = read_blocks(pid, &ask, &|_, _| true).unwrap();
        assert!(before[0].unwrap().is_constant);
        assert_eq!(before[1], None);
        assert!(!before[2].unwrap().is_constant);
        assert_eq!(read_blocks(pid, &ask, &|_, _| true).unwrap(), before);
        // Beyond the first 128 bytes nothing is looked at; inside everything.
        first[16] = 8;
        assert_eq!(read_blocks(pid, &ask, &|_, _| true).unwrap()[0], before[0]);
        first[15] = 8;
        let after = read_blocks(pid, &ask, &|_, _| true).unwrap();
        assert_ne!(
            after[0].unwrap().fingerprint,
            before[0].unwrap().fingerprint
        );
        assert_eq!(after[2], before[2]);
    }

    #[test]
    fn what_may_not_be_read_is_not_and_hides_no_other() {
        let words: Vec<u64> = (0..600).collect();
        let at = |index: usize| std::ptr::from_ref(&words[index]) as u64;
        let ask: Vec<BlockToRead> = (0..600)
            .map(|index| BlockToRead {
                address: at(index),
                size: 8,
                has_header: false,
            })
            .collect();
        let refused = [at(0), at(7), at(8), at(599)];
        let may_read = |start: u64, _| !refused.contains(&start);
        let readings = read_blocks(std::process::id(), &ask, &may_read).unwrap();
        for (index, reading) in readings.iter().enumerate() {
            let expected =
                (!refused.contains(&at(index))).then(|| digest(&words[index].to_le_bytes()));
            assert_eq!(*reading, expected, "{index}");
        }
    }

    #[test]
    fn many_blocks_with_holes_are_read_in_order() {
        let words: Vec<u64> = (0..4_000).collect();
        let ask: Vec<BlockToRead> = words
            .iter()
            .enumerate()
            .map(|(index, word)| BlockToRead {
                address: if index % 7 == 3 {
                    4096 + index as u64 * 8
                } else {
                    std::ptr::from_ref(word) as u64
                },
                size: 8,
                has_header: false,
            })
            .collect();
        let readings = read_blocks(std::process::id(), &ask, &|_, _| true).unwrap();
        for (index, reading) in readings.iter().enumerate() {
            let expected = (index % 7 != 3).then(|| digest(&words[index].to_le_bytes()));
            assert_eq!(*reading, expected, "{index}");
        }
    }

    #[test]
    fn glibc_says_of_its_chunks_whether_they_are_in_use() {
        // Large enough not to go through the per-thread caches, small enough not to be a mapping of its own.
        let blocks: Vec<Vec<u8>> = (0..6).map(|_| vec![1; 5_000]).collect();
        let ask: Vec<BlockToRead> = blocks
            .iter()
            .map(|block| BlockToRead {
                address: block.as_ptr() as u64,
                size: 5_000,
                has_header: true,
            })
            .collect();
        let pid = std::process::id();
        for reading in read_blocks(pid, &ask, &|_, _| true).unwrap() {
            let reading = reading.unwrap();
            assert_eq!(reading.header & !7, 5_008, "{reading:?}");
            assert_eq!(reading.next_header.unwrap() & 1, 1);
        }
        drop(blocks);
        let free = |reading: &Option<super::BlockReading>| {
            reading.is_none_or(|reading| {
                reading.header & !7 != 5_008 || reading.next_header.is_none_or(|next| next & 1 == 0)
            })
        };
        let after = read_blocks(pid, &ask, &|_, _| true).unwrap();
        // Others may have been given some of them by now: tests run in threads.
        assert!(
            after.iter().filter(|reading| free(reading)).count() >= 3,
            "{after:?}"
        );
    }

    #[test]
    fn words_that_look_random() {
        assert!(looks_random(0x9e37_79b9_7f4a_7c15));
        for plain in [
            0,
            1,
            u64::MAX,
            0x5555_1234_5678,
            u64::from_le_bytes(*b"location"),
            1.5_f64.to_bits(),
        ] {
            assert!(!looks_random(plain), "{plain:#x}");
        }
    }

    #[test]
    fn processor_time_goes_on_while_we_work() {
        let pid = std::process::id();
        let before = process_cpu_time(pid).unwrap();
        while process_cpu_time(pid).unwrap() < before + Duration::from_millis(2) {}
        // Beyond what a process id can be (`PID_MAX_LIMIT`).
        assert!(process_cpu_time(1 << 24).is_err());
    }
}
