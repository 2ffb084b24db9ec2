//! Tracepoint ids, from wherever tracefs can be read. Where it is not mounted, a private instance is opened that no path
//! leads to and that goes away with its descriptor: nothing on the machine changes.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use super::error::KernelError;

/// Where tracefs is usually mounted.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// What mounts it.
const MOUNT: &str = "`mount -t tracefs tracefs /sys/kernel/tracing`";

/// `FSCONFIG_CMD_CREATE` (include/uapi/linux/mount.h).
const FSCONFIG_CMD_CREATE: libc::c_ulong = 6;

/// Access to tracefs.
pub(crate) enum Tracefs {
    /// Mounted at this path.
    Mounted(PathBuf),
    /// A detached mount.
    Detached(OwnedFd),
}

impl Tracefs {
    /// Finds or opens tracefs.
    ///
    /// # Errors
    /// It is mounted where this user may not look, or is not mounted and cannot be opened (which takes CAP_SYS_ADMIN).
    pub(crate) fn open() -> Result<Self, KernelError> {
        let mut closed = None;
        for point in MOUNT_POINTS {
            match std::fs::metadata(Path::new(point).join("events/syscalls")) {
                Ok(folder) if folder.is_dir() => return Ok(Self::Mounted(PathBuf::from(point))),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    closed.get_or_insert(point);
                }
                _ => {}
            }
        }
        let error = match detached() {
            Ok(mount) => return Ok(Self::Detached(mount)),
            Err(error) => error,
        };
        Err(KernelError::Tracefs {
            reason: match closed {
                Some(point) => format!(
                    "{point} is closed to this user: permission denied; run as root, or with CAP_DAC_READ_SEARCH"
                ),
                None if error.raw_os_error() == Some(libc::EPERM) => format!(
                    "it is not mounted at {}, and to open it anyway takes CAP_SYS_ADMIN ({error}); run as root, or have it mounted and \
                     readable ({MOUNT})",
                    MOUNT_POINTS.join(" or ")
                ),
                None => format!(
                    "it is not mounted at {} and cannot be opened detached: {error}; try {MOUNT}",
                    MOUNT_POINTS.join(" or ")
                ),
            },
        })
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Mounted(path) => format!("mounted at {}", path.display()),
            Self::Detached(_) => "not mounted; a private instance can be opened".to_owned(),
        }
    }

    /// The number of a tracepoint, `category/name`.
    ///
    /// # Errors
    /// There is no such tracepoint, or it cannot be read.
    pub(crate) fn tracepoint_id(&self, event: &str) -> Result<u64, KernelError> {
        let relative = format!("events/{event}/id");
        let text = self.read(&relative)?;
        text.trim().parse().map_err(|_| KernelError::Tracefs {
            reason: format!("{relative} holds {text:?}, not a number"),
        })
    }

    /// Makes sure that a tracepoint's record has fields at the offsets and of the sizes, in bytes, that a program was made for.
    ///
    /// # Errors
    /// It has not, or the format cannot be read.
    pub(crate) fn expect_fields(
        &self,
        event: &str,
        fields: &[(&str, usize, usize)],
    ) -> Result<(), KernelError> {
        let relative = format!("events/{event}/format");
        let text = self.read(&relative)?;
        for (name, offset, size) in fields {
            if !has_field(&text, name, *offset, *size) {
                return Err(KernelError::Tracefs {
                    reason: format!(
                        "{relative}: this kernel has no field {name} of {size} bytes at {offset}"
                    ),
                });
            }
        }
        Ok(())
    }

    fn read(&self, relative: &str) -> Result<String, KernelError> {
        let mut text = String::new();
        match self {
            Self::Mounted(path) => File::open(path.join(relative)),
            Self::Detached(mount) => open_at(mount.as_raw_fd(), relative),
        }
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|error| KernelError::Tracefs {
            reason: format!("{relative}: {error}"),
        })?;
        Ok(text)
    }
}

/// Whether a tracepoint's format has a field: `field:pid_t pid; offset:8; size:4; signed:1;`.
fn has_field(format: &str, name: &str, offset: usize, size: usize) -> bool {
    format.lines().any(|line| {
        let mut parts = line.trim().split(';').map(str::trim);
        parts
            .next()
            .and_then(|field| field.strip_prefix("field:"))
            .is_some_and(|field| field.split_ascii_whitespace().next_back() == Some(name))
            && parts.next() == Some(&format!("offset:{offset}"))
            && parts.next() == Some(&format!("size:{size}"))
    })
}

/// openat(2), read-only.
fn open_at(directory: RawFd, path: &str) -> io::Result<File> {
    let path = CString::new(path)?;
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { libc::openat(directory, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// fsopen, fsconfig, fsmount (Linux 5.2): a tracefs that is attached nowhere.
fn detached() -> io::Result<OwnedFd> {
    const TRACEFS: &CStr = c"tracefs";
    let checked = |result: libc::c_long| -> io::Result<RawFd> {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            RawFd::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
        }
    };
    // SAFETY: the name is a C string; the flag is FSOPEN_CLOEXEC (1).
    let context = checked(unsafe { libc::syscall(libc::SYS_fsopen, TRACEFS.as_ptr(), 1) })?;
    // SAFETY: the descriptor is new and ours.
    let context = unsafe { OwnedFd::from_raw_fd(context) };
    // SAFETY: the command takes no key and no value.
    checked(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        )
    })?;
    // SAFETY: the flag is FSMOUNT_CLOEXEC (1); no mount attributes.
    let mount = checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(mount) })
}

#[cfg(test)]
mod tests {
    use super::has_field;

    #[test]
    fn fields_are_found_by_name_offset_and_size() {
        let format = "\tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n\tfield:u64 clone_flags;\toffset:32;\tsize:8;\tsigned:0;\n";
        assert!(has_field(format, "pid", 8, 4));
        assert!(has_field(format, "clone_flags", 32, 8));
        assert!(!has_field(format, "clone_flags", 28, 8));
        assert!(!has_field(format, "flags", 32, 8));
    }
}
