//! What the library that names functions may be given: it maps files, and takes the memory that they ask for. Files that only root can
//! have made are looked at before; of any other it gets a copy of what it needs, bounded and unpacked, that nobody can cut short under
//! it. Knows nothing of names.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::PathBuf,
};

use object::elf::{ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, SHF_COMPRESSED, SHT_NOBITS};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::nanoseconds;
use crate::process::{
    elf::{ElfFile, Section},
    open::{is_trusted, most_held},
};

/// Most sections of a file. The library looks for each by name, one after the other; the largest real files have some hundreds.
const MOST_SECTIONS: usize = 10_000;
/// The most that a trusted file's sections may unpack to, bytes.
const MOST_UNPACKED: u64 = 1 << 30;
/// The most that zlib packs into a byte: see `zlib.net/zlib_tech.html`, "Maximum Compression Factor".
const ZLIB_FACTOR: u64 = 1032;
/// The most that is copied of one file, bytes. Debug information that takes more is left out.
const LARGEST_COPY: u64 = 192 << 20;
/// The most that is copied of all files, bytes: it counts to the memory of the service, which may have 1 GiB.
const ALL_COPIES: u64 = 320 << 20;
/// The largest file, bytes: a copy has its length, with holes.
const LARGEST_FILE: u64 = 16 << 30;
/// Files are copied in pieces of so many bytes.
const PIECE: usize = 64 << 10;

/// `e_shoff` and `e_shnum`'s places, and the members of a section's header (System V gABI, "ELF Header" and "Sections"), bytes.
const HEADER_BYTES: u64 = 64;
const SECTIONS_AT: u64 = 40;
const SECTION_BYTES: u64 = 64;
const FLAGS_IN_SECTION: u64 = 8;
const OFFSET_IN_SECTION: u64 = 24;
const SIZE_IN_SECTION: u64 = 32;
/// A compressed section begins with type, reserved, size and alignment.
const COMPRESSION_BYTES: u64 = 24;
/// `e_phoff`, and the bytes of the most program headers that a file can have.
const PROGRAMS_AT: u64 = 32;
const MOST_PROGRAM_BYTES: u64 = 56 * 65_535;

/// Debug sections that no name needs.
const NEEDLESS: [&str; 9] = [
    ".debug_frame",
    ".debug_macro",
    ".debug_macinfo",
    ".debug_pubnames",
    ".debug_pubtypes",
    ".debug_gnu_pubnames",
    ".debug_gnu_pubtypes",
    ".debug_loc",
    ".debug_loclists",
];

/// What may be read in a file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Readable {
    pub(super) path: PathBuf,
    /// Whether there is debug information in it that may be read.
    pub(super) has_debug: bool,
}

/// What tells files apart: see [`Module::identity`](super::Module::identity).
pub(crate) type Identity = (u64, u64, u64, i64);

/// What is known of files, and the copies that were made of them. A file is looked at once: what was read of it stays, whatever its owner
/// does to it.
#[derive(Debug, Default)]
pub(super) struct Vetted {
    known: HashMap<Identity, Result<Held, String>>,
    copied: u64,
}

/// A file that is held open, or a copy in its place.
#[derive(Debug)]
struct Held {
    file: File,
    has_debug: bool,
}

impl Vetted {
    /// Whether there is no room for much more: all of it is to be forgotten then, so that one user's files take nothing from another's.
    pub(super) fn is_full(&self) -> bool {
        self.known.len() >= most_held() || self.copied > ALL_COPIES.saturating_sub(LARGEST_COPY)
    }

    /// What may be read in the place of a file as it is now; or why nothing may.
    pub(super) fn readable_now(&mut self, file: File) -> Result<Readable, String> {
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        let identity = (
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        );
        self.readable(identity, file)
    }

    /// What may be read in the place of a file that had this identity when it was first seen; or why nothing may.
    pub(super) fn readable(&mut self, identity: Identity, file: File) -> Result<Readable, String> {
        let copied = &mut self.copied;
        let verdict = self
            .known
            .entry(identity)
            .or_insert_with(|| look(file, copied));
        match verdict {
            Ok(held) => Ok(Readable {
                path: PathBuf::from(format!("/proc/self/fd/{}", held.file.as_raw_fd())),
                has_debug: held.has_debug,
            }),
            Err(why) => Err(why.clone()),
        }
    }
}

/// Looks at a file: it may be read as it is, or as a copy, or not at all.
fn look(file: File, copied: &mut u64) -> Result<Held, String> {
    let elf = ElfFile::parse(&file).map_err(|error| error.to_string())?;
    if elf.sections.len() > MOST_SECTIONS {
        return Err(format!("it has {} sections", elf.sections.len()));
    }
    if is_trusted(&file) {
        let unpacked = unpacked(&file, &elf, |_| true).map_err(|error| error.to_string())?;
        return if unpacked > MOST_UNPACKED {
            Err(format!("its sections claim to unpack to {unpacked} bytes"))
        } else {
            Ok(Held {
                file,
                has_debug: true,
            })
        };
    }
    copy(&file, &elf, copied)
        .map_err(|error| format!("it is not trusted, and cannot be copied: {error}"))
}

/// The bytes that some sections have once they are unpacked.
fn unpacked(file: &File, elf: &ElfFile, wanted: impl Fn(&Section) -> bool) -> io::Result<u64> {
    let mut all = 0_u64;
    for section in elf.sections.iter().filter(|section| wanted(section)) {
        let bytes = if is_compressed(section) {
            Packed::of(file, section)?.claimed
        } else if section.kind == SHT_NOBITS.0 {
            0
        } else {
            section.size
        };
        all = all.saturating_add(bytes);
    }
    Ok(all)
}

fn is_compressed(section: &Section) -> bool {
    section.flags & SHF_COMPRESSED.0 != 0
}

/// What a compressed section says of itself.
struct Packed {
    kind: u32,
    claimed: u64,
}

impl Packed {
    fn of(file: &File, section: &Section) -> io::Result<Self> {
        let mut header = [0; COMPRESSION_BYTES as usize];
        file.read_exact_at(&mut header, section.file_offset)?;
        let [a, b, c, d, _, _, _, _, size @ ..] = header;
        let size: [u8; 8] = size.first_chunk().copied().unwrap_or_default();
        let packed = Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            claimed: u64::from_le_bytes(size),
        };
        if packed.kind == ELFCOMPRESS_ZLIB.0
            && packed.claimed > section.size.saturating_mul(ZLIB_FACTOR)
        {
            return Err(damaged("a section claims to unpack to more than it can"));
        }
        Ok(packed)
    }
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether a name can come from it.
fn is_for_names(section: &Section) -> bool {
    is_debug(section)
        || [
            ".symtab",
            ".strtab",
            ".dynsym",
            ".dynstr",
            ".shstrtab",
            ".note.gnu.build-id",
        ]
        .contains(&section.name.as_str())
}

fn is_debug(section: &Section) -> bool {
    section.name.starts_with(".debug_") && !NEEDLESS.contains(&section.name.as_str())
}

/// Copies what names need to where nobody else can change it.
fn copy(file: &File, elf: &ElfFile, copied: &mut u64) -> io::Result<Held> {
    let length = file.metadata()?.len();
    if length > LARGEST_FILE {
        return Err(damaged("it is absurdly large"));
    }
    let has_debug = unpacked(file, elf, is_for_names)? <= LARGEST_COPY;
    let wanted = |section: &Section| is_for_names(section) && (has_debug || !is_debug(section));
    let bytes = unpacked(file, elf, wanted)?;
    if bytes > LARGEST_COPY {
        return Err(damaged("its symbols are absurdly large"));
    }
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0)?;
    let word = |at: u64| -> u64 {
        let bytes = header.get(at as usize..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u64::from_le_bytes)
    };
    let to = Target::new(length)?;
    let table = word(SECTIONS_AT);
    to.take(file, 0, HEADER_BYTES)?;
    to.take(file, word(PROGRAMS_AT), MOST_PROGRAM_BYTES)?;
    to.take(
        file,
        table,
        SECTION_BYTES.saturating_mul(elf.sections.len() as u64),
    )?;
    let mut end = length;
    for (place, section) in (0_u64..).zip(&elf.sections) {
        let header = table.saturating_add(place.saturating_mul(SECTION_BYTES));
        if !wanted(section) {
            if section.name.starts_with(".debug_") || is_compressed(section) {
                // It is not there: a header that says otherwise would be believed.
                to.put(header.saturating_add(SIZE_IN_SECTION), 0)?;
                to.put(header.saturating_add(FLAGS_IN_SECTION), 0)?;
            }
        } else if is_compressed(section) {
            let size = to.unpack(file, section, end)?;
            to.put(header.saturating_add(FLAGS_IN_SECTION), 0)?;
            to.put(header.saturating_add(OFFSET_IN_SECTION), end)?;
            to.put(header.saturating_add(SIZE_IN_SECTION), size)?;
            end = end.saturating_add(size).next_multiple_of(16);
        } else if section.kind != SHT_NOBITS.0 {
            to.take(file, section.file_offset, section.size)?;
        }
    }
    *copied = copied.saturating_add(bytes);
    Ok(Held {
        file: to.seal(end)?,
        has_debug,
    })
}

/// The file that is copied to.
struct Target(File);

impl Target {
    fn new(length: u64) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(c"leakscope-symbols", flags)?);
        file.set_len(length)?;
        Ok(Self(file))
    }

    /// Copies a part to the same place, as far as there is one.
    fn take(&self, file: &File, from: u64, size: u64) -> io::Result<()> {
        let end = from.saturating_add(size).min(file.metadata()?.len());
        let part = Part {
            file,
            at: from,
            left: end.saturating_sub(from),
        };
        self.fill(part, from).map(|_| ())
    }

    /// Writes what is read from a place on, and says how much it was. Zeros take no memory.
    fn fill(&self, mut source: impl Read, to: u64) -> io::Result<u64> {
        let mut piece = vec![0; PIECE];
        let mut done = 0_u64;
        loop {
            let read = match source.read(&mut piece) {
                Ok(0) => return Ok(done),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = piece.get(..read).unwrap_or_default();
            if bytes.iter().any(|byte| *byte != 0) {
                self.0.write_all_at(bytes, to.saturating_add(done))?;
            }
            done = done.saturating_add(read as u64);
        }
    }

    fn put(&self, at: u64, word: u64) -> io::Result<()> {
        self.0.write_all_at(&word.to_le_bytes(), at)
    }

    /// Unpacks a section to a place behind all others.
    fn unpack(&self, file: &File, section: &Section, to: u64) -> io::Result<u64> {
        let packed = Packed::of(file, section)?;
        let part = Part {
            file,
            at: section.file_offset.saturating_add(COMPRESSION_BYTES),
            left: section.size.saturating_sub(COMPRESSION_BYTES),
        };
        // One byte more than it claims is enough to know that it lies.
        let most = packed.claimed.saturating_add(1);
        let size = if packed.kind == ELFCOMPRESS_ZLIB.0 {
            self.fill(flate2::read::ZlibDecoder::new(part).take(most), to)?
        } else if packed.kind == ELFCOMPRESS_ZSTD.0 {
            self.fill(zstd::Decoder::new(part)?.take(most), to)?
        } else {
            return Err(damaged("a section is packed in an unknown way"));
        };
        if size > packed.claimed {
            return Err(damaged("a section unpacks to more than it claims"));
        }
        Ok(size)
    }

    fn seal(self, length: u64) -> io::Result<File> {
        self.0.set_len(length)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&self.0, seals)?;
        Ok(self.0)
    }
}

/// A part of a file.
struct Part<'file> {
    file: &'file File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self
            .file
            .read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(read as u64);
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}
