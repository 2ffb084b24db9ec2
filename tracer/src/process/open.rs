//! Opening files that a target names. Whatever a target has prepared there, opening it waits for nobody, has no effect, and does not
//! leave the target's own root. Knows nothing of what stands in files.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::OnceLock,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstatfs, open, openat2,
        statx,
    },
    process::{Resource, getrlimit},
};

/// File systems whose files are questions to the kernel, or to a program of anybody's (`include/uapi/linux/magic.h`): to read them can
/// wait without end, or change something. Code and its names do not lie there.
const REFUSED: [(i64, &str); 17] = [
    (0x9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x7472_6163, "tracefs"),
    (0x6462_6720, "debugfs"),
    (0x0027_e0eb, "a control group file system"),
    (0x6367_7270, "a control group file system"),
    (0xcafe_4a11, "the BPF file system"),
    (0x6573_5546, "FUSE, which may never answer"),
    (0x6573_5543, "the FUSE control file system"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x1980_0202, "mqueue"),
    (0x6e73_6673, "nsfs"),
];

/// One directory for each FUSE mount, named by the minor number of its device (Documentation/filesystems/fuse.rst): asking there is no
/// question to the program behind it.
const FUSE_CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// `FUSE_CTL_SUPER_MAGIC` (fs/fuse/control.c).
const FUSE_LIST: i64 = 0x6573_5543;

/// File systems on disks of this machine, or in its memory, whose owners of files are what they say
/// (`include/uapi/linux/magic.h`): ext2 to ext4, XFS, Btrfs, tmpfs, F2FS, SquashFS, EROFS, ZFS, bcachefs. Not overlayfs, which anybody
/// may mount over anything, and nothing that comes over a network.
const LOCAL: [i64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0xf2f5_2010,
    0x7371_7368,
    0xe0f5_e1e2,
    0x2fc1_2fc1,
    0xca45_1a4e,
];

/// The most files of targets that are held open, whatever the limit: a machine with a thousand containers maps some thousands of libraries
/// and programs.
const MOST_HELD: u64 = 16_384;

/// Permission bits: others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Opens what a path of ours leads to, such as a link in `/proc/PID/map_files`.
///
/// # Errors
/// It is no regular file, or lies where opening can wait or have effects.
pub fn open_here(path: &Path) -> io::Result<File> {
    admit(&open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a file by the name that it has for a target: no link and no `..` leads out of `root`.
///
/// # Errors
/// As [`open_here`]; or the kernel knows no openat2(2) (before Linux 5.6).
pub fn open_below(root: &Path, name: &Path) -> io::Result<File> {
    let root = open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    admit(&openat2(
        root,
        name,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// Opens for reading what was found, if that is safe.
fn admit(found: &OwnedFd) -> io::Result<File> {
    let refuse = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    // What is known is enough: a file system that is asked may not answer.
    let about = statx(
        found,
        c"",
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        StatxFlags::TYPE,
    )?;
    if FileType::from_raw_mode(about.stx_mode.into()) != FileType::RegularFile {
        return Err(refuse("not a regular file".to_owned()));
    }
    if about.stx_dev_major == 0 && is_fuse(about.stx_dev_minor) {
        return Err(refuse("it lies on FUSE, which may never answer".to_owned()));
    }
    let kind = kind_of(found)?;
    if let Some((_, name)) = REFUSED.iter().find(|(magic, _)| *magic == kind) {
        return Err(refuse(format!("it lies on {name}")));
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn kind_of(file: impl AsFd) -> io::Result<i64> {
    // The kernel's type is signed; the numbers have 32 bits.
    Ok(fstatfs(file)?.f_type & 0xffff_ffff)
}

/// Whether the device without a disk that has this minor number is a FUSE mount.
pub(crate) fn is_fuse(minor: u32) -> bool {
    rustix::fs::accessat(
        CWD,
        Path::new(FUSE_CONNECTIONS).join(minor.to_string()),
        rustix::fs::Access::EXISTS,
        AtFlags::empty(),
    )
    .is_ok()
}

/// Whether [`is_fuse`] knows: the list is a file system of its own, which must be mounted.
pub(crate) fn has_fuse_list() -> bool {
    rustix::fs::statfs(FUSE_CONNECTIONS).is_ok_and(|list| list.f_type & 0xffff_ffff == FUSE_LIST)
}

/// How many files of targets may be held open at once: of the descriptors that we may have, half are for listeners, clients and probes.
#[must_use]
pub fn most_held() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from((limit / 2).min(MOST_HELD)).unwrap_or(usize::MAX)
    })
}

/// Whether nobody but root can have chosen what stands in a file, or can change it while it is read: owned by root, not writable by
/// others, on a local file system.
#[must_use]
pub fn is_trusted(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & WRITABLE_BY_OTHERS == 0)
        && kind_of(file).is_ok_and(|kind| LOCAL.contains(&kind))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{open_below, open_here};
    use std::{fs, io::Read as _, os::unix::fs::symlink, path::Path};

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("tmp")).unwrap();
        fs::write(folder.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        for (name, to) in [
            ("up", "../../secret"),
            ("absolute", "/secret"),
            ("far", "../../../../../../secret"),
        ] {
            let link = root.join("tmp").join(name);
            symlink(to, &link).unwrap();
            let mut text = String::new();
            let mut file = open_below(&root, &Path::new("/tmp").join(name)).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{name}");
        }
    }

    #[test]
    fn what_is_no_file_or_no_file_of_a_disk_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let places = [
            "/proc/kmsg",
            "/proc/self/maps",
            "/sys/kernel/notes",
            "/dev/null",
            "/",
        ];
        for place in places.iter().map(Path::new).chain([fifo.as_path()]) {
            let link = folder.path().join("link");
            let _ = fs::remove_file(&link);
            symlink(place, &link).unwrap();
            assert!(open_here(&link).is_err(), "{place:?}");
            assert!(open_below(Path::new("/"), place).is_err(), "{place:?}");
        }
        assert!(open_here(Path::new("/proc/self/exe")).is_ok());
    }
}
