//! Where things lie if nothing else is said, for root and for others, and whether a folder can be believed. It must not know what is kept
//! there.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::output::complain;
use crate::symbol::{Debuginfod, DebuginfodSettings};

/// For no folder at all.
const NONE: &str = "none";
/// Root's (Filesystem Hierarchy Standard 3.0, 5.5).
const MACHINE: &str = "/var/cache/leakscope";

/// Where daemons listen and clients ask: for root the machine's place, for others their own.
pub(super) fn default_socket() -> PathBuf {
    const MACHINE: &str = "/run/leakscope.sock";
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if own_user() != Some(0) => Path::new(&folder).join("leakscope.sock"),
        _ => PathBuf::from(MACHINE),
    }
}

/// Where clients ask if nothing else is said: the packaged service where one runs, whose folder is there only so long, else as above.
pub(super) fn daemon_socket() -> PathBuf {
    let service = Path::new("/run/leakscope/leakscope.sock");
    if own_user() == Some(0) && service.exists() {
        return service.to_owned();
    }
    default_socket()
}

/// The folder for unwind tables that was asked for, or the usual one; it is made if it is not there.
///
/// # Errors
/// Where one was asked for that cannot be used. The usual one costs some time where it is missing, and nothing more.
pub(super) fn unwind_cache(asked: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    match asked {
        Some(none) if none.as_os_str() == NONE => Ok(None),
        Some(folder) => {
            usable(folder).with_context(|| {
                format!(
                    "--unwind-cache {}: name a folder that is yours alone, or `{NONE}`",
                    folder.display()
                )
            })?;
            Ok(Some(folder.to_owned()))
        }
        None => Ok(usual().filter(|folder| usable(folder).is_ok())),
    }
}

/// Who has debug information that is not on this machine, if the environment names somebody.
pub(super) fn debuginfod() -> Option<Debuginfod> {
    let settings = DebuginfodSettings::read(|name| std::env::var_os(name));
    if settings.is_none()
        && std::env::var_os("DEBUGINFOD_URLS").is_some_and(|urls| !urls.is_empty())
    {
        complain(
            "leakscope: debuginfod: nothing in DEBUGINFOD_URLS begins with http:// or https://, so nobody is asked for debug information",
        );
    }
    let settings = settings?;
    let folder = debuginfod_caches(absolute).into_iter().find(|folder| {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .is_ok()
            && owned(folder, OTHERS).is_ok()
    });
    let Some(folder) = folder else {
        complain(
            "leakscope: debuginfod: there is no folder of ours to keep debug information in; DEBUGINFOD_CACHE_PATH names one",
        );
        return None;
    };
    Some(Debuginfod::new(settings, folder, |line| {
        complain(&format!("leakscope: {line}"));
    }))
}

/// Where debug information may be kept, the best place first: as debuginfod-find(1) has it, so that other tools find it too, but for
/// a service, whose place is what systemd gave it, and for who has no home to write to.
fn debuginfod_caches(absolute: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    const FOLDER: &str = "debuginfod_client";
    if let Some(named) = absolute("DEBUGINFOD_CACHE_PATH") {
        return vec![named];
    }
    let home = absolute("HOME");
    let old = home
        .as_ref()
        .map(|home| home.join(".debuginfod_client_cache"));
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
    let places = [
        absolute("CACHE_DIRECTORY").map(|place| place.join(FOLDER)),
        old.filter(|place| place.is_dir()),
        caches.map(|place| place.join(FOLDER)),
        Some(Path::new(MACHINE).join(FOLDER)),
    ];
    places.into_iter().flatten().collect()
}

/// A path that a variable holds.
fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// Root's is the machine's; that of others is their own (XDG Base Directory Specification 0.8).
fn usual() -> Option<PathBuf> {
    if own_user()? == 0 {
        // Where the machine has no place for caches, it is not ours to make one.
        let machine = Path::new(MACHINE);
        return machine.parent()?.is_dir().then(|| machine.to_owned());
    }
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("leakscope"))
}

/// Makes the folder, and checks that nobody else could have put anything there.
fn usable(folder: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .context("it cannot be made")?;
    owned(folder, GROUP | OTHERS)
}

/// Permission to write, for a file's group and for all others (`S_IWGRP`, `S_IWOTH`).
const GROUP: u32 = 0o020;
const OTHERS: u32 = 0o002;

/// Checks that a folder is our own, and that none of these may write to it.
fn owned(folder: &Path, who: u32) -> anyhow::Result<()> {
    let metadata = fs::metadata(folder)?;
    if own_user().is_none_or(|user| user != metadata.uid()) {
        bail!("it belongs to user {}", metadata.uid());
    }
    if metadata.mode() & who != 0 {
        bail!(
            "others may write to it (mode {:03o})",
            metadata.mode() & 0o777
        );
    }
    Ok(())
}

/// The effective user: the owner of a process's folder in /proc.
fn own_user() -> Option<u32> {
    Some(fs::metadata("/proc/self").ok()?.uid())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{debuginfod_caches, unwind_cache};
    use std::{
        fs,
        os::unix::fs::PermissionsExt as _,
        path::{Path, PathBuf},
    };

    #[test]
    fn debug_information_is_kept_where_other_tools_look() {
        let with = |variables: &[(&str, &str)]| {
            debuginfod_caches(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        let first = |variables| with(variables).first().cloned().unwrap_or_default();
        let home = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x")];
        assert_eq!(first(&home[1..]), Path::new("/x/debuginfod_client"));
        assert_eq!(first(&home), Path::new("/x/debuginfod_client"));
        assert_eq!(first(&home[..1]), Path::new("/h/.cache/debuginfod_client"));
        assert_eq!(
            first(&[home[0], ("CACHE_DIRECTORY", "/c")]),
            Path::new("/c/debuginfod_client")
        );
        assert_eq!(
            with(&[home[0], ("DEBUGINFOD_CACHE_PATH", "/d")]),
            [Path::new("/d")]
        );
        assert_eq!(
            with(&[]),
            [Path::new("/var/cache/leakscope/debuginfod_client")]
        );
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("made").join("as needed");
        assert_eq!(unwind_cache(Some(&folder)).unwrap(), Some(folder.clone()));
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for mode in [0o777, 0o770, 0o702] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            let error = format!("{:#}", unwind_cache(Some(&folder)).unwrap_err());
            assert!(error.contains("others may write to it"), "{error}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_one_is_refused() {
        let place = tempfile::NamedTempFile::new().unwrap();
        for path in [place.path(), &place.path().join("in it")] {
            let error = format!("{:#}", unwind_cache(Some(path)).unwrap_err());
            assert!(error.contains("it cannot be made"), "{error}");
        }
    }

    #[test]
    fn none_is_no_folder() {
        assert_eq!(unwind_cache(Some(Path::new("none"))).unwrap(), None);
    }
}
