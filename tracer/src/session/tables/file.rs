//! A file's unwind table, in the reader: the bytes that it is made from. It knows nothing of what stands in them.

use std::{fs::File, num::NonZeroUsize, ops::Range, os::unix::fs::MetadataExt};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::{
    process::elf::{ElfFile, ReadAt},
    symbol::{Module, nanoseconds},
    unwind::{BuildOptions, FileState, Kept, build},
};

/// The largest file that is read for its unwind table, bytes.
const MAX_FILE: u64 = 3 << 29;

/// The most that is read of it, bytes: it is all in memory for a moment. Browsers and databases need some 300 MiB.
const MOST_READ: u64 = 512 << 20;

/// A file's unwind table, as bytes; or why it has none.
pub(crate) fn read_table(file: &File, kept: Kept) -> Result<Vec<u8>, String> {
    let bytes = read(file).map_err(|why| format!("it cannot be read: {why}"))?;
    let options = BuildOptions {
        kept,
        // No thread can be started there.
        threads: Some(NonZeroUsize::MIN),
    };
    let table = build(&bytes, &options).map_err(|error| error.to_string())?;
    table
        .to_bytes()
        .ok_or_else(|| "its table is too large".to_owned())
}

/// A file's bytes, with zeros in the place of what no table needs.
///
/// # Errors
/// The file cannot be read, or there is no memory for it.
fn read(file: &File) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let size = file.size().map_err(failed)?;
    if size > MAX_FILE {
        return Err(format!("it has {size} bytes"));
    }
    let length = usize::try_from(size).unwrap_or(0);
    // The memory is asked for twice: what is refused here would end us there, and only there it comes zeroed without being touched.
    Vec::<u8>::new()
        .try_reserve_exact(length)
        .map_err(|_| format!("there is no memory for its {size} bytes"))?;
    let elf = ElfFile::parse(file).ok();
    let parts = written(file, &needed(elf.as_ref(), size)).map_err(failed)?;
    let bytes: u64 = parts.iter().map(|part| part.end - part.start).sum();
    if bytes > MOST_READ {
        return Err(format!("{bytes} bytes of it are needed"));
    }
    read_parts(file, length, &parts).map_err(failed)
}

/// What of some parts of a file is more than a hole: holes take no space in the file, and shall take none in memory.
fn written(file: &File, parts: &[Range<u64>]) -> std::io::Result<Vec<Range<u64>>> {
    let mut all = Vec::new();
    for part in parts {
        let mut from = part.start;
        while from < part.end {
            // Behind the last data of a file there is none.
            let start = match seek(file, SeekFrom::Data(from)) {
                Ok(start) => start.max(from),
                Err(Errno::NXIO) => break,
                // A file system without holes.
                Err(Errno::INVAL) => from,
                Err(error) => return Err(error.into()),
            };
            let end = match seek(file, SeekFrom::Hole(start)) {
                Ok(end) => end.min(part.end),
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => part.end,
                Err(error) => return Err(error.into()),
            };
            if start >= part.end || end <= start {
                break;
            }
            all.push(start..end);
            from = end;
        }
    }
    Ok(all)
}

/// Which file it is and when it changed last, asked anew.
pub(super) fn state(module: &Module) -> Option<FileState> {
    let metadata = module.file.metadata().ok()?;
    Some(FileState {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// So many bytes, of which these parts are the file's and the others zero.
fn read_parts(
    source: &(impl ReadAt + ?Sized),
    length: usize,
    parts: &[Range<u64>],
) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    for part in parts {
        if let Some(place) = bytes.get_mut(part.start as usize..part.end as usize) {
            source.read_at(part.start, place)?;
        }
    }
    Ok(bytes)
}

/// The parts of a file that can matter: not its debug information, which is most of many files. Only what lies behind all segments is
/// left out, whatever its section claims to be.
fn needed(elf: Option<&ElfFile>, size: u64) -> Vec<Range<u64>> {
    let mut left_out = Vec::new();
    if let Some(elf) = elf {
        let loaded = elf
            .segments
            .iter()
            .map(|segment| segment.file_offset.saturating_add(segment.file_size))
            .max()
            .unwrap_or(size);
        for section in &elf.sections {
            let is_debug = section.name.starts_with(".debug_") && section.name != ".debug_frame";
            if is_debug && section.file_offset >= loaded {
                left_out.push(
                    section.file_offset..section.file_offset.saturating_add(section.size).min(size),
                );
            }
        }
    }
    left_out.sort_by_key(|part| part.start);
    let mut parts = Vec::new();
    let mut from = 0;
    for part in left_out {
        if part.start > from {
            parts.push(from..part.start);
        }
        from = from.max(part.end);
    }
    if from < size {
        parts.push(from..size);
    }
    parts
}

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "tests")]

    use super::{needed, read_parts, written};
    use crate::{
        process::elf::ElfFile,
        unwind::{BuildOptions, build},
    };
    use std::{fs, os::unix::fs::FileExt as _};

    #[test]
    fn holes_of_a_file_are_not_read() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4 << 30).expect("sparse");
        file.write_all_at(&[1; 100], 1 << 20).expect("written");
        file.write_all_at(&[1; 100], 3 << 30).expect("written");
        let all = written(&file, std::slice::from_ref(&(0..4 << 30))).expect("sought");
        let bytes: u64 = all.iter().map(|part| part.end - part.start).sum();
        assert!(bytes < 1 << 20, "{all:?}");
        for place in [1 << 20, 3 << 30] {
            assert!(
                all.iter()
                    .any(|part| part.contains(&place) && part.contains(&(place + 99))),
                "{all:?}"
            );
        }
    }

    #[test]
    fn debug_information_is_not_read_and_not_missed() {
        let path = std::env::current_exe().expect("this test");
        let whole = fs::read(path).expect("readable");
        let elf = ElfFile::parse(&whole[..]).expect("an ELF file");
        let parts = needed(Some(&elf), whole.len() as u64);
        let some = read_parts(&whole[..], whole.len(), &parts).expect("readable");
        let read: u64 = parts.iter().map(|part| part.end - part.start).sum();
        assert!(read < whole.len() as u64 / 2, "{read} of {}", whole.len());
        let options = BuildOptions::default();
        let (all, part) = (build(&whole, &options), build(&some, &options));
        assert_eq!(all.expect("a table"), part.expect("a table"));
    }

    #[test]
    fn without_headers_everything_is_read() {
        assert_eq!(
            needed(None, 100).as_slice(),
            std::slice::from_ref(&(0..100))
        );
        assert!(needed(None, 0).is_empty());
    }
}
