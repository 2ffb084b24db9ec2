//! `/proc/PID/maps`, and opening the files that it names.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{ProcessError, malformed, read};
use crate::process::open::{open_below, open_here};

/// What the kernel appends to the name of a file that has been unlinked (`d_path()` of `fs/d_path.c`).
const DELETED: &[u8] = b" (deleted)";

/// A file system's device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// From the `st_dev` of stat(2), in glibc's encoding (`gnu_dev_major` of `sys/sysmacros.h`).
    #[must_use]
    pub fn from_stat(dev: u64) -> Self {
        Self {
            major: libc::major(dev),
            minor: libc::minor(dev),
        }
    }
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where in the file `start` lies, bytes.
    pub offset: u64,
    /// PROT_READ.
    pub readable: bool,
    /// PROT_WRITE.
    pub writable: bool,
    /// PROT_EXEC.
    pub executable: bool,
    /// MAP_SHARED.
    pub shared: bool,
    /// The file's device; 0:0 without a file.
    pub device: Device,
    /// The file's inode; 0 without a file.
    pub inode: u64,
    /// The file's name in the process's mount namespace, or a name in brackets; empty for plain anonymous memory.
    pub path: PathBuf,
    /// The file has been unlinked, or replaced by another of its name.
    pub deleted: bool,
}

impl MemoryMap {
    /// Whether a file with a name stands behind it.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.as_os_str().as_bytes().first() == Some(&b'/')
    }

    /// The address at which the byte at `file_offset` is mapped, if it is in this mapping.
    #[must_use]
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        let distance = file_offset.checked_sub(self.offset)?;
        (distance < self.end.saturating_sub(self.start)).then(|| self.start.wrapping_add(distance))
    }
}

/// Reads and parses `/proc/PID/maps`. A zombie and a kernel thread map nothing.
///
/// Where the first thread has ended and others live on, `/proc/PID/maps` is empty, and the maps are read from
/// a living thread's folder.
///
/// # Errors
/// The process is gone or unreadable, or a line has an unexpected form.
pub fn read_maps(proc_root: &Path, pid: u32) -> Result<Vec<MemoryMap>, ProcessError> {
    let folder = proc_root.join(pid.to_string());
    let parse = |path: PathBuf| -> Result<Vec<MemoryMap>, ProcessError> {
        let text = read(pid, &path)?;
        parse_maps(&text).map_err(|line| malformed(pid, path, &line))
    };
    let maps = parse(folder.join("maps"))?;
    if !maps.is_empty() {
        return Ok(maps);
    }
    for thread in other_threads(&folder, pid) {
        if let Ok(maps) = parse(thread.join("maps"))
            && !maps.is_empty()
        {
            return Ok(maps);
        }
    }
    Ok(maps)
}

/// The folders of a process's threads but for the first.
fn other_threads(folder: &Path, pid: u32) -> impl Iterator<Item = PathBuf> {
    let first = OsString::from(pid.to_string());
    std::fs::read_dir(folder.join("task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(move |entry| entry.file_name() != first)
        .map(|entry| entry.path())
}

/// Parses the text of a `maps` file.
///
/// # Errors
/// The first line that does not have the documented form.
pub fn parse_maps(text: &[u8]) -> Result<Vec<MemoryMap>, Vec<u8>> {
    text.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse_line(line).ok_or_else(|| line.to_vec()))
        .collect()
}

/// `start-end perms offset major:minor inode      path`, the format of `show_map_vma()` in `fs/proc/task_mmu.c`.
fn parse_line(line: &[u8]) -> Option<MemoryMap> {
    let mut rest = line;
    let mut field = || -> Option<&str> {
        let end = rest
            .iter()
            .position(|&byte| byte == b' ')
            .unwrap_or(rest.len());
        let (head, tail) = rest.split_at_checked(end)?;
        rest = tail.strip_prefix(b" ").unwrap_or(tail);
        str::from_utf8(head).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?.as_bytes();
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?;
    let &[read, write, execute, share] = permissions else {
        return None;
    };

    // The name is set off by spaces; it may begin with none of its own, as it is absolute or a tag.
    let name = rest.trim_ascii_start();
    let (name, deleted) = match name.strip_suffix(DELETED) {
        Some(name) => (name, true),
        None => (name, false),
    };
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    (start <= end).then_some(())?;
    Some(MemoryMap {
        start,
        end,
        offset: hexadecimal(offset)?,
        readable: read == b'r',
        writable: write == b'w',
        executable: execute == b'x',
        shared: share == b's',
        device: Device {
            major: u32::from_str_radix(major, 16).ok()?,
            minor: u32::from_str_radix(minor, 16).ok()?,
        },
        inode: inode.parse().ok()?,
        path: PathBuf::from(OsString::from_vec(unescape(name))),
        deleted,
    })
}

fn hexadecimal(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

/// The kernel writes a newline in a name as `\012`, and escapes nothing else: a name that holds those four characters
/// itself cannot be told from it, and will not be found by name.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(br"\012") {
            plain.push(b'\n');
            rest = behind;
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    plain
}

/// The way in which a mapped file was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedThrough {
    /// `/proc/PID/map_files`: the mapped file itself, even where its name is gone or now names another.
    MapFiles,
    /// `/proc/PID/root` and the name; device and inode are those of the mapping.
    Name,
    /// As `Name`, but only the inode is that of the mapping.
    NameSameInode,
}

/// An opened mapped file.
#[derive(Debug)]
pub struct OpenedMap {
    /// The file, open for reading. `/proc/self/fd/N` names it for as long as it is open.
    pub file: File,
    /// How it was reached.
    pub through: OpenedThrough,
}

/// Opens the file behind a mapping, whatever mount namespace the process lives in: see [`open_mapped_through`].
///
/// # Errors
/// See [`open_mapped_through`].
pub fn open_mapped(proc_root: &Path, pid: u32, map: &MemoryMap) -> io::Result<File> {
    open_mapped_through(proc_root, pid, map).map(|opened| opened.file)
}

/// Opens the file behind a mapping through `map_files` (which needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN), else
/// by its name below the process's root, and says which.
///
/// # Errors
/// No file stands behind the mapping; it is no regular file (a device is never opened: that can have effects); neither way
/// leads to it, or the name now leads to another file.
pub fn open_mapped_through(proc_root: &Path, pid: u32, map: &MemoryMap) -> io::Result<OpenedMap> {
    if !map.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{:x}-{:x} is no mapping of a file", map.start, map.end),
        ));
    }
    let folder = proc_root.join(pid.to_string());
    let by_range = folder.join(format!("map_files/{:x}-{:x}", map.start, map.end));
    let range_error = match open_here(&by_range) {
        Ok(file) => {
            return Ok(OpenedMap {
                file,
                through: OpenedThrough::MapFiles,
            });
        }
        Err(error) => error,
    };
    match open_by_name(&folder, pid, map) {
        Ok(opened) => Ok(opened),
        // Permission to neither: the first error says what is missing.
        Err(name_error) => Err(io::Error::new(
            name_error.kind(),
            format!(
                "{name_error} (and {}: {range_error}; CAP_CHECKPOINT_RESTORE would allow that)",
                by_range.display()
            ),
        )),
    }
}

fn open_by_name(folder: &Path, pid: u32, map: &MemoryMap) -> io::Result<OpenedMap> {
    let name = map.path.as_os_str().as_bytes();
    let relative = name.strip_prefix(b"/").unwrap_or(name);
    // A file's name may itself end like the kernel's mark of a deleted one.
    let marked = [relative, DELETED].concat();
    let names: &[&[u8]] = if map.deleted {
        &[&marked, relative]
    } else {
        &[relative]
    };
    let mut roots = vec![folder.join("root")];
    if roots.iter().all(|root| std::fs::metadata(root).is_err()) {
        // The first thread may have ended before the others, and its root with it.
        roots.extend(other_threads(folder, pid).map(|thread| thread.join("root")));
    }
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for root in roots {
        for name in names {
            let name = Path::new(OsStr::from_bytes(name));
            let path = root.join(name);
            match open_below(&root, name).and_then(|file| check_identity(file, map)) {
                Ok(opened) => return Ok(opened),
                Err(refused) => error = describe(&path, &refused),
            }
        }
    }
    Err(error)
}

fn describe(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn check_identity(file: File, map: &MemoryMap) -> io::Result<OpenedMap> {
    let metadata = file.metadata()?;
    if metadata.ino() != map.inode {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "it is another file (inode {}) than the one that is mapped (inode {}): it was replaced",
                metadata.ino(),
                map.inode
            ),
        ));
    }
    // `maps` prints the superblock's device, stat(2) that of the btrfs subvolume or of the overlay: the same file, two
    // device numbers. Within one name in one root, an equal inode is evidence enough.
    let through = if Device::from_stat(metadata.dev()) == map.device {
        OpenedThrough::Name
    } else {
        OpenedThrough::NameSameInode
    };
    Ok(OpenedMap { file, through })
}
